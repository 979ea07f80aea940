//! Builds the stages, sink first, and runs them until they are told to stop; after a fault it builds them anew from Kafka.

mod batch;
mod flow;
mod ingest;
mod partition;
mod restore;
mod room;
mod status;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::clock::Clock;
use crate::codec::{self, Decoder, Partitioner, proto};
use crate::commit::{self, Committer};
use crate::engine::Engine;
use crate::metrics;
use crate::source::{self, Ends, Kafka};
use crate::store::{self, Store};
use crate::summarize::{self, Summarizer, TemplateError};
use crate::window;
use flow::Flow;
use ingest::Ingest;
use room::Limits;
pub use status::{Phase, Status};

/// The topics that are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    /// Change events.
    pub changes: String,
    /// Profile states, compacted.
    pub profiles: String,
    /// Checkpoints, compacted.
    pub checkpoints: String,
    /// Events that are not folded.
    pub dead_letters: String,
}

impl Topics {
    /// Those with as many partitions as the input.
    fn as_input(&self) -> [&str; 3] {
        [&self.profiles, &self.checkpoints, &self.dead_letters].map(String::as_str)
    }
}

/// How the stages work together.
#[derive(Debug, Clone)]
pub struct Config {
    /// The input.
    pub source: source::Config,
    /// What its records hold.
    pub codec: codec::Config,
    /// How its producers choose partitions.
    pub partitioner: Partitioner,
    /// How events are grouped.
    pub window: window::Config,
    /// How updates are made.
    pub summarize: summarize::Config,
    /// The transactional producer.
    pub commit: commit::Config,
    /// The output topics.
    pub topics: Topics,
    /// What was made waits for its transaction at most so long …
    pub commit_interval: Duration,
    /// … or until so many updates are in it.
    pub commit_updates: usize,
    /// Open windows are closed, the oldest first, when their events have more bytes.
    pub open_bytes: usize,
    /// The input is paused when closed windows that wait have more bytes.
    pub waiting_bytes: usize,
    /// Windows that hold a partition's restart offset back are closed when its checkpoint would list more runs of
    /// offsets than this; at twice as many nothing more is read until some are behind the restart offset.
    pub checkpoint_runs: usize,
    /// How long the updates under way may take when the service stops.
    pub shutdown_timeout: Duration,
    /// How long Kafka may take to give the view back, and to answer at the start.
    pub restore_timeout: Duration,
    /// A start waits until no transaction that stands open on the changes or dead letters is open any more.
    pub waits_for_open: bool,
    /// Stop when everything that the input held at the start is settled; what is open then closes. Where other members of
    /// the group have partitions of it, that is waited for.
    pub stop_at_end: bool,
    /// Stop after so many updates.
    pub max_updates: Option<u64>,
}

/// What [`Config::checkpoint_runs`] is in a service: three times as many, the most that can come together, are some
/// 200 KiB in a record, and a record of a megabyte is taken by any broker that is not told otherwise.
pub const CHECKPOINT_RUNS: usize = 16_384;

/// Why the service ends, or begins anew.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The input.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// The transaction.
    #[error(transparent)]
    Commit(#[from] commit::Error),
    /// The state folder.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// An update.
    #[error(transparent)]
    Summarize(#[from] summarize::Error),
    /// A template of the configuration.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A record of limn's own topics cannot be read.
    #[error(transparent)]
    Codec(#[from] codec::Error),
    /// A record of limn's own topics is not this instance's.
    #[error("{place}: {reason}")]
    Foreign {
        /// Topic, partition, offset.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The partition counts of topics differ.
    #[error(
        "{topic} has {found} partitions, but the input {input} has {wanted}; {}",
        crate::topics::OTHER_COUNT
    )]
    Partitions {
        /// The output topic.
        topic: String,
        /// Its partitions.
        found: i32,
        /// The input topic.
        input: String,
        /// The input's partitions.
        wanted: i32,
    },
    /// The input has got partitions while it was read.
    #[error(
        "the input {input} has {found} partitions now, and had {wanted} when limn began to read it: producers put users into other partitions than their profiles are in. \
         The number cannot change under limn: make a new input with {found} partitions, output topics and a group of its own, and load the history (docs/operations.md)"
    )]
    Grown {
        /// The input topic.
        input: String,
        /// Its partitions now.
        found: i32,
        /// Its partitions before.
        wanted: i32,
    },
    /// The group gave the partitions to others without asking.
    #[error(
        "the group has given partitions {0:?} to others: this instance was away for longer than session.timeout.ms or max.poll.interval.ms"
    )]
    Lost(Vec<i32>),
    /// The service was told to stop, and something did not come to its end.
    #[error(
        "not ended within shutdown.timeout and commit.transaction_timeout: Kafka does not answer; what is not committed is read again at the next start"
    )]
    Overdue,
    /// A thread or task is gone.
    #[error("a part of the pipeline has failed: {0}")]
    Thread(String),
}

impl Error {
    /// Whether building everything anew from Kafka may help. What is wrong with the configuration, the topics or the
    /// input needs a hand.
    fn passes(&self) -> bool {
        match self {
            Self::Source(error) => matches!(error, source::Error::Kafka { .. }),
            Self::Commit(error) => !matches!(error, commit::Error::TooLarge { .. }),
            Self::Store(error) => matches!(error, store::Error::Torn(_) | store::Error::Io { .. }),
            Self::Lost(_) | Self::Thread(_) => true,
            Self::Summarize(summarize::Error::Journal(_)) => true,
            _ => false,
        }
    }

    /// Whether Kafka has told for sure that nothing was committed, as it does in the course of rebalances.
    fn is_usual(&self) -> bool {
        matches!(
            self,
            Self::Lost(_)
                | Self::Commit(commit::Error::Fenced { .. } | commit::Error::Aborted { .. })
        )
    }
}

/// What the service needs besides its configuration.
pub struct Parts {
    /// The model.
    pub engine: Arc<dyn Engine>,
    /// The state folder.
    pub store: Arc<Store>,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Where the status is shown.
    pub status: watch::Sender<Status>,
    /// Where change events are shown after they are committed.
    pub changes: Option<mpsc::UnboundedSender<Commit>>,
}

/// A transaction that is committed.
#[derive(Debug)]
pub struct Commit {
    /// Its change events.
    pub changes: Vec<proto::ProfileChange>,
    /// How long the transaction took.
    pub took: Duration,
}

/// First wait before everything is built anew; it doubles up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(20);

/// Runs until `stop` turns true (what is under way is then finished within the time limit), until the end of a bounded
/// input, or until a fault that needs a hand.
///
/// Partitions that are lost and transactions that are aborted while it stops are no faults: what is not committed is the
/// next start's.
///
/// Once `stop` is true it returns within `shutdown_timeout` and the transaction's own time-out, whatever Kafka does. What
/// hangs then is left on its threads: shut the runtime down in the background, and end the process.
///
/// Any fault but an aborted transaction leaves the outcome to Kafka: producer and consumer are destroyed, and everything
/// that is not committed is read again. The journal keeps the model calls.
///
/// # Errors
/// See [`Error`]: nothing is lost then, and a later start goes on.
pub async fn run(
    config: &Config,
    parts: &Parts,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Error> {
    let mut backoff = BACKOFF;
    let mut limits = Limits::default();
    let mut bounds = None;
    let mut deadline = Deadline {
        stop: stop.clone(),
        limit: config.shutdown_timeout + config.commit.transaction_timeout,
        until: None,
    };
    loop {
        let began = Instant::now();
        let error = match attempt(
            config,
            parts,
            &mut stop,
            &mut deadline,
            &limits,
            &mut bounds,
        )
        .await
        {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // An update that makes too large a record is refused when it is made again.
        let learned = limits.learn(&error, &config.topics);
        if !(error.passes() || learned) {
            return Err(error);
        }
        if *stop.borrow() {
            if !(learned || error.is_usual()) {
                return Err(error);
            }
            // Beginning anew is the next start's, as it would have been without the fault.
            tracing::warn!(%error, "stopped before all that was under way was finished; what is not committed is read again at the next start");
            return Ok(());
        }
        tracing::error!(%error, "beginning anew from what is committed");
        deadline.keep(renew(&parts.store)).await?;
        ::metrics::counter!(metrics::RESTARTS).increment(1);
        parts.status.send_modify(|s| {
            s.phase = Phase::Starting;
            s.waiting_for = None;
            s.partitions = Arc::default();
            s.turned = None;
            s.fault = Some(error.to_string());
        });
        if began.elapsed() > BACKOFF_MAX {
            backoff = BACKOFF;
        }
        if learned {
            // Nothing to wait for: it will not come again.
            continue;
        }
        let pause = backoff.mul_f64(0.5 + fastrand::f64() / 2.0);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stopped(&mut stop) => return Ok(()),
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Behind a fault of the state folder, whoever met it: opens it anew, and what was torn is read back from Kafka by the
/// next attempt. One that cannot be opened now is tried again behind that attempt, which fails.
async fn renew(store: &Arc<Store>) {
    let store = Arc::clone(store);
    match tokio::task::spawn_blocking(move || store.renew()).await {
        Ok(Ok(None)) => {}
        Ok(Ok(Some(why))) => tracing::warn!(
            why,
            "the state folder was torn and is begun anew; the view is read back from the profiles topic"
        ),
        Ok(Err(error)) => tracing::error!(%error, "the state folder cannot be opened anew"),
        Err(error) => tracing::error!(%error, "the state folder cannot be opened anew"),
    }
}

/// Waits until the service is to stop. A sender that is gone can say so no more: then it runs on.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|&stop| stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// When a service that was told to stop must have ended.
struct Deadline {
    stop: watch::Receiver<bool>,
    limit: Duration,
    until: Option<tokio::time::Instant>,
}

impl Deadline {
    /// Waits until it has passed. Cancel safe.
    async fn passed(&mut self) {
        let until = match self.until {
            Some(until) => until,
            None => {
                stopped(&mut self.stop).await;
                *self.until.insert(tokio::time::Instant::now() + self.limit)
            }
        };
        tokio::time::sleep_until(until).await;
    }

    /// What the work gives, if it ends in time.
    async fn keep<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Error> {
        tokio::select! {
            done = work => Ok(done),
            () = self.passed() => Err(Error::Overdue),
        }
    }
}

async fn attempt(
    config: &Config,
    parts: &Parts,
    stop: &mut watch::Receiver<bool>,
    deadline: &mut Deadline,
    limits: &Limits,
    bounds: &mut Option<Bounds>,
) -> Result<(), Error> {
    summarize::check(&config.summarize, parts.engine.as_ref())?;
    let decoder = Decoder::new(config.codec.clone());
    let summarizer = Arc::new(Summarizer::new(
        config.summarize.clone(),
        decoder.clone(),
        Arc::clone(&parts.engine),
        Arc::clone(&parts.store),
    )?);
    // librdkafka's calls block; waiting for a stop meanwhile leaves the thread to end by itself.
    let connect = {
        let (config, status, known) = (config.clone(), parts.status.clone(), bounds.clone());
        let (store, stopping) = (Arc::clone(&parts.store), stop.clone());
        tokio::task::spawn_blocking(move || connect(&config, &store, &status, &stopping, known))
    };
    let (committer, partitions, found) = tokio::select! {
        // A stop first: for it the connecting gives up, with an error.
        biased;
        () = stopped(stop) => return Ok(()),
        connected = connect => connected.map_err(|e| Error::Thread(e.to_string()))??,
    };
    let bounds = bounds.insert(found);
    let sink = batch::Sink::start(
        committer,
        Arc::clone(&parts.store),
        config.topics.clone(),
        Arc::clone(&parts.clock),
    )?;
    let (to, messages) = mpsc::channel(8);
    let ingest = Ingest::new(config, decoder, Arc::clone(&summarizer), partitions);
    let source = Kafka::start(&config.source, to, move |p, o, t, r| {
        ingest.take(p, o, t, r)
    })?;
    let ends = Ends::start(&config.source, &config.topics.as_input())?;
    let mut flow = Flow::new(
        config,
        parts,
        source,
        ends,
        sink,
        summarizer,
        (partitions, bounds.clone()),
        limits.clone(),
    );
    let result = deadline.keep(flow.drive(messages, stop)).await;
    flow.publish();
    let rested = deadline.keep(flow.rest()).await;
    parts.status.send_modify(|s| s.turned = None);
    // Leaving the group blocks. It is done however late it is, on a thread that nobody has to wait for.
    let source = flow.end();
    let leave = tokio::task::spawn_blocking(move || drop(source));
    let left = deadline.keep(leave).await;
    result??;
    rested?;
    left?.map_err(|e| Error::Thread(e.to_string()))
}

/// How often it is said that Kafka does not answer.
const SAY_EVERY: Duration = Duration::from_secs(30);

/// Where each partition of a bounded input begins and ends; empty where the input has no bounds.
type Bounds = BTreeMap<i32, (i64, i64)>;

/// Waits for the brokers, checks the topics and makes the producer. Blocks.
fn connect(
    config: &Config,
    store: &Store,
    status: &watch::Sender<Status>,
    stop: &watch::Receiver<bool>,
    known: Option<Bounds>,
) -> Result<(Committer, i32, Bounds), Error> {
    let wait = config.restore_timeout;
    let mut said: Option<Instant> = None;
    let cluster = source::reach(&config.source, wait, |error| {
        if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
            tracing::warn!(%error, "Kafka does not answer; still trying");
            said = Some(Instant::now());
        }
        status.send_modify(|s| s.waiting_for = Some(error.to_string()));
        !*stop.borrow()
    })?;
    if said.is_some() {
        tracing::info!("Kafka answers");
        status.send_modify(|s| s.waiting_for = None);
    }
    let (properties, group) = (&config.source.properties, &config.source.group);
    let input = config.source.topic.as_str();
    let changes = config.topics.changes.as_str();
    let outputs = config.topics.as_input();
    let [profiles, checkpoints, dead] = outputs;
    let topics = [input, changes, profiles, checkpoints, dead];
    let [wanted, changed, found @ ..] = source::partitions(properties, group, topics, wait)?;
    for (topic, found) in outputs.into_iter().zip(found) {
        if found != wanted {
            let (topic, input) = (topic.to_owned(), input.to_owned());
            return Err(Error::Partitions {
                topic,
                found,
                input,
                wanted,
            });
        }
    }
    store.view.note_history()?;
    // A position in one topic says nothing about another, be it of another name or on another cluster.
    if let Some(cluster) = cluster {
        let now = format!("{profiles} and {checkpoints} on cluster {cluster}");
        if let Some(before) = store.view.filled_from(&now)? {
            tracing::warn!(
                before,
                now,
                "the state folder was filled from other topics; the view is built again from these"
            );
        }
    }
    let bounds = match known {
        Some(bounds) => bounds,
        None if config.stop_at_end => source::bounds(properties, group, input, wait)?,
        None => Bounds::new(),
    };
    let committer = Committer::connect(&config.commit, wait)?;
    // A former transaction of this producer is over now. Where records of one stand open all the same, its outcome has never
    // reached the partition (docs/reliability.md, what a lone broker forgets), and the next transaction there would decide
    // it, one way or the other. A restore asks the same of the other two topics.
    if config.waits_for_open {
        let written = [(changes, changed), (dead, wanted)];
        let why = format!("waiting for transactions that stand open on {changes} or {dead}");
        status.send_modify(|s| s.waiting_for = Some(why));
        source::settled(properties, group, &written, wait, &|| *stop.borrow())?;
        status.send_modify(|s| s.waiting_for = None);
    }
    Ok((committer, wanted, bounds))
}
