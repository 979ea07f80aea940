use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::database::tests::temporary;
use super::super::view::{Applied, Change, View, ViewBatch};
use super::*;

const USERS: usize = 6;
const AT: Applied = Applied {
    offset: 9,
    at_ms: 7,
};

fn name(user: usize) -> String {
    format!("user{user}")
}

fn change(partition: i32, user: &str, state: Option<(u64, String)>) -> Change {
    Change {
        partition,
        user: user.into(),
        state: state.map(|(version, text)| (version, text.into_bytes())),
    }
}

fn apply(view: &View, changes: Vec<Change>) {
    let batch = ViewBatch {
        changes,
        ..ViewBatch::default()
    };
    view.apply(&batch).unwrap();
}

fn restore(view: &View, partition: i32, changes: impl IntoIterator<Item = Change>) {
    let read = changes.into_iter().collect();
    view.restore(partition, &read, AT, true).unwrap();
}

/// How many blocks there are, and how many of the view's own values.
fn written(database: &Database) -> (usize, usize) {
    let count = |trees: &Trees| Ok((trees.packed.len(), trees.view.scan_prefix(b"s").count()));
    database.with(count).unwrap()
}

/// What happens to a view. Of users a number; `true` erases.
#[derive(Debug, Clone)]
enum Step {
    Restored(Vec<(usize, bool)>),
    Applied(Vec<(usize, bool)>),
    Cleared,
}

fn steps() -> impl Strategy<Value = Vec<(i32, Step)>> {
    let changes = || prop::collection::vec((0..USERS, prop::bool::weighted(0.2)), 1..12);
    let step = prop_oneof![
        6 => changes().prop_map(Step::Restored),
        2 => changes().prop_map(Step::Applied),
        1 => Just(Step::Cleared),
    ];
    prop::collection::vec((0..2, step), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_a_sealed_block_holds_is_read_as_it_stands_or_refused(
        users in prop::collection::vec(".{0,6}", 0..4),
        noise in prop::collection::vec((0usize..160, any::<u8>()), 0..4),
        cut in 0usize..160,
    ) {
        let mut block = Vec::new();
        for user in &users {
            append(&mut block, &Packed { user, version: 3, state: b"some state" });
        }
        for (at, byte) in noise {
            if let Some(place) = block.get_mut(at) {
                *place = byte;
            }
        }
        block.truncate(cut);
        // As limn wrote it before it compressed blocks, and as it does now.
        let plain = seal(PLAIN, b"key", &[&block]);
        let now = sealed(&mut Table::small(), b"key", &block);
        for sealed in [plain, now] {
            let opened = opened(b"key", &sealed).unwrap();
            prop_assert_eq!(&opened[..], &block[..]);
            if let Ok(read) = states(&opened) {
                let mut again = Vec::new();
                read.iter().for_each(|state| append(&mut again, state));
                prop_assert_eq!(again, &block[..]);
            }
        }
    }

    #[test]
    fn whatever_is_sealed_as_compressed_is_opened_or_refused_within_its_bounds(
        bytes in any::<u32>(),
        lz4 in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let sealed = seal(COMPRESSED, b"key", &[&bytes.to_le_bytes(), &lz4]);
        if let Ok(opened) = opened(b"key", &sealed) {
            prop_assert!(opened.len() == bytes as usize && opened.len() <= LZ4_MOST * (lz4.len() + 1));
        }
    }

    #[test]
    fn packed_states_answer_as_if_each_had_been_written_by_itself(steps in steps(), history in 0u64..3) {
        let ((database, folder), (plain, _plain_folder)) = (temporary(), temporary());
        let view = View::new(Arc::clone(&database), history);
        let plain = View::new(plain, history);
        let mut versions = [[0; USERS]; 2];
        for (partition, step) in steps {
            let versions = &mut versions[usize::try_from(partition).unwrap()];
            let mut changes = |users: Vec<(usize, bool)>| -> Vec<Change> {
                let each = users.into_iter().map(|(user, erased)| {
                    versions[user] = if erased { 0 } else { versions[user] + 1 };
                    let state = (!erased).then(|| (versions[user], format!("{user} v{}", versions[user])));
                    change(partition, &name(user), state)
                });
                each.collect()
            };
            match step {
                Step::Restored(users) => {
                    let changes = changes(users);
                    apply(&plain, changes.clone());
                    restore(&view, partition, changes);
                }
                Step::Applied(users) => {
                    let changes = changes(users);
                    apply(&plain, changes.clone());
                    apply(&view, changes);
                }
                Step::Cleared => {
                    plain.clear(partition).unwrap();
                    view.clear(partition).unwrap();
                    *versions = [0; USERS];
                }
            }
        }
        let same = |view: &View| -> Result<(), TestCaseError> {
            for partition in 0..2 {
                for user in (0..USERS).map(name) {
                    prop_assert_eq!(view.get(partition, &user).unwrap(), plain.get(partition, &user).unwrap());
                    prop_assert_eq!(view.versions(partition, &user).unwrap(), plain.versions(partition, &user).unwrap());
                }
                let states = |view: &View| -> Vec<Vec<u8>> {
                    let mut states: Vec<_> = view.states(partition).map(Result::unwrap).collect();
                    states.sort();
                    states
                };
                prop_assert_eq!(states(view), states(&plain));
            }
            Ok(())
        };
        same(&view)?;
        drop((view, database));
        let database = Database::open(&folder.path().join("db"), 1 << 20).unwrap();
        same(&View::new(Arc::new(database), history))?;
    }
}

#[test]
fn many_states_are_few_values_and_each_is_found() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 2);
    let text = |n: usize| format!("{n} {}", "likes tea. ".repeat(20));
    let user = |n: usize| format!("someone {n}");
    let all = 4000;
    // In three pieces, so that there are three runs.
    for piece in 0..3 {
        let some = (0..all).filter(|n| n % 3 == piece);
        let changes = some.map(|n| change(4, &user(n), Some((1, text(n)))));
        restore(&view, 4, changes);
    }
    let (blocks, alone) = written(&database);
    assert_eq!(alone, 0);
    let bytes: usize = (0..all).map(|n| user(n).len() + 24 + text(n).len()).sum();
    let least = bytes / (BLOCK_BYTES + 300);
    assert!(
        (least..=bytes / BLOCK_BYTES + 3).contains(&blocks),
        "{blocks} blocks of {bytes} bytes"
    );
    assert_eq!(
        database.with(|trees| Ok(count(trees, 4))).unwrap(),
        3,
        "runs"
    );
    for n in 0..all {
        assert_eq!(view.get(4, &user(n)).unwrap(), Some(text(n).into_bytes()));
    }
    assert_eq!(view.get(4, "someone else").unwrap(), None);
    assert_eq!(view.get(3, &user(1)).unwrap(), None);
    let found: BTreeSet<_> = view.states(4).map(Result::unwrap).collect();
    assert_eq!(found.len(), all);
    assert_eq!(view.position(4).unwrap(), Some(AT));
}

#[test]
fn what_was_packed_becomes_history_when_a_newer_version_is_written() {
    let (database, _folder) = temporary();
    let view = View::new(database, 1);
    let version = |v: u64| change(0, "ann", Some((v, format!("v{v}"))));
    restore(&view, 0, [version(3), version(4)]);
    let kept = || view.versions(0, "ann").unwrap();
    assert_eq!(kept(), [b"v3", b"v4"]);
    apply(&view, vec![version(5)]);
    assert_eq!(kept(), [b"v4", b"v5"]);
    apply(&view, vec![version(6)]);
    assert_eq!(kept(), [b"v5", b"v6"]);
}

#[test]
fn little_is_written_state_by_state_unless_more_follows() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 0);
    let some = |partition, bytes: usize| {
        let text = "x".repeat(bytes);
        [change(partition, "ann", Some((1, text)))]
            .into_iter()
            .collect()
    };
    view.restore(0, &some(0, 100), AT, false).unwrap();
    assert_eq!(written(&database), (0, 1));
    view.restore(1, &some(1, 100), AT, true).unwrap();
    assert_eq!(written(&database), (1, 1));
    view.restore(2, &some(2, 2000), AT, false).unwrap();
    assert_eq!(written(&database), (2, 1));
    // Behind a state that is written by itself nothing is packed: that one would hide it.
    view.restore(0, &some(0, 2000), AT, true).unwrap();
    assert_eq!(written(&database), (2, 1));
    assert_eq!(view.get(0, "ann").unwrap().unwrap().len(), 2000);
}

#[test]
fn nothing_of_an_erased_user_stays_in_any_block() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 5);
    let state = |user: &str, v| change(0, user, Some((v, format!("secret of {user} {v}"))));
    restore(&view, 0, [state("ann", 1), state("bob", 1)]);
    restore(&view, 0, [state("ann", 2), state("ann", 3)]);
    restore(&view, 0, [state("eve", 1), change(0, "eve", None)]);
    apply(&view, vec![change(0, "ann", None)]);
    let mut left = Vec::new();
    database
        .with(|trees| {
            for entry in trees.packed.iter().chain(trees.view.iter()) {
                left.extend_from_slice(&entry?.1);
            }
            Ok(())
        })
        .unwrap();
    let left = String::from_utf8_lossy(&left);
    assert!(left.contains("secret of bob"), "{left}");
    assert!(!left.contains("ann") && !left.contains("eve"), "{left}");
    assert_eq!(view.get(0, "ann").unwrap(), None);
    assert!(view.versions(0, "ann").unwrap().is_empty());
    restore(&view, 0, [state("ann", 1)]);
    assert_eq!(view.versions(0, "ann").unwrap().len(), 1);
}

#[test]
fn a_run_that_was_cut_off_is_read_and_written_again() {
    let (database, folder) = temporary();
    let all: Vec<(u64, String)> = {
        let users = (0..2000).map(|n| format!("user{n}"));
        let mut all: Vec<_> = users.map(|user| (order(user.as_bytes()), user)).collect();
        all.sort();
        all
    };
    // As a crash leaves it: its first blocks, and no position.
    let half = all[..1000].iter().map(|(order, user)| {
        let (version, state) = (1, &b"older"[..]);
        let packed = Packed {
            user,
            version,
            state,
        };
        let mut written = Vec::new();
        append(&mut written, &packed);
        (*order, written)
    });
    let half: Vec<_> = half.collect();
    write(&database, 0, half.iter().map(|(o, state)| (*o, &state[..]))).unwrap();
    drop(database);
    let database = Arc::new(Database::open(&folder.path().join("db"), 1 << 20).unwrap());
    let view = View::new(database, 0);
    assert_eq!(view.position(0).unwrap(), None);
    let changes = all
        .iter()
        .map(|(_, user)| change(0, user, Some((1, format!("of {user}")))));
    restore(&view, 0, changes);
    for (_, user) in &all {
        let expected = format!("of {user}").into_bytes();
        assert_eq!(view.get(0, user).unwrap(), Some(expected));
    }
    assert_eq!(view.states(0).map(Result::unwrap).count(), all.len());
    view.clear(0).unwrap();
    assert_eq!(view.states(0).count(), 0);
}

#[test]
fn a_user_with_more_versions_than_a_block_has_room_for_is_found_whole_and_erased_whole() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 1000);
    let text = |v: u64| format!("secret {v} {}", "x".repeat(2000));
    let user = |n: u64| format!("user{n}");
    let many = |n: u64| (1..=40).map(move |v| (n, v));
    let all = (0..20).filter(|&n| n != 7).map(|n| (n, 1)).chain(many(7));
    let changes = all.map(|(n, v)| change(0, &user(n), Some((v, text(v)))));
    restore(&view, 0, changes);
    let (blocks, _) = written(&database);
    assert!(blocks >= 7, "{blocks}");
    let expected: Vec<_> = (1..=40).map(|v| text(v).into_bytes()).collect();
    assert_eq!(view.versions(0, &user(7)).unwrap(), expected);
    for n in (0..20).filter(|&n| n != 7) {
        assert_eq!(view.versions(0, &user(n)).unwrap(), [text(1).into_bytes()]);
    }
    assert_eq!(view.states(0).map(Result::unwrap).count(), 20);
    apply(&view, vec![change(0, &user(7), None)]);
    assert!(view.versions(0, &user(7)).unwrap().is_empty());
    assert_eq!(view.states(0).map(Result::unwrap).count(), 19);
}

#[test]
fn a_state_that_was_read_twice_is_listed_once() {
    let (database, _folder) = temporary();
    let view = View::new(database, 3);
    let of = |v: u64| change(0, "ann", Some((v, format!("v{v}"))));
    restore(&view, 0, [of(4), of(5), of(5)]);
    restore(&view, 0, [of(5)]);
    let states: Vec<_> = view.states(0).map(Result::unwrap).collect();
    assert_eq!(states, [b"v5"]);
    assert_eq!(view.versions(0, "ann").unwrap(), [b"v4", b"v5"]);
}

#[test]
fn tombstones_of_users_that_are_not_there_write_nothing() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 3);
    restore(&view, 0, [change(0, "ann", Some((1, "x".to_owned())))]);
    let before = database.with(|trees| Ok(trees.packed.len())).unwrap();
    let gone = (0..500).map(|n| change(0, &format!("gone{n}"), None));
    restore(&view, 0, gone);
    let after = database.with(|trees| Ok(trees.packed.len())).unwrap();
    assert_eq!((before, after), (1, 1));
    assert!(view.get(0, "ann").unwrap().is_some());
}

#[test]
fn a_torn_block_is_an_error_that_keeps_the_user_to_itself() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 0);
    let one = vec![change(0, "secret-user", Some((1, "x".to_owned())))];
    restore(&view, 0, one);
    let block = |trees: &Trees| Ok(trees.packed.last()?.unwrap());
    let (key, sealed) = database.with(block).unwrap();
    // Cut off within an entry, but sealed: a length beyond the block's end is no panic either.
    let whole = opened(&key, &sealed).unwrap();
    for cut in 1..whole.len() {
        assert!(states(&whole[..cut]).is_err(), "cut at {cut}");
    }
    for bit in 0..8 * sealed.len() {
        let mut torn = sealed.to_vec();
        torn[bit / 8] ^= 1 << (bit % 8);
        assert!(opened(&key, &torn).is_err(), "bit {bit}");
    }
    database
        .with(|trees| {
            trees.packed.insert(&key, b"\x01noise secret-user")?;
            Ok(())
        })
        .unwrap();
    let error = view.get(0, "secret-user").unwrap_err().to_string();
    assert!(
        error.contains("torn") && !error.contains("secret-user"),
        "{error}"
    );
}

/// States of users in their order, with texts that nothing can compress.
fn noise(users: usize, bytes: usize) -> Vec<(u64, Vec<u8>)> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut all: Vec<_> = (0..users)
        .map(|n| {
            let state: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
                .take(bytes)
                .collect();
            let (user, mut written) = (name(n), Vec::new());
            let packed = Packed {
                user: &user,
                version: 1,
                state: &state,
            };
            append(&mut written, &packed);
            (order(user.as_bytes()), written)
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_run_is_written_about_once_and_not_as_often_as_its_pages_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let database = Database::open(&path, 1 << 20).unwrap();
    let all = noise(8000, 5000);
    write(&database, 0, all.iter().map(|(o, state)| (*o, &state[..]))).unwrap();
    database.with(|trees| Ok(trees.db.flush()?)).unwrap();
    let log = std::fs::metadata(path.join("db")).unwrap().len();
    let bytes: usize = all.iter().map(|(_, state)| state.len()).sum();
    assert!(log >= bytes as u64, "{log} bytes of log for {bytes}");
    assert!(log < bytes as u64 * 3 / 2, "{log} bytes of log for {bytes}");
}

#[test]
fn blocks_of_a_folder_of_format_3_are_read_erased_from_and_written_behind() {
    let (database, _folder) = temporary();
    let users: Vec<String> = (0..400).map(name).collect();
    let mut all: Vec<_> = users.iter().map(|u| (order(u.as_bytes()), u)).collect();
    all.sort();
    // As they were written then: plain, one value for each.
    database
        .with(|trees| {
            for some in all.chunks(50) {
                let mut block = Vec::new();
                for (_, user) in some {
                    let (version, state) = (1, &b"of then"[..]);
                    let packed = Packed {
                        user,
                        version,
                        state,
                    };
                    append(&mut block, &packed);
                }
                let key = block_key(0, 0, some[0].0, 0);
                trees.packed.insert(&key, seal(PLAIN, &key, &[&block]))?;
            }
            trees.runs.lock().unwrap().insert(0, 1);
            Ok(())
        })
        .unwrap();
    let view = View::new(Arc::clone(&database), 0);
    restore(
        &view,
        0,
        [change(0, &users[3], Some((2, "of now".to_owned())))],
    );
    apply(&view, vec![change(0, &users[5], None)]);
    for (n, user) in users.iter().enumerate() {
        let expected = match n {
            3 => Some(&b"of now"[..]),
            5 => None,
            _ => Some(&b"of then"[..]),
        };
        assert_eq!(view.get(0, user).unwrap().as_deref(), expected, "{user}");
    }
    assert_eq!(view.states(0).map(Result::unwrap).count(), users.len() - 1);
}

#[test]
fn places_that_a_crash_has_left_without_their_blocks_are_passed_over() {
    let (database, folder) = temporary();
    let all = noise(400, 200);
    database
        .with(|trees| {
            for (n, (first, _)) in all.iter().step_by(80).enumerate() {
                let n = u32::try_from(n).unwrap();
                trees.packed.insert(block_key(0, 0, *first, n), &[])?;
            }
            Ok(())
        })
        .unwrap();
    drop(database);
    let database = Arc::new(Database::open(&folder.path().join("db"), 1 << 20).unwrap());
    let view = View::new(Arc::clone(&database), 0);
    assert_eq!(view.get(0, &name(3)).unwrap(), None);
    assert_eq!(view.states(0).count(), 0);
    let changes = (0..400).map(|n| change(0, &name(n), Some((1, format!("of {n}")))));
    restore(&view, 0, changes);
    assert_eq!(
        database.with(|trees| Ok(count(trees, 0))).unwrap(),
        2,
        "runs"
    );
    for n in 0..400 {
        let expected = Some(format!("of {n}").into_bytes());
        assert_eq!(view.get(0, &name(n)).unwrap(), expected);
    }
    assert_eq!(view.states(0).map(Result::unwrap).count(), 400);
}
