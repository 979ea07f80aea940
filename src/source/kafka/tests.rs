//! Against librdkafka's in-process broker: assignment, holding, pausing and the end of a partition. Rebalances and
//! isolation are for the tests on a real broker.
use super::*;
use crate::source::{Assigned, Start, Wanted, restore};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use std::sync::atomic::AtomicBool;
use tokio::sync::mpsc;

fn filled(topic: &str, records: usize) -> (MockCluster<'static, DefaultProducerContext>, String) {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(topic, 2, 1).unwrap();
    let servers = cluster.bootstrap_servers();
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &servers)
        .create()
        .unwrap();
    for n in 0..records {
        let value = n.to_string();
        producer
            .send(
                BaseRecord::to(topic)
                    .partition(1)
                    .key("ann")
                    .payload(&value)
                    .timestamp(5),
            )
            .unwrap();
    }
    producer.flush(Duration::from_secs(10)).unwrap();
    (cluster, servers)
}

fn config(servers: &str) -> Config {
    Config {
        properties: vec![("bootstrap.servers".to_owned(), servers.to_owned())],
        topic: "in".to_owned(),
        group: "group".to_owned(),
        start: Start::Earliest,
        batch: 7,
        assign_timeout: Duration::from_secs(20),
    }
}

#[test]
fn nothing_is_read_before_the_partition_is_ready_and_everything_after_in_order() {
    let (_cluster, servers) = filled("in", 40);
    let (out, mut messages) = mpsc::channel(2);
    let source = Kafka::start(&config(&servers), out, |_, _, _, record: Record| {
        String::from_utf8(record.value.unwrap().into()).unwrap()
    })
    .unwrap();
    let assigned = match messages.blocking_recv().unwrap() {
        Message::Assigned(assigned) => assigned,
        other => panic!("{other:?}"),
    };
    let start = |partition| Assigned {
        partition,
        start: 0,
        committed: false,
        note: String::new(),
        low: 0,
        high: if partition == 1 { 40 } else { 0 },
    };
    let mut sorted = assigned;
    sorted.sort_by_key(|a| a.partition);
    assert_eq!(sorted, [start(0), start(1)]);
    source.ready(vec![(0, 0), (1, 0)]);
    let mut read = Vec::new();
    loop {
        match messages.blocking_recv().unwrap() {
            Message::Records(records) => {
                assert!(records.len() <= 7);
                for r in records {
                    assert_eq!((r.partition, r.timestamp_ms), (1, Some(5)));
                    assert_eq!(r.decoded, r.offset.to_string());
                    read.push(r.offset);
                }
            }
            Message::End {
                partition: 1,
                position,
            } => {
                assert_eq!(position, 40);
                break;
            }
            Message::End { partition: 0, .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(read, (0..40).collect::<Vec<i64>>());
    drop(messages);
    drop(source);
}

#[test]
fn a_topic_is_read_back_from_a_position_to_its_end() {
    let (_cluster, servers) = filled("profiles", 25);
    let properties = [("bootstrap.servers".to_owned(), servers)];
    let want = |partition, from| Wanted {
        topic: "profiles".to_owned(),
        partition,
        from,
    };
    let mut read = Vec::new();
    let ends = restore::<Error>(
        &properties,
        "group",
        &[want(0, 0), want(1, 20)],
        Duration::from_secs(20),
        &AtomicBool::new(false),
        |back| {
            read.push((back.partition, back.offset));
            Ok(())
        },
    )
    .unwrap();
    assert_eq!(read, (20..25).map(|o| (1, o)).collect::<Vec<_>>());
    assert_eq!(ends[&("profiles".to_owned(), 1)].next, 25);
    assert!(!ends[&("profiles".to_owned(), 0)].began_anew);
    // A position beyond the end is of a topic that was made anew: all of it is read.
    read.clear();
    let ends = restore::<Error>(
        &properties,
        "group",
        &[want(1, 26)],
        Duration::from_secs(20),
        &AtomicBool::new(false),
        |back| {
            read.push((back.partition, back.offset));
            Ok(())
        },
    )
    .unwrap();
    assert_eq!(read.len(), 25);
    assert!(ends[&("profiles".to_owned(), 1)].began_anew);
}

/// Brokers do not ask such metadata who owns the partitions (tests/it/commit.rs).
#[test]
fn a_member_that_was_thrown_out_has_no_metadata_until_it_is_in_a_generation_again() {
    let (cluster, servers) = filled("in", 0);
    let mut config = config(&servers);
    for (name, ms) in [
        ("heartbeat.interval.ms", "100"),
        ("session.timeout.ms", "3000"),
    ] {
        config.properties.push((name.to_owned(), ms.to_owned()));
    }
    let (out, mut messages) = mpsc::channel(2);
    let source = Kafka::start(&config, out, |_, _, offset, _: Record| offset).unwrap();
    assert!(matches!(
        messages.blocking_recv(),
        Some(Message::Assigned(_))
    ));
    assert!(source.group_metadata().is_some());
    let thrown_out = RDKafkaRespErr::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION;
    cluster.request_errors(RDKafkaApiKey::Heartbeat, &[thrown_out]);
    // The rebalance waits for `done`.
    let done = loop {
        match messages.blocking_recv().unwrap() {
            Message::Revoked {
                lost: true, done, ..
            } => break done,
            Message::Revoked { .. } => panic!("not lost"),
            _ => {}
        }
    };
    assert!(source.group_metadata().is_none());
    done.send(()).unwrap();
    while !matches!(messages.blocking_recv(), Some(Message::Assigned(_))) {}
    assert!(source.group_metadata().is_some());
    drop(messages);
}
