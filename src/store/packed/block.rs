//! Blocks: states one behind another, compressed and sealed.

use std::borrow::Cow;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use prost::encoding::{decode_varint, encode_varint};

use super::super::{Error, HEAD, seal_in_place, unseal};
use super::sorted;

/// Bytes of a block's states, behind which the next one begins: some dozens of them. A state is looked up by reading its block.
pub(in crate::store) const BLOCK_BYTES: usize = 32 << 10;

/// One version of a user's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Packed<'a> {
    pub(in crate::store) user: &'a str,
    pub(in crate::store) version: u64,
    pub(in crate::store) state: &'a [u8],
}

/// Puts a state behind others: lengths before texts, as protobuf has them. What is short is compressed fast.
pub(in crate::store) fn append(block: &mut Vec<u8>, packed: &Packed<'_>) {
    let text = |block: &mut Vec<u8>, bytes: &[u8]| {
        encode_varint(bytes.len() as u64, block);
        block.extend_from_slice(bytes);
    };
    text(block, packed.user.as_bytes());
    encode_varint(packed.version, block);
    text(block, packed.state);
}

/// A text that stands behind its length.
fn text<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(decode_varint(bytes).ok()?).ok()?;
    let (text, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(text)
}

/// The user of a state that [`append`] has written.
pub(in crate::store) fn user(mut state: &[u8]) -> &[u8] {
    text(&mut state).unwrap_or_default()
}

/// The first of some states, and what is behind it.
pub(in crate::store) fn split(mut bytes: &[u8]) -> Option<(Packed<'_>, &[u8])> {
    let user = text(&mut bytes)?;
    let packed = Packed {
        user: std::str::from_utf8(user).ok()?,
        version: decode_varint(&mut bytes).ok()?,
        state: text(&mut bytes)?,
    };
    Some((packed, bytes))
}

/// The format of a block that is not compressed. No bit by itself makes one of these and of [`sorted`]'s formats of another.
pub(super) const PLAIN: u8 = 4;
/// The format of one that is: how many bytes its states have (`u32`, little-endian), and they as LZ4.
pub(super) const COMPRESSED: u8 = 7;
/// LZ4 makes no more of a byte than so many.
pub(super) const LZ4_MOST: usize = 255;

/// How a block is written: compressed, where that makes it smaller.
pub(in crate::store) struct Sealer {
    table: CompressTable,
    plain: u8,
    compressed: u8,
}

impl Sealer {
    pub(in crate::store) fn new() -> Self {
        Self::of(PLAIN, COMPRESSED)
    }

    /// One that seals in these two formats.
    pub(super) fn of(plain: u8, compressed: u8) -> Self {
        Self {
            table: CompressTable::small(),
            plain,
            compressed,
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
        const BEGIN: usize = HEAD + 4;
        let begin = all.len();
        all.resize(begin + BEGIN + get_maximum_output_size(states.len()), 0);
        let sealed = &mut all[begin..];
        let lz4 = compress_into_with_table(states, &mut sealed[BEGIN..], &mut self.table);
        let (format, end) = match (lz4, u32::try_from(states.len())) {
            (Ok(lz4), Ok(bytes)) if lz4 < states.len() => {
                sealed[HEAD..BEGIN].copy_from_slice(&bytes.to_le_bytes());
                (self.compressed, BEGIN + lz4)
            }
            _ => {
                let end = HEAD + states.len();
                sealed[HEAD..end].copy_from_slice(states);
                (self.plain, end)
            }
        };
        seal_in_place(format, key, &mut sealed[..end]);
        all.truncate(begin + end);
    }
}

/// A block that was read.
pub(in crate::store) struct Block<'a> {
    pub(in crate::store) states: Cow<'a, [u8]>,
    /// Of a run of an older limn's.
    sorted: bool,
}

impl<'a> Block<'a> {
    /// Opens what was read at a key.
    pub(in crate::store) fn open(key: &[u8], sealed: &'a [u8]) -> Result<Self, Error> {
        let torn =
            || Error::Torn("a block of packed states does not match its checksum".to_owned());
        let (plain, compressed, sorted) = match sealed.first() {
            // Its place only ([`super::run::Run`]): a crash came between. Behind a position that was applied there is none.
            None => {
                return Ok(Self {
                    states: Cow::Borrowed(&[]),
                    sorted: false,
                });
            }
            Some(&(sorted::PLAIN | sorted::COMPRESSED)) => {
                (sorted::PLAIN, sorted::COMPRESSED, true)
            }
            Some(_) => (PLAIN, COMPRESSED, false),
        };
        if let Some(states) = unseal(plain, key, sealed) {
            return Ok(Self {
                states: Cow::Borrowed(states),
                sorted,
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
                sorted,
            }),
            _ => Err(torn()),
        }
    }

    /// What seals a block like this one.
    pub(super) fn sealer(&self) -> Sealer {
        if self.sorted {
            Sealer::of(sorted::PLAIN, sorted::COMPRESSED)
        } else {
            Sealer::new()
        }
    }

    /// Its states, each with the bytes that it has here.
    pub(in crate::store) fn states(&self) -> Result<Vec<(Packed<'_>, &[u8])>, Error> {
        self.each().collect()
    }

    /// As [`Block::states`], one behind another. Behind an error nothing follows.
    pub(in crate::store) fn each(
        &self,
    ) -> impl Iterator<Item = Result<(Packed<'_>, &[u8]), Error>> {
        let split = if self.sorted { sorted::split } else { split };
        let mut rest = &self.states[..];
        std::iter::from_fn(move || {
            let now = (!rest.is_empty()).then(|| std::mem::take(&mut rest))?;
            let Some((state, behind)) = split(now) else {
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
