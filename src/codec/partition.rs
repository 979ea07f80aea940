//! Which partition a user's key belongs to.

/// How the input's producers choose a record's partition by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitioner {
    /// As Java clients do, and librdkafka with `partitioner=murmur2`.
    Murmur2,
    /// As librdkafka does with `consistent`, and with its default for keys that are not empty: CRC32.
    Consistent,
    /// Nothing is known of it, and nothing is checked.
    Unchecked,
}

impl Partitioner {
    /// The partition of `key` among `count`; `None` where nothing is known.
    #[must_use]
    pub fn partition(self, key: &[u8], count: i32) -> Option<i32> {
        let count = u32::try_from(count).ok().filter(|&count| count > 0)?;
        let hash = match self {
            // Without the sign bit, as Kafka's `toPositive`.
            Self::Murmur2 => murmur2(key) & 0x7fff_ffff,
            Self::Consistent => crc32fast::hash(key),
            Self::Unchecked => return None,
        };
        i32::try_from(hash % count).ok()
    }
}

/// The 32-bit `MurmurHash2` with the seed of Kafka's `Utils.murmur2`.
fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    // Kafka's keys are shorter than 2 GiB.
    #[allow(clippy::cast_possible_truncation)]
    let mut hash = SEED ^ key.len() as u32;
    let words = key.chunks_exact(4);
    let rest = words.remainder();
    for word in words {
        let mut k = word
            .iter()
            .rev()
            .fold(0, |k, &byte| k << 8 | u32::from(byte))
            .wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0, |k, &b| k << 8 | u32::from(b));
        hash = (hash ^ tail).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rdkafka::ClientConfig;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::message::Message;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    use std::time::{Duration, Instant};

    #[test]
    fn murmur2_gives_what_kafkas_own_tests_ask_for() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
        let partition = Partitioner::Murmur2.partition(b"foobar", 1000);
        assert_eq!(partition, Some((-790_332_482 & 0x7fff_ffff) % 1000));
    }

    #[test]
    fn consistent_is_the_crc32_of_the_key() {
        let partition = |count| Partitioner::Consistent.partition(b"123456789", count);
        assert_eq!(partition(1000), i32::try_from(0xcbf4_3926_u32 % 1000).ok());
    }

    #[test]
    fn without_partitions_or_knowledge_there_is_no_answer() {
        assert_eq!(Partitioner::Unchecked.partition(b"ann", 8), None);
        assert_eq!(Partitioner::Murmur2.partition(b"ann", 0), None);
        assert_eq!(Partitioner::Consistent.partition(b"ann", -1), None);
    }

    proptest! {
        #[test]
        fn any_key_has_a_partition_below_the_count(key: Vec<u8>, count in 1..=i32::MAX) {
            for by in [Partitioner::Murmur2, Partitioner::Consistent] {
                let partition = by.partition(&key, count).unwrap();
                prop_assert!((0..count).contains(&partition));
            }
        }
    }

    /// What librdkafka chooses, seen at its own in-process broker.
    #[test]
    fn librdkafka_chooses_the_same_partitions() {
        const COUNT: i32 = 7;
        let keys: Vec<String> = (0..60)
            .map(|n| "ä".repeat(n % 9) + &n.to_string())
            .collect();
        for (name, by) in [
            ("murmur2", Partitioner::Murmur2),
            ("consistent", Partitioner::Consistent),
            ("consistent_random", Partitioner::Consistent),
        ] {
            let cluster = MockCluster::new(1).unwrap();
            cluster.create_topic("in", COUNT, 1).unwrap();
            let mut client = ClientConfig::new();
            client.set("bootstrap.servers", cluster.bootstrap_servers());
            client.set("group.id", "group");
            client.set("auto.offset.reset", "earliest");
            let producer: BaseProducer = client.clone().set("partitioner", name).create().unwrap();
            for key in &keys {
                let record = BaseRecord::to("in").key(key).payload("");
                producer.send(record).unwrap();
            }
            producer.flush(Duration::from_secs(20)).unwrap();
            let consumer: BaseConsumer = client.create().unwrap();
            let mut all = rdkafka::TopicPartitionList::new();
            all.add_partition_range("in", 0, COUNT - 1);
            all.set_all_offsets(rdkafka::Offset::Beginning).unwrap();
            consumer.assign(&all).unwrap();
            let until = Instant::now() + Duration::from_secs(30);
            let mut seen = 0;
            while seen < keys.len() {
                assert!(Instant::now() < until, "{name}: {seen} of {}", keys.len());
                let Some(message) = consumer.poll(Duration::from_millis(200)) else {
                    continue;
                };
                let message = message.unwrap();
                let key = message.key().unwrap();
                assert_eq!(
                    by.partition(key, COUNT),
                    Some(message.partition()),
                    "{name}"
                );
                seen += 1;
            }
        }
    }
}
