//! What one transaction makes visible, and who may commit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use limn::commit::{Batch, Committer, Config, Error, Outgoing};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::broker::{Broker, DEADLINE, shared, unique};

/// The topics and the group of one test.
struct Case {
    broker: &'static Broker,
    input: String,
    output: String,
    group: String,
}

impl Case {
    fn new() -> Self {
        let case = Self {
            broker: shared(),
            input: unique("in"),
            output: unique("out"),
            group: unique("group"),
        };
        case.broker.create_topic(&case.input, 2, &[]);
        case.broker.create_topic(&case.output, 2, &[]);
        case
    }

    fn committer(&self, transactional_id: &str) -> Committer {
        let config = Config {
            properties: vec![("bootstrap.servers".to_owned(), self.broker.servers())],
            transactional_id: transactional_id.to_owned(),
            transaction_timeout: Duration::from_secs(20),
            input_topic: self.input.clone(),
        };
        Committer::connect(&config, DEADLINE).unwrap()
    }

    fn batch(&self, values: &[(i32, &str)], offsets: &[(i32, i64)]) -> Batch {
        let record = |&(partition, value): &(i32, &str)| Outgoing {
            topic: self.output.clone(),
            partition: Some(partition),
            key: Some(b"ann".to_vec()),
            value: Some(value.as_bytes().to_vec()),
            headers: vec![("limn-format".into(), Some(b"1".as_slice().into()))],
        };
        Batch {
            records: values.iter().map(record).collect(),
            offsets: offsets.to_vec(),
            ..Batch::default()
        }
    }

    /// A consumer of the group that has not joined it.
    fn consumer(&self) -> BaseConsumer {
        self.broker
            .client()
            .set("group.id", &self.group)
            .set("session.timeout.ms", "6000")
            .create()
            .unwrap()
    }

    /// Metadata of no member, as it is before the group has any.
    fn no_member(&self) -> Arc<ConsumerGroupMetadata> {
        Arc::new(self.consumer().group_metadata().unwrap())
    }

    fn values(&self) -> Vec<(i32, i64, String)> {
        let read = self.broker.read_committed(&self.output);
        let read = read.into_iter();
        read.map(|r| (r.partition, r.offset, r.value.unwrap()))
            .collect()
    }
}

/// Polls the consumers until each owns so many partitions.
fn settle(members: &[(&BaseConsumer, usize)]) {
    let until = Instant::now() + DEADLINE;
    while !members
        .iter()
        .all(|(m, n)| m.assignment().unwrap().count() == *n)
    {
        assert!(Instant::now() < until, "the group does not settle");
        for (member, _) in members {
            let _ = member.poll(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_small_transaction_does_not_wait_for_a_poll_to_end() {
    let case = Case::new();
    let mut committer = case.committer(&unique("id"));
    let group = case.no_member();
    let took = (0..10).map(|offset| {
        let began = Instant::now();
        let batch = case.batch(&[(0, "a"), (1, "b")], &[(0, offset)]);
        committer.commit(&batch, &group).unwrap();
        began.elapsed()
    });
    // The binding's flush takes 100 ms where anything is outstanding. A busy machine may be slow, but not each time.
    let best = took.min().unwrap();
    assert!(best < Duration::from_millis(90), "{best:?}");
}

#[test]
fn a_committed_batch_is_visible_with_its_offsets() {
    let case = Case::new();
    let mut committer = case.committer(&unique("id"));
    let group = case.no_member();
    let batch = case.batch(&[(0, "a"), (1, "b"), (1, "c")], &[(0, 7), (1, 9)]);
    let ends = committer.commit(&batch, &group).unwrap();
    assert_eq!(ends[&(case.output.clone(), 1)], 2);
    assert_eq!(
        case.values(),
        [(0, 0, "a".into()), (1, 0, "b".into()), (1, 1, "c".into())]
    );
    let record = &case.broker.read_committed(&case.output)[0];
    assert_eq!(record.key.as_deref(), Some("ann"));
    assert_eq!(
        record.headers,
        [("limn-format".into(), Some(b"1".as_slice().into()))]
    );
    assert!(record.timestamp_ms > Some(0));
    assert_eq!(
        case.broker.committed_offsets(&case.group, &case.input),
        BTreeMap::from([(0, 7), (1, 9)])
    );
    // A marker stands behind each batch, so the next one is not at the end told: the end is behind the last record.
    let ends = committer
        .commit(&case.batch(&[(1, "d")], &[(1, 10)]), &group)
        .unwrap();
    assert_eq!(ends[&(case.output.clone(), 1)], 4);
    assert_eq!(
        case.broker.committed_offsets(&case.group, &case.input),
        BTreeMap::from([(0, 7), (1, 10)])
    );
}

#[test]
fn nothing_of_an_aborted_batch_is_visible_and_the_producer_goes_on() {
    let case = Case::new();
    let mut committer = case.committer(&unique("id"));
    let group = case.no_member();
    let mut batch = case.batch(&[(0, "a"), (1, "b")], &[(0, 7)]);
    batch.records[1].value = Some(vec![b'x'; 2_000_000]);
    let error = committer.commit(&batch, &group).unwrap_err();
    assert!(
        matches!(&error, Error::TooLarge { topic, record: 1, .. } if *topic == case.output),
        "{error}"
    );
    assert_eq!(case.values(), []);
    assert_eq!(
        case.broker.committed_offsets(&case.group, &case.input),
        BTreeMap::new()
    );
    committer
        .commit(&case.batch(&[(0, "c")], &[(0, 8)]), &group)
        .unwrap();
    let values = case.values();
    assert_eq!(values.len(), 1, "{values:?}");
    assert_eq!(values[0].2, "c");
}

#[test]
fn a_record_that_the_broker_refuses_aborts_the_whole_batch() {
    let case = Case::new();
    let small = unique("small");
    case.broker
        .create_topic(&small, 1, &[("max.message.bytes", "1000")]);
    let mut committer = case.committer(&unique("id"));
    let group = case.no_member();
    let mut batch = case.batch(&[(0, "a"), (0, "b")], &[(0, 7)]);
    batch.records[1].topic.clone_from(&small);
    // Noise, which no compression brings below the limit.
    batch.records[1].value = Some(
        (0..5000_u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect(),
    );
    let error = committer.commit(&batch, &group).unwrap_err();
    assert!(
        matches!(&error, Error::TooLarge { topic, record: 1, .. } if *topic == small),
        "{error}"
    );
    assert!(error.to_string().contains("MessageSizeTooLarge"), "{error}");
    assert_eq!(case.values(), []);
    assert_eq!(
        case.broker.committed_offsets(&case.group, &case.input),
        BTreeMap::new()
    );
    committer
        .commit(&case.batch(&[(0, "c")], &[(0, 8)]), &group)
        .unwrap();
    assert_eq!(case.values().len(), 1);
}

#[test]
fn records_that_fit_one_by_one_pass_though_their_batch_is_refused() {
    let case = Case::new();
    let small = unique("small");
    case.broker
        .create_topic(&small, 1, &[("max.message.bytes", "3000")]);
    let mut committer = case.committer(&unique("id"));
    let mut batch = case.batch(&[(0, "a"), (0, "b"), (0, "c")], &[(0, 7)]);
    for (n, record) in batch.records.iter_mut().enumerate() {
        record.topic.clone_from(&small);
        record.value = Some(vec![u8::try_from(n).unwrap() + b'a'; 2000]);
    }
    let ends = committer.commit(&batch, &case.no_member()).unwrap();
    assert_eq!(ends.len(), 1);
    let first = |value: Option<String>| value.unwrap().chars().next().unwrap();
    let read = case.broker.read_committed(&small).into_iter();
    assert_eq!(read.map(|r| first(r.value)).collect::<String>(), "abc");
}

#[test]
fn what_a_dead_producer_left_open_is_ended_by_its_successor() {
    let case = Case::new();
    let id = unique("id");
    let dead = case.broker.transactional(&id);
    dead.begin_transaction().unwrap();
    let record = BaseRecord::to(&case.output)
        .partition(0)
        .key("ann")
        .payload("lost");
    dead.send(record).map_err(|(error, _)| error).unwrap();
    dead.flush(DEADLINE).unwrap();
    assert_eq!(case.broker.visible(&case.output), []);
    let mut next = case.committer(&id);
    next.commit(&case.batch(&[(0, "kept")], &[(0, 1)]), &case.no_member())
        .unwrap();
    let values = case.values();
    assert_eq!(values.len(), 1, "{values:?}");
    assert_eq!(values[0].2, "kept");
}

#[test]
fn a_second_producer_of_the_name_fences_the_first() {
    let case = Case::new();
    let id = unique("id");
    let mut first = case.committer(&id);
    let group = case.no_member();
    first
        .commit(&case.batch(&[(0, "before")], &[(0, 1)]), &group)
        .unwrap();
    let mut second = case.committer(&id);
    let error = first
        .commit(&case.batch(&[(0, "stale")], &[(0, 2)]), &group)
        .unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    second
        .commit(&case.batch(&[(0, "after")], &[(0, 3)]), &group)
        .unwrap();
    let values: Vec<String> = case
        .values()
        .into_iter()
        .map(|(_, _, value)| value)
        .collect();
    assert_eq!(values, ["before", "after"]);
    assert_eq!(
        case.broker.committed_offsets(&case.group, &case.input)[&0],
        3
    );
}

#[test]
fn a_member_of_an_earlier_generation_cannot_commit() {
    let case = Case::new();
    let first = case.consumer();
    first.subscribe(&[&case.input]).unwrap();
    settle(&[(&first, 2)]);
    let stale = Arc::new(first.group_metadata().unwrap());
    let mut committer = case.committer(&unique("id"));
    committer
        .commit(&case.batch(&[(0, "before")], &[(0, 1)]), &stale)
        .unwrap();
    let second = case.consumer();
    second.subscribe(&[&case.input]).unwrap();
    settle(&[(&first, 1), (&second, 1)]);
    let error = committer
        .commit(&case.batch(&[(0, "stale")], &[(0, 2)]), &stale)
        .unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    let values = case.values();
    assert_eq!(values.len(), 1, "{values:?}");
    assert_eq!(
        case.broker.committed_offsets(&case.group, &case.input)[&0],
        1
    );
    // The member itself is in the new generation and may.
    let current = Arc::new(first.group_metadata().unwrap());
    let mut committer = case.committer(&unique("id"));
    committer
        .commit(&case.batch(&[(0, "after")], &[(0, 3)]), &current)
        .unwrap();
    assert_eq!(
        case.broker.committed_offsets(&case.group, &case.input)[&0],
        3
    );
}

/// Why limn's source gives no metadata of a member that is in no generation: brokers do not ask it who owns the partitions.
#[test]
fn offsets_that_name_no_member_are_taken_though_another_owns_the_partitions() {
    let case = Case::new();
    let owner = case.consumer();
    owner.subscribe(&[&case.input]).unwrap();
    settle(&[(&owner, 2)]);
    let mut committer = case.committer(&unique("id"));
    committer
        .commit(&case.batch(&[(0, "unasked")], &[(0, 1)]), &case.no_member())
        .unwrap();
    assert_eq!(
        case.broker.committed_offsets(&case.group, &case.input)[&0],
        1
    );
}

/// Turns a producer's events for so long.
fn turn(producer: &BaseProducer, time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        producer.poll(Duration::from_millis(20));
    }
}

/// Why `Committer` makes its producer anew (librdkafka 2.12.1): where this one goes on with the same, another broker has written what
/// was not answered, and takes what comes next for it. Once librdkafka is mended the first half fails, and the reason is gone.
#[test]
fn behind_an_abort_that_left_records_unanswered_the_next_are_dropped_unless_the_producer_is_new() {
    let brokers = Broker::cluster(3);
    let broker = &brokers[0];
    for anew in [false, true] {
        let (topic, small) = (unique("unanswered"), unique("small"));
        broker.create_topic(&topic, 1, &[]);
        broker.create_topic(&small, 1, &[("max.message.bytes", "400")]);
        let id = unique("id");
        let connect = || {
            let producer: BaseProducer = broker
                .client()
                .set("transactional.id", &id)
                .set("transaction.timeout.ms", "60000")
                .set("message.timeout.ms", "60000")
                // The leader says soon that the others have not got it, and it is not sent again for a while.
                .set("request.timeout.ms", "500")
                .set("retry.backoff.ms", "3000")
                .set("retry.backoff.max.ms", "3000")
                // All in one batch: one of another size would be noticed.
                .set("linger.ms", "200")
                .create()
                .unwrap();
            producer.init_transactions(DEADLINE).unwrap();
            producer
        };
        let send = |producer: &BaseProducer, topic: &str, value: &str| {
            let record = BaseRecord::<str, str>::to(topic)
                .partition(0)
                .payload(value);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        };
        let mut producer = connect();
        producer.begin_transaction().unwrap();
        send(&producer, &topic, "first");
        send(&producer, &small, "first");
        producer.flush(DEADLINE).unwrap();
        let metadata = producer.client().fetch_metadata(None, DEADLINE).unwrap();
        let leads = |id: i32| {
            let of = metadata.topics().iter();
            let mut of = of.filter(|t| [topic.as_str(), &small].contains(&t.name()));
            of.any(|topic| topic.partitions()[0].leader() == id)
        };
        let follower = (1..=3).find(|id| !leads(*id)).unwrap();
        let follower = &brokers[usize::try_from(follower).unwrap() - 1];
        follower.freeze();
        for n in 0..5 {
            send(&producer, &topic, &format!("unanswered {n}"));
        }
        turn(&producer, Duration::from_millis(1500));
        // It is refused, so the transaction cannot be committed, and what is to be sent again is dropped.
        send(&producer, &small, &"x".repeat(2000));
        turn(&producer, Duration::from_millis(500));
        follower.thaw();
        producer.abort_transaction(DEADLINE).unwrap();
        if anew {
            producer = connect();
        }
        producer.begin_transaction().unwrap();
        for n in 0..5 {
            send(&producer, &topic, &format!("next {n}"));
        }
        producer.commit_transaction(DEADLINE).unwrap();
        let seen = broker.read_committed(&topic);
        assert_eq!(
            seen.len(),
            if anew { 5 } else { 0 },
            "anew: {anew}, {seen:?}"
        );
    }
}
