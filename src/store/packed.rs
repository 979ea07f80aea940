//! States that were read back in great number, packed: sled clones a leaf of its tree for each value that is written, so a
//! value for each state is what a restore would wait for.
//!
//! As in a log-structured merge tree: what was read back is sorted and written as a *run* of *blocks*, each of them one value
//! of sled's. The order is that of the users' hashes, which is made faster than that of their names and spreads names alike.
//! A newer run goes before an older one, and a state of its own (`View::apply`) before all of them; such states are written
//! only behind the runs of their partition, never before one.
//!
//! A run that a crash has cut off stays where it is: all that it holds was read back from a position that the view still
//! has, so it is read again and written once more, into a newer run.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::PoisonError;

use lz4_flex::block::{CompressTable as Table, compress_into_with_table, get_maximum_output_size};

use super::database::{Database, Trees, cost};
use super::{Error, HEAD, seal, seal_in_place, unseal};
use crate::failpoint;

/// Bytes of a block's states, behind which the next one begins: some dozens of them. A state is looked up by reading its block.
pub(super) const BLOCK_BYTES: usize = 16 << 10;

/// One version of a user's state.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed<'a> {
    pub(super) user: &'a str,
    pub(super) version: u64,
    pub(super) state: &'a [u8],
}

/// Where a user stands in the order.
pub(super) fn order(user: &[u8]) -> u64 {
    let hash = blake3::hash(user);
    hash.as_bytes()
        .first_chunk::<8>()
        .map_or(0, |b| u64::from_be_bytes(*b))
}

fn run_key(partition: i32, run: u32) -> Vec<u8> {
    let mut key = partition.to_be_bytes().to_vec();
    key.extend_from_slice(&run.to_be_bytes());
    key
}

/// A block's key: where its first state stands, and a number for those that begin with the same.
fn block_key(partition: i32, run: u32, first: u64, same: u32) -> Vec<u8> {
    let mut key = run_key(partition, run);
    key.extend_from_slice(&first.to_be_bytes());
    key.extend_from_slice(&same.to_be_bytes());
    key
}

/// How many runs each partition has, from their keys.
pub(super) fn counts(tree: &sled::Tree) -> Result<BTreeMap<i32, u32>, Error> {
    let torn = || Error::Torn("a block of packed states has no key of one".to_owned());
    let mut counts = BTreeMap::new();
    // From the end, a partition at a time.
    let mut last = tree.last()?;
    while let Some((key, _)) = last {
        let (partition, rest) = key.split_first_chunk::<4>().ok_or_else(torn)?;
        let run = rest.first_chunk::<4>().ok_or_else(torn)?;
        let count = u32::from_be_bytes(*run).saturating_add(1);
        counts.insert(i32::from_be_bytes(*partition), count);
        last = tree.get_lt(partition)?;
    }
    Ok(counts)
}

/// Removes the packed states of a partition, or of all. Of a crash on the way some stay: it is done again then.
pub(super) fn clear(database: &Database, partition: Option<i32>) -> Result<(), Error> {
    let prefix = partition.map_or_else(Vec::new, |p| p.to_be_bytes().to_vec());
    loop {
        let (keys, bytes) = database.with(|trees| {
            let (mut keys, mut bytes) = (Vec::new(), 0);
            for entry in trees.packed.scan_prefix(&prefix).take(PAGE) {
                let (key, sealed) = entry?;
                keys.push(key.to_vec());
                bytes += sealed.len();
            }
            Ok((keys, bytes))
        })?;
        if keys.is_empty() {
            break;
        }
        // What goes is written once more with what stays beside it.
        database.write(cost(keys.len(), bytes), |trees| {
            for key in &keys {
                trees.packed.remove(key)?;
            }
            Ok(())
        })?;
    }
    database.with(|trees| {
        let mut runs = trees.runs.lock().unwrap_or_else(PoisonError::into_inner);
        match partition {
            Some(partition) => drop(runs.remove(&partition)),
            None => runs.clear(),
        }
        Ok(())
    })
}

/// How many runs a partition has.
pub(super) fn count(trees: &Trees, partition: i32) -> u32 {
    let runs = trees.runs.lock().unwrap_or_else(PoisonError::into_inner);
    runs.get(&partition).copied().unwrap_or(0)
}

/// Writes one more run. The states come in their [`order`], each as [`append`] has written it, those of a user one behind
/// another, the newest last.
pub(super) fn write<'a>(
    database: &Database,
    partition: i32,
    states: impl Iterator<Item = (u64, &'a [u8])>,
) -> Result<(), Error> {
    let run = database.with(|trees| Ok(count(trees, partition)))?;
    let mut blocks = Blocks {
        database,
        partition,
        run,
        most: database.most() / 2,
        full: Vec::new(),
        cost: 0,
        last: None,
        table: Table::small(),
    };
    let (mut block, mut first) = (Vec::with_capacity(2 * BLOCK_BYTES), 0);
    for (order, state) in states {
        if block.len() >= BLOCK_BYTES {
            blocks.push(first, &block)?;
            block.clear();
        }
        if block.is_empty() {
            first = order;
        }
        block.extend_from_slice(state);
    }
    if block.is_empty() {
        return Ok(());
    }
    blocks.push(first, &block)?;
    blocks.write()?;
    failpoint::pass("run_written");
    database.with(|trees| {
        let mut runs = trees.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.insert(partition, run.saturating_add(1));
        Ok(())
    })
}

/// Blocks of a run, on their way to be written together.
struct Blocks<'a> {
    database: &'a Database,
    partition: i32,
    run: u32,
    most: usize,
    /// Keys and sealed blocks.
    full: Vec<(Vec<u8>, Vec<u8>)>,
    cost: usize,
    /// What the last one begins with, and its number among those that begin so.
    last: Option<(u64, u32)>,
    table: Table,
}

impl Blocks<'_> {
    fn push(&mut self, first: u64, block: &[u8]) -> Result<(), Error> {
        let same = match self.last {
            Some((before, same)) if before == first => same.saturating_add(1),
            _ => 0,
        };
        self.last = Some((first, same));
        let key = block_key(self.partition, self.run, first, same);
        let sealed = sealed(&mut self.table, &key, block);
        let cost = cost(1, sealed.len());
        if self.cost > 0 && self.cost + cost > self.most {
            self.write()?;
        }
        self.cost += cost;
        self.full.push((key, sealed));
        Ok(())
    }

    /// Writes what is full. sled writes a page anew behind each tenth change of it, with up to sixteen values in it, and when it
    /// is split: in the order of their keys blocks would be written three to four times. So first their places are
    /// written, which makes the pages, of eight each; then each page takes its blocks, and hardly one is written twice.
    fn write(&mut self) -> Result<(), Error> {
        let full = std::mem::take(&mut self.full);
        self.database
            .write(std::mem::take(&mut self.cost), |trees| {
                for (key, _) in &full {
                    trees.packed.insert(&key[..], &[])?;
                }
                for (key, sealed) in full {
                    trees.packed.insert(&key[..], sealed)?;
                }
                Ok(())
            })
    }
}

/// A block as it is written: compressed, where that makes it smaller.
fn sealed(table: &mut Table, key: &[u8], states: &[u8]) -> Vec<u8> {
    const BEGIN: usize = HEAD + 4;
    let mut sealed = vec![0; BEGIN + get_maximum_output_size(states.len())];
    let lz4 = compress_into_with_table(states, &mut sealed[BEGIN..], table);
    match (lz4, u32::try_from(states.len())) {
        (Ok(lz4), Ok(bytes)) if lz4 < states.len() => {
            sealed.truncate(BEGIN + lz4);
            sealed.shrink_to_fit();
            sealed[HEAD..BEGIN].copy_from_slice(&bytes.to_le_bytes());
            seal_in_place(COMPRESSED, key, &mut sealed);
            sealed
        }
        _ => seal(PLAIN, key, &[states]),
    }
}

/// Puts a state behind others.
pub(super) fn append(block: &mut Vec<u8>, packed: &Packed<'_>) {
    let text = |block: &mut Vec<u8>, bytes: &[u8]| {
        block.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        block.extend_from_slice(bytes);
    };
    text(block, packed.user.as_bytes());
    block.extend_from_slice(&packed.version.to_be_bytes());
    text(block, packed.state);
}

/// Bytes of a text's length, which stands before it.
const LENGTH: usize = 8;

/// The user of a state that [`append`] has written.
pub(super) fn user(state: &[u8]) -> &[u8] {
    text(state).map_or(&[], |(user, _)| user)
}

/// Its version.
pub(super) fn version(state: &[u8]) -> u64 {
    let version = text(state).and_then(|(_, rest)| rest.first_chunk::<8>());
    version.map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Bytes that [`append`] writes for a state beside its texts.
pub(super) const BESIDE: usize = 2 * LENGTH + 8;

/// The format of a block that is not compressed: its states. Folders of format 3 have no others.
const PLAIN: u8 = 1;
/// The format of one that is: how many bytes its states have (`u32`, little-endian), and they as LZ4.
const COMPRESSED: u8 = 2;
/// LZ4 makes no more of a byte than so many.
const LZ4_MOST: usize = 255;

/// What a block holds: states, one behind another.
fn opened<'a>(key: &[u8], sealed: &'a [u8]) -> Result<Cow<'a, [u8]>, Error> {
    let torn = || Error::Torn("a block of packed states does not match its checksum".to_owned());
    match sealed.first() {
        // Its place only ([`Blocks::write`]): a crash came between. Behind a position that was applied there is none.
        None => Ok(Cow::Borrowed(&[])),
        Some(&PLAIN) => unseal(PLAIN, key, sealed)
            .map(Cow::Borrowed)
            .ok_or_else(torn),
        Some(_) => {
            let payload = unseal(COMPRESSED, key, sealed).ok_or_else(torn)?;
            let (bytes, lz4) = payload.split_first_chunk::<4>().ok_or_else(torn)?;
            let bytes = u32::from_le_bytes(*bytes) as usize;
            if bytes / LZ4_MOST > lz4.len() {
                return Err(torn());
            }
            let mut states = vec![0; bytes];
            match lz4_flex::block::decompress_into(lz4, &mut states) {
                Ok(found) if found == bytes => Ok(Cow::Owned(states)),
                _ => Err(torn()),
            }
        }
    }
}

/// The states of a block that was opened.
fn states(mut block: &[u8]) -> Result<Vec<Packed<'_>>, Error> {
    let mut states = Vec::new();
    while !block.is_empty() {
        let torn = || Error::Torn("a block of packed states cannot be read".to_owned());
        let (state, behind) = split(block).ok_or_else(torn)?;
        states.push(state);
        block = behind;
    }
    Ok(states)
}

/// A text that stands behind its length, and what is behind it.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH>()?;
    rest.split_at_checked(usize::try_from(u64::from_be_bytes(*length)).ok()?)
}

fn split(bytes: &[u8]) -> Option<(Packed<'_>, &[u8])> {
    let (user, rest) = text(bytes)?;
    let (version, rest) = rest.split_first_chunk::<8>()?;
    let (state, rest) = text(rest)?;
    let packed = Packed {
        user: std::str::from_utf8(user).ok()?,
        version: u64::from_be_bytes(*version),
        state,
    };
    Some((packed, rest))
}

/// The blocks of a run in which a user may stand, in their order: one, or more where it is the first of its block, or has
/// more versions than a block has room for.
fn blocks(
    trees: &Trees,
    partition: i32,
    run: u32,
    order: u64,
) -> Result<Vec<(sled::IVec, sled::IVec)>, Error> {
    let begin = block_key(partition, run, order, 0);
    let range = run_key(partition, run)..=block_key(partition, run, order, u32::MAX);
    let mut blocks = Vec::new();
    for entry in trees.packed.range(range).rev() {
        let (key, sealed) = entry?;
        let before = key[..] < begin[..];
        blocks.push((key, sealed));
        if before {
            break;
        }
    }
    blocks.reverse();
    Ok(blocks)
}

/// The newest packed state of a user: its run, its version and the state.
pub(super) fn newest(
    trees: &Trees,
    partition: i32,
    user: &str,
) -> Result<Option<(u32, u64, Vec<u8>)>, Error> {
    let runs = count(trees, partition);
    if runs == 0 {
        return Ok(None);
    }
    let order = order(user.as_bytes());
    for run in (0..runs).rev() {
        for (key, sealed) in blocks(trees, partition, run, order)?.iter().rev() {
            let block = opened(key, sealed)?;
            if let Some(found) = states(&block)?.iter().rfind(|s| s.user == user) {
                return Ok(Some((run, found.version, found.state.to_vec())));
            }
        }
    }
    Ok(None)
}

/// All packed versions of a user.
pub(super) fn versions(
    trees: &Trees,
    partition: i32,
    user: &str,
) -> Result<BTreeMap<u64, Vec<u8>>, Error> {
    let order = order(user.as_bytes());
    let mut versions = BTreeMap::new();
    for run in 0..count(trees, partition) {
        for (key, sealed) in blocks(trees, partition, run, order)? {
            let block = opened(&key, &sealed)?;
            for state in states(&block)?.iter().filter(|s| s.user == user) {
                versions.insert(state.version, state.state.to_vec());
            }
        }
    }
    Ok(versions)
}

/// Takes a user out of every block: nothing of it stays behind an erasure. Nobody else may write packed states of the
/// partition meanwhile.
pub(super) fn erase(database: &Database, partition: i32, user: &str) -> Result<(), Error> {
    let runs = database.with(|trees| Ok(count(trees, partition)))?;
    let order = order(user.as_bytes());
    for run in 0..runs {
        let rewritten = database.with(|trees| {
            let mut rewritten = Vec::new();
            for (key, sealed) in blocks(trees, partition, run, order)? {
                let block = opened(&key, &sealed)?;
                let states = states(&block)?;
                if states.iter().any(|s| s.user == user) {
                    let mut rest = Vec::with_capacity(block.len());
                    let others = states.iter().filter(|s| s.user != user);
                    others.for_each(|state| append(&mut rest, state));
                    rewritten.push((key.to_vec(), rest));
                }
            }
            Ok(rewritten)
        })?;
        for (key, rest) in rewritten {
            // A block without a state stays, so that the last run is counted by its key also when it is opened anew.
            let sealed = sealed(&mut Table::small(), &key, &rest);
            database.write(cost(1, sealed.len()), |trees| {
                trees.packed.insert(&key[..], sealed)?;
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Blocks that are looked through, or removed, at once.
const PAGE: usize = 16;

/// States of some blocks, and where it goes on behind them, if it does.
pub(super) struct Page {
    pub(super) states: Vec<Vec<u8>>,
    pub(super) next: Option<Bound<Vec<u8>>>,
}

/// The packed states of a partition that are the newest of their users and are not written by themselves (`alone`), of some
/// blocks from `from` on.
pub(super) fn page(
    trees: &Trees,
    partition: i32,
    from: Bound<Vec<u8>>,
    alone: impl Fn(&str) -> Result<bool, Error>,
) -> Result<Page, Error> {
    let (mut found, mut seen, mut last) = (Vec::new(), 0, None);
    for entry in trees.packed.range((from, Bound::Unbounded)).take(PAGE) {
        let (key, sealed) = entry?;
        if !key.starts_with(&partition.to_be_bytes()) {
            break;
        }
        for state in states(&opened(&key, &sealed)?)? {
            let newest = newest(trees, partition, state.user)?;
            let here = newest.is_some_and(|(run, version, _)| {
                key.starts_with(&run_key(partition, run)) && version == state.version
            });
            if here && !alone(state.user)? {
                found.push(state.state.to_vec());
            }
        }
        seen += 1;
        last = Some(Bound::Excluded(key.to_vec()));
    }
    Ok(Page {
        states: found,
        next: last.filter(|_| seen == PAGE),
    })
}

/// Where a partition's blocks begin.
pub(super) fn beginning(partition: i32) -> Bound<Vec<u8>> {
    Bound::Included(partition.to_be_bytes().to_vec())
}

#[cfg(test)]
mod tests;
