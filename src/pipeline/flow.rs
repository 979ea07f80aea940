//! The loop that owns the state of the assigned partitions, from one start to the next fault or stop.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::batch::{Committed, Key, Pending, Sink};
use super::ingest::Incoming;
use super::partition::{Partition, bytes};
use super::restore::{Restored, restore};
use super::{Config, Error, Parts, Phase};
use crate::codec::{self, FORMAT, Origin, Reason, Rejected, dead_letter, proto};
use crate::commit::Outgoing;
use crate::event::{Event, Record};
use crate::profile::Marker;
use crate::source::{Assigned, Kafka, Message, Paused, Read};
use crate::summarize::{self, Done, Job, Summarizer, Update};
use crate::window::{CloseReason, Closed, Fate};

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
    drain_until: Option<Instant>,
    rebuild: bool,
}

impl<'a> Flow<'a> {
    pub(super) fn new(
        config: &'a Config,
        parts: &'a Parts,
        source: Kafka<Incoming>,
        sink: Sink,
        summarizer: Arc<Summarizer>,
        rebuild: bool,
    ) -> Self {
        Self {
            config,
            parts,
            topic: config.source.topic.as_str().into(),
            window: Arc::new(config.window.clone()),
            source,
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
            drain_until: None,
            rebuild,
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
                _ = stop.wait_for(|&stop| stop), if self.drain_until.is_none() => self.drain(),
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
                _ = tick.tick() => self.ticked(),
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

    fn assigned(&mut self, assigned: Vec<Assigned>) {
        if assigned.is_empty() {
            return;
        }
        self.epoch += 1;
        let (epoch, rebuild) = (self.epoch, self.rebuild);
        let (config, store) = (self.config.clone(), Arc::clone(&self.parts.store));
        let (cancelled, now) = (Arc::clone(&self.cancelled), self.parts.clock.now_ms());
        self.restores.spawn_blocking(move || {
            (
                epoch,
                restore(&config, &store, &assigned, rebuild, now, &cancelled),
            )
        });
        self.parts
            .status
            .send_modify(|s| s.phase = Phase::Restoring);
    }

    fn restored(&mut self, epoch: u64, restored: Vec<Restored>) {
        let mut ready = Vec::with_capacity(restored.len());
        for restored in restored {
            let partition = Partition::new(Arc::clone(&self.window), &restored, epoch);
            tracing::info!(
                partition = restored.partition,
                start = restored.start,
                "partition restored"
            );
            ready.push((restored.partition, restored.start));
            self.partitions.insert(restored.partition, partition);
        }
        self.source.ready(ready);
        if self.drain_until.is_none() {
            self.parts.status.send_modify(|s| s.phase = Phase::Running);
        }
    }

    /// What is folded is committed, the rest dropped, and only then the partitions are let go: nothing is committed for
    /// them afterwards. The next owner reads what was dropped again, behind the offsets committed here.
    async fn revoked(
        &mut self,
        partitions: Vec<i32>,
        lost: bool,
        done: SyncSender<()>,
    ) -> Result<(), Error> {
        if lost {
            return Err(Error::Lost(partitions));
        }
        tracing::info!(?partitions, "partitions revoked");
        // A restore writes to the view: it must have ended before another one of the same partition begins. One that
        // was for other partitions too is begun anew by what fails then.
        if !self.restores.is_empty() {
            self.give_up_restores().await;
            if partitions.iter().any(|p| !self.partitions.contains_key(p))
                && !self.partitions.is_empty()
            {
                return Err(Error::Thread(
                    "a restore was cut off by a rebalance".to_owned(),
                ));
            }
        }
        while self.sink.busy() || !self.pending.is_empty() {
            if !self.sink.busy() {
                self.commit()?;
            }
            let committed = self.sink.committed().await?;
            self.committed(committed);
        }
        for number in partitions {
            let Some(partition) = self.partitions.remove(&number) else {
                continue;
            };
            for queue in partition.users.into_values() {
                if let Some(running) = queue.running {
                    running.abort();
                }
                self.waiting_bytes -= queue
                    .waiting
                    .iter()
                    .map(|w| bytes(&w.events))
                    .sum::<usize>();
            }
            self.ready.retain(|(_, p, _)| *p != number);
            self.uncommitted.retain(|(p, _), _| *p != number);
        }
        // The group waits for nobody who is gone.
        let _ = done.send(());
        Ok(())
    }

    async fn give_up_restores(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        while self.restores.join_next().await.is_some() {}
        self.cancelled = Arc::default();
    }

    fn records(&mut self, records: Vec<Read<Incoming>>) -> Result<(), Error> {
        let now = self.parts.clock.now_ms();
        let mut closed = Vec::new();
        let (mut accepted, mut late, mut skipped, read) = (0, 0, 0, records.len() as u64);
        for Read {
            partition: number,
            offset,
            timestamp_ms,
            decoded: Incoming { record, decoded },
        } in records
        {
            let Some(partition) = self.partitions.get_mut(&number) else {
                continue;
            };
            partition.progress.read(offset);
            partition.ended = false;
            partition.mark(offset, self.sequence, timestamp_ms.unwrap_or(now));
            self.sequence += 1;
            let again = offset < partition.decided_below;
            if again && partition.rejected.contains(offset) {
                partition.progress.settle(offset);
                skipped += 1;
                continue;
            }
            let (decoded, tokens) = match decoded {
                Ok(decoded) => decoded,
                Err(rejected) => {
                    self.give_up(number, offset, &record, &rejected);
                    continue;
                }
            };
            let is_late = if again {
                // Its fate was decided before the restart, and stays: either it is folded already, or it takes part.
                if self.folded(number, &decoded.user, offset)? {
                    if let Some(partition) = self.partitions.get_mut(&number) {
                        partition.progress.settle(offset);
                    }
                    skipped += 1;
                    continue;
                }
                self.partitions
                    .get(&number)
                    .is_some_and(|p| p.late.contains(offset))
            } else {
                match partition.windows.judge(decoded.time_ms, now) {
                    Fate::OnTime => false,
                    Fate::Late => true,
                    Fate::TooLate { watermark_ms } => {
                        let detail =
                            format!("event time {}, watermark {watermark_ms}", decoded.time_ms);
                        self.give_up(
                            number,
                            offset,
                            &record,
                            &Rejected::new(Reason::TooLate, detail),
                        );
                        continue;
                    }
                    Fate::Future { limit_ms } => {
                        let detail =
                            format!("event time {}, latest allowed {limit_ms}", decoded.time_ms);
                        self.give_up(
                            number,
                            offset,
                            &record,
                            &Rejected::new(Reason::Future, detail),
                        );
                        continue;
                    }
                }
            };
            let Some(partition) = self.partitions.get_mut(&number) else {
                continue;
            };
            if is_late {
                partition.late.insert(offset);
                late += 1;
            }
            accepted += 1;
            let event = Event {
                offset,
                time_ms: decoded.time_ms,
                tokens,
                late: is_late,
                record,
            };
            partition
                .windows
                .insert(&decoded.user, event, now, &mut closed);
            self.restored_to(number, offset + 1, &mut closed);
            self.enqueue(number, &mut closed);
        }
        self.keep_open_bytes();
        self.parts.status.send_modify(|s| {
            s.events_read += read;
            s.accepted += accepted;
            s.late += late;
            s.skipped += skipped;
        });
        Ok(())
    }

    /// Whether the profile's fold marker holds this event.
    fn folded(&self, number: i32, user: &str, offset: i64) -> Result<bool, Error> {
        let key = (number, Arc::from(user));
        let profile = self.profile(&key)?;
        Ok(profile.is_some_and(|p| marker(&p, &self.topic, number).contains(offset)))
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

    /// When everything decided before the restart was read again, windows begin to close by event time.
    fn restored_to(&mut self, number: i32, next: i64, closed: &mut Vec<Closed>) {
        if let Some(partition) = self.partitions.get_mut(&number)
            && next >= partition.decided_below
        {
            partition.windows.restored(closed);
        }
    }

    fn at_end(&mut self, number: i32, position: i64) {
        let now = self.parts.clock.now_ms();
        let mut closed = Vec::new();
        self.restored_to(number, position, &mut closed);
        let Some(partition) = self.partitions.get_mut(&number) else {
            return;
        };
        partition.progress.advance_to(position);
        partition.ended = true;
        partition.windows.at_end(now);
        if self.config.stop_at_end {
            partition
                .windows
                .close_all(CloseReason::EndOfInput, &mut closed);
        }
        if partition.progress.restart_offset() != partition.committed {
            self.pending.touch(number);
        }
        self.enqueue(number, &mut closed);
    }

    fn give_up(&mut self, number: i32, offset: i64, record: &Record, rejected: &Rejected) {
        let origin = Origin {
            topic: &self.topic,
            partition: number,
            offset,
        };
        let dead = Outgoing {
            topic: self.config.topics.dead_letters.clone(),
            partition: Some(number),
            key: record.key.as_deref().map(<[u8]>::to_vec),
            value: record.value.as_deref().map(<[u8]>::to_vec),
            headers: dead_letter(record, origin, rejected),
        };
        self.pending.dead_letter(dead, number);
        if let Some(partition) = self.partitions.get_mut(&number) {
            partition.rejected.insert(offset);
            partition.progress.settle(offset);
        }
        self.parts.status.send_modify(|s| s.dead_lettered += 1);
    }

    fn enqueue(&mut self, number: i32, closed: &mut Vec<Closed>) {
        if closed.is_empty() {
            return;
        }
        let count = closed.len() as u64;
        for window in closed.drain(..) {
            let Some(partition) = self.partitions.get_mut(&number) else {
                continue;
            };
            self.waiting_bytes += bytes(&window.events);
            let user = Arc::clone(&window.user);
            partition
                .users
                .entry(Arc::clone(&user))
                .or_default()
                .waiting
                .push_back(window);
            self.stand(number, user);
        }
        self.parts.status.send_modify(|s| s.windows_closed += count);
        self.pause_or_resume();
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

    fn begin_updates(&mut self) -> Result<(), Error> {
        let concurrency = self.summarizer.engine().description().concurrency;
        while self.updates.len() < concurrency
            && self.drain_until.is_none()
            && self.pending.bytes < BATCH_BYTES
            && let Some((_, number, user)) = self.ready.pop_first()
        {
            let key = (number, Arc::clone(&user));
            let profile = self.profile(&key)?;
            let Some(partition) = self.partitions.get_mut(&number) else {
                continue;
            };
            let epoch = partition.epoch;
            let Some(queue) = partition.users.get_mut(&user) else {
                continue;
            };
            queue.rank = None;
            // One update of a user at a time; windows that wait meanwhile are merged into the next.
            let mut windows = VecDeque::new();
            let mut events = 0;
            while events < self.summarizer.max_events()
                && let Some(window) = queue.waiting.pop_front()
            {
                events += window.events.len();
                windows.push_back(window);
            }
            let job = Job {
                user,
                topic: Arc::clone(&self.topic),
                partition: number,
                profile: profile.clone(),
                windows,
            };
            let summarizer = Arc::clone(&self.summarizer);
            queue.running = Some(self.updates.spawn(async move {
                let result = summarizer.update(job).await;
                Finished {
                    key,
                    epoch,
                    profile,
                    result,
                }
            }));
            self.begun += 1;
            self.parts.status.send_modify(|s| s.updates_begun += 1);
            if self
                .config
                .max_updates
                .is_some_and(|most| self.begun >= most)
            {
                self.drain();
            }
        }
        Ok(())
    }

    fn updated(&mut self, update: Result<Finished, tokio::task::JoinError>) -> Result<(), Error> {
        let Finished {
            key,
            epoch,
            profile,
            result,
        } = match update {
            Ok(finished) => finished,
            Err(error) if error.is_cancelled() => return Ok(()),
            Err(error) => return Err(Error::Thread(format!("an update: {error}"))),
        };
        let (number, user) = key.clone();
        match self.partitions.get_mut(&number) {
            Some(partition) if partition.epoch == epoch => {
                if let Some(queue) = partition.users.get_mut(&user) {
                    queue.running = None;
                }
            }
            // Of an assignment that is over: its next owner folds these events.
            _ => return Ok(()),
        }
        let mut done = result?;
        if let Some(queue) = self
            .partitions
            .get_mut(&number)
            .and_then(|p| p.users.get_mut(&user))
        {
            done.rest.append(&mut queue.waiting);
            queue.waiting = done.rest;
        }
        let refused = done.refusals.len() as u64;
        for (event, rejected) in &done.dead {
            self.waiting_bytes -= bytes(std::slice::from_ref(event));
            self.give_up(number, event.offset, &event.record, rejected);
        }
        if let Some(update) = done.update {
            self.waiting_bytes -= bytes(&update.events);
            self.fold(key, profile.as_deref(), update);
        }
        self.parts.status.send_modify(|s| s.refused += refused);
        self.stand(number, Arc::clone(&user));
        if let Some(partition) = self.partitions.get_mut(&number) {
            partition.tidy(&user);
        }
        self.pause_or_resume();
        Ok(())
    }

    /// Puts an update into the next transaction: the change event, and the state with its fold marker.
    fn fold(&mut self, key: Key, profile: Option<&proto::ProfileState>, update: Update) {
        let (number, user) = (key.0, Arc::clone(&key.1));
        let Some(partition) = self.partitions.get_mut(&number) else {
            return;
        };
        let offsets = || update.events.iter().map(|e| e.offset);
        for offset in offsets() {
            partition.progress.settle(offset);
        }
        let before = profile.map_or_else(Marker::default, |p| marker(p, &self.topic, number));
        // What is open or waits now is not folded; everything else of this user that was read is.
        let after = before.fold(offsets(), partition.lowest_unfolded(&user));
        let mut sources = crate::checkpoint::OffsetSet::default();
        offsets().for_each(|o| sources.insert(o));
        let description = self.summarizer.engine().description();
        let now = self.parts.clock.now_ms();
        let previous = profile.map_or(0, |p| p.version);
        let times = || update.events.iter().map(|e| e.time_ms);
        let count = update.events.len();
        let journal = update.usage.journal;
        let tokens = u64::from(update.usage.output_tokens);
        let state = proto::ProfileState {
            format: FORMAT,
            user_id: user.to_string(),
            version: previous + 1,
            summary: update.summary.clone(),
            marker: Some(proto::FoldMarker {
                topic: self.topic.to_string(),
                partition: number,
                folded_below: after.folded_below,
                folded: codec::runs(&after.folded),
            }),
            updated_ms: now,
            event_time_ms: times()
                .max()
                .unwrap_or(0)
                .max(profile.map_or(i64::MIN, |p| p.event_time_ms)),
            events: profile.map_or(0, |p| p.events) + count as u64,
            model: description.name.clone(),
            fingerprint: description.fingerprint.clone(),
            generation: String::new(),
        };
        let change = proto::ProfileChange {
            format: FORMAT,
            user_id: user.to_string(),
            version: previous + 1,
            previous_version: previous,
            before: profile.map_or_else(String::new, |p| p.summary.clone()),
            edits: update.edits,
            window: Some(proto::Window {
                start_ms: times().min().unwrap_or(0),
                end_ms: times().max().unwrap_or(0),
                close_reason: update.reason.name().to_owned(),
                events: u32::try_from(count).unwrap_or(u32::MAX),
                late_events: u32::try_from(update.events.iter().filter(|e| e.late).count())
                    .unwrap_or(u32::MAX),
                windows: update.windows,
            }),
            sources: vec![proto::Source {
                topic: self.topic.to_string(),
                partition: number,
                offsets: codec::runs(&sources),
            }],
            model: Some(proto::Model {
                name: description.name.clone(),
                fingerprint: description.fingerprint.clone(),
                call: update.call.iter().map(|b| format!("{b:02x}")).collect(),
            }),
            usage: Some(update.usage),
            reason: "window".to_owned(),
            updated_ms: now,
            after: update.summary,
        };
        let state = Arc::new(state);
        self.uncommitted.insert(key.clone(), Arc::clone(&state));
        self.pending.change(key, change, state);
        self.parts.status.send_modify(|s| {
            s.output_tokens += tokens;
            s.from_journal += u64::from(journal);
        });
    }

    fn commit_if_due(&mut self) -> Result<(), Error> {
        if self.sink.busy() || self.pending.is_empty() {
            return Ok(());
        }
        let waited = self
            .pending
            .since
            .is_some_and(|s| s.elapsed() >= self.config.commit_interval);
        let full = self.pending.changes.len() >= self.config.commit_updates
            || self.pending.bytes >= BATCH_BYTES;
        let last = self.idle() || self.drain_until.is_some() && self.updates.is_empty();
        if waited || full || last {
            self.commit()
        } else {
            Ok(())
        }
    }

    fn commit(&mut self) -> Result<(), Error> {
        let pending = std::mem::take(&mut self.pending);
        let now = self.parts.clock.now_ms();
        let mut checkpoints = Vec::with_capacity(pending.touched.len());
        for &number in &pending.touched {
            if let Some(partition) = self.partitions.get_mut(&number) {
                let source = &self.config.source;
                checkpoints.push(partition.checkpoint(&source.group, &source.topic, number, now));
            }
        }
        // The member's standing at this moment: a transaction sealed under a generation that is over is refused.
        let group = self
            .source
            .group_metadata()
            .ok_or_else(|| Error::Thread("no member of the group".to_owned()))?;
        self.sink
            .commit(pending.seal(&self.config.topics, checkpoints, group))
    }

    fn committed(&mut self, committed: Committed) {
        for (key, state) in &committed.states {
            // A newer one may be on its way already.
            if self
                .uncommitted
                .get(key)
                .is_some_and(|s| s.version == state.version)
            {
                self.uncommitted.remove(key);
            }
        }
        let updates = committed.changes.len() as u64;
        let events: u64 = committed
            .changes
            .iter()
            .filter_map(|c| c.window.as_ref())
            .map(|w| u64::from(w.events))
            .sum();
        self.parts.status.send_modify(|s| {
            s.updates_committed += updates;
            s.events_committed += events;
            s.commits += 1;
            s.commit_time += committed.took;
        });
        if let Some(changes) = &self.parts.changes {
            let _ = changes.send(committed.changes);
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
        let open: usize = self
            .partitions
            .values()
            .map(|p| p.windows.open_windows())
            .sum();
        let oldest = self
            .partitions
            .values()
            .filter_map(Partition::oldest_unsettled_ms)
            .min();
        let oldest = oldest.map_or(0, |at| now.saturating_sub(at).max(0));
        let waiting = self.ready.len() + self.updates.len();
        self.parts.status.send_modify(|s| {
            s.windows_open = open as u64;
            s.waiting = waiting as u64;
            s.oldest_unfolded = Duration::from_millis(oldest.unsigned_abs());
        });
    }

    /// Open windows over the limit close, those of the fullest partition first; a tenth of room is made at once.
    fn keep_open_bytes(&mut self) {
        loop {
            let total: usize = self
                .partitions
                .values()
                .map(|p| p.windows.open_bytes())
                .sum();
            if total <= self.config.open_bytes {
                return;
            }
            let over = total - self.config.open_bytes / 10 * 9;
            let fullest = self
                .partitions
                .iter_mut()
                .max_by_key(|(_, p)| p.windows.open_bytes());
            let Some((&number, partition)) = fullest else {
                return;
            };
            let mut closed = Vec::new();
            let to = partition.windows.open_bytes().saturating_sub(over);
            partition.windows.shrink_to(to, &mut closed);
            self.enqueue(number, &mut closed);
        }
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
fn marker(profile: &proto::ProfileState, topic: &str, partition: i32) -> Marker {
    match &profile.marker {
        Some(m) if m.topic == topic && m.partition == partition => Marker {
            folded_below: m.folded_below,
            folded: codec::offsets(&m.folded),
        },
        _ => Marker::default(),
    }
}
