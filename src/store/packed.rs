//! States that were read back in great number, packed: sled clones a leaf of its tree for each value that is written, so a
//! value for each state is what a restore would wait for.
//!
//! What was read back is written as a *run*: *blocks* of states in the order in which they were read, each of them one value of
//! sled's, and an index of the users' hashes that says in which blocks a user may stand, as in Bitcask (Sheehy and Smith, 2010), but
//! on the disk. So a state is copied once and never sorted, and a user who is not there costs a look into the index only.
//! A newer run goes before an older one, and a state of its own (`View::apply`) before all of them; such states are written
//! only behind the runs of their partition, never before one.
//!
//! A run's index is written behind its blocks, and its end behind that. One that was cut off is removed before the next restore:
//! all that it holds was read back from a position that the view still has, so it is read again.

mod block;
mod index;
mod run;
mod sorted;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{MutexGuard, PoisonError};

pub(super) use block::{BLOCK_BYTES, Block, Packed, Sealer, append, split, user};
#[cfg(test)]
pub(super) use block::{Form, append_beside};
pub(super) use index::check as check_index;
pub(super) use run::Run;

use super::Error;
use super::database::{Database, Trees, cost};

/// A block's key, and how it is sealed there.
type Found = (sled::IVec, sled::IVec);

/// What is written of a run that has an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Block = 0,
    Index = 1,
    /// Nothing is missing of the run.
    End = 2,
}

/// The numbers of runs that have an index have this bit in their keys: so they stand behind those that are sorted.
const INDEXED: u32 = 1 << 31;

fn run_key(partition: i32, run: u32) -> Vec<u8> {
    let mut key = partition.to_be_bytes().to_vec();
    key.extend_from_slice(&run.to_be_bytes());
    key
}

/// Where what is of a kind begins in a run that has an index.
fn indexed_key(partition: i32, run: u32, kind: Kind) -> Vec<u8> {
    let mut key = run_key(partition, run | INDEXED);
    key.push(kind as u8);
    key
}

fn block_key(partition: i32, run: u32, block: u32) -> Vec<u8> {
    let mut key = indexed_key(partition, run, Kind::Block);
    key.extend_from_slice(&block.to_be_bytes());
    key
}

fn index_key(partition: i32, run: u32, first: index::Entry) -> Vec<u8> {
    let mut key = indexed_key(partition, run, Kind::Index);
    key.extend_from_slice(&first.bytes());
    key
}

/// The partition of a key, and the number of its run as it stands there.
fn place(key: &[u8]) -> Result<(i32, u32), Error> {
    let torn = || Error::Torn("a block of packed states has no key of one".to_owned());
    let (partition, rest) = key.split_first_chunk::<4>().ok_or_else(torn)?;
    let run = rest.first_chunk::<4>().ok_or_else(torn)?;
    Ok((i32::from_be_bytes(*partition), u32::from_be_bytes(*run)))
}

/// Whether a key is that of a block of states: of sorted runs all are.
pub(super) fn is_block(key: &[u8]) -> bool {
    let indexed = place(key).is_ok_and(|(_, run)| run & INDEXED != 0);
    !indexed || key.get(8) == Some(&(Kind::Block as u8))
}

/// The runs of a partition: those of formats 3 and 4 of the folder are sorted, and come first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Runs {
    sorted: u32,
    count: u32,
}

/// The number behind that of the last run of a partition that has ended, by the last of its keys.
fn ended(partition: i32, run: u32, last: &[u8]) -> u32 {
    let number = run & !INDEXED;
    let whole = run == number || *last == indexed_key(partition, number, Kind::End)[..];
    number.saturating_add(u32::from(whole))
}

/// Which runs each partition has, from their keys.
pub(super) fn counts(tree: &sled::Tree) -> Result<BTreeMap<i32, Runs>, Error> {
    let mut counts = BTreeMap::new();
    // From the end, a partition at a time.
    let mut last = tree.last()?;
    while let Some((key, _)) = last {
        let (partition, run) = place(&key)?;
        let sorted = match tree.get_lt(run_key(partition, INDEXED))? {
            Some((key, _)) => Some(place(&key)?).filter(|(of, _)| *of == partition),
            None => None,
        };
        let runs = Runs {
            sorted: sorted.map_or(0, |(_, run)| run.saturating_add(1)),
            count: ended(partition, run, &key),
        };
        counts.insert(partition, runs);
        last = tree.get_lt(partition.to_be_bytes())?;
    }
    Ok(counts)
}

/// Removes what begins with this, from the end: so no index stays without its blocks.
fn remove(database: &Database, prefix: &[u8]) -> Result<(), Error> {
    database.remove(|trees| &trees.packed, prefix)
}

/// Removes the packed states of a partition, or of all.
pub(super) fn clear(database: &Database, partition: Option<i32>) -> Result<(), Error> {
    // First: nobody looks for them then.
    database.with(|trees| {
        match partition {
            Some(partition) => drop(known(trees).remove(&partition)),
            None => known(trees).clear(),
        }
        Ok(())
    })?;
    let prefix = partition.map_or_else(Vec::new, |p| p.to_be_bytes().to_vec());
    remove(database, &prefix)
}

/// Removes what is left of runs of a partition that have not come to their ends.
pub(super) fn remove_unended(database: &Database, partition: i32) -> Result<(), Error> {
    loop {
        let last = database.with(|trees| {
            let mut keys = trees.packed.scan_prefix(partition.to_be_bytes()).keys();
            let last = keys.next_back().transpose()?;
            last.map(|key| Ok((place(&key)?.1, key))).transpose()
        })?;
        match last {
            Some((run, key)) if ended(partition, run, &key) == run & !INDEXED => {
                remove(database, &run_key(partition, run))?;
            }
            _ => return Ok(()),
        }
    }
}

/// Which runs there are.
fn known(trees: &Trees) -> MutexGuard<'_, BTreeMap<i32, Runs>> {
    trees.runs.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a partition has runs.
pub(super) fn has_runs(trees: &Trees, partition: i32) -> bool {
    known(trees).contains_key(&partition)
}

/// The runs of a partition, oldest first.
fn runs(trees: &Trees, partition: i32) -> impl DoubleEndedIterator<Item = (u32, bool)> + use<> {
    let Runs { sorted, count } = known(trees).get(&partition).copied().unwrap_or_default();
    (0..count).map(move |run| (run, run < sorted))
}

/// The blocks of a run in which a user may stand, the last first.
fn blocks<'a>(
    trees: &'a Trees,
    partition: i32,
    (run, sorted): (u32, bool),
    user: &str,
) -> Result<Box<dyn Iterator<Item = Result<Found, Error>> + 'a>, Error> {
    if sorted {
        let blocks = sorted::blocks(trees, partition, run, user)?;
        Ok(Box::new(blocks.into_iter().map(Ok)))
    } else {
        Ok(Box::new(index::blocks(trees, partition, run, user)))
    }
}

/// A state that was found.
struct Newest {
    /// Of its block.
    key: sled::IVec,
    /// Which of the block's states it is.
    at: usize,
    version: u64,
    state: Vec<u8>,
}

fn find(trees: &Trees, partition: i32, user: &str) -> Result<Option<Newest>, Error> {
    for run in runs(trees, partition).rev() {
        for found in blocks(trees, partition, run, user)? {
            let (key, sealed) = found?;
            let block = Block::open(&key, &sealed)?;
            let states = block.states()?;
            if let Some(at) = states.iter().rposition(|(s, _)| s.user == user) {
                let (state, _) = states[at];
                return Ok(Some(Newest {
                    at,
                    version: state.version,
                    state: state.state.to_vec(),
                    key,
                }));
            }
        }
    }
    Ok(None)
}

/// The newest packed state of a user: its version and the state.
pub(super) fn newest(
    trees: &Trees,
    partition: i32,
    user: &str,
) -> Result<Option<(u64, Vec<u8>)>, Error> {
    let newest = find(trees, partition, user)?;
    Ok(newest.map(|newest| (newest.version, newest.state)))
}

/// The packed versions of a user from `least` on. They are read back in their order, so what stands before an older one is older.
pub(super) fn versions(
    trees: &Trees,
    partition: i32,
    user: &str,
    least: u64,
) -> Result<BTreeMap<u64, Vec<u8>>, Error> {
    let mut versions = BTreeMap::new();
    for run in runs(trees, partition).rev() {
        for found in blocks(trees, partition, run, user)? {
            let (key, sealed) = found?;
            let block = Block::open(&key, &sealed)?;
            for (state, _) in block.states()?.iter().rev() {
                if state.user != user {
                    continue;
                }
                if state.version < least {
                    return Ok(versions);
                }
                // Read twice: the later one counts.
                let kept = versions.entry(state.version);
                kept.or_insert_with(|| state.state.to_vec());
            }
        }
    }
    Ok(versions)
}

/// Takes a user out of every block: nothing of it stays behind an erasure. Nobody else may write packed states of the
/// partition meanwhile.
pub(super) fn erase(database: &Database, partition: i32, user: &str) -> Result<(), Error> {
    let all = database.with(|trees| Ok(runs(trees, partition)))?;
    for (run, sorted) in all {
        let keys: Vec<sled::IVec> = database.with(|trees| {
            let blocks = blocks(trees, partition, (run, sorted), user)?;
            blocks.map(|found| Ok(found?.0)).collect()
        })?;
        let mut shared = Vec::new();
        for key in keys {
            let sealed = database.with(|trees| {
                let sealed = trees.packed.get(&key)?.unwrap_or_default();
                let block = Block::open(&key, &sealed)?;
                let others = index::shared(&block, user)?;
                shared.extend(others.into_iter().map(|hash| (key.clone(), hash)));
                let rest = block.without(|_, state| state.user == user)?;
                Ok(rest.map(|rest| block.sealer().seal(&key, &rest)))
            })?;
            // A block without a state stays: its number, or in the last sorted run its key, is counted on.
            if let Some(sealed) = sealed {
                put(database, &key, sealed)?;
            }
        }
        if sorted {
            continue;
        }
        let index = database.with(|trees| {
            // Behind the blocks: whoever is named for nothing is looked for in vain, and no more.
            index::without(trees, (partition, run), user, &shared)
        })?;
        for (key, sealed) in index {
            put(database, &key, sealed)?;
        }
    }
    Ok(())
}

fn put(database: &Database, key: &[u8], sealed: Vec<u8>) -> Result<(), Error> {
    database.write(cost(1, sealed.len()), |trees| {
        trees.packed.insert(key, sealed)?;
        Ok(())
    })
}

/// Blocks that are looked through at once.
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
        if place(&key)?.0 != partition {
            break;
        }
        let block = is_block(&key).then(|| Block::open(&key, &sealed));
        let block = block.transpose()?;
        let states = block.iter().map(Block::states).next().transpose()?;
        for (at, (state, _)) in states.iter().flatten().enumerate() {
            let newest = find(trees, partition, state.user)?;
            let here = newest.is_some_and(|newest| newest.key == key && newest.at == at);
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
