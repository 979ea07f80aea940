//! Partitions gained, restored, and given up.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;

use super::super::partition::{Partition, bytes};
use super::super::restore::{Restored, restore};
use super::super::{Error, Phase};
use super::Flow;
use crate::source::Assigned;

impl Flow<'_> {
    pub(super) fn assigned(&mut self, assigned: Vec<Assigned>) {
        if assigned.is_empty() {
            // More instances than partitions: this one stands by, and is well.
            if self.partitions.is_empty() && self.restores.is_empty() {
                self.parts.status.send_modify(|s| s.phase = Phase::Running);
            }
            return;
        }
        self.epoch += 1;
        let epoch = self.epoch;
        let (config, store) = (self.config.clone(), Arc::clone(&self.parts.store));
        let (cancelled, now) = (Arc::clone(&self.cancelled), self.parts.clock.now_ms());
        self.restores
            .spawn_blocking(move || (epoch, restore(&config, &store, &assigned, now, &cancelled)));
        self.parts
            .status
            .send_modify(|s| s.phase = Phase::Restoring);
    }

    pub(super) fn restored(&mut self, epoch: u64, restored: Vec<Restored>) {
        let mut ready = Vec::with_capacity(restored.len());
        for restored in restored {
            let partition = Partition::new(Arc::clone(&self.window), &restored, epoch);
            tracing::info!(
                partition = restored.partition,
                start = restored.start,
                "partition restored"
            );
            ready.push((restored.partition, restored.start));
            self.partitions.insert(restored.partition, partition);
        }
        self.source.ready(ready);
        self.owned();
        if self.drain_until.is_none() {
            self.parts.status.send_modify(|s| s.phase = Phase::Running);
        }
    }

    /// What is folded is committed, the rest dropped, and only then the partitions are let go: nothing is committed for
    /// them afterwards. The next owner reads what was dropped again, behind the offsets committed here.
    pub(super) async fn revoked(
        &mut self,
        partitions: Vec<i32>,
        lost: bool,
        done: SyncSender<()>,
    ) -> Result<(), Error> {
        if lost {
            return Err(Error::Lost(partitions));
        }
        tracing::info!(?partitions, "partitions revoked");
        // A restore writes to the view: it must have ended before another one of the same partition begins. One that
        // was for other partitions too is begun anew by what fails then.
        if !self.restores.is_empty() {
            self.give_up_restores().await;
            if partitions.iter().any(|p| !self.partitions.contains_key(p))
                && !self.partitions.is_empty()
            {
                return Err(Error::Thread(
                    "a restore was cut off by a rebalance".to_owned(),
                ));
            }
        }
        while self.sink.busy() || !self.pending.is_empty() {
            if !self.sink.busy() {
                self.commit()?;
            }
            let committed = self.sink.committed().await?;
            self.committed(committed);
        }
        for number in partitions {
            let Some(partition) = self.partitions.remove(&number) else {
                continue;
            };
            for queue in partition.users.into_values() {
                if let Some(running) = queue.running {
                    running.abort();
                }
                self.waiting_bytes -= queue
                    .waiting
                    .iter()
                    .map(|w| bytes(&w.events))
                    .sum::<usize>();
            }
            self.ready.retain(|(_, p, _)| *p != number);
            self.uncommitted.retain(|(p, _), _| *p != number);
        }
        self.owned();
        // The group waits for nobody who is gone.
        let _ = done.send(());
        Ok(())
    }

    /// Tells which partitions are at work here.
    fn owned(&self) {
        let mut owned: Vec<i32> = self.partitions.keys().copied().collect();
        owned.sort_unstable();
        self.ends.of(owned.clone());
        self.parts
            .status
            .send_modify(|s| s.partitions = owned.into());
    }

    pub(super) async fn give_up_restores(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        while self.restores.join_next().await.is_some() {}
        self.cancelled = Arc::default();
    }
}
