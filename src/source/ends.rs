//! What of the input changes by itself, asked now and then: where its partitions end, which tells how far the group is
//! behind, also while the input rests; and how many there are.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::restore::count;
use super::{Config, Error};

/// How often they are asked for.
const EVERY: Duration = Duration::from_secs(5);
/// How long the brokers may take for one.
const WAIT: Duration = Duration::from_secs(5);

/// Asks with a client of its own, on a thread of its own: the polling thread waits for nobody, and a broker that does not
/// answer keeps no one from leaving the group. Dropping it ends the thread at its next question.
pub struct Ends {
    told: Arc<Told>,
    wanted: Sender<Vec<i32>>,
}

#[derive(Default)]
struct Told {
    ends: Mutex<HashMap<i32, i64>>,
    /// How many partitions the topic has; 0: not known yet.
    partitions: AtomicI32,
}

impl Ends {
    /// Begins to ask, for no partition yet.
    ///
    /// # Errors
    /// [`Error::Kafka`] where a property is wrong or the thread cannot be made.
    pub fn start(config: &Config) -> Result<Self, Error> {
        let client = super::restore::client(&config.properties, &config.group, "read_committed")?;
        let told = Arc::<Told>::default();
        let (wanted, asked) = channel();
        let (telling, topic) = (Arc::clone(&told), config.topic.clone());
        std::thread::Builder::new()
            .name("limn-ends".to_owned())
            .spawn(move || ask(&client, &topic, &asked, &telling))
            .map_err(|e| Error::Kafka {
                doing: "starting the thread that asks for the lag".to_owned(),
                reason: e.to_string(),
            })?;
        Ok(Self { told, wanted })
    }

    /// Asks for these partitions from now on.
    pub fn of(&self, partitions: Vec<i32>) {
        self.known().retain(|number, _| partitions.contains(number));
        // The thread ends before this only with the process.
        let _ = self.wanted.send(partitions);
    }

    /// The last stable offset of each partition, as far as it was told.
    pub fn known(&self) -> MutexGuard<'_, HashMap<i32, i64>> {
        self.told.ends()
    }

    /// How many partitions the topic had when they were counted last; `None` where they were not yet.
    #[must_use]
    pub fn partitions(&self) -> Option<i32> {
        Some(self.told.partitions.load(Ordering::Relaxed)).filter(|&count| count > 0)
    }
}

impl Told {
    fn ends(&self) -> MutexGuard<'_, HashMap<i32, i64>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ask(client: &BaseConsumer, topic: &str, asked: &Receiver<Vec<i32>>, told: &Told) {
    let mut wanted = Vec::new();
    loop {
        match asked.recv_timeout(EVERY) {
            Ok(partitions) => wanted = partitions,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let mut ends = HashMap::with_capacity(wanted.len());
        for &partition in &wanted {
            match client.fetch_watermarks(topic, partition, WAIT) {
                Ok((_, end)) => drop(ends.insert(partition, end)),
                // The next answer will do; the source tells when the brokers are away for good.
                Err(error) => {
                    tracing::debug!(%error, partition, "asking where a partition ends");
                    break;
                }
            }
        }
        {
            // A newer question makes this answer void.
            let mut known = told.ends();
            known.extend(ends);
            known.retain(|number, _| wanted.contains(number));
        }
        if let Ok(count) = count(client, topic, WAIT) {
            told.partitions.store(count, Ordering::Relaxed);
        }
    }
}
