//! The account of every record, without Kafka: records go in topic by topic, findings come out.
//!
//! The order in which they are to be given: the group's offsets, checkpoints, changes, profiles, changes again (what came
//! meanwhile), dead letters, input. limn writes what belongs together in one transaction, so whatever is read of one topic is
//! there when another is read behind it; that is what makes an account of a running instance possible.

mod changes;
mod input;
mod letters;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use super::fates::Fates;
use super::report::{Kind, Report};
use super::users::{Id, State, Users};
use crate::codec::{self, Decoder, Origin, Reason};
use crate::event::Record;
use crate::text::visible;

/// What the account is to know beside the records.
pub(super) struct Rules {
    /// The input topic.
    pub(super) topic: String,
    pub(super) decoder: Decoder,
    /// Nothing may be left to do.
    pub(super) drained: bool,
    /// The group may have begun anywhere.
    pub(super) latest: bool,
    /// The oldest change events or dead letters are past their retention.
    pub(super) changes_cut: bool,
    pub(super) dead_letters_cut: bool,
}

/// Events that one change event folded: a run of offsets, all of them the user's.
struct Fold {
    first: i64,
    end: i64,
    user: Id,
    version: u64,
    /// The change event has late events: their place in the order is not known.
    late: bool,
    /// How many of the offsets the input has.
    met: i64,
}

struct Dead {
    offset: i64,
    reason: Reason,
    /// Of key and value; `None` where limn cut them to fit.
    hash: Option<u64>,
    met: bool,
}

#[derive(Default)]
struct Partition {
    committed: Option<i64>,
    fates: Fates,
    folds: Vec<Fold>,
    dead: Vec<Dead>,
    /// How far the sweep over the input has come: folds and dead letters before these are behind it.
    fold: usize,
    letter: usize,
    /// Folds that the sweep is in.
    open: Vec<usize>,
    /// The input's oldest offset.
    low: i64,
}

pub(super) struct Account {
    rules: Rules,
    report: Report,
    users: Users,
    partitions: BTreeMap<i32, Partition>,
    hasher: RandomState,
}

impl Account {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            report: Report::default(),
            users: Users::default(),
            partitions: BTreeMap::new(),
            hasher: RandomState::new(),
        }
    }

    pub(super) fn committed(&mut self, partition: i32, offset: i64) {
        self.partition(partition).committed = Some(offset);
    }

    pub(super) fn checkpoint(&mut self, place: Origin<'_>, record: &Record) {
        self.report.checkpoints += 1;
        // A null value is a tombstone.
        let Some(value) = &record.value else { return };
        let checkpoint = match codec::decode_checkpoint(value) {
            Ok(checkpoint) => checkpoint,
            Err(error) => return self.unreadable(place, &error),
        };
        if checkpoint.topic != self.rules.topic {
            return;
        }
        let key = place.partition.to_string();
        if checkpoint.partition != place.partition || record.key.as_deref() != Some(key.as_bytes())
        {
            let of = checkpoint.partition;
            return self.report.find(Kind::Misplaced, || {
                format!("{place}: a checkpoint of partition {of}")
            });
        }
        let partition = self.partitions.entry(place.partition).or_default();
        if let Err(what) = partition.fates.checkpoint(&checkpoint) {
            self.report.find(Kind::Fate, || format!("{place}: {what}"));
        }
    }

    pub(super) fn profile(&mut self, place: Origin<'_>, record: &Record) {
        self.report.profiles += 1;
        let key = record.key.as_deref().map(std::str::from_utf8);
        let Some(Ok(key)) = key else {
            return self.unreadable(place, &"its key is no user");
        };
        let id = self.users.id(key);
        let Some(value) = &record.value else {
            let user = self.users.get_mut(id);
            user.tombstones += 1;
            user.state = None;
            user.ahead.clear();
            return;
        };
        let state = match codec::decode_state(value) {
            Ok(state) => state,
            Err(error) => return self.unreadable(place, &error),
        };
        let marker = state.marker.unwrap_or_default();
        let here = marker.topic == self.rules.topic;
        if state.user_id != key || here && marker.partition != place.partition {
            self.report.find(Kind::Misplaced, || {
                format!(
                    "{place}: version {} of {} from input partition {}",
                    state.version,
                    visible(&state.user_id),
                    marker.partition
                )
            });
            return;
        }
        let marker = match codec::marker(&marker) {
            Ok(read) => here.then_some((marker.partition, read)),
            Err(error) => return self.unreadable(place, &error),
        };
        let (version, hash) = (state.version, self.hasher.hash_one(state.summary.as_str()));
        let user = self.users.get_mut(id);
        let former = user.state.as_ref().map(|s| s.version);
        if former.is_some_and(|former| version <= former) {
            let former = former.unwrap_or_default();
            self.report.find(Kind::Profile, || {
                let name = visible(&user.name);
                format!("{place}: version {version} of {name} behind version {former}")
            });
        }
        user.state = Some(State {
            version,
            hash,
            marker,
        });
        if user.last().is_none_or(|(last, _)| version > last) {
            user.ahead.push((version, hash));
        } else {
            self.states_change(id, version, hash, &|| place.to_string());
        }
    }

    /// Whether the state of a version is what its change event says, as far as that is there.
    fn states_change(&mut self, id: Id, version: u64, hash: u64, place: &dyn Fn() -> String) {
        let user = self.users.get(id);
        let what = match user.hash_of(version) {
            Some(said) if said == hash => return,
            // Of a former life of the user, or past the change events' retention.
            _ if user.restarts > 0 => return,
            None if self.rules.changes_cut && user.first().is_none_or(|first| version < first) => {
                return;
            }
            Some(_) => "is another text than that of its change event",
            None => "has no change event",
        };
        self.report.find(Kind::Profile, || {
            let name = visible(&user.name);
            format!("{}: version {version} of {name} {what}", place())
        });
    }

    /// The profiles topic was read to an end that lies behind every change given so far: each user's last change must be
    /// there.
    pub(super) fn profiles_read(&mut self) {
        for user in self.users.iter_mut() {
            let Some((last, hash)) = user.last() else {
                continue;
            };
            let state = user.state.as_ref();
            let what = match state.map(|s| (s.version, s.hash)) {
                Some((version, _)) if version > last => continue,
                Some((version, text)) if version == last && text == hash => continue,
                Some((version, _)) if version == last => "another text".to_owned(),
                Some((version, _)) => format!("version {version}"),
                None if user.tombstones > 0 => continue,
                None => "nothing".to_owned(),
            };
            self.report.find(Kind::Profile, || {
                let name = visible(&user.name);
                format!("{name}: the last change event is of version {last}, the profiles topic has {what}")
            });
        }
    }

    /// Everything was given.
    pub(super) fn finish(mut self) -> Report {
        let ids = Id::try_from(self.users.len()).unwrap_or(Id::MAX);
        for id in 0..ids {
            for (version, hash) in std::mem::take(&mut self.users.get_mut(id).ahead) {
                self.states_change(id, version, hash, &|| "profiles topic".to_owned());
            }
            let user = self.users.get(id);
            self.report.erased += u64::from(user.tombstones > 0);
            if user.restarts > user.tombstones {
                self.report.find(Kind::VersionRepeated, || {
                    let name = visible(&user.name);
                    format!("{name} begins again at version 1, and no tombstone on the profiles topic says why (it may be compacted away)")
                });
            }
        }
        self.report.users = self.users.len() as u64;
        for (number, partition) in &self.partitions {
            let topic = &self.rules.topic;
            for fold in &partition.folds {
                let there = fold.end - fold.first.max(partition.low);
                if fold.met < there {
                    self.report.find(Kind::NotInInput, || {
                        let (user, last) = (self.users.get(fold.user), fold.end - 1);
                        let (name, version) = (visible(&user.name), fold.version);
                        format!(
                            "{topic}[{number}]@{}-{last}: folded by {name} version {version}, {} of them are no records",
                            fold.first,
                            there - fold.met
                        )
                    });
                }
            }
            // Of two letters of one record the sweep meets the first.
            let mut met = None;
            for dead in &partition.dead {
                if dead.met {
                    met = Some(dead.offset);
                } else if met != Some(dead.offset) && dead.offset >= partition.low {
                    self.report.find(Kind::NotInInput, || {
                        format!("{topic}[{number}]@{}: dead-lettered", dead.offset)
                    });
                }
            }
            if let (Some(committed), Some(restart)) =
                (partition.committed, partition.fates.restart_offset())
                && restart < committed
            {
                self.report.find(Kind::Checkpoint, || {
                    format!("{topic}[{number}]: the group has committed {committed}, its last checkpoint says {restart}")
                });
            }
        }
        self.report
    }

    fn partition(&mut self, number: i32) -> &mut Partition {
        self.partitions.entry(number).or_default()
    }

    fn unreadable(&mut self, place: Origin<'_>, what: &dyn std::fmt::Display) {
        self.report
            .find(Kind::Unreadable, || format!("{place}: {what}"));
    }
}
