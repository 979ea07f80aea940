//! Changes of profiles, into the view.

use std::collections::{BTreeMap, BTreeSet};

use super::super::database::cost;
use super::gather::noted_key;
use super::{Applied, Error, View, alone, current_key, history_key, key, seal, seal_current};
use super::{gathered, packed};
use crate::failpoint;

/// One user's new state.
#[derive(Debug, Clone)]
pub struct Change {
    /// The input partition that the user belongs to.
    pub partition: i32,
    /// The user, at most 512 bytes.
    pub user: Box<str>,
    /// Version and encoded state; `None` erases the user with all versions.
    pub state: Option<(u64, Vec<u8>)>,
}

impl Change {
    /// What it costs to write: with the new state, what was current until now becomes history.
    fn cost(&self) -> usize {
        let state = self.state.as_ref().map_or(0, |(_, state)| state.len());
        cost(2, 2 * state)
    }
}

/// What one Kafka transaction, or one stretch of the profiles topic, changed.
#[derive(Debug, Clone, Default)]
pub struct ViewBatch {
    /// The users' states in the order of the topic. Versions are counted from 1.
    pub changes: Vec<Change>,
    /// For each partition touched, how far the profiles topic is now applied.
    pub positions: Vec<(i32, Applied)>,
    /// For each partition touched, the next offset of the checkpoints partition to read, and the encoded checkpoint.
    pub checkpoints: Vec<(i32, i64, Vec<u8>)>,
}

impl View {
    /// Applies a batch. Its positions come last, so the view is never ahead of what it holds, and a crash at any instant
    /// leaves a state that reading on from the positions completes: all of it in one transaction of sled's, or, where that
    /// would be more than is written at once (`Database::write`), states in several before. To apply a state again changes
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk refuses, [`Error::Torn`] where sled finds damage.
    pub fn apply(&self, batch: &ViewBatch) -> Result<(), Error> {
        // Before the rest, with which the position goes on.
        for erased in batch.changes.iter().filter(|c| c.state.is_none()) {
            packed::erase(&self.database, erased.partition, &erased.user)?;
            gathered::erase(&self.database, erased.partition, &erased.user)?;
        }
        let most = self.database.most() / 2;
        let mut rest = &batch.changes[..];
        loop {
            let mut sum = 0;
            let fits = rest.iter().take_while(|change| {
                let cost = change.cost();
                let fits = sum == 0 || sum + cost <= most;
                sum += cost;
                fits
            });
            let (now, later) = rest.split_at(fits.count());
            if later.is_empty() {
                return self.apply_at_once(now, &batch.positions, &batch.checkpoints);
            }
            self.apply_at_once(now, &[], &[])?;
            rest = later;
        }
    }

    fn apply_at_once(
        &self,
        changes: &[Change],
        positions: &[(i32, Applied)],
        checkpoints: &[(i32, i64, Vec<u8>)],
    ) -> Result<(), Error> {
        let noted = self.count(changes)?;
        let mut sled_batch = sled::Batch::default();
        let mut put = |key: &[u8], payload: &[u8]| sled_batch.insert(key, seal(1, key, &[payload]));
        for (partition, applied) in positions {
            let mut bytes = applied.offset.to_be_bytes().to_vec();
            bytes.extend_from_slice(&applied.at_ms.to_be_bytes());
            put(&key(b'p', *partition), &bytes);
        }
        for (partition, next, checkpoint) in checkpoints {
            let mut bytes = next.to_be_bytes().to_vec();
            bytes.extend_from_slice(checkpoint);
            put(&key(b'c', *partition), &bytes);
        }
        for (partition, noted) in &noted {
            put(&noted_key(*partition), noted);
        }
        // Old versions that these very changes bring: they are not in the tree yet, and may be too old or erased already.
        let mut fresh: BTreeSet<Vec<u8>> = BTreeSet::new();
        let mut last: BTreeMap<Vec<u8>, Option<(u64, &[u8])>> = BTreeMap::new();
        let checkpoints: usize = checkpoints.iter().map(|(_, _, bytes)| bytes.len()).sum();
        let changes_cost: usize = changes.iter().map(Change::cost).sum();
        let cost = changes_cost + cost(0, checkpoints);
        self.database.write(cost, |trees| {
            for change in changes {
                let (partition, user) = (change.partition, &*change.user);
                let key = current_key(partition, user);
                let mut keep = |version: u64, state: &[u8]| {
                    let key = history_key(partition, user, version);
                    sled_batch.insert(&key[..], seal(1, &key, &[state]));
                    fresh.insert(key);
                };
                // Every version before it goes; a number may be missing where a transaction held several.
                let gone_before = match &change.state {
                    Some((version, state)) => {
                        // What was current until now is history. The first version follows none.
                        match last.get(&key) {
                            Some(Some((old, state))) if old < version => keep(*old, state),
                            // Gathered or packed it stays where it is.
                            None if *version > 1 && self.history > 0 => {
                                if let Some((Some(old), state)) = alone(trees, partition, user)?
                                    && old < *version
                                {
                                    keep(old, &state);
                                }
                            }
                            _ => {}
                        }
                        last.insert(key, Some((*version, state)));
                        version.saturating_sub(self.history)
                    }
                    None => {
                        last.insert(key, None);
                        u64::MAX
                    }
                };
                if gone_before == 0 {
                    continue;
                }
                let oldest = history_key(partition, user, 0);
                let end = history_key(partition, user, gone_before);
                for entry in trees.view.range(&oldest[..]..&end[..]) {
                    sled_batch.remove(entry?.0);
                }
                for key in fresh.range(oldest..end) {
                    sled_batch.remove(&key[..]);
                }
            }
            for (key, state) in last {
                match state {
                    Some((version, state)) => {
                        let sealed = seal_current(&key, version, state);
                        sled_batch.insert(key, sealed);
                    }
                    None => sled_batch.remove(key),
                }
            }
            failpoint::pass("view_begun");
            trees.view.apply_batch(sled_batch)?;
            Ok(())
        })
    }
}
