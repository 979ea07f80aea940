//! The loop that owns the state of the assigned partitions, from one start to the next fault or stop.

mod assignments;
mod events;
mod gauges;
mod updates;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::batch::{Key, Pending, Sink};
use super::ingest::Incoming;
use super::partition::Partition;
use super::restore::Restored;
use super::{Config, Error, Parts, Phase, stopped};
use crate::codec::{self, proto};
use crate::profile::Marker;
use crate::source::{Ends, Kafka, Message, Paused};
use crate::summarize::{self, Done, Summarizer};

/// How often time is looked at.
const TICK: Duration = Duration::from_millis(50);
/// A transaction that grows beyond so many bytes is committed at once, and nothing more is read until it is.
const BATCH_BYTES: usize = 32 << 20;

/// One finished update task.
struct Finished {
    key: Key,
    epoch: u64,
    profile: Option<Arc<proto::ProfileState>>,
    result: Result<Done, summarize::Error>,
}

pub(super) struct Flow<'a> {
    config: &'a Config,
    parts: &'a Parts,
    topic: Arc<str>,
    window: Arc<crate::window::Config>,
    source: Kafka<Incoming>,
    ends: Ends,
    sink: Sink,
    summarizer: Arc<Summarizer>,
    partitions: HashMap<i32, Partition>,
    /// Who waits for the engine, the oldest unfolded event first, so that the committed offsets move on.
    ready: BTreeSet<(u64, i32, Arc<str>)>,
    updates: JoinSet<Finished>,
    restores: JoinSet<(u64, Result<Vec<Restored>, Error>)>,
    /// Set when the partitions under restore are given up.
    cancelled: Arc<AtomicBool>,
    pending: Pending,
    /// States that are newer than the view: made, but not committed and applied yet.
    uncommitted: HashMap<Key, Arc<proto::ProfileState>>,
    epoch: u64,
    sequence: u64,
    waiting_bytes: usize,
    begun: u64,
    paused: bool,
    /// When the gauges were set.
    shown: Option<Instant>,
    drain_until: Option<Instant>,
}

impl<'a> Flow<'a> {
    pub(super) fn new(
        config: &'a Config,
        parts: &'a Parts,
        source: Kafka<Incoming>,
        ends: Ends,
        sink: Sink,
        summarizer: Arc<Summarizer>,
    ) -> Self {
        Self {
            config,
            parts,
            topic: config.source.topic.as_str().into(),
            window: Arc::new(config.window.clone()),
            source,
            ends,
            sink,
            summarizer,
            partitions: HashMap::new(),
            ready: BTreeSet::new(),
            updates: JoinSet::new(),
            restores: JoinSet::new(),
            cancelled: Arc::default(),
            pending: Pending::default(),
            uncommitted: HashMap::new(),
            epoch: 0,
            sequence: 0,
            waiting_bytes: 0,
            begun: 0,
            paused: false,
            shown: None,
            drain_until: None,
        }
    }

    pub(super) async fn drive(
        &mut self,
        mut messages: mpsc::Receiver<Message<Incoming>>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), Error> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.begin_updates()?;
            self.commit_if_due()?;
            if self.finished() {
                return Ok(());
            }
            // A batch that is full waits for the one before it. That one ends by itself, whatever the group does meanwhile.
            let room = self.pending.bytes < BATCH_BYTES;
            tokio::select! {
                () = stopped(stop), if self.drain_until.is_none() => self.drain(),
                Some(update) = self.updates.join_next(), if !self.updates.is_empty() => {
                    self.updated(update)?;
                    while let Some(update) = self.updates.try_join_next() {
                        self.updated(update)?;
                    }
                }
                committed = self.sink.committed(), if self.sink.busy() => self.committed(committed?),
                Some(restored) = self.restores.join_next(), if !self.restores.is_empty() => {
                    let (epoch, restored) = restored.map_err(|e| Error::Thread(e.to_string()))?;
                    self.restored(epoch, restored?);
                }
                message = messages.recv(), if room => match message {
                    Some(message) => self.told(message).await?,
                    None => return Err(Error::Thread("the polling thread is gone".to_owned())),
                },
                _ = tick.tick() => {
                    // Whoever met a fault of the folder, a reader of profiles too: it heals by beginning anew.
                    self.parts.store.check()?;
                    self.ticked();
                }
            }
        }
    }

    /// Gives the source back, with nothing left that works for this flow.
    pub(super) async fn end(mut self) -> Kafka<Incoming> {
        self.updates.shutdown().await;
        self.give_up_restores().await;
        if self.sink.busy() {
            // Its outcome, whatever it is, must be in Kafka and the view before anybody reads them again.
            let _ = self.sink.committed().await;
        }
        self.source
    }

    async fn told(&mut self, message: Message<Incoming>) -> Result<(), Error> {
        match message {
            Message::Records(records) => {
                if self.drain_until.is_none() {
                    self.records(records)?;
                }
            }
            Message::End {
                partition,
                position,
            } => {
                if self.drain_until.is_none() {
                    self.at_end(partition, position);
                }
            }
            Message::Assigned(assigned) => self.assigned(assigned),
            Message::Revoked {
                partitions,
                lost,
                done,
            } => self.revoked(partitions, lost, done).await?,
            Message::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn profile(&self, key: &Key) -> Result<Option<Arc<proto::ProfileState>>, Error> {
        if let Some(state) = self.uncommitted.get(key) {
            return Ok(Some(Arc::clone(state)));
        }
        match self.parts.store.view.get(key.0, &key.1)? {
            Some(bytes) => Ok(Some(Arc::new(codec::decode_state(&bytes)?))),
            None => Ok(None),
        }
    }

    /// Gives the user a place among those that wait for the engine, or takes it away.
    fn stand(&mut self, number: i32, user: Arc<str>) {
        let Some(partition) = self.partitions.get_mut(&number) else {
            return;
        };
        let rank = partition.rank(&user);
        let Some(queue) = partition.users.get_mut(&user) else {
            return;
        };
        let rank = rank.filter(|_| queue.running.is_none());
        if queue.rank == rank {
            return;
        }
        if let Some(old) = queue.rank {
            self.ready.remove(&(old, number, Arc::clone(&user)));
        }
        queue.rank = rank;
        if let Some(rank) = rank {
            self.ready.insert((rank, number, user));
        }
    }

    fn ticked(&mut self) {
        let now = self.parts.clock.now_ms();
        let mut closed = Vec::new();
        let numbers: Vec<i32> = self.partitions.keys().copied().collect();
        for number in numbers {
            if let Some(partition) = self
                .partitions
                .get_mut(&number)
                .filter(|_| self.drain_until.is_none())
            {
                if self.paused {
                    partition.windows.not_at_end();
                }
                partition.windows.tick(now, &mut closed);
            }
            self.enqueue(number, &mut closed);
        }
        self.show(now);
    }

    /// Back-pressure: the input rests while too much waits for the engine. The source goes on polling.
    fn pause_or_resume(&mut self) {
        let most = self.config.waiting_bytes;
        let paused = if self.paused {
            self.waiting_bytes > most / 2
        } else {
            self.waiting_bytes > most
        };
        if paused != self.paused && self.drain_until.is_none() {
            self.paused = paused;
            self.source
                .pause(if paused { Paused::Yes } else { Paused::No });
        }
    }

    fn drain(&mut self) {
        self.drain_until = Some(Instant::now() + self.config.shutdown_timeout);
        self.source.pause(Paused::Yes);
        self.parts.status.send_modify(|s| s.phase = Phase::Draining);
    }

    /// Whether a bounded input is read and folded.
    fn idle(&self) -> bool {
        self.config.stop_at_end
            && !self.partitions.is_empty()
            && self.partitions.values().all(|p| p.ended)
            && self.restores.is_empty()
            && self.ready.is_empty()
            && self.updates.is_empty()
    }

    fn finished(&mut self) -> bool {
        if let Some(until) = self.drain_until
            && Instant::now() >= until
        {
            // What is under way is left to the next start; the journal keeps what the model finishes.
            self.updates.abort_all();
        }
        let done = self.idle() || self.drain_until.is_some() && self.updates.is_empty();
        done && self.pending.is_empty() && !self.sink.busy()
    }
}

/// The profile's fold marker, as far as it speaks of this input partition.
fn marker(
    profile: Option<&proto::ProfileState>,
    topic: &str,
    partition: i32,
) -> Result<Marker, codec::Error> {
    match profile.and_then(|p| p.marker.as_ref()) {
        Some(m) if m.topic == topic && m.partition == partition => codec::marker(m),
        _ => Ok(Marker::default()),
    }
}
