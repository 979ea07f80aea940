//! Of an input that is read to its end: the partitions that are not this instance's. The end is reached when what these
//! held at the start is folded as well, by whomever: a group leaves the partitions of a member that died where they are
//! until its session is over, and whoever ended meanwhile would leave their events to nobody.
//!
//! A member that lives may take its time, as windows that are open stay open for as long as they like. So an instance that
//! waits for it reads on behind its own bounds, as any member does.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::{Bounds, Error};
use super::Flow;
use crate::source;

/// How long the brokers may take for an answer.
const WAIT: Duration = Duration::from_secs(5);
/// Between two questions.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// Between two words of what is waited for.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// How long an instance rests at its bounds while others are not at theirs. Short in a debug build, so that the tests see
/// what comes behind.
const REST: Duration = Duration::from_secs(if cfg!(debug_assertions) { 1 } else { 10 });
/// When a member that was told of no partition takes it that there is none for it: with the new group protocol it is told
/// nothing then.
const UNTOLD: Duration = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 30 });

/// Of the partitions asked for, those whose bounds the group has committed, and the others.
#[derive(Default)]
struct Answer {
    folded: Vec<i32>,
    left: Vec<i32>,
}

pub(super) struct Others {
    /// Where each partition began and ended at the start.
    bounds: Bounds,
    /// Those of which it is known that they are folded: offsets are not taken back.
    folded: BTreeSet<i32>,
    /// The question under way, one at the most.
    asking: JoinSet<Result<Answer, source::Error>>,
    begun: Instant,
    asked: Option<Instant>,
    said: Option<Instant>,
    /// Since when this instance has nothing else to do.
    since: Option<Instant>,
}

impl Others {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            folded: BTreeSet::new(),
            asking: JoinSet::new(),
            begun: Instant::now(),
            asked: None,
            said: None,
            since: None,
        }
    }

    /// Whether this instance has waited for its share for so long that there is none.
    pub(super) fn are_all_there_is(&self) -> bool {
        self.begun.elapsed() >= UNTOLD
    }

    /// Whether they are waited for, and this instance goes on meanwhile as a member of the group like any other. It was at its
    /// bounds by then; now it has reached the end where the group has committed all bounds, its own among them.
    pub(super) fn are_waited_for(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= REST)
    }

    /// Whether there is a question that [`Others::answer`] can wait for.
    pub(super) fn asks(&self) -> bool {
        !self.asking.is_empty()
    }

    /// Waits for the answer to the question under way. Cancel safe.
    pub(super) async fn answer(&mut self) -> Result<(), Error> {
        let Some(answer) = self.asking.join_next().await else {
            return Ok(());
        };
        let answer = answer.map_err(|e| Error::Thread(e.to_string()))?;
        let say = self.said.is_none_or(|at| at.elapsed() >= SAY_EVERY);
        match answer {
            Ok(Answer { folded, left }) => {
                if say && !left.is_empty() {
                    self.said = Some(Instant::now());
                    tracing::info!(
                        partitions = ?left,
                        "waiting for partitions that other members of the group have, or had: not all that they held at the start is folded"
                    );
                }
                self.folded.extend(folded);
            }
            // Whether the brokers are away for good the source tells.
            Err(error) if say => {
                self.said = Some(Instant::now());
                tracing::warn!(%error, "what other members of the group have folded cannot be told; still trying");
            }
            Err(_) => {}
        }
        Ok(())
    }
}

impl Flow<'_> {
    /// Whether this partition of a bounded input is this instance's to fold, or known to be folded.
    fn is_taken_care_of(&self, number: i32) -> bool {
        let here = self.partitions.contains_key(&number) && !self.others.are_waited_for();
        here || self.others.folded.contains(&number)
    }

    /// Whether others have folded all that is not this instance's.
    pub(super) fn others_are_done(&self) -> bool {
        let mut numbers = self.others.bounds.keys();
        numbers.all(|&number| self.is_taken_care_of(number))
    }

    /// What is to be done about others where this instance is at its own end: asks what they have folded, goes on beside
    /// them, and ends with them.
    pub(super) fn look_at_others(&mut self) {
        if self.drain_until.is_some() || !(self.others.are_waited_for() || self.idle()) {
            return;
        }
        if self.others_are_done() {
            if self.others.are_waited_for() {
                // What came behind the bounds is the others' again.
                self.drain();
            }
            return;
        }
        self.others.since.get_or_insert_with(Instant::now);
        if self.others.are_waited_for() {
            self.go_on();
        }
        self.ask();
    }

    /// Opens what was read to its bound, is folded and committed: nobody's events wait because this instance waits.
    fn go_on(&mut self) {
        if !self.pending.is_empty() || self.sink.busy() {
            return;
        }
        let mut opened = Vec::new();
        for (&number, partition) in &mut self.partitions {
            let next = partition.progress.next_offset();
            if partition.ended && partition.committed >= next && partition.bound.take().is_some() {
                opened.push((number, next));
            }
        }
        if !opened.is_empty() {
            self.source.ready(opened);
        }
    }

    fn ask(&mut self) {
        let soon = |at: Instant| at.elapsed() < ASK_EVERY;
        if self.others.asks() || self.others.asked.is_some_and(soon) {
            return;
        }
        let mut wanted = self.others.bounds.clone();
        wanted.retain(|&number, _| !self.is_taken_care_of(number));
        self.others.asked = Some(Instant::now());
        let (config, count) = (self.config.source.clone(), self.count);
        self.others.asking.spawn_blocking(move || {
            let source::Config {
                properties,
                topic,
                group,
                ..
            } = &config;
            let committed = source::committed(properties, group, topic, count, WAIT)?;
            let mut answer = Answer::default();
            for (number, (begin, end)) in wanted {
                // Whoever reads a partition commits behind what it does not see there, too: markers of transactions.
                let folded = *committed.get(&number).unwrap_or(&begin) >= end;
                let of = if folded {
                    &mut answer.folded
                } else {
                    &mut answer.left
                };
                of.push(number);
            }
            Ok(answer)
        });
    }
}
