//! Records out of librdkafka's buffers.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::{Bytes, BytesMut};
use rdkafka::message::{BorrowedMessage, Headers, Message as _};

use crate::event::{Header, Record};

/// Kafka's timestamp; 0 and less are unset.
pub(super) fn timestamp_ms(message: &BorrowedMessage<'_>) -> Option<i64> {
    message.timestamp().to_millis().filter(|&ms| ms > 0)
}

/// Copies records out of librdkafka's buffers, many into one piece of memory.
#[derive(Debug, Default)]
pub(super) struct Copies(BytesMut);

impl Copies {
    /// A piece of memory; a record larger than this has one of its own.
    const PIECE: usize = 64 << 10;

    /// A record of its own.
    pub(super) fn record(
        &mut self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: Box<[Header]>,
    ) -> Record {
        Record {
            key: key.map(|key| self.copy(key)),
            value: value.map(|value| self.copy(value)),
            headers,
        }
    }

    fn copy(&mut self, bytes: &[u8]) -> Bytes {
        if self.0.capacity() < bytes.len() {
            self.0 = BytesMut::with_capacity(bytes.len().max(Self::PIECE));
        }
        self.0.extend_from_slice(bytes);
        self.0.split().freeze()
    }
}

/// The record's own bytes.
pub(super) fn record(message: &BorrowedMessage<'_>, copies: &mut Copies) -> Record {
    // rdkafka panics on a header whose name is not UTF-8. One such record must not stop the stream: it goes on without
    // its headers, and says so in one of ours.
    let headers = catch_unwind(AssertUnwindSafe(|| {
        message.headers().map_or_else(Vec::new, |headers| {
            headers
                .iter()
                .map(|h| (h.key.into(), h.value.map(Into::into)))
                .collect()
        })
    }))
    .unwrap_or_else(|_| vec![("limn-headers".into(), Some(b"unreadable"[..].into()))]);
    copies.record(message.key(), message.payload(), headers.into())
}
