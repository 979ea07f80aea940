//! `limn run`

use std::sync::Arc;
use std::time::Duration;

use limn::clock::SystemClock;
use limn::config::{Config, Dtype, Engine as Wanted};
use limn::engine::{Candle, CandleConfig, Engine, OpenAi, OpenAiConfig, Script, Scripted};
use limn::pipeline::{self, Parts, Status, Topics};
use limn::store::Store;
use limn::telemetry;
use tokio::sync::watch;

/// The service: keeps the profiles of its share of the users current, until it is told to stop (Ctrl-C, SIGTERM).
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: super::ConfigFile,
    /// Fold what the input holds now, close what is open then, and end.
    #[arg(long)]
    until_end: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config.load()?;
    telemetry::start(config.log)?;
    let engine = engine(&config.engine)?;
    let store = Arc::new(Store::open(&config.store.room())?);
    if let Some(why) = &store.rebuilt {
        tracing::warn!(
            why,
            "the state folder was torn; the view is built again from the profiles topic"
        );
    }
    let mut flow = pipeline(&config, &store)?;
    flow.stop_at_end = args.until_end;
    let runtime = tokio::runtime::Runtime::new()?;
    let (stop, stopped) = watch::channel(false);
    let (status, shown) = watch::channel(Status::default());
    let parts = Parts {
        engine,
        store: Arc::clone(&store),
        clock: Arc::new(SystemClock),
        status,
        changes: None,
    };
    runtime.spawn(async move {
        told_to_stop().await;
        tracing::info!("stopping: finishing what is under way");
        stop.send_replace(true);
    });
    let result = runtime.block_on(pipeline::run(&flow, &parts, stopped));
    store.flush()?;
    let status = shown.borrow().clone();
    tracing::info!(
        events = status.events_read,
        updates = status.updates_committed,
        dead_lettered = status.dead_lettered,
        "ended"
    );
    Ok(result?)
}

#[cfg(unix)]
async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        },
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}

#[cfg(not(unix))]
async fn told_to_stop() {
    let _ = tokio::signal::ctrl_c().await;
}

/// Opens the model. Blocks.
pub(super) fn engine(wanted: &Wanted) -> anyhow::Result<Arc<dyn Engine>> {
    Ok(match wanted {
        Wanted::Candle(candle) => {
            if candle.tokenizer.is_some() {
                anyhow::bail!(
                    "engine.tokenizer: this version takes the tokenizer that the model brings; leave the key out"
                );
            }
            if !matches!(candle.dtype, Dtype::Auto | Dtype::F32) {
                anyhow::bail!(
                    "engine.dtype: this version computes in f32 only; give \"auto\" or \"f32\""
                );
            }
            Arc::new(Candle::open(&CandleConfig {
                model: candle.model.clone(),
                adapter: candle.adapter.clone(),
                context_tokens: candle.context_tokens,
            })?)
        }
        Wanted::OpenAi(server) => Arc::new(OpenAi::new(OpenAiConfig {
            base_url: server.base_url.clone(),
            model: server.model.clone(),
            api_key: server.api_key.as_ref().map(|key| key.reveal().to_owned()),
            timeout: server.timeout,
            connect_timeout: server.connect_timeout,
            retries: server.retries,
            concurrency: server.concurrency,
            context_tokens: server.context_tokens,
        })?),
        Wanted::Scripted { delay } => {
            let delay = *delay;
            Arc::new(Scripted::with(64, move |_, _| match delay {
                Duration::ZERO => Script::Answer,
                delay => Script::After(delay, Box::new(Script::Answer)),
            }))
        }
    })
}

fn pipeline(config: &Config, store: &Store) -> anyhow::Result<pipeline::Config> {
    let topics = &config.topics;
    Ok(pipeline::Config {
        source: config.source_room(),
        codec: config.source.codec.clone(),
        partitioner: config.source.partitioner,
        window: config.window.clone(),
        summarize: config.summary.clone(),
        commit: config.commit_room(format!("{}-{}", config.source.group, store.id()?)),
        topics: Topics {
            changes: topics.changes.clone(),
            profiles: topics.profiles.clone(),
            checkpoints: topics.checkpoints.clone(),
            dead_letters: topics.dead_letters.clone(),
        },
        commit_interval: config.commit.interval,
        commit_updates: config.commit.max_updates,
        open_bytes: config.limits.open_bytes,
        waiting_bytes: config.limits.waiting_bytes,
        shutdown_timeout: config.shutdown_timeout,
        restore_timeout: config.store.restore_timeout,
        stop_at_end: false,
        max_updates: None,
    })
}
