//! What was made of the events since the last commit, and the thread that commits it.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ahash::{HashMap, RandomState};
use rdkafka::consumer::ConsumerGroupMetadata;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::room::Room;
use super::{Error, Topics};
use crate::clock::Clock;
use crate::codec::{self, FORMAT, FORMAT_HEADER, proto};
use crate::commit::{self, Batch, Committer, Ends, Outgoing};
use crate::store::{Applied, Change, Store, ViewBatch};
use crate::{failpoint, metrics};

/// A user of an input partition.
pub(super) type Key = (i32, Arc<str>);

/// The next transaction, as far as it is made.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) changes: Vec<proto::ProfileChange>,
    /// Each user's last state: what a compacted topic would keep of several.
    pub(super) states: HashMap<Key, Arc<proto::ProfileState>>,
    /// Every state in order: the view keeps those before the last one too.
    versions: Vec<(Key, Arc<proto::ProfileState>)>,
    dead: Vec<Outgoing>,
    /// Partitions whose checkpoint has changed.
    pub(super) touched: BTreeSet<i32>,
    /// Partitions that begin where this transaction says, each with its first offset.
    pub(super) starts: Vec<(i32, i64)>,
    pub(super) bytes: usize,
    pub(super) since: Option<Instant>,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.touched.is_empty()
    }

    /// What is in it, to be committed. The next one begins with room for as much: growing to it would copy megabytes, into
    /// memory that the system has to clear.
    pub(super) fn take(&mut self) -> Self {
        let next = Self {
            changes: Vec::with_capacity(self.changes.len()),
            versions: Vec::with_capacity(self.versions.len()),
            states: HashMap::with_capacity_and_hasher(self.states.len(), RandomState::default()),
            ..Self::default()
        };
        std::mem::replace(self, next)
    }

    pub(super) fn touch(&mut self, partition: i32) {
        self.touched.insert(partition);
        self.since.get_or_insert_with(Instant::now);
    }

    /// The group never committed an offset of this partition: where it begins is part of this transaction, and nothing
    /// of it is read before that is committed. Else a crash before the first event is settled would let the next start
    /// choose again, and with `latest` pass over what was read by then.
    pub(super) fn begin(&mut self, partition: i32, start: i64) {
        self.touch(partition);
        self.starts.push((partition, start));
    }

    pub(super) fn change(
        &mut self,
        key: Key,
        change: proto::ProfileChange,
        state: Arc<proto::ProfileState>,
    ) {
        // The marker is here, in the record and in what the view gets.
        let marker = state.marker.as_ref().map_or(0, |m| 48 * m.folded.len());
        self.bytes += change.before.len() + 4 * change.after.len() + marker + 256;
        self.touch(key.0);
        self.changes.push(change);
        self.versions.push((key.clone(), Arc::clone(&state)));
        self.states.insert(key, state);
    }

    pub(super) fn dead_letter(&mut self, dead: Outgoing, partition: i32) {
        self.bytes += dead.value.as_ref().map_or(0, Vec::len) + 256;
        self.touch(partition);
        self.dead.push(dead);
    }

    /// Everything as one transaction.
    fn seal(
        self,
        topics: &Topics,
        checkpoints: &[proto::Checkpoint],
        group: Arc<ConsumerGroupMetadata>,
    ) -> Sealed {
        let mut records =
            Vec::with_capacity(self.changes.len() * 2 + self.dead.len() + checkpoints.len());
        for change in &self.changes {
            records.push(change_record(&topics.changes, change));
        }
        let mut view = Vec::with_capacity(self.versions.len());
        for (key @ (partition, user), state) in &self.versions {
            let bytes = codec::encode(state.as_ref());
            if self
                .states
                .get(key)
                .is_some_and(|last| Arc::ptr_eq(last, state))
            {
                records.push(state_record(
                    &topics.profiles,
                    *partition,
                    user,
                    bytes.clone(),
                ));
            }
            view.push(Change {
                partition: *partition,
                user: (&**user).into(),
                state: Some((state.version, bytes)),
            });
        }
        let dead = self.dead.len() as u64;
        records.extend(self.dead);
        let mut offsets = Vec::with_capacity(checkpoints.len());
        let mut written = Vec::with_capacity(checkpoints.len());
        for checkpoint in checkpoints {
            let partition = checkpoint.partition;
            let bytes = codec::encode(checkpoint);
            let key = partition.to_string().into_bytes();
            records.push(outgoing(
                &topics.checkpoints,
                Some(partition),
                key,
                bytes.clone(),
            ));
            offsets.push((partition, checkpoint.restart_offset));
            written.push((partition, bytes));
        }
        Sealed {
            batch: Batch {
                records,
                offsets,
                note: super::restore::note(topics),
            },
            group,
            view,
            checkpoints: written,
            changes: self.changes,
            states: self.states,
            starts: self.starts,
            dead,
        }
    }
}

pub(super) fn change_record(topic: &str, change: &proto::ProfileChange) -> Outgoing {
    let key = change.user_id.clone().into_bytes();
    outgoing(topic, None, key, codec::encode(change))
}

pub(super) fn state_record(topic: &str, partition: i32, user: &str, state: Vec<u8>) -> Outgoing {
    outgoing(topic, Some(partition), user.as_bytes().to_vec(), state)
}

fn outgoing(topic: &str, partition: Option<i32>, key: Vec<u8>, value: Vec<u8>) -> Outgoing {
    Outgoing {
        topic: topic.to_owned(),
        partition,
        key: Some(key),
        value: Some(value),
        headers: vec![(
            FORMAT_HEADER.into(),
            Some(FORMAT.to_string().into_bytes().into()),
        )],
    }
}

/// What goes to the thread that commits: the checkpoints of the touched partitions, and the member's standing.
type Handed = (Pending, Vec<proto::Checkpoint>, Arc<ConsumerGroupMetadata>);

/// A transaction to be committed, and what the view learns of it.
struct Sealed {
    batch: Batch,
    group: Arc<ConsumerGroupMetadata>,
    view: Vec<Change>,
    checkpoints: Vec<(i32, Vec<u8>)>,
    changes: Vec<proto::ProfileChange>,
    states: HashMap<Key, Arc<proto::ProfileState>>,
    starts: Vec<(i32, i64)>,
    dead: u64,
}

/// A transaction that is committed and applied to the view.
pub(super) struct Committed {
    pub(super) changes: Vec<proto::ProfileChange>,
    pub(super) states: HashMap<Key, Arc<proto::ProfileState>>,
    /// Partitions whose first offset is committed: they may be read.
    pub(super) starts: Vec<(i32, i64)>,
    /// How many dead letters it had.
    pub(super) dead: u64,
    /// How long the transaction took, without the view.
    pub(super) took: Duration,
}

/// How often an aborted transaction is tried again before all is read anew from Kafka.
const ATTEMPTS: u32 = 6;

/// The thread that commits, one transaction at a time, and applies each to the view behind it.
pub(super) struct Sink {
    to: mpsc::Sender<Handed>,
    from: UnboundedReceiver<Result<Committed, Error>>,
    busy: bool,
}

impl Sink {
    pub(super) fn start(
        mut committer: Committer,
        store: Arc<Store>,
        topics: Topics,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        let (to, inbox) = mpsc::channel::<Handed>();
        let (out, from) = unbounded_channel();
        std::thread::Builder::new()
            .name("limn-commit".to_owned())
            .spawn(move || {
                run(
                    &mut committer,
                    &store,
                    &topics,
                    clock.as_ref(),
                    &inbox,
                    &out,
                );
                // Before the producer, which takes its time: who opens the folder next must not find it in use.
                drop(store);
            })
            .map_err(|e| Error::Thread(e.to_string()))?;
        Ok(Self {
            to,
            from,
            busy: false,
        })
    }

    /// Whether a transaction is under way.
    pub(super) fn busy(&self) -> bool {
        self.busy
    }

    /// Begins a transaction; the checkpoints are those of the touched partitions.
    pub(super) fn commit(
        &mut self,
        pending: Pending,
        checkpoints: Vec<proto::Checkpoint>,
        group: Arc<ConsumerGroupMetadata>,
    ) -> Result<(), Error> {
        self.busy = true;
        self.to
            .send((pending, checkpoints, group))
            .map_err(|_| Error::Thread("the committing thread is gone".to_owned()))
    }

    /// Waits for the transaction under way. Cancel safe.
    pub(super) async fn committed(&mut self) -> Result<Committed, Error> {
        let result = self.from.recv().await;
        self.busy = false;
        result.unwrap_or_else(|| Err(Error::Thread("the committing thread is gone".to_owned())))
    }
}

fn run(
    committer: &mut Committer,
    store: &Store,
    topics: &Topics,
    clock: &dyn Clock,
    inbox: &mpsc::Receiver<Handed>,
    out: &UnboundedSender<Result<Committed, Error>>,
) {
    let mut room = Room::default();
    while let Ok((pending, checkpoints, group)) = inbox.recv() {
        let sealed = pending.seal(topics, &checkpoints, group);
        let result = commit(committer, store, topics, clock, &mut room, sealed);
        let failed = result.is_err();
        if out.send(result).is_err() || failed {
            return;
        }
    }
}

fn commit(
    committer: &mut Committer,
    store: &Store,
    topics: &Topics,
    clock: &dyn Clock,
    room: &mut Room,
    mut sealed: Sealed,
) -> Result<Committed, Error> {
    // While the brokers are waited for. What is gathered is of these partitions only, which this thread alone applies changes to.
    let changed = std::mem::take(&mut sealed.view);
    let (committed, gathered) = std::thread::scope(|scope| {
        let gathering = std::thread::Builder::new()
            .name("limn-gather".to_owned())
            .spawn_scoped(scope, || store.view.gather(&changed));
        let committed = transaction(committer, topics, room, &mut sealed);
        let gathered = match gathering {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            // No thread is to be had: one behind the other.
            Err(_) => store.view.gather(&changed),
        };
        (committed, gathered)
    });
    let (ends, took) = committed?;
    gathered?;
    // Only now: the view is never ahead of Kafka. A crash before this line is made good by reading the profiles topic
    // from the view's position.
    let at_ms = clock.now_ms();
    let end = |topic: &str, partition| ends.get(&(topic.to_owned(), partition)).copied();
    let positions = sealed.checkpoints.iter().filter_map(|(partition, _)| {
        let offset = end(&topics.profiles, *partition)?;
        Some((*partition, Applied { offset, at_ms }))
    });
    let view = ViewBatch {
        positions: positions.collect(),
        changes: changed,
        checkpoints: sealed
            .checkpoints
            .into_iter()
            .filter_map(|(partition, bytes)| {
                Some((partition, end(&topics.checkpoints, partition)?, bytes))
            })
            .collect(),
    };
    store.view.apply(&view)?;
    failpoint::pass("applied");
    Ok(Committed {
        changes: sealed.changes,
        states: sealed.states,
        starts: sealed.starts,
        dead: sealed.dead,
        took,
    })
}

/// Commits the transaction, and says where it has ended in each partition and how long it took.
fn transaction(
    committer: &mut Committer,
    topics: &Topics,
    room: &mut Room,
    sealed: &mut Sealed,
) -> Result<(Ends, Duration), Error> {
    let began = Instant::now();
    let mut attempt = 1;
    room.fit(&topics.dead_letters, &mut sealed.batch.records);
    loop {
        match committer.commit(&sealed.batch, &sealed.group) {
            Ok(ends) => return Ok((ends, began.elapsed())),
            Err(error) => {
                ::metrics::counter!(metrics::TRANSACTION_FAILURES, "kind" => error.kind())
                    .increment(1);
                // One bad record never stops the stream, however large it is.
                if let commit::Error::TooLarge { topic, bytes, .. } = &error
                    && *topic == topics.dead_letters
                {
                    tracing::warn!(%error, "dead letters are cut to fit, and marked limn-truncated");
                    room.refused(*bytes);
                    if !room.fit(topic, &mut sealed.batch.records) {
                        return Err(error.into());
                    }
                    attempt = 1;
                    continue;
                }
                if !matches!(error, commit::Error::Aborted { .. }) || attempt == ATTEMPTS {
                    return Err(error.into());
                }
                tracing::warn!(%error, attempt, "trying the transaction again");
                std::thread::sleep(Duration::from_millis(50 << attempt));
                attempt += 1;
            }
        }
    }
}
