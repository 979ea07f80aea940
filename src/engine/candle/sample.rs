//! Choosing a token from logits.

use crate::engine::Sampling;

/// A model whose logits are not numbers has wrong weights or a fault in its arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// NaN, or an infinity above all others.
    #[error("the model gave token {0} a logit that is not a number")]
    NotANumber(usize),
    /// The highest logit is infinite, or all are NaN.
    #[error("the model gave no token a likelihood that is a number")]
    NoHighest,
    /// Every token is impossible.
    #[error("the model gave every token a probability of zero")]
    Nothing,
}

/// How many of the likeliest tokens are sorted at first where `top_k` sets no limit.
const FIRST_SORTED: usize = 256;

/// The token with the highest logit, the first of equals.
///
/// # Errors
/// [`Fault`] where there is none.
pub(crate) fn likeliest(logits: &[f32]) -> Result<u32, Fault> {
    highest(logits).map(|(index, _)| id(index))
}

/// The `n`-th token of an answer: depends on the sampling, `n` and the logits alone, so that neither a recomputed nor a
/// drafted answer differs from a plain one.
///
/// # Errors
/// [`Fault`] where the logits give no token.
pub(crate) fn choose(sampling: &Sampling, n: usize, logits: &[f32]) -> Result<u32, Fault> {
    let Sampling::Random {
        temperature,
        top_k,
        top_p,
        min_p,
        seed,
    } = *sampling
    else {
        return likeliest(logits);
    };
    let (best, highest) = highest(logits)?;
    if temperature <= 0.0 {
        return Ok(id(best));
    }
    let mut tokens: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
    let k = match top_k as usize {
        0 => tokens.len(),
        k => k.min(tokens.len()),
    };
    if k < tokens.len() {
        tokens.select_nth_unstable_by(k, order);
        tokens.truncate(k);
        tokens.sort_unstable_by(order);
    }
    // The likeliest token weighs 1, all others less.
    let weight = |l: f32| ((f64::from(l) - f64::from(highest)) / temperature).exp();
    let mut candidates: Vec<(usize, f64)> = tokens.iter().map(|&(i, l)| (i, weight(l))).collect();
    if top_p < 1.0 {
        let all: f64 = candidates.iter().map(|c| c.1).sum();
        keep_nucleus(&mut candidates, top_p * all);
    }
    candidates.retain(|c| c.1 >= min_p);
    // Weights are summed in one order, whichever way the candidates were found.
    candidates.sort_unstable_by_key(|c| c.0);
    let mut rest = uniform(seed, n) * candidates.iter().map(|c| c.1).sum::<f64>();
    for &(index, weight) in &candidates {
        rest -= weight;
        if rest < 0.0 {
            return Ok(id(index));
        }
    }
    // Rounding left a little over.
    Ok(id(best))
}

/// Keeps the likeliest that together reach `mass`, the one that crosses it included. A large vocabulary is not sorted
/// whole for the few tokens that are kept.
fn keep_nucleus(candidates: &mut Vec<(usize, f64)>, mass: f64) {
    let mut sorted = FIRST_SORTED;
    loop {
        let whole = sorted >= candidates.len();
        if whole {
            sorted = candidates.len();
        } else {
            candidates.select_nth_unstable_by(sorted, order);
        }
        candidates[..sorted].sort_unstable_by(order);
        let mut sum = 0.0;
        let reached = candidates[..sorted].iter().position(|c| {
            sum += c.1;
            sum >= mass
        });
        match reached {
            Some(last) => return candidates.truncate(last + 1),
            None if whole => return,
            None => sorted *= 8,
        }
    }
}

/// The likelier first, of equals the first.
fn order<N: PartialOrd>(a: &(usize, N), b: &(usize, N)) -> std::cmp::Ordering {
    // No logit is NaN here.
    let likelier = b.1.partial_cmp(&a.1);
    likelier
        .unwrap_or(std::cmp::Ordering::Equal)
        .then(a.0.cmp(&b.0))
}

fn highest(logits: &[f32]) -> Result<(usize, f32), Fault> {
    let mut best = None;
    for (index, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(Fault::NotANumber(index));
        }
        if logit > best.map_or(f32::NEG_INFINITY, |(_, highest)| highest) {
            best = Some((index, logit));
        }
    }
    best.ok_or(Fault::Nothing)
}

/// A number in [0, 1): the `n`-th output of `SplitMix64`, the same on every platform and in every version.
fn uniform(seed: u64, n: usize) -> f64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    // Mixed first: neighbouring seeds would otherwise give the same numbers one place apart.
    let state = mix(seed).wrapping_add((n as u64 + 1).wrapping_mul(GOLDEN));
    // 53 bits are what an f64 holds.
    (mix(state) >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn id(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
