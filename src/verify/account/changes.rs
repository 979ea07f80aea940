//! Change events: whether each continues the one before, and what they folded.

use std::collections::BTreeMap;
use std::hash::BuildHasher as _;

use super::{Account, Fold};
use crate::checkpoint::OffsetSet;
use crate::codec::{self, Origin, proto};
use crate::engine::Positions;
use crate::event::Record;
use crate::text::visible;
use crate::verify::report::Kind;
use crate::verify::users::Id;

impl Account {
    pub(in crate::verify) fn change(&mut self, place: Origin<'_>, record: &Record) {
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
    fn version(&mut self, place: Origin<'_>, id: Id, change: &proto::ProfileChange) {
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
    fn sources(&mut self, place: Origin<'_>, id: Id, change: &proto::ProfileChange) {
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
}

fn shown(change: &proto::ProfileChange) -> String {
    format!("{} version {}", visible(&change.user_id), change.version)
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
