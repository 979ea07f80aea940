use std::sync::Arc;

use proptest::prelude::*;

use super::super::super::database::Database;
use super::super::super::database::tests::temporary;
use super::super::super::view::View;
use super::super::tests::{apply, change, everything, restore, runs_of};
use super::*;

/// More than an index has in two of its blocks, and in one piece, so they are of one run.
const USERS: usize = 2500;

/// Of a hash of its own.
fn name(user: usize) -> String {
    format!("user {user}.")
}

/// A user's hash as a form has it.
fn of(form: Form, user: &[u8]) -> u64 {
    form.kept(hash(user))
}

/// Writes the index of a run anew as limn wrote it when the folder had format 5 or 6.
fn write_whole(database: &Database, partition: i32, run: u32) {
    let rewrite = |trees: &Trees| {
        let mut entries = Vec::new();
        let blocks = trees
            .packed
            .scan_prefix(indexed_key(partition, run, Kind::Block));
        for (number, found) in (0..).zip(blocks) {
            let (key, sealed) = found?;
            let block = Block::open(&key, &sealed)?;
            for (state, _) in block.states()? {
                let hash = of(Form::Whole, state.user.as_bytes());
                entries.push(Entry::of(hash, number));
            }
        }
        let index = indexed_key(partition, run, Kind::Index);
        for found in trees.packed.scan_prefix(&index).keys() {
            trees.packed.remove(found?)?;
        }
        entries.sort_unstable();
        entries.dedup();
        for some in entries.chunks(ENTRIES) {
            let key = index_key(partition, run, some[0]);
            let sealed = Form::Whole.seal(&key, some);
            trees.packed.insert(&key, sealed)?;
        }
        Ok(())
    };
    database.with(rewrite).unwrap();
}

#[test]
fn an_index_on_the_disk_is_found_by_any_limn() {
    // SipHash-1-3, reckoned by another program.
    assert_eq!(of(Form::Whole, b"ann"), 0x86_014e_7d2f);
    let ann = Entry::new(b"ann", 5);
    assert_eq!(ann.bytes(), [0x86, 0x01, 0x4e, 0x7c, 0, 0, 0, 5]);
    let next = Entry(0x8601_4e80_0000_012c);
    let bytes = |form: Form| {
        let sealed = form.seal(b"key", &[ann, next]);
        unseal(form as u8, b"key", &sealed).map(<[u8]>::to_vec)
    };
    assert_eq!(
        bytes(Form::Near).as_deref(),
        Some(&b"\x01\x02\x9f\x53\x80\x21\x05\0\0\x2c\x01\x01"[..])
    );
    assert_eq!(
        bytes(Form::Whole).as_deref(),
        Some(&b"\x86\x01\x4e\x7c\0\0\0\x05\x86\x01\x4e\x80\0\0\x01\x2c"[..])
    );
}

#[test]
fn an_index_of_an_older_limn_is_found_in_and_erased_from_as_it_is() {
    let (database, _folder) = temporary();
    let view = View::new(Arc::clone(&database), 0);
    let states = |users: std::ops::Range<usize>, text: &str| -> Vec<_> {
        let state = |user| change(0, &name(user), Some((1, format!("{text} {user}"))));
        users.map(state).collect()
    };
    restore(&view, 0, states(0..USERS, "then"));
    write_whole(&database, 0, 0);
    let long = "now ".repeat(100);
    restore(&view, 0, states(USERS - 10..USERS + 10, &long));
    assert_eq!(runs_of(&database, 0), 2);
    let check = |gone: &[usize]| {
        for user in 0..USERS + 20 {
            let expected = match user {
                _ if gone.contains(&user) || user >= USERS + 10 => None,
                _ if user < USERS - 10 => Some(format!("then {user}").into_bytes()),
                _ => Some(format!("{long} {user}").into_bytes()),
            };
            assert_eq!(view.get(0, &name(user)).unwrap(), expected, "{user}");
        }
    };
    check(&[]);
    let before = everything(&database).1.len();
    let gone = [0, 1, 700, 1700, USERS - 1];
    for user in gone {
        apply(&view, vec![change(0, &name(user), None)]);
    }
    check(&gone);
    let (left, hashes) = everything(&database);
    // The last one stood in both runs.
    assert_eq!(hashes.len(), before - gone.len() - 1);
    for user in gone {
        for form in [Form::Whole, Form::Near] {
            assert!(!hashes.contains(&of(form, name(user).as_bytes())));
        }
        assert!(!left.contains(&name(user)), "{user}");
    }
}

#[test]
fn users_whose_hashes_differ_only_in_what_is_left_away_are_erased_apart() {
    let mut seen = std::collections::HashMap::new();
    let pair = (0..500_000).map(name).find_map(|user| {
        let other = seen.insert(of(Form::Near, user.as_bytes()), user.clone());
        let differs =
            |other: &String| of(Form::Whole, other.as_bytes()) != of(Form::Whole, user.as_bytes());
        other.filter(differs).map(|other| [other, user])
    });
    let pair = pair.unwrap();
    for whole in [false, true] {
        let (database, _folder) = temporary();
        let view = View::new(Arc::clone(&database), 0);
        let state = |user: &String| change(0, user, Some((1, "tea".repeat(300))));
        restore(&view, 0, pair.iter().map(state));
        assert_eq!(runs_of(&database, 0), 1);
        if whole {
            write_whole(&database, 0, 0);
        }
        let hashes = || everything(&database).1;
        assert_eq!(hashes().len(), if whole { 2 } else { 1 });
        apply(&view, vec![change(0, &pair[0], None)]);
        let form = if whole { Form::Whole } else { Form::Near };
        assert_eq!(hashes(), [of(form, pair[1].as_bytes())]);
        let there = [0, 1].map(|at: usize| view.get(0, &pair[at]).unwrap().is_some());
        assert_eq!(there, [false, true]);
        apply(&view, vec![change(0, &pair[1], None)]);
        assert_eq!(hashes().len(), 0);
        assert_eq!(view.get(0, &pair[1]).unwrap(), None);
    }
}

#[test]
fn an_entry_of_a_large_run_takes_five_bytes() {
    const STATES: u32 = 300_000;
    let entries = (0..STATES).map(|user| Entry::new(user.to_string().as_bytes(), user / 300));
    let entries: Vec<Entry> = entries.collect();
    let written: usize = sealed(0, 0, entries).map(|(_, sealed)| sealed.len()).sum();
    let each = written as f64 / f64::from(STATES);
    assert!((5.0..5.05).contains(&each), "{each}");
}

#[test]
fn a_user_who_is_not_there_has_hardly_a_block_looked_through() {
    const STATES: u32 = 1 << 19;
    let hash = |user: u32| of(Form::Near, user.to_string().as_bytes());
    let hashes = |users: std::ops::Range<u32>| users.map(hash);
    let there: std::collections::HashSet<u64> = hashes(0..STATES).collect();
    let looked = hashes(STATES..2 * STATES).filter(|hash| there.contains(hash));
    // One in 2,048.
    assert!((150..400).contains(&looked.count()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_index_has_every_entry_where_it_is_looked_for_and_no_block_of_it_is_too_large(
        users in 1u32..2000,
        states in 0u32..5000,
        one in 0..99u32,
    ) {
        // Some percent of the states are one user's.
        let of = |state: u32| if state % 99 < one { 0 } else { state % users };
        let entry = |state| Entry::new(of(state).to_string().as_bytes(), state / 7);
        let entries: Vec<Entry> = (0..states).map(entry).collect();
        let index: Vec<Written> = sealed(3, 5, entries.clone()).collect();
        let mut found = Vec::new();
        for (at, (key, sealed)) in index.iter().enumerate() {
            let (form, some) = opened(key, sealed).unwrap();
            prop_assert_eq!(form, Form::Near);
            prop_assert!((1..=ENTRIES).contains(&some.len()));
            prop_assert_eq!(key, &index_key(3, 5, *some.iter().min().unwrap()));
            // Whoever is behind all of these is behind the next key as well.
            let most = index_key(3, 5, *some.iter().max().unwrap());
            prop_assert!(index.get(at + 1).is_none_or(|(next, _)| most < *next));
            for pair in some.windows(2) {
                prop_assert!(pair[0].hash() != pair[1].hash() || pair[0] <= pair[1]);
            }
            found.extend(some);
        }
        let distinct = |entries: Vec<Entry>| entries.into_iter().collect::<std::collections::BTreeSet<_>>();
        prop_assert_eq!(distinct(found), distinct(entries));
    }

    #[test]
    fn entries_are_read_as_they_were_written(
        mut entries in prop::collection::vec((0u64..1 << 30, 0..MOST_BLOCKS), 1..50),
        near in any::<bool>(),
        few in any::<bool>(),
    ) {
        if few {
            for (hash, block) in &mut entries {
                (*hash, *block) = (*hash % 300 + 7, *block % 300);
            }
        }
        let entries: Vec<Entry> = entries
            .iter()
            .map(|&(hash, block)| Entry::of(hash << AWAY_BITS, block))
            .collect();
        let form = if near { Form::Near } else { Form::Whole };
        let sealed = form.seal(b"key", &entries);
        let (found, read) = opened(b"key", &sealed).unwrap();
        prop_assert_eq!((found, read), (form, entries));
        prop_assert!(opened(b"yek", &sealed).is_err());
    }

    #[test]
    fn whatever_stands_where_an_index_should_is_read_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..40),
        widths in (0u8..6, 0u8..5),
        near in any::<bool>(),
    ) {
        let head = if near { vec![widths.0, widths.1] } else { Vec::new() };
        for format in 0..4 {
            check(b"key", &seal(format, b"key", &[&head, &bytes]));
        }
    }
}
