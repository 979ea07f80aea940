//! One user interaction as it was read: the record's bytes, its event time and its place in Kafka.

use bytes::Bytes;

/// A Kafka header: its name, and its value, which may be null.
pub type Header = (Box<str>, Option<Box<[u8]>>);

/// A record's original bytes, kept whole so that a dead letter can carry them unchanged. Key and value may be parts of one
/// piece of memory with those of other records: to keep them for long, copy them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The Kafka key; `None` where the record had none.
    pub key: Option<Bytes>,
    /// The Kafka value; `None` is a null value.
    pub value: Option<Bytes>,
    /// The Kafka headers in their order.
    pub headers: Box<[Header]>,
}

/// An accepted event, waiting to be folded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Offset in the input partition; the partition is known where the event is kept.
    pub offset: i64,
    /// Event time in milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// Tokens of the event's prompt line; 0 where no token limit asks for them.
    pub tokens: u32,
    /// Behind the watermark when read, but within the allowed lateness.
    pub late: bool,
    /// What was read.
    pub record: Record,
}

impl Event {
    /// Bytes of the original record, as memory limits count them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let Record {
            key,
            value,
            headers,
        } = &self.record;
        let headers = headers.iter();
        let headers =
            headers.map(|(name, value)| name.len() + value.as_ref().map_or(0, |v| v.len()));
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        len(key) + len(value) + headers.sum::<usize>()
    }
}

/// What a record's framing takes at the most, that of a batch of one included.
const FRAMING: usize = 100;
/// The lengths of a header's name and value.
const LENGTHS: usize = 10;

/// How many bytes a record has for Kafka, at the most: what the limits of producers and topics speak of.
#[must_use]
pub fn wire_bytes(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[Header]) -> usize {
    let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    let headers = headers
        .iter()
        .map(|(name, value)| LENGTHS + name.len() + length(value.as_deref()));
    FRAMING + length(key) + length(value) + headers.sum::<usize>()
}
