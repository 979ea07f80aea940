//! How likely a model finds the answers of another run.

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;

use super::engine::Answered;
use super::requests::{Asked, Error, read_lines};
use crate::engine::{self, CandleConfig};

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScoreReport {
    /// Tokens of the answers, the end of each turn included.
    pub tokens: u64,
    /// The mean of their negative log-likelihoods, in nats.
    pub mean_nll: f64,
}

/// Opens the model and scores each answer of a file behind its request of another. Blocks.
///
/// # Errors
/// See [`Error`].
pub fn score(engine: &CandleConfig, requests: &Path, outputs: &Path) -> Result<ScoreReport, Error> {
    let asked: Vec<(usize, Asked)> = read_lines(requests)?;
    let asked: HashMap<&str, &Asked> = asked.iter().map(|(_, a)| (a.id.as_str(), a)).collect();
    let mut pairs = Vec::new();
    for (line, answer) in read_lines::<Answered>(outputs)? {
        let Some(asked) = asked.get(answer.id.as_str()) else {
            return Err(Error::NoRequest {
                path: outputs.to_owned(),
                line,
                id: answer.id,
                requests: requests.to_owned(),
            });
        };
        pairs.push((asked.request(), answer.text));
    }
    let score = engine::score(engine, &pairs)?;
    Ok(ScoreReport {
        tokens: score.tokens,
        mean_nll: score.mean_nll,
    })
}
