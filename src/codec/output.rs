//! What limn writes for itself and others: profiles, changes, checkpoints and model calls, each with its format.

use prost::Message;
use serde_json::Value;

use super::proto;
use crate::checkpoint::OffsetSet;
use crate::event::Header;
use crate::profile;

/// The format of everything that this program writes, and the newest one that it reads.
pub const FORMAT: u32 = 1;

/// The header that gives a record's format, as a decimal number.
pub const FORMAT_HEADER: &str = "limn-format";

/// Most runs of offsets in one list. A Kafka record of the usual size has no room for as many.
const MAX_RUNS: usize = 1 << 20;

/// Why a record of limn's own cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not what limn writes.
    #[error("a malformed {what}: {reason}")]
    Malformed {
        /// The kind of record.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer limn wrote it.
    #[error("a {what} of format {found}, and this limn knows format {known}: run a newer limn")]
    Newer {
        /// The kind of record.
        what: &'static str,
        /// The record's format.
        found: u32,
        /// The newest format that is known.
        known: u32,
    },
}

mod sealed {
    pub trait Sealed: Clone + Default + prost::Message {
        /// What errors call it.
        const WHAT: &'static str;
        fn format(&self) -> u32;
        fn set_format(&mut self, format: u32);
    }
}

/// A message that carries its format.
pub trait Stored: sealed::Sealed {}

macro_rules! stored {
    ($($message:ident $what:literal),*) => {$(
        impl sealed::Sealed for proto::$message {
            const WHAT: &'static str = $what;
            fn format(&self) -> u32 {
                self.format
            }
            fn set_format(&mut self, format: u32) {
                self.format = format;
            }
        }
        impl Stored for proto::$message {}
    )*};
}

stored!(
    ProfileState "profile state",
    ProfileChange "profile change",
    Checkpoint "checkpoint",
    ModelCall "model call"
);

/// The message's bytes. They carry [`FORMAT`], whatever the message says.
#[must_use]
pub fn encode<M: Stored>(message: &M) -> Vec<u8> {
    if message.format() == FORMAT {
        return message.encode_to_vec();
    }
    let mut message = message.clone();
    message.set_format(FORMAT);
    message.encode_to_vec()
}

/// The header that goes with every record of limn's own topics.
#[must_use]
pub fn format_header() -> Header {
    let value = FORMAT.to_string().into_bytes();
    (FORMAT_HEADER.into(), Some(value.into()))
}

/// Reads a profile state, as the profiles topic and the view hold it.
///
/// # Errors
/// [`Error`]: it is malformed, or of a newer format.
pub fn decode_state(bytes: &[u8]) -> Result<proto::ProfileState, Error> {
    decode(bytes)
}

/// The version of a profile state, and nothing more of it: that it is of this format is looked at, and that it is well-formed up to
/// these two fields. A restore asks this of millions.
///
/// # Errors
/// As [`decode_state`].
pub fn state_version(bytes: &[u8]) -> Result<u64, Error> {
    match state_head(bytes) {
        Some(head) if head.format == u64::from(FORMAT) => Ok(head.version),
        _ => decode_state(bytes).map(|state| state.version),
    }
}

/// What a profile state begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateHead<'a> {
    /// Its format.
    pub format: u64,
    /// Its user; whether that is UTF-8 is not looked at.
    pub user: &'a [u8],
    /// Its version.
    pub version: u64,
}

/// Format, user and version of a profile state that begins with them, in this order, and with another field behind them, as limn writes
/// states; `None` of any other (protobuf.dev/programming-guides/encoding). What is behind that is not looked at: whoever writes fields in
/// the order of their numbers, as limn and protobuf's own libraries do, has none of these once more there. Blocks of states in the state folder are
/// written by this rule (`store/packed/block.rs`): another one is another format of theirs.
#[must_use]
#[inline]
pub fn state_head(mut bytes: &[u8]) -> Option<StateHead<'_>> {
    // Nearly all of them have one byte.
    #[inline(always)]
    fn varint(bytes: &mut &[u8]) -> Option<u64> {
        match bytes.split_first()? {
            (&byte @ ..0x80, rest) => {
                *bytes = rest;
                Some(byte.into())
            }
            _ => prost::encoding::decode_varint(bytes).ok(),
        }
    }
    // A field's number, and how it is written.
    let key = |bytes: &mut &[u8], number: u8, kind: u8| {
        *bytes = bytes.strip_prefix(&[number << 3 | kind])?;
        Some(())
    };
    key(&mut bytes, 1, 0)?;
    let format = varint(&mut bytes)?;
    key(&mut bytes, 2, 2)?;
    let length = usize::try_from(varint(&mut bytes)?).ok()?;
    let (user, mut bytes) = bytes.split_at_checked(length)?;
    key(&mut bytes, 3, 0)?;
    let version = varint(&mut bytes)?;
    // Of a field that is there twice the last counts. Keys of one byte have the low numbers, and this one's is above these three.
    let next = bytes.first().is_none_or(|key| (4 << 3..0x80).contains(key));
    next.then_some(StateHead {
        format,
        user,
        version,
    })
}

/// Reads a change event.
///
/// # Errors
/// [`Error`]: it is malformed, or of a newer format.
pub fn decode_change(bytes: &[u8]) -> Result<proto::ProfileChange, Error> {
    decode(bytes)
}

/// Reads a checkpoint.
///
/// # Errors
/// [`Error`]: it is malformed, or of a newer format.
pub fn decode_checkpoint(bytes: &[u8]) -> Result<proto::Checkpoint, Error> {
    decode(bytes)
}

/// Reads a finished model call, as the journal holds it.
///
/// # Errors
/// [`Error`]: it is malformed, or of a newer format.
pub fn decode_call(bytes: &[u8]) -> Result<proto::ModelCall, Error> {
    decode(bytes)
}

/// The field that every message of limn's own has, and will have in any format.
#[derive(Clone, PartialEq, prost::Message)]
struct Head {
    #[prost(uint32, tag = "1")]
    format: u32,
}

fn decode<M: Stored>(bytes: &[u8]) -> Result<M, Error> {
    let malformed = |reason: String| Error::Malformed {
        what: M::WHAT,
        reason,
    };
    match M::decode(bytes) {
        Ok(message) if message.format() == FORMAT => return Ok(message),
        _ => {}
    }
    // A newer format may hold what this one cannot read, so of the rest the format is read alone.
    let head = Head::decode(bytes).map_err(|error| malformed(error.to_string()))?;
    match head.format {
        0 => Err(malformed("it has no format".to_owned())),
        FORMAT => M::decode(bytes).map_err(|error| malformed(error.to_string())),
        found => Err(Error::Newer {
            what: M::WHAT,
            found,
            known: FORMAT,
        }),
    }
}

/// A change event as one line of proto3 JSON under the fields' own names. `user_id`, `version`, `previous_version`,
/// `before` and `after` are always there; 64-bit numbers are texts, as the mapping has it.
#[must_use]
pub fn change_json(change: &proto::ProfileChange) -> String {
    let mut json = serde_json::to_value(change).unwrap_or_else(|_| {
        // Only the kind of an edit can be what the mapping has no name for.
        let mut known = change.clone();
        for edit in &mut known.edits {
            edit.kind = edit.kind().into();
        }
        serde_json::to_value(&known).unwrap_or_default()
    });
    if let Value::Object(fields) = &mut json {
        for (name, empty) in [
            ("user_id", ""),
            ("version", "0"),
            ("previous_version", "0"),
            ("before", ""),
            ("after", ""),
        ] {
            fields.entry(name).or_insert_with(|| Value::from(empty));
        }
    }
    json.to_string()
}

/// A set of offsets as the messages list it.
#[must_use]
pub fn runs(set: &OffsetSet) -> Vec<proto::Run> {
    set.runs()
        .map(|(first, end)| proto::Run { first, end })
        .collect()
}

/// The set of offsets that a message of the kind `what` lists.
///
/// # Errors
/// [`Error::Malformed`]: a run is empty, negative or out of order, or there are too many.
pub fn offsets(what: &'static str, runs: &[proto::Run]) -> Result<OffsetSet, Error> {
    let malformed = |reason: String| Err(Error::Malformed { what, reason });
    if runs.len() > MAX_RUNS {
        return malformed(format!("{} runs of offsets", runs.len()));
    }
    let mut set = OffsetSet::default();
    let mut floor = 0;
    for &proto::Run { first, end } in runs {
        if first < floor || end <= first {
            return malformed(format!("the offsets {first} to {end} behind {floor}"));
        }
        set.insert_run(first, end);
        floor = end;
    }
    Ok(set)
}

/// The fold marker as a profile state carries it, for offsets of this partition of the input.
#[must_use]
pub fn fold_marker(topic: &str, partition: i32, marker: &profile::Marker) -> proto::FoldMarker {
    proto::FoldMarker {
        topic: topic.to_owned(),
        partition,
        folded_below: marker.folded_below,
        folded: runs(&marker.folded),
    }
}

/// The fold marker of a profile state; which topic and partition it speaks of is the caller's to check.
///
/// # Errors
/// [`Error::Malformed`]: its offsets are not as limn writes them.
pub fn marker(marker: &proto::FoldMarker) -> Result<profile::Marker, Error> {
    Ok(profile::Marker {
        folded_below: marker.folded_below,
        folded: offsets("fold marker", &marker.folded)?,
    })
}

impl From<profile::Edit> for proto::Edit {
    fn from(edit: profile::Edit) -> Self {
        let kind = match edit.kind {
            profile::Kind::Kept => proto::edit::Kind::Kept,
            profile::Kind::Removed => proto::edit::Kind::Removed,
            profile::Kind::Added => proto::edit::Kind::Added,
        };
        Self {
            kind: kind.into(),
            text: edit.text,
        }
    }
}

#[cfg(test)]
mod tests;
