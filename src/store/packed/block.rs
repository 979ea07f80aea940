//! Blocks: states one behind another, compressed and sealed.

use std::borrow::Cow;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use prost::encoding::{decode_varint, encode_varint};

use super::super::{Error, HEAD, seal_in_place, unseal};
use super::sorted;
use crate::codec;

/// Bytes of a block's states, behind which the next one begins: some dozens of them. A state is looked up by reading its block.
pub(in crate::store) const BLOCK_BYTES: usize = 32 << 10;

/// One version of a user's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Packed<'a> {
    pub(in crate::store) user: &'a str,
    pub(in crate::store) version: u64,
    pub(in crate::store) state: &'a [u8],
}

/// What stands where a state's length is expected, and means that user and version stand beside it: lengths are doubled, so none is odd.
const BESIDE: u8 = 1;

/// Puts a state behind others. One that begins with its user and version, as profiles do ([`codec::state_head`]), stands for itself, behind its
/// length; any other behind these two.
pub(in crate::store) fn append(block: &mut Vec<u8>, packed: &Packed<'_>) {
    if names(packed.state) == Some((packed.user.as_bytes(), packed.version)) {
        encode_varint(2 * packed.state.len() as u64, block);
        block.extend_from_slice(packed.state);
    } else {
        block.push(BESIDE);
        append_beside(block, packed);
    }
}

/// The user and the version that a state begins with.
fn names(state: &[u8]) -> Option<(&[u8], u64)> {
    codec::state_head(state).map(|head| (head.user, head.version))
}

/// Puts a user, a version and a state behind others: lengths before texts, as protobuf has them.
pub(in crate::store) fn append_beside(block: &mut Vec<u8>, packed: &Packed<'_>) {
    let text = |block: &mut Vec<u8>, bytes: &[u8]| {
        encode_varint(bytes.len() as u64, block);
        block.extend_from_slice(bytes);
    };
    text(block, packed.user.as_bytes());
    encode_varint(packed.version, block);
    text(block, packed.state);
}

/// So many bytes, off those that are left.
fn some<'a>(bytes: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (some, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(some)
}

/// A text that stands behind its length.
fn text<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = decode_varint(bytes).ok()?;
    some(bytes, length)
}

/// A state that stands for itself behind its length, which is doubled.
fn alone<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let doubled = decode_varint(bytes).ok()?;
    (doubled % 2 == 0).then(|| some(bytes, doubled / 2))?
}

/// The user of a state that [`append`] has written.
pub(in crate::store) fn user(mut state: &[u8]) -> &[u8] {
    let user = match state.strip_prefix(&[BESIDE]) {
        Some(mut rest) => text(&mut rest),
        None => alone(&mut state).and_then(names).map(|(user, _)| user),
    };
    user.unwrap_or_default()
}

/// The first of some states that [`append`] has written, and what is behind it.
pub(in crate::store) fn split(mut bytes: &[u8]) -> Option<(Packed<'_>, &[u8])> {
    if let Some(rest) = bytes.strip_prefix(&[BESIDE]) {
        return split_beside(rest);
    }
    let state = alone(&mut bytes)?;
    let (user, version) = names(state)?;
    let packed = Packed {
        user: std::str::from_utf8(user).ok()?,
        version,
        state,
    };
    Some((packed, bytes))
}

/// As [`split`], of what [`append_beside`] has written.
fn split_beside(mut bytes: &[u8]) -> Option<(Packed<'_>, &[u8])> {
    let user = text(&mut bytes)?;
    let packed = Packed {
        user: std::str::from_utf8(user).ok()?,
        version: decode_varint(&mut bytes).ok()?,
        state: text(&mut bytes)?,
    };
    Some((packed, bytes))
}

/// How a block's states are written, and with that in which formats it is sealed. No bit by itself makes one format of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Form {
    /// As [`sorted`] has them. No more are made: folders of format 3 and 4 have them.
    Sorted,
    /// As [`append_beside`] has them. No more are made: folders of format 5 to 7 have them.
    Beside,
    /// As [`append`] has them.
    Now,
}

impl Form {
    /// The format of a block that is not compressed, and of one that is: how many bytes its states have (`u32`, little-endian), and they
    /// as LZ4.
    pub(super) fn formats(self) -> (u8, u8) {
        match self {
            Self::Sorted => (sorted::PLAIN, sorted::COMPRESSED),
            Self::Beside => (4, 7),
            Self::Now => (8, 11),
        }
    }

    /// The one that has a format.
    fn of(format: u8) -> Option<Self> {
        let mut forms = [Self::Sorted, Self::Beside, Self::Now].into_iter();
        forms.find(|form| <[u8; 2]>::from(form.formats()).contains(&format))
    }

    fn split(self, bytes: &[u8]) -> Option<(Packed<'_>, &[u8])> {
        match self {
            Self::Sorted => sorted::split(bytes),
            Self::Beside => split_beside(bytes),
            Self::Now => split(bytes),
        }
    }
}

/// LZ4 makes no more of a byte than so many.
pub(super) const LZ4_MOST: usize = 255;

/// How a block is written: compressed, where that makes it smaller.
pub(in crate::store) struct Sealer {
    table: CompressTable,
    form: Form,
    /// Room for what a block is compressed to: it is cleared when it is made, and not for each.
    room: Vec<u8>,
}

impl Sealer {
    pub(in crate::store) fn new() -> Self {
        Self::of(Form::Now)
    }

    /// One for states that are written like this.
    pub(in crate::store) fn of(form: Form) -> Self {
        Self {
            table: CompressTable::small(),
            form,
            room: Vec::new(),
        }
    }

    /// Seals states for a key.
    pub(in crate::store) fn seal(&mut self, key: &[u8], states: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::new();
        self.seal_behind(&mut sealed, key, states);
        sealed
    }

    /// As [`Sealer::seal`], behind what stands in `all`.
    pub(super) fn seal_behind(&mut self, all: &mut Vec<u8>, key: &[u8], states: &[u8]) {
        let most = get_maximum_output_size(states.len());
        if self.room.len() < most {
            self.room.resize(most, 0);
        }
        let begin = all.len();
        all.resize(begin + HEAD, 0);
        let lz4 = compress_into_with_table(states, &mut self.room, &mut self.table);
        let (plain, compressed) = self.form.formats();
        let format = match (lz4, u32::try_from(states.len())) {
            (Ok(lz4), Ok(bytes)) if lz4 < states.len() => {
                all.extend_from_slice(&bytes.to_le_bytes());
                all.extend_from_slice(&self.room[..lz4]);
                compressed
            }
            _ => {
                all.extend_from_slice(states);
                plain
            }
        };
        seal_in_place(format, key, &mut all[begin..]);
    }
}

/// A block that was read.
pub(in crate::store) struct Block<'a> {
    pub(in crate::store) states: Cow<'a, [u8]>,
    form: Form,
}

impl<'a> Block<'a> {
    /// Opens what was read at a key.
    pub(in crate::store) fn open(key: &[u8], sealed: &'a [u8]) -> Result<Self, Error> {
        let torn =
            || Error::Torn("a block of packed states does not match its checksum".to_owned());
        let Some(&format) = sealed.first() else {
            // Its place only ([`super::run::Run`]): it is on its way, a crash came between, or none was left for it.
            return Ok(Self {
                states: Cow::Borrowed(&[]),
                form: Form::Now,
            });
        };
        let form = Form::of(format).ok_or_else(torn)?;
        let (plain, compressed) = form.formats();
        if let Some(states) = unseal(plain, key, sealed) {
            return Ok(Self {
                states: Cow::Borrowed(states),
                form,
            });
        }
        let payload = unseal(compressed, key, sealed).ok_or_else(torn)?;
        let (bytes, lz4) = payload.split_first_chunk::<4>().ok_or_else(torn)?;
        let bytes = u32::from_le_bytes(*bytes) as usize;
        if bytes / LZ4_MOST > lz4.len() {
            return Err(torn());
        }
        let mut states = vec![0; bytes];
        match lz4_flex::block::decompress_into(lz4, &mut states) {
            Ok(found) if found == bytes => Ok(Self {
                states: Cow::Owned(states),
                form,
            }),
            _ => Err(torn()),
        }
    }

    /// What seals a block like this one.
    pub(super) fn sealer(&self) -> Sealer {
        Sealer::of(self.form)
    }

    /// Its states as [`append`] has them, for whoever puts others beside them.
    pub(in crate::store) fn renewed(self) -> Result<Self, Error> {
        if self.form == Form::Now {
            return Ok(self);
        }
        let mut states = Vec::with_capacity(self.states.len());
        for state in self.each() {
            append(&mut states, &state?.0);
        }
        Ok(Self {
            states: Cow::Owned(states),
            form: Form::Now,
        })
    }

    /// Its states, each with the bytes that it has here.
    pub(in crate::store) fn states(&self) -> Result<Vec<(Packed<'_>, &[u8])>, Error> {
        self.each().collect()
    }

    /// As [`Block::states`], one behind another. Behind an error nothing follows.
    pub(in crate::store) fn each(
        &self,
    ) -> impl Iterator<Item = Result<(Packed<'_>, &[u8]), Error>> {
        let mut rest = &self.states[..];
        std::iter::from_fn(move || {
            let now = (!rest.is_empty()).then(|| std::mem::take(&mut rest))?;
            let Some((state, behind)) = self.form.split(now) else {
                let torn = "a block of packed states cannot be read".to_owned();
                return Some(Err(Error::Torn(torn)));
            };
            rest = behind;
            Some(Ok((state, &now[..now.len() - behind.len()])))
        })
    }

    /// The states but those of a user's that `gone` names by their number here; `None` where there are none of them.
    pub(in crate::store) fn without(
        &self,
        mut gone: impl FnMut(usize, &Packed<'_>) -> bool,
    ) -> Result<Option<Vec<u8>>, Error> {
        let mut rest = Vec::with_capacity(self.states.len());
        for (at, (state, bytes)) in self.states()?.iter().enumerate() {
            if !gone(at, state) {
                rest.extend_from_slice(bytes);
            }
        }
        Ok((rest.len() < self.states.len()).then_some(rest))
    }
}
