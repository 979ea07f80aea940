//! The stream without a model's cost: fill a topic, fold it, read the profiles back, and say how fast that was.

mod ceiling;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{mpsc, watch};

use super::Input;
use super::input::mapping;
use crate::clock::SystemClock;
use crate::codec::{Format, Partitioner};
use crate::commit;
use crate::demo::peak_memory_bytes;
use crate::engine::Engine;
use crate::load;
use crate::pipeline::{self, Commit, Parts, Phase, Status};
use crate::source::{self, Counted, Start};
use crate::store::{self, Store};
use crate::topics::{self, Admin, Finding};

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// The events.
    pub input: Input,
    /// Partitions of the input.
    pub partitions: i32,
    /// How often it is folded, each time by a group of its own into topics of its own; the last time is what is reported.
    /// None is once.
    pub runs: u32,
    /// How often the profiles are read back, each time without a state folder and by turns with a reader that does nothing else: one
    /// such reading differs from the next by a fifth and more. The medians are reported. None is once.
    pub restores: u32,
    /// Whether it is measured too what a program reaches that computes nothing ([`Report::ceiling_events_per_second`]).
    pub ceiling: bool,
    /// The pipeline as it is configured; its input, its topics and its group are replaced by the bench's own.
    pub pipeline: pipeline::Config,
    /// The output topics' properties; their names are replaced.
    pub topics: topics::Config,
    /// The state folder as it is configured; the bench's own is made inside it and deleted afterwards.
    pub store: store::Config,
    /// How long the brokers may take to answer.
    pub timeout: Duration,
}

/// What was measured, on a topic that was filled before.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The version that was measured.
    pub limn: &'static str,
    /// Events folded, or given up.
    pub events: u64,
    /// Of these the ones given up: those of a user whose summary, which lists them all, was larger than its topic takes (`--zipf`).
    pub dead_lettered: u64,
    /// Users that have a profile.
    pub users: u64,
    /// Profile versions committed.
    pub updates: u64,
    /// Kafka transactions.
    pub transactions: u64,
    /// From when the partitions were ready to be read to the last commit.
    pub seconds: f64,
    /// Events folded and committed a second.
    pub events_per_second: f64,
    /// The same of the first of several runs, for which limn's memory is still to be had from the system, and which a broker
    /// that has just started has not compiled its code for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_per_second_of_first_run: Option<f64>,
    /// Profile versions committed a second.
    pub updates_per_second: f64,
    /// Half of the transactions took at most so long …
    pub commit_p50_seconds: f64,
    /// … and 99 of 100 so long.
    pub commit_p99_seconds: f64,
    /// Most memory that the process had resident while it folded, what an earlier run has left to the allocator included;
    /// where the system does not tell, nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// Most windows that were open at the same time.
    pub open_windows: u64,
    /// Their memory, by window.
    pub bytes_per_open_window: u64,
    /// From the assignment to an instance without a state folder until all profiles were read back, connecting for that included; the
    /// median, as of the two figures below.
    pub restore_seconds: f64,
    /// Records of the profiles topic that were read back a second; before Kafka has compacted it they are the updates, in the
    /// end the users.
    pub restore_records_per_second: f64,
    /// The same topic through librdkafka, doing nothing else.
    pub raw_profiles_records_per_second: f64,
    /// What a restore reaches of the speed of the reader that went just before it; the median of these pairs. A machine is now
    /// faster and now slower for seconds at a time, for both: the medians of each can be of different times.
    pub restore_to_raw: f64,
    /// The same input through librdkafka, doing nothing else.
    pub raw_consume_events_per_second: f64,
    /// The same, while the records that limn has written, as far as Kafka has not compacted them, are written again, without
    /// offsets, in transactions of `commit.interval`, and nothing is computed: what any program with these outputs could reach at the best.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceiling_events_per_second: Option<f64>,
    /// The same with what limn's design cannot do without: user and time of each event are looked for and its bytes kept by user, and
    /// each profile state is put into a view, once its transaction is committed and while the next one is written. Windows, prompts,
    /// answers, and the records, cost nothing, and what is fetched before the first record counts for nothing either.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceiling_with_state_events_per_second: Option<f64>,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Topics could not be made.
    #[error("{0}")]
    Topics(Finding),
    /// The input could not be written.
    #[error(transparent)]
    Load(#[from] load::Error),
    /// The records that limn wrote could not be written again.
    #[error(transparent)]
    Commit(#[from] commit::Error),
    /// The input could not be read.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// The pipeline.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// The state folder.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The state folder could not be deleted.
    #[error("deleting {folder}: {source}")]
    Folder {
        /// The folder.
        folder: std::path::PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// What was folded is not what was written.
    #[error(
        "{written} events were written, but {folded} folded and {dead} given up: the figures would be worth nothing"
    )]
    Unfolded {
        /// Events written.
        written: u64,
        /// Events folded.
        folded: u64,
        /// Events given up.
        dead: u64,
    },
}

/// Measures. The topics are the bench's own, and deleted at the end.
///
/// # Errors
/// See [`Error`].
pub async fn stream(
    options: &Options,
    engine: Arc<dyn Engine>,
    mut tell: impl FnMut(&str),
) -> Result<Report, Error> {
    let name = format!("limn-bench-{:08x}", fastrand::u32(..));
    let admin =
        Admin::new(&options.pipeline.commit.properties, options.timeout).map_err(Error::Topics)?;
    let copies = options.topics.replication_factor;
    admin
        .create_input(&name, options.partitions, copies)
        .await
        .map_err(Error::Topics)?;
    let mut names = vec![name.clone()];
    let result = measure(options, &name, engine, &admin, &mut names, &mut tell).await;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    if let Err(finding) = admin.delete(&names).await {
        tell(&format!(
            "the bench's topics {names:?} are still there: {finding}"
        ));
    }
    let folder = options.store.folder.join(&name);
    if folder.exists() {
        remove(&folder)?;
    }
    result
}

fn remove(folder: &Path) -> Result<(), Error> {
    std::fs::remove_dir_all(folder).map_err(|source| Error::Folder {
        folder: folder.to_owned(),
        source,
    })
}

/// The options with the bench's own names in them, others in each run.
fn own(options: &Options, input: &str, run: u32) -> (Options, topics::Config) {
    let mut options = options.clone();
    let name = format!("{input}.{run}");
    let topics = topics::Config {
        input: input.to_owned(),
        changes: format!("{name}.changes"),
        profiles: format!("{name}.profiles"),
        checkpoints: format!("{name}.checkpoints"),
        dead_letters: format!("{name}.dead-letters"),
        ..options.topics.clone()
    };
    let pipeline = &mut options.pipeline;
    pipeline.source.topic = input.to_owned();
    pipeline.source.group.clone_from(&name);
    pipeline.source.start = Start::Earliest;
    pipeline.codec.format = Format::Json(Box::new(mapping()));
    pipeline.partitioner = Partitioner::Murmur2;
    pipeline.commit.transactional_id.clone_from(&name);
    pipeline.commit.input_topic = input.to_owned();
    pipeline.topics = pipeline::Topics {
        changes: topics.changes.clone(),
        profiles: topics.profiles.clone(),
        checkpoints: topics.checkpoints.clone(),
        dead_letters: topics.dead_letters.clone(),
    };
    // None of them is too late: what would be a dead letter is no work.
    let disorder = Duration::from_millis(options.input.disorder_ms);
    pipeline.window.out_of_orderness = pipeline.window.out_of_orderness.max(disorder);
    pipeline.stop_at_end = true;
    pipeline.max_updates = None;
    options.store.folder = options.store.folder.join(input).join(run.to_string());
    (options, topics)
}

#[allow(clippy::cast_precision_loss)] // rates
async fn measure(
    options: &Options,
    name: &str,
    engine: Arc<dyn Engine>,
    admin: &Admin,
    names: &mut Vec<String>,
    tell: &mut impl FnMut(&str),
) -> Result<Report, Error> {
    tell(&format!(
        "writing {} events of {} users to {name}",
        options.input.events, options.input.users
    ));
    let written = fill(options, name)?;
    let mut first = None;
    let runs = options.runs.max(1);
    for run in 1..runs {
        let (options, topics) = own(options, name, run);
        names.extend(outputs(&topics));
        tell(&format!("folding them, run {run} of {runs}"));
        let folded = fold_all(&options, &topics, Arc::clone(&engine), admin, written, tell).await?;
        first.get_or_insert(written as f64 / folded.seconds);
        remove(&options.store.folder)?;
        // Brokers that delete nothing are told of at the end.
        let outputs: Vec<&str> = names[1..].iter().map(String::as_str).collect();
        if admin.delete(&outputs).await.is_ok() {
            names.truncate(1);
        }
    }
    let (options, topics) = own(options, name, runs);
    names.extend(outputs(&topics));
    // Now and not at the beginning, so that the broker is as warm for it as for the run that counts.
    tell("reading them, and nothing else");
    let input = raw(&options, name)?;
    tell(&format!("folding them, run {runs} of {runs}"));
    let folded = fold_all(&options, &topics, Arc::clone(&engine), admin, written, tell).await?;
    let rate = |counted: &Counted| counted.records as f64 / counted.seconds;
    let (mut restore_seconds, mut restored, mut read) = (Vec::new(), Vec::new(), Vec::new());
    let mut pairs = Vec::new();
    let restores = options.restores.max(1);
    for restore in 1..=restores {
        tell("reading the profiles, and nothing else");
        let profiles = raw(&options, &topics.profiles)?;
        tell(&format!(
            "reading the profiles back, {restore} of {restores}"
        ));
        remove(&options.store.folder)?;
        let seconds = fold(&options, Arc::clone(&engine), tell)
            .await?
            .restore_seconds;
        restore_seconds.push(seconds);
        restored.push(profiles.records as f64 / seconds);
        read.push(rate(&profiles));
        pairs.push(profiles.seconds / seconds);
    }
    let (mut ceiling_alone, mut ceiling_with_state) = (None, None);
    if options.ceiling {
        tell("reading the events and writing limn's records again, and nothing else");
        let records = ceiling::recorded(&options)?;
        let (alone, topics) = own(&options, name, runs + 1);
        names.extend(outputs(&topics));
        make(admin, &topics).await?;
        let read = || raw(&alone, name);
        ceiling_alone = Some(ceiling::rate_of(&alone, &records, read, None)?);
        tell("the same, with the events kept by user and the states in a view");
        let (with, topics) = own(&options, name, runs + 2);
        names.extend(outputs(&topics));
        make(admin, &topics).await?;
        remove(&options.store.folder)?;
        let store = Store::open(&options.store)?;
        let read = || ceiling::keep(&with);
        ceiling_with_state = Some(ceiling::rate_of(&with, &records, read, Some(&store))?);
    }
    let mut commits = folded.commits;
    commits.sort_unstable();
    let quantile = |share: f64| {
        let at = ((commits.len() as f64 * share).ceil() as usize).saturating_sub(1);
        commits.get(at).map_or(0.0, Duration::as_secs_f64)
    };
    let seconds = folded.seconds;
    Ok(Report {
        limn: env!("CARGO_PKG_VERSION"),
        events: written,
        dead_lettered: folded.status.dead_lettered,
        users: folded.users,
        updates: folded.status.updates_committed,
        transactions: folded.status.commits,
        seconds,
        events_per_second: written as f64 / seconds,
        events_per_second_of_first_run: first,
        updates_per_second: folded.status.updates_committed as f64 / seconds,
        commit_p50_seconds: quantile(0.5),
        commit_p99_seconds: quantile(0.99),
        peak_memory_bytes: folded.peak_memory_bytes,
        open_windows: folded.open_windows,
        bytes_per_open_window: folded.open_bytes / folded.open_windows.max(1),
        restore_seconds: median(restore_seconds),
        restore_records_per_second: median(restored),
        raw_profiles_records_per_second: median(read),
        restore_to_raw: median(pairs),
        raw_consume_events_per_second: rate(&input),
        ceiling_events_per_second: ceiling_alone,
        ceiling_with_state_events_per_second: ceiling_with_state,
    })
}

/// The middle of some figures, of which there is one at least.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    let (below, above) = (figures[(figures.len() - 1) / 2], figures[figures.len() / 2]);
    f64::midpoint(below, above)
}

/// The topics that a run writes.
fn outputs(topics: &topics::Config) -> impl Iterator<Item = String> {
    let names = topics.names().into_iter();
    names
        .filter(|name| *name != topics.input)
        .map(str::to_owned)
}

async fn make(admin: &Admin, topics: &topics::Config) -> Result<(), Error> {
    let plan = admin.plan(topics).await;
    let refused = admin.create(topics, &plan).await;
    let finding = plan.findings.into_iter().chain(refused).next();
    finding.map_or(Ok(()), |finding| Err(Error::Topics(finding)))
}

/// Makes a run's topics, and folds all that was written.
async fn fold_all(
    options: &Options,
    topics: &topics::Config,
    engine: Arc<dyn Engine>,
    admin: &Admin,
    written: u64,
    tell: &mut impl FnMut(&str),
) -> Result<Folded, Error> {
    make(admin, topics).await?;
    let folded = fold(options, engine, tell).await?;
    let (done, dead) = (folded.status.events_committed, folded.status.dead_lettered);
    if done + dead != written {
        return Err(Error::Unfolded {
            written,
            folded: done,
            dead,
        });
    }
    Ok(folded)
}

fn raw(options: &Options, topic: &str) -> Result<Counted, Error> {
    let source = &options.pipeline.source;
    let counted = source::count(&source.properties, &source.group, topic, options.timeout)?;
    Ok(counted)
}

fn fill(options: &Options, topic: &str) -> Result<u64, Error> {
    let config = load::Config {
        properties: options.pipeline.commit.properties.clone(),
        topic: topic.to_owned(),
        partitioner: load::Partitioner::Murmur2,
        event_timestamps: false,
        skip_bad: false,
        timeout: options.timeout,
    };
    let summary = load::load(&config, options.input.rows().map(Ok), |_| ())?;
    Ok(summary.delivered)
}

/// One run of the pipeline to the end of the input.
struct Folded {
    status: Status,
    commits: Vec<Duration>,
    users: u64,
    seconds: f64,
    restore_seconds: f64,
    peak_memory_bytes: Option<u64>,
    open_windows: u64,
    open_bytes: u64,
}

/// How often it is told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

async fn fold(
    options: &Options,
    engine: Arc<dyn Engine>,
    tell: &mut impl FnMut(&str),
) -> Result<Folded, Error> {
    let store = Arc::new(Store::open(&options.store)?);
    let (status, mut shown) = watch::channel(Status::default());
    let (changes, mut committed) = mpsc::unbounded_channel();
    let (_run, stop) = watch::channel(false);
    let parts = Parts {
        engine,
        store,
        clock: Arc::new(SystemClock),
        status,
        changes: Some(changes),
    };
    let config = options.pipeline.clone();
    forget_peak();
    let began = Instant::now();
    let running = tokio::spawn(async move { pipeline::run(&config, &parts, stop).await });
    let mut folded = Folded {
        status: Status::default(),
        commits: Vec::new(),
        users: 0,
        seconds: 0.0,
        restore_seconds: 0.0,
        peak_memory_bytes: None,
        open_windows: 0,
        open_bytes: 0,
    };
    let (mut assigned, mut ready) = (None, None);
    let (mut told, mut last) = (began, began);
    loop {
        tokio::select! {
            commit = committed.recv() => match commit {
                None => break,
                Some(Commit { changes, took }) => {
                    last = Instant::now();
                    folded.commits.push(took);
                    folded.users += changes.iter().filter(|c| c.version == 1).count() as u64;
                }
            },
            Ok(()) = shown.changed() => {
                let status = shown.borrow_and_update().clone();
                if status.phase == Phase::Restoring {
                    assigned.get_or_insert_with(Instant::now);
                }
                if status.phase == Phase::Running && !status.partitions.is_empty() {
                    ready.get_or_insert_with(Instant::now);
                }
                if status.windows_open > folded.open_windows {
                    folded.open_windows = status.windows_open;
                    folded.open_bytes = status.windows_open_bytes;
                }
                if told.elapsed() > TELL_EVERY {
                    told = Instant::now();
                    tell(&format!("{} events folded", status.events_committed));
                }
            }
        }
    }
    let ready = ready.unwrap_or(began);
    folded.seconds = last.saturating_duration_since(ready).as_secs_f64();
    folded.restore_seconds = (ready - assigned.unwrap_or(began)).as_secs_f64();
    folded.peak_memory_bytes = peak_memory_bytes();
    match running.await {
        Ok(result) => result?,
        Err(error) => return Err(pipeline::Error::Thread(error.to_string()).into()),
    }
    folded.status = shown.borrow().clone();
    Ok(folded)
}

/// Begins the peak of resident memory anew, where the system can (Linux); else it is that of the whole process.
fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    #[allow(clippy::float_cmp)] // all of them are exact
    fn the_median_is_the_middle_one_or_between_the_two_in_the_middle() {
        assert_eq!(median(vec![5.0]), 5.0);
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![8.0, 1.0, 4.0, 2.0]), 3.0);
    }
}
