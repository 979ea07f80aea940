use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn config(kind: Kind) -> Config {
    Config {
        kind,
        max_events: 5,
        max_tokens: None,
        max_age: Duration::from_millis(500),
        out_of_orderness: Duration::from_millis(10),
        allowed_lateness: Duration::from_millis(20),
        idle_timeout: Some(Duration::from_millis(100)),
        max_future_skew: Duration::from_secs(1),
    }
}

fn tumbling() -> Config {
    config(Kind::Tumbling {
        size: Duration::from_millis(50),
    })
}

fn session() -> Config {
    config(Kind::Session {
        gap: Duration::from_millis(15),
        max_duration: Duration::from_millis(60),
    })
}

fn event(offset: i64, time_ms: i64, tokens: u32, late: bool) -> Event {
    Event {
        offset,
        time_ms,
        tokens,
        late,
        record: crate::event::Record::default(),
    }
}

struct Run {
    windows: Windows,
    /// Closed windows, each with the watermark seen when it was.
    closed: Vec<(Closed, Option<i64>)>,
    accepted: BTreeSet<i64>,
    offset: i64,
}

impl Run {
    fn new(config: &Config) -> Self {
        Self {
            windows: Windows::new(Arc::new(config.clone()), None, false),
            closed: Vec::new(),
            accepted: BTreeSet::new(),
            offset: 0,
        }
    }

    fn with(&mut self, f: impl FnOnce(&mut Windows, &mut Vec<Closed>)) {
        let mut closed = Vec::new();
        f(&mut self.windows, &mut closed);
        let watermark = self.windows.watermark_ms();
        self.closed
            .extend(closed.into_iter().map(|c| (c, watermark)));
    }

    fn add(&mut self, user: &str, time: i64, tokens: u32, now: i64) -> Fate {
        let offset = self.offset;
        self.offset += 1;
        let fate = self.windows.judge(time, now);
        if matches!(fate, Fate::OnTime | Fate::Late) {
            self.accepted.insert(offset);
            let event = event(offset, time, tokens, fate == Fate::Late);
            self.with(|w, closed| w.insert(user, event, now, closed));
        }
        fate
    }

    fn reasons(&self) -> Vec<(&str, Vec<i64>, CloseReason)> {
        self.closed
            .iter()
            .map(|(c, _)| {
                (
                    &*c.user,
                    c.events.iter().map(|e| e.offset).collect(),
                    c.reason,
                )
            })
            .collect()
    }
}

/// A step of a run: an event of one of three users, or time that passes.
type Step = (u8, i64, u32);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Times wander forward with disorder around them.
    prop::collection::vec((0u8..4, -45i64..15, 0u32..9), 0..150)
}

fn run(config: &Config, steps: &[Step]) -> Run {
    let mut run = Run::new(config);
    let mut watermark = None;
    for (at, &(who, jitter, tokens)) in steps.iter().enumerate() {
        let now = i64::try_from(at).unwrap() * 4;
        if who == 3 {
            run.windows.at_end(now);
            run.with(|w, closed| w.tick(now, closed));
        } else {
            run.add(["a", "b", "c"][usize::from(who)], now + jitter, tokens, now);
        }
        assert!(
            run.windows.watermark_ms() >= watermark,
            "the watermark went back"
        );
        watermark = run.windows.watermark_ms();
    }
    run
}

/// User, start, and the events as time and offset.
type Naive = (usize, i64, Vec<(i64, i64)>);

/// The rules written down once more, with lists and linear searches.
fn naive(config: &Config, steps: &[Step]) -> Vec<(String, Vec<i64>)> {
    let (Kind::Tumbling { size }, ooo, lateness) = (config.kind, 10, 20) else {
        panic!()
    };
    let size = i64::try_from(size.as_millis()).unwrap();
    let mut watermark: Option<i64> = None;
    let mut open: Vec<Naive> = Vec::new();
    let mut closed = Vec::new();
    let close =
        |open: &mut Vec<Naive>, closed: &mut Vec<(String, Vec<i64>)>, user: usize, upto: i64| {
            let mut mine: Vec<_> = open
                .iter()
                .filter(|w| w.0 == user && w.1 <= upto)
                .cloned()
                .collect();
            mine.sort_by_key(|w| w.1);
            open.retain(|w| !(w.0 == user && w.1 <= upto));
            for (_, _, mut events) in mine {
                events.sort_unstable();
                closed.push((
                    ["a", "b", "c"][user].to_owned(),
                    events.iter().map(|e| e.1).collect(),
                ));
            }
        };
    let mut offset = 0;
    for (at, &(who, jitter, _)) in steps.iter().enumerate() {
        if who == 3 {
            continue;
        }
        let (user, time) = (usize::from(who), i64::try_from(at).unwrap() * 4 + jitter);
        let mine = offset;
        offset += 1;
        if watermark.is_some_and(|w| time < w - lateness) {
            continue;
        }
        let late = watermark.is_some_and(|w| time < w);
        let placed = if late { watermark.unwrap() } else { time };
        let start = placed.div_euclid(size) * size;
        match open.iter_mut().find(|w| w.0 == user && w.1 == start) {
            Some(w) => w.2.push((time, mine)),
            None => open.push((user, start, vec![(time, mine)])),
        }
        if open
            .iter()
            .any(|w| w.0 == user && w.1 == start && w.2.len() >= 5)
        {
            close(&mut open, &mut closed, user, start);
        }
        if !late {
            watermark = Some(watermark.map_or(time - ooo, |w| w.max(time - ooo)));
        }
        for user in 0..3 {
            while let Some(due) = open
                .iter()
                .filter(|w| w.0 == user && watermark.is_some_and(|m| w.1 + size <= m))
                .map(|w| w.1)
                .min()
            {
                close(&mut open, &mut closed, user, due);
            }
        }
    }
    for user in 0..3 {
        close(&mut open, &mut closed, user, i64::MAX);
    }
    closed.sort();
    closed
}

proptest! {
    #[test]
    fn tumbling_windows_equal_the_naive_model(steps in steps()) {
        let config = Config { idle_timeout: None, max_age: Duration::from_secs(9999), ..tumbling() };
        let mut run = run(&config, &steps);
        run.with(|w, closed| w.close_all(CloseReason::EndOfInput, closed));
        let mut got: Vec<(String, Vec<i64>)> = run.reasons().into_iter().map(|(u, o, _)| (u.to_owned(), o)).collect();
        got.sort();
        prop_assert_eq!(got, naive(&config, &steps));
    }

    #[test]
    fn every_accepted_event_is_in_exactly_one_window_and_nothing_stays_open(
        steps in steps(), sessions in any::<bool>(), tokens in prop::option::of(1u32..30), shrink in prop::option::of(0usize..3000)
    ) {
        let config = Config { max_tokens: tokens, ..if sessions { session() } else { tumbling() } };
        let mut run = run(&config, &steps);
        if let Some(bytes) = shrink {
            run.with(|w, closed| w.shrink_to(bytes, closed));
            prop_assert!(run.windows.open_bytes() <= bytes);
        }
        run.with(|w, closed| w.close_all(CloseReason::EndOfInput, closed));
        let mut folded: Vec<i64> = run.closed.iter().flat_map(|(c, _)| c.events.iter().map(|e| e.offset)).collect();
        folded.sort_unstable();
        let accepted: Vec<i64> = run.accepted.iter().copied().collect();
        prop_assert_eq!(folded, accepted);
        prop_assert_eq!((run.windows.open_windows(), run.windows.open_bytes()), (0, 0));
        prop_assert!(["a", "b", "c"].iter().all(|u| run.windows.lowest_open(u).is_none()));
        for (closed, watermark) in &run.closed {
            prop_assert!(!closed.events.is_empty() && closed.events.len() <= config.max_events);
            let (first, last) = (closed.events[0].time_ms, closed.events.iter().filter(|e| !e.late).map(|e| e.time_ms).max());
            prop_assert!(closed.events.is_sorted_by_key(|e| (e.time_ms, e.offset)));
            if let Some(most) = tokens && closed.events.len() > 1 {
                prop_assert!(closed.events.iter().map(|e| e.tokens).sum::<u32>() <= most);
            }
            match config.kind {
                Kind::Session { .. } => {
                    if let Some(last) = last {
                        let on_time = closed.events.iter().find(|e| !e.late).map_or(first, |e| e.time_ms);
                        prop_assert!(last - on_time <= 60);
                        if closed.reason == CloseReason::EventTime {
                            prop_assert!(watermark.unwrap() >= last + 15);
                        }
                    }
                }
                Kind::Tumbling { .. } => {
                    let starts: BTreeSet<i64> = closed.events.iter().filter(|e| !e.late).map(|e| e.time_ms.div_euclid(50)).collect();
                    prop_assert!(starts.len() <= 1);
                    if let (CloseReason::EventTime, Some(start)) = (closed.reason, starts.first()) {
                        prop_assert!(watermark.unwrap() >= (start + 1) * 50);
                    }
                }
            }
        }
    }

    /// Without late events, a user's windows close in the order of their times.
    #[test]
    fn a_users_windows_close_in_order(steps in steps(), sessions in any::<bool>()) {
        let config = Config {
            out_of_orderness: Duration::from_secs(9), max_events: 3, ..if sessions { session() } else { tumbling() }
        };
        let mut run = run(&config, &steps);
        run.with(|w, closed| w.close_all(CloseReason::EndOfInput, closed));
        for user in ["a", "b", "c"] {
            let closes: Vec<&Closed> = run.closed.iter().map(|(c, _)| c).filter(|c| &*c.user == user).collect();
            for pair in closes.windows(2) {
                if pair[0].reason == CloseReason::Order {
                    prop_assert!(pair[0].events[0].time_ms <= pair[1].events[0].time_ms);
                }
            }
        }
    }

    #[test]
    fn hostile_times_break_nothing(
        times in prop::collection::vec((any::<i64>(), any::<i64>(), any::<bool>()), 0..40), sessions in any::<bool>()
    ) {
        let mut run = Run::new(&if sessions { session() } else { tumbling() });
        for (time, now, end) in times {
            run.add("a", time, 1, now);
            if end { run.windows.at_end(now); }
            run.with(|w, closed| w.tick(now, closed));
        }
        run.with(|w, closed| w.close_all(CloseReason::EndOfInput, closed));
        let folded: BTreeSet<i64> = run.closed.iter().flat_map(|(c, _)| c.events.iter().map(|e| e.offset)).collect();
        prop_assert_eq!(&folded, &run.accepted);
    }
}

#[test]
fn an_event_is_judged_by_the_watermark_and_by_the_wall_clock() {
    let mut run = Run::new(&tumbling());
    assert_eq!(run.add("a", 1000, 0, 1000), Fate::OnTime);
    assert_eq!(run.windows.watermark_ms(), Some(990));
    assert_eq!(run.add("a", 990, 0, 1000), Fate::OnTime);
    assert_eq!(run.add("a", 989, 0, 1000), Fate::Late);
    assert_eq!(run.add("a", 970, 0, 1000), Fate::Late);
    assert_eq!(
        run.add("a", 969, 0, 1000),
        Fate::TooLate { watermark_ms: 990 }
    );
    assert_eq!(run.add("a", 2000, 0, 1000), Fate::OnTime);
    assert_eq!(run.add("a", 2001, 0, 1000), Fate::Future { limit_ms: 2000 });
    assert_eq!(
        run.windows.watermark_ms(),
        Some(1990),
        "a future event moves no watermark"
    );
}

#[test]
fn a_late_event_joins_the_users_open_window() {
    let mut run = Run::new(&tumbling());
    run.add("a", 1020, 0, 5000);
    run.add("b", 1045, 0, 5000);
    run.add("a", 1016, 0, 5000);
    assert!(run.closed.is_empty());
    run.add("b", 1100, 0, 5000);
    assert_eq!(
        run.reasons(),
        [
            ("a", vec![2, 0], CloseReason::EventTime),
            ("b", vec![1], CloseReason::EventTime)
        ]
    );
}

#[test]
fn an_idle_partition_goes_on_with_the_wall_clock_from_where_it_stood() {
    let mut run = Run::new(&tumbling());
    run.add("a", 1000, 0, 50_000);
    run.windows.at_end(50_000);
    run.with(|w, closed| w.tick(50_099, closed));
    assert_eq!(run.windows.watermark_ms(), Some(990));
    run.with(|w, closed| w.tick(50_100, closed));
    assert_eq!(
        run.windows.watermark_ms(),
        Some(1090),
        "not the wall clock's own time"
    );
    assert_eq!(run.reasons(), [("a", vec![0], CloseReason::EventTime)]);
    run.windows.not_at_end();
    run.with(|w, closed| w.tick(60_000, closed));
    assert_eq!(
        run.windows.watermark_ms(),
        Some(1090),
        "a paused partition's stands still"
    );
}

#[test]
fn a_window_closes_by_age_also_when_the_clock_was_set_back() {
    let mut run = Run::new(&tumbling());
    run.add("a", 1000, 0, 10_000);
    run.with(|w, closed| w.tick(10_400, closed));
    run.with(|w, closed| w.tick(2_000, closed));
    assert!(run.closed.is_empty());
    run.with(|w, closed| w.tick(2_100, closed));
    assert_eq!(run.reasons(), [("a", vec![0], CloseReason::Age)]);
}

#[test]
fn an_event_over_the_token_limit_closes_the_window_before_it() {
    let mut run = Run::new(&Config {
        max_tokens: Some(10),
        ..tumbling()
    });
    for tokens in [6, 3, 5, 12, 10] {
        run.add("a", 1000, tokens, 0);
    }
    assert_eq!(
        run.reasons(),
        [
            ("a", vec![0, 1], CloseReason::Tokens),
            ("a", vec![2], CloseReason::Tokens),
            ("a", vec![3], CloseReason::Tokens),
            ("a", vec![4], CloseReason::Tokens),
        ]
    );
}

#[test]
fn an_event_between_two_sessions_makes_them_one() {
    let mut run = Run::new(&Config {
        out_of_orderness: Duration::from_millis(100),
        ..session()
    });
    for time in [100, 125, 112] {
        run.add("a", time, 0, 0);
    }
    assert_eq!(run.windows.open_windows(), 1);
    run.with(|w, closed| w.close_all(CloseReason::EndOfInput, closed));
    assert_eq!(
        run.reasons(),
        [("a", vec![0, 2, 1], CloseReason::EndOfInput)]
    );
}

#[test]
fn events_read_again_find_their_window_whole_though_the_watermark_has_passed_it() {
    let mut windows = Windows::new(Arc::new(tumbling()), Some(2000), true);
    let mut closed = Vec::new();
    for (offset, time) in [(1, 1010), (2, 1005), (3, 1040)] {
        windows.insert("a", event(offset, time, 0, false), 0, &mut closed);
    }
    assert!(closed.is_empty());
    windows.restored(&mut closed);
    let offsets: Vec<i64> = closed
        .iter()
        .flat_map(|c| c.events.iter().map(|e| e.offset))
        .collect();
    assert_eq!((closed.len(), offsets), (1, vec![2, 1, 3]));
}
