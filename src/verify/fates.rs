//! What the checkpoints of a partition say of its events, and whether they stay by it.

use crate::checkpoint::OffsetSet;
use crate::codec::proto;

#[derive(Default)]
pub(super) struct Fates {
    last: Option<Last>,
    /// Where the first checkpoint begins.
    begins: Option<i64>,
    /// Offsets that some checkpoint called decided and not rejected.
    accepted: OffsetSet,
}

struct Last {
    restart_offset: i64,
    decided_below: i64,
    rejected: OffsetSet,
    late: OffsetSet,
}

impl Fates {
    /// Takes the next checkpoint in.
    ///
    /// # Errors
    /// What of an earlier one it contradicts.
    pub(super) fn checkpoint(&mut self, checkpoint: &proto::Checkpoint) -> Result<(), String> {
        let restart = checkpoint.restart_offset;
        let next = Last {
            restart_offset: restart,
            decided_below: checkpoint.decided_below,
            rejected: OffsetSet::from_gaps(restart, &checkpoint.rejected),
            late: OffsetSet::from_gaps(restart, &checkpoint.late),
        };
        let begins = self.begins.get_or_insert(restart);
        *begins = restart.min(*begins);
        let mut accepted = OffsetSet::default();
        let mut at = restart;
        for (first, end) in next.rejected.runs() {
            accepted.insert_run(at, first.min(next.decided_below));
            at = end;
        }
        accepted.insert_run(at, next.decided_below);
        let said = match &self.last {
            Some(last) => last.holds(&next),
            None => Ok(()),
        };
        accepted
            .runs()
            .for_each(|(first, end)| self.accepted.insert_run(first, end));
        self.last = Some(next);
        said
    }

    /// Whether some checkpoint accepted this event.
    pub(super) fn accepted(&self, offset: i64) -> bool {
        self.accepted.contains(offset)
    }

    /// The lowest restart offset that a checkpoint has.
    pub(super) fn begins(&self) -> Option<i64> {
        self.begins
    }

    /// That of the last checkpoint.
    pub(super) fn restart_offset(&self) -> Option<i64> {
        Some(self.last.as_ref()?.restart_offset)
    }
}

impl Last {
    /// Whether a later checkpoint says the same of what is decided here and listed there.
    fn holds(&self, next: &Self) -> Result<(), String> {
        // Set back by hand, a group decides anew.
        if next.restart_offset < self.restart_offset {
            return Ok(());
        }
        if next.decided_below < self.decided_below {
            return Err(format!(
                "everything below {} was decided, and now only below {}",
                self.decided_below, next.decided_below
            ));
        }
        let seen = |set: &OffsetSet| {
            let mut seen = OffsetSet::default();
            for (first, end) in set.runs() {
                seen.insert_run(first.max(next.restart_offset), end.min(self.decided_below));
            }
            seen
        };
        let (late, still) = (seen(&self.late), seen(&next.late));
        if let Some(offset) = differs(&late, &still) {
            let (was, is) = if late.contains(offset) {
                ("late", "is not")
            } else {
                ("not late", "is")
            };
            return Err(format!("the event at {offset} was {was}, and now it {is}"));
        }
        // What is refused when it is folded is listed from then on: the list may only grow.
        let (rejected, still) = (seen(&self.rejected), seen(&next.rejected));
        let lost = rejected
            .runs()
            .flat_map(|(first, end)| first..end)
            .find(|&offset| !still.contains(offset));
        match lost {
            Some(offset) => Err(format!(
                "the event at {offset} was rejected, and now it is not"
            )),
            None => Ok(()),
        }
    }
}

/// The first offset that only one of the sets has.
fn differs(a: &OffsetSet, b: &OffsetSet) -> Option<i64> {
    let only = |a: &OffsetSet, b: &OffsetSet| {
        a.runs()
            .flat_map(|(first, end)| first..end)
            .find(|&offset| !b.contains(offset))
    };
    only(a, b).into_iter().chain(only(b, a)).min()
}
