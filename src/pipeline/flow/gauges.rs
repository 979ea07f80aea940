//! How full, how far and how late everything is, as the status and the metrics show it.

use std::time::Duration;

use tokio::time::Instant;

use super::Flow;
use crate::metrics;

/// How often the gauges are set.
const GAUGES: Duration = Duration::from_secs(1);

impl Flow<'_> {
    /// Shows where everything stands now.
    pub(super) fn show(&mut self, now_ms: i64) {
        let open: usize = self
            .partitions
            .values()
            .map(|p| p.windows.open_windows())
            .sum();
        let open_bytes: usize = self
            .partitions
            .values()
            .map(|p| p.windows.open_bytes())
            .sum();
        // What is read is older than what is not, so only where all of it is settled the next record is asked for.
        let read = self.partitions.iter().filter_map(|(&number, p)| {
            let unread = || self.ends.unread_ms(number, p.progress.next_offset());
            p.oldest_unsettled_ms().or_else(unread)
        });
        let gained = self.gained.iter();
        let unread = gained.filter_map(|(&number, &start)| self.ends.unread_ms(number, start));
        let oldest = read.chain(unread).min();
        let oldest = oldest.map_or(0, |at| now_ms.saturating_sub(at).max(0));
        let oldest = Duration::from_millis(oldest.unsigned_abs());
        let waiting = self.ready.len() + self.updates.len();
        let tally = std::mem::take(&mut self.tally);
        self.parts.status.send_modify(|s| {
            tally.add_to(s);
            s.windows_open = open as u64;
            s.windows_open_bytes = open_bytes as u64;
            s.waiting = waiting as u64;
            s.oldest_unfolded = oldest;
            s.turned = Some(std::time::Instant::now());
        });
        if self.shown.is_some_and(|at| at.elapsed() < GAUGES) {
            return;
        }
        self.shown = Some(Instant::now());
        self.set_gauges(open, open_bytes, oldest);
    }

    /// Tells what was counted since the last time. Each telling wakes whoever waits for news, so it is not done for each event.
    pub(in crate::pipeline) fn publish(&mut self) {
        let tally = std::mem::take(&mut self.tally);
        self.parts.status.send_modify(|s| tally.add_to(s));
    }

    #[allow(clippy::cast_precision_loss)] // gauges are floats
    fn set_gauges(&self, open: usize, open_bytes: usize, oldest: Duration) {
        let set = |name: &'static str, value: f64| ::metrics::gauge!(name).set(value);
        set(metrics::WINDOWS_OPEN, open as f64);
        set(metrics::WINDOWS_OPEN_BYTES, open_bytes as f64);
        set(metrics::WINDOWS_WAITING_BYTES, self.waiting_bytes as f64);
        set(metrics::ENGINE_QUEUE, self.ready.len() as f64);
        set(metrics::ENGINE_RUNNING, self.updates.len() as f64);
        set(
            metrics::OLDEST_UNFOLDED_EVENT_AGE_SECONDS,
            oldest.as_secs_f64(),
        );
        self.parts.engine.show();
        set(metrics::PAUSED, f64::from(u8::from(self.paused)));
        for (number, partition) in &self.partitions {
            let label = number.to_string();
            if let Some(watermark) = partition.windows.watermark_ms() {
                ::metrics::gauge!(metrics::WATERMARK_TIMESTAMP_SECONDS, "partition" => label.clone())
                    .set(watermark as f64 / 1000.0);
            }
            if let Some(end) = self.ends.end(*number) {
                let lag = end.max(partition.progress.next_offset()) - partition.committed;
                ::metrics::gauge!(metrics::CONSUMER_LAG, "partition" => label).set(lag as f64);
            }
        }
    }
}
