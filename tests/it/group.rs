//! `limn run` when its place in the group changes at an awkward moment, or when the brokers are away.

use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use limn::failpoint;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::broker::{self, Broker, DEADLINE, eventually, signal, unique};
use crate::case::{Case, Instance, NEW_PROTOCOL, PARTITIONS, home, stop};
use crate::http::{get, metric};

fn all_restored(case: &Case, folder: &str) {
    case.until_restored(folder, usize::try_from(PARTITIONS).unwrap());
}

/// Ends after SIGTERM within the time, by itself; says with which code.
fn ended_within(instance: &mut Instance, limit: Duration) -> i32 {
    let told = Instant::now();
    signal(&instance.0, "-TERM");
    let status = instance.ended();
    assert!(told.elapsed() < limit, "it took {:?}", told.elapsed());
    status.code().expect("it ended by itself")
}

#[test]
fn a_rebalance_while_the_input_rests_leaves_nothing_waiting_for_ever() {
    let mut case = Case::new("rested");
    assert!(case.topics().status.success());
    case.padding = 8000;
    case.produce(12, 100, 0);
    let slow = [
        ("LIMN_ENGINE__DELAY", "300ms"),
        ("LIMN_LIMITS__WAITING_BYTES", "1MiB"),
    ];
    let first = case.start_with("a", &slow);
    let address = case.address("a");
    eventually("the input to rest", || {
        (metric(&address, "limn_paused")? > 0.0).then_some(())
    });
    let second = case.start_with("b", &slow);
    case.until_restored("b", 1);
    stop(second);
    // Everything but what is in open windows is folded, and what waited for the engine is no longer counted.
    eventually("the first to fold all that can be", || {
        let lag = |p| metric(&address, &format!("limn_consumer_lag{{partition=\"{p}\"}}"));
        let lag: f64 = (0..PARTITIONS).map(lag).sum::<Option<f64>>()?;
        let nothing = [
            "limn_paused",
            "limn_engine_queue",
            "limn_engine_running",
            "limn_windows_waiting_bytes",
        ];
        let none = nothing
            .iter()
            .all(|name| metric(&address, name) == Some(0.0));
        (none && lag <= 12.0 * 8.0).then_some(())
    });
    stop(first);
    case.run_to_the_end("a");
    case.all_folded();
}

/// What an instance says that ends while others have not folded theirs.
const LEFT: &str = "these are other members'";

#[test]
fn until_end_waits_for_the_partitions_of_a_member_that_was_killed_a_moment_before() {
    let mut case = Case::new("left-behind");
    assert!(case.topics().status.success());
    // It gives what is free at once, and what a dead member had when its session is over.
    case.replaced = NEW_PROTOCOL.map(|(old, new)| (old, new.to_owned())).into();
    let first = case.start("a");
    all_restored(&case, "a");
    let second = case.start("b");
    case.until_restored("b", 1);
    // Their windows stay open: nothing is folded.
    case.produce(12, 1, 0);
    drop(first);
    let mut third = case.start_until_end("c");
    stop(second);
    assert!(third.ended().success());
    case.all_folded_but(0);
}

#[test]
fn until_end_waits_until_the_others_have_folded_theirs_to_the_ends_that_no_reader_sees() {
    let mut case = Case::new("others");
    assert!(case.topics().status.success());
    let slow = case.start_with("a", &[("LIMN_ENGINE__DELAY", "5s")]);
    all_restored(&case, "a");
    // Full windows, and behind them what was aborted: the input ends behind the last record that anybody reads.
    case.produce(12, 4, 0);
    for partition in 0..PARTITIONS {
        let holder = held_open(case.broker, &case.input, partition);
        holder.abort_transaction(DEADLINE).unwrap();
    }
    let said = case.run_to_the_end("b");
    assert!(!said.contains(LEFT), "{said}");
    case.all_folded_but(0);
    stop(slow);
}

#[test]
fn until_end_leaves_to_a_member_that_lives_what_is_in_its_windows() {
    let mut case = Case::new("alive");
    let size = "size = \"10s\"";
    case.replaced = vec![(size, format!("{size}\nidle_timeout = \"off\""))];
    assert!(case.topics().status.success());
    let first = case.start("a");
    all_restored(&case, "a");
    case.produce(12, 1, 0);
    let mut second = case.start_until_end("b");
    // Behind the session that a dead one would have had.
    assert!(second.ended().success());
    let log = case.log("b");
    let told = |partition: i32| {
        let line = log.lines().find(|l| l.contains(LEFT));
        let line = line.unwrap_or_else(|| panic!("{log}"));
        let (_, list) = line.split_once("partitions=[").expect(line);
        list.contains(&partition.to_string())
    };
    let committed = case.broker.committed_offsets(&case.input, &case.input);
    for (partition, end) in &case.produced {
        let folded = committed.get(partition) == Some(end);
        assert_ne!(
            folded,
            told(*partition),
            "{partition}: {committed:?}, {log}"
        );
    }
    stop(first);
    case.run_to_the_end("a");
    case.all_folded();
}

#[test]
fn until_end_of_a_member_without_a_partition_ends_when_the_others_have_folded_all() {
    let mut case = Case::new("standby");
    assert!(case.topics().status.success());
    case.replaced = NEW_PROTOCOL.map(|(old, new)| (old, new.to_owned())).into();
    let slow = [("LIMN_ENGINE__DELAY", "8s")];
    let others = ["a", "b", "c"].map(|name| case.start_with(name, &slow));
    for name in ["a", "b", "c"] {
        case.until_restored(name, 1);
    }
    case.produce(12, 4, 0);
    let mut last = case.start_until_end("d");
    assert!(last.ended().success());
    assert_eq!(case.restored("d"), 0);
    assert!(!case.log("d").contains(LEFT), "{}", case.log("d"));
    case.all_folded_but(0);
    others.into_iter().for_each(stop);
}

#[test]
fn latest_killed_with_open_windows_goes_on_where_it_began() {
    let mut case = Case::new("latest");
    assert!(case.topics().status.success());
    let latest = [("LIMN_SOURCE__START", "latest")];
    let instance = case.start_with("a", &latest);
    let address = case.address("a");
    all_restored(&case, "a");
    case.produce(12, 1, 0);
    eventually("all to be read", || {
        (metric(&address, "limn_events_read_total")? >= 12.0).then_some(())
    });
    assert_eq!(case.changes_now(), 0, "nothing is settled");
    drop(instance);
    case.produce(12, 1, 1);
    let output = case
        .limn("run", "a")
        .arg("--until-end")
        .envs(latest)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    case.all_folded();
}

#[test]
fn an_assignment_that_was_lost_is_dropped_and_nothing_of_it_committed() {
    let mut case = Case::new("lost");
    assert!(case.topics().status.success());
    case.produce(12, 60, 0);
    let first = case.start("a");
    eventually("the first to work", || {
        (case.changes_now() > 3).then_some(())
    });
    // Frozen for longer than its session: the group gives its partitions to the second without asking it.
    signal(&first.0, "-STOP");
    let second = case.start("b");
    all_restored(&case, "b");
    signal(&first.0, "-CONT");
    eventually("the first to begin anew", || {
        case.log("a")
            .contains("beginning anew from what is committed")
            .then_some(())
    });
    case.produce(12, 20, 60);
    let before = case.restored("a");
    stop(second);
    eventually("the first to have partitions again", || {
        (case.restored("a") > before).then_some(())
    });
    stop(first);
    case.run_to_the_end("a");
    case.all_folded();
}

#[test]
fn a_second_instance_takes_over_from_one_killed_in_its_transaction_and_folds_nothing_twice() {
    let mut case = Case::new("taken-over");
    assert!(case.topics().status.success());
    case.produce(12, 120, 0);
    // Shorter than the transaction of the dead: its offsets are waited for all the same.
    let impatient = [("LIMN_KAFKA__TIMEOUT", "1s")];
    let second = case.start_with("b", &impatient);
    all_restored(&case, "b");
    // Its transaction is open for longer than its session: the second gets the partitions, and must wait for the offsets.
    let armed = [
        (failpoint::VARIABLE, "offsets_sent:2"),
        ("LIMN_COMMIT__TRANSACTION_TIMEOUT", "12s"),
    ];
    let mut first = case.start_with("a", &armed);
    // What there was the second may have folded alone, before the first came: it gets something to commit.
    let mut rounds = 120;
    let status = eventually("the first to die", || {
        case.produce(12, 2, rounds);
        rounds += 2;
        first.0.try_wait().unwrap()
    });
    assert_eq!(status.code(), None, "not killed: {}", case.log("a"));
    let before = case.restored("b");
    eventually("the second to take over", || {
        (case.restored("b") > before).then_some(())
    });
    case.produce(12, 20, rounds);
    stop(second);
    let log = case.log("b");
    assert!(!log.contains("fetching the offsets of group"), "{log}");
    case.run_to_the_end("b");
    case.all_folded();
}

#[test]
fn the_oldest_age_counts_what_is_not_read_yet() {
    let case = Case::new("unread");
    assert!(case.topics().status.success());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let hour = Duration::from_secs(3600);
    let written = i64::try_from((now - hour).as_millis()).unwrap();
    let producer: BaseProducer = broker::shared().client().create().unwrap();
    let home = home("ann");
    let record = BaseRecord::to(&case.input)
        .partition(home)
        .key("ann")
        .payload(r#"{"user":"ann","time":1000000}"#)
        .timestamp(written);
    producer.send(record).unwrap();
    producer.flush(DEADLINE).unwrap();
    // An open transaction on the profiles keeps the instance from reading: it must wait for what comes of it.
    let holder = held_open(broker::shared(), &case.topic("profiles"), home);
    let instance = case.start("a");
    let address = case.address("a");
    let age = "limn_oldest_unfolded_event_age_seconds";
    eventually("the age of the unread event", || {
        (metric(&address, age)? >= hour.as_secs_f64()).then_some(())
    });
    assert_eq!(metric(&address, "limn_events_read_total"), Some(0.0));
    holder.abort_transaction(DEADLINE).unwrap();
    eventually("the event to be read", || {
        (metric(&address, "limn_events_read_total")? >= 1.0).then_some(())
    });
    stop(instance);
}

#[test]
fn a_service_that_never_reached_its_brokers_ends_at_once_when_told_to() {
    let case = Case::new("nowhere");
    let nowhere = [("LIMN_KAFKA__BROKERS", "127.0.0.1:1")];
    let mut instance = case.start_with("a", &nowhere);
    case.address("a");
    let code = ended_within(&mut instance, Duration::from_secs(10));
    assert_eq!(code, 0);
}

/// A broker of its own with a service's topics, and what the service needs to know of it.
fn apart(case: &Case, broker: &Broker) -> [(&'static str, String); 3] {
    let environment = [
        ("LIMN_KAFKA__BROKERS", broker.servers()),
        ("LIMN_ENGINE__DELAY", "1s".to_owned()),
        ("LIMN_SHUTDOWN__TIMEOUT", "2s".to_owned()),
    ];
    let mut topics = case.limn("topics", "a");
    topics.envs(environment.clone()).stdout(Stdio::null());
    assert!(topics.status().unwrap().success());
    environment
}

fn started(case: &Case, environment: &[(&'static str, String)]) -> Instance {
    let environment: Vec<_> = environment.iter().map(|(n, v)| (*n, v.as_str())).collect();
    case.start_with("a", &environment)
}

/// Who holds a transaction open on a partition.
fn held_open(broker: &Broker, topic: &str, partition: i32) -> BaseProducer {
    let holder = broker.transactional(&unique("holder"));
    holder.begin_transaction().unwrap();
    let record = BaseRecord::to(topic).partition(partition).key("x");
    holder.send(record.payload("x")).unwrap();
    holder.flush(DEADLINE).unwrap();
    holder
}

/// Two seconds for the updates and five for the transaction; the rest is the machine's.
const LIMIT: Duration = Duration::from_secs(14);

#[test]
fn a_commit_that_the_brokers_do_not_answer_is_left_within_the_time_limit() {
    let broker = Broker::start();
    let case = Case::on(&broker, "away");
    let environment = apart(&case, &broker);
    let mut instance = started(&case, &environment);
    let address = case.address("a");
    all_restored(&case, "a");
    let home = home("ann");
    let event = ("ann", r#"{"user":"ann","time":1000000}"#);
    broker.produce_all(&case.input, home, &[event; 4]);
    eventually("an update to be under way", || {
        (metric(&address, "limn_engine_running")? > 0.0).then_some(())
    });
    // What it makes is to be committed, and cannot be.
    broker.kill9();
    ended_within(&mut instance, LIMIT);
}

#[test]
fn a_restore_that_the_brokers_do_not_answer_is_left_within_the_time_limit() {
    let broker = Broker::start();
    let case = Case::on(&broker, "away");
    let environment = apart(&case, &broker);
    let _holder = held_open(&broker, &case.topic("profiles"), 0);
    let mut instance = started(&case, &environment);
    let address = case.address("a");
    eventually("the restore to wait for the transaction", || {
        let (_, why) = get(&address, "/readyz")?;
        why.contains("reading profiles back").then_some(())
    });
    broker.kill9();
    ended_within(&mut instance, LIMIT);
}

#[test]
fn a_restore_says_which_transaction_it_waits_for_and_works_once_it_is_over() {
    waits_for_a_transaction_on("checkpoints");
}

#[test]
fn a_start_says_which_transaction_stands_open_on_the_changes_and_can_be_told_to_begin() {
    waits_for_a_transaction_on("changes");
}

#[test]
fn a_start_says_which_transaction_stands_open_on_the_dead_letters_and_can_be_told_to_begin() {
    waits_for_a_transaction_on("dead");
}

fn waits_for_a_transaction_on(kind: &str) {
    let case = Case::new(&format!("held-{kind}"));
    let broker = broker::shared();
    assert!(case.topics().status.success());
    let topic = case.topic(kind);
    let holder = held_open(broker, &topic, 1);
    let instance = case.start_with("a", &[("LIMN_STORE__RESTORE_TIMEOUT", "20s")]);
    // A word while it waits, and the error when it has waited for long enough.
    for line in [
        format!("hangs topic=\"{topic}\" partition=1 stable=0 end=1"),
        format!("waiting for open transactions on {topic}[1]: still open at offset 0 of 1"),
    ] {
        eventually(&line, || case.log("a").contains(&line).then_some(()));
    }
    if kind != "checkpoints" {
        // Who knows how it ended can begin over it.
        drop(instance);
        let _instance = case.start_with("a", &[("LIMN_COMMIT__OPEN_TRANSACTIONS", "pass")]);
        all_restored(&case, "a");
        return;
    }
    holder.abort_transaction(DEADLINE).unwrap();
    all_restored(&case, "a");
}
