//! The input: a sweep over its records, which meets what was folded and dead-lettered of each.

use std::hash::BuildHasher as _;

use super::{Account, Fold};
use crate::codec::{Origin, Reason};
use crate::event::Record;
use crate::text::visible;
use crate::verify::report::Kind;
use crate::verify::users::User;

impl Account {
    /// The input begins here now: what is before was there when it was looked at first, and may have been removed before it was read.
    pub(in crate::verify) fn input_removed(&mut self, number: i32, low: i64) {
        let partition = self.partition(number);
        partition.low = partition.low.max(low);
    }

    /// A partition of the input comes now; `low` is its oldest offset.
    pub(in crate::verify) fn input_begins(&mut self, number: i32, low: i64) {
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
    pub(in crate::verify) fn input(
        &mut self,
        place: Origin<'_>,
        timestamp_ms: Option<i64>,
        record: &Record,
    ) {
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
