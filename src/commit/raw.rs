//! Records written in transactions, and nothing else done: what whoever writes them could reach at the best.

use std::ops::Range;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use crate::codec::format_header;

use super::{Config, Error, client, flush, unsent};

/// Records that are to be written, one behind another in one piece of memory.
#[derive(Debug, Default)]
pub struct Records {
    bytes: Vec<u8>,
    records: Vec<Record>,
}

/// Where a record is.
#[derive(Debug)]
struct Record {
    topic: usize,
    partition: i32,
    key: Option<Range<usize>>,
    value: Option<Range<usize>>,
}

/// A record that was written.
#[derive(Debug, Clone, Copy)]
pub struct Written<'a> {
    /// Its topic's place among those that are written to.
    pub topic: usize,
    /// Its partition.
    pub partition: i32,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
}

impl Records {
    /// Takes one more, for a topic by its place among those that it will be written to.
    pub fn push(&mut self, topic: usize, partition: i32, key: Option<&[u8]>, value: Option<&[u8]>) {
        let mut copy = |bytes: &[u8]| {
            let begin = self.bytes.len();
            self.bytes.extend_from_slice(bytes);
            begin..self.bytes.len()
        };
        let (key, value) = (key.map(&mut copy), value.map(&mut copy));
        self.records.push(Record {
            topic,
            partition,
            key,
            value,
        });
    }

    /// Writes them, each transaction for so long, gives what each has `committed`, and tells when it began, connecting aside, and how long
    /// it took. Blocks.
    ///
    /// # Errors
    /// [`Error::InDoubt`] where anything fails: nothing is tried again.
    pub fn write<const N: usize>(
        &self,
        config: &Config,
        topics: [&str; N],
        every: Duration,
        wait: Duration,
        mut committed: impl FnMut(&mut dyn Iterator<Item = Written<'_>>),
    ) -> Result<(Instant, Duration), Error> {
        let failed = |error: KafkaError| Error::InDoubt {
            doing: "writing records and nothing else",
            reason: error.to_string(),
        };
        let producer: ThreadedProducer<DefaultProducerContext> =
            client(config).create().map_err(failed)?;
        producer.init_transactions(wait).map_err(failed)?;
        // limn's own records have it, and it is a part of what they cost.
        let (name, value) = format_header();
        let value = value.as_deref();
        let headers = OwnedHeaders::new().insert(Header { key: &name, value });
        let began = Instant::now();
        let mut rest = self.records.iter();
        while rest.len() > 0 {
            let some = rest.clone();
            producer.begin_transaction().map_err(failed)?;
            let until = Instant::now() + every;
            while let Some(record) = rest.next() {
                let outgoing = self.outgoing(topics[record.topic], record);
                send(&producer, outgoing.headers(headers.clone())).map_err(failed)?;
                // The clock is not looked at for each.
                if rest.len().is_multiple_of(256) && Instant::now() >= until {
                    break;
                }
            }
            if !flush(&producer, config.transaction_timeout) {
                return Err(failed(unsent()));
            }
            producer
                .commit_transaction(config.transaction_timeout)
                .map_err(failed)?;
            let count = some.len() - rest.len();
            let some = some.take(count);
            committed(&mut some.map(|record| self.written(record)));
        }
        Ok((began, began.elapsed()))
    }

    fn written(&self, record: &Record) -> Written<'_> {
        let bytes = |range: &Option<Range<usize>>| range.clone().map(|range| &self.bytes[range]);
        Written {
            topic: record.topic,
            partition: record.partition,
            key: bytes(&record.key),
            value: bytes(&record.value),
        }
    }

    fn outgoing<'a>(&'a self, topic: &'a str, record: &Record) -> BaseRecord<'a, [u8], [u8]> {
        let Written { key, value, .. } = self.written(record);
        let mut outgoing = BaseRecord::to(topic).partition(record.partition);
        (outgoing.key, outgoing.payload) = (key, value);
        outgoing
    }
}

fn send(
    producer: &ThreadedProducer<DefaultProducerContext>,
    mut outgoing: BaseRecord<'_, [u8], [u8]>,
) -> Result<(), KafkaError> {
    loop {
        match producer.send(outgoing) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                outgoing = back;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err((error, _)) => return Err(error),
        }
    }
}
