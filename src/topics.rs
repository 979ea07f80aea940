//! The topic admin: librdkafka's properties checked, limn's topics set beside what the brokers have, and created.

mod finding;
mod properties;
mod temporary;
#[cfg(test)]
mod tests;

pub use finding::{Finding, OTHER_COUNT};
pub use properties::{PropertyFault, client_fault, property_fault};

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, OwnedResourceSpecifier, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;

/// What `limn topics` creates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The input, whose partition count the others follow. It is never created.
    pub input: String,
    /// Change events.
    pub changes: String,
    /// Profile states.
    pub profiles: String,
    /// Checkpoints.
    pub checkpoints: String,
    /// Events that are not folded.
    pub dead_letters: String,
    /// Copies of each partition; `None`: the brokers' own default.
    pub replication_factor: Option<u16>,
    /// How long change events are kept.
    pub changes_retention: Duration,
    /// How long dead letters are kept.
    pub dead_letters_retention: Duration,
}

/// A topic as limn wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// The configuration's key of the name.
    pub key: &'static str,
    /// It must have as many partitions as the input.
    pub partitions_as_input: bool,
    /// Its properties when it is created; `cleanup.policy` must be so in an existing topic too.
    pub properties: Vec<(&'static str, String)>,
}

impl Config {
    /// The names of all of them, the input first.
    #[must_use]
    pub fn names(&self) -> [&str; 5] {
        [
            &self.input,
            &self.changes,
            &self.profiles,
            &self.checkpoints,
            &self.dead_letters,
        ]
    }

    /// The output topics.
    #[must_use]
    pub fn wanted(&self) -> Vec<Wanted> {
        let by_time = |retention: Duration| {
            vec![
                ("cleanup.policy", "delete".to_owned()),
                ("retention.ms", retention.as_millis().to_string()),
            ]
        };
        // A restart reads these from the view's position, or whole: small segments, rolled daily and cleaned early,
        // keep that short. A tombstone stays a day, for readers that are away.
        let compacted = || {
            vec![
                ("cleanup.policy", "compact".to_owned()),
                ("min.cleanable.dirty.ratio", "0.1".to_owned()),
                ("segment.bytes", (64 << 20).to_string()),
                ("segment.ms", day_ms()),
                ("delete.retention.ms", day_ms()),
            ]
        };
        let topic = |name: &String, key, partitions_as_input, properties| Wanted {
            name: name.clone(),
            key,
            partitions_as_input,
            properties,
        };
        vec![
            topic(
                &self.changes,
                "topics.changes",
                false,
                by_time(self.changes_retention),
            ),
            topic(&self.profiles, "topics.profiles", true, compacted()),
            topic(&self.checkpoints, "topics.checkpoints", true, compacted()),
            topic(
                &self.dead_letters,
                "topics.dead_letters",
                true,
                by_time(self.dead_letters_retention),
            ),
        ]
    }
}

fn day_ms() -> String {
    Duration::from_secs(86_400).as_millis().to_string()
}

/// What a topic takes unless it or the brokers are told otherwise.
const MAX_BYTES: u64 = 1_048_588;
/// A dead letter is a record of the input and limn's headers, which take less than this.
const HEADERS_BYTES: u64 = 2048;

/// What creating the topics would do, or did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Topics to create, with their partition counts.
    pub missing: Vec<(Wanted, usize)>,
    /// Topics that are there as they should be, with their partition counts.
    pub present: Vec<(String, usize)>,
    /// What stands in the way.
    pub findings: Vec<Finding>,
    /// What could be better and stands in nobody's way.
    pub notes: Vec<Finding>,
}

/// Speaks with the brokers about topics.
pub struct Admin {
    client: AdminClient<DefaultClientContext>,
    timeout: Duration,
}

/// How soon it is asked whether new topics are known, at first.
const KNOWN: Duration = Duration::from_millis(50);

impl Admin {
    /// A client. Nothing is asked of the brokers yet.
    ///
    /// # Errors
    /// [`Finding::Brokers`] where a property is wrong.
    pub fn new(properties: &[(String, String)], timeout: Duration) -> Result<Self, Finding> {
        let mut config = ClientConfig::new();
        config.extend(properties.iter().cloned());
        // What matters is returned; a client's complaints about a broker that is away would stand in between.
        config
            .set("log_level", "2")
            .set_log_level(RDKafkaLogLevel::Critical);
        let client = config.create().map_err(brokers("making a client"))?;
        Ok(Self { client, timeout })
    }

    /// Sets the topics beside what they should be. Blocks for as long as the brokers take to tell their metadata,
    /// the timeout at the longest.
    pub async fn plan(&self, config: &Config) -> Plan {
        let mut plan = Plan::default();
        // All topics at once: asking for one by name could make the brokers create it.
        let counts: BTreeMap<String, usize> =
            match self.client.inner().fetch_metadata(None, self.timeout) {
                Ok(metadata) => metadata
                    .topics()
                    .iter()
                    .map(|t| (t.name().to_owned(), t.partitions().len()))
                    .collect(),
                Err(error) => {
                    plan.findings.push(brokers("fetching metadata")(error));
                    return plan;
                }
            };
        let input = counts.get(&config.input).copied();
        if input.is_none() {
            plan.findings.push(Finding::NoInput {
                name: config.input.clone(),
            });
        }
        let mut present = Vec::new();
        for wanted in config.wanted() {
            match (counts.get(&wanted.name), input) {
                (Some(&found), Some(input)) if wanted.partitions_as_input && found != input => {
                    plan.findings.push(Finding::Partitions {
                        name: wanted.name.clone(),
                        key: wanted.key,
                        found,
                        input: config.input.clone(),
                        wanted: input,
                    });
                    present.push(wanted);
                }
                (Some(&found), _) => {
                    plan.present.push((wanted.name.clone(), found));
                    present.push(wanted);
                }
                (None, input) => plan.missing.push((wanted, input.unwrap_or(0))),
            }
        }
        let found = self.properties(&present).await;
        let found = found.unwrap_or_else(|finding| {
            plan.findings.push(finding);
            Vec::new()
        });
        plan.findings.extend(policies(&found));
        if input.is_some() {
            self.sizes(config, &found, &mut plan).await;
        }
        plan
    }

    /// Sets what the dead-letter topic takes beside what the input takes.
    async fn sizes(&self, config: &Config, found: &[(&Wanted, ConfigResource)], plan: &mut Plan) {
        let number = |resource: &ConfigResource| {
            let entry = resource.get("max.message.bytes")?;
            entry.value.as_ref()?.parse::<u64>().ok()
        };
        let input = [ResourceSpecifier::Topic(&config.input)];
        let described = self.client.describe_configs(&input, &self.options()).await;
        let described = match described.map(|all| all.into_iter().next()) {
            Ok(Some(Ok(resource))) => Ok(number(&resource)),
            Ok(Some(Err(code))) => Err(code.to_string()),
            Ok(None) => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        let takes = described.unwrap_or_else(|reason| {
            plan.notes.push(Finding::Unread {
                name: config.input.clone(),
                reason,
            });
            None
        });
        let room = (takes.unwrap_or(MAX_BYTES) + HEADERS_BYTES).min(i32::MAX.unsigned_abs().into());
        for (topic, _) in &mut plan.missing {
            if topic.name == config.dead_letters {
                topic
                    .properties
                    .push(("max.message.bytes", room.to_string()));
            }
        }
        let dead = found.iter().find(|(t, _)| t.name == config.dead_letters);
        if let (Some((topic, resource)), Some(_)) = (dead, takes)
            && let Some(found) = number(resource).filter(|&found| found < room)
        {
            plan.notes.push(Finding::Narrow {
                name: topic.name.clone(),
                key: topic.key,
                found,
                wanted: room,
            });
        }
    }

    /// The properties of topics that are there.
    async fn properties<'w>(
        &self,
        topics: &'w [Wanted],
    ) -> Result<Vec<(&'w Wanted, ConfigResource)>, Finding> {
        let specifiers: Vec<_> = topics
            .iter()
            .map(|t| ResourceSpecifier::Topic(&t.name))
            .collect();
        if specifiers.is_empty() {
            return Ok(Vec::new());
        }
        let doing = "reading the topics' properties";
        let described = self
            .client
            .describe_configs(&specifiers, &self.options())
            .await
            .map_err(brokers(doing))?;
        let mut found = Vec::new();
        for described in described {
            let resource = described.map_err(|code| Finding::Brokers {
                doing,
                reason: code.to_string(),
            })?;
            let OwnedResourceSpecifier::Topic(name) = &resource.specifier else {
                continue;
            };
            if let Some(topic) = topics.iter().find(|topic| topic.name == *name) {
                found.push((topic, resource));
            }
        }
        Ok(found)
    }

    /// Creates what the plan misses, and waits until a broker tells of it; nothing where something stands in the way. A topic that
    /// another process made meanwhile is left as it is; a second plan tells whether it is right.
    pub async fn create(&self, config: &Config, plan: &Plan) -> Vec<Finding> {
        if !plan.findings.is_empty() || plan.missing.is_empty() {
            return Vec::new();
        }
        let replicas = config.replication_factor.map_or(-1, i32::from);
        let topics: Vec<NewTopic<'_>> = plan
            .missing
            .iter()
            .map(|(wanted, partitions)| {
                let partitions = i32::try_from(*partitions).unwrap_or(i32::MAX);
                wanted.properties.iter().fold(
                    NewTopic::new(&wanted.name, partitions, TopicReplication::Fixed(replicas)),
                    |topic, (name, value)| topic.set(name, value),
                )
            })
            .collect();
        let create = || self.client.create_topics(&topics, &self.options());
        let mut answer = create().await;
        if let Err(KafkaError::AdminOp(RDKafkaErrorCode::DestroyBroker)) = answer {
            // A client that is just learning which brokers there are drops the one that it has asked (librdkafka 2.12).
            answer = create().await;
        }
        let results = match answer {
            Ok(results) => results,
            Err(error) => return vec![brokers("creating topics")(error)],
        };
        let refused = results
            .into_iter()
            .filter_map(Result::err)
            .filter(|(_, code)| *code != RDKafkaErrorCode::TopicAlreadyExists);
        let refused = refused
            .map(|(name, code)| Finding::NotCreated {
                key: plan
                    .missing
                    .iter()
                    .find(|(w, _)| w.name == name)
                    .map_or("topics", |(w, _)| w.key),
                name,
                reason: code.to_string(),
            })
            .collect::<Vec<_>>();
        if refused.is_empty() {
            let names: Vec<&str> = plan.missing.iter().map(|(w, _)| w.name.as_str()).collect();
            self.known(&names).await;
        }
        refused
    }

    /// Waits until the broker that answers tells of the topics and of who leads their partitions, which is later than its
    /// answer to their creation; the timeout at the longest. Whoever uses a topic that is still unknown then says so.
    async fn known(&self, names: &[&str]) {
        let until = Instant::now() + self.timeout;
        let mut pause = KNOWN;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let answer = self.client.inner().fetch_metadata(None, left.max(KNOWN));
            let led = |topic: &MetadataTopic| {
                let partitions = topic.partitions();
                !partitions.is_empty() && partitions.iter().all(|p| p.leader() >= 0)
            };
            if answer.is_ok_and(|all| {
                let led: Vec<&str> = (all.topics().iter().filter(|t| led(t)))
                    .map(MetadataTopic::name)
                    .collect();
                names.iter().all(|name| led.contains(name))
            }) || Instant::now() > until
            {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(10 * KNOWN);
        }
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(self.timeout))
            .operation_timeout(Some(self.timeout))
    }
}

/// Topics that are cleaned in the wrong way.
fn policies(found: &[(&Wanted, ConfigResource)]) -> Vec<Finding> {
    let policy = "cleanup.policy";
    let wrong = found.iter().filter_map(|(topic, resource)| {
        let found = resource.get(policy)?.value.clone()?;
        let (_, wanted) = topic.properties.iter().find(|(name, _)| *name == policy)?;
        (found != *wanted).then(|| Finding::Cleanup {
            name: topic.name.clone(),
            key: topic.key,
            found,
            wanted: wanted.clone(),
        })
    });
    wrong.collect()
}

fn brokers(doing: &'static str) -> impl FnOnce(KafkaError) -> Finding {
    move |error| Finding::Brokers {
        doing,
        reason: match error {
            // Its long form quotes the property's value.
            KafkaError::ClientConfig(_, _, name, _) => {
                format!("librdkafka refuses property {name}")
            }
            KafkaError::MetadataFetch(code) | KafkaError::AdminOp(code) => code.to_string(),
            other => other.to_string(),
        },
    }
}
