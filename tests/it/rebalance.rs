//! Cooperative rebalances, which take some partitions and leave the others, in the middle of a restore.

use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::broker::{DEADLINE, eventually, unique};
use crate::case::{Case, Instance, PARTITIONS, stop};
use crate::http::{get, metric, until_ready};

/// An open transaction on every profiles partition: as long as it is open, no restore comes to its end.
struct Held(BaseProducer);

impl Held {
    fn on(case: &Case) -> Self {
        let producer = case.broker.transactional(&unique("held"));
        producer.begin_transaction().unwrap();
        let topic = case.topic("profiles");
        for partition in 0..PARTITIONS {
            let record = BaseRecord::to(&topic)
                .partition(partition)
                .key("nobody")
                .payload("nothing");
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(DEADLINE).unwrap();
        Self(producer)
    }

    fn let_go(self) {
        self.0.abort_transaction(DEADLINE).unwrap();
    }
}

/// The configuration's lines for cooperative rebalances.
fn cooperative() -> Vec<(&'static str, String)> {
    let line = "\"max.poll.interval.ms\" = 6000";
    let sticky = "\"partition.assignment.strategy\" = \"cooperative-sticky\"";
    vec![(line, format!("{line}\n{sticky}"))]
}

fn revocations(case: &Case, folder: &str) -> usize {
    case.log(folder).matches("partitions revoked").count()
}

fn waits_to_be_read_back(address: &str) {
    eventually("a restore that is held", || {
        let (_, text) = get(address, "/readyz")?;
        text.contains("reading profiles back").then_some(())
    });
}

fn become_ready(addresses: &[&str]) {
    for address in addresses {
        until_ready(address);
        assert_eq!(metric(address, "limn_restarts_total"), Some(0.0));
    }
}

/// Each partition has an owner that folds what comes: an instance may call itself ready and hold one.
fn all_at_work(case: &mut Case, from: i64) {
    let offsets = |case: &Case| case.broker.committed_offsets(&case.input, &case.input);
    let before = offsets(case);
    case.produce(20, 20, from);
    eventually("all partitions to be at work", || {
        let now = offsets(case);
        (0..PARTITIONS)
            .all(|p| now.get(&p) > before.get(&p))
            .then_some(())
    });
}

#[test]
fn what_a_cooperative_rebalance_leaves_here_in_the_middle_of_a_restore_is_restored() {
    let mut case = Case::new("cooperative");
    case.replaced = cooperative();
    assert!(case.topics().status.success());
    case.produce(20, 20, 0);

    // The first restores all partitions and owns none yet when the second takes one.
    let held = Held::on(&case);
    let first: Instance = case.start("a");
    let a = case.address("a");
    waits_to_be_read_back(&a);
    let second = case.start("b");
    let b = case.address("b");
    eventually("the first to give a partition up", || {
        (revocations(&case, "a") == 1).then_some(())
    });
    held.let_go();
    become_ready(&[&a, &b]);
    all_at_work(&mut case, 20);

    // The first owns two and restores the third, which the second left behind, when another takes one of them.
    let held = Held::on(&case);
    drop(second);
    waits_to_be_read_back(&a);
    let third = case.start("c");
    let c = case.address("c");
    eventually("the first to give another partition up", || {
        (revocations(&case, "a") == 2).then_some(())
    });
    held.let_go();
    become_ready(&[&a, &c]);

    all_at_work(&mut case, 40);
    stop(first);
    stop(third);
    case.run_to_the_end("a");
    case.all_folded();
}

/// When an instance said something, in seconds of its clock, and what stands behind that.
fn said<'a>(log: &'a str, what: &str) -> Vec<(f64, &'a str)> {
    let lines = log.lines().filter_map(|line| {
        let (before, behind) = line.split_once(what)?;
        let (_, time) = before.split_whitespace().next()?.split_once('T')?;
        let parts: Vec<f64> = (time.trim_end_matches('Z').split(':'))
            .map(|part| part.parse().unwrap())
            .collect();
        Some((parts[0] * 3600.0 + parts[1] * 60.0 + parts[2], behind))
    });
    lines.collect()
}

/// The partitions of an instance's last assignment, each of which was open to its reader within two seconds.
fn opened_in_time(log: &str) -> Vec<i32> {
    let assigned = said(log, "partitions assigned partitions=");
    let &(at, partitions) = assigned.last().expect("an assignment");
    let partitions = partitions.trim_matches(['[', ']']).split(", ");
    let partitions: Vec<i32> = partitions.map(|p| p.parse().unwrap()).collect();
    for partition in &partitions {
        let restored = said(log, &format!("partition restored partition={partition} "));
        let took = restored.last().expect("it is restored").0 - at;
        // Midnight is the only way back.
        assert!(
            (0.0..2.0).contains(&took.rem_euclid(86_400.0)),
            "{partition}: {took}"
        );
    }
    partitions
}

/// An instance that has just got partitions reads events within two seconds of that, whatever the model is at.
fn flows_again(case: &mut Case) {
    // Each answer takes far longer than that: who waits for the model comes too late.
    let slow = [("LIMN_ENGINE__DELAY", "30s")];
    assert!(case.topics().status.success());
    // The partitions are not new: something of each is committed.
    case.produce(20, 20, 0);
    case.run_to_the_end("a");
    case.produce(20, 20, 20);
    let first = case.start_with("a", &slow);
    let a = case.address("a");
    eventually("updates under way", || {
        (metric(&a, "limn_engine_running")? >= 10.0).then_some(())
    });
    let second = case.start_with("b", &slow);
    let b = case.address("b");
    eventually("an assignment", || {
        case.log("b").contains("partitions assigned").then_some(())
    });
    let assigned = Instant::now();
    eventually("events to be read", || {
        (metric(&b, "limn_events_read_total")? > 0.0).then_some(())
    });
    let flowing = assigned.elapsed();
    assert!(flowing < Duration::from_secs(2), "{flowing:?}");
    eprintln!("{flowing:?} from the assignment to the first events");
    // And so does every other partition that has changed hands, or has come back to the instance that had it.
    let open = |folder: &str| {
        let log = case.log(folder);
        let count = |what: &str| said(&log, what).len();
        let assigned = said(&log, "partitions assigned partitions=");
        let gained = assigned.iter().map(|(_, p)| p.split(", ").count());
        (gained.sum::<usize>() == count("partition restored")).then_some(log)
    };
    let logs = ["a", "b"].map(|folder| eventually("all partitions to be open", || open(folder)));
    let [kept, gained] = logs.each_ref().map(|log| opened_in_time(log));
    assert!(
        !gained.is_empty() && kept.len() + gained.len() >= 3,
        "{kept:?} {gained:?}"
    );
    drop(first);
    drop(second);
    case.run_to_the_end("a");
    case.all_folded();
}

#[test]
fn partitions_flow_again_within_two_seconds_of_their_assignment_with_work_in_flight() {
    flows_again(&mut Case::new("flows"));
}

#[test]
fn partitions_flow_again_within_two_seconds_of_a_cooperative_assignment_with_work_in_flight() {
    let mut case = Case::new("flows-cooperative");
    case.replaced = cooperative();
    flows_again(&mut case);
}
