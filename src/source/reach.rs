//! Whether the brokers answer, asked before anything is built on them: who waits for Kafka should be able to say so.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;

use super::{Config, Error};

/// How long one question may take; a stop meanwhile is waited for as long.
const ASK: Duration = Duration::from_secs(2);

/// How long its answer to why is listened for.
const HEAR: Duration = Duration::from_millis(100);

/// What librdkafka says by the way: an address that refuses, a certificate that is not trusted, a wrong password.
#[derive(Default)]
struct Heard(Mutex<Option<String>>);

impl Heard {
    fn last(&self) -> Option<String> {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.take()
    }
}

impl ClientContext for Heard {
    fn error(&self, error: KafkaError, reason: &str) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // That all brokers are down says less than what was said of one of them before.
        if heard.is_none() || !error.to_string().contains("AllBrokersDown") {
            *heard = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Heard {}

/// Waits until the brokers answer, `wait` at the longest, and returns the cluster's id where they tell one. `unanswered`
/// hears after each question why there is no answer yet, and says whether to go on. Blocks.
///
/// # Errors
/// [`Error::Kafka`]: a property is wrong, there was no answer, or `unanswered` did not want to wait.
pub fn reach(
    config: &Config,
    wait: Duration,
    mut unanswered: impl FnMut(&Error) -> bool,
) -> Result<Option<String>, Error> {
    let doing = "waiting for the brokers";
    let mut client = ClientConfig::new();
    // Who was away is asked again soon, unless the configuration has an opinion.
    client.set("reconnect.backoff.max.ms", "1000");
    client.extend(config.properties.iter().cloned());
    client.set("group.id", &config.group);
    let client: BaseConsumer<Heard> = client
        .create_with_context(Heard::default())
        .map_err(Error::kafka(doing))?;
    let until = Instant::now() + wait;
    loop {
        let ask = ASK.min(wait);
        let Err(error) = client.fetch_metadata(Some(&config.topic), ask) else {
            return Ok(client.client().fetch_cluster_id(ask));
        };
        // What was said meanwhile is told by polling, between other news.
        let told = Instant::now() + HEAR;
        while Instant::now() < told {
            let _ = client.poll(HEAR / 10);
        }
        let reason = match client.context().last() {
            Some(heard) => format!("{error}: {heard}"),
            None => error.to_string(),
        };
        let error = Error::Kafka {
            doing: doing.to_owned(),
            reason,
        };
        if !unanswered(&error) || Instant::now() >= until {
            return Err(error);
        }
    }
}
