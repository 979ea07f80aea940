//! Which partition a user's key belongs to.

/// How the producers of the input choose the partition of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitioner {
    /// As the Java clients do (`org.apache.kafka.common.utils.Utils.murmur2`).
    Murmur2,
    /// As librdkafka's `consistent` does: CRC-32.
    Consistent,
    /// Not known: any partition will do. Two instances would write one profile if a user's events were spread.
    Unchecked,
}

impl Partitioner {
    /// The partition of `key` among `count`; `None` where it is not known.
    #[must_use]
    pub fn partition(self, key: &[u8], count: i32) -> Option<i32> {
        let count = u32::try_from(count).ok().filter(|&n| n > 0)?;
        let hash = match self {
            Self::Murmur2 => murmur2(key) & 0x7fff_ffff,
            Self::Consistent => crc32fast::hash(key),
            Self::Unchecked => return None,
        };
        i32::try_from(hash % count).ok()
    }
}

/// MurmurHash2, 32 bits, with the seed of the Java clients.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut hash = 0x9747_b28c ^ length;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (i, &byte) in tail.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::config::ClientConfig;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::message::Message;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    use std::time::Duration;

    /// The values of Apache Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn murmur2_gives_what_the_java_clients_give() {
        for (key, hash) in [
            ("21", -973_932_308_i32),
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
    }

    #[test]
    fn librdkafka_puts_every_key_where_we_expect_it() {
        for (name, partitioner) in [
            ("murmur2", Partitioner::Murmur2),
            ("consistent", Partitioner::Consistent),
        ] {
            let cluster = MockCluster::new(1).unwrap();
            cluster.create_topic("t", 7, 1).unwrap();
            let servers = cluster.bootstrap_servers();
            let producer: BaseProducer = ClientConfig::new()
                .set("bootstrap.servers", &servers)
                .set("partitioner", name)
                .create()
                .unwrap();
            for i in 0..100 {
                let key = "é".repeat(i % 5) + &"k".repeat(i % 9) + &i.to_string();
                producer
                    .send(BaseRecord::to("t").key(&key).payload(""))
                    .unwrap();
            }
            producer.flush(Duration::from_secs(20)).unwrap();
            let consumer: BaseConsumer = ClientConfig::new()
                .set("bootstrap.servers", &servers)
                .set("group.id", "g")
                .create()
                .unwrap();
            let mut all = rdkafka::TopicPartitionList::new();
            for p in 0..7 {
                all.add_partition_offset("t", p, rdkafka::Offset::Beginning)
                    .unwrap();
            }
            consumer.assign(&all).unwrap();
            for _ in 0..100 {
                let message = consumer.poll(Duration::from_secs(20)).unwrap().unwrap();
                let key = message.key().unwrap();
                assert_eq!(
                    partitioner.partition(key, 7),
                    Some(message.partition()),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn an_unknown_partitioner_and_no_partitions_give_none() {
        assert_eq!(Partitioner::Unchecked.partition(b"a", 3), None);
        assert_eq!(Partitioner::Murmur2.partition(b"a", 0), None);
    }
}
