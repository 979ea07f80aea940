//! Finished model calls, by hash of what went in: the same call is never paid for twice.

use super::{Error, seal, unseal};

/// Finished model calls, bounded: the oldest go first.
#[derive(Debug)]
pub struct Journal {
    tree: sled::Tree,
    max_entries: u64,
    /// Numbers in use: from the oldest entry to the one before `next`.
    numbers: std::sync::Mutex<std::ops::Range<u64>>,
}

impl Journal {
    pub(super) fn new(tree: sled::Tree, max_entries: u64) -> Result<Self, Error> {
        let first = tree.scan_prefix(b"n").next().transpose()?;
        let last = tree.scan_prefix(b"n").next_back().transpose()?;
        let number = |entry: Option<(sled::IVec, sled::IVec)>| {
            entry.map(|(key, _)| key.iter().skip(1).fold(0u64, |n, &x| n << 8 | u64::from(x)))
        };
        let start = number(first).unwrap_or(0);
        let end = number(last).map_or(start, |n| n.saturating_add(1));
        Ok(Self {
            tree,
            max_entries: max_entries.max(1),
            numbers: std::sync::Mutex::new(start..end),
        })
    }

    /// What the call with this hash gave; `None` where it was never made, was forgotten, or is torn (it is then made anew).
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Torn`] from sled.
    pub fn get(&self, hash: &[u8; 32]) -> Result<Option<Vec<u8>>, Error> {
        let key = entry_key(hash);
        Ok(self
            .tree
            .get(&key)?
            .and_then(|sealed| unseal(&key, &sealed).map(<[u8]>::to_vec)))
    }

    /// Keeps what a call gave. A hash that is there already keeps its place in the order and takes the new value.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Torn`] from sled.
    pub fn put(&self, hash: &[u8; 32], output: &[u8]) -> Result<(), Error> {
        let key = entry_key(hash);
        let mut batch = sled::Batch::default();
        batch.insert(&key[..], seal(&key, output));
        // A poisoned lock holds a range that is still right: it is changed last.
        let mut numbers = self
            .numbers
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut after = numbers.clone();
        if !self.tree.contains_key(&key)? {
            batch.insert(number_key(after.end), &hash[..]);
            after.end += 1;
            while after.end - after.start > self.max_entries {
                let old = number_key(after.start);
                if let Some(hash) = self.tree.get(&old)? {
                    let mut gone = vec![b'e'];
                    gone.extend_from_slice(&hash);
                    batch.remove(gone);
                }
                batch.remove(old);
                after.start += 1;
            }
        }
        self.tree.apply_batch(batch)?;
        *numbers = after;
        Ok(())
    }
}

fn entry_key(hash: &[u8; 32]) -> Vec<u8> {
    let mut key = vec![b'e'];
    key.extend_from_slice(hash);
    key
}

fn number_key(number: u64) -> Vec<u8> {
    let mut key = vec![b'n'];
    key.extend_from_slice(&number.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(db: &sled::Db) -> Journal {
        Journal::new(db.open_tree("journal").unwrap(), 3).unwrap()
    }

    #[test]
    fn the_journal_keeps_the_newest_calls_also_over_a_restart() {
        let db = sled::Config::new().temporary(true).open().unwrap();
        for half in [0u8..4, 4..6] {
            let journal = journal(&db);
            for n in half {
                journal.put(&[n; 32], &[n, n]).unwrap();
            }
        }
        let journal = journal(&db);
        let kept: Vec<u8> = (0..6)
            .filter(|&n| journal.get(&[n; 32]).unwrap() == Some(vec![n, n]))
            .collect();
        assert_eq!(kept, [3, 4, 5]);
        assert_eq!(journal.tree.len(), 6, "three entries and their numbers");
    }

    #[test]
    fn the_same_call_again_takes_no_second_place() {
        let db = sled::Config::new().temporary(true).open().unwrap();
        let journal = journal(&db);
        for _ in 0..10 {
            journal.put(&[1; 32], b"x").unwrap();
        }
        journal.put(&[2; 32], b"y").unwrap();
        journal.put(&[3; 32], b"z").unwrap();
        assert_eq!(journal.get(&[1; 32]).unwrap(), Some(b"x".to_vec()));
    }

    #[test]
    fn a_torn_entry_counts_as_a_call_never_made() {
        let db = sled::Config::new().temporary(true).open().unwrap();
        let journal = journal(&db);
        journal.put(&[1; 32], b"x").unwrap();
        journal
            .tree
            .insert(entry_key(&[1; 32]), &b"\x01noise"[..])
            .unwrap();
        assert_eq!(journal.get(&[1; 32]).unwrap(), None);
    }
}
