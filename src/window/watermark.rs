//! Up to which event time a partition is believed complete.

use super::{Config, ms};

/// One partition's watermark: the highest event time less the allowed disorder; it never goes back.
#[derive(Debug)]
pub(super) struct Watermark {
    out_of_orderness: i64,
    idle_timeout: Option<i64>,
    ms: Option<i64>,
    /// The wall clock last shown, and how long it has run forward: steps back are not counted, so that an age begun
    /// before one is not drawn out by it.
    clock: Option<(i64, i64)>,
    /// Since when, by the running clock, the partition is at its end, and the watermark then.
    end: Option<(i64, Option<i64>)>,
}

impl Watermark {
    pub(super) fn new(config: &Config, start_ms: Option<i64>) -> Self {
        Self {
            out_of_orderness: ms(config.out_of_orderness),
            idle_timeout: config.idle_timeout.map(ms),
            ms: start_ms,
            clock: None,
            end: None,
        }
    }

    pub(super) fn ms(&self) -> Option<i64> {
        self.ms
    }

    /// Shows the wall clock; returns the milliseconds that it has run forward.
    pub(super) fn clock(&mut self, now_ms: i64) -> i64 {
        let ran = match self.clock {
            None => 0,
            Some((last, ran)) => ran.saturating_add(now_ms.saturating_sub(last).max(0)),
        };
        self.clock = Some((now_ms, ran));
        ran
    }

    pub(super) fn observe(&mut self, time_ms: i64) {
        self.raise(time_ms.saturating_sub(self.out_of_orderness));
    }

    pub(super) fn at_end(&mut self, now_ms: i64) {
        let ran = self.clock(now_ms);
        self.end.get_or_insert((ran, self.ms));
    }

    pub(super) fn busy(&mut self) {
        self.end = None;
    }

    /// An idle partition's watermark goes on from where it stood by the time that has passed, so that old data is not
    /// jumped over when the partition holds the past.
    pub(super) fn idle(&mut self) {
        if let (Some(timeout), Some((since, Some(stood))), Some((_, ran))) =
            (self.idle_timeout, self.end, self.clock)
        {
            let passed = ran.saturating_sub(since);
            if passed >= timeout {
                self.raise(stood.saturating_add(passed));
            }
        }
    }

    fn raise(&mut self, to: i64) {
        self.ms = Some(self.ms.map_or(to, |at| at.max(to)));
    }
}
