//! What a view has to answer, kept in the simplest way: the tests hold views against it.

use std::collections::BTreeMap;

use super::Error;
use super::database::{Database, Trees};
use super::packed::{self, Form, Sealer};
use super::view::{Change, View};
use crate::codec::{self, proto};

/// A state as limn's profiles are written: it begins with its user and version.
pub(super) fn profile(user: &str, version: u64, text: &str) -> Vec<u8> {
    codec::encode(&proto::ProfileState {
        user_id: user.to_owned(),
        version,
        summary: text.to_owned(),
        ..Default::default()
    })
}

/// Writes each block of states anew as limn wrote it when the folder had format 7.
pub(super) fn write_beside(database: &Database) {
    let rewrite = |trees: &Trees| {
        let of = |tree: &sled::Tree, is_block: &dyn Fn(&[u8]) -> bool| -> Result<(), Error> {
            for entry in tree.iter() {
                let (key, sealed) = entry?;
                if !is_block(&key) {
                    continue;
                }
                let block = packed::Block::open(&key, &sealed)?;
                let mut states = Vec::new();
                for state in block.each() {
                    packed::append_beside(&mut states, &state?.0);
                }
                if !states.is_empty() {
                    let older = Sealer::of(Form::Beside).seal(&key, &states);
                    tree.insert(key, older)?;
                }
            }
            Ok(())
        };
        of(&trees.packed, &packed::is_block)?;
        of(&trees.gathered, &|_| true)
    };
    database.with(rewrite).unwrap();
}

/// Every version of every user, by partition.
#[derive(Debug, Default)]
pub(super) struct Model {
    users: BTreeMap<(i32, Box<str>), BTreeMap<u64, Vec<u8>>>,
}

impl Model {
    pub(super) fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            let user = (change.partition, change.user.clone());
            match &change.state {
                Some((version, state)) => {
                    let versions = self.users.entry(user).or_default();
                    versions.insert(*version, state.clone());
                }
                None => drop(self.users.remove(&user)),
            }
        }
    }

    pub(super) fn clear(&mut self, partition: i32) {
        self.users.retain(|(of, _), _| *of != partition);
    }

    /// Holds a view that keeps so many old versions against it, for these users.
    #[track_caller]
    pub(super) fn check(&self, view: &View, history: u64, partition: i32, users: &[String]) {
        let mut all = Vec::new();
        for user in users {
            let versions = self.users.get(&(partition, user.as_str().into()));
            let last = versions.and_then(BTreeMap::last_key_value);
            let least = last.map_or(0, |(version, _)| version.saturating_sub(history));
            let kept = versions.into_iter().flat_map(|all| all.range(least..));
            let kept: Vec<_> = kept.map(|(_, state)| state.clone()).collect();
            assert_eq!(view.get(partition, user).unwrap().as_ref(), kept.last());
            assert_eq!(view.versions(partition, user).unwrap(), kept);
            all.extend(kept.into_iter().next_back());
        }
        let mut found: Vec<_> = view.states(partition).map(Result::unwrap).collect();
        found.sort();
        all.sort();
        assert_eq!(found, all);
    }
}
