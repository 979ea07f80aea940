//! What a profile knows of its own making: which events are folded into it, and what an update changed in the text.

use similar::{Algorithm, DiffOp, DiffableStr, capture_diff_slices};

use crate::checkpoint::OffsetSet;

/// Which of one user's events are folded: all below `folded_below`, and the listed ones.
///
/// It speaks of this user's accepted events in one input partition only. An offset of another user, or of an event that
/// was rejected, may well be contained; nobody asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marker {
    /// Every event of this user below this offset is folded.
    pub folded_below: i64,
    /// Folded offsets at or above `folded_below`.
    pub folded: OffsetSet,
}

impl Marker {
    /// Whether this user's event at `offset` is folded.
    #[must_use]
    pub fn contains(&self, offset: i64) -> bool {
        offset < self.folded_below || self.folded.contains(offset)
    }

    /// The marker once `offsets` are folded too. `lowest_unfolded` is the lowest offset of this user that was read and
    /// is neither folded before nor now, wherever it waits; `None`: there is none.
    ///
    /// `folded_below` goes as far up as both allow: to the lowest unfolded offset, or behind the highest folded one
    /// (what this user does next is read behind that). Folded offsets above it are listed.
    ///
    /// An offset that the marker holds to be folded should not come as `lowest_unfolded`. If it does, both are taken at
    /// their word as far as they go: `folded_below` sinks to that offset, it alone is no longer contained, and all
    /// between it and the former `folded_below` are listed as folded. Keeping the mark up would lose the event in a
    /// crash before it is folded; only lowering it would fold its successors twice.
    #[must_use]
    pub fn fold(
        &self,
        offsets: impl IntoIterator<Item = i64>,
        lowest_unfolded: Option<i64>,
    ) -> Self {
        let mut folded = self.folded.clone();
        let mut top = self.folded_below;
        if let Some((_, end)) = folded.runs().last() {
            top = top.max(end);
        }
        for offset in offsets {
            let end = offset.saturating_add(1);
            folded.insert_run(offset, end);
            top = top.max(end);
        }
        let folded_below = lowest_unfolded.map_or(top, |lowest| lowest.min(top));
        // Nothing is inserted but where the mark sinks.
        folded.insert_run(folded_below.saturating_add(1), self.folded_below);
        folded.forget_below(folded_below);
        Self {
            folded_below,
            folded,
        }
    }
}

/// What an update did with a piece of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It stands in both.
    Kept,
    /// It stood there before.
    Removed,
    /// It stands there now.
    Added,
}

/// A piece of the text and what happened to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// What was done.
    pub kind: Kind,
    /// The piece, with its white space.
    pub text: String,
}

/// Most words and gaps that are compared one by one. The work grows with the square; a summary has far fewer.
const MAX_WORDS: usize = 4096;

/// What changed from `before` to `after`, word by word in the order of the text. The kept and the removed pieces together
/// are `before`, the kept and the added ones `after`. Where too much differs to compare, all between the first and the
/// last difference counts as replaced; no clock is involved, so equal texts always give equal edits.
#[must_use]
pub fn edits(before: &str, after: &str) -> Vec<Edit> {
    let (old, new) = (before.tokenize_words(), after.tokenize_words());
    let shared =
        |a: &mut dyn Iterator<Item = (&&str, &&str)>| a.take_while(|(a, b)| a == b).count();
    let head = shared(&mut old.iter().zip(&new));
    let tail = shared(&mut old[head..].iter().rev().zip(new[head..].iter().rev()));
    let (old_end, new_end) = (old.len() - tail, new.len() - tail);
    let (old_mid, new_mid) = (&old[head..old_end], &new[head..new_end]);

    let mut edits = Edits::default();
    edits.push(Kind::Kept, &old[..head]);
    let ops = if old_mid.len() + new_mid.len() > MAX_WORDS {
        vec![DiffOp::Replace {
            old_index: 0,
            old_len: old_mid.len(),
            new_index: 0,
            new_len: new_mid.len(),
        }]
    } else {
        capture_diff_slices(Algorithm::Myers, old_mid, new_mid)
    };
    for op in ops {
        match op {
            DiffOp::Equal { .. } => edits.push(Kind::Kept, &old_mid[op.old_range()]),
            DiffOp::Delete { .. } | DiffOp::Insert { .. } | DiffOp::Replace { .. } => {
                edits.push(Kind::Removed, &old_mid[op.old_range()]);
                edits.push(Kind::Added, &new_mid[op.new_range()]);
            }
        }
    }
    edits.push(Kind::Kept, &old[old_end..]);
    edits.0
}

#[derive(Default)]
struct Edits(Vec<Edit>);

impl Edits {
    fn push(&mut self, kind: Kind, words: &[&str]) {
        if words.is_empty() {
            return;
        }
        match self.0.last_mut() {
            Some(last) if last.kind == kind => last.text.extend(words.iter().copied()),
            _ => self.0.push(Edit {
                kind,
                text: words.concat(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn marker(folded_below: i64, folded: &[i64]) -> Marker {
        let mut set = OffsetSet::default();
        folded.iter().for_each(|&o| set.insert(o));
        Marker {
            folded_below,
            folded: set,
        }
    }

    #[test]
    fn the_mark_stops_at_the_lowest_unfolded_event_and_lists_what_is_folded_above() {
        let first = Marker::default().fold([100], Some(50));
        assert_eq!(first, marker(50, &[100]));
        assert_eq!(first.fold([50], Some(70)), marker(70, &[100]));
        assert_eq!(first.fold([50, 70], None), marker(101, &[]));
        // What is not read yet stands behind everything folded, however far away the unfolded one is.
        assert_eq!(Marker::default().fold([100], Some(500)), marker(101, &[]));
    }

    #[test]
    fn folding_nothing_or_the_same_again_changes_nothing() {
        let marked = marker(50, &[100]);
        assert_eq!(marked.fold([], Some(50)), marked);
        assert_eq!(marked.fold([100, 3], Some(50)), marked);
    }

    #[test]
    fn an_unfolded_event_below_the_mark_is_the_only_one_given_up() {
        let sunk = marker(50, &[100]).fold([120], Some(20));
        assert_eq!(sunk.folded_below, 20);
        let expected = (0..130).filter(|&o| o != 20 && (o < 50 || o == 100 || o == 120));
        assert!((0..130).filter(|&o| sunk.contains(o)).eq(expected));
        assert_eq!(sunk.fold([20], None), marker(121, &[]));
    }

    proptest! {
        /// A user's events are read in order and folded in any, some at a time.
        #[test]
        fn a_marker_equals_a_plain_set_of_the_folded_events(
            gaps in prop::collection::vec(1i64..9, 1..40),
            steps in prop::collection::vec((0usize..6, prop::collection::vec(any::<prop::sample::Index>(), 0..4)), 1..40),
        ) {
            let user: Vec<i64> = gaps.iter().scan(20, |o, gap| { *o += gap; Some(*o) }).collect();
            let mut unread = user.iter().copied();
            let (mut open, mut naive) = (BTreeSet::new(), BTreeSet::new());
            let mut marked = Marker::default();
            for (reads, picks) in steps {
                open.extend(unread.by_ref().take(reads));
                let mut now = Vec::new();
                for pick in picks {
                    if !open.is_empty() {
                        let offset = *open.iter().nth(pick.index(open.len())).unwrap();
                        open.remove(&offset);
                        now.push(offset);
                    }
                }
                naive.extend(now.iter().copied());
                let before = marked.folded_below;
                marked = marked.fold(now, open.first().copied());
                for &offset in &user {
                    prop_assert_eq!(marked.contains(offset), naive.contains(&offset), "{}", offset);
                }
                prop_assert!(marked.folded_below >= before);
                // As far up as can be: nothing is listed without an unfolded event below it.
                prop_assert!(marked.folded.is_empty() || open.first() == Some(&marked.folded_below));
                prop_assert!(marked.folded.runs().all(|(first, _)| first > marked.folded_below));
            }
        }

        #[test]
        fn whatever_is_said_to_be_unfolded_nothing_else_folded_is_given_up(
            below in 0i64..60,
            listed in prop::collection::vec(0i64..80, 0..8),
            now in prop::collection::vec(0i64..80, 0..8),
            lowest in prop::option::of(0i64..80),
        ) {
            let mut former = marker(below, &listed);
            former.folded.forget_below(below);
            let next = former.fold(now.iter().copied(), lowest);
            for offset in 0..90 {
                let named = now.contains(&offset) || former.folded.contains(offset);
                if (former.contains(offset) && lowest != Some(offset)) || named {
                    prop_assert!(next.contains(offset), "{} is lost", offset);
                } else if lowest == Some(offset) {
                    prop_assert!(!next.contains(offset), "{} counts as folded", offset);
                }
            }
        }

        #[test]
        fn edits_give_both_texts_back(before in "([a-d]{1,2}[ \n]?){0,30}|\\PC*", after in "([a-d]{1,2}[ \n]?){0,30}|\\PC*") {
            let edits = edits(&before, &after);
            let without = |kind| -> String {
                edits.iter().filter(|e| e.kind != kind).map(|e| e.text.as_str()).collect()
            };
            prop_assert_eq!(without(Kind::Added), before);
            prop_assert_eq!(without(Kind::Removed), after);
            prop_assert!(edits.windows(2).all(|w| w[0].kind != w[1].kind), "not merged: {:?}", edits);
            prop_assert!(edits.iter().all(|e| !e.text.is_empty()));
        }
    }

    #[test]
    fn a_changed_word_is_the_only_edit() {
        let edit = |kind, text: &str| Edit {
            kind,
            text: text.to_owned(),
        };
        let expected = [
            edit(Kind::Kept, "Likes "),
            edit(Kind::Removed, "noir"),
            edit(Kind::Added, "comedies"),
            edit(Kind::Kept, " on Sundays."),
        ];
        assert_eq!(
            edits("Likes noir on Sundays.", "Likes comedies on Sundays."),
            expected
        );
        assert_eq!(edits("", "New."), [edit(Kind::Added, "New.")]);
        assert_eq!(edits("", ""), []);
    }

    #[test]
    fn texts_too_long_to_compare_are_replaced_between_their_common_ends() {
        let long = |word: &str| format!("same {}end", format!("{word} ").repeat(500_000));
        let kinds: Vec<Kind> = edits(&long("a"), &long("b"))
            .iter()
            .map(|e| e.kind)
            .collect();
        assert_eq!(kinds, [Kind::Kept, Kind::Removed, Kind::Added, Kind::Kept]);
    }
}
