//! A real broker for the tests: one for all of them, or one of its own for a test that kills it.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use limn::event::Header;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Headers as _, Message as _, ToBytes};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// How long anything may take before a test gives up. Generous: it only decides how long a failure lasts.
pub const DEADLINE: Duration = Duration::from_secs(120);
/// One attempt at what is tried until the deadline.
const ATTEMPT: Duration = Duration::from_secs(2);
const VERSION: &str = "4.3.1";

/// Runs Java in place of the shell, beside a watchdog that kills it when the pipe on standard input closes, as it does
/// however the test process ends. `keep` on the pipe kills it too, but leaves its folder for a restart.
const WRAPPER: &str = r#"
folder=$1; shift
exec 3<&0
(read -r word <&3; kill -9 $$; [ "$word" = keep ] || rm -rf "$folder" || { sleep 1; rm -rf "$folder"; }) &
exec "$@" </dev/null 3<&-
"#;

/// A record as a `read_committed` consumer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedRecord {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<String>,
    pub value: Option<String>,
    pub headers: Vec<Header>,
    pub timestamp_ms: Option<i64>,
}

/// A running node of Kafka, the only one or one of several.
pub struct Broker {
    folder: PathBuf,
    port: u16,
    /// Every node's address.
    servers: String,
    /// Where clients say who they are, and are allowed what they were granted ([`Broker::guarded`]).
    guard: Option<u16>,
    /// How many nodes there are.
    nodes: usize,
    /// How often it was started: each time has a log of its own.
    starts: AtomicUsize,
    process: Mutex<Option<Child>>,
}

/// The broker that the tests share; topics and groups get names from [`unique`].
pub fn shared() -> &'static Broker {
    static SHARED: LazyLock<Broker> = LazyLock::new(Broker::start);
    &SHARED
}

/// A name that no other test of this run uses.
pub fn unique(name: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Sends a signal, such as `-TERM`.
pub fn signal(process: &Child, name: &str) {
    let pid = process.id().to_string();
    let sent = Command::new("kill").args([name, &pid]).status().unwrap();
    assert!(sent.success());
}

/// Tries until there is an answer; `what` says what was waited for in vain. What takes long is asked less often: an attempt
/// can cost the broker more than what is tested.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    let mut pause = Duration::from_millis(20);
    loop {
        if let Some(answer) = attempt() {
            return answer;
        }
        assert!(Instant::now() < until, "in vain for {DEADLINE:?}: {what}");
        std::thread::sleep(pause);
        pause = (pause * 3 / 2).min(Duration::from_millis(250));
    }
}

impl Broker {
    /// Starts a broker on free ports and an empty folder.
    pub fn start() -> Self {
        Self::cluster(1).remove(0)
    }

    /// A lone broker that may be away for a minute before its controller believes it dead. Once that one does, every
    /// partition is without a leader for a moment, and Kafka forgets to tell such a partition how a transaction ended
    /// (docs/reliability.md). This one can be frozen, and not be killed: it would wait for its former life's end.
    pub fn patient() -> Vec<Self> {
        Self::start_all(1, Duration::from_secs(60), false)
    }

    /// One with ACLs and a second address ([`Broker::guard`]), where `limn` has the password `secret`. At the first one everything
    /// is allowed.
    pub fn guarded() -> Self {
        Self::start_all(1, Duration::from_secs(18), true).remove(0)
    }

    /// Starts so many that are one Kafka: each holds a copy of every partition, and works without any one of them. One alone
    /// has twice the default session: what a starved machine does to it is like being frozen.
    pub fn cluster(nodes: usize) -> Vec<Self> {
        let session = if nodes == 1 { 18 } else { 9 };
        Self::start_all(nodes, Duration::from_secs(session), false)
    }

    fn start_all(nodes: usize, session: Duration, guarded: bool) -> Vec<Self> {
        for _ in 0..5 {
            let ports = free_ports(2 * nodes + 1);
            let (ports, others) = ports.split_at(nodes);
            let (controllers, guard) = others.split_at(nodes);
            let guard = guard.first().copied().filter(|_| guarded);
            let address = |port: &u16| format!("127.0.0.1:{port}");
            let servers: Vec<String> = ports.iter().map(address).collect();
            let brokers: Vec<Self> = (ports.iter().enumerate())
                .map(|(index, port)| {
                    let folder = tempfile::Builder::new()
                        .prefix("limn-kafka-")
                        .tempdir()
                        .unwrap()
                        .keep();
                    let text = properties(&folder, index, *port, controllers, session);
                    fs::write(
                        folder.join("server.properties"),
                        match guard {
                            Some(guard) => with_guard(&text, guard),
                            None => text,
                        },
                    )
                    .unwrap();
                    let broker = Self {
                        folder,
                        port: *port,
                        servers: servers.join(","),
                        guard,
                        nodes,
                        starts: AtomicUsize::new(0),
                        process: Mutex::new(None),
                    };
                    broker.format();
                    broker
                })
                .collect();
            // None is up before most of them are.
            brokers.iter().for_each(Self::spawn);
            // Another process may have taken a port since: then the broker ends by itself, and others are tried.
            if brokers.iter().all(|broker| broker.answers().is_ok()) {
                return brokers;
            }
        }
        panic!(
            "Kafka does not start; its log is in {}",
            env!("CARGO_TARGET_TMPDIR")
        );
    }

    /// An address that nothing listens on.
    pub fn absent() -> Self {
        let port = free_ports(1)[0];
        Self {
            folder: tempfile::tempdir().unwrap().keep(),
            port,
            servers: format!("127.0.0.1:{port}"),
            guard: None,
            nodes: 1,
            starts: AtomicUsize::new(0),
            process: Mutex::new(None),
        }
    }

    /// What goes into `bootstrap.servers`.
    pub fn servers(&self) -> String {
        self.servers.clone()
    }

    /// The address of a broker that is guarded at which clients have to say who they are.
    pub fn guard(&self) -> String {
        format!("127.0.0.1:{}", self.guard.expect("it is guarded"))
    }

    /// What `kafka-acls.sh` does with these arguments, at the address that everything is allowed at.
    pub fn acls(&self, arguments: &[&str]) {
        let output = java()
            .args(["org.apache.kafka.tools.AclCommand", "--bootstrap-server"])
            .arg(&self.servers)
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        // It ends with 0 whatever has happened.
        assert!(
            output.status.success() && !said.contains("Error"),
            "{arguments:?}: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Has each partition led by the broker that is first in its list, away from one that leads it and is well, once all are in sync.
    pub fn elect_preferred_leaders(&self) {
        eventually("leaders to be elected", || {
            let output = java()
                .arg("org.apache.kafka.tools.LeaderElectionCommand")
                .args(["--bootstrap-server", &self.servers])
                .args(["--election-type", "preferred", "--all-topic-partitions"])
                .output()
                .unwrap();
            output.status.success().then_some(())
        });
    }

    /// Kills the broker as a power cut would; its folder stays.
    pub fn kill9(&self) {
        if let Some(mut process) = self.process.lock().unwrap().take() {
            if let Some(mut pipe) = process.stdin.take() {
                let _ = pipe.write_all(b"keep\n");
            }
            process.wait().unwrap();
        }
    }

    /// Starts it again on the same folder and port.
    pub fn restart(&self) {
        self.kill9();
        self.spawn();
        self.answers()
            .unwrap_or_else(|why| panic!("restarting Kafka: {why}"));
    }

    /// Freezes the process, as a long garbage collection or a stopped machine does.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets a frozen one go on.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, name: &str) {
        let process = self.process.lock().unwrap();
        signal(process.as_ref().expect("it runs"), name);
    }

    /// Makes a topic.
    pub fn create_topic(&self, name: &str, partitions: i32, config: &[(&str, &str)]) {
        let copies = i32::try_from(self.nodes).unwrap();
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(copies));
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(DEADLINE));
        // A client that is just learning which brokers there are drops the one that it has asked (librdkafka 2.12).
        let results = eventually("an answer to the creation of a topic", || {
            match wait(self.admin().create_topics([&topic], &options)) {
                Err(KafkaError::AdminOp(RDKafkaErrorCode::DestroyBroker)) => None,
                answer => Some(answer.unwrap()),
            }
        });
        for result in results {
            match result {
                // The attempt before had come through.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, error)) => panic!("creating {name}: {error}"),
            }
        }
        self.known(name, partitions);
    }

    /// Deletes topics.
    pub fn delete_topics(&self, names: &[&str]) {
        let options = AdminOptions::new().operation_timeout(Some(DEADLINE));
        let results = wait(self.admin().delete_topics(names, &options)).unwrap();
        results.into_iter().for_each(|r| drop(r.unwrap()));
    }

    /// Where the partitions of a topic end, for a `read_uncommitted` consumer.
    pub fn ends(&self, topic: &str) -> BTreeMap<i32, i64> {
        let partitions = self.partitions(topic);
        // A broker that was short of time for a while leads nothing for a moment, and one that was killed for longer. A client that has
        // asked who leads goes on asking that one.
        eventually("the ends of partitions", || {
            let client = self.reader("read_uncommitted");
            let end = |p| client.fetch_watermarks(topic, p, ATTEMPT);
            let ends = (0..partitions).map(|p| Some((p, end(p).ok()?.1)));
            ends.collect()
        })
    }

    /// The same in sum.
    pub fn end(&self, topic: &str) -> i64 {
        self.ends(topic).values().sum()
    }

    /// Waits until a new topic can be asked about: the answer to its creation comes before every broker cache has it.
    pub fn known(&self, name: &str, partitions: i32) {
        let client = self.reader("read_uncommitted");
        eventually("the new topic's metadata", || {
            let metadata = client.fetch_metadata(Some(name), ATTEMPT).ok()?;
            let topic = metadata.topics().first()?;
            let led = topic
                .partitions()
                .iter()
                .filter(|p| p.leader() >= 0)
                .count();
            (led == usize::try_from(partitions).unwrap()).then_some(())
        });
    }

    /// Removes the records of a partition before an offset, as retention does.
    pub fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(before))
            .unwrap();
        let options = AdminOptions::new().operation_timeout(Some(DEADLINE));
        let answer = wait(self.admin().delete_records(&list, &options)).unwrap();
        answer.elements()[0].error().unwrap();
    }

    /// Deletes a group with its offsets, once it has no member any more.
    pub fn forget_group(&self, group: &str) {
        eventually("the group to be deleted", || {
            let options = AdminOptions::new();
            let results = wait(self.admin().delete_groups(&[group], &options)).ok()?;
            results[0].is_ok().then_some(())
        });
    }

    /// Adds partitions to a topic, up to so many.
    pub fn grow(&self, topic: &str, partitions: usize) {
        let more = [NewPartitions::new(topic, partitions)];
        let results = wait(self.admin().create_partitions(&more, &AdminOptions::new())).unwrap();
        results.into_iter().for_each(|r| drop(r.unwrap()));
    }

    /// Produces one record with `acks=all`; returns its offset.
    pub fn produce(&self, topic: &str, partition: i32, key: &str, value: &str) -> i64 {
        self.produce_all(topic, partition, &[(key, value)])[0]
    }

    /// Produces records with `acks=all`; returns their offsets.
    pub fn produce_all<V: ToBytes + ?Sized>(
        &self,
        topic: &str,
        partition: i32,
        records: &[(&str, &V)],
    ) -> Vec<i64> {
        let producer: BaseProducer<Acks> = self
            .client()
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .create_with_context(Acks::default())
            .unwrap();
        for (key, value) in records {
            let record = BaseRecord::to(topic)
                .partition(partition)
                .key(*key)
                .payload(*value);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(DEADLINE).unwrap();
        let offsets = producer.context().0.lock().unwrap().clone();
        let offsets: Vec<i64> = offsets.into_iter().map(Result::unwrap).collect();
        assert_eq!(offsets.len(), records.len());
        offsets
    }

    /// A transactional producer, ready to begin.
    pub fn transactional(&self, id: &str) -> BaseProducer {
        let producer: BaseProducer = self.client().set("transactional.id", id).create().unwrap();
        producer.init_transactions(DEADLINE).unwrap();
        producer
    }

    /// Every record of the topic that a `read_committed` consumer sees, partition by partition. Waits until no
    /// transaction is open there: a commit is answered before its markers stand in the topics.
    pub fn read_committed(&self, topic: &str) -> Vec<OwnedRecord> {
        let (all, committed) = (
            self.reader("read_uncommitted"),
            self.reader("read_committed"),
        );
        for partition in 0..self.partitions(topic) {
            eventually(
                &format!("the transactions on {topic}[{partition}] to end"),
                || {
                    let (_, end) = all.fetch_watermarks(topic, partition, ATTEMPT).ok()?;
                    let (_, stable) = committed.fetch_watermarks(topic, partition, ATTEMPT).ok()?;
                    (stable == end).then_some(())
                },
            );
        }
        self.visible(topic)
    }

    /// What a `read_committed` consumer sees at this moment, which open transactions may hold back.
    pub fn visible(&self, topic: &str) -> Vec<OwnedRecord> {
        let mut from = TopicPartitionList::new();
        for partition in 0..self.partitions(topic) {
            from.add_partition_offset(topic, partition, Offset::Beginning)
                .unwrap();
        }
        let reader = self.reader("read_committed");
        reader.assign(&from).unwrap();
        let (mut records, mut ended) = (Vec::new(), HashSet::new());
        let until = Instant::now() + DEADLINE;
        while ended.len() < from.count() {
            assert!(Instant::now() < until, "{topic} has no end");
            match reader.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => records.push(owned(&message)),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    ended.insert(partition);
                }
                Some(Err(error)) => panic!("reading {topic}: {error}"),
                None => {}
            }
        }
        records.sort_by_key(|r| (r.partition, r.offset));
        records
    }

    /// The group's committed offsets of a topic, behind every pending transaction.
    pub fn committed_offsets(&self, group: &str, topic: &str) -> BTreeMap<i32, i64> {
        let client = self.of_group(group);
        committed_offsets(&client, topic, self.partitions(topic))
    }

    /// A client that can ask for the group's offsets.
    pub fn of_group(&self, group: &str) -> BaseConsumer {
        self.client()
            .set("group.id", group)
            .set("isolation.level", "read_committed")
            .create()
            .unwrap()
    }

    /// A client configuration that reaches this broker.
    pub fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.servers());
        client
    }

    fn reader(&self, isolation: &str) -> BaseConsumer {
        self.client()
            .set("group.id", "tests-read-without-a-group")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("isolation.level", isolation)
            .create()
            .unwrap()
    }

    fn partitions(&self, topic: &str) -> i32 {
        let metadata = self
            .reader("read_committed")
            .fetch_metadata(Some(topic), DEADLINE)
            .unwrap();
        i32::try_from(metadata.topics()[0].partitions().len()).unwrap()
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().unwrap()
    }

    fn log(&self) -> PathBuf {
        let (port, start) = (self.port, self.starts.load(Ordering::Relaxed));
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kafka-{port}.{start}.log"))
    }

    fn format(&self) {
        let output = java()
            .args([
                "kafka.tools.StorageTool",
                "format",
                "-t",
                "MkU3OEVBNTcwNTJENDM2Qg",
                "-c",
            ])
            .arg(self.folder.join("server.properties"))
            .output()
            .expect("java can be started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "formatting Kafka's storage: {said}"
        );
    }

    fn spawn(&self) {
        self.starts.fetch_add(1, Ordering::Relaxed);
        let log = File::create(self.log()).unwrap();
        let java = java();
        let process = Command::new("sh")
            .args(["-c", WRAPPER, "sh"])
            .arg(&self.folder)
            .arg(java.get_program())
            .args(java.get_args())
            .arg("kafka.Kafka")
            .arg(self.folder.join("server.properties"))
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        *self.process.lock().unwrap() = Some(process);
    }

    /// Waits until the process answers. An error: it ended by itself.
    fn answers(&self) -> Result<(), String> {
        let mut ended = None;
        eventually("Kafka to start", || {
            let mut process = self.process.lock().unwrap();
            ended = process.as_mut().and_then(|p| p.try_wait().unwrap());
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            (ended.is_some() || log.contains("Kafka Server started")).then_some(())
        });
        if let Some(status) = ended {
            return Err(format!("{status}; its log: {}", self.log().display()));
        }
        let client = self.reader("read_uncommitted");
        eventually("Kafka to answer", || {
            client.fetch_metadata(None, ATTEMPT).ok().map(drop)
        });
        Ok(())
    }
}

/// What the client's group has committed of the topic, behind every pending transaction.
pub fn committed_offsets(
    client: &BaseConsumer,
    topic: &str,
    partitions: i32,
) -> BTreeMap<i32, i64> {
    let mut asked = TopicPartitionList::new();
    asked.add_partition_range(topic, 0, partitions - 1);
    // The coordinator may be on its way to another broker.
    let answer = eventually("the group's offsets", || {
        client.committed_offsets(asked.clone(), ATTEMPT).ok()
    });
    let offsets = answer.elements();
    let known = offsets.iter().filter_map(|e| match e.offset() {
        Offset::Offset(offset) => Some((e.partition(), offset)),
        _ => None,
    });
    known.collect()
}

impl Drop for Broker {
    fn drop(&mut self) {
        match self.process.get_mut().unwrap().take() {
            // The pipe closes: the watchdog kills the broker and removes its folder.
            Some(mut process) => {
                drop(process.stdin.take());
                let _ = process.wait();
            }
            None => drop(fs::remove_dir_all(&self.folder)),
        }
    }
}

/// The offsets that the broker acknowledged, in order.
#[derive(Default)]
struct Acks(Mutex<Vec<Result<i64, KafkaError>>>);

impl ClientContext for Acks {}

impl ProducerContext for Acks {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let result = match result {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.clone()),
        };
        self.0.lock().unwrap().push(result);
    }
}

fn owned(message: &rdkafka::message::BorrowedMessage<'_>) -> OwnedRecord {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = message.headers().into_iter().flat_map(|h| h.iter());
    OwnedRecord {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(text),
        value: message.payload().map(text),
        headers: headers
            .map(|h| (h.key.into(), h.value.map(Into::into)))
            .collect(),
        timestamp_ms: message.timestamp().to_millis(),
    }
}

/// Java with Kafka on its class path, small and quick to start.
fn java() -> Command {
    let cache = std::env::var_os("LIMN_CACHE").map_or_else(
        || Path::new(&std::env::var_os("HOME").expect("HOME is set")).join(".cache/limn"),
        PathBuf::from,
    );
    let jars = cache.join(format!("kafka-{VERSION}"));
    assert!(
        jars.is_dir(),
        "no Kafka in {}: run scripts/with-kafka.sh true",
        jars.display()
    );
    let mut java = Command::new("java");
    java.args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    // A broker starts in half the time with what scripts/with-kafka.sh left. Told of none that is there, Java would do
    // without its own archive too.
    let archive = cache.join(format!("kafka-{VERSION}.jsa"));
    if archive.is_file() {
        java.arg(format!("-XX:SharedArchiveFile={}", archive.display()));
    }
    java.arg("-cp").arg(jars.join("*"));
    java
}

fn free_ports(count: usize) -> Vec<u16> {
    let free = |_| TcpListener::bind("127.0.0.1:0").unwrap();
    let sockets: Vec<TcpListener> = (0..count).map(free).collect();
    let port = |socket: &TcpListener| socket.local_addr().unwrap().port();
    sockets.iter().map(port).collect()
}

/// Of the node with this index, from 0.
fn properties(
    folder: &Path,
    index: usize,
    port: u16,
    controllers: &[u16],
    session: Duration,
) -> String {
    let (node, controller, copies) = (index + 1, controllers[index], controllers.len());
    let voter = |(node, port): (usize, &u16)| format!("{node}@127.0.0.1:{port}");
    let voters: Vec<String> = (1..).zip(controllers).map(voter).collect();
    let (voters, most) = (voters.join(","), copies / 2 + 1);
    format!(
        "process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={}
auto.create.topics.enable=false
auto.leader.rebalance.enable=false
broker.session.timeout.ms={}
default.replication.factor={copies}
min.insync.replicas={most}
offsets.topic.replication.factor={copies}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr={most}
transaction.state.log.num.partitions=4
# Transactions that nobody ends are looked for every 10 s by default.
transaction.abort.timed.out.transaction.cleanup.interval.ms=500
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=200
group.consumer.heartbeat.interval.ms=500
group.consumer.session.timeout.ms=3000
",
        folder.join("data").display(),
        session.as_millis()
    )
}

/// The same with ACLs and a second address.
fn with_guard(properties: &str, port: u16) -> String {
    let with = |line: &str| match line.split_once('=') {
        Some(("listeners" | "advertised.listeners", _)) => {
            format!("{line},SASL_PLAINTEXT://127.0.0.1:{port}\n")
        }
        Some(("listener.security.protocol.map", _)) => {
            format!("{line},SASL_PLAINTEXT:SASL_PLAINTEXT\n")
        }
        _ => format!("{line}\n"),
    };
    let properties: String = properties.lines().map(with).collect();
    let module = "org.apache.kafka.common.security.plain.PlainLoginModule";
    format!(
        "{properties}inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config={module} required user_limn=\"secret\";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"
    )
}

fn wait<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}
