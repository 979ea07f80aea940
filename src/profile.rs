//! Which of a user's events are folded into the profile.

use crate::checkpoint::OffsetSet;

/// The fold marker: every event of this user below `folded_below` is folded (or given up), and so are the listed ones above it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marker {
    /// All of the user's events below are folded.
    pub folded_below: i64,
    /// The folded ones at or above it.
    pub folded: OffsetSet,
}

impl Marker {
    /// Whether the user's event at `offset` is folded.
    #[must_use]
    pub fn contains(&self, offset: i64) -> bool {
        offset < self.folded_below || self.folded.contains(offset)
    }

    /// The marker after more of the user's events were folded. `lowest_unfolded` is the lowest offset of this user that was
    /// read and is neither folded now nor given up; `None`: there is none.
    ///
    /// Below it, all that was read is folded. Above, only the listed offsets are: an event may be folded before one with a
    /// lower offset, when that one has a later event time. Offsets that were not read yet are above all that were.
    #[must_use]
    pub fn fold(
        &self,
        offsets: impl IntoIterator<Item = i64>,
        lowest_unfolded: Option<i64>,
    ) -> Self {
        let mut folded = self.folded.clone();
        let mut end = self.folded_below;
        for offset in offsets {
            folded.insert(offset);
        }
        if let Some((_, last)) = folded.runs().last() {
            end = end.max(last);
        }
        let mut folded_below = lowest_unfolded.map_or(end, |lowest| lowest.min(end));
        // What was said to be folded stays so: going back would list events that were never seen here.
        folded_below = folded_below.max(self.folded_below);
        folded.forget_below(folded_below);
        Self {
            folded_below,
            folded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// The user's events are read in the order of their offsets and folded in any; some offsets are other users'.
        #[test]
        fn the_marker_holds_what_is_folded_and_nothing_else(
            gaps in prop::collection::vec(1i64..4, 1..40),
            picks in prop::collection::vec((any::<prop::sample::Index>(), 1usize..4, 0usize..5), 1..40),
        ) {
            let mut offset = 0;
            let mut unread: Vec<i64> = gaps.iter().map(|g| { offset += g; offset }).collect();
            unread.reverse();
            let (mut open, mut folded) = (Vec::new(), BTreeSet::new());
            let mut marker = Marker::default();
            for (pick, count, read) in picks {
                for _ in 0..read {
                    open.extend(unread.pop());
                }
                if open.is_empty() { continue; }
                let mut now = Vec::new();
                for _ in 0..count.min(open.len()) {
                    now.push(open.remove(pick.index(open.len())));
                }
                folded.extend(now.iter().copied());
                marker = marker.fold(now, open.iter().min().copied());
                for &o in &folded { prop_assert!(marker.contains(o), "{o} of {marker:?}"); }
                for &o in open.iter().chain(&unread) { prop_assert!(!marker.contains(o), "{o} of {marker:?}"); }
            }
        }
    }
}
