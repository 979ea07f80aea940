//! `limn verify` on a real broker: beside a running service, and on topics that were tampered with.

use serde_json::Value;

use crate::broker::eventually;
use crate::case::{Case, stop};

/// The report, and the exit code.
fn verify(case: &Case, arguments: &[&str]) -> (Value, Option<i32>) {
    let mut limn = case.limn("verify", "a");
    let output = limn.args(arguments).arg("--json").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
    (report, output.status.code())
}

#[test]
fn a_running_service_is_sound_at_any_time_and_drained_in_the_end() {
    let mut case = Case::new("sound");
    assert!(case.topics().status.success());
    let instance = case.start("a");
    let mut last = 0;
    for round in 1..5 {
        case.produce(20, 10, 10 * round);
        eventually("more changes", || (case.changes_now() > last).then_some(()));
        let (report, code) = verify(&case, &[]);
        assert_eq!(code, Some(0), "{report:#}");
        assert_eq!(report["events"], 200 * round);
        last = usize::try_from(report["changes"].as_u64().unwrap()).unwrap();
        assert!(last > 0);
    }
    stop(instance);
    // What was stopped in the middle waits, and that is no fault before the input is said to be worked off.
    case.produce(20, 1, 50);
    let (report, code) = verify(&case, &["--drained"]);
    assert_eq!(code, Some(1));
    let found = &report["findings"]["never_folded"];
    assert_eq!(found["count"], report["waiting"]);
    assert!(report["waiting"].as_u64() >= Some(20), "{report:#}");
    case.run_to_the_end("a");
    let (report, code) = verify(&case, &["--drained"]);
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(report["folded"], 820);
}

#[test]
fn what_was_written_to_the_topics_beside_the_service_is_told_with_its_place() {
    let mut case = Case::new("tampered");
    assert!(case.topics().status.success());
    case.produce(3, 8, 0);
    case.run_to_the_end("a");
    let changes = case.read("changes");
    let twin = changes.last().unwrap();
    let change = limn::codec::decode_change(twin.value.as_deref().unwrap()).unwrap();
    let topic = case.topic("changes");
    let record = (change.user_id.as_str(), twin.value.as_deref().unwrap());
    case.broker.produce_all(&topic, twin.partition, &[record]);
    let (report, code) = verify(&case, &["--drained"]);
    assert_eq!(code, Some(1));
    let findings = report["findings"].as_object().unwrap();
    let kinds: Vec<_> = findings.keys().map(String::as_str).collect();
    assert_eq!(kinds, ["folded_twice", "version_repeated"], "{report:#}");
    let place = findings["version_repeated"]["places"][0].as_str().unwrap();
    assert!(
        place.starts_with(&format!("{topic}[{}]@", twin.partition))
            && place.contains(&change.user_id),
        "{place}"
    );
    // For people: the same on lines of their own.
    let output = case.limn("verify", "a").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("fault        version_repeated: ") && !said.contains("ok "),
        "{said}"
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("faults"));
}
