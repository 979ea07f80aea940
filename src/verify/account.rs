//! The account of every record, without Kafka: records go in topic by topic, findings come out.
//!
//! The order in which they are to be given: the group's offsets, checkpoints, changes, profiles, changes again (what came
//! meanwhile), dead letters, input. limn writes what belongs together in one transaction, so whatever is read of one topic is
//! there when another is read behind it; that is what makes an account of a running instance possible.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use super::fates::Fates;
use super::report::{Kind, Report};
use super::users::{Id, State, User, Users};
use crate::checkpoint::OffsetSet;
use crate::codec::{self, Decoder, Reason, proto};
use crate::engine::Positions;
use crate::event::Record;
use crate::text::visible;

/// Where a record stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    pub(super) offset: i64,
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            topic,
            partition,
            offset,
        } = self;
        write!(f, "{topic}[{partition}]@{offset}")
    }
}

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

    pub(super) fn checkpoint(&mut self, place: Place<'_>, record: &Record) {
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

    pub(super) fn change(&mut self, place: Place<'_>, record: &Record) {
        self.report.changes += 1;
        let change = match record.value.as_deref().map(codec::decode_change) {
            Some(Ok(change)) => change,
            Some(Err(error)) => return self.unreadable(place, &error),
            None => return self.unreadable(place, &"it has no value"),
        };
        if record.key.as_deref() != Some(change.user_id.as_bytes()) {
            self.report.find(Kind::Misplaced, || {
                format!("{place}: the key is not its user {}", shown(&change))
            });
        }
        let id = self.users.id(&change.user_id);
        self.version(place, id, &change);
        self.sources(place, id, &change);
    }

    /// Whether the change follows the one before.
    fn version(&mut self, place: Place<'_>, id: Id, change: &proto::ProfileChange) {
        let report = &mut self.report;
        let before = self.hasher.hash_one(change.before.as_str());
        let user = self.users.get_mut(id);
        let anew = change.version == 1 && change.before.is_empty() && user.last().is_some();
        if anew {
            // Erased, or written twice: how many tombstones there are tells in the end.
            user.restart();
        }
        match user.last() {
            None if change.version == 1 => {
                if !change.before.is_empty() {
                    report.find(Kind::Before, || {
                        format!("{place}: {} has a text before version 1", shown(change))
                    });
                }
            }
            None if self.rules.changes_cut => {}
            None => report.find(Kind::VersionGap, || {
                format!("{place}: the first of {}", shown(change))
            }),
            Some((last, _)) if change.version <= last => {
                report.find(Kind::VersionRepeated, || {
                    format!("{place}: {} behind version {last}", shown(change))
                });
                return;
            }
            Some((last, _)) if change.version > last + 1 => {
                report.find(Kind::VersionGap, || {
                    format!("{place}: {} behind version {last}", shown(change))
                });
            }
            Some((last, hash)) if hash != before => report.find(Kind::Before, || {
                format!(
                    "{place}: {} begins with another text than version {last} ended with",
                    shown(change)
                )
            }),
            Some(_) => {}
        }
        if change.version.checked_sub(1) != Some(change.previous_version) {
            report.find(Kind::PreviousVersion, || {
                format!(
                    "{place}: {} says it follows version {}",
                    shown(change),
                    change.previous_version
                )
            });
        }
        let after = self.hasher.hash_one(change.after.as_str());
        user.push(change.version, after);
    }

    /// Which events the change folded.
    fn sources(&mut self, place: Place<'_>, id: Id, change: &proto::ProfileChange) {
        let late = change.window.as_ref().is_some_and(|w| w.late_events > 0);
        let mut folded: BTreeMap<i32, OffsetSet> = BTreeMap::new();
        for source in &change.sources {
            let offsets = match codec::offsets("change event", &source.offsets) {
                Ok(offsets) => offsets,
                Err(error) => return self.unreadable(place, &error),
            };
            if source.topic != self.rules.topic {
                let count = offsets.runs().map(|(first, end)| first.abs_diff(end));
                self.report.foreign += count.sum::<u64>();
                continue;
            }
            let partition = self.partition(source.partition);
            for (first, end) in offsets.runs() {
                partition.folds.push(Fold {
                    first,
                    end,
                    user: id,
                    version: change.version,
                    late,
                    met: 0,
                });
                let all = folded.entry(source.partition).or_default();
                all.insert_run(first, end);
            }
        }
        let scripted = change.model.as_ref().is_some_and(|m| m.name == "scripted");
        if scripted && let Err(what) = listed(change, folded) {
            self.report.find(Kind::Summary, || {
                format!("{place}: {}: {what}", shown(change))
            });
        }
    }

    pub(super) fn profile(&mut self, place: Place<'_>, record: &Record) {
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

    pub(super) fn dead_letter(&mut self, place: Place<'_>, record: &Record) {
        let letter = match Letter::read(record) {
            Ok(letter) => letter,
            Err(what) => return self.unreadable(place, &what),
        };
        if letter.topic != self.rules.topic {
            self.report.foreign += 1;
            return;
        }
        if letter.partition != place.partition {
            self.report.find(Kind::Misplaced, || {
                format!("{place}: of input partition {}", letter.partition)
            });
        }
        let hash = self.hasher.hash_one((&record.key, &record.value));
        self.partition(letter.partition).dead.push(Dead {
            offset: letter.offset,
            reason: letter.reason,
            hash: (!letter.cut).then_some(hash),
            met: false,
        });
    }

    /// A partition of the input comes now; `low` is its oldest offset.
    pub(super) fn input_begins(&mut self, number: i32, low: i64) {
        let partition = self.partitions.entry(number).or_default();
        partition.low = low;
        partition.folds.sort_by_key(|fold| fold.first);
        partition.dead.sort_by_key(|dead| dead.offset);
        for pair in partition.dead.windows(2) {
            if pair[0].offset == pair[1].offset {
                self.report.find(Kind::DeadLetteredTwice, || {
                    format!("{}[{number}]@{}", self.rules.topic, pair[0].offset)
                });
            }
        }
    }

    /// The records of a partition's input come in the order of their offsets.
    pub(super) fn input(&mut self, place: Place<'_>, timestamp_ms: Option<i64>, record: &Record) {
        let Self {
            rules,
            report,
            users,
            partitions,
            hasher,
        } = self;
        let (number, offset) = (place.partition, place.offset);
        let partition = partitions.entry(number).or_default();
        report.events += 1;

        let folds = &mut partition.folds;
        while folds
            .get(partition.fold)
            .is_some_and(|fold| fold.first <= offset)
        {
            partition.open.push(partition.fold);
            partition.fold += 1;
        }
        partition.open.retain(|&at| folds[at].end > offset);
        for &at in &partition.open {
            folds[at].met += 1;
        }
        let letters = &mut partition.dead;
        while letters
            .get(partition.letter)
            .is_some_and(|dead| dead.offset < offset)
        {
            partition.letter += 1;
        }
        let letter = letters
            .get_mut(partition.letter)
            .filter(|dead| dead.offset == offset);

        let decoded = rules.decoder.decode(record, timestamp_ms).ok();
        let name = |id| {
            let user: &User = users.get(id);
            visible(&user.name)
        };
        let versions = |open: &[usize], folds: &[Fold]| -> String {
            let one =
                |&at: &usize| format!("{} version {}", name(folds[at].user), folds[at].version);
            open.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        if partition.open.len() > 1 {
            report.find(Kind::FoldedTwice, || {
                format!("{place}: {}", versions(&partition.open, folds))
            });
        }
        if let Some(dead) = letter {
            dead.met = true;
            if !partition.open.is_empty() {
                report.find(Kind::FoldedAndDeadLettered, || {
                    let reason = dead.reason.name();
                    let folded = versions(&partition.open, folds);
                    format!("{place}: {folded}, and dead-lettered {reason}")
                });
            }
            if dead
                .hash
                .is_some_and(|hash| hash != hasher.hash_one((&record.key, &record.value)))
            {
                report.find(Kind::DeadLetter, || {
                    format!("{place}: its dead letter has another key or value")
                });
            }
            if judged(dead.reason) && partition.fates.accepted(offset) {
                report.find(Kind::Fate, || {
                    let reason = dead.reason.name();
                    format!("{place}: accepted by a checkpoint, and dead-lettered {reason}")
                });
            }
            report.dead_lettered += 1;
            return;
        }
        let Some(&at) = partition.open.first() else {
            let user = decoded.and_then(|decoded| users.known(&decoded.user));
            let marked = user.is_some_and(|id| marks(users.get(id), number, offset));
            let before = partition.fates.begins().is_none_or(|begin| offset < begin);
            if partition
                .committed
                .is_none_or(|committed| offset >= committed)
            {
                report.waiting += 1;
                if rules.drained {
                    report.find(Kind::NeverFolded, || place.to_string());
                }
                if marked {
                    report.find(Kind::Marker, || {
                        format!("{place}: in its user's fold marker, and not folded")
                    });
                }
            } else if marked && rules.changes_cut
                || rules.dead_letters_cut
                || rules.latest && before
            {
                report.untold += 1;
            } else {
                report.find(Kind::CommittedAboveUnfolded, || {
                    let committed = partition.committed.unwrap_or_default();
                    format!("{place}: the group has committed {committed}")
                });
            }
            return;
        };
        let fold = &partition.folds[at];
        report.folded += 1;
        match decoded {
            Some(decoded) if users.known(&decoded.user) == Some(fold.user) => {
                let user = users.get_mut(fold.user);
                let marker = user.state.as_ref().filter(|s| s.version >= fold.version);
                if marker.is_some_and(|s| s.marker.is_some()) && !marks(user, number, offset) {
                    report.find(Kind::Marker, || {
                        let (name, version) = (visible(&user.name), fold.version);
                        format!("{place}: folded by {name} version {version}, and not in the fold marker")
                    });
                }
                // In another life of the user the versions were others.
                if user.restarts == 0 && !fold.late && !user.in_order(decoded.time_ms, fold.version)
                {
                    report.find(Kind::OutOfOrder, || {
                        let (name, version) = (visible(&user.name), fold.version);
                        format!("{place}: folded by {name} version {version}, behind what was read and happened later")
                    });
                }
            }
            decoded => report.find(Kind::WrongUser, || {
                let whose = decoded.map_or_else(|| "no user".to_owned(), |d| visible(&d.user));
                let (name, version) = (visible(&users.get(fold.user).name), fold.version);
                format!("{place}: an event of {whose}, folded by {name} version {version}")
            }),
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

    fn unreadable(&mut self, place: Place<'_>, what: &dyn std::fmt::Display) {
        self.report
            .find(Kind::Unreadable, || format!("{place}: {what}"));
    }
}

fn shown(change: &proto::ProfileChange) -> String {
    format!("{} version {}", visible(&change.user_id), change.version)
}

/// Whether the user's last fold marker has this offset.
fn marks(user: &User, partition: i32, offset: i64) -> bool {
    let marker = user.state.as_ref().and_then(|s| s.marker.as_ref());
    marker.is_some_and(|(number, marker)| *number == partition && marker.contains(offset))
}

/// Whether this is decided when an event is read, once and for all; else it is found out when it is folded.
fn judged(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::Template | Reason::OverBudget | Reason::Refused
    )
}

/// Whether a scripted summary lists what the one before did, and what was folded now.
fn listed(
    change: &proto::ProfileChange,
    folded: BTreeMap<i32, OffsetSet>,
) -> Result<(), &'static str> {
    let before = match change.before.as_str() {
        "" => Positions::default(),
        text => Positions::parse(text).ok_or("the text before lists no positions")?,
    };
    let after = Positions::parse(&change.after).ok_or("the text lists no positions")?;
    if !after.repeated.is_empty() {
        return Err("the text says that events were folded twice");
    }
    let mut expected = before.folded;
    for (partition, offsets) in folded {
        let all = expected.entry(partition).or_default();
        offsets
            .runs()
            .for_each(|(first, end)| all.insert_run(first, end));
    }
    if expected == after.folded {
        Ok(())
    } else {
        Err("the text lists other events than those folded so far")
    }
}

/// What a dead letter says of itself.
struct Letter<'a> {
    topic: &'a str,
    partition: i32,
    offset: i64,
    reason: Reason,
    cut: bool,
}

impl<'a> Letter<'a> {
    fn read(record: &'a Record) -> Result<Self, String> {
        // The last of a name is of this rejection: the record may have been a dead letter before.
        let header = |wanted: &str| {
            let at = record
                .headers
                .iter()
                .rposition(|(name, _)| &**name == wanted);
            let at = at.ok_or_else(|| format!("it has no header {wanted}"))?;
            let text = record.headers[at].1.as_deref().map(std::str::from_utf8);
            match text {
                Some(Ok(text)) => Ok((at, text)),
                _ => Err(format!("its header {wanted} is no text")),
            }
        };
        let number = |wanted: &str| {
            let (_, text) = header(wanted)?;
            let number = text.parse::<i64>();
            number.map_err(|_| format!("its header {wanted} is no number"))
        };
        let (_, reason) = header("limn-reason")?;
        let (last, _) = header("limn-detail")?;
        let mut marks = record.headers[last..].iter();
        Ok(Self {
            topic: header("limn-topic")?.1,
            partition: i32::try_from(number("limn-partition")?)
                .map_err(|_| "its header limn-partition is no partition".to_owned())?,
            offset: number("limn-offset")?,
            reason: Reason::ALL
                .into_iter()
                .find(|known| known.name() == reason)
                .ok_or_else(|| format!("its reason {} is not known", visible(reason)))?,
            cut: marks.any(|(name, _)| name.starts_with("limn-truncated")),
        })
    }
}
