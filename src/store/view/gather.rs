//! States that are written by themselves are gathered (`gathered.rs`) once there are many: what sled remembers of each would grow with
//! the users.
//!
//! A partition is *swept* user by user, some of them beside each transaction, so that nobody waits for all of it. The next sweep begins
//! behind a quarter as many changes as states were written by the last one: so a state is written four to five times in the end, and
//! a quarter of a partition's states, and what changes during a sweep, are by themselves at the most.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::database::{Trees, cost};
use super::super::gathered::{self, Alone, LARGE};
use super::super::packed::Sealer;
use super::{
    Change, Error, View, checked, history_key, history_prefix, history_version, key, unseal_current,
};
use crate::failpoint;

/// Changes of all partitions together before which none is swept: 10 MB of memory, if each is of another user. Few in a debug build, so that
/// the tests and the fault suite meet sweeps.
const LEAST: usize = if cfg!(debug_assertions) { 32 } else { 1 << 19 };
/// … and of one of many.
const LEAST_OF_ONE: usize = if cfg!(debug_assertions) { 16 } else { 1 << 12 };

/// States that a sweep looks at, or writes, for each change.
const PACE: usize = 4;

/// Where reading states goes on.
type From = Bound<Vec<u8>>;

/// Users, and about how many bytes of theirs, that are gathered at once at the most.
const USERS: usize = 1024;
const BYTES: usize = 512 << 10;

/// Where the sweeps of the partitions are. Nothing of it outlives the process: the first sweep begins early then, and no more.
#[derive(Debug, Clone, Default)]
pub(super) struct Sweeps(Arc<Mutex<BTreeMap<i32, Sweep>>>);

#[derive(Debug, Default)]
struct Sweep {
    /// Changes since the last one has begun.
    changes: usize,
    /// Behind how many the next one begins.
    due: usize,
    /// Where it goes on, while one is under way.
    from: Option<From>,
    /// States that it has looked at or written.
    seen: usize,
}

impl Sweep {
    /// Counts changes, and begins where it is time.
    fn count(&mut self, changes: usize, least: usize) {
        self.changes += changes;
        if self.from.is_none() && self.changes >= self.due.max(least) {
            *self = Self {
                from: Some(Bound::Unbounded),
                ..Self::default()
            };
        }
    }
}

/// Some users' states that are written by themselves, where they stand, and what is behind them.
struct Found {
    users: Vec<Alone>,
    /// What goes when they are gathered: keys, and bytes of their values.
    keys: Vec<sled::IVec>,
    bytes: usize,
    looked_at: usize,
    next: Option<From>,
}

impl View {
    /// Goes on with gathering states of the partitions that these changes are of, as far as so many changes let it. For whoever applies
    /// them, before or behind that: nobody else may change profiles of these partitions meanwhile.
    ///
    /// # Errors
    /// As [`View::apply`].
    pub fn gather(&self, changes: &[Change]) -> Result<(), Error> {
        let mut counts: BTreeMap<i32, usize> = BTreeMap::new();
        for change in changes {
            *counts.entry(change.partition).or_default() += 1;
        }
        let mut sweeps = self.sweeps.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (partition, changes) in counts {
            sweeps.entry(partition).or_default();
            let least = (LEAST / sweeps.len()).max(LEAST_OF_ONE);
            let sweep = sweeps.entry(partition).or_default();
            sweep.count(changes, least);
            let mut pace = changes.saturating_mul(PACE);
            while let Some(from) = sweep.from.take_if(|_| pace > 0) {
                let (next, seen) = self.gather_some(partition, from, pace.min(USERS))?;
                sweep.from = next;
                sweep.seen += seen;
                pace = pace.saturating_sub(seen.max(1));
                if sweep.from.is_none() {
                    sweep.due = sweep.seen / 4;
                }
            }
        }
        Ok(())
    }

    /// Gathers some users' states from one on, so many at the most. Says where it goes on, if it does, and how many states were looked at or written.
    fn gather_some(
        &self,
        partition: i32,
        from: From,
        most: usize,
    ) -> Result<(Option<From>, usize), Error> {
        let history = self.history;
        let found = self
            .database
            .with(|trees| alone(trees, partition, from, (history, most)))?;
        let mut seen = found.looked_at;
        if !found.users.is_empty() {
            seen += gathered::put(&self.database, &mut Sealer::new(), partition, &found.users)?;
            failpoint::pass("gathered");
            // Only now: whoever looks finds each in one place at least. One by one: nobody is to wait for all of them. A user's oldest goes first,
            // so what a crash leaves by itself is newer than what goes on being gathered only.
            self.database
                .write(cost(found.keys.len(), found.bytes), |trees| {
                    for key in found.keys {
                        trees.view.remove(key)?;
                    }
                    Ok(())
                })?;
        }
        Ok((found.next, seen))
    }

    /// Forgets where a sweep is: there is nothing to sweep any more.
    pub(super) fn forget_sweep(&self, partition: Option<i32>) {
        let mut sweeps = self.sweeps.0.lock().unwrap_or_else(PoisonError::into_inner);
        match partition {
            Some(partition) => drop(sweeps.remove(&partition)),
            None => sweeps.clear(),
        }
    }
}

/// The states of some users that are written by themselves, but for users that have too many of them.
fn alone(
    trees: &Trees,
    partition: i32,
    from: From,
    (history, most): (u64, usize),
) -> Result<Found, Error> {
    let prefix = key(b's', partition);
    let from = match from {
        Bound::Unbounded => Bound::Included(prefix.clone()),
        from => from,
    };
    let mut found = Found {
        users: Vec::new(),
        keys: Vec::new(),
        bytes: 0,
        looked_at: 0,
        next: None,
    };
    for entry in trees.view.range((from, Bound::Unbounded)) {
        let (key, sealed) = entry?;
        if !key.starts_with(&prefix) {
            break;
        }
        found.looked_at += 1;
        let user = std::str::from_utf8(&key[prefix.len()..])
            .map_err(|_| Error::Torn("a state's key has no user".to_owned()))?;
        // An older limn's have no version: they stay until there is a newer one.
        if let (Some(version), state) = unseal_current(&key, &sealed)? {
            let mut of = Alone::new(user, version.saturating_sub(history));
            let before = (found.keys.len(), found.bytes);
            let older = history_prefix(partition, user)..history_key(partition, user, version);
            // Before the first there is none.
            let older = (version > 1).then(|| trees.view.range(older));
            for entry in older.into_iter().flatten() {
                let (key, sealed) = entry?;
                of.push(history_version(&key)?, &checked(&key, &sealed)?);
                found.bytes += sealed.len();
                found.keys.push(key);
            }
            of.push(version, &state);
            found.bytes += sealed.len();
            found.keys.push(key.clone());
            if of.bytes() <= LARGE {
                found.users.push(of);
            } else {
                found.keys.truncate(before.0);
                found.bytes = before.1;
            }
        }
        if found.looked_at >= most || found.bytes >= BYTES {
            found.next = Some(Bound::Excluded(key.to_vec()));
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
