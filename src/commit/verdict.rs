//! What an error of Kafka's means for a transaction.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// What Kafka said, and what to allow where it is the transactional id or the group that is not allowed.
pub(super) fn reason(error: &KafkaError, transactional_id: &str) -> String {
    match code(error) {
        Some(RDKafkaErrorCode::TransactionalIdAuthorizationFailed) => format!(
            "{error}. Allow Write on the transactional id {transactional_id} (docs/operations.md, Permissions)"
        ),
        Some(RDKafkaErrorCode::GroupAuthorizationFailed) => format!(
            "{error}. Allow Read on the group of source.group (docs/operations.md, Permissions)"
        ),
        _ => error.to_string(),
    }
}

fn code(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::Transaction(e) => Some(e.code()),
        other => other.rdkafka_error_code(),
    }
}

/// Whether it is a topic that is not allowed.
pub(super) fn is_denied(error: &KafkaError) -> bool {
    code(error) == Some(RDKafkaErrorCode::TopicAuthorizationFailed)
}

/// Who has taken over what this instance had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    /// A producer of the same name.
    Producer,
    /// Other members of the group.
    Member,
}

/// To whom this instance has lost what it had, where Kafka says that it has.
pub(super) fn lost(error: &KafkaError) -> Option<To> {
    match code(error)? {
        RDKafkaErrorCode::Fenced
        | RDKafkaErrorCode::ProducerFenced
        | RDKafkaErrorCode::InvalidProducerEpoch => Some(To::Producer),
        RDKafkaErrorCode::IllegalGeneration
        | RDKafkaErrorCode::UnknownMemberId
        | RDKafkaErrorCode::FencedInstanceId
        | RDKafkaErrorCode::StaleMemberEpoch
        | RDKafkaErrorCode::FencedMemberEpoch => Some(To::Member),
        _ => None,
    }
}
