//! Brokers that die, stand still or change their minds.

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::load::Events;
use super::run::Run;
use crate::broker::{DEADLINE, eventually};

/// Fewer events: brokers take long to come back, and what comes meanwhile must be worked off.
fn few() -> Events {
    Events {
        batch: 2,
        ..Events::default()
    }
}

/// One of three, whichever, while a transaction is at some step, and once more while the next instance has one. Not a lone
/// broker: Kafka 4.3 loses the end of a transaction then, whoever made it (docs/reliability.md).
pub fn killed(run: &mut Run<'_>) {
    run.load(few());
    for round in 0..2 {
        let steps = [
            "transaction_begun",
            "records_sent",
            "offsets_sent",
            "committed",
        ];
        let step = steps[run.rng.usize(..steps.len())];
        let release = run.held_at(step);
        let at = run.rng.usize(..run.brokers.len());
        run.brokers[at].kill9();
        std::fs::write(&release, "").unwrap();
        run.works();
        run.brokers[at].restart();
        run.works();
        if round == 0 {
            run.kill("a");
            std::fs::remove_file(&release).unwrap();
        }
    }
}

/// For longer than a session of the group lasts; one of three for longer than its own with a new controller, too, which it may have
/// been itself.
pub fn frozen(run: &mut Run<'_>) {
    run.load(Events::default());
    run.start("a");
    run.works();
    let at = run.rng.usize(..run.brokers.len());
    run.brokers[at].freeze();
    // The fault itself: nothing is waited for.
    let seconds = if run.brokers.len() == 1 { 10 } else { 15 };
    std::thread::sleep(std::time::Duration::from_secs(seconds));
    run.brokers[at].thaw();
    run.works();
}

/// Each broker goes away in turn, and with it the leadership of a third of the partitions; when it is back, it gets that from those
/// who have it and are well.
pub fn leaders(run: &mut Run<'_>) {
    run.load(few());
    run.start("a");
    run.works();
    for broker in run.brokers {
        broker.kill9();
        run.works();
        broker.restart();
        run.works();
        broker.elect_preferred_leaders();
        run.works();
    }
}

/// Which broker a producer or a group has its coordinator on: the leader of the partition of `topic` that Kafka gives the name to.
fn coordinator_of(run: &Run<'_>, topic: &str, id: &str) -> usize {
    let hash = id.bytes().fold(0i32, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(i32::from(byte))
    });
    let client: BaseConsumer = run
        .broker()
        .client()
        .set("group.id", "looks")
        .create()
        .unwrap();
    let metadata = client.fetch_metadata(Some(topic), DEADLINE).unwrap();
    let partitions = metadata.topics()[0].partitions();
    let count = i32::try_from(partitions.len()).unwrap();
    let partition = (hash & i32::MAX) % count;
    let leader = partitions.iter().find(|p| p.id() == partition);
    // Nodes are numbered from 1.
    usize::try_from(leader.unwrap().leader()).unwrap() - 1
}

fn transactional_id(run: &Run<'_>, name: &str) -> String {
    let id = std::fs::read_to_string(run.case.folder(name).join("id")).unwrap();
    format!("{}-{id}", run.case.input)
}

/// That of the transaction, or that of the group.
pub fn coordinator(run: &mut Run<'_>) {
    run.load(few());
    let release = run.held_at("offsets_sent");
    let at = if run.rng.bool() {
        coordinator_of(run, "__transaction_state", &transactional_id(run, "a"))
    } else {
        coordinator_of(run, "__consumer_offsets", &run.case.input)
    };
    run.brokers[at].kill9();
    std::fs::write(&release, "").unwrap();
    run.works();
    run.brokers[at].restart();
    run.works();
}

pub fn timed_out(run: &mut Run<'_>) {
    run.load(Events::default());
    let release = run.held_at("records_sent");
    eventually("a transaction to be open", || {
        run.in_transaction().then_some(())
    });
    eventually("the broker to give it up", || {
        (!run.in_transaction()).then_some(())
    });
    std::fs::write(&release, "").unwrap();
    run.says("a", "beginning anew from what is committed");
    run.works();
}

pub fn fenced(run: &mut Run<'_>) {
    run.load(Events::default());
    run.start("a");
    run.works();
    let other = run.broker().transactional(&transactional_id(run, "a"));
    run.says("a", "beginning anew from what is committed");
    drop(other);
    run.works();
}
