//! Event-time windows of one input partition: which events are folded together, and when. Pure: no I/O, no clock of its own.

mod assign;
#[cfg(test)]
mod tests;
mod watermark;

use std::sync::Arc;
use std::time::Duration;

use crate::event::Event;
use assign::Assigner;
use watermark::Watermark;

/// How events are grouped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Which events belong together by their time.
    pub kind: Kind,
    /// A window with so many events closes.
    pub max_events: usize,
    /// A window whose lines have so many tokens closes; `None`: tokens are not counted.
    pub max_tokens: Option<u32>,
    /// A window open for so long on the wall clock closes.
    pub max_age: Duration,
    /// How far behind the highest event time the watermark stays.
    pub out_of_orderness: Duration,
    /// How far behind the watermark an event may be and still be folded, marked late.
    pub allowed_lateness: Duration,
    /// After so long at the partition's end without a record, the watermark goes on with the wall clock; `None`: it never does.
    pub idle_timeout: Option<Duration>,
    /// How far ahead of the wall clock an event may be.
    pub max_future_skew: Duration,
}

/// Which events belong together by their time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Stretches of equal length, aligned with the Unix epoch.
    Tumbling {
        /// Their length.
        size: Duration,
    },
    /// As long as the next event follows within `gap`.
    Session {
        /// Longest pause within a session.
        gap: Duration,
        /// Longest session, from its first event time to its last.
        max_duration: Duration,
    },
}

/// Why a window closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The watermark passed its end.
    EventTime,
    /// It had `max_events`.
    Events,
    /// It had `max_tokens`.
    Tokens,
    /// It was open for `max_age` on the wall clock.
    Age,
    /// The open windows were over their memory limit and this was among the oldest.
    Memory,
    /// A bounded input ended.
    EndOfInput,
    /// A later window of the same user closed, and order is kept.
    Order,
}

impl CloseReason {
    /// The name in change events and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EventTime => "event_time",
            Self::Events => "events",
            Self::Tokens => "tokens",
            Self::Age => "age",
            Self::Memory => "memory",
            Self::EndOfInput => "end_of_input",
            Self::Order => "order",
        }
    }
}

/// A closed window: events of one user to be folded together, in the order in which they are folded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The user.
    pub user: Arc<str>,
    /// The events, by event time, then offset.
    pub events: Vec<Event>,
    /// Why it closed.
    pub reason: CloseReason,
}

/// What is to be done with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It takes part.
    OnTime,
    /// It takes part, marked late, as if its time were the watermark.
    Late,
    /// It is given up: further behind the watermark than lateness is allowed.
    TooLate {
        /// The watermark it was measured against.
        watermark_ms: i64,
    },
    /// It is given up: further ahead of the wall clock than allowed.
    Future {
        /// The latest time that would have been taken.
        limit_ms: i64,
    },
}

/// The open windows of one input partition.
#[derive(Debug)]
pub struct Windows {
    config: Arc<Config>,
    watermark: Watermark,
    open: Assigner,
    /// Events are read again after a restart: an event that was on time may belong to a window whose end the watermark
    /// has passed. Until all are back nothing closes by event time, so that no such window is cut in pieces.
    restoring: bool,
}

impl Windows {
    /// No windows yet. The watermark is the checkpoint's, `None` where there is none; `restoring`: events that were
    /// read before are read again first, until [`Windows::restored`].
    #[must_use]
    pub fn new(config: Arc<Config>, watermark_ms: Option<i64>, restoring: bool) -> Self {
        Self {
            watermark: Watermark::new(&config, watermark_ms),
            open: Assigner::new(Arc::clone(&config)),
            config,
            restoring,
        }
    }

    /// Judges an event that was never judged before.
    #[must_use]
    pub fn judge(&self, time_ms: i64, now_ms: i64) -> Fate {
        let limit_ms = now_ms.saturating_add(ms(self.config.max_future_skew));
        if time_ms > limit_ms {
            return Fate::Future { limit_ms };
        }
        match self.watermark.ms() {
            Some(w) if time_ms < w.saturating_sub(ms(self.config.allowed_lateness)) => {
                Fate::TooLate { watermark_ms: w }
            }
            Some(w) if time_ms < w => Fate::Late,
            _ => Fate::OnTime,
        }
    }

    /// Takes an accepted event in; the windows that close are pushed onto `closed`.
    pub fn insert(&mut self, user: &str, event: Event, now_ms: i64, closed: &mut Vec<Closed>) {
        let (time, late) = (event.time_ms, event.late);
        let now = self.watermark.clock(now_ms);
        let placed = match self.watermark.ms() {
            Some(watermark) if late => time.max(watermark),
            _ => time,
        };
        self.open.insert(user, event, placed, now, closed);
        if !late {
            self.watermark.observe(time);
        }
        self.watermark.busy();
        self.close_due(closed);
    }

    /// The partition's end was reached, at this time on the wall clock: from now on it may be idle.
    pub fn at_end(&mut self, now_ms: i64) {
        self.watermark.at_end(now_ms);
    }

    /// The partition is not at its end, or not read at all: its watermark stands still.
    pub fn not_at_end(&mut self) {
        self.watermark.busy();
    }

    /// The wall clock went on: closes what is too old, and moves an idle partition's watermark.
    pub fn tick(&mut self, now_ms: i64, closed: &mut Vec<Closed>) {
        let now = self.watermark.clock(now_ms);
        self.watermark.idle();
        self.close_due(closed);
        self.open.close_aged(now, closed);
    }

    /// Everything that was read before a restart is back: closing by event time begins.
    pub fn restored(&mut self, closed: &mut Vec<Closed>) {
        self.restoring = false;
        self.close_due(closed);
    }

    /// Closes everything.
    pub fn close_all(&mut self, reason: CloseReason, closed: &mut Vec<Closed>) {
        self.open.close_all(reason, closed);
    }

    /// Closes windows, those with the lowest offsets first, until the open ones have at most `bytes`.
    pub fn shrink_to(&mut self, bytes: usize, closed: &mut Vec<Closed>) {
        self.open.shrink_to(bytes, closed);
    }

    /// The event time up to which the partition is believed complete; `None` before the first event.
    #[must_use]
    pub fn watermark_ms(&self) -> Option<i64> {
        self.watermark.ms()
    }

    /// How many windows are open.
    #[must_use]
    pub fn open_windows(&self) -> usize {
        self.open.len()
    }

    /// Bytes of the open windows' events, with what is kept beside each.
    #[must_use]
    pub fn open_bytes(&self) -> usize {
        self.open.bytes()
    }

    /// The lowest offset of this user in an open window.
    #[must_use]
    pub fn lowest_open(&self, user: &str) -> Option<i64> {
        self.open.lowest(user)
    }

    fn close_due(&mut self, closed: &mut Vec<Closed>) {
        if let Some(watermark) = self.watermark.ms().filter(|_| !self.restoring) {
            self.open.close_until(watermark, closed);
        }
    }
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
