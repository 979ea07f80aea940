//! `[kafka]`: the brokers, and librdkafka's own properties.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::fault::{Fault, Place};
use super::reader::{Section, secret, suggestion};
use super::secret::Secret;
use super::tree::{Entry, Table, Value};
use crate::topics;

/// Properties that carry the guarantees, or that another key sets, each with what to do instead.
const OURS: &[(&str, &str)] = &[
    ("acks", "a transaction needs all replicas' acknowledgement"),
    (
        "allow.auto.create.topics",
        "a missing topic is an error that names it; limn topics creates limn's own",
    ),
    (
        "auto.commit.enable",
        "offsets are committed in the transaction, behind what was made of them",
    ),
    (
        "auto.commit.interval.ms",
        "offsets are committed in the transaction; see commit.interval",
    ),
    (
        "auto.offset.reset",
        "a position outside the log is an error, never a silent reset; see source.start",
    ),
    ("bootstrap.servers", "set kafka.brokers instead"),
    ("delivery.timeout.ms", "follows commit.transaction_timeout"),
    (
        "enable.auto.commit",
        "offsets are committed in the transaction, behind what was made of them",
    ),
    (
        "enable.auto.offset.store",
        "offsets are committed in the transaction, behind what was made of them",
    ),
    (
        "enable.idempotence",
        "the transactional producer is always idempotent",
    ),
    (
        "enable.partition.eof",
        "an idle partition is known by its end",
    ),
    ("group.id", "set source.group instead"),
    (
        "isolation.level",
        "the input is read committed, so that nothing aborted is folded",
    ),
    ("message.timeout.ms", "follows commit.transaction_timeout"),
    ("metadata.broker.list", "set kafka.brokers instead"),
    (
        "partitioner",
        "limn's partitions follow the input's; see source.partitioner",
    ),
    (
        "request.required.acks",
        "a transaction needs all replicas' acknowledgement",
    ),
    (
        "transaction.timeout.ms",
        "set commit.transaction_timeout instead",
    ),
    (
        "transactional.id",
        "made of source.group and the state folder's own id",
    ),
];

/// Properties whose values are secrets.
const SECRET: &[&str] = &[
    "sasl.password",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.assertion.private.key.pem",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
];

/// librdkafka properties. Their values are not shown: any of them may be a secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, Secret>);

impl Properties {
    /// Names and values, for librdkafka alone.
    #[must_use]
    pub fn reveal(&self) -> Vec<(String, String)> {
        self.0
            .iter()
            .map(|(name, value)| (name.clone(), value.reveal().to_owned()))
            .collect()
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How the brokers are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kafka {
    /// For consumers: `kafka.brokers`, `kafka.properties` and `kafka.consumer`.
    pub consumer: Properties,
    /// For producers and topic administration: `kafka.brokers`, `kafka.properties` and `kafka.producer`.
    pub producer: Properties,
    /// How long the brokers may take to answer.
    pub timeout: Duration,
}

pub fn read(mut kafka: Section<'_>, variable: &dyn Fn(&str) -> Option<String>) -> Kafka {
    let brokers = kafka.checked_text(
        "brokers",
        "localhost:9092",
        "wants host:port, or several with commas between, such as \"kafka-1:9092,kafka-2:9092\"",
        |text| text.split(',').all(broker),
    );
    let timeout = kafka.duration(
        "timeout",
        Duration::from_secs(30),
        Duration::from_secs(1)..=Duration::from_secs(600),
    );
    let brokers = Properties([("bootstrap.servers".to_owned(), Secret::new(brokers))].into());
    let shared = properties(kafka.section("properties"), variable);
    let merged = |own: Properties| {
        let mut all = brokers.clone();
        all.0.extend(shared.0.clone());
        all.0.extend(own.0);
        all
    };
    let consumer = merged(properties(kafka.section("consumer"), variable));
    let producer = merged(properties(kafka.section("producer"), variable));
    Kafka {
        consumer,
        producer,
        timeout,
    }
}

fn broker(text: &str) -> bool {
    let Some((host, port)) = text.trim().rsplit_once(':') else {
        return false;
    };
    let host = host.rsplit_once("://").map_or(host, |(_, host)| host);
    !host.is_empty()
        && !host.contains(|c: char| c.is_whitespace() || c == '@')
        && port.parse::<u16>().is_ok_and(|p| p > 0)
}

fn properties(mut section: Section<'_>, variable: &dyn Fn(&str) -> Option<String>) -> Properties {
    let mut properties = Properties::default();
    let mut flat = Vec::new();
    flatten("", section.rest(), &mut flat);
    for (name, entry) in flat {
        match property(&name, &entry, variable) {
            Ok(value) => {
                properties.0.insert(name, value);
            }
            Err(wanted) => section.fault_unshown(&name, Some(entry.place), wanted),
        }
    }
    properties
}

/// `security.protocol = "ssl"` unquoted is a table in a table to TOML; both spellings are taken.
fn flatten(prefix: &str, table: Table, out: &mut Vec<(String, Entry)>) {
    for (key, entry) in table {
        let key = match &entry.place {
            // Variables cannot have dots in their names; librdkafka's properties have no underscores but this one's.
            Place::Environment(_) if key != "log_level" => key.replace('_', "."),
            _ => key,
        };
        let name = format!("{prefix}{key}");
        match entry.value {
            Value::Table(inner) if !is_secret_source(&inner) => {
                flatten(&format!("{name}."), inner, out);
            }
            _ => out.push((name, entry)),
        }
    }
}

fn is_secret_source(table: &Table) -> bool {
    table.len() == 1
        && ["env", "file"].iter().any(|key| {
            table
                .get(*key)
                .is_some_and(|e| matches!(e.value, Value::Text(_) | Value::Variable(_)))
        })
}

fn property(
    name: &str,
    entry: &Entry,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Secret, String> {
    if let Some((_, instead)) = OURS.iter().find(|(ours, _)| *ours == name) {
        return Err(format!("is not yours to set: {instead}"));
    }
    let value = match &entry.value {
        Value::Text(_) if SECRET.contains(&name) => return secret(&entry.value, variable),
        Value::Text(text) | Value::Variable(text) | Value::Number(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Table(_) => secret(&entry.value, variable)?.reveal().to_owned(),
        Value::Other(_) => return Err("wants a text, a number, true or false".to_owned()),
    };
    if matches!(name, "sasl.mechanism" | "sasl.mechanisms")
        && value.trim().eq_ignore_ascii_case("OAUTHBEARER")
    {
        return Err(
            "limn cannot fetch OAUTHBEARER tokens; wants PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or GSSAPI"
                .to_owned(),
        );
    }
    // What librdkafka says may quote the value; where it came as plain text, that is what the user needs to see.
    let plain = !SECRET.contains(&name) && !matches!(entry.value, Value::Table(_));
    match topics::property_fault(name, &value) {
        None => Ok(Secret::new(value)),
        Some(topics::PropertyFault::Unknown) => {
            let meant = suggestion(name, COMMON.iter().copied())
                .map(|meant| format!("; did you mean {meant}?"))
                .unwrap_or_default();
            Err(format!("librdkafka has no such property{meant}"))
        }
        Some(topics::PropertyFault::Invalid(said)) if plain => {
            Err(format!("librdkafka says: {said}"))
        }
        Some(topics::PropertyFault::Invalid(_)) => Err("librdkafka refuses the value".to_owned()),
    }
}

/// Faults that show only when a client is made of all the properties.
pub fn client_faults(kafka: &Kafka) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    for (table, properties) in [
        ("kafka.consumer", &kafka.consumer),
        ("kafka.producer", &kafka.producer),
    ] {
        if let Some(mut said) = topics::client_fault(&properties.reveal()) {
            for (name, value) in &properties.0 {
                let value = value.reveal();
                if SECRET.contains(&name.as_str()) && !value.is_empty() {
                    said = said.replace(value, "***");
                }
            }
            // One fault of the shared properties is not told twice.
            if faults.iter().all(|f| !f.wanted.ends_with(&said)) {
                faults.push(Fault {
                    key: if kafka.consumer == kafka.producer {
                        "kafka.properties"
                    } else {
                        table
                    }
                    .to_owned(),
                    place: None,
                    given: None,
                    wanted: format!("librdkafka says: {said}"),
                });
            }
        }
    }
    faults
}

/// Properties that people set, for suggestions.
const COMMON: &[&str] = &[
    "batch.size",
    "client.id",
    "client.rack",
    "compression.codec",
    "compression.level",
    "compression.type",
    "debug",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "fetch.min.bytes",
    "fetch.wait.max.ms",
    "group.instance.id",
    "group.protocol",
    "group.remote.assignor",
    "heartbeat.interval.ms",
    "linger.ms",
    "max.partition.fetch.bytes",
    "max.poll.interval.ms",
    "message.max.bytes",
    "metadata.max.age.ms",
    "partition.assignment.strategy",
    "queue.buffering.max.kbytes",
    "queued.max.messages.kbytes",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "sasl.kerberos.keytab",
    "sasl.kerberos.principal",
    "sasl.kerberos.service.name",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "session.timeout.ms",
    "socket.keepalive.enable",
    "socket.timeout.ms",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.location",
    "ssl.keystore.password",
    "statistics.interval.ms",
];
