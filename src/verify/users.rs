//! Users, and what is known of each one's versions.

use std::collections::HashMap;
use std::sync::Arc;

use crate::profile::Marker;

/// A user's number: the account has one for each event.
pub(super) type Id = u32;

/// The state of a user that the profiles topic has last.
pub(super) struct State {
    pub(super) version: u64,
    pub(super) hash: u64,
    /// Where the marker speaks of this input: the partition, and what is folded of it.
    pub(super) marker: Option<(i32, Marker)>,
}

pub(super) struct User {
    pub(super) name: Arc<str>,
    /// Version and hash of the text of each change event, in the order of the topic since the user was erased last.
    versions: Vec<(u64, u64)>,
    /// How often the versions began again at 1.
    pub(super) restarts: u64,
    pub(super) tombstones: u64,
    pub(super) state: Option<State>,
    /// States that came before their change events did.
    pub(super) ahead: Vec<(u64, u64)>,
    /// Event times and versions, both rising: no event folded so far that happened at or before one of these times is of a
    /// later version. As long as the versions at the most.
    order: Vec<(i64, u64)>,
}

impl User {
    /// The last version that a change event tells of, and the hash of its text.
    pub(super) fn last(&self) -> Option<(u64, u64)> {
        self.versions.last().copied()
    }

    /// The first one.
    pub(super) fn first(&self) -> Option<u64> {
        self.versions.first().map(|(version, _)| *version)
    }

    pub(super) fn push(&mut self, version: u64, hash: u64) {
        self.versions.push((version, hash));
    }

    /// The versions begin again at 1.
    pub(super) fn restart(&mut self) {
        self.restarts += 1;
        self.versions.clear();
    }

    /// The hash of a version's text.
    pub(super) fn hash_of(&self, version: u64) -> Option<u64> {
        let at = self.versions.binary_search_by_key(&version, |(v, _)| *v);
        Some(self.versions[at.ok()?].1)
    }

    /// Takes in that the next event in the order of offsets, of this time, is folded into this version: false where an
    /// event before it that happened no later is folded into a later version.
    pub(super) fn in_order(&mut self, time_ms: i64, version: u64) -> bool {
        let behind = self.order.partition_point(|(time, _)| *time <= time_ms);
        if let Some((_, latest)) = behind.checked_sub(1).map(|at| self.order[at])
            && latest >= version
        {
            return latest == version;
        }
        let until = self.order[behind..].partition_point(|(_, v)| *v <= version);
        let same = behind
            .checked_sub(1)
            .is_some_and(|at| self.order[at].0 == time_ms);
        let from = if same { behind - 1 } else { behind };
        self.order
            .splice(from..behind + until, [(time_ms, version)]);
        true
    }
}

#[derive(Default)]
pub(super) struct Users {
    ids: HashMap<Arc<str>, Id>,
    all: Vec<User>,
}

impl Users {
    /// A user's number, a new one for a new user.
    pub(super) fn id(&mut self, name: &str) -> Id {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = Id::try_from(self.all.len()).expect("fewer users than 4 billion");
        let name: Arc<str> = name.into();
        self.ids.insert(Arc::clone(&name), id);
        self.all.push(User {
            name,
            versions: Vec::new(),
            restarts: 0,
            tombstones: 0,
            state: None,
            ahead: Vec::new(),
            order: Vec::new(),
        });
        id
    }

    /// The number of a user that is known.
    pub(super) fn known(&self, name: &str) -> Option<Id> {
        self.ids.get(name).copied()
    }

    pub(super) fn get(&self, id: Id) -> &User {
        &self.all[id as usize]
    }

    pub(super) fn get_mut(&mut self, id: Id) -> &mut User {
        &mut self.all[id as usize]
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut User> {
        self.all.iter_mut()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against every pair.
        #[test]
        fn the_order_of_events_is_judged_as_a_look_at_every_pair_would(
            events in prop::collection::vec((0i64..6, 1u64..6), 1..30),
        ) {
            let mut users = Users::default();
            let id = users.id("ann");
            let mut taken: Vec<(i64, u64)> = Vec::new();
            for (time, version) in events {
                let expected = taken.iter().all(|&(t, v)| t > time || v <= version);
                prop_assert_eq!(users.get_mut(id).in_order(time, version), expected, "{:?} {:?}", &taken, (time, version));
                taken.push((time, version));
            }
        }
    }
}
