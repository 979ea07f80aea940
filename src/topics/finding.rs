//! What stands in the way of limn's topics, in words that say what to do.

use std::fmt;

/// What to do about an output topic with another number of partitions than the input. What it holds is not in any other
/// place, so nobody is told to delete it.
pub const OTHER_COUNT: &str = "a user keeps one partition number. A topic that nothing was ever written to can be deleted, and limn topics creates it rightly. \
     Any other holds profiles, or where the input goes on, and deleting it loses them: keep it with the input that it was made for, and give an input with another count \
     output topics of their own names and a group of its own";

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
    /// The dead-letter topic takes less than a dead letter can have.
    Narrow {
        /// Its name.
        name: String,
        /// The configuration's key of the name.
        key: &'static str,
        /// Its `max.message.bytes`.
        found: u64,
        /// What would do for every record of the input.
        wanted: u64,
    },
    /// Nothing can be said of the input's properties.
    Unread {
        /// Its name.
        name: String,
        /// What the brokers said.
        reason: String,
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
            | Self::Narrow { name, .. }
            | Self::Unread { name, .. }
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
            Self::Narrow {
                name,
                key,
                found,
                wanted,
            } => write!(
                f,
                "{key}: {name} has max.message.bytes={found}, so dead letters of the input's largest records are cut to fit (limn-truncated); \
                 to keep them whole, set it with kafka-configs.sh --alter --add-config max.message.bytes={wanted}"
            ),
            Self::Unread { name, reason } => write!(
                f,
                "source.topic: the properties of {name} cannot be read ({reason}); whether the dead-letter topic takes what it takes is not known (permission: DescribeConfigs)"
            ),
            Self::NotCreated { name, key, reason } => {
                write!(f, "{key}: {name} could not be created: {reason}")
            }
        }
    }
}
