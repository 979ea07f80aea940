//! Which of a user's open windows an event belongs to.

use std::collections::VecDeque;

use super::bag::Bag;
use super::{Config, Kind, millis};
use crate::event::Event;

/// An open window.
#[derive(Debug, Clone)]
pub(super) struct Open {
    /// The span: all of a tumbling window, or a session's first to last event time. The spans of a user never overlap.
    pub(super) first: i64,
    /// The last millisecond of the span.
    pub(super) last: i64,
    /// Steady time at which it was opened.
    pub(super) opened: i64,
    /// Tokens of all its events.
    pub(super) tokens: u64,
    /// Its events as they came.
    pub(super) events: Bag,
}

impl Open {
    /// Without events yet.
    pub(super) fn new(first: i64, last: i64, opened: i64) -> Self {
        Self {
            first,
            last,
            opened,
            tokens: 0,
            events: Bag::default(),
        }
    }

    /// Estimate of the memory that it costs.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + 16 + self.events.bytes()
    }

    /// Takes an event in at time `at`.
    pub(super) fn push(&mut self, event: &Event, at: i64) {
        self.first = self.first.min(at);
        self.last = self.last.max(at);
        self.tokens = self.tokens.saturating_add(event.tokens.into());
        self.events.push(event);
    }

    /// Takes another window of the user in.
    pub(super) fn absorb(&mut self, other: &Self) {
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.opened = self.opened.min(other.opened);
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.events.append(&other.events);
    }
}

/// Where an event goes among a user's windows, which stand in the order of their spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Into the window at this index, which its time may lengthen.
    Join(usize),
    /// Between this one and the next, which become one.
    Bridge(usize),
    /// Into a new window at this index, with this span.
    New(usize, i64, i64),
}

/// The configured kind and limits, in the units they are compared in.
#[derive(Debug, Clone)]
pub(super) struct Assigner {
    /// How far behind a window's last millisecond its end is.
    reach: i64,
    shape: Shape,
    max_events: usize,
    max_tokens: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    Tumbling { size: i64 },
    Session { max_duration: i64 },
}

impl Assigner {
    /// A length or a gap below a millisecond counts as one, a limit of no events as one event.
    pub(super) fn new(config: &Config) -> Self {
        let (reach, shape) = match config.kind {
            Kind::Tumbling { size } => {
                let size = millis(size).max(1);
                (1, Shape::Tumbling { size })
            }
            Kind::Session { gap, max_duration } => {
                let max_duration = millis(max_duration);
                (millis(gap).max(1), Shape::Session { max_duration })
            }
        };
        Self {
            reach,
            shape,
            max_events: config.max_events.max(1),
            max_tokens: config.max_tokens.map(u64::from),
        }
    }

    /// The watermark that closes a window: the end of a tumbling one, a gap after the last event of a session.
    pub(super) fn end(&self, window: &Open) -> i64 {
        window.last.saturating_add(self.reach)
    }

    /// Whether a window with so many events is full.
    pub(super) fn full(&self, events: usize) -> bool {
        events >= self.max_events
    }

    /// Whether a window with so many tokens is full.
    pub(super) fn full_of_tokens(&self, tokens: u64) -> bool {
        self.max_tokens.is_some_and(|max| tokens >= max)
    }

    /// Whether so many more tokens are more than a window may hold.
    pub(super) fn overflows(&self, window: &Open, tokens: u32) -> bool {
        let sum = window.tokens.saturating_add(tokens.into());
        self.max_tokens.is_some_and(|max| sum > max)
    }

    /// Places an event of `tokens` that takes part at time `at`.
    ///
    /// A window whose span holds the time takes it. A session also takes what is less than `gap` outside its span, as long
    /// as that does not make it longer than `max_duration`; an event that near to two sessions makes them one if every
    /// limit allows it, else it joins the earlier one, else the later one, else it opens a session of its own.
    pub(super) fn place(&self, windows: &VecDeque<Open>, at: i64, tokens: u32) -> Place {
        // `next` is the first window that begins after the event, so that the one before it is the last that does not.
        let next = windows.partition_point(|w| w.first <= at);
        let before = next.checked_sub(1).map(|index| (index, &windows[index]));
        if let Some((index, w)) = before
            && at <= w.last
        {
            return Place::Join(index);
        }
        match self.shape {
            Shape::Tumbling { size } => {
                let (first, last) = stretch(at, size);
                Place::New(next, first, last)
            }
            Shape::Session { max_duration } => {
                let short = |first: i64, last: i64| last.saturating_sub(first) <= max_duration;
                let before = before.filter(|(_, w)| at.saturating_sub(w.last) < self.reach);
                let after = windows
                    .get(next)
                    .filter(|w| w.first.saturating_sub(at) < self.reach);
                match (before, after) {
                    (Some((index, a)), Some(b))
                        if short(a.first, b.last) && self.fit(a, b, tokens) =>
                    {
                        Place::Bridge(index)
                    }
                    (Some((index, a)), _) if short(a.first, at) => Place::Join(index),
                    (_, Some(b)) if short(at, b.last) => Place::Join(next),
                    _ => Place::New(next, at, at),
                }
            }
        }
    }

    /// Whether two windows and an event of `tokens` between them are within the limits of one.
    fn fit(&self, a: &Open, b: &Open, tokens: u32) -> bool {
        let events = a.events.len() + b.events.len() + 1;
        let sum = a.tokens.saturating_add(b.tokens);
        events <= self.max_events
            && self
                .max_tokens
                .is_none_or(|max| sum.saturating_add(tokens.into()) <= max)
    }
}

/// The stretch of length `size`, aligned with the epoch, that holds `at`: its first and last millisecond.
fn stretch(at: i64, size: i64) -> (i64, i64) {
    let (at, size) = (i128::from(at), i128::from(size));
    let first = at.div_euclid(size) * size;
    let clamp = |t: i128| i64::try_from(t).unwrap_or(if t < 0 { i64::MIN } else { i64::MAX });
    (clamp(first), clamp(first + size - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn session(max_events: usize, max_tokens: Option<u32>) -> Assigner {
        Assigner::new(&Config {
            max_events,
            max_tokens,
            ..super::super::tests::config(Kind::Session {
                gap: Duration::from_millis(10),
                max_duration: Duration::from_millis(30),
            })
        })
    }

    fn open(spans: &[(i64, i64)]) -> VecDeque<Open> {
        let window = |&(first, last): &(i64, i64)| Open {
            tokens: 5,
            ..Open::new(first, last, 0)
        };
        spans.iter().map(window).collect()
    }

    #[test]
    fn a_session_takes_what_follows_before_its_gap_is_over() {
        let sessions = session(100, None);
        let place = |at| sessions.place(&open(&[(100, 110)]), at, 0);
        assert_eq!(place(105), Place::Join(0));
        assert_eq!(place(119), Place::Join(0));
        assert_eq!(place(120), Place::New(1, 120, 120));
        assert_eq!(place(91), Place::Join(0));
        assert_eq!(place(90), Place::New(0, 90, 90));
    }

    #[test]
    fn a_session_does_not_grow_beyond_its_longest() {
        let sessions = session(100, None);
        let place = |at| sessions.place(&open(&[(100, 125)]), at, 0);
        assert_eq!(place(130), Place::Join(0));
        assert_eq!(place(131), Place::New(1, 131, 131));
        assert_eq!(place(95), Place::Join(0));
        assert_eq!(place(94), Place::New(0, 94, 94));
    }

    #[test]
    fn a_bridge_makes_one_of_two_where_every_limit_allows_it() {
        let near = open(&[(100, 105), (115, 120)]);
        assert_eq!(session(100, None).place(&near, 110, 0), Place::Bridge(0));
        assert_eq!(
            session(100, Some(11)).place(&near, 110, 1),
            Place::Bridge(0)
        );
        assert_eq!(session(100, Some(10)).place(&near, 110, 1), Place::Join(0));
        let long = open(&[(100, 120), (130, 140)]);
        assert_eq!(session(100, None).place(&long, 125, 0), Place::Join(0));
        let longer = open(&[(95, 125), (130, 140)]);
        assert_eq!(session(100, None).place(&longer, 127, 0), Place::Join(1));
        let both = open(&[(90, 120), (125, 155)]);
        let alone = Place::New(1, 122, 122);
        assert_eq!(session(100, None).place(&both, 122, 0), alone);
    }

    proptest! {
        #[test]
        fn a_stretch_holds_its_time_and_is_aligned(at in any::<i64>(), size in 1..i64::MAX) {
            let (first, last) = stretch(at, size);
            prop_assert!(first <= at && at <= last);
            if first > i64::MIN && last < i64::MAX {
                prop_assert_eq!(first % size, 0);
                prop_assert_eq!(i128::from(last) - i128::from(first) + 1, i128::from(size));
            }
        }
    }
}
