//! What a program could reach at the best that reads the same events and writes the same records.

use std::panic::resume_unwind;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use ahash::HashMap;

use super::{Error, Options};
use crate::codec::{Decoder, state_version};
use crate::commit::{self, Written};
use crate::pipeline;
use crate::source::{self, Counted, Wanted};
use crate::store::{self, Change, Store, ViewBatch};

/// The topics whose records are written again …
const OUTPUTS: [fn(&pipeline::Topics) -> &String; 3] =
    [|to| &to.changes, |to| &to.profiles, |to| &to.checkpoints];
/// … and the place of the profiles among them.
const PROFILES: usize = 1;

/// The records of a run, for the next one's topics.
pub(super) fn recorded(options: &Options) -> Result<commit::Records, Error> {
    let from = OUTPUTS.map(|of| of(&options.pipeline.topics));
    let wanted = all_of(options, &from);
    let mut records = commit::Records::default();
    source::restore::<source::Error>(
        &options.pipeline.source.properties,
        &options.pipeline.source.group,
        &wanted,
        options.timeout,
        &AtomicBool::new(false),
        |back| {
            let topic = from.iter().position(|topic| **topic == back.topic);
            records.push(
                topic.unwrap_or_default(),
                back.partition,
                back.key(),
                back.value(),
            );
            Ok(())
        },
    )?;
    Ok(records)
}

/// All of these topics.
fn all_of(options: &Options, topics: &[&String]) -> Vec<Wanted> {
    let wanted = topics.iter().flat_map(|&topic| {
        (0..options.partitions).map(|partition| Wanted {
            topic: topic.clone(),
            partition,
            from: 0,
        })
    });
    wanted.collect()
}

/// Events a second where they are read and limn's records written, both at once, and with a `store` their states put into its view
/// beside that.
#[allow(clippy::cast_precision_loss)] // rates
pub(super) fn rate_of(
    options: &Options,
    records: &commit::Records,
    read: impl FnOnce() -> Result<Counted, Error>,
    store: Option<&Store>,
) -> Result<f64, Error> {
    let pipeline = &options.pipeline;
    let to = &pipeline.topics;
    let topics = OUTPUTS.map(|of| of(to).as_str());
    let every = pipeline.commit_interval;
    let (states, committed) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let written = scope.spawn(move || {
            let commit = &pipeline.commit;
            records.write(commit, topics, every, options.timeout, |written| {
                // Who takes them is gone only with an error of its own.
                let _ = store.map(|_| states.send(changes(written)));
            })
        });
        let viewed = scope.spawn(move || {
            for changes in committed {
                let batch = ViewBatch {
                    changes,
                    ..ViewBatch::default()
                };
                store.map_or(Ok(()), |store| store.view.apply(&batch))?;
            }
            Ok::<_, store::Error>(Instant::now())
        });
        let read = read();
        let written = written.join().unwrap_or_else(|panic| resume_unwind(panic));
        let viewed = viewed.join().unwrap_or_else(|panic| resume_unwind(panic));
        let (read, (began, written), viewed) = (read?, written?, viewed?);
        let last = viewed.max(began + written) - began;
        Ok(read.records as f64 / read.seconds.max(last.as_secs_f64()))
    })
}

/// The profile states among what a transaction has committed.
fn changes(written: &mut dyn Iterator<Item = Written<'_>>) -> Vec<Change> {
    let states = written.filter(|written| written.topic == PROFILES);
    let changes = states.filter_map(|written| {
        let state = written.value?;
        Some(Change {
            partition: written.partition,
            user: std::str::from_utf8(written.key?).ok()?.into(),
            state: Some((state_version(state).ok()?, state.to_vec())),
        })
    });
    changes.collect()
}

/// Reads the events, and keeps the bytes of each with those of its user, as windows do; of so many users at a time.
pub(super) fn keep(options: &Options) -> Result<Counted, Error> {
    const USERS: usize = 4000;
    let source = &options.pipeline.source;
    let decoder = Decoder::new(options.pipeline.codec.clone());
    let wanted = all_of(options, &[&source.topic]);
    let mut kept: HashMap<Box<str>, Vec<u8>> = HashMap::default();
    let (mut records, mut began) = (0, None);
    source::restore::<Error>(
        &source.properties,
        &source.group,
        &wanted,
        options.timeout,
        &AtomicBool::new(false),
        |back| {
            began.get_or_insert_with(Instant::now);
            records += 1;
            let (key, value) = (back.key(), back.value());
            // All of the bench's own are events.
            if let Ok(decoded) = decoder.decode_of(key, value, back.timestamp_ms()) {
                if kept.len() >= USERS {
                    kept.clear();
                }
                let of = kept.entry(decoded.user).or_default();
                of.extend_from_slice(value.unwrap_or_default());
            }
            Ok(())
        },
    )?;
    let seconds = began.map_or(0.0, |began: Instant| began.elapsed().as_secs_f64());
    Ok(Counted { records, seconds })
}
