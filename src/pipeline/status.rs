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
    /// Events given up.
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
