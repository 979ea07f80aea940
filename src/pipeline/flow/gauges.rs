//! How full, how far and how late everything is, as the status and the metrics show it.

use std::time::Duration;

use tokio::time::Instant;

use super::super::partition::Partition;
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
        let oldest = self
            .partitions
            .values()
            .filter_map(Partition::oldest_unsettled_ms)
            .min();
        let oldest = oldest.map_or(0, |at| now_ms.saturating_sub(at).max(0));
        let oldest = Duration::from_millis(oldest.unsigned_abs());
        let waiting = self.ready.len() + self.updates.len();
        self.parts.status.send_modify(|s| {
            s.windows_open = open as u64;
            s.windows_open_bytes = open_bytes as u64;
            s.waiting = waiting as u64;
            s.oldest_unfolded = oldest;
        });
        if self.shown.is_some_and(|at| at.elapsed() < GAUGES) {
            return;
        }
        self.shown = Some(Instant::now());
        self.set_gauges(open, open_bytes, oldest);
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
        set(metrics::PAUSED, f64::from(u8::from(self.paused)));
        let ends = self.ends.known();
        for (number, partition) in &self.partitions {
            let label = number.to_string();
            if let Some(watermark) = partition.windows.watermark_ms() {
                ::metrics::gauge!(metrics::WATERMARK_TIMESTAMP_SECONDS, "partition" => label.clone())
                    .set(watermark as f64 / 1000.0);
            }
            if let Some(&end) = ends.get(number) {
                let lag = end.max(partition.progress.next_offset()) - partition.committed;
                ::metrics::gauge!(metrics::CONSUMER_LAG, "partition" => label).set(lag as f64);
            }
        }
    }
}
