//! A topic read from its beginning to its end, and nothing done with it: what a reader could reach at the best.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::Error;
use super::restore::{client, partitions};

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counted {
    /// Records.
    pub records: u64,
    /// From the first record to the last partition's end.
    pub seconds: f64,
}

/// Reads every partition `read_committed` and counts. Blocks.
///
/// # Errors
/// [`Error`] where the topic is missing or the brokers do not answer within `wait`.
pub fn count(
    properties: &[(String, String)],
    group: &str,
    topic: &str,
    wait: Duration,
) -> Result<Counted, Error> {
    let [count] = partitions(properties, group, [topic], wait)?;
    let reader = client(properties, group, "read_committed")?;
    let doing = || format!("reading {topic}");
    let mut from = TopicPartitionList::new();
    for partition in 0..count {
        from.add_partition_offset(topic, partition, Offset::Beginning)
            .map_err(Error::kafka(doing()))?;
    }
    reader.assign(&from).map_err(Error::kafka(doing()))?;
    let (mut records, mut began) = (0, None);
    // By number: the end of one partition can be told twice before another's is told once.
    let mut reading: BTreeSet<i32> = (0..count).collect();
    let mut heard = Instant::now();
    while !reading.is_empty() {
        match reader.poll(Duration::from_millis(100)) {
            Some(Ok(_)) => {
                began.get_or_insert_with(Instant::now);
                heard = Instant::now();
                records += 1;
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                reading.remove(&partition);
            }
            Some(Err(error)) => return Err(Error::kafka(doing())(error)),
            None if heard.elapsed() > wait => {
                return Err(Error::Kafka {
                    doing: doing(),
                    reason: format!("no answer for {wait:?}"),
                });
            }
            None => {}
        }
    }
    Ok(Counted {
        records,
        seconds: began.map_or(0.0, |b| b.elapsed().as_secs_f64()),
    })
}
