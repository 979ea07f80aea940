//! The users of a partition with their open windows, and the order in which these close.

use std::collections::VecDeque;
use std::sync::Arc;

use ahash::HashMap;

use super::assign::{Assigner, Open, Place};
use super::queue::Queue;
use super::{CloseReason, Closed, Config, millis};
use crate::event::Event;

/// Estimated bookkeeping for a user besides the name: a place in the map with its slack, and one in each queue.
const USER_BYTES: usize = 2 * size_of::<User>() + 3 * 36;

/// Every user with open windows; one without is forgotten.
#[derive(Debug, Clone)]
pub(super) struct Users {
    assigner: Assigner,
    max_age: i64,
    users: HashMap<Arc<str>, User>,
    /// By the end of the first window.
    due: Queue,
    /// By the steady time at which the first of the windows was opened.
    aged: Queue,
    /// By the lowest offset.
    oldest: Queue,
    windows: usize,
    bytes: usize,
}

/// A user's open windows.
#[derive(Debug, Clone)]
struct User {
    /// In the order of their spans. These do not overlap, so the ends stand in order too, and what closes is a front part.
    windows: VecDeque<Open>,
    /// The user's keys in the queues.
    due: i64,
    aged: i64,
    oldest: i64,
}

impl Default for User {
    /// Without windows and in no queue: any key is lower than these.
    fn default() -> Self {
        Self {
            windows: VecDeque::new(),
            due: i64::MAX,
            aged: i64::MAX,
            oldest: i64::MAX,
        }
    }
}

impl User {
    fn lowest(&self) -> Option<i64> {
        self.windows.iter().map(|w| w.events.lowest()).min()
    }
}

impl Users {
    /// Nobody yet.
    pub(super) fn new(config: &Config) -> Self {
        Self {
            assigner: Assigner::new(config),
            max_age: millis(config.max_age),
            users: HashMap::default(),
            due: Queue::default(),
            aged: Queue::default(),
            oldest: Queue::default(),
            windows: 0,
            bytes: 0,
        }
    }

    /// How many windows are open.
    pub(super) fn windows(&self) -> usize {
        self.windows
    }

    /// Bytes of the records and of the bookkeeping.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The lowest open offset of a user.
    pub(super) fn lowest(&self, user: &str) -> Option<i64> {
        self.users.get(user)?.lowest()
    }

    /// A watermark below which nothing is due.
    pub(super) fn next_due(&self) -> Option<i64> {
        self.due.first().map(|(end, _)| end)
    }

    /// A steady time before which nothing is over age.
    pub(super) fn next_aged(&self) -> Option<i64> {
        let (opened, _) = self.aged.first()?;
        Some(opened.saturating_add(self.max_age))
    }

    /// Puts an event where it belongs at event time `at` and steady time `now`, and closes what is full by it.
    pub(super) fn insert(
        &mut self,
        user: &str,
        event: Event,
        at: i64,
        now: i64,
        closed: &mut Vec<Closed>,
    ) {
        // Most events prolong a window that is there, which moves its user in no queue but to the front.
        if let Some(found) = self.users.get_mut(user)
            && let Place::Join(index) = self.assigner.place(&found.windows, at, event.tokens)
            && !self.assigner.overflows(&found.windows[index], event.tokens)
            && !self.assigner.full(found.windows[index].events.len() + 1)
            && found.oldest <= event.offset
        {
            let window = &mut found.windows[index];
            let before = window.bytes();
            let tokens = window.tokens.saturating_add(event.tokens.into());
            if !self.assigner.full_of_tokens(tokens) {
                window.push(&event, at);
                self.bytes += window.bytes() - before;
                return;
            }
        }
        let name = (self.users.get_key_value(user))
            .map_or_else(|| user.into(), |(name, _)| Arc::clone(name));
        // Every round but the last closes a window, so there is a last one.
        let index = loop {
            let user = self.users.entry(Arc::clone(&name)).or_default();
            match self.assigner.place(&user.windows, at, event.tokens) {
                Place::Join(index)
                    if self.assigner.overflows(&user.windows[index], event.tokens) =>
                {
                    let (order, tokens) = (CloseReason::Order, CloseReason::Tokens);
                    self.close_front(&name, index + 1, order, tokens, closed);
                }
                Place::Join(index) => break index,
                Place::Bridge(index) => {
                    if let Some(later) = user.windows.remove(index + 1) {
                        let window = &mut user.windows[index];
                        self.bytes -= window.bytes() + later.bytes();
                        window.absorb(&later);
                        self.bytes += window.bytes();
                        self.windows -= 1;
                    }
                    break index;
                }
                Place::New(index, first, last) => {
                    if user.windows.is_empty() {
                        self.bytes += USER_BYTES + name.len();
                    }
                    if user.windows.len() < 4 {
                        // Most users have one window: no room for others that do not come.
                        user.windows.reserve_exact(1);
                    }
                    let window = Open::new(first, last, now);
                    self.windows += 1;
                    self.bytes += window.bytes();
                    user.windows.insert(index, window);
                    break index;
                }
            }
        };
        let Some(user) = self.users.get_mut(&name) else {
            return;
        };
        let window = &mut user.windows[index];
        self.bytes -= window.bytes();
        window.push(&event, at);
        self.bytes += window.bytes();
        self.due
            .lower(&name, &mut user.due, self.assigner.end(window));
        self.aged.lower(&name, &mut user.aged, window.opened);
        self.oldest.lower(&name, &mut user.oldest, event.offset);
        let reason = if self.assigner.full(window.events.len()) {
            CloseReason::Events
        } else if self.assigner.full_of_tokens(window.tokens) {
            CloseReason::Tokens
        } else {
            return;
        };
        self.close_front(&name, index + 1, CloseReason::Order, reason, closed);
    }

    /// Closes every window whose end the watermark has reached.
    pub(super) fn close_due(&mut self, watermark: i64, closed: &mut Vec<Closed>) {
        while let Some((key, name)) = self.due.first()
            && key <= watermark
        {
            let name = Arc::clone(name);
            let Some(user) = self.users.get_mut(&name) else {
                break;
            };
            let end = |w: &Open| self.assigner.end(w);
            let front = user.windows.partition_point(|w| end(w) <= watermark);
            if front == 0 {
                let to = user.windows.front().map_or(i64::MAX, end);
                self.due.set(&name, &mut user.due, to);
            } else {
                let due = CloseReason::EventTime;
                self.close_front(&name, front, due, due, closed);
            }
        }
    }

    /// Closes every window that was open for `max_age` at steady time `now`.
    pub(super) fn close_aged(&mut self, now: i64, closed: &mut Vec<Closed>) {
        while let Some((key, name)) = self.aged.first()
            && key.saturating_add(self.max_age) <= now
        {
            let name = Arc::clone(name);
            let Some(user) = self.users.get_mut(&name) else {
                break;
            };
            let over = |w: &Open| w.opened.saturating_add(self.max_age) <= now;
            if let Some(index) = user.windows.iter().position(over) {
                let (order, age) = (CloseReason::Order, CloseReason::Age);
                self.close_front(&name, index + 1, order, age, closed);
            } else {
                let to = user.windows.iter().map(|w| w.opened).min();
                self.aged.set(&name, &mut user.aged, to.unwrap_or(i64::MAX));
            }
        }
    }

    /// Closes the window with the lowest offset of all, if that is below `below`. Says whether there was one.
    pub(super) fn close_oldest(
        &mut self,
        below: i64,
        reason: CloseReason,
        closed: &mut Vec<Closed>,
    ) -> bool {
        while let Some((key, name)) = self.oldest.first()
            && key < below
        {
            let name = Arc::clone(name);
            let Some(user) = self.users.get_mut(&name) else {
                break;
            };
            let lowest = user.lowest().unwrap_or(i64::MAX);
            if let Some(index) = user.windows.iter().position(|w| w.events.lowest() <= key) {
                self.close_front(&name, index + 1, CloseReason::Order, reason, closed);
                return true;
            }
            self.oldest.set(&name, &mut user.oldest, lowest);
        }
        false
    }

    /// Closes a user's windows with offsets below `below`, and those before them.
    pub(super) fn close_of_user(
        &mut self,
        user: &str,
        below: i64,
        reason: CloseReason,
        closed: &mut Vec<Closed>,
    ) {
        let Some((name, user)) = self.users.get_key_value(user) else {
            return;
        };
        let holds = |w: &Open| w.events.lowest() < below;
        if let Some(index) = user.windows.iter().rposition(holds) {
            let name = Arc::clone(name);
            self.close_front(&name, index + 1, CloseReason::Order, reason, closed);
        }
    }

    /// Closes everything, the users with the lowest offsets first.
    pub(super) fn close_all(&mut self, reason: CloseReason, closed: &mut Vec<Closed>) {
        while let Some((_, name)) = self.oldest.first() {
            let name = Arc::clone(name);
            self.close_front(&name, usize::MAX, reason, reason, closed);
        }
    }

    /// Closes the first `front` windows of a user in order: the last of them for `reason`, those before it for `order`.
    fn close_front(
        &mut self,
        name: &Arc<str>,
        front: usize,
        order: CloseReason,
        reason: CloseReason,
        closed: &mut Vec<Closed>,
    ) {
        let Some(user) = self.users.get_mut(name) else {
            return;
        };
        let front = front.min(user.windows.len());
        let rest = user.windows.range(front..).map(|w| w.events.lowest()).min();
        let begin = closed.len();
        // From the back, so that each window finds the lowest offset of all that are behind it.
        let mut lowest_open = rest;
        for (index, window) in user.windows.drain(..front).enumerate().rev() {
            let lowest = window.events.lowest();
            self.windows -= 1;
            self.bytes -= window.bytes();
            let reason = if index + 1 == front { reason } else { order };
            closed.push(Closed {
                user: name.as_ref().into(),
                events: window.events.in_order(),
                reason,
                lowest_open,
            });
            lowest_open = Some(lowest_open.map_or(lowest, |open| open.min(lowest)));
        }
        closed[begin..].reverse();
        if user.windows.is_empty() {
            self.due.remove(name, user.due);
            self.aged.remove(name, user.aged);
            self.oldest.remove(name, user.oldest);
            self.users.remove(name);
            self.bytes -= USER_BYTES + name.len();
            // A map keeps the room of its largest day; halving it at an eighth costs each removal a constant.
            if self.users.len() < self.users.capacity() / 8 {
                self.users.shrink_to(self.users.capacity() / 2);
            }
        }
    }

    /// For how many users there is room.
    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.users.capacity()
    }

    /// Panics where what is counted or queued differs from what is there.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let all = || self.users.values().flat_map(|u| &u.windows);
        assert_eq!(self.windows, all().count());
        let users: usize = self.users.keys().map(|u| USER_BYTES + u.len()).sum();
        let windows: usize = all().map(Open::bytes).sum();
        assert_eq!(self.bytes, users + windows);
        let queues = [&self.due, &self.aged, &self.oldest];
        assert!(
            queues
                .iter()
                .all(|q| q.entries().count() == self.users.len())
        );
        for (name, user) in &self.users {
            let ordered =
                (user.windows.iter().zip(user.windows.range(1..))).all(|(a, b)| a.last < b.first);
            assert!(ordered && !user.windows.is_empty());
            let keys = [user.due, user.aged, user.oldest];
            assert!(
                queues
                    .iter()
                    .zip(keys)
                    .all(|(q, key)| q.entries().any(|e| e == (key, name)))
            );
            assert!(
                (user.windows.iter()).all(|w| user.due <= self.assigner.end(w)
                    && user.aged <= w.opened
                    && user.oldest <= w.events.lowest()
                    && !w.events.is_empty())
            );
        }
    }
}
