//! The topic admin: librdkafka's properties checked, limn's topics set beside what the brokers have, and created.

mod properties;
mod temporary;
#[cfg(test)]
mod tests;

pub use properties::{PropertyFault, client_fault, property_fault};

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// What to do about an output topic with another number of partitions than the input. What it holds is not in any other
/// place, so nobody is told to delete it.
pub const OTHER_COUNT: &str = "a user keeps one partition number. A topic that nothing was ever written to can be deleted, and limn topics creates it rightly. \
     Any other holds profiles, or where the input goes on, and deleting it loses them: keep it with the input that it was made for, and give an input with another count \
     output topics of their own names and a group of its own";

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

/// What the brokers were found to have, or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The brokers do not answer, or refuse.
    Brokers {
        /// What was being done.
        doing: &'static str,
        /// What librdkafka said.
        reason: String,
    },
    /// The input is not there.
    NoInput {
        /// Its name.
        name: String,
    },
    /// An output topic is not there.
    Missing {
        /// Its name.
        name: String,
        /// The configuration's key of the name.
        key: &'static str,
    },
    /// An output topic has another number of partitions than the input.
    Partitions {
        /// Its name.
        name: String,
        /// The configuration's key of the name.
        key: &'static str,
        /// How many it has.
        found: usize,
        /// The input topic.
        input: String,
        /// How many the input has.
        wanted: usize,
    },
    /// An output topic is cleaned in the wrong way.
    Cleanup {
        /// Its name.
        name: String,
        /// The configuration's key of the name.
        key: &'static str,
        /// How it is cleaned.
        found: String,
        /// How it must be.
        wanted: String,
    },
    /// A topic could not be created.
    NotCreated {
        /// Its name.
        name: String,
        /// The configuration's key of the name.
        key: &'static str,
        /// What the brokers said.
        reason: String,
    },
}

impl Finding {
    /// Whether it says nothing against the topic of that name.
    #[must_use]
    pub fn spares(&self, topic: &str) -> bool {
        match self {
            Self::Brokers { .. } => false,
            Self::NoInput { name }
            | Self::Missing { name, .. }
            | Self::Partitions { name, .. }
            | Self::Cleanup { name, .. }
            | Self::NotCreated { name, .. } => name != topic,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Brokers { doing, reason } => write!(
                f,
                "kafka.brokers: {reason} while {doing}; look at the addresses, at kafka.properties (security.protocol …) and whether the brokers run"
            ),
            Self::NoInput { name } => write!(
                f,
                "source.topic: there is no topic {name}; create it with as many partitions as instances may ever share the work, or correct the name"
            ),
            Self::Missing { name, key } => {
                write!(f, "{key}: there is no topic {name}; limn topics creates it")
            }
            Self::Partitions {
                name,
                key,
                found,
                input,
                wanted,
            } => write!(
                f,
                "{key}: {name} has {found} partitions, but the input {input} has {wanted}; {OTHER_COUNT}"
            ),
            Self::Cleanup {
                name,
                key,
                found,
                wanted,
            } => write!(
                f,
                "{key}: {name} has cleanup.policy={found}; wants {wanted}, set it with kafka-configs.sh --alter --add-config cleanup.policy={wanted}"
            ),
            Self::NotCreated { name, key, reason } => {
                write!(f, "{key}: {name} could not be created: {reason}")
            }
        }
    }
}

/// What creating the topics would do, or did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Topics to create, with their partition counts.
    pub missing: Vec<(Wanted, usize)>,
    /// Topics that are there as they should be, with their partition counts.
    pub present: Vec<(String, usize)>,
    /// What stands in the way.
    pub findings: Vec<Finding>,
}

/// Speaks with the brokers about topics.
pub struct Admin {
    client: AdminClient<DefaultClientContext>,
    timeout: Duration,
}

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
        let policies = self.policies(&present).await;
        plan.findings.extend(policies);
        plan
    }

    async fn policies(&self, topics: &[Wanted]) -> Vec<Finding> {
        let specifiers: Vec<_> = topics
            .iter()
            .map(|t| ResourceSpecifier::Topic(&t.name))
            .collect();
        if specifiers.is_empty() {
            return Vec::new();
        }
        let doing = "reading the topics' properties";
        let described = match self
            .client
            .describe_configs(&specifiers, &self.options())
            .await
        {
            Ok(described) => described,
            Err(error) => return vec![brokers(doing)(error)],
        };
        let mut findings = Vec::new();
        for described in described {
            let resource = match described {
                Ok(resource) => resource,
                Err(code) => {
                    findings.push(Finding::Brokers {
                        doing,
                        reason: code.to_string(),
                    });
                    continue;
                }
            };
            let OwnedResourceSpecifier::Topic(name) = &resource.specifier else {
                continue;
            };
            let Some(topic) = topics.iter().find(|topic| topic.name == *name) else {
                continue;
            };
            let found = resource
                .get("cleanup.policy")
                .and_then(|entry| entry.value.clone());
            let wanted = topic
                .properties
                .iter()
                .find(|(name, _)| *name == "cleanup.policy");
            if let (Some(found), Some((_, wanted))) = (found, wanted)
                && found != *wanted
            {
                findings.push(Finding::Cleanup {
                    name: topic.name.clone(),
                    key: topic.key,
                    found,
                    wanted: wanted.clone(),
                });
            }
        }
        findings
    }

    /// Creates what the plan misses; nothing where something stands in the way. A topic that another process made
    /// meanwhile is left as it is; a second plan tells whether it is right.
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
        let results = match self.client.create_topics(&topics, &self.options()).await {
            Ok(results) => results,
            Err(error) => return vec![brokers("creating topics")(error)],
        };
        let refused = results
            .into_iter()
            .filter_map(Result::err)
            .filter(|(_, code)| *code != RDKafkaErrorCode::TopicAlreadyExists);
        refused
            .map(|(name, code)| Finding::NotCreated {
                key: plan
                    .missing
                    .iter()
                    .find(|(w, _)| w.name == name)
                    .map_or("topics", |(w, _)| w.key),
                name,
                reason: code.to_string(),
            })
            .collect()
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(self.timeout))
            .operation_timeout(Some(self.timeout))
    }
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
