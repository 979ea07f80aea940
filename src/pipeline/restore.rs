//! What a partition begins with: its view up to date, and its checkpoint.

mod pending;

use std::panic::resume_unwind;
use std::sync::atomic::AtomicBool;
use std::thread;

use ahash::{HashMap, HashSet};
use pending::Pending;

use super::{Config, Error, Topics};
use crate::codec::{self, proto};
use crate::source::{self, Assigned, Back, Start, Wanted};
use crate::store::{Store, View, ViewBatch};
use crate::{failpoint, metrics};

/// A partition whose view is up to date.
pub(super) struct Restored {
    pub(super) partition: i32,
    /// The first offset to read.
    pub(super) start: i64,
    /// Whether the group had committed that offset.
    pub(super) committed: bool,
    /// Whether that was limn's own commit, which has its checkpoint beside it. Else the last checkpoint may be older than the offset, or
    /// older than what is folded.
    pub(super) noted: bool,
    /// Where the input ended when the partition was assigned.
    pub(super) end: i64,
    /// Whether there are profiles of the partition.
    pub(super) profiles: bool,
    pub(super) checkpoint: Option<proto::Checkpoint>,
}

impl Restored {
    /// Whether the checkpoint of the start says that profile states were written before it. One that is beside an offset that was
    /// committed by hand may be any.
    pub(super) fn had_profiles(&self) -> bool {
        let of_this_start = self.noted || !self.committed;
        of_this_start && self.checkpoint.as_ref().is_some_and(|c| c.has_profiles)
    }
}

/// A view that was not written for so long is built anew: tombstones may have been compacted away that it never saw.
/// Half of Kafka's default `delete.retention.ms`.
const STALE_MS: u64 = 12 * 3600 * 1000;
/// Records between two words of how many are left.
const TELL_EVERY: u64 = 1000;

/// Brings the views of the partitions up to date and reads their checkpoints. Blocks.
pub(super) fn restore(
    config: &Config,
    store: &Store,
    assigned: &[Assigned],
    now_ms: i64,
    cancelled: &AtomicBool,
) -> Result<Vec<Restored>, Error> {
    #[cfg(target_os = "linux")]
    let _small = crate::pages::small();
    let view = &store.view;
    let mut wanted = Vec::with_capacity(2 * assigned.len());
    let mut positions: HashMap<i32, i64> = HashMap::default();
    for &Assigned { partition, .. } in assigned {
        let position = match view.position(partition)? {
            // Written by a clock that was ahead, it may be as old.
            Some(at) if now_ms.abs_diff(at.at_ms) < STALE_MS => at.offset,
            _ => {
                view.clear(partition)?;
                0
            }
        };
        positions.insert(partition, position);
        let want = |topic: &String, from| Wanted {
            topic: topic.clone(),
            partition,
            from,
        };
        wanted.push(want(&config.topics.profiles, position));
        let checkpoint = view.checkpoint(partition)?.map_or(0, |(next, _)| next);
        wanted.push(want(&config.topics.checkpoints, checkpoint));
    }
    // One thread reads and others write: none waits for another as long as all have something to do.
    let (pending, writers) = Pending::new(now_ms);
    let (checkpoints, empty) = thread::scope(|scope| {
        let mut writing = Vec::with_capacity(writers.len());
        for writer in writers {
            let thread = thread::Builder::new().name("limn-restore".to_owned());
            let started = thread.spawn_scoped(scope, move || writer.run(view));
            writing.push(started.map_err(|e| Error::Thread(e.to_string()))?);
        }
        let read = read(config, view, &wanted, positions, pending, cancelled);
        // What kept them from writing comes first: the reader only knows that nobody takes its pieces any more.
        for writing in writing {
            match writing.join() {
                Ok(written) => written?,
                Err(panic) => resume_unwind(panic),
            }
        }
        read
    })?;
    view.apply(&ViewBatch {
        checkpoints,
        ..ViewBatch::default()
    })?;
    let restored = assigned.iter().map(|a| {
        let restored = begin(config, store, a)?;
        if restored.had_profiles() && empty.contains(&restored.partition) {
            return Err(profiles_lost(config, &restored));
        }
        Ok(restored)
    });
    restored.collect()
}

/// No state is in the topic of a partition that had some: whoever goes on gives its users' versions out again, and has no marker of what
/// is folded above the start.
fn profiles_lost(config: &Config, restored: &Restored) -> Error {
    let (partition, start) = (restored.partition, restored.start);
    Error::Foreign {
        place: format!("{}[{partition}]", config.topics.profiles),
        reason: format!(
            "it has no record, but the checkpoint of offset {start} says that profiles were written to it: it was deleted and made anew, and \
             only the change events tell of them now. Take another group and output topics of its own, or have the users begin at version 1 \
             behind this offset with kafka-consumer-groups.sh --reset-offsets --topic {}:{partition} --to-offset {start} --execute: what is \
             folded above it may be folded again then",
            config.source.topic
        ),
    }
}

/// The next offset of the checkpoints partition to read and the last checkpoint, for each partition that has one.
type Checkpoints = Vec<(i32, i64, Vec<u8>)>;

/// Reads what is wanted: profiles into `pending`, from `positions` on, and the last checkpoints. Also tells which partitions have no record
/// of a profile.
fn read(
    config: &Config,
    view: &View,
    wanted: &[Wanted],
    mut positions: HashMap<i32, i64>,
    mut pending: Pending,
    cancelled: &AtomicBool,
) -> Result<(Checkpoints, HashSet<i32>), Error> {
    let mut checkpoints = Checkpoints::new();
    let mut counted = Counted::new();
    let mut told = 0;
    // The partition that the last record was of, and where its reading began: of most many come one behind another.
    let (mut of, mut from) = (None, 0);
    let ends = source::restore::<Error>(
        &config.source.properties,
        &config.source.group,
        wanted,
        config.restore_timeout,
        cancelled,
        |back| {
            let Back {
                topic,
                partition,
                offset,
                end,
                began_anew,
                ..
            } = back;
            counted.add();
            failpoint::pass("record_restored");
            if topic == config.topics.checkpoints {
                if let Some(value) = back.value() {
                    codec::decode_checkpoint(value)?;
                    checkpoints.retain(|(p, ..)| *p != partition);
                    checkpoints.push((partition, offset + 1, value.to_vec()));
                }
                return Ok(());
            }
            if of != Some(partition) {
                (of, from) = (
                    Some(partition),
                    positions.get(&partition).copied().unwrap_or(0),
                );
            }
            if offset < from || (began_anew && from > 0) {
                // The topic was made anew: what the view holds is of its former life.
                from = 0;
                positions.insert(partition, from);
                view.clear_profiles(partition)?;
            }
            let place = || format!("{topic}[{partition}] at {offset}");
            let user = back.key().and_then(|k| std::str::from_utf8(k).ok());
            let user = user.ok_or_else(|| Error::Foreign {
                place: place(),
                reason: "the key is no user".to_owned(),
            })?;
            let state = match back.value() {
                None => None,
                Some(value) => {
                    let version = codec::state_version(value).map_err(|e| Error::Foreign {
                        place: place(),
                        reason: e.to_string(),
                    })?;
                    Some((version, value))
                }
            };
            told += 1;
            if told % TELL_EVERY == 0
                && let Some(end) = end
            {
                remaining(partition, end - offset);
            }
            pending.push(partition, user, state, offset + 1)?;
            // Its transaction's marker is behind it, and then the end.
            if end == Some(offset + 2) {
                pending.ends()?;
            }
            Ok(())
        },
    )?;
    let mut empty = HashSet::default();
    for (&partition, &position) in &positions {
        let profiles = (config.topics.profiles.clone(), partition);
        if let Some(end) = ends.get(&profiles) {
            if end.began_anew && position > 0 {
                view.clear_profiles(partition)?;
            }
            remaining(partition, 0);
            // Nothing that is committed is there. With all users erased, and their tombstones compacted away, it can be so too.
            if end.next == 0 {
                empty.insert(partition);
            }
            pending.ends_at(partition, end.next);
        }
    }
    pending.send_all()?;
    Ok((checkpoints, empty))
}

/// Counts records, and tells of many at once.
struct Counted {
    counter: ::metrics::Counter,
    untold: u64,
}

impl Counted {
    fn new() -> Self {
        Self {
            counter: ::metrics::counter!(metrics::RESTORE_RECORDS),
            untold: 0,
        }
    }

    fn add(&mut self) {
        self.untold += 1;
        if self.untold == TELL_EVERY {
            self.tell();
        }
    }

    fn tell(&mut self) {
        self.counter.increment(std::mem::take(&mut self.untold));
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.tell();
    }
}

#[allow(clippy::cast_precision_loss)] // gauges are floats
fn remaining(partition: i32, records: i64) {
    ::metrics::gauge!(metrics::RESTORE_REMAINING_RECORDS, "partition" => partition.to_string())
        .set(records as f64);
}

fn begin(config: &Config, store: &Store, assigned: &Assigned) -> Result<Restored, Error> {
    let partition = assigned.partition;
    let checkpoint = match store.view.checkpoint(partition)? {
        Some((_, bytes)) => Some(codec::decode_checkpoint(&bytes)?),
        None => None,
    };
    let foreign = |reason| Error::Foreign {
        place: format!("{}[{partition}]", config.topics.checkpoints),
        reason,
    };
    belongs(config, assigned, checkpoint.as_ref()).map_err(foreign)?;
    // Without committed offsets (Kafka forgets those of a group that was away for long) the checkpoint tells as much.
    let start = match &checkpoint {
        Some(checkpoint) if !assigned.committed => {
            let source = &config.source;
            source::Error::of_position(
                &source.topic,
                partition,
                &source.group,
                checkpoint.restart_offset,
                (assigned.low, assigned.high),
            )?;
            checkpoint.restart_offset
        }
        _ => assigned.start,
    };
    let profiles = store.view.has_states(partition)?;
    let forgotten = profiles && !assigned.committed && checkpoint.is_none();
    if forgotten && config.source.start == Start::Latest {
        return Err(foreign(format!(
            "there are profiles of this partition, but neither a checkpoint nor an offset of the group {} says where to go on, and with \
             source.start = \"latest\" what was read and is not folded yet would be passed over: set it to \"earliest\" (what is folded is not \
             folded again), or commit the offset with kafka-consumer-groups.sh --reset-offsets",
            config.source.group
        )));
    }
    Ok(Restored {
        partition,
        start,
        committed: assigned.committed,
        noted: assigned.note.starts_with(CHECKPOINT_IN),
        end: assigned.high,
        profiles,
        checkpoint,
    })
}

/// Begins what limn commits beside an offset; behind it stands the topic with the offset's checkpoint.
const CHECKPOINT_IN: &str = "limn checkpoint in ";

/// What is committed beside the offsets. Kafka's own tools put nothing there, so an offset that was reset by hand is known as such.
pub(super) fn note(topics: &Topics) -> String {
    format!("{CHECKPOINT_IN}{}", topics.checkpoints)
}

/// Whether the checkpoint of a partition speaks of this input, group and output topics, or why it does not.
///
/// A fold marker stands in the profiles topic, a rejected event in the dead letters and in the checkpoint, an offset in the group: each
/// is right only together with the others. With one of the topics exchanged, versions would begin anew beside the old ones, and what was
/// folded above the restart offset would be folded once more. Each commit of limn's that has an offset has its checkpoint too, in the same
/// transaction, and the offset was fetched as stable before the checkpoint was read: a checkpoint of another offset, or none, is another
/// topic's, or the right one is lost.
fn belongs(
    config: &Config,
    assigned: &Assigned,
    checkpoint: Option<&proto::Checkpoint>,
) -> Result<(), String> {
    let (source, topics) = (&config.source, &config.topics);
    let of_this_offset = checkpoint.is_some_and(|c| c.restart_offset == assigned.start);
    if let Some(before) = assigned.note.strip_prefix(CHECKPOINT_IN)
        && (before != topics.checkpoints || !of_this_offset)
    {
        return Err(format!(
            "there is no checkpoint of this offset, but there was one in {before} when the group {} committed offset {}: set topics.checkpoints back to it, \
                 or take another group and output topics of its own; where it is lost, kafka-consumer-groups.sh --reset-offsets --to-current \
                 --execute has limn begin at the offset without it: nothing is folded twice, and what was late or given up behind it is decided again",
            source.group, assigned.start
        ));
    }
    let Some(found) = checkpoint else {
        return Ok(());
    };
    if (&source.topic, &source.group) != (&found.topic, &found.group) {
        return Err(format!(
            "it belongs to the input {} and the group {}, this is the input {} and the group {}: give each its own output topics",
            found.topic, found.group, source.topic, source.group
        ));
    }
    let outputs = [
        ("changes", &found.changes_topic, &topics.changes),
        ("profiles", &found.profiles_topic, &topics.profiles),
        (
            "dead_letters",
            &found.dead_letters_topic,
            &topics.dead_letters,
        ),
    ];
    for (name, before, now) in outputs {
        if !before.is_empty() && before != now {
            return Err(format!(
                "it was written with topics.{name} = \"{before}\", now that is \"{now}\": the output topics of a group belong together; set it \
                 back, or take another group and output topics of its own"
            ));
        }
    }
    Ok(())
}
