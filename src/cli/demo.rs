//! `limn demo`

use std::io::{IsTerminal, stderr, stdout};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use limn::config::{Config, Engine};
use limn::demo::show::{Mode, Show};
use limn::demo::{self, movielens};
use tokio::sync::watch;

/// See real people's film profiles being written and rewritten: the whole pipeline in one process, with nothing else installed.
///
/// The model and the ratings are fetched by scripts/demo.sh (or scripts/fetch-model.sh) first.
#[derive(clap::Args)]
pub struct Args {
    /// How many people, of the hundred that the adapter was not trained on.
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u16).range(1..=100))]
    users: u16,
    /// Stop after so many updates.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    max_updates: Option<u64>,
    /// Where the state is kept; a second start on the same folder goes on.
    #[arg(long, default_value = "limn-demo")]
    folder: PathBuf,
    /// Print the change events as JSON lines.
    #[arg(long)]
    json: bool,
    /// The model, a GGUF file [default: what scripts/fetch-model.sh fetched].
    #[arg(long)]
    model: Option<PathBuf>,
    /// The folder of its adapter.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/adapters/movielens"), hide_default_value = true)]
    adapter: PathBuf,
    /// The folder of the ratings [default: what scripts/fetch-model.sh fetched].
    #[arg(long)]
    data: Option<PathBuf>,
}

/// All but the broker, the paths and the folder.
pub(super) const CONFIG: &str = include_str!("../../config/demo.toml");

/// The demo ends by itself before five minutes are over: what is under way then is finished first.
const TIME_LIMIT: Duration = Duration::from_secs(270);

pub fn run(args: &Args) -> anyhow::Result<()> {
    let missing = "there is no home folder to look in: set LIMN_CACHE";
    let data = args
        .data
        .clone()
        .or_else(movielens::default_folder)
        .context(missing)?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => data
            .with_file_name("models")
            .join("SmolLM2-135M-Instruct.Q4_1.gguf"),
    };
    if !model.exists() {
        anyhow::bail!(
            "{} is missing: run scripts/fetch-model.sh, or name a model (--model)",
            model.display()
        );
    }
    eprintln!("reading the model …");
    let mut config = Config::parse(CONFIG, super::environment())?;
    config.store.folder.clone_from(&args.folder);
    let Engine::Candle(engine) = &mut config.engine else {
        anyhow::bail!("engine.kind: the demo shows a model in this process; leave the key out");
    };
    engine.model = model;
    engine.adapter = Some(args.adapter.clone());
    let engine = super::run::engine(&config.engine)?;
    let options = demo::Options {
        users: usize::from(args.users),
        max_updates: args.max_updates,
        pipeline: super::run::pipeline(&config, config.source.group.clone()),
        store: config.store.room(),
        data,
        time_limit: TIME_LIMIT,
    };
    let mode = if args.json { Mode::Json } else { Mode::Human };
    let terminal = stdout().is_terminal() && stderr().is_terminal();
    let mut show = Show::new(mode, terminal, stdout());
    let runtime = tokio::runtime::Runtime::new()?;
    let (stop, stopped) = watch::channel(false);
    runtime.spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            eprintln!("finishing what is under way; once more to end at once");
            stop.send_replace(true);
        }
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(130);
        }
    });
    let summary = runtime.block_on(demo::run(&options, engine, &mut show, stopped))?;
    show.summary(&summary)?;
    Ok(())
}
