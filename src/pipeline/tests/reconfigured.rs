//! A start under another configuration than the one before it.

use super::*;

/// Some updates are made, and most events are not folded yet.
fn begun() -> (World, Vec<(String, i64)>) {
    let mut world = World::new();
    let all = events(7, 11);
    world.produce(&borrowed(&all[..60]));
    let config = Config {
        max_updates: Some(5),
        ..world.config()
    };
    world.run(&config, Arc::new(Scripted::new(2))).unwrap();
    (world, all)
}

fn refused(world: &World, config: &Config) -> String {
    let error = world
        .run(config, Arc::new(Scripted::new(2)))
        .expect_err("it starts");
    assert!(matches!(error, Error::Foreign { .. }), "{error}");
    error.to_string()
}

#[test]
fn what_was_accepted_and_not_folded_is_folded_once_in_windows_of_another_kind() {
    let session = Kind::Session {
        gap: Duration::from_secs(4),
        max_duration: Duration::from_secs(12),
    };
    let tumbling = |seconds| Kind::Tumbling {
        size: Duration::from_secs(seconds),
    };
    for (kind, max_events, out_of_orderness) in [
        (session, 4, 5),
        (tumbling(1), 4, 0),
        (tumbling(60), 50, 30),
        (tumbling(10), 1, 5),
    ] {
        let (mut world, all) = begun();
        world.produce(&borrowed(&all[60..]));
        let mut config = world.config();
        config.window.kind = kind;
        config.window.max_events = max_events;
        config.window.out_of_orderness = Duration::from_secs(out_of_orderness);
        // What was on time stays so, and what is new is not late either: each partition's events come in order.
        config.window.allowed_lateness = Duration::from_secs(0);
        let status = world.run(&config, Arc::new(Scripted::new(2))).unwrap();
        assert!(status.skipped > 0, "nothing was read again");
        world.all_folded();
    }
}

#[test]
fn another_input_group_or_output_topic_is_refused_by_the_checkpoint_and_the_old_ones_go_on() {
    let (mut world, all) = begun();
    world.cluster.create_topic("other", PARTITIONS, 1).unwrap();
    let mut other = |change: fn(&mut Config)| {
        let mut config = world.config();
        change(&mut config);
        // As on a machine that has nothing of it yet: what is refused does not hang on the folder.
        world.folder = tempfile::tempdir().unwrap();
        refused(&world, &config)
    };
    let said = other(|c| c.topics.profiles = "other".into());
    assert!(
        said.contains("checkpoints[") && said.contains(r#"topics.profiles = "profiles""#),
        "{said}"
    );
    assert!(said.contains(r#"now that is "other""#), "{said}");
    let said = other(|c| c.topics.changes = "other".into());
    assert!(said.contains(r#"topics.changes = "changes""#), "{said}");
    let said = other(|c| c.topics.dead_letters = "other".into());
    assert!(said.contains(r#"topics.dead_letters = "dead""#), "{said}");
    let said = other(|c| {
        c.source.topic = "other".into();
        c.commit.input_topic = "other".into();
    });
    assert!(
        said.contains("belongs to the input in and the group g"),
        "{said}"
    );
    let said = other(|c| c.source.group = "h".into());
    assert!(
        said.contains("this is the input in and the group h"),
        "{said}"
    );
    assert!(world.read("other").is_empty());
    world.produce(&borrowed(&all[60..]));
    let config = world.config();
    world.run(&config, Arc::new(Scripted::new(2))).unwrap();
    world.all_folded();
}

/// Records between two events that are given up: so many that the second is not read when the update of the first begins.
const BETWEEN: usize = 300;

/// Four events of a user: the first and, far behind it, the second are not folded, as their windows are open; the last two are, because
/// their window, the earliest, was full. Also the configuration of the next start, under which each event is a full window.
fn later_ones_are_folded() -> (World, Config, i32) {
    let mut world = World::new();
    world.produce(&[("ann", 1_021_000)]);
    let home = faults::produce(&world, "ann", &["{"; BETWEEN]);
    world.produce(&[("ann", 1_011_000), ("ann", 1_000_000), ("ann", 1_000_000)]);
    let mut config = world.config();
    config.window.out_of_orderness = Duration::from_secs(60);
    config.source.batch = 10;
    let mut first = config.clone();
    first.window.max_events = 2;
    first.max_updates = Some(1);
    let status = world.run(&first, Arc::new(Scripted::new(1))).unwrap();
    assert_eq!((status.updates_committed, status.events_committed), (1, 2));
    assert_eq!(folded_runs(&world), [(302, 304)]);
    config.window.max_events = 1;
    (world, config, home)
}

fn folded_runs(world: &World) -> Vec<(i64, i64)> {
    let folded = world.verify().folded;
    folded.values().flat_map(|f| f.runs()).collect()
}

/// Folds the first event and stops, with the last checkpoint of the partition in this topic.
fn folds_the_first(world: &World, config: &Config, home: i32) {
    let once = Config {
        max_updates: Some(1),
        ..config.clone()
    };
    let status = world.run(&once, Arc::new(Scripted::new(1))).unwrap();
    assert_eq!((status.updates_committed, status.events_committed), (1, 1));
    assert!(status.events_read < 300, "all was read: it shows nothing");
    assert_eq!(folded_runs(world), [(0, 1), (302, 304)]);
    let mut checkpoints = world.read(&config.topics.checkpoints);
    checkpoints.retain(|c| c.partition == home);
    let last = checkpoints.pop().unwrap().value.unwrap();
    assert_eq!(codec::decode_checkpoint(&last).unwrap().folded_below, 304);
}

#[test]
fn a_window_that_is_full_behind_a_restart_does_not_pass_over_what_is_not_read_again_yet() {
    let (world, config, home) = later_ones_are_folded();
    folds_the_first(&world, &config, home);
    world.run(&config, Arc::new(Scripted::new(1))).unwrap();
    assert_eq!(folded_runs(&world), [(0, 1), (301, 304)]);
}

#[test]
fn where_a_checkpoint_is_lost_the_profiles_are_asked_what_is_folded() {
    let (mut world, mut config, home) = later_ones_are_folded();
    world.cluster.create_topic("others", PARTITIONS, 1).unwrap();
    // The in-process broker keeps no offset of a transaction: it is as if Kafka had forgotten the group's.
    config.topics.checkpoints = "others".into();
    world.folder = tempfile::tempdir().unwrap();
    config.source.start = Start::Latest;
    let said = refused(&world, &config);
    assert!(said.contains(r#"set it to "earliest""#), "{said}");
    config.source.start = Start::Earliest;
    folds_the_first(&world, &config, home);
    world.run(&config, Arc::new(Scripted::new(1))).unwrap();
    assert_eq!(folded_runs(&world), [(0, 1), (301, 304)]);
}
