//! Users in the order in which something about them falls due.

use std::collections::BTreeSet;
use std::sync::Arc;

/// Every user with open windows, once, by a key that is at most the user's true one.
///
/// A key is lowered at once and raised only when it comes to the front: so an event that prolongs a window costs nothing
/// here, and there are never more entries than users with open windows.
#[derive(Debug, Clone, Default)]
pub(super) struct Queue(BTreeSet<(i64, Arc<str>)>);

impl Queue {
    /// Takes a user out who stands at `key`.
    pub(super) fn remove(&mut self, user: &Arc<str>, key: i64) {
        self.0.remove(&(key, Arc::clone(user)));
    }

    /// Moves a user from `key` to `to`, and `key` with it.
    pub(super) fn set(&mut self, user: &Arc<str>, key: &mut i64, to: i64) {
        // A user who has just come stands nowhere yet: only one whose key is this high by itself does.
        if *key != i64::MAX || self.0.last().is_some_and(|(last, _)| last == key) {
            self.remove(user, *key);
        }
        self.0.insert((to, Arc::clone(user)));
        *key = to;
    }

    /// The same if `to` is lower. A user at `i64::MAX` may not have been put in yet, and is put in.
    pub(super) fn lower(&mut self, user: &Arc<str>, key: &mut i64, to: i64) {
        if to < *key || *key == i64::MAX {
            self.set(user, key, to);
        }
    }

    /// The lowest key and its user.
    pub(super) fn first(&self) -> Option<(i64, &Arc<str>)> {
        self.0.first().map(|(key, user)| (*key, user))
    }

    #[cfg(test)]
    pub(super) fn entries(&self) -> impl Iterator<Item = (i64, &str)> {
        self.0.iter().map(|(key, user)| (*key, user.as_ref()))
    }
}
