//! Finished model calls, by hash of what went in: the same call is never paid for twice.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use super::database::{Database, cost};
use super::{Error, seal, unseal};

/// Finished model calls, bounded: the oldest go first.
#[derive(Debug)]
pub struct Journal {
    database: Arc<Database>,
    max_entries: u64,
}

/// Most old entries that go with one new one: a bound that was lowered by much is come to over many calls, and none of them waits for long.
const GO_AT_ONCE: u64 = 16;

/// The numbers that a tree's entries have.
pub(super) fn numbers(tree: &sled::Tree) -> Result<Range<u64>, Error> {
    let first = tree.scan_prefix(b"n").next().transpose()?;
    let last = tree.scan_prefix(b"n").next_back().transpose()?;
    let number = |entry: Option<(sled::IVec, sled::IVec)>| {
        entry.map(|(key, _)| key.iter().skip(1).fold(0u64, |n, &x| n << 8 | u64::from(x)))
    };
    let start = number(first).unwrap_or(0);
    let end = number(last).map_or(start, |n| n.saturating_add(1));
    Ok(start..end)
}

impl Journal {
    pub(super) fn new(database: Arc<Database>, max_entries: u64) -> Self {
        Self {
            database,
            max_entries,
        }
    }

    /// What the call with this hash gave; `None` where it was never made, was forgotten, or is torn (it is then made anew).
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Torn`] from sled.
    pub fn get(&self, hash: &[u8; 32]) -> Result<Option<Vec<u8>>, Error> {
        if self.max_entries == 0 {
            return Ok(None);
        }
        let key = entry_key(hash);
        self.database.with(|trees| {
            let sealed = trees.journal.get(&key)?;
            Ok(sealed.and_then(|sealed| unseal(1, &key, &sealed).map(<[u8]>::to_vec)))
        })
    }

    /// Keeps what a call gave. A hash that is there already keeps its place in the order and takes the new value.
    ///
    /// Not in a batch of sled's: for each of these its log is written and synced twice. So the order counts: a crash leaves
    /// a number without its entry, never an entry that nothing removes. Such a number goes when its turn comes, with the
    /// entry if that was made again: an answer is then forgotten early, and no more.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Torn`] from sled.
    pub fn put(&self, hash: &[u8; 32], output: &[u8]) -> Result<(), Error> {
        if self.max_entries == 0 {
            return Ok(());
        }
        let key = entry_key(hash);
        self.database.write(cost(4, output.len()), |trees| {
            // One at a time, so that each sees the whole of the others. A poisoned lock holds a range that is still right.
            let mut numbers = trees.numbers.lock().unwrap_or_else(PoisonError::into_inner);
            if !trees.journal.contains_key(&key)? {
                trees.journal.insert(number_key(numbers.end), &hash[..])?;
                numbers.end += 1;
                let over = (numbers.end - numbers.start).saturating_sub(self.max_entries);
                for _ in 0..over.min(GO_AT_ONCE) {
                    let old = number_key(numbers.start);
                    if let Some(hash) = trees.journal.get(&old)? {
                        let mut gone = vec![b'e'];
                        gone.extend_from_slice(&hash);
                        trees.journal.remove(gone)?;
                    }
                    // Until its entry is gone a number stays, so that the next start finds both.
                    trees.journal.remove(old)?;
                    numbers.start += 1;
                }
            }
            trees.journal.insert(&key[..], seal(1, &key, &[output]))?;
            Ok(())
        })
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
    use super::super::database::Trees;
    use super::super::database::tests::temporary;
    use super::*;

    fn length(database: &Database) -> usize {
        database.with(|trees| Ok(trees.journal.len())).unwrap()
    }

    #[test]
    fn the_journal_keeps_the_newest_calls_also_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        for half in [0u8..4, 4..6] {
            let database = Database::open(folder.path(), 1 << 20).unwrap();
            let journal = Journal::new(Arc::new(database), 3);
            for n in half {
                journal.put(&[n; 32], &[n, n]).unwrap();
            }
        }
        let database = Arc::new(Database::open(folder.path(), 1 << 20).unwrap());
        let journal = Journal::new(Arc::clone(&database), 3);
        let kept: Vec<u8> = (0..6)
            .filter(|&n| journal.get(&[n; 32]).unwrap() == Some(vec![n, n]))
            .collect();
        assert_eq!(kept, [3, 4, 5]);
        assert_eq!(length(&database), 6, "three entries and their numbers");
    }

    #[test]
    fn a_journal_of_no_entries_keeps_nothing() {
        let (database, _folder) = temporary();
        let journal = Journal::new(Arc::clone(&database), 0);
        journal.put(&[1; 32], b"x").unwrap();
        assert_eq!(journal.get(&[1; 32]).unwrap(), None);
        assert_eq!(length(&database), 0);
    }

    #[test]
    fn a_number_whose_entry_a_crash_has_cut_off_goes_when_its_turn_comes() {
        let (database, _folder) = temporary();
        let journal = Journal::new(Arc::clone(&database), 3);
        journal.put(&[1; 32], b"x").unwrap();
        let cut = |trees: &Trees| {
            trees.journal.remove(entry_key(&[1; 32]))?;
            Ok(())
        };
        database.with(cut).unwrap();
        for n in 2..6 {
            journal.put(&[n; 32], b"x").unwrap();
        }
        assert_eq!(length(&database), 6, "three entries and their numbers");
    }

    #[test]
    fn the_same_call_again_takes_no_second_place() {
        let (database, _folder) = temporary();
        let journal = Journal::new(database, 3);
        for _ in 0..10 {
            journal.put(&[1; 32], b"x").unwrap();
        }
        journal.put(&[2; 32], b"y").unwrap();
        journal.put(&[3; 32], b"z").unwrap();
        assert_eq!(journal.get(&[1; 32]).unwrap(), Some(b"x".to_vec()));
    }

    #[test]
    fn a_bound_that_was_lowered_by_much_is_come_to_a_little_with_each_call() {
        let (database, _folder) = temporary();
        let hash = |n: usize| *blake3::hash(&n.to_le_bytes()).as_bytes();
        let roomy = Journal::new(Arc::clone(&database), 1000);
        (0..200).for_each(|n| roomy.put(&hash(n), b"x").unwrap());
        let tight = Journal::new(Arc::clone(&database), 5);
        let mut before = length(&database);
        for n in 200..220 {
            tight.put(&hash(n), b"x").unwrap();
            let now = length(&database);
            assert!(before.saturating_sub(now) <= 2 * 16, "{before} {now}");
            before = now;
        }
        assert_eq!(before, 10, "five entries and their numbers");
        assert!(tight.get(&hash(215)).unwrap().is_some());
        assert!(tight.get(&hash(214)).unwrap().is_none());
    }

    #[test]
    fn a_torn_entry_counts_as_a_call_never_made() {
        let (database, _folder) = temporary();
        let journal = Journal::new(Arc::clone(&database), 3);
        journal.put(&[1; 32], b"x").unwrap();
        database
            .with(|trees| {
                trees
                    .journal
                    .insert(entry_key(&[1; 32]), &b"\x01noise"[..])?;
                Ok(())
            })
            .unwrap();
        assert_eq!(journal.get(&[1; 32]).unwrap(), None);
    }
}
