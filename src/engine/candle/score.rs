//! How likely a model finds given answers: what a number format costs, measured.

use super::open::{Ready, build};
use super::step::{Answer, BLOCK, Forward, Span, Step, Wanted};
use super::{Config, Error};
use crate::engine::Request;

/// How likely given answers are, over all their tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// Tokens of the answers, the end of each turn included.
    pub tokens: u64,
    /// The mean of their negative log-likelihoods, in nats.
    pub mean_nll: f64,
}

/// Opens the model and scores each answer behind its request. Blocks.
///
/// # Errors
/// [`Error`], as when the model answers itself; [`Error::TooLong`] where an answer does not fit.
pub fn score(config: &Config, answers: &[(Request, String)]) -> Result<Score, Error> {
    let Ready {
        mut model,
        chat,
        limits,
        ..
    } = build(config)?;
    let mut score = Score::default();
    let mut sum = 0.0;
    for (request, text) in answers {
        let mut tokens = chat.encode(&request.system, &request.user)?;
        let prompt = tokens.len();
        tokens.extend(chat.text_ids(text)?);
        // Stands for the end of the turn, whichever of the tokens that mean it the model likes best.
        let end = tokens.len();
        tokens.extend(chat.stops().first());
        let (longest, bound) = limits.longest();
        if tokens.len() > longest {
            let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            return Err(Error::TooLong {
                tokens: count(prompt),
                answer: count(tokens.len() - prompt),
                context: count(longest),
                bound,
            });
        }
        let mut start = 0;
        while start < tokens.len() {
            let rows = limits.step_tokens.max(1).min(tokens.len() - start);
            // The row before a token of the answer says how likely it is.
            let wanted: Vec<usize> = (start..start + rows)
                .filter(|&at| at + 1 >= prompt && at + 1 < tokens.len())
                .collect();
            let step = Step {
                tokens: tokens[start..start + rows].to_vec(),
                spans: vec![Span {
                    rows,
                    start,
                    blocks: (0..u32::try_from((start + rows).div_ceil(BLOCK)).unwrap_or(u32::MAX))
                        .collect(),
                }],
                wanted: wanted
                    .iter()
                    .map(|at| Wanted {
                        row: at - start,
                        logits: true,
                    })
                    .collect(),
            };
            for (at, answer) in wanted.iter().zip(model.step(&step)?) {
                if let Answer::Logits(logits) = answer {
                    sum += if at + 1 == end {
                        let ends = chat.stops().iter();
                        ends.map(|&stop| nll(&logits, stop as usize))
                            .fold(f64::INFINITY, f64::min)
                    } else {
                        nll(&logits, tokens[at + 1] as usize)
                    };
                    score.tokens += 1;
                }
            }
            start += rows;
        }
    }
    #[allow(clippy::cast_precision_loss)] // a mean
    if score.tokens > 0 {
        score.mean_nll = sum / score.tokens as f64;
    }
    Ok(score)
}

/// The negative logarithm of a token's probability.
fn nll(logits: &[f32], token: usize) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - most).exp()).sum();
    sum.ln() - f64::from(logits[token] - most)
}
