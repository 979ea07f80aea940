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

/// What was read back of a partition's profiles, in the order of the topic. A restore reads millions: they stand in one piece
/// of memory, each as its block will have it.
#[derive(Debug, Default)]
pub struct ReadBack {
    bytes: Vec<u8>,
    records: Vec<Record>,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    /// Where it stands.
    begin: usize,
    end: usize,
    /// Bytes of its user.
    user: usize,
    /// `None` erases the user.
    version: Option<u64>,
}

impl ReadBack {
    /// Takes one more: a user, at most 512 bytes, with version and encoded state; `None` erases the user with all versions.
    pub fn push(&mut self, user: &str, state: Option<(u64, &[u8])>) {
        let begin = self.bytes.len();
        let (version, bytes) = state.unwrap_or_default();
        let packed = Packed {
            user,
            version,
            state: bytes,
        };
        packed::append(&mut self.bytes, &packed);
        self.records.push(Record {
            begin,
            end: self.bytes.len(),
            user: user.len(),
            version: state.map(|_| version),
        });
    }

    /// What it takes of the memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.capacity() + self.records.capacity() * size_of::<Record>()
    }

    fn user(&self, record: &Record) -> &[u8] {
        &self.bytes[record.begin + packed::LENGTH..][..record.user]
    }

    fn change(&self, partition: i32, record: &Record) -> Change {
        Change {
            partition,
            user: String::from_utf8_lossy(self.user(record)).into(),
            state: record.version.map(|version| {
                let state = record.begin + packed::BESIDE + record.user;
                (version, self.bytes[state..record.end].to_vec())
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
            for some in read.records.chunks(AT_ONCE) {
                let changes = some.iter().map(|record| read.change(partition, record));
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
        let record = |at: u32| &read.records[at as usize];
        let user = |at: u32| read.user(record(at));
        let mut order: Vec<(u64, u32)> = (0..)
            .zip(&read.records)
            .map(|(at, record)| (packed::order(read.user(record)), at))
            .collect();
        order.sort_unstable_by(|&(a, at), &(b, behind)| {
            // Users of one hash apart, those of one user as they were read.
            let users = || (user(at), at).cmp(&(user(behind), behind));
            a.cmp(&b).then_with(users)
        });
        let mut kept: Vec<(u64, u32)> = Vec::with_capacity(order.len());
        let mut erased = BTreeSet::new();
        for same in order.chunk_by(|&(a, at), &(b, behind)| a == b && user(at) == user(behind)) {
            let begin = kept.len();
            for &(order, at) in same {
                let version = record(at).version;
                if version.is_none() {
                    kept.truncate(begin);
                    erased.insert(user(at));
                    continue;
                }
                // Read twice: the later one counts.
                let same = |&(_, before): &(u64, u32)| record(before).version == version;
                if kept[begin..].last().is_some_and(same) {
                    kept.pop();
                }
                kept.push((order, at));
            }
            if let Some(&(_, last)) = kept[begin..].last() {
                let oldest = record(last).version.map(|v| v.saturating_sub(self.history));
                let all = kept[begin..].iter();
                let older = all.take_while(|&&(_, at)| record(at).version < oldest);
                let older = older.count();
                kept.drain(begin..begin + older);
            }
        }
        for user in erased {
            packed::erase(&self.database, partition, &String::from_utf8_lossy(user))?;
        }
        let states = kept.iter().map(|&(order, at)| {
            let Record { begin, end, .. } = *record(at);
            (order, &read.bytes[begin..end])
        });
        packed::write(&self.database, partition, states)
    }
}
