//! The loops over single rows, sixteen values side by side, in plain Rust.
//!
//! Each path compiles them for its own instructions (`elementwise!`); the sixteen lanes are spelled out so that the
//! compiler may use wide registers for the sums, whose order is thereby the same everywhere.

use super::{COLUMNS, Line, MOST_ROWS, SCALED, Softmax, half};

/// Values side by side.
const LANES: usize = 16;
type Lanes = [f32; LANES];

/// Adding it rounds to a whole number, which then stands in the lowest bits (for magnitudes up to 2^22).
const ROUND: f32 = 12_582_912.0;

/// Values smaller than this are quantized to 0: the inverse of their scale would not be finite.
const SMALLEST: f32 = 1e-30;

/// The largest half-precision float.
const LARGEST_HALF: f32 = 65504.0;

/// The sum of the lanes.
#[inline(always)]
fn sum(lanes: Lanes) -> f32 {
    let mut lanes = lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `exp(x)` within 2 units in the last place; 0 below -87, infinite above 88, NaN for NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // The comparisons are such that NaN goes through.
    let clamped = if x < -87.0 { -87.0 } else { x };
    let clamped = if clamped > 88.0 { 88.0 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    // ln 2 in two parts, the first of so few bits that its product with `whole` is exact.
    let rest = clamped - whole * 0.693_359_4 - whole * -2.121_944_4e-4;
    let mut sum = 1.987_569_1e-4;
    sum = sum * rest + 1.398_199_9e-3;
    sum = sum * rest + 8.333_452e-3;
    sum = sum * rest + 4.166_579_6e-2;
    sum = sum * rest + 1.666_666_5e-1;
    sum = sum * rest + 5e-1;
    sum = sum * rest * rest + rest + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    let finite = if x > 88.0 { f32::INFINITY } else { sum * power };
    if x < -87.0 { 0.0 } else { finite }
}

/// See [`super::Path::norm`].
#[inline(always)]
pub(super) fn norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len());
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut squares = [0.0; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            squares[i] += chunk[i] * chunk[i];
        }
    }
    for (i, &value) in rest.iter().enumerate() {
        squares[i] += value * value;
    }
    let mean = sum(squares) / x.len() as f32;
    let factor = 1.0 / (mean + epsilon).sqrt();
    for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * factor * weight;
    }
}

/// See [`super::Path::gate`].
#[inline(always)]
pub(super) fn gate(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len());
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp(-gate)) * up;
    }
}

/// See [`super::Path::add`].
#[inline(always)]
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    assert!(x.len() == y.len());
    for (x, &y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// See [`super::Path::rotate`].
#[inline(always)]
pub(super) fn rotate(x: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let (first, second) = x.split_at_mut(x.len() / 2);
    assert!(first.len() == second.len());
    assert!(first.len() == cosines.len() && first.len() == sines.len());
    for i in 0..first.len() {
        let (a, b) = (first[i], second[i]);
        first[i] = a * cosines[i] - b * sines[i];
        second[i] = b * cosines[i] + a * sines[i];
    }
}

/// See [`super::Path::argmax`].
#[inline(always)]
pub(super) fn argmax(x: &[f32]) -> usize {
    let mut largest = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            largest[i] = if chunk[i] > largest[i] {
                chunk[i]
            } else {
                largest[i]
            };
        }
    }
    for &value in rest {
        largest[0] = if value > largest[0] {
            value
        } else {
            largest[0]
        };
    }
    let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    if !largest.is_finite() {
        return usize::MAX;
    }
    x.iter()
        .position(|&value| value == largest)
        .unwrap_or(usize::MAX)
}

/// See [`super::Path::hadamard`]: six stages of one shape, each of sums and differences of the two halves, side by side.
#[cfg(test)]
pub(super) fn hadamard(x: &mut [f32; SCALED]) {
    const HALF: usize = SCALED / 2;
    for _ in 0..SCALED.ilog2() {
        let mut y = [0.0; SCALED];
        for i in 0..HALF {
            y[2 * i] = x[i] + x[i + HALF];
            y[2 * i + 1] = x[i] - x[i + HALF];
        }
        *x = y;
    }
    // A power of two: exact.
    for value in x {
        *value *= 1.0 / 8.0;
    }
}

/// See [`super::Path::quantize`]: `x = scale * byte` within half a scale, and the scale is the largest magnitude / 127.
///
/// NaN or infinity among the values makes the scale so too, and with it all that is computed from the block.
#[inline(always)]
pub(super) fn quantize(x: &[f32], out: &mut Line) -> (f32, i32) {
    if let Ok(whole) = <&[f32; SCALED]>::try_from(x) {
        return quantize_whole(whole, out);
    }
    let mut whole = [0.0; SCALED];
    whole[..x.len()].copy_from_slice(x);
    quantize_whole(&whole, out)
}

#[inline(always)]
fn quantize_whole(x: &[f32; SCALED], out: &mut Line) -> (f32, i32) {
    let (scale, inverse) = scale_of(x, 127.0);
    let bytes = out.bytes_mut();
    let mut total = [0i32; LANES];
    for part in 0..SCALED / LANES {
        for i in 0..LANES {
            let rounded = (x[part * LANES + i] * inverse + ROUND).to_bits();
            let value = rounded.wrapping_sub(ROUND.to_bits()) as i32;
            bytes[part * LANES + i] = value as i8 as u8;
            total[i] += i32::from(value as i8);
        }
    }
    (scale, -128 * total.into_iter().sum::<i32>())
}

/// See [`super::Path::quantize_16`]: `x = scale * value` within half a scale, and the scale is the largest magnitude / `most`.
#[inline(always)]
pub(super) fn quantize_16(x: &[f32; SCALED], most: f32, out: &mut [Line; 2]) -> f32 {
    let (scale, inverse) = scale_of(x, most);
    for (x, out) in x.as_chunks::<{ SCALED / 2 }>().0.iter().zip(out) {
        for (out, x) in out.halves_mut().iter_mut().zip(x) {
            let rounded = (x * inverse + ROUND).to_bits();
            *out = rounded.wrapping_sub(ROUND.to_bits()) as u16;
        }
    }
    scale
}

/// The scale with which the largest magnitude becomes `most`, and its inverse.
#[inline(always)]
fn scale_of(x: &[f32; SCALED], most: f32) -> (f32, f32) {
    // As integers: NaN is above infinity, infinity above all numbers.
    let mut largest = [0u32; LANES];
    for part in x.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            largest[i] = largest[i].max(part[i].to_bits() & 0x7fff_ffff);
        }
    }
    let largest = f32::from_bits(largest.into_iter().fold(0, u32::max));
    if largest < SMALLEST {
        (0.0, 0.0)
    } else {
        (largest / most, most / largest)
    }
}

/// See [`super::Path::softmax`].
#[inline(always)]
pub(super) fn softmax(
    scores: &[f32],
    valid: &[usize],
    states: &mut Softmax,
    weights: &mut [Line],
    rescale: &mut [f32; MOST_ROWS],
) -> bool {
    let rows = valid.len();
    let scores = scores.as_chunks::<COLUMNS>().0;
    assert!(scores.len() == rows && rows <= MOST_ROWS);
    let (low, high) = weights.split_at_mut(rows);
    assert!(high.len() == rows);
    for row in 0..rows {
        let halves = [low[row].floats_mut(), high[row].floats_mut()];
        let state = (&mut states.largest[row], &mut states.sum[row]);
        rescale[row] = softmax_row(&scores[row], valid[row], state, halves);
    }
    rescale[..rows].iter().any(|&rescale| rescale != 1.0)
}

/// See [`super::Path::scale`].
#[inline(always)]
pub(super) fn scale(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

#[inline(always)]
fn softmax_row(
    scores: &[f32; COLUMNS],
    valid: usize,
    (high_score, total): (&mut f32, &mut f32),
    weights: [&mut [f32; LANES]; 2],
) -> f32 {
    let mut masked = *scores;
    if valid < COLUMNS {
        for (i, score) in masked.iter_mut().enumerate() {
            *score = if i < valid { *score } else { f32::NEG_INFINITY };
        }
    }
    let mut high = [f32::NEG_INFINITY; LANES];
    for i in 0..LANES {
        high[i] = larger(masked[i], masked[i + LANES]);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            high[i] = larger(high[i], high[i + half]);
        }
        half /= 2;
    }
    let largest = larger(high[0], *high_score);
    // Where nothing counts so far, the shift is 0 and all weights are 0, as exp(-inf) is, but NaN's: it may not be seen in
    // the largest. (If minus infinity is all there ever is, the sum stays 0 and the row becomes NaN.)
    let shift = if largest == f32::NEG_INFINITY {
        0.0
    } else {
        largest
    };
    let rescale = if largest > *high_score {
        exp(*high_score - shift)
    } else {
        1.0
    };
    let mut sums = [0.0; LANES];
    for i in 0..LANES {
        let (a, b) = (exp(masked[i] - shift), exp(masked[i + LANES] - shift));
        (weights[0][i], weights[1][i]) = (a, b);
        sums[i] = a + b;
    }
    *total = *total * rescale + sum(sums);
    *high_score = largest;
    rescale
}

/// The larger one; the second where one is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// See [`super::Path::narrow`].
#[inline(always)]
pub(super) fn narrow(x: &[f32], out: &mut [u16]) {
    assert!(x.len() == out.len());
    for (out, &x) in out.iter_mut().zip(x) {
        // NaN goes through both comparisons.
        let x = if x > LARGEST_HALF { LARGEST_HALF } else { x };
        let x = if x < -LARGEST_HALF { -LARGEST_HALF } else { x };
        *out = half::f16_from(x);
    }
}

/// The loops over single rows for a path whose instructions are named.
macro_rules! elementwise {
    ($($features:literal)?) => {
        elementwise!(@ $($features)?, norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) -> ());
        elementwise!(@ $($features)?, add(x: &mut [f32], y: &[f32]) -> ());
        elementwise!(@ $($features)?, scale(x: &mut [f32], factor: f32) -> ());
        elementwise!(@ $($features)?, rotate(x: &mut [f32], cosines: &[f32], sines: &[f32]) -> ());
        elementwise!(@ $($features)?, argmax(x: &[f32]) -> usize);
        elementwise!(@ $($features)?, narrow(x: &[f32], out: &mut [u16]) -> ());
        elementwise!(@ $($features)?, quantize_16(x: &[f32; SCALED], most: f32, out: &mut [Line; 2]) -> f32);
    };
    // Those that AVX-512 has in its own words.
    (hot $($features:literal)?) => {
        elementwise!(@ $($features)?, quantize(x: &[f32], out: &mut Line) -> (f32, i32));
        elementwise!(@ $($features)?, gate(gate: &[f32], up: &[f32], out: &mut [f32]) -> ());
        elementwise!(@ $($features)?, softmax(
            scores: &[f32], valid: &[usize], states: &mut Softmax, weights: &mut [Line], rescale: &mut [f32; MOST_ROWS]
        ) -> bool);
    };
    (@ , $name:ident($($argument:ident: $type:ty),*) -> $result:ty) => {
        fn $name(&self, $($argument: $type),*) -> $result {
            super::lanes::$name($($argument),*)
        }
    };
    (@ $features:literal, $name:ident($($argument:ident: $type:ty),*) -> $result:ty) => {
        fn $name(&self, $($argument: $type),*) -> $result {
            #[target_feature(enable = $features)]
            fn compiled($($argument: $type),*) -> $result {
                super::lanes::$name($($argument),*)
            }
            // SAFETY: a path is only handed out on a processor with its instructions (`paths`).
            unsafe { compiled($($argument),*) }
        }
    };
}
pub(super) use elementwise;

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
