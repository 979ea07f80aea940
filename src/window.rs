//! Event-time windows of one input partition: which events are folded together, and when. Pure: no I/O, no clock of its own.

use std::time::Duration;

use crate::event::Event;

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
    pub user: Box<str>,
    /// The events, by event time, then offset.
    pub events: Vec<Event>,
    /// Why it closed.
    pub reason: CloseReason,
    /// The lowest offset of this user that is still open in other windows when this one closed; `None`: none is.
    pub lowest_open: Option<i64>,
}
