//! One input partition: its windows, what waits of each user, and what is settled.

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::HashMap;
use tokio::task::AbortHandle;

use super::restore::Restored;
use super::waiting::Waiting;
use crate::checkpoint::{OffsetSet, Progress};
use crate::codec::{FORMAT, proto};
use crate::profile::Marker;
use crate::window::{self, Closed, Windows};

/// What waits of one user.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) waiting: Waiting,
    /// The user's place among those that wait for the engine; `None` where the user does not.
    pub(super) rank: Option<u64>,
    /// The update under way.
    pub(super) running: Option<Running>,
}

/// An update under way.
pub(super) struct Running {
    pub(super) task: AbortHandle,
    /// What its events cost while they wait: given back when it ends, however it ends.
    pub(super) bytes: usize,
}

/// An offset's place among everything read, and Kafka's time for it.
#[derive(Clone, Copy)]
struct Mark {
    sequence: u64,
    timestamp_ms: i64,
}

/// A partition is read so far at the most beyond its restart offset: what is known of the offsets between costs a byte
/// each.
const MOST_OPEN: i64 = 1 << 26;

/// What keeps more runs of offsets listed in its user's fold marker closes early. Each state has the marker in it: so many runs are some
/// 14 KiB of it.
pub(super) const MARKER_RUNS: usize = 1024;

/// One offset in so many is marked.
const MARK_EVERY: i64 = 64;

pub(super) struct Partition {
    /// Told apart from a former assignment of the same partition.
    pub(super) epoch: u64,
    pub(super) windows: Windows,
    pub(super) progress: Progress,
    /// Offsets given up.
    pub(super) rejected: OffsetSet,
    /// Offsets that were late when read.
    pub(super) late: OffsetSet,
    /// The fate of everything below was decided before this start.
    pub(super) decided_below: i64,
    /// What is below may be folded already: what was decided, or more. Where an offset was committed by hand, or forgotten, the last checkpoint may be lost, and
    /// the one that is there older than what is folded: nothing is known of what was decided since, but what was folded the profiles tell.
    pub(super) folded_below: i64,
    /// Profile states were written, or are under way.
    pub(super) has_profiles: bool,
    pub(super) users: HashMap<Arc<str>, Queue>,
    /// Of a bounded input: the offset that it ends at, and whether that is reached.
    pub(super) bound: Option<i64>,
    pub(super) ended: bool,
    /// What the last checkpoint said.
    pub(super) committed: i64,
    marks: BTreeMap<i64, Mark>,
}

impl Partition {
    pub(super) fn new(config: Arc<window::Config>, restored: &Restored, epoch: u64) -> Self {
        let start = restored.start;
        let none = proto::Checkpoint::default();
        let known = restored.checkpoint.is_some();
        let checkpoint = restored.checkpoint.as_ref().unwrap_or(&none);
        let decided_below = if known {
            checkpoint.decided_below
        } else {
            start
        };
        let folded_below = if restored.profiles && !restored.noted {
            restored.end.max(checkpoint.folded_below)
        } else {
            checkpoint.folded_below
        };
        let mut rejected = OffsetSet::from_gaps(checkpoint.restart_offset, &checkpoint.rejected);
        let mut late = OffsetSet::from_gaps(checkpoint.restart_offset, &checkpoint.late);
        rejected.forget_below(start);
        late.forget_below(start);
        Self {
            epoch,
            windows: Windows::new(config, checkpoint.watermark_ms, start < decided_below),
            progress: Progress::new(start),
            rejected,
            late,
            decided_below,
            folded_below: folded_below.max(decided_below),
            has_profiles: restored.profiles || restored.had_profiles(),
            users: HashMap::default(),
            bound: None,
            ended: false,
            committed: start,
            marks: BTreeMap::new(),
        }
    }

    /// How many runs of offsets a checkpoint would list now.
    fn runs(&mut self) -> usize {
        let restart = self.progress.restart_offset();
        self.rejected.forget_below(restart);
        self.late.forget_below(restart);
        self.rejected.len() + self.late.len()
    }

    /// Closes the windows that hold the restart offset back while the next checkpoint would list more than `most` runs:
    /// those that keep the lower half of them listed. Those that hold it back by more than half of [`MOST_OPEN`] offsets
    /// close too.
    pub(super) fn keep_checkpoint_small(&mut self, most: usize, closed: &mut Vec<Closed>) {
        // A window that keeps too much of the log unsettled would hold all that is read behind it.
        let held = self.progress.next_offset() - MOST_OPEN / 2;
        if self.progress.restart_offset() < held {
            self.windows.close_below(held, closed);
        }
        if self.runs() <= most {
            return;
        }
        let middle = |set: &OffsetSet| set.runs().nth(set.len() / 2).map(|(first, _)| first);
        let below = middle(&self.rejected).max(middle(&self.late));
        self.windows.close_below(below.unwrap_or(i64::MIN), closed);
    }

    /// Closes the windows of a user that keep the lower half of its fold marker listed, where it lists more than [`MARKER_RUNS`]
    /// runs: every state carries it.
    ///
    /// This is what bounds the marker, with what [`Flow::enqueue`](super::flow::Flow::enqueue) does: an update adds a run at the most for
    /// each of its events, and once these windows wait, only what waits before them is folded before them: some 1,024 events, or what
    /// is in a window that is larger.
    pub(super) fn keep_marker_small(
        &mut self,
        user: &str,
        marker: &Marker,
        closed: &mut Vec<Closed>,
    ) {
        let runs = marker.folded.len();
        if runs > MARKER_RUNS
            && let Some((below, _)) = marker.folded.runs().nth(runs / 2)
        {
            self.windows.close_of_user_below(user, below, closed);
        }
    }

    /// Whether nothing more may be read here until some of what was read is settled.
    ///
    /// This is what bounds the checkpoint. Reading a record adds one run at the most, to one of the two sets, so with a
    /// message of at most 10,000 records behind the last look the sets have at most `2 * most + 10_000` runs from
    /// reading. What the gate refuses later adds a run at the most for each event that was open or waited then; the
    /// oldest go first and the windows that keep the lower runs listed are closed by then, so such runs melt into each
    /// other and fall below the restart offset. A run is two small numbers of one to three bytes each. What is read
    /// again is listed already: only a change of the rules between two starts adds to it, hence the larger limit there,
    /// without which a checkpoint at its limit could be read again one event at a time only.
    ///
    /// It is no deadlock: what is unsettled waits for the engine, or is in a window, and a window closes by age if not
    /// before. With nothing unsettled every listed offset below what is read next is forgotten, and reading goes on.
    pub(super) fn full(&mut self, most: usize) -> bool {
        let (restart, next) = (self.progress.restart_offset(), self.progress.next_offset());
        let most = if next < self.decided_below {
            3 * most
        } else {
            2 * most
        };
        restart < next && (next - restart > MOST_OPEN || self.runs() > most)
    }

    pub(super) fn checkpoint(
        &mut self,
        config: &super::Config,
        partition: i32,
        now_ms: i64,
    ) -> proto::Checkpoint {
        let (source, topics) = (&config.source, &config.topics);
        let restart_offset = self.progress.restart_offset();
        self.rejected.forget_below(restart_offset);
        self.late.forget_below(restart_offset);
        self.committed = restart_offset;
        // The mark that the restart offset itself stands behind is still needed.
        if let Some((&keep, _)) = self.marks.range(..=restart_offset).next_back() {
            self.marks = self.marks.split_off(&keep);
        }
        proto::Checkpoint {
            format: FORMAT,
            group: source.group.clone(),
            topic: source.topic.clone(),
            partition,
            restart_offset,
            decided_below: self.decided_below.max(self.progress.next_offset()),
            watermark_ms: self.windows.watermark_ms(),
            rejected: self.rejected.to_gaps(restart_offset),
            late: self.late.to_gaps(restart_offset),
            written_ms: now_ms,
            changes_topic: topics.changes.clone(),
            profiles_topic: topics.profiles.clone(),
            dead_letters_topic: topics.dead_letters.clone(),
            folded_below: self.folded_below,
            has_profiles: self.has_profiles,
        }
    }

    /// Marks an offset just read with its place among everything read.
    pub(super) fn mark(&mut self, offset: i64, sequence: u64, timestamp_ms: i64) {
        let last = self.marks.last_key_value().map(|(&o, _)| o);
        if last.is_none_or(|last| offset >= last.saturating_add(MARK_EVERY)) {
            self.marks.insert(
                offset,
                Mark {
                    sequence,
                    timestamp_ms,
                },
            );
        }
    }

    fn mark_of(&self, offset: i64) -> Option<Mark> {
        self.marks
            .range(..=offset)
            .next_back()
            .map(|(_, &mark)| mark)
    }

    /// When the oldest event that is not settled was written, as far as Kafka tells; `None`: all are settled.
    pub(super) fn oldest_unsettled_ms(&self) -> Option<i64> {
        let restart = self.progress.restart_offset();
        (restart < self.progress.next_offset())
            .then(|| self.mark_of(restart).map(|m| m.timestamp_ms))?
    }

    /// Where a user stands among those that wait: by the oldest of what waits.
    pub(super) fn rank(&self, user: &str) -> Option<u64> {
        let lowest = self.users.get(user)?.waiting.lowest()?;
        Some(self.mark_of(lowest).map_or(0, |m| m.sequence))
    }

    /// The user's lowest offset that was read and is neither folded nor given up.
    pub(super) fn lowest_unfolded(&self, user: &str) -> Option<i64> {
        let waiting = self.users.get(user).and_then(|q| q.waiting.lowest());
        [self.windows.lowest_open(user), waiting]
            .into_iter()
            .flatten()
            .min()
    }

    /// Forgets a user of whom nothing waits.
    pub(super) fn tidy(&mut self, user: &str) {
        if self
            .users
            .get(user)
            .is_some_and(|q| q.waiting.is_empty() && q.running.is_none())
        {
            self.users.remove(user);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::{Event, Record};
    use crate::window::{CloseReason, Kind};

    fn config() -> window::Config {
        let hour = Duration::from_secs(3600);
        window::Config {
            kind: Kind::Tumbling { size: hour },
            max_events: 100,
            max_tokens: None,
            max_age: hour,
            out_of_orderness: hour,
            allowed_lateness: hour,
            idle_timeout: None,
            max_future_skew: hour,
        }
    }

    #[test]
    fn what_may_be_folded_is_as_the_checkpoint_of_the_offset_says_or_else_all_that_there_is() {
        let checkpoint = proto::Checkpoint {
            restart_offset: 10,
            decided_below: 20,
            folded_below: 30,
            ..proto::Checkpoint::default()
        };
        for (noted, profiles, checkpoint, expected) in [
            (true, true, Some(&checkpoint), 30),
            // It may be older than the offset.
            (false, true, Some(&checkpoint), 90),
            (false, true, None, 90),
            (false, false, None, 10),
        ] {
            let restored = Restored {
                partition: 0,
                start: 10,
                committed: true,
                noted,
                end: 90,
                profiles,
                checkpoint: checkpoint.cloned(),
            };
            let partition = Partition::new(Arc::new(config()), &restored, 1);
            assert_eq!(partition.folded_below, expected, "{noted} {profiles}");
        }
    }

    #[test]
    fn a_window_that_holds_too_much_of_the_log_back_closes_before_reading_rests() {
        let restored = Restored {
            partition: 0,
            start: 0,
            committed: true,
            noted: true,
            end: 0,
            profiles: false,
            checkpoint: None,
        };
        let mut partition = Partition::new(Arc::new(config()), &restored, 1);
        let quiet = Event {
            offset: 0,
            time_ms: 1_000_000,
            tokens: 0,
            late: false,
            record: Record::default(),
        };
        let mut closed = Vec::new();
        partition.progress.read(0);
        partition
            .windows
            .insert("ann", quiet, 1_000_000, &mut closed);
        // All the others are settled.
        for offset in [MOST_OPEN / 2, MOST_OPEN - 1] {
            partition.progress.read(offset);
            partition.progress.settle(offset);
            partition.keep_checkpoint_small(usize::MAX, &mut closed);
            assert!(!partition.full(usize::MAX / 4));
        }
        let reasons: Vec<_> = closed.iter().map(|w| w.reason).collect();
        assert_eq!(reasons, [CloseReason::Checkpoint]);
        assert_eq!(&*closed[0].user, "ann");
    }
}
