//! Updates: begun, put into a transaction, committed.

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::batch::{Committed, Key, change_record, state_record};
use super::super::partition::Running;
use super::super::{Commit, Error};
use super::{BATCH_BYTES, Finished, Flow, marker};
use crate::codec::{self, FORMAT, Reason, Rejected, proto};
use crate::summarize::{Job, Update};
use crate::window::View;
use crate::{commit, metrics};

impl Flow<'_> {
    pub(super) fn begin_updates(&mut self) -> Result<(), Error> {
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
            let (mut events, mut taken) = (0, 0);
            while events < self.summarizer.max_events()
                && let Some(window) = queue.waiting.pop_front()
            {
                events += window.events.len();
                taken += window.bytes();
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
            let task = self.updates.spawn(async move {
                let result = summarizer.update(job).await;
                Finished {
                    key,
                    epoch,
                    profile,
                    result,
                }
            });
            queue.running = Some(Running { task, bytes: taken });
            self.begun += 1;
            self.tally.updates_begun += 1;
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

    pub(super) fn updated(
        &mut self,
        update: Result<Finished, tokio::task::JoinError>,
    ) -> Result<(), Error> {
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
                let queue = partition.users.get_mut(&user);
                if let Some(running) = queue.and_then(|q| q.running.take()) {
                    self.waiting_bytes -= running.bytes;
                }
            }
            // Of an assignment that is over: its next owner folds these events, and what they cost was given back when
            // they were given up.
            _ => return Ok(()),
        }
        let done = result?;
        if let Some(queue) = self
            .partitions
            .get_mut(&number)
            .and_then(|p| p.users.get_mut(&user))
        {
            for window in done.rest.into_iter().rev() {
                self.waiting_bytes += window.bytes();
                queue.waiting.push_front(window);
            }
        }
        let refused = done.refusals.len() as u64;
        for refusal in &done.refusals {
            ::metrics::counter!(metrics::REFUSALS, "reason" => refusal.name()).increment(1);
        }
        if !done.dead.is_empty() {
            ::metrics::counter!(metrics::UPDATES, "outcome" => "given_up").increment(1);
        }
        for (event, rejected) in &done.dead {
            self.give_up(number, event.offset, &event.record, rejected);
        }
        if let Some(update) = done.update {
            self.fold(key, profile.as_deref(), update)?;
        }
        self.tally.refused += refused;
        self.stand(number, Arc::clone(&user));
        if let Some(partition) = self.partitions.get_mut(&number) {
            partition.tidy(&user);
        }
        self.pause_or_resume();
        Ok(())
    }

    /// Puts an update into the next transaction: the change event, and the state with its fold marker.
    pub(super) fn fold(
        &mut self,
        key: Key,
        profile: Option<&proto::ProfileState>,
        update: Update,
    ) -> Result<(), Error> {
        let (number, user) = (key.0, Arc::clone(&key.1));
        let Some(partition) = self.partitions.get_mut(&number) else {
            return Ok(());
        };
        let events: Vec<View<'_>> = update.events.views().collect();
        let offsets = || events.iter().map(|e| e.offset);
        let before = marker(profile, &self.topic, number)?;
        // What is open or waits now is not folded; everything else of this user that was read is.
        let mut unfolded = partition.lowest_unfolded(&user);
        let next = partition.progress.next_offset();
        if next < partition.folded_below {
            // Of what is not read again yet nobody knows: the marker lists some of it, and must not pass over the rest.
            let floor = next.max(before.folded_below);
            unfolded = Some(unfolded.map_or(floor, |lowest| lowest.min(floor)));
        }
        let after = before.fold(offsets(), unfolded);
        let mut closed = Vec::new();
        partition.keep_marker_small(&user, &after, &mut closed);
        self.enqueue(number, &mut closed);
        let mut sources = crate::checkpoint::OffsetSet::default();
        offsets().for_each(|o| sources.insert(o));
        let description = self.summarizer.engine().description();
        let now = self.parts.clock.now_ms();
        let previous = profile.map_or(0, |p| p.version);
        let times = || events.iter().map(|e| e.time_ms);
        let count = events.len();
        let journal = update.usage.journal;
        let tokens = u64::from(update.usage.output_tokens);
        let state = proto::ProfileState {
            format: FORMAT,
            user_id: user.to_string(),
            version: previous + 1,
            summary: update.summary.clone(),
            marker: Some(codec::fold_marker(&self.topic, number, &after)),
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
                late_events: u32::try_from(events.iter().filter(|e| e.late).count())
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
                call: blake3::Hash::from_bytes(update.call)
                    .to_hex()
                    .as_str()
                    .to_owned(),
            }),
            usage: Some(update.usage),
            reason: "window".to_owned(),
            updated_ms: now,
            after: update.summary,
        };
        if let Some(fault) = self.oversize(&key, &state, &change) {
            tracing::warn!(partition = number, fault, "an update is refused");
            ::metrics::counter!(metrics::UPDATES, "outcome" => "given_up").increment(1);
            let rejected = Rejected::new(Reason::Refused, fault);
            for event in update.events.iter() {
                self.give_up(number, event.offset, &event.record, &rejected);
            }
            return Ok(());
        }
        if let Some(partition) = self.partitions.get_mut(&number) {
            offsets().for_each(|offset| partition.progress.settle(offset));
            partition.has_profiles = true;
        }
        let state = Arc::new(state);
        self.uncommitted.insert(key.clone(), Arc::clone(&state));
        self.pending.change(key, change, state);
        self.tally.output_tokens += tokens;
        self.tally.from_journal += u64::from(journal);
        Ok(())
    }

    /// What is wrong with an update whose records are as large as one that Kafka refused.
    fn oversize(
        &self,
        (number, user): &Key,
        state: &proto::ProfileState,
        change: &proto::ProfileChange,
    ) -> Option<String> {
        if self.limits.is_empty() {
            return None;
        }
        let topics = &self.config.topics;
        let records = [
            state_record(&topics.profiles, *number, user, codec::encode(state)),
            change_record(&topics.changes, change),
        ];
        records.iter().find_map(|record| self.limits.fault(record))
    }

    pub(super) fn commit_if_due(&mut self) -> Result<(), Error> {
        if self.sink.busy() || self.pending.is_empty() {
            return Ok(());
        }
        let waited = self
            .pending
            .since
            .is_some_and(|s| s.elapsed() >= self.config.commit_interval);
        let full = !self.pending.starts.is_empty()
            || self.pending.changes.len() >= self.config.commit_updates
            || self.pending.bytes >= BATCH_BYTES;
        let last = self.idle() || self.drain_until.is_some() && self.updates.is_empty();
        if waited || full || last {
            self.commit()
        } else {
            Ok(())
        }
    }

    pub(super) fn commit(&mut self) -> Result<(), Error> {
        let pending = self.pending.take();
        let now = self.parts.clock.now_ms();
        let mut checkpoints = Vec::with_capacity(pending.touched.len());
        for &number in &pending.touched {
            if let Some(partition) = self.partitions.get_mut(&number) {
                checkpoints.push(partition.checkpoint(self.config, number, now));
            }
        }
        // The member's standing at this moment: a transaction sealed under a generation that is over is refused.
        let group = self
            .source
            .group_metadata()
            .ok_or_else(|| commit::Error::Fenced {
                doing: "beginning a transaction",
                reason: "this instance is no member of the group any more".to_owned(),
            })?;
        self.sink.commit(pending, checkpoints, Arc::new(group))
    }

    pub(super) fn committed(&mut self, committed: Committed) {
        if !committed.starts.is_empty() {
            self.source.ready(committed.starts);
        }
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
        for change in &committed.changes {
            let journal = change.usage.as_ref().is_some_and(|u| u.journal);
            let outcome = if journal { "journal" } else { "model" };
            ::metrics::counter!(metrics::UPDATES, "outcome" => outcome).increment(1);
        }
        ::metrics::counter!(metrics::EVENTS_FOLDED).increment(events);
        ::metrics::counter!(metrics::COMMITS).increment(1);
        ::metrics::histogram!(metrics::COMMIT_SECONDS).record(committed.took);
        self.tally.updates_committed += updates;
        self.tally.events_committed += events;
        self.tally.dead_lettered += committed.dead;
        self.tally.commits += 1;
        self.tally.commit_time += committed.took;
        self.publish();
        if let Some(changes) = &self.parts.changes {
            let _ = changes.send(Commit {
                changes: committed.changes,
                took: committed.took,
            });
        }
    }
}
