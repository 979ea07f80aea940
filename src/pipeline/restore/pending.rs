//! Profiles that were read back, on their way from the thread that reads them to the one that writes them into the view.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::Error;
use crate::store::{self, Applied, Change, View};

/// Bytes of profiles that wait for more of their partition: few large pieces are looked through faster than many small ones.
/// As much again is on its way to the view. Little in a debug build, so that the tests and the fault suite see many pieces.
const PENDING_BYTES: usize = if cfg!(debug_assertions) {
    64 << 10
} else {
    32 << 20
};

/// Of a partition so many profiles, and how far it was read with them.
pub(super) struct Piece {
    partition: i32,
    changes: Vec<Change>,
    applied: Applied,
    /// More of the partition follows.
    more: bool,
}

/// Writes pieces until the last one's sender is gone.
pub(super) fn write(view: &View, pieces: &Receiver<Piece>) -> Result<(), store::Error> {
    for piece in pieces {
        view.restore(piece.partition, piece.changes, piece.applied, piece.more)?;
    }
    Ok(())
}

/// What was read and is not on its way yet.
pub(super) struct Pending {
    pieces: SyncSender<Piece>,
    now_ms: i64,
    bytes: usize,
    partitions: BTreeMap<i32, Read>,
}

/// The same of a partition, and the offset that it goes on from.
#[derive(Default)]
struct Read {
    changes: Vec<Change>,
    bytes: usize,
    next: i64,
}

impl Pending {
    /// Nothing yet, and where its pieces come out.
    pub(super) fn new(now_ms: i64) -> (Self, Receiver<Piece>) {
        let (pieces, out) = sync_channel(0);
        let pending = Self {
            pieces,
            now_ms,
            bytes: 0,
            partitions: BTreeMap::new(),
        };
        (pending, out)
    }

    /// Where the partition goes on, once all of it is written.
    pub(super) fn ends_at(&mut self, partition: i32, next: i64) {
        self.partitions.entry(partition).or_default().next = next;
    }

    /// Takes one more change and the offset behind it; where much waits, some of it is sent on its way.
    pub(super) fn push(&mut self, change: Change, next: i64) -> Result<(), Error> {
        let bytes = change.bytes();
        self.bytes += bytes;
        let read = self.partitions.entry(change.partition).or_default();
        read.bytes += bytes;
        read.next = next;
        read.changes.push(change);
        while self.bytes >= PENDING_BYTES {
            let most = self.partitions.iter().max_by_key(|(_, read)| read.bytes);
            let Some((&partition, _)) = most else { break };
            let read = self.partitions.remove(&partition).unwrap_or_default();
            self.bytes -= read.bytes;
            self.send(partition, read, true)?;
        }
        Ok(())
    }

    /// Sends all that waits.
    pub(super) fn send_all(mut self) -> Result<(), Error> {
        for (partition, read) in std::mem::take(&mut self.partitions) {
            self.send(partition, read, false)?;
        }
        Ok(())
    }

    fn send(&self, partition: i32, read: Read, more: bool) -> Result<(), Error> {
        let piece = Piece {
            partition,
            changes: read.changes,
            applied: Applied {
                offset: read.next,
                at_ms: self.now_ms,
            },
            more,
        };
        let gone = |_| Error::Thread("nobody writes profiles into the view any more".to_owned());
        self.pieces.send(piece).map_err(gone)
    }
}
