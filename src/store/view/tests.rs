use super::super::database::tests::temporary;
use super::*;

struct Opened {
    view: View,
    _folder: tempfile::TempDir,
}

impl std::ops::Deref for Opened {
    type Target = View;
    fn deref(&self) -> &View {
        &self.view
    }
}

fn view(history: u64) -> Opened {
    let (database, _folder) = temporary();
    let view = View::new(database, history);
    Opened { view, _folder }
}

fn change(user: &str, state: Option<u64>) -> Change {
    Change {
        partition: 0,
        user: user.into(),
        state: state.map(|v| (v, format!("v{v}").into_bytes())),
    }
}

fn kept(view: &View, user: &str) -> Vec<String> {
    let versions = view.versions(0, user).unwrap().into_iter();
    versions.map(|v| String::from_utf8(v).unwrap()).collect()
}

#[test]
fn no_version_older_than_the_history_stays_when_transactions_held_several() {
    let view = view(2);
    // As a restore sees it: one of several versions each time.
    for version in [1, 4, 5, 9, 30] {
        view.apply(&ViewBatch {
            changes: vec![change("a", Some(version))],
            ..ViewBatch::default()
        })
        .unwrap();
        assert!(kept(&view, "a").len() <= 3);
    }
    assert_eq!(kept(&view, "a"), ["v30"]);
    // As the service applies it: all of them in one batch.
    view.apply(&ViewBatch {
        changes: (31..=36).map(|v| change("a", Some(v))).collect(),
        ..ViewBatch::default()
    })
    .unwrap();
    assert_eq!(kept(&view, "a"), ["v34", "v35", "v36"]);
}

#[test]
fn a_user_who_is_erased_in_the_batch_that_wrote_them_is_gone() {
    let view = view(5);
    view.apply(&ViewBatch {
        changes: vec![
            change("a", Some(1)),
            change("a", Some(2)),
            change("a", None),
            change("b", Some(1)),
            change("b", None),
            change("b", Some(1)),
        ],
        ..ViewBatch::default()
    })
    .unwrap();
    assert!(kept(&view, "a").is_empty());
    assert_eq!(view.get(0, "a").unwrap(), None);
    assert_eq!(kept(&view, "b"), ["v1"]);
}

#[test]
fn every_state_of_a_partition_is_listed_once_however_many_there_are() {
    let view = view(0);
    let users = 2 * PAGE + 1;
    view.apply(&ViewBatch {
        changes: (0..users)
            .map(|n| change(&format!("u{n}"), Some(1)))
            .collect(),
        ..ViewBatch::default()
    })
    .unwrap();
    assert_eq!(view.states(0).map(Result::unwrap).count(), users);
    assert_eq!(view.states(1).count(), 0);
}

fn set(view: &View, partition: i32, user: &str, state: Option<(u64, &str)>) {
    view.apply(&ViewBatch {
        changes: vec![Change {
            partition,
            user: user.into(),
            state: state.map(|(v, s)| (v, s.as_bytes().to_vec())),
        }],
        ..ViewBatch::default()
    })
    .unwrap();
}

#[test]
fn the_current_version_and_as_many_before_it_as_asked_are_kept() {
    let view = view(2);
    for version in 1..=5 {
        set(&view, 3, "a", Some((version, &format!("v{version}"))));
    }
    set(&view, 3, "ab", Some((1, "other")));
    assert_eq!(
        view.versions(3, "a").unwrap(),
        [b"v3".to_vec(), b"v4".to_vec(), b"v5".to_vec()]
    );
    assert_eq!(view.get(3, "a").unwrap(), Some(b"v5".to_vec()));
    assert_eq!(view.get(2, "a").unwrap(), None);
}

#[test]
fn an_erased_user_is_gone_with_every_version_and_no_other_user_is() {
    let view = view(5);
    set(&view, 0, "a", Some((1, "x")));
    set(&view, 0, "a", Some((2, "y")));
    set(&view, 0, "b", Some((1, "z")));
    set(&view, 0, "a", None);
    assert_eq!(view.get(0, "a").unwrap(), None);
    assert!(view.versions(0, "a").unwrap().is_empty());
    assert_eq!(view.versions(0, "b").unwrap(), [b"z".to_vec()]);
}

#[test]
fn clearing_a_partition_leaves_the_others() {
    let view = view(1);
    set(&view, 1, "a", Some((1, "x")));
    set(&view, 2, "a", Some((1, "y")));
    let at = Applied {
        offset: 9,
        at_ms: -4,
    };
    view.apply(&ViewBatch {
        positions: vec![(1, at), (2, at)],
        checkpoints: vec![(1, 7, b"c".to_vec())],
        ..ViewBatch::default()
    })
    .unwrap();
    assert_eq!(view.position(1).unwrap(), Some(at));
    assert_eq!(view.checkpoint(1).unwrap(), Some((7, b"c".to_vec())));
    // Profiles made anew say nothing about the checkpoint.
    view.clear_profiles(1).unwrap();
    assert_eq!(view.position(1).unwrap(), None);
    assert_eq!(view.get(1, "a").unwrap(), None);
    assert_eq!(view.checkpoint(1).unwrap(), Some((7, b"c".to_vec())));
    set(&view, 1, "a", Some((1, "x")));
    view.clear(1).unwrap();
    assert_eq!(view.position(1).unwrap(), None);
    assert_eq!(view.checkpoint(1).unwrap(), None);
    assert_eq!(view.get(1, "a").unwrap(), None);
    assert!(view.versions(1, "a").unwrap().is_empty());
    assert_eq!(view.position(2).unwrap(), Some(at));
    let left: Vec<_> = view.states(2).map(Result::unwrap).collect();
    assert_eq!(left, [b"y".to_vec()]);
}

#[test]
fn a_view_that_was_filled_from_other_topics_is_emptied_and_one_that_does_not_know_is_kept() {
    let view = view(1);
    let at = Applied {
        offset: 9,
        at_ms: 4,
    };
    let fill = || {
        set(&view, 1, "a", Some((1, "x")));
        view.apply(&ViewBatch {
            positions: vec![(1, at)],
            ..ViewBatch::default()
        })
        .unwrap();
    };
    fill();
    assert_eq!(view.filled_from("here").unwrap(), None);
    assert_eq!(view.filled_from("here").unwrap(), None);
    assert_eq!(view.position(1).unwrap(), Some(at));
    assert_eq!(view.filled_from("there").unwrap().as_deref(), Some("here"));
    assert_eq!(view.position(1).unwrap(), None);
    assert_eq!(view.get(1, "a").unwrap(), None);
    fill();
    view.forget_origin().unwrap();
    assert_eq!(view.filled_from("elsewhere").unwrap(), None);
    assert_eq!(view.position(1).unwrap(), Some(at));
    assert_eq!(view.partitions().unwrap(), [1]);
}

#[test]
fn a_state_of_an_older_limn_is_read_and_goes_on_with_its_history() {
    let view = view(2);
    // It kept the current version among the old ones, and none with its state.
    view.database
        .with(|trees| {
            for version in [1, 2, 3] {
                let (state, key) = (format!("v{version}"), history_key(0, "a", version));
                trees
                    .view
                    .insert(&key[..], seal(1, &key, &[state.as_bytes()]))?;
            }
            let key = current_key(0, "a");
            trees.view.insert(&key[..], seal(1, &key, &[b"v3"]))?;
            Ok(())
        })
        .unwrap();
    assert_eq!(view.get(0, "a").unwrap().as_deref(), Some(&b"v3"[..]));
    assert_eq!(kept(&view, "a"), ["v1", "v2", "v3"]);
    assert_eq!(
        view.states(0).map(Result::unwrap).collect::<Vec<_>>(),
        [b"v3"]
    );
    // Read again, as after a crash: it stays one version.
    for version in [3, 4] {
        let changes = vec![change("a", Some(version))];
        view.apply(&ViewBatch {
            changes,
            ..ViewBatch::default()
        })
        .unwrap();
        let expected = ["v1", "v2", "v3", "v4"];
        let version = usize::try_from(version).unwrap();
        assert_eq!(kept(&view, "a"), expected[version - 3..version]);
    }
}

#[test]
fn a_batch_that_is_more_than_is_written_at_once_is_applied_in_parts_with_its_position_last() {
    let view = view(1);
    let state = |user: usize, version: u64| vec![u8::try_from(user).unwrap() ^ version as u8; 9000];
    let changes = (1..=3).flat_map(|version| {
        (0..30).map(move |user| Change {
            partition: 0,
            user: format!("u{user}").into(),
            state: Some((version, state(user, version))),
        })
    });
    let (offset, at_ms) = (90, 5);
    let batch = ViewBatch {
        changes: changes.collect(),
        positions: vec![(0, Applied { offset, at_ms })],
        ..ViewBatch::default()
    };
    let cost: usize = batch
        .changes
        .iter()
        .map(|c| cost(2, 2 * c.state.as_ref().unwrap().1.len()))
        .sum();
    assert!(cost > 4 * view.database.most());
    for _ in 0..2 {
        view.apply(&batch).unwrap();
        assert_eq!(view.position(0).unwrap(), Some(Applied { offset, at_ms }));
        for user in 0..30 {
            let expected = [state(user, 2), state(user, 3)];
            assert_eq!(view.versions(0, &format!("u{user}")).unwrap(), expected);
        }
    }
}

#[test]
fn a_batch_that_is_applied_twice_is_applied_once() {
    let view = view(5);
    let batch = ViewBatch {
        changes: vec![
            change("a", Some(1)),
            change("a", Some(2)),
            change("b", Some(1)),
        ],
        ..ViewBatch::default()
    };
    for _ in 0..2 {
        view.apply(&batch).unwrap();
        assert_eq!(kept(&view, "a"), ["v1", "v2"]);
        assert_eq!(kept(&view, "b"), ["v1"]);
    }
}

#[test]
fn a_torn_value_is_an_error_that_keeps_the_user_to_itself() {
    let view = view(1);
    set(&view, 0, "secret-user", Some((1, "x")));
    view.database
        .with(|trees| {
            trees
                .view
                .insert(current_key(0, "secret-user"), b"\x02oops x")?;
            Ok(())
        })
        .unwrap();
    let error = view.get(0, "secret-user").unwrap_err().to_string();
    assert!(
        error.contains("torn") && !error.contains("secret-user"),
        "{error}"
    );
}
