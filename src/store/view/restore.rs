//! What was read back of the profiles topic, into the view: much of it packed.

use std::ops::Range;

use super::super::packed::{self, Packed, Run};
use super::{Applied, Change, Error, View, ViewBatch, any_but_packed};

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

/// Bytes of memory that are used again.
const KEPT: usize = 1 << 20;

/// About how many bytes the name of a user takes that was erased.
const ERASED: usize = 64;

/// What was read back of a partition's profiles, in the order of the topic. A restore reads millions: they stand in one piece
/// of memory, each as its block will have it.
#[derive(Debug, Default)]
pub struct ReadBack {
    bytes: Vec<u8>,
    /// Where each state begins.
    begins: Vec<usize>,
    /// Users that were erased, and how many states were before that.
    erased: Vec<(Box<str>, usize)>,
}

impl ReadBack {
    /// Nothing yet, with room for so many bytes: growing to them would copy them, to memory that the system has to clear.
    #[must_use]
    pub fn with_room(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            ..Self::default()
        }
    }

    /// Takes one more: a user, at most 512 bytes, with version and encoded state; `None` erases the user with all versions.
    pub fn push(&mut self, user: &str, state: Option<(u64, &[u8])>) {
        let Some((version, state)) = state else {
            self.erased.push((user.into(), self.begins.len()));
            return;
        };
        let packed = Packed {
            user,
            version,
            state,
        };
        self.begins.push(self.bytes.len());
        packed::append(&mut self.bytes, &packed);
    }

    /// Bytes of its records.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let erased = self.erased.len() * (size_of::<(Box<str>, usize)>() + ERASED);
        self.bytes.len() + self.begins.len() * size_of::<usize>() + erased
    }

    /// Nothing, in the memory that this one had, unless a record was very large.
    #[must_use]
    pub fn emptied(mut self) -> Self {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
        self.begins.clear();
        self.erased.clear();
        self
    }

    /// Where a state begins, or the last one ends.
    fn begin(&self, at: usize) -> usize {
        self.begins.get(at).copied().unwrap_or(self.bytes.len())
    }

    /// Some of the states as their block will have them.
    fn states(&self, some: Range<usize>) -> &[u8] {
        &self.bytes[self.begin(some.start)..self.begin(some.end)]
    }

    fn changes(&self, partition: i32) -> impl Iterator<Item = Change> {
        let mut erased = self.erased.iter().peekable();
        let mut at = 0;
        std::iter::from_fn(move || {
            if let Some((user, _)) = erased.next_if(|(_, before)| *before <= at) {
                return Some(Change {
                    partition,
                    user: user.clone(),
                    state: None,
                });
            }
            let (packed, _) = packed::split(self.states(at..at + 1))?;
            at += 1;
            Some(Change {
                partition,
                user: packed.user.into(),
                state: Some((packed.version, packed.state.to_vec())),
            })
        })
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
    /// Begins to apply what is read back of a partition's profiles. Nobody may change profiles of the partition until it is done.
    ///
    /// # Errors
    /// As [`View::apply`].
    pub fn restoring(&self, partition: i32) -> Result<Restoring<'_>, Error> {
        // Nothing finds what is left of a run that was cut off, so no erasure would: it goes, whether another run is written or not.
        packed::remove_unended(&self.database, partition)?;
        Ok(Restoring {
            view: self,
            partition,
            run: None,
        })
    }
}

/// A partition's view on its way up to date.
pub struct Restoring<'a> {
    view: &'a View,
    partition: i32,
    run: Option<Run<'a>>,
}

impl Restoring<'_> {
    /// Applies what was read back next, and how far that is. Much of it is written packed, and whatever it is where `more`
    /// follows. What was packed is there only when enough has come together, or no more follows, and the position with it. A crash, or
    /// whoever drops this, leaves less than was taken, and a position that is not ahead of it.
    ///
    /// # Errors
    /// As [`View::apply`].
    pub fn take(&mut self, read: &ReadBack, applied: Applied, more: bool) -> Result<(), Error> {
        let mut run = match self.run.take() {
            Some(run) => run,
            None if (more || read.bytes() >= PACKED_FROM) && self.is_packed()? => {
                Run::begin(&self.view.database, self.partition)?
            }
            None => {
                self.one_by_one(read)?;
                return self.applied(applied);
            }
        };
        for (user, before) in &read.erased {
            run.erase(user, run.states() + before);
        }
        let (mut begin, all) = (0, read.begins.len());
        for end in 1..=all {
            if end == all || read.begin(end) - read.begin(begin) >= packed::BLOCK_BYTES {
                let users = (begin..end).map(|at| packed::user(read.states(at..at + 1)));
                run.push(users, read.states(begin..end))?;
                begin = end;
            }
        }
        if more && !run.is_full() {
            self.run = Some(run);
            return Ok(());
        }
        run.end()?;
        self.applied(applied)
    }

    /// Whether none of the partition's states is written by itself, or gathered: such a one goes before packed ones, so none may be there
    /// that is older.
    fn is_packed(&self) -> Result<bool, Error> {
        let database = &self.view.database;
        database.with(|trees| Ok(!any_but_packed(trees, self.partition)?))
    }

    fn one_by_one(&self, read: &ReadBack) -> Result<(), Error> {
        let mut changes = read.changes(self.partition).peekable();
        while changes.peek().is_some() {
            self.view.apply(&ViewBatch {
                changes: changes.by_ref().take(AT_ONCE).collect(),
                ..ViewBatch::default()
            })?;
        }
        Ok(())
    }

    fn applied(&self, applied: Applied) -> Result<(), Error> {
        self.view.apply(&ViewBatch {
            positions: vec![(self.partition, applied)],
            ..ViewBatch::default()
        })
    }
}

#[cfg(test)]
impl View {
    /// Applies all that was read back of a partition, packed where it can be.
    pub(in crate::store) fn restored(
        &self,
        partition: i32,
        read: &ReadBack,
        applied: Applied,
    ) -> Result<(), Error> {
        let mut restoring = self.restoring(partition)?;
        restoring.take(read, applied, true)?;
        restoring.take(&ReadBack::default(), applied, false)
    }
}
