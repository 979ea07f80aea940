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
