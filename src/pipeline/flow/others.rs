//! Of an input that is read to its end: the partitions that are not this instance's. The end is reached when what these
//! held at the start is folded as well, by whomever: a group leaves the partitions of a member that died where they are
//! until its session is over, and whoever ended meanwhile would leave their events to nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::{Bounds, Error};
use super::Flow;
use crate::source;

/// How long the brokers may take for an answer.
const WAIT: Duration = Duration::from_secs(5);
/// Between two questions.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Between two words of what is waited for.
const SAY_EVERY: Duration = Duration::from_secs(10);

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
    asked: Option<Instant>,
    said: Option<Instant>,
}

impl Others {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            folded: BTreeSet::new(),
            asking: JoinSet::new(),
            asked: None,
            said: None,
        }
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
    /// The partitions of a bounded input that are not at work here, and not known to be folded.
    fn left_to_others(&self) -> BTreeMap<i32, (i64, i64)> {
        let Others { bounds, folded, .. } = &self.others;
        bounds
            .iter()
            .filter(|(number, _)| !self.partitions.contains_key(number) && !folded.contains(number))
            .map(|(&number, &bounds)| (number, bounds))
            .collect()
    }

    /// Whether others have folded all that is not this instance's.
    pub(super) fn others_are_done(&self) -> bool {
        self.left_to_others().is_empty()
    }

    /// Asks what the others have folded, where this instance has nothing else to do.
    pub(super) fn ask_for_others(&mut self) {
        let soon = |at: Instant| at.elapsed() < ASK_EVERY;
        if !self.idle() || self.others.asks() || self.others.asked.is_some_and(soon) {
            return;
        }
        let left = self.left_to_others();
        if left.is_empty() {
            return;
        }
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
            for (number, (begin, end)) in left {
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
