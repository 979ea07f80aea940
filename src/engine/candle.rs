//! A model on this machine: one OS thread owns it and works on many requests at once.

mod blocks;
mod chat;
mod compute;
mod device;
mod draft;
#[cfg(any(test, fuzzing))]
pub mod entry;
mod kernels;
mod load;
#[cfg(test)]
pub(crate) mod made;
#[cfg(test)]
pub(crate) mod measured;
mod model;
mod open;
#[cfg(test)]
mod reference;
mod sample;
mod scheduler;
mod score;
mod spec;
mod step;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, oneshot};

use super::{Answer, Description, Engine, Error, Prepared, Request, hash};
use chat::Chat;
pub use device::Device;
pub use score::{Score, score};
pub use worker::Figures;
use worker::{Shared, Work};

/// Where the model is, and how it is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// A GGUF file, a folder with `config.json`, `tokenizer.json` and safetensors, or a hub id: `hf:OWNER/NAME`, where wanted with
    /// `@REVISION` and `:FILE.gguf`.
    pub model: PathBuf,
    /// A folder with a PEFT LoRA adapter, merged at load.
    pub adapter: Option<PathBuf>,
    /// A `tokenizer.json` that takes the place of the model's own.
    pub tokenizer: Option<PathBuf>,
    /// Whether the model may reason before it answers, where its template leaves the choice (Qwen3).
    pub thinking: bool,
    /// What computes.
    pub device: Device,
    /// The number format.
    pub dtype: Dtype,
    /// Most tokens of prompt and answer; `None`: as many as the model was made for.
    pub context_tokens: Option<u32>,
    /// Requests that the model works on at once.
    pub concurrency: usize,
    /// Bytes of the cache of keys and values; `None`: enough for `concurrency` usual requests and at least one of the longest,
    /// within the memory that is free.
    pub cache_bytes: Option<u64>,
    /// Most rows of one forward pass.
    pub step_tokens: usize,
    /// Threads of the processor that compute; `None`: one for each processor that this process may use. Where candle computes, on
    /// processors with neither AVX2 nor AVX-512, `RAYON_NUM_THREADS` says it.
    pub threads: Option<usize>,
    /// Whether tokens of the previous summary are proposed and verified several at once. It changes how long an answer
    /// takes, never the answer.
    pub drafts: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            adapter: None,
            tokenizer: None,
            thinking: false,
            device: Device::Cpu,
            dtype: Dtype::Auto,
            context_tokens: None,
            concurrency: 16,
            cache_bytes: None,
            step_tokens: 512,
            threads: None,
            drafts: true,
        }
    }
}

/// The number format that a model is computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// `int8` on processors with AVX2 or AVX-512, `f32` on others, `bf16` on a GPU. Answers in fewer bits than `f32` are not always those of
    /// `f32` (docs/engine.md says how often).
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit floats with the range of 32-bit ones; sums in 32 bits.
    Bf16,
    /// Weights in 8 bits with scales by block, in 16 where the answers feel that; activations in 8 or 16 bits; sums in 32 bits.
    Int8,
}

impl Dtype {
    /// The name in configuration and figures.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

/// Changes when the same files would give other answers than before.
const CODE_VERSION: &str = "candle-packed-2";

/// Llama and Qwen3 models in this process.
pub struct Candle {
    description: Description,
    chat: Chat,
    device: Device,
    dtype: Dtype,
    work: mpsc::Sender<Work>,
    shared: Shared,
}

impl Candle {
    /// Reads the model, merges the adapter and starts the thread. Blocks.
    ///
    /// # Errors
    /// [`Error::Broken`] names the file and what is wrong with it, or what does not fit.
    pub fn open(config: &Config) -> Result<Self, Error> {
        open::open(config)
    }

    /// What the thread has done so far.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.shared.read()
    }

    /// What computes.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// The number format that it computes in.
    #[must_use]
    pub fn dtype(&self) -> &'static str {
        self.dtype.name()
    }
}

impl Engine for Candle {
    fn description(&self) -> &Description {
        &self.description
    }

    fn count(&self, text: &str) -> u32 {
        self.chat.count(text)
    }

    fn prepare(&self, request: Request) -> Result<Prepared, Error> {
        let tokens = self.chat.encode(&request.system, &request.user)?;
        let prompt_tokens = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let Description {
            context_tokens: context,
            bound,
            ..
        } = self.description;
        if prompt_tokens.saturating_add(request.max_tokens) > context {
            let answer = request.max_tokens;
            return Err(Error::TooLong {
                tokens: prompt_tokens,
                answer,
                context,
                bound,
            });
        }
        Ok(Prepared {
            key: hash(&self.description, &tokens, &request),
            prompt_tokens,
            tokens,
            request,
        })
    }

    fn show(&self) {
        self.shared.show();
    }

    fn generate(&self, prepared: Prepared) -> Answer<'_> {
        Box::pin(async move {
            let previous = self.chat.text_ids(&prepared.request.previous)?;
            let (reply, answer) = oneshot::channel();
            let abandoned = Abandoned(Arc::default());
            let work = Work {
                prepared,
                previous,
                gone: Arc::clone(&abandoned.0),
                reply,
            };
            self.work.send(work).await.map_err(|_| gone())?;
            answer.await.unwrap_or_else(|_| Err(gone()))
        })
    }
}

/// Tells the thread, when it is dropped, that nobody waits any more.
struct Abandoned(Arc<AtomicBool>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn gone() -> Error {
    Error::Broken {
        reason: "the model's thread has ended; its message is on standard error".to_owned(),
    }
}

/// A fault of a file.
fn broken<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> Error + '_ {
    move |error| Error::Broken {
        reason: format!("{}: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests;
