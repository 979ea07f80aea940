//! A member's standing in its group, which rides in the transaction.

use std::ffi::{CStr, CString};

use rdkafka::bindings as native;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata};

/// What the consumer is in its group; `None` while it is in no generation or has no name there.
///
/// A classic member that was thrown out is in none, and soon has no name for librdkafka either. Brokers do not look at who commits where
/// a transaction's offsets name neither (`validateOffsetCommit`: an older client could not), so such metadata must not get there:
/// others own the partitions, and may have folded the same events. One of the new protocol (KIP-848) keeps its name and is in epoch 0
/// until it has joined again, which brokers refuse as stale.
pub(super) fn standing<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
) -> Option<ConsumerGroupMetadata> {
    loop {
        let before = generation(consumer)?;
        let metadata = consumer.group_metadata()?;
        // The binding's does not tell. No generation comes back, so what is on both sides was in between.
        if generation(consumer)? == before {
            return Some(metadata);
        }
    }
}

/// The generation that a consumer is in, and the name that it has there.
fn generation<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<(i32, CString)> {
    // SAFETY: the consumer outlives the call; what it gives is this function's to destroy, once, behind the last look at it.
    unsafe {
        let metadata = native::rd_kafka_consumer_group_metadata(consumer.client().native_ptr());
        if metadata.is_null() {
            return None;
        }
        let generation = native::rd_kafka_consumer_group_metadata_generation_id(metadata);
        let member = CStr::from_ptr(native::rd_kafka_consumer_group_metadata_member_id(metadata));
        let member = (generation >= 0 && !member.is_empty()).then(|| member.to_owned());
        native::rd_kafka_consumer_group_metadata_destroy(metadata);
        Some((generation, member?))
    }
}
