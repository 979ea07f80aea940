//! What one client reads of some partitions, many records at a time.
//!
//! The binding's `poll` takes a lock, three looks at the clock and an event for each record, which is half of what a fast reader has
//! to do; librdkafka's own `rd_kafka_consume_batch_queue` does not.

use std::ffi::{CStr, CString, c_void};
use std::ptr::{self, NonNull};
use std::slice;
use std::time::Duration;

use rdkafka::bindings as native;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::kafka::passes;
use crate::event::Header;

/// Records that are taken at once: so few that a processor's cache still has their heads when they are looked at.
const AT_ONCE: usize = 200;
/// Events that are served at once.
const EVENTS: usize = 16;

/// A queue of librdkafka's.
struct Queue(NonNull<native::rd_kafka_queue_t>);

// SAFETY: a queue is locked by whoever uses it, on whatever thread (rdkafka.h).
unsafe impl Send for Queue {}

impl Queue {
    fn of(queue: *mut native::rd_kafka_queue_t) -> KafkaResult<Self> {
        let none = KafkaError::ClientCreation("librdkafka gives no queue".to_owned());
        NonNull::new(queue).map(Self).ok_or(none)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: it was given by librdkafka, is released once, and before its client ([`Batches`]).
        unsafe { native::rd_kafka_queue_destroy(self.0.as_ptr()) }
    }
}

/// A consumer without a group whose records come in batches.
pub(super) struct Batches {
    /// Where the partitions' records come out, and what goes wrong with reading one; all else comes out of the consumer's own.
    /// That a topic or a partition is no more librdkafka only logs here: [`super::edges::silent`] finds it.
    queue: Queue,
    consumer: BaseConsumer,
}

impl Batches {
    pub(super) fn new(consumer: BaseConsumer) -> KafkaResult<Self> {
        // SAFETY: the client lives as long as the queue, which goes before it.
        let queue =
            Queue::of(unsafe { native::rd_kafka_queue_new(consumer.client().native_ptr()) })?;
        Ok(Self { queue, consumer })
    }

    /// Reads these partitions from now on, each from an offset, and no others.
    pub(super) fn assign<'a>(
        &self,
        partitions: impl IntoIterator<Item = (&'a str, i32, i64)>,
    ) -> KafkaResult<()> {
        let mut from = TopicPartitionList::new();
        for (topic, partition, offset) in partitions {
            from.add_partition_offset(topic, partition, Offset::Offset(offset))?;
            let name = CString::new(topic)?;
            // SAFETY: the client lives; librdkafka copies the name, and holds the queue for as long as it forwards to it.
            // Before the assignment, so that nothing is put into the consumer's own queue.
            unsafe {
                let client = self.consumer.client().native_ptr();
                let own = native::rd_kafka_queue_get_partition(client, name.as_ptr(), partition);
                native::rd_kafka_queue_forward(Queue::of(own)?.0.as_ptr(), self.queue.0.as_ptr());
            }
        }
        self.consumer.assign(&from)
    }

    /// The next records, at least one if any comes within `wait`.
    pub(super) fn next(&self, wait: Duration) -> Batch<'_> {
        let mut batch = Batch {
            messages: [ptr::null_mut(); AT_ONCE],
            count: 0,
            _of: self,
        };
        // For as many as are asked for it is waited to the end; so first for one, and then for what is there.
        let ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        batch.take(ms, 1);
        if batch.count > 0 {
            batch.take(0, AT_ONCE - 1);
        }
        batch
    }

    /// Serves the consumer's own queue, with what librdkafka logs, and tells what has gone wrong beside the partitions, if
    /// anything has: what does not pass by itself goes before what does.
    pub(super) fn serve(&self) -> Option<KafkaError> {
        let events = (0..EVENTS).filter_map(|_| self.consumer.poll(Duration::ZERO));
        // Records come out of the other queue only.
        events.map(Result::err).fold(None, worse)
    }

    pub(super) fn consumer(&self) -> &BaseConsumer {
        &self.consumer
    }

    /// The consumer, which reads no more.
    pub(super) fn end(self) -> BaseConsumer {
        self.consumer
    }
}

/// Of two faults the one to tell: what does not pass by itself, else the later.
pub(super) fn worse(one: Option<KafkaError>, other: Option<KafkaError>) -> Option<KafkaError> {
    one.into_iter()
        .chain(other)
        .max_by_key(|fault| !passes(fault))
}

/// Records that librdkafka holds as long as this lives.
pub(super) struct Batch<'a> {
    messages: [*mut native::rd_kafka_message_t; AT_ONCE],
    count: usize,
    _of: &'a Batches,
}

impl Batch<'_> {
    fn take(&mut self, wait_ms: i32, most: usize) {
        let room = &mut self.messages[self.count..][..most];
        // SAFETY: there is room for so many, and the queue lives.
        let taken = unsafe {
            native::rd_kafka_consume_batch_queue(
                self._of.queue.0.as_ptr(),
                wait_ms,
                room.as_mut_ptr(),
                room.len(),
            )
        };
        self.count += usize::try_from(taken).unwrap_or(0);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Message<'_>> {
        let messages = self.messages[..self.count].iter();
        // SAFETY: so many were given, and they are released when this is dropped.
        messages.map(|&message| Message(unsafe { &*message }))
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for &message in &self.messages[..self.count] {
            // SAFETY: it was given by librdkafka and is released once.
            unsafe { native::rd_kafka_message_destroy(message) }
        }
    }
}

/// A record, or what has gone wrong with its partition.
#[derive(Clone, Copy)]
pub(super) struct Message<'a>(&'a native::rd_kafka_message_t);

impl<'a> Message<'a> {
    /// What has gone wrong, or that the partition's end was reached ([`RDKafkaErrorCode::PartitionEOF`]); it is no record then.
    pub(super) fn fault(&self) -> Option<RDKafkaErrorCode> {
        let none = native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
        (self.0.err != none).then(|| self.0.err.into())
    }

    /// The same number for records of the same topic.
    pub(super) fn topic_id(&self) -> usize {
        self.0.rkt.addr()
    }

    pub(super) fn topic(&self) -> &'a str {
        if self.0.rkt.is_null() {
            return "";
        }
        // SAFETY: a message holds its topic, whose name is a string of C's.
        let name = unsafe { CStr::from_ptr(native::rd_kafka_topic_name(self.0.rkt)) };
        name.to_str().unwrap_or_default()
    }

    pub(super) fn partition(&self) -> i32 {
        self.0.partition
    }

    pub(super) fn offset(&self) -> i64 {
        self.0.offset
    }

    pub(super) fn key(&self) -> Option<&'a [u8]> {
        // SAFETY: librdkafka says how many bytes there are, and holds them as long as the message lives.
        unsafe { bytes(self.0.key, self.0.key_len) }
    }

    pub(super) fn value(&self) -> Option<&'a [u8]> {
        // SAFETY: as of the key.
        unsafe { bytes(self.0.payload, self.0.len) }
    }

    /// Kafka's timestamp; 0 and less are unset.
    pub(super) fn timestamp_ms(&self) -> Option<i64> {
        // SAFETY: the message lives, and of what kind the timestamp is need not be told.
        let at = unsafe { native::rd_kafka_message_timestamp(self.0, ptr::null_mut()) };
        (at > 0).then_some(at)
    }

    /// Names and values of its headers; a name that is no UTF-8 is shown as near as it comes.
    pub(super) fn headers(&self) -> Box<[Header]> {
        let mut found = Vec::new();
        let mut headers = ptr::null_mut();
        // SAFETY: the message lives, and its headers with it; names are strings of C's.
        unsafe {
            native::rd_kafka_message_headers(self.0, &raw mut headers);
            while !headers.is_null() {
                let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
                let none = native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
                let at = found.len();
                if native::rd_kafka_header_get_all(
                    headers,
                    at,
                    &raw mut name,
                    &raw mut value,
                    &raw mut size,
                ) != none
                {
                    break;
                }
                let name = CStr::from_ptr(name).to_string_lossy();
                found.push((name.into(), bytes(value, size).map(Into::into)));
            }
        }
        found.into()
    }
}

/// `None` where there are none: no bytes at all is another thing than none.
unsafe fn bytes<'a>(begin: *const c_void, count: usize) -> Option<&'a [u8]> {
    // SAFETY: so many bytes begin there and live for `'a`, which the caller sees to.
    (!begin.is_null()).then(|| unsafe { slice::from_raw_parts(begin.cast(), count) })
}
