//! The demo: the pipeline as it is, between a broker in this process and real people's film ratings.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::broker::Broker;
use super::show::{Progress, Show};
use super::{Summary, form, movielens, peak_memory_bytes};
use crate::clock::SystemClock;
use crate::codec::{self, proto};
use crate::engine::Engine;
use crate::load;
use crate::pipeline::{self, Config, Parts, Status, Topics, stopped};
use crate::store::{self, Applied, Store, ViewBatch};

/// What a demo is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whose ratings: so many of the hundred people that the adapter was not trained on.
    pub users: usize,
    /// Stop after so many updates.
    pub max_updates: Option<u64>,
    /// The pipeline as config/demo.toml has it; the broker's address is put in.
    pub pipeline: Config,
    /// Where and how the state is kept; a later start goes on from it.
    pub store: store::Config,
    /// Where `ml-100k.inter` and `ml-100k.item` lie.
    pub data: PathBuf,
    /// Finish what is under way and end after so long.
    pub time_limit: Duration,
}

/// Why there is no demo.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ratings.
    #[error(transparent)]
    Data(#[from] movielens::Error),
    /// The broker in this process.
    #[error("the broker in this process: {0}")]
    Broker(#[from] rdkafka::error::KafkaError),
    /// Writing the input.
    #[error(transparent)]
    Load(#[from] load::Error),
    /// The state folder.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A record in it.
    #[error(transparent)]
    Codec(#[from] codec::Error),
    /// The pipeline.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// The record of what former starts loaded.
    #[error("{path}: {reason}: delete the folder, or give another one (--folder)")]
    Former {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The output.
    #[error("writing the output: {0}")]
    Output(#[from] io::Error),
    /// A task is gone.
    #[error("a part of the demo has failed: {0}")]
    Task(String),
}

const PARTITIONS: i32 = 4;
const EVENTS_PER_USER: usize = 24;
const LOADS: &str = "demo.json";
const TELL_EVERY: Duration = Duration::from_millis(200);
/// What the starts on a folder loaded, in order. The broker forgets everything: loading the same again gives every event
/// the offset that it had, so that what the folder knows of offsets stays true.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Loads {
    format: u32,
    /// Up to which user each start loaded.
    users: Vec<usize>,
}

/// Runs the demo until everything is folded, `stop` turns true, or the time is over.
///
/// # Errors
/// See [`Error`].
pub async fn run<W: Write>(
    options: &Options,
    engine: Arc<dyn Engine>,
    show: &mut Show<W>,
    stop: watch::Receiver<bool>,
) -> Result<Summary, Error> {
    let began = Instant::now();
    let store = Arc::new(Store::open(&options.store)?);
    let topics = &options.pipeline.topics;
    let broker = Broker::start(
        &[
            &options.pipeline.source.topic,
            &topics.changes,
            &topics.profiles,
            &topics.checkpoints,
            &topics.dead_letters,
        ],
        PARTITIONS,
    )?;
    if let Err(error) = give_back(&broker, &store, topics) {
        // The folder is torn somewhere. Here nothing else knows the profiles: they are made again, from the journal or anew.
        if store.renew()?.is_none() {
            return Err(error);
        }
        give_back(&broker, &store, topics)?;
    }
    let loaded = load_all(&broker, options)?;
    let config = on_broker(&broker, options);

    let (status, mut shown) = watch::channel(Status::default());
    let (changes, mut committed) = mpsc::unbounded_channel();
    let (halt, halted) = watch::channel(false);
    let parts = Parts {
        engine,
        store: Arc::clone(&store),
        clock: Arc::new(SystemClock),
        status,
        changes: Some(changes),
    };
    let pipeline = tokio::spawn(async move { pipeline::run(&config, &parts, halted).await });
    let mut told = Told::default();
    let mut stop = stop;
    let over = tokio::time::sleep_until((began + options.time_limit).into());
    tokio::pin!(over);
    let mut tick = tokio::time::interval(TELL_EVERY);
    let mut output = Ok(());
    loop {
        tokio::select! {
            commit = committed.recv() => match commit {
                // All senders gone: the pipeline has ended.
                None => break,
                Some(commit) => for change in commit.changes {
                    told.take(&change);
                    if output.is_ok() {
                        output = show.change(&change);
                    }
                }
            },
            _ = tick.tick() => {
                let progress = told.progress(&shown.borrow_and_update(), loaded, began);
                if output.is_ok() {
                    output = show.progress(&progress);
                }
            }
            () = stopped(&mut stop), if !*halt.borrow() => { halt.send_replace(true); }
            () = &mut over, if !*halt.borrow() => { halt.send_replace(true); }
        }
        if output.is_err() {
            // Nobody reads any more.
            halt.send_replace(true);
        }
    }
    pipeline.await.map_err(|e| Error::Task(e.to_string()))??;
    output?;
    store.flush()?;
    let status = shown.borrow().clone();
    summary(&store, options, &status, &told, began)
}

/// What was committed by this start.
#[derive(Default)]
struct Told {
    updates: u64,
    events: u64,
    first: Option<Instant>,
    /// Updates whose summary is in the adapter's form.
    good: u64,
    versions: BTreeMap<String, u64>,
}

impl Told {
    fn take(&mut self, change: &proto::ProfileChange) {
        self.updates += 1;
        self.good += u64::from(form::in_form(&change.after));
        self.first.get_or_insert_with(Instant::now);
        self.events += change.window.as_ref().map_or(0, |w| u64::from(w.events));
        self.versions.insert(change.user_id.clone(), change.version);
    }

    #[allow(clippy::cast_precision_loss)]
    fn progress(&self, status: &Status, total: u64, began: Instant) -> Progress {
        let seconds = began.elapsed().as_secs_f64();
        let rate = self.updates as f64 / seconds.max(1e-9);
        let settled = status.events_committed + status.dead_lettered + status.skipped;
        let left = (settled > status.skipped && total > settled).then(|| {
            Duration::from_secs_f64(
                seconds * (total - settled) as f64 / (settled - status.skipped) as f64,
            )
        });
        Progress {
            events_read: status.events_read,
            events_total: Some(total),
            windows_closed: status.windows_closed,
            updates_done: self.updates,
            updates_waiting: status.waiting,
            updates_per_second: rate,
            time_left: left,
        }
    }
}

/// Gives the new broker what the folder knows of the old one's topics, and the folder the new positions.
fn give_back(broker: &Broker, store: &Store, topics: &Topics) -> Result<(), Error> {
    let mut batch = ViewBatch::default();
    let mut records = Vec::new();
    let at_ms = crate::clock::Clock::now_ms(&SystemClock);
    for partition in 0..PARTITIONS {
        let mut offset = 0;
        for state in store.view.states(partition) {
            let state = state?;
            let user = codec::decode_state(&state)?.user_id;
            records.push((
                topics.profiles.as_str(),
                partition,
                user.into_bytes(),
                state,
            ));
            offset += 1;
        }
        batch.positions.push((partition, Applied { offset, at_ms }));
        if let Some((_, checkpoint)) = store.view.checkpoint(partition)? {
            let key = partition.to_string().into_bytes();
            records.push((
                topics.checkpoints.as_str(),
                partition,
                key,
                checkpoint.clone(),
            ));
            batch.checkpoints.push((partition, 1, checkpoint));
        }
    }
    broker.publish(records.into_iter())?;
    store.view.apply(&batch)?;
    // The new broker's topics hold what the folder holds, though its cluster is another.
    store.view.forget_origin()?;
    Ok(())
}

/// Loads what former starts loaded, and what this one adds. Returns how many events there are.
fn load_all(broker: &Broker, options: &Options) -> Result<u64, Error> {
    let path = options.store.folder.join(LOADS);
    let mut loads = former(&path)?;
    if loads.users.last().is_none_or(|&last| options.users > last) {
        loads.users.push(options.users);
        // Before the first event: a start that is cut off leaves no event that a later one would not load again.
        let text = serde_json::to_string(&loads).map_err(io::Error::from)?;
        fs::write(&path, text)?;
    }
    let mut sent = 0;
    let mut before = 0;
    for &users in &loads.users {
        let known = &movielens::HELD_OUT[..before.min(movielens::HELD_OUT.len())];
        let events = movielens::read(&options.data, users, EVENTS_PER_USER)?;
        let rows = events
            .iter()
            .filter(|e| !known.contains(&e.user))
            .map(|e| Ok(e.row()));
        let config = load::Config {
            properties: broker.properties(),
            topic: options.pipeline.source.topic.clone(),
            partitioner: load::Partitioner::Murmur2,
            event_timestamps: false,
            skip_bad: false,
            timeout: Duration::from_secs(30),
        };
        sent += load::load(&config, rows, |_| {})?.delivered;
        before = users;
    }
    Ok(sent)
}

fn former(path: &Path) -> Result<Loads, Error> {
    let fail = |reason: String| Error::Former {
        path: path.to_owned(),
        reason,
    };
    match fs::read(path) {
        Ok(text) => {
            let loads: Loads = serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))?;
            if loads.format > codec::FORMAT {
                return Err(fail(format!("format {} is of a newer limn", loads.format)));
            }
            Ok(loads)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Loads {
            format: codec::FORMAT,
            users: Vec::new(),
        }),
        Err(error) => Err(fail(error.to_string())),
    }
}

/// The pipeline as it is configured, on this process's broker.
fn on_broker(broker: &Broker, options: &Options) -> Config {
    let mut config = options.pipeline.clone();
    config.source.properties = broker.properties();
    config.commit.properties = broker.properties();
    config.stop_at_end = true;
    config.max_updates = options.max_updates;
    config
}

#[allow(clippy::cast_precision_loss)]
fn summary(
    store: &Store,
    options: &Options,
    status: &Status,
    told: &Told,
    began: Instant,
) -> Result<Summary, Error> {
    let (mut users, mut versions) = (0, 0);
    for partition in 0..PARTITIONS {
        for state in store.view.states(partition) {
            let state = codec::decode_state(&state?)?;
            users += 1;
            versions += state.version;
        }
    }
    let busy = told.first.map_or(0.0, |_| began.elapsed().as_secs_f64());
    let per_second = |n: u64| if busy > 0.0 { n as f64 / busy } else { 0.0 };
    let example = told.versions.iter().max_by_key(|(_, version)| **version);
    Ok(Summary {
        users,
        events: told.events,
        updates: told.updates,
        versions,
        refused: status.refused,
        journal_hits: status.from_journal,
        updates_per_second: per_second(told.updates),
        tokens_per_second: per_second(status.output_tokens),
        in_form: (told.updates > 0).then_some((told.good, told.updates)),
        peak_memory_bytes: peak_memory_bytes(),
        elapsed: began.elapsed(),
        folder: options.store.folder.clone(),
        program: std::env::args().next().unwrap_or_else(|| "limn".to_owned()),
        example_user: example.map(|(user, _)| user.clone()),
    })
}
