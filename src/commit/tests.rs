//! Against librdkafka's in-process broker: enough for what is called in which order. Visibility, fencing and the
//! offsets of a transaction cannot be seen there (it shows aborted records, fences no producer and forgets the
//! offsets); they are for the tests on a real broker.
use super::*;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::RDKafkaApiKey;

fn cluster() -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(1).unwrap();
    for topic in ["in", "changes", "profiles"] {
        cluster.create_topic(topic, 2, 1).unwrap();
    }
    cluster
}

fn committer(servers: &str) -> Committer {
    committer_within(servers, Duration::from_secs(20))
}

fn committer_within(servers: &str, transaction_timeout: Duration) -> Committer {
    let config = Config {
        properties: vec![("bootstrap.servers".to_owned(), servers.to_owned())],
        transactional_id: "group-1".to_owned(),
        transaction_timeout,
        input_topic: "in".to_owned(),
    };
    Committer::connect(&config, Duration::from_secs(20)).unwrap()
}

fn member(servers: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", "group")
        .set("isolation.level", "read_committed")
        .create()
        .unwrap()
}

fn outgoing(topic: &str, partition: i32, value: Vec<u8>) -> Outgoing {
    Outgoing {
        topic: topic.to_owned(),
        partition: Some(partition),
        key: Some(b"ann".to_vec()),
        value: Some(value),
        headers: vec![("limn-format".into(), Some(b"1".to_vec().into()))],
    }
}

#[test]
fn a_commit_tells_where_the_partitions_it_wrote_to_end() {
    let cluster = cluster();
    let servers = cluster.bootstrap_servers();
    let (mut committer, member) = (committer(&servers), member(&servers));
    let group = Arc::new(member.group_metadata().unwrap());
    let batch = Batch {
        records: vec![
            outgoing("profiles", 1, b"one".to_vec()),
            outgoing("profiles", 1, b"two".to_vec()),
            outgoing("changes", 0, b"three".to_vec()),
        ],
        offsets: vec![(0, 7), (1, 9)],
        ..Batch::default()
    };
    let ends = committer.commit(&batch, &group).unwrap();
    assert_eq!(ends[&("profiles".to_owned(), 1)], 2);
    assert_eq!(ends[&("changes".to_owned(), 0)], 1);
    // The next batch tells of itself only.
    let second = Batch {
        records: vec![outgoing("profiles", 0, b"four".to_vec())],
        offsets: vec![],
        ..Batch::default()
    };
    let ends = committer.commit(&second, &group).unwrap();
    assert_eq!(ends.len(), 1);
}

#[test]
fn a_record_over_the_size_limit_is_named_and_the_producer_goes_on() {
    let cluster = cluster();
    let servers = cluster.bootstrap_servers();
    let (mut committer, member) = (committer(&servers), member(&servers));
    let group = Arc::new(member.group_metadata().unwrap());
    let huge = Batch {
        records: vec![
            outgoing("changes", 0, b"small".to_vec()),
            outgoing("profiles", 0, vec![b'x'; 60_000_000]),
        ],
        offsets: vec![(0, 5)],
        ..Batch::default()
    };
    let error = committer.commit(&huge, &group).unwrap_err();
    assert!(
        matches!(&error, Error::TooLarge { topic, record: 1, .. } if topic == "profiles"),
        "{error}"
    );
    let small = Batch {
        records: vec![outgoing("profiles", 0, b"small".to_vec())],
        offsets: vec![(0, 5)],
        ..Batch::default()
    };
    committer.commit(&small, &group).unwrap();
}

fn one_record() -> Batch {
    Batch {
        records: vec![outgoing("profiles", 1, b"one".to_vec())],
        offsets: vec![(0, 7)],
        ..Batch::default()
    }
}

/// What the broker may have written without an answer must not lend its sequence numbers to what comes behind it, nor become a
/// part of that.
#[test]
fn a_transaction_with_records_unanswered_is_ended_by_a_producer_made_anew() {
    let cluster = cluster();
    let servers = cluster.bootstrap_servers();
    let (mut committer, member) = (committer(&servers), member(&servers));
    let group = Arc::new(member.group_metadata().unwrap());
    let batch = one_record();
    let first = committer.producer.client().native_ptr();
    let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    committer.commit(&batch, &group).unwrap();
    assert_eq!(committer.producer.client().native_ptr(), first);
    cluster.request_errors(RDKafkaApiKey::Produce, &[denied]);
    let error = committer.commit(&batch, &group).unwrap_err();
    assert!(matches!(error, Error::Aborted { .. }), "{error}");
    assert_ne!(committer.producer.client().native_ptr(), first);
    let ends = committer.commit(&batch, &group).unwrap();
    assert_eq!(ends.len(), 1);
}

/// librdkafka alone looks for it for ever.
#[test]
fn a_group_whose_coordinator_is_not_found_ends_the_attempt_in_time_and_the_next_one_commits() {
    let cluster = cluster();
    let servers = cluster.bootstrap_servers();
    let timeout = Duration::from_secs(4);
    let mut committer = committer_within(&servers, timeout);
    let first = committer.producer.client().native_ptr();
    let group = Arc::new(member(&servers).group_metadata().unwrap());
    let away = RDKafkaRespErr::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE;
    cluster.request_errors(RDKafkaApiKey::FindCoordinator, &[away; 3]);
    let began = Instant::now();
    let error = committer.commit(&one_record(), &group).unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, Error::Aborted { .. }), "{said}");
    assert!(
        said.contains("the coordinator of the group is not found"),
        "{said}"
    );
    assert!(began.elapsed() < 4 * timeout, "{:?}", began.elapsed());
    assert_ne!(committer.producer.client().native_ptr(), first);
    let ends = committer.commit(&one_record(), &group).unwrap();
    assert_eq!(ends.len(), 1);
}
