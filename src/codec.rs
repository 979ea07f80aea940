//! The edge between bytes and meaning: records in, records out. prost is named in this room only.

mod dead_letter;
mod json;
mod output;
mod partition;
mod protobuf;
mod read;

pub use dead_letter::{DeadLetter, Letter, Origin, dead_letter};
pub use output::{
    Error, FORMAT, FORMAT_HEADER, StateHead, Stored, change_json, decode_call, decode_change,
    decode_checkpoint, decode_state, encode, fold_marker, format_header, marker, offsets, runs,
    state_head, state_version,
};
pub use partition::Partitioner;

use std::borrow::Cow;

use crate::event::Record;
use read::Read;

/// The messages of `proto/limn.proto`, with the proto3 JSON mapping under the fields' own names.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/limn.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/limn.v1.serde.rs"));
}

/// Longest user id in bytes.
pub const MAX_USER_BYTES: usize = 512;

/// Most attributes of an event, those of nested JSON values counted one by one.
pub const MAX_ATTRIBUTES: usize = 256;

/// Longest detail of a rejection in bytes.
pub const MAX_DETAIL_BYTES: usize = 256;

/// The last event time that is taken: the end of the year 9999. Beyond it, the unit is wrong more likely than the year.
pub const MAX_TIME_MS: i64 = 253_402_300_799_999;

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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TimeUnit {
    /// Seconds; a fraction is kept to the millisecond.
    Seconds,
    /// Milliseconds.
    #[default]
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
    /// The template of an event's line, or of the message, fails on it.
    Template,
    /// The event alone is over the prompt budget.
    OverBudget,
    /// The model's answers were refused by the output gate, also for half the window.
    Refused,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Malformed,
        Self::NullValue,
        Self::NoUser,
        Self::UserTooLong,
        Self::NoTime,
        Self::TextTooLong,
        Self::TooLate,
        Self::Future,
        Self::WrongPartition,
        Self::Template,
        Self::OverBudget,
        Self::Refused,
    ];

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
            Self::Template => "template",
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

impl Rejected {
    /// A rejection; a detail over [`MAX_DETAIL_BYTES`] is cut.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        if detail.len() > MAX_DETAIL_BYTES {
            let cut = (0..=MAX_DETAIL_BYTES - '…'.len_utf8())
                .rev()
                .find(|&at| detail.is_char_boundary(at));
            detail.truncate(cut.unwrap_or(0));
            detail.push('…');
        }
        Self { reason, detail }
    }
}

/// Reads the input's records.
#[derive(Debug, Clone)]
pub struct Decoder {
    config: Config,
    format: Reader,
}

/// What of the format is made ready once, not for each record.
#[derive(Debug, Clone)]
enum Reader {
    Protobuf,
    Json(Box<json::Reader>),
}

impl Decoder {
    /// A decoder for this configuration.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let format = match &config.format {
            Format::Protobuf => Reader::Protobuf,
            Format::Json(mapping) => Reader::Json(Box::new(json::Reader::new(mapping))),
        };
        Self { config, format }
    }

    /// Checks a record in full and takes out what the stream needs; `timestamp_ms` is Kafka's, `None` where unset.
    ///
    /// # Errors
    /// [`Rejected`]: the record belongs to the dead letters.
    pub fn decode(&self, record: &Record, timestamp_ms: Option<i64>) -> Result<Decoded, Rejected> {
        self.decode_of(record.key.as_deref(), record.value.as_deref(), timestamp_ms)
    }

    /// As [`Decoder::decode`], of a record's key and value.
    ///
    /// # Errors
    /// As there.
    pub fn decode_of(
        &self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        timestamp_ms: Option<i64>,
    ) -> Result<Decoded, Rejected> {
        if let Some(glance) = self.glance(key, value) {
            return Ok(Decoded {
                time_ms: event_time(glance.time_ms, timestamp_ms)?,
                user: glance.user.into(),
            });
        }
        // One way in for both, and a glance takes nothing else: what is accepted here cannot be refused when the window is folded.
        let read = self.read(key, value, timestamp_ms)?;
        Ok(Decoded {
            user: read.user_id.into(),
            time_ms: read.time_ms,
        })
    }

    fn glance<'a>(
        &self,
        key: Option<&'a [u8]>,
        value: Option<&'a [u8]>,
    ) -> Option<json::Glance<'a>> {
        let (Reader::Json(reader), Some(value)) = (&self.format, value) else {
            return None;
        };
        if value.len() > self.config.max_event_bytes {
            return None;
        }
        reader.glance(value, key, self.config.max_text_bytes)
    }

    /// Whose event a record is that [`Decoder::decode`] refuses, as far as can be told: the value's user, else the key,
    /// which is the user's in an input that limn can work on.
    #[must_use]
    pub fn user(&self, record: &Record) -> Option<Box<str>> {
        let key = record.key.as_deref();
        let told = record.value.as_deref().and_then(|value| {
            let user = match &self.format {
                Reader::Protobuf => Cow::Owned(protobuf::read(value).ok()?.user_id),
                Reader::Json(reader) => reader.user(value, key).ok()?,
            };
            (!user.is_empty()).then_some(user)
        });
        match told {
            Some(user) => Some(user.into()),
            None => std::str::from_utf8(key?).ok().map(Into::into),
        }
    }

    /// The whole interaction, for the event template. A record that [`Decoder::decode`] took is taken here too. Its
    /// `time_ms` is the event time that counts: the value's own, else Kafka's. A time at or before the epoch is unset.
    ///
    /// # Errors
    /// [`Rejected`]: the record belongs to the dead letters.
    pub fn interaction(
        &self,
        record: &Record,
        timestamp_ms: Option<i64>,
    ) -> Result<proto::Interaction, Rejected> {
        self.interaction_of(record.key.as_deref(), record.value.as_deref(), timestamp_ms)
    }

    /// As [`Decoder::interaction`], of a record's key and value.
    ///
    /// # Errors
    /// As there.
    pub fn interaction_of(
        &self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        timestamp_ms: Option<i64>,
    ) -> Result<proto::Interaction, Rejected> {
        self.read(key, value, timestamp_ms).map(Into::into)
    }

    fn read<'a>(
        &self,
        key: Option<&'a [u8]>,
        value: Option<&'a [u8]>,
        timestamp_ms: Option<i64>,
    ) -> Result<Read<'a>, Rejected> {
        let Some(value) = value else {
            return Err(Rejected::new(Reason::NullValue, "the value is null"));
        };
        let too_long = |what: &str, bytes: usize, most: usize| {
            let detail = format!("{what}: {bytes} bytes, {most} are allowed");
            Err(Rejected::new(Reason::TextTooLong, detail))
        };
        if value.len() > self.config.max_event_bytes {
            return too_long("the value", value.len(), self.config.max_event_bytes);
        }
        let most = self.config.max_text_bytes;
        let mut read = match &self.format {
            Reader::Protobuf => protobuf::read(value)?.into(),
            Reader::Json(reader) => reader.read(value, key, most)?,
        };
        if read.user_id.is_empty() {
            return Err(Rejected::new(Reason::NoUser, "there is no user id"));
        }
        if read.user_id.len() > MAX_USER_BYTES {
            let bytes = read.user_id.len();
            let detail = format!("the user id: {bytes} bytes, {MAX_USER_BYTES} are allowed");
            return Err(Rejected::new(Reason::UserTooLong, detail));
        }
        read.time_ms = event_time(read.time_ms, timestamp_ms)?;
        for (what, text) in read.texts() {
            if text.len() > most {
                return too_long(what, text.len(), most);
            }
        }
        if read.attributes.len() > MAX_ATTRIBUTES {
            return Err(too_many_attributes());
        }
        Ok(read)
    }
}

/// The event time that counts: the value's, else Kafka's.
fn event_time(own: i64, kafka: Option<i64>) -> Result<i64, Rejected> {
    if own > MAX_TIME_MS {
        let detail = "the event time is behind the year 9999; is its unit right?";
        return Err(Rejected::new(Reason::Malformed, detail));
    }
    if own > 0 {
        return Ok(own);
    }
    match kafka {
        Some(time) if (1..=MAX_TIME_MS).contains(&time) => Ok(time),
        Some(time) if time > MAX_TIME_MS => Err(Rejected::new(
            Reason::NoTime,
            "no event time, and Kafka's timestamp is behind the year 9999",
        )),
        _ => Err(Rejected::new(
            Reason::NoTime,
            "no event time, and no timestamp from Kafka",
        )),
    }
}

fn too_many_attributes() -> Rejected {
    let detail = format!("over {MAX_ATTRIBUTES} attributes");
    Rejected::new(Reason::Malformed, detail)
}

#[cfg(test)]
mod tests;
