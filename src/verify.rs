//! Whether the topics keep what limn guarantees: every record of the input is accounted for, as a `read_committed` consumer
//! sees it. Nothing is written, no group is joined, and the service may run meanwhile.

mod account;
mod fates;
mod report;
#[cfg(test)]
mod tests;
mod users;

pub use report::{Found, Kind, Report};

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use account::{Account, Rules};

use crate::codec::{self, Decoder, Origin};
use crate::source::{self, Back, Wanted};

/// What is to be looked at.
#[derive(Debug, Clone)]
pub struct Options {
    /// librdkafka properties of a consumer. They may hold secrets and are never logged.
    pub properties: Vec<(String, String)>,
    /// The consumer group.
    pub group: String,
    /// The input topic.
    pub input: String,
    /// The change events.
    pub changes: String,
    /// The profile states.
    pub profiles: String,
    /// The checkpoints.
    pub checkpoints: String,
    /// The dead letters.
    pub dead_letters: String,
    /// How the input's records are read.
    pub codec: codec::Config,
    /// The input is said to be worked off: an event that waits is a finding.
    pub drained: bool,
    /// The group began with what was written from then on: what is before that was never its to fold.
    pub latest: bool,
    /// How long the brokers may be silent, and a transaction under way open.
    pub timeout: Duration,
}

/// Reads the topics and accounts for every record. `tell` gets a line for each step. Blocks; the memory it takes is some 50
/// bytes for each version and for each run of offsets folded, and each user's id and last fold marker.
///
/// # Errors
/// [`source::Error`] where a topic is missing or the brokers do not answer.
pub fn verify(options: &Options, tell: &mut impl FnMut(&str)) -> Result<Report, source::Error> {
    let Options {
        properties,
        group,
        timeout,
        ..
    } = options;
    let bounds = |topic: &str| source::bounds(properties, group, topic, *timeout);
    let (input, changes, dead_letters) = (
        bounds(&options.input)?,
        bounds(&options.changes)?,
        bounds(&options.dead_letters)?,
    );
    // Before anything else is read: what is committed now is in all topics by then.
    let partitions = i32::try_from(input.len()).unwrap_or(i32::MAX);
    let committed = source::committed(properties, group, &options.input, partitions, *timeout)?;
    let cut = |topic: &BTreeMap<i32, (i64, i64)>| topic.values().any(|(low, _)| *low > 0);
    let mut account = Account::new(Rules {
        topic: options.input.clone(),
        decoder: Decoder::new(options.codec.clone()),
        drained: options.drained,
        latest: options.latest,
        changes_cut: cut(&changes),
        dead_letters_cut: cut(&dead_letters),
    });
    for (partition, offset) in committed {
        account.committed(partition, offset);
    }
    let mut read = |topic: &str, from: Vec<(i32, i64)>, each: &mut dyn FnMut(Back<'_>)| {
        tell(&format!("reading {topic}"));
        let wanted: Vec<Wanted> = from
            .into_iter()
            .map(|(partition, from)| Wanted {
                topic: topic.to_owned(),
                partition,
                from,
            })
            .collect();
        let never = AtomicBool::new(false);
        source::restore::<source::Error>(properties, group, &wanted, *timeout, &never, |back| {
            each(back);
            Ok(())
        })
    };
    let all = |topic: &BTreeMap<i32, (i64, i64)>| topic.keys().map(|p| (*p, 0)).collect();

    let checkpoints = bounds(&options.checkpoints)?;
    read(&options.checkpoints, all(&checkpoints), &mut |mut back| {
        account.checkpoint(place(&back), &back.record());
    })?;
    let ends = read(&options.changes, all(&changes), &mut |mut back| {
        account.change(place(&back), &back.record());
    })?;
    let profiles = bounds(&options.profiles)?;
    read(&options.profiles, all(&profiles), &mut |mut back| {
        account.profile(place(&back), &back.record());
    })?;
    account.profiles_read();
    // What came meanwhile: the profiles read may be of it.
    let rest = ends.into_iter().map(|((_, p), end)| (p, end.next));
    read(&options.changes, rest.collect(), &mut |mut back| {
        account.change(place(&back), &back.record());
    })?;
    read(
        &options.dead_letters,
        all(&dead_letters),
        &mut |mut back| {
            account.dead_letter(place(&back), &back.record());
        },
    )?;
    for (partition, (low, _)) in &input {
        account.input_begins(*partition, *low);
    }
    read(&options.input, all(&input), &mut |mut back| {
        account.input(place(&back), back.timestamp_ms(), &back.record());
    })?;
    // What retention has removed since the beginning was not there to be met.
    for (partition, (low, _)) in bounds(&options.input)? {
        account.input_removed(partition, low);
    }
    Ok(account.finish())
}

fn place<'a>(back: &Back<'a>) -> Origin<'a> {
    Origin {
        topic: back.topic,
        partition: back.partition,
        offset: back.offset,
    }
}
