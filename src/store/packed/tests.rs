use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::database::tests::temporary;
use super::super::model::{Model, profile, write_beside};
use super::super::seal;
use super::super::view::{Applied, Change, ReadBack, Restoring, View, ViewBatch};
use super::block::{Form, LZ4_MOST, Sealer};
use super::index::Entry;
use super::*;

const USERS: usize = 6;
const AT: Applied = Applied {
    offset: 9,
    at_ms: 7,
};

/// Each two users in turn have one hash ([`Entry::new`]).
pub(super) fn name(user: usize) -> String {
    format!("user{}|{user}", user / 2)
}

pub(super) fn change(partition: i32, user: &str, state: Option<(u64, String)>) -> Change {
    Change {
        partition,
        user: user.into(),
        state: state.map(|(version, text)| (version, text.into_bytes())),
    }
}

pub(super) fn apply(view: &View, changes: Vec<Change>) {
    let batch = ViewBatch {
        changes,
        ..ViewBatch::default()
    };
    view.gather(&batch.changes).unwrap();
    view.apply(&batch).unwrap();
}

pub(super) fn restore(view: &View, partition: i32, changes: impl IntoIterator<Item = Change>) {
    let read = changes.into_iter().collect();
    view.restored(partition, &read, AT).unwrap();
}

/// Takes what was read back in pieces of so many, of which the view is told that more follow; the end is missing.
pub(super) fn begin<'a>(
    view: &'a View,
    partition: i32,
    changes: &[Change],
    pieces: usize,
) -> Restoring<'a> {
    let mut restoring = view.restoring(partition).unwrap();
    for some in changes.chunks(pieces) {
        let read = some.iter().cloned().collect();
        restoring.take(&read, AT, true).unwrap();
    }
    restoring
}

fn is(kind: Kind, key: &[u8]) -> bool {
    key[8] == kind as u8
}

/// How many blocks of states there are, without mere places, and how many of the view's own values.
fn written(database: &Database) -> (usize, usize) {
    let count = |trees: &Trees| {
        let blocks = trees.packed.iter().map(Result::unwrap);
        let blocks = blocks.filter(|(key, sealed)| is(Kind::Block, key) && !sealed.is_empty());
        Ok((blocks.count(), trees.view.scan_prefix(b"s").count()))
    };
    database.with(count).unwrap()
}

/// The runs of a partition.
pub(super) fn runs_of(database: &Database, partition: i32) -> u32 {
    let count = |trees: &Trees| Ok(runs(trees, partition).count());
    database.with(count).unwrap().try_into().unwrap()
}

/// A profile, and of other versions something else.
fn some_state(user: &str, version: u64) -> Vec<u8> {
    match version % 3 {
        0 => format!("{user} v{version}").into_bytes(),
        1 => profile(user, version, "tea"),
        // Not of the user, or the version, whose it is said to be.
        _ => profile(user, version + 1, "tea"),
    }
}

/// What happens to a view. Of users a number; `true` erases.
#[derive(Debug, Clone)]
enum Step {
    /// In pieces of so many. First, so many of them are read in vain: it is cut off behind them.
    Restored(Vec<(usize, bool)>, usize, usize),
    Applied(Vec<(usize, bool)>),
    Cleared,
    /// What is written is as an older limn wrote it.
    Older,
}

fn steps() -> impl Strategy<Value = Vec<(i32, Step)>> {
    let changes = || prop::collection::vec((0..USERS, prop::bool::weighted(0.2)), 1..40);
    let step = prop_oneof![
        6 => (changes(), 1usize..9, 0usize..40).prop_map(|(c, pieces, cut)| Step::Restored(c, pieces, cut)),
        2 => changes().prop_map(Step::Applied),
        1 => Just(Step::Cleared),
        2 => Just(Step::Older),
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
        let (plain, _) = Form::Now.formats();
        let plain = seal(plain, b"key", &[&block]);
        let now = Sealer::new().seal(b"key", &block);
        for sealed in [plain, now] {
            let opened = Block::open(b"key", &sealed).unwrap();
            prop_assert_eq!(&opened.states[..], &block[..]);
            if let Ok(read) = opened.states() {
                let again: Vec<u8> = read.iter().flat_map(|(_, bytes)| *bytes).copied().collect();
                prop_assert_eq!(again, &block[..]);
                for (state, bytes) in read {
                    prop_assert_eq!(user(bytes), state.user.as_bytes());
                }
            }
        }
    }

    #[test]
    fn a_state_is_read_as_it_was_written(
        of in ".{0,200}",
        version in any::<u64>(),
        mut state in prop::collection::vec(any::<u8>(), 0..300),
        named in prop::option::of((0u64..2, "[ab]?")),
        behind in prop::collection::vec(any::<u8>(), 0..9),
    ) {
        if let Some((more, also)) = named {
            state = profile(&format!("{of}{also}"), version.saturating_add(more), "tea");
        }
        let mut block = Vec::new();
        append(&mut block, &Packed { user: &of, version, state: &state });
        prop_assert_eq!(user(&block), of.as_bytes());
        block.extend_from_slice(&behind);
        let (read, rest) = split(&block).unwrap();
        prop_assert_eq!((read.user, read.version, read.state), (&of[..], version, &state[..]));
        prop_assert_eq!(rest, &behind[..]);
    }

    #[test]
    fn whatever_is_sealed_as_compressed_is_opened_or_refused_within_its_bounds(
        bytes in any::<u32>(),
        lz4 in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let (_, compressed) = Form::Now.formats();
        let sealed = seal(compressed, b"key", &[&bytes.to_le_bytes(), &lz4]);
        if let Ok(opened) = Block::open(b"key", &sealed) {
            let found = opened.states.len();
            prop_assert!(found == bytes as usize && found <= LZ4_MOST * (lz4.len() + 1));
        }
    }

    #[test]
    fn packed_states_answer_as_if_each_had_been_written_by_itself(steps in steps(), history in 0u64..3) {
        let (database, folder) = temporary();
        let view = View::new(Arc::clone(&database), history);
        let mut model = Model::default();
        let mut versions = [[0; USERS]; 2];
        for (partition, step) in steps {
            let versions = &mut versions[usize::try_from(partition).unwrap()];
            let mut changes = |users: Vec<(usize, bool)>| -> Vec<Change> {
                let each = users.into_iter().map(|(user, erased)| {
                    versions[user] = if erased { 0 } else { versions[user] + 1 };
                    let (user, version) = (name(user), versions[user]);
                    let state = (!erased).then(|| (version, some_state(&user, version)));
                    Change { partition, user: (*user).into(), state }
                });
                each.collect()
            };
            match step {
                Step::Restored(users, pieces, cut) => {
                    let changes = changes(users);
                    model.apply(&changes);
                    let before = view.position(partition).unwrap();
                    drop(begin(&view, partition, &changes[..cut.min(changes.len())], pieces));
                    let mut restoring = begin(&view, partition, &changes, pieces);
                    // Written by themselves, they take their position with them.
                    let others = database.with(|trees| Ok(trees.view.scan_prefix(b"s").count() + trees.gathered.len()));
                    if others.unwrap() == 0 {
                        prop_assert_eq!(view.position(partition).unwrap(), before);
                    }
                    restoring.take(&ReadBack::default(), AT, false).unwrap();
                    prop_assert_eq!(view.position(partition).unwrap(), Some(AT));
                }
                Step::Applied(users) => {
                    let changes = changes(users);
                    model.apply(&changes);
                    apply(&view, changes);
                }
                Step::Cleared => {
                    model.clear(partition);
                    view.clear(partition).unwrap();
                    *versions = [0; USERS];
                }
                Step::Older => write_beside(&database),
            }
        }
        let users: Vec<String> = (0..USERS).map(name).collect();
        let same = |view: &View| (0..2).for_each(|partition| model.check(view, history, partition, &users));
        same(&view);
        drop((view, database));
        let database = Database::open(&folder.path().join("db"), 1 << 20).unwrap();
        same(&View::new(Arc::new(database), history));
    }
}

#[test]
fn what_is_on_the_disk_is_found_by_any_limn() {
    let mut block = Vec::new();
    let (user, version, state) = ("ann", 300, &b"tea"[..]);
    append(
        &mut block,
        &Packed {
            user,
            version,
            state,
        },
    );
    assert_eq!(block, b"\x01\x03ann\xac\x02\x03tea");
    // A profile says itself whose it is.
    let state = &b"\x08\x01\x12\x03ann\x18\xac\x02\x22\x03tea"[..];
    assert_eq!(state, profile(user, version, "tea"));
    let packed = Packed {
        user,
        version,
        state,
    };
    block.clear();
    append(&mut block, &packed);
    assert_eq!(block, [b"\x1e", state].concat());
    assert_eq!(super::user(&block), b"ann");
    assert_eq!(split(&block), Some((packed, &b""[..])));
    assert_eq!(Form::Now.formats(), (8, 11));
    let (database, _folder) = temporary();
    sorted::tests::write(&database, (3, 1), &[name(1)], b"of then", true);
    restore(
        &View::new(Arc::clone(&database), 0),
        3,
        [change(3, "ann", Some((1, "tea".to_owned())))],
    );
    let keys = |trees: &Trees| {
        Ok(trees
            .packed
            .iter()
            .keys()
            .map(Result::unwrap)
            .collect::<Vec<_>>())
    };
    let keys = database.with(keys).unwrap();
    assert_eq!(keys[0][..8], [0, 0, 0, 3, 0, 0, 0, 1]);
    assert_eq!(keys[1], [0, 0, 0, 3, 0x80, 0, 0, 2, 0, 0, 0, 0, 0]);
    assert_eq!(keys[2][..9], [0, 0, 0, 3, 0x80, 0, 0, 2, 1]);
    assert_eq!(keys[3], [0, 0, 0, 3, 0x80, 0, 0, 2, 2]);
    assert_eq!(keys.len(), 4);
}

#[test]
fn many_states_are_few_values_and_each_is_found() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 2);
    let text = |n: usize| format!("{n} {}", "likes tea. ".repeat(20));
    let user = |n: usize| format!("someone {n}");
    let all = 1200;
    // In three pieces, so that there are three runs.
    for piece in 0..3 {
        let some = (0..all).filter(|n| n % 3 == piece);
        let changes = some.map(|n| change(4, &user(n), Some((1, text(n)))));
        restore(&view, 4, changes);
    }
    let (blocks, alone) = written(&database);
    assert_eq!(alone, 0);
    let bytes: usize = (0..all).map(|n| user(n).len() + 4 + text(n).len()).sum();
    let least = bytes / (BLOCK_BYTES + 300);
    assert!(
        (least..=bytes / BLOCK_BYTES + 3).contains(&blocks),
        "{blocks} blocks of {bytes} bytes"
    );
    assert_eq!(runs_of(&database, 4), 3, "runs");
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
    let take = |partition, bytes, more| {
        let mut restoring = view.restoring(partition).unwrap();
        restoring.take(&some(partition, bytes), AT, more).unwrap();
    };
    take(0, 100, false);
    assert_eq!(written(&database), (0, 1));
    view.restored(1, &some(1, 100), AT).unwrap();
    assert_eq!(written(&database), (1, 1));
    take(2, 2000, false);
    assert_eq!(written(&database), (2, 1));
    // Behind a state that is written by itself nothing is packed: that one would hide it.
    take(0, 2000, true);
    assert_eq!(written(&database), (2, 1));
    assert_eq!(view.get(0, "ann").unwrap().unwrap().len(), 2000);
}

/// All that is written: values, and the hashes of the entries of indexes, of each entry once.
pub(super) fn everything(database: &Database) -> (String, Vec<u64>) {
    let all = |trees: &Trees| {
        let (mut left, mut hashes) = (Vec::new(), Vec::new());
        for entry in trees.packed.iter() {
            let (key, sealed) = entry?;
            if key.len() < 20 && is(Kind::Index, &key) {
                let (_, entries) = index::opened(&key, &sealed)?;
                let named: BTreeSet<Entry> = entries.into_iter().collect();
                hashes.extend(named.into_iter().map(Entry::hash));
            } else {
                left.extend_from_slice(&Block::open(&key, &sealed)?.states);
            }
        }
        for entry in trees.view.iter() {
            left.extend_from_slice(&entry?.1);
        }
        for entry in trees.gathered.iter() {
            let (key, sealed) = entry?;
            left.extend_from_slice(&Block::open(&key, &sealed)?.states);
        }
        Ok((String::from_utf8_lossy(&left).into_owned(), hashes))
    };
    database.with(all).unwrap()
}

#[test]
fn nothing_of_an_erased_user_stays_in_any_block() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 5);
    let state = |user: &str, v| {
        let text = format!("secret of {user} {v} {}", "x".repeat(200));
        change(0, user, Some((v, text)))
    };
    restore(&view, 0, [state("ann", 1), state("bob", 1)]);
    restore(&view, 0, [state("ann", 2), state("ann", 3)]);
    // Erased with its run, in the first of its blocks and in a later one.
    let many = (0..400).map(|n| state(&format!("user{n}"), 1));
    let eve = [state("eve", 1), state("bob", 2)].into_iter().chain(many);
    let gone = [state("eve", 2), state("tim", 1)].into_iter();
    let gone = gone.chain(["eve", "tim"].map(|user| change(0, user, None)));
    restore(&view, 0, eve.chain(gone).chain([state("kim", 1)]));
    assert!(written(&database).0 > 4);
    apply(&view, vec![change(0, "ann", None)]);
    let (left, hashes) = everything(&database);
    assert!(left.contains("secret of bob 2") && left.contains("secret of kim"));
    for gone in ["ann", "eve", "tim"] {
        assert!(!left.contains(gone), "{gone} in {left}");
    }
    assert!((0..400).all(|n| left.contains(&format!("secret of user{n} "))));
    let hash = |user: &str| Entry::new(user.as_bytes(), 0).hash();
    assert!(hashes.contains(&hash("bob")) && hashes.contains(&hash("user399")));
    assert!(
        ["ann", "eve", "tim"]
            .iter()
            .all(|gone| !hashes.contains(&hash(gone)))
    );
    assert_eq!(view.get(0, "ann").unwrap(), None);
    assert!(view.versions(0, "ann").unwrap().is_empty());
    restore(&view, 0, [state("ann", 1)]);
    assert_eq!(view.versions(0, "ann").unwrap().len(), 1);
    assert_eq!(view.versions(0, "bob").unwrap().len(), 2);
}

#[test]
fn who_comes_back_behind_an_erasure_keeps_nothing_from_before_it() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 5);
    let state = |user: &str, v, text: &str| change(0, user, Some((v, format!("{user} {text}"))));
    let back = [
        state("ann", 1, "secret"),
        state("bob", 1, "tea"),
        change(0, "ann", None),
        state("ann", 1, "back"),
        state("ann", 2, "again"),
    ];
    restore(&view, 0, back);
    let versions = |user| view.versions(0, user).unwrap();
    assert_eq!(versions("ann"), [&b"ann back"[..], b"ann again"]);
    assert_eq!(versions("bob"), [b"bob tea"]);
    assert!(!everything(&database).0.contains("secret"));
}

#[test]
fn a_run_that_was_cut_off_is_removed_and_read_again() {
    let (database, folder) = temporary();
    let state = |n: usize, text: &str| change(0, &name(n), Some((1, format!("{text} of {n}"))));
    let older: Vec<_> = (0..2000).map(|n| state(n, "older")).collect();
    restore(&View::new(Arc::clone(&database), 0), 0, older);
    // As a crash leaves it at any step: some blocks, all of them, and some or all of the index.
    let whole: Vec<(sled::IVec, sled::IVec)> = database
        .with(|trees| {
            let all: Result<Vec<_>, _> = trees.packed.iter().collect();
            Ok(all?)
        })
        .unwrap();
    let run = whole
        .iter()
        .filter(|(key, _)| place(key).unwrap().1 == INDEXED);
    let run: Vec<_> = run.collect();
    assert!(run.iter().any(|(key, _)| is(Kind::Index, key)) && run.len() > 3);
    // Places behind all blocks are there from the first on.
    let (places, run): (Vec<_>, Vec<_>) =
        run.into_iter().partition(|(_, sealed)| sealed.is_empty());
    assert!(places.len() > 16);
    let run = [&run[..], &places[places.len() - 1..]].concat();
    let places = &places[..places.len() - 1];
    drop(database);
    for kept in [1, run.len() / 2, run.len() - 2, run.len() - 1] {
        let database = Arc::new(Database::open(&folder.path().join("db"), 1 << 20).unwrap());
        clear(&database, None).unwrap();
        database
            .with(|trees| {
                for (at, (key, sealed)) in run[..kept].iter().enumerate() {
                    // Of the last its place only.
                    let sealed = if at + 1 < kept { &sealed[..] } else { &[] };
                    trees.packed.insert(key, sealed)?;
                }
                for (key, sealed) in places {
                    trees.packed.insert(key, sealed)?;
                }
                Ok(())
            })
            .unwrap();
        drop(database);
        let database = Arc::new(Database::open(&folder.path().join("db"), 1 << 20).unwrap());
        let view = View::new(Arc::clone(&database), 0);
        assert_eq!(view.states(0).count(), 0, "with {kept} of {}", run.len());
        assert_eq!(view.get(0, &name(1)).unwrap(), None);
        restore(&view, 0, (0..1000).map(|n| state(n, "newer")));
        for n in 0..1000 {
            let expected = format!("newer of {n}").into_bytes();
            assert_eq!(view.get(0, &name(n)).unwrap(), Some(expected));
        }
        assert_eq!(view.states(0).map(Result::unwrap).count(), 1000);
        assert!(!everything(&database).0.contains("older"));
        view.clear(0).unwrap();
        assert_eq!(view.states(0).count(), 0);
    }
}

#[test]
fn users_of_one_hash_are_told_apart_and_erased_apart() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 3);
    let users = ["one|ann", "one|bob", "one|eve", "one|kim"];
    let hash = |user: &str| Entry::new(user.as_bytes(), 0).hash();
    assert!(users.iter().all(|user| hash(user) == hash("one|ann")));
    let state = |user: &str| change(0, user, Some((1, format!("of {user}"))));
    // Two in one block, one erased beside them, and one in a block of its own.
    let read = [
        state("one|ann"),
        state("one|bob"),
        state("one|eve"),
        change(0, "one|eve", None),
    ];
    begin(&view, 0, &read, 4)
        .take(&[state("one|kim")].into_iter().collect(), AT, false)
        .unwrap();
    let get = |user| view.get(0, user).unwrap();
    let of = |user| Some(format!("of {user}").into_bytes());
    for user in ["one|ann", "one|bob", "one|kim"] {
        assert_eq!(get(user), of(user));
    }
    assert_eq!(get("one|eve"), None);
    let named = || everything(&database).1.len();
    assert_eq!(named(), 2);
    apply(&view, vec![change(0, "one|bob", None)]);
    assert_eq!((get("one|bob"), get("one|ann")), (None, of("one|ann")));
    assert_eq!(named(), 2);
    apply(&view, vec![change(0, "one|ann", None)]);
    assert_eq!((get("one|ann"), get("one|kim")), (None, of("one|kim")));
    assert_eq!(named(), 1);
}

#[test]
fn what_was_cut_off_goes_also_where_little_is_read_then() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 3);
    let state = |n: usize| {
        change(
            0,
            &name(n),
            Some((1, format!("secret {}", "x".repeat(900)))),
        )
    };
    let many: Vec<_> = (0..60).map(state).collect();
    drop(begin(&view, 0, &many, 20));
    assert!(everything(&database).0.contains("secret"));
    let few = [change(0, "ann", Some((1, "tea".to_owned())))];
    let mut restoring = view.restoring(0).unwrap();
    restoring
        .take(&few.into_iter().collect(), AT, false)
        .unwrap();
    assert_eq!(written(&database), (0, 1));
    assert!(!everything(&database).0.contains("secret"));
}

#[test]
fn many_erasures_end_a_run_as_many_states_do() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 3);
    restore(&view, 0, [change(0, "ann", Some((1, "tea".to_owned())))]);
    let gone: Vec<_> = (0..600)
        .map(|n| change(0, &format!("gone{n}"), None))
        .collect();
    let later = Applied {
        offset: 600,
        at_ms: 7,
    };
    let mut restoring = view.restoring(0).unwrap();
    restoring
        .take(&gone.into_iter().collect(), later, true)
        .unwrap();
    assert_eq!(view.position(0).unwrap(), Some(later));
    let many: Vec<_> = (0..600)
        .map(|n| change(0, &name(n), Some((1, "tea".to_owned()))))
        .collect();
    let latest = Applied {
        offset: 1200,
        at_ms: 7,
    };
    restoring
        .take(&many.into_iter().collect(), latest, true)
        .unwrap();
    assert_eq!(view.position(0).unwrap(), Some(latest));
    assert_eq!(runs_of(&database, 0), 2);
}

#[test]
fn a_user_who_is_always_at_it_has_the_versions_that_are_kept() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 2);
    let state =
        |user: String, v: u64| change(0, &user, Some((v, format!("v{v} {}", "x".repeat(300)))));
    let all: Vec<_> = (1..=400)
        .flat_map(|v| [state("ann".to_owned(), v), state(format!("user{v}"), 1)])
        .collect();
    begin(&view, 0, &all, 50)
        .take(&ReadBack::default(), AT, false)
        .unwrap();
    let kept = || -> Vec<String> {
        let versions = view.versions(0, "ann").unwrap().into_iter();
        versions
            .map(|v| {
                String::from_utf8(v)
                    .unwrap()
                    .trim_end_matches('x')
                    .to_owned()
            })
            .collect()
    };
    assert_eq!(kept(), ["v398 ", "v399 ", "v400 "]);
    apply(&view, vec![state("ann".to_owned(), 401)]);
    assert_eq!(kept(), ["v399 ", "v400 ", "v401 "]);
    assert_eq!(view.states(0).map(Result::unwrap).count(), 401);
    apply(&view, vec![change(0, "ann", None)]);
    assert!(!everything(&database).0.contains("ann"));
}

#[test]
fn a_user_with_more_versions_than_a_block_has_room_for_is_found_whole_and_erased_whole() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 1000);
    let text = |v: u64| format!("secret {v} {}", "x".repeat(4000));
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
    // A block, its index, and the end of both.
    assert_eq!((before, after), (3, 3));
    assert!(view.get(0, "ann").unwrap().is_some());
}

#[test]
fn a_torn_block_is_an_error_that_keeps_the_user_to_itself() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 0);
    let one = vec![change(0, "secret-user", Some((1, "x".to_owned())))];
    restore(&view, 0, one);
    let all = |trees: &Trees| Ok(trees.packed.iter().map(Result::unwrap).collect::<Vec<_>>());
    let all = database.with(all).unwrap();
    let of = |kind| all.iter().find(|(key, _)| is(kind, key)).unwrap();
    let (key, sealed) = of(Kind::Block);
    // Cut off within an entry, but sealed: a length beyond the block's end is no panic either.
    let whole = Block::open(key, sealed).unwrap();
    for cut in 1..whole.states.len() {
        let (plain, _) = Form::Now.formats();
        let cut_off = seal(plain, key, &[&whole.states[..cut]]);
        let block = Block::open(key, &cut_off).unwrap();
        assert!(block.states().is_err(), "cut at {cut}");
    }
    for bit in 0..8 * sealed.len() {
        let mut torn = sealed.to_vec();
        torn[bit / 8] ^= 1 << (bit % 8);
        assert!(Block::open(key, &torn).is_err(), "bit {bit}");
    }
    let (index, _) = of(Kind::Index);
    for torn in [key, index] {
        for noise in [&b"\x01noise secret-user"[..], b"\x04", b"\xff\0\0\0\0"] {
            let insert = |key: &sled::IVec, value: &[u8]| {
                database
                    .with(|trees| Ok(trees.packed.insert(key, value)?))
                    .unwrap()
                    .unwrap()
            };
            let before = insert(torn, noise);
            let looked = database.with(|trees| {
                newest(trees, 0, "secret-user")
                    .map_err(|e| Error::Torn(e.to_string()))
                    .map_or_else(|e| Ok(Err(e)), |found| Ok(Ok(found)))
            });
            let error = looked.unwrap().unwrap_err().to_string();
            assert!(
                error.contains("torn") && !error.contains("secret-user"),
                "{error}"
            );
            insert(torn, &before);
        }
    }
    assert!(view.get(0, "secret-user").unwrap().is_some());
}

#[test]
fn runs_are_written_about_once_and_not_as_often_as_their_pages_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let database = Database::open(&path, 1 << 20).unwrap();
    // Beside one another: what is of one stands in the pages of the next.
    let runs = [2, 0, 3, 1].map(|partition| Run::begin(&database, partition).unwrap());
    let mut runs = runs.map(|mut run| {
        run.most = database.most() / 64 * 15;
        run
    });
    // Texts that nothing can compress.
    let mut random = fastrand::Rng::with_seed(7);
    let mut bytes = 0;
    for n in 0..4000 {
        let mut state = vec![0; random.usize(4000..12_000)];
        random.fill(&mut state);
        let run = &mut runs[n % 4];
        run.push([name(n).as_bytes()].into_iter(), &state).unwrap();
        bytes += state.len() as u64;
    }
    for run in runs {
        run.end().unwrap();
    }
    database.with(|trees| Ok(trees.db.flush()?)).unwrap();
    let log = std::fs::metadata(path.join("db")).unwrap().len();
    assert!(log >= bytes, "{log} bytes of log for {bytes}");
    assert!(log < bytes * 6 / 5, "{log} bytes of log for {bytes}");
}
