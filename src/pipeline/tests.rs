//! Against librdkafka's in-process broker: the way of the data from end to end, and what a second start does. Nothing about
//! transactions can be seen there; that is for the tests on a real broker.
use super::*;
use crate::clock::SystemClock;
use crate::codec::{Format, JsonMapping};
use crate::engine::{Finish, Positions, Sampling, Script, Scripted};
use crate::source::Start;
use crate::window::Kind;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use std::collections::{BTreeMap, BTreeSet};

mod faults;
mod reconfigured;

const PARTITIONS: i32 = 2;

struct World {
    cluster: MockCluster<'static, DefaultProducerContext>,
    folder: tempfile::TempDir,
    produced: BTreeMap<i32, i64>,
}

/// A record as a reader sees it.
struct Seen {
    partition: i32,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: BTreeMap<String, String>,
}

impl World {
    fn new() -> Self {
        let cluster = MockCluster::new(1).unwrap();
        for topic in ["in", "changes", "profiles", "checkpoints", "dead"] {
            cluster.create_topic(topic, PARTITIONS, 1).unwrap();
        }
        Self {
            cluster,
            folder: tempfile::tempdir().unwrap(),
            produced: BTreeMap::new(),
        }
    }

    fn produce(&mut self, events: &[(&str, i64)]) {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", self.cluster.bootstrap_servers())
            .create()
            .unwrap();
        for (user, time) in events {
            let partition = Partitioner::Murmur2
                .partition(user.as_bytes(), PARTITIONS)
                .unwrap();
            let value = format!(r#"{{"user":"{user}","time":{time}}}"#);
            producer
                .send(
                    BaseRecord::to("in")
                        .partition(partition)
                        .key(*user)
                        .payload(&value),
                )
                .unwrap();
            *self.produced.entry(partition).or_default() += 1;
        }
        producer.flush(Duration::from_secs(20)).unwrap();
    }

    fn read(&self, topic: &str) -> Vec<Seen> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.cluster.bootstrap_servers())
            .set("group.id", "reader")
            .set("enable.partition.eof", "true")
            .create()
            .unwrap();
        let mut all = rdkafka::TopicPartitionList::new();
        for p in 0..PARTITIONS {
            all.add_partition_offset(topic, p, rdkafka::Offset::Beginning)
                .unwrap();
        }
        consumer.assign(&all).unwrap();
        let (mut seen, mut ended) = (Vec::new(), BTreeSet::new());
        // By name: the end of one partition can be told twice before another's is told once.
        while ended.len() < PARTITIONS as usize {
            match consumer.poll(Duration::from_secs(20)).unwrap() {
                Ok(message) => seen.push(Seen {
                    partition: message.partition(),
                    key: message.key().map(<[u8]>::to_vec),
                    value: message.payload().map(<[u8]>::to_vec),
                    headers: message.headers().map_or_else(BTreeMap::new, |all| {
                        all.iter()
                            .map(|h| {
                                (
                                    h.key.to_owned(),
                                    String::from_utf8(h.value.unwrap_or(b"").to_vec()).unwrap(),
                                )
                            })
                            .collect()
                    }),
                }),
                Err(rdkafka::error::KafkaError::PartitionEOF(partition)) => {
                    ended.insert(partition);
                }
                Err(error) => panic!("{error}"),
            }
        }
        seen
    }

    fn config(&self) -> Config {
        // The in-process broker keeps a member that has left until its session is over.
        let properties = vec![
            ("session.timeout.ms".to_owned(), "6000".to_owned()),
            (
                "bootstrap.servers".to_owned(),
                self.cluster.bootstrap_servers(),
            ),
        ];
        let mapping = JsonMapping {
            user: Some("/user".into()),
            time: Some("/time".into()),
            ..JsonMapping::default()
        };
        Config {
            source: source::Config {
                properties: properties.clone(),
                topic: "in".into(),
                group: "g".into(),
                start: Start::Earliest,
                batch: 100,
                assign_timeout: Duration::from_secs(20),
            },
            codec: codec::Config {
                format: Format::Json(Box::new(mapping)),
                max_text_bytes: 1000,
                max_event_bytes: 1000,
            },
            partitioner: Partitioner::Murmur2,
            window: window::Config {
                kind: Kind::Tumbling {
                    size: Duration::from_secs(10),
                },
                max_events: 4,
                max_tokens: None,
                max_age: Duration::from_secs(600),
                out_of_orderness: Duration::from_secs(5),
                allowed_lateness: Duration::from_secs(10),
                idle_timeout: None,
                max_future_skew: Duration::from_secs(60),
            },
            summarize: summarize::Config {
                instructions: "list".into(),
                event: "- @{{ partition }}:{{ offset }}".into(),
                message: "{{ profile }}\n{{ events }}".into(),
                empty_profile: String::new(),
                max_tokens: 1000,
                prompt_tokens: 10_000,
                max_events: 6,
                sampling: Sampling::Greedy,
                retries: 1,
                retry_sampling: Sampling::Random {
                    temperature: 0.7,
                    top_k: 20,
                    top_p: 0.95,
                    min_p: 0.0,
                    seed: 0,
                },
                backoff: Duration::from_millis(1),
                backoff_max: Duration::from_millis(5),
                answer_timeout: Duration::from_secs(60),
            },
            commit: commit::Config {
                properties,
                transactional_id: "g-1".into(),
                transaction_timeout: Duration::from_secs(20),
                input_topic: "in".into(),
            },
            topics: Topics {
                changes: "changes".into(),
                profiles: "profiles".into(),
                checkpoints: "checkpoints".into(),
                dead_letters: "dead".into(),
            },
            commit_interval: Duration::from_millis(100),
            commit_updates: 50,
            open_bytes: 1 << 20,
            waiting_bytes: 1 << 20,
            checkpoint_runs: CHECKPOINT_RUNS,
            shutdown_timeout: Duration::from_secs(20),
            restore_timeout: Duration::from_secs(20),
            waits_for_open: true,
            stop_at_end: true,
            max_updates: None,
        }
    }

    fn store(&self) -> Arc<Store> {
        let config = store::Config {
            folder: self.folder.path().to_owned(),
            cache_bytes: 1 << 20,
            history: 3,
            journal_entries: 1000,
        };
        Arc::new(Store::open(&config).unwrap())
    }

    /// Runs to the end of the input, or to `max_updates`.
    fn run(&self, config: &Config, engine: Arc<Scripted>) -> Result<Status, Error> {
        let (_stop, stopped) = watch::channel(false);
        self.run_until(stopped, config, engine)
    }

    /// The same, or until it is told to stop.
    fn run_until(
        &self,
        stopped: watch::Receiver<bool>,
        config: &Config,
        engine: Arc<Scripted>,
    ) -> Result<Status, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (status, shown) = watch::channel(Status::default());
        let parts = Parts {
            engine,
            store: self.store(),
            clock: Arc::new(SystemClock),
            status,
            changes: None,
        };
        let bounded = tokio::time::Duration::from_secs(60);
        let ended = runtime
            .block_on(async { tokio::time::timeout(bounded, run(config, &parts, stopped)).await });
        ended.unwrap_or_else(|_| panic!("it hangs: {:?}", shown.borrow()))?;
        Ok(shown.borrow().clone())
    }

    /// Every event of the input is folded once or dead-lettered once; versions have no gap; the profiles are the last changes.
    fn verify(&self) -> Positions {
        let mut last: BTreeMap<String, proto::ProfileChange> = BTreeMap::new();
        for record in self.read("changes") {
            let change = codec::decode_change(&record.value.unwrap()).unwrap();
            let before = last.get(&change.user_id);
            assert_eq!(change.previous_version, before.map_or(0, |c| c.version));
            assert_eq!(change.version, change.previous_version + 1);
            assert_eq!(change.before, before.map_or("", |c| c.after.as_str()));
            last.insert(change.user_id.clone(), change);
        }
        let mut states = BTreeMap::new();
        for record in self.read("profiles") {
            let state = codec::decode_state(&record.value.unwrap()).unwrap();
            let home = Partitioner::Murmur2.partition(state.user_id.as_bytes(), PARTITIONS);
            assert_eq!(
                (home, record.key.as_deref()),
                (Some(record.partition), Some(state.user_id.as_bytes()))
            );
            states.insert(state.user_id.clone(), state);
        }
        let mut all = Positions::default();
        assert_eq!(states.len(), last.len());
        for (user, change) in &last {
            let state = &states[user];
            assert_eq!(
                (state.version, &state.summary),
                (change.version, &change.after)
            );
            let mine = Positions::parse(&state.summary).unwrap();
            assert!(
                mine.repeated.is_empty(),
                "folded twice: {:?}",
                mine.repeated
            );
            for (partition, folded) in mine.folded {
                let sum = all.folded.entry(partition).or_default();
                for (first, end) in folded.runs() {
                    for offset in first..end {
                        assert!(!sum.contains(offset), "in two profiles: {offset}");
                        sum.insert(offset);
                    }
                }
            }
        }
        all
    }

    fn all_folded(&self) {
        let folded = self.verify();
        for (partition, end) in &self.produced {
            let runs: Vec<_> = folded.folded[partition].runs().collect();
            assert_eq!(runs, [(0, *end)], "partition {partition}");
        }
    }
}

fn events(users: usize, rounds: i64) -> Vec<(String, i64)> {
    let all = (0..rounds)
        .flat_map(|r| (0..users).map(move |u| (format!("user{u}"), 1_000_000 + r * 3000)));
    all.collect()
}

fn borrowed(events: &[(String, i64)]) -> Vec<(&str, i64)> {
    events.iter().map(|(u, t)| (u.as_str(), *t)).collect()
}

#[test]
fn every_event_is_folded_once_and_the_versions_have_no_gap() {
    let mut world = World::new();
    world.produce(&borrowed(&events(7, 11)));
    let status = world
        .run(&world.config(), Arc::new(Scripted::new(3)))
        .unwrap();
    world.all_folded();
    assert_eq!(
        (
            status.accepted,
            status.events_committed,
            status.dead_lettered
        ),
        (77, 77, 0)
    );
    assert_eq!(status.windows_open, 0);
}

#[test]
fn a_second_start_goes_on_and_folds_nothing_twice() {
    let mut world = World::new();
    // Of one partition, so that five updates, whichever they are, leave an event of another user below what is folded.
    let users: Vec<String> = neighbours().take(7).collect();
    let all: Vec<_> = (events(7, 11).into_iter().zip(0..))
        .map(|((_, time), n)| (users[n % 7].clone(), time))
        .collect();
    world.produce(&borrowed(&all[..50]));
    let config = Config {
        max_updates: Some(5),
        ..world.config()
    };
    let status = world.run(&config, Arc::new(Scripted::new(2))).unwrap();
    assert_eq!(status.updates_committed, 5);
    world.produce(&borrowed(&all[50..]));
    let status = world
        .run(&world.config(), Arc::new(Scripted::new(2)))
        .unwrap();
    assert!(status.skipped > 0, "nothing was read again");
    world.all_folded();
}

#[test]
fn a_deleted_folder_is_built_again_from_the_topics() {
    let mut world = World::new();
    let all = events(7, 11);
    world.produce(&borrowed(&all));
    let config = Config {
        max_updates: Some(9),
        ..world.config()
    };
    world.run(&config, Arc::new(Scripted::new(2))).unwrap();
    world.folder = tempfile::tempdir().unwrap();
    world
        .run(&world.config(), Arc::new(Scripted::new(2)))
        .unwrap();
    world.all_folded();
}

#[test]
fn what_is_too_late_or_in_the_wrong_partition_is_a_dead_letter_with_its_reason() {
    let mut world = World::new();
    world.produce(&[
        ("ann", 1_000_000),
        ("ann", 2_000_000),
        ("ann", 1_000_000),
        ("ann", 1_990_000),
    ]);
    let home = Partitioner::Murmur2.partition(b"ann", PARTITIONS).unwrap();
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", world.cluster.bootstrap_servers())
        .create()
        .unwrap();
    for (partition, value) in [
        (1 - home, r#"{"user":"ann","time":1}"#),
        (home, "{"),
        (home, r#"{"time":1}"#),
        (home, r#"{"user":"ann","time":99999999999999}"#),
    ] {
        producer
            .send(
                BaseRecord::<str, str>::to("in")
                    .partition(partition)
                    .key("k")
                    .payload(value),
            )
            .unwrap();
    }
    producer.flush(Duration::from_secs(20)).unwrap();
    let status = world
        .run(&world.config(), Arc::new(Scripted::new(2)))
        .unwrap();
    assert_eq!(
        (status.accepted, status.late, status.dead_lettered),
        (3, 1, 5)
    );
    let mut reasons: Vec<_> = world
        .read("dead")
        .into_iter()
        .map(|d| d.headers["limn-reason"].clone())
        .collect();
    reasons.sort();
    assert_eq!(
        reasons,
        [
            "future",
            "malformed",
            "no_user",
            "too_late",
            "wrong_partition"
        ]
    );
    // A second start reads nothing of it again.
    world
        .run(&world.config(), Arc::new(Scripted::new(2)))
        .unwrap();
    assert_eq!(world.read("dead").len(), 5);
}

#[test]
fn refused_answers_leave_the_profile_and_give_up_only_what_cannot_be_folded() {
    let mut world = World::new();
    world.produce(&[("ann", 1_000_000); 8]);
    // Offset 2 poisons every prompt that it is in.
    let engine = Scripted::with(2, |request, _| {
        let poisoned = request.user.split_whitespace().any(|w| w.ends_with(":2"));
        if poisoned {
            Script::Text("cut of".into(), Finish::Length)
        } else {
            Script::Answer
        }
    });
    let status = world.run(&world.config(), Arc::new(engine)).unwrap();
    let dead: Vec<_> = world
        .read("dead")
        .into_iter()
        .map(|d| {
            (
                d.headers["limn-offset"].clone(),
                d.headers["limn-reason"].clone(),
            )
        })
        .collect();
    assert!(
        dead.iter().any(|(o, _)| o == "2") && dead.iter().all(|(_, r)| r == "refused"),
        "{dead:?}"
    );
    let folded: usize = world
        .verify()
        .folded
        .values()
        .map(|f| {
            f.runs()
                .map(|(a, b)| usize::try_from(b - a).unwrap())
                .sum::<usize>()
        })
        .sum();
    assert_eq!(folded + dead.len(), 8);
    assert!(status.refused >= 2);
}

#[test]
fn an_engine_that_is_away_costs_no_event() {
    let mut world = World::new();
    world.produce(&borrowed(&events(5, 6)));
    let engine = Scripted::with(2, |_, call| {
        let away = crate::engine::Error::Unavailable {
            reason: "away".into(),
            retry_after: None,
        };
        if call % 3 == 0 {
            Script::Fail(away)
        } else {
            Script::Answer
        }
    });
    let status = world.run(&world.config(), Arc::new(engine)).unwrap();
    assert_eq!(status.dead_lettered, 0);
    world.all_folded();
}

/// Users of partition 0.
fn neighbours() -> impl Iterator<Item = String> {
    (0..)
        .map(|n| format!("user{n}"))
        .filter(|u| Partitioner::Murmur2.partition(u.as_bytes(), PARTITIONS) == Some(0))
}

/// Every second event is given up while the windows of the others stay open.
fn checkpoint_stays_small(engine: Scripted) {
    const PAIRS: usize = 250;
    let world = World::new();
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", world.cluster.bootstrap_servers())
        .create()
        .unwrap();
    for user in neighbours().take(PAIRS) {
        for value in [format!(r#"{{"user":"{user}","time":1000000}}"#), "{".into()] {
            let record = BaseRecord::to("in").partition(0).key(&user);
            producer.send(record.payload(&value)).unwrap();
        }
    }
    producer.flush(Duration::from_secs(20)).unwrap();
    let mut config = world.config();
    config.checkpoint_runs = 8;
    config.commit_interval = Duration::from_millis(20);
    config.source.batch = 10;
    let status = world.run(&config, Arc::new(engine)).unwrap();
    let (folded, dead) = (status.events_committed, status.dead_lettered);
    assert_eq!((folded, dead), (PAIRS as u64, PAIRS as u64));
    world.verify();
    let largest = world.read("checkpoints").into_iter().map(|record| {
        let checkpoint = codec::decode_checkpoint(&record.value.unwrap()).unwrap();
        checkpoint.rejected.len() / 2 + checkpoint.late.len() / 2
    });
    let largest = largest.max().unwrap();
    assert!(largest <= 2 * 8 + 10, "{largest} runs in a checkpoint");
    let closed = world.read("changes").into_iter().filter(|record| {
        let change = codec::decode_change(record.value.as_ref().unwrap()).unwrap();
        change.window.unwrap().close_reason == "checkpoint"
    });
    assert!(closed.count() > PAIRS / 2);
}

#[test]
fn windows_that_hold_the_restart_offset_back_close_before_the_checkpoint_is_too_large() {
    checkpoint_stays_small(Scripted::new(8));
}

#[test]
fn reading_rests_while_the_engine_is_away_and_a_checkpoint_is_full() {
    checkpoint_stays_small(Scripted::with(8, |_, call| {
        let away = crate::engine::Error::Unavailable {
            reason: "away".into(),
            retry_after: None,
        };
        if call < 1000 {
            Script::Fail(away)
        } else {
            Script::Answer
        }
    }));
}

#[test]
fn a_bounded_run_ends_where_the_input_ended_at_its_start_though_more_is_written() {
    let mut world = World::new();
    world.produce(&borrowed(&events(7, 11)));
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", world.cluster.bootstrap_servers())
        .create()
        .unwrap();
    let mut later = BTreeMap::<i32, i64>::new();
    let ended = std::sync::atomic::AtomicBool::new(false);
    let config = world.config();
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            for round in 0.. {
                for user in 0..7 {
                    let user = format!("user{user}");
                    let home = Partitioner::Murmur2.partition(user.as_bytes(), PARTITIONS);
                    let home = home.unwrap();
                    let value = format!(r#"{{"user":"{user}","time":{}}}"#, 1_040_000 + round);
                    let record = BaseRecord::to("in").partition(home).key(&user);
                    producer.send(record.payload(&value)).unwrap();
                    *later.entry(home).or_default() += 1;
                }
                producer.flush(Duration::from_secs(20)).unwrap();
                std::thread::sleep(Duration::from_millis(5));
                if ended.load(std::sync::atomic::Ordering::SeqCst) {
                    break;
                }
            }
        });
        // Never done with all that there is at a moment.
        let slow = Scripted::with(1, |_, _| {
            Script::After(Duration::from_millis(200), Box::new(Script::Answer))
        });
        // A run that hangs panics, and the writer must end then too.
        let run = || world.run(&config, Arc::new(slow));
        let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        ended.store(true, std::sync::atomic::Ordering::SeqCst);
        writing.join().unwrap();
        let status = status.expect("it ends").unwrap();
        assert!(status.events_committed >= 77);
    });
    for (partition, count) in later {
        *world.produced.entry(partition).or_default() += count;
    }
    let rest = world.run(&config, Arc::new(Scripted::new(3))).unwrap();
    assert!(
        rest.events_committed > 0,
        "it went on with what was written"
    );
    world.all_folded();
}

#[test]
fn an_event_that_is_folded_is_no_dead_letter_under_new_rules() {
    let mut world = World::new();
    world.produce(&borrowed(&events(7, 11)));
    let mut config = world.config();
    config.max_updates = Some(9);
    world.run(&config, Arc::new(Scripted::new(2))).unwrap();
    let before = world.verify();
    // No event passes any more.
    let mut strict = world.config();
    strict.codec.max_event_bytes = 10;
    let status = world.run(&strict, Arc::new(Scripted::new(2))).unwrap();
    assert!(status.skipped > 0, "nothing folded was read again");
    for dead in world.read("dead") {
        let at = |name: &str| dead.headers[name].parse::<i64>().unwrap();
        let partition = i32::try_from(at("limn-partition")).unwrap();
        let folded = before.folded.get(&partition);
        let twice = folded.is_some_and(|f| f.contains(at("limn-offset")));
        assert!(!twice, "{partition}:{} is folded", at("limn-offset"));
    }
    let folded = before.folded.values().flat_map(|f| f.runs());
    let folded: i64 = folded.map(|(first, end)| end - first).sum();
    let dead = i64::try_from(status.dead_lettered).unwrap();
    assert_eq!(folded + dead, 77);
}

#[test]
fn a_pipeline_that_has_not_turned_for_long_is_not_alive() {
    let turned = |seconds| Status {
        turned: Instant::now().checked_sub(Duration::from_secs(seconds)),
        ..Status::default()
    };
    assert_eq!(turned(1).alive(), Ok(()));
    let why = turned(31).alive().unwrap_err();
    assert!(why.contains("not moved for 31 seconds"), "{why}");
    // Brokers that are away, or a model that is loaded, are no standstill.
    assert_eq!(Status::default().alive(), Ok(()));
}

#[tokio::test]
async fn a_transaction_that_takes_its_time_is_no_standstill() {
    let (status, shown) = watch::channel(Status::default());
    let mut seen = shown.clone();
    let transaction = async { seen.wait_for(|s| s.turned.is_some()).await.is_ok() };
    assert!(flow::turning(&status, transaction).await);
    assert_eq!(shown.borrow().alive(), Ok(()));
}

#[test]
fn the_journal_answers_instead_of_the_model() {
    let mut world = World::new();
    world.produce(&borrowed(&events(4, 5)));
    let engine = Arc::new(Scripted::new(1));
    // A window is an update by itself, whatever waits when it begins: else both worlds need not ask the same.
    let whole = |mut config: Config| {
        config.summarize.max_events = config.window.max_events;
        config
    };
    world
        .run(&whole(world.config()), Arc::clone(&engine))
        .unwrap();
    let (first, summaries) = (engine.calls(), world.read("profiles").len());
    // The same input in a new world, with the old journal.
    let mut again = World::new();
    again.produce(&borrowed(&events(4, 5)));
    again.folder = std::mem::replace(&mut world.folder, tempfile::tempdir().unwrap());
    {
        let store = again.store();
        (0..PARTITIONS).for_each(|p| store.view.clear(p).unwrap());
    }
    let status = again
        .run(&whole(again.config()), Arc::clone(&engine))
        .unwrap();
    assert!(status.updates_committed > 4, "{status:?}");
    assert_eq!(status.from_journal, status.updates_committed);
    assert_eq!(
        (engine.calls(), again.read("profiles").len()),
        (first, summaries)
    );
}

#[test]
fn a_topic_with_the_wrong_partition_count_and_a_missing_one_are_named() {
    let world = World::new();
    world.cluster.create_topic("three", 3, 1).unwrap();
    let mut config = world.config();
    config.topics.checkpoints = "three".into();
    let error = world
        .run(&config, Arc::new(Scripted::new(1)))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("three has 3 partitions") && error.contains("in has 2"),
        "{error}"
    );
}
