//! A model from its files to the thread that owns it.

use std::fs::File;
use std::path::Path;
use std::thread::available_parallelism;

use candle_core::DType;
use tokio::sync::mpsc;

use super::compute::{Compute, Cpu, TensorCompute, Times};
use super::device::{Device, free_memory};
use super::draft::Policy;
use super::kernels::Format;
use super::load::{self, Loaded, Tensors, Wanted};
use super::model::Model;
use super::scheduler::Limits;
use super::spec::Spec;
use super::step::{Answer, BLOCK, Forward, Step};
use super::worker::{self, Shared, Timed};
use super::{CODE_VERSION, Candle, Config, Dtype, broken};
use crate::engine::{Description, Error};

/// Positions of a usual request: what the cache holds for each, unless told otherwise. More make room for each other.
const USUAL_POSITIONS: usize = 512;

/// The model on what computes it.
pub(super) enum Built {
    /// On the kernels of this crate.
    Cpu(Box<Model<Cpu>>),
    /// On candle's tensors.
    Tensors(Box<Model<TensorCompute>>),
}

impl Forward for Built {
    fn step(&mut self, step: &Step) -> Result<Vec<Answer>, Error> {
        match self {
            Self::Cpu(model) => model.step(step),
            Self::Tensors(model) => model.step(step),
        }
    }

    fn copy_block(&mut self, from: u32, to: u32) -> Result<(), Error> {
        match self {
            Self::Cpu(model) => model.copy_block(from, to),
            Self::Tensors(model) => model.copy_block(from, to),
        }
    }
}

impl Built {
    /// What computes, for the log.
    fn kernels(&mut self) -> &'static str {
        match self {
            Self::Cpu(model) => model.compute().path(),
            Self::Tensors(_) => "candle",
        }
    }
}

impl Timed for Built {
    fn times(&mut self) -> Times {
        match self {
            Self::Cpu(model) => model.compute().times(),
            Self::Tensors(model) => model.compute().times(),
        }
    }
}

/// A model that is ready, and what it may hold.
pub(super) struct Ready {
    pub model: Built,
    pub chat: super::Chat,
    pub device: Device,
    pub dtype: Dtype,
    pub limits: Limits,
    pub fingerprint: String,
}

/// Reads and builds the model. Blocks.
pub(super) fn build(config: &Config) -> Result<Ready, Error> {
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
    let place = Place::of(config)?;
    let mut fingerprint = blake3::Hasher::new();
    fingerprint.update(CODE_VERSION.as_bytes());
    fingerprint.update(config.device.kind().as_bytes());
    fingerprint.update(place.dtype.name().as_bytes());
    fingerprint.update(&[u8::from(config.thinking)]);
    for file in &files {
        fingerprint.update(file_hash(file)?.as_bytes());
    }
    let context = config
        .context_tokens
        .map_or(spec.context, |wanted| spec.context.min(wanted as usize));
    let limits = limits(config, &spec, context, &place)?;
    let model = place.build(config, &spec, tensors.as_mut(), &limits)?;
    Ok(Ready {
        model,
        chat,
        device: config.device,
        dtype: place.dtype,
        limits,
        fingerprint: fingerprint.finalize().to_hex().to_string(),
    })
}

pub(super) fn open(config: &Config) -> Result<Candle, Error> {
    let Ready {
        mut model,
        chat,
        device,
        dtype,
        limits,
        fingerprint,
    } = build(config)?;
    let (longest, bound) = limits.longest();
    let mut name = file_name(&config.model);
    if let Some(adapter) = &config.adapter {
        name = format!("{name}+{}", file_name(adapter));
    }
    tracing::info!(
        model = name,
        device = %device,
        dtype = dtype.name(),
        context = longest,
        kernels = model.kernels(),
        cached_positions = limits.blocks * BLOCK,
        "the model is ready"
    );
    let (work, inbox) = mpsc::channel(limits.sequences.max(1));
    let shared = Shared::default();
    let (spoken, told) = (chat.clone(), shared.clone());
    std::thread::Builder::new()
        .name("limn-model".to_owned())
        .spawn(move || worker::run(model, limits, &spoken, inbox, &told))
        .map_err(|e| Error::Broken {
            bound,
            reason: format!("starting the model's thread: {e}"),
        })?;
    Ok(Candle {
        description: Description {
            name,
            fingerprint,
            context_tokens: u32::try_from(longest).unwrap_or(u32::MAX),
            // A few more than it works on are made ready meanwhile.
            concurrency: limits.sequences + limits.sequences.div_ceil(4),
        },
        chat,
        device,
        dtype,
        work,
        shared,
    })
}

/// What computes, and in which number format.
struct Place {
    device: candle_core::Device,
    dtype: Dtype,
}

impl Place {
    fn of(config: &Config) -> Result<Self, Error> {
        let dtype = config
            .device
            .dtype(config.dtype)
            .map_err(|reason| Error::Broken {
                reason: format!("engine.dtype: {reason}"),
            })?;
        Ok(Self {
            device: config.device.open()?,
            dtype,
        })
    }

    fn format(&self) -> Format {
        match self.dtype {
            Dtype::F32 | Dtype::Auto => Format::F32,
            Dtype::Bf16 => Format::Bf16,
            Dtype::Int8 => Format::Int8,
        }
    }

    /// Bytes of a block of the cache, in all layers.
    fn bytes_per_block(&self, spec: &Spec) -> usize {
        if self.device.is_cpu() {
            return Cpu::bytes_per_block(spec, self.format());
        }
        2 * spec.layers * spec.kv_heads * spec.head_dim * BLOCK * self.tensors().size_in_bytes()
    }

    /// The number format of candle's tensors.
    fn tensors(&self) -> DType {
        if self.dtype == Dtype::F32 {
            DType::F32
        } else {
            DType::BF16
        }
    }

    /// Bytes of memory that the cache may choose from, where the system tells.
    ///
    /// # Errors
    /// [`Error::Broken`] where a GPU has no room for the weights.
    fn room(&self, spec: &Spec) -> Result<Option<usize>, Error> {
        let free = free_memory(&self.device);
        let Some(free) = free.filter(|_| !self.device.is_cpu()) else {
            return Ok(free);
        };
        let shapes = spec.weights().into_iter().map(|(_, shape)| shape);
        let numbers: usize = shapes.map(|s| s.iter().product::<usize>()).sum();
        // A tied embedding is there as the head as well.
        let twice = if spec.tied {
            spec.vocab * spec.hidden
        } else {
            0
        };
        let weights = (numbers + twice) * self.tensors().size_in_bytes();
        match free.checked_sub(weights) {
            Some(room) => Ok(Some(room)),
            None => Err(Error::Broken {
                reason: format!(
                    "engine.device: the model's weights take {weights} bytes in {}, and the GPU has {free} free; give a GPU with more memory, or a smaller model",
                    self.dtype.name()
                ),
            }),
        }
    }

    fn build(
        &self,
        config: &Config,
        spec: &Spec,
        tensors: &mut dyn Tensors,
        limits: &Limits,
    ) -> Result<Built, Error> {
        let failed = |error: candle_core::Error| Error::Broken {
            reason: format!("{}: {error}", config.model.display()),
        };
        if self.device.is_cpu() {
            let threads = config
                .threads
                .unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
            let rows = limits.step_tokens.max(limits.sequences + BLOCK);
            let compute =
                Cpu::new(spec, self.format(), limits.blocks, rows, threads).map_err(failed)?;
            return Ok(Built::Cpu(Box::new(Model::new(compute, spec, tensors)?)));
        }
        let compute = TensorCompute::new(
            spec,
            &self.device,
            self.tensors(),
            limits.blocks,
            limits.context,
        )
        .map_err(failed)?;
        Ok(Built::Tensors(Box::new(Model::new(
            compute, spec, tensors,
        )?)))
    }
}

/// What the cache holds, and how much is done at once.
fn limits(config: &Config, spec: &Spec, context: usize, place: &Place) -> Result<Limits, Error> {
    let sequences = config.concurrency.max(1);
    let each = place.bytes_per_block(spec);
    let longest = context.div_ceil(BLOCK);
    let room = place.room(spec)?;
    let blocks = match config.cache_bytes {
        Some(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX) / each,
        None => {
            let wanted = longest.max(sequences * USUAL_POSITIONS / BLOCK);
            // Half is left: to the rest of the process and of the machine, or on a GPU to what a forward holds on its way.
            room.map_or(wanted, |room| wanted.min(room / 2 / each))
        }
    };
    if blocks == 0 {
        return Err(Error::Broken {
            reason: format!(
                "engine.cache: there is no room for one block of {BLOCK} positions, which takes {each} bytes; give more memory, or a smaller model"
            ),
        });
    }
    Ok(Limits {
        blocks,
        context,
        step_tokens: config.step_tokens,
        sequences,
        drafts: if config.drafts {
            Policy::default()
        } else {
            Policy {
                most: 0,
                ..Policy::default()
            }
        },
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
