//! What the windows promise, rule by rule; `laws` holds what is true of any input, `naive` a plain implementation to compare with.

mod laws;
mod naive;

use super::*;
use crate::event::Record;

/// Limits that nothing reaches; no lateness, no idleness.
pub(super) fn config(kind: Kind) -> Config {
    Config {
        kind,
        max_events: usize::MAX,
        max_tokens: None,
        max_age: ms(1_000_000_000),
        out_of_orderness: Duration::ZERO,
        allowed_lateness: Duration::ZERO,
        idle_timeout: None,
        max_future_skew: ms(1_000_000_000),
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn tumbling(size: u64) -> Config {
    config(Kind::Tumbling { size: ms(size) })
}

fn session(gap: u64, max_duration: u64) -> Config {
    let (gap, max_duration) = (ms(gap), ms(max_duration));
    config(Kind::Session { gap, max_duration })
}

fn event(offset: i64, time_ms: i64, tokens: u32, late: bool) -> Event {
    let value = Some(vec![0; 50].into());
    let record = Record {
        value,
        ..Record::default()
    };
    Event {
        offset,
        time_ms,
        tokens,
        late,
        record,
    }
}

/// A window room and the windows that it closed, in short: user, offsets, reason and lowest open offset.
struct Bench {
    windows: Windows,
    closed: Vec<Closed>,
}

impl Bench {
    fn new(config: Config) -> Self {
        Self::restored(config, None, false)
    }

    fn restored(config: Config, watermark_ms: Option<i64>, restoring: bool) -> Self {
        Self {
            windows: Windows::new(Arc::new(config), watermark_ms, restoring),
            closed: Vec::new(),
        }
    }

    /// Inserts an event of user `u`, late where it is.
    fn put(&mut self, offset: i64, time_ms: i64, now_ms: i64) {
        self.put_tokens(offset, time_ms, 0, now_ms);
    }

    fn put_tokens(&mut self, offset: i64, time_ms: i64, tokens: u32, now_ms: i64) {
        let late = self.windows.judge(time_ms, now_ms) == Fate::Late;
        let event = event(offset, time_ms, tokens, late);
        self.windows.insert("u", event, now_ms, &mut self.closed);
    }

    fn tick(&mut self, now_ms: i64) {
        self.windows.tick(now_ms, &mut self.closed);
    }

    fn take(&mut self) -> Vec<(Vec<i64>, CloseReason, Option<i64>)> {
        let short = |c: Closed| {
            let offsets = c.events.iter().map(|e| e.offset).collect();
            (offsets, c.reason, c.lowest_open)
        };
        self.closed.drain(..).map(short).collect()
    }
}

#[test]
fn the_watermark_closes_what_ends_at_it() {
    let mut b = Bench::new(tumbling(10));
    b.put(0, 3, 0);
    b.put(1, 9, 0);
    assert_eq!(b.take(), vec![]);
    b.put(2, 10, 0);
    let one = (vec![0, 1], CloseReason::EventTime, Some(2));
    assert_eq!(b.take(), vec![one]);
    assert_eq!(b.windows.lowest_open("u"), Some(2));
    assert_eq!(b.windows.lowest_open("nobody"), None);
}

#[test]
fn events_are_judged_by_the_watermark_and_the_wall_clock() {
    let config = Config {
        allowed_lateness: ms(10),
        max_future_skew: ms(5),
        ..tumbling(100)
    };
    let fate = Windows::new(Arc::new(config.clone()), Some(50), false);
    assert_eq!(fate.judge(50, 100), Fate::OnTime);
    assert_eq!(fate.judge(49, 100), Fate::Late);
    assert_eq!(fate.judge(40, 100), Fate::Late);
    assert_eq!(fate.judge(39, 100), Fate::TooLate { watermark_ms: 50 });
    assert_eq!(fate.judge(105, 100), Fate::OnTime);
    assert_eq!(fate.judge(106, 100), Fate::Future { limit_ms: 105 });
    // Too far ahead of a clock that is behind itself: that it is late as well does not matter.
    assert_eq!(fate.judge(20, 10), Fate::Future { limit_ms: 15 });
    let new = Windows::new(Arc::new(config), None, false);
    assert_eq!(new.judge(i64::MIN, 0), Fate::OnTime);
}

#[test]
fn a_late_event_takes_part_at_the_watermark_and_keeps_its_time() {
    let mut b = Bench::new(Config {
        allowed_lateness: ms(1_000),
        ..tumbling(10)
    });
    b.put(0, 25, 0);
    b.put(1, 4, 0);
    b.put(2, 30, 0);
    // Its own window is long closed: it stands in the one at the watermark, first by its time.
    let one = (vec![1, 0], CloseReason::EventTime, Some(2));
    assert_eq!(b.take(), vec![one]);
    let mut b = Bench::restored(session(10, 100), Some(1_000), false);
    b.windows
        .insert("u", event(0, 3, 0, true), 0, &mut b.closed);
    b.put(1, 1_009, 0);
    b.put(2, 1_019, 0);
    let one = (vec![0, 1], CloseReason::EventTime, Some(2));
    assert_eq!(b.take(), vec![one]);
}

#[test]
fn size_closes_earlier_windows_first() {
    let mut b = Bench::new(Config {
        max_events: 2,
        out_of_orderness: ms(1_000),
        ..tumbling(10)
    });
    b.put(0, 35, 0);
    b.put(1, 15, 0);
    b.put(2, 5, 0);
    b.put(3, 11, 0);
    let first = (vec![2], CloseReason::Order, Some(0));
    let second = (vec![3, 1], CloseReason::Events, Some(0));
    assert_eq!(b.take(), vec![first, second]);
}

#[test]
fn tokens_close_before_they_are_too_many_and_when_they_are_enough() {
    let mut b = Bench::new(Config {
        max_tokens: Some(10),
        ..tumbling(100)
    });
    b.put_tokens(0, 1, 6, 0);
    b.put_tokens(1, 2, 5, 0);
    let over = (vec![0], CloseReason::Tokens, None);
    assert_eq!(b.take(), vec![over]);
    b.put_tokens(2, 3, 5, 0);
    let full = (vec![1, 2], CloseReason::Tokens, None);
    assert_eq!(b.take(), vec![full]);
    b.put_tokens(3, 4, 99, 0);
    let alone = (vec![3], CloseReason::Tokens, None);
    assert_eq!(b.take(), vec![alone]);
}

#[test]
fn age_closes_by_the_wall_clock_whatever_it_does() {
    let aged = |offset| (vec![offset], CloseReason::Age, None);
    let mut b = Bench::new(Config {
        max_age: ms(100),
        ..tumbling(1_000)
    });
    b.put(0, 1, 5_000);
    assert_eq!(b.windows.next_wakeup_ms(5_040), Some(5_100));
    b.tick(5_099);
    assert_eq!(b.take(), vec![]);
    b.tick(5_100);
    assert_eq!(b.take(), vec![aged(0)]);
    b.put(1, 2, 5_100);
    b.tick(5_150);
    b.tick(1_000); // the clock was set back
    assert_eq!(b.take(), vec![]);
    assert_eq!(b.windows.next_wakeup_ms(1_000), Some(1_050));
    b.tick(1_050);
    assert_eq!(b.take(), vec![aged(1)]);
}

#[test]
fn sessions_that_become_one_are_as_old_as_the_older() {
    let mut b = Bench::new(Config {
        max_age: ms(100),
        out_of_orderness: ms(1_000),
        ..session(10, 1_000)
    });
    b.put(0, 30, 0);
    b.put(1, 15, 60);
    b.put(2, 23, 70);
    assert_eq!(b.windows.open_windows(), 1);
    b.tick(99);
    assert_eq!(b.take(), vec![]);
    b.tick(100);
    assert_eq!(b.take(), vec![(vec![1, 2, 0], CloseReason::Age, None)]);
}

#[test]
fn an_idle_partition_goes_on_with_the_wall_clock() {
    let mut b = Bench::new(Config {
        idle_timeout: Some(ms(50)),
        ..tumbling(100)
    });
    b.put(0, 20, 0);
    b.windows.at_end(1_000);
    assert_eq!(b.windows.next_wakeup_ms(1_000), Some(1_080));
    b.tick(1_049);
    assert_eq!(b.windows.watermark_ms(), Some(20));
    b.windows.at_end(1_049);
    b.tick(1_079);
    assert_eq!(b.windows.watermark_ms(), Some(99));
    assert_eq!(b.take(), vec![]);
    b.tick(1_080);
    assert_eq!(b.take(), vec![(vec![0], CloseReason::EventTime, None)]);
    // Reading ends idleness, and so does a pause.
    b.put(1, 150, 1_080);
    b.tick(9_000);
    assert_eq!(b.windows.watermark_ms(), Some(150));
    b.windows.at_end(9_000);
    b.windows.not_at_end();
    b.tick(19_000);
    assert_eq!(b.windows.watermark_ms(), Some(150));
}

#[test]
fn memory_closes_the_lowest_offsets_and_no_more_than_needed() {
    let mut b = Bench::new(Config {
        out_of_orderness: ms(1_000),
        ..tumbling(10)
    });
    b.put(0, 15, 0);
    let one = b.windows.open_bytes();
    assert!(one >= 50);
    b.put(1, 5, 0);
    b.put(2, 25, 0);
    let three = b.windows.open_bytes();
    b.windows.shrink_to(three, &mut b.closed);
    assert_eq!(b.take(), vec![]);
    b.windows.shrink_to(three - 1, &mut b.closed);
    let order = (vec![1], CloseReason::Order, Some(0));
    let oldest = (vec![0], CloseReason::Memory, Some(2));
    assert_eq!(b.take(), vec![order, oldest]);
    assert_eq!(b.windows.open_bytes(), one);
    b.windows.shrink_to(0, &mut b.closed);
    assert_eq!(b.take(), vec![(vec![2], CloseReason::Memory, None)]);
    assert_eq!((b.windows.open_bytes(), b.windows.open_windows()), (0, 0));
}

#[test]
fn while_restoring_event_time_closes_nothing() {
    let mut b = Bench::restored(tumbling(10), Some(1_000), true);
    b.put(0, 5, 0);
    b.put(1, 2_000, 0);
    b.windows
        .insert("u", event(2, 6, 0, false), 0, &mut b.closed);
    b.tick(10);
    assert_eq!(b.take(), vec![]);
    b.windows.restored(10, &mut b.closed);
    assert_eq!(b.windows.watermark_ms(), Some(2_000));
}
