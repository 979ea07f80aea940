//! Which window an event belongs to, and the windows that are open.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::{CloseReason, Closed, Config, Kind, ms};
use crate::event::Event;

/// What an open window costs beside its events' bytes: its own fields, the user's entry, the timers.
const WINDOW_BYTES: usize = 200;

#[derive(Debug)]
struct Open {
    id: u64,
    /// The first event time that belongs here.
    start: i64,
    /// Session: the last event time in it. Tumbling: not used.
    last: i64,
    /// The watermark closes it from here on.
    end: i64,
    tokens: u32,
    bytes: usize,
    lowest: i64,
    events: Vec<Event>,
}

/// What moves a session's end: its gap, and the user that its timer names.
type Timer = (i64, Arc<str>);

/// The open windows of a partition. Nothing is kept of a user without one.
#[derive(Debug)]
pub(super) struct Assigner {
    config: Arc<Config>,
    /// Each user's open windows by start.
    users: HashMap<Arc<str>, Vec<Open>>,
    by_end: BTreeMap<(i64, u64), Arc<str>>,
    /// When windows were opened, by the running clock, oldest first; closed ones stay until they come to the front, or
    /// until they are the most.
    by_age: VecDeque<(i64, u64, Arc<str>)>,
    next_id: u64,
    bytes: usize,
}

impl Assigner {
    pub(super) fn new(config: Arc<Config>) -> Self {
        Self {
            config,
            users: HashMap::new(),
            by_end: BTreeMap::new(),
            by_age: VecDeque::new(),
            next_id: 0,
            bytes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_end.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn lowest(&self, user: &str) -> Option<i64> {
        self.users.get(user)?.iter().map(|w| w.lowest).min()
    }

    /// Puts an event into the window that holds the time `placed`, or opens one.
    pub(super) fn insert(
        &mut self,
        user: &str,
        event: Event,
        placed: i64,
        now: i64,
        closed: &mut Vec<Closed>,
    ) {
        let (max_tokens, max_events) = (self.config.max_tokens, self.config.max_events.max(1));
        let mut home = self.home(user, placed);
        if let (Some(id), Some(most)) = (home, max_tokens)
            && let Some(window) = self.find(user, id)
            && window.tokens.saturating_add(event.tokens) > most
        {
            self.close(user, id, CloseReason::Tokens, closed);
            home = None;
        }
        let id = match home {
            Some(id) => id,
            None => self.begin(user, placed, now),
        };
        let Some((window, timers)) = self.find_mut(user, id) else {
            return;
        };
        let bytes = event.bytes() + size_of::<Event>();
        window.tokens = window.tokens.saturating_add(event.tokens);
        window.bytes += bytes;
        window.lowest = window.lowest.min(event.offset);
        window.events.push(event);
        if let Some((gap, user)) = timers {
            window.start = window.start.min(placed);
            window.last = window.last.max(placed);
            let end = window.last.saturating_add(gap);
            if end != window.end {
                let old = (window.end, id);
                window.end = end;
                self.by_end.remove(&old);
                self.by_end.insert((end, id), user);
            }
        }
        self.bytes += bytes;
        let id = self.merge(user, id);
        if let Some(window) = self.find(user, id) {
            if window.events.len() >= max_events {
                self.close(user, id, CloseReason::Events, closed);
            } else if max_tokens.is_some_and(|most| window.tokens >= most) {
                self.close(user, id, CloseReason::Tokens, closed);
            }
        }
    }

    /// The open window that an event of this time joins.
    fn home(&self, user: &str, placed: i64) -> Option<u64> {
        let windows = self.users.get(user)?;
        let window = match self.config.kind {
            Kind::Tumbling { size } => {
                let start = aligned(placed, ms(size));
                windows.iter().find(|w| w.start == start)
            }
            Kind::Session { gap, max_duration } => windows.iter().find(|w| {
                let (gap, longest) = (ms(gap), ms(max_duration));
                let (start, last) = (w.start.min(placed), w.last.max(placed));
                placed < w.last.saturating_add(gap)
                    && w.start < placed.saturating_add(gap)
                    && last.saturating_sub(start) <= longest
            }),
        };
        window.map(|w| w.id)
    }

    fn begin(&mut self, user: &str, placed: i64, now: i64) -> u64 {
        let user: Arc<str> = match self.users.get_key_value(user) {
            Some((user, _)) => Arc::clone(user),
            None => user.into(),
        };
        let (start, end) = match self.config.kind {
            Kind::Tumbling { size } => {
                let start = aligned(placed, ms(size));
                (start, start.saturating_add(ms(size).max(1)))
            }
            Kind::Session { gap, .. } => (placed, placed.saturating_add(ms(gap))),
        };
        let id = self.next_id;
        self.next_id += 1;
        self.by_end.insert((end, id), Arc::clone(&user));
        self.by_age.push_back((now, id, Arc::clone(&user)));
        if self.by_age.len() > 2 * self.by_end.len() + 64 {
            let users = &self.users;
            self.by_age.retain(|(_, old, user)| {
                *old == id
                    || users
                        .get(user)
                        .is_some_and(|w| w.iter().any(|w| w.id == *old))
            });
        }
        self.bytes += WINDOW_BYTES + user.len();
        let windows = self.users.entry(user).or_default();
        let at = windows.partition_point(|w| w.start <= start);
        windows.insert(
            at,
            Open {
                id,
                start,
                last: placed,
                end,
                tokens: 0,
                bytes: 0,
                lowest: i64::MAX,
                events: Vec::new(),
            },
        );
        id
    }

    /// An event between two sessions makes them one, where the limits let it. Returns the window that holds the event.
    fn merge(&mut self, user: &str, id: u64) -> u64 {
        let Kind::Session { gap, max_duration } = self.config.kind else {
            return id;
        };
        let (gap, longest) = (ms(gap), ms(max_duration));
        let (max_events, max_tokens) = (self.config.max_events, self.config.max_tokens);
        let Some(windows) = self.users.get_mut(user) else {
            return id;
        };
        // The event may have moved the window's start: order is by start.
        windows.sort_by_key(|w| (w.start, w.id));
        let Some(at) = windows.iter().position(|w| w.id == id) else {
            return id;
        };
        for (first, second) in [(at, at + 1), (at.wrapping_sub(1), at)] {
            let (Some(a), Some(b)) = (windows.get(first), windows.get(second)) else {
                continue;
            };
            let fits = b.start < a.last.saturating_add(gap)
                && b.last.max(a.last).saturating_sub(a.start) <= longest
                && a.events.len() + b.events.len() <= max_events
                && max_tokens.is_none_or(|most| a.tokens.saturating_add(b.tokens) <= most);
            if !fits {
                continue;
            }
            // The older of the two keeps its place among the ages.
            let b = windows.remove(second);
            let a = &mut windows[first];
            let (old_a, old_b) = ((a.end, a.id), (b.end, b.id));
            a.id = a.id.min(b.id);
            a.last = a.last.max(b.last);
            a.end = a.end.max(b.end);
            a.tokens = a.tokens.saturating_add(b.tokens);
            a.bytes += b.bytes;
            a.lowest = a.lowest.min(b.lowest);
            a.events.extend(b.events);
            let (end, id) = (a.end, a.id);
            self.by_end.remove(&old_b);
            if let Some(user) = self.by_end.remove(&old_a) {
                self.bytes -= WINDOW_BYTES + user.len();
                self.by_end.insert((end, id), user);
            }
            return id;
        }
        id
    }

    fn find(&self, user: &str, id: u64) -> Option<&Open> {
        self.users.get(user)?.iter().find(|w| w.id == id)
    }

    /// The window, and for a session its gap and user, which its timer needs.
    fn find_mut(&mut self, user: &str, id: u64) -> Option<(&mut Open, Option<Timer>)> {
        let timers = match self.config.kind {
            Kind::Tumbling { .. } => None,
            Kind::Session { gap, .. } => {
                let (user, _) = self.users.get_key_value(user)?;
                Some((ms(gap), Arc::clone(user)))
            }
        };
        let windows = self.users.get_mut(user)?;
        Some((windows.iter_mut().find(|w| w.id == id)?, timers))
    }

    pub(super) fn close_until(&mut self, watermark: i64, closed: &mut Vec<Closed>) {
        while let Some((&(end, id), user)) = self.by_end.first_key_value() {
            if end > watermark {
                break;
            }
            let user = Arc::clone(user);
            self.close(&user, id, CloseReason::EventTime, closed);
        }
    }

    pub(super) fn close_aged(&mut self, now: i64, closed: &mut Vec<Closed>) {
        let max_age = ms(self.config.max_age);
        while let Some((opened, ..)) = self.by_age.front() {
            if now.saturating_sub(*opened) < max_age {
                break;
            }
            if let Some((_, id, user)) = self.by_age.pop_front() {
                self.close(&user, id, CloseReason::Age, closed);
            }
        }
    }

    pub(super) fn close_all(&mut self, reason: CloseReason, closed: &mut Vec<Closed>) {
        while let Some((&(_, id), user)) = self.by_end.first_key_value() {
            let user = Arc::clone(user);
            self.close(&user, id, reason, closed);
        }
        self.by_age.clear();
    }

    /// Looks at every open window once: for when memory is short, not for every event.
    pub(super) fn shrink_to(&mut self, bytes: usize, closed: &mut Vec<Closed>) {
        if self.bytes <= bytes {
            return;
        }
        let mut oldest: Vec<(i64, u64, Arc<str>)> = self
            .users
            .iter()
            .flat_map(|(user, windows)| windows.iter().map(|w| (w.lowest, w.id, Arc::clone(user))))
            .collect();
        oldest.sort_unstable();
        for (_, id, user) in oldest {
            if self.bytes <= bytes {
                break;
            }
            self.close(&user, id, CloseReason::Memory, closed);
        }
    }

    /// Closes a window, and before it the user's earlier ones, so that a profile learns in the order of the windows. A
    /// window that is closed already stays so.
    fn close(&mut self, user: &str, id: u64, reason: CloseReason, closed: &mut Vec<Closed>) {
        let Some((user, windows)) = self.users.get_key_value(user) else {
            return;
        };
        let Some(last) = windows.iter().position(|w| w.id == id) else {
            return;
        };
        let (user, all) = (Arc::clone(user), last + 1 == windows.len());
        let gone = if all {
            self.users.remove(&user).unwrap_or_default()
        } else {
            let windows = self.users.get_mut(&user).map(|w| w.drain(..=last));
            windows.map(Iterator::collect).unwrap_or_default()
        };
        for (at, mut window) in gone.into_iter().enumerate() {
            self.by_end.remove(&(window.end, window.id));
            self.bytes -= window.bytes + WINDOW_BYTES + user.len();
            window.events.sort_by_key(|e| (e.time_ms, e.offset));
            closed.push(Closed {
                user: Arc::clone(&user),
                events: window.events,
                reason: if at == last {
                    reason
                } else {
                    CloseReason::Order
                },
            });
        }
    }
}

/// The start of the stretch that holds `time`.
fn aligned(time: i64, size: i64) -> i64 {
    let size = size.max(1);
    time.div_euclid(size).saturating_mul(size)
}
