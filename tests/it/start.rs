//! How a service starts and is stopped while it cannot work yet.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::broker::{Broker, eventually};
use crate::case::{Case, stop};
use crate::http::{get, until_ready};

#[test]
fn a_broker_that_is_away_at_the_start_is_told_at_once_and_waited_for() {
    let broker = Broker::start();
    let mut case = Case::on(&broker, "away");
    assert!(case.topics().status.success());
    case.produce(6, 12, 0);
    broker.kill9();
    let began = Instant::now();
    let instance = case.start("a");
    let address = case.address("a");
    let said = eventually("the reason", || {
        let (status, text) = get(&address, "/readyz")?;
        assert_eq!(status, 503, "{text}");
        text.contains("waiting for the brokers").then_some(text)
    });
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(said.contains("Connection refused"), "{said}");
    let log = case.log("a");
    assert!(log.contains("Kafka does not answer; still trying"), "{log}");
    broker.restart();
    until_ready(&address);
    stop(instance);
    case.run_to_the_end("a");
    case.all_folded();
}

#[test]
fn a_service_that_waits_for_its_broker_stops_when_it_is_told_to() {
    let broker = Broker::absent();
    let case = Case::nowhere(&broker, "gone");
    let instance = case.start("a");
    eventually("the warning", || {
        case.log("a").contains("still trying").then_some(())
    });
    let began = Instant::now();
    stop(instance);
    assert!(began.elapsed() < Duration::from_secs(8));
}

#[test]
fn a_second_instance_on_a_folder_is_refused_and_the_first_goes_on() {
    let mut case = Case::new("folder");
    assert!(case.topics().status.success());
    case.produce(6, 12, 0);
    let instance = case.start("a");
    until_ready(&case.address("a"));
    let (code, said) = case.ended("a");
    assert_eq!(code, Some(1), "{said}");
    let last = said.lines().last().unwrap_or_default();
    let folder = case.folder("a");
    for word in ["in use", &folder.to_string_lossy(), "store.folder"] {
        assert!(last.contains(word), "{word} in: {last}");
    }
    let before = case.changes_now();
    case.produce(6, 12, 12);
    eventually("the first instance to go on", || {
        (case.changes_now() > before).then_some(())
    });
    stop(instance);
    case.run_to_the_end("a");
    case.all_folded();
}

#[test]
fn an_input_topic_that_is_missing_is_named() {
    let case = Case::new("misspelled");
    assert!(case.topics().status.success());
    case.broker.delete_topics(&[&case.input]);
    let (code, said) = case.ended("a");
    assert_eq!(code, Some(1), "{said}");
    let last = said.lines().last().unwrap_or_default();
    let named = format!("topic {} does not exist", case.input);
    assert!(last.contains(&named), "{last}");
}

#[cfg(unix)]
#[test]
fn sigterm_while_the_model_is_loaded_ends_the_process_cleanly() {
    let broker = Broker::absent();
    let mut case = Case::nowhere(&broker, "loading");
    // Opening it waits for a writer, which never comes: a model that takes for ever.
    let model = case.dir.path().join("model.gguf");
    let made = Command::new("mkfifo").arg(&model).status().unwrap();
    assert!(made.success());
    case.replaced = vec![
        ("kind = \"scripted\"", format!("model = {model:?}")),
        ("delay = \"50ms\"", String::new()),
    ];
    let instance = case.start("a");
    let address = case.address("a");
    assert_eq!(get(&address, "/healthz").unwrap().0, 200);
    assert_eq!(get(&address, "/readyz").unwrap().0, 503);
    stop(instance);
    let log = case.log("a");
    assert!(log.contains("ended before the model was loaded"), "{log}");
}
