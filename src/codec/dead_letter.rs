//! What the dead-letter topic gets of an event that is not folded.

use std::fmt;

use crate::event::{Header, Record, wire_bytes};
use crate::text::visible;

use super::{Reason, Rejected, format_header};

/// Where a record was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
}

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            topic,
            partition,
            offset,
        } = self;
        write!(f, "{topic}[{partition}]@{offset}")
    }
}

/// A record for the dead-letter topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The original key.
    pub key: Option<Vec<u8>>,
    /// The original value; a null value stays null.
    pub value: Option<Vec<u8>>,
    /// The original headers in their order, and limn's behind them.
    pub headers: Vec<Header>,
}

/// The dead letter of a record: its key, value and headers unchanged, and behind them `limn-format`, `limn-topic`,
/// `limn-partition`, `limn-offset`, `limn-reason` and `limn-detail`, all as text.
///
/// A record may carry headers of these names already, because a dead letter was sent to the input again. They are
/// kept; of two headers of one name the last one is of this rejection.
#[must_use]
pub fn dead_letter(record: &Record, origin: Origin<'_>, rejected: &Rejected) -> DeadLetter {
    let text = |name: &str, value: &str| -> Header { (name.into(), Some(value.as_bytes().into())) };
    let mut headers = Vec::with_capacity(record.headers.len() + 6);
    headers.extend_from_slice(&record.headers);
    headers.extend([
        format_header(),
        text("limn-topic", origin.topic),
        text("limn-partition", &origin.partition.to_string()),
        text("limn-offset", &origin.offset.to_string()),
        text("limn-reason", rejected.reason.name()),
        text("limn-detail", &rejected.detail),
    ]);
    DeadLetter {
        key: record.key.as_deref().map(Into::into),
        value: record.value.as_deref().map(Into::into),
        headers,
    }
}

/// The last of limn's own headers; what stands behind it tells what was cut.
const LAST: &str = "limn-detail";
/// How many of them there are.
const OWN: usize = 6;
/// A marker is no longer than this, name and number and all.
const MARKER: usize = 64;

impl DeadLetter {
    /// How many bytes it has for Kafka, at the most.
    #[must_use]
    pub fn bytes(&self) -> usize {
        wire_bytes(self.key.as_deref(), self.value.as_deref(), &self.headers)
    }

    /// Makes it no larger than `most` where it is: the end of the value goes first, then the original headers, then the
    /// end of the key. `limn-truncated`, `limn-truncated-headers` and `limn-truncated-key` tell how much there was (bytes,
    /// headers, bytes). False: what limn says of the record is too large already.
    ///
    /// The record that limn read may be as large as its topic allows, and with limn's headers larger than any topic does:
    /// it must not stop those behind it.
    pub fn cut(&mut self, most: usize) -> bool {
        if self.shorten_value(most) {
            return true;
        }
        let own = self.headers.iter().rposition(|(name, _)| &**name == LAST);
        let foreign = own.map_or(0, |last| (last + 1).saturating_sub(OWN));
        self.headers.drain(..foreign);
        if foreign > 0 {
            self.mark("limn-truncated-headers", foreign);
        }
        if self.shorten_value(most) {
            return true;
        }
        let over = (self.bytes() + MARKER).saturating_sub(most);
        if let Some(key) = self.key.as_mut().filter(|key| !key.is_empty()) {
            let length = key.len();
            key.truncate(length.saturating_sub(over));
            self.mark("limn-truncated-key", length);
        }
        self.bytes() <= most
    }

    fn shorten_value(&mut self, most: usize) -> bool {
        let over = self.bytes().saturating_sub(most);
        if over == 0 {
            return true;
        }
        let Some(length) = self.value.as_ref().map(Vec::len).filter(|&l| l > 0) else {
            return false;
        };
        if let Some(value) = &mut self.value {
            value.truncate(length.saturating_sub(over + MARKER));
        }
        self.mark("limn-truncated", length);
        self.bytes() <= most
    }

    /// The first marker of a name stands: it has the original's number.
    fn mark(&mut self, name: &str, number: usize) {
        let own = self.headers.iter().rposition(|(name, _)| &**name == LAST);
        let markers = own.map_or(0, |last| last + 1);
        if self.headers[markers..].iter().all(|(n, _)| &**n != name) {
            let number = number.to_string().into_bytes();
            self.headers.push((name.into(), Some(number.into())));
        }
    }
}

/// What a dead letter says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter<'a> {
    /// The input that its record was read from.
    pub topic: &'a str,
    /// The record's partition there.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// Why it was given up.
    pub reason: Reason,
    /// Something of it was cut to fit ([`DeadLetter::cut`]).
    pub cut: bool,
}

impl<'a> Letter<'a> {
    /// Reads the headers that [`dead_letter`] writes.
    ///
    /// # Errors
    /// What is missing or makes no sense: anybody may write to the topic.
    pub fn read(record: &'a Record) -> Result<Self, String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Reason;
    use proptest::prelude::*;

    fn some(bytes: &[u8]) -> Option<Box<[u8]>> {
        Some(bytes.into())
    }

    #[test]
    fn a_dead_letter_tells_where_it_was_read_and_why_it_stands_there() {
        let record = Record {
            key: Some(b"ann"[..].into()),
            value: Some(b"\xff{"[..].into()),
            headers: [("trace".into(), None), ("limn-offset".into(), some(b"3"))].into(),
        };
        let origin = Origin {
            topic: "interactions",
            partition: 4,
            offset: 17,
        };
        let rejected = Rejected::new(Reason::Malformed, "not JSON");
        let letter = dead_letter(&record, origin, &rejected);
        assert_eq!(letter.key.as_deref(), Some(&b"ann"[..]));
        assert_eq!(letter.value.as_deref(), Some(&b"\xff{"[..]));
        let expected: Vec<Header> = vec![
            ("trace".into(), None),
            ("limn-offset".into(), some(b"3")),
            ("limn-format".into(), some(b"1")),
            ("limn-topic".into(), some(b"interactions")),
            ("limn-partition".into(), some(b"4")),
            ("limn-offset".into(), some(b"17")),
            ("limn-reason".into(), some(b"malformed")),
            ("limn-detail".into(), some(b"not JSON")),
        ];
        assert_eq!(letter.headers, expected);
    }

    proptest! {
        #[test]
        fn what_is_too_large_is_cut_to_fit_and_says_so(
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..3000)),
            value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9000)),
            headers in proptest::collection::vec(("[a-z]{0,9}", proptest::option::of(proptest::collection::vec(any::<u8>(), 0..900))), 0..5),
            first in 1200..20_000_usize,
            second in 1200..20_000_usize,
        ) {
            let mut all: Vec<Header> = headers.into_iter().map(|(n, v)| (n.into(), v.map(Into::into))).collect();
            // A dead letter that was sent to the input again.
            all.push(("limn-truncated".into(), some(b"77")));
            let record = Record { key: key.clone().map(Into::into), value: value.clone().map(Into::into), headers: all.clone().into() };
            let origin = Origin { topic: "in", partition: 0, offset: 0 };
            let whole = dead_letter(&record, origin, &Rejected::new(Reason::Malformed, "not JSON"));
            let mut letter = whole.clone();
            for most in [first, second] {
                prop_assert!(letter.cut(most));
                prop_assert!(letter.bytes() <= most);
            }
            let least = first.min(second);
            prop_assert_eq!(whole.bytes() <= least, letter == whole);
            let marks = letter.headers.iter().rposition(|(n, _)| &**n == LAST).unwrap() + 1;
            let told = |name: &str| letter.headers[marks..].iter().find(|(n, _)| &**n == name)
                .map(|(_, v)| std::str::from_utf8(v.as_deref().unwrap()).unwrap().parse::<usize>().unwrap());
            for (name, before, after) in [("limn-truncated", &value, &letter.value), ("limn-truncated-key", &key, &letter.key)] {
                prop_assert_eq!(before.is_none(), after.is_none());
                let (before, after) = (before.clone().unwrap_or_default(), after.clone().unwrap_or_default());
                prop_assert!(before.starts_with(&after));
                prop_assert_eq!(told(name), (before != after).then_some(before.len()));
            }
            match told("limn-truncated-headers") {
                Some(count) => prop_assert_eq!(count, all.len()),
                None => prop_assert_eq!(&letter.headers[..all.len()], &all[..]),
            }
            for (name, value) in &whole.headers[all.len()..] {
                prop_assert!(letter.headers[..marks].contains(&(name.clone(), value.clone())));
            }
        }

        #[test]
        fn key_value_and_headers_stay_as_they_were(
            key: Option<Vec<u8>>,
            value: Option<Vec<u8>>,
            headers: Vec<(String, Option<Vec<u8>>)>,
        ) {
            let record = Record {
                key: key.clone().map(Into::into),
                value: value.clone().map(Into::into),
                headers: headers.into_iter().map(|(n, v)| (n.into(), v.map(Into::into))).collect(),
            };
            let origin = Origin { topic: "in", partition: 0, offset: 0 };
            let letter = dead_letter(&record, origin, &Rejected::new(Reason::NullValue, ""));
            prop_assert_eq!(letter.key, key);
            prop_assert_eq!(letter.value, value);
            let kept = record.headers.len();
            prop_assert_eq!(&letter.headers[..kept], &*record.headers);
            prop_assert_eq!(letter.headers.len(), kept + 6);
        }
    }
}
