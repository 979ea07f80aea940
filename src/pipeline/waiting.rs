//! Closed windows of one user that wait for the engine, how many events they have, and the lowest offset in them.

use std::collections::VecDeque;

use crate::window::Closed;

/// A queue of windows that knows the lowest offset in it at every moment, at the same cost however much waits: a user
/// in a backlog can have any number of windows here.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    windows: VecDeque<Closed>,
    events: usize,
    /// The first window's place: up as windows are taken, down as they are put back.
    first: i64,
    /// Place and lowest offset of every window that has a lower one than all behind it. The first of them has the lowest
    /// of all, and when it is taken the next one has.
    lowest: VecDeque<(i64, i64)>,
}

impl Waiting {
    /// A window that closed now.
    pub(super) fn push_back(&mut self, window: Closed) {
        let (place, offset) = (self.end(), window.events.lowest());
        while self.lowest.back().is_some_and(|&(_, o)| o >= offset) {
            self.lowest.pop_back();
        }
        self.lowest.push_back((place, offset));
        self.events += window.events.len();
        self.windows.push_back(window);
    }

    /// A window that was taken and is to be the next again.
    pub(super) fn push_front(&mut self, window: Closed) {
        self.first -= 1;
        let offset = window.events.lowest();
        if self.lowest().is_none_or(|lowest| offset < lowest) {
            self.lowest.push_front((self.first, offset));
        }
        self.events += window.events.len();
        self.windows.push_front(window);
    }

    pub(super) fn pop_front(&mut self) -> Option<Closed> {
        let window = self.windows.pop_front()?;
        if self.lowest.front().is_some_and(|&(p, _)| p == self.first) {
            self.lowest.pop_front();
        }
        self.first += 1;
        self.events -= window.events.len();
        Some(window)
    }

    /// The lowest offset of all events here.
    pub(super) fn lowest(&self) -> Option<i64> {
        self.lowest.front().map(|&(_, offset)| offset)
    }

    /// How many events are here.
    pub(super) fn events(&self) -> usize {
        self.events
    }

    pub(super) fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.windows.iter().map(|w| w.bytes()).sum()
    }

    fn end(&self) -> i64 {
        let length = i64::try_from(self.windows.len()).unwrap_or(i64::MAX);
        self.first.saturating_add(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Record};
    use crate::window::CloseReason;
    use proptest::prelude::*;

    fn window(offsets: &[i64]) -> Closed {
        let event = |&offset: &i64| Event {
            offset,
            time_ms: 0,
            tokens: 0,
            late: false,
            record: Record::default(),
        };
        Closed {
            user: "ann".into(),
            events: offsets.iter().map(event).collect(),
            reason: CloseReason::Events,
            lowest_open: None,
        }
    }

    proptest! {
        #[test]
        fn the_lowest_offset_is_the_one_that_a_look_at_every_event_finds(
            steps in prop::collection::vec((0..3, prop::collection::vec(0i64..100, 1..4)), 0..60),
        ) {
            let (mut waiting, mut naive) = (Waiting::default(), VecDeque::new());
            for (step, offsets) in steps {
                match step {
                    0 => {
                        waiting.push_back(window(&offsets));
                        naive.push_back(offsets);
                    }
                    1 => {
                        waiting.push_front(window(&offsets));
                        naive.push_front(offsets);
                    }
                    _ => {
                        let taken = waiting.pop_front().map(|w| w.events.iter().map(|e| e.offset).collect());
                        prop_assert_eq!(taken, naive.pop_front());
                    }
                }
                prop_assert_eq!(waiting.lowest(), naive.iter().flatten().copied().min());
                prop_assert_eq!(waiting.events(), naive.iter().flatten().count());
                prop_assert_eq!(waiting.is_empty(), naive.is_empty());
            }
        }
    }

    #[test]
    fn what_waits_of_one_user_costs_no_more_to_ask_however_much_it_is() {
        let mut waiting = Waiting::default();
        for offset in 0..100_000 {
            waiting.push_back(window(&[100_000 - offset]));
            assert_eq!(waiting.lowest(), Some(100_000 - offset));
            // Of falling offsets only the last can ever be the lowest: there is nothing else to look at.
            assert_eq!(waiting.lowest.len(), 1);
        }
    }
}
