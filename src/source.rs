//! Events with their positions, out of Kafka: assignments as messages, records behind them, and how to read a topic back.

mod batches;
mod edges;
mod ends;
mod kafka;
mod member;
mod raw;
mod reach;
mod rebalance;
mod record;
mod restore;

pub use edges::settled;
pub use ends::Ends;
pub use kafka::{Kafka, Paused};
pub use raw::{Counted, count};
pub use reach::reach;
pub use restore::{Back, Restored, Wanted, bounds, committed, partitions, restore};

use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// How the input is read.
#[derive(Debug, Clone)]
pub struct Config {
    /// librdkafka properties, `bootstrap.servers` among them. They may hold secrets and are never logged.
    pub properties: Vec<(String, String)>,
    /// The input topic.
    pub topic: String,
    /// The consumer group.
    pub group: String,
    /// Where a partition without a committed offset begins.
    pub start: Start,
    /// Most records in one message.
    pub batch: usize,
    /// How long the brokers may take to tell the offsets of a new assignment.
    pub assign_timeout: Duration,
}

/// Where a partition begins that the group never committed an offset of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the oldest record that is kept.
    Earliest,
    /// With what is written from now on.
    Latest,
}

/// A record as it was read, and what the caller's decoder made of it.
#[derive(Debug)]
pub struct Read<D> {
    /// The input partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
    /// Kafka's timestamp in milliseconds since the Unix epoch; `None` where it is unset (0 or less).
    pub timestamp_ms: Option<i64>,
    /// What the decoder returned.
    pub decoded: D,
}

/// A partition that this instance owns from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// The input partition.
    pub partition: i32,
    /// The offset that its reading begins at.
    pub start: i64,
    /// Whether the group had committed that offset.
    pub committed: bool,
    /// What was committed beside it ([`crate::commit::Batch::note`]); empty where that is nothing, or no offset.
    pub note: String,
    /// The oldest offset that the log holds.
    pub low: i64,
    /// Where the log ends.
    pub high: i64,
}

/// What the source tells, in order.
#[derive(Debug)]
pub enum Message<D> {
    /// Partitions gained. Nothing of them is read until [`Kafka::ready`] says so.
    Assigned(Vec<Assigned>),
    /// Partitions given up. The group waits until `done` is sent or dropped; records of them that stand behind this
    /// message belong to a later assignment.
    Revoked {
        /// The partitions.
        partitions: Vec<i32>,
        /// They already belong to others: nothing may be committed for them.
        lost: bool,
        /// Lets the rebalance go on.
        done: SyncSender<()>,
    },
    /// Records in the order of their offsets, partition by partition.
    Records(Vec<Read<D>>),
    /// The partition holds nothing more below `position`.
    End {
        /// The input partition.
        partition: i32,
        /// The offset that the next record will have at least.
        position: i64,
    },
    /// The source has stopped.
    Failed(Error),
}

/// Why the input cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A client could not be made, or the brokers did not answer.
    #[error("Kafka, while {doing}: {reason}")]
    Kafka {
        /// What was being done.
        doing: String,
        /// What librdkafka said.
        reason: String,
    },
    /// There is no such topic.
    #[error(
        "topic {topic} does not exist on these brokers: create it (the input with the partitions that it is to have, the others with limn topics), or correct its name in the configuration"
    )]
    MissingTopic {
        /// The topic.
        topic: String,
    },
    /// Unread records are gone.
    #[error(
        "{topic}[{partition}] begins at offset {low}, but the group {group} goes on at {committed}: {} records were removed before they were folded. \
         Look into the topic's retention; to go on without them, set the group's offset with kafka-consumer-groups.sh --reset-offsets",
        low - committed
    )]
    Removed {
        /// The input topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The consumer group.
        group: String,
        /// Where the group goes on: its committed offset, or its checkpoint's where it has none.
        committed: i64,
        /// The oldest offset that is still there.
        low: i64,
    },
    /// The committed offset is beyond what the topic holds.
    #[error(
        "{topic}[{partition}] ends at offset {high}, but the group {group} goes on at {committed}: the topic was made anew or cut. \
         Where it was cut, set the group's offset with kafka-consumer-groups.sh --reset-offsets. One that was made anew wants another group \
         and output topics of its own: the profiles tell by offsets what is folded"
    )]
    Beyond {
        /// The input topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The consumer group.
        group: String,
        /// Where the group goes on: its committed offset, or its checkpoint's where it has none.
        committed: i64,
        /// The topic's end.
        high: i64,
    },
}

impl Error {
    /// Whether a restart can begin at an offset that was written down before: the log must still hold it, or end there.
    pub(crate) fn of_position(
        topic: &str,
        partition: i32,
        group: &str,
        committed: i64,
        (low, high): (i64, i64),
    ) -> Result<(), Self> {
        let (topic, group) = (topic.to_owned(), group.to_owned());
        if committed < low {
            return Err(Self::Removed {
                topic,
                partition,
                group,
                committed,
                low,
            });
        }
        if committed > high {
            return Err(Self::Beyond {
                topic,
                partition,
                group,
                committed,
                high,
            });
        }
        Ok(())
    }

    fn kafka(doing: impl Into<String>) -> impl FnOnce(rdkafka::error::KafkaError) -> Self {
        let doing = doing.into();
        move |error| Self::Kafka {
            doing,
            reason: error.to_string(),
        }
    }
}
