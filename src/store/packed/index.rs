//! The index of a run: in which blocks a user may stand.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::super::database::Trees;
use super::super::{Error, seal, unseal};
use super::block::Block;
use super::{Found, Kind, block_key, index_key, indexed_key};

/// Entries of one block of the index.
const ENTRIES: usize = 1024;

/// The format of a block of the index: its entries, ascending, each big-endian.
const FORMAT: u8 = 1;

/// Bits of an entry that are the block's number.
const BLOCK_BITS: u32 = 24;

/// Blocks that an index can tell apart.
pub(super) const MOST_BLOCKS: u32 = 1 << BLOCK_BITS;

/// The key of the users' hashes, which stands on the disk with them. It is no secret: who makes users of one hash up (40 bits of
/// SipHash-1-3) makes some more blocks of theirs to be looked through.
const KEYS: (u64, u64) = (0x6c69_6d6e_2069_6e64, 0x6578_206f_6620_7273);

/// The higher bits of a user's hash, and one of the blocks in which such a user stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::store) struct Entry(u64);

impl Entry {
    /// Of a block below [`MOST_BLOCKS`].
    pub(super) fn new(user: &[u8], block: u32) -> Self {
        // So the tests have users of one hash.
        #[cfg(test)]
        let user = user.split(|byte| *byte == b'|').next().unwrap_or_default();
        let mut hasher = SipHasher13::new_with_keys(KEYS.0, KEYS.1);
        hasher.write(user);
        Self(hasher.finish() >> BLOCK_BITS << BLOCK_BITS | u64::from(block))
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

/// A key, and the value that goes there.
type Written = (Vec<u8>, Vec<u8>);

/// Sorts the entries of a run, and seals them.
pub(super) fn sealed(
    partition: i32,
    run: u32,
    mut index: Vec<Entry>,
) -> impl Iterator<Item = Written> {
    index.sort_unstable();
    index.dedup();
    let mut begin = 0;
    std::iter::from_fn(move || {
        let some = index[begin..].chunks(ENTRIES).next()?;
        begin += some.len();
        let key = index_key(partition, run, some[0]);
        let sealed = of(&key, some);
        Some((key, sealed))
    })
}

fn of(key: &[u8], entries: &[Entry]) -> Vec<u8> {
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.bytes()).collect();
    seal(FORMAT, key, &[&bytes])
}

/// The blocks of an index that may name a user, the last first, and the entries in each. One is read when it is come to.
fn named(
    trees: &Trees,
    partition: i32,
    run: u32,
    user: &str,
) -> impl Iterator<Item = Result<(sled::IVec, Vec<Entry>), Error>> + use<> {
    let least = Entry::new(user.as_bytes(), 0);
    let begin = index_key(partition, run, least);
    let end = index_key(partition, run, Entry(least.0 | u64::from(MOST_BLOCKS - 1)));
    let all = indexed_key(partition, run, Kind::Index)..=end;
    let (mut blocks, mut more) = (trees.packed.range(all).rev(), true);
    std::iter::from_fn(move || {
        let read = if more { blocks.next()? } else { return None };
        Some(read.map_err(Error::from).and_then(|(key, sealed)| {
            more = key[..] > begin[..];
            let entries = opened(&key, &sealed)?;
            Ok((key, entries))
        }))
    })
}

/// The entries of a block of an index, as it was read at a key.
pub(in crate::store) fn opened(key: &[u8], sealed: &[u8]) -> Result<Vec<Entry>, Error> {
    let torn = || Error::Torn("the index of packed states does not match its checksum".to_owned());
    let payload = match sealed.first() {
        // Its place only: the run did not come to its end.
        None => &[],
        Some(_) => unseal(FORMAT, key, sealed).ok_or_else(torn)?,
    };
    let (entries, []) = payload.as_chunks::<8>() else {
        return Err(torn());
    };
    let entries = entries.iter().map(|e| Entry(u64::from_be_bytes(*e)));
    Ok(entries.collect())
}

/// The blocks of a run in which a user may stand, the last first. One is read when it is come to: of a user who is always at it there
/// are thousands.
pub(super) fn blocks<'a>(
    trees: &'a Trees,
    partition: i32,
    run: u32,
    user: &str,
) -> impl Iterator<Item = Result<Found, Error>> + use<'a> {
    let hash = Entry::new(user.as_bytes(), 0).hash();
    let of = move |named: Result<(sled::IVec, Vec<Entry>), Error>| match named {
        Ok((_, entries)) => {
            let of = entries.iter().filter(|entry| entry.hash() == hash);
            of.rev().map(|entry| Ok(entry.block())).collect()
        }
        Err(error) => vec![Err(error)],
    };
    let numbers = named(trees, partition, run, user).flat_map(of);
    numbers.map(move |number: Result<u32, Error>| {
        let key = block_key(partition, run, number?);
        let missing =
            || Error::Torn("a block that the index of packed states names is missing".to_owned());
        let sealed = trees.packed.get(&key)?.ok_or_else(missing)?;
        Ok((key.into(), sealed))
    })
}

/// Whether another user of the same hash stands in a block.
pub(super) fn shared(block: &Block<'_>, user: &str) -> Result<bool, Error> {
    let hash = |user: &str| Entry::new(user.as_bytes(), 0).hash();
    let states = block.states()?;
    let mut others = states.iter().filter(|(state, _)| state.user != user);
    Ok(others.any(|(state, _)| hash(state.user) == hash(user)))
}

/// The blocks of the index as they are when a user is taken out, but for those blocks of states that others of its hash `share`.
pub(super) fn without(
    trees: &Trees,
    (partition, run): (i32, u32),
    user: &str,
    share: &[sled::IVec],
) -> Result<Vec<Written>, Error> {
    let hash = Entry::new(user.as_bytes(), 0).hash();
    let mut rewritten = Vec::new();
    for named in named(trees, partition, run, user) {
        let (key, mut entries) = named?;
        let before = entries.len();
        entries.retain(|entry| {
            let block = block_key(partition, run, entry.block());
            entry.hash() != hash || share.iter().any(|key| *key == block)
        });
        if entries.len() < before {
            let sealed = of(&key, &entries);
            rewritten.push((key.to_vec(), sealed));
        }
    }
    Ok(rewritten)
}
