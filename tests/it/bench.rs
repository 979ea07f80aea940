//! `limn bench stream` as a process.

use std::process::Command;

use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::Value;

use crate::broker::{self, DEADLINE, eventually};

/// The topics of this name, and those that begin with it.
fn topics(name: &str) -> Vec<String> {
    let client: BaseConsumer = broker::shared().client().create().unwrap();
    let metadata = client.fetch_metadata(None, DEADLINE).unwrap();
    let names = metadata.topics().iter().map(|t| t.name().to_owned());
    names.filter(|topic| topic.starts_with(name)).collect()
}

#[test]
fn a_stream_is_measured_as_often_as_told_and_nothing_of_it_is_left() {
    let dir = tempfile::tempdir().unwrap();
    for (runs, restores) in [(1, 1), (2, 4)] {
        // Uneven users, and events further out of order than the windows of the configuration wait for.
        let uneven = (runs == 1).then_some(["--zipf", "1.1", "--disorder", "10s"]);
        let ceiling = (runs == 2).then_some("--ceiling");
        let output = Command::new(env!("CARGO_BIN_EXE_limn"))
            .current_dir(dir.path())
            .args(["bench", "stream", "--events", "2000", "--users", "100"])
            .args(ceiling)
            .args(uneven.into_iter().flatten())
            .args(["--runs", &runs.to_string()])
            .args(["--restores", &restores.to_string(), "--config"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/config/bench.toml"))
            .env("LIMN_KAFKA__BROKERS", broker::shared().servers())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["events"], 2000, "{report}");
        assert_eq!(report["dead_lettered"], 0, "{report}");
        let users = report["users"].as_u64().unwrap();
        assert!(users == 100 || runs == 1 && users < 100, "{report}");
        for figure in [
            "events_per_second",
            "updates_per_second",
            "commit_p50_seconds",
            "commit_p99_seconds",
            "restore_seconds",
            "restore_records_per_second",
            "raw_profiles_records_per_second",
            "restore_to_raw",
            "raw_consume_events_per_second",
            "peak_memory_bytes",
            "bytes_per_open_window",
        ] {
            assert!(report[figure].as_f64() > Some(0.0), "{figure}: {report}");
        }
        let first = report.get("events_per_second_of_first_run");
        assert_eq!(first.is_some(), runs == 2, "{report}");
        assert_eq!(said.matches("folding them").count(), runs, "{said}");
        let back = said.matches("reading the profiles back").count();
        assert_eq!(back, restores, "{said}");
        let ceiling = report.get("ceiling_events_per_second");
        assert_eq!(
            ceiling.map(|c| c.as_f64() > Some(0.0)),
            (runs == 2).then_some(true)
        );
        let (_, name) = said.split_once(" users to ").unwrap();
        let name = name.lines().next().unwrap();
        assert!(name.starts_with("limn-bench-"), "{said}");
        eventually("the bench's topics to be gone", || {
            topics(name).is_empty().then_some(())
        });
        let folder = dir.path().join("limn-bench");
        assert_eq!(folder.read_dir().unwrap().count(), 0, "{said}");
    }
}
