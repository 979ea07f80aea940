//! Against librdkafka's in-process broker: what was sent is in the topic, and what was not is told.
use super::rows::tests::{decode, rows as parsed};
use super::*;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::BTreeMap;

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn cluster() -> (Cluster, Config) {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("in", 4, 1).unwrap();
    let config = config(cluster.bootstrap_servers());
    (cluster, config)
}

fn config(servers: String) -> Config {
    Config {
        properties: vec![("bootstrap.servers".to_owned(), servers)],
        topic: "in".to_owned(),
        partitioner: Partitioner::Murmur2,
        event_timestamps: true,
        skip_bad: false,
        timeout: Duration::from_secs(20),
    }
}

/// Partition, key, value and timestamp of each record, in the order of the partitions and offsets.
type Found = (i32, String, String, Option<i64>);

fn topic(config: &Config, records: u64) -> Vec<Found> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &config.properties[0].1)
        .set("group.id", "test")
        .create()
        .unwrap();
    let mut all = TopicPartitionList::new();
    for partition in 0..4 {
        all.add_partition_offset("in", partition, Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&all).unwrap();
    let mut found = BTreeMap::new();
    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while found.len() < usize::try_from(records).unwrap() {
        assert!(Instant::now() < until, "found {found:?}");
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            let m = message.unwrap();
            found.insert(
                (m.partition(), m.offset()),
                (
                    m.partition(),
                    text(m.key()),
                    text(m.payload()),
                    m.timestamp().to_millis(),
                ),
            );
        }
    }
    found.into_values().collect()
}

fn line(user: &str, seconds: i64) -> String {
    format!("{{\"user\":\"{user}\",\"time\":{seconds}}}\n")
}

fn rows(text: &str) -> Vec<Result<Row, Error>> {
    parsed(text, Format::JsonLines, 1000)
}

#[test]
fn every_row_is_in_the_topic_once_in_order_with_its_user_as_key_and_its_event_time() {
    let (_cluster, config) = cluster();
    let users = ["ann", "bob", "cy", "dee", "eve", "fay"];
    let mut text = String::new();
    for n in 0..600 {
        text += &line(users[n % 6], 1000 + i64::try_from(n).unwrap());
    }
    let mut told = Vec::new();
    let summary = load(&config, rows(&text), |p| told.push(p)).unwrap();
    assert_eq!((summary.sent, summary.delivered), (600, 600));
    assert_eq!((summary.failed, summary.skipped), (0, 0));
    let span = (summary.first_ms, summary.last_ms);
    assert_eq!(span, (Some(1_000_000), Some(1_599_000)));
    let bytes: usize = rows(&text)
        .iter()
        .map(|r| r.as_ref().map_or(0, |r| r.user.len() + r.value.len()))
        .sum();
    assert_eq!(summary.bytes, bytes as u64);
    let last = told.last().unwrap();
    assert_eq!((last.sent, last.delivered), (600, 600));
    let found = topic(&config, 600);
    let mut partition_of = BTreeMap::new();
    let mut last_of = BTreeMap::new();
    for (partition, key, value, timestamp) in &found {
        assert_eq!(partition_of.entry(key).or_insert(partition), &partition);
        let time = timestamp.unwrap();
        assert_eq!(value, line(key, time / 1000).trim_end());
        assert!(last_of.insert(key, time) < Some(time), "order of {key}");
    }
    assert_eq!(partition_of.len(), 6);
    // As Java's murmur2 has it.
    let known = partition_of.iter().map(|(k, p)| (k.as_str(), **p));
    let expected = users.map(|u| (u, murmur2_partition(u.as_bytes(), 4)));
    assert_eq!(known.collect::<Vec<_>>(), expected);
}

/// Kafka's own: positive murmur2 of the key, modulo the partitions.
fn murmur2_partition(key: &[u8], partitions: u32) -> i32 {
    const M: u32 = 0x5bd1_e995;
    let mut h = 0x9747_b28c_u32 ^ u32::try_from(key.len()).unwrap();
    let mut chunks = key.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes(chunk.try_into().unwrap()).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        h = h.wrapping_mul(M) ^ k;
    }
    let rest = chunks.remainder();
    for (at, &byte) in rest.iter().enumerate() {
        h ^= u32::from(byte) << (8 * at);
    }
    if !rest.is_empty() {
        h = h.wrapping_mul(M);
    }
    h = (h ^ (h >> 13)).wrapping_mul(M);
    h ^= h >> 15;
    i32::try_from((h & 0x7fff_ffff) % partitions).unwrap()
}

#[test]
fn the_first_bad_row_stops_the_load_and_what_was_sent_before_it_is_told() {
    let (_cluster, config) = cluster();
    let text = line("ann", 1) + &line("bob", 2) + "oops\n" + &line("cy", 3);
    let error = load(&config, rows(&text), |_| {}).unwrap_err();
    assert_eq!(
        error.to_string(),
        "f, line 3: malformed: expected value at line 1 column 1 (before that, 2 records were sent and 2 of them are in the topic)"
    );
    assert_eq!(topic(&config, 2).len(), 2);
    let error = load(&config, rows("oops\n"), |_| {}).unwrap_err();
    assert!(error.is_row(), "{error}");
}

#[test]
fn bad_rows_are_counted_and_left_out_where_that_is_asked_for() {
    let (_cluster, mut config) = cluster();
    config.skip_bad = true;
    config.event_timestamps = false;
    config
        .properties
        .push(("message.max.bytes".to_owned(), "1000".to_owned()));
    let long = format!("{{\"user\":\"ann\",\"x\":\"{}\"}}\n", "x".repeat(2000));
    let text = line("ann", 1) + "oops\n" + &line("bob", 2) + &long;
    let summary = load(&config, parsed(&text, Format::JsonLines, 5000), |_| {}).unwrap();
    let counts = (summary.sent, summary.delivered, summary.skipped);
    assert_eq!(counts, (2, 2, 2));
    let now = i64::try_from(
        std::time::UNIX_EPOCH
            .elapsed()
            .map(|e| e.as_millis())
            .unwrap(),
    )
    .unwrap();
    for (_, _, _, timestamp) in topic(&config, 2) {
        assert!((now - timestamp.unwrap()).abs() < 600_000);
    }
}

#[test]
fn a_file_that_cannot_be_read_on_ends_the_load_also_where_bad_rows_are_skipped() {
    let (_cluster, mut config) = cluster();
    config.skip_bad = true;
    let text = format!("user,time\nann,1\n\"{}", "x".repeat(50_000));
    let error = load(&config, parsed(&text, Format::Csv, 1000), |_| {}).unwrap_err();
    assert!(
        matches!(&error, Error::Stopped { summary, cause }
            if summary.delivered == 1 && matches!(**cause, Error::Read { line: 3, .. })),
        "{error}"
    );
}

#[test]
fn brokers_that_do_not_answer_and_topics_that_are_not_there_are_named() {
    let mut unreachable = config("127.0.0.1:1".to_owned());
    unreachable.timeout = Duration::from_secs(2);
    let started = Instant::now();
    let error = load(&unreachable, rows(&line("ann", 1)), |_| {}).unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20));
    let (_cluster, mut config) = cluster();
    config.topic = "nowhere".to_owned();
    let error = load(&config, rows(&line("ann", 1)), |_| {}).unwrap_err();
    assert!(
        error.to_string().contains("there is no topic nowhere"),
        "{error}"
    );
}

#[test]
fn brokers_that_go_away_during_the_load_end_it_and_are_named() {
    let (cluster, mut config) = cluster();
    config.timeout = Duration::from_secs(3);
    let servers = cluster.bootstrap_servers();
    let mut cluster = Some(cluster);
    let text = line("ann", 1).repeat(50);
    let rows = rows(&text).into_iter().enumerate().map(move |(n, row)| {
        if n == 20 {
            drop(cluster.take());
        }
        row
    });
    let error = load(&config, rows, |_| {}).unwrap_err();
    assert!(error.to_string().contains(&servers), "{error}");
    assert!(
        matches!(&error, Error::Stopped { summary, .. }
            if summary.failed > 0 && summary.failed + summary.delivered == summary.sent),
        "{error:?}"
    );
}

#[test]
fn rows_are_read_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.inter");
    std::fs::write(&path, "user:token\ttime:float\nann\t7\n").unwrap();
    let read: Vec<Row> = Rows::open(&path, None, Limits::default(), decode)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!((read[0].line, read[0].time_ms), (2, Some(7000)));
    assert_eq!(&*read[0].file, path.display().to_string());
}
