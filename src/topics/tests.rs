use super::*;

fn config() -> Config {
    Config {
        input: "in".into(),
        changes: "c".into(),
        profiles: "p".into(),
        checkpoints: "k".into(),
        dead_letters: "d".into(),
        replication_factor: None,
        changes_retention: Duration::from_secs(60),
        dead_letters_retention: Duration::from_secs(120),
    }
}

#[test]
fn states_are_compacted_and_what_happened_is_kept_for_a_time() {
    let policy = |w: &Wanted| w.properties[0].1.clone();
    let policies: Vec<_> = config()
        .wanted()
        .iter()
        .map(|w| (w.key, policy(w), w.partitions_as_input))
        .collect();
    assert_eq!(
        policies,
        [
            ("topics.changes", "delete".to_owned(), false),
            ("topics.profiles", "compact".to_owned(), true),
            ("topics.checkpoints", "compact".to_owned(), true),
            ("topics.dead_letters", "delete".to_owned(), true),
        ]
    );
    assert!(
        config().wanted()[3]
            .properties
            .contains(&("retention.ms", "120000".to_owned()))
    );
}

#[test]
fn every_property_of_a_created_topic_is_named_once() {
    for wanted in config().wanted() {
        let mut names: Vec<_> = wanted.properties.iter().map(|(n, _)| n).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), wanted.properties.len());
    }
}

#[test]
fn librdkafka_names_properties_that_it_does_not_know_and_values_that_do_not_do() {
    assert_eq!(property_fault("fetch.min.bytes", "10"), None);
    assert_eq!(
        property_fault("fetch.min.byte", "10"),
        Some(PropertyFault::Unknown)
    );
    assert!(matches!(
        property_fault("fetch.min.bytes", "ten"),
        Some(PropertyFault::Invalid(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_do_not_answer_are_a_finding_and_not_a_panic() {
    let properties = [("bootstrap.servers".to_owned(), "127.0.0.1:1".to_owned())];
    let admin = Admin::new(&properties, Duration::from_millis(300)).unwrap();
    let plan = admin.plan(&config()).await;
    let [finding] = &plan.findings[..] else {
        panic!("{plan:?}")
    };
    assert!(
        finding.to_string().starts_with("kafka.brokers: "),
        "{finding}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_partition_count_is_named_and_what_is_missing_follows_the_input() {
    let cluster = rdkafka::mocking::MockCluster::new(1).unwrap();
    cluster.create_topic("in", 3, 1).unwrap();
    cluster.create_topic("p", 2, 1).unwrap();
    let properties = [("bootstrap.servers".to_owned(), cluster.bootstrap_servers())];
    let admin = Admin::new(&properties, Duration::from_secs(5)).unwrap();
    let plan = admin.plan(&config()).await;
    let wrong = Finding::Partitions {
        name: "p".into(),
        key: "topics.profiles",
        found: 2,
        input: "in".into(),
        wanted: 3,
    };
    assert!(plan.findings.contains(&wrong), "{plan:?}");
    let missing: Vec<_> = plan
        .missing
        .iter()
        .map(|(w, n)| (w.name.as_str(), *n))
        .collect();
    assert_eq!(missing, [("c", 3), ("k", 3), ("d", 3)]);
    assert_eq!(admin.create(&config(), &plan).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_input_is_named() {
    let cluster = rdkafka::mocking::MockCluster::new(1).unwrap();
    cluster.create_topic("other", 1, 1).unwrap();
    let properties = [("bootstrap.servers".to_owned(), cluster.bootstrap_servers())];
    let admin = Admin::new(&properties, Duration::from_secs(5)).unwrap();
    let plan = admin.plan(&config()).await;
    assert_eq!(plan.findings, [Finding::NoInput { name: "in".into() }]);
}
