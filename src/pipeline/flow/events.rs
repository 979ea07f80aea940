//! Events: judged, put into windows, given up, and queued when their window closes.

use std::sync::Arc;

use super::super::Error;
use super::super::ingest::Incoming;
use super::super::partition::MARKER_RUNS;
use super::{Flow, marker};
use crate::codec::{DeadLetter, Origin, Reason, Rejected, dead_letter};
use crate::commit::Outgoing;
use crate::event::{Event, Record};
use crate::source::Read;
use crate::window::{CloseReason, Closed, Fate};
use crate::{failpoint, metrics};

impl Flow<'_> {
    pub(super) fn records(&mut self, records: Vec<Read<Incoming>>) -> Result<(), Error> {
        let now = self.parts.clock.now_ms();
        let mut closed = Vec::new();
        let (mut accepted, mut late, mut skipped, mut read) = (0, 0, 0, 0);
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
            if partition.bound.is_some_and(|bound| offset >= bound) {
                self.reached_bound(number);
                continue;
            }
            read += 1;
            partition.progress.read(offset);
            partition.mark(offset, self.sequence, timestamp_ms.unwrap_or(now));
            self.sequence += 1;
            let again = offset < partition.decided_below;
            let maybe_folded = offset < partition.folded_below;
            if again && partition.rejected.contains(offset) {
                partition.progress.settle(offset);
                skipped += 1;
                continue;
            }
            let (decoded, tokens) = match decoded {
                Ok(decoded) => decoded,
                Err(rejected) => {
                    // The rules may have changed since it was accepted, and since it was folded.
                    let user = if maybe_folded {
                        self.decoder.user(&record)
                    } else {
                        None
                    };
                    if let Some(user) = user
                        && self.folded(number, &user, offset)?
                    {
                        self.settle(number, offset);
                        skipped += 1;
                    } else {
                        self.give_up(number, offset, &record, &rejected);
                    }
                    continue;
                }
            };
            if maybe_folded && self.folded(number, &decoded.user, offset)? {
                self.settle(number, offset);
                skipped += 1;
                continue;
            }
            let Some(partition) = self.partitions.get_mut(&number) else {
                continue;
            };
            // Where its fate was decided before the restart, it stays: it is not folded yet, so it takes part.
            let is_late = if again {
                partition.late.contains(offset)
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
        self.keep_checkpoints_small();
        ::metrics::counter!(metrics::EVENTS_READ).increment(read);
        for (outcome, count) in [
            ("accepted", accepted - late),
            ("late", late),
            ("repeated", skipped),
        ] {
            ::metrics::counter!(metrics::EVENTS, "outcome" => outcome).increment(count);
        }
        self.tally.events_read += read;
        self.tally.accepted += accepted;
        self.tally.late += late;
        self.tally.skipped += skipped;
        Ok(())
    }

    fn settle(&mut self, number: i32, offset: i64) {
        if let Some(partition) = self.partitions.get_mut(&number) {
            partition.progress.settle(offset);
        }
    }

    /// Whether the profile's fold marker holds this event.
    pub(super) fn folded(&self, number: i32, user: &str, offset: i64) -> Result<bool, Error> {
        let key = (number, Arc::from(user));
        let profile = self.profile(&key)?;
        Ok(marker(profile.as_deref(), &self.topic, number)?.contains(offset))
    }

    /// When everything decided before the restart was read again, windows begin to close by event time.
    pub(super) fn restored_to(&mut self, number: i32, next: i64, closed: &mut Vec<Closed>) {
        if let Some(partition) = self.partitions.get_mut(&number)
            && next >= partition.decided_below
            && partition.windows.restoring()
        {
            let now = self.parts.clock.now_ms();
            partition.windows.restored(now, closed);
        }
    }

    pub(super) fn at_end(&mut self, number: i32, position: i64) {
        let now = self.parts.clock.now_ms();
        let mut closed = Vec::new();
        self.restored_to(number, position, &mut closed);
        let Some(partition) = self.partitions.get_mut(&number) else {
            return;
        };
        if let Some(bound) = partition.bound {
            self.enqueue(number, &mut closed);
            if position >= bound {
                self.reached_bound(number);
            }
            return;
        }
        partition.progress.advance_to(position);
        partition.windows.at_end(now);
        if partition.progress.restart_offset() != partition.committed {
            self.pending.touch(number);
        }
        self.enqueue(number, &mut closed);
    }

    /// A bounded input ends where it ended when the partition was assigned, whatever is written behind that meanwhile:
    /// what is open closes, and nothing more is read.
    fn reached_bound(&mut self, number: i32) {
        let mut closed = Vec::new();
        let Some((partition, bound)) =
            (self.partitions.get_mut(&number)).and_then(|p| p.bound.map(|bound| (p, bound)))
        else {
            return;
        };
        if std::mem::replace(&mut partition.ended, true) {
            return;
        }
        partition.progress.advance_to(bound);
        if partition.progress.restart_offset() != partition.committed {
            self.pending.touch(number);
        }
        self.source.finish(number);
        self.restored_to(number, bound, &mut closed);
        if let Some(partition) = self.partitions.get_mut(&number) {
            let end = CloseReason::EndOfInput;
            partition.windows.close_all(end, &mut closed);
        }
        self.enqueue(number, &mut closed);
    }

    pub(super) fn give_up(
        &mut self,
        number: i32,
        offset: i64,
        record: &Record,
        rejected: &Rejected,
    ) {
        let origin = Origin {
            topic: &self.topic,
            partition: number,
            offset,
        };
        let DeadLetter {
            key,
            value,
            headers,
        } = dead_letter(record, origin, rejected);
        let dead = Outgoing {
            topic: self.config.topics.dead_letters.clone(),
            partition: Some(number),
            key,
            value,
            headers,
        };
        self.pending.dead_letter(dead, number);
        if let Some(partition) = self.partitions.get_mut(&number) {
            partition.rejected.insert(offset);
            partition.progress.settle(offset);
        }
        ::metrics::counter!(metrics::EVENTS, "outcome" => "dead_lettered").increment(1);
        ::metrics::counter!(metrics::DEAD_LETTERS, "reason" => rejected.reason.name()).increment(1);
    }

    /// Has windows wait for the engine. Where much of a user waits already, those of its windows that hold lower offsets than one that
    /// waits now close too: all that is folded before them is listed in the fold marker.
    pub(super) fn enqueue(&mut self, number: i32, closed: &mut Vec<Closed>) {
        if closed.is_empty() {
            return;
        }
        let overtaken = self.wait(number, closed);
        if let Some(partition) = self.partitions.get_mut(&number) {
            for (user, below) in overtaken {
                (partition.windows).close_of_user_below(&user, below, closed);
            }
        }
        // What these have overtaken themselves is left to the marker's own bound: else one closes all that overlap.
        self.wait(number, closed);
        self.pause_or_resume();
        failpoint::pass("window_closed");
    }

    /// Puts windows behind what waits of their users. Gives those of whom much waits and a lower offset is open, each with the highest
    /// offset that such windows are to be closed below.
    fn wait(&mut self, number: i32, closed: &mut Vec<Closed>) -> Vec<(Arc<str>, i64)> {
        self.tally.windows_closed += closed.len() as u64;
        let mut overtaken: Vec<(Arc<str>, i64)> = Vec::new();
        for window in closed.drain(..) {
            let Some(partition) = self.partitions.get_mut(&number) else {
                continue;
            };
            self.waiting_bytes += window.bytes();
            ::metrics::counter!(metrics::WINDOWS_CLOSED, "reason" => window.reason.name())
                .increment(1);
            let user: Arc<str> = match partition.users.get_key_value(&*window.user) {
                Some((user, _)) => Arc::clone(user),
                None => Arc::from(&*window.user),
            };
            let (lowest, open) = (window.events.lowest(), window.lowest_open);
            let waiting = &mut (partition.users.entry(Arc::clone(&user)).or_default()).waiting;
            waiting.push_back(window);
            if waiting.events() > MARKER_RUNS && open.is_some_and(|open| open < lowest) {
                match overtaken.last_mut() {
                    Some((last, below)) if *last == user => *below = lowest.max(*below),
                    _ => overtaken.push((Arc::clone(&user), lowest)),
                }
            }
            self.stand(number, user);
        }
        overtaken
    }

    /// A checkpoint is one record, and a record has a largest size: where events are given up or late all the time while
    /// a window stays open, that window closes early.
    pub(super) fn keep_checkpoints_small(&mut self) {
        let most = self.config.checkpoint_runs;
        let mut closed = Vec::new();
        let numbers: Vec<i32> = self.partitions.keys().copied().collect();
        for number in numbers {
            if let Some(partition) = self.partitions.get_mut(&number) {
                partition.keep_checkpoint_small(most, &mut closed);
            }
            self.enqueue(number, &mut closed);
        }
    }

    /// Open windows over the limit close, those of the fullest partition first; a tenth of room is made at once.
    pub(super) fn keep_open_bytes(&mut self) {
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
}
