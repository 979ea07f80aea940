//! Faults of the configuration, of single events and of the state folder.
use super::*;

/// Writes these values to the user's partition of the input.
pub(super) fn produce(world: &World, user: &str, values: &[&str]) -> i32 {
    let home = Partitioner::Murmur2
        .partition(user.as_bytes(), PARTITIONS)
        .unwrap();
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", world.cluster.bootstrap_servers())
        .create()
        .unwrap();
    for value in values {
        let record = BaseRecord::<str, str>::to("in").partition(home);
        producer.send(record.key(user).payload(value)).unwrap();
    }
    producer.flush(Duration::from_secs(20)).unwrap();
    home
}

/// Offset, reason and detail of an event that was given up.
type Dead = (String, String, String);

/// The events that were given up, and the offsets that were folded.
fn fates(world: &World, home: i32) -> (Vec<Dead>, Vec<(i64, i64)>) {
    let of = |d: Seen, name: &str| d.headers[&format!("limn-{name}")].clone();
    let dead = world.read("dead").into_iter().map(|d| {
        let (offset, reason) = (
            d.headers["limn-offset"].clone(),
            d.headers["limn-reason"].clone(),
        );
        (offset, reason, of(d, "detail"))
    });
    let folded = world.verify().folded;
    (dead.collect(), folded[&home].runs().collect())
}

#[test]
fn an_event_that_the_template_fails_on_is_a_dead_letter_and_the_others_are_folded() {
    let world = World::new();
    let event = |price: &str| format!(r#"{{"user":"ann","time":1000000,"price":"{price}"}}"#);
    let values = [event("1"), event("free"), event("3"), event("4")];
    let home = produce(&world, "ann", &values.each_ref().map(String::as_str));
    let mut config = world.config();
    config.summarize.event = "- @{{ partition }}:{{ offset }} {{ attributes.price|int }}".into();
    world.run(&config, Arc::new(Scripted::new(1))).unwrap();
    let (dead, folded) = fates(&world, home);
    assert_eq!(dead.len(), 1, "{dead:?}");
    let (offset, reason, detail) = &dead[0];
    assert_eq!((offset.as_str(), reason.as_str()), ("1", "template"));
    assert!(
        detail.contains("summary.event") && !detail.contains("free"),
        "{detail}"
    );
    assert_eq!(folded, [(0, 1), (2, 4)]);
}

#[test]
fn an_event_that_the_message_fails_on_is_a_dead_letter_and_the_others_are_folded() {
    let world = World::new();
    let home = produce(&world, "ann", &[r#"{"user":"ann","time":1000000}"#; 4]);
    let mut config = world.config();
    config.summarize.message = format!(
        "{{{{ profile }}}}\n{{{{ events }}}}{{% if '@{home}:2' in events %}}{{{{ 'x'|int }}}}{{% endif %}}"
    );
    world.run(&config, Arc::new(Scripted::new(1))).unwrap();
    let (dead, folded) = fates(&world, home);
    let told: Vec<_> = dead
        .iter()
        .map(|(o, r, _)| (o.as_str(), r.as_str()))
        .collect();
    assert_eq!(told, [("2", "template")]);
    assert_eq!(folded, [(0, 2), (3, 4)]);
}

#[test]
fn a_budget_that_no_update_fits_is_told_at_the_start_and_gives_no_event_up() {
    let mut world = World::new();
    world.produce(&[("ann", 1_000_000)]);
    let mut config = world.config();
    config.summarize.prompt_tokens = 500;
    let error = world.run(&config, Arc::new(Scripted::new(1))).unwrap_err();
    let said = error.to_string();
    // Instructions, a profile of 1000 words, and the words of one short event.
    for wanted in [
        "summary.prompt_tokens is 500",
        "1005",
        "summary.max_tokens (1000)",
    ] {
        assert!(said.contains(wanted), "{said}");
    }
    assert!(world.read("dead").is_empty());
    config.summarize.prompt_tokens = 1005;
    world.run(&config, Arc::new(Scripted::new(1))).unwrap();
    world.all_folded();
}

#[test]
fn every_version_of_one_transaction_is_in_the_history() {
    let mut world = World::new();
    world.produce(&[("ann", 1_000_000); 20]);
    let mut config = world.config();
    config.commit_interval = Duration::from_secs(60);
    config.summarize.max_events = 4;
    let status = world.run(&config, Arc::new(Scripted::new(1))).unwrap();
    // Behind the one that commits where the partitions begin.
    assert_eq!((status.updates_committed, status.commits), (5, 2));
    let home = Partitioner::Murmur2.partition(b"ann", PARTITIONS).unwrap();
    let kept = world.store().view.versions(home, "ann").unwrap();
    let versions: Vec<u64> = kept
        .iter()
        .map(|bytes| codec::decode_state(bytes).unwrap().version)
        .collect();
    assert_eq!(versions, [2, 3, 4, 5]);
    assert_eq!(
        world.read("profiles").len(),
        1,
        "the topic has the last one"
    );
}

#[test]
fn a_transaction_that_is_aborted_while_it_stops_ends_it_as_asked_and_loses_nothing() {
    let mut world = World::new();
    world.produce(&[("ann", 1_000_000); 8]);
    let (stop, stopped) = watch::channel(false);
    // Told to stop, and then there is an answer that no topic takes.
    let engine = Scripted::with(1, move |_, _| {
        stop.send_replace(true);
        Script::Text("x".repeat(20_000), Finish::Stop)
    });
    let mut config = Config {
        stop_at_end: false,
        ..world.config()
    };
    let small = ("message.max.bytes".to_owned(), "10000".to_owned());
    config.commit.properties.push(small);
    let status = world.run_until(stopped, &config, Arc::new(engine)).unwrap();
    assert_eq!(status.updates_committed, 0);
    assert!(world.read("changes").is_empty());
    // Without the journal, which has that answer.
    world.folder = tempfile::tempdir().unwrap();
    world
        .run(&world.config(), Arc::new(Scripted::new(1)))
        .unwrap();
    world.all_folded();
}

#[test]
fn a_fault_inside_that_is_met_while_it_stops_is_told() {
    let mut world = World::new();
    world.produce(&[("ann", 1_000_000); 8]);
    let (stop, stopped) = watch::channel(false);
    let engine = Scripted::with(1, move |_, _| {
        stop.send_replace(true);
        Script::Panic
    });
    let config = Config {
        stop_at_end: false,
        ..world.config()
    };
    let error = world.run_until(stopped, &config, Arc::new(engine));
    assert!(matches!(error, Err(Error::Thread(_))), "{error:?}");
    world
        .run(&world.config(), Arc::new(Scripted::new(1)))
        .unwrap();
    world.all_folded();
}

#[test]
fn a_fault_of_the_folder_that_somebody_else_meets_heals_too() {
    let mut world = World::new();
    let all = events(5, 8);
    world.produce(&borrowed(&all));
    let store = world.store();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (status, mut shown) = watch::channel(Status::default());
    let (stop, stopped) = watch::channel(false);
    let config = Config {
        stop_at_end: false,
        ..world.config()
    };
    let parts = Parts {
        engine: Arc::new(Scripted::new(2)),
        store: Arc::clone(&store),
        clock: Arc::new(SystemClock),
        status,
        changes: None,
    };
    runtime.block_on(async {
        let running = tokio::spawn(async move { run(&config, &parts, stopped).await });
        let bounded = Duration::from_secs(60);
        let wait = async {
            shown.wait_for(|s| s.updates_committed > 2).await.unwrap();
            store.break_for_tests();
            // With nothing more to read, and nobody but the watcher to notice.
            shown.wait_for(|s| s.fault.is_some()).await.unwrap();
            shown.wait_for(|s| s.phase == Phase::Running).await.unwrap();
        };
        tokio::time::timeout(bounded, wait)
            .await
            .expect("it does not heal");
        store.check().unwrap();
        stop.send_replace(true);
        running.await.unwrap().unwrap();
    });
    drop(store);
    world
        .run(&world.config(), Arc::new(Scripted::new(2)))
        .unwrap();
    world.all_folded();
}
