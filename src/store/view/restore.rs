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

impl View {
    /// Applies what was read back of a partition's profiles, in the order of the topic, and then its position. Much of it is
    /// written packed, and whatever it is where `more` follows; nobody may change profiles of the partition meanwhile. A crash
    /// leaves what [`View::apply`] leaves.
    ///
    /// # Errors
    /// As [`View::apply`].
    pub fn restore(
        &self,
        partition: i32,
        mut changes: Vec<Change>,
        applied: Applied,
        more: bool,
    ) -> Result<(), Error> {
        let much = more || changes.iter().map(Change::bytes).sum::<usize>() >= PACKED_FROM;
        // A state that is written by itself goes before the packed ones, so none may be there that is older.
        let first = || {
            self.database.with(|trees| {
                let mut alone = trees.view.scan_prefix(key(b's', partition));
                Ok(alone.next().transpose()?.is_none())
            })
        };
        if much && first()? {
            self.pack(partition, &changes)?;
            changes.clear();
        }
        self.apply(&ViewBatch {
            changes,
            positions: vec![(partition, applied)],
            checkpoints: Vec::new(),
        })
    }

    /// Writes these changes of a partition packed.
    fn pack(&self, partition: i32, changes: &[Change]) -> Result<(), Error> {
        let user = |at: usize| &*changes[at].user;
        let orders = changes.iter().map(|c| packed::order(&c.user));
        let mut order: Vec<(u64, usize)> = orders.zip(0..).collect();
        order.sort_unstable_by(|&(a, at), &(b, behind)| {
            // Users of one hash apart, those of one user as they were read.
            let users = || (user(at), at).cmp(&(user(behind), behind));
            a.cmp(&b).then_with(users)
        });
        let mut kept = Vec::with_capacity(order.len());
        let mut erased = BTreeSet::new();
        for same in order.chunk_by(|&(_, a), &(_, b)| user(a) == user(b)) {
            let begin = kept.len();
            for &(order, at) in same {
                match &changes[at].state {
                    Some((version, state)) => {
                        // Read twice: the later one counts.
                        let same = |(_, p): &(u64, Packed<'_>)| p.version == *version;
                        if kept[begin..].last().is_some_and(same) {
                            kept.pop();
                        }
                        let packed = Packed {
                            user: user(at),
                            version: *version,
                            state,
                        };
                        kept.push((order, packed));
                    }
                    None => {
                        kept.truncate(begin);
                        erased.insert(user(at));
                    }
                }
            }
            if let Some((_, last)) = kept[begin..].last() {
                let oldest = last.version.saturating_sub(self.history);
                let all = kept[begin..].iter();
                let older = all.take_while(|(_, p)| p.version < oldest).count();
                kept.drain(begin..begin + older);
            }
        }
        for user in erased {
            packed::erase(&self.database, partition, user)?;
        }
        packed::write(&self.database, partition, kept.into_iter())
    }
}
