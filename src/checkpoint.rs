//! What of a partition is settled: the restart offset, and the fates decided above it.

use std::collections::{BTreeMap, VecDeque};

/// A set of offsets, held as ranges: runs of neighbours cost one entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OffsetSet {
    /// First offset of a run to the offset after its last; runs neither touch nor overlap.
    runs: BTreeMap<i64, i64>,
}

impl OffsetSet {
    /// Adds one offset; adding it again changes nothing.
    pub fn insert(&mut self, offset: i64) {
        if self.contains(offset) {
            return;
        }
        let (mut start, mut end) = (offset, offset + 1);
        if let Some((&s, &e)) = self.runs.range(..offset).next_back()
            && e == offset
        {
            start = s;
        }
        if let Some(e) = self.runs.remove(&end) {
            end = e;
        }
        self.runs.insert(start, end);
    }

    /// Adds the offsets from `first` to the one before `end`; none where `end` is not above `first`.
    pub fn insert_run(&mut self, first: i64, end: i64) {
        if first >= end {
            return;
        }
        let (mut start, mut stop) = (first, end);
        // Every run that touches the new one melts into it; the last of them may begin at `end` itself.
        while let Some((&s, &e)) = self.runs.range(..=stop).next_back() {
            if e < start {
                break;
            }
            self.runs.remove(&s);
            start = start.min(s);
            stop = stop.max(e);
        }
        self.runs.insert(start, stop);
    }

    /// The set as gap, length, gap, length … from `floor` on; two small numbers a run. Offsets below `floor` are left out.
    #[must_use]
    pub fn to_gaps(&self, floor: i64) -> Vec<u64> {
        let mut gaps = Vec::new();
        let mut at = floor;
        for (start, end) in self.runs().filter(|&(_, end)| end > floor) {
            let start = start.max(floor);
            gaps.extend([start.abs_diff(at), end.abs_diff(start)]);
            at = end;
        }
        gaps
    }

    /// What [`OffsetSet::to_gaps`] wrote; numbers that lead beyond the range of offsets end the set.
    #[must_use]
    pub fn from_gaps(floor: i64, gaps: &[u64]) -> Self {
        let mut set = Self::default();
        let mut at = floor;
        for pair in gaps.as_chunks::<2>().0 {
            let Some(start) = at.checked_add_unsigned(pair[0]) else {
                break;
            };
            let Some(end) = start.checked_add_unsigned(pair[1]) else {
                break;
            };
            set.insert_run(start, end);
            at = end;
        }
        set
    }

    /// Whether `offset` is in the set.
    #[must_use]
    pub fn contains(&self, offset: i64) -> bool {
        self.runs
            .range(..=offset)
            .next_back()
            .is_some_and(|(_, &end)| offset < end)
    }

    /// Forgets every offset below `floor`.
    pub fn forget_below(&mut self, floor: i64) {
        while let Some((&start, &end)) = self.runs.first_key_value() {
            if start >= floor {
                break;
            }
            self.runs.remove(&start);
            if end > floor {
                self.runs.insert(floor, end);
                break;
            }
        }
    }

    /// The runs in order, each as first offset and offset after the last.
    pub fn runs(&self) -> impl Iterator<Item = (i64, i64)> + '_ {
        self.runs.iter().map(|(&s, &e)| (s, e))
    }

    /// How many runs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether nothing is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

/// Which offsets of one partition were read and which of them are settled (folded or dead-lettered).
///
/// The committed offset of a partition is [`Progress::restart_offset`], the lowest offset that is not settled: a
/// restart then reads every unsettled event again, and ordinary lag tools tell the truth.
#[derive(Debug, Clone)]
pub struct Progress {
    base: i64,
    /// One bit an offset from `base` on, set when settled. The first bit is always clear, or there is none.
    settled: VecDeque<bool>,
}

impl Progress {
    /// Nothing read yet; `start` is the first offset that will be.
    #[must_use]
    pub fn new(start: i64) -> Self {
        Self {
            base: start,
            settled: VecDeque::new(),
        }
    }

    /// The offset of a record just read, unsettled from now on. Offsets that were skipped on the way (transaction
    /// markers, compacted records) can never be read and are settled with it. An offset read before changes nothing.
    pub fn read(&mut self, offset: i64) {
        self.advance_to(offset);
        if offset == self.next_offset() {
            self.settled.push_back(false);
        }
    }

    /// The partition holds nothing between what was read and `position` (seen at the partition's end).
    pub fn advance_to(&mut self, position: i64) {
        while self.next_offset() < position {
            if self.settled.is_empty() {
                self.base = position;
            } else {
                self.settled.push_back(true);
            }
        }
    }

    /// `offset` was folded or dead-lettered. Settling what was not read, or was settled before, changes nothing.
    pub fn settle(&mut self, offset: i64) {
        let Ok(index) = usize::try_from(offset - self.base) else {
            return;
        };
        if let Some(bit) = self.settled.get_mut(index) {
            *bit = true;
        }
        while self.settled.front() == Some(&true) {
            self.settled.pop_front();
            self.base += 1;
        }
    }

    /// The lowest offset not settled: what the group commits.
    #[must_use]
    pub fn restart_offset(&self) -> i64 {
        self.base
    }

    /// The offset after the last one read: the fate of everything below it is decided.
    #[must_use]
    pub fn next_offset(&self) -> i64 {
        self.base
            .saturating_add(i64::try_from(self.settled.len()).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn an_offset_set_equals_a_plain_set(ops in prop::collection::vec((0i64..60, any::<bool>()), 0..120)) {
            let (mut set, mut naive) = (OffsetSet::default(), BTreeSet::new());
            for (x, forget) in ops {
                if forget && x % 7 == 0 {
                    set.forget_below(x);
                    naive.retain(|&o| o >= x);
                } else {
                    set.insert(x);
                    naive.insert(x);
                }
                let listed: BTreeSet<i64> = set.runs().flat_map(|(s, e)| s..e).collect();
                prop_assert_eq!(&listed, &naive);
                let runs: Vec<_> = set.runs().collect();
                prop_assert!(runs.windows(2).all(|w| w[0].1 < w[1].0), "runs touch: {:?}", runs);
                for o in 0..61 {
                    prop_assert_eq!(set.contains(o), naive.contains(&o));
                }
            }
            prop_assert_eq!(set.is_empty(), naive.is_empty());
            let above: BTreeSet<i64> = naive.range(20..).copied().collect();
            let back = OffsetSet::from_gaps(20, &set.to_gaps(20));
            let listed: BTreeSet<i64> = back.runs().flat_map(|(s, e)| s..e).collect();
            prop_assert_eq!(listed, above);
        }

        #[test]
        fn runs_melt_into_each_other(runs in prop::collection::vec((0i64..40, 0i64..12), 0..30)) {
            let (mut set, mut naive) = (OffsetSet::default(), BTreeSet::new());
            for (first, length) in runs {
                set.insert_run(first, first + length);
                naive.extend(first..first + length);
                let listed: Vec<_> = set.runs().collect();
                prop_assert!(listed.windows(2).all(|w| w[0].1 < w[1].0), "runs touch: {:?}", listed);
            }
            let listed: BTreeSet<i64> = set.runs().flat_map(|(s, e)| s..e).collect();
            prop_assert_eq!(listed, naive);
        }

        #[test]
        fn no_numbers_break_the_reader_of_gaps(floor in any::<i64>(), gaps in prop::collection::vec(any::<u64>(), 0..9)) {
            let set = OffsetSet::from_gaps(floor, &gaps);
            prop_assert!(set.runs().all(|(s, e)| floor <= s && s < e));
        }

        #[test]
        fn the_restart_offset_is_the_lowest_unsettled_one(
            gaps in prop::collection::vec(1i64..4, 1..60),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..80),
        ) {
            let mut progress = Progress::new(10);
            let mut offset = 9;
            let mut read = Vec::new();
            for gap in gaps {
                offset += gap;
                progress.read(offset);
                read.push(offset);
            }
            let mut open: BTreeSet<i64> = read.iter().copied().collect();
            prop_assert_eq!(progress.restart_offset(), read[0]);
            for index in order {
                let o = *index.get(&read);
                progress.settle(o);
                open.remove(&o);
                // A skipped offset right before the first open one is settled too, so the base is that open one.
                prop_assert_eq!(progress.restart_offset(), open.first().copied().unwrap_or(offset + 1));
                prop_assert_eq!(progress.next_offset(), offset + 1);
            }
        }
    }

    #[test]
    fn a_position_behind_a_transaction_marker_moves_a_settled_partition_on() {
        let mut progress = Progress::new(0);
        progress.read(0);
        progress.settle(0);
        progress.advance_to(2);
        assert_eq!(progress.restart_offset(), 2);
        progress.read(2);
        progress.advance_to(5);
        assert_eq!((progress.restart_offset(), progress.next_offset()), (2, 5));
        progress.settle(2);
        assert_eq!(progress.restart_offset(), 5);
    }

    #[test]
    fn settling_what_was_never_read_changes_nothing() {
        let mut progress = Progress::new(5);
        progress.settle(4);
        progress.settle(5);
        progress.settle(99);
        assert_eq!((progress.restart_offset(), progress.next_offset()), (5, 5));
    }
}
