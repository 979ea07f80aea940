//! Register tiles of 12 rows and 2 registers of 16 columns, in AVX-512.

mod wide;

use std::arch::x86_64::*;

use super::lanes::elementwise;
use super::raw::{Raw, by_rows};
use super::{COLUMNS, INT8_LINES, Line, MOST_ROWS, Path, SCALED, Scales, Softmax, Tile, turn};

/// Lines from the weights in use to those that are asked for.
const AHEAD: usize = 64;

/// The path with AVX-512's foundation, and VNNI; with BF16 where it pays.
pub(crate) struct Avx512 {
    /// Products of bfloat pairs by the processor's own instruction.
    pairs: bool,
}

/// What this processor has of this path.
pub(crate) fn paths() -> Vec<&'static dyn Path> {
    let mut paths: Vec<&'static dyn Path> = Vec::new();
    let base = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("fma");
    if base {
        paths.push(&Avx512 { pairs: false });
        if is_x86_feature_detected!("avx512bf16") {
            // Intel's cores take two cycles for it, half the speed of widening to f32; AMD's take one, twice the speed.
            let at = if amd() { 0 } else { 1 };
            paths.insert(at, &Avx512 { pairs: true });
        }
    }
    paths
}

/// Whether the processor is AMD's.
fn amd() -> bool {
    let answer = __cpuid(0);
    (answer.ebx, answer.edx, answer.ecx) == (0x6874_7541, 0x6974_6e65, 0x444d_4163)
}

impl Path for Avx512 {
    fn name(&self) -> &'static str {
        if self.pairs { "avx512-bf16" } else { "avx512" }
    }

    fn rows(&self) -> usize {
        12
    }

    fn int8_rows(&self) -> usize {
        7
    }

    fn rounds_to_bf16(&self) -> bool {
        self.pairs
    }

    fn f32(&self, tile: Tile<'_>) {
        let tile = Raw::new(tile, 32);
        // SAFETY: the path is only handed out where its instructions are; `Raw::new` has checked the lengths.
        unsafe { by_rows!(tile.rows, single(&tile); 1 2 3 4 5 6 7 8 9 10 11 12) }
    }

    fn f16(&self, tile: Tile<'_>) {
        let tile = Raw::new(tile, 16);
        // SAFETY: as in `f32`.
        unsafe { by_rows!(tile.rows, halves(&tile); 1 2 3 4 5 6 7 8 9 10 11 12) }
    }

    fn bf16(&self, tile: Tile<'_>) {
        if self.pairs {
            let tile = Raw::new(tile, 32);
            // SAFETY: as in `f32`; with `pairs` the processor has BF16 as well.
            unsafe { by_rows!(tile.rows, pairs(&tile); 1 2 3 4 5 6 7 8 9 10 11 12) }
        } else {
            let tile = Raw::new(tile, 16);
            // SAFETY: as in `f32`.
            unsafe { by_rows!(tile.rows, widened(&tile); 1 2 3 4 5 6 7 8 9 10 11 12) }
        }
    }

    fn int8(&self, tile: Tile<'_>, scales: &Scales<'_>) {
        let tile = Raw::with_scales(tile, scales, (1, INT8_LINES));
        // SAFETY: as in `f32`; the scales reach as far as the lines (checked above).
        unsafe { by_rows!(tile.rows, bytes(&tile, scales); 1 2 3 4 5 6 7 8 9 10 11 12) }
    }

    fn quantize(&self, x: &[f32], out: &mut Line) -> (f32, i32) {
        let mut room = [0.0; SCALED];
        let whole = if let Ok(whole) = <&[f32; SCALED]>::try_from(x) {
            whole
        } else {
            room[..x.len()].copy_from_slice(x);
            &room
        };
        // SAFETY: as in `f32`.
        unsafe { wide::quantize(whole, out) }
    }

    fn gate(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == up.len() && gate.len() == out.len());
        // SAFETY: as in `f32`; the lengths are the same.
        unsafe { wide::gate(gate, up, out) }
    }

    fn softmax(
        &self,
        scores: &[f32],
        valid: &[usize],
        states: &mut Softmax,
        weights: &mut [Line],
        rescale: &mut [f32; MOST_ROWS],
    ) -> bool {
        let rows = valid.len();
        assert!(rows <= MOST_ROWS);
        assert!(scores.len() == rows * COLUMNS && weights.len() == rows * 2);
        // SAFETY: as in `f32`; the lengths are those of so many rows.
        unsafe { wide::softmax(scores, valid, states, weights, rescale) }
    }

    fn hadamard(&self, x: &mut [f32; SCALED]) {
        // SAFETY: as in `f32`.
        unsafe { turn::hadamard(x) }
    }

    elementwise!("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma");
}

/// The sums so far.
///
/// # Safety
/// `c` must hold `M` rows.
#[target_feature(enable = "avx512f")]
unsafe fn load<const M: usize>(c: *const f32) -> [[__m512; 2]; M] {
    let mut sums = [[_mm512_setzero_ps(); 2]; M];
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: within the `M` rows.
        unsafe {
            sums[0] = _mm512_loadu_ps(c.add(row * COLUMNS));
            sums[1] = _mm512_loadu_ps(c.add(row * COLUMNS + 16));
        }
    }
    sums
}

/// Keeps the sums.
///
/// # Safety
/// `c` must hold `M` rows.
#[target_feature(enable = "avx512f")]
unsafe fn store<const M: usize>(sums: [[__m512; 2]; M], c: *mut f32) {
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: within the `M` rows.
        unsafe {
            _mm512_storeu_ps(c.add(row * COLUMNS), sums[0]);
            _mm512_storeu_ps(c.add(row * COLUMNS + 16), sums[1]);
        }
    }
}

/// Floats by floats.
///
/// # Safety
/// `tile` must be of `M` rows, with 32 lines of weights a block.
#[target_feature(enable = "avx512f")]
unsafe fn single<const M: usize>(tile: &Raw) {
    // SAFETY: every line read is one that `Raw::new` has found to be there.
    unsafe {
        let mut sums = load::<M>(tile.c);
        let mut ahead = tile.ahead(tile.blocks);
        let mut b = tile.b.cast::<f32>();
        for block in 0..tile.blocks {
            ahead.ask();
            let a = tile.a.add(block * tile.stride).cast::<f32>();
            for word in 0..16 {
                let b0 = _mm512_load_ps(b);
                let b1 = _mm512_load_ps(b.add(16));
                b = b.add(32);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let a = _mm512_set1_ps(*a.add(row * 16 + word));
                    sums[0] = _mm512_fmadd_ps(a, b0, sums[0]);
                    sums[1] = _mm512_fmadd_ps(a, b1, sums[1]);
                }
            }
        }
        store::<M>(sums, tile.c);
    }
}

/// Floats by half-precision floats.
///
/// # Safety
/// `tile` must be of `M` rows, with 16 lines of weights a block.
#[target_feature(enable = "avx512f")]
unsafe fn halves<const M: usize>(tile: &Raw) {
    // SAFETY: every line read is one that `Raw::new` has found to be there.
    unsafe {
        let mut ahead = tile.ahead(tile.blocks);
        let mut sums = load::<M>(tile.c);
        let mut b = tile.b.cast::<__m256i>();
        for block in 0..tile.blocks {
            ahead.ask();
            let a = tile.a.add(block * tile.stride).cast::<f32>();
            for word in 0..16 {
                let b0 = _mm512_cvtph_ps(_mm256_load_si256(b));
                let b1 = _mm512_cvtph_ps(_mm256_load_si256(b.add(1)));
                b = b.add(2);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let a = _mm512_set1_ps(*a.add(row * 16 + word));
                    sums[0] = _mm512_fmadd_ps(a, b0, sums[0]);
                    sums[1] = _mm512_fmadd_ps(a, b1, sums[1]);
                }
            }
        }
        store::<M>(sums, tile.c);
    }
}

/// Floats by bfloats, which become floats by a shift.
///
/// # Safety
/// `tile` must be of `M` rows, with 16 lines of weights a block.
#[target_feature(enable = "avx512f")]
unsafe fn widened<const M: usize>(tile: &Raw) {
    // SAFETY: every line read is one that `Raw::new` has found to be there.
    unsafe {
        let mut sums = load::<M>(tile.c);
        let mut ahead = tile.ahead(tile.blocks);
        let mut b = tile.b.cast::<__m512i>();
        let high = _mm512_set1_epi32(0xffff_0000u32.cast_signed());
        for block in 0..tile.blocks {
            ahead.ask();
            let a = tile.a.add(block * tile.stride).cast::<f32>();
            for word in 0..8 {
                let (pairs0, pairs1) = (_mm512_load_si512(b), _mm512_load_si512(b.add(1)));
                b = b.add(2);
                let b0 = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs0));
                let b1 = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs1));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let a = _mm512_set1_ps(*a.add(row * 16 + word * 2));
                    sums[0] = _mm512_fmadd_ps(a, b0, sums[0]);
                    sums[1] = _mm512_fmadd_ps(a, b1, sums[1]);
                }
                let b0 = _mm512_castsi512_ps(_mm512_and_si512(pairs0, high));
                let b1 = _mm512_castsi512_ps(_mm512_and_si512(pairs1, high));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let a = _mm512_set1_ps(*a.add(row * 16 + word * 2 + 1));
                    sums[0] = _mm512_fmadd_ps(a, b0, sums[0]);
                    sums[1] = _mm512_fmadd_ps(a, b1, sums[1]);
                }
            }
        }
        store::<M>(sums, tile.c);
    }
}

/// Bfloats by bfloats, in pairs.
///
/// # Safety
/// `tile` must be of `M` rows, with 32 lines of weights a block.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pairs<const M: usize>(tile: &Raw) {
    // SAFETY: every line read is one that `Raw::new` has found to be there; __m512bh is 512 bits like __m512i.
    unsafe {
        let mut sums = load::<M>(tile.c);
        let mut ahead = tile.ahead(tile.blocks);
        let mut b = tile.b.cast::<__m512i>();
        for block in 0..tile.blocks {
            ahead.ask();
            let a = tile.a.add(block * tile.stride).cast::<i32>();
            for word in 0..16 {
                let b0: __m512bh = std::mem::transmute(_mm512_load_si512(b));
                let b1: __m512bh = std::mem::transmute(_mm512_load_si512(b.add(1)));
                b = b.add(2);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let a: __m512bh =
                        std::mem::transmute(_mm512_set1_epi32(*a.add(row * 16 + word)));
                    sums[0] = _mm512_dpbf16_ps(sums[0], a, b0);
                    sums[1] = _mm512_dpbf16_ps(sums[1], a, b1);
                }
            }
        }
        store::<M>(sums, tile.c);
    }
}

/// Bytes by bytes, each block with its scales.
///
/// The weights are the unsigned ones. Their offset of 128 adds 128 times the sum of the activations, which the sum
/// starts without (`Scales::offsets`).
///
/// # Safety
/// `tile` must be of `M` rows, of bytes, and `scales` as long as it needs.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn bytes<const M: usize>(tile: &Raw, scales: &Scales<'_>) {
    // SAFETY: every line read is one that `Raw::with_scales` has found to be there, and so are the scales.
    unsafe {
        let mut ahead = tile.ahead(tile.blocks);
        let mut b = tile.b.cast::<__m512i>();
        for block in 0..tile.blocks {
            ahead.ask();
            let a = tile.a.add(block * tile.stride).cast::<i32>();
            let mut sums = [[_mm512_setzero_si512(); 2]; M];
            let offsets = scales.offsets.as_ptr().add(block * tile.stride);
            for (row, sums) in sums.iter_mut().enumerate() {
                *sums = [_mm512_set1_epi32(*offsets.add(row)); 2];
            }
            for word in 0..16 {
                let b0 = _mm512_load_si512(b);
                let b1 = _mm512_load_si512(b.add(1));
                // The next weights but one block: a thread's first panel was not asked for in the panel before.
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD + 1).cast());
                b = b.add(2);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let a = _mm512_set1_epi32(*a.add(row * 16 + word));
                    sums[0] = _mm512_dpbusd_epi32(sums[0], b0, a);
                    sums[1] = _mm512_dpbusd_epi32(sums[1], b1, a);
                }
            }
            let scale = [_mm512_load_ps(b.cast()), _mm512_load_ps(b.add(1).cast())];
            b = b.add(INT8_LINES - SCALED / 2);
            let row_scales = scales.a.as_ptr().add(block * tile.stride);
            for (row, sums) in sums.iter().enumerate() {
                let row_scale = _mm512_set1_ps(*row_scales.add(row));
                for half in 0..2 {
                    let c = tile.c.add(row * COLUMNS + half * 16);
                    let product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[half]), scale[half]);
                    _mm512_storeu_ps(c, _mm512_fmadd_ps(product, row_scale, _mm512_loadu_ps(c)));
                }
            }
        }
    }
}
