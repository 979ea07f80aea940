use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::super::super::database::Database;
use super::super::super::database::tests::temporary;
use super::super::super::gathered::LARGE;
use super::super::super::model::{Model, profile, write_beside};
use super::super::super::packed::Block;
use super::super::{Applied, ViewBatch};
use super::*;

const AT: Applied = Applied {
    offset: 9,
    at_ms: 7,
};

fn change(partition: i32, user: &str, version: u64, state: String) -> Change {
    Change {
        partition,
        user: user.into(),
        state: Some((version, state.into_bytes())),
    }
}

fn erasure(partition: i32, user: &str) -> Change {
    Change {
        partition,
        user: user.into(),
        state: None,
    }
}

fn apply(view: &View, changes: Vec<Change>) {
    let batch = ViewBatch {
        changes,
        ..ViewBatch::default()
    };
    view.gather(&batch.changes).unwrap();
    view.apply(&batch).unwrap();
}

/// One version of each of some users, some of them at a time.
fn write(view: &View, users: impl Iterator<Item = usize>, version: u64) {
    let users: Vec<usize> = users.collect();
    for some in users.chunks(20) {
        let some = some.iter().map(|user| {
            let state = format!("{user} v{version}, {}", "likes tea ".repeat(5));
            change(0, &format!("user{user}"), version, state)
        });
        apply(view, some.collect());
    }
}

/// How many states are written by themselves, old versions among them, and how many blocks there are.
fn written(database: &Database) -> (usize, usize) {
    let count = |trees: &Trees| {
        let alone = |kind: &[u8]| trees.view.scan_prefix(kind).count();
        Ok((alone(b"s") + alone(b"h"), trees.gathered.len()))
    };
    database.with(count).unwrap()
}

/// What the blocks hold, one block's users behind another's; each must have what its key says.
fn gathered_users(database: &Database) -> Vec<String> {
    let all = |trees: &Trees| {
        let mut users = Vec::new();
        let entries: Vec<_> = trees.gathered.iter().map(Result::unwrap).collect();
        for (at, (key, sealed)) in entries.iter().enumerate() {
            let next = entries.get(at + 1).filter(|next| next.0[..4] == key[..4]);
            let block = Block::open(key, sealed)?;
            let mut last = None;
            for (state, _) in block.states()? {
                // Ascending, and none twice.
                assert!(last < Some((state.user.to_owned(), state.version)));
                last = Some((state.user.to_owned(), state.version));
                assert!(state.user.as_bytes() >= &key[4..]);
                assert!(next.is_none_or(|next| state.user.as_bytes() < &next.0[4..]));
                users.push(state.user.to_owned());
            }
        }
        Ok(users)
    };
    database.with(all).unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    /// Users by number, with bytes of their states; `None` erases.
    Applied(Vec<(usize, Option<usize>)>),
    Restored(Vec<(usize, Option<usize>)>),
    Cleared,
    /// What the process remembers is gone.
    Reopened,
    /// Cut off between what is gathered and what goes for it.
    CutOff,
    /// What is written is as an older limn wrote it.
    Older,
}

const USERS: usize = 40;

fn steps() -> impl Strategy<Value = Vec<(i32, Step)>> {
    let bytes = prop_oneof![8 => 1usize..120, 1 => 200usize..900, 1 => Just(LARGE)];
    let state = prop::option::weighted(0.9, bytes);
    let changes = move || prop::collection::vec((0..USERS, state.clone()), 1..60);
    let step = prop_oneof![
        12 => changes().prop_map(Step::Applied),
        2 => changes().prop_map(Step::Restored),
        1 => Just(Step::Cleared),
        1 => Just(Step::Reopened),
        2 => Just(Step::CutOff),
        2 => Just(Step::Older),
    ];
    prop::collection::vec((0..2, step), 1..16)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn gathered_states_answer_as_if_each_stood_by_itself(steps in steps(), history in 0u64..4) {
        let (database, folder) = temporary();
        let mut view = View::new(database, history);
        let mut model = Model::default();
        let mut versions = [[0; USERS]; 2];
        let users: Vec<String> = (0..USERS).map(|user| format!("u{user}")).collect();
        for (partition, step) in steps {
            let versions = &mut versions[usize::try_from(partition).unwrap()];
            let mut changes = |all: Vec<(usize, Option<usize>)>| -> Vec<Change> {
                let each = all.into_iter().map(|(user, bytes)| match bytes {
                    Some(bytes) => {
                        versions[user] += 1;
                        let (version, user) = (versions[user], &users[user]);
                        let text = format!("{user} v{version} {}", "x".repeat(bytes));
                        // A profile, or of other users something else.
                        let state = if bytes % 2 == 0 { profile(user, version, &text) } else { text.into_bytes() };
                        Change { partition, user: user.as_str().into(), state: Some((version, state)) }
                    }
                    None => {
                        versions[user] = 0;
                        erasure(partition, &users[user])
                    }
                });
                each.collect()
            };
            match step {
                Step::Applied(all) => {
                    let changes = changes(all);
                    model.apply(&changes);
                    apply(&view, changes);
                }
                Step::Restored(all) => {
                    let changes = changes(all);
                    model.apply(&changes);
                    view.restored(partition, &changes.into_iter().collect(), AT).unwrap();
                }
                Step::Cleared => {
                    *versions = [0; USERS];
                    model.clear(partition);
                    view.clear(partition).unwrap();
                }
                Step::Reopened => {
                    drop(view);
                    let database = Database::open(&folder.path().join("db"), 1 << 20).unwrap();
                    view = View::new(Arc::new(database), history);
                }
                Step::CutOff => {
                    let some = view.database.with(|trees| alone(trees, partition, Bound::Unbounded, (history, 7, 4 << 10)));
                    gathered::put(&view.database, &mut Sealer::new(), partition, &mut some.unwrap().users).unwrap();
                }
                Step::Older => write_beside(&view.database),
            }
            (0..2).for_each(|partition| model.check(&view, history, partition, &users));
            gathered_users(&view.database);
        }
    }
}

#[test]
fn most_states_are_gathered_and_few_are_by_themselves_however_many_users_there_are() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 2);
    let mut model = Model::default();
    for version in 1..=4 {
        // Each by turns with one from the other end, so that blocks are written into and split.
        let order = (0..1000).map(|n| if n % 2 == 0 { n } else { 1000 - n });
        write(&view, order, version);
        let all = (0..1000).map(|user| {
            let state = format!("{user} v{version}, {}", "likes tea ".repeat(5));
            change(0, &format!("user{user}"), version, state)
        });
        model.apply(&all.collect::<Vec<_>>());
    }
    let (alone, blocks) = written(&database);
    assert!(alone < 1500, "{alone} of 3000 states are by themselves");
    assert!((100..1000).contains(&blocks), "{blocks} blocks");
    let users: Vec<String> = (0..1000).map(|user| format!("user{user}")).collect();
    model.check(&view, 2, 0, &users);
}

#[test]
fn a_sweep_goes_through_a_partition_beside_the_changes_and_only_the_partition_that_changed() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 0);
    let other = (0..LEAST_OF_ONE - 1).map(|n| change(1, &format!("o{n}"), 1, "state".to_owned()));
    apply(&view, other.collect());
    // One behind another, as a service that is not at its limit has them.
    for version in 1..=LEAST {
        apply(
            &view,
            vec![change(0, "ann", version, format!("v{version}"))],
        );
    }
    assert_eq!(gathered_users(&database), ["ann"]);
    // The last version came behind the last look.
    assert_eq!(
        written(&database),
        (usize::try_from(LEAST_OF_ONE).unwrap(), 1)
    );
    assert_eq!(
        view.get(0, "ann").unwrap().unwrap(),
        format!("v{LEAST}").into_bytes()
    );
}

#[test]
fn nothing_of_an_erased_user_stays_in_a_block_and_a_block_without_users_goes() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 3);
    for version in 1..=3 {
        write(&view, 0..200, version);
    }
    let before = gathered_users(&database);
    assert!(before.iter().any(|user| user == "user7"));
    apply(&view, vec![erasure(0, "user7")]);
    assert!(!gathered_users(&database).iter().any(|user| user == "user7"));
    // Nor where a block begins with a user.
    let begin = |trees: &Trees| Ok(trees.gathered.iter().keys().nth(3).unwrap()?);
    let begin = String::from_utf8(database.with(begin).unwrap()[4..].to_vec()).unwrap();
    assert!(before.contains(&begin));
    apply(&view, vec![erasure(0, &begin)]);
    let named = |trees: &Trees| {
        let mut keys = trees
            .gathered
            .iter()
            .keys()
            .map(|key| key.unwrap()[4..].to_vec());
        Ok(keys.any(|key| key == begin.as_bytes()))
    };
    assert!(!database.with(named).unwrap() && view.get(0, &begin).unwrap().is_none());
    let users: Vec<_> = before
        .iter()
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    for user in users {
        let there = view.get(0, user).unwrap().is_some();
        assert_eq!(there, user != "user7" && *user != begin, "{user}");
    }
    assert_eq!(view.get(0, "user7").unwrap(), None);
    assert!(view.versions(0, "user7").unwrap().is_empty());
    // A user who comes back begins anew.
    write(&view, std::iter::once(7), 1);
    assert_eq!(view.versions(0, "user7").unwrap().len(), 1);
    apply(
        &view,
        (0..200)
            .map(|user| erasure(0, &format!("user{user}")))
            .collect(),
    );
    assert_eq!(written(&database), (0, 0));
    assert_eq!(view.states(0).count(), 0);
    assert!(!view.has_states(0).unwrap());
    // And one is gathered where no block is any more.
    write(&view, 0..200, 1);
    assert_eq!(view.states(0).count(), 200);
    assert!(written(&database).1 > 0);
}

#[test]
fn behind_gathered_states_nothing_is_packed() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 0);
    for version in 1..=2 {
        apply(
            &view,
            (0..LEAST)
                .map(|n| change(0, &format!("u{n}"), version, "old".to_owned()))
                .collect(),
        );
    }
    // All are gathered, and none is by itself.
    while written(&database).0 > 0 {
        let found = view
            .database
            .with(|trees| alone(trees, 0, Bound::Unbounded, (0, 7, 4 << 10)))
            .unwrap();
        assert!(!found.users.is_empty());
        view.gather_some(0, Bound::Unbounded, 7).unwrap();
    }
    let newer = (0..LEAST).map(|n| change(0, &format!("u{n}"), 3, "newer".repeat(20)));
    view.restored(0, &newer.collect(), AT).unwrap();
    assert!(
        !database
            .with(|trees| Ok(super::super::packed::has_runs(trees, 0)))
            .unwrap()
    );
    for n in 0..LEAST {
        let state = view.get(0, &format!("u{n}")).unwrap().unwrap();
        assert_eq!(state, "newer".repeat(20).into_bytes());
    }
}

#[test]
fn a_user_with_very_much_stays_by_himself_and_his_neighbours_are_gathered() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 1);
    let much = |version| change(0, "much", version, "x".repeat(LARGE));
    for version in 1..=3 {
        write(&view, 0..100, version);
        apply(&view, vec![much(version)]);
    }
    write(&view, 0..100, 4);
    let gathered = gathered_users(&database);
    assert!(gathered.len() > 50 && !gathered.iter().any(|user| user == "much"));
    let kept = view.versions(0, "much").unwrap();
    assert_eq!(
        kept.iter().map(Vec::len).collect::<Vec<_>>(),
        [LARGE, LARGE]
    );
}

#[test]
fn a_torn_block_is_an_error_that_keeps_the_user_to_itself() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 0);
    write(&view, 0..200, 1);
    let user = gathered_users(&database).remove(0);
    let torn = |trees: &Trees| {
        let (key, sealed) = trees.gathered.first()?.unwrap();
        let mut sealed = sealed.to_vec();
        *sealed.last_mut().unwrap() ^= 0x10;
        trees.gathered.insert(key, sealed)?;
        Ok(())
    };
    database.with(torn).unwrap();
    let error = view.get(0, &user).unwrap_err();
    assert!(matches!(error, Error::Torn(_)));
    assert!(!error.to_string().contains("user"), "{error}");
}

#[test]
fn a_reader_finds_every_version_while_they_are_gathered() {
    for _ in 0..10 {
        let (database, _folder) = temporary();
        let view = View::new(Arc::clone(&database), 2);
        for version in 1..=3 {
            let changes = (0..100).map(|n| change(0, &format!("user{n}"), version, "x".repeat(50)));
            let batch = ViewBatch {
                changes: changes.collect(),
                ..ViewBatch::default()
            };
            view.apply(&batch).unwrap();
        }
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for user in 0..100 {
                        let versions = view.versions(0, &format!("user{user}")).unwrap();
                        assert_eq!(versions.len(), 3);
                    }
                }
            });
            let mut from = Some(Bound::Unbounded);
            while let Some(some) = from {
                from = view.gather_some(0, some, 3).unwrap().0;
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(written(&database).0, 0);
    }
}

#[test]
fn a_service_that_is_begun_anew_often_gathers_too() {
    let (database, folder) = temporary();
    let mut view = View::new(database, 0);
    for user in 0..200 {
        write(&view, std::iter::once(user), 1);
        if user % 2 == 0 {
            drop(view);
            let database = Database::open(&folder.path().join("db"), 1 << 20).unwrap();
            view = View::new(Arc::new(database), 0);
        }
    }
    let (alone, blocks) = written(&view.database);
    assert!(
        alone < 120 && blocks > 0,
        "{alone} by themselves, {blocks} blocks"
    );
    assert_eq!(view.states(0).count(), 200);
}

#[test]
fn what_a_restore_wrote_state_by_state_is_gathered_then() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 0);
    write(&view, std::iter::once(0), 1);
    let many = (1..100).map(|n| change(0, &format!("user{n}"), 1, "state".repeat(20)));
    view.restored(0, &many.collect(), AT).unwrap();
    assert_eq!(written(&database), (100, 0));
    for version in 2..60 {
        write(&view, std::iter::once(0), version);
    }
    let (alone, blocks) = written(&database);
    assert!(
        alone < 20 && blocks > 0,
        "{alone} by themselves, {blocks} blocks"
    );
}

#[test]
fn small_transactions_leave_no_more_by_itself_than_large_ones() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 0);
    let mut worst = 0;
    for version in 1..=4 {
        for user in 0..500 {
            // In no order.
            write(&view, std::iter::once(user * 263 % 500), version);
            if version > 1 && user % 50 == 0 {
                worst = worst.max(written(&database).0);
            }
        }
    }
    assert!(worst < 250, "{worst} of 500 were by themselves");
}

#[test]
fn no_block_grows_with_a_long_history() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 1000);
    for version in 1..=200 {
        let large = change(0, "user1x", version, "x".repeat(1000));
        write(&view, 0..4, version);
        apply(&view, vec![large]);
    }
    let largest = |trees: &Trees| {
        let blocks = trees.gathered.iter().map(Result::unwrap);
        Ok(blocks
            .map(|(key, sealed)| Block::open(&key, &sealed).unwrap().states.len())
            .max())
    };
    let largest = database.with(largest).unwrap().unwrap();
    assert!(largest < 2 * LARGE, "{largest} bytes");
    for user in ["user1", "user1x"] {
        assert_eq!(view.versions(0, user).unwrap().len(), 200);
    }
}

#[test]
fn older_versions_that_are_read_again_push_none_out_that_was_gathered() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 10);
    let ann = |version: u64| {
        let batch = ViewBatch {
            changes: vec![change(0, "ann", version, format!("v{version}"))],
            ..ViewBatch::default()
        };
        view.apply(&batch).unwrap();
    };
    let gather = || view.gather_some(0, Bound::Unbounded, 7).unwrap();
    (1..=5).for_each(ann);
    gather();
    // A topic that is compacted has not all of them any more.
    [2, 6].into_iter().for_each(ann);
    gather();
    assert_eq!(written(&database), (0, 1));
    let kept = view.versions(0, "ann").unwrap();
    let expected: Vec<_> = (1..=6).map(|v| format!("v{v}").into_bytes()).collect();
    assert_eq!(kept, expected);
}
