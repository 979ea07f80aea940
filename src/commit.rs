//! The transaction: what was made of the events and the offsets behind them become visible together, or not at all.

mod deliveries;
mod raw;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

use crate::{event, failpoint};
use deliveries::{Deliveries, Undelivered};
pub use raw::{Records, Written};
use verdict::{To, is_denied, lost, reason};

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

impl Outgoing {
    /// How many bytes it has for Kafka, at the most.
    #[must_use]
    pub fn bytes(&self) -> usize {
        event::wire_bytes(self.key.as_deref(), self.value.as_deref(), &self.headers)
    }
}

/// What one transaction holds.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Change events, profile states, dead letters and checkpoints.
    pub records: Vec<Outgoing>,
    /// For each input partition touched, the offset that a restart begins at.
    pub offsets: Vec<(i32, i64)>,
    /// What Kafka keeps beside each of these offsets (its metadata): nothing, or a few words.
    pub note: String,
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
    /// A record is larger than the producer or its topic allows. The transaction was aborted.
    #[error(
        "a record of {bytes} bytes is too large for topic {topic}: {reason}. Raise max.message.bytes of the topic, and message.max.bytes where it is set in kafka.producer"
    )]
    TooLarge {
        /// Its place in the batch.
        record: usize,
        /// Its topic.
        topic: String,
        /// Its size, at the most.
        bytes: usize,
        /// What Kafka said.
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
            Self::TooLarge { .. } => "unsendable",
        }
    }
}

/// Where each partition written to ends now: the offset after the last record of the batch.
pub type Ends = HashMap<(String, i32), i64>;

/// Why one attempt failed.
enum Failure {
    Known(Error),
    /// The brokers found a batch of records for this topic too large, and refuse it whole. The transaction was aborted.
    Refused {
        topic: String,
        reason: String,
    },
    /// A topic is not allowed, and Kafka does not say which. The transaction was aborted.
    Denied {
        doing: &'static str,
        reason: String,
    },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Known(error)
    }
}

/// How long an abort waits for records on their way.
const SETTLED: Duration = Duration::from_millis(200);

/// How long the group may take beyond the time that it is given for the offsets.
const GRACE: Duration = Duration::from_secs(1);

/// Larger records are not even tried: the queue below must hold one, and the brokers take no request over 100 MiB.
const LARGEST: &str = "60000000";

/// The instance's one transactional producer.
///
/// A transaction that is given up may leave records behind of which nobody knows whether the brokers have written them, or will:
/// sent, and not answered in time. librdkafka counts such records as never sent when it aborts (`rd_kafka_toppar_purge_queues` moves
/// `epoch_base_msgid`), so the next ones get their sequence numbers, and a broker that has written the former ones takes the next
/// ones for these, says that they are written, and drops them: what is committed then lacks them. And a record that is written only
/// after the abort belongs to the next transaction of the same epoch, for a broker that does not ask the coordinator (before Kafka 3.6).
/// So such a transaction is not aborted by its producer but by a successor, whose `InitProducerId` aborts under a higher epoch: no
/// number comes again there, and what the former producer has on its way is refused everywhere. The same where it is not known
/// whether the group has got the offsets, and where the brokers have refused records, behind which librdkafka numbers on as if they
/// had not.
pub struct Committer {
    producer: ThreadedProducer<Deliveries>,
    config: Config,
    /// Records that the present attempt has handed to the producer.
    sent: usize,
    /// The group was sent the offsets of the present attempt, and has not answered.
    asked: bool,
    /// Topics whose records are sent one by one, because they take less than what makes a batch.
    apart: HashSet<String>,
}

/// The transactional producer's own configuration.
fn client(config: &Config) -> ClientConfig {
    let timeout_ms = config.transaction_timeout.as_millis().to_string();
    let mut client = ClientConfig::new();
    client.set("queue.buffering.max.kbytes", "65536");
    client.set("linger.ms", "5");
    // Batches stay as small as ever (batch.size). What a topic takes is for the topic to say: a dead letter is the
    // input's record and limn's headers, and must not be refused here because the input allows large ones.
    client.set("message.max.bytes", LARGEST);
    client.extend(config.properties.iter().cloned());
    // These carry the guarantees and are not the user's to change.
    client
        .set("transactional.id", &config.transactional_id)
        .set("enable.idempotence", "true")
        .set("transaction.timeout.ms", &timeout_ms)
        .set("message.timeout.ms", &timeout_ms);
    client
}

/// Waits until nothing is outstanding, and has what lingers sent at once; false after `wait`. The producer's own thread serves
/// the delivery reports meanwhile.
///
/// The binding's `flush` serves them itself, in stretches of 100 ms that nothing ends early, and a commit begins with one.
fn flush<C: ProducerContext + 'static>(producer: &ThreadedProducer<C>, wait: Duration) -> bool {
    let ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
    let producer = producer.client().native_ptr();
    // SAFETY: the pointer is the producer's, which outlives the call, and any thread may flush (rdkafka.h).
    let flushed = unsafe { rdkafka::bindings::rd_kafka_flush(producer, ms) };
    flushed == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
}

/// A producer that has ended whatever a former one of this name left open.
fn producer(config: &Config, wait: Duration) -> Result<ThreadedProducer<Deliveries>, Error> {
    let failed = |error: KafkaError| Error::InDoubt {
        doing: "connecting the transactional producer",
        reason: reason(&error, &config.transactional_id),
    };
    let producer: ThreadedProducer<Deliveries> = client(config)
        .create_with_context(Deliveries::default())
        .map_err(failed)?;
    producer.init_transactions(wait).map_err(failed)?;
    Ok(producer)
}

impl Committer {
    /// Connects, and ends whatever a former producer of this name left open.
    ///
    /// # Errors
    /// [`Error::InDoubt`] where the properties are wrong or the brokers do not answer within `wait`.
    pub fn connect(config: &Config, wait: Duration) -> Result<Self, Error> {
        Ok(Self {
            producer: producer(config, wait)?,
            config: config.clone(),
            sent: 0,
            asked: false,
            apart: HashSet::new(),
        })
    }

    /// Commits a batch: blocks until it is visible to `read_committed` consumers, or is not. Each step of that has the transaction's
    /// time-out, also where a coordinator cannot be found.
    ///
    /// The group's metadata rides in the same transaction, so an instance that lost its partitions is refused by the
    /// group coordinator and cannot make visible what another owner folds again.
    ///
    /// # Errors
    /// See [`Error`]; after any but [`Error::Aborted`] and [`Error::TooLarge`] this producer must not be used again.
    pub fn commit(
        &mut self,
        batch: &Batch,
        group: &Arc<ConsumerGroupMetadata>,
    ) -> Result<Ends, Error> {
        loop {
            match self.attempt(batch, group) {
                Ok(ends) => return Ok(ends),
                Err(Failure::Known(error)) => return Err(error),
                Err(Failure::Denied { doing, reason }) => {
                    let topics: BTreeSet<&str> = batch.records.iter().map(|r| &*r.topic).collect();
                    let topics = Vec::from_iter(topics).join(", ");
                    let input = &self.config.input_topic;
                    let reason = format!(
                        "{reason}. Allow Write on {topics}, and Read on {input} (docs/operations.md, Permissions)"
                    );
                    return Err(Error::Aborted { doing, reason });
                }
                Err(Failure::Refused { topic, reason }) => {
                    // Brokers refuse batches and name no record. One by one, either all pass or the one is known.
                    if !self.apart.insert(topic) {
                        let doing = "sending records";
                        return Err(Error::Aborted { doing, reason });
                    }
                }
            }
        }
    }

    fn timeout(&self) -> Duration {
        self.config.transaction_timeout
    }

    fn flush(&self, wait: Duration) -> bool {
        flush(&self.producer, wait)
    }

    fn attempt(
        &mut self,
        batch: &Batch,
        group: &Arc<ConsumerGroupMetadata>,
    ) -> Result<Ends, Failure> {
        let attempt = self.producer.context().begin();
        (self.sent, self.asked) = (0, false);
        let begin = "beginning a transaction";
        self.producer
            .begin_transaction()
            .map_err(|e| self.give_up(begin, &e))?;
        failpoint::pass("transaction_begun");
        for (index, record) in batch.records.iter().enumerate() {
            self.send(attempt, index, record)?;
            self.sent += 1;
            if self.apart.contains(&record.topic) {
                self.deliver(index, record)?;
            }
        }
        failpoint::pass("records_sent");
        let sending = "sending offsets to the transaction";
        let mut offsets = TopicPartitionList::with_capacity(batch.offsets.len());
        for &(partition, offset) in &batch.offsets {
            let mut element = offsets.add_partition(&self.config.input_topic, partition);
            element
                .set_offset(Offset::Offset(offset))
                .map_err(|e| self.give_up(sending, &e))?;
            if !batch.note.is_empty() {
                element.set_metadata(&batch.note);
            }
        }
        if !batch.offsets.is_empty() {
            self.send_offsets(offsets, group, sending)?;
        }
        failpoint::pass("offsets_sent");
        // Before the binding does it.
        let committing = "committing the transaction";
        if !(self.flush(self.timeout()) && self.heard()) {
            return Err(self.give_up(committing, &unsent()));
        }
        // librdkafka asks the brokers for nothing where a record was not delivered, so what fails for that had no effect.
        self.producer
            .commit_transaction(self.timeout())
            .map_err(|e| self.give_up(committing, &e))?;
        failpoint::pass("committed");
        Ok(std::mem::take(&mut self.producer.context().lock().ends))
    }

    /// Adds the offsets to the transaction.
    ///
    /// On a thread of its own: librdkafka (2.12.1) does not end the call while it looks for the group's coordinator
    /// (`creq_ts_timeout` is never read), and stops looking where it was told three times that there is none. Such a thread is left
    /// with its producer, until a connection to any broker comes or goes, which has it look again.
    fn send_offsets(
        &mut self,
        offsets: TopicPartitionList,
        group: &Arc<ConsumerGroupMetadata>,
        doing: &'static str,
    ) -> Result<(), Failure> {
        let (producer, group, timeout) = (self.producer.clone(), group.clone(), self.timeout());
        let (answer, answered) = mpsc::sync_channel(1);
        let asking = std::thread::Builder::new().name("limn-offsets".to_owned());
        let asking = asking.spawn(move || {
            let sent = producer.send_offsets_to_transaction(&offsets, &group, timeout);
            // The producer before the answer: who gets it may make another.
            drop(producer);
            let _ = answer.send(sent);
        });
        let reason = match asking.map(|_| answered.recv_timeout(timeout + GRACE)) {
            Ok(Ok(Ok(()))) => return Ok(()),
            Ok(Ok(Err(error))) => {
                // A refusal is an answer.
                self.asked = lost(&error).is_none();
                return Err(self.give_up(doing, &error));
            }
            Ok(Err(_)) => {
                self.asked = true;
                "the coordinator of the group is not found".to_owned()
            }
            Err(error) => format!("no thread is to be had: {error}"),
        };
        self.abort()?;
        Err(Error::Aborted { doing, reason }.into())
    }

    /// Waits until the record, which was sent alone, is delivered.
    fn deliver(&mut self, index: usize, record: &Outgoing) -> Result<(), Failure> {
        let flushed = self.flush(self.timeout());
        self.heard();
        let failed = {
            let mut delivered = self.producer.context().lock();
            delivered.failed.take_if(|failed| failed.too_large)
        };
        match (failed, flushed) {
            (Some(failed), _) => Err(self.too_large(index, record, failed.reason).into()),
            (None, true) => Ok(()),
            (None, false) => Err(self.give_up("sending records", &unsent())),
        }
    }

    /// Waits until all records of this attempt are told of: delivered, they may still be with the thread that polls.
    fn heard(&self) -> bool {
        let until = Instant::now() + Duration::from_secs(1);
        loop {
            if self.producer.context().lock().reports == self.sent {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn too_large(&mut self, index: usize, record: &Outgoing, reason: String) -> Error {
        match self.abort() {
            Ok(()) => Error::TooLarge {
                record: index,
                topic: record.topic.clone(),
                bytes: record.bytes(),
                reason,
            },
            Err(in_doubt) => in_doubt,
        }
    }

    fn send(&mut self, attempt: usize, index: usize, record: &Outgoing) -> Result<(), Failure> {
        let headers = record
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (name, value)| {
                all.insert(Header {
                    key: name,
                    value: value.as_deref(),
                })
            });
        let mut base = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&record.topic, attempt)
            .headers(headers);
        base.partition = record.partition;
        base.key = record.key.as_deref();
        base.payload = record.value.as_deref();
        let until = Instant::now() + self.timeout();
        loop {
            let alone = self.producer.in_flight_count() == 0;
            match self.producer.send(base) {
                Ok(()) => return Ok(()),
                Err((
                    error @ KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge),
                    _,
                )) => return Err(self.too_large(index, record, error.to_string()).into()),
                // It does not fit into the empty queue: no waiting will help.
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) if alone => {
                    let reason = "queue.buffering.max.kbytes has no room for it".to_owned();
                    return Err(self.too_large(index, record, reason).into());
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if Instant::now() < until =>
                {
                    // The queue is bounded on purpose; delivering some of it makes room.
                    self.flush(Duration::from_millis(50));
                    base = back;
                }
                Err((
                    error @ KafkaError::MessageProduction(
                        RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownPartition,
                    ),
                    _,
                )) => {
                    // Who begins anew looks at the topics, and says what is wrong.
                    self.abort()?;
                    let doing = "sending records";
                    let reason = format!("topic {}: {error}", record.topic);
                    return Err(Error::Aborted { doing, reason }.into());
                }
                Err((error, _)) => return Err(self.give_up("sending records", &error)),
            }
        }
    }

    /// Decides what a failed call means. Only an error that Kafka calls abortable, followed by an abort that worked,
    /// is a known outcome; everything else is doubt, and doubt is never resolved by guessing.
    fn give_up(&mut self, doing: &'static str, error: &KafkaError) -> Failure {
        let abortable = match error {
            KafkaError::Transaction(e) => e.txn_requires_abort() && !e.is_fatal(),
            KafkaError::MessageProduction(_) => true,
            _ => false,
        };
        // A call can fail before it is heard which record it failed for, and a successor does not know.
        let settled = self.settle();
        let failed = self.producer.context().failed();
        let mut reason = reason(error, &self.config.transactional_id);
        if let Some(failed) = &failed {
            reason += &format!(" (first undelivered record: {})", failed.reason);
        }
        if let Some(to) = lost(error) {
            // Nothing was committed. The abort only spares other readers the wait for the time-out, and must not come in the way
            // of a producer that has taken the name over.
            if settled || to == To::Member {
                let _ = self.end(settled);
            }
            return Error::Fenced { doing, reason }.into();
        }
        if !abortable {
            return Error::InDoubt { doing, reason }.into();
        }
        if let Err(in_doubt) = self.end(settled) {
            return in_doubt.into();
        }
        match failed.filter(|f| f.too_large) {
            Some(Undelivered { topic, .. }) => Failure::Refused { topic, reason },
            None if is_denied(error) => Failure::Denied { doing, reason },
            None => Error::Aborted { doing, reason }.into(),
        }
    }

    /// Whether Kafka has taken all that it was sent in this attempt. It is waited for, but not for long.
    fn settle(&self) -> bool {
        if self.flush(SETTLED) {
            self.heard();
        }
        !self.asked && self.producer.context().lock().delivered == self.sent
    }

    /// Ends the transaction, whose commit nobody has asked for, or which Kafka has said not to commit.
    fn abort(&mut self) -> Result<(), Error> {
        let settled = self.settle();
        self.end(settled)
    }

    fn end(&mut self, settled: bool) -> Result<(), Error> {
        if settled {
            return self
                .producer
                .abort_transaction(self.timeout())
                .map_err(|error| Error::InDoubt {
                    doing: "aborting a transaction",
                    reason: reason(&error, &self.config.transactional_id),
                });
        }
        // The successor's first request aborts it, under a higher epoch (see `Committer`).
        self.producer = producer(&self.config, self.timeout())?;
        Ok(())
    }
}

/// Records were still outstanding when the time was over.
fn unsent() -> KafkaError {
    KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut)
}
