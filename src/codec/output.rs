//! limn's own records: versioned, so that an older limn refuses a newer's by name.

use std::time::{Duration, Instant};

use prost::Message;
use similar::{Algorithm, ChangeTag, capture_diff_slices_deadline};

use super::{Rejected, proto};
use crate::checkpoint::OffsetSet;
use crate::event::{Header, Record};

/// The format of what is written now. It is in every record, and in the header [`FORMAT_HEADER`].
pub const FORMAT: u32 = 1;
/// The header that tells a record's format.
pub const FORMAT_HEADER: &str = "limn-format";

/// A record of limn's own that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not what it should be.
    #[error("a {what} cannot be read: {reason}")]
    Malformed {
        /// The kind of record.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Written by a newer limn.
    #[error("a {what} has format {found}, this limn reads up to {FORMAT}: run a newer limn")]
    Newer {
        /// The kind of record.
        what: &'static str,
        /// The format found.
        found: u32,
    },
}

/// A message as bytes.
pub fn encode(message: &impl Message) -> Vec<u8> {
    message.encode_to_vec()
}

fn decode<M: Message + Default>(
    what: &'static str,
    bytes: &[u8],
    format: impl Fn(&M) -> u32,
) -> Result<M, Error> {
    let message = M::decode(bytes).map_err(|e| Error::Malformed {
        what,
        reason: e.to_string(),
    })?;
    match format(&message) {
        0 => Err(Error::Malformed {
            what,
            reason: "it has no format".to_owned(),
        }),
        found if found > FORMAT => Err(Error::Newer { what, found }),
        _ => Ok(message),
    }
}

/// A profile's state.
///
/// # Errors
/// [`Error`] where the bytes are damaged or newer.
pub fn decode_state(bytes: &[u8]) -> Result<proto::ProfileState, Error> {
    decode("profile state", bytes, |m: &proto::ProfileState| m.format)
}

/// A change event.
///
/// # Errors
/// [`Error`] where the bytes are damaged or newer.
pub fn decode_change(bytes: &[u8]) -> Result<proto::ProfileChange, Error> {
    decode("change event", bytes, |m: &proto::ProfileChange| m.format)
}

/// A checkpoint.
///
/// # Errors
/// [`Error`] where the bytes are damaged or newer.
pub fn decode_checkpoint(bytes: &[u8]) -> Result<proto::Checkpoint, Error> {
    decode("checkpoint", bytes, |m: &proto::Checkpoint| m.format)
}

/// A finished model call.
///
/// # Errors
/// [`Error`] where the bytes are damaged or newer.
pub fn decode_call(bytes: &[u8]) -> Result<proto::ModelCall, Error> {
    decode("journal entry", bytes, |m: &proto::ModelCall| m.format)
}

/// A set of offsets as runs.
#[must_use]
pub fn runs(offsets: &OffsetSet) -> Vec<proto::Run> {
    offsets
        .runs()
        .map(|(first, end)| proto::Run { first, end })
        .collect()
}

/// The offsets of runs; empty and backward ones hold none.
#[must_use]
pub fn offsets(runs: &[proto::Run]) -> OffsetSet {
    let mut set = OffsetSet::default();
    for run in runs {
        set.insert_run(run.first, run.end);
    }
    set
}

/// A change event as one line of JSON: the proto3 mapping under the fields' own names (64-bit numbers are strings), and the fields that
/// every reader looks for are there also when they are empty.
#[must_use]
pub fn change_json(change: &proto::ProfileChange) -> String {
    // The mapping of a message to JSON values cannot fail: it has no maps with other keys than strings.
    let mut value = serde_json::to_value(change).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        for (name, empty) in [
            ("user_id", ""),
            ("version", "0"),
            ("previous_version", "0"),
            ("before", ""),
            ("after", ""),
        ] {
            fields.entry(name).or_insert_with(|| empty.into());
        }
    }
    value.to_string()
}

/// Where a record stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// The headers of a dead letter: the record's own, then those that say where it stood and why it is here. Of two headers of one
/// name the last counts, so a dead letter that was played back and failed again tells of its last failure.
#[must_use]
pub fn dead_letter(record: &Record, origin: Origin<'_>, rejected: &Rejected) -> Vec<Header> {
    let told = [
        (FORMAT_HEADER, FORMAT.to_string()),
        ("limn-topic", origin.topic.to_owned()),
        ("limn-partition", origin.partition.to_string()),
        ("limn-offset", origin.offset.to_string()),
        ("limn-reason", rejected.reason.name().to_owned()),
        ("limn-detail", rejected.detail.chars().take(500).collect()),
    ];
    let told = told.map(|(name, value)| (name.into(), Some(value.into_bytes().into())));
    record.headers.iter().cloned().chain(told).collect()
}

/// How long the search for the smallest difference may take; past it, a larger one is told.
const DIFF_TIME: Duration = Duration::from_millis(20);

/// What was kept, taken away and added, word by word: KEPT and ADDED together are `after`, KEPT and REMOVED are `before`.
#[must_use]
pub fn edits(before: &str, after: &str) -> Vec<proto::Edit> {
    let (old, new) = (words(before), words(after));
    let deadline = Some(Instant::now() + DIFF_TIME);
    let mut edits: Vec<proto::Edit> = Vec::new();
    for op in capture_diff_slices_deadline(Algorithm::Myers, &old, &new, deadline) {
        for change in op.iter_changes(&old, &new) {
            let kind = match change.tag() {
                ChangeTag::Equal => proto::edit::Kind::Kept,
                ChangeTag::Delete => proto::edit::Kind::Removed,
                ChangeTag::Insert => proto::edit::Kind::Added,
            } as i32;
            match edits.last_mut() {
                Some(last) if last.kind == kind => last.text.push_str(change.value()),
                _ => edits.push(proto::Edit {
                    kind,
                    text: change.value().to_owned(),
                }),
            }
        }
    }
    edits
}

/// Words and the spaces between them.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut start = 0;
    let mut space = None;
    for (at, c) in text.char_indices() {
        if space.is_some_and(|was: bool| was != c.is_whitespace()) {
            words.push(&text[start..at]);
            start = at;
        }
        space = Some(c.is_whitespace());
    }
    if start < text.len() {
        words.push(&text[start..]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Reason;
    use proptest::prelude::*;

    #[test]
    fn a_newer_record_is_refused_by_name_and_one_without_a_format_too() {
        let state = |format| {
            encode(&proto::ProfileState {
                format,
                version: 3,
                ..Default::default()
            })
        };
        assert_eq!(decode_state(&state(1)).unwrap().version, 3);
        let newer = decode_state(&state(2)).unwrap_err().to_string();
        assert!(
            newer.contains("profile state") && newer.contains("format 2"),
            "{newer}"
        );
        assert!(matches!(
            decode_state(&state(0)),
            Err(Error::Malformed { .. })
        ));
        assert!(matches!(
            decode_checkpoint(b"\xff\xff"),
            Err(Error::Malformed { .. })
        ));
    }

    #[test]
    fn a_change_as_json_has_the_fields_own_names_and_the_five_always() {
        let json = change_json(&proto::ProfileChange {
            format: 1,
            version: 1,
            user_id: "ann".into(),
            after: "Likes tea.".into(),
            ..Default::default()
        });
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["user_id"], "ann");
        assert_eq!(value["version"], "1");
        assert_eq!(value["previous_version"], "0");
        assert_eq!(value["before"], "");
        assert_eq!(value["after"], "Likes tea.");
        assert!(!json.contains('\n'));
    }

    #[test]
    fn a_dead_letter_keeps_its_own_headers_and_tells_where_it_stood_and_why() {
        let record = Record {
            headers: vec![
                ("trace".into(), Some(b"x"[..].into())),
                ("null".into(), None),
            ]
            .into(),
            ..Record::default()
        };
        let origin = Origin {
            topic: "in",
            partition: 2,
            offset: 9,
        };
        let headers = dead_letter(&record, origin, &Rejected::new(Reason::NoUser, "none"));
        let text: Vec<_> = headers
            .iter()
            .map(|(n, v)| {
                (
                    &**n,
                    v.as_deref()
                        .map_or("-", |v| std::str::from_utf8(v).unwrap()),
                )
            })
            .collect();
        assert_eq!(
            text,
            [
                ("trace", "x"),
                ("null", "-"),
                ("limn-format", "1"),
                ("limn-topic", "in"),
                ("limn-partition", "2"),
                ("limn-offset", "9"),
                ("limn-reason", "no_user"),
                ("limn-detail", "none")
            ]
        );
    }

    proptest! {
        #[test]
        fn the_edits_tell_both_texts(before in "[ab \n]{0,30}", after in "[ab \u{e9}]{0,30}") {
            let edits = edits(&before, &after);
            let join = |out: proto::edit::Kind| edits.iter().filter(|e| e.kind != out as i32).map(|e| e.text.as_str()).collect::<String>();
            prop_assert_eq!(join(proto::edit::Kind::Removed), after);
            prop_assert_eq!(join(proto::edit::Kind::Added), before);
            prop_assert!(edits.windows(2).all(|w| w[0].kind != w[1].kind));
        }

        #[test]
        fn no_bytes_break_a_reader(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = (decode_state(&bytes), decode_checkpoint(&bytes), decode_change(&bytes), decode_call(&bytes));
        }
    }
}
