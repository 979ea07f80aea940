//! What stands in the dead-letter topic of the real broker: every reason, with the record as it was.

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::broker::{self, DEADLINE, unique};
use crate::case::{self, Case, PARTITIONS};

type Bytes = Option<Vec<u8>>;

/// A record as it was sent, and what is to be said of it.
struct Sent {
    reason: &'static str,
    detail: &'static str,
    partition: i32,
    key: Bytes,
    value: Bytes,
    /// -1: none, which librdkafka passes on as it is (0 it would replace by the clock).
    timestamp: i64,
}

/// A record as it is read.
#[derive(Debug)]
struct Letter {
    partition: i32,
    key: Bytes,
    value: Bytes,
    headers: Vec<(String, Bytes)>,
}

/// The headers of every record: a name twice, a null value, bytes that are no text, and one of limn's own names.
fn headers() -> Vec<(&'static str, Option<&'static [u8]>)> {
    vec![
        ("trace", Some(b"1")),
        ("raw", Some(b"\xff\x00")),
        ("trace", Some(b"2")),
        ("null", None),
        ("limn-reason", Some(b"of an earlier life")),
        ("trace", Some(b"")),
    ]
}

fn produce(topic: &str, all: &[Sent]) {
    let mut client = broker::shared().client();
    client.set("acks", "all").set("enable.idempotence", "true");
    let producer: BaseProducer = client.create().unwrap();
    for sent in all {
        let with = headers()
            .into_iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| {
                all.insert(Header { key, value })
            });
        let mut record = BaseRecord::<[u8], [u8]>::to(topic)
            .partition(sent.partition)
            .timestamp(sent.timestamp)
            .headers(with);
        if let Some(key) = &sent.key {
            record = record.key(key);
        }
        if let Some(value) = &sent.value {
            record = record.payload(value);
        }
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(DEADLINE).unwrap();
}

fn read(topic: &str) -> Vec<Letter> {
    // Waits until no transaction is open.
    broker::shared().read_committed(topic);
    let mut client = broker::shared().client();
    client
        .set("group.id", unique("letters"))
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true");
    let reader: BaseConsumer = client.create().unwrap();
    let mut from = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        from.add_partition_offset(topic, partition, Offset::Beginning)
            .unwrap();
    }
    reader.assign(&from).unwrap();
    let (mut letters, mut ended) = (Vec::new(), BTreeSet::new());
    while ended.len() < from.count() {
        match reader.poll(Duration::from_secs(30)).expect("no answer") {
            Ok(message) => letters.push(Letter {
                partition: message.partition(),
                key: message.key().map(<[u8]>::to_vec),
                value: message.payload().map(<[u8]>::to_vec),
                headers: message
                    .headers()
                    .into_iter()
                    .flat_map(Headers::iter)
                    .map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec)))
                    .collect(),
            }),
            Err(KafkaError::PartitionEOF(partition)) => drop(ended.insert(partition)),
            Err(error) => panic!("{error}"),
        }
    }
    letters
}

/// Folds the input and compares every dead letter with what was sent, byte for byte.
fn compare(case: &Case, environment: &[(&str, &str)], sent: &[Sent]) {
    assert!(case.topics().status.success());
    produce(&case.input, sent);
    // A second start gives nothing up again.
    let mut told = String::new();
    for _ in 0..2 {
        let mut limn = case.limn("run", "a");
        limn.arg("--until-end").envs(environment.iter().copied());
        let output = limn.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        told += &said;
    }
    let mut letters = read(&case.topic("dead"));
    let mut next = [0; PARTITIONS as usize];
    for sent in sent {
        let offset = next[usize::try_from(sent.partition).unwrap()];
        next[usize::try_from(sent.partition).unwrap()] += 1;
        let text = |value: &str| Some(value.as_bytes().to_vec());
        let mine = |letter: &Letter| {
            let last = |name: &str| {
                letter
                    .headers
                    .iter()
                    .rfind(|(n, _)| n == name)
                    .unwrap()
                    .1
                    .clone()
            };
            letter.partition == sent.partition && last("limn-offset") == text(&offset.to_string())
        };
        let at = letters.iter().position(mine);
        if sent.reason.is_empty() {
            assert!(at.is_none(), "a sound event was given up: {letters:?}");
            continue;
        }
        let Some(at) = at else {
            let reason = sent.reason;
            panic!("no letter: {reason} at {offset}; there are {letters:?}\n{told}");
        };
        let letter = letters.swap_remove(at);
        assert_eq!(letter.key, sent.key, "{}", sent.reason);
        assert_eq!(letter.value, sent.value, "{}", sent.reason);
        let (original, own) = letter.headers.split_at(headers().len());
        let kept: Vec<_> = original
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_deref()))
            .collect();
        assert_eq!(kept, headers(), "{}", sent.reason);
        let (detail, rest) = own.split_last().unwrap();
        let expected = [
            ("limn-format", "1".to_owned()),
            ("limn-topic", case.input.clone()),
            ("limn-partition", sent.partition.to_string()),
            ("limn-offset", offset.to_string()),
            ("limn-reason", sent.reason.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), Some(value.into_bytes())));
        assert_eq!(rest, expected, "{}", sent.reason);
        assert_eq!(detail.0, "limn-detail");
        let said = String::from_utf8(detail.1.clone().unwrap()).unwrap();
        assert!(said.contains(sent.detail), "{}: {said}", sent.reason);
    }
    assert!(
        letters.is_empty(),
        "nobody sent these, or not twice: {letters:?}"
    );
}

/// Where the records go, and where they must not.
fn home() -> (i32, i32) {
    let home = case::home("user0");
    (home, (home + 1) % PARTITIONS)
}

const TIME: i64 = 2_000_000_000;

#[test]
fn a_dead_letter_has_the_records_own_bytes_and_says_where_and_why_for_every_reason() {
    let case = Case::new("letters");
    let (home, other) = home();
    let sent = |reason, detail, value: &[u8]| Sent {
        reason,
        detail,
        partition: home,
        key: Some(b"user0".to_vec()),
        value: Some(value.to_vec()),
        timestamp: TIME,
    };
    let event = format!(r#"{{"user":"user0","time":{TIME}}}"#);
    let long_user = format!(r#"{{"user":"{}","time":{TIME}}}"#, "u".repeat(513));
    let long_text = format!(
        r#"{{"user":"user0","time":{TIME},"note":"{}"}}"#,
        "x".repeat(1025)
    );
    let all = [
        sent("", "", event.as_bytes()),
        Sent {
            value: None,
            ..sent("null_value", "null", b"")
        },
        sent("malformed", "", b"{\"user\": \"\xff\x00"),
        Sent {
            key: None,
            ..sent("no_user", "user", br#"{"time":1}"#)
        },
        sent(
            "user_too_long",
            "513 bytes, 512 are allowed",
            long_user.as_bytes(),
        ),
        Sent {
            timestamp: -1,
            ..sent("no_time", "timestamp", br#"{"user":"user0"}"#)
        },
        sent(
            "text_too_long",
            "1025 bytes, 1024 are allowed",
            long_text.as_bytes(),
        ),
        Sent {
            partition: other,
            key: Some(b"\xff\xfe".to_vec()),
            ..sent("wrong_partition", "source.partitioner", event.as_bytes())
        },
        sent("too_late", "watermark", br#"{"user":"user0","time":1}"#),
        sent(
            "future",
            "latest allowed",
            br#"{"user":"user0","time":99999999999999}"#,
        ),
        sent("", "", event.as_bytes()),
    ];
    compare(&case, &[("LIMN_SOURCE__MAX_TEXT_BYTES", "1024")], &all);
}

/// A field of a protobuf message that holds bytes.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let (low, high) = (value.len() & 0x7f | 0x80, value.len() >> 7);
    let mut bytes = vec![
        number << 3 | 2,
        u8::try_from(low).unwrap(),
        u8::try_from(high).unwrap(),
    ];
    bytes.extend_from_slice(value);
    bytes
}

#[test]
fn a_dead_letter_has_the_records_own_bytes_also_where_the_input_is_protobuf() {
    let case = Case::new("letters-protobuf");
    let (home, other) = home();
    let sent = |reason, detail, value: Vec<u8>| Sent {
        reason,
        detail,
        partition: home,
        key: Some(b"user0".to_vec()),
        value: Some(value),
        timestamp: TIME,
    };
    let event = field(1, b"user0");
    let with = |more: Vec<u8>| [event.clone(), more].concat();
    let all = [
        sent("", "", event.clone()),
        Sent {
            value: None,
            ..sent("null_value", "null", Vec::new())
        },
        sent("malformed", "", b"\xff\xff\xff".to_vec()),
        sent("malformed", "", with(field(4, b"\xff\xfe"))),
        sent("no_user", "user", field(6, b"hello")),
        sent("user_too_long", "513 bytes", field(1, &[b'u'; 513])),
        Sent {
            timestamp: -1,
            ..sent("no_time", "timestamp", event.clone())
        },
        sent(
            "text_too_long",
            "text: 1025 bytes",
            with(field(6, &[b'x'; 1025])),
        ),
        Sent {
            partition: other,
            ..sent("wrong_partition", "source.partitioner", event.clone())
        },
        Sent {
            timestamp: 1,
            ..sent("too_late", "watermark", event.clone())
        },
    ];
    let environment = [
        ("LIMN_SOURCE__MAX_TEXT_BYTES", "1024"),
        ("LIMN_SOURCE__FORMAT", "protobuf"),
    ];
    compare(&case, &environment, &all);
}
