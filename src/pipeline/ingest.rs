//! What is made of a record on the polling thread, before its partition's state is asked.

use std::sync::Arc;

use super::Config;
use crate::codec::{Decoded, Decoder, Partitioner, Reason, Rejected};
use crate::event::Record;
use crate::summarize::{Line, Summarizer};

/// A record and what it holds.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) record: Record,
    /// The event and its line's tokens, or why it is none.
    pub(super) decoded: Result<(Decoded, u32), Rejected>,
}

pub(super) struct Ingest {
    decoder: Decoder,
    summarizer: Arc<Summarizer>,
    topic: Arc<str>,
    partitioner: Partitioner,
    partitions: i32,
    counts_tokens: bool,
}

impl Ingest {
    pub(super) fn new(
        config: &Config,
        decoder: Decoder,
        summarizer: Arc<Summarizer>,
        partitions: i32,
    ) -> Self {
        Self {
            decoder,
            summarizer,
            topic: config.source.topic.as_str().into(),
            partitioner: config.partitioner,
            partitions,
            counts_tokens: config.window.max_tokens.is_some(),
        }
    }

    pub(super) fn take(
        &self,
        partition: i32,
        offset: i64,
        timestamp_ms: Option<i64>,
        record: Record,
    ) -> Incoming {
        Incoming {
            decoded: self.decode(partition, offset, timestamp_ms, &record),
            record,
        }
    }

    fn decode(
        &self,
        partition: i32,
        offset: i64,
        timestamp_ms: Option<i64>,
        record: &Record,
    ) -> Result<(Decoded, u32), Rejected> {
        let decoded = self.decoder.decode(record, timestamp_ms)?;
        let home = self
            .partitioner
            .partition(decoded.user.as_bytes(), self.partitions);
        if let Some(home) = home.filter(|&home| home != partition) {
            // Two owners would write one profile.
            return Err(Rejected::new(
                Reason::WrongPartition,
                format!(
                    "the user's partition is {home} of {} (source.partitioner)",
                    self.partitions
                ),
            ));
        }
        let mut tokens = 0;
        if self.counts_tokens {
            let interaction = self.decoder.interaction(record, Some(decoded.time_ms))?;
            let counted = self.summarizer.line_tokens(Line {
                interaction,
                time_ms: decoded.time_ms,
                late: false,
                topic: Arc::clone(&self.topic),
                partition,
                offset,
            });
            // An event that the template fails on is given up with its update.
            tokens = counted.unwrap_or(0);
        }
        Ok((decoded, tokens))
    }
}
