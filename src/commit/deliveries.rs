//! What became of each record of an attempt, as librdkafka's own threads report it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::Message;
use rdkafka::producer::{DeliveryResult, ProducerContext};

use super::Ends;

/// What the delivery reports of the current transaction told.
#[derive(Default)]
pub(super) struct Delivered {
    /// The attempt that they are of. Reports of what an aborted one purged can come after its end.
    pub(super) attempt: usize,
    /// How many records were told of.
    pub(super) reports: usize,
    /// How many of these were written.
    pub(super) delivered: usize,
    pub(super) ends: Ends,
    pub(super) failed: Option<Undelivered>,
}

/// The first record that was not delivered.
pub(super) struct Undelivered {
    pub(super) topic: String,
    pub(super) too_large: bool,
    pub(super) reason: String,
}

#[derive(Default)]
pub(super) struct Deliveries(Mutex<Delivered>);

impl Deliveries {
    pub(super) fn lock(&self) -> MutexGuard<'_, Delivered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to hear of the next attempt, and returns its number.
    pub(super) fn begin(&self) -> usize {
        let mut delivered = self.lock();
        *delivered = Delivered {
            attempt: delivered.attempt + 1,
            ..Delivered::default()
        };
        delivered.attempt
    }

    /// The first record that failed, but rather one that is too large: others fail for its sake.
    pub(super) fn failed(&self) -> Option<Undelivered> {
        self.lock().failed.take()
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    /// The attempt's number.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, attempt: usize) {
        let mut delivered = self.lock();
        if attempt != delivered.attempt {
            return;
        }
        delivered.reports += 1;
        match result {
            Ok(message) => {
                delivered.delivered += 1;
                let end = delivered
                    .ends
                    .entry((message.topic().to_owned(), message.partition()))
                    .or_default();
                *end = (*end).max(message.offset() + 1);
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code();
                let too_large = code == Some(RDKafkaErrorCode::MessageSizeTooLarge);
                let known = delivered.failed.as_ref();
                if known.is_none_or(|known| too_large && !known.too_large) {
                    delivered.failed = Some(Undelivered {
                        topic: message.topic().to_owned(),
                        too_large,
                        reason: error.to_string(),
                    });
                }
            }
        }
    }
}
