//! A service that dies right behind a named step of its commit.

use limn::failpoint;

use crate::case::Case;

/// Kills an instance behind the step, once early and once later, and accounts for everything.
fn killed_behind(step: &str) {
    let mut case = Case::new(step);
    assert!(case.topics().status.success());
    case.produce(12, 60, 0);
    for (rounds, times) in [(60, 1), (120, 3)] {
        let armed = format!("{step}:{times}");
        let mut instance = case.start_with("a", &[(failpoint::VARIABLE, &armed)]);
        let status = instance.ended();
        assert_eq!(status.code(), None, "not killed: {}", case.log("a"));
        case.produce(12, 60, rounds);
    }
    case.run_to_the_end("a");
    case.all_folded();
}

#[test]
fn killed_when_the_transaction_has_begun_nothing_is_lost_or_doubled() {
    killed_behind("transaction_begun");
}

#[test]
fn killed_when_the_records_are_sent_nothing_is_lost_or_doubled() {
    killed_behind("records_sent");
}

#[test]
fn killed_when_the_offsets_are_sent_nothing_is_lost_or_doubled() {
    killed_behind("offsets_sent");
}

#[test]
fn killed_between_transaction_and_view_nothing_is_lost_or_doubled() {
    killed_behind("committed");
}

#[test]
fn killed_when_the_view_is_written_nothing_is_lost_or_doubled() {
    killed_behind("applied");
}
