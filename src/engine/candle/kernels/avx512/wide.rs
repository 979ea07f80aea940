//! The loops over single rows that take the most time, in AVX-512.

use std::arch::x86_64::*;

use super::super::{COLUMNS, Line, MOST_ROWS, SCALED, Softmax};

/// Values smaller than this are quantized to 0: the inverse of their scale would not be finite.
const SMALLEST: f32 = 1e-30;

/// `exp(x)` within 2 units in the last place; 0 below -87 (so that no product with it is a subnormal number, which takes
/// the processor a hundred times as long), NaN for NaN.
#[target_feature(enable = "avx512f,avx512dq")]
fn exp(x: __m512) -> __m512 {
    let counts = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(-87.0));
    let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
        _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)),
    );
    // ln 2 in two parts, so that the rest is exact.
    let rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693_359_4), x);
    let rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.121_944_4e-4), rest);
    let mut sum = _mm512_set1_ps(1.987_569_1e-4);
    for term in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5e-1,
    ] {
        sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(term));
    }
    sum = _mm512_fmadd_ps(_mm512_mul_ps(sum, rest), rest, rest);
    _mm512_maskz_scalef_ps(counts, _mm512_add_ps(sum, _mm512_set1_ps(1.0)), whole)
}

/// See [`super::super::Path::gate`].
///
/// # Safety
/// The slices must be of the same length.
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) unsafe fn gate(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for at in (0..gate.len()).step_by(16) {
        let there = first(gate.len() - at);
        // SAFETY: only the lanes that are there are read and written.
        unsafe {
            let g = _mm512_maskz_loadu_ps(there, gate.as_ptr().add(at));
            let u = _mm512_maskz_loadu_ps(there, up.as_ptr().add(at));
            let negated = _mm512_xor_ps(g, _mm512_set1_ps(-0.0));
            // Below -80 it is 0 to all purposes, and the steps that follow would overflow. (NaN is not below.)
            let counts = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(g, _mm512_set1_ps(-80.0));
            let below = _mm512_add_ps(exp(negated), _mm512_set1_ps(1.0));
            // Its inverse: 14 bits by the processor, the rest by a step of Newton's.
            let inverse = _mm512_rcp14_ps(below);
            let off = _mm512_fnmadd_ps(below, inverse, _mm512_set1_ps(1.0));
            let inverse = _mm512_fmadd_ps(inverse, off, inverse);
            let product = _mm512_mul_ps(_mm512_mul_ps(g, inverse), u);
            let product = _mm512_maskz_mov_ps(counts, product);
            _mm512_mask_storeu_ps(out.as_mut_ptr().add(at), there, product);
        }
    }
}

/// The first so many lanes.
fn first(count: usize) -> u16 {
    if count >= 16 {
        u16::MAX
    } else {
        (1 << count) - 1
    }
}

/// See [`super::super::Path::quantize`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vnni")]
pub(super) fn quantize(x: &[f32; SCALED], out: &mut Line) -> (f32, i32) {
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    let mut values = [_mm512_setzero_ps(); 4];
    // As integers: NaN is above infinity, infinity above all numbers.
    let mut largest = _mm512_setzero_si512();
    for (value, x) in values.iter_mut().zip(x.as_chunks::<16>().0) {
        // SAFETY: sixteen floats.
        *value = unsafe { _mm512_loadu_ps(x.as_ptr()) };
        let bits = _mm512_and_si512(_mm512_castps_si512(*value), magnitude);
        largest = _mm512_max_epu32(largest, bits);
    }
    let largest = f32::from_bits(_mm512_reduce_max_epu32(largest));
    let tiny = largest < SMALLEST;
    let scale = if tiny { 0.0 } else { largest / 127.0 };
    let inverse = _mm512_set1_ps(if tiny { 0.0 } else { 127.0 / largest });
    let bytes = out.bytes_mut().as_chunks_mut::<16>().0;
    let mut total = _mm512_setzero_si512();
    for (bytes, value) in bytes.iter_mut().zip(values) {
        let whole = _mm512_cvtps_epi32(_mm512_mul_ps(value, inverse));
        total = _mm512_add_epi32(total, whole);
        // SAFETY: sixteen bytes. Magnitudes are at most 127; what comes of NaN is cut off.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(whole)) };
    }
    (scale, _mm512_reduce_add_epi32(total).wrapping_mul(-128))
}

/// See [`super::super::Path::softmax`].
///
/// Whether a block has a new largest score cannot be foretold, so nothing here branches on it.
///
/// # Safety
/// The slices must be as long as `valid` has rows, 16 at most: scores 32, weights 2, the others 1 for each.
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) unsafe fn softmax(
    scores: &[f32],
    valid: &[usize],
    states: &mut Softmax,
    weights: &mut [Line],
    rescale: &mut [f32; MOST_ROWS],
) -> bool {
    let rows = valid.len();
    let there = first(rows);
    let nothing = _mm512_set1_ps(f32::NEG_INFINITY);
    let masked = |row: usize| {
        // SAFETY: a row is 32 scores.
        unsafe {
            let scores = scores.as_ptr().add(row * COLUMNS);
            (
                _mm512_mask_loadu_ps(nothing, first(valid[row]), scores),
                _mm512_mask_loadu_ps(
                    nothing,
                    first(valid[row].saturating_sub(16)),
                    scores.add(16),
                ),
            )
        }
    };
    let mut room = [0.0f32; 16];
    for (row, largest) in room[..rows].iter_mut().enumerate() {
        let (low, high) = masked(row);
        *largest = _mm512_reduce_max_ps(_mm512_max_ps(low, high));
    }
    // SAFETY: sixteen floats; of the states only as many as there are rows.
    let (before, sums, block) = unsafe {
        (
            _mm512_maskz_loadu_ps(there, states.largest.as_ptr()),
            _mm512_maskz_loadu_ps(there, states.sum.as_ptr()),
            _mm512_loadu_ps(room.as_ptr()),
        )
    };
    let largest = _mm512_max_ps(before, block);
    // Where nothing counts so far, the shift is 0 and all weights are 0, as exp(-inf) is. (If minus infinity is all there
    // ever is, the sum stays 0 and the row becomes NaN.)
    let some = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(largest, nothing);
    let shift = _mm512_maskz_mov_ps(some, largest);
    let factor = exp(_mm512_sub_ps(before, shift));
    // SAFETY: sixteen floats; of the rest only as many as there are rows.
    unsafe {
        _mm512_storeu_ps(room.as_mut_ptr(), shift);
        _mm512_mask_storeu_ps(states.largest.as_mut_ptr(), there, largest);
        _mm512_mask_storeu_ps(rescale.as_mut_ptr(), there, factor);
    }
    for (row, sum) in room[..rows].iter_mut().enumerate() {
        let (low, high) = masked(row);
        let shift = _mm512_set1_ps(*sum);
        let low = exp(_mm512_sub_ps(low, shift));
        let high = exp(_mm512_sub_ps(high, shift));
        *sum = _mm512_reduce_add_ps(_mm512_add_ps(low, high));
        // SAFETY: the second line is `rows` lines further.
        unsafe {
            let line = weights.as_mut_ptr().add(row);
            _mm512_store_ps(line.cast(), low);
            _mm512_store_ps(line.add(rows).cast(), high);
        }
    }
    // SAFETY: as above.
    unsafe {
        let block = _mm512_loadu_ps(room.as_ptr());
        let sums = _mm512_fmadd_ps(sums, factor, block);
        _mm512_mask_storeu_ps(states.sum.as_mut_ptr(), there, sums);
    }
    _mm512_mask_cmp_ps_mask::<_CMP_NEQ_UQ>(there, factor, _mm512_set1_ps(1.0)) != 0
}
