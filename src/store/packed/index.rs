//! The index of a run: in which blocks a user may stand.

use std::hash::Hasher;
use std::mem;

use siphasher::sip::SipHasher13;

use super::super::database::Trees;
use super::super::{Error, seal, unseal};
use super::block::Block;
use super::{Found, Kind, block_key, index_key, indexed_key};

/// Entries of one block of the index.
const ENTRIES: usize = 1024;

/// Bits of an entry that are the block's number.
const BLOCK_BITS: u32 = 24;

/// Blocks that an index can tell apart.
pub(super) const MOST_BLOCKS: u32 = 1 << BLOCK_BITS;

/// Bits of a hash that [`Form::Near`] leaves away, of 40: so the hashes of a run's block of entries lie so near to one another that three
/// bytes tell them apart, and of the users who are not in a run one in 2,048 at the most has a block of it looked through.
const AWAY_BITS: u32 = 10;

/// The key of the users' hashes, which stands on the disk with them. It is no secret: who makes users of one hash up (30 bits of
/// SipHash-1-3, so some 2^30 tries for each) makes as many more blocks to be looked through for who has that hash, and for nobody else.
const KEYS: (u64, u64) = (0x6c69_6d6e_2069_6e64, 0x6578_206f_6620_7273);

/// The higher bits of a user's hash, and one of the blocks in which such a user stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::store) struct Entry(u64);

impl Entry {
    /// Of a block below [`MOST_BLOCKS`], as it is written.
    pub(super) fn new(user: &[u8], block: u32) -> Self {
        Self::of(Form::Near.kept(hash(user)), block)
    }

    fn of(hash: u64, block: u32) -> Self {
        Self(hash << BLOCK_BITS | u64::from(block))
    }

    /// The same for users of one hash.
    pub(super) fn hash(self) -> u64 {
        self.0 >> BLOCK_BITS
    }

    #[allow(clippy::cast_possible_truncation)] // it has so many bits
    pub(super) fn block(self) -> u32 {
        self.0 as u32 & (MOST_BLOCKS - 1)
    }

    pub(super) fn bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

/// How a block of the index is written. The number is its format. Entries of one hash stand in the order of their blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Each whole, big-endian, with 40 bits of the hash, ascending. No more are made: folders of format 5 and 6 have them.
    Whole = 1,
    /// How many bytes the hashes and the blocks' numbers have, the least hash without [`AWAY_BITS`] (`u32`, little-endian), and of
    /// each entry the number of its block and, behind that, what its hash is more than the least (little-endian).
    Near = 2,
}

/// 40 bits of a user's hash.
fn hash(user: &[u8]) -> u64 {
    // So the tests have users of one hash.
    #[cfg(test)]
    let user = user.split(|byte| *byte == b'|').next().unwrap_or_default();
    let mut hasher = SipHasher13::new_with_keys(KEYS.0, KEYS.1);
    hasher.write(user);
    hasher.finish() >> BLOCK_BITS
}

impl Form {
    /// A user's hash ([`hash`]) as far as it is written.
    fn kept(self, hash: u64) -> u64 {
        match self {
            Self::Whole => hash,
            Self::Near => hash >> AWAY_BITS << AWAY_BITS,
        }
    }

    /// Seals entries for a key.
    fn seal(self, key: &[u8], entries: &[Entry]) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Whole => bytes.extend(entries.iter().flat_map(|entry| entry.bytes())),
            Self::Near => {
                let least = entries.iter().map(|entry| entry.hash()).min();
                let first = least.unwrap_or(0) >> AWAY_BITS;
                let above = |entry: &Entry| (entry.hash() >> AWAY_BITS) - first;
                let hash = width(entries.iter().map(above).max().unwrap_or(0));
                let most = entries.iter().map(|entry| entry.block()).max();
                // At least one, so that entries can be counted.
                let block = width(most.unwrap_or(0).into()).max(1);
                let head = [hash as u8, block as u8];
                bytes.reserve(head.len() + 4 + entries.len() * (hash + block) + 8);
                bytes.extend(head);
                bytes.extend((first as u32).to_le_bytes());
                for entry in entries {
                    let both = above(entry) << (8 * block) | u64::from(entry.block());
                    let end = bytes.len() + hash + block;
                    // All eight at once and then those that count: of a known length they are one instruction.
                    bytes.extend_from_slice(&both.to_le_bytes());
                    bytes.truncate(end);
                }
            }
        }
        seal(self as u8, key, &[&bytes])
    }

    /// The entries that [`Form::seal`] has written; `None` where it has not.
    fn open(self, bytes: &[u8]) -> Option<Vec<Entry>> {
        if self == Self::Whole {
            let (entries, []) = bytes.as_chunks::<8>() else {
                return None;
            };
            let entries = entries.iter().map(|e| Entry(u64::from_be_bytes(*e)));
            return Some(entries.collect());
        }
        let (&[hash, block], bytes) = bytes.split_first_chunk::<2>()?;
        let (first, bytes) = bytes.split_first_chunk::<4>()?;
        let first = u64::from(u32::from_le_bytes(*first));
        let (hash, block) = (usize::from(hash), usize::from(block));
        if hash > 4 || !(1..=3).contains(&block) || !bytes.len().is_multiple_of(hash + block) {
            return None;
        }
        let entry = |both: &[u8]| {
            let mut eight = [0; 8];
            eight[..both.len()].copy_from_slice(both);
            let both = u64::from_le_bytes(eight);
            let hash = first + (both >> (8 * block));
            let number = both & ((1 << (8 * block)) - 1);
            let fits = hash >> (u64::BITS - BLOCK_BITS - AWAY_BITS) == 0;
            fits.then_some(Entry(hash << (BLOCK_BITS + AWAY_BITS) | number))
        };
        bytes.chunks_exact(hash + block).map(entry).collect()
    }
}

/// Bytes of a number.
fn width(number: u64) -> usize {
    (u64::BITS - number.leading_zeros()).div_ceil(8) as usize
}

/// A key, and the value that goes there.
type Written = (Vec<u8>, Vec<u8>);

/// Half as many entries, and up to so many, a block of the index has on average: few have more than it may.
const TARGET: usize = ENTRIES / 2 + ENTRIES / 16;

/// Seals the entries of a run, which are in the order of its blocks: together those whose hashes begin with the same bits, so many bits
/// that a block of the index is filled to a half, or a quarter. Whoever looks for a hash looks through all of such a block, so nothing is
/// sorted within one unless it is too large, as where few users are at it all the time.
pub(super) fn sealed(partition: i32, run: u32, index: Vec<Entry>) -> impl Iterator<Item = Written> {
    let parts = index.len().div_ceil(TARGET).next_power_of_two();
    // In two steps, as a number cannot be shifted by all of its bits.
    let part = |entry: &Entry| (entry.0 >> 1 >> (u64::BITS - 1 - parts.ilog2())) as usize;
    // A counting sort: it leaves what is of one part in its order.
    let mut ends = vec![0; parts];
    index.iter().for_each(|entry| ends[part(entry)] += 1);
    let mut before = 0;
    for end in &mut ends {
        before += mem::replace(end, before);
    }
    let mut parted = vec![Entry(0); index.len()];
    for entry in index {
        let end = &mut ends[part(&entry)];
        parted[*end] = entry;
        *end += 1;
    }
    let mut begin = 0;
    ends.into_iter().flat_map(move |end| {
        let mut some = parted[mem::replace(&mut begin, end)..end].to_vec();
        if some.len() > ENTRIES {
            some.sort_unstable();
            some.dedup();
        }
        let sealed = some.chunks(ENTRIES).map(|some| {
            let least = some.iter().min().copied().unwrap_or(Entry(0));
            let key = index_key(partition, run, least);
            let sealed = Form::Near.seal(&key, some);
            (key, sealed)
        });
        sealed.collect::<Vec<_>>()
    })
}

/// A block of an index, as it stands.
struct Named {
    key: sled::IVec,
    form: Form,
    entries: Vec<Entry>,
}

/// The blocks of an index that may name a user of this hash, the last first. One is read when it is come to.
fn named(
    trees: &Trees,
    partition: i32,
    run: u32,
    hash: u64,
) -> impl Iterator<Item = Result<Named, Error>> + use<> {
    // Whichever form they are of: the one's hashes begin with the other's.
    let least = Entry::of(Form::Near.kept(hash), 0);
    let last = Entry(least.0 | ((1 << (BLOCK_BITS + AWAY_BITS)) - 1));
    let begin = index_key(partition, run, least);
    let end = index_key(partition, run, last);
    let all = indexed_key(partition, run, Kind::Index)..=end;
    let (mut blocks, mut more) = (trees.packed.range(all).rev(), true);
    std::iter::from_fn(move || {
        let read = if more { blocks.next()? } else { return None };
        Some(read.map_err(Error::from).and_then(|(key, sealed)| {
            more = key[..] > begin[..];
            let (form, entries) = opened(&key, &sealed)?;
            Ok(Named { key, form, entries })
        }))
    })
}

/// The entries of a block of an index, as it was read at a key; none where only its place is written, as of a run that did not come
/// to its end.
pub(super) fn opened(key: &[u8], sealed: &[u8]) -> Result<(Form, Vec<Entry>), Error> {
    let torn = || Error::Torn("the index of packed states does not match its checksum".to_owned());
    let form = match sealed.first() {
        None => return Ok((Form::Near, Vec::new())),
        Some(1) => Form::Whole,
        Some(_) => Form::Near,
    };
    let entries = unseal(form as u8, key, sealed).and_then(|bytes| form.open(bytes));
    Ok((form, entries.ok_or_else(torn)?))
}

/// For the fuzz target: what can be read is written as it was, or as what is read as the same.
pub(in crate::store) fn check(key: &[u8], sealed: &[u8]) {
    if let Ok((form, entries)) = opened(key, sealed) {
        let again = opened(key, &form.seal(key, &entries)).ok();
        assert_eq!(again, Some((form, entries)));
    }
}

/// The blocks of a run in which a user may stand, the last first. One is read when it is come to: of a user who is always at it there
/// are thousands.
pub(super) fn blocks<'a>(
    trees: &'a Trees,
    partition: i32,
    run: u32,
    user: &str,
) -> impl Iterator<Item = Result<Found, Error>> + use<'a> {
    let hash = hash(user.as_bytes());
    let of = move |named: Result<Named, Error>| match named {
        Ok(Named { form, entries, .. }) => {
            let of = entries.iter().filter(|e| e.hash() == form.kept(hash));
            let mut of: Vec<u32> = of.map(|entry| entry.block()).collect();
            // A user who stands in a block more than once may be named as often.
            of.dedup();
            of.into_iter().rev().map(Ok).collect()
        }
        Err(error) => vec![Err(error)],
    };
    let numbers = named(trees, partition, run, hash).flat_map(of);
    numbers.map(move |number: Result<u32, Error>| {
        let key = block_key(partition, run, number?);
        let missing =
            || Error::Torn("a block that the index of packed states names is missing".to_owned());
        let sealed = trees.packed.get(&key)?.ok_or_else(missing)?;
        Ok((key.into(), sealed))
    })
}

/// The hashes of the other users in a block that are like a user's as far as any form keeps them.
pub(super) fn shared(block: &Block<'_>, user: &str) -> Result<Vec<u64>, Error> {
    let like = Form::Near.kept(hash(user.as_bytes()));
    let states = block.states()?;
    let others = states.iter().filter(|(state, _)| state.user != user);
    let hashes = others.map(|(state, _)| hash(state.user.as_bytes()));
    Ok(hashes.filter(|&of| Form::Near.kept(of) == like).collect())
}

/// The blocks of the index as they are when a user is taken out, but for those blocks of states that others of its hash `share`: each
/// with such a hash ([`shared`]).
pub(super) fn without(
    trees: &Trees,
    (partition, run): (i32, u32),
    user: &str,
    share: &[(sled::IVec, u64)],
) -> Result<Vec<Written>, Error> {
    let hash = hash(user.as_bytes());
    let mut rewritten = Vec::new();
    for named in named(trees, partition, run, hash) {
        let Named {
            key,
            form,
            mut entries,
        } = named?;
        let before = entries.len();
        entries.retain(|entry| {
            let block = block_key(partition, run, entry.block());
            let is = |of: u64| entry.hash() == form.kept(of);
            !is(hash) || share.iter().any(|(key, of)| *key == block && is(*of))
        });
        if entries.len() < before {
            // As it was written: what is left out of a hash is not to be had from the others.
            let sealed = form.seal(&key, &entries);
            rewritten.push((key.to_vec(), sealed));
        }
    }
    Ok(rewritten)
}

#[cfg(test)]
mod tests;
