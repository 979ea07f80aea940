//! The edge between bytes and meaning: records in, records out. prost is named in this room only.

use crate::event::Record;

/// The messages of `proto/limn.proto`, with the proto3 JSON mapping under the fields' own names.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/limn.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/limn.v1.serde.rs"));
}

/// Longest user id in bytes.
pub const MAX_USER_BYTES: usize = 512;

/// How the input's records are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What a record's value holds.
    pub format: Format,
    /// Longest single text of an event (title, description, text, an attribute's value …) in bytes.
    pub max_text_bytes: usize,
    /// Most bytes of a record's value.
    pub max_event_bytes: usize,
}

/// What a record's value holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// `limn.v1.Interaction`.
    Protobuf,
    /// A JSON object.
    Json(Box<JsonMapping>),
}

/// Where the fields stand in a JSON value, as JSON pointers (RFC 6901). What no pointer names becomes an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonMapping {
    /// The user: a string or a whole number. `None`: the record's key, as UTF-8.
    pub user: Option<String>,
    /// The event's own id.
    pub id: Option<String>,
    /// The event time. `None`, or absent from the value: Kafka's timestamp.
    pub time: Option<String>,
    /// What the number at `time` counts.
    pub time_unit: TimeUnit,
    /// What was done.
    pub action: Option<String>,
    /// The item's id.
    pub item_id: Option<String>,
    /// The item's title.
    pub item_title: Option<String>,
    /// The item's category.
    pub item_category: Option<String>,
    /// The item's description.
    pub item_description: Option<String>,
    /// What was said or written.
    pub text: Option<String>,
}

/// What an event time counts since the Unix epoch, or how it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeUnit {
    /// Seconds; a fraction is kept to the millisecond.
    Seconds,
    /// Milliseconds.
    Milliseconds,
    /// Microseconds.
    Microseconds,
    /// Nanoseconds.
    Nanoseconds,
    /// A text as RFC 3339 has it.
    Rfc3339,
}

/// What the stream needs to know of a record before its window is folded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The user, at most [`MAX_USER_BYTES`] long.
    pub user: Box<str>,
    /// Event time in milliseconds since the Unix epoch.
    pub time_ms: i64,
}

/// Why an event is not folded, as the dead letter's `limn-reason` header has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The value cannot be read: not the format, or a field of the wrong kind.
    Malformed,
    /// The value is null.
    NullValue,
    /// There is no user.
    NoUser,
    /// The user id is over [`MAX_USER_BYTES`].
    UserTooLong,
    /// Neither the value nor Kafka has a time.
    NoTime,
    /// A text is over its limit.
    TextTooLong,
    /// Behind the watermark by more than the allowed lateness.
    TooLate,
    /// Further in the future than the allowed skew.
    Future,
    /// Not in the partition that the user's key belongs to.
    WrongPartition,
    /// The event alone is over the prompt budget.
    OverBudget,
    /// The model's answers were refused by the output gate, also for half the window.
    Refused,
}

impl Reason {
    /// The name in headers and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NullValue => "null_value",
            Self::NoUser => "no_user",
            Self::UserTooLong => "user_too_long",
            Self::NoTime => "no_time",
            Self::TextTooLong => "text_too_long",
            Self::TooLate => "too_late",
            Self::Future => "future",
            Self::WrongPartition => "wrong_partition",
            Self::OverBudget => "over_budget",
            Self::Refused => "refused",
        }
    }
}

/// An event that goes to the dead letters: why, and what exactly (without the event's text).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The reason.
    pub reason: Reason,
    /// What exactly was wrong: a field, a limit, a place.
    pub detail: String,
}

/// Reads the input's records.
#[derive(Debug, Clone)]
pub struct Decoder {
    config: Config,
}

impl Decoder {
    /// A decoder for this configuration.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// Checks a record in full and takes out what the stream needs; `timestamp_ms` is Kafka's, `None` where unset.
    ///
    /// # Errors
    /// [`Rejected`]: the record belongs to the dead letters.
    pub fn decode(&self, record: &Record, timestamp_ms: Option<i64>) -> Result<Decoded, Rejected> {
        let _ = (&self.config, record, timestamp_ms);
        todo!()
    }

    /// The whole interaction, for the event template. A record that [`Decoder::decode`] took is taken here too.
    ///
    /// # Errors
    /// [`Rejected`]: the record belongs to the dead letters.
    pub fn interaction(
        &self,
        record: &Record,
        timestamp_ms: Option<i64>,
    ) -> Result<proto::Interaction, Rejected> {
        let _ = (&self.config, record, timestamp_ms);
        todo!()
    }
}
