//! Partitions gained, restored, and given up.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;

use super::super::partition::Partition;
use super::super::restore::{Restored, restore};
use super::super::{Error, Phase};
use super::{Flow, turning};
use crate::source::Assigned;

impl Flow<'_> {
    pub(super) fn assigned(&mut self, assigned: Vec<Assigned>) {
        self.joined = true;
        self.others.wait_anew();
        if assigned.is_empty() {
            // More instances than partitions: this one stands by, and is well.
            let at_work = !self.partitions.is_empty() || !self.restores.is_empty();
            if !at_work && self.drain_until.is_none() {
                self.parts.status.send_modify(|s| s.phase = Phase::Running);
            }
            return;
        }
        let partitions: Vec<i32> = assigned.iter().map(|a| a.partition).collect();
        tracing::info!(?partitions, "partitions assigned");
        self.restoring.extend_from_slice(&assigned);
        self.gained
            .extend(assigned.iter().map(|a| (a.partition, a.start)));
        self.owned();
        self.epoch += 1;
        let epoch = self.epoch;
        let (config, store) = (self.config.clone(), Arc::clone(&self.parts.store));
        let (cancelled, now) = (Arc::clone(&self.cancelled), self.parts.clock.now_ms());
        self.restores
            .spawn_blocking(move || (epoch, restore(&config, &store, &assigned, now, &cancelled)));
        if self.drain_until.is_none() {
            self.parts
                .status
                .send_modify(|s| s.phase = Phase::Restoring);
        }
    }

    pub(super) fn restored(&mut self, epoch: u64, restored: Vec<Restored>) {
        let mut ready = Vec::with_capacity(restored.len());
        for restored in restored {
            let mut partition = Partition::new(Arc::clone(&self.window), &restored, epoch);
            partition.bound = self.config.stop_at_end.then_some(restored.end);
            tracing::info!(
                partition = restored.partition,
                start = restored.start,
                "partition restored"
            );
            self.restoring.retain(|a| a.partition != restored.partition);
            if restored.committed {
                ready.push((restored.partition, restored.start));
            } else {
                self.pending.begin(restored.partition, restored.start);
            }
            self.gained.remove(&restored.partition);
            self.partitions.insert(restored.partition, partition);
        }
        self.source.ready(ready);
        self.owned();
        self.pause_or_resume();
        if self.drain_until.is_none() && self.restores.is_empty() {
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
        // A restore writes to the view: it must have ended before another one of the same partition begins. It may have been
        // for partitions that stay here, too: those are restored anew below.
        let mut cut_off = Vec::new();
        if !self.restores.is_empty() {
            self.give_up_restores().await;
            cut_off = std::mem::take(&mut self.restoring);
            cut_off.retain(|a| !partitions.contains(&a.partition));
        }
        while self.sink.busy() || !self.pending.is_empty() {
            if !self.sink.busy() {
                self.commit()?;
            }
            // A transaction that hangs ends by its time-outs.
            let committed = turning(&self.parts.status, self.sink.committed()).await?;
            self.committed(committed);
        }
        self.forget_held(&partitions);
        for number in partitions {
            self.gained.remove(&number);
            let Some(partition) = self.partitions.remove(&number) else {
                continue;
            };
            for queue in partition.users.into_values() {
                self.waiting_bytes -= queue.waiting.bytes();
                if let Some(running) = queue.running {
                    self.waiting_bytes -= running.bytes;
                    running.task.abort();
                }
            }
            self.ready.retain(|(_, p, _)| *p != number);
            self.uncommitted.retain(|(p, _), _| *p != number);
        }
        self.owned();
        // With nothing left, the rebalance may be of an older kind, in which all is given up before it is given out anew.
        self.joined = !self.partitions.is_empty();
        self.others.wait_anew();
        // What waited here may have been what the input rested for.
        self.pause_or_resume();
        if !cut_off.is_empty() {
            // A cooperative rebalance leaves them assigned, and held until they are restored: nobody would tell of them again.
            self.assigned(cut_off);
        } else if self.drain_until.is_none() {
            self.parts.status.send_modify(|s| {
                s.phase = match s.phase {
                    Phase::Restoring if s.partitions.is_empty() => Phase::Starting,
                    Phase::Restoring => Phase::Running,
                    other => other,
                }
            });
        }
        // The group waits for nobody who is gone.
        let _ = done.send(());
        Ok(())
    }

    /// Tells which partitions are at work here.
    fn owned(&self) {
        let mut owned: Vec<i32> = self.partitions.keys().copied().collect();
        owned.sort_unstable();
        let restoring = self.gained.keys().copied();
        self.ends
            .of(owned.iter().copied().chain(restoring).collect());
        self.parts
            .status
            .send_modify(|s| s.partitions = owned.into());
    }

    pub(super) async fn give_up_restores(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        while turning(&self.parts.status, self.restores.join_next())
            .await
            .is_some()
        {}
        self.cancelled = Arc::default();
    }
}
