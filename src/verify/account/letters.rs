//! Dead letters: which record each is of.

use std::hash::BuildHasher as _;

use super::{Account, Dead};
use crate::codec::{Origin, Reason};
use crate::event::Record;
use crate::text::visible;
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

/// What a dead letter says of itself.
struct Letter<'a> {
    topic: &'a str,
    partition: i32,
    offset: i64,
    reason: Reason,
    cut: bool,
}

impl<'a> Letter<'a> {
    fn read(record: &'a Record) -> Result<Self, String> {
        // The last of a name is of this rejection: the record may have been a dead letter before.
        let header = |wanted: &str| {
            let at = record
                .headers
                .iter()
                .rposition(|(name, _)| &**name == wanted);
            let at = at.ok_or_else(|| format!("it has no header {wanted}"))?;
            let text = record.headers[at].1.as_deref().map(std::str::from_utf8);
            match text {
                Some(Ok(text)) => Ok((at, text)),
                _ => Err(format!("its header {wanted} is no text")),
            }
        };
        let number = |wanted: &str| {
            let (_, text) = header(wanted)?;
            let number = text.parse::<i64>();
            number.map_err(|_| format!("its header {wanted} is no number"))
        };
        let (_, reason) = header("limn-reason")?;
        let (last, _) = header("limn-detail")?;
        let mut marks = record.headers[last..].iter();
        Ok(Self {
            topic: header("limn-topic")?.1,
            partition: i32::try_from(number("limn-partition")?)
                .map_err(|_| "its header limn-partition is no partition".to_owned())?,
            offset: number("limn-offset")?,
            reason: Reason::ALL
                .into_iter()
                .find(|known| known.name() == reason)
                .ok_or_else(|| format!("its reason {} is not known", visible(reason)))?,
            cut: marks.any(|(name, _)| name.starts_with("limn-truncated")),
        })
    }
}
