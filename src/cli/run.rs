//! `limn run`

use std::sync::Arc;
use std::time::Duration;

use limn::clock::SystemClock;
use limn::codec;
use limn::config::{self, Config, Engine as Wanted};
use limn::engine::{self, Candle, Engine, OpenAi, OpenAiConfig, Scripted};
use limn::metrics::Exposition;
use limn::pipeline::{self, Parts, Phase, Status, Topics};
use limn::serve::{Server, Sources, Token};
use limn::store::Store;
use limn::telemetry;
use tokio::sync::{oneshot, watch};

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
    let metrics = Exposition::install()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let (stop, stopped) = watch::channel(false);
    // Whoever is told to stop while a large folder is opened or the model loads stops cleanly: so this stands before them.
    runtime.block_on(on_stop(stop))?;
    let store = Arc::new(Store::open(&config.store.room())?);
    if let Some(why) = &store.rebuilt {
        tracing::warn!(
            why,
            "the state folder was torn; the view is built again from the profiles topic"
        );
    }
    let id = format!("{}-{}", config.source.group, store.id()?);
    let mut flow = pipeline(&config, id);
    flow.stop_at_end = args.until_end;
    let (status, shown) = watch::channel(Status::default());
    let token = config.http.token.as_ref().map(|t| Token::new(t.reveal()));
    let sources = sources(&store, &shown, &metrics);
    let server = runtime.block_on(Server::bind(config.http.listen, token, sources))?;
    tracing::info!(address = %server.address(), "HTTP: /healthz, /readyz, /metrics, /v1/profiles/{{user}}");
    let (end, ended) = oneshot::channel::<()>();
    let serving = runtime.spawn(server.run(async {
        let _ = ended.await;
    }));
    runtime.spawn(async move {
        let mut every = tokio::time::interval(UPKEEP);
        loop {
            every.tick().await;
            metrics.upkeep();
        }
    });
    // Loading a model takes its time; meanwhile health is answered, and readiness says why not yet.
    let Some(engine) = runtime.block_on(loaded(&config.engine, stopped.clone()))? else {
        tracing::info!("ended before the model was loaded");
        // The thread that loads it ends with the process.
        runtime.shutdown_background();
        return Ok(());
    };
    let parts = Parts {
        engine,
        store: Arc::clone(&store),
        clock: Arc::new(SystemClock),
        status,
        changes: None,
    };
    let result = runtime.block_on(pipeline::run(&flow, &parts, stopped));
    // Gone either way: nobody waits for it any more, or it was stopped by a fault of its own.
    let _ = end.send(());
    let _ = runtime.block_on(serving);
    // A call of librdkafka that hangs must not keep the process: dropping a runtime waits for such calls.
    runtime.shutdown_background();
    if let Err(error) = store.flush() {
        tracing::warn!(%error, "the state folder is not written through: the next start reads more from Kafka");
    }
    let status = shown.borrow().clone();
    tracing::info!(
        events = status.events_read,
        updates = status.updates_committed,
        dead_lettered = status.dead_lettered,
        "ended"
    );
    Ok(result?)
}

/// Between two foldings of observations into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);

/// Where HTTP's answers come from.
fn sources(store: &Arc<Store>, status: &watch::Receiver<Status>, metrics: &Exposition) -> Sources {
    let (store, owned) = (Arc::clone(store), status.clone());
    // Only of the partitions at work here: what the view has of others may be out of date.
    let profiles = move |user: &str| -> Result<Option<Vec<serde_json::Value>>, String> {
        let partitions = Arc::clone(&owned.borrow().partitions);
        for &partition in &*partitions {
            let kept = store.view.versions(partition, user);
            let mut versions = Vec::new();
            for bytes in kept.map_err(|e| e.to_string())? {
                let state = codec::decode_state(&bytes).map_err(|e| e.to_string())?;
                versions.push(serde_json::to_value(state).map_err(|e| e.to_string())?);
            }
            if !versions.is_empty() {
                versions.reverse();
                return Ok(Some(versions));
            }
        }
        Ok(None)
    };
    let (ready, metrics) = (status.clone(), metrics.clone());
    let (running, alive) = (status.clone(), status.clone());
    Sources {
        profiles: Arc::new(profiles),
        // The process ends with a pipeline that has failed for good, and this answer with it.
        alive: Arc::new(move || alive.borrow().alive()),
        ready: Arc::new(move || {
            let status = ready.borrow();
            let doing = match status.phase {
                Phase::Running => return Ok(()),
                Phase::Starting => "starting: loading the model, or waiting for Kafka",
                Phase::Restoring => "reading profiles back",
                Phase::Draining => "stopping",
            };
            let mut said = match &status.waiting_for {
                Some(why) => format!("starting: {why}"),
                None => doing.to_owned(),
            };
            if let Some(fault) = &status.fault {
                said = format!("{said}; began anew after: {fault}");
            }
            Err(said)
        }),
        metrics: Arc::new(move || metrics.render(running.borrow().phase == Phase::Running)),
    }
}

/// Begins to listen for Ctrl-C and SIGTERM, which until then end the process at once.
async fn on_stop(stop: watch::Sender<bool>) -> std::io::Result<()> {
    let mut signals = Signals::new()?;
    tokio::spawn(async move {
        signals.next().await;
        tracing::info!("stopping: finishing what is under way");
        stop.send_replace(true);
        signals.next().await;
        tracing::warn!("told to stop once more: ending at once");
        std::process::exit(1);
    });
    Ok(())
}

/// Ctrl-C, and what a service manager sends.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    #[cfg(not(unix))]
    fn new() -> std::io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        drop(tokio::signal::ctrl_c().await);
    }
}

/// The model; `None` where the process is to stop before it is there.
async fn loaded(
    wanted: &Wanted,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<Option<Arc<dyn Engine>>> {
    let wanted = wanted.clone();
    let loading = tokio::task::spawn_blocking(move || engine(&wanted));
    tokio::select! {
        engine = loading => Ok(Some(engine??)),
        _ = stop.wait_for(|&stop| stop) => Ok(None),
    }
}

/// Opens the model. Blocks.
pub(super) fn engine(wanted: &Wanted) -> anyhow::Result<Arc<dyn Engine>> {
    #[cfg(target_os = "linux")]
    if !matches!(wanted, Wanted::Candle(_)) {
        crate::allocator::keep_freed();
    }
    Ok(match wanted {
        Wanted::Candle(candle) => Arc::new(Candle::open(candle)?),
        Wanted::OpenAi(server) => Arc::new(openai(server)?),
        Wanted::Scripted { delay, fault } => Arc::new(Scripted::faulty(64, *delay, *fault)),
    })
}

/// The client of the model's server.
pub(super) fn openai(server: &config::OpenAi) -> Result<OpenAi, engine::Error> {
    OpenAi::new(OpenAiConfig {
        base_url: server.base_url.clone(),
        model: server.model.clone(),
        api_key: server.api_key.as_ref().map(|key| key.reveal().to_owned()),
        timeout: server.timeout,
        connect_timeout: server.connect_timeout,
        retries: server.retries,
        concurrency: server.concurrency,
        context_tokens: server.context_tokens,
    })
}

/// The pipeline's part of the configuration.
pub(super) fn pipeline(config: &Config, transactional_id: String) -> pipeline::Config {
    let topics = &config.topics;
    pipeline::Config {
        source: config.source_room(),
        codec: config.source.codec.clone(),
        partitioner: config.source.partitioner,
        window: config.window.clone(),
        summarize: config.summary.clone(),
        commit: config.commit_room(transactional_id),
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
        checkpoint_runs: pipeline::CHECKPOINT_RUNS,
        shutdown_timeout: config.shutdown_timeout,
        restore_timeout: config.store.restore_timeout,
        waits_for_open: config.commit.waits_for_open,
        stop_at_end: false,
        max_updates: None,
    }
}
