//! How large records may be, as far as Kafka has refused some. What a topic takes is not asked for, since that needs a
//! permission of its own, and compression makes it a matter of the record.

use std::collections::HashMap;

use super::{Error, Topics};
use crate::codec::DeadLetter;
use crate::commit::{self, Outgoing};

/// What every Kafka topic takes unless it is told otherwise (`max.message.bytes` is 1,048,588).
const USUAL: usize = 1_000_000;
/// limn's headers take no more. A topic that takes what the input does, but not them, takes a record without so much.
const HEADERS: usize = 2048;

/// How large dead letters may be. They are cut to fit.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// The smallest size refused, and the one that larger ones are cut to.
    known: Option<(usize, usize)>,
}

impl Room {
    /// A dead letter of so many bytes was refused.
    pub(super) fn refused(&mut self, bytes: usize) {
        let most = match self.known {
            None if bytes > 2 * HEADERS => bytes - HEADERS,
            // What was cut is still too large.
            Some((_, most)) if bytes <= most && most > USUAL => USUAL,
            Some((_, most)) if bytes > most => most,
            _ => bytes / 2,
        };
        self.known = Some((bytes, most));
    }

    /// Cuts the dead letters that are as large as one that was refused. False: one can be cut no further.
    pub(super) fn fit(&self, topic: &str, records: &mut [Outgoing]) -> bool {
        let Some((refused, most)) = self.known else {
            return true;
        };
        let mut fits = true;
        for record in records {
            if record.topic == topic && record.bytes() >= refused {
                let mut letter = DeadLetter {
                    key: record.key.take(),
                    value: record.value.take(),
                    headers: std::mem::take(&mut record.headers),
                };
                fits &= letter.cut(most);
                (record.key, record.value, record.headers) =
                    (letter.key, letter.value, letter.headers);
            }
        }
        fits
    }
}

/// How large profile states and change events may be. They cannot be cut: an update whose records do not fit is refused.
#[derive(Debug, Clone, Default)]
pub(super) struct Limits(HashMap<String, usize>);

impl Limits {
    /// Whether the error says how large records may be: then the same update is not made again.
    pub(super) fn learn(&mut self, error: &Error, topics: &Topics) -> bool {
        let Error::Commit(commit::Error::TooLarge { topic, bytes, .. }) = error else {
            return false;
        };
        if ![&topics.profiles, &topics.changes].contains(&topic) {
            return false;
        }
        let limit = self.0.entry(topic.clone()).or_insert(usize::MAX);
        *limit = (*limit).min(*bytes);
        true
    }

    /// What is wrong with a record, if it is as large as one that was refused.
    pub(super) fn fault(&self, record: &Outgoing) -> Option<String> {
        let limit = *self.0.get(&record.topic)?;
        let bytes = record.bytes();
        (bytes >= limit).then(|| {
            format!(
                "the update makes a record of {bytes} bytes for {}, which takes fewer than {limit}: raise its max.message.bytes, or lower summary.max_tokens",
                record.topic
            )
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(bytes: usize) -> Outgoing {
        let mut headers: Vec<crate::event::Header> = Vec::new();
        for name in ["format", "topic", "partition", "offset", "reason", "detail"] {
            headers.push((format!("limn-{name}").into(), None));
        }
        let mut letter = Outgoing {
            topic: "dead".into(),
            partition: Some(0),
            key: None,
            value: Some(Vec::new()),
            headers,
        };
        let framing = letter.bytes();
        letter.value = Some(vec![b'x'; bytes - framing]);
        assert_eq!(letter.bytes(), bytes);
        letter
    }

    /// Sends to a topic that takes so much; how often it refused, and how large what it took is.
    fn sent(room: &mut Room, takes: usize, mut letters: Vec<Outgoing>) -> (usize, Vec<usize>) {
        let mut refused = 0;
        assert!(room.fit("dead", &mut letters));
        while let Some(large) = letters.iter().find(|l| l.bytes() > takes) {
            room.refused(large.bytes());
            assert!(room.fit("dead", &mut letters));
            refused += 1;
        }
        (refused, letters.iter().map(Outgoing::bytes).collect())
    }

    #[test]
    fn a_letter_that_only_limns_headers_make_too_large_loses_hardly_more_than_those() {
        for takes in [1_048_588, 10_000_000] {
            let (refused, sizes) = sent(&mut Room::default(), takes, vec![letter(takes + 600)]);
            assert_eq!(refused, 1);
            assert!(sizes[0] > takes - 2 * HEADERS, "{sizes:?}");
        }
    }

    #[test]
    fn whatever_a_topic_takes_is_found_in_a_few_steps_and_kept_in_mind() {
        for takes in [600, 5000, 300_000, 1_048_588, 30_000_000] {
            let mut room = Room::default();
            let all = vec![letter(50_000_000), letter(2_000_000), letter(500)];
            let (refused, sizes) = sent(&mut room, takes, all);
            assert!(refused <= 14, "{refused} for {takes}");
            assert_eq!(sizes[2], 500, "what fits is left alone");
            let (refused, _) = sent(&mut room, takes, vec![letter(50_000_000)]);
            assert_eq!(refused, 0);
        }
    }

    #[test]
    fn a_topic_that_takes_nothing_is_an_end() {
        let mut room = Room::default();
        let mut letters = [letter(5000)];
        for _ in 0..20 {
            room.refused(letters[0].bytes());
            if !room.fit("dead", &mut letters) {
                return;
            }
        }
        panic!("cut for ever");
    }
}
