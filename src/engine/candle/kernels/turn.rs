//! The Hadamard matrix in AVX2, for all paths that have it: compilers do not find the shuffles.

use std::arch::x86_64::*;

use super::SCALED;

/// See [`super::Path::hadamard`]: sums and differences of eight rows of eight, then of the columns, which become rows and
/// go back.
#[target_feature(enable = "avx2")]
pub(super) fn hadamard(x: &mut [f32; SCALED]) {
    let at = x.as_mut_ptr();
    let mut rows = [_mm256_setzero_ps(); 8];
    for (i, row) in rows.iter_mut().enumerate() {
        // SAFETY: eight of the 64 values.
        *row = unsafe { _mm256_loadu_ps(at.add(i * 8)) };
    }
    let rows = across(sums_and_differences(rows));
    let rows = across(sums_and_differences(rows));
    for (i, row) in rows.into_iter().enumerate() {
        // A power of two: exact.
        let scaled = _mm256_mul_ps(row, _mm256_set1_ps(1.0 / 8.0));
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(at.add(i * 8), scaled) };
    }
}

/// The Hadamard matrix of eight, of each column.
#[target_feature(enable = "avx2")]
fn sums_and_differences(mut rows: [__m256; 8]) -> [__m256; 8] {
    for half in [4, 2, 1] {
        for i in (0..8).filter(|i| i & half == 0) {
            let (a, b) = (rows[i], rows[i + half]);
            (rows[i], rows[i + half]) = (_mm256_add_ps(a, b), _mm256_sub_ps(a, b));
        }
    }
    rows
}

/// The columns as rows.
#[target_feature(enable = "avx2")]
fn across(r: [__m256; 8]) -> [__m256; 8] {
    // Rows 0 and 1, 2 and 3 … side by side, then four of them, then all.
    let two = |i: usize| {
        (
            _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]),
            _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]),
        )
    };
    let four = |i: usize| {
        let ((a, b), (c, d)) = (two(2 * i), two(2 * i + 1));
        [
            _mm256_shuffle_ps::<0x44>(a, c),
            _mm256_shuffle_ps::<0xee>(a, c),
            _mm256_shuffle_ps::<0x44>(b, d),
            _mm256_shuffle_ps::<0xee>(b, d),
        ]
    };
    let (top, bottom) = (four(0), four(1));
    let mut columns = [_mm256_setzero_ps(); 8];
    for i in 0..4 {
        columns[i] = _mm256_permute2f128_ps::<0x20>(top[i], bottom[i]);
        columns[i + 4] = _mm256_permute2f128_ps::<0x31>(top[i], bottom[i]);
    }
    columns
}
