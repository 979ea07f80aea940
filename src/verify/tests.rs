//! A sound set of topics, and each kind of damage planted in it.

use super::account::{Account, Rules};
use super::{Kind, Report};
use crate::checkpoint::OffsetSet;
use crate::codec::{
    self, Config, Decoder, Format, JsonMapping, Origin, Reason, Rejected, dead_letter, proto,
};
use crate::event::Record;
use crate::profile::Marker;

const TOPIC: &str = "in";

/// One partition: ann's events at 0, 1, 3, 5 and 7, bob's at 2 and 4, and at 6 one that is malformed.
struct World {
    input: Vec<Record>,
    /// So many of these are removed after the verifier has asked where the input begins.
    removed: i64,
    changes: Vec<(Record, proto::ProfileChange)>,
    /// Change events that come while the profiles are read.
    tail: Vec<(Record, proto::ProfileChange)>,
    profiles: Vec<(Record, Option<proto::ProfileState>)>,
    checkpoints: Vec<proto::Checkpoint>,
    dead: Vec<Record>,
    committed: Option<i64>,
    /// The partition that the profiles and the dead letters are read from.
    partition: i32,
    drained: bool,
    latest: bool,
    changes_cut: bool,
    dead_letters_cut: bool,
}

fn keyed(key: &str, value: Option<Vec<u8>>) -> Record {
    Record {
        key: Some(key.to_owned().into()),
        value: value.map(Into::into),
        ..Record::default()
    }
}

fn event(user: &str, time_ms: i64) -> Record {
    let value = format!(r#"{{"user":"{user}","time":{time_ms}}}"#);
    keyed(user, Some(value.into_bytes()))
}

fn set(offsets: &[i64]) -> OffsetSet {
    let mut set = OffsetSet::default();
    offsets.iter().for_each(|&offset| set.insert(offset));
    set
}

fn change(
    user: &str,
    version: u64,
    before: &str,
    after: &str,
    offsets: &[i64],
) -> (Record, proto::ProfileChange) {
    let change = proto::ProfileChange {
        user_id: user.to_owned(),
        version,
        previous_version: version - 1,
        before: before.to_owned(),
        after: after.to_owned(),
        window: Some(proto::Window::default()),
        sources: vec![proto::Source {
            topic: TOPIC.to_owned(),
            partition: 0,
            offsets: codec::runs(&set(offsets)),
        }],
        model: Some(proto::Model {
            name: "scripted".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    (keyed(user, None), change)
}

fn state(
    user: &str,
    version: u64,
    summary: &str,
    below: i64,
    folded: &[i64],
) -> (Record, Option<proto::ProfileState>) {
    let marker = Marker {
        folded_below: below,
        folded: set(folded),
    };
    let state = proto::ProfileState {
        user_id: user.to_owned(),
        version,
        summary: summary.to_owned(),
        marker: Some(codec::fold_marker(TOPIC, 0, &marker)),
        ..Default::default()
    };
    (keyed(user, None), Some(state))
}

fn checkpoint(restart: i64, decided: i64, rejected: &[i64], late: &[i64]) -> proto::Checkpoint {
    proto::Checkpoint {
        topic: TOPIC.to_owned(),
        restart_offset: restart,
        decided_below: decided,
        rejected: set(rejected).to_gaps(restart),
        late: set(late).to_gaps(restart),
        ..Default::default()
    }
}

fn letter(record: &Record, offset: i64, reason: Reason) -> Record {
    let origin = Origin {
        topic: TOPIC,
        partition: 0,
        offset,
    };
    let letter = dead_letter(record, origin, &Rejected::new(reason, "why"));
    Record {
        key: letter.key.map(Into::into),
        value: letter.value.map(Into::into),
        headers: letter.headers.into(),
    }
}

impl World {
    fn sound() -> Self {
        let users = ["ann", "ann", "bob", "ann", "bob", "ann", "", "ann"];
        let mut input: Vec<Record> = (users.iter().zip(1000..))
            .map(|(user, time)| event(user, time))
            .collect();
        input[6] = keyed("ann", Some(b"{".to_vec()));
        Self {
            changes: vec![
                change("ann", 1, "", "0:0-1", &[0, 1]),
                change("bob", 1, "", "0:2,4", &[2, 4]),
                change("ann", 2, "0:0-1", "0:0-1,3,5", &[3, 5]),
            ],
            tail: Vec::new(),
            profiles: vec![
                state("ann", 1, "0:0-1", 2, &[]),
                state("bob", 1, "0:2,4", 5, &[]),
                state("ann", 2, "0:0-1,3,5", 6, &[]),
            ],
            checkpoints: vec![
                checkpoint(0, 2, &[], &[]),
                checkpoint(2, 7, &[6], &[4]),
                checkpoint(3, 7, &[6], &[4]),
                checkpoint(7, 8, &[], &[]),
            ],
            dead: vec![letter(&input[6], 6, Reason::Malformed)],
            input,
            removed: 0,
            committed: Some(7),
            partition: 0,
            drained: false,
            latest: false,
            changes_cut: false,
            dead_letters_cut: false,
        }
    }

    fn report(&self) -> Report {
        let mapping = JsonMapping {
            user: Some("/user".to_owned()),
            time: Some("/time".to_owned()),
            ..JsonMapping::default()
        };
        let mut account = Account::new(Rules {
            topic: TOPIC.to_owned(),
            decoder: Decoder::new(Config {
                format: Format::Json(Box::new(mapping)),
                max_text_bytes: 1000,
                max_event_bytes: 10_000,
            }),
            drained: self.drained,
            latest: self.latest,
            changes_cut: self.changes_cut,
            dead_letters_cut: self.dead_letters_cut,
        });
        let place = |topic, partition, offset| Origin {
            topic,
            partition,
            offset,
        };
        if let Some(committed) = self.committed {
            account.committed(0, committed);
        }
        for (checkpoint, at) in self.checkpoints.iter().zip(0..) {
            let record = keyed("0", Some(codec::encode(checkpoint)));
            account.checkpoint(place("checkpoints", 0, at), &record);
        }
        let give = |account: &mut Account, all: &[(Record, proto::ProfileChange)]| {
            for ((key, change), at) in all.iter().zip(0..) {
                let value = key.value.clone();
                let record = Record {
                    value: value.or_else(|| Some(codec::encode(change).into())),
                    ..key.clone()
                };
                account.change(place("changes", 0, at), &record);
            }
        };
        give(&mut account, &self.changes);
        for ((key, state), at) in self.profiles.iter().zip(0..) {
            let record = Record {
                value: state.as_ref().map(|state| codec::encode(state).into()),
                ..key.clone()
            };
            account.profile(place("profiles", self.partition, at), &record);
        }
        account.profiles_read();
        give(&mut account, &self.tail);
        for (record, at) in self.dead.iter().zip(0..) {
            account.dead_letter(place("dead", self.partition, at), record);
        }
        account.input_begins(0, 0);
        for (record, at) in self.input.iter().zip(0..) {
            if at >= self.removed {
                account.input(place(TOPIC, 0, at), None, record);
            }
        }
        account.input_removed(0, self.removed);
        account.finish()
    }
}

/// The kinds that are found once this is done to sound topics.
fn found(damage: impl FnOnce(&mut World)) -> Vec<Kind> {
    let mut world = World::sound();
    damage(&mut world);
    let report = world.report();
    for found in report.findings.values() {
        assert!(found.count > 0 && !found.places.is_empty(), "{report:?}");
    }
    report.findings.into_keys().collect()
}

#[test]
fn sound_topics_are_called_sound_and_counted() {
    let report = World::sound().report();
    let expected = Report {
        events: 8,
        folded: 6,
        dead_lettered: 1,
        waiting: 1,
        changes: 3,
        users: 2,
        profiles: 3,
        checkpoints: 4,
        ..Report::default()
    };
    assert_eq!(report, expected);
    assert!(report.is_sound());
}

#[test]
fn an_event_folded_twice_is_found() {
    // Into two versions, into two profiles, and twice in one list.
    let again = found(|w| {
        let text = "0:0-1,3,5 !0:1";
        w.changes[2] = change("ann", 2, "0:0-1", text, &[1, 3, 5]);
        w.profiles[2] = state("ann", 2, text, 6, &[]);
    });
    assert_eq!(again, [Kind::FoldedTwice, Kind::Summary]);
    let shared = found(|w| {
        w.changes[1] = change("bob", 1, "", "0:1-2,4", &[1, 2, 4]);
        w.profiles[1] = state("bob", 1, "0:1-2,4", 5, &[]);
    });
    assert_eq!(shared, [Kind::FoldedTwice]);
    let listed = found(|w| {
        let twin = w.changes[0].1.sources[0].clone();
        w.changes[0].1.sources.push(twin);
    });
    assert_eq!(listed, [Kind::FoldedTwice]);
}

#[test]
fn an_event_that_is_never_folded_is_found_once_nothing_may_wait() {
    assert_eq!(found(|w| w.drained = true), [Kind::NeverFolded]);
    let done = found(|w| {
        w.drained = true;
        w.input.pop();
    });
    assert_eq!(done, []);
}

#[test]
fn a_committed_offset_above_an_unfolded_event_is_found() {
    assert_eq!(
        found(|w| {
            w.committed = Some(8);
            w.checkpoints.push(checkpoint(8, 8, &[], &[]));
        }),
        [Kind::CommittedAboveUnfolded]
    );
    // Dead-lettered events count as unfolded where the dead letter is missing.
    assert_eq!(found(|w| w.dead.clear()), [Kind::CommittedAboveUnfolded]);
}

#[test]
fn an_event_folded_and_dead_lettered_is_found() {
    let kinds = found(|w| w.dead.push(letter(&w.input[5], 5, Reason::Refused)));
    assert_eq!(kinds, [Kind::FoldedAndDeadLettered]);
}

#[test]
fn an_event_dead_lettered_twice_is_found() {
    let kinds = found(|w| w.dead.push(w.dead[0].clone()));
    assert_eq!(kinds, [Kind::DeadLetteredTwice]);
}

#[test]
fn an_event_in_another_users_profile_is_found() {
    let kinds = found(|w| w.input[5] = event("bob", 1005));
    assert_eq!(kinds, [Kind::WrongUser]);
    // And one that is nobody's.
    let kinds = found(|w| w.input[5] = event("", 1005));
    assert_eq!(kinds, [Kind::WrongUser]);
}

#[test]
fn events_folded_in_another_order_than_read_and_happened_are_found() {
    let swapped = |w: &mut World| {
        w.changes[0] = change("ann", 1, "", "0:1,3", &[1, 3]);
        w.changes[2] = change("ann", 2, "0:1,3", "0:0-1,3,5", &[0, 5]);
        w.profiles[0] = state("ann", 1, "0:1,3", 0, &[1, 3]);
    };
    assert_eq!(found(swapped), [Kind::OutOfOrder]);
    // It happened later than what was read behind it.
    let late = found(|w| {
        swapped(w);
        w.input[0] = event("ann", 1004);
    });
    assert_eq!(late, []);
    // Late events join the next window.
    let joined = found(|w| {
        swapped(w);
        w.changes[2].1.window = Some(proto::Window {
            late_events: 1,
            ..Default::default()
        });
    });
    assert_eq!(joined, []);
}

#[test]
fn a_gap_in_versions_is_found() {
    let kinds = found(|w| {
        let (_, change) = &mut w.changes[2];
        (change.version, change.previous_version) = (3, 2);
        w.profiles[2].1.as_mut().unwrap().version = 3;
    });
    assert_eq!(kinds, [Kind::VersionGap]);
    let first = found(|w| {
        w.changes.remove(0);
        w.profiles.remove(0);
    });
    assert_eq!(first, [Kind::CommittedAboveUnfolded, Kind::VersionGap]);
}

#[test]
fn a_repeated_version_is_found() {
    let kinds = found(|w| {
        let mut twin = w.changes[2].clone();
        twin.1.sources.clear();
        twin.1.model = None;
        w.changes.push(twin);
    });
    assert_eq!(kinds, [Kind::VersionRepeated]);
    // Version 1 again, and nothing that erased it.
    let kinds = found(|w| {
        let mut twin = w.changes[1].clone();
        twin.1.sources.clear();
        twin.1.model = None;
        w.changes.push(twin);
    });
    assert_eq!(kinds, [Kind::VersionRepeated]);
}

#[test]
fn a_previous_version_that_does_not_match_is_found() {
    let kinds = found(|w| w.changes[2].1.previous_version = 0);
    assert_eq!(kinds, [Kind::PreviousVersion]);
}

#[test]
fn a_before_that_does_not_match_is_found() {
    let kinds = found(|w| {
        let (_, change) = &mut w.changes[2];
        change.before = "0:0".to_owned();
        change.model = None;
    });
    assert_eq!(kinds, [Kind::Before]);
    let kinds = found(|w| {
        let (_, change) = &mut w.changes[0];
        change.before = "something".to_owned();
        change.model = None;
    });
    assert_eq!(kinds, [Kind::Before]);
}

#[test]
fn a_profile_that_differs_from_its_change_is_found() {
    // The last one, an older one, one that is missing, one that no change tells of, one written in the wrong order.
    let text = |at: usize| {
        move |w: &mut World| w.profiles[at].1.as_mut().unwrap().summary = "0:9".to_owned()
    };
    assert_eq!(found(text(2)), [Kind::Profile]);
    assert_eq!(found(text(0)), [Kind::Profile]);
    assert_eq!(found(|w| drop(w.profiles.remove(1))), [Kind::Profile]);
    let more = found(|w| w.profiles.push(state("ann", 3, "0:0-1,3,5", 6, &[])));
    assert_eq!(more, [Kind::Profile]);
    let swapped = found(|w| {
        w.profiles.swap(0, 2);
        w.profiles[2].1.as_mut().unwrap().marker = None;
    });
    assert_eq!(swapped, [Kind::Profile]);
}

#[test]
fn a_profile_that_comes_before_its_change_is_read_is_no_fault() {
    let folded = |w: &mut World| {
        w.tail = vec![change("ann", 3, "0:0-1,3,5", "0:0-1,3,5,7", &[7])];
        w.profiles.push(state("ann", 3, "0:0-1,3,5,7", 8, &[]));
    };
    assert_eq!(found(folded), []);
    let other = found(|w| {
        folded(w);
        w.profiles[3].1.as_mut().unwrap().summary = "0:0".to_owned();
    });
    assert_eq!(other, [Kind::Profile]);
}

#[test]
fn a_fold_marker_that_leaves_out_or_adds_an_event_is_found() {
    let kinds = found(|w| w.profiles[2] = state("ann", 2, "0:0-1,3,5", 5, &[]));
    assert_eq!(kinds, [Kind::Marker]);
    let kinds = found(|w| w.profiles[2] = state("ann", 2, "0:0-1,3,5", 6, &[7]));
    assert_eq!(kinds, [Kind::Marker]);
}

#[test]
fn a_fate_that_changed_after_a_restart_is_found() {
    // A late event that is on time now, and one on time that is late now.
    let kinds = found(|w| w.checkpoints[2] = checkpoint(3, 7, &[6], &[]));
    assert_eq!(kinds, [Kind::Fate]);
    let kinds = found(|w| w.checkpoints[2] = checkpoint(3, 7, &[6], &[4, 5]));
    assert_eq!(kinds, [Kind::Fate]);
    // A rejected event that is not rejected any more.
    let kinds = found(|w| w.checkpoints[2] = checkpoint(3, 7, &[], &[4]));
    assert_eq!(kinds, [Kind::Fate]);
    // An accepted event that is too late now.
    let kinds = found(|w| {
        w.input.push(event("ann", 1));
        w.checkpoints.push(checkpoint(7, 9, &[], &[]));
        w.dead.push(letter(&w.input[8], 8, Reason::TooLate));
    });
    assert_eq!(kinds, [Kind::Fate]);
    // What was decided is not decided any more.
    let kinds = found(|w| w.checkpoints[2] = checkpoint(3, 5, &[], &[4]));
    assert_eq!(kinds, [Kind::Fate]);
    // Refused when it was folded: that is decided then.
    let kinds = found(|w| {
        w.dead.push(letter(&w.input[7], 7, Reason::Refused));
        w.checkpoints.push(checkpoint(7, 8, &[7], &[]));
    });
    assert_eq!(kinds, []);
}

#[test]
fn what_names_a_record_that_is_not_there_is_found() {
    let kinds = found(|w| {
        w.changes[2] = change("ann", 2, "0:0-1", "0:0-1,3,5,9", &[3, 5, 9]);
        w.profiles[2] = state("ann", 2, "0:0-1,3,5,9", 6, &[9]);
    });
    assert_eq!(kinds, [Kind::NotInInput]);
    let kinds = found(|w| w.dead.push(letter(&w.input[6], 12, Reason::Malformed)));
    assert_eq!(kinds, [Kind::NotInInput]);
}

#[test]
fn a_dead_letter_that_is_not_its_record_is_found() {
    let other = |w: &mut World| w.dead[0].value = Some(b"[".as_slice().into());
    assert_eq!(found(other), [Kind::DeadLetter]);
    // One that limn had to cut says so.
    let cut = found(|w| {
        other(w);
        let mut headers = w.dead[0].headers.to_vec();
        headers.push(("limn-truncated".into(), Some(b"9".as_slice().into())));
        w.dead[0].headers = headers.into();
    });
    assert_eq!(cut, []);
}

#[test]
fn a_scripted_summary_that_lists_something_else_is_found() {
    let kinds = found(|w| {
        w.changes[2].1.after = "0:0-1,3".to_owned();
        w.profiles[2] = state("ann", 2, "0:0-1,3", 6, &[]);
    });
    assert_eq!(kinds, [Kind::Summary]);
    // Any text will do of a real engine.
    let kinds = found(|w| {
        let (_, change) = &mut w.changes[2];
        change.after = "Likes tea.".to_owned();
        change.model.as_mut().unwrap().name = "a model".to_owned();
        w.profiles[2] = state("ann", 2, "Likes tea.", 6, &[]);
    });
    assert_eq!(kinds, []);
}

#[test]
fn a_committed_offset_above_the_last_checkpoint_is_found() {
    assert_eq!(found(|w| drop(w.checkpoints.pop())), [Kind::Checkpoint]);
}

#[test]
fn a_record_in_the_wrong_place_is_found() {
    assert_eq!(
        found(|w| w.changes[0].0.key = Some(b"bob".as_slice().into())),
        [Kind::Misplaced]
    );
    let kinds = found(|w| {
        w.profiles[0].1.as_mut().unwrap().user_id = "bob".to_owned();
    });
    assert_eq!(kinds, [Kind::Misplaced]);
    // All of them in another partition: the last states are missing then, too.
    let kinds = found(|w| w.partition = 1);
    assert_eq!(kinds, [Kind::Profile, Kind::Misplaced]);
}

#[test]
fn a_record_that_cannot_be_read_is_found() {
    let kinds = found(|w| {
        let mut broken = w.changes[0].clone();
        broken.0.value = Some(b"\xff".as_slice().into());
        w.changes.push(broken);
    });
    assert_eq!(kinds, [Kind::Unreadable]);
    let kinds = found(|w| w.dead.push(Record::default()));
    assert_eq!(kinds, [Kind::Unreadable]);
}

#[test]
fn an_erased_user_begins_again_and_is_no_fault() {
    let erased = |w: &mut World| {
        w.profiles.push((keyed("ann", None), None));
        w.changes.push(change("ann", 1, "", "0:7", &[7]));
        w.profiles.push(state("ann", 1, "0:7", 8, &[]));
    };
    let mut world = World::sound();
    erased(&mut world);
    let report = world.report();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!((report.erased, report.folded), (1, 7));
}

#[test]
fn what_retention_took_away_is_counted_and_no_fault() {
    let mut world = World::sound();
    world.changes.remove(0);
    world.profiles.remove(0);
    world.dead.clear();
    world.changes_cut = true;
    world.dead_letters_cut = true;
    let report = world.report();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!((report.folded, report.untold), (4, 3));
}

#[test]
fn input_that_is_removed_before_it_is_read_is_no_fault() {
    // Of the dead letter's record and of a fold in the midst too.
    assert_eq!(found(|w| w.removed = 2), []);
    assert_eq!(found(|w| w.removed = 7), []);
}

#[test]
fn what_was_before_the_group_began_at_the_end_is_counted_and_no_fault() {
    let mut world = World::sound();
    let began = |w: &mut World| {
        w.changes = vec![change("bob", 1, "", "0:4", &[4])];
        w.profiles = vec![state("bob", 1, "0:4", 5, &[])];
        w.checkpoints = vec![checkpoint(4, 4, &[], &[]), checkpoint(5, 7, &[6], &[])];
        w.committed = Some(5);
    };
    began(&mut world);
    world.latest = true;
    let report = world.report();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!((report.untold, report.waiting), (4, 2));
    assert_eq!(found(began), [Kind::CommittedAboveUnfolded]);
}
