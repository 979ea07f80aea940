//! Event-time windows of one input partition: which events are folded together, and when. Pure: no I/O, no clock of its own.

mod assign;
mod bag;
mod queue;
#[cfg(test)]
mod tests;
mod users;
mod watermark;

use std::sync::Arc;
use std::time::Duration;

use crate::event::Event;
pub use bag::{Bag, View};
use users::Users;
use watermark::{Steady, Watermark};

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
    /// As long as the next event follows before `gap` is over.
    Session {
        /// A pause of this length ends a session.
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
    /// It held the restart offset back, and the checkpoint had grown too large; or it held the fold marker of its user back, which had.
    Checkpoint,
}

impl CloseReason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::EventTime,
        Self::Events,
        Self::Tokens,
        Self::Age,
        Self::Memory,
        Self::EndOfInput,
        Self::Order,
        Self::Checkpoint,
    ];

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
            Self::Checkpoint => "checkpoint",
        }
    }
}

/// A closed window: events of one user to be folded together, in the order in which they are folded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The user.
    pub user: Box<str>,
    /// The events, by event time, then offset.
    pub events: Bag,
    /// Why it closed.
    pub reason: CloseReason,
    /// The lowest offset of this user that is still open in other windows when this one closed; `None`: none is.
    pub lowest_open: Option<i64>,
}

impl Closed {
    /// The memory that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.user.len() + self.events.bytes()
    }
}

/// What becomes of an event that was just read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// At the watermark or ahead of it.
    OnTime,
    /// Behind the watermark, within the allowed lateness: it is folded, marked late.
    Late,
    /// Too far behind the watermark to be folded.
    TooLate {
        /// The watermark it was judged against.
        watermark_ms: i64,
    },
    /// Too far ahead of the wall clock to be folded.
    Future {
        /// The highest event time that would have been accepted.
        limit_ms: i64,
    },
}

/// The open windows of one input partition.
///
/// An event costs the logarithm of the number of users with open windows, and a scan of its user's windows when one closes.
/// Users without open windows are forgotten. Any event time and any clock reading is taken without a panic.
#[derive(Debug, Clone)]
pub struct Windows {
    allowed_lateness: i64,
    max_future_skew: i64,
    watermark: Watermark,
    steady: Steady,
    restoring: bool,
    users: Users,
}

impl Windows {
    /// No windows yet. `watermark_ms` is the restored watermark; `restoring` holds event-time closing back until
    /// [`Windows::restored`], because an event that is read again may belong to a window whose end is already behind it.
    #[must_use]
    pub fn new(config: Arc<Config>, watermark_ms: Option<i64>, restoring: bool) -> Self {
        Self {
            allowed_lateness: millis(config.allowed_lateness),
            max_future_skew: millis(config.max_future_skew),
            watermark: Watermark::new(
                watermark_ms,
                millis(config.out_of_orderness),
                config.idle_timeout.map(millis),
            ),
            steady: Steady::default(),
            restoring,
            users: Users::new(&config),
        }
    }

    /// Judges a new event against the watermark and the wall clock: before it is inserted, and never for an event that is
    /// read again, whose fate is decided.
    #[must_use]
    pub fn judge(&self, time_ms: i64, now_ms: i64) -> Fate {
        let limit_ms = now_ms.saturating_add(self.max_future_skew);
        if time_ms > limit_ms {
            return Fate::Future { limit_ms };
        }
        match self.watermark.current() {
            Some(watermark_ms) if time_ms < watermark_ms.saturating_sub(self.allowed_lateness) => {
                Fate::TooLate { watermark_ms }
            }
            Some(watermark_ms) if time_ms < watermark_ms => Fate::Late,
            _ => Fate::OnTime,
        }
    }

    /// Puts an accepted event in, moves the watermark on, and pushes the windows that close onto `closed`.
    ///
    /// A late event (`event.late`) takes part as if its time were the watermark. An event that would bring a window over
    /// `max_tokens` closes that window first and is then placed again; its offset is not among the `lowest_open` of what
    /// closes for it, being higher than all of them.
    pub fn insert(&mut self, user: &str, event: Event, now_ms: i64, closed: &mut Vec<Closed>) {
        let opened = self.steady.advance(now_ms);
        self.watermark.not_at_end();
        let time_ms = event.time_ms;
        let at = match self.watermark.current() {
            Some(watermark) if event.late => time_ms.max(watermark),
            _ => time_ms,
        };
        self.users.insert(user, event, at, opened, closed);
        self.watermark.observe(time_ms);
        self.close_due(closed);
    }

    /// The partition's end was seen: idleness begins, unless it has begun.
    pub fn at_end(&mut self, now_ms: i64) {
        let steady = self.steady.advance(now_ms);
        self.watermark.at_end(steady);
    }

    /// The partition is paused, or more of it was read: idleness ends.
    pub fn not_at_end(&mut self) {
        self.watermark.not_at_end();
    }

    /// The wall clock went on: closes what is over age, and what the watermark of an idle partition reaches.
    pub fn tick(&mut self, now_ms: i64, closed: &mut Vec<Closed>) {
        let steady = self.steady.advance(now_ms);
        self.watermark.tick(steady);
        self.close_due(closed);
        self.users.close_aged(steady, closed);
    }

    /// Whether closing by event time is held back until [`Windows::restored`].
    #[must_use]
    pub fn restoring(&self) -> bool {
        self.restoring
    }

    /// Everything that had to be read again was: closing by event time begins.
    pub fn restored(&mut self, now_ms: i64, closed: &mut Vec<Closed>) {
        self.restoring = false;
        self.tick(now_ms, closed);
    }

    /// Closes every window: a bounded input ended, or the partition is drained.
    pub fn close_all(&mut self, reason: CloseReason, closed: &mut Vec<Closed>) {
        self.users.close_all(reason, closed);
    }

    /// Closes the windows with the lowest offsets until [`Windows::open_bytes`] is at most `bytes`.
    pub fn shrink_to(&mut self, bytes: usize, closed: &mut Vec<Closed>) {
        let (any, memory) = (i64::MAX, CloseReason::Memory);
        while self.users.bytes() > bytes && self.users.close_oldest(any, memory, closed) {}
    }

    /// Closes every window that holds an offset below this one.
    pub fn close_below(&mut self, offset: i64, closed: &mut Vec<Closed>) {
        let checkpoint = CloseReason::Checkpoint;
        while self.users.close_oldest(offset, checkpoint, closed) {}
    }

    /// Closes every window of this user that holds an offset below this one.
    pub fn close_of_user_below(&mut self, user: &str, offset: i64, closed: &mut Vec<Closed>) {
        (self.users).close_of_user(user, offset, CloseReason::Checkpoint, closed);
    }

    /// The event time up to which the partition is believed complete; `None` before the first event.
    #[must_use]
    pub fn watermark_ms(&self) -> Option<i64> {
        self.watermark.current()
    }

    /// How many windows are open.
    #[must_use]
    pub fn open_windows(&self) -> usize {
        self.users.windows()
    }

    /// The memory of the open windows: the records, packed, and an estimate of the bookkeeping.
    #[must_use]
    pub fn open_bytes(&self) -> usize {
        self.users.bytes()
    }

    /// The lowest offset of a user that is in an open window.
    #[must_use]
    pub fn lowest_open(&self, user: &str) -> Option<i64> {
        self.users.lowest(user)
    }

    /// The wall-clock time from which on [`Windows::tick`] may have something to close; `None`: not before another event.
    #[must_use]
    pub fn next_wakeup_ms(&self, now_ms: i64) -> Option<i64> {
        let aged = self.users.next_aged();
        let due = (self.users.next_due())
            .filter(|_| !self.restoring)
            .and_then(|end| self.watermark.idle_reaches(end));
        let steady = aged.into_iter().chain(due).min()?;
        let wait = steady.saturating_sub(self.steady.peek(now_ms)).max(0);
        Some(now_ms.saturating_add(wait))
    }

    fn close_due(&mut self, closed: &mut Vec<Closed>) {
        if !self.restoring
            && let Some(watermark) = self.watermark.current()
        {
            self.users.close_due(watermark, closed);
        }
    }
}

/// A duration in milliseconds; one that is too long to count is the longest.
fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
