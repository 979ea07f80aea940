//! Register tiles of 6 rows and twice 2 registers of 8 columns, in AVX2 with FMA and F16C; VNNI where it is there.

use std::arch::x86_64::*;

use super::lanes::elementwise;
use super::raw::{Raw, by_rows};
use super::{
    COLUMNS, INT8_LINES, INT16_LINES, Line, MOST_ROWS, Path, SCALED, Scales, Softmax, Tile, turn,
};

/// The path with AVX2, FMA and F16C.
pub(crate) struct Avx2 {
    /// Products of four bytes by the processor's own instruction (AVX-VNNI).
    vnni: bool,
}

/// What this processor has of this path.
pub(crate) fn paths() -> Vec<&'static dyn Path> {
    let mut paths: Vec<&'static dyn Path> = Vec::new();
    if is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
    {
        if is_x86_feature_detected!("avxvnni") {
            paths.push(&Avx2 { vnni: true });
        }
        paths.push(&Avx2 { vnni: false });
    }
    paths
}

impl Path for Avx2 {
    fn name(&self) -> &'static str {
        if self.vnni { "avx2-vnni" } else { "avx2" }
    }

    fn rows(&self) -> usize {
        6
    }

    fn int8_rows(&self) -> usize {
        if self.vnni { 3 } else { 6 }
    }

    fn int8_by_16(&self) -> bool {
        // `vpmaddubsw` multiplies bytes, but its sums of 16 bits must be widened by a second product: as many as
        // `vpmaddwd` takes for 16 bits, without what brings the signs over.
        !self.vnni
    }

    fn rounds_to_bf16(&self) -> bool {
        false
    }

    fn knee_rows(&self) -> usize {
        // Of 0, 16 and 32 the best for `int8` (SmolLM2-135M, 16 at once, two cores of Zen 3), where a row takes a tenth of
        // the time that reading all weights takes.
        16
    }

    fn f32(&self, tile: Tile<'_>) {
        let tile = Raw::new(tile, 32);
        // SAFETY: the path is only handed out where its instructions are; `Raw::new` has checked the lengths.
        unsafe { by_rows!(tile.rows, single(&tile); 1 2 3 4 5 6) }
    }

    fn f16(&self, tile: Tile<'_>) {
        let tile = Raw::new(tile, 16);
        // SAFETY: as in `f32`.
        unsafe { by_rows!(tile.rows, halves(&tile); 1 2 3 4 5 6) }
    }

    fn bf16(&self, tile: Tile<'_>) {
        let tile = Raw::new(tile, 16);
        // SAFETY: as in `f32`.
        unsafe { by_rows!(tile.rows, widened(&tile); 1 2 3 4 5 6) }
    }

    fn int8(&self, tile: Tile<'_>, scales: &Scales<'_>) {
        let lines = if self.vnni { 1 } else { 2 };
        let tile = Raw::with_scales(tile, scales, (lines, INT8_LINES));
        // SAFETY: as in `f32`; the scales reach as far as the lines, and with `vnni` the processor has AVX-VNNI.
        unsafe {
            if self.vnni {
                by_rows!(tile.rows, bytes_vnni(&tile, scales); 1 2 3);
            } else {
                by_rows!(tile.rows, by_16[true](&tile, scales); 1 2 3 4 5 6);
            }
        }
    }

    fn int16(&self, tile: Tile<'_>, scales: &Scales<'_>) {
        let tile = Raw::with_scales(tile, scales, (2, INT16_LINES));
        // SAFETY: as in `f32`; the scales reach as far as the lines.
        unsafe { by_rows!(tile.rows, by_16[false](&tile, scales); 1 2 3 4 5 6) }
    }

    fn hadamard(&self, x: &mut [f32; SCALED]) {
        // SAFETY: as in `f32`.
        unsafe { turn::hadamard(x) }
    }

    elementwise!("avx2,fma,f16c");
    elementwise!(hot "avx2,fma,f16c");
}

/// The sums so far of one half of the columns.
///
/// # Safety
/// `c` must hold `M` rows from there on.
#[target_feature(enable = "avx2,fma")]
unsafe fn load<const M: usize>(c: *const f32) -> [[__m256; 2]; M] {
    let mut sums = [[_mm256_setzero_ps(); 2]; M];
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: within the `M` rows.
        unsafe {
            sums[0] = _mm256_loadu_ps(c.add(row * COLUMNS));
            sums[1] = _mm256_loadu_ps(c.add(row * COLUMNS + 8));
        }
    }
    sums
}

/// Keeps the sums.
///
/// # Safety
/// `c` must hold `M` rows from there on.
#[target_feature(enable = "avx2,fma")]
unsafe fn store<const M: usize>(sums: [[__m256; 2]; M], c: *mut f32) {
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: within the `M` rows.
        unsafe {
            _mm256_storeu_ps(c.add(row * COLUMNS), sums[0]);
            _mm256_storeu_ps(c.add(row * COLUMNS + 8), sums[1]);
        }
    }
}

/// Floats by floats.
///
/// # Safety
/// `tile` must be of `M` rows, with 32 lines of weights a block.
#[target_feature(enable = "avx2,fma")]
unsafe fn single<const M: usize>(tile: &Raw) {
    let mut ahead = tile.ahead(2 * tile.blocks);
    for half in 0..2 {
        // SAFETY: every line read is one that `Raw::new` has found to be there.
        unsafe {
            let mut sums = load::<M>(tile.c.add(half * 16));
            let mut b = tile.b.cast::<f32>().add(half * 16);
            for block in 0..tile.blocks {
                ahead.ask();
                let a = tile.a.add(block * tile.stride).cast::<f32>();
                for word in 0..16 {
                    let b0 = _mm256_load_ps(b);
                    let b1 = _mm256_load_ps(b.add(8));
                    b = b.wrapping_add(32);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let a = _mm256_set1_ps(*a.add(row * 16 + word));
                        sums[0] = _mm256_fmadd_ps(a, b0, sums[0]);
                        sums[1] = _mm256_fmadd_ps(a, b1, sums[1]);
                    }
                }
            }
            store::<M>(sums, tile.c.add(half * 16));
        }
    }
}

/// Floats by half-precision floats.
///
/// # Safety
/// `tile` must be of `M` rows, with 16 lines of weights a block.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn halves<const M: usize>(tile: &Raw) {
    let mut ahead = tile.ahead(2 * tile.blocks);
    for half in 0..2 {
        // SAFETY: every line read is one that `Raw::new` has found to be there.
        unsafe {
            let mut sums = load::<M>(tile.c.add(half * 16));
            let mut b = tile.b.cast::<__m128i>().add(half * 2);
            for block in 0..tile.blocks {
                ahead.ask();
                let a = tile.a.add(block * tile.stride).cast::<f32>();
                for word in 0..16 {
                    let b0 = _mm256_cvtph_ps(_mm_load_si128(b));
                    let b1 = _mm256_cvtph_ps(_mm_load_si128(b.add(1)));
                    b = b.wrapping_add(4);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let a = _mm256_set1_ps(*a.add(row * 16 + word));
                        sums[0] = _mm256_fmadd_ps(a, b0, sums[0]);
                        sums[1] = _mm256_fmadd_ps(a, b1, sums[1]);
                    }
                }
            }
            store::<M>(sums, tile.c.add(half * 16));
        }
    }
}

/// Floats by bfloats, which become floats by a shift.
///
/// # Safety
/// `tile` must be of `M` rows, with 16 lines of weights a block.
#[target_feature(enable = "avx2,fma")]
unsafe fn widened<const M: usize>(tile: &Raw) {
    let high = _mm256_set1_epi32(0xffff_0000u32.cast_signed());
    let mut ahead = tile.ahead(2 * tile.blocks);
    for half in 0..2 {
        // SAFETY: every line read is one that `Raw::new` has found to be there.
        unsafe {
            let mut sums = load::<M>(tile.c.add(half * 16));
            let mut b = tile.b.cast::<__m256i>().add(half * 2);
            for block in 0..tile.blocks {
                ahead.ask();
                let a = tile.a.add(block * tile.stride).cast::<f32>();
                for word in 0..8 {
                    let (pairs0, pairs1) = (_mm256_load_si256(b), _mm256_load_si256(b.add(1)));
                    b = b.wrapping_add(4);
                    let b0 = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs0));
                    let b1 = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs1));
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let a = _mm256_set1_ps(*a.add(row * 16 + word * 2));
                        sums[0] = _mm256_fmadd_ps(a, b0, sums[0]);
                        sums[1] = _mm256_fmadd_ps(a, b1, sums[1]);
                    }
                    let b0 = _mm256_castsi256_ps(_mm256_and_si256(pairs0, high));
                    let b1 = _mm256_castsi256_ps(_mm256_and_si256(pairs1, high));
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let a = _mm256_set1_ps(*a.add(row * 16 + word * 2 + 1));
                        sums[0] = _mm256_fmadd_ps(a, b0, sums[0]);
                        sums[1] = _mm256_fmadd_ps(a, b1, sums[1]);
                    }
                }
            }
            store::<M>(sums, tile.c.add(half * 16));
        }
    }
}

/// Adds a block's whole sums, scaled, to one half of the columns.
///
/// # Safety
/// `tile` must be of `M` rows and its sums whole lines, `half` 0 or 1, `row_scales` point to `M` of them and `columns` to two
/// lines of scales.
#[target_feature(enable = "avx2,fma")]
unsafe fn scale<const M: usize>(
    tile: &Raw,
    row_scales: *const f32,
    columns: *const Line,
    half: usize,
    sums: [[__m256i; 2]; M],
) {
    // SAFETY: the scales reach as far as the lines (`Raw::with_scales`).
    unsafe {
        let columns = columns.cast::<f32>().add(half * 16);
        let scale = [_mm256_loadu_ps(columns), _mm256_loadu_ps(columns.add(8))];
        for (row, sums) in sums.iter().enumerate() {
            let row_scale = _mm256_set1_ps(*row_scales.add(row));
            for part in 0..2 {
                let c = tile.c.add(row * COLUMNS + half * 16 + part * 8);
                let c = c.cast::<__m256>();
                let product = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[part]), scale[part]);
                // Volatile, else the compiler carries all of `c` over to the next block, without registers for it.
                c.write_volatile(_mm256_fmadd_ps(product, row_scale, c.read_volatile()));
            }
        }
    }
}

/// Pairs of weights, in bytes or in 16 bits, by activations of 16 bits, each block with its scales: the sums of 64 products,
/// at most 127 · 32767 or 1023 · 32767 each, fit into 32 bits.
///
/// # Safety
/// `tile` must be of `M` rows of 16 bits, its weights of `BYTES` or not, and `scales` as long as it needs.
#[target_feature(enable = "avx2,fma")]
unsafe fn by_16<const M: usize, const BYTES: bool>(tile: &Raw, scales: &Scales<'_>) {
    let lines = if BYTES { INT8_LINES } else { INT16_LINES };
    // Of 8 outputs, a pair for each.
    let register = if BYTES { 16 } else { 32 };
    let mut ahead = tile.ahead(2 * tile.blocks);
    for half in 0..2 {
        for block in 0..tile.blocks / 2 {
            // SAFETY: every line read is one that `Raw::with_scales` has found to be there, and so are the scales.
            unsafe {
                let b = tile.b.add(block * lines).cast::<u8>();
                let mut b = b.add(half * 2 * register);
                let mut sums = [[_mm256_setzero_si256(); 2]; M];
                for line in 0..2 {
                    ahead.ask();
                    let a = tile.a.add((block * 2 + line) * tile.stride).cast::<i32>();
                    for two in 0..8 {
                        // Two words at a time: one leaves a tenth to the loop itself, four are too many for the compiler.
                        for word in [2 * two, 2 * two + 1] {
                            let [b0, b1] = [b, b.add(register)].map(|b| {
                                if BYTES {
                                    _mm256_cvtepi8_epi16(_mm_load_si128(b.cast()))
                                } else {
                                    _mm256_load_si256(b.cast())
                                }
                            });
                            b = b.wrapping_add(4 * register);
                            for (row, sums) in sums.iter_mut().enumerate() {
                                let a = _mm256_set1_epi32(*a.add(row * 16 + word));
                                sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(a, b0));
                                sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(a, b1));
                            }
                        }
                    }
                }
                let row_scales = scales.a.as_ptr().add(block * 2 * tile.stride);
                let columns = tile.b.add((block + 1) * lines - 2);
                scale::<M>(tile, row_scales, columns, half, sums);
            }
        }
    }
}

/// Bytes by bytes, each block with its scales, with AVX-VNNI: see the AVX-512 path.
///
/// # Safety
/// `tile` must be of `M` rows, of bytes, and `scales` as long as it needs.
#[target_feature(enable = "avx2,fma,avxvnni")]
unsafe fn bytes_vnni<const M: usize>(tile: &Raw, scales: &Scales<'_>) {
    let mut ahead = tile.ahead(2 * tile.blocks);
    for half in 0..2 {
        for block in 0..tile.blocks {
            ahead.ask();
            // SAFETY: every line read is one that `Raw::with_scales` has found to be there, and so are the scales.
            unsafe {
                let mut b = tile
                    .b
                    .add(block * INT8_LINES)
                    .cast::<__m256i>()
                    .add(half * 2);
                let a = tile.a.add(block * tile.stride).cast::<i32>();
                let offsets = scales.offsets.as_ptr().add(block * tile.stride);
                let mut sums = [[_mm256_setzero_si256(); 2]; M];
                for (row, sums) in sums.iter_mut().enumerate() {
                    *sums = [_mm256_set1_epi32(*offsets.add(row)); 2];
                }
                for word in 0..16 {
                    let (b0, b1) = (_mm256_load_si256(b), _mm256_load_si256(b.add(1)));
                    b = b.wrapping_add(4);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let a = _mm256_set1_epi32(*a.add(row * 16 + word));
                        sums[0] = _mm256_dpbusd_avx_epi32(sums[0], b0, a);
                        sums[1] = _mm256_dpbusd_avx_epi32(sums[1], b1, a);
                    }
                }
                let row_scales = scales.a.as_ptr().add(block * tile.stride);
                let columns = tile.b.add(block * INT8_LINES + SCALED / 2);
                scale::<M>(tile, row_scales, columns, half, sums);
            }
        }
    }
}
