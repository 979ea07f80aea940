//! `limn bench requests`

use std::io::{BufWriter, stdout};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use limn::bench::{self, Making};
use limn::config::Config;
use limn::demo::movielens;
use limn::engine::Candle;

use super::engine::{ModelArgs, runtime};

/// Requests as the pipeline makes them, for `limn bench engine`: ratings of MovieLens through the demo's windows and
/// prompts, each behind the profile that the model itself wrote before.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// How many requests.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests: u32,
    /// Of how many people; each window of six of their ratings is one request.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..=100))]
    users: u16,
    /// Ratings of each.
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..))]
    events_per_user: u32,
    /// The folder of the ratings [default: what scripts/fetch-model.sh fetched].
    #[arg(long)]
    data: Option<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let data = args
        .data
        .clone()
        .or_else(movielens::default_folder)
        .context("there is no home folder to look in: set LIMN_CACHE")?;
    let config = Config::parse(crate::cli::demo::CONFIG, [])?;
    let making = Making {
        data,
        users: usize::from(args.users),
        events_per_user: usize::try_from(args.events_per_user)?,
        requests: usize::try_from(args.requests)?,
        codec: config.source.codec.clone(),
        window: config.window.clone(),
        summary: config.summary.clone(),
    };
    let engine = Arc::new(Candle::open(&args.model.config(16))?);
    runtime()?.block_on(bench::requests(
        &making,
        engine,
        BufWriter::new(stdout().lock()),
    ))?;
    Ok(())
}
