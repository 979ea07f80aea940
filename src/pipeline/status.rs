//! How far the service is, as health, readiness and the demo show it.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the service is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// Connecting, or waiting for its part of the input.
    #[default]
    Starting,
    /// Bringing the view up to date.
    Restoring,
    /// At work.
    Running,
    /// Ending: finishing what is under way.
    Draining,
}

/// How far the service is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// What it is doing.
    pub phase: Phase,
    /// The input partitions that are restored and at work here.
    pub partitions: Arc<[i32]>,
    /// Why it waits for Kafka before it begins; `None`: it does not.
    pub waiting_for: Option<String>,
    /// The last fault that it began anew after.
    pub fault: Option<String>,
    /// Records read, those read again after a restart included.
    pub events_read: u64,
    /// Events that take part.
    pub accepted: u64,
    /// Of these, late ones.
    pub late: u64,
    /// Events read again that were folded or given up before.
    pub skipped: u64,
    /// Events given up, their dead letters committed.
    pub dead_lettered: u64,
    /// Windows that closed.
    pub windows_closed: u64,
    /// Open windows now.
    pub windows_open: u64,
    /// Memory that these hold.
    pub windows_open_bytes: u64,
    /// Updates begun.
    pub updates_begun: u64,
    /// Updates committed.
    pub updates_committed: u64,
    /// Events folded and committed.
    pub events_committed: u64,
    /// Answers that the gate refused.
    pub refused: u64,
    /// Updates made from the journal.
    pub from_journal: u64,
    /// Users that wait for the engine, or are with it.
    pub waiting: u64,
    /// Transactions committed.
    pub commits: u64,
    /// Time that these took.
    pub commit_time: Duration,
    /// Tokens that the model wrote.
    pub output_tokens: u64,
    /// Age of the oldest event that is not folded, read or not, by Kafka's timestamp; 0: there is none.
    pub oldest_unfolded: Duration,
    /// When the loop that owns the partitions turned last; `None` while there is none: before Kafka is there, between a
    /// fault and the new beginning, at the end.
    pub turned: Option<Instant>,
}

/// What is added to a [`Status`], field by field.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) events_read: u64,
    pub(super) accepted: u64,
    pub(super) late: u64,
    pub(super) skipped: u64,
    pub(super) dead_lettered: u64,
    pub(super) windows_closed: u64,
    pub(super) updates_begun: u64,
    pub(super) updates_committed: u64,
    pub(super) events_committed: u64,
    pub(super) refused: u64,
    pub(super) from_journal: u64,
    pub(super) commits: u64,
    pub(super) commit_time: Duration,
    pub(super) output_tokens: u64,
}

impl Tally {
    pub(super) fn add_to(&self, status: &mut Status) {
        status.events_read += self.events_read;
        status.accepted += self.accepted;
        status.late += self.late;
        status.skipped += self.skipped;
        status.dead_lettered += self.dead_lettered;
        status.windows_closed += self.windows_closed;
        status.updates_begun += self.updates_begun;
        status.updates_committed += self.updates_committed;
        status.events_committed += self.events_committed;
        status.refused += self.refused;
        status.from_journal += self.from_journal;
        status.commits += self.commits;
        status.commit_time += self.commit_time;
        status.output_tokens += self.output_tokens;
    }
}

/// The loop turns every 50 ms, also while a transaction or a restore takes its time. One that did not for so long hangs.
const STUCK: Duration = Duration::from_secs(30);

impl Status {
    /// Whether the loop turns.
    ///
    /// # Errors
    /// Says how long it has not.
    pub fn alive(&self) -> Result<(), String> {
        match self.turned.map(|at| at.elapsed()) {
            Some(still) if still > STUCK => Err(format!(
                "the pipeline has not moved for {} seconds",
                still.as_secs()
            )),
            _ => Ok(()),
        }
    }
}
