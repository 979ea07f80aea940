//! Profiles that were read back, on their way from the thread that reads them to those that write them into the view.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::mem;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use super::Error;
use crate::store::{self, Applied, ReadBack, Restoring, View};

/// Bytes of a partition's profiles that go to the view together: so few that a processor's cache still holds them. Little in a debug
/// build, so that the tests and the fault suite see many pieces.
const PIECE_BYTES: usize = if cfg!(debug_assertions) {
    24 << 10
} else {
    256 << 10
};

/// Pieces that wait for each of those who write: while both wait for the disk, the reader goes on.
const WAITING: usize = 32;

/// So many partitions at most have something that waits, or a run that was begun: more than are read at a time
/// (`source::restore`).
const PARTITIONS: usize = 16;

/// Threads that write: while one waits for the disk, another packs. All of a partition's pieces are written by one, in their order.
const WRITERS: usize = 2;

/// Of a partition so many profiles, and how far it was read with them.
pub(super) struct Piece {
    partition: i32,
    read: ReadBack,
    applied: Applied,
    /// More of the partition follows. Else most likely none does ([`Pending::ends`]).
    more: bool,
}

/// One of the threads that write.
pub(super) struct Writer {
    pieces: Receiver<Piece>,
    emptied: Sender<ReadBack>,
}

impl Writer {
    /// Writes pieces until their sender is gone.
    pub(super) fn run(self, view: &View) -> Result<(), store::Error> {
        let mut restoring: BTreeMap<i32, Restoring<'_>> = BTreeMap::new();
        for piece in self.pieces {
            let partition = piece.partition;
            let of = match restoring.entry(partition) {
                Entry::Occupied(of) => of.into_mut(),
                Entry::Vacant(of) => of.insert(view.restoring(partition)?),
            };
            of.take(&piece.read, piece.applied, piece.more)?;
            // Nobody wants it any more behind the last piece.
            let _ = self.emptied.send(piece.read.emptied());
        }
        Ok(())
    }
}

/// What was read and is not on its way yet: of each partition, with the offset that it goes on from.
pub(super) struct Pending {
    writers: Vec<SyncSender<Piece>>,
    /// Which of them writes a partition: in turn, as the partitions of an instance may well be every second one.
    writer: BTreeMap<i32, usize>,
    /// Memory that was written out of: new memory would be had from the system page by page, and grow by copies.
    emptied: Receiver<ReadBack>,
    now_ms: i64,
    /// Few, and looked for only where the last record was of another.
    partitions: Vec<(i32, Waiting)>,
    /// Which of them the last record was of.
    last: usize,
    /// Records that were taken.
    taken: u64,
}

/// What waits of a partition.
#[derive(Default)]
struct Waiting {
    read: ReadBack,
    /// Where it goes on.
    next: i64,
    /// How many records had been taken with its last one.
    last: u64,
}

impl Pending {
    /// Nothing yet, and who writes its pieces.
    pub(super) fn new(now_ms: i64) -> (Self, Vec<Writer>) {
        let (empty, emptied) = channel();
        let (writers, running) = (0..WRITERS)
            .map(|_| {
                let (writer, pieces) = sync_channel(WAITING);
                let emptied = empty.clone();
                (writer, Writer { pieces, emptied })
            })
            .unzip();
        let pending = Self {
            writers,
            writer: BTreeMap::new(),
            emptied,
            now_ms,
            partitions: Vec::new(),
            last: 0,
            taken: 0,
        };
        (pending, running)
    }

    /// Where the partition goes on, once all of it is written.
    pub(super) fn ends_at(&mut self, partition: i32, next: i64) {
        match self.find(partition) {
            Some(at) => self.partitions[at].1.next = next,
            None => self.partitions.push((
                partition,
                Waiting {
                    next,
                    ..Waiting::default()
                },
            )),
        }
    }

    /// Takes one more record of a partition, as [`ReadBack::push`] does, and the offset behind it; where much of the partition waits,
    /// it is sent on its way.
    pub(super) fn push(
        &mut self,
        partition: i32,
        user: &str,
        state: Option<(u64, &[u8])>,
        next: i64,
    ) -> Result<(), Error> {
        if self.partitions.get(self.last).map(|(number, _)| *number) != Some(partition) {
            self.last = match self.find(partition) {
                Some(at) => at,
                None => self.begin(partition)?,
            };
        }
        self.taken += 1;
        let (_, of) = &mut self.partitions[self.last];
        of.read.push(user, state);
        (of.next, of.last) = (next, self.taken);
        if of.read.bytes() >= PIECE_BYTES {
            // The partition stays: what was begun of it has to end.
            let full = mem::replace(&mut of.read, room(&self.emptied));
            self.send(partition, full, next, true)?;
        }
        Ok(())
    }

    /// Sends what waits of the partition that the last record was of: most likely nothing of it follows, and its index can be written while
    /// others are read, and while the brokers are waited for who say so. If something does, it goes behind that.
    pub(super) fn ends(&mut self) -> Result<(), Error> {
        let Some((partition, of)) = self.partitions.get_mut(self.last) else {
            return Ok(());
        };
        let (partition, next) = (*partition, of.next);
        let read = mem::replace(&mut of.read, room(&self.emptied));
        self.send(partition, read, next, false)
    }

    fn find(&self, partition: i32) -> Option<usize> {
        let mut partitions = self.partitions.iter();
        partitions.position(|(number, _)| *number == partition)
    }

    /// Makes place for a partition of which nothing waits.
    fn begin(&mut self, partition: i32) -> Result<usize, Error> {
        if self.partitions.len() >= PARTITIONS {
            // More than are read at a time, so nothing has to be read any more of the one that rests for longest.
            let all = self.partitions.iter().enumerate();
            if let Some((rests, _)) = all.min_by_key(|(_, (_, of))| of.last) {
                let (rests, of) = self.partitions.swap_remove(rests);
                self.send(rests, of.read, of.next, false)?;
            }
        }
        let waiting = Waiting {
            read: room(&self.emptied),
            ..Waiting::default()
        };
        self.partitions.push((partition, waiting));
        Ok(self.partitions.len() - 1)
    }

    /// Sends all that waits.
    pub(super) fn send_all(mut self) -> Result<(), Error> {
        for (partition, of) in mem::take(&mut self.partitions) {
            self.send(partition, of.read, of.next, false)?;
        }
        Ok(())
    }

    fn send(&mut self, partition: i32, read: ReadBack, next: i64, more: bool) -> Result<(), Error> {
        let piece = Piece {
            partition,
            read,
            applied: Applied {
                offset: next,
                at_ms: self.now_ms,
            },
            more,
        };
        let gone = |_| Error::Thread("nobody writes profiles into the view any more".to_owned());
        let turn = self.writer.len() % WRITERS;
        let writer = *self.writer.entry(partition).or_insert(turn);
        self.writers[writer].send(piece).map_err(gone)
    }
}

/// What the next records are taken into.
fn room(emptied: &Receiver<ReadBack>) -> ReadBack {
    let new = || ReadBack::with_room(PIECE_BYTES + PIECE_BYTES / 16);
    emptied.try_recv().unwrap_or_else(|_| new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_partition_most_likely_ends_with_is_on_its_way_and_what_follows_goes_behind_it() {
        let (mut pending, writers) = Pending::new(7);
        let state = |version| Some((version, &b"tea"[..]));
        pending.push(3, "ann", state(1), 5).unwrap();
        pending.push(4, "eve", state(1), 9).unwrap();
        pending.push(3, "bob", state(1), 6).unwrap();
        pending.ends().unwrap();
        let sent = |writer: usize| {
            let piece = writers[writer].pieces.try_recv().ok()?;
            let (offset, empty) = (piece.applied.offset, piece.read.bytes() == 0);
            Some((piece.partition, offset, piece.more, empty))
        };
        assert_eq!(sent(0), Some((3, 6, false, false)));
        assert_eq!((sent(0), sent(1)), (None, None));
        pending.push(3, "kim", state(1), 8).unwrap();
        pending.ends_at(4, 11);
        pending.send_all().unwrap();
        assert_eq!(sent(0), Some((3, 8, false, false)));
        assert_eq!(sent(1), Some((4, 11, false, false)));
        assert_eq!((sent(0), sent(1)), (None, None));
    }
}
