//! The broker of the demo: librdkafka's own, inside this process. It keeps nothing when it ends, fences no producer and
//! shows aborted records, so nothing about guarantees may be concluded from it; the pipeline does not know the difference.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};

/// A running broker; it ends when this is dropped.
pub struct Broker {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl Broker {
    /// Starts it, with these topics.
    ///
    /// # Errors
    /// What librdkafka says.
    pub fn start(topics: &[&str], partitions: i32) -> Result<Self, KafkaError> {
        let cluster = MockCluster::new(1)?;
        for topic in topics {
            cluster.create_topic(topic, partitions, 1)?;
        }
        Ok(Self { cluster })
    }

    /// The properties of a client of it.
    #[must_use]
    pub fn properties(&self) -> Vec<(String, String)> {
        vec![(
            "bootstrap.servers".to_owned(),
            self.cluster.bootstrap_servers(),
        )]
    }

    /// Writes records as a former run's broker had them: topic, partition, key, value.
    ///
    /// # Errors
    /// What librdkafka says.
    pub fn publish<'r>(
        &self,
        records: impl Iterator<Item = (&'r str, i32, Vec<u8>, Vec<u8>)>,
    ) -> Result<(), KafkaError> {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", self.cluster.bootstrap_servers())
            .create()?;
        for (topic, partition, key, value) in records {
            let record = BaseRecord::to(topic)
                .partition(partition)
                .key(&key)
                .payload(&value);
            producer.send(record).map_err(|(error, _)| error)?;
            producer.poll(Duration::ZERO);
        }
        producer.flush(Duration::from_secs(30))
    }
}
