//! What was read back of the profiles topic, into the view: much of it packed.

use std::collections::BTreeSet;

use super::super::packed::{self, Packed};
use super::{Applied, Change, Error, View, ViewBatch, key};

/// From so many bytes of states on, what was read back of a partition is packed. Less is written state by state: a partition
/// that comes and goes without an update would have another run each time. In a debug build it takes little, so that the
/// tests and the fault suite meet packed states.
const PACKED_FROM: usize = if cfg!(debug_assertions) {
    1 << 10
} else {
    256 << 10
};

/// Records that are copied at once where they are not packed.
const AT_ONCE: usize = 4096;

/// From so many bytes on there is room made for this many more at once: memory grows by copying, and is had from the system when
/// it is written to only.
const ROOM: usize = 16 << 20;
const ROOM_FROM: usize = 1 << 20;

/// What was read back of a partition's profiles, in the order of the topic. A restore reads millions: they stand in one piece
/// of memory, each as its block will have it.
#[derive(Debug, Default)]
pub struct ReadBack {
    bytes: Vec<u8>,
    /// Where each begins.
    begins: Vec<usize>,
    /// Which of them erase their user; ascending.
    erasing: Vec<usize>,
}

impl ReadBack {
    /// Takes one more: a user, at most 512 bytes, with version and encoded state; `None` erases the user with all versions.
    pub fn push(&mut self, user: &str, state: Option<(u64, &[u8])>) {
        if state.is_none() {
            self.erasing.push(self.begins.len());
        }
        let (version, state) = state.unwrap_or_default();
        let packed = Packed {
            user,
            version,
            state,
        };
        let begin = self.bytes.len();
        if (ROOM_FROM..ROOM).contains(&begin) && self.bytes.capacity() < ROOM {
            self.bytes.reserve_exact(ROOM);
        }
        packed::append(&mut self.bytes, &packed);
        self.begins.push(begin);
    }

    /// Bytes of its records.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len() + self.begins.len() * size_of::<usize>()
    }

    /// Nothing, in the memory that this one had.
    #[must_use]
    pub fn emptied(mut self) -> Self {
        self.bytes.clear();
        self.begins.clear();
        self.erasing.clear();
        self
    }

    /// A record as its block will have it.
    fn record(&self, at: usize) -> &[u8] {
        let end = self.begins.get(at + 1).copied();
        &self.bytes[self.begins[at]..end.unwrap_or(self.bytes.len())]
    }

    fn user(&self, at: usize) -> &[u8] {
        packed::user(self.record(at))
    }

    /// `None` erases the user.
    fn version(&self, at: usize) -> Option<u64> {
        let erases = self.erasing.binary_search(&at).is_ok();
        (!erases).then(|| packed::version(self.record(at)))
    }

    fn change(&self, partition: i32, at: usize) -> Change {
        let (record, user) = (self.record(at), self.user(at));
        Change {
            partition,
            user: String::from_utf8_lossy(user).into(),
            state: self.version(at).map(|version| {
                let state = packed::BESIDE + user.len();
                (version, record[state..].to_vec())
            }),
        }
    }
}

#[cfg(test)]
impl FromIterator<Change> for ReadBack {
    fn from_iter<T: IntoIterator<Item = Change>>(changes: T) -> Self {
        let mut read = Self::default();
        for Change { user, state, .. } in changes {
            let state = state
                .as_ref()
                .map(|(version, state)| (*version, &state[..]));
            read.push(&user, state);
        }
        read
    }
}

impl View {
    /// Applies what was read back of a partition's profiles, and then its position. Much of it is written packed, and
    /// whatever it is where `more` follows; nobody may change profiles of the partition meanwhile. A crash leaves what
    /// [`View::apply`] leaves.
    ///
    /// # Errors
    /// As [`View::apply`].
    pub fn restore(
        &self,
        partition: i32,
        read: &ReadBack,
        applied: Applied,
        more: bool,
    ) -> Result<(), Error> {
        let much = more || read.bytes() >= PACKED_FROM;
        // A state that is written by itself goes before the packed ones, so none may be there that is older.
        let first = || {
            self.database.with(|trees| {
                let mut alone = trees.view.scan_prefix(key(b's', partition));
                Ok(alone.next().transpose()?.is_none())
            })
        };
        if much && first()? {
            self.pack(partition, read)?;
        } else {
            let all = 0..read.begins.len();
            for first in all.step_by(AT_ONCE) {
                let some = first..read.begins.len().min(first + AT_ONCE);
                let changes = some.map(|at| read.change(partition, at));
                self.apply(&ViewBatch {
                    changes: changes.collect(),
                    ..ViewBatch::default()
                })?;
            }
        }
        self.apply(&ViewBatch {
            positions: vec![(partition, applied)],
            ..ViewBatch::default()
        })
    }

    /// Writes what was read back of a partition packed.
    fn pack(&self, partition: i32, read: &ReadBack) -> Result<(), Error> {
        let mut order: Vec<(u64, usize)> = (0..read.begins.len())
            .map(|at| (packed::order(read.user(at)), at))
            .collect();
        order.sort_unstable_by(|&(a, at), &(b, behind)| {
            // Users of one hash apart, those of one user as they were read.
            let users = || (read.user(at), at).cmp(&(read.user(behind), behind));
            a.cmp(&b).then_with(users)
        });
        let mut kept: Vec<(u64, usize)> = Vec::with_capacity(order.len());
        let mut erased = BTreeSet::new();
        let one = |&(a, at): &(u64, usize), &(b, behind): &(u64, usize)| {
            a == b && read.user(at) == read.user(behind)
        };
        for same in order.chunk_by(one) {
            // Nearly all of a restore: nothing of it is looked at before it is copied.
            if let &[only] = same
                && read.erasing.is_empty()
            {
                kept.push(only);
                continue;
            }
            let begin = kept.len();
            for &(order, at) in same {
                let version = read.version(at);
                if version.is_none() {
                    kept.truncate(begin);
                    erased.insert(read.user(at));
                    continue;
                }
                // Read twice: the later one counts.
                let same = |&(_, before): &(u64, usize)| read.version(before) == version;
                if kept[begin..].last().is_some_and(same) {
                    kept.pop();
                }
                kept.push((order, at));
            }
            if let [_, .., (_, last)] = kept[begin..] {
                let oldest = read.version(last).map(|v| v.saturating_sub(self.history));
                let all = kept[begin..].iter();
                let older = all.take_while(|&&(_, at)| read.version(at) < oldest);
                let older = older.count();
                kept.drain(begin..begin + older);
            }
        }
        for user in erased {
            packed::erase(&self.database, partition, &String::from_utf8_lossy(user))?;
        }
        let states = kept.iter().map(|&(order, at)| (order, read.record(at)));
        packed::write(&self.database, partition, states)
    }
}
