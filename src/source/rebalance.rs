//! The group's rebalances, turned into messages that the owner of the state acknowledges.
//!
//! The callbacks run inside `poll`, on the polling thread. They share [`State`] with it, so that a message about an
//! assignment stands behind every record that was read before it.

use std::collections::VecDeque;
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ahash::HashMap;
use rdkafka::ClientContext;
use rdkafka::bindings::rd_kafka_topic_partition_t;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use super::{Assigned, Config, Error, Message, Read, Start};

/// How often a full channel is tried again.
pub(super) const FULL: Duration = Duration::from_millis(1);
/// How long the offsets of an assignment are asked for before it is looked whether the source is being dropped: long enough for
/// brokers that are slow.
const SLICE: Duration = Duration::from_secs(5);
/// How often it is looked whether the source is being dropped while an acknowledgement is waited for.
const CLOSING: Duration = Duration::from_millis(20);

/// How far a partition is open to its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// Assigned, but its view is being restored.
    Held,
    /// Records from this offset on are passed on.
    Open(i64),
}

pub(super) struct State<D> {
    pub(super) flows: HashMap<i32, Flow>,
    pub(super) batch: Vec<Read<D>>,
    /// Bytes of the keys and values in the batch.
    pub(super) bytes: usize,
    /// What the channel had no room for yet, in order.
    outbox: VecDeque<Message<D>>,
    /// Everything is paused because the engine is behind …
    pub(super) paused: bool,
    /// … or because the channel has been full for a while.
    pub(super) resting: bool,
}

/// What became of the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    /// It is empty.
    All,
    /// The channel is full.
    Full,
    /// Nobody listens any more.
    Gone,
}

pub(super) struct Context<D> {
    config: Config,
    out: Sender<Message<D>>,
    state: Mutex<State<D>>,
    closing: AtomicBool,
}

impl<D: Send + 'static> Context<D> {
    pub(super) fn new(config: Config, out: Sender<Message<D>>) -> Self {
        let state = State {
            flows: HashMap::default(),
            batch: Vec::new(),
            bytes: 0,
            outbox: VecDeque::new(),
            paused: false,
            resting: false,
        };
        Self {
            config,
            out,
            state: Mutex::new(state),
            closing: AtomicBool::new(false),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State<D>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The source is being dropped: from now on nobody is told anything, and nothing waits for an answer.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Passes a message on behind the records read so far, and waits until it is; false where nobody listens any more.
    ///
    /// It waits for room, but not beyond the source's end: its owner may be the one who would have made it. The last
    /// callbacks run on the thread that drops the source, where a runtime forbids blocking; so it is not tokio that waits.
    pub(super) fn tell(&self, message: Message<D>) -> bool {
        self.put(message);
        while !self.closing.load(Ordering::Acquire) {
            match self.pass_on() {
                Passed::All => return true,
                Passed::Gone => return false,
                Passed::Full => std::thread::sleep(FULL),
            }
        }
        false
    }

    /// The same without waiting.
    pub(super) fn put(&self, message: Message<D>) {
        self.bundle();
        self.state().outbox.push_back(message);
    }

    /// Makes a message of the records read so far.
    pub(super) fn bundle(&self) {
        let mut state = self.state();
        state.bytes = 0;
        let batch = std::mem::take(&mut state.batch);
        if !batch.is_empty() {
            state.outbox.push_back(Message::Records(batch));
        }
    }

    /// Passes on what there is room for.
    pub(super) fn pass_on(&self) -> Passed {
        let mut state = self.state();
        while let Some(message) = state.outbox.pop_front() {
            match self.out.try_send(message) {
                Ok(()) => {}
                Err(TrySendError::Closed(_)) => return Passed::Gone,
                Err(TrySendError::Full(back)) => {
                    state.outbox.push_front(back);
                    return Passed::Full;
                }
            }
        }
        Passed::All
    }

    fn assigned(&self, consumer: &BaseConsumer<Self>, gained: &TopicPartitionList) {
        if self.closing.load(Ordering::Acquire) {
            // Taken for as long as it takes to leave. A consumer that is being closed answers no question for offsets, and
            // librdkafka asks again for as long as it may.
            if let Err(error) = take(consumer, gained) {
                tracing::debug!(%error, "an assignment that came while the group was left");
            }
            return;
        }
        let result = self.starts(consumer, gained).and_then(|assigned| {
            let topic = &self.config.topic;
            let mut at = TopicPartitionList::with_capacity(assigned.len());
            for a in &assigned {
                at.add_partition_offset(topic, a.partition, Offset::Offset(a.start))
                    .map_err(Error::kafka("taking an assignment"))?;
            }
            take(consumer, &at)
                .and_then(|()| consumer.pause(&at))
                .map_err(Error::kafka("taking an assignment"))?;
            // An offset given to `assign` can be lost when `pause` follows at once (librdkafka #2190): until the
            // partition is opened, with a seek, records of it are dropped by the reader.
            self.state()
                .flows
                .extend(assigned.iter().map(|a| (a.partition, Flow::Held)));
            Ok(assigned)
        });
        match result {
            Ok(assigned) => self.tell(Message::Assigned(assigned)),
            Err(error) => self.tell(Message::Failed(error)),
        };
    }

    /// Where each gained partition begins. The offsets are fetched as stable (a `read_committed` consumer waits for the
    /// pending transactions of the group, KIP-447), so what the former owner committed is behind us, and what it did
    /// not can no longer be: its group generation is over.
    fn starts(
        &self,
        consumer: &BaseConsumer<Self>,
        gained: &TopicPartitionList,
    ) -> Result<Vec<Assigned>, Error> {
        let Config {
            topic,
            group,
            start,
            assign_timeout,
            ..
        } = &self.config;
        if gained.count() == 0 {
            return Ok(Vec::new());
        }
        let mut asked = TopicPartitionList::with_capacity(gained.count());
        for element in gained.elements() {
            asked.add_partition(element.topic(), element.partition());
        }
        let until = Instant::now() + *assign_timeout;
        let committed = loop {
            match consumer.committed_offsets(asked.clone(), SLICE.min(*assign_timeout)) {
                // Whether the source is being dropped, for which the thread that is in here is waited for, is looked at in between.
                Err(error)
                    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut)
                        && !self.closing.load(Ordering::Acquire)
                        && Instant::now() < until => {}
                answer => {
                    break answer.map_err(Error::kafka(format!(
                        "fetching the offsets of group {group}"
                    )))?;
                }
            }
        };
        let mut assigned = Vec::with_capacity(committed.count());
        let notes = notes(&committed);
        for (element, note) in committed.elements().iter().zip(notes) {
            let partition = element.partition();
            // One that could not be told is not one that there is none of.
            element.error().map_err(Error::kafka(format!(
                "fetching the offset of group {group} in {topic}[{partition}]"
            )))?;
            let (low, high) = consumer
                .fetch_watermarks(topic, partition, *assign_timeout)
                .map_err(Error::kafka(format!(
                    "asking for the ends of {topic}[{partition}]"
                )))?;
            // The end seen here is the last stable offset, which an open transaction of a producer of the input can hold
            // below a committed offset only if the topic was cut: committed means read as committed.
            let (at, known) = match element.offset() {
                Offset::Offset(committed) => {
                    Error::of_position(topic, partition, group, committed, (low, high))?;
                    (committed, true)
                }
                _ if *start == Start::Earliest => (low, false),
                _ => (high, false),
            };
            assigned.push(Assigned {
                partition,
                start: at,
                committed: known,
                note,
                low,
                high,
            });
        }
        Ok(assigned)
    }

    fn revoked(&self, consumer: &BaseConsumer<Self>, given_up: &TopicPartitionList) {
        let partitions: Vec<i32> = given_up
            .elements()
            .iter()
            .map(rdkafka::topic_partition_list::TopicPartitionListElem::partition)
            .collect();
        let lost = consumer.assignment_lost();
        let (done, acknowledged) = sync_channel(1);
        {
            let mut state = self.state();
            // What was read of them and not passed on yet is not ours to fold any more.
            state.batch.retain(|r| !partitions.contains(&r.partition));
            for message in &mut state.outbox {
                if let Message::Records(records) = message {
                    records.retain(|r| !partitions.contains(&r.partition));
                }
            }
            state.outbox.retain(|message| match message {
                Message::Records(records) => !records.is_empty(),
                Message::End { partition, .. } => !partitions.contains(partition),
                _ => true,
            });
            state.flows.retain(|p, _| !partitions.contains(p));
        }
        // The owner of the state acknowledges, or is gone, which drops the sender, or drops the source: this returns.
        if self.tell(Message::Revoked {
            partitions,
            lost,
            done,
        }) {
            while acknowledged.recv_timeout(CLOSING) == Err(RecvTimeoutError::Timeout)
                && !self.closing.load(Ordering::Acquire)
            {}
        }
        let result = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(given_up),
            _ => consumer.unassign(),
        };
        if let Err(error) = result {
            self.tell(Message::Failed(Error::kafka("giving an assignment up")(
                error,
            )));
        }
    }
}

/// What was committed beside each offset. Anybody may have written it, and the binding panics where it is no UTF-8.
fn notes(committed: &TopicPartitionList) -> Vec<String> {
    let note = |element: &rd_kafka_topic_partition_t| {
        if element.metadata.is_null() {
            return String::new();
        }
        // SAFETY: so many bytes of metadata stand there, as long as the list.
        let bytes =
            unsafe { slice::from_raw_parts(element.metadata.cast(), element.metadata_size) };
        String::from_utf8_lossy(bytes).into_owned()
    };
    // SAFETY: the list lives, and has `cnt` elements.
    let elements = unsafe {
        let list = &*committed.ptr();
        let count = usize::try_from(list.cnt).unwrap_or(0);
        slice::from_raw_parts(list.elems, count)
    };
    elements.iter().map(note).collect()
}

/// Takes gained partitions up, as the group's protocol has it.
fn take<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    gained: &TopicPartitionList,
) -> KafkaResult<()> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_assign(gained),
        _ => consumer.assign(gained),
    }
}

impl<D: Send + 'static> ClientContext for Context<D> {}

impl<D: Send + 'static> ConsumerContext for Context<D> {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        err: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                self.assigned(consumer, partitions);
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => {
                self.revoked(consumer, partitions);
            }
            other => {
                let _ = consumer.unassign();
                self.tell(Message::Failed(Error::kafka("rebalancing")(
                    KafkaError::Rebalance(other.into()),
                )));
            }
        }
    }

    fn main_queue_min_poll_interval(&self) -> rdkafka::util::Timeout {
        Duration::from_millis(200).into()
    }
}
