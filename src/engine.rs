//! The model: a prompt in, text out. Nothing here knows Kafka or users.

mod candle;
mod openai;
mod scripted;

#[cfg(fuzzing)]
pub use candle::entry;
#[cfg(test)]
pub(crate) use candle::made;
pub use candle::{Candle, Config as CandleConfig, Device, Dtype, Figures, Score, score};
#[cfg(fuzzing)]
pub use openai::entry as server;
pub use openai::{Config as OpenAiConfig, OpenAi};
pub use scripted::{Fault, Positions, Script, Scripted};

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// The likeliest token, always: the same prompt gives the same answer.
    Greedy,
    /// Drawn from the likeliest tokens.
    Random {
        /// Divides the logits; above 0.
        temperature: f64,
        /// Only the `top_k` likeliest; 0: all.
        top_k: u32,
        /// Only the likeliest that together reach this probability.
        top_p: f64,
        /// Only those at least this share as likely as the likeliest; 0: all.
        min_p: f64,
        /// The same seed draws the same tokens from the same prompt.
        seed: u64,
    },
}

/// What the model is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The instructions. Only the model's own template puts markers around it and `user`.
    pub system: String,
    /// The previous summary and the events. Untrusted: encoded without special tokens.
    pub user: String,
    /// The previous summary alone (a part of `user`): the answer mostly repeats it.
    pub previous: String,
    /// Most tokens of the answer.
    pub max_tokens: u32,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// A request as the model will see it.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What was asked.
    pub request: Request,
    /// The prompt's token ids with the template's markers; empty where the model is remote and its tokenizer unknown.
    pub tokens: Vec<u32>,
    /// How many tokens the prompt has; an upper estimate where the tokenizer is unknown.
    pub prompt_tokens: u32,
    /// BLAKE3 over the engine's fingerprint, the prompt's tokens (or texts) and the sampling: the journal's key.
    pub key: [u8; 32],
}

/// Why the model stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// It ended its turn.
    Stop,
    /// It was cut off at `max_tokens`.
    Length,
    /// It repeated itself and was stopped.
    Loop,
}

/// What the model answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// The text without the template's markers, a reasoning block included.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of these, tokens that were found in a cache.
    pub cached_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// How long the model worked on it, in seconds.
    pub seconds: f64,
}

/// What it is that prompt and answer must fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The model's context, or as much of it as is used.
    Context,
    /// The cache of keys and values, which is smaller.
    Cache,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Context => "the model's context (engine.context_tokens) is",
            Self::Cache => "the cache of keys and values (engine.cache) has room for",
        })
    }
}

/// What an engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The model's name, for people.
    pub name: String,
    /// Hash of all that decides the answer besides the request: weights, adapter, tokenizer, template, number format; hexadecimal.
    pub fingerprint: String,
    /// Most tokens of prompt and answer together.
    pub context_tokens: u32,
    /// Whose limit that is.
    pub bound: Bound,
    /// How many requests it takes at once.
    pub concurrency: usize,
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Prompt and answer do not fit; the request can never be served as it is.
    #[error("the prompt has {tokens} tokens and the answer up to {answer}, but {bound} {context}")]
    TooLong {
        /// Tokens of the prompt.
        tokens: u32,
        /// Tokens of the answer.
        answer: u32,
        /// Most tokens of both together.
        context: u32,
        /// Whose limit that is.
        bound: Bound,
    },
    /// The engine cannot answer now; the same request may be tried again. No event is given up for it.
    #[error("the engine is not available: {reason}")]
    Unavailable {
        /// What happened.
        reason: String,
        /// How long to wait at least, where the engine said so.
        retry_after: Option<Duration>,
    },
    /// The engine will never answer as it is configured: a missing file, a wrong key, an unknown model.
    #[error("the engine cannot work: {reason}")]
    Broken {
        /// What is wrong, and what would do.
        reason: String,
    },
    /// The engine refused this very request, and will again (a content filter, a request it calls invalid).
    #[error("the engine refused the request: {reason}")]
    Rejected {
        /// What it said; never the event's text.
        reason: String,
    },
}

/// A boxed answer in the making.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<Output, Error>> + Send + 'a>>;

/// A model.
pub trait Engine: Send + Sync {
    /// What this engine is.
    fn description(&self) -> &Description;

    /// Tokens of a text alone, without markers; an upper estimate where the tokenizer is unknown.
    fn count(&self, text: &str) -> u32;

    /// Puts the request into the model's own template and encodes it.
    ///
    /// # Errors
    /// [`Error::TooLong`] where it does not fit the context; [`Error::Broken`] where the template fails.
    fn prepare(&self, request: Request) -> Result<Prepared, Error>;

    /// Sets the gauges that are the engine's own, as they are now. A gauge that is not set for long is gone, and an engine with
    /// nothing to do has no occasion: whoever runs it calls this every second.
    fn show(&self) {}

    /// Answers. Dropping the future gives the request up.
    ///
    /// # Errors
    /// See [`Error`].
    fn generate(&self, prepared: Prepared) -> Answer<'_>;
}

/// The journal's key: all that decides the answer. The prompt's tokens stand for its texts where they are known.
fn hash(description: &Description, tokens: &[u32], request: &Request) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        // Each part's length goes before it, so that no two splits of the same bytes are alike.
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(description.fingerprint.as_bytes());
    if tokens.is_empty() {
        part(request.system.as_bytes());
        part(request.user.as_bytes());
    } else {
        let ids: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
        part(&ids);
    }
    part(&request.max_tokens.to_le_bytes());
    match request.sampling {
        Sampling::Greedy => part(b"greedy"),
        Sampling::Random {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
        } => {
            part(&temperature.to_le_bytes());
            part(&top_k.to_le_bytes());
            part(&top_p.to_le_bytes());
            part(&min_p.to_le_bytes());
            part(&seed.to_le_bytes());
        }
    }
    *hasher.finalize().as_bytes()
}
