//! The input as a member of a group reads it, and topics read back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use limn::commit::{self, Batch, Committer};
use limn::event::Record;
use limn::source::{Assigned, Config, Error, Kafka, Message, Paused, Start};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::sync::mpsc::{Receiver, channel, error::TryRecvError};

use crate::broker::{Broker, DEADLINE, eventually, shared, unique};

const RANGE: &[(&str, &str)] = &[
    ("partition.assignment.strategy", "range"),
    ("session.timeout.ms", "6000"),
    ("heartbeat.interval.ms", "300"),
];
const COOPERATIVE: &[(&str, &str)] = &[
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("session.timeout.ms", "6000"),
    ("heartbeat.interval.ms", "300"),
];
/// KIP-848. The broker decides on sessions and heartbeats; librdkafka refuses those properties here.
const CONSUMER: &[(&str, &str)] = &[("group.protocol", "consumer")];

/// The input and the group of one test.
struct Case<'a> {
    broker: &'a Broker,
    topic: String,
    group: String,
}

impl<'a> Case<'a> {
    fn on(broker: &'a Broker, records: usize) -> Self {
        let case = Self {
            broker,
            topic: unique("in"),
            group: unique("group"),
        };
        broker.create_topic(&case.topic, 2, &[]);
        let values: Vec<String> = (0..records).map(|n| n.to_string()).collect();
        let records: Vec<(&str, &str)> = values.iter().map(|v| ("ann", v.as_str())).collect();
        for partition in 0..2 {
            broker.produce_all(&case.topic, partition, &records);
        }
        case
    }

    fn config(&self, properties: &[(&str, &str)]) -> Config {
        let servers = self.broker.servers();
        let all = [("bootstrap.servers", servers.as_str())];
        let all = all.iter().chain(properties);
        Config {
            properties: all.map(|&(k, v)| (k.to_owned(), v.to_owned())).collect(),
            topic: self.topic.clone(),
            group: self.group.clone(),
            start: Start::Earliest,
            batch: 10,
            assign_timeout: Duration::from_secs(20),
        }
    }

    fn join(&self, properties: &[(&str, &str)]) -> Member {
        Member::join(&self.config(properties))
    }

    fn committer(&self) -> Committer {
        let config = commit::Config {
            properties: vec![("bootstrap.servers".to_owned(), self.broker.servers())],
            transactional_id: unique("id"),
            transaction_timeout: Duration::from_secs(20),
            input_topic: self.topic.clone(),
        };
        Committer::connect(&config, DEADLINE).unwrap()
    }

    /// Commits offsets of the group, which has no member yet.
    fn commit(&self, offsets: &[(i32, i64)]) {
        let batch = Batch {
            offsets: offsets.to_vec(),
            ..Batch::default()
        };
        let nobody: rdkafka::consumer::BaseConsumer = self
            .broker
            .client()
            .set("group.id", &self.group)
            .create()
            .unwrap();
        let group = Arc::new(rdkafka::consumer::Consumer::group_metadata(&nobody).unwrap());
        self.committer().commit(&batch, &group).unwrap();
    }
}

/// A running source with what it tells.
struct Member {
    source: Kafka<String>,
    inbox: Receiver<Message<String>>,
}

impl Member {
    fn join(config: &Config) -> Self {
        let (out, inbox) = channel(4);
        let source = Kafka::start(config, out, |_, _, _, record: Record| {
            String::from_utf8(record.value.unwrap().into()).unwrap()
        })
        .unwrap();
        Self { source, inbox }
    }

    fn heard(&mut self) -> Option<Message<String>> {
        match self.inbox.try_recv() {
            Ok(message) => Some(message),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => panic!("the source ended without a word"),
        }
    }

    fn next(&mut self) -> Message<String> {
        eventually("the source's next message", || self.heard())
    }

    /// Waits for both partitions, whatever stands before, and opens them.
    fn own_both(&mut self) -> BTreeMap<i32, Assigned> {
        let mut own = BTreeMap::new();
        while own.len() < 2 {
            match self.next() {
                Message::Assigned(gained) => {
                    own.extend(gained.into_iter().map(|a| (a.partition, a)))
                }
                other => panic!("{other:?}"),
            }
        }
        let starts = own.values().map(|a| (a.partition, a.start));
        self.source.ready(starts.collect());
        own
    }

    fn failure(&mut self) -> Error {
        match self.next() {
            Message::Failed(error) => error,
            other => panic!("{other:?}"),
        }
    }

    /// Reads until each partition listed came to an end at or behind the position given.
    fn read_to(&mut self, ends: &[(i32, i64)]) -> Vec<(i32, i64, String)> {
        let (mut read, mut missing) = (Vec::new(), BTreeMap::from_iter(ends.iter().copied()));
        while !missing.is_empty() {
            match self.next() {
                Message::Records(records) => {
                    read.extend(
                        records
                            .into_iter()
                            .map(|r| (r.partition, r.offset, r.decoded)),
                    );
                }
                Message::End {
                    partition,
                    position,
                } => {
                    missing.retain(|&p, &mut end| p != partition || position < end);
                }
                other => panic!("{other:?}"),
            }
        }
        read.sort();
        read
    }
}

pub fn send(producer: &BaseProducer, topic: &str, partition: i32, value: &str) {
    let record = BaseRecord::to(topic)
        .partition(partition)
        .key("ann")
        .payload(value);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(DEADLINE).unwrap();
}

#[test]
fn a_partition_starts_at_its_committed_offset() {
    let case = Case::on(shared(), 5);
    case.commit(&[(1, 3)]);
    let mut member = case.join(RANGE);
    let own = member.own_both();
    let assigned = |partition, start, committed| Assigned {
        partition,
        start,
        committed,
        note: String::new(),
        low: 0,
        high: 5,
    };
    assert_eq!(own[&0], assigned(0, 0, false));
    assert_eq!(own[&1], assigned(1, 3, true));
    let read = member.read_to(&[(0, 5), (1, 5)]);
    let offsets: Vec<(i32, i64)> = read.iter().map(|&(p, o, _)| (p, o)).collect();
    assert_eq!(
        offsets,
        [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 3), (1, 4)]
    );
}

#[test]
fn a_partition_without_a_committed_offset_can_start_at_its_end() {
    let case = Case::on(shared(), 5);
    let mut config = case.config(RANGE);
    config.start = Start::Latest;
    let mut member = Member::join(&config);
    let own = member.own_both();
    assert_eq!((own[&0].start, own[&0].committed), (5, false));
    case.broker.produce(&case.topic, 0, "ann", "new");
    assert_eq!(member.read_to(&[(0, 6)]), [(0, 5, "new".to_owned())]);
}

#[test]
fn aborted_input_is_never_read() {
    let case = Case::on(shared(), 1);
    let producer = case.broker.transactional(&unique("input"));
    producer.begin_transaction().unwrap();
    send(&producer, &case.topic, 0, "aborted");
    producer.abort_transaction(DEADLINE).unwrap();
    producer.begin_transaction().unwrap();
    send(&producer, &case.topic, 0, "committed");
    producer.commit_transaction(DEADLINE).unwrap();
    let mut member = case.join(RANGE);
    member.own_both();
    // 0: plain, 1: aborted, 2: its marker, 3: committed, 4: its marker.
    let read = member.read_to(&[(0, 5), (1, 1)]);
    let texts: Vec<&str> = read.iter().map(|(_, _, text)| text.as_str()).collect();
    assert_eq!(texts, ["0", "committed", "0"]);
    assert_eq!(read[1].1, 3);
}

/// A second member joins and takes a partition over, behind what the first committed of it before it acknowledged;
/// when the second leaves, the first gets it back.
fn hand_over(properties: &[(&str, &str)]) {
    let case = Case::on(shared(), 8);
    let mut committer = case.committer();
    let mut first = case.join(properties);
    first.own_both();
    first.read_to(&[(0, 8), (1, 8)]);
    let mut second = case.join(properties);
    let mut owners = BTreeMap::from([(0, 1), (1, 1)]);
    let until = Instant::now() + DEADLINE;
    let mut taken = None;
    while taken.is_none() || owners.len() < 2 {
        assert!(Instant::now() < until, "{owners:?}");
        match first.heard() {
            Some(Message::Revoked {
                partitions,
                lost,
                done,
            }) => {
                assert!(!lost);
                assert_eq!(taken, None, "taken over before it was given up");
                let batch = Batch {
                    offsets: partitions.iter().map(|&p| (p, 5)).collect(),
                    ..Batch::default()
                };
                let group = Arc::new(first.source.group_metadata().unwrap());
                committer.commit(&batch, &group).unwrap();
                owners.retain(|p, _| !partitions.contains(p));
                done.send(()).unwrap();
            }
            Some(Message::Assigned(gained)) => {
                owners.extend(gained.iter().map(|a| (a.partition, 1)))
            }
            Some(Message::Failed(error)) => panic!("{error}"),
            _ => {}
        }
        match second.heard() {
            Some(Message::Assigned(gained)) => {
                for a in gained {
                    assert_eq!(
                        owners.insert(a.partition, 2),
                        None,
                        "two own {}",
                        a.partition
                    );
                    assert_eq!((a.start, a.committed, a.high), (5, true, 8));
                    assert_eq!(taken.replace(a.partition), None);
                }
            }
            Some(Message::Failed(error)) => panic!("{error}"),
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let taken = taken.unwrap();
    second.source.ready(vec![(taken, 5)]);
    let read = second.read_to(&[(taken, 8)]);
    assert_eq!(read.iter().map(|r| r.1).collect::<Vec<_>>(), [5, 6, 7]);
    drop(second);
    let mut back = false;
    while !back {
        match first.next() {
            Message::Revoked { done, .. } => done.send(()).unwrap(),
            Message::Assigned(gained) => back = gained.iter().any(|a| a.partition == taken),
            Message::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
}

#[test]
fn a_channel_that_is_full_for_long_costs_no_place_in_the_group() {
    let case = Case::on(shared(), 300);
    let mut member = case.join(&[
        ("session.timeout.ms", "1500"),
        ("heartbeat.interval.ms", "300"),
        ("max.poll.interval.ms", "2000"),
    ]);
    member.own_both();
    // The channel holds a seventh of it. Who does not poll for two seconds is taken for dead.
    std::thread::sleep(Duration::from_secs(5));
    let read = member.read_to(&[(0, 300), (1, 300)]);
    for partition in 0..2 {
        let offsets = read.iter().filter(|r| r.0 == partition).map(|r| r.1);
        assert!(offsets.eq(0..300), "partition {partition}");
    }
}

#[test]
fn what_came_while_the_input_rested_is_read_at_once_when_it_goes_on() {
    let case = Case::on(shared(), 1);
    let mut member = case.join(&[("fetch.wait.max.ms", "10")]);
    member.own_both();
    member.read_to(&[(0, 1), (1, 1)]);
    let mut waited: Vec<Duration> = (1..16)
        .map(|offset| {
            member.source.pause(Paused::Yes);
            case.broker.produce(&case.topic, 0, "ann", "new");
            member.source.pause(Paused::No);
            let resumed = Instant::now();
            // Looked at more often than `eventually` does: what is measured is a few milliseconds.
            while !matches!(member.heard(), Some(Message::Records(r)) if r[0].offset == offset) {
                assert!(resumed.elapsed() < DEADLINE, "{offset} does not come");
                std::thread::sleep(Duration::from_millis(1));
            }
            resumed.elapsed()
        })
        .collect();
    // A client whose threads sleep on needs half a second on the average.
    waited.sort();
    assert!(waited[7] < Duration::from_millis(250), "{waited:?}");
}

#[test]
fn a_start_at_the_first_offset_is_read_at_once() {
    let waited: Vec<Duration> = (0..5)
        .map(|_| {
            let case = Case::on(shared(), 1);
            let mut member = case.join(&[("fetch.wait.max.ms", "10")]);
            let own = member.own_both();
            let ready = Instant::now();
            assert!(own.values().all(|assigned| assigned.start == 0));
            while !matches!(member.heard(), Some(Message::Records(_))) {
                assert!(ready.elapsed() < DEADLINE, "nothing comes");
                std::thread::sleep(Duration::from_millis(1));
            }
            ready.elapsed()
        })
        .collect();
    // Its leader was asked for its ends right before: a client whose threads sleep on needs a second from then. A busy machine
    // may be slow, but not each time.
    assert!(
        waited.iter().any(|took| *took < Duration::from_millis(500)),
        "{waited:?}"
    );
}

#[test]
fn a_partition_is_handed_over_behind_its_last_commit_eager() {
    hand_over(RANGE);
}

#[test]
fn a_partition_is_handed_over_behind_its_last_commit_cooperative() {
    hand_over(COOPERATIVE);
}

#[test]
fn a_partition_is_handed_over_behind_its_last_commit_next_generation() {
    hand_over(CONSUMER);
}

#[test]
fn dropping_a_source_waits_for_nobody() {
    let case = Case::on(shared(), 200);
    let mut member = case.join(RANGE);
    member.own_both();
    // Its channel fills, and nobody empties it; the runtime would panic where its threads are blocked on its channels.
    eventually("a full channel", || (member.inbox.len() == 4).then_some(()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async { drop(member.source) });
    // The group has no member left: the next one need not wait for a session to end.
    case.join(RANGE).own_both();
}

#[test]
fn records_removed_before_they_were_folded_are_named() {
    let case = Case::on(shared(), 9);
    case.commit(&[(0, 2), (1, 2)]);
    case.broker.delete_records(&case.topic, 1, 6);
    let error = case.join(RANGE).failure();
    match &error {
        Error::Removed {
            topic,
            partition,
            group,
            committed,
            low,
        } => {
            assert_eq!((topic, group), (&case.topic, &case.group));
            assert_eq!((*partition, *committed, *low), (1, 2, 6));
        }
        other => panic!("{other}"),
    }
    let said = error.to_string();
    assert!(
        said.contains(&format!("{}[1]", case.topic)) && said.contains("4 records"),
        "{said}"
    );
}

#[test]
fn a_committed_offset_beyond_the_end_is_named() {
    let case = Case::on(shared(), 4);
    case.commit(&[(0, 4), (1, 11)]);
    match case.join(RANGE).failure() {
        Error::Beyond {
            topic,
            partition,
            committed,
            high,
            ..
        } => {
            assert_eq!((topic, partition, committed, high), (case.topic, 1, 11, 4));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn reading_goes_on_after_the_broker_was_killed() {
    let broker = Broker::start();
    let case = Case::on(&broker, 3);
    let (topic, mut member) = (case.topic.clone(), case.join(RANGE));
    member.own_both();
    assert_eq!(member.read_to(&[(0, 3), (1, 3)]).len(), 6);
    broker.kill9();
    broker.restart();
    broker.produce(&topic, 0, "ann", "after");
    // The group may have forgotten the member: then it is revoked and assigned anew.
    let mut after = None;
    while after.is_none() {
        match member.next() {
            Message::Records(records) => after = records.into_iter().find(|r| r.decoded == "after"),
            Message::Revoked { done, .. } => done.send(()).unwrap(),
            Message::Assigned(gained) => member
                .source
                .ready(gained.iter().map(|a| (a.partition, a.start)).collect()),
            Message::Failed(error) => panic!("{error}"),
            Message::End { .. } => {}
        }
    }
    assert_eq!(after.unwrap().offset, 3);
}

fn missing_topic(properties: &[(&str, &str)]) {
    let case = Case {
        broker: shared(),
        topic: unique("missing"),
        group: unique("group"),
    };
    let error = case.join(properties).failure();
    assert!(
        matches!(&error, Error::MissingTopic { topic } if *topic == case.topic),
        "{error}"
    );
}

#[test]
fn a_missing_topic_is_named() {
    missing_topic(RANGE);
}

#[test]
fn a_missing_topic_is_named_next_generation() {
    missing_topic(CONSUMER);
}
