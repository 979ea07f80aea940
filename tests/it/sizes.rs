//! Records as large as topics allow, and larger: no one of them stops the stream.

use limn::codec;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::broker::DEADLINE;
use crate::case::{Case, PARTITIONS, home};

/// What a topic takes unless it is told otherwise: a batch of so many bytes.
const USUAL: usize = 1_048_588;

/// A record of user0 that no decoder takes, as large as the topic allows to a few bytes.
fn produce_huge(case: &mut Case, bytes: usize) -> (i32, i64, Vec<u8>) {
    let home = home("user0");
    // Nothing that compresses.
    let mut state = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    })
    .take(bytes)
    .collect();
    let producer: BaseProducer = case
        .broker
        .client()
        .set("message.max.bytes", "20000000")
        .create()
        .unwrap();
    let record = BaseRecord::to(&case.input)
        .partition(home)
        .key("user0")
        .payload(&noise);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(DEADLINE).unwrap();
    let end = case.produced.entry(home).or_default();
    *end += 1;
    (home, *end - 1, noise)
}

#[test]
fn a_dead_letter_as_large_as_the_input_allows_keeps_every_byte_in_the_topic_that_limn_creates() {
    let mut case = Case::new("large");
    assert!(case.topics().status.success());
    case.produce(5, 6, 0);
    let (_, offset, noise) = produce_huge(&mut case, USUAL - 100);
    case.produce(5, 6, 6);
    case.run_to_the_end("a");
    let dead = case.read("dead");
    assert_eq!(dead.len(), 1);
    assert!(dead[0].value.as_deref() == Some(&noise), "not as it was");
    assert_eq!(dead[0].headers["limn-offset"], offset.to_string());
    assert!(!dead[0].headers.contains_key("limn-truncated"));
    case.all_folded_but(1);
}

#[test]
fn a_dead_letter_that_its_topic_does_not_take_is_cut_to_fit_and_the_stream_goes_on() {
    for (name, takes) in [("tight", USUAL), ("small", 300_000)] {
        let mut case = Case::new(name);
        let takes_text = takes.to_string();
        let properties = [("max.message.bytes", takes_text.as_str())];
        case.broker
            .create_topic(&case.topic("dead"), PARTITIONS, &properties);
        let said = case.topics();
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.status.success(), "{said:?}");
        assert!(
            text.contains("note") && text.contains(&format!("max.message.bytes={takes}")),
            "{text}"
        );
        case.produce(5, 6, 0);
        let one = produce_huge(&mut case, USUAL - 100);
        let two = produce_huge(&mut case, USUAL - 100_000);
        case.produce(5, 6, 6);
        case.run_to_the_end("a");
        let dead = case.read("dead");
        assert_eq!(dead.len(), 2);
        for (letter, (partition, offset, noise)) in dead.iter().zip([&one, &two]) {
            assert_eq!(letter.partition, *partition);
            assert_eq!(letter.headers["limn-offset"], offset.to_string());
            let kept = letter.value.as_deref().unwrap();
            assert!(noise.starts_with(kept));
            if kept.len() == noise.len() {
                assert!(!letter.headers.contains_key("limn-truncated"));
                continue;
            }
            assert_eq!(letter.headers["limn-truncated"], noise.len().to_string());
            assert!(kept.len() > takes / 3, "{}", kept.len());
        }
        let whole = dead
            .iter()
            .filter(|d| !d.headers.contains_key("limn-truncated"));
        assert_eq!(whole.count(), usize::from(takes == USUAL));
        case.all_folded_but(2);
    }
}

#[test]
fn an_update_whose_records_do_not_fit_is_refused_and_the_old_profile_stays() {
    let mut case = Case::new("narrow");
    // The scripted summaries grow with the events: the first versions fit, and later ones do not.
    case.broker.create_topic(
        &case.topic("profiles"),
        PARTITIONS,
        &[("cleanup.policy", "compact"), ("max.message.bytes", "250")],
    );
    assert!(case.topics().status.success());
    case.produce(4, 40, 0);
    case.run_to_the_end("a");
    let dead = case.read("dead");
    assert!(!dead.is_empty());
    assert!(!case.read("profiles").is_empty(), "nothing fits at all");
    for letter in &dead {
        assert_eq!(letter.headers["limn-reason"], "refused");
        let detail = &letter.headers["limn-detail"];
        assert!(detail.contains(&case.topic("profiles")), "{detail}");
    }
    case.all_folded_but(dead.len() as u64);
}

/// While a window stays open, what is folded of its user behind its first event is listed in each state: by runs that do not meet where
/// another user's events stand between. The window closes early, as soon as much is listed, or as much waits that will be.
#[test]
fn a_fold_marker_stays_small_while_a_window_of_its_user_stays_open() {
    const PAIRS: usize = 3000;
    const MOST: usize = 1024;
    // All of it waits at once, or little of it at a time.
    for (waiting, padding) in [("64MiB", 0), ("1MiB", 1000)] {
        let mut case = Case::new("marker");
        case.replaced = vec![
            (
                "out_of_orderness = \"5s\"",
                "out_of_orderness = \"1h\"".into(),
            ),
            ("delay = \"50ms\"", String::new()),
            (
                "[summary]",
                format!("[limits]\nwaiting_bytes = \"{waiting}\"\n[summary]"),
            ),
        ];
        let made = case.topics();
        assert!(made.status.success(), "{made:?}");
        let users = (0..).map(|n| format!("user{n}"));
        let users: Vec<String> = users.filter(|u| home(u) == 0).take(2).collect();
        let padding = "x".repeat(padding);
        let value = |user: &str, time| {
            format!(r#"{{"user":"{user}","time":{time},"padding":"{padding}"}}"#)
        };
        let mut records = vec![(&*users[0], value(&users[0], 2_000_000))];
        for _ in 0..PAIRS {
            records.extend(users.iter().map(|user| (&**user, value(user, 1_000_000))));
        }
        let records: Vec<(&str, &str)> = records.iter().map(|(k, v)| (*k, &**v)).collect();
        case.broker.produce_all(&case.input, 0, &records);
        case.produced.insert(0, 2 * PAIRS as i64 + 1);
        case.run_to_the_end("a");
        case.all_folded_but(0);
        let states = case.read("profiles").into_iter().map(|record| {
            let state = codec::decode_state(&record.value.unwrap()).unwrap();
            state.marker.unwrap().folded.len()
        });
        let listed = states.max().unwrap();
        assert!(
            (MOST / 2..2 * MOST + 100).contains(&listed),
            "{waiting}: {listed} runs"
        );
    }
}
