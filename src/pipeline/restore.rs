//! What a partition begins with: its view up to date, and its checkpoint.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

use super::{Config, Error};
use crate::codec::{self, proto};
use crate::source::{self, Assigned, Back, Wanted};
use crate::store::{Applied, Change, Store, ViewBatch};
use crate::{failpoint, metrics};

/// A partition whose view is up to date.
pub(super) struct Restored {
    pub(super) partition: i32,
    /// The first offset to read.
    pub(super) start: i64,
    /// Whether the group had committed that offset.
    pub(super) committed: bool,
    /// Where the input ended when the partition was assigned.
    pub(super) end: i64,
    pub(super) checkpoint: Option<proto::Checkpoint>,
}

/// A view that was not written for so long is built anew: tombstones may have been compacted away that it never saw.
/// Half of Kafka's default `delete.retention.ms`.
const STALE_MS: i64 = 12 * 3600 * 1000;
/// Records applied to the view at once.
const CHUNK: usize = 1000;

/// Brings the views of the partitions up to date and reads their checkpoints. Blocks.
pub(super) fn restore(
    config: &Config,
    store: &Store,
    assigned: &[Assigned],
    now_ms: i64,
    cancelled: &AtomicBool,
) -> Result<Vec<Restored>, Error> {
    let view = &store.view;
    let mut wanted = Vec::with_capacity(2 * assigned.len());
    let mut positions: HashMap<i32, i64> = HashMap::new();
    for &Assigned { partition, .. } in assigned {
        let position = match view.position(partition)? {
            Some(at) if now_ms.saturating_sub(at.at_ms) < STALE_MS => at.offset,
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
    let mut batch = ViewBatch::default();
    let read = ::metrics::counter!(metrics::RESTORE_RECORDS);
    let ends = source::restore::<Error>(
        &config.source.properties,
        &config.source.group,
        &wanted,
        config.restore_timeout,
        cancelled,
        |Back {
             topic,
             partition,
             offset,
             end,
             record,
             ..
         }| {
            read.increment(1);
            failpoint::pass("record_restored");
            if topic == config.topics.checkpoints {
                if let Some(value) = &record.value {
                    codec::decode_checkpoint(value)?;
                    batch.checkpoints.retain(|(p, ..)| *p != partition);
                    batch
                        .checkpoints
                        .push((partition, offset + 1, value.to_vec()));
                }
                return Ok(());
            }
            if let Some(from) = positions.get_mut(&partition)
                && offset < *from
            {
                // The topic was made anew: what the view holds is of its former life.
                *from = 0;
                view.clear_profiles(partition)?;
            }
            let place = || format!("{topic}[{partition}] at {offset}");
            let user = record
                .key
                .as_deref()
                .and_then(|k| std::str::from_utf8(k).ok());
            let user = user.ok_or_else(|| Error::Foreign {
                place: place(),
                reason: "the key is no user".to_owned(),
            })?;
            let state = match &record.value {
                None => None,
                Some(value) => {
                    let state = codec::decode_state(value).map_err(|e| Error::Foreign {
                        place: place(),
                        reason: e.to_string(),
                    })?;
                    Some((state.version, value.to_vec()))
                }
            };
            batch.changes.push(Change {
                partition,
                user: user.into(),
                state,
            });
            batch.positions.retain(|(p, _)| *p != partition);
            batch.positions.push((
                partition,
                Applied {
                    offset: offset + 1,
                    at_ms: now_ms,
                },
            ));
            if batch.changes.len() >= CHUNK {
                remaining(partition, end - offset);
                view.apply(&std::mem::take(&mut batch))?;
            }
            Ok(())
        },
    )?;
    for (partition, position) in positions {
        let profiles = (config.topics.profiles.clone(), partition);
        if let Some(end) = ends.get(&profiles) {
            if end.began_anew && position > 0 {
                view.clear_profiles(partition)?;
            }
            remaining(partition, 0);
            batch.positions.retain(|(p, _)| *p != partition);
            batch.positions.push((
                partition,
                Applied {
                    offset: end.next,
                    at_ms: now_ms,
                },
            ));
        }
    }
    view.apply(&batch)?;
    assigned.iter().map(|a| begin(config, store, a)).collect()
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
    if let Some(found) = &checkpoint {
        let mine = (&config.source.topic, &config.source.group);
        if mine != (&found.topic, &found.group) {
            return Err(Error::Foreign {
                place: format!("{}[{partition}]", config.topics.checkpoints),
                reason: format!(
                    "it belongs to the input {} and the group {}, this is the input {} and the group {}: give each its own output topics",
                    found.topic, found.group, mine.0, mine.1
                ),
            });
        }
    }
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
    Ok(Restored {
        partition,
        start,
        committed: assigned.committed,
        end: assigned.high,
        checkpoint,
    })
}
