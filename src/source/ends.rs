//! What of the topics changes by itself, asked now and then: where the input's partitions end and how old what is unread there is,
//! which tells how far the group is behind, also while the input rests; and how many partitions topics have.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::restore::count;
use super::{Config, Error};

/// How often they are asked for.
const EVERY: Duration = Duration::from_secs(5);
/// How long the brokers may take for one.
const WAIT: Duration = Duration::from_secs(5);

/// What is known of a partition.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// Its last stable offset.
    end: Option<i64>,
    /// The next offset that will be read, where someone wants to know how old the record there is.
    next: Option<i64>,
    /// The first record at or behind an offset that was asked for: that offset, and Kafka's timestamp of the record.
    unread: Option<(i64, i64)>,
}

#[derive(Default)]
struct Told {
    known: Mutex<HashMap<i32, Known>>,
    /// How many partitions topics have, as far as they were counted twice.
    counts: Mutex<HashMap<String, i32>>,
}

/// Asks with a client of its own, on a thread of its own: the polling thread waits for nobody, and a broker that does not
/// answer keeps no one from leaving the group. Dropping it ends the thread at its next question.
pub struct Ends {
    told: Arc<Told>,
    wanted: Sender<Vec<i32>>,
}

impl Ends {
    /// Begins to ask, for no partition yet, and to count the partitions of the input and of `others`.
    ///
    /// # Errors
    /// [`Error::Kafka`] where a property is wrong or the thread cannot be made.
    pub fn start(config: &Config, others: &[&str]) -> Result<Self, Error> {
        let mut properties = config.properties.clone();
        // One record is wanted at a time, not what stands behind it.
        for (name, value) in [
            ("queued.min.messages", "1"),
            ("fetch.message.max.bytes", "65536"),
        ] {
            properties.push((name.to_owned(), value.to_owned()));
        }
        let client = super::restore::client(&properties, &config.group, "read_committed")?;
        let told = Arc::<Told>::default();
        let (wanted, asked) = channel();
        let (telling, topic) = (Arc::clone(&told), config.topic.clone());
        let others = others
            .iter()
            .map(|&name| name.to_owned())
            .collect::<Vec<_>>();
        std::thread::Builder::new()
            .name("limn-ends".to_owned())
            .spawn(move || ask(&client, &topic, &others, &asked, &telling))
            .map_err(|e| Error::Kafka {
                doing: "starting the thread that asks for the lag".to_owned(),
                reason: e.to_string(),
            })?;
        Ok(Self { told, wanted })
    }

    /// Asks for these partitions from now on.
    pub fn of(&self, partitions: Vec<i32>) {
        self.told
            .lock()
            .retain(|number, _| partitions.contains(number));
        // The thread ends before this only with the process.
        let _ = self.wanted.send(partitions);
    }

    /// The last stable offset of a partition, as far as it was told.
    #[must_use]
    pub fn end(&self, partition: i32) -> Option<i64> {
        self.told.lock().get(&partition)?.end
    }

    /// One of the topics that had another number of partitions than `wanted` the last two times that they were counted, and that number.
    #[must_use]
    pub fn other_count(&self, wanted: i32) -> Option<(String, i32)> {
        let counts = self.told.counts();
        let other = counts.iter().find(|&(_, &count)| count != wanted)?;
        Some((other.0.clone(), *other.1))
    }

    /// When the record was written that is to be read next, at `next` or behind, by Kafka's timestamp. `None`: there is
    /// none as far as is known, or the answer is still to come.
    #[must_use]
    pub fn unread_ms(&self, partition: i32, next: i64) -> Option<i64> {
        let mut known = self.told.lock();
        let known = known.entry(partition).or_default();
        known.next = Some(next);
        known.end.filter(|&end| end > next)?;
        let (asked, timestamp_ms) = known.unread?;
        // What was asked for another offset is of a record that has been read meanwhile.
        (asked == next).then_some(timestamp_ms)
    }
}

impl Told {
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<String, i32>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ask(
    client: &BaseConsumer,
    topic: &str,
    others: &[String],
    asked: &Receiver<Vec<i32>>,
    told: &Told,
) {
    let mut wanted = Vec::new();
    let mut last = HashMap::new();
    loop {
        match asked.recv_timeout(EVERY) {
            Ok(partitions) => wanted = partitions,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        for &partition in &wanted {
            // The next answer will do; the source tells when the brokers are away for good. One partition that cannot be
            // asked says nothing about the others.
            if let Err(error) = look(client, topic, partition, told) {
                tracing::debug!(%error, partition, "asking where a partition ends");
            }
        }
        told.lock().retain(|number, _| wanted.contains(number));
        for topic in std::iter::once(topic).chain(others.iter().map(String::as_str)) {
            // One that is missing is told of by who writes to it, or reads it. A broker may have heard of a topic last when that was
            // another one: it is asked twice.
            if let Ok(count) = count(client, topic, WAIT)
                && last.insert(topic.to_owned(), count) == Some(count)
            {
                told.counts().insert(topic.to_owned(), count);
            }
        }
    }
}

/// Asks for one partition, without the lock: nobody waits for the brokers.
fn look(client: &BaseConsumer, topic: &str, partition: i32, told: &Told) -> KafkaResult<()> {
    let (_, end) = client.fetch_watermarks(topic, partition, WAIT)?;
    let next = {
        let mut told = told.lock();
        let known = told.entry(partition).or_default();
        known.end = Some(end);
        let told_already = known.unread.map(|(asked, _)| asked);
        // Taken: it is asked again as long as it is of interest.
        known
            .next
            .take()
            .filter(|&next| next < end && told_already != Some(next))
    };
    if let Some(next) = next {
        let written = timestamp(client, topic, partition, next)?;
        if let Some(known) = told.lock().get_mut(&partition) {
            known.unread = written.map(|at| (next, at));
        }
    }
    Ok(())
}

/// Kafka's timestamp of the first record at or behind `offset`; `None` where there is none to be had.
fn timestamp(
    client: &BaseConsumer,
    topic: &str,
    partition: i32,
    offset: i64,
) -> KafkaResult<Option<i64>> {
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    client.assign(&from)?;
    let until = Instant::now() + WAIT;
    let mut found = Ok(None);
    while Instant::now() < until {
        match client.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                found = Ok(message.timestamp().to_millis().filter(|&ms| ms > 0));
                break;
            }
            Some(Err(KafkaError::PartitionEOF(_))) => break,
            Some(Err(error)) => {
                found = Err(error);
                break;
            }
            None => {}
        }
    }
    client.unassign()?;
    found
}
