//! A run on its way into the database.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use super::super::Error;
use super::super::database::Database;
use super::block::{BLOCK_BYTES, Block, Sealer};
use super::index::{self, Entry, MOST_BLOCKS};
use super::{Kind, block_key, erase, indexed_key, is_block, known, put};
use crate::failpoint;

/// States and erasures behind which a run ends: its index is in memory until then. Few in a debug build, so that the tests and the
/// fault suite see many runs.
const MOST_STATES: usize = if cfg!(debug_assertions) { 512 } else { 1 << 19 };
/// More states than a piece of what was read has ([`super::super::ReadBack`]): a run that is not full yet takes one more whole.
const PIECE_STATES: usize = 1 << 15;
/// Bytes of states behind which a run ends: what a crash cuts off is read again.
const MOST_BYTES: usize = 256 << 20;

/// Blocks whose places are written before they come: a page of sled's full ([`Run::write`]). What is left of them at the end stays, as
/// [`guards`] do: whoever took them away would have sled put what is beside them into one page, and that is written anew.
const AHEAD: u32 = 16;

/// What is written at once costs so much ([`cost`]), two thirds of it bytes: so few that their memory, which is used again and again, is
/// new only once, and so many that few pages are written twice because they have what two writings bring. Four go into a segment of today's
/// size, and what the last of their blocks is too much. In a debug build a few blocks, so that runs are cut off in the middle there.
const MOST_AT_ONCE: usize = if cfg!(debug_assertions) {
    4 << 10
} else {
    15 << 17
};

/// About how many bytes of log it takes to write one more value of so many bytes: hardly more than those ([`Run::write`]).
fn cost(bytes: usize) -> usize {
    bytes + bytes / 2 + (1 << 10)
}

/// Keys behind all of a run's blocks, with nothing at them. Where there are none, the first blocks of the next partition stand in the page
/// that this run's places come into, and are written anew with each split of it.
fn guards(partition: i32, number: u32) -> impl Iterator<Item = Vec<u8>> {
    (0..AHEAD).map(move |guard| block_key(partition, number, u32::MAX - guard))
}

/// States of a partition, block by block, in the order in which they were read, and the index that finds them. Nothing of it is
/// there before it has ended.
pub(in crate::store) struct Run<'a> {
    database: &'a Database,
    partition: i32,
    number: u32,
    blocks: u32,
    bytes: usize,
    /// An entry for each state, in their order.
    index: Vec<Entry>,
    /// Users that were erased, and how many states were before that.
    erased: Vec<(Box<str>, usize)>,
    /// What is to be written, one value behind another in memory that is used again: keys, and where the values end.
    full: Vec<(Vec<u8>, usize)>,
    values: Vec<u8>,
    cost: usize,
    /// Blocks below this have their places ([`Run::write`]).
    placed: u32,
    pub(super) most: usize,
    sealer: Sealer,
}

impl<'a> Run<'a> {
    /// The next run of a partition, which nobody else writes to and of which nothing unended is left ([`super::remove_unended`]).
    pub(in crate::store) fn begin(database: &'a Database, partition: i32) -> Result<Self, Error> {
        let before = database.with(|trees| Ok(known(trees).get(&partition).copied()))?;
        let number = before.unwrap_or_default().count;
        Ok(Self {
            database,
            partition,
            number,
            blocks: 0,
            bytes: 0,
            // All that they will hold, of which the system gives what is written to: growing would copy it, to memory that is new.
            index: Vec::with_capacity(MOST_STATES + PIECE_STATES),
            erased: Vec::new(),
            full: Vec::new(),
            values: Vec::with_capacity(MOST_AT_ONCE / 3 * 2 + 2 * BLOCK_BYTES),
            cost: 0,
            placed: 0,
            most: MOST_AT_ONCE.min(database.most() / 64 * 15),
            sealer: Sealer::new(),
        })
    }

    /// Whether it is large enough to end.
    pub(in crate::store) fn is_full(&self) -> bool {
        self.index.len() + self.erased.len() >= MOST_STATES
            || self.bytes >= MOST_BYTES
            || self.blocks >= MOST_BLOCKS / 2
    }

    /// Takes one more block: some states as [`super::append`] has written them, and whose they are.
    pub(in crate::store) fn push<'b>(
        &mut self,
        users: impl Iterator<Item = &'b [u8]>,
        states: &[u8],
    ) -> Result<(), Error> {
        let entries = users.map(|user| Entry::new(user, self.blocks));
        self.index.extend(entries);
        self.bytes += states.len();
        let key = block_key(self.partition, self.number, self.blocks);
        self.blocks += 1;
        let begin = self.values.len();
        self.sealer.seal_behind(&mut self.values, &key, states);
        self.put(key, begin, AHEAD)
    }

    /// How many states it has taken.
    pub(in crate::store) fn states(&self) -> usize {
        self.index.len()
    }

    /// Takes an erasure: of the first `before` of its states, and of older runs, none is to stay that is the user's.
    pub(in crate::store) fn erase(&mut self, user: &str, before: usize) {
        self.erased.push((user.into(), before));
    }

    /// Ends it: all of it is there then.
    pub(in crate::store) fn end(mut self) -> Result<(), Error> {
        if !self.erased.is_empty() {
            self.write(0)?;
            self.forget()?;
            let users: BTreeSet<&str> = self.erased.iter().map(|(user, _)| &**user).collect();
            for user in users {
                erase(self.database, self.partition, user)?;
            }
        }
        if self.blocks == 0 {
            return Ok(());
        }
        for (key, sealed) in index::sealed(self.partition, self.number, mem::take(&mut self.index))
        {
            let begin = self.values.len();
            self.values.extend_from_slice(&sealed);
            self.put(key, begin, 0)?;
        }
        self.write(0)?;
        let end = indexed_key(self.partition, self.number, Kind::End);
        put(self.database, &end, Vec::new())?;
        failpoint::pass("run_written");
        self.database.with(|trees| {
            let mut known = known(trees);
            known.entry(self.partition).or_default().count = self.number.saturating_add(1);
            Ok(())
        })
    }

    /// Takes out of its blocks, and of the index, what was erased behind it.
    fn forget(&mut self) -> Result<(), Error> {
        let mut erased: BTreeMap<u64, Vec<(&str, usize)>> = BTreeMap::new();
        for (user, before) in &self.erased {
            let hash = Entry::new(user.as_bytes(), 0).hash();
            erased.entry(hash).or_default().push((user, *before));
        }
        let index = mem::take(&mut self.index);
        let gone = |at: usize, user: Option<&str>| {
            let users = erased.get(&index[at].hash());
            users.is_some_and(|users| {
                let is = |&(of, before): &(&str, usize)| {
                    at < before && user.is_none_or(|user| user == of)
                };
                users.iter().any(is)
            })
        };
        let touched: BTreeSet<u32> = (0..index.len())
            .filter(|&at| gone(at, None))
            .map(|at| index[at].block())
            .collect();
        let mut out = BTreeSet::new();
        for block in touched {
            let key = block_key(self.partition, self.number, block);
            let first = index.partition_point(|entry| entry.block() < block);
            let rest = self.database.with(|trees| {
                let sealed = trees.packed.get(&key)?.unwrap_or_default();
                Block::open(&key, &sealed)?.without(|at, state| {
                    let gone = gone(first + at, Some(state.user));
                    if gone {
                        out.insert(first + at);
                    }
                    gone
                })
            })?;
            if let Some(rest) = rest {
                let sealed = self.sealer.seal(&key, &rest);
                put(self.database, &key, sealed)?;
            }
        }
        let stay = index.iter().enumerate();
        let stay = stay.filter(|(at, _)| !out.contains(at));
        self.index = stay.map(|(_, entry)| *entry).collect();
        Ok(())
    }

    /// Puts what stands from `begin` on to the values that are to be written, and writes them when there are enough.
    fn put(&mut self, key: Vec<u8>, begin: usize, ahead: u32) -> Result<(), Error> {
        self.cost += cost(self.values.len() - begin);
        self.full.push((key, self.values.len()));
        if self.cost >= self.most {
            self.write(ahead)?;
        }
        Ok(())
    }

    /// Writes what is full. sled writes a page anew behind each tenth change of it, with up to sixteen values in it, and when it
    /// is split: in the order of their keys blocks would be written three to four times. So first their places are
    /// written, which makes the pages, of eight each; then each page takes its blocks, and hardly one is written twice. So many blocks
    /// that are still to come have their places too: the next ones' would come into a page that is full of blocks else, and split it.
    fn write(&mut self, ahead: u32) -> Result<(), Error> {
        let (partition, number) = (self.partition, self.number);
        let placed = self.placed.max(self.blocks + ahead);
        let places = mem::replace(&mut self.placed, placed)..placed;
        let first = places.start == 0 && ahead > 0;
        let places = places.map(|block| block_key(partition, number, block));
        let guards = guards(partition, number).filter(|_| first);
        let (full, values) = (&self.full, &self.values);
        // They come into a page of other blocks, which is written anew and split for them.
        let beside = usize::from(first) * 2 * AHEAD as usize * cost(BLOCK_BYTES);
        let cost = mem::take(&mut self.cost) + beside;
        self.database.write(cost, |trees| {
            for place in guards.chain(places) {
                trees.packed.insert(place, &[])?;
            }
            for (key, _) in full.iter().filter(|(key, _)| !is_block(key)) {
                trees.packed.insert(&key[..], &[])?;
            }
            let mut begin = 0;
            for (key, end) in full {
                trees.packed.insert(&key[..], &values[begin..*end])?;
                begin = *end;
            }
            Ok(())
        })?;
        self.full.clear();
        self.values.clear();
        failpoint::pass("run_going_on");
        Ok(())
    }
}
