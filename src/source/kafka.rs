//! The polling thread: one consumer, polled whatever the rest of the pipeline does. Where nobody takes what was read, it
//! waits for half a second; then the partitions rest and it polls on, for the sake of its place in the group. Only in a
//! rebalance it waits for the owner of the state, as long as that takes.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::mpsc::Sender;

use super::edges::{Place, edges};
use super::member;
use super::rebalance::{Context, FULL, Flow, Passed};
use super::record::{Copies, record, timestamp_ms};
use super::restore::QUEUE_BACKOFF_MS;
use super::{Config, Error, Message, Read};
use crate::event::Record;

/// How long one poll waits, and with it a command to the source.
const POLL: Duration = Duration::from_millis(20);
/// How long a seek may take; it is answered by the client's own threads.
const SEEK: Duration = Duration::from_secs(10);

/// How long the channel may be full before the partitions rest: to pause them throws away what was fetched.
const PATIENCE: Duration = Duration::from_millis(500);

/// One question for the topic; a source that is dropped meanwhile waits so long at most.
const ASK: Duration = Duration::from_secs(1);
/// How long a topic may be unknown before it counts as missing: a new one does not reach every broker at once.
const UNKNOWN: Duration = Duration::from_secs(3);

/// A batch with so many bytes is passed on whatever its length: few of them are under way at a time, and what is under
/// way is held beside all limits.
const BATCH_BYTES: usize = 1 << 20;

enum Command {
    Ready(Vec<(i32, i64)>),
    Pause(Paused),
    Finish(i32),
}

/// Whether the input rests. A paused source goes on polling, so that the group does not take it for dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paused {
    /// Nothing is fetched: what was read waits for the engine.
    Yes,
    /// Records flow.
    No,
}

/// A consumer group member on a thread of its own.
///
/// Dropping it leaves the group, without a message and without waiting for an acknowledgement: commit what is to be
/// committed before. The receiver's end stops the thread, but only the drop leaves the group.
pub struct Kafka<D: Send + 'static> {
    consumer: Arc<BaseConsumer<Context<D>>>,
    commands: Option<std::sync::mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl<D: Send + 'static> Kafka<D> {
    /// Joins the group and begins to poll. `decode` gets the partition, the offset, Kafka's timestamp and the record; it runs on the polling thread.
    ///
    /// # Errors
    /// [`Error::Kafka`] where a property is wrong or the thread cannot be made.
    pub fn start(
        config: &Config,
        out: Sender<Message<D>>,
        decode: impl FnMut(i32, i64, Option<i64>, Record) -> D + Send + 'static,
    ) -> Result<Self, Error> {
        let mut client = ClientConfig::new();
        client
            .set("queued.max.messages.kbytes", "4096")
            .set("fetch.queue.backoff.ms", QUEUE_BACKOFF_MS);
        client.extend(config.properties.iter().cloned());
        // These carry the guarantees and are not the user's to change: offsets are committed in the transaction only,
        // a position outside the log is an error and never a reset, aborted input is never read.
        client
            .set("group.id", &config.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true");
        let consumer: BaseConsumer<Context<D>> = client
            .create_with_context(Context::new(config.clone(), out))
            .map_err(Error::kafka("making the consumer"))?;
        let consumer = Arc::new(consumer);
        let (commands, inbox) = channel();
        let reader = Reader {
            consumer: Arc::clone(&consumer),
            topic: config.topic.clone(),
            group: config.group.clone(),
            most: config.batch.max(1),
            decode,
            copies: Copies::default(),
        };
        let thread = std::thread::Builder::new()
            .name("limn-source".to_owned())
            .spawn(move || reader.run(&inbox))
            .map_err(|e| Error::Kafka {
                doing: "starting the polling thread".to_owned(),
                reason: e.to_string(),
            })?;
        Ok(Self {
            consumer,
            commands: Some(commands),
            thread: Some(thread),
        })
    }

    /// The partitions' views are restored: their records may flow, each from the offset given.
    pub fn ready(&self, partitions: Vec<(i32, i64)>) {
        self.command(Command::Ready(partitions));
    }

    /// Pauses or resumes every partition.
    pub fn pause(&self, paused: Paused) {
        self.command(Command::Pause(paused));
    }

    /// Nothing more of this partition is wanted until it is assigned again.
    pub fn finish(&self, partition: i32) {
        self.command(Command::Finish(partition));
    }

    /// This member's standing in the group, for the transaction; `None` while it is in no generation.
    #[must_use]
    pub fn group_metadata(&self) -> Option<ConsumerGroupMetadata> {
        member::standing(&*self.consumer)
    }

    fn command(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // A thread that is gone has said why in its last message.
            let _ = commands.send(command);
        }
    }
}

impl<D: Send + 'static> Drop for Kafka<D> {
    fn drop(&mut self) {
        self.consumer.client().context().close();
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Reader<D: Send + 'static, F> {
    consumer: Arc<BaseConsumer<Context<D>>>,
    topic: String,
    group: String,
    most: usize,
    decode: F,
    copies: Copies,
}

impl<D: Send + 'static, F: FnMut(i32, i64, Option<i64>, Record) -> D> Reader<D, F> {
    fn run(mut self, inbox: &Receiver<Command>) {
        let consumer = Arc::clone(&self.consumer);
        let context = Arc::clone(consumer.client().context());
        match self.join(&context, inbox) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                context.tell(Message::Failed(error));
                return;
            }
        }
        let mut full_since = None;
        loop {
            match inbox.try_recv() {
                Ok(command) => {
                    if let Err(error) = self.obey(command) {
                        context.tell(Message::Failed(error));
                        return;
                    }
                    continue;
                }
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {}
            }
            let resting = match context.pass_on() {
                Passed::Gone => return,
                Passed::All => {
                    full_since = None;
                    false
                }
                Passed::Full => {
                    let since = *full_since.get_or_insert_with(Instant::now);
                    if since.elapsed() < PATIENCE {
                        std::thread::sleep(FULL);
                        continue;
                    }
                    true
                }
            };
            if let Err(error) = self.rest(resting) {
                context.tell(Message::Failed(error));
                return;
            }
            // With records in hand only what is there already is taken, then they are passed on.
            let holding = !context.state().batch.is_empty() && !resting;
            let mut wait = if holding { Duration::ZERO } else { POLL };
            // One after another; what is above is looked at again behind a batch of them.
            for _ in 0..self.most {
                match consumer.poll(wait) {
                    None => {
                        context.bundle();
                        break;
                    }
                    Some(Ok(message)) => {
                        if self.take(&context, &message) {
                            context.bundle();
                            break;
                        }
                        if resting {
                            break;
                        }
                        wait = Duration::ZERO;
                    }
                    Some(Err(error)) => {
                        if !self.told(&context, error) {
                            return;
                        }
                        break;
                    }
                }
            }
        }
    }

    /// Lets the partitions rest while the channel is full, and wakes them when it is not.
    fn rest(&self, resting: bool) -> Result<(), Error> {
        let changed = {
            let mut state = self.consumer.client().context().state();
            std::mem::replace(&mut state.resting, resting) != resting
        };
        if changed {
            self.pause_or_resume()
        } else {
            Ok(())
        }
    }

    /// Pauses or resumes what is open, as the state says.
    fn pause_or_resume(&self) -> Result<(), Error> {
        let mut open = TopicPartitionList::new();
        let still = {
            let state = self.consumer.client().context().state();
            for (&partition, flow) in &state.flows {
                if let Flow::Open(next) = *flow {
                    open.add_partition_offset(&self.topic, partition, Offset::Offset(next))
                        .map_err(Error::kafka("pausing"))?;
                }
            }
            state.paused || state.resting
        };
        if still {
            return self.consumer.pause(&open).map_err(Error::kafka("pausing"));
        }
        if open.count() == 0 {
            return Ok(());
        }
        self.resume(&open)?;
        // What comes next comes without it, only later: a pause throws away what was fetched.
        if let Err(error) = self.seek(&open) {
            tracing::debug!(%error, "fetching begins within a second");
        }
        Ok(())
    }

    /// Lets partitions flow; [`Reader::seek`] must follow. librdkafka's thread that speaks with a broker is not woken when
    /// partitions are resumed, and looks by itself once a second. A seek wakes it where it changes a partition's state,
    /// which is to any offset but 0 (`rd_kafka_toppar_seek`; hence [`Reader::wake`]), and where the partition is not paused any
    /// more.
    fn resume(&self, partitions: &TopicPartitionList) -> Result<(), Error> {
        self.consumer
            .resume(partitions)
            .map_err(Error::kafka("opening a partition"))
    }

    /// Goes to the offsets given. No broker is asked, but for partitions at offset 0.
    fn seek(&self, to: &TopicPartitionList) -> Result<(), Error> {
        let doing = || format!("going to the start of {} partitions", to.count());
        let sought = self
            .consumer
            .seek_partitions(to.clone(), SEEK)
            .map_err(Error::kafka(doing()))?;
        for element in sought.elements() {
            element.error().map_err(Error::kafka(doing()))?;
        }
        self.wake(to);
        Ok(())
    }

    /// Wakes librdkafka's threads for the partitions that were sought to 0, which does not: any question to their leaders
    /// does. The answers are of no interest.
    fn wake(&self, sought: &TopicPartitionList) {
        let sought = sought.elements();
        let at_zero = sought.iter().filter(|e| e.offset() == Offset::Offset(0));
        let places: Vec<Place<'_>> = at_zero
            .map(|element| (self.topic.as_str(), element.partition()))
            .collect();
        if let Err(error) = edges(&self.consumer, &places, Offset::End, ASK) {
            tracing::debug!(%error, "fetching begins within a second");
        }
    }

    /// Subscribes once the topic is known to exist; whether to go on. Under `group.protocol=consumer` a subscription to a
    /// missing topic is an empty assignment and no error, so it is asked for.
    fn join(&self, context: &Context<D>, inbox: &Receiver<Command>) -> Result<bool, Error> {
        let topic = self.topic.as_str();
        let begun = Instant::now();
        // Nothing is assigned yet, so the only news is that the source is dropped.
        while !matches!(inbox.try_recv(), Err(TryRecvError::Disconnected)) {
            let answer = self.consumer.fetch_metadata(Some(topic), ASK);
            let fault = answer
                .as_ref()
                .map(|a| a.topics().first().and_then(|t| t.error()));
            match fault.map(|f| f.map(RDKafkaErrorCode::from)) {
                Ok(None) => {
                    return self
                        .consumer
                        .subscribe(&[topic])
                        .map(|()| true)
                        .map_err(Error::kafka(format!("subscribing to {topic}")));
                }
                Ok(Some(RDKafkaErrorCode::UnknownTopicOrPartition)) => {
                    if begun.elapsed() > UNKNOWN {
                        return Err(Error::MissingTopic {
                            topic: topic.to_owned(),
                        });
                    }
                }
                Ok(Some(RDKafkaErrorCode::LeaderNotAvailable)) => {}
                Ok(Some(code)) => {
                    return Err(Error::kafka(format!("asking for topic {topic}"))(
                        KafkaError::MetadataFetch(code),
                    ));
                }
                Err(error) => tracing::warn!(%error, "Kafka is not answering; still trying"),
            }
            // Refused credentials and the like are told here and not in the answer.
            if let Some(Err(error)) = self.consumer.poll(POLL * 5)
                && !self.told(context, error)
            {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Takes a record up; whether the batch is full.
    fn take(&mut self, context: &Context<D>, message: &BorrowedMessage<'_>) -> bool {
        let (partition, offset) = (message.partition(), message.offset());
        let mut state = context.state();
        // A held partition's records were fetched before the pause took hold; below the start is what a seek left over.
        match state.flows.get_mut(&partition) {
            Some(Flow::Open(next)) if offset >= *next => *next = offset + 1,
            _ => return false,
        }
        let timestamp_ms = timestamp_ms(message);
        let decoded = (self.decode)(
            partition,
            offset,
            timestamp_ms,
            record(message, &mut self.copies),
        );
        state.batch.push(Read {
            partition,
            offset,
            timestamp_ms,
            decoded,
        });
        state.bytes += message.payload_len() + message.key_len();
        state.batch.len() >= self.most || state.bytes >= BATCH_BYTES
    }

    /// Deals with what is not a record; whether to go on.
    fn told(&self, context: &Context<D>, error: KafkaError) -> bool {
        match error {
            KafkaError::PartitionEOF(partition) => {
                let flow = context.state().flows.get(&partition).copied();
                if let Some(Flow::Open(next)) = flow {
                    context.put(Message::End {
                        partition,
                        // Before the first record there is no position, only the start.
                        position: self.position(partition).map_or(next, |p| p.max(next)),
                    });
                }
                true
            }
            error if passes(&error) => {
                tracing::warn!(%error, "Kafka is not answering as it should; still trying");
                true
            }
            KafkaError::MessageConsumption(
                RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic,
            ) => {
                context.tell(Message::Failed(Error::MissingTopic {
                    topic: self.topic.clone(),
                }));
                false
            }
            other => {
                context.tell(Message::Failed(Error::Kafka {
                    doing: format!("reading {} as group {}", self.topic, self.group),
                    reason: other.to_string(),
                }));
                false
            }
        }
    }

    /// The consumer's position; `None` where nothing was read yet.
    fn position(&self, partition: i32) -> Option<i64> {
        let position = self.consumer.position().ok()?;
        match position.find_partition(&self.topic, partition)?.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }
    }

    fn obey(&self, command: Command) -> Result<(), Error> {
        let context = self.consumer.client().context();
        match command {
            Command::Ready(partitions) => {
                let mut at = TopicPartitionList::new();
                for (partition, start) in partitions {
                    // A partition that was revoked in the meantime is no longer held.
                    let flow = context.state().flows.get(&partition).copied();
                    if flow == Some(Flow::Held) {
                        at.add_partition_offset(&self.topic, partition, Offset::Offset(start))
                            .map_err(Error::kafka("opening a partition"))?;
                    }
                }
                if at.count() == 0 {
                    return Ok(());
                }
                let paused = {
                    let state = context.state();
                    state.paused || state.resting
                };
                if !paused {
                    // Before the seek, which wakes the fetching. What comes in between is of a partition that is held.
                    self.resume(&at)?;
                }
                self.seek(&at)?;
                let mut state = context.state();
                for element in at.elements() {
                    if let Offset::Offset(start) = element.offset() {
                        state.flows.insert(element.partition(), Flow::Open(start));
                    }
                }
                Ok(())
            }
            Command::Pause(wanted) => {
                context.state().paused = wanted == Paused::Yes;
                self.pause_or_resume()
            }
            Command::Finish(partition) => {
                let mut finished = TopicPartitionList::new();
                if let Some(flow) = context.state().flows.get_mut(&partition) {
                    *flow = Flow::Held;
                    finished.add_partition(&self.topic, partition);
                }
                self.consumer
                    .pause(&finished)
                    .map_err(Error::kafka("closing a partition"))
            }
        }
    }
}

/// Whether librdkafka goes on trying by itself after this, and says so in its log.
pub(super) fn passes(error: &KafkaError) -> bool {
    matches!(
        error,
        KafkaError::MessageConsumption(
            RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::RequestTimedOut
                | RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::CoordinatorLoadInProgress
                | RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable,
        )
    )
}

#[cfg(test)]
mod tests;
