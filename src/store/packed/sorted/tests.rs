use std::sync::Arc;

use super::super::super::database::Database;
use super::super::super::database::tests::temporary;
use super::super::super::seal;
use super::super::super::view::View;
use super::super::block::{Form, Sealer};
use super::super::tests::{apply, begin, change, everything, name, restore, runs_of};
use super::super::{Runs, counts};
use super::{PLAIN, block_key, order};

/// Writes a run as limn wrote it when the folder had format 3 or, `compressed`, 4.
pub(in super::super) fn write(
    database: &Database,
    (partition, run): (i32, u32),
    users: &[String],
    state: &[u8],
    compressed: bool,
) {
    let mut all: Vec<_> = users.iter().map(|u| (order(u.as_bytes()), u)).collect();
    all.sort();
    database
        .with(|trees| {
            for some in all.chunks(50) {
                let mut block = Vec::new();
                for (_, user) in some {
                    block.extend_from_slice(&(user.len() as u64).to_be_bytes());
                    block.extend_from_slice(user.as_bytes());
                    block.extend_from_slice(&1u64.to_be_bytes());
                    block.extend_from_slice(&(state.len() as u64).to_be_bytes());
                    block.extend_from_slice(state);
                }
                let key = block_key(partition, run, some[0].0, 0);
                let sealed = if compressed {
                    Sealer::of(Form::Sorted).seal(&key, &block)
                } else {
                    seal(PLAIN, &key, &[&block])
                };
                trees.packed.insert(&key, sealed)?;
            }
            *trees.runs.lock().unwrap() = counts(&trees.packed)?;
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_run_that_was_cut_off_behind_sorted_ones_goes_and_they_stay() {
    let (database, folder) = temporary();
    let users: Vec<String> = (0..100).map(name).collect();
    write(&database, (0, 0), &users, b"of then", true);
    let view = View::new(Arc::clone(&database), 0);
    let many: Vec<_> = (0..60)
        .map(|n| change(0, &name(n), Some((2, "secret".repeat(200)))))
        .collect();
    drop(begin(&view, 0, &many, 20));
    drop((view, database));
    let database = Arc::new(Database::open(&folder.path().join("db"), 1 << 20).unwrap());
    let view = View::new(Arc::clone(&database), 0);
    assert!(everything(&database).0.contains("secret"));
    assert_eq!(runs_of(&database, 0), 1);
    drop(view.restoring(0).unwrap());
    assert!(!everything(&database).0.contains("secret"));
    for user in &users {
        assert_eq!(view.get(0, user).unwrap().unwrap(), b"of then");
    }
}

#[test]
fn runs_of_formats_3_and_4_of_the_folder_are_read_erased_from_and_written_behind() {
    for compressed in [false, true] {
        let (database, folder) = temporary();
        let users: Vec<String> = (0..400).map(name).collect();
        write(&database, (0, 0), &users, b"of then", compressed);
        let view = View::new(Arc::clone(&database), 0);
        let now = [change(0, &users[3], Some((2, "of now".to_owned())))];
        restore(
            &view,
            0,
            now.into_iter().chain([change(0, &users[7], None)]),
        );
        apply(&view, vec![change(0, &users[5], None)]);
        let check = |view: &View| {
            for (n, user) in users.iter().enumerate() {
                let expected = match n {
                    3 => Some(&b"of now"[..]),
                    5 | 7 => None,
                    _ => Some(&b"of then"[..]),
                };
                assert_eq!(view.get(0, user).unwrap().as_deref(), expected, "{user}");
            }
            assert_eq!(view.states(0).map(Result::unwrap).count(), users.len() - 2);
        };
        check(&view);
        assert_eq!(runs_of(&database, 0), 2);
        drop((view, database));
        let database = Arc::new(Database::open(&folder.path().join("db"), 1 << 20).unwrap());
        check(&View::new(Arc::clone(&database), 0));
        let expected = Runs {
            sorted: 1,
            count: 2,
        };
        let found = database.with(|trees| counts(&trees.packed)).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [(0, expected)]);
    }
}

#[test]
fn places_that_a_crash_has_left_in_a_run_of_format_4_are_passed_over() {
    let (database, folder) = temporary();
    let users: Vec<String> = (0..400).map(name).collect();
    write(&database, (0, 0), &users, b"of then", true);
    database
        .with(|trees| {
            for key in trees.packed.iter().keys() {
                trees.packed.insert(key?, &[])?;
            }
            Ok(())
        })
        .unwrap();
    drop(database);
    let database = Arc::new(Database::open(&folder.path().join("db"), 1 << 20).unwrap());
    let view = View::new(Arc::clone(&database), 0);
    assert_eq!(view.get(0, &users[3]).unwrap(), None);
    assert_eq!(view.states(0).count(), 0);
    let changes = (0..400).map(|n| change(0, &name(n), Some((1, format!("of {n}")))));
    restore(&view, 0, changes);
    assert_eq!(runs_of(&database, 0), 2);
    for n in 0..400 {
        let expected = Some(format!("of {n}").into_bytes());
        assert_eq!(view.get(0, &name(n)).unwrap(), expected);
    }
    assert_eq!(view.states(0).map(Result::unwrap).count(), 400);
}
