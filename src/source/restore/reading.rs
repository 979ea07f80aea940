//! Reading partitions to their ends, with a client that is assigned them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::super::Error;
use super::super::batches::{Batches, worse};
use super::super::edges::{self, Place, SLICE};
use super::super::kafka::passes;
use super::super::record::Copies;
use super::{Back, Wanted};

/// How long one look for records waits, and how often what comes beside them is served while they flow.
const SERVE: Duration = Duration::from_millis(100);

/// A partition that may have something to read.
pub(super) struct Open<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    pub(super) next: i64,
    /// Where it ends, as soon as that is known.
    pub(super) end: Option<i64>,
    /// The last end that the reader was told of.
    pub(super) told: i64,
    pub(super) began_anew: bool,
    /// Its end was not reached yet.
    pub(super) reading: bool,
    /// What was told to be wrong with it since that was last looked at.
    pub(super) fault: Option<KafkaError>,
}

impl<'a> Open<'a> {
    pub(super) fn new(wanted: &'a Wanted) -> Self {
        Self {
            topic: &wanted.topic,
            partition: wanted.partition,
            next: wanted.from,
            end: None,
            told: -1,
            began_anew: false,
            reading: true,
            fault: None,
        }
    }

    /// Where it ends is known now, and may be behind it.
    pub(super) fn ends_at(&mut self, end: i64) {
        self.end = Some(end);
        self.reading = self.next < end && self.told < end;
    }
}

/// What is kept between one look for records and the next.
pub(super) struct Reading<'a> {
    reader: &'a Batches,
    copies: Copies,
}

impl<'a> Reading<'a> {
    pub(super) fn new(reader: &'a Batches) -> Self {
        Self {
            reader,
            copies: Copies::default(),
        }
    }

    /// Takes what is there, or comes within this time, of some partitions. Says whether there was a record.
    pub(super) fn some<E>(
        &mut self,
        wait: Duration,
        some: &mut [Open<'_>],
        each: &mut impl FnMut(Back<'_>) -> Result<(), E>,
    ) -> Result<bool, E> {
        let mut heard = false;
        // What the last record was of: of most partitions many come one behind another.
        let (mut last, mut at) = (None, 0);
        let batch = self.reader.next(wait);
        for message in batch.iter() {
            let (partition, offset) = (message.partition(), message.offset());
            let place = Some((message.topic_id(), partition));
            if place != last {
                let topic = message.topic();
                let found = some
                    .iter()
                    .position(|o| (o.topic, o.partition) == (topic, partition));
                match found {
                    Some(found) => (last, at) = (place, found),
                    // Of those before these.
                    None => continue,
                }
            }
            let open = &mut some[at];
            match message.fault() {
                None => {
                    heard = true;
                    each(Back {
                        topic: open.topic,
                        partition,
                        offset,
                        // What is committed behind the end meanwhile is read with the rest.
                        end: open.end.map(|end| end.max(offset + 1)),
                        began_anew: open.began_anew,
                        message,
                        copies: &mut self.copies,
                    })?;
                    open.next = offset + 1;
                }
                // The stable offset is at the end that was asked for by now, so this consumer gets there. An end before is of the
                // time before, or that of a replica which lags behind. What is committed meanwhile is of no former owner.
                Some(RDKafkaErrorCode::PartitionEOF) => {
                    open.told = open.told.max(offset);
                    open.reading &= open.end.is_none_or(|end| offset < end);
                }
                Some(code) => {
                    let fault = KafkaError::MessageConsumption(code);
                    open.fault = worse(open.fault.take(), Some(fault));
                }
            }
        }
        Ok(heard)
    }
}

/// Reads some partitions, which the reader is assigned, to their ends.
pub(super) fn read_some<E: From<Error>>(
    reader: &Batches,
    some: &mut [Open<'_>],
    wait: Duration,
    cancelled: &AtomicBool,
    each: &mut impl FnMut(Back<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let doing = |some: &[Open<'_>]| match some.iter().find(|open| open.reading) {
        Some(open) => format!("reading {}[{}] back", open.topic, open.partition),
        None => "reading topics back".to_owned(),
    };
    let mut reading = Reading::new(reader);
    // Since when nothing was heard. The clock is not looked at for each record.
    let mut silent: Option<Instant> = None;
    // How long it was then, when it was last looked for the reason.
    let mut looked = Duration::ZERO;
    let mut served = Instant::now();
    loop {
        stop_if(cancelled)?;
        let heard = reading.some(SERVE, some, each)?;
        let reads = some.iter_mut().filter(|open| open.reading);
        let faults = reads.map(|open| open.fault.take());
        let mut fault = faults.fold(None, worse);
        if !heard || served.elapsed() > SERVE {
            fault = worse(fault, reader.serve());
            served = Instant::now();
        }
        if !some.iter().any(|open| open.reading) {
            return Ok(());
        }
        if heard {
            (silent, looked) = (None, Duration::ZERO);
        }
        let silent_for = if heard {
            Duration::ZERO
        } else {
            silence(&mut silent)
        };
        match fault {
            // One broker of several may be away; the others say where its partitions are led now.
            Some(error) if !passes(&error) || silent_for > wait => {
                return Err(Error::kafka(doing(some))(error).into());
            }
            None if silent_for > wait => {
                return Err(Error::Kafka {
                    doing: doing(some),
                    reason: format!("no answer for {wait:?}"),
                }
                .into());
            }
            _ => {}
        }
        if silent_for > looked + SLICE {
            let reading = some.iter().filter(|open| open.reading);
            let places: Vec<Place<'_>> = reading.map(|open| (open.topic, open.partition)).collect();
            edges::silent(reader.consumer(), &places)?;
            looked = silence(&mut silent);
        }
    }
}

/// How long nothing was heard, from now on if not before.
fn silence(since: &mut Option<Instant>) -> Duration {
    since.get_or_insert_with(Instant::now).elapsed()
}

fn stop_if(cancelled: &AtomicBool) -> Result<(), Error> {
    if cancelled.load(Ordering::Relaxed) {
        return Err(Error::Kafka {
            doing: "reading topics back".to_owned(),
            reason: "given up: the partitions were revoked".to_owned(),
        });
    }
    Ok(())
}
