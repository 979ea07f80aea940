//! Where partitions begin and end: one question to each leader, however many partitions it leads.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::Error;
use super::restore::{client, count};

/// A partition of a topic.
pub(super) type Place<'a> = (&'a str, i32);

/// How long one question may take before it is looked whether the answer is still wanted.
pub(super) const SLICE: Duration = Duration::from_secs(2);
/// How long a client's first connection may take.
const CONNECT: Duration = Duration::from_secs(1);
/// How long it is waited between two questions for the same …
const PAUSE: Duration = Duration::from_millis(20);
/// … and where the first has failed.
const FAILED: Duration = Duration::from_millis(100);
/// How long it is waited for open transactions without a word, and between two words of it.
const UNTOLD: Duration = Duration::from_secs(10);

/// Asks for the [`Offset::Beginning`] or the [`Offset::End`] of partitions, in their order. The end is the one that the client
/// reads to: the high watermark where it is `read_uncommitted`, else the last stable offset.
///
/// # Errors
/// What Kafka says, of all or of the first partition that it is said of.
pub(super) fn edges<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    places: &[Place<'_>],
    edge: Offset,
    wait: Duration,
) -> KafkaResult<Vec<i64>> {
    if places.is_empty() {
        return Ok(Vec::new());
    }
    // An edge stands where a timestamp does, as in the protocol.
    let mut asked = TopicPartitionList::with_capacity(places.len());
    for (topic, partition) in places {
        asked.add_partition_offset(topic, *partition, edge)?;
    }
    let answer = client.offsets_for_times(asked, wait)?;
    let elements = answer.elements().into_iter();
    let offsets = elements.map(|element| {
        element.error()?;
        match element.offset() {
            Offset::Offset(offset) => Ok(offset),
            _ => Err(KafkaError::MetadataFetch(
                RDKafkaErrorCode::LeaderNotAvailable,
            )),
        }
    });
    offsets.collect()
}

/// Whether asking again may help: brokers that do not answer, or a leader that moves. librdkafka has asked again itself then,
/// and keeps the first error.
fn passes(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::RequestTimedOut
                | RDKafkaErrorCode::MessageTimedOut
                | RDKafkaErrorCode::TimedOutQueue
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::NetworkException
                | RDKafkaErrorCode::KafkaStorageError
                | RDKafkaErrorCode::ReplicaNotAvailable
                | RDKafkaErrorCode::LeaderNotAvailable
                | RDKafkaErrorCode::NotLeaderForPartition
                // What it says where none of all has a leader.
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::FencedLeaderEpoch
                | RDKafkaErrorCode::UnknownLeaderEpoch
                | RDKafkaErrorCode::OffsetNotAvailable
        )
    )
}

/// A `read_uncommitted` and a `read_committed` client.
///
/// # Errors
/// [`Error::Kafka`] where a property is wrong.
pub(super) fn pair(
    properties: &[(String, String)],
    group: &str,
) -> Result<[BaseConsumer; 2], Error> {
    let client = |isolation| client(properties, group, isolation);
    Ok([client("read_uncommitted")?, client("read_committed")?])
}

/// Two clients that see partitions differently, and until when they are asked.
pub(super) struct Asking<'a> {
    /// `read_uncommitted`.
    uncommitted: &'a BaseConsumer,
    /// `read_committed`.
    committed: &'a BaseConsumer,
    wait: Duration,
    until: Instant,
    cancelled: &'a (dyn Fn() -> bool + Sync),
}

impl<'a> Asking<'a> {
    /// From now on it is asked for `wait`, or until it is `cancelled`.
    pub(super) fn new(
        uncommitted: &'a BaseConsumer,
        committed: &'a BaseConsumer,
        wait: Duration,
        cancelled: &'a (dyn Fn() -> bool + Sync),
    ) -> Self {
        Self {
            uncommitted,
            committed,
            wait,
            until: Instant::now() + wait,
            cancelled,
        }
    }

    /// Takes the ends as a `read_uncommitted` client sees them, and waits until the last stable offset of each is there: all
    /// that is open now is over then. Returns where each partition begins, and that end.
    ///
    /// # Errors
    /// [`Error::Kafka`] where the brokers do not answer, or an open transaction outlasts the time.
    pub(super) fn settled(&self, places: &[Place<'_>]) -> Result<Vec<(i64, i64)>, Error> {
        // Both at once, so that both clients have found the leaders by then.
        let (begins, ends) = std::thread::scope(|scope| {
            let begins = || self.first(self.committed, places, Offset::Beginning);
            let asking = std::thread::Builder::new().name("limn-asking".to_owned());
            let asking = asking.spawn_scoped(scope, begins);
            let ends = self.first(self.uncommitted, places, Offset::End);
            match asking {
                Ok(asking) => (
                    asking.join().unwrap_or_else(|panic| resume_unwind(panic)),
                    ends,
                ),
                // No thread is to be had: one behind the other.
                Err(_) => (begins(), ends),
            }
        });
        let (begins, ends) = (begins?, ends?);
        let mut open: Vec<(Place<'_>, i64)> =
            places.iter().copied().zip(ends.iter().copied()).collect();
        let mut tell_at = Instant::now() + UNTOLD;
        loop {
            let asked: Vec<Place<'_>> = open.iter().map(|(place, _)| *place).collect();
            let stable = self.ask(self.committed, &asked, Offset::End)?;
            let mut at = stable.iter().copied();
            let first = open.iter().zip(&stable).find(|((_, end), at)| *at < end);
            let Some((&((topic, partition), end), &stable)) = first else {
                return Ok(begins.into_iter().zip(ends).collect());
            };
            if Instant::now() > tell_at {
                tell_at = Instant::now() + UNTOLD;
                tracing::warn!(
                    topic,
                    partition,
                    stable,
                    end,
                    "waiting for open transactions; one that outlasts commit.transaction_timeout hangs"
                );
            }
            if Instant::now() > self.until {
                return Err(Error::Kafka {
                    doing: format!("waiting for open transactions on {topic}[{partition}]"),
                    reason: format!(
                        "still open at offset {stable} of {end} after {:?}; one that outlasts commit.transaction_timeout hangs: look for it with kafka-transactions.sh find-hanging, and see docs/reliability.md before you end it with kafka-transactions.sh abort",
                        self.wait
                    ),
                });
            }
            open.retain(|(_, end)| at.next().is_none_or(|at| at < *end));
            std::thread::sleep(PAUSE);
        }
    }

    /// What a client is asked first. Where librdkafka looks for leaders in the moment in which its first connection comes up, it finds no
    /// broker, and the question that goes out then does not name their topics; it asks again 0.7 s later
    /// (`rd_kafka_topic_partition_list_query_leaders`). So the topics are asked for before, which waits for the connection.
    fn first(
        &self,
        client: &BaseConsumer,
        places: &[Place<'_>],
        edge: Offset,
    ) -> Result<Vec<i64>, Error> {
        // What is wrong with one is told by the question itself.
        let _ = topics(places).into_iter().try_for_each(|topic| {
            let asked = !(self.cancelled)() && count(client, topic, CONNECT).is_ok();
            asked.then_some(())
        });
        self.ask(client, places, edge)
    }

    /// As [`edges`]; brokers that do not answer are asked again.
    fn ask(
        &self,
        client: &BaseConsumer,
        places: &[Place<'_>],
        edge: Offset,
    ) -> Result<Vec<i64>, Error> {
        loop {
            if (self.cancelled)() {
                return Err(Error::Kafka {
                    doing: "reading topics back".to_owned(),
                    reason: "given up: the partitions were revoked, or limn stops".to_owned(),
                });
            }
            match edges(client, places, edge, SLICE) {
                Err(error) if passes(&error) && Instant::now() <= self.until => {
                    missing(client, places)?;
                    std::thread::sleep(FAILED);
                }
                answer => return answer.map_err(Error::kafka(asking(places))),
            }
        }
    }
}

/// Looks for the topics of partitions that do not answer. A leader that the client takes to be missing it does not look for by
/// itself.
///
/// # Errors
/// [`Error::MissingTopic`]; where the brokers do not answer this either, nothing.
fn missing(client: &BaseConsumer, places: &[Place<'_>]) -> Result<(), Error> {
    for topic in topics(places) {
        if let Err(missing @ Error::MissingTopic { .. }) = count(client, topic, SLICE) {
            return Err(missing);
        }
    }
    Ok(())
}

fn topics<'a>(places: &[Place<'a>]) -> BTreeSet<&'a str> {
    places.iter().map(|&(topic, _)| topic).collect()
}

/// Looks for what keeps partitions from being read that nothing is heard of.
///
/// # Errors
/// What is not over by itself: a topic or a partition that is no more, or is not allowed.
pub(super) fn silent(client: &BaseConsumer, places: &[Place<'_>]) -> Result<(), Error> {
    match edges(client, places, Offset::End, SLICE) {
        Ok(_) => Ok(()),
        Err(error) if passes(&error) => missing(client, places),
        Err(error) => Err(Error::kafka(asking(places))(error)),
    }
}

/// Closes clients and waits for none of them: the binding does it in stretches of 100 ms.
pub(super) fn close(clients: Vec<BaseConsumer>) {
    let closing = std::thread::Builder::new().name("limn-closing".to_owned());
    // Where there is no thread to be had, they are closed here: it drops what it was given.
    let _ = closing.spawn(move || drop(clients));
}

/// What is being done where the edges of these are asked for.
fn asking(places: &[Place<'_>]) -> String {
    match places {
        [] => "asking for the ends of no partition".to_owned(),
        [(topic, partition)] => format!("asking for the ends of {topic}[{partition}]"),
        [(topic, partition), rest @ ..] => format!(
            "asking for the ends of {topic}[{partition}] and {} more partitions",
            rest.len()
        ),
    }
}

/// Waits until no transaction is open any more of those that are now, in all of these topics' partitions: each topic with how
/// many it has.
///
/// # Errors
/// [`Error::Kafka`] where the brokers do not answer, a transaction is still open after `wait`, or it is `cancelled`.
pub fn settled(
    properties: &[(String, String)],
    group: &str,
    topics: &[(&str, i32)],
    wait: Duration,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<(), Error> {
    let [uncommitted, committed] = pair(properties, group)?;
    let asking = Asking::new(&uncommitted, &committed, wait, cancelled);
    let topics = topics.iter();
    let places: Vec<Place<'_>> = topics
        .flat_map(|&(topic, count)| (0..count).map(move |partition| (topic, partition)))
        .collect();
    let settled = asking.settled(&places).map(drop);
    close(vec![uncommitted, committed]);
    settled
}
