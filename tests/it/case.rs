//! A topic with its `limn run` processes on the real broker, and the account of every event of it. The engine is the
//! scripted one: its summaries list what was folded.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use limn::codec::Partitioner;
use limn::config::Config;
use limn::verify::{self, Report};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::broker::{self, Broker, eventually, signal, unique};

pub const PARTITIONS: i32 = 3;

pub struct Raw {
    pub partition: i32,
    pub value: Option<Vec<u8>>,
    pub headers: BTreeMap<String, String>,
}

/// A topic with its limn: configuration, state folders, processes.
pub struct Case<'a> {
    pub broker: &'a Broker,
    /// What limn is told of where the brokers are.
    pub servers: String,
    pub input: String,
    pub dir: tempfile::TempDir,
    pub produced: BTreeMap<i32, i64>,
    /// Bytes that each event is longer by.
    pub padding: usize,
    /// Lines of the configuration that are others in this test.
    pub replaced: Vec<(&'static str, String)>,
}

/// A process that is killed when the test ends.
pub struct Instance(pub Child);

impl Drop for Case<'_> {
    fn drop(&mut self) {
        // What the instances said, when a test fails.
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.dir.path())
                .into_iter()
                .flatten()
                .flatten()
            {
                if entry.path().extension().is_some_and(|e| e == "log") {
                    let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
                    eprintln!("{}:\n{}", entry.path().display(), end(&log));
                }
            }
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Instance {
    /// Waits until it has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        eventually("the instance to end", || self.0.try_wait().unwrap())
    }
}

/// Lines of the configuration, and what makes it one of the new group protocol.
pub const NEW_PROTOCOL: [(&str, &str); 2] = [
    (
        "\"session.timeout.ms\" = 3000",
        "\"group.protocol\" = \"consumer\"",
    ),
    ("\"heartbeat.interval.ms\" = 500", ""),
];

impl Case<'static> {
    pub fn new(name: &str) -> Self {
        Self::on(broker::shared(), name)
    }
}

impl<'a> Case<'a> {
    /// On a broker of its own.
    pub fn on(broker: &'a Broker, name: &str) -> Self {
        let case = Self::nowhere(broker, name);
        // Some tests' records are of 1970: every five minutes Kafka would look for such to remove.
        broker.create_topic(&case.input, PARTITIONS, &[("retention.ms", "-1")]);
        case
    }

    /// On a broker that is not there yet, or never.
    pub fn nowhere(broker: &'a Broker, name: &str) -> Self {
        Self {
            broker,
            servers: broker.servers(),
            input: unique(name),
            dir: tempfile::tempdir().unwrap(),
            produced: BTreeMap::new(),
            padding: 0,
            replaced: Vec::new(),
        }
    }

    pub fn topic(&self, kind: &str) -> String {
        format!("{}.{kind}", self.input)
    }

    pub fn config(&self, folder: &str) -> PathBuf {
        let path = self.dir.path().join(format!("{folder}.toml"));
        let input = &self.input;
        let mut text = format!(
            r#"
            [kafka]
            brokers = "{servers}"
            [kafka.consumer]
            "session.timeout.ms" = 3000
            "heartbeat.interval.ms" = 500
            "max.poll.interval.ms" = 6000
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
            [http]
            listen = "127.0.0.1:0"
            "#,
            servers = self.servers,
            folder = self.folder(folder).display(),
        );
        for (old, new) in &self.replaced {
            assert!(text.contains(old), "{old} in {text}");
            text = text.replace(old, new);
        }
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn limn(&self, command: &str, folder: &str) -> Command {
        let mut limn = Command::new(env!("CARGO_BIN_EXE_limn"));
        limn.arg(command).arg("--config").arg(self.config(folder));
        limn
    }

    pub fn topics(&self) -> Output {
        self.limn("topics", "a").output().unwrap()
    }

    pub fn start(&self, folder: &str) -> Instance {
        self.start_with(folder, &[])
    }

    pub fn start_with(&self, folder: &str, environment: &[(&str, &str)]) -> Instance {
        let mut limn = self.limn("run", folder);
        limn.envs(environment.iter().copied());
        self.logged(folder, &mut limn)
    }

    /// One that ends by itself.
    pub fn start_until_end(&self, folder: &str) -> Instance {
        let mut limn = self.limn("run", folder);
        self.logged(folder, limn.arg("--until-end"))
    }

    fn logged(&self, folder: &str, limn: &mut Command) -> Instance {
        let log = self.new_log(folder);
        Instance(limn.stderr(log).stdout(Stdio::null()).spawn().unwrap())
    }

    /// An empty log for the next instance on the folder. Those of the former ones are kept beside it, for when the test fails.
    pub fn new_log(&self, folder: &str) -> File {
        let log = self.dir.path().join(format!("{folder}.log"));
        if log.exists() {
            let kept = (1..).map(|n| log.with_extension(format!("{n}.log")));
            let mut kept = kept.skip_while(|kept| kept.exists());
            std::fs::rename(&log, kept.next().unwrap()).unwrap();
        }
        File::create(log).unwrap()
    }

    pub fn log(&self, folder: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("{folder}.log"))).unwrap_or_default()
    }

    /// How often a partition was restored by the instance.
    pub fn restored(&self, folder: &str) -> usize {
        self.log(folder).matches("partition restored").count()
    }

    /// Waits until so many were.
    pub fn until_restored(&self, folder: &str, partitions: usize) {
        eventually("partitions to be restored", || {
            (self.restored(folder) >= partitions).then_some(())
        });
    }

    /// Where a running instance listens.
    pub fn address(&self, folder: &str) -> String {
        eventually("an address in the log", || {
            let log = self.log(folder);
            let (_, rest) = log.split_once("address=")?;
            Some(rest.split_whitespace().next()?.to_owned())
        })
    }

    /// How a bounded run ends, and what it says.
    pub fn ended(&self, folder: &str) -> (Option<i32>, String) {
        let output = self
            .limn("run", folder)
            .arg("--until-end")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    }

    /// The same of one that ends well.
    pub fn run_to_the_end(&self, folder: &str) -> String {
        let (code, said) = self.ended(folder);
        assert_eq!(code, Some(0), "{}", end(&said));
        said
    }

    pub fn produce(&mut self, users: usize, rounds: i64, from: i64) {
        let mut all: BTreeMap<i32, Vec<(String, String)>> = BTreeMap::new();
        for round in from..from + rounds {
            for user in 0..users {
                let user = format!("user{user}");
                let home = home(&user);
                let (time, padding) = (1_000_000 + round * 3000, "x".repeat(self.padding));
                let value = format!(r#"{{"user":"{user}","time":{time},"padding":"{padding}"}}"#);
                all.entry(home).or_default().push((user, value));
            }
        }
        for (partition, records) in all {
            let records: Vec<_> = records
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect();
            self.broker.produce_all(&self.input, partition, &records);
            *self.produced.entry(partition).or_default() += i64::try_from(records.len()).unwrap();
        }
    }

    pub fn read(&self, kind: &str) -> Vec<Raw> {
        let topic = self.topic(kind);
        // Waits until no transaction is open.
        self.broker.read_committed(&topic);
        let reader: BaseConsumer = self
            .broker
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

    /// Commits these offsets as Kafka's own tool does it, with nothing beside them, once the group has no member.
    pub fn commit_by_hand(&self, offsets: &BTreeMap<i32, i64>) {
        let mut to = TopicPartitionList::new();
        for (&partition, &offset) in offsets {
            to.add_partition_offset(&self.input, partition, Offset::Offset(offset))
                .unwrap();
        }
        let by_hand = self.broker.of_group(&self.input);
        eventually("the group to have no member", || {
            by_hand.commit(&to, CommitMode::Sync).ok()
        });
    }

    /// What `limn verify` looks at.
    pub fn verify_options(&self, drained: bool) -> verify::Options {
        let config = Config::load(&self.config("a"), []).unwrap();
        config.verify_room(drained)
    }

    /// All guarantees that the topics tell of, as a `read_committed` consumer sees them; all of the input is worked off.
    pub fn verify(&self) -> Report {
        let report = verify::verify(&self.verify_options(true), &mut |_| ()).unwrap();
        assert!(report.is_sound(), "{report:#?}");
        report
    }

    /// Everything produced is folded, but for so many dead letters.
    pub fn all_folded_but(&self, dead: u64) {
        let report = self.verify();
        let produced: i64 = self.produced.values().sum();
        assert_eq!(report.dead_lettered, dead, "{report:#?}");
        assert_eq!(report.folded + dead, produced.unsigned_abs());
    }

    pub fn all_folded(&self) {
        self.all_folded_but(0);
        let committed = self.broker.committed_offsets(&self.input, &self.input);
        assert_eq!(committed, self.produced, "committed offsets");
    }

    pub fn changes_now(&self) -> usize {
        self.broker.visible(&self.topic("changes")).len()
    }
}

pub fn stop(mut instance: Instance) {
    signal(&instance.0, "-TERM");
    assert!(instance.0.wait().unwrap().success(), "not ended cleanly");
}

/// The last lines of a log: whole, it would bury what failed.
fn end(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// The partition that a user's events belong to.
pub fn home(user: &str) -> i32 {
    Partitioner::Murmur2
        .partition(user.as_bytes(), PARTITIONS)
        .unwrap()
}
