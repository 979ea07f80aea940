//! `[window]`: which events are folded together, and when.

use std::time::Duration;

use super::reader::Section;
use super::source::{DAY, bytes};
use crate::window::{Config, Kind};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const YEAR: Duration = Duration::from_secs(366 * 86_400);
const CENTURY: Duration = Duration::from_secs(100 * 366 * 86_400);

/// The windows, and the bytes that open ones may hold.
pub fn read(mut window: Section<'_>) -> (Config, usize) {
    let session = window.choice("kind", &[("session", true), ("tumbling", false)]);
    if session {
        window.other_kind(&["size"], "kind = \"tumbling\"");
    } else {
        window.other_kind(&["gap", "max_duration"], "kind = \"session\"");
    }
    let (gap_place, size) = (
        window.place("gap"),
        window.duration("size", 60 * MINUTE, SECOND..=CENTURY),
    );
    let gap = window.duration("gap", 10 * MINUTE, SECOND..=YEAR);
    let max_duration = window.duration("max_duration", 120 * MINUTE, SECOND..=YEAR);
    if session && gap > max_duration {
        window.fault_unshown(
            "gap",
            gap_place,
            "is longer than window.max_duration, so it would never end a session; make it shorter"
                .to_owned(),
        );
    }
    let config = Config {
        kind: if session {
            Kind::Session { gap, max_duration }
        } else {
            Kind::Tumbling { size }
        },
        max_events: bytes(window.integer("max_events", 50u64, 1..=100_000)),
        max_tokens: window.integer_or_off("max_tokens", 16u32..=1_000_000),
        max_age: window.duration("max_age", 60 * MINUTE, SECOND..=YEAR),
        out_of_orderness: window.duration("out_of_orderness", 10 * SECOND, Duration::ZERO..=YEAR),
        allowed_lateness: window.duration(
            "allowed_lateness",
            10 * MINUTE,
            Duration::ZERO..=CENTURY,
        ),
        idle_timeout: window.duration_or_off("idle_timeout", Some(MINUTE), SECOND..=YEAR),
        max_future_skew: window.duration("max_future_skew", 5 * MINUTE, Duration::ZERO..=30 * DAY),
    };
    let open = window.size("open_bytes", 256 << 20, (1 << 20)..=(1 << 40));
    (config, bytes(open))
}
