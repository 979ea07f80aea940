//! Topics that somebody meddles with: limn must stop and say what to do.

use limn::verify::Kind;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::load::Events;
use super::run::Run;
use crate::case::PARTITIONS;

/// It stops by itself, with an error that has these words.
fn stops(run: &mut Run<'_>, words: &[&str]) {
    let code = run.ended("a");
    let said = run.case.log("a");
    assert_eq!(code, Some(1), "{said}");
    let last = said.lines().last().unwrap_or_default();
    for word in words {
        assert!(last.contains(word), "{word} in: {last}");
    }
}

/// The change events are gone with their topic, and the dead letters with theirs; with a new one it goes on. Of the events that come
/// behind that none may be missing.
pub fn deleted(run: &mut Run<'_>) {
    run.load(Events::default());
    let mut kinds = ["changes", "dead"];
    run.rng.shuffle(&mut kinds);
    for kind in kinds {
        run.start("a");
        run.works();
        let topic = run.case.topic(kind);
        run.broker().delete_topics(&[&topic]);
        stops(run, &[&topic, "limn topics"]);
        run.topics();
    }
    run.told_from = run.broker().ends(&run.case.input);
    run.start("a");
    run.works();
    // Nothing tells of what was folded, or given up, before, and versions begin in the middle.
    run.allowed = vec![
        Kind::VersionGap,
        Kind::CommittedAboveUnfolded,
        Kind::Profile,
    ];
}

/// What is under way goes on, where it always went; the next start refuses.
pub fn grown(run: &mut Run<'_>) {
    run.load(Events::default());
    run.start("a");
    run.works();
    let profiles = run.case.topic("profiles");
    run.broker().grow(&profiles, 4);
    run.works();
    run.stop("a");
    run.start("a");
    stops(run, &[&profiles, "4 partitions"]);
    run.stopped = true;
}

/// Unread records are gone: that is said, and never passed over. Told to, it goes on behind them.
pub fn removed(run: &mut Run<'_>) {
    run.load(Events::default());
    run.start("a");
    run.works();
    run.signal("a", "-STOP");
    let input = run.case.input.clone();
    let before = run.broker().end(&input);
    crate::broker::eventually("more events", || {
        (run.broker().end(&input) > before + 300).then_some(())
    });
    let ends = run.broker().ends(&input);
    for (partition, end) in &ends {
        run.broker().delete_records(&input, *partition, *end);
        run.removed += end.unsigned_abs();
    }
    run.signal("a", "-CONT");
    stops(run, &[&input, "were removed before they were folded"]);
    run.start("a");
    stops(run, &[&input, "--reset-offsets"]);
    // As kafka-consumer-groups.sh --reset-offsets does.
    let client: BaseConsumer = run
        .broker()
        .client()
        .set("group.id", &input)
        .create()
        .unwrap();
    let mut to = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        to.add_partition_offset(&input, partition, Offset::Offset(ends[&partition]))
            .unwrap();
    }
    crate::broker::eventually("the group to have no member", || {
        client.commit(&to, CommitMode::Sync).ok()
    });
    run.start("a");
    run.works();
}
