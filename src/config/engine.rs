//! `[engine]`: the model. These mirror the engine room's own configuration.

use std::path::PathBuf;
use std::time::Duration;

use super::reader::Section;
use super::secret::Secret;
use super::source::bytes;
use crate::engine::{CandleConfig, Device, Dtype, Fault};

/// Which engine answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    /// A model in this process.
    Candle(CandleConfig),
    /// A server that speaks the OpenAI protocol.
    OpenAi(OpenAi),
    /// No model: the summary lists what was folded.
    Scripted {
        /// How long each answer takes.
        delay: Duration,
        /// What every so-manieth does instead.
        fault: Option<(Fault, u64)>,
    },
}

/// A server that speaks the OpenAI protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenAi {
    /// The address before `/chat/completions`.
    pub base_url: String,
    /// The model's name there.
    pub model: String,
    /// The key, where the server wants one.
    pub api_key: Option<Secret>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How often a failed request is sent again at once.
    pub retries: u32,
    /// Requests at the same time.
    pub concurrency: usize,
    /// Most tokens of prompt and answer together.
    pub context_tokens: u32,
}

const CANDLE: &str = "kind = \"candle\"";
const OPENAI: &str = "kind = \"openai\"";

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Candle,
    OpenAi,
    Scripted,
}

pub fn read(mut engine: Section<'_>, variable: &dyn Fn(&str) -> Option<String>) -> Engine {
    let kind = engine.choice(
        "kind",
        &[
            ("candle", Kind::Candle),
            ("openai", Kind::OpenAi),
            ("scripted", Kind::Scripted),
        ],
    );
    if kind != Kind::Candle {
        let keys = [
            "adapter",
            "tokenizer",
            "thinking",
            "device",
            "dtype",
            "cache",
            "step_tokens",
            "threads",
            "drafts",
        ];
        engine.other_kind(&keys, CANDLE);
    }
    if kind != Kind::OpenAi {
        let keys = [
            "base_url",
            "api_key",
            "timeout",
            "connect_timeout",
            "retries",
        ];
        engine.other_kind(&keys, OPENAI);
    }
    if kind == Kind::Scripted {
        engine.other_kind(
            &["model", "context_tokens", "concurrency"],
            "kind = \"candle\" or \"openai\"",
        );
    } else {
        engine.other_kind(&["delay", "fault", "fault_every"], "kind = \"scripted\"");
    }
    let model = match kind {
        Kind::Candle => engine.required_text(
            "model",
            "the path of a GGUF file, or of a safetensors file or its folder, or a hub id such as hf:Qwen/Qwen3-8B",
        ),
        Kind::OpenAi => engine.required_text("model", "the model's name on the server"),
        Kind::Scripted => engine.optional_text("model").unwrap_or_default(),
    };
    let context_tokens = engine.integer_or_off("context_tokens", 128u32..=4_000_000);
    let concurrency = bytes(engine.integer("concurrency", 16u64, 1..=4096));
    let (device, dtype) = device(&mut engine);
    let candle = CandleConfig {
        model: model.clone().into(),
        adapter: path_or_off(
            &mut engine,
            "adapter",
            "the path of a PEFT LoRA adapter's folder",
        ),
        tokenizer: path_or_off(&mut engine, "tokenizer", "the path of a tokenizer.json"),
        thinking: engine.choice("thinking", &[("off", false), ("on", true)]),
        device,
        dtype,
        context_tokens,
        concurrency,
        cache_bytes: engine.size_or_auto("cache", (1 << 20)..=(1 << 42)),
        step_tokens: bytes(engine.integer("step_tokens", 512u64, 64..=65_536)),
        threads: engine.integer_or_auto("threads", 1u64..=1024).map(bytes),
        drafts: engine.choice("drafts", &[("on", true), ("off", false)]),
    };
    let second = Duration::from_secs(1);
    let openai = OpenAi {
        base_url: base_url(&mut engine),
        model,
        api_key: engine.secret("api_key", variable),
        timeout: engine.duration("timeout", 120 * second, second..=3600 * second),
        connect_timeout: engine.duration(
            "connect_timeout",
            10 * second,
            second / 10..=600 * second,
        ),
        retries: engine.integer("retries", 2u32, 0..=20),
        concurrency,
        context_tokens: context_tokens.unwrap_or(8192),
    };
    let delay = engine.duration("delay", Duration::ZERO, Duration::ZERO..=600 * second);
    let faults = Fault::ALL.map(|fault| (fault.name(), Some(fault)));
    let fault = engine.choice("fault", &[&[("off", None)], &faults[..]].concat());
    let every = engine.integer("fault_every", 10u64, 1..=1_000_000);
    match kind {
        Kind::Candle => Engine::Candle(candle),
        Kind::OpenAi => Engine::OpenAi(openai),
        Kind::Scripted => Engine::Scripted {
            delay,
            fault: fault.map(|fault| (fault, every)),
        },
    }
}

/// What computes, and the number format.
fn device(engine: &mut Section<'_>) -> (Device, Dtype) {
    let [device_place, dtype_place] = ["device", "dtype"].map(|key| engine.place(key));
    let device = engine
        .checked_text("device", "cpu", Device::WANTED, |t| {
            t.parse::<Device>().is_ok()
        })
        .parse()
        .unwrap_or(Device::Cpu);
    let dtype = engine.choice(
        "dtype",
        &[
            ("auto", Dtype::Auto),
            ("f32", Dtype::F32),
            ("bf16", Dtype::Bf16),
            ("int8", Dtype::Int8),
        ],
    );
    if let Err(reason) = device.built() {
        engine.fault_unshown("device", device_place, reason.to_owned());
    }
    if let Err(reason) = device.dtype(dtype) {
        engine.fault_unshown("dtype", dtype_place, reason.to_owned());
    }
    (device, dtype)
}

/// Only the model itself is fetched from the hub.
fn path_or_off(engine: &mut Section<'_>, key: &str, what: &str) -> Option<PathBuf> {
    let wants = format!("wants {what} on this machine; only engine.model is fetched from the hub");
    engine
        .text_or_off(key, None, &wants, |text| {
            !text.trim().is_empty() && !text.starts_with("hf:")
        })
        .map(PathBuf::from)
}

/// The value of a wrong one is not shown: people put passwords into addresses.
fn base_url(engine: &mut Section<'_>) -> String {
    const DEFAULT: &str = "http://127.0.0.1:8000/v1";
    let place = engine.place("base_url");
    let given = engine.text("base_url", DEFAULT);
    let sound = reqwest::Url::parse(&given).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
    });
    if !sound {
        engine.fault_unshown(
            "base_url",
            place,
            format!("wants an http or https address such as {DEFAULT:?}, without user, password or query; the key goes into engine.api_key"),
        );
    }
    given.trim_end_matches('/').to_owned()
}

impl Engine {
    /// Most tokens of prompt and answer together, where the configuration says so.
    #[must_use]
    pub fn context_tokens(&self) -> Option<u32> {
        match self {
            Self::Candle(candle) => candle.context_tokens,
            Self::OpenAi(openai) => Some(openai.context_tokens),
            Self::Scripted { .. } => None,
        }
    }
}
