//! Topics that somebody meddles with: limn must stop and say what to do.

use limn::verify::Kind;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaRespErr;

use super::load::Events;
use super::run::Run;
use crate::broker::{DEADLINE, eventually};

fn delete(run: &Run<'_>, topic: &str) {
    run.broker().delete_topics(&[topic]);
    let client: BaseConsumer = run.broker().client().create().unwrap();
    // A broker may still take records of a topic that the controller has none of any more.
    eventually("the topic to be gone", || {
        let metadata = client.fetch_metadata(Some(topic), DEADLINE).ok()?;
        let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
        (metadata.topics()[0].error() == Some(unknown)).then_some(())
    });
}

/// A topic is deleted while an instance works, which stops; it is made anew.
fn deleted(run: &mut Run<'_>, kind: &str) {
    let topic = run.case.topic(kind);
    delete(run, &topic);
    run.signal("a", "-CONT");
    run.stops("a", &[&topic, "limn topics"]);
    run.topics();
}

/// The change events are gone with their topic, and the dead letters with theirs; with a new one it goes on, and no event is missing.
pub fn changes_and_dead_letters_deleted(run: &mut Run<'_>) {
    run.load(Events::default());
    let mut kinds = ["changes", "dead"];
    run.rng.shuffle(&mut kinds);
    for kind in kinds {
        run.start("a");
        run.works();
        if kind == "dead" {
            run.freeze_without_open_dead_letters("a");
            run.remember_dead_letters();
        }
        deleted(run, kind);
    }
    run.start("a");
    run.works();
    // Nothing tells of what was folded, or given up, before, and versions begin in the middle.
    run.allowed = vec![
        Kind::VersionGap,
        Kind::CommittedAboveUnfolded,
        Kind::Profile,
    ];
}

/// Who has the last one in its folder goes on, unless it stopped between a transaction and its folder. Who has it not is refused;
/// told to, it goes on too: what is folded is not folded again, and what was given up is decided anew.
pub fn checkpoints_deleted(run: &mut Run<'_>) {
    run.load(Events::default());
    run.remember_dead_letters();
    run.start("a");
    run.works();
    deleted(run, "checkpoints");
    let in_doubt = run.case.log("a").contains("in doubt");
    // Without a checkpoint an event that has a dead letter may get another one, may be folded, and where its user's fold marker is above
    // it the new checkpoints count it as folded.
    run.allowed = vec![
        Kind::Fate,
        Kind::FoldedAndDeadLettered,
        Kind::DeadLetteredTwice,
    ];
    let name = if run.rng.bool() { "a" } else { "fresh" };
    if name == "fresh" {
        // It would not see that the topic was made anew, once that is as long as the former one.
        std::fs::remove_dir_all(run.case.folder("a")).unwrap();
    }
    run.start(name);
    if run.works_everywhere_or_ends(name) {
        assert_eq!(name, "a");
        if !in_doubt {
            run.allowed.clear();
        }
        return;
    }
    let checkpoints = run.case.topic("checkpoints");
    run.stops(name, &["there was one in", &checkpoints]);
    let group = &run.case.input;
    let committed = run.broker().committed_offsets(group, group);
    run.case.commit_by_hand(&committed);
    run.start(name);
    assert!(run.works_everywhere_or_ends(name));
}

/// It stops, and nobody begins without them; change events and dead letters tell of all that was committed.
pub fn profiles_deleted(run: &mut Run<'_>) {
    run.load(Events::default());
    run.start("a");
    run.works();
    deleted(run, "profiles");
    let name = if run.rng.bool() { "a" } else { "fresh" };
    run.start(name);
    let profiles = run.case.topic("profiles");
    run.stops(name, &[&profiles, "deleted and made anew"]);
    run.stopped = true;
    run.allowed = vec![Kind::Profile];
}

/// It stops within seconds, and each start refuses.
pub fn grown(run: &mut Run<'_>) {
    run.load(Events::default());
    run.start("a");
    run.works();
    let kind = ["profiles", "checkpoints", "dead"][run.rng.usize(0..3)];
    let topic = run.case.topic(kind);
    run.broker().grow(&topic, 4);
    run.stops("a", &[&topic, "4 partitions"]);
    run.start("a");
    run.stops("a", &[&topic, "4 partitions"]);
    run.stopped = true;
}

/// The same with fewer of them, where nothing can be written to one; made anew as it was, it goes on.
pub fn shrunk(run: &mut Run<'_>) {
    run.load(Events::default());
    run.start("a");
    run.works();
    run.freeze_without_open_dead_letters("a");
    run.remember_dead_letters();
    let dead = run.case.topic("dead");
    delete(run, &dead);
    run.broker().create_topic(&dead, 2, &[]);
    run.signal("a", "-CONT");
    run.stops("a", &[&dead, "2 partitions"]);
    // A transaction that was under way may have written to the partitions that there are.
    run.remember_dead_letters();
    delete(run, &dead);
    run.topics();
    run.start("a");
    run.works();
    run.allowed = vec![Kind::CommittedAboveUnfolded];
}

/// Unread records are gone: that is said, and never passed over. Told to, it goes on behind them.
pub fn removed(run: &mut Run<'_>) {
    run.load(Events::default());
    run.start("a");
    run.works();
    run.signal("a", "-STOP");
    let input = run.case.input.clone();
    let before = run.broker().end(&input);
    eventually("more events", || {
        (run.broker().end(&input) > before + 300).then_some(())
    });
    let ends = run.broker().ends(&input);
    for (partition, end) in &ends {
        run.broker().delete_records(&input, *partition, *end);
        run.removed += end.unsigned_abs();
    }
    run.signal("a", "-CONT");
    run.stops("a", &[&input, "were removed before they were folded"]);
    run.start("a");
    run.stops("a", &[&input, "--reset-offsets"]);
    run.case.commit_by_hand(&ends);
    run.start("a");
    run.works();
}
