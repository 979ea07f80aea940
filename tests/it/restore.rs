//! Topics of ours read back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use limn::source::{Error, Wanted, restore};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::broker::{Broker, DEADLINE, shared, unique};
use crate::source::send;

/// Reads all of partition 0 back.
fn read_back(broker: &Broker, topic: &str, wait: Duration) -> Result<(Vec<String>, i64), Error> {
    let properties = [("bootstrap.servers".to_owned(), broker.servers())];
    let wanted = Wanted {
        topic: topic.to_owned(),
        partition: 0,
        from: 0,
    };
    let mut read = Vec::new();
    let ends = restore::<Error>(
        &properties,
        "limn",
        &[wanted],
        wait,
        &AtomicBool::new(false),
        |back| {
            read.push(String::from_utf8(back.value().unwrap().to_vec()).unwrap());
            Ok(())
        },
    )?;
    Ok((read, ends[&(topic.to_owned(), 0)].next))
}

#[test]
fn restoring_waits_for_an_open_transaction_and_reads_behind_its_marker() {
    let broker = shared();
    let topic = unique("profiles");
    broker.create_topic(&topic, 1, &[]);
    let producer = broker.transactional(&unique("former"));
    producer.begin_transaction().unwrap();
    send(&producer, &topic, 0, "former");
    let error = read_back(broker, &topic, Duration::from_millis(300)).unwrap_err();
    assert!(
        error.to_string().contains("still open at offset 0 of 1"),
        "{error}"
    );
    std::thread::scope(|s| {
        let reading = s.spawn(|| read_back(broker, &topic, DEADLINE).unwrap());
        // Other records come in behind it meanwhile; they are of nobody's past, but do no harm.
        broker.produce(&topic, 0, "ann", "later");
        assert!(!reading.is_finished());
        producer.commit_transaction(DEADLINE).unwrap();
        let (read, next) = reading.join().unwrap();
        assert_eq!(read[0], "former");
        assert!(next >= 1);
    });
}

#[test]
fn what_is_committed_is_read_while_an_open_transaction_behind_it_is_waited_for() {
    let broker = shared();
    let topic = unique("profiles");
    broker.create_topic(&topic, 2, &[]);
    for partition in [0, 1] {
        broker.produce(&topic, partition, "ann", "before");
    }
    let producer = broker.transactional(&unique("former"));
    producer.begin_transaction().unwrap();
    send(&producer, &topic, 0, "former");
    let properties = [("bootstrap.servers".to_owned(), broker.servers())];
    // The last of them begins behind its end.
    let wanted = [(0, 0), (1, 7)].map(|(partition, from)| Wanted {
        topic: topic.clone(),
        partition,
        from,
    });
    let mut read = Vec::new();
    let never = AtomicBool::new(false);
    let ends = restore::<Error>(&properties, "limn", &wanted, DEADLINE, &never, |back| {
        if read.is_empty() {
            // Nobody else ends the transaction: until it is, nobody can know where this partition does.
            assert_eq!(back.end, None);
            producer.commit_transaction(DEADLINE).unwrap();
        }
        let value = String::from_utf8(back.value().unwrap().to_vec()).unwrap();
        read.push((back.partition, value, back.began_anew));
        Ok(())
    });
    let of = |partition, value: &str, anew| (partition, value.to_owned(), anew);
    let expected = [
        of(0, "before", false),
        of(0, "former", false),
        of(1, "before", true),
    ];
    assert_eq!(read, expected);
    let ends = ends.unwrap();
    let next = |partition| ends[&(topic.clone(), partition)].next;
    assert_eq!((next(0), next(1)), (2, 1));
}

#[test]
fn restoring_leaves_out_what_was_aborted_even_at_the_end() {
    let broker = shared();
    let topic = unique("profiles");
    broker.create_topic(&topic, 1, &[]);
    broker.produce(&topic, 0, "ann", "kept");
    let producer = broker.transactional(&unique("former"));
    producer.begin_transaction().unwrap();
    send(&producer, &topic, 0, "aborted");
    producer.abort_transaction(DEADLINE).unwrap();
    let (read, next) = read_back(broker, &topic, DEADLINE).unwrap();
    assert_eq!((read, next), (vec!["kept".to_owned()], 1));
}

#[test]
fn restoring_reads_every_partition_to_its_end_while_one_goes_on_growing() {
    let broker = shared();
    let topic = unique("profiles");
    broker.create_topic(&topic, 2, &[]);
    broker.produce(&topic, 0, "ann", "growing");
    let long = "x".repeat(500);
    for _ in 0..40 {
        broker.produce(&topic, 1, "bob", &long);
    }
    // Small fetches: partition 0 comes to its end again and again before partition 1 does for the first time.
    let properties = [
        ("bootstrap.servers".to_owned(), broker.servers()),
        ("fetch.message.max.bytes".to_owned(), "1000".to_owned()),
        ("queued.min.messages".to_owned(), "1".to_owned()),
    ];
    let wanted = [0, 1].map(|partition| Wanted {
        topic: topic.clone(),
        partition,
        from: 0,
    });
    let (mut read, mut grown) = (0, 0);
    restore::<Error>(
        &properties,
        "limn",
        &wanted,
        DEADLINE,
        &AtomicBool::new(false),
        |back| {
            if back.partition == 1 {
                read += 1;
            } else if grown < 5 {
                grown += 1;
                broker.produce(&topic, 0, "ann", "growing");
            }
            Ok(())
        },
    )
    .unwrap();
    assert_eq!(read, 40);
}

#[test]
fn records_of_more_partitions_than_are_read_at_once_come_back_as_they_were_written() {
    let broker = shared();
    let topics: Vec<String> = (0..3).map(|_| unique("back")).collect();
    let producer: BaseProducer = broker.client().create().unwrap();
    let mut wanted = Vec::new();
    for topic in &topics {
        broker.create_topic(topic, 5, &[]);
        for partition in 0..5 {
            for n in 0..4 {
                let value = format!("{topic} {partition} {n}");
                let key = format!("user{n}");
                let record = BaseRecord::to(topic)
                    .partition(partition)
                    .timestamp(1_000 + n);
                let record = match n {
                    0 => record.payload(&value),
                    1 => record.key(&key),
                    _ => record.key(&key).payload(&value).headers(
                        OwnedHeaders::new()
                            .insert(Header {
                                key: "a",
                                value: Some("1"),
                            })
                            .insert(Header {
                                key: "",
                                value: None::<&str>,
                            })
                            .insert(Header {
                                key: "a",
                                value: Some(""),
                            }),
                    ),
                };
                producer.send(record).map_err(|(e, _)| e).unwrap();
            }
            // What lies before is not wanted.
            let (topic, from) = (topic.clone(), i64::from(partition % 2));
            wanted.push(Wanted {
                topic,
                partition,
                from,
            });
        }
    }
    producer.flush(DEADLINE).unwrap();
    let properties = [("bootstrap.servers".to_owned(), broker.servers())];
    let mut next: BTreeMap<(String, i32), i64> = BTreeMap::new();
    let never = AtomicBool::new(false);
    let ends = restore::<Error>(
        &properties,
        "limn",
        &wanted,
        DEADLINE,
        &never,
        |mut back| {
            let (topic, partition, n) = (back.topic.to_owned(), back.partition, back.offset);
            let place = next.entry((topic.clone(), partition));
            let place = place.or_insert(i64::from(partition % 2));
            assert_eq!(*place, n, "in order, without a gap: {topic}[{partition}]");
            *place += 1;
            assert!(back.end.is_none_or(|end| end == 4), "{:?}", back.end);
            assert_eq!(back.timestamp_ms(), Some(1_000 + n));
            let value = format!("{topic} {partition} {n}").into_bytes();
            let key = format!("user{n}").into_bytes();
            assert_eq!(back.key(), (n != 0).then_some(&key[..]));
            assert_eq!(back.value(), (n != 1).then_some(&value[..]));
            let record = back.record();
            assert_eq!(record.key.as_deref(), back.key());
            assert_eq!(record.value.as_deref(), back.value());
            let headers = record.headers.iter();
            let headers: Vec<_> = headers.map(|(k, v)| (&**k, v.as_deref())).collect();
            let expected: &[(&str, Option<&[u8]>)] = match n {
                0 | 1 => &[],
                _ => &[("a", Some(b"1")), ("", None), ("a", Some(b""))],
            };
            assert_eq!(headers, expected);
            Ok(())
        },
    );
    let ends = ends.unwrap();
    assert_eq!(ends.len(), 15);
    assert!(ends.values().all(|end| end.next == 4 && !end.began_anew));
    let read: BTreeSet<_> = next.into_values().collect();
    assert_eq!(read, BTreeSet::from([4]));
}

#[test]
fn a_restore_ends_with_the_error_of_who_takes_its_records() {
    let broker = shared();
    let topic = unique("back");
    broker.create_topic(&topic, 1, &[]);
    broker.produce(&topic, 0, "ann", "one");
    broker.produce(&topic, 0, "ann", "two");
    let properties = [("bootstrap.servers".to_owned(), broker.servers())];
    let wanted = Wanted {
        topic,
        partition: 0,
        from: 0,
    };
    let never = AtomicBool::new(false);
    let mut taken = 0;
    let refused = restore::<Error>(&properties, "limn", &[wanted], DEADLINE, &never, |_| {
        taken += 1;
        Err(Error::Kafka {
            doing: "taking one".to_owned(),
            reason: "no more".to_owned(),
        })
    });
    assert!(refused.unwrap_err().to_string().contains("no more"));
    assert_eq!(taken, 1);
}

#[test]
fn a_topic_that_is_deleted_while_it_is_read_back_is_named_before_the_time_is_over() {
    let broker = shared();
    let topic = unique("back");
    broker.create_topic(&topic, 1, &[]);
    let long = "x".repeat(500);
    let records: Vec<(&str, &str)> = (0..2000).map(|_| ("ann", long.as_str())).collect();
    broker.produce_all(&topic, 0, &records);
    // Small fetches: most of it is still with the broker when the topic goes.
    let properties = [
        ("bootstrap.servers".to_owned(), broker.servers()),
        ("fetch.message.max.bytes".to_owned(), "1000".to_owned()),
        ("queued.min.messages".to_owned(), "1".to_owned()),
    ];
    let wanted = Wanted {
        topic: topic.clone(),
        partition: 0,
        from: 0,
    };
    let never = AtomicBool::new(false);
    let (mut deleted, began) = (false, Instant::now());
    let wait = Duration::from_secs(120);
    let read = restore::<Error>(&properties, "limn", &[wanted], wait, &never, |_| {
        if !deleted {
            broker.delete_topics(&[&topic]);
            deleted = true;
        }
        Ok(())
    });
    let said = read.unwrap_err().to_string();
    assert!(
        said.contains(&topic) && !said.contains("no answer"),
        "{said}"
    );
    assert!(began.elapsed() < wait / 2, "{:?}", began.elapsed());
}
