//! Reading partitions of a topic of ours from a position to their end, before the first event is folded.

mod reading;

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

use super::Error;
use super::batches::{Batches, Message};
use super::edges::{self, Asking, Place, close};
use super::record::Copies;
use crate::event::Record;
use reading::{Open, Reading, read_some};

/// A partition to read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The first offset wanted. It must not lie beyond the end: a position that does is of another topic's life.
    pub from: i64,
}

/// Where a partition ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// The offset to read on from.
    pub next: i64,
    /// The position asked for lay beyond the end, so the partition was read from its beginning.
    pub began_anew: bool,
}

/// A record read back, in the reader's buffer still.
pub struct Back<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Where the reading of the partition will end; `None` while that is being asked.
    pub end: Option<i64>,
    /// As [`Restored::began_anew`].
    pub began_anew: bool,
    message: Message<'a>,
    copies: &'a mut Copies,
}

impl<'a> Back<'a> {
    /// Its key.
    #[must_use]
    pub fn key(&self) -> Option<&'a [u8]> {
        self.message.key()
    }

    /// Its value; `None` is a tombstone.
    #[must_use]
    pub fn value(&self) -> Option<&'a [u8]> {
        self.message.value()
    }

    /// Kafka's timestamp in milliseconds since the Unix epoch; `None` where it is unset (0 or less).
    #[must_use]
    pub fn timestamp_ms(&self) -> Option<i64> {
        self.message.timestamp_ms()
    }

    /// A copy of it, with its headers.
    #[must_use]
    pub fn record(&mut self) -> Record {
        let (key, value) = (self.key(), self.value());
        self.copies.record(key, value, self.message.headers())
    }
}

/// Reads each wanted partition `read_committed` to the end that it has now for a `read_uncommitted` client, and gives every record to
/// `each` in order. Call it after the group's offsets were fetched as stable.
///
/// A former owner's transaction may be committed in the offsets topic while its marker here is still on its way: the
/// last stable offset then lies before records that are committed. So the end is the high watermark, and reading waits
/// until the last stable offset has reached it (`transaction.timeout.ms` at the longest).
///
/// # Errors
/// [`Error::Kafka`] where the brokers do not answer, or an open transaction outlasts `wait`. Whatever `each` returns as
/// an error ends the reading with it.
pub fn restore<E: From<Error>>(
    properties: &[(String, String)],
    group: &str,
    wanted: &[Wanted],
    wait: Duration,
    cancelled: &AtomicBool,
    mut each: impl FnMut(Back<'_>) -> Result<(), E>,
) -> Result<HashMap<(String, i32), Restored>, E> {
    let doing = || Error::kafka("reading topics back");
    let [uncommitted, committed] = edges::pair(properties, group)?;
    let mut reader = Batches::new(committed).map_err(doing())?;
    // It is read while it is asked: most partitions begin where they are expected to, and what is committed is so wherever they end.
    let ahead = &wanted[..wanted.len().min(AT_ONCE)];
    let from = ahead
        .iter()
        .map(|w| (w.topic.as_str(), w.partition, w.from));
    reader.assign(from).map_err(doing())?;
    let places: Vec<Place<'_>> = wanted
        .iter()
        .map(|wanted| (wanted.topic.as_str(), wanted.partition))
        .collect();
    let mut ahead: Vec<Open<'_>> = ahead.iter().map(Open::new).collect();
    let ends = while_asked(
        &uncommitted,
        &reader,
        (&places, wait),
        cancelled,
        &mut ahead,
        &mut each,
    )?;
    let mut done = HashMap::new();
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    let mut ahead = ahead.into_iter();
    for (wanted, (low, end)) in wanted.iter().zip(ends) {
        let began_anew = wanted.from > end;
        let next = if began_anew {
            low
        } else {
            wanted.from.max(low)
        };
        done.insert(
            (wanted.topic.clone(), wanted.partition),
            Restored { next, began_anew },
        );
        match ahead.next() {
            // Where it was looked for, or so far in already that what was removed before does not matter.
            Some(mut open) if !began_anew && open.next >= low => {
                open.ends_at(end);
                first.push(open);
            }
            // Nothing is there where it was looked for, unless so much has come or gone meanwhile.
            Some(open) if open.next > wanted.from => {
                return Err(Error::Kafka {
                    doing: format!("reading {}[{}] back", open.topic, open.partition),
                    reason: "it was made anew, or cut at its beginning, meanwhile".to_owned(),
                }
                .into());
            }
            _ if next < end => rest.push(Open {
                next,
                end: Some(end),
                began_anew,
                ..Open::new(wanted)
            }),
            _ => {}
        }
    }
    if first.iter().any(|open| open.reading) {
        read_some(&reader, &mut first, wait, cancelled, &mut each)?;
    }
    let assigned = &places[..places.len().min(AT_ONCE)];
    if rest
        .iter()
        .any(|open| assigned.contains(&(open.topic, open.partition)))
    {
        // With a client of its own: librdkafka aborts the process where a partition is assigned anew, and then dropped, before its
        // first assignment has ended (`rd_kafka_assignment_partition_stopped`, 2.12.1).
        let anew = client(properties, group, "read_committed")?;
        let before = mem::replace(&mut reader, Batches::new(anew).map_err(doing())?);
        close(vec![before.end()]);
    }
    for some in rest.chunks_mut(AT_ONCE) {
        let from = some.iter().map(|o| (o.topic, o.partition, o.next));
        reader.assign(from).map_err(doing())?;
        read_some(&reader, some, wait, cancelled, &mut each)?;
    }
    for open in first.iter().chain(&rest) {
        if let Some(restored) = done.get_mut(&(open.topic.to_owned(), open.partition)) {
            restored.next = open.next;
        }
    }
    close(vec![uncommitted, reader.end()]);
    Ok(done)
}

/// Partitions that are read at the same time: what is read of each comes in longer stretches than from all at once,
/// and some brokers are busy all the same.
const AT_ONCE: usize = 8;

/// How long one look for records waits while it is asked where partitions end: so long an answer lies there at the most.
const ASKED: Duration = Duration::from_millis(2);

/// Asks where all places begin and end, and reads some of them meanwhile.
fn while_asked<E: From<Error>>(
    uncommitted: &BaseConsumer,
    reader: &Batches,
    (places, wait): (&[Place<'_>], Duration),
    cancelled: &AtomicBool,
    some: &mut [Open<'_>],
    each: &mut impl FnMut(Back<'_>) -> Result<(), E>,
) -> Result<Vec<(i64, i64)>, E> {
    // Where reading has failed, nobody wants the answer any more.
    let over = AtomicBool::new(false);
    let given_up = || cancelled.load(Ordering::Relaxed) || over.load(Ordering::Relaxed);
    let asking = Asking::new(uncommitted, reader.consumer(), wait, &given_up);
    thread::scope(|scope| {
        let spawned = thread::Builder::new()
            .name("limn-asking".to_owned())
            .spawn_scoped(scope, || asking.settled(places));
        let Ok(answer) = spawned else {
            // No thread is to be had: one behind the other.
            return Ok(asking.settled(places)?);
        };
        let mut reading = Reading::new(reader);
        let reads = Over(&over);
        while !answer.is_finished() {
            // What is wrong is told by the answer, or looked at once it is there.
            reading.some(ASKED, some, each)?;
        }
        drop(reads);
        Ok(answer.join().unwrap_or_else(|panic| resume_unwind(panic))?)
    })
}

/// Says that something is over when it goes, by a panic too.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How many partitions each of these topics has.
///
/// # Errors
/// [`Error::MissingTopic`] where there is no such topic, [`Error::Kafka`] where the brokers do not answer.
pub fn partitions<const N: usize>(
    properties: &[(String, String)],
    group: &str,
    topics: [&str; N],
    wait: Duration,
) -> Result<[i32; N], Error> {
    let client = client(properties, group, "read_committed")?;
    let mut counts = [0; N];
    for (found, topic) in counts.iter_mut().zip(topics) {
        *found = count(&client, topic, wait)?;
    }
    Ok(counts)
}

pub(super) fn count<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
    wait: Duration,
) -> Result<i32, Error> {
    let doing = || format!("asking for the partitions of {topic}");
    let metadata = client
        .fetch_metadata(Some(topic), wait)
        .map_err(Error::kafka(doing()))?;
    let found = metadata.topics().iter().find(|t| t.name() == topic);
    match found.map(|t| (t.error(), t.partitions().len())) {
        Some((None, count)) if count > 0 => Ok(i32::try_from(count).unwrap_or(i32::MAX)),
        None | Some((None | Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART), _)) => {
            Err(Error::MissingTopic {
                topic: topic.to_owned(),
            })
        }
        Some((Some(error), _)) => Err(Error::Kafka {
            doing: doing(),
            reason: RDKafkaErrorCode::from(error).to_string(),
        }),
    }
}

/// The oldest offset and the end of each of a topic's partitions, as a `read_committed` consumer sees them.
///
/// # Errors
/// [`Error::MissingTopic`] where there is no such topic, [`Error::Kafka`] where the brokers do not answer.
pub fn bounds(
    properties: &[(String, String)],
    group: &str,
    topic: &str,
    wait: Duration,
) -> Result<BTreeMap<i32, (i64, i64)>, Error> {
    let client = client(properties, group, "read_committed")?;
    let bounds = (0..count(&client, topic, wait)?).map(|partition| {
        let bounds = client.fetch_watermarks(topic, partition, wait);
        let doing = format!("asking for the ends of {topic}[{partition}]");
        Ok((partition, bounds.map_err(Error::kafka(doing))?))
    });
    bounds.collect()
}

/// The offsets that the group has committed of a topic's first `partitions` partitions, as stable: what a transaction under
/// way commits is waited for. A partition without one is left out.
///
/// # Errors
/// [`Error::Kafka`] where the brokers do not answer within `wait`, or do not allow it.
pub fn committed(
    properties: &[(String, String)],
    group: &str,
    topic: &str,
    partitions: i32,
    wait: Duration,
) -> Result<BTreeMap<i32, i64>, Error> {
    let mut asked = TopicPartitionList::new();
    for partition in 0..partitions {
        asked.add_partition(topic, partition);
    }
    let answer = client(properties, group, "read_committed")?
        .committed_offsets(asked, wait)
        .map_err(Error::kafka(format!(
            "fetching the offsets of group {group}"
        )))?;
    let mut offsets = BTreeMap::new();
    for element in answer.elements() {
        let partition = element.partition();
        // One that could not be told is not one that there is none of.
        element.error().map_err(Error::kafka(format!(
            "fetching the offset of group {group} in {topic}[{partition}]"
        )))?;
        if let Offset::Offset(offset) = element.offset() {
            offsets.insert(partition, offset);
        }
    }
    Ok(offsets)
}

/// How long librdkafka does not fetch for a partition once as much is queued as it likes to have. Its own second is longer
/// than a fast reader takes for all of that, and would then wait.
pub(super) const QUEUE_BACKOFF_MS: &str = "10";

/// A consumer that joins no group: it reads what it is assigned.
///
/// librdkafka wants a group id all the same, and asks for the group's coordinator. It is the service's own, so that no
/// other group needs a permission; nothing is ever committed by this client.
pub(super) fn client(
    properties: &[(String, String)],
    group: &str,
    isolation: &str,
) -> Result<BaseConsumer, Error> {
    let mut client = ClientConfig::new();
    client.set("fetch.queue.backoff.ms", QUEUE_BACKOFF_MS);
    client.extend(properties.iter().cloned());
    client
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", isolation)
        // The end of a partition is told by an empty answer, which the broker holds back for so long.
        .set("fetch.wait.max.ms", "10")
        .set("enable.partition.eof", "true");
    client
        .create()
        .map_err(Error::kafka("making a consumer to read topics back"))
}
