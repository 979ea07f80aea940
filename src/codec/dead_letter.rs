//! What the dead-letter topic gets of an event that is not folded.

use crate::event::{Header, Record};

use super::{Rejected, format_header};

/// Where a record was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The input topic.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
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
            key: some(b"ann"),
            value: some(b"\xff{"),
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
