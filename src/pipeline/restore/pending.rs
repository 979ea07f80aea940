//! Profiles that were read back, on their way from the thread that reads them to those that write them into the view.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use super::Error;
use crate::store::{self, Applied, ReadBack, View};

/// Bytes of profiles that wait for more of their partition: few large pieces are looked through faster than many small ones.
/// Five pieces at most are on their way to the view beside them. Little in a debug build, so that the tests and the fault suite
/// see many pieces.
const PENDING_BYTES: usize = if cfg!(debug_assertions) {
    64 << 10
} else {
    32 << 20
};

/// So many partitions at most have something that waits: a few are read at a time, and what is left of the others holds memory that
/// was made for more.
const PARTITIONS: usize = 16;

/// Threads that write: while one waits for the disk, another packs. All of a partition's pieces are written by one, in their order.
const WRITERS: usize = 2;

/// Of a partition so many profiles, and how far it was read with them.
pub(super) struct Piece {
    partition: i32,
    read: ReadBack,
    applied: Applied,
    /// More of the partition follows.
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
        for piece in self.pieces {
            view.restore(piece.partition, &piece.read, piece.applied, piece.more)?;
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
    bytes: usize,
    partitions: BTreeMap<i32, (ReadBack, i64)>,
}

impl Pending {
    /// Nothing yet, and who writes its pieces.
    pub(super) fn new(now_ms: i64) -> (Self, Vec<Writer>) {
        let (empty, emptied) = channel();
        let (writers, running) = (0..WRITERS)
            .map(|_| {
                // One waits while another is written: the reader hardly ever does.
                let (writer, pieces) = sync_channel(1);
                let emptied = empty.clone();
                (writer, Writer { pieces, emptied })
            })
            .unzip();
        let pending = Self {
            writers,
            writer: BTreeMap::new(),
            emptied,
            now_ms,
            bytes: 0,
            partitions: BTreeMap::new(),
        };
        (pending, running)
    }

    /// Where the partition goes on, once all of it is written.
    pub(super) fn ends_at(&mut self, partition: i32, next: i64) {
        self.partitions.entry(partition).or_default().1 = next;
    }

    /// Takes one more record of a partition, as [`ReadBack::push`] does, and the offset behind it; where much waits, some of it
    /// is sent on its way.
    pub(super) fn push(
        &mut self,
        partition: i32,
        user: &str,
        state: Option<(u64, &[u8])>,
        next: i64,
    ) -> Result<(), Error> {
        if self.partitions.len() >= PARTITIONS && !self.partitions.contains_key(&partition) {
            self.send_each()?;
        }
        let room = || (self.emptied.try_recv().unwrap_or_default(), next);
        let (read, goes_on) = self.partitions.entry(partition).or_insert_with(room);
        let before = read.bytes();
        read.push(user, state);
        *goes_on = next;
        self.bytes += read.bytes() - before;
        while self.bytes >= PENDING_BYTES {
            let most = self.partitions.iter().max_by_key(|(_, (r, _))| r.bytes());
            let Some((&partition, _)) = most else { break };
            let (read, next) = self.partitions.remove(&partition).unwrap_or_default();
            self.bytes -= read.bytes();
            self.send(partition, read, next, true)?;
        }
        Ok(())
    }

    /// Sends all that waits.
    pub(super) fn send_all(mut self) -> Result<(), Error> {
        self.send_each()
    }

    fn send_each(&mut self) -> Result<(), Error> {
        self.bytes = 0;
        for (partition, (read, next)) in std::mem::take(&mut self.partitions) {
            self.send(partition, read, next, false)?;
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
