//! What is true of any input, the hostile included.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone)]
struct Step {
    /// How far the wall clock goes.
    pass: i64,
    user: u8,
    /// How far the event is from the highest time so far.
    ahead: i64,
    tokens: u32,
    /// What follows the insertion.
    then: Then,
}

#[derive(Debug, Clone, Copy)]
enum Then {
    Nothing,
    Tick,
    AtEnd,
    Shrink,
    Restored,
}

/// Mostly near each other, now and then anywhere.
fn number(near: std::ops::Range<i64>) -> impl Strategy<Value = i64> {
    prop_oneof![400 => near, 1 => any::<i64>()]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let then = prop_oneof![
        12 => Just(Then::Nothing),
        3 => Just(Then::Tick),
        2 => Just(Then::AtEnd),
        1 => Just(Then::Shrink),
        1 => Just(Then::Restored),
    ];
    let step = (number(-3..9), 0..3u8, number(-30..25), 0..9u32, then);
    let step = step.prop_map(|(pass, user, ahead, tokens, then)| Step {
        pass,
        user,
        ahead,
        tokens,
        then,
    });
    prop::collection::vec(step, 1..120)
}

fn kind() -> impl Strategy<Value = Config> {
    let length = || prop_oneof![20 => 0..40u64, 1 => any::<u64>()];
    prop_oneof![
        length().prop_map(tumbling),
        (length(), length()).prop_map(|(gap, longest)| session(gap, longest)),
    ]
}

/// An accepted event that no window has brought back yet.
struct Held {
    user: String,
    /// The time at which it takes part.
    at: i64,
    /// When it was put in, by a wall clock that never goes back.
    since: i64,
    event: Event,
}

/// Checks what closes against what was put in.
struct Judge {
    config: Config,
    held: BTreeMap<i64, Held>,
}

impl Judge {
    /// Takes the windows closed by one call. `fresh` is the offset that the call put in, if it did.
    fn take(&mut self, closed: &mut Vec<Closed>, watermark: Option<i64>, fresh: Option<i64>) {
        for window in closed.drain(..) {
            let times: Vec<_> = window
                .events
                .iter()
                .map(|e| (e.time_ms, e.offset))
                .collect();
            assert!(times.is_sorted(), "not in order: {times:?}");
            let mut ats = Vec::new();
            for event in window.events.iter() {
                let held = self
                    .held
                    .remove(&event.offset)
                    .expect("once, and only what was put in");
                assert_eq!(
                    (held.user.as_str(), &held.event),
                    (window.user.as_ref(), &event)
                );
                ats.push(held.at);
            }
            ats.sort_unstable();
            let (first, last) = (ats[0], ats[ats.len() - 1]);
            assert!(window.events.len() <= self.config.max_events);
            let tokens: u32 = window.events.iter().map(|e| e.tokens).sum();
            assert!(ats.len() == 1 || self.config.max_tokens.is_none_or(|max| tokens <= max));
            let end = match self.config.kind {
                Kind::Tumbling { size } => {
                    let size = millis(size).max(1);
                    assert_eq!(first.div_euclid(size), last.div_euclid(size));
                    let end = (i128::from(first.div_euclid(size)) + 1) * i128::from(size);
                    i64::try_from(end).unwrap_or(i64::MAX)
                }
                Kind::Session { gap, max_duration } => {
                    let gap = millis(gap).max(1);
                    assert!(last.saturating_sub(first) <= millis(max_duration));
                    assert!(ats.windows(2).all(|p| p[1].saturating_sub(p[0]) < gap));
                    last.saturating_add(gap)
                }
            };
            if window.reason == CloseReason::EventTime {
                assert!(
                    watermark.is_some_and(|w| end <= w),
                    "{end} is ahead of {watermark:?}"
                );
            }
            let others = || {
                self.held
                    .values()
                    .filter(|h| h.user == window.user.as_ref())
            };
            // The event in hand may be placed after the window that it did not fit into.
            let settled = || others().filter(|h| Some(h.event.offset) != fresh);
            assert!(
                settled().all(|h| h.at > last),
                "an earlier window is still open"
            );
            let lowest = |open: Option<i64>| window.lowest_open == open;
            let known = lowest(settled().map(|h| h.event.offset).min());
            assert!(known || lowest(others().map(|h| h.event.offset).min()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    #[test]
    fn every_accepted_event_is_in_one_window_within_the_limits_and_in_order(
        steps in steps(),
        kind in kind(),
        (max_events, max_tokens) in (0..8usize, prop::option::of(0..25u32)),
        (max_age, out_of_orderness, allowed_lateness) in (1..60u64, 0..30u64, 0..30u64),
        (watermark, restoring) in (prop::option::of(-30..30i64), any::<bool>()),
    ) {
        let config = Config {
            max_events,
            max_tokens,
            max_age: ms(max_age),
            out_of_orderness: ms(out_of_orderness),
            allowed_lateness: ms(allowed_lateness),
            idle_timeout: Some(ms(5)),
            max_future_skew: ms(u64::MAX),
            ..kind
        };
        let limits = Config { max_events: max_events.max(1), ..config.clone() };
        let mut judge = Judge { config: limits, held: BTreeMap::new() };
        let mut b = Bench::restored(config, watermark, restoring);
        let (mut now, mut top, mut restoring) = (0i64, 0i64, restoring);
        let (mut steady, mut wall) = (0i64, None);
        for (offset, step) in (0..).zip(steps) {
            now = now.saturating_add(step.pass);
            let time = top.saturating_add(step.ahead);
            let before = b.windows.watermark_ms();
            let fate = b.windows.judge(time, now);
            let too_late = before.is_some_and(|w| time < w.saturating_sub(millis(ms(allowed_lateness))));
            if let Fate::Future { limit_ms } = fate {
                prop_assert!(time > limit_ms && limit_ms == now.saturating_add(i64::MAX));
                continue;
            }
            prop_assert_eq!(fate == Fate::Late, !too_late && before.is_some_and(|w| time < w));
            prop_assert_eq!(matches!(fate, Fate::TooLate { .. }), too_late);
            // While reading again, events come as they were judged before: on time, and behind the watermark.
            let again = restoring && too_late;
            let accepted = again || !too_late;
            if accepted || !matches!(step.then, Then::Nothing | Then::Shrink) {
                // The windows see the clock in this step.
                let last = wall.replace(now).unwrap_or(now);
                steady = steady.saturating_add(now.saturating_sub(last).max(0));
            }
            if accepted {
                let late = fate == Fate::Late && !restoring;
                let at = before.filter(|_| late).unwrap_or(time);
                let (user, event) = (step.user.to_string(), event(offset, time, step.tokens, late));
                let held = Held { user: user.clone(), at, since: steady, event: event.clone() };
                judge.held.insert(offset, held);
                // One event at the end of time would make all that follow too late.
                top = if time > i64::MAX / 2 { top } else { top.max(time) };
                b.windows.insert(&user, event, now, &mut b.closed);
                judge.take(&mut b.closed, b.windows.watermark_ms(), Some(offset));
            }
            match step.then {
                Then::Nothing => {}
                Then::Tick => b.tick(now),
                Then::AtEnd => b.windows.at_end(now),
                Then::Shrink => {
                    let bytes = b.windows.open_bytes() / 2;
                    b.windows.shrink_to(bytes, &mut b.closed);
                    prop_assert!(b.windows.open_bytes() <= bytes);
                }
                Then::Restored => {
                    restoring = false;
                    b.windows.restored(now, &mut b.closed);
                }
            }
            if restoring {
                prop_assert!(b.closed.iter().all(|c| c.reason != CloseReason::EventTime));
            }
            judge.take(&mut b.closed, b.windows.watermark_ms(), None);
            if matches!(step.then, Then::Tick | Then::Restored) {
                let over = steady.saturating_sub(millis(ms(max_age)));
                prop_assert!(judge.held.values().all(|h| h.since > over), "over age");
            }
            b.windows.users.check();
            prop_assert!(b.windows.watermark_ms() >= before);
            let raw: usize = judge.held.values().map(|h| h.event.bytes()).sum();
            prop_assert!(b.windows.open_bytes() >= raw);
            let mine = judge.held.values().filter(|h| h.user == "0");
            prop_assert_eq!(b.windows.lowest_open("0"), mine.map(|h| h.event.offset).min());
            sleeps_until_there_is_something_to_do(&b.windows, now);
        }
        b.windows.close_all(CloseReason::EndOfInput, &mut b.closed);
        judge.take(&mut b.closed, b.windows.watermark_ms(), None);
        prop_assert!(judge.held.is_empty(), "left open");
        b.windows.users.check();
        prop_assert_eq!((b.windows.open_windows(), b.windows.open_bytes()), (0, 0));
        prop_assert_eq!(b.windows.next_wakeup_ms(now), None);
    }
}

/// Before the wakeup nothing closes; going from wakeup to wakeup, everything does, in at most two a window (each says when
/// its age or its end may be reached, and may turn out early once).
fn sleeps_until_there_is_something_to_do(windows: &Windows, now: i64) {
    let (mut windows, mut now, mut closed) = (windows.clone(), now, Vec::new());
    let mut rounds = 2 * windows.open_windows() + 2;
    // What a tick closes at once is not the wakeup's to announce.
    windows.tick(now, &mut closed);
    while let Some(wakeup) = windows.next_wakeup_ms(now) {
        assert!(wakeup >= now && rounds > 0);
        if now < wakeup {
            closed.clear();
            windows.clone().tick(wakeup - 1, &mut closed);
            assert!(closed.is_empty(), "closed before its time");
        }
        if wakeup == i64::MAX {
            return;
        }
        (now, rounds) = (wakeup, rounds - 1);
        windows.tick(now, &mut closed);
    }
    assert_eq!(windows.open_windows(), 0, "something waits for ever");
}

/// Users come and go: what is kept depends on who has open windows, not on who ever had.
#[test]
fn users_without_windows_are_forgotten() {
    let mut b = Bench::new(Config {
        idle_timeout: Some(ms(1)),
        ..tumbling(10)
    });
    let mut seen = BTreeSet::new();
    for offset in 0..50_000 {
        let user = format!("user {offset}");
        let event = event(offset, offset, 0, false);
        b.windows.insert(&user, event, offset, &mut b.closed);
        assert!(b.windows.open_windows() <= 10);
        seen.extend(b.closed.drain(..).map(|c| c.user));
    }
    assert!(b.windows.users.room() < 200);
    b.windows.close_all(CloseReason::EndOfInput, &mut b.closed);
    seen.extend(b.closed.drain(..).map(|c| c.user));
    assert_eq!(seen.len(), 50_000);
    // After a large day, too.
    for offset in 0..50_000 {
        let event = event(offset, 60_000, 0, false);
        b.windows
            .insert(&offset.to_string(), event, 0, &mut b.closed);
    }
    b.windows.close_all(CloseReason::EndOfInput, &mut b.closed);
    assert!(b.windows.users.room() < 200, "{}", b.windows.users.room());
}
