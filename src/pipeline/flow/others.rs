//! Of an input that is read to its end: the partitions that are not this instance's. The end is reached when what these
//! held at the start is folded as well, by whomever: a group leaves the partitions of a member that died where they are
//! until its session is over, and whoever ended meanwhile would leave their events to nobody.
//!
//! A member that lives folds what is its own, in its own time: windows may stay open for as long as they like. So it is not
//! waited for any longer than one that was dead when this instance came to its end could have kept its partitions, and this
//! instance's do not rest for longer. Who has no partition, and was not told so, keeps nobody waiting: it waits for the others.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
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
/// A session of the group where the configuration says nothing: librdkafka's, and the brokers' with the new protocol.
const SESSION: Duration = Duration::from_secs(45);
/// What the group may take behind the end of a session to give partitions to others.
const REBALANCE: Duration = Duration::from_secs(15);
/// When a member that was told of no partition takes it that there is none for it: with the new group protocol it is told
/// nothing then.
const UNTOLD: Duration = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 30 });

/// Those of the partitions asked for whose bounds the group has committed.
type Answer = Result<Vec<i32>, source::Error>;

pub(super) struct Others {
    /// Where each partition began and ended at the start.
    bounds: Bounds,
    /// Those of which it is known that they are folded: offsets are not taken back.
    folded: BTreeSet<i32>,
    /// The question under way, one at the most.
    pub(super) asking: JoinSet<Answer>,
    begun: Instant,
    asked: Option<Instant>,
    said: Option<Instant>,
    /// Since when this instance has nothing else to do.
    since: Option<Instant>,
    patience: Duration,
}

impl Others {
    pub(super) fn new(bounds: Bounds, config: &source::Config) -> Self {
        let properties = &config.properties;
        let session = properties.iter().rfind(|(n, _)| n == "session.timeout.ms");
        let session = session.and_then(|(_, ms)| ms.parse().ok());
        Self {
            bounds,
            folded: BTreeSet::new(),
            asking: JoinSet::new(),
            begun: Instant::now(),
            asked: None,
            said: None,
            since: None,
            // The offsets of the dead one's open transaction are waited for, too, before its partitions are given.
            patience: session
                .map_or(SESSION, Duration::from_millis)
                .max(config.assign_timeout)
                + REBALANCE,
        }
    }

    /// The group has changed: whom it took for alive was not looked at since.
    pub(super) fn wait_anew(&mut self) {
        self.since = None;
    }

    /// Whether this instance was told of no partition for so long that there is none for it.
    pub(super) fn have_all(&self) -> bool {
        self.begun.elapsed() >= UNTOLD
    }
}

impl Flow<'_> {
    /// What of the input others had at the start that is not known to be folded.
    fn left(&self) -> impl Iterator<Item = i32> + '_ {
        let numbers = self.others.bounds.keys().copied();
        numbers.filter(|number| {
            !self.partitions.contains_key(number) && !self.others.folded.contains(number)
        })
    }

    /// Whether nothing is left that this instance could still be given: others have folded the rest, or they live. Whom the
    /// group has told of no share yet does not know that they do.
    pub(super) fn others_are_done(&self) -> bool {
        let Others {
            since, patience, ..
        } = &self.others;
        let waited = since.is_some_and(|since| since.elapsed() >= *patience);
        self.joined && waited || self.left().next().is_none()
    }

    /// What others have folded, or why that cannot be told.
    pub(super) fn answered(&mut self, answer: Result<Answer, JoinError>) -> Result<(), Error> {
        let answer = answer.map_err(|e| Error::Thread(e.to_string()))?;
        let say = self.others.said.is_none_or(|at| at.elapsed() >= SAY_EVERY);
        match answer {
            Ok(folded) => {
                self.others.folded.extend(folded);
                let left: Vec<i32> = self.left().collect();
                if !say || left.is_empty() {
                    return Ok(());
                }
                tracing::info!(
                    partitions = ?left,
                    "waiting for partitions that other members of the group have, or had: not all that they held at the start is folded"
                );
            }
            // Whether the brokers are away for good the source tells.
            Err(error) if say => {
                tracing::warn!(%error, "what other members of the group have folded cannot be told; still trying");
            }
            Err(_) => return Ok(()),
        }
        self.others.said = Some(Instant::now());
        Ok(())
    }

    /// Says at the end what is not folded.
    pub(super) fn tell_what_is_left(&self) {
        let left: Vec<i32> = self.left().collect();
        if !left.is_empty() {
            tracing::warn!(
                partitions = ?left,
                "the rest is folded; these are other members', and what they held at the start is not folded yet"
            );
        }
    }

    /// Asks what the others have folded, where this instance has nothing else to do.
    pub(super) fn look_at_others(&mut self) {
        if !self.idle() {
            self.others.since = None;
            return;
        }
        let soon = |at: Instant| at.elapsed() < ASK_EVERY;
        if !self.others.asking.is_empty() || self.others.asked.is_some_and(soon) {
            return;
        }
        let bounds = &self.others.bounds;
        let left: Vec<(i32, (i64, i64))> = self.left().map(|p| (p, bounds[&p])).collect();
        if left.is_empty() {
            return;
        }
        let now = Instant::now();
        self.others.asked = Some(now);
        self.others.since.get_or_insert(now);
        let (config, count) = (self.config.source.clone(), self.count);
        self.others.asking.spawn_blocking(move || {
            let source::Config {
                properties,
                topic,
                group,
                ..
            } = &config;
            let committed = source::committed(properties, group, topic, count, WAIT)?;
            // Whoever reads a partition commits behind what it does not see there, too: markers of transactions.
            let folded = left
                .into_iter()
                .filter(|(number, (begin, end))| committed.get(number).unwrap_or(begin) >= end);
            Ok(folded.map(|(number, _)| number).collect())
        });
    }
}
