//! The profiles of the partitions that this instance owns, or owned: current states and the versions before them.

mod apply;
mod gather;
mod restore;
mod states;
pub use apply::{Change, ViewBatch};
pub use restore::{ReadBack, Restoring};

use std::collections::BTreeMap;
use std::sync::Arc;

use super::database::{Database, Trees, cost};
use super::{Error, seal, unseal};
use super::{gathered, packed};

/// How far the profiles topic was applied to a partition's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// The next offset of the profiles partition to read.
    pub offset: i64,
    /// When this was written, in milliseconds since the Unix epoch.
    pub at_ms: i64,
}

/// Where the view's topics are, so that positions in them are never taken for positions in others.
const ORIGIN: &[u8] = b"o";

/// How many versions are kept, for who only looks into the folder: packed ones that are too old are still there.
const HISTORY: &[u8] = b"k";

/// How far gathering a partition's states is (`gather.rs`).
const NOTED: u8 = b'g';

/// Profiles by input partition and user.
#[derive(Debug, Clone)]
pub struct View {
    database: Arc<Database>,
    history: u64,
    sweeps: gather::Sweeps,
}

/// Entries read or removed at once where there may be many.
const PAGE: usize = 512;

/// Whether a state of a partition is written by itself, or gathered.
fn any_but_packed(trees: &Trees, partition: i32) -> Result<bool, Error> {
    let first = trees.view.scan_prefix(key(b's', partition)).next();
    Ok(first.transpose()?.is_some() || gathered::any(trees, partition)?)
}

impl View {
    pub(super) fn new(database: Arc<Database>, history: u64) -> Self {
        Self {
            database,
            history,
            sweeps: gather::Sweeps::default(),
        }
    }

    /// A user's current state as it was encoded.
    ///
    /// # Errors
    /// [`Error::Torn`] where the value does not match its checksum.
    pub fn get(&self, partition: i32, user: &str) -> Result<Option<Vec<u8>>, Error> {
        self.database
            .with(|trees| Ok(current(trees, partition, user)?.map(|(_, state)| state)))
    }

    /// The versions kept of a user, oldest first, the current one last.
    ///
    /// # Errors
    /// [`Error::Torn`] where a value does not match its checksum.
    pub fn versions(&self, partition: i32, user: &str) -> Result<Vec<Vec<u8>>, Error> {
        self.database.with(|trees| {
            let current = current(trees, partition, user)?;
            let end = match &current {
                Some((Some(version), _)) => history_key(partition, user, *version),
                // An older limn's: the current version is among them.
                _ => history_key(partition, user, u64::MAX),
            };
            // First what is written by itself: it may be gathered meanwhile, and is found there then.
            let mut alone = BTreeMap::new();
            for entry in trees.view.range(history_prefix(partition, user)..end) {
                let (key, sealed) = entry?;
                alone.insert(history_version(&key)?, checked(&key, &sealed)?);
            }
            // Gathered and packed ones stay where they are when they grow too old, and where the current one is there it is among them.
            let version = current.as_ref().and_then(|(version, _)| *version);
            let least = version.map_or(0, |version| version.saturating_sub(self.history));
            let gathered = gathered::versions(trees, partition, user, least)?;
            let mut kept = packed::versions(trees, partition, user, least)?;
            kept.extend(gathered);
            if let Some(version) = version {
                kept.retain(|old, _| *old < version);
            }
            kept.extend(alone.into_iter().filter(|(old, _)| *old >= least));
            let mut versions: Vec<_> = kept.into_values().collect();
            if let Some((Some(_), state)) = current {
                versions.push(state);
            }
            Ok(versions)
        })
    }

    /// How far the profiles topic was applied; `None` where the partition was never restored.
    ///
    /// # Errors
    /// [`Error::Torn`] where the value does not match its checksum.
    pub fn position(&self, partition: i32) -> Result<Option<Applied>, Error> {
        let key = key(b'p', partition);
        let Some(bytes) = self.read(&key)? else {
            return Ok(None);
        };
        let torn = |_| Error::Torn(format!("position of partition {partition}"));
        let numbers: [u8; 16] = self.database.with(|_| bytes.try_into().map_err(torn))?;
        let (offset, at_ms) = numbers.split_at(8);
        let number = |b: &[u8]| b.iter().fold(0i64, |n, &x| n << 8 | i64::from(x));
        Ok(Some(Applied {
            offset: number(offset),
            at_ms: number(at_ms),
        }))
    }

    /// The next offset of the checkpoints partition to read, and the last checkpoint as it was encoded.
    ///
    /// # Errors
    /// [`Error::Torn`] where the value does not match its checksum.
    pub fn checkpoint(&self, partition: i32) -> Result<Option<(i64, Vec<u8>)>, Error> {
        let Some(bytes) = self.read(&key(b'c', partition))? else {
            return Ok(None);
        };
        let torn = || Error::Torn(format!("checkpoint of partition {partition}"));
        let (next, checkpoint) = self
            .database
            .with(|_| bytes.split_first_chunk::<8>().ok_or_else(torn))?;
        Ok(Some((i64::from_be_bytes(*next), checkpoint.to_vec())))
    }

    /// Says which topics the view is filled from from now on. A view that was filled from others is emptied, and what it was
    /// filled from is returned; one that does not know (a folder of an older limn) is taken to be of these.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Torn`] from sled.
    pub fn filled_from(&self, origin: &str) -> Result<Option<String>, Error> {
        let before = self
            .read(ORIGIN)?
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        if before.as_deref() == Some(origin) {
            return Ok(None);
        }
        if before.is_some() {
            // Emptied first, positions before all: a crash in between leaves the old name, and all of this is done again.
            for kind in *b"pcshg" {
                self.remove_all(&[kind])?;
            }
            self.forget_sweep(None);
            gathered::clear(&self.database, None)?;
            packed::clear(&self.database, None)?;
        }
        self.database.write(cost(1, origin.len()), |trees| {
            trees
                .view
                .insert(ORIGIN, seal(1, ORIGIN, &[origin.as_bytes()]))?;
            Ok(())
        })?;
        Ok(before)
    }

    /// Notes how many versions are kept, for [`super::Store::look`].
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Torn`] from sled.
    pub fn note_history(&self) -> Result<(), Error> {
        if self.noted_history()? == Some(self.history) {
            return Ok(());
        }
        self.database.write(cost(1, 8), |trees| {
            let sealed = seal(1, HISTORY, &[&self.history.to_be_bytes()]);
            trees.view.insert(HISTORY, sealed)?;
            Ok(())
        })
    }

    /// How many versions were kept last; `None` in a folder of an older limn.
    pub(super) fn noted_history(&self) -> Result<Option<u64>, Error> {
        let noted = self.read(HISTORY)?;
        Ok(noted.and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?))))
    }

    /// Forgets which topics the view was filled from: the next ones are taken to be these.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Torn`] from sled.
    pub fn forget_origin(&self) -> Result<(), Error> {
        self.database.write(cost(1, 0), |trees| {
            trees.view.remove(ORIGIN)?;
            Ok(())
        })
    }

    /// Forgets a partition, to build it again from its topics. The position goes first: what a crash leaves of the
    /// rest is then overwritten by the rebuild, which begins with this same call.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Torn`] from sled.
    pub fn clear(&self, partition: i32) -> Result<(), Error> {
        self.clear_kinds(partition, b"pcshg")
    }

    /// The same, but for its checkpoint: that is of another topic.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Torn`] from sled.
    pub fn clear_profiles(&self, partition: i32) -> Result<(), Error> {
        self.clear_kinds(partition, b"pshg")
    }

    fn clear_kinds(&self, partition: i32, kinds: &[u8]) -> Result<(), Error> {
        for &kind in kinds {
            self.remove_all(&key(kind, partition))?;
        }
        self.forget_sweep(Some(partition));
        gathered::clear(&self.database, Some(partition))?;
        packed::clear(&self.database, Some(partition))
    }

    /// Removes what begins with this, a page at a time.
    fn remove_all(&self, prefix: &[u8]) -> Result<(), Error> {
        loop {
            let page = self.database.with(|trees| {
                let keys = trees.view.scan_prefix(prefix).keys().take(PAGE);
                Ok(keys.collect::<Result<Vec<_>, _>>()?)
            })?;
            let last = page.len() < PAGE;
            // What changes nothing is not to be waited for either: mostly there is nothing, and a start goes through here.
            if !page.is_empty() {
                self.database.write(cost(page.len(), 0), |trees| {
                    let mut batch = sled::Batch::default();
                    page.into_iter().for_each(|key| batch.remove(key));
                    Ok(trees.view.apply_batch(batch)?)
                })?;
            }
            if last {
                return Ok(());
            }
        }
    }

    /// The partitions that something is kept of.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Torn`] from sled.
    pub fn partitions(&self) -> Result<Vec<i32>, Error> {
        self.database.with(|trees| {
            let mut partitions = Vec::new();
            for entry in trees.view.scan_prefix(b"p") {
                if let Some(number) = entry?.0.get(1..).and_then(|n| n.try_into().ok()) {
                    partitions.push(i32::from_be_bytes(number));
                }
            }
            Ok(partitions)
        })
    }

    /// Whether a partition may have states: one that has lost its last user may say so still.
    ///
    /// # Errors
    /// As [`View::apply`].
    pub fn has_states(&self, partition: i32) -> Result<bool, Error> {
        self.database.with(|trees| {
            Ok(packed::has_runs(trees, partition) || any_but_packed(trees, partition)?)
        })
    }

    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.database.with(|trees| {
            let sealed = trees.view.get(key)?;
            sealed.map(|sealed| checked(key, &sealed)).transpose()
        })
    }
}

fn checked(key: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Error> {
    // The user is left out of the message: ids stay out of logs.
    unseal(1, key, sealed).map(<[u8]>::to_vec).ok_or_else(|| {
        Error::Torn(format!(
            "a value of kind {:?} does not match its checksum",
            char::from(key.first().copied().unwrap_or(b'?'))
        ))
    })
}

/// A current state goes with its version.
fn seal_current(key: &[u8], version: u64, state: &[u8]) -> Vec<u8> {
    seal(2, key, &[&version.to_be_bytes(), state])
}

/// A current state and its version. An older limn's have none: it kept the current state among the old ones too.
type Current = (Option<u64>, Vec<u8>);

fn unseal_current(key: &[u8], sealed: &[u8]) -> Result<Current, Error> {
    let current = unseal(2, key, sealed).and_then(|payload| payload.split_first_chunk::<8>());
    match current {
        Some((version, state)) => Ok((Some(u64::from_be_bytes(*version)), state.to_vec())),
        None => Ok((None, checked(key, sealed)?)),
    }
}

/// A user's current state where it is written by itself.
fn alone(trees: &Trees, partition: i32, user: &str) -> Result<Option<Current>, Error> {
    let key = current_key(partition, user);
    let sealed = trees.view.get(&key)?;
    sealed.map(|s| unseal_current(&key, &s)).transpose()
}

fn current(trees: &Trees, partition: i32, user: &str) -> Result<Option<Current>, Error> {
    if let Some(alone) = alone(trees, partition, user)? {
        return Ok(Some(alone));
    }
    let found = match gathered::newest(trees, partition, user)? {
        None => packed::newest(trees, partition, user)?,
        found => found,
    };
    Ok(found.map(|(version, state)| (Some(version), state)))
}

fn key(kind: u8, partition: i32) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend_from_slice(&partition.to_be_bytes());
    key
}

fn current_key(partition: i32, user: &str) -> Vec<u8> {
    let mut key = key(b's', partition);
    key.extend_from_slice(user.as_bytes());
    key
}

/// The user's length stands before the user, so that one user's versions are never another's prefix.
fn history_prefix(partition: i32, user: &str) -> Vec<u8> {
    let mut key = key(b'h', partition);
    key.extend_from_slice(&u32::try_from(user.len()).unwrap_or(u32::MAX).to_be_bytes());
    key.extend_from_slice(user.as_bytes());
    key
}

fn history_key(partition: i32, user: &str, version: u64) -> Vec<u8> {
    let mut key = history_prefix(partition, user);
    key.extend_from_slice(&version.to_be_bytes());
    key
}

/// The version that a key of the history ends with.
fn history_version(key: &[u8]) -> Result<u64, Error> {
    let torn = || Error::Torn("a key of the history has no version".to_owned());
    key.last_chunk::<8>()
        .map(|version| u64::from_be_bytes(*version))
        .ok_or_else(torn)
}

#[cfg(test)]
mod tests;
