//! Products on every path against plain sums.

use proptest::prelude::*;

use super::super::half::{bf16_from, bf16_to};
use super::super::random::Random;
use super::super::{Activations, Path, Pool, Shelf, paths};
use super::*;

const FORMATS: [Format; 4] = [Format::F32, Format::Bf16, Format::Int8, Format::Int16];

/// The product as the path and format make it.
fn product(
    path: &dyn Path,
    pool: &Pool,
    format: Format,
    (x, w): (&[f32], &[f32]),
    (m, n, k): (usize, usize, usize),
) -> Vec<f32> {
    let matrix = Matrix::pack(path, pool, &Shelf::default(), format, &[(w, n)], k);
    multiply(path, pool, &matrix, x, m)
}

fn multiply(path: &dyn Path, pool: &Pool, matrix: &Matrix, x: &[f32], m: usize) -> Vec<f32> {
    let n = matrix.n();
    let activations = packed(path, matrix.format(), x, m);
    let mut out = vec![f32::NAN; m * n];
    matrix.multiply(path, pool, &activations, &mut out);
    out
}

/// Activations as a product wants them.
fn packed(path: &dyn Path, format: Format, x: &[f32], m: usize) -> Activations {
    let mut activations = Activations::default();
    let k = x.len() / m;
    let filling = activations.lay_out(Kind::of(format, path), m, k);
    for row in 0..m {
        // SAFETY: one thread, one row after the other.
        unsafe { filling.row(path, row, &x[row * k..(row + 1) * k]) };
    }
    activations
}

/// By the definition of the Hadamard matrix, the last block filled up with zeros.
fn turned(x: &[f32]) -> Vec<f64> {
    let row = |j: usize| {
        let term = |(i, &x): (usize, &f32)| {
            let sign = if (i & j).count_ones().is_multiple_of(2) {
                1.0
            } else {
                -1.0
            };
            sign * f64::from(x) / 8.0
        };
        x.iter().enumerate().map(term).sum()
    };
    (0..SCALED).map(row).collect()
}

#[test]
fn turning_spreads_values_as_the_hadamard_matrix_does() {
    let mut random = Random::new(9);
    for path in paths() {
        let x: [f32; SCALED] = std::array::from_fn(|_| random.normal());
        let mut found = x;
        path.hadamard(&mut found);
        for (wanted, &found) in turned(&x).iter().zip(&found) {
            assert!((wanted - f64::from(found)).abs() < 1e-5, "{}", path.name());
        }
        // The same sums in the same order, bit by bit.
        let mut plain = x;
        super::super::lanes::hadamard(&mut plain);
        assert!(found == plain, "{}", path.name());
        // One that stands out is the same everywhere.
        let mut one = [0.0; SCALED];
        one[17] = 8.0;
        path.hadamard(&mut one);
        assert!(one.iter().all(|v| v.abs() == 1.0), "{}", path.name());
    }
}

/// The sum in f64, and how far off the path's format may be.
fn expected(path: &dyn Path, format: Format, x: &[f32], w: &[f32]) -> (f64, f64) {
    let turns = format == Format::Int8;
    let (mut sum, mut error, mut magnitude) = (0.0, 0.0, 0.0);
    let largest = |values: &[f64]| {
        values
            .iter()
            .fold(0.0f64, |largest, v| largest.max(v.abs()))
    };
    for (x, w) in x.chunks(SCALED).zip(w.chunks(SCALED)) {
        sum += x
            .iter()
            .zip(w)
            .map(|(&x, &w)| f64::from(x) * f64::from(w))
            .sum::<f64>();
        let (x, w) = if turns {
            (turned(x), turned(w))
        } else {
            let wide = |values: &[f32]| values.iter().map(|&v| v.into()).collect();
            (wide(x), wide(w))
        };
        // Half of what a whole number stands for.
        let bytes = turns && !path.int8_by_16();
        let most_x = if bytes { 127.0 } else { 32767.0 };
        let most_w = if format == Format::Int16 {
            1023.0
        } else {
            127.0
        };
        let (step_x, step_w) = (largest(&x) / most_x / 2.0, largest(&w) / most_w / 2.0);
        for (&x, &w) in x.iter().zip(&w) {
            magnitude += (x * w).abs();
            error += match format {
                Format::F32 => 0.0,
                // Half a unit in the eighth bit, on both sides.
                Format::Bf16 => (x * w).abs() * (2.0 / 256.0 + 1.0 / 65536.0),
                Format::Int8 | Format::Int16 => {
                    // The scale and the number to be rounded are themselves off by f32's rounding.
                    let off = if bytes {
                        1.0
                    } else {
                        1.0 + 32767.0 * 4.0 * f64::from(f32::EPSILON)
                    };
                    (x.abs() * step_w + w.abs() * step_x + step_x * step_w) * off
                }
            };
        }
        if turns {
            // The turning rounds too: six sums in f32.
            let lengths = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
            magnitude += lengths(&x) * lengths(&w);
        }
    }
    // f32's own rounding, of a sum of so many terms; and what is too small to be told from 0 (denormals count as 0 in
    // the products of bfloats, and values below 1e-30 in bytes).
    let rounding = (magnitude + error) * (x.len() as f64 + 8.0) * f64::from(f32::EPSILON);
    let tiny = 1e-30 * (x.iter().chain(w).map(|v| f64::from(v.abs())).sum::<f64>() + 1.0);
    (sum, error + rounding + tiny)
}

fn check(path: &dyn Path, pool: &Pool, format: Format, x: &[f32], w: &[f32], k: usize) {
    let (m, n) = (x.len() / k, w.len() / k);
    let out = product(path, pool, format, (x, w), (m, n, k));
    for (i, &out) in out.iter().enumerate() {
        let (row, column) = (i / n, i % n);
        let (sum, error) = expected(
            path,
            format,
            &x[row * k..(row + 1) * k],
            &w[column * k..(column + 1) * k],
        );
        assert!(
            (f64::from(out) - sum).abs() <= error,
            "{} {format:?} {m}x{n}x{k} at {row},{column}: {out}, not {sum} within {error}",
            path.name()
        );
    }
}

#[test]
fn products_are_right_on_every_path_at_every_edge() {
    let pool = Pool::new(2).unwrap();
    let mut random = Random::new(1);
    for path in paths() {
        for (m, n, k) in [
            (1, 1, 1),
            (1, 32, 64),
            (2, 33, 65),
            (3, 31, 63),
            (4, 7, 16),
            (5, 64, 128),
            (7, 97, 13),
            (11, 5, 127),
            (12, 40, 96),
            (13, 70, 130),
            (24, 32, 577),
            (47, 33, 31),
            (49, 65, 200),
            (50, 17, 1000),
            (97, 34, 67),
        ] {
            let (x, w) = (random.normals(m * k), random.normals(n * k));
            for format in FORMATS {
                check(path, &pool, format, &x, &w, k);
            }
        }
    }
}

#[test]
fn products_of_extreme_values_are_right_on_every_path() {
    let pool = Pool::new(1).unwrap();
    let mut random = Random::new(2);
    let k = 150;
    for path in paths() {
        for scale in [0.0, 1e-42, 1e-38, 1e-20, 1.0, 1e8, 1e15] {
            for other in [0.0, 1e-38, 1.0, 1e15] {
                let x: Vec<f32> = random.normals(3 * k).iter().map(|v| v * scale).collect();
                let w: Vec<f32> = random.normals(40 * k).iter().map(|v| v * other).collect();
                for format in FORMATS {
                    check(path, &pool, format, &x, &w, k);
                }
            }
        }
        // All whole numbers at their ends: sums as large as they get, and signs of every kind. What is turned is the same
        // everywhere where there was one value in a block.
        let one = |of: f32, rows: usize| -> Vec<f32> {
            let row = (0..k).map(|i| if i % SCALED == 0 { of } else { 0.0 });
            row.collect::<Vec<_>>().repeat(rows)
        };
        for (a, b) in [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)] {
            for format in FORMATS {
                check(path, &pool, format, &vec![a; 2 * k], &vec![b; 33 * k], k);
                check(path, &pool, format, &one(a, 2), &one(b, 33), k);
            }
        }
        // One value outshines the 63 beside it.
        let mut x = random.normals(k);
        x[70] = 1e6;
        for format in FORMATS {
            check(path, &pool, format, &x, &random.normals(33 * k), k);
        }
    }
}

#[test]
fn a_value_that_is_no_number_spoils_its_own_row_only() {
    let pool = Pool::new(2).unwrap();
    let mut random = Random::new(3);
    let (m, n, k) = (15, 40, 130);
    for path in paths() {
        for format in FORMATS {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let (mut x, w) = (random.normals(m * k), random.normals(n * k));
                x[6 * k + 100] = bad;
                let out = product(path, &pool, format, (&x, &w), (m, n, k));
                for (row, out) in out.chunks(n).enumerate() {
                    let spoilt = out.iter().all(|value| !value.is_finite());
                    let sound = out.iter().all(|value| value.is_finite());
                    assert!(
                        if row == 6 { spoilt } else { sound },
                        "{} {format:?}",
                        path.name()
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_bit_by_bit_whatever_rows_are_beside_it() {
    let pool = Pool::new(2).unwrap();
    let mut random = Random::new(4);
    let (n, k) = (70, 1000);
    let (x, w) = (random.normals(60 * k), random.normals(n * k));
    for path in paths() {
        for format in FORMATS {
            let matrix = Matrix::pack(path, &pool, &Shelf::default(), format, &[(&w, n)], k);
            let all = multiply(path, &pool, &matrix, &x, 60);
            for (first, rows) in [(0, 1), (5, 2), (59, 1), (7, 13), (20, 31)] {
                let some = multiply(
                    path,
                    &pool,
                    &matrix,
                    &x[first * k..(first + rows) * k],
                    rows,
                );
                assert!(
                    some == all[first * n..(first + rows) * n],
                    "{} {format:?}",
                    path.name()
                );
            }
        }
    }
}

#[test]
fn matrices_below_each_other_are_one() {
    let pool = Pool::new(2).unwrap();
    let mut random = Random::new(5);
    let k = 70;
    let (x, w) = (random.normals(3 * k), random.normals(90 * k));
    for path in paths() {
        for format in FORMATS {
            let parts = [
                (&w[..50 * k], 50),
                (&w[50 * k..53 * k], 3),
                (&w[53 * k..], 37),
            ];
            let parts = Matrix::pack(path, &pool, &Shelf::default(), format, &parts, k);
            let whole = Matrix::pack(path, &pool, &Shelf::default(), format, &[(&w, 90)], k);
            assert_eq!(parts.n(), 90);
            assert!(multiply(path, &pool, &parts, &x, 3) == multiply(path, &pool, &whole, &x, 3));
        }
    }
}

#[test]
fn an_outputs_weights_are_read_as_they_are_kept() {
    let pool = Pool::new(2).unwrap();
    for (n, k) in [(1, 1), (33, 64), (90, 577), (64, 130)] {
        let w = Random::new(8).normals(n * k);
        for format in [Format::F32, Format::Bf16, Format::Int16] {
            let matrix = Matrix::pack(paths()[0], &pool, &Shelf::default(), format, &[(&w, n)], k);
            for (output, weights) in w.chunks(k).enumerate() {
                let mut found = vec![0.0; k];
                matrix.row(output, &mut found);
                for (found, weights) in found.chunks(SCALED).zip(weights.chunks(SCALED)) {
                    let largest = weights.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                    for (&found, &weight) in found.iter().zip(weights) {
                        match format {
                            Format::F32 => assert_eq!(found, weight),
                            Format::Bf16 => assert_eq!(found, bf16_to(bf16_from(weight))),
                            _ => assert!((found - weight).abs() <= largest / 2046.0 * 1.0001),
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_product_added_or_gated_at_once_is_the_same_as_one_after_the_other() {
    let pool = Pool::new(2).unwrap();
    let mut random = Random::new(6);
    for path in paths() {
        for format in FORMATS {
            for (m, half, k) in [(1, 64, 64), (5, 128, 100), (60, 192, 900), (97, 64, 31)] {
                let (x, w) = (random.normals(m * k), random.normals(2 * half * k));
                let matrix =
                    Matrix::pack(path, &pool, &Shelf::default(), format, &[(&w, 2 * half)], k);
                assert!(matrix.can_gate());
                let product = multiply(path, &pool, &matrix, &x, m);
                let x = packed(path, format, &x, m);
                let before = random.normals(product.len());
                let mut sum = before.clone();
                matrix.add_to(path, &pool, &x, &mut sum);
                assert!(
                    sum.iter()
                        .zip(before.iter().zip(&product))
                        .all(|(s, (b, p))| *s == b + p)
                );
                let mut wanted = vec![0.0; m * half];
                for (out, row) in wanted.chunks_mut(half).zip(product.chunks(2 * half)) {
                    path.gate(&row[..half], &row[half..], out);
                }
                for next in FORMATS {
                    let wanted = packed(path, next, &wanted, m);
                    let mut found = Activations::default();
                    matrix.gated(path, &pool, &x, next, &mut found);
                    assert_eq!((found.rows(), found.width()), (m, half));
                    for block in 0..half / found.kind().unwrap().per_line() {
                        for row in 0..m {
                            let at = block * found.stride() + row;
                            assert_eq!(found.lines()[at], wanted.lines()[at]);
                            let kind = found.kind();
                            if kind == Some(Kind::Int8) {
                                assert_eq!(found.offsets()[at], wanted.offsets()[at]);
                            }
                            let wide = matches!(kind, Some(Kind::Int16 | Kind::Turned16));
                            let first = wide && block % 2 == 0;
                            if first || kind == Some(Kind::Int8) {
                                assert_eq!(found.scales()[at], wanted.scales()[at]);
                            }
                        }
                    }
                }
            }
        }
    }
    let (path, ragged) = (paths()[0], [0.0; 192]);
    assert!(
        !Matrix::pack(
            path,
            &pool,
            &Shelf::default(),
            Format::Int8,
            &[(&ragged, 192)],
            1
        )
        .can_gate()
    );
}

#[test]
fn bytes_take_a_little_more_than_a_byte_for_each_weight() {
    let (path, pool) = (paths()[0], Pool::new(1).unwrap());
    let matrix = Matrix::pack(
        path,
        &pool,
        &Shelf::default(),
        Format::Int8,
        &[(&[0.5; 64 * 640], 64)],
        640,
    );
    assert_eq!(matrix.bytes(), 64 * 640 + 64 * 640 / 64 * 4);
}

proptest! {
    #[test]
    fn products_are_right_whatever_the_sizes_and_values(
        m in 1usize..30, n in 1usize..80, k in 1usize..200, seed: u64, spread in 0u32..12, threads in 1usize..4,
    ) {
        let pool = Pool::new(threads).unwrap();
        let mut random = Random::new(seed);
        // Magnitudes that differ by as much as `spread` powers of ten, and some zeros.
        let mut values = |len| -> Vec<f32> {
            (0..len)
                .map(|_| {
                    let power = random.below(spread as usize + 1) as i32 - spread as i32 / 2;
                    if random.below(8) == 0 { 0.0 } else { random.normal() * 10f32.powi(power) }
                })
                .collect()
        };
        let (x, w) = (values(m * k), values(n * k));
        for path in paths() {
            for format in FORMATS {
                check(path, &pool, format, &x, &w, k);
            }
        }
    }
}
