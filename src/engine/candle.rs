//! A model on this machine: one OS thread owns it and answers one request at a time.

mod chat;
#[cfg(any(test, fuzzing))]
pub mod entry;
mod load;
#[cfg(test)]
pub(crate) mod made;
#[cfg(test)]
pub(crate) mod measured;
mod reference;
mod spec;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling as Choice};
use tokio::sync::oneshot;

use super::{
    Answer, Description, Engine, Error, Finish, Output, Prepared, Request, Sampling, hash,
};
use chat::Chat;
use load::{Loaded, Wanted};
use reference::Reference;

/// Where the model is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    /// Most tokens of prompt and answer; `None`: as many as the model was made for.
    pub context_tokens: Option<u32>,
}

/// Changes when the same files would give other answers than before.
const CODE_VERSION: &str = "candle-f32-1";
/// Requests that wait for the thread before `generate` itself waits.
const QUEUE: usize = 4;
/// A run of tokens that stands so often at the end, and has so many tokens altogether, is a loop.
const LOOP_REPEATS: usize = 4;
const LOOP_TOKENS: usize = 32;
const LOOP_PERIOD: usize = 64;

type Work = (Prepared, oneshot::Sender<Result<Output, Error>>);

/// Llama and Qwen3 models through candle-transformers, in 32-bit floats.
pub struct Candle {
    description: Description,
    chat: Chat,
    work: SyncSender<Work>,
}

impl Candle {
    /// Reads the model, merges the adapter and starts the thread. Blocks.
    ///
    /// # Errors
    /// [`Error::Broken`] names the file and what is wrong with it.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let Loaded {
            spec,
            mut tensors,
            chat,
            files,
        } = load::load(&Wanted {
            model: &config.model,
            adapter: config.adapter.as_deref(),
            tokenizer: config.tokenizer.as_deref(),
            thinking: config.thinking,
        })?;
        let mut fingerprint = blake3::Hasher::new();
        fingerprint.update(CODE_VERSION.as_bytes());
        for file in &files {
            fingerprint.update(file_hash(file)?.as_bytes());
        }
        fingerprint.update(&[u8::from(config.thinking)]);
        let context = u32::try_from(spec.context).unwrap_or(u32::MAX);
        let context_tokens = config
            .context_tokens
            .map_or(context, |wanted| wanted.min(context));
        let model = Reference::new(&spec, tensors.as_mut(), context_tokens as usize)
            .map_err(broken(&config.model))?;
        drop(tensors);
        let mut name = file_name(&config.model);
        if let Some(adapter) = &config.adapter {
            name = format!("{name}+{}", file_name(adapter));
        }
        let (work, inbox) = sync_channel(QUEUE);
        let stops = chat.stops().to_vec();
        let decoder = chat.clone();
        std::thread::Builder::new()
            .name("limn-model".to_owned())
            .spawn(move || run(model, &decoder, &stops, &inbox))
            .map_err(|e| Error::Broken {
                reason: format!("starting the model's thread: {e}"),
            })?;
        Ok(Self {
            description: Description {
                name,
                fingerprint: fingerprint.finalize().to_hex().to_string(),
                context_tokens,
                // One is answered while the next is made ready.
                concurrency: 2,
            },
            chat,
            work,
        })
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
        let context = self.description.context_tokens;
        if prompt_tokens.saturating_add(request.max_tokens) > context {
            let answer = request.max_tokens;
            return Err(Error::TooLong {
                tokens: prompt_tokens,
                answer,
                context,
            });
        }
        Ok(Prepared {
            key: hash(&self.description, &tokens, &request),
            prompt_tokens,
            tokens,
            request,
        })
    }

    fn generate(&self, prepared: Prepared) -> Answer<'_> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let mut work = (prepared, reply);
            // The thread takes a request every few seconds: looking again costs nothing.
            while let Err(error) = self.work.try_send(work) {
                work = match error {
                    std::sync::mpsc::TrySendError::Full(work) => work,
                    std::sync::mpsc::TrySendError::Disconnected(_) => return Err(gone()),
                };
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            answer.await.unwrap_or_else(|_| Err(gone()))
        })
    }
}

fn gone() -> Error {
    Error::Broken {
        reason: "the model's thread has ended; its message is in the log".to_owned(),
    }
}

fn run(mut model: Reference, chat: &Chat, stops: &[u32], inbox: &Receiver<Work>) {
    while let Ok((prepared, reply)) = inbox.recv() {
        if reply.is_closed() {
            continue;
        }
        let answer = generate(&mut model, chat, stops, &prepared, &|| reply.is_closed());
        let answer = answer.map_err(|e| Error::Broken {
            reason: format!("the model failed: {e}"),
        });
        // Whoever asked may have gone meanwhile.
        let _ = reply.send(answer);
    }
}

fn generate(
    model: &mut Reference,
    chat: &Chat,
    stops: &[u32],
    prepared: &Prepared,
    abandoned: &dyn Fn() -> bool,
) -> candle_core::Result<Output> {
    let began = Instant::now();
    let choice = match prepared.request.sampling {
        Sampling::Greedy => Choice::ArgMax,
        Sampling::Random {
            temperature,
            top_k: 0,
            top_p,
            ..
        } => Choice::TopP {
            p: top_p,
            temperature,
        },
        Sampling::Random {
            temperature,
            top_k,
            top_p,
            ..
        } => Choice::TopKThenTopP {
            k: top_k as usize,
            p: top_p,
            temperature,
        },
    };
    let seed = match prepared.request.sampling {
        Sampling::Greedy => 0,
        Sampling::Random { seed, .. } => seed,
    };
    let mut choose = LogitsProcessor::from_sampling(seed, choice);
    model.begin()?;
    let mut answer: Vec<u32> = Vec::new();
    let mut input = prepared.tokens.clone();
    let mut position = 0;
    let finish = loop {
        let tokens = Tensor::new(input.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        let logits = model.forward(&tokens, position)?;
        position += input.len();
        let next = choose.sample(&logits)?;
        if stops.contains(&next) {
            break Finish::Stop;
        }
        answer.push(next);
        if loops(&answer) {
            break Finish::Loop;
        }
        if answer.len() >= prepared.request.max_tokens as usize || abandoned() {
            break Finish::Length;
        }
        input = vec![next];
    };
    Ok(Output {
        text: chat.decode(&answer),
        finish,
        prompt_tokens: prepared.prompt_tokens,
        cached_tokens: 0,
        output_tokens: u32::try_from(answer.len()).unwrap_or(u32::MAX),
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// Whether the tokens end in the same run over and over.
fn loops(tokens: &[u32]) -> bool {
    (1..=LOOP_PERIOD.min(tokens.len() / LOOP_REPEATS)).any(|period| {
        let repeats = LOOP_REPEATS.max(LOOP_TOKENS.div_ceil(period));
        let Some(start) = tokens.len().checked_sub(period * repeats) else {
            return false;
        };
        let tail = &tokens[start..];
        tail[period..].iter().zip(tail).all(|(a, b)| a == b)
    })
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(
        || path.display().to_string(),
        |n| n.to_string_lossy().into_owned(),
    )
}

fn file_hash(path: &Path) -> Result<blake3::Hash, Error> {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).map_err(broken(path))?;
    hasher.update_reader(file).map_err(broken(path))?;
    Ok(hasher.finalize())
}

/// A fault of a file.
fn broken<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> Error + '_ {
    move |error| Error::Broken {
        reason: format!("{}: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests;
