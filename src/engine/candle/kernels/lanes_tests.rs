//! The loops over single rows, on every path.

use super::super::random::Random;
use super::super::{SCALED, paths};
use super::*;

/// Lengths around those that registers and blocks have.
const LENGTHS: [usize; 12] = [1, 2, 7, 8, 15, 16, 17, 31, 64, 100, 576, 1001];

#[test]
fn exp_is_right_to_two_units_in_the_last_place_and_at_its_ends() {
    let mut x = -87.0f32;
    while x < 88.0 {
        let (found, wanted) = (f64::from(exp(x)), f64::from(x).exp());
        assert!(
            (found / wanted - 1.0).abs() < 2.4e-7,
            "exp({x}) = {found}, not {wanted}"
        );
        x += 0.000_37;
    }
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(exp(-0.0), 1.0);
    assert_eq!(exp(-87.1), 0.0);
    assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(exp(88.1), f32::INFINITY);
    assert_eq!(exp(f32::INFINITY), f32::INFINITY);
    assert!(exp(f32::NAN).is_nan());
}

#[test]
fn a_norm_divides_by_the_root_of_the_mean_square() {
    let mut random = Random::new(1);
    for path in paths() {
        for len in LENGTHS {
            for scale in [0.0, 1e-20, 1.0, 1e15] {
                let x: Vec<f32> = random.normals(len).iter().map(|v| v * scale).collect();
                let weight = random.normals(len);
                let mut out = vec![f32::NAN; len];
                path.norm(&x, &weight, 1e-5, &mut out);
                let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / len as f64;
                let factor = 1.0 / (mean + 1e-5).sqrt();
                for i in 0..len {
                    let wanted = f64::from(x[i]) * factor * f64::from(weight[i]);
                    let off = (f64::from(out[i]) - wanted).abs();
                    assert!(off <= wanted.abs() * 1e-5, "{} {len}", path.name());
                }
            }
        }
    }
}

#[test]
fn a_gate_is_silu_times_up() {
    let mut random = Random::new(2);
    for path in paths() {
        for len in LENGTHS {
            for scale in [0.0, 1.0, 20.0, 1e4] {
                let gate: Vec<f32> = random.normals(len).iter().map(|v| v * scale).collect();
                let up = random.normals(len);
                let mut out = vec![f32::NAN; len];
                path.gate(&gate, &up, &mut out);
                for i in 0..len {
                    let gate = f64::from(gate[i]);
                    let wanted = gate / (1.0 + (-gate).exp()) * f64::from(up[i]);
                    let off = (f64::from(out[i]) - wanted).abs();
                    assert!(off <= wanted.abs() * 1e-6 + 1e-30, "{} {gate}", path.name());
                }
            }
        }
        let mut out = [0.0; 3];
        path.gate(&[f32::NAN, f32::INFINITY, f32::MIN], &[1.0; 3], &mut out);
        assert!(out[0].is_nan() && out[1] == f32::INFINITY && out[2] == 0.0);
    }
}

#[test]
fn an_addition_adds_and_a_turn_turns() {
    let mut random = Random::new(3);
    for path in paths() {
        for len in LENGTHS {
            let (x, y) = (random.normals(len), random.normals(len));
            let mut sum = x.clone();
            path.add(&mut sum, &y);
            assert!((0..len).all(|i| sum[i] == x[i] + y[i]));
            let mut turned: Vec<f32> = x.iter().chain(&y).copied().collect();
            let angles = random.normals(len);
            let cosines: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
            let sines: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
            path.rotate(&mut turned, &cosines, &sines);
            for i in 0..len {
                let (a, b) = (
                    x[i] * cosines[i] - y[i] * sines[i],
                    y[i] * cosines[i] + x[i] * sines[i],
                );
                assert!((turned[i] - a).abs() < 1e-6 && (turned[i + len] - b).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn the_first_of_the_largest_is_found() {
    let mut random = Random::new(4);
    for path in paths() {
        for len in LENGTHS {
            let mut x = random.normals(len);
            for _ in 0..10 {
                let (first, second) = (random.below(len), random.below(len));
                (x[first], x[second]) = (9.0, 9.0);
                assert_eq!(path.argmax(&x), first.min(second), "{}", path.name());
                x[first.max(second)] = f32::NAN;
                let wanted = if first == second {
                    None
                } else {
                    Some(first.min(second))
                };
                assert!(wanted.is_none_or(|wanted| path.argmax(&x) == wanted));
                (x[first], x[second]) = (0.0, 0.0);
            }
        }
        let infinite = [f32::NAN, f32::NEG_INFINITY, 1.0, f32::INFINITY];
        for none in [
            &[f32::NAN; 20][..],
            &[f32::NEG_INFINITY; 20],
            &infinite,
            &[],
        ] {
            assert_eq!(path.argmax(none), usize::MAX, "{}", path.name());
        }
    }
}

#[test]
fn bytes_are_within_half_a_step_of_their_values() {
    let mut random = Random::new(5);
    for path in paths() {
        for len in 1..=SCALED {
            for size in [0.0, 1e-45, 1e-31, 1e-29, 1e-3, 1.0, 1e30] {
                let x: Vec<f32> = random.normals(len).iter().map(|v| v * size).collect();
                let mut line = Line([u32::MAX; 16]);
                let (scale, offset) = path.quantize(&x, &mut line);
                let bytes: Vec<i32> = line.bytes().iter().map(|&b| i32::from(b as i8)).collect();
                let largest = x.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
                assert!(scale == largest / 127.0 || (scale == 0.0 && largest < 1e-30));
                assert_eq!(offset, -128 * bytes.iter().sum::<i32>());
                assert!(bytes.iter().all(|byte| (-127..=127).contains(byte)));
                assert!(bytes[len..].iter().all(|&byte| byte == 0));
                for (&x, &byte) in x.iter().zip(&bytes) {
                    let off = (f64::from(x) - f64::from(scale) * f64::from(byte)).abs();
                    assert!(
                        off <= f64::from(scale) * 0.50001 + 1e-30,
                        "{} {x}",
                        path.name()
                    );
                }
            }
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; SCALED];
            x[40] = bad;
            let mut line = Line::ZERO;
            assert!(!path.quantize(&x, &mut line).0.is_finite());
        }
    }
}

#[test]
fn halves_are_the_same_on_every_path() {
    let mut random = Random::new(6);
    let mut values: Vec<f32> = (0..70_001)
        .map(|_| f32::from_bits(random.next() as u32))
        .collect();
    values.extend((0..50_000).map(|_| random.normal()));
    values.extend((0..50_000).map(|_| random.normal() * 1e-6));
    values.extend([
        f32::INFINITY,
        f32::NEG_INFINITY,
        65504.0,
        65520.0,
        1e9,
        -1e9,
        0.0,
        -0.0,
    ]);
    for path in paths() {
        let mut narrow = vec![0; values.len()];
        path.narrow(&values, &mut narrow);
        for (&value, &bits) in values.iter().zip(&narrow) {
            let clamped = if value.is_nan() {
                value
            } else {
                value.clamp(-65504.0, 65504.0)
            };
            let wanted = half::f16_from(clamped);
            let nan = value.is_nan() && half::f16_to(bits).is_nan();
            assert!(bits == wanted || nan, "{} {value}", path.name());
        }
    }
}

#[test]
fn numbers_of_16_bits_are_within_half_a_step_of_their_values() {
    let mut random = Random::new(6);
    for path in paths() {
        for most in [1023.0f32, 32767.0] {
            for size in [0.0, 1e-45, 1e-31, 1e-29, 1e-3, 1.0, 1e30] {
                let x: [f32; SCALED] = std::array::from_fn(|_| random.normal() * size);
                let mut lines = [Line([u32::MAX; 16]); 2];
                let scale = path.quantize_16(&x, most, &mut lines);
                let largest = x.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
                assert!(scale == largest / most || (scale == 0.0 && largest < 1e-30));
                let found = lines.iter().flat_map(|line| *line.halves());
                for (&x, found) in x.iter().zip(found) {
                    let found = f64::from(found as i16);
                    assert!(found.abs() <= f64::from(most));
                    let off = (f64::from(x) - f64::from(scale) * found).abs();
                    assert!(
                        off <= f64::from(scale) * 0.51 + 1e-30,
                        "{} {x}",
                        path.name()
                    );
                }
            }
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; SCALED];
            x[40] = bad;
            let scale = path.quantize_16(&x, 32767.0, &mut [Line::ZERO; 2]);
            assert!(!scale.is_finite());
        }
    }
}
