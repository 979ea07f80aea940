//! The transaction: what was made of the events and the offsets behind them become visible together, or not at all.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{
    BaseRecord, DeliveryResult, Producer, ProducerContext, PurgeConfig, ThreadedProducer,
};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::{event, failpoint};

/// What the transactional producer needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// librdkafka properties, `bootstrap.servers` among them. They may hold secrets and are never logged.
    pub properties: Vec<(String, String)>,
    /// The producer's name. It must be this instance's alone: a second producer of the name fences the first.
    pub transactional_id: String,
    /// How long the broker lets a transaction stay open. A dead owner's transaction holds back every `read_committed`
    /// reader that long, so it is short.
    pub transaction_timeout: Duration,
    /// The topic whose offsets are committed.
    pub input_topic: String,
}

/// One record of the batch.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The topic it goes to.
    pub topic: String,
    /// The partition; `None` leaves it to the topic's partitioner.
    pub partition: Option<i32>,
    /// The key; `None` is a null key.
    pub key: Option<Vec<u8>>,
    /// The value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// The headers in their order.
    pub headers: Vec<event::Header>,
}

/// What one transaction holds.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Change events, profile states, dead letters and checkpoints.
    pub records: Vec<Outgoing>,
    /// For each input partition touched, the offset that a restart begins at.
    pub offsets: Vec<(i32, i64)>,
}

/// Why a batch did not commit.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The transaction was aborted, for sure: nothing of it is visible, and the same batch may be tried again.
    #[error("transaction aborted while {doing}: {reason}")]
    Aborted {
        /// The step that failed.
        doing: &'static str,
        /// What Kafka said.
        reason: String,
    },
    /// This instance no longer owns what it wanted to commit. Its state must be dropped and read again from Kafka.
    #[error("no longer the owner while {doing}: {reason}")]
    Fenced {
        /// The step that failed.
        doing: &'static str,
        /// What Kafka said.
        reason: String,
    },
    /// Whether the transaction committed is not known, or the producer is unusable. It must be destroyed and made anew,
    /// and what was committed must be read from Kafka (librdkafka has no KIP-890).
    #[error("transaction in doubt while {doing}: {reason}")]
    InDoubt {
        /// The step that failed.
        doing: &'static str,
        /// What Kafka said.
        reason: String,
    },
    /// A record can never be sent as it is.
    #[error("a record for topic {topic} cannot be sent: {reason}")]
    Unsendable {
        /// The record's topic.
        topic: String,
        /// What librdkafka said.
        reason: String,
    },
}

impl Error {
    /// The name in metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Aborted { .. } => "aborted",
            Self::Fenced { .. } => "fenced",
            Self::InDoubt { .. } => "in_doubt",
            Self::Unsendable { .. } => "unsendable",
        }
    }
}

/// Where each partition written to ends now: the offset after the last record of the batch.
pub type Ends = HashMap<(String, i32), i64>;

/// What the delivery reports of the current transaction told.
#[derive(Default)]
struct Delivered {
    ends: Ends,
    failed: Option<String>,
}

#[derive(Default)]
struct Deliveries(Mutex<Delivered>);

impl Deliveries {
    fn take(&self) -> Delivered {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let mut delivered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(message) => {
                let end = delivered
                    .ends
                    .entry((message.topic().to_owned(), message.partition()))
                    .or_default();
                *end = (*end).max(message.offset() + 1);
            }
            Err((error, _)) => {
                delivered.failed.get_or_insert_with(|| error.to_string());
            }
        }
    }
}

/// The instance's one transactional producer.
pub struct Committer {
    producer: ThreadedProducer<Deliveries>,
    input_topic: String,
    timeout: Duration,
}

impl Committer {
    /// Connects, and ends whatever a former producer of this name left open.
    ///
    /// # Errors
    /// [`Error::InDoubt`] where the properties are wrong or the brokers do not answer within `wait`.
    pub fn connect(config: &Config, wait: Duration) -> Result<Self, Error> {
        let doing = "connecting the transactional producer";
        let failed = |error: KafkaError| Error::InDoubt {
            doing,
            reason: error.to_string(),
        };
        let timeout_ms = config.transaction_timeout.as_millis().to_string();
        let mut client = ClientConfig::new();
        client.set("queue.buffering.max.kbytes", "65536");
        client.set("linger.ms", "5");
        client.extend(config.properties.iter().cloned());
        // These carry the guarantees and are not the user's to change.
        client
            .set("transactional.id", &config.transactional_id)
            .set("enable.idempotence", "true")
            .set("transaction.timeout.ms", &timeout_ms)
            .set("message.timeout.ms", &timeout_ms);
        let producer: ThreadedProducer<Deliveries> = client
            .create_with_context(Deliveries::default())
            .map_err(failed)?;
        producer.init_transactions(wait).map_err(failed)?;
        Ok(Self {
            producer,
            input_topic: config.input_topic.clone(),
            timeout: config.transaction_timeout,
        })
    }

    /// Commits a batch: blocks until it is visible to `read_committed` consumers, or is not.
    ///
    /// The group's metadata rides in the same transaction, so an instance that lost its partitions is refused by the
    /// group coordinator and cannot make visible what another owner folds again.
    ///
    /// # Errors
    /// See [`Error`]; after any but [`Error::Aborted`] and [`Error::Unsendable`] this producer must not be used again.
    pub fn commit(&self, batch: &Batch, group: &ConsumerGroupMetadata) -> Result<Ends, Error> {
        self.producer.context().take();
        let begin = "beginning a transaction";
        self.producer
            .begin_transaction()
            .map_err(|e| self.give_up(begin, &e))?;
        failpoint::pass("transaction_begun");
        for record in &batch.records {
            self.send(record)?;
        }
        failpoint::pass("records_sent");
        let sending = "sending offsets to the transaction";
        let mut offsets = TopicPartitionList::with_capacity(batch.offsets.len());
        for &(partition, offset) in &batch.offsets {
            offsets
                .add_partition_offset(&self.input_topic, partition, Offset::Offset(offset))
                .map_err(|e| self.give_up(sending, &e))?;
        }
        if !batch.offsets.is_empty() {
            self.producer
                .send_offsets_to_transaction(&offsets, group, self.timeout)
                .map_err(|e| self.give_up(sending, &e))?;
        }
        failpoint::pass("offsets_sent");
        self.producer
            .commit_transaction(self.timeout)
            .map_err(|e| self.give_up("committing the transaction", &e))?;
        failpoint::pass("committed");
        Ok(self.producer.context().take().ends)
    }

    fn send(&self, record: &Outgoing) -> Result<(), Error> {
        let headers = record
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (name, value)| {
                all.insert(Header {
                    key: name,
                    value: value.as_deref(),
                })
            });
        let mut base = BaseRecord::<[u8], [u8]>::to(&record.topic).headers(headers);
        base.partition = record.partition;
        base.key = record.key.as_deref();
        base.payload = record.value.as_deref();
        let until = Instant::now() + self.timeout;
        loop {
            match self.producer.send(base) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if Instant::now() < until =>
                {
                    // The queue is bounded on purpose; delivering some of it makes room.
                    let _ = self.producer.flush(Duration::from_millis(50));
                    base = back;
                }
                Err((
                    error @ KafkaError::MessageProduction(
                        RDKafkaErrorCode::MessageSizeTooLarge
                        | RDKafkaErrorCode::UnknownTopic
                        | RDKafkaErrorCode::UnknownPartition,
                    ),
                    _,
                )) => {
                    return Err(match self.abort() {
                        Ok(()) => Error::Unsendable {
                            topic: record.topic.clone(),
                            reason: error.to_string(),
                        },
                        Err(in_doubt) => in_doubt,
                    });
                }
                Err((error, _)) => return Err(self.give_up("sending records", &error)),
            }
        }
    }

    /// Decides what a failed call means. Only an error that Kafka calls abortable, followed by an abort that worked,
    /// is a known outcome; everything else is doubt, and doubt is never resolved by guessing.
    fn give_up(&self, doing: &'static str, error: &KafkaError) -> Error {
        let reason = match self.producer.context().take().failed {
            Some(delivery) => format!("{error} (first undelivered record: {delivery})"),
            None => error.to_string(),
        };
        if lost_ownership(error) {
            // Nothing was committed. The abort only spares other readers the wait for the time-out.
            let _ = self.abort();
            return Error::Fenced { doing, reason };
        }
        let abortable = match error {
            KafkaError::Transaction(e) => e.txn_requires_abort() && !e.is_fatal(),
            KafkaError::MessageProduction(_) => true,
            _ => false,
        };
        if !abortable {
            return Error::InDoubt { doing, reason };
        }
        match self.abort() {
            Ok(()) => Error::Aborted { doing, reason },
            Err(in_doubt) => in_doubt,
        }
    }

    fn abort(&self) -> Result<(), Error> {
        self.producer
            .purge(PurgeConfig::default().queue().inflight());
        // The purged records' reports must be served before the abort is taken up.
        let _ = self.producer.flush(Duration::from_millis(200));
        self.producer
            .abort_transaction(self.timeout)
            .map_err(|error| Error::InDoubt {
                doing: "aborting a transaction",
                reason: error.to_string(),
            })
    }
}

/// Whether Kafka says that another producer or group member has taken over.
fn lost_ownership(error: &KafkaError) -> bool {
    let code = match error {
        KafkaError::Transaction(e) => e.code(),
        other => match other.rdkafka_error_code() {
            Some(code) => code,
            None => return false,
        },
    };
    matches!(
        code,
        RDKafkaErrorCode::Fenced
            | RDKafkaErrorCode::ProducerFenced
            | RDKafkaErrorCode::InvalidProducerEpoch
            | RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::UnknownMemberId
            | RDKafkaErrorCode::FencedInstanceId
            | RDKafkaErrorCode::StaleMemberEpoch
            | RDKafkaErrorCode::FencedMemberEpoch
    )
}

#[cfg(test)]
mod tests {
    //! Against librdkafka's in-process broker: enough for what is called in which order. Visibility, fencing and the
    //! offsets of a transaction cannot be seen there (it shows aborted records, fences no producer and forgets the
    //! offsets); they are for the tests on a real broker.
    use super::*;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;

    fn cluster() -> MockCluster<'static, DefaultProducerContext> {
        let cluster = MockCluster::new(1).unwrap();
        for topic in ["in", "changes", "profiles"] {
            cluster.create_topic(topic, 2, 1).unwrap();
        }
        cluster
    }

    fn committer(servers: &str) -> Committer {
        let config = Config {
            properties: vec![("bootstrap.servers".to_owned(), servers.to_owned())],
            transactional_id: "group-1".to_owned(),
            transaction_timeout: Duration::from_secs(20),
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
        let (committer, member) = (committer(&servers), member(&servers));
        let group = member.group_metadata().unwrap();
        let batch = Batch {
            records: vec![
                outgoing("profiles", 1, b"one".to_vec()),
                outgoing("profiles", 1, b"two".to_vec()),
                outgoing("changes", 0, b"three".to_vec()),
            ],
            offsets: vec![(0, 7), (1, 9)],
        };
        let ends = committer.commit(&batch, &group).unwrap();
        assert_eq!(ends[&("profiles".to_owned(), 1)], 2);
        assert_eq!(ends[&("changes".to_owned(), 0)], 1);
        // The next batch tells of itself only.
        let second = Batch {
            records: vec![outgoing("profiles", 0, b"four".to_vec())],
            offsets: vec![],
        };
        let ends = committer.commit(&second, &group).unwrap();
        assert_eq!(ends.len(), 1);
    }

    #[test]
    fn a_record_over_the_size_limit_is_named_and_the_producer_goes_on() {
        let cluster = cluster();
        let servers = cluster.bootstrap_servers();
        let (committer, member) = (committer(&servers), member(&servers));
        let group = member.group_metadata().unwrap();
        let huge = Batch {
            records: vec![
                outgoing("changes", 0, b"small".to_vec()),
                outgoing("profiles", 0, vec![b'x'; 2_000_000]),
            ],
            offsets: vec![(0, 5)],
        };
        let error = committer.commit(&huge, &group).unwrap_err();
        assert!(
            matches!(&error, Error::Unsendable { topic, .. } if topic == "profiles"),
            "{error}"
        );
        let small = Batch {
            records: vec![outgoing("profiles", 0, b"small".to_vec())],
            offsets: vec![(0, 5)],
        };
        committer.commit(&small, &group).unwrap();
    }
}
