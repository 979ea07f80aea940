//! A plain implementation of tumbling windows to compare with, and what windows without limits are made of.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const SIZE: i64 = 10;
const LATENESS: i64 = 15;

/// One list of windows, searched from end to end each time.
struct Naive {
    config: Config,
    open: Vec<Window>,
    watermark: Option<i64>,
    restoring: bool,
    /// The wall clock without its backward jumps.
    steady: i64,
    wall: Option<i64>,
    idle: Option<(i64, Option<i64>)>,
    closed: Vec<Closed>,
}

#[derive(Clone)]
struct Window {
    user: String,
    start: i64,
    opened: i64,
    events: Vec<Event>,
}

impl Naive {
    fn new(config: Config, restoring: bool) -> Self {
        Self {
            config,
            open: Vec::new(),
            watermark: None,
            restoring,
            steady: 0,
            wall: None,
            idle: None,
            closed: Vec::new(),
        }
    }

    fn now(&mut self, now_ms: i64) {
        self.steady += (now_ms - self.wall.unwrap_or(now_ms)).max(0);
        self.wall = Some(now_ms);
    }

    fn close(&mut self, user: &str, start: i64, reason: CloseReason) {
        let starts = self.open.iter().filter(|w| w.user == user).map(|w| w.start);
        let first = starts.min().unwrap();
        if first < start {
            self.close(user, first, CloseReason::Order);
            return self.close(user, start, reason);
        }
        let here = |w: &Window| w.user == user && w.start == start;
        let at = self.open.iter().position(here).unwrap();
        let mut window = self.open.remove(at);
        window.events.sort_by_key(|e| (e.time_ms, e.offset));
        let others = self.open.iter().filter(|w| w.user == user);
        let lowest_open = others.flat_map(|w| w.events.iter().map(|e| e.offset)).min();
        self.closed.push(Closed {
            user: user.into(),
            events: window.events.into_iter().collect(),
            reason,
            lowest_open,
        });
    }

    fn close_where(&mut self, which: impl Fn(&Window) -> bool, reason: CloseReason) {
        loop {
            let due = self.open.iter().filter(|w| which(w));
            let Some(w) = due.min_by_key(|w| w.start).cloned() else {
                return;
            };
            self.close(&w.user, w.start, reason);
        }
    }

    fn close_due(&mut self) {
        if let (false, Some(watermark)) = (self.restoring, self.watermark) {
            self.close_where(|w| w.start + SIZE <= watermark, CloseReason::EventTime);
        }
    }

    fn insert(&mut self, user: &str, event: Event, now_ms: i64) {
        self.now(now_ms);
        self.idle = None;
        let time = event.time_ms;
        let at = if event.late {
            self.watermark.unwrap()
        } else {
            time
        };
        let start = at.div_euclid(SIZE) * SIZE;
        let here = |w: &Window| w.user == user && w.start == start;
        let tokens = |w: &Window| w.events.iter().map(|e| e.tokens).sum::<u32>();
        let max_tokens = self.config.max_tokens.unwrap();
        if let Some(w) = self.open.iter().find(|w| here(w))
            && tokens(w) + event.tokens > max_tokens
        {
            self.close(user, start, CloseReason::Tokens);
        }
        if !self.open.iter().any(here) {
            self.open.push(Window {
                user: user.into(),
                start,
                opened: self.steady,
                events: Vec::new(),
            });
        }
        let window = self.open.iter_mut().find(|w| here(w)).unwrap();
        window.events.push(event);
        if window.events.len() >= self.config.max_events {
            self.close(user, start, CloseReason::Events);
        } else if tokens(window) >= max_tokens {
            self.close(user, start, CloseReason::Tokens);
        }
        let behind = time - millis(self.config.out_of_orderness);
        self.watermark = self.watermark.max(Some(behind));
        self.close_due();
    }

    fn tick(&mut self, now_ms: i64) {
        self.now(now_ms);
        if let Some((since, Some(from))) = self.idle
            && self.steady - since >= millis(self.config.idle_timeout.unwrap())
        {
            self.watermark = self.watermark.max(Some(from + self.steady - since));
        }
        self.close_due();
        let (steady, max_age) = (self.steady, millis(self.config.max_age));
        self.close_where(|w| steady - w.opened >= max_age, CloseReason::Age);
    }

    fn close_oldest(&mut self) {
        let lowest = |w: &&Window| w.events.iter().map(|e| e.offset).min();
        let oldest = self.open.iter().min_by_key(lowest).unwrap().clone();
        self.close(&oldest.user, oldest.start, CloseReason::Memory);
    }
}

#[derive(Debug, Clone)]
enum Op {
    Insert { user: u8, ahead: i64, tokens: u32 },
    Tick,
    AtEnd,
    NotAtEnd,
    Shrink { percent: usize },
    Restored,
    CloseAll,
}

fn op() -> impl Strategy<Value = Op> {
    let insert = (0..4u8, -25..12i64, 0..6u32);
    prop_oneof![
        30 => insert.prop_map(|(user, ahead, tokens)| Op::Insert { user, ahead, tokens }),
        4 => Just(Op::Tick),
        3 => Just(Op::AtEnd),
        1 => Just(Op::NotAtEnd),
        1 => (0..100usize).prop_map(|percent| Op::Shrink { percent }),
        1 => Just(Op::Restored),
        1 => Just(Op::CloseAll),
    ]
}

/// Users in an operation close in no promised order; each user's own windows do.
fn by_user(closed: &mut Vec<Closed>) -> Vec<Closed> {
    let mut closed = std::mem::take(closed);
    closed.sort_by(|a, b| a.user.cmp(&b.user));
    closed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn tumbling_windows_equal_the_plain_ones(
        ops in prop::collection::vec((op(), -2..8i64), 1..150),
        (max_events, max_tokens, restoring) in (1..6usize, 4..20u32, any::<bool>()),
        (out_of_orderness, max_age) in (0..20u64, 20..200u64),
    ) {
        let config = Config {
            max_events,
            max_tokens: Some(max_tokens),
            max_age: ms(max_age),
            out_of_orderness: ms(out_of_orderness),
            allowed_lateness: ms(LATENESS.unsigned_abs()),
            idle_timeout: Some(ms(5)),
            ..tumbling(SIZE.unsigned_abs())
        };
        let mut naive = Naive::new(config.clone(), restoring);
        let mut b = Bench::restored(config, None, restoring);
        let (mut now, mut top) = (0, 0);
        for (offset, (op, pass)) in (0..).zip(ops) {
            now += pass;
            match op {
                Op::Insert { user, ahead, tokens } => {
                    let time = top + ahead;
                    let late = naive.watermark.is_some_and(|w| time < w);
                    let too_late = naive.watermark.is_some_and(|w| time < w - LATENESS);
                    let fate = b.windows.judge(time, now);
                    prop_assert_eq!(matches!(fate, Fate::TooLate { .. }), too_late);
                    if too_late {
                        continue;
                    }
                    prop_assert_eq!(fate == Fate::Late, late);
                    top = top.max(time);
                    let (user, event) = (user.to_string(), event(offset, time, tokens, late));
                    naive.insert(&user, event.clone(), now);
                    b.windows.insert(&user, event, now, &mut b.closed);
                }
                Op::Tick => {
                    naive.tick(now);
                    b.tick(now);
                }
                Op::AtEnd => {
                    naive.now(now);
                    naive.idle.get_or_insert((naive.steady, naive.watermark));
                    b.windows.at_end(now);
                }
                Op::NotAtEnd => {
                    naive.idle = None;
                    b.windows.not_at_end();
                }
                Op::Shrink { percent } => {
                    let bytes = b.windows.open_bytes() * percent / 100;
                    b.windows.shrink_to(bytes, &mut b.closed);
                    prop_assert!(b.windows.open_bytes() <= bytes);
                    while naive.open.len() > b.windows.open_windows() {
                        naive.close_oldest();
                    }
                }
                Op::Restored => {
                    naive.restoring = false;
                    naive.tick(now);
                    b.windows.restored(now, &mut b.closed);
                }
                Op::CloseAll => {
                    naive.close_where(|_| true, CloseReason::EndOfInput);
                    b.windows.close_all(CloseReason::EndOfInput, &mut b.closed);
                }
            }
            prop_assert_eq!(by_user(&mut b.closed), by_user(&mut naive.closed));
            prop_assert_eq!(b.windows.watermark_ms(), naive.watermark);
            prop_assert_eq!(b.windows.open_windows(), naive.open.len());
            b.windows.users.check();
        }
    }

    /// Without limits, and with events on time only, windows depend on the times alone, whatever the order of arrival and
    /// wherever the process was ended and began anew: nothing is lost, split or joined by reading again.
    #[test]
    fn windows_are_a_function_of_the_times_and_survive_a_restart(
        steps in prop::collection::vec((0..3u8, -30..40i64), 1..80),
        (sessions, crash, folded) in (any::<bool>(), 0..80usize, 0..100usize),
    ) {
        let kind = if sessions { session(12, 1_000_000) } else { tumbling(10) };
        let config = Config { out_of_orderness: ms(20), ..kind };
        let (mut top, mut events) = (0, Vec::new());
        for (offset, (user, step)) in (0..).zip(steps) {
            let time = (top + step).max(top - 20);
            top = top.max(time);
            events.push((user.to_string(), event(offset, time, 0, false)));
        }
        let crash = crash.min(events.len());
        let mut first = Bench::new(config.clone());
        for (user, event) in &events[..crash] {
            first.windows.insert(user, event.clone(), 0, &mut first.closed);
        }
        // What closed first was folded, the rest was waiting when the process ended.
        first.closed.truncate(first.closed.len() * folded / 100);
        let done = first.closed.iter().flat_map(|c| c.events.iter().map(|e| e.offset));
        let done: BTreeSet<i64> = done.collect();
        let mut second = Bench::restored(config, first.windows.watermark_ms(), true);
        let again = events[..crash].iter().filter(|(_, e)| !done.contains(&e.offset));
        for (user, event) in again {
            second.windows.insert(user, event.clone(), 0, &mut second.closed);
        }
        prop_assert!(second.closed.is_empty());
        second.windows.restored(0, &mut second.closed);
        for (user, event) in &events[crash..] {
            prop_assert_eq!(second.windows.judge(event.time_ms, 0), Fate::OnTime);
            second.windows.insert(user, event.clone(), 0, &mut second.closed);
        }
        second.windows.close_all(CloseReason::EndOfInput, &mut second.closed);

        let mut users: BTreeMap<&str, Vec<(i64, i64)>> = BTreeMap::new();
        for (user, e) in &events {
            users.entry(user).or_default().push((e.time_ms, e.offset));
        }
        for (user, mut times) in users {
            times.sort_unstable();
            let apart = |a: i64, b: i64| {
                if sessions { b - a >= 12 } else { a.div_euclid(10) != b.div_euclid(10) }
            };
            let expected: Vec<Vec<i64>> = (times.chunk_by(|a, b| !apart(a.0, b.0)))
                .map(|w| w.iter().map(|e| e.1).collect())
                .collect();
            let closed = first.closed.iter().chain(&second.closed);
            let of_user = closed.filter(|c| c.user.as_ref() == user);
            let offsets = |c: &Closed| c.events.iter().map(|e| e.offset).collect();
            let actual: Vec<Vec<i64>> = of_user.map(offsets).collect();
            prop_assert_eq!(actual, expected);
        }
    }
}
