//! The engine alone: requests of a file, so many at once, and how long they take.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::requests::{Asked, Error, read_lines};
use crate::demo::peak_memory_bytes;
use crate::engine::{Candle, CandleConfig, Engine, Output};

/// What is measured.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The model.
    pub engine: CandleConfig,
    /// The file of requests.
    pub requests: PathBuf,
    /// How many at once.
    pub concurrency: usize,
    /// Where the answers are written, a JSON object a line, in the order of the requests.
    pub outputs: Option<PathBuf>,
    /// Answers of another run of the same requests, to be compared with.
    pub compare: Option<PathBuf>,
    /// When the process began.
    pub began: Instant,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct EngineReport {
    /// The version that was measured.
    pub limn: &'static str,
    /// The model's name.
    pub model: String,
    /// What computed it.
    pub device: String,
    /// The number format that it was computed in.
    pub dtype: &'static str,
    /// Requests at once.
    pub concurrency: usize,
    /// Requests answered.
    pub updates: usize,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Answers a second.
    pub updates_per_second: f64,
    /// Tokens of the prompts.
    pub prompt_tokens: u64,
    /// Of these, tokens that were found in the cache.
    pub cached_tokens: u64,
    /// Tokens of the answers.
    pub output_tokens: u64,
    /// Forward passes.
    pub model_steps: u64,
    /// Tokens proposed.
    pub drafted: u64,
    /// Of these, tokens that the model would have chosen itself.
    pub accepted: u64,
    /// Sequences that had to make room in the cache and were computed again.
    pub preemptions: u64,
    /// Most memory that the process had resident; where the system does not tell, nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// From the start of the process until the model was ready.
    pub load_seconds: f64,
    /// From the start of the process to the first token; where there was none, nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_seconds: Option<f64>,
    /// With another run's answers: how many are the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identical: Option<usize>,
}

/// A line of a file of answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The request's.
    pub id: String,
    /// The answer.
    pub text: String,
}

/// Loads the model, asks all, and says how long it took.
///
/// # Errors
/// See [`Error`].
#[allow(clippy::cast_precision_loss)] // rates
pub async fn engine(options: &EngineOptions) -> Result<EngineReport, Error> {
    let asked: Vec<(usize, Asked)> = read_lines(&options.requests)?;
    let before = match &options.compare {
        Some(path) => Some(read_lines::<Answered>(path)?),
        None => None,
    };
    let config = options.engine.clone();
    let candle = tokio::task::spawn_blocking(move || Candle::open(&config))
        .await
        .map_err(|e| Error::Task(e.to_string()))??;
    let candle = Arc::new(candle);
    let load_seconds = options.began.elapsed().as_secs_f64();
    let began = Instant::now();
    let outputs = ask_all(&candle, &asked, options).await?;
    let seconds = began.elapsed().as_secs_f64();
    let answers: Vec<Answered> = asked
        .iter()
        .zip(&outputs)
        .map(|((_, asked), output)| Answered {
            id: asked.id.clone(),
            text: output.text.clone(),
        })
        .collect();
    if let Some(path) = &options.outputs {
        write(path, &answers)?;
    }
    let identical = before.map(|before| {
        let same = |a: &&Answered| before.iter().any(|(_, b)| b == *a);
        answers.iter().filter(same).count()
    });
    let sum = |count: fn(&Output) -> u32| outputs.iter().map(|o| u64::from(count(o))).sum();
    let figures = candle.figures();
    Ok(EngineReport {
        limn: env!("CARGO_PKG_VERSION"),
        model: candle.description().name.clone(),
        device: candle.device().to_string(),
        dtype: candle.dtype(),
        concurrency: options.concurrency,
        updates: outputs.len(),
        seconds,
        updates_per_second: outputs.len() as f64 / seconds,
        prompt_tokens: sum(|o| o.prompt_tokens),
        cached_tokens: sum(|o| o.cached_tokens),
        output_tokens: sum(|o| o.output_tokens),
        model_steps: figures.steps,
        drafted: figures.drafted,
        accepted: figures.accepted,
        preemptions: figures.preemptions,
        peak_memory_bytes: peak_memory_bytes(),
        load_seconds,
        first_token_seconds: figures
            .first_token
            .map(|at| at.saturating_duration_since(options.began).as_secs_f64()),
        identical,
    })
}

/// The answers in the order of the requests.
async fn ask_all(
    candle: &Arc<Candle>,
    asked: &[(usize, Asked)],
    options: &EngineOptions,
) -> Result<Vec<Output>, Error> {
    let mut waiting = asked.iter().enumerate();
    let mut running = JoinSet::new();
    let mut outputs: Vec<Option<Output>> = vec![None; asked.len()];
    loop {
        while running.len() < options.concurrency.max(1)
            && let Some((number, (_, asked))) = waiting.next()
        {
            let (candle, request) = (Arc::clone(candle), asked.request());
            running.spawn(async move {
                let answer = async { candle.generate(candle.prepare(request)?).await };
                (number, answer.await)
            });
        }
        let Some(finished) = running.join_next().await else {
            break;
        };
        let (number, output) = finished.map_err(|e| Error::Task(e.to_string()))?;
        outputs[number] = Some(output.map_err(|source| {
            let (line, asked) = &asked[number];
            asked.unanswered(&options.requests, *line, source)
        })?);
    }
    Ok(outputs.into_iter().flatten().collect())
}

fn write(path: &Path, answers: &[Answered]) -> Result<(), Error> {
    use std::io::Write as _;
    let mut out = std::io::BufWriter::new(std::fs::File::create(path)?);
    for answer in answers {
        let line = serde_json::to_string(answer).map_err(std::io::Error::from)?;
        writeln!(out, "{line}")?;
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests;
