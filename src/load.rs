//! History into the input topic: rows of a file become events, through the same field mapping as the stream's own.
//!
//! The producer of `limn load` lives here, so rdkafka is named in this file; reading the rows is done below it, without Kafka.

mod json;
mod rows;
mod table;

pub use rows::{Format, Limits, Row, Rows};
pub(crate) use table::column_names;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{
    BaseRecord, DeliveryResult, Producer, ProducerContext, PurgeConfig, ThreadedProducer,
};

/// How long between two calls of the progress callback.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Where the rows go.
#[derive(Debug, Clone)]
pub struct Config {
    /// librdkafka properties, `bootstrap.servers` among them. They may hold secrets and are never logged.
    pub properties: Vec<(String, String)>,
    /// The input topic. It is not created here.
    pub topic: String,
    /// How a user's partition is found.
    pub partitioner: Partitioner,
    /// Give each record its event time as Kafka's timestamp; otherwise, and where a row has none, it is the time of sending.
    /// Kafka deletes by that timestamp: a topic that keeps a week drops older history as soon as it is written.
    pub event_timestamps: bool,
    /// Count bad rows and go on, instead of stopping at the first.
    pub skip_bad: bool,
    /// How long the brokers may take to answer at the start, and to take a record later.
    pub timeout: Duration,
}

/// How a key's partition is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitioner {
    /// As Java clients do.
    Murmur2,
    /// As librdkafka does unless told otherwise.
    Consistent,
}

impl Partitioner {
    /// librdkafka's name for it. "random" speaks of null keys, of which there are none here.
    fn property(self) -> &'static str {
        match self {
            Self::Murmur2 => "murmur2_random",
            Self::Consistent => "consistent_random",
        }
    }
}

/// How far a load has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Rows given to the producer.
    pub sent: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Records that Kafka has acknowledged.
    pub delivered: u64,
    /// Bad rows left out.
    pub skipped: u64,
}

/// What a load came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Rows given to the producer.
    pub sent: u64,
    /// Records that Kafka has acknowledged: they are in the topic, each once.
    pub delivered: u64,
    /// Records that Kafka has not acknowledged. A few of them may be in the topic all the same.
    pub failed: u64,
    /// Bad rows left out.
    pub skipped: u64,
    /// Bytes of the keys and values that were sent.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// The lowest event time in milliseconds since the Unix epoch.
    pub first_ms: Option<i64>,
    /// The highest event time in milliseconds since the Unix epoch.
    pub last_ms: Option<i64>,
}

/// Why a load stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be opened.
    #[error("opening {file}: {source}")]
    Open {
        /// The file.
        file: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file cannot be read on, or is not what its format says, so that nothing behind this place can be trusted.
    #[error("{file}, line {line}: cannot be read on: {reason}")]
    Read {
        /// The file.
        file: String,
        /// The line reached, from 1.
        line: u64,
        /// What was wrong.
        reason: String,
    },
    /// A row is no event. The rows behind it can still be read.
    #[error("{file}, line {line}: {reason}")]
    Row {
        /// The file.
        file: String,
        /// The line, from 1.
        line: u64,
        /// What was wrong.
        reason: String,
    },
    /// The format is neither given nor told by the file's name.
    #[error("{file}: the name tells no format; say --format jsonl, csv or tsv")]
    UnknownFormat {
        /// The file.
        file: String,
    },
    /// Kafka does not do what it should.
    #[error("{doing} at {servers}: {reason}")]
    Kafka {
        /// The step that failed.
        doing: String,
        /// The brokers as configured.
        servers: String,
        /// What librdkafka said.
        reason: String,
    },
    /// A load that had begun was ended by an error.
    #[error(
        "{cause} (before that, {} records were sent and {} of them are in the topic)",
        .summary.sent, .summary.delivered
    )]
    Stopped {
        /// What was done until then.
        summary: Box<Summary>,
        /// Why it ended.
        #[source]
        cause: Box<Error>,
    },
}

impl Error {
    /// Whether only one row is at fault, so that the others may still be loaded.
    #[must_use]
    pub fn is_row(&self) -> bool {
        matches!(self, Self::Row { .. })
    }
}

/// Delivery reports, counted.
#[derive(Default)]
struct Reports {
    delivered: AtomicU64,
    failed: AtomicU64,
    first_failure: Mutex<Option<String>>,
}

impl Reports {
    fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    fn failed(&self) -> u64 {
        self.failed.load(Ordering::Acquire)
    }
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {
                self.delivered.fetch_add(1, Ordering::Relaxed);
            }
            Err((error, message)) => {
                self.first_failure
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert_with(|| {
                        let partition = message.partition();
                        format!("partition {partition}: {error}")
                    });
                self.failed.fetch_add(1, Ordering::Release);
            }
        }
    }
}

/// The producer, and what is needed to name it in an error.
struct Loader<'a> {
    config: &'a Config,
    servers: String,
    producer: ThreadedProducer<Reports>,
}

/// Sends the rows in their order and waits until each is acknowledged. Memory is bounded by the producer's queue.
///
/// # Errors
/// [`Error::Stopped`] where something had been sent already; it tells what. Brokers that do not answer are an error after
/// [`Config::timeout`], never a hang.
pub fn load<I>(
    config: &Config,
    rows: I,
    mut on_progress: impl FnMut(Progress),
) -> Result<Summary, Error>
where
    I: IntoIterator<Item = Result<Row, Error>>,
{
    let started = Instant::now();
    let loader = Loader::connect(config)?;
    let mut summary = Summary::default();
    let mut tell = |summary: &Summary, loader: &Loader<'_>| {
        on_progress(Progress {
            sent: summary.sent,
            bytes: summary.bytes,
            delivered: loader.producer.context().delivered(),
            skipped: summary.skipped,
        });
    };
    let sent = loader.send_all(rows, &mut summary, &mut tell);
    // What was sent is seen through also after a bad row, so that the summary tells what is in the topic.
    let flushed = loader.flush(&summary, &mut tell);
    summary.delivered = loader.producer.context().delivered();
    summary.failed = summary.sent - summary.delivered;
    summary.seconds = started.elapsed().as_secs_f64();
    match sent.and(flushed) {
        Ok(()) => Ok(summary),
        Err(cause) if summary.sent == 0 => Err(cause),
        Err(cause) => Err(Error::Stopped {
            summary: Box::new(summary),
            cause: Box::new(cause),
        }),
    }
}

impl<'a> Loader<'a> {
    fn connect(config: &'a Config) -> Result<Self, Error> {
        let servers = config
            .properties
            .iter()
            .rfind(|(name, _)| name == "bootstrap.servers" || name == "metadata.broker.list")
            .map_or_else(|| "no broker".to_owned(), |(_, value)| value.clone());
        let failed = |doing: &str, reason: String| Error::Kafka {
            doing: doing.to_owned(),
            servers: servers.clone(),
            reason,
        };
        let mut client = ClientConfig::new();
        client.set("queue.buffering.max.kbytes", "32768");
        client.set("linger.ms", "20");
        client.set("compression.type", "zstd");
        client.extend(config.properties.iter().cloned());
        // These carry what the load promises and are not the user's to change.
        client
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("partitioner", config.partitioner.property())
            .set(
                "message.timeout.ms",
                config.timeout.as_millis().max(1000).to_string(),
            );
        let producer: ThreadedProducer<Reports> = client
            .create_with_context(Reports::default())
            .map_err(|e| failed("making the producer", e.to_string()))?;
        // Asked for all topics, since a question for one could create it with the broker's own partition count.
        let metadata = producer
            .client()
            .fetch_metadata(None, config.timeout)
            .map_err(|e| failed("asking for the topics", e.to_string()))?;
        let topic = &config.topic;
        let known = metadata
            .topics()
            .iter()
            .any(|t| t.name() == topic && t.error().is_none() && !t.partitions().is_empty());
        if !known {
            let reason = format!("there is no topic {topic}, or it may not be seen");
            return Err(failed("looking for the input topic", reason));
        }
        Ok(Self {
            config,
            servers,
            producer,
        })
    }

    fn send_all<I>(
        &self,
        rows: I,
        summary: &mut Summary,
        tell: &mut impl FnMut(&Summary, &Self),
    ) -> Result<(), Error>
    where
        I: IntoIterator<Item = Result<Row, Error>>,
    {
        let mut told = Instant::now();
        for row in rows {
            match row.and_then(|row| self.send(&row).map(|()| row)) {
                Ok(row) => {
                    summary.sent += 1;
                    summary.bytes += (row.user.len() + row.value.len()) as u64;
                    if let Some(time) = row.time_ms {
                        summary.first_ms = Some(summary.first_ms.map_or(time, |t| t.min(time)));
                        summary.last_ms = Some(summary.last_ms.map_or(time, |t| t.max(time)));
                    }
                }
                Err(error) if error.is_row() && self.config.skip_bad => summary.skipped += 1,
                Err(error) => return Err(error),
            }
            self.check()?;
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                tell(summary, self);
            }
        }
        Ok(())
    }

    fn send(&self, row: &Row) -> Result<(), Error> {
        let mut record = BaseRecord::<str, [u8]>::to(&self.config.topic)
            .key(&row.user)
            .payload(&row.value);
        // Kafka takes no time before 1970, and librdkafka reads 0 as unset.
        record.timestamp = row
            .time_ms
            .filter(|&time| self.config.event_timestamps && time > 0);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    // The queue is bounded on purpose. Its records are delivered or time out, so there will be room.
                    self.check()?;
                    std::thread::sleep(Duration::from_millis(5));
                    record = back;
                }
                Err((
                    error @ KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge),
                    _,
                )) => {
                    return Err(Error::Row {
                        file: row.file.to_string(),
                        line: row.line,
                        reason: format!("{} bytes: {error}", row.value.len()),
                    });
                }
                Err((error, _)) => return Err(self.kafka("sending a record", error.to_string())),
            }
        }
    }

    /// Fails after the first record that Kafka did not take: what follows would stand in the topic without it.
    fn check(&self) -> Result<(), Error> {
        let reports = self.producer.context();
        if reports.failed() == 0 {
            return Ok(());
        }
        let first = reports
            .first_failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let doing = format!("writing to topic {}", self.config.topic);
        Err(self.kafka(&doing, first.unwrap_or_default()))
    }

    fn flush(
        &self,
        summary: &Summary,
        tell: &mut impl FnMut(&Summary, &Self),
    ) -> Result<(), Error> {
        let mut delivered = self.producer.context().delivered();
        let mut moved = Instant::now();
        let flushed = loop {
            let flushed = self.producer.flush(TELL_EVERY);
            tell(summary, self);
            if flushed.is_ok() || self.check().is_err() {
                break Ok(());
            }
            let now = self.producer.context().delivered();
            if now != delivered {
                (delivered, moved) = (now, Instant::now());
            } else if moved.elapsed() > self.config.timeout + Duration::from_secs(5) {
                break Err(self.kafka(
                    "waiting for acknowledgements",
                    "nothing more is acknowledged".to_owned(),
                ));
            }
        };
        // After a failure nothing more is wanted, and dropping the producer must not wait for it.
        self.producer
            .purge(PurgeConfig::default().queue().inflight());
        flushed.and_then(|()| self.check())
    }

    fn kafka(&self, doing: &str, reason: String) -> Error {
        Error::Kafka {
            doing: doing.to_owned(),
            servers: self.servers.clone(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests;
