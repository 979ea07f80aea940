//! The loop that owns the state of the assigned partitions, from one start to the next fault or stop.

mod assignments;
mod events;
mod gauges;
mod others;
mod updates;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ahash::HashMap;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::batch::{Key, Pending, Sink};
use super::ingest::Incoming;
use super::partition::Partition;
use super::restore::Restored;
use super::room::Limits;
use super::status::Tally;
use super::{Bounds, Config, Error, Parts, Phase, Status, stopped};
use crate::codec::{self, Decoder, proto};
use crate::failpoint;
use crate::profile::Marker;
use crate::source::{Assigned, Ends, Kafka, Message, Paused};
use crate::summarize::{self, Done, Summarizer};
use others::Others;

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
    decoder: Decoder,
    window: Arc<crate::window::Config>,
    source: Kafka<Incoming>,
    ends: Ends,
    sink: Sink,
    summarizer: Arc<Summarizer>,
    /// How many partitions the input has.
    count: i32,
    partitions: HashMap<i32, Partition>,
    /// Whether the group has told this member its share, be it nothing.
    joined: bool,
    others: Others,
    /// Partitions that are being restored, each with the offset that it will begin at.
    gained: HashMap<i32, i64>,
    /// Records and ends that wait, in their order, because a checkpoint is full.
    held: VecDeque<Message<Incoming>>,
    /// Who waits for the engine, the oldest unfolded event first, so that the committed offsets move on.
    ready: BTreeSet<(u64, i32, Arc<str>)>,
    updates: JoinSet<Finished>,
    restores: JoinSet<(u64, Result<Vec<Restored>, Error>)>,
    /// What these restore: assigned, but not at work yet.
    restoring: Vec<Assigned>,
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
    /// What was counted since the status was last told.
    tally: Tally,
    /// When the gauges were set.
    shown: Option<Instant>,
    drain_until: Option<Instant>,
    limits: Limits,
}

impl<'a> Flow<'a> {
    #[allow(clippy::too_many_arguments)] // each is a stage, made by the caller
    pub(super) fn new(
        config: &'a Config,
        parts: &'a Parts,
        source: Kafka<Incoming>,
        ends: Ends,
        sink: Sink,
        summarizer: Arc<Summarizer>,
        (count, bounds): (i32, Bounds),
        limits: Limits,
    ) -> Self {
        Self {
            config,
            parts,
            topic: config.source.topic.as_str().into(),
            decoder: Decoder::new(config.codec.clone()),
            window: Arc::new(config.window.clone()),
            source,
            ends,
            sink,
            summarizer,
            count,
            partitions: HashMap::default(),
            joined: false,
            others: Others::new(bounds, &config.source),
            gained: HashMap::default(),
            held: VecDeque::new(),
            ready: BTreeSet::new(),
            updates: JoinSet::new(),
            restores: JoinSet::new(),
            restoring: Vec::new(),
            cancelled: Arc::default(),
            pending: Pending::default(),
            uncommitted: HashMap::default(),
            epoch: 0,
            sequence: 0,
            waiting_bytes: 0,
            begun: 0,
            paused: false,
            tally: Tally::default(),
            shown: None,
            drain_until: None,
            limits,
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
            self.take_held()?;
            self.begin_updates()?;
            self.commit_if_due()?;
            if self.finished() {
                if self.drain_until.is_none() {
                    self.tell_what_is_left();
                }
                // The last commit may have come behind the last tick.
                self.shown = None;
                self.show(self.parts.clock.now_ms());
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
                Some(answer) = self.others.asking.join_next(), if !self.others.asking.is_empty() => {
                    self.answered(answer)?;
                }
                message = messages.recv(), if room => match message {
                    Some(message) => self.told(message).await?,
                    None => return Err(Error::Thread("the polling thread is gone".to_owned())),
                },
                _ = tick.tick() => {
                    // Whoever met a fault of the folder, a reader of profiles too: it heals by beginning anew.
                    self.parts.store.check()?;
                    self.ticked()?;
                }
            }
        }
    }

    /// Waits until nothing works for this flow any more.
    pub(super) async fn rest(&mut self) {
        self.updates.shutdown().await;
        self.give_up_restores().await;
        if self.sink.busy() {
            // Its outcome, whatever it is, must be in Kafka and the view before anybody reads them again.
            let _ = turning(&self.parts.status, self.sink.committed()).await;
        }
    }

    /// Gives the source back. Dropping it blocks.
    pub(super) fn end(self) -> Kafka<Incoming> {
        self.source
    }

    async fn told(&mut self, message: Message<Incoming>) -> Result<(), Error> {
        match message {
            Message::Records(_) | Message::End { .. } if self.drain_until.is_some() => {}
            Message::Records(_) | Message::End { .. } => {
                // Behind what is held, if anything is.
                self.held.push_back(message);
                self.take_held()?;
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

    /// Takes what was read, in its order, as long as no checkpoint is full. Assignments and revocations pass by what is
    /// held: the group must not wait for the engine.
    fn take_held(&mut self) -> Result<(), Error> {
        let most = self.config.checkpoint_runs;
        while !self.held.is_empty()
            && self.drain_until.is_none()
            && !self.partitions.values_mut().any(|p| p.full(most))
        {
            match self.held.pop_front() {
                Some(Message::Records(records)) => self.records(records)?,
                Some(Message::End {
                    partition,
                    position,
                }) => self.at_end(partition, position),
                _ => {}
            }
        }
        self.pause_or_resume();
        Ok(())
    }

    /// What is held of these partitions belongs to others now.
    fn forget_held(&mut self, given_up: &[i32]) {
        for message in &mut self.held {
            if let Message::Records(records) = message {
                records.retain(|r| !given_up.contains(&r.partition));
            }
        }
        self.held.retain(|message| match message {
            Message::Records(records) => !records.is_empty(),
            Message::End { partition, .. } => !given_up.contains(partition),
            _ => false,
        });
    }

    fn profile(&self, key: &Key) -> Result<Option<Arc<proto::ProfileState>>, Error> {
        if let Some(state) = self.uncommitted.get(key) {
            return Ok(Some(Arc::clone(state)));
        }
        let Some(bytes) = self.parts.store.view.get(key.0, &key.1)? else {
            return Ok(None);
        };
        // Its texts are looked at for the first time: what was read back was looked through for its version alone.
        let state = codec::decode_state(&bytes).map_err(|error| Error::Foreign {
            place: format!(
                "a profile of partition {}, as the profiles topic has it",
                key.0
            ),
            reason: error.to_string(),
        })?;
        Ok(Some(Arc::new(state)))
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

    fn ticked(&mut self) -> Result<(), Error> {
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
        self.keep_checkpoints_small();
        self.look_at_others();
        // Whatever changed what waits, the input rests no longer than for the next tick.
        self.pause_or_resume();
        self.show(now);
        self.counts_are_as_ever()
    }

    /// With another number of partitions of the input users have other homes, and their profiles stay where they were: better to
    /// stop than to give up events that stand in the right partition by the new number. An output topic with another number is
    /// one that the next start refuses: better to stop while somebody knows why.
    fn counts_are_as_ever(&self) -> Result<(), Error> {
        let wanted = self.count;
        let Some((topic, found)) = self.ends.other_count(wanted) else {
            return Ok(());
        };
        let input = self.topic.to_string();
        Err(if topic == input {
            Error::Grown {
                input,
                found,
                wanted,
            }
        } else {
            Error::Partitions {
                topic,
                found,
                input,
                wanted,
            }
        })
    }

    /// Back-pressure: the input rests while too much waits for the engine. The source goes on polling.
    fn pause_or_resume(&mut self) {
        let most = self.config.waiting_bytes;
        // On and off at different levels, so that it does not flutter.
        let behind = self.waiting_bytes > if self.paused { most / 2 } else { most };
        let paused = behind || !self.held.is_empty();
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
        failpoint::pass("draining");
    }

    /// Whether what is this instance's of a bounded input is read and folded.
    fn idle(&self) -> bool {
        self.config.stop_at_end
            && (self.joined || self.others.have_all())
            && self.partitions.values().all(|p| p.ended)
            && self.restores.is_empty()
            && self.ready.is_empty()
            && self.updates.is_empty()
    }

    fn finished(&mut self) -> bool {
        if let Some(until) = self.drain_until
            && Instant::now() >= until
        {
            // What is under way is left to the next start, which asks the model again: an answer that nobody waits for
            // reaches no journal.
            self.updates.abort_all();
        }
        let done = self.idle() && self.others_are_done()
            || self.drain_until.is_some() && self.updates.is_empty();
        done && self.pending.is_empty() && !self.sink.busy()
    }
}

/// Waits for something that ends by itself, and shows meanwhile that this is no standstill.
pub(super) async fn turning<T>(status: &watch::Sender<Status>, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(TICK) => {
                status.send_modify(|s| s.turned = Some(std::time::Instant::now()));
            }
        }
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
