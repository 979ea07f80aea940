//! The paged cache's book-keeping: which block holds which tokens, and for how many sequences. Knows no tensors.
//!
//! A full block whose tokens are all computed is published: found by its tokens and the chain of blocks before it, never
//! by a hash alone, so a block with other tokens can never be shared. A published or shared block is never written.

use std::collections::BTreeMap;

use super::step::BLOCK;

/// The parent of a sequence's first block.
const ROOT: u32 = u32::MAX;

/// Where a block is found: behind its parent, by its tokens. Ordered, so that the entry with the longest common run
/// stands next to the tokens looked for.
type Key = (u32, [u32; BLOCK]);

/// A sequence's blocks, in the order of its positions. Goes back through [`Blocks::release`].
#[derive(Debug, Default)]
#[must_use = "dropped blocks are lost to the cache"]
pub(crate) struct Table {
    blocks: Vec<u32>,
    /// How many of the first blocks are published.
    published: usize,
}

impl Table {
    /// The block numbers.
    pub(crate) fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Positions that have a place.
    pub(crate) fn positions(&self) -> usize {
        self.blocks.len() * BLOCK
    }
}

/// No block is free, and none can be made free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// A whole block to be copied before the step writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copy {
    pub from: u32,
    pub to: u32,
}

/// What is published of a block.
#[derive(Debug)]
struct Entry {
    key: Key,
    /// Published blocks behind this one.
    children: usize,
    /// When its last user left; it stands in `idle` under this number.
    left: u64,
}

/// The blocks of the cache.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// By block: how many tables hold it.
    users: Vec<u32>,
    /// By block: where it is found, if it is published.
    entries: Vec<Option<Entry>>,
    index: BTreeMap<Key, u32>,
    /// Neither held nor published.
    free: Vec<u32>,
    /// Published and held by nobody, the longest left first.
    idle: BTreeMap<u64, u32>,
    clock: u64,
}

impl Blocks {
    /// An empty cache of `count` blocks.
    pub(crate) fn new(count: usize) -> Self {
        // The last number stands for no parent.
        let count = u32::try_from(count).unwrap_or(ROOT);
        Self {
            users: vec![0; count as usize],
            entries: (0..count).map(|_| None).collect(),
            index: BTreeMap::new(),
            free: (0..count).rev().collect(),
            idle: BTreeMap::new(),
            clock: 0,
        }
    }

    /// All blocks there are.
    pub(crate) fn count(&self) -> usize {
        self.users.len()
    }

    /// Blocks that a sequence holds.
    pub(crate) fn in_use(&self) -> usize {
        self.count() - self.available()
    }

    /// Blocks that nobody holds, kept because their tokens may come again.
    pub(crate) fn cached(&self) -> usize {
        self.idle.len()
    }

    /// Blocks that can be had now.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// The blocks that hold the longest computed prefix of `tokens`, and how many positions of them are right. The last
    /// token is never among them: its logits are wanted, so it has to be computed.
    pub(crate) fn find(&mut self, tokens: &[u32]) -> (Table, usize) {
        let most = tokens.len().saturating_sub(1);
        let mut table = Table::default();
        let mut parent = ROOT;
        let mut found = 0;
        while found < most {
            let rest = &tokens[found..most];
            let Some((block, run)) = self.child(parent, rest) else {
                break;
            };
            self.hold(block);
            table.blocks.push(block);
            found += run;
            if run < BLOCK {
                break;
            }
            table.published += 1;
            parent = block;
        }
        (table, found)
    }

    /// The published block behind `parent` with the longest run of tokens in common, and that run's length.
    fn child(&self, parent: u32, tokens: &[u32]) -> Option<(u32, usize)> {
        let len = tokens.len().min(BLOCK);
        let mut key = (parent, [0; BLOCK]);
        key.1[..len].copy_from_slice(&tokens[..len]);
        // In sorted order no entry has a longer run in common than one of the two neighbours.
        let before = self.index.range(..key).next_back();
        let after = self.index.range(key..).next();
        [after, before]
            .into_iter()
            .flatten()
            .filter(|((of, _), _)| *of == parent)
            .map(|((_, held), &block)| (block, common(held, &tokens[..len])))
            .filter(|&(_, run)| run > 0)
            .max_by_key(|&(_, run)| run)
    }

    /// Makes the positions from `start` on, `rows` of them, writable by this table alone. A block that others may read
    /// is replaced by a private one; its content has to be copied before the write. Changes nothing when full.
    pub(crate) fn reserve(
        &mut self,
        table: &mut Table,
        start: usize,
        rows: usize,
    ) -> Result<Option<Copy>, Full> {
        debug_assert!(start / BLOCK >= table.published && start <= table.positions());
        let wanted = (start + rows).div_ceil(BLOCK);
        let grown = wanted.saturating_sub(table.blocks.len());
        // Only the block in which the sequence's own tokens begin can be another's: those behind it are new.
        let shared = table
            .blocks
            .get(start / BLOCK)
            .copied()
            .filter(|&b| rows > 0 && self.readable_by_others(b));
        let mut copied = shared.is_some();
        if grown + usize::from(copied) > self.available() {
            // Full: a block that only this table holds is written where it is, and no longer found by others.
            let alone = shared.is_some_and(|b| self.users[b as usize] == 1);
            if !alone || grown > self.available() {
                return Err(Full);
            }
            copied = false;
        }
        for _ in 0..grown {
            let block = self.take()?;
            table.blocks.push(block);
        }
        let mut copy = None;
        if let Some(from) = shared {
            if copied {
                let to = self.take()?;
                table.blocks[start / BLOCK] = to;
                copy = Some(Copy { from, to });
                self.leave(from);
            } else {
                // Nobody else holds it, so nobody holds its children: all of them were just taken.
                self.unpublish(from);
            }
        }
        Ok(copy)
    }

    /// Publishes the blocks that the sequence's first `computed` positions fill. `tokens` are the sequence's. Where the
    /// same tokens are published already, the table takes that block and gives up its own.
    pub(crate) fn publish(&mut self, table: &mut Table, tokens: &[u32], computed: usize) {
        while (table.published + 1) * BLOCK <= computed {
            let at = table.published;
            let parent = at.checked_sub(1).map_or(ROOT, |i| table.blocks[i]);
            let mut key = (parent, [0; BLOCK]);
            key.1.copy_from_slice(&tokens[at * BLOCK..(at + 1) * BLOCK]);
            let own = table.blocks[at];
            debug_assert!(!self.readable_by_others(own), "a shared block was written");
            if let Some(&same) = self.index.get(&key) {
                self.hold(same);
                table.blocks[at] = same;
                self.leave(own);
            } else {
                self.index.insert(key, own);
                if let Some(entry) = self.entry(parent) {
                    entry.children += 1;
                }
                self.entries[own as usize] = Some(Entry {
                    key,
                    children: 0,
                    left: 0,
                });
            }
            table.published += 1;
        }
    }

    /// Gives back the blocks behind the first `positions`.
    pub(crate) fn truncate(&mut self, table: &mut Table, positions: usize) {
        let kept = positions.div_ceil(BLOCK).max(table.published);
        while table.blocks.len() > kept {
            if let Some(block) = table.blocks.pop() {
                self.leave(block);
            }
        }
    }

    /// Gives all blocks of a sequence back. The published ones stay findable until they are needed.
    pub(crate) fn release(&mut self, mut table: Table) {
        // From the last on: a block is left before its parent, so it is reused before its parent.
        while let Some(block) = table.blocks.pop() {
            self.leave(block);
        }
    }

    /// Forgets all that is published: nothing of it is found any more. No table may hold a block.
    pub(crate) fn forget(&mut self) {
        debug_assert_eq!(self.in_use(), 0, "a chain is forgotten while it grows");
        self.index.clear();
        self.entries.iter_mut().for_each(|entry| *entry = None);
        self.free
            .extend(std::mem::take(&mut self.idle).into_values());
    }

    fn hold(&mut self, block: u32) {
        let users = &mut self.users[block as usize];
        *users += 1;
        if *users == 1
            && let Some(entry) = &self.entries[block as usize]
        {
            self.idle.remove(&entry.left);
        }
    }

    fn leave(&mut self, block: u32) {
        let users = &mut self.users[block as usize];
        debug_assert!(*users > 0, "a block was given back twice");
        *users = users.saturating_sub(1);
        if *users > 0 {
            return;
        }
        match &mut self.entries[block as usize] {
            Some(entry) => {
                entry.left = self.clock;
                self.idle.insert(self.clock, block);
                self.clock += 1;
            }
            None => self.free.push(block),
        }
    }

    /// A block for one table: a free one, else the one that nobody has used for longest.
    fn take(&mut self) -> Result<u32, Full> {
        if self.free.is_empty() {
            // A block is only known by the chain before it: children go before their parents. The order of leaving
            // sees to that, so this finds the first.
            let oldest = self.idle.values().copied();
            let mut childless = oldest.filter(|&b| self.children(b) == 0);
            let block = childless.next().ok_or(Full)?;
            self.unpublish(block);
        }
        let block = self.free.pop().ok_or(Full)?;
        debug_assert_eq!(self.users[block as usize], 0);
        self.users[block as usize] = 1;
        Ok(block)
    }

    /// Takes a block without children out of the index.
    fn unpublish(&mut self, block: u32) {
        let Some(entry) = self.entries[block as usize].take() else {
            return;
        };
        self.index.remove(&entry.key);
        if let Some(parent) = self.entry(entry.key.0) {
            parent.children -= 1;
        }
        if self.users[block as usize] == 0 {
            self.idle.remove(&entry.left);
            self.free.push(block);
        }
    }

    fn entry(&mut self, block: u32) -> Option<&mut Entry> {
        self.entries.get_mut(block as usize)?.as_mut()
    }

    fn children(&self, block: u32) -> usize {
        self.entries[block as usize]
            .as_ref()
            .map_or(0, |e| e.children)
    }

    fn readable_by_others(&self, block: u32) -> bool {
        self.users[block as usize] > 1 || self.entries[block as usize].is_some()
    }
}

/// How many tokens two runs begin with in common.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests;
