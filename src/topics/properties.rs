//! librdkafka's own word on its properties.

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::producer::BaseProducer;
use rdkafka::types::RDKafkaConfRes;

/// Where the build lacks it, which feature has it.
fn hinted(said: String) -> String {
    let lacking = [
        "not supported in this build",
        "not available at build time",
        "recompile librdkafka",
    ];
    if lacking.iter().any(|l| said.contains(l)) {
        format!("{said}; build limn with --features tls (TLS, SASL), or gssapi (Kerberos)")
    } else {
        said
    }
}

/// What is wrong with a property by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PropertyFault {
    /// librdkafka has no such property.
    Unknown,
    /// The value does not do, or this build cannot do it. The text may quote the value.
    Invalid(String),
}

/// Asks librdkafka about one property.
#[must_use]
pub fn property_fault(name: &str, value: &str) -> Option<PropertyFault> {
    let mut config = ClientConfig::new();
    config.set(name, value);
    match config.create_native_config() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            Some(PropertyFault::Unknown)
        }
        Err(KafkaError::ClientConfig(_, said, ..)) => Some(PropertyFault::Invalid(hinted(said))),
        Err(other) => Some(PropertyFault::Invalid(other.to_string())),
    }
}

/// Makes a client of the properties, each of them sound by itself, without reaching for a broker: what librdkafka says
/// where they do not go together. The text may quote values.
#[must_use]
pub fn client_fault(properties: &[(String, String)]) -> Option<String> {
    let mut config = ClientConfig::new();
    config.extend(properties.iter().cloned());
    config
        .remove("bootstrap.servers")
        .set("log_level", "2")
        .set_log_level(RDKafkaLogLevel::Critical);
    match config.create::<BaseProducer>() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(_, said, ..) | KafkaError::ClientCreation(said)) => {
            Some(hinted(said))
        }
        Err(other) => Some(other.to_string()),
    }
}
