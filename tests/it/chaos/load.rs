//! Events that keep coming while something is broken.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::broker::Broker;
use crate::case::{PARTITIONS, home};

/// What comes.
#[derive(Debug, Clone)]
pub struct Events {
    /// Of so many users, few of them much more often than the others.
    pub users: u32,
    /// So many every 20 ms.
    pub batch: usize,
    /// Only of users of these partitions.
    pub partitions: Vec<i32>,
    /// One partition whose events are so many milliseconds older.
    pub behind: Option<(i32, i64)>,
    /// The share of records that nobody can read.
    pub poison: f64,
    /// One record in fifty is so many bytes longer.
    pub padding: Range<usize>,
    /// The event time of the first, in milliseconds.
    pub from_ms: i64,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            users: 40,
            batch: 8,
            partitions: (0..PARTITIONS).collect(),
            behind: None,
            poison: 0.01,
            padding: 0..1,
            from_ms: 1_000_000,
        }
    }
}

/// How much event time passes from one event to the next.
const STEP_MS: i64 = 60;

/// A producer on a thread of its own.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Load {
    pub fn start(broker: &Broker, topic: &str, events: Events, seed: u64) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let producer: BaseProducer = broker
            .client()
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("message.max.bytes", "2000000")
            .create()
            .unwrap();
        let (topic, stopped) = (topic.to_owned(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                for _ in 0..events.batch {
                    let event = events.next(i64::try_from(sent).unwrap(), &mut rng);
                    event.send(&producer, &topic);
                    sent += 1;
                }
                producer.poll(Duration::from_millis(20));
            }
            producer.flush(Duration::from_secs(120)).unwrap();
            sent
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// How many events it was, all of them written.
    pub fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A record of the input.
pub struct Event {
    pub partition: i32,
    pub user: String,
    pub value: Option<Vec<u8>>,
}

impl Event {
    pub fn of(user: &str, time_ms: i64, padding: usize) -> Self {
        let padding = "x".repeat(padding);
        let value = format!(r#"{{"user":"{user}","time":{time_ms},"padding":"{padding}"}}"#);
        Self {
            partition: home(user),
            user: user.to_owned(),
            value: Some(value.into_bytes()),
        }
    }

    pub fn send(&self, producer: &BaseProducer, topic: &str) {
        let mut record = BaseRecord::to(topic)
            .partition(self.partition)
            .key(&self.user);
        if let Some(value) = &self.value {
            record = record.payload(value);
        }
        while let Err((error, back)) = producer.send(record) {
            let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
            assert_eq!(error, full);
            producer.poll(Duration::from_millis(50));
            record = back;
        }
    }
}

impl Events {
    /// The n-th: mostly in order, sometimes late, rarely too late.
    fn next(&self, number: i64, rng: &mut fastrand::Rng) -> Event {
        let user = loop {
            let often = f64::from(self.users) * rng.f64().powi(3);
            let user = format!("user{}", often.floor());
            if self.partitions.contains(&home(&user)) {
                break user;
            }
        };
        let late = match rng.u32(0..200) {
            0 => 60_000,
            1..5 => 12_000,
            _ => rng.i64(0..4000),
        };
        let mut time = self.from_ms + number * STEP_MS - late;
        if let Some((partition, by)) = self.behind
            && partition == home(&user)
        {
            time -= by;
        }
        let padding = match rng.u32(0..50) {
            0 => rng.usize(self.padding.clone()),
            _ => 0,
        };
        let mut event = Event::of(&user, time, padding);
        if rng.f64() < self.poison {
            event.value = match rng.u32(0..4) {
                0 => None,
                1 => Some(b"{".to_vec()),
                2 => Some(br#"{"time":1000000}"#.to_vec()),
                _ => Some((0..padding.max(64)).map(|_| rng.u8(..)).collect()),
            };
        }
        event
    }
}
