//! `limn bench engine` and `limn bench score`

use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;
use limn::bench::{self, EngineOptions};
use limn::engine::{self, CandleConfig};

/// The model, and how it is computed.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// A GGUF file, a safetensors file or its folder, or a hub id (hf:OWNER/NAME).
    #[arg(long)]
    pub model: PathBuf,
    /// The folder of a PEFT LoRA adapter.
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// What computes: cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    pub device: engine::Device,
    /// The number format.
    #[arg(long, value_enum, default_value = "auto")]
    pub dtype: Dtype,
    /// Most tokens of prompt and answer.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(128..))]
    pub context_tokens: u32,
    /// Threads that compute [default: one for each processor].
    #[arg(long)]
    pub threads: Option<usize>,
    /// Propose nothing: every token has a pass of its own.
    #[arg(long)]
    pub no_drafts: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Dtype {
    Auto,
    F32,
    Bf16,
    Int8,
}

impl ModelArgs {
    /// As the engine wants it.
    pub fn config(&self, concurrency: usize) -> CandleConfig {
        CandleConfig {
            model: self.model.clone(),
            adapter: self.adapter.clone(),
            device: self.device,
            dtype: match self.dtype {
                Dtype::Auto => engine::Dtype::Auto,
                Dtype::F32 => engine::Dtype::F32,
                Dtype::Bf16 => engine::Dtype::Bf16,
                Dtype::Int8 => engine::Dtype::Int8,
            },
            context_tokens: Some(self.context_tokens),
            concurrency,
            threads: self.threads,
            drafts: !self.no_drafts,
            ..CandleConfig::default()
        }
    }
}

/// The engine alone, on the requests of a file (see `limn bench requests`).
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Requests, a JSON object a line: id, system, user, previous, max_tokens.
    #[arg(long)]
    requests: PathBuf,
    /// Requests at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Write the answers here, a JSON object a line: id, text.
    #[arg(long)]
    outputs: Option<PathBuf>,
    /// Answers of another run, to count those that are the same.
    #[arg(long)]
    compare: Option<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let began = Instant::now();
    let concurrency = usize::from(args.concurrency);
    let options = EngineOptions {
        engine: args.model.config(concurrency),
        requests: args.requests.clone(),
        concurrency,
        outputs: args.outputs.clone(),
        compare: args.compare.clone(),
        began,
    };
    let report = runtime()?.block_on(bench::engine(&options))?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// How likely the model finds the answers of another run: what a number format costs.
#[derive(clap::Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The requests.
    #[arg(long)]
    requests: PathBuf,
    /// Their answers.
    #[arg(long)]
    outputs: PathBuf,
}

pub fn score(args: &ScoreArgs) -> anyhow::Result<()> {
    let score = bench::score(&args.model.config(1), &args.requests, &args.outputs)?;
    println!("{}", serde_json::to_string(&score)?);
    Ok(())
}

/// Two threads do: what computes has its own.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}
