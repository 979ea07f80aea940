//! `limn run` as a process, killed and joined and moved.

use std::path::Path;

use limn::failpoint;

use crate::broker::{self, eventually};
use crate::case::{Case, PARTITIONS, home, stop};
use crate::http::{metric, until_ready};

#[test]
fn a_service_killed_at_any_time_folds_every_event_once() {
    let mut case = Case::new("killed");
    assert!(case.topics().status.success());
    case.produce(20, 30, 0);
    for round in 0..4 {
        case.produce(20, 20, 30 + 20 * i64::try_from(round).unwrap());
        let before = case.changes_now();
        let instance = case.start("a");
        eventually("some changes to be committed", || {
            (case.changes_now() > before + 5 + round).then_some(())
        });
        drop(instance);
        if round == 2 {
            std::fs::remove_dir_all(case.folder("a")).unwrap();
        }
    }
    case.run_to_the_end("a");
    case.all_folded();
    // A start with nothing left to do changes nothing.
    let before = case.changes_now();
    case.run_to_the_end("a");
    assert_eq!(case.changes_now(), before);
}

#[test]
fn a_second_instance_that_joins_and_leaves_costs_and_doubles_nothing() {
    let mut case = Case::new("joined");
    assert!(case.topics().status.success());
    case.produce(20, 30, 0);
    let first = case.start("a");
    eventually("the first to work", || {
        (case.changes_now() > 3).then_some(())
    });
    let second = case.start("b");
    eventually("the second to get partitions", || {
        case.log("b").contains("partition restored").then_some(())
    });
    stop(second);
    let before = case.changes_now();
    case.produce(20, 30, 30);
    eventually("the first to go on", || {
        (case.changes_now() > before).then_some(())
    });
    stop(first);
    case.run_to_the_end("a");
    case.all_folded();
}

#[test]
fn a_torn_state_folder_is_built_again() {
    let mut case = Case::new("torn");
    assert!(case.topics().status.success());
    case.produce(10, 12, 0);
    case.run_to_the_end("a");
    for entry in std::fs::read_dir(case.folder("a").join("db")).unwrap() {
        let path: &Path = &entry.unwrap().path();
        if path.is_file() {
            let length = usize::try_from(path.metadata().unwrap().len()).unwrap();
            std::fs::write(path, vec![0xa5; length / 2]).unwrap();
        }
    }
    case.produce(10, 12, 12);
    case.run_to_the_end("a");
    case.all_folded();
}

#[test]
fn a_state_folder_that_is_damaged_in_its_middle_is_built_again_by_the_same_process() {
    let mut case = Case::new("damaged");
    // Longer than sled's buffers, so that pages lie where a start does not look.
    case.padding = 2000;
    assert!(case.topics().status.success());
    case.produce(40, 12, 0);
    case.run_to_the_end("a");
    // A second start: sled has a snapshot from now on, and opens without reading what is before it.
    case.run_to_the_end("a");
    let database = case.folder("a").join("db").join("db");
    let mut healed = 0;
    for seed in 0..4u8 {
        let mut bytes = std::fs::read(&database).unwrap();
        let used = bytes.iter().rposition(|&b| b != 0).unwrap();
        let step = used / 200;
        (usize::from(seed) * 50 + 100..used)
            .step_by(step.max(1))
            .for_each(|at| bytes[at] = bytes[at].wrapping_add(1 + seed));
        std::fs::write(&database, bytes).unwrap();
        case.produce(40, 4, 12 + 4 * i64::from(seed));
        let said = case.run_to_the_end("a");
        assert!(said.contains("torn"), "the damage was not noticed: {said}");
        healed += u8::from(said.contains("begun anew"));
        case.run_to_the_end("a");
        case.all_folded();
    }
    eprintln!("{healed} of 4 while running, the others at the start");
}

#[test]
fn late_future_and_malformed_events_are_dead_letters_and_the_rest_is_folded() {
    let mut case = Case::new("faulty");
    assert!(case.topics().status.success());
    case.produce(5, 20, 0);
    let home = home("user0");
    for value in [
        "{",
        r#"{"time":1}"#,
        r#"{"user":"user0","time":1}"#,
        r#"{"user":"user0","time":99999999999999}"#,
    ] {
        broker::shared().produce(&case.input, home, "user0", value);
    }
    case.run_to_the_end("a");
    let dead = case.read("dead");
    let mut reasons: Vec<&str> = dead
        .iter()
        .map(|d| d.headers["limn-reason"].as_str())
        .collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["future", "malformed", "no_user", "too_late"]);
    assert!(
        dead.iter()
            .all(|d| d.partition == home && d.headers["limn-topic"] == case.input)
    );
    *case.produced.entry(home).or_default() += 4;
    case.all_folded_but(4);
}

#[test]
fn topics_of_another_partition_count_are_refused_by_name() {
    let case = Case::new("count");
    broker::shared().create_topic(
        &case.topic("profiles"),
        PARTITIONS + 1,
        &[("cleanup.policy", "compact")],
    );
    let output = case.topics();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        told.contains(&case.topic("profiles")) && told.contains("4 partitions"),
        "{told}"
    );
}

#[test]
fn an_input_whose_start_has_passed_the_committed_offset_is_an_error_that_names_it() {
    let mut case = Case::new("removed");
    assert!(case.topics().status.success());
    case.produce(9, 8, 0);
    case.run_to_the_end("a");
    let ends = case.produced.clone();
    case.produce(9, 8, 8);
    for (partition, end) in &ends {
        broker::shared().delete_records(&case.input, *partition, end + 2);
    }
    let (code, told) = case.ended("a");
    assert_eq!(code, Some(1), "{told}");
    assert!(
        told.contains(&case.input) && told.contains("were removed before they were folded"),
        "{told}"
    );
}

#[test]
fn a_group_without_offsets_goes_on_at_its_checkpoint_or_says_what_is_missing() {
    let mut case = Case::new("expired");
    assert!(case.topics().status.success());
    case.produce(9, 8, 0);
    case.run_to_the_end("a");
    // As after offsets.retention.minutes without a member.
    broker::shared().forget_group(&case.input);
    case.produce(9, 8, 8);
    case.run_to_the_end("a");
    case.all_folded();
    broker::shared().forget_group(&case.input);
    let ends = case.produced.clone();
    case.produce(9, 8, 16);
    for (partition, end) in ends {
        broker::shared().delete_records(&case.input, partition, end + 2);
    }
    let (code, told) = case.ended("a");
    assert_eq!(code, Some(1), "{told}");
    assert!(
        told.contains(&case.input) && told.contains("2 records were removed before they were"),
        "{told}"
    );
}

#[test]
fn partitions_added_to_the_input_end_the_service_with_an_error_that_names_it() {
    let mut case = Case::new("grown");
    assert!(case.topics().status.success());
    case.produce(6, 12, 0);
    let mut instance = case.start("a");
    eventually("some changes to be committed", || {
        (case.changes_now() > 3).then_some(())
    });
    broker::shared().grow(&case.input, 4);
    let status = instance.ended();
    let told = case.log("a");
    assert_eq!(status.code(), Some(1), "{told}");
    assert!(
        told.contains(&format!("the input {} has 4 partitions now", case.input)),
        "{told}"
    );
    assert!(case.read("dead").is_empty());
}

#[test]
fn a_state_folder_that_was_filled_from_other_topics_is_built_again() {
    let mut case = Case::new("moved");
    assert!(case.topics().status.success());
    case.produce(6, 12, 0);
    case.run_to_the_end("a");
    // Other topics, longer than the ones that the folder knows, and without these users.
    let mut other = Case::new("other");
    assert!(other.topics().status.success());
    other.produce(9, 40, 0);
    other.run_to_the_end("b");
    std::fs::remove_dir_all(other.folder("b")).unwrap();
    std::fs::rename(case.folder("a"), other.folder("b")).unwrap();
    // The name alone is what tells: the cluster is the same.
    other.produce(9, 12, 40);
    let told = other.run_to_the_end("b");
    assert!(told.contains("was filled from other topics"), "{told}");
    other.all_folded();
    let store = limn::store::Store::open(&limn::store::Config {
        folder: other.folder("b"),
        cache_bytes: 8 << 20,
        history: 10,
        journal_entries: 100,
    })
    .unwrap();
    let kept: usize = (0..PARTITIONS).map(|p| store.view.states(p).count()).sum();
    assert_eq!(kept, 9);
}

#[test]
fn a_restore_reads_only_what_the_view_lacks() {
    let mut case = Case::new("lacks");
    assert!(case.topics().status.success());
    case.produce(9, 8, 0);
    case.run_to_the_end("a");
    let profiles = case.read("profiles").len();
    // With an empty folder all of it, with the folder of before nothing.
    for (folder, all) in [("b", true), ("a", false)] {
        let read = records_restored(&case, folder, &[]);
        let as_wanted = if all { read >= profiles } else { read == 0 };
        assert!(as_wanted, "{folder}: {read} of {profiles}");
    }
}

#[test]
fn a_view_of_another_day_is_read_anew_whichever_way_the_clock_was_wrong() {
    let mut case = Case::new("days");
    assert!(case.topics().status.success());
    case.produce(9, 8, 0);
    case.run_to_the_end("a");
    let profiles = case.read("profiles").len();
    let clock = case.dir.path().join("clock");
    let environment = [(failpoint::CLOCK_VARIABLE, clock.to_str().unwrap())];
    let hours = 3_600_000;
    // What was written thirteen hours ago, and what is of a time that is thirteen hours ahead.
    for (wrong, anew) in [(13, true), (13, false), (0, true), (11, false), (0, false)] {
        std::fs::write(&clock, (wrong * hours).to_string()).unwrap();
        let read = records_restored(&case, "a", &environment);
        let as_wanted = if anew { read >= profiles } else { read == 0 };
        assert!(as_wanted, "{wrong} h: {read} of {profiles}");
    }
}

/// How many records an instance reads back when it is started.
fn records_restored(case: &Case<'_>, folder: &str, environment: &[(&str, &str)]) -> usize {
    let instance = case.start_with(folder, environment);
    let address = case.address(folder);
    until_ready(&address);
    let read = metric(&address, "limn_restore_records_total").unwrap_or(0.0);
    stop(instance);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a count
    let read = read as usize;
    read
}
