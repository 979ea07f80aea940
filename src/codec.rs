//! The edge between bytes and meaning: records in, records out. prost is named in this room only.

mod json;
mod output;
mod partition;

pub use output::{
    Error, FORMAT, FORMAT_HEADER, Origin, change_json, dead_letter, decode_call, decode_change,
    decode_checkpoint, decode_state, edits, encode, offsets, runs,
};
pub use partition::Partitioner;

use crate::event::Record;

/// The messages of `proto/limn.proto`, with the proto3 JSON mapping under the fields' own names.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/limn.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/limn.v1.serde.rs"));
}

/// Longest user id in bytes.
pub const MAX_USER_BYTES: usize = 512;
/// Most attributes of one event.
pub const MAX_ATTRIBUTES: usize = 256;

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
        let interaction = self.interaction(record, timestamp_ms)?;
        Ok(Decoded {
            user: interaction.user_id.into(),
            time_ms: interaction.time_ms,
        })
    }

    /// The whole interaction, its time settled. A record that [`Decoder::decode`] took is taken here too.
    ///
    /// # Errors
    /// [`Rejected`]: the record belongs to the dead letters.
    pub fn interaction(
        &self,
        record: &Record,
        timestamp_ms: Option<i64>,
    ) -> Result<proto::Interaction, Rejected> {
        let value = record
            .value
            .as_deref()
            .ok_or_else(|| Rejected::new(Reason::NullValue, "the value is null"))?;
        let most = self.config.max_event_bytes;
        if value.len() > most {
            let detail = format!("the value has {} bytes, the limit is {most}", value.len());
            return Err(Rejected::new(Reason::TextTooLong, detail));
        }
        let mut interaction = match &self.config.format {
            Format::Protobuf => {
                <proto::Interaction as prost::Message>::decode(value).map_err(|e| {
                    Rejected::new(Reason::Malformed, format!("not an Interaction: {e}"))
                })?
            }
            Format::Json(mapping) => json::interaction(mapping, value, record.key.as_deref())?,
        };
        self.check(&mut interaction, timestamp_ms)?;
        Ok(interaction)
    }

    fn check(
        &self,
        interaction: &mut proto::Interaction,
        timestamp_ms: Option<i64>,
    ) -> Result<(), Rejected> {
        if interaction.user_id.is_empty() {
            return Err(Rejected::new(
                Reason::NoUser,
                "the user is missing or empty",
            ));
        }
        if interaction.user_id.len() > MAX_USER_BYTES {
            let detail = format!(
                "the user id has {} bytes, the limit is {MAX_USER_BYTES}",
                interaction.user_id.len()
            );
            return Err(Rejected::new(Reason::UserTooLong, detail));
        }
        if interaction.time_ms <= 0 {
            interaction.time_ms = timestamp_ms.ok_or_else(|| {
                Rejected::new(
                    Reason::NoTime,
                    "neither the value nor the record has a time",
                )
            })?;
        }
        let none = proto::Item::default();
        let item = interaction.item.as_ref().unwrap_or(&none);
        let named = [
            ("id", &interaction.id),
            ("action", &interaction.action),
            ("text", &interaction.text),
            ("item.id", &item.id),
            ("item.title", &item.title),
            ("item.category", &item.category),
            ("item.description", &item.description),
        ];
        let most = self.config.max_text_bytes;
        let too_long = |name: &str, text: &String| {
            (text.len() > most).then(|| {
                let detail = format!("{name} has {} bytes, the limit is {most}", text.len());
                Rejected::new(Reason::TextTooLong, detail)
            })
        };
        let over = named.iter().find_map(|(name, text)| too_long(name, text));
        let over = over.or_else(|| {
            let mut attributes = interaction.attributes.iter();
            attributes.find_map(|(name, text)| {
                too_long("an attribute's name", name).or_else(|| too_long("an attribute", text))
            })
        });
        match over {
            Some(rejected) => Err(rejected),
            None if interaction.attributes.len() > MAX_ATTRIBUTES => Err(too_many_attributes()),
            None => Ok(()),
        }
    }
}

fn too_many_attributes() -> Rejected {
    Rejected::new(
        Reason::Malformed,
        format!("more than {MAX_ATTRIBUTES} attributes"),
    )
}

impl Rejected {
    /// A reason and its detail.
    #[must_use]
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message as _;

    pub(super) fn decoder(format: Format) -> Decoder {
        Decoder::new(Config {
            format,
            max_text_bytes: 40,
            max_event_bytes: 4000,
        })
    }

    fn record(value: Option<Vec<u8>>) -> Record {
        Record {
            value: value.map(Into::into),
            ..Record::default()
        }
    }

    fn reason(result: Result<Decoded, Rejected>) -> Reason {
        result.unwrap_err().reason
    }

    #[test]
    fn each_fault_of_a_protobuf_record_has_its_reason() {
        let decoder = decoder(Format::Protobuf);
        let good = proto::Interaction {
            user_id: "ann".into(),
            time_ms: 5,
            ..Default::default()
        };
        let decode =
            |i: &proto::Interaction, ts| decoder.decode(&record(Some(i.encode_to_vec())), ts);
        assert_eq!(
            decode(&good, None).unwrap(),
            Decoded {
                user: "ann".into(),
                time_ms: 5
            }
        );
        let unset = proto::Interaction {
            time_ms: 0,
            ..good.clone()
        };
        assert_eq!(decode(&unset, Some(9)).unwrap().time_ms, 9);
        assert_eq!(reason(decode(&unset, None)), Reason::NoTime);
        let nobody = proto::Interaction {
            user_id: String::new(),
            ..good.clone()
        };
        assert_eq!(reason(decode(&nobody, None)), Reason::NoUser);
        for (length, fine) in [(MAX_USER_BYTES, true), (MAX_USER_BYTES + 1, false)] {
            let user = proto::Interaction {
                user_id: "x".repeat(length),
                ..good.clone()
            };
            match decode(&user, None) {
                Ok(_) => assert!(fine),
                Err(rejected) => assert!(!fine && rejected.reason == Reason::UserTooLong),
            }
        }
        let long = proto::Interaction {
            text: "secret ".repeat(9),
            ..good.clone()
        };
        let rejected = decode(&long, None).unwrap_err();
        assert_eq!(rejected.reason, Reason::TextTooLong);
        assert!(!rejected.detail.contains("secret"), "{}", rejected.detail);
        let attribute = proto::Interaction {
            attributes: [("a".into(), "x".repeat(41))].into(),
            ..good
        };
        assert_eq!(reason(decode(&attribute, None)), Reason::TextTooLong);
        assert_eq!(
            reason(decoder.decode(&record(None), None)),
            Reason::NullValue
        );
        assert_eq!(
            reason(decoder.decode(&record(Some(vec![0xff; 9])), None)),
            Reason::Malformed
        );
        assert_eq!(
            reason(decoder.decode(&record(Some(vec![0; 4001])), None)),
            Reason::TextTooLong
        );
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_decoder_and_what_decode_takes_interaction_takes(
            bytes in prop::collection::vec(any::<u8>(), 0..200), json in any::<bool>()
        ) {
            let format = if json { Format::Json(Box::default()) } else { Format::Protobuf };
            let (decoder, record) = (decoder(format), record(Some(bytes)));
            if let Ok(decoded) = decoder.decode(&record, Some(7)) {
                let again = decoder.interaction(&record, Some(decoded.time_ms)).unwrap();
                prop_assert_eq!(again.user_id.as_str(), &*decoded.user);
            }
        }
    }
}
