//! Topics that are made for a measurement, and deleted after it.

use rdkafka::admin::{NewTopic, TopicReplication};

use super::{Admin, Finding, brokers};

impl Admin {
    /// Makes an input topic, and waits until a broker tells of it.
    ///
    /// # Errors
    /// [`Finding`]: what the brokers said.
    pub async fn create_input(
        &self,
        name: &str,
        partitions: i32,
        replication_factor: Option<u16>,
    ) -> Result<(), Finding> {
        let copies = replication_factor.map_or(-1, i32::from);
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(copies));
        let results = self
            .client
            .create_topics(&[topic], &self.options())
            .await
            .map_err(brokers("creating the input topic"))?;
        match results.into_iter().next() {
            Some(Err((name, code))) => Err(Finding::NotCreated {
                name,
                key: "source.topic",
                reason: code.to_string(),
            }),
            _ => {
                self.known(&[name]).await;
                Ok(())
            }
        }
    }

    /// Deletes topics with all that they hold.
    ///
    /// # Errors
    /// [`Finding`]: the first that could not be deleted.
    pub async fn delete(&self, names: &[&str]) -> Result<(), Finding> {
        let doing = "deleting topics";
        let results = self
            .client
            .delete_topics(names, &self.options())
            .await
            .map_err(brokers(doing))?;
        match results.into_iter().find_map(Result::err) {
            Some((name, code)) => Err(Finding::Brokers {
                doing,
                reason: format!("{name}: {code}"),
            }),
            None => Ok(()),
        }
    }
}
