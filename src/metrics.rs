//! Every metric's name, kind, labels and meaning, and their exposition in Prometheus' text format. Nothing else in the
//! crate spells a metric's name; the table in the README is this one, and a test holds the two together.
//!
//! Counters begin at zero with each process, and every label value that is known beforehand is there from the start, so
//! that `rate()` sees the first event too. Counts are of what this process did: an event that is read again after a
//! restart is counted again.

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

/// What kind of number it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Observations in buckets, with their sum and count.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name, with the unit and, for a counter, `_total` at the end.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its label, and the values that are known beforehand.
    pub label: Option<(&'static str, &'static [&'static str])>,
    /// What it tells.
    pub help: &'static str,
}

macro_rules! catalogue {
    ($($constant:ident = $name:literal, $kind:ident, $label:expr, $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*
        /// All of them.
        pub const ALL: &[Metric] = &[
            $(Metric { name: $name, kind: Kind::$kind, label: $label, help: $help },)*
        ];
    };
}

const PARTITION: Option<(&str, &[&str])> = Some(("partition", &[]));

catalogue! {
    EVENTS_READ = "limn_events_read_total", Counter, None,
        "Records read from the input.";
    EVENTS = "limn_events_total", Counter,
        Some(("outcome", &["accepted", "late", "repeated", "dead_lettered"])),
        "Events by what became of them when read: accepted on time or late, read again though decided before, or given up.";
    EVENTS_FOLDED = "limn_events_folded_total", Counter, None,
        "Events folded into committed profile versions.";
    DEAD_LETTERS = "limn_dead_letters_total", Counter,
        Some(("reason", &["malformed", "null_value", "no_user", "user_too_long", "no_time", "text_too_long", "too_late",
            "future", "wrong_partition", "template", "over_budget", "refused"])),
        "Events given up, by the reason that their dead letter carries.";
    WINDOWS_CLOSED = "limn_windows_closed_total", Counter,
        Some(("reason", &["event_time", "events", "tokens", "age", "memory", "end_of_input", "order",
            "checkpoint"])),
        "Windows closed, by what closed them.";
    WINDOWS_OPEN = "limn_windows_open", Gauge, None,
        "Open windows.";
    WINDOWS_OPEN_BYTES = "limn_windows_open_bytes", Gauge, None,
        "Memory that open windows hold.";
    WINDOWS_WAITING_BYTES = "limn_windows_waiting_bytes", Gauge, None,
        "Memory that closed windows hold which wait for the engine or are with it.";
    UPDATES = "limn_updates_total", Counter,
        Some(("outcome", &["model", "journal", "given_up"])),
        "Updates by outcome: committed from the model's answer, committed from the journal, or given up.";
    REFUSALS = "limn_refusals_total", Counter,
        Some(("reason", &["empty", "cut_off", "too_long", "loop", "unfinished_reasoning", "rejected_by_engine"])),
        "Answers that the gate refused.";
    ENGINE_QUEUE = "limn_engine_queue", Gauge, None,
        "Users that wait for the engine.";
    ENGINE_RUNNING = "limn_engine_running", Gauge, None,
        "Updates that the engine is at.";
    ENGINE_STEPS = "limn_engine_steps_total", Counter, None,
        "Forward passes of a model in this process, each over rows of many updates.";
    ENGINE_ROWS = "limn_engine_rows_total", Counter, Some(("phase", &["prefill", "decode", "draft"])),
        "Rows that these computed: tokens of prompts, single tokens of answers, and proposed tokens.";
    ENGINE_DRAFTS_ACCEPTED = "limn_engine_drafts_accepted_total", Counter, None,
        "Proposed tokens that the model would have chosen itself.";
    ENGINE_PREFIX_TOKENS = "limn_engine_prefix_tokens_total", Counter, None,
        "Tokens of prompts whose keys and values were found in the cache.";
    ENGINE_PREEMPTIONS = "limn_engine_preemptions_total", Counter, None,
        "Updates that had to leave the cache to others and were computed again.";
    ENGINE_STEP_SECONDS = "limn_engine_step_seconds", Histogram,
        Some(("part", &["matrix", "attention", "other", "schedule", "sample"])),
        "Time of a step by what it was spent on: products, attention and the rest of the forward pass, what is planned before it, and the choice of tokens behind it.";
    ENGINE_BATCH = "limn_engine_batch", Gauge, None,
        "Updates that the model works on at once.";
    ENGINE_CACHE_BLOCKS = "limn_engine_cache_blocks", Gauge,
        Some(("state", &["used", "cached", "free"])),
        "Blocks of 32 positions of the cache of keys and values: held by updates, free but still known, and free.";
    TOKENS = "limn_tokens_total", Counter, Some(("kind", &["prompt", "output"])),
        "Tokens read and written by the model; answers from the journal are not counted.";
    MODEL_SECONDS = "limn_model_seconds", Histogram, None,
        "Time of one model call.";
    COMMITS = "limn_commits_total", Counter, None,
        "Kafka transactions committed.";
    COMMIT_SECONDS = "limn_commit_seconds", Histogram, None,
        "Time of one Kafka transaction, attempts that were aborted included.";
    TRANSACTION_FAILURES = "limn_transaction_failures_total", Counter,
        Some(("kind", &["aborted", "fenced", "in_doubt", "unsendable"])),
        "Kafka transactions that failed: aborted and tried again, fenced by a new owner, with an unknown outcome, or with a record that cannot be sent.";
    RESTARTS = "limn_restarts_total", Counter, None,
        "Times that the pipeline began anew from what was committed, after a fault.";
    WATERMARK_TIMESTAMP_SECONDS = "limn_watermark_timestamp_seconds", Gauge, PARTITION,
        "Event time up to which the input partition is believed complete, in seconds since the Unix epoch.";
    CONSUMER_LAG = "limn_consumer_lag", Gauge, PARTITION,
        "Records of the input partition that are not behind the committed offset.";
    OLDEST_UNFOLDED_EVENT_AGE_SECONDS = "limn_oldest_unfolded_event_age_seconds", Gauge, None,
        "Age, by Kafka's timestamp, of the oldest event of this instance's partitions that is neither folded nor given up, read or not; 0 when there is none.";
    RESTORE_RECORDS = "limn_restore_records_total", Counter, None,
        "Records read back from the profiles and checkpoints topics.";
    RESTORE_REMAINING_RECORDS = "limn_restore_remaining_records", Gauge, PARTITION,
        "Offsets between what is read back of the profiles partition and its end; 0 when it is restored.";
    PAUSED = "limn_paused", Gauge, None,
        "1 while the input rests because the engine is behind, or a checkpoint is full.";
    READY = "limn_ready", Gauge, None,
        "1 while the instance's partitions are restored and at work.";
    BUILD_INFO = "limn_build_info", Gauge, Some(("version", &[env!("CARGO_PKG_VERSION")])),
        "1, with the version as label.";
}

/// A gauge that is not set for so long is gone: a partition that was given up has no watermark any more. They are set
/// every second.
const GAUGE_IDLE: Duration = Duration::from_secs(30);
/// Seconds of a model call: from a scripted answer to a large model on a slow machine.
const MODEL_BUCKETS: &[f64] = &[
    0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 180.0,
];
/// Seconds of a part of a step: a few rows of a small model, to a full step of a large one.
const STEP_BUCKETS: &[f64] = &[
    0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0,
];
/// Seconds of a transaction, up to its time limit.
const COMMIT_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub struct Error(#[from] metrics_exporter_prometheus::BuildError);

/// What the process counted, to be rendered for Prometheus.
#[derive(Clone)]
pub struct Exposition(PrometheusHandle);

impl Exposition {
    /// Installs the recorder for the whole process.
    ///
    /// # Errors
    /// [`Error`] where there is a recorder already.
    pub fn install() -> Result<Self, Error> {
        let handle = builder()?.install_recorder()?;
        begin();
        Ok(Self(handle))
    }

    /// All metrics in Prometheus' text format, version 0.0.4; `ready`: whether the partitions are restored and at work.
    #[must_use]
    pub fn render(&self, ready: bool) -> String {
        metrics::gauge!(READY).set(f64::from(u8::from(ready)));
        metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        self.0.render()
    }

    /// Folds observations into their buckets. To be called every few seconds: between two renderings they pile up.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

fn builder() -> Result<PrometheusBuilder, Error> {
    let full = |name: &str| Matcher::Full(name.to_owned());
    Ok(PrometheusBuilder::new()
        .idle_timeout(MetricKindMask::GAUGE, Some(GAUGE_IDLE))
        .set_buckets_for_metric(full(MODEL_SECONDS), MODEL_BUCKETS)?
        .set_buckets_for_metric(full(ENGINE_STEP_SECONDS), STEP_BUCKETS)?
        .set_buckets_for_metric(full(COMMIT_SECONDS), COMMIT_BUCKETS)?)
}

/// Describes every metric, and sets to zero what is counted from now on.
fn begin() {
    for metric in ALL {
        match metric.kind {
            Kind::Counter => {
                metrics::describe_counter!(metric.name, metric.help);
                match metric.label {
                    None => metrics::counter!(metric.name).absolute(0),
                    Some((label, values)) => {
                        for &value in values {
                            metrics::counter!(metric.name, label => value).absolute(0);
                        }
                    }
                }
            }
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Reason;
    use crate::summarize::Refusal;
    use crate::window::CloseReason;

    fn values(name: &str) -> Vec<&'static str> {
        let metric = ALL.iter().find(|m| m.name == name).unwrap();
        metric.label.unwrap().1.to_vec()
    }

    #[test]
    fn every_name_keeps_prometheus_conventions() {
        for Metric { name, kind, .. } in ALL {
            assert!(name.starts_with("limn_"), "{name}");
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{name}"
            );
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert!(
                *kind != Kind::Histogram || name.ends_with("_seconds"),
                "{name}"
            );
        }
    }

    #[test]
    fn the_table_in_the_readme_is_this_one() {
        let readme = include_str!("../README.md");
        let rows: Vec<&str> = readme
            .lines()
            .filter(|line| line.starts_with("| `limn_"))
            .collect();
        let wanted: Vec<String> = ALL
            .iter()
            .map(|m| {
                let kind = format!("{:?}", m.kind).to_lowercase();
                let label = m
                    .label
                    .map_or(String::new(), |(label, _)| format!("`{label}`"));
                format!("| `{}` | {kind} | {label} | {} |", m.name, m.help)
            })
            .collect();
        assert_eq!(rows, wanted, "the README wants:\n{}", wanted.join("\n"));
    }

    #[test]
    fn every_reason_is_known_beforehand() {
        assert_eq!(values(DEAD_LETTERS), Reason::ALL.map(Reason::name));
        assert_eq!(
            values(WINDOWS_CLOSED),
            CloseReason::ALL.map(CloseReason::name)
        );
        let refusals = [
            Refusal::Empty,
            Refusal::CutOff,
            Refusal::TooLong,
            Refusal::Loop,
            Refusal::UnfinishedReasoning,
            Refusal::Engine(String::new()),
        ];
        assert_eq!(
            values(REFUSALS),
            refusals.iter().map(Refusal::name).collect::<Vec<_>>()
        );
    }

    #[test]
    fn counters_are_there_at_zero_before_anything_happens_and_histograms_have_buckets() {
        let recorder = builder().unwrap().build_recorder();
        let text = metrics::with_local_recorder(&recorder, || {
            begin();
            metrics::histogram!(COMMIT_SECONDS).record(0.02);
            metrics::gauge!(CONSUMER_LAG, "partition" => "3").set(7.0);
            Exposition(recorder.handle()).render(true)
        });
        for line in [
            "# TYPE limn_events_total counter",
            "limn_events_total{outcome=\"late\"} 0",
            "limn_dead_letters_total{reason=\"too_late\"} 0",
            "limn_commits_total 0",
            "limn_commit_seconds_bucket{le=\"0.025\"} 1",
            "limn_commit_seconds_bucket{le=\"0.01\"} 0",
            "limn_commit_seconds_count 1",
            "limn_consumer_lag{partition=\"3\"} 7",
            "limn_ready 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("limn_build_info{version=\""), "{text}");
    }
}
