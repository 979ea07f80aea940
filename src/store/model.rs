//! What a view has to answer, kept in the simplest way: the tests hold views against it.

use std::collections::BTreeMap;

use super::view::{Change, View};

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
