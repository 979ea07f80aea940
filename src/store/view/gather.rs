//! States that are written by themselves are gathered (`gathered.rs`) once there are many: what sled remembers of each would grow with
//! the users.
//!
//! A partition is *swept* user by user, some of them beside each transaction, so that nobody waits for all of it. The next sweep begins
//! behind a quarter as many changes as states were written by the last one: so a state is written four to five times in the end, and a
//! third of a partition's states are by themselves at the most, or [`LEAST`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::database::{Trees, cost};
use super::super::gathered::{self, Alone};
use super::super::packed::Sealer;
use super::{
    Change, Error, NOTED, View, checked, history_key, history_prefix, history_version, key,
    unseal_current,
};
use crate::failpoint;

/// Changes of all partitions together before which none is swept: 10 MB of memory, if each is of another user. Few in a debug build, so that
/// the tests and the fault suite meet sweeps.
const LEAST: u64 = if cfg!(debug_assertions) { 32 } else { 1 << 19 };
/// … and of one of many.
const LEAST_OF_ONE: u64 = if cfg!(debug_assertions) { 16 } else { 1 << 12 };

/// States that a sweep looks at, or writes, for each change.
const PACE: u64 = 4;

/// States that a sweep goes on for, or waits until so many are due: of fewer each would write the same block as the last.
const STRETCH: u64 = if cfg!(debug_assertions) { 8 } else { 256 };
/// Users that are gathered at once at the most.
const USERS: u64 = 1024;

/// Values that are removed before it is looked whether what was written has to be waited for.
const REMOVED: usize = 128;

/// Where reading states goes on.
type From = Bound<Vec<u8>>;

/// Where the sweeps of the partitions are.
#[derive(Debug, Clone, Default)]
pub(super) struct Sweeps(Arc<Mutex<BTreeMap<i32, Sweep>>>);

#[derive(Debug, Default)]
struct Sweep {
    /// Changes since the last one has begun.
    changes: u64,
    /// Behind how many the next one begins.
    due: u64,
    /// Where it goes on, while one is under way.
    from: Option<From>,
    /// States that it has looked at or written.
    seen: u64,
    /// … and may.
    pace: u64,
}

/// What is noted of a sweep: its numbers in their order, and whether it is under way. Where that is stays in memory, as it names a user: behind
/// a restart it begins anew, and goes fast through what it has gathered.
pub(super) type Noted = [u8; 33];

impl Sweep {
    fn noted(&self) -> Noted {
        let mut noted = [0; 33];
        let numbers = [self.changes, self.due, self.seen, self.pace];
        for (place, number) in noted.chunks_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        noted[32] = u8::from(self.from.is_some());
        noted
    }

    fn of(noted: Noted) -> Self {
        let number = |at: usize| {
            noted[8 * at..][..8]
                .iter()
                .fold(0, |n, &b| n << 8 | u64::from(b))
        };
        Self {
            changes: number(0),
            due: number(1),
            seen: number(2),
            pace: number(3),
            from: (noted[32] == 1).then_some(Bound::Unbounded),
        }
    }

    /// May go on for so many changes, or begins where it is time.
    fn go_on(&mut self, changes: u64, least: u64) {
        if self.from.is_none() && self.changes >= self.due.max(least) {
            *self = Self {
                from: Some(Bound::Unbounded),
                ..Self::default()
            };
        }
        if self.from.is_some() {
            self.pace = self.pace.saturating_add(changes.saturating_mul(PACE));
        }
    }
}

/// Some users' states that are written by themselves, and what is behind them.
struct Found {
    users: Vec<Alone>,
    looked_at: u64,
    next: Option<From>,
}

/// Where it is noted how far a partition's sweep is.
pub(super) fn noted_key(partition: i32) -> Vec<u8> {
    key(NOTED, partition)
}

impl View {
    /// Counts changes that are written by themselves. Says what is to be noted with them, by partition.
    pub(super) fn count(&self, changes: &[Change]) -> Result<Vec<(i32, Noted)>, Error> {
        let counted = counts(changes).into_iter().map(|(partition, changes)| {
            self.sweep(partition, |sweep, _| {
                sweep.changes = sweep.changes.saturating_add(changes);
                (partition, sweep.noted())
            })
        });
        counted.collect()
    }

    /// Goes on with gathering states of the partitions that these changes are of, as far as so many changes let it. For whoever applies
    /// them, before or behind that: nobody else may change profiles of these partitions meanwhile.
    ///
    /// # Errors
    /// As [`View::apply`].
    pub fn gather(&self, changes: &[Change]) -> Result<(), Error> {
        for (partition, changes) in counts(changes) {
            self.sweep(partition, |sweep, all| -> Result<(), Error> {
                sweep.go_on(changes, (LEAST / all).max(LEAST_OF_ONE));
                while sweep.pace >= STRETCH
                    && let Some(from) = sweep.from.take()
                {
                    let (next, seen) = self.gather_some(partition, from, sweep.pace.min(USERS))?;
                    sweep.from = next;
                    sweep.seen += seen;
                    sweep.pace = sweep.pace.saturating_sub(seen);
                    if sweep.from.is_none() {
                        (sweep.due, sweep.pace) = (sweep.seen / 4, 0);
                    }
                }
                Ok(())
            })??;
        }
        Ok(())
    }

    /// Uses a partition's sweep, and how many there are.
    fn sweep<T>(
        &self,
        partition: i32,
        work: impl FnOnce(&mut Sweep, u64) -> T,
    ) -> Result<T, Error> {
        let mut sweeps = self.sweeps.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = sweeps.len() as u64 + u64::from(!sweeps.contains_key(&partition));
        let sweep = match sweeps.entry(partition) {
            Entry::Occupied(sweep) => sweep.into_mut(),
            Entry::Vacant(place) => {
                let noted = self.read(&noted_key(partition))?;
                let noted = noted.and_then(|noted| noted.try_into().ok());
                place.insert(noted.map_or_else(Sweep::default, Sweep::of))
            }
        };
        Ok(work(sweep, all))
    }

    /// Gathers some users' states from one on, so many users at the most. Says where it goes on, if it does, and how many states were looked at
    /// or written.
    fn gather_some(
        &self,
        partition: i32,
        from: From,
        users: u64,
    ) -> Result<(Option<From>, u64), Error> {
        let (history, most) = (self.history, self.database.most() / 2);
        let mut found = self
            .database
            .with(|trees| alone(trees, partition, from, (history, users, most)))?;
        let mut seen = found.looked_at;
        if !found.users.is_empty() {
            let written = gathered::put(
                &self.database,
                &mut Sealer::new(),
                partition,
                &mut found.users,
            )?;
            seen += written as u64;
            failpoint::pass("gathered");
            // Only now: whoever looks finds each in one place at least. One by one: nobody is to wait for all of them. A user's oldest goes
            // first, so what a crash leaves by itself is newer than what is gathered only.
            let gone = found.users.iter().filter(|alone| !alone.stay);
            let (mut keys, mut bytes) = (Vec::new(), 0);
            for alone in gone {
                keys.extend(&alone.keys);
                bytes += alone.bytes();
            }
            for some in keys.chunks(REMOVED) {
                let bytes = bytes * some.len() / keys.len();
                self.database.write(cost(some.len(), bytes), |trees| {
                    for key in some {
                        trees.view.remove(key)?;
                    }
                    Ok(())
                })?;
            }
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

/// How many of some changes are of each partition.
fn counts(changes: &[Change]) -> BTreeMap<i32, u64> {
    let mut counts = BTreeMap::new();
    for change in changes {
        *counts.entry(change.partition).or_default() += 1;
    }
    counts
}

/// The states of some users that are written by themselves: of so many users, or of what costs so much to write ([`cost`]).
fn alone(
    trees: &Trees,
    partition: i32,
    from: From,
    (history, users, most): (u64, u64, usize),
) -> Result<Found, Error> {
    let prefix = key(b's', partition);
    let from = match from {
        Bound::Unbounded => Bound::Included(prefix.clone()),
        from => from,
    };
    let mut found = Found {
        users: Vec::new(),
        looked_at: 0,
        next: None,
    };
    let mut costs = 0;
    for entry in trees.view.range((from, Bound::Unbounded)) {
        let (key, sealed) = entry?;
        if !key.starts_with(&prefix) {
            break;
        }
        let user = std::str::from_utf8(&key[prefix.len()..])
            .map_err(|_| Error::Torn("a state's key has no user".to_owned()))?;
        // An older limn's have no version: they stay until there is a newer one.
        if let (Some(version), state) = unseal_current(&key, &sealed)? {
            let mut of = Alone::new(user, version.saturating_sub(history));
            let older = history_prefix(partition, user)..history_key(partition, user, version);
            // Before the first there is none.
            let older = (version > 1).then(|| trees.view.range(older));
            for entry in older.into_iter().flatten() {
                let (key, sealed) = entry?;
                let (old, state) = (history_version(&key)?, checked(&key, &sealed)?);
                of.stay = of.stay || !of.push(key, old, &state);
                if of.stay {
                    break;
                }
            }
            of.stay = of.stay || !of.push(key.clone(), version, &state);
            let costs_of = cost(of.keys.len(), of.bytes());
            costs += costs_of;
            // As if each were a small one: those that stay are read by each sweep.
            found.looked_at += (costs_of >> 10) as u64;
            // Who has too many, what was gathered of them may be too old.
            found.users.push(of);
        } else {
            found.looked_at += 1;
        }
        if found.users.len() as u64 >= users || costs >= most {
            found.next = Some(Bound::Excluded(key.to_vec()));
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
