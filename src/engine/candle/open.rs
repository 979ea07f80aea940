//! A model from its files to the thread that owns it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use candle_core::DType;
use tokio::sync::mpsc;

use super::compute::{Compute, Cpu, TensorCompute, Times};
use super::device::{Device, Memory, memory};
use super::draft::Policy;
use super::kernels::{self, Format};
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
    /// On candle's tensors, on a GPU or on a processor without a path.
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

/// Reads and builds the model, for the best that this machine has. Blocks.
pub(super) fn build(config: &Config) -> Result<Ready, Error> {
    build_on(kernels::best(), config)
}

/// The same on a processor whose best path is this one.
fn build_on(path: Option<&'static dyn kernels::Path>, config: &Config) -> Result<Ready, Error> {
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
    let place = Place::of(path, config)?;
    let fingerprint = fingerprint(config, &place, &files)?;
    let context = config
        .context_tokens
        .map_or(spec.context, |wanted| spec.context.min(wanted as usize));
    let limits = limits(config, &spec, context, &place, memory(&place.device))?;
    let model = place.build(config, &spec, tensors.as_mut(), &limits)?;
    Ok(Ready {
        model,
        chat,
        device: config.device,
        dtype: place.dtype,
        limits,
        fingerprint,
    })
}

pub(super) fn open(config: &Config) -> Result<Candle, Error> {
    open_on(kernels::best(), config)
}

/// The same on a processor whose best path is this one; without one candle's operations compute.
pub(super) fn open_on(
    path: Option<&'static dyn kernels::Path>,
    config: &Config,
) -> Result<Candle, Error> {
    let Ready {
        mut model,
        chat,
        device,
        dtype,
        limits,
        fingerprint,
    } = build_on(path, config)?;
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
            reason: format!("starting the model's thread: {e}"),
        })?;
    Ok(Candle {
        description: Description {
            name,
            fingerprint,
            context_tokens: u32::try_from(longest).unwrap_or(u32::MAX),
            bound,
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
    /// The kernels of this crate that compute; `None`: candle's operations do, on a GPU or on a processor that has none of the
    /// vector instructions that there are kernels for.
    path: Option<&'static dyn kernels::Path>,
    dtype: Dtype,
}

impl Place {
    /// On the device that is asked for; `path`: the processor's best.
    fn of(path: Option<&'static dyn kernels::Path>, config: &Config) -> Result<Self, Error> {
        let dtype = config
            .device
            .dtype_with(path.is_some(), config.dtype)
            .map_err(|reason| Error::Broken {
                reason: format!("engine.dtype: {reason}"),
            })?;
        Ok(Self {
            device: config.device.open()?,
            path: path.filter(|_| config.device == Device::Cpu),
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
        if self.path.is_some() {
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

    /// Bytes of the weights, about: what is padded, and what norms and scales take beside it, is little.
    fn weight_bytes(&self, spec: &Spec) -> usize {
        let bytes = |(name, shape): (String, Vec<usize>)| {
            let numbers: usize = shape.iter().product();
            // `Model::new` asks for 16 bits for all others.
            let bears_8 = ["o_proj", "gate_proj", "up_proj"]
                .iter()
                .any(|part| name.contains(part));
            match self.dtype {
                Dtype::Int8 if bears_8 => numbers,
                Dtype::Int8 | Dtype::Bf16 => numbers * 2,
                Dtype::F32 | Dtype::Auto => numbers * 4,
            }
        };
        spec.weights().into_iter().map(bytes).sum()
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
        if let Some(path) = self.path {
            let threads = config
                .threads
                .unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
            let rows = limits.step_tokens.max(limits.sequences + BLOCK);
            let compute = Cpu::new(path, spec, self.format(), limits.blocks, rows, threads)
                .map_err(failed)?;
            return Ok(Built::Cpu(Box::new(Model::new(compute, spec, tensors)?)));
        }
        if self.device.is_cpu() {
            tracing::warn!(
                "this processor has neither AVX2 nor AVX-512: candle's operations compute, which are slower; their threads are RAYON_NUM_THREADS, not engine.threads"
            );
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

/// What the cache holds, and how much is done at once; `memory`: what there is before the weights are read.
fn limits(
    config: &Config,
    spec: &Spec,
    context: usize,
    place: &Place,
    memory: Option<Memory>,
) -> Result<Limits, Error> {
    let sequences = config.concurrency.max(1);
    let each = place.bytes_per_block(spec);
    let weights = place.weight_bytes(spec);
    if let Some(Memory { most, .. }) = memory
        && weights > most
    {
        let dtype = place.dtype.name();
        return Err(Error::Broken {
            reason: format!(
                "engine.model: its weights take {weights} bytes in {dtype} (engine.dtype), and there are {most} of memory on {} within the limits set for this process; give it more, or take a smaller model or format",
                config.device
            ),
        });
    }
    let longest = context.div_ceil(BLOCK);
    let blocks = match config.cache_bytes {
        Some(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX) / each,
        None => {
            let wanted = longest.max(sequences * USUAL_POSITIONS / BLOCK);
            // What is free is an estimate: one usual request is tried even where nothing seems to be left.
            let least = longest.min(USUAL_POSITIONS / BLOCK);
            memory.map_or(wanted, |memory| {
                // Half is left: to the rest of the process and of the machine, or on a GPU to what a forward holds on its way.
                let room = memory.free.saturating_sub(weights) / 2;
                wanted.min((room / each).max(least))
            })
        }
    };
    if blocks == 0 {
        return Err(Error::Broken {
            reason: format!(
                "engine.cache: there is no room for one block of {BLOCK} positions, which takes {each} bytes; make it larger"
            ),
        });
    }
    let cache = blocks.saturating_mul(each);
    // The system may well promise it, and end the process when it is used.
    if let Some(Memory { most, .. }) = memory
        && config.cache_bytes.is_some()
        && weights.saturating_add(cache) > most
    {
        return Err(Error::Broken {
            reason: format!(
                "engine.cache: {cache} bytes beside {weights} of weights cannot be had: there are {most} of memory on {} within the limits set for this process; make it smaller",
                config.device
            ),
        });
    }
    if let Some(Memory { free, .. }) = memory
        && weights.saturating_add(cache) > free
    {
        tracing::warn!(
            weights,
            cache,
            free,
            "the model's weights and its cache (engine.cache) may not fit into the memory that is free: the system may end this process when they fill"
        );
    }
    Ok(Limits {
        blocks,
        context,
        step_tokens: config.step_tokens,
        sequences,
        drafts: drafts(config, place),
    })
}

/// What is drafted where this computes.
fn drafts(config: &Config, place: &Place) -> Policy {
    let policy = Policy::default();
    Policy {
        most: if config.drafts { policy.most } else { 0 },
        knee_rows: place.path.map_or(policy.knee_rows, |path| path.knee_rows()),
        ..policy
    }
}

/// See [`Description::fingerprint`].
fn fingerprint(config: &Config, place: &Place, files: &[PathBuf]) -> Result<String, Error> {
    let mut all = blake3::Hasher::new();
    all.update(CODE_VERSION.as_bytes());
    all.update(config.device.kind(place.path.is_some()).as_bytes());
    all.update(place.dtype.name().as_bytes());
    if place.dtype == Dtype::Int8 && place.path.is_some_and(|path| path.int8_by_16()) {
        all.update(b"by 16");
    }
    if place.dtype != Dtype::F32 && place.path.is_some_and(|path| path.rounds_to_bf16()) {
        all.update(b"rounded to bf16");
    }
    all.update(&[u8::from(config.thinking)]);
    for file in files {
        all.update(file_hash(file)?.as_bytes());
    }
    Ok(all.finalize().to_hex().to_string())
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

#[cfg(test)]
mod tests;
