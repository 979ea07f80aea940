//! Dead letters: which record each is of.

use std::hash::BuildHasher as _;

use super::{Account, Dead};
use crate::codec::{Letter, Origin};
use crate::event::Record;
use crate::verify::report::Kind;

impl Account {
    pub(in crate::verify) fn dead_letter(&mut self, place: Origin<'_>, record: &Record) {
        let letter = match Letter::read(record) {
            Ok(letter) => letter,
            Err(what) => return self.unreadable(place, &what),
        };
        if letter.topic != self.rules.topic {
            self.report.foreign += 1;
            return;
        }
        if letter.partition != place.partition {
            self.report.find(Kind::Misplaced, || {
                format!("{place}: of input partition {}", letter.partition)
            });
        }
        let hash = self.hasher.hash_one((&record.key, &record.value));
        self.partition(letter.partition).dead.push(Dead {
            offset: letter.offset,
            reason: letter.reason,
            hash: (!letter.cut).then_some(hash),
            met: false,
        });
    }
}
