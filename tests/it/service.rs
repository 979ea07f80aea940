//! `limn run` as a process, killed and joined and moved, with the scripted engine: its summaries list what was folded.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use limn::checkpoint::OffsetSet;
use limn::codec::{self, Partitioner};
use limn::engine::Positions;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::broker::{self, eventually, unique};

const PARTITIONS: i32 = 3;

struct Raw {
    partition: i32,
    value: Option<Vec<u8>>,
    headers: BTreeMap<String, String>,
}

/// A topic with its limn: configuration, state folders, processes.
struct Case {
    input: String,
    dir: tempfile::TempDir,
    produced: BTreeMap<i32, i64>,
}

/// A process that is killed when the test ends.
struct Instance(Child);

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Case {
    fn new(name: &str) -> Self {
        let case = Self {
            input: unique(name),
            dir: tempfile::tempdir().unwrap(),
            produced: BTreeMap::new(),
        };
        broker::shared().create_topic(&case.input, PARTITIONS, &[]);
        case
    }

    fn topic(&self, kind: &str) -> String {
        format!("{}.{kind}", self.input)
    }

    fn config(&self, folder: &str) -> PathBuf {
        let path = self.dir.path().join(format!("{folder}.toml"));
        let input = &self.input;
        let text = format!(
            r#"
            [kafka]
            brokers = "{servers}"
            [kafka.consumer]
            "session.timeout.ms" = 6000
            "heartbeat.interval.ms" = 500
            [source]
            topic = "{input}"
            group = "{input}"
            [source.json]
            user = "/user"
            time = "/time"
            [window]
            kind = "tumbling"
            size = "10s"
            max_events = 4
            out_of_orderness = "5s"
            allowed_lateness = "10s"
            [summary]
            event = "- @{{{{ partition }}}}:{{{{ offset }}}}"
            message = "{{{{ profile }}}}\n{{{{ events }}}}"
            empty_profile = ""
            max_tokens = 10000
            prompt_tokens = 100000
            max_events_per_update = 5
            [engine]
            kind = "scripted"
            delay = "50ms"
            [commit]
            interval = "40ms"
            transaction_timeout = "5s"
            [topics]
            changes = "{input}.changes"
            profiles = "{input}.profiles"
            checkpoints = "{input}.checkpoints"
            dead_letters = "{input}.dead"
            [store]
            folder = "{folder}"
            "#,
            servers = broker::shared().servers(),
            folder = self.folder(folder).display(),
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn limn(&self, command: &str, folder: &str) -> Command {
        let mut limn = Command::new(env!("CARGO_BIN_EXE_limn"));
        limn.arg(command).arg("--config").arg(self.config(folder));
        limn
    }

    fn topics(&self) -> Output {
        self.limn("topics", "a").output().unwrap()
    }

    fn start(&self, folder: &str) -> Instance {
        let log = std::fs::File::create(self.dir.path().join(format!("{folder}.log"))).unwrap();
        let mut limn = self.limn("run", folder);
        Instance(limn.stderr(log).stdout(Stdio::null()).spawn().unwrap())
    }

    fn run_to_the_end(&self, folder: &str) -> Output {
        let output = self
            .limn("run", folder)
            .arg("--until-end")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    fn produce(&mut self, users: usize, rounds: i64, from: i64) {
        let mut all: BTreeMap<i32, Vec<(String, String)>> = BTreeMap::new();
        for round in from..from + rounds {
            for user in 0..users {
                let user = format!("user{user}");
                let home = Partitioner::Murmur2
                    .partition(user.as_bytes(), PARTITIONS)
                    .unwrap();
                let value = format!(r#"{{"user":"{user}","time":{}}}"#, 1_000_000 + round * 3000);
                all.entry(home).or_default().push((user, value));
            }
        }
        for (partition, records) in all {
            let records: Vec<_> = records
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect();
            broker::shared().produce_all(&self.input, partition, &records);
            *self.produced.entry(partition).or_default() += i64::try_from(records.len()).unwrap();
        }
    }

    fn read(&self, kind: &str) -> Vec<Raw> {
        let topic = self.topic(kind);
        // Waits until no transaction is open.
        broker::shared().read_committed(&topic);
        let reader: BaseConsumer = broker::shared()
            .client()
            .set("group.id", unique("reader"))
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .create()
            .unwrap();
        let mut from = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            from.add_partition_offset(&topic, partition, Offset::Beginning)
                .unwrap();
        }
        reader.assign(&from).unwrap();
        let (mut records, mut ended) = (Vec::new(), BTreeSet::new());
        while ended.len() < usize::try_from(PARTITIONS).unwrap() {
            match reader.poll(Duration::from_secs(30)).expect("no answer") {
                Ok(message) => records.push(Raw {
                    partition: message.partition(),
                    value: message.payload().map(<[u8]>::to_vec),
                    headers: message.headers().map_or_else(BTreeMap::new, |all| {
                        let text = |v: Option<&[u8]>| {
                            String::from_utf8_lossy(v.unwrap_or(b"")).into_owned()
                        };
                        all.iter()
                            .map(|h| (h.key.to_owned(), text(h.value)))
                            .collect()
                    }),
                }),
                Err(KafkaError::PartitionEOF(partition)) => drop(ended.insert(partition)),
                Err(error) => panic!("{error}"),
            }
        }
        records
    }

    /// Guarantees 1 and 2, as a `read_committed` consumer sees them: what is folded, without a repeat or a gap.
    fn verify(&self) -> BTreeMap<i32, OffsetSet> {
        let mut last: BTreeMap<String, codec::proto::ProfileChange> = BTreeMap::new();
        for record in self.read("changes") {
            let change = codec::decode_change(&record.value.unwrap()).unwrap();
            let before = last.get(&change.user_id);
            assert_eq!(
                change.version,
                before.map_or(0, |c| c.version) + 1,
                "{}",
                change.user_id
            );
            assert_eq!(change.previous_version + 1, change.version);
            assert_eq!(change.before, before.map_or("", |c| c.after.as_str()));
            last.insert(change.user_id.clone(), change);
        }
        let mut states = BTreeMap::new();
        for record in self.read("profiles") {
            let state = codec::decode_state(&record.value.unwrap()).unwrap();
            assert_eq!(
                Partitioner::Murmur2.partition(state.user_id.as_bytes(), PARTITIONS),
                Some(record.partition)
            );
            states.insert(state.user_id.clone(), state);
        }
        let mut all: BTreeMap<i32, OffsetSet> = BTreeMap::new();
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
                let sum = all.entry(partition).or_default();
                for offset in folded.runs().flat_map(|(first, end)| first..end) {
                    assert!(
                        !sum.contains(offset),
                        "in two profiles: {partition}:{offset}"
                    );
                    sum.insert(offset);
                }
            }
        }
        all
    }

    fn all_folded(&self) {
        let folded = self.verify();
        for (partition, end) in &self.produced {
            let runs: Vec<_> = folded[partition].runs().collect();
            assert_eq!(runs, [(0, *end)], "partition {partition}");
        }
        let committed = broker::shared().committed_offsets(&self.input, &self.input);
        assert_eq!(committed, self.produced, "committed offsets");
    }

    fn changes_now(&self) -> usize {
        broker::shared().visible(&self.topic("changes")).len()
    }
}

fn stop(mut instance: Instance) {
    let pid = instance.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert!(instance.0.wait().unwrap().success(), "not ended cleanly");
}

#[test]
fn a_service_killed_at_any_time_folds_every_event_once() {
    let mut case = Case::new("killed");
    assert!(case.topics().status.success());
    case.produce(20, 30, 0);
    for round in 0..4 {
        case.produce(20, 20, 30 + 20 * i64::try_from(round).unwrap());
        let before = case.changes_now();
        let instance = case.start("a");
        eventually("some changes to be committed", || {
            (case.changes_now() > before + 5 + round).then_some(())
        });
        drop(instance);
        if round == 2 {
            std::fs::remove_dir_all(case.folder("a")).unwrap();
        }
    }
    case.run_to_the_end("a");
    case.all_folded();
    // A start with nothing left to do changes nothing.
    let before = case.changes_now();
    case.run_to_the_end("a");
    assert_eq!(case.changes_now(), before);
}

#[test]
fn a_second_instance_that_joins_and_leaves_costs_and_doubles_nothing() {
    let mut case = Case::new("joined");
    assert!(case.topics().status.success());
    case.produce(20, 30, 0);
    let first = case.start("a");
    eventually("the first to work", || {
        (case.changes_now() > 3).then_some(())
    });
    let second = case.start("b");
    let joined = |name: &str| {
        let log = std::fs::read_to_string(case.dir.path().join(name)).unwrap_or_default();
        log.contains("partition restored").then_some(())
    };
    eventually("the second to get partitions", || joined("b.log"));
    stop(second);
    let before = case.changes_now();
    case.produce(20, 30, 30);
    eventually("the first to go on", || {
        (case.changes_now() > before).then_some(())
    });
    stop(first);
    case.run_to_the_end("a");
    case.all_folded();
}

#[test]
fn a_torn_state_folder_is_built_again() {
    let mut case = Case::new("torn");
    assert!(case.topics().status.success());
    case.produce(10, 12, 0);
    case.run_to_the_end("a");
    for entry in std::fs::read_dir(case.folder("a").join("db")).unwrap() {
        let path: &Path = &entry.unwrap().path();
        if path.is_file() {
            let length = usize::try_from(path.metadata().unwrap().len()).unwrap();
            std::fs::write(path, vec![0xa5; length / 2]).unwrap();
        }
    }
    case.produce(10, 12, 12);
    case.run_to_the_end("a");
    case.all_folded();
}

#[test]
fn late_future_and_malformed_events_are_dead_letters_and_the_rest_is_folded() {
    let mut case = Case::new("faulty");
    assert!(case.topics().status.success());
    case.produce(5, 20, 0);
    let home = Partitioner::Murmur2
        .partition(b"user0", PARTITIONS)
        .unwrap();
    for value in [
        "{",
        r#"{"time":1}"#,
        r#"{"user":"user0","time":1}"#,
        r#"{"user":"user0","time":99999999999999}"#,
    ] {
        broker::shared().produce(&case.input, home, "user0", value);
    }
    case.run_to_the_end("a");
    let dead = case.read("dead");
    let mut reasons: Vec<&str> = dead
        .iter()
        .map(|d| d.headers["limn-reason"].as_str())
        .collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["future", "malformed", "no_user", "too_late"]);
    assert!(
        dead.iter()
            .all(|d| d.partition == home && d.headers["limn-topic"] == case.input)
    );
    let folded = case.verify();
    for (partition, end) in &case.produced {
        assert_eq!(folded[partition].runs().collect::<Vec<_>>(), [(0, *end)]);
    }
}

#[test]
fn topics_of_another_partition_count_are_refused_by_name() {
    let case = Case::new("count");
    broker::shared().create_topic(
        &case.topic("profiles"),
        PARTITIONS + 1,
        &[("cleanup.policy", "compact")],
    );
    let output = case.topics();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        told.contains(&case.topic("profiles")) && told.contains("4 partitions"),
        "{told}"
    );
}

#[test]
fn an_input_whose_start_has_passed_the_committed_offset_is_an_error_that_names_it() {
    let mut case = Case::new("removed");
    assert!(case.topics().status.success());
    case.produce(9, 8, 0);
    case.run_to_the_end("a");
    let ends = case.produced.clone();
    case.produce(9, 8, 8);
    for (partition, end) in &ends {
        broker::shared().delete_records(&case.input, *partition, end + 2);
    }
    let output = case.limn("run", "a").arg("--until-end").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains(&case.input) && told.contains("were removed before they were folded"),
        "{told}"
    );
}
