//! The watermark of one partition, and the steady time that ages and idleness are measured in.

/// Wall-clock readings turned into a time that never goes back.
///
/// A reading below the one before adds nothing. What was measured before a backward jump is kept and goes on from there,
/// so nothing that waits for a duration waits longer than that duration after the jump.
#[derive(Debug, Clone, Default)]
pub(super) struct Steady {
    now: i64,
    wall: Option<i64>,
}

impl Steady {
    /// The steady time at this reading, without taking note of it.
    pub(super) fn peek(&self, wall_ms: i64) -> i64 {
        let passed = self
            .wall
            .map_or(0, |wall| wall_ms.saturating_sub(wall).max(0));
        self.now.saturating_add(passed)
    }

    /// Takes note of a reading and says the steady time at it.
    pub(super) fn advance(&mut self, wall_ms: i64) -> i64 {
        self.now = self.peek(wall_ms);
        self.wall = Some(wall_ms);
        self.now
    }
}

/// The event time up to which a partition is believed complete. Never goes back.
#[derive(Debug, Clone)]
pub(super) struct Watermark {
    current: Option<i64>,
    out_of_orderness: i64,
    idle_timeout: Option<i64>,
    idle: Option<Idle>,
}

/// The partition's end was seen and nothing was read since.
#[derive(Debug, Clone, Copy)]
struct Idle {
    /// Steady time at which the end was first seen.
    since: i64,
    /// The watermark at that moment.
    from: Option<i64>,
}

impl Watermark {
    /// Starts at the restored watermark, if there is one.
    pub(super) fn new(
        current: Option<i64>,
        out_of_orderness: i64,
        idle_timeout: Option<i64>,
    ) -> Self {
        Self {
            current,
            out_of_orderness,
            idle_timeout,
            idle: None,
        }
    }

    /// Where it stands; `None` before the first event.
    pub(super) fn current(&self) -> Option<i64> {
        self.current
    }

    /// An event of this time was accepted.
    pub(super) fn observe(&mut self, time_ms: i64) {
        self.raise(time_ms.saturating_sub(self.out_of_orderness));
    }

    /// The end was seen. Seeing it again while idle changes nothing.
    pub(super) fn at_end(&mut self, steady: i64) {
        self.idle.get_or_insert(Idle {
            since: steady,
            from: self.current,
        });
    }

    /// More is there to be read, or reading is paused.
    pub(super) fn not_at_end(&mut self) {
        self.idle = None;
    }

    /// While idle for long enough, the watermark goes on from where it stood as fast as the wall clock does, counted from
    /// the moment the end was seen.
    pub(super) fn tick(&mut self, steady: i64) {
        if let (Some(timeout), Some(Idle { since, from })) = (self.idle_timeout, self.idle)
            && let Some(from) = from
        {
            let elapsed = steady.saturating_sub(since);
            if elapsed >= timeout {
                self.raise(from.saturating_add(elapsed));
            }
        }
    }

    /// The steady time at which idleness alone will have brought the watermark to `end_ms`.
    pub(super) fn idle_reaches(&self, end_ms: i64) -> Option<i64> {
        let Idle { since, from } = self.idle?;
        let wait = end_ms.saturating_sub(from?).max(self.idle_timeout?);
        Some(since.saturating_add(wait))
    }

    fn raise(&mut self, to: i64) {
        self.current = Some(self.current.map_or(to, |wm| wm.max(to)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_behind_the_highest_time_and_never_goes_back() {
        let mut wm = Watermark::new(None, 10, None);
        assert_eq!(wm.current(), None);
        wm.observe(100);
        assert_eq!(wm.current(), Some(90));
        wm.observe(50);
        assert_eq!(wm.current(), Some(90));
        wm.observe(i64::MIN);
        assert_eq!(wm.current(), Some(90));
        let mut restored = Watermark::new(Some(500), 10, None);
        restored.observe(100);
        assert_eq!(restored.current(), Some(500));
    }

    #[test]
    fn idleness_moves_it_by_the_time_since_the_end_was_seen() {
        let mut wm = Watermark::new(Some(1_000), 0, Some(50));
        wm.at_end(200);
        wm.tick(249);
        assert_eq!(wm.current(), Some(1_000));
        wm.at_end(249); // seen again: does not begin anew
        wm.tick(250);
        assert_eq!(wm.current(), Some(1_050));
        wm.tick(270);
        assert_eq!(wm.current(), Some(1_070));
        assert_eq!(wm.idle_reaches(1_100), Some(300));
        assert_eq!(wm.idle_reaches(1_001), Some(250));
        wm.not_at_end();
        wm.tick(900);
        assert_eq!((wm.current(), wm.idle_reaches(1_100)), (Some(1_070), None));
        wm.at_end(900);
        wm.tick(950);
        assert_eq!(wm.current(), Some(1_120));
    }

    #[test]
    fn without_an_event_or_a_timeout_idleness_moves_nothing() {
        let mut none = Watermark::new(None, 0, Some(0));
        none.at_end(0);
        none.tick(1_000);
        assert_eq!(none.current(), None);
        let mut never = Watermark::new(Some(7), 0, None);
        never.at_end(0);
        never.tick(i64::MAX);
        assert_eq!(never.current(), Some(7));
    }

    #[test]
    fn steady_time_ignores_backward_jumps() {
        let mut steady = Steady::default();
        assert_eq!(steady.advance(1_000), 0);
        assert_eq!(steady.peek(1_030), 30);
        assert_eq!(steady.advance(1_020), 20);
        assert_eq!(steady.advance(-5_000), 20);
        assert_eq!(steady.advance(-4_990), 30);
        assert_eq!(steady.advance(i64::MAX), i64::MAX);
        assert_eq!(steady.advance(i64::MIN), i64::MAX);
    }
}
