//! `limn topics` and `limn check` on a real broker: what is created, what is refused, by name and with the exit code.

use std::process::Command;

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;

use crate::broker::{Broker, shared, unique};

/// The topics of one test, and the configuration that names them.
struct Case {
    broker: &'static Broker,
    input: String,
    folder: tempfile::TempDir,
}

/// What a command said, and its exit code.
struct Said {
    text: String,
    code: Option<i32>,
}

impl Case {
    fn new() -> Self {
        let case = Self {
            broker: shared(),
            input: unique("in"),
            folder: tempfile::tempdir().unwrap(),
        };
        let Self { input, .. } = &case;
        let text = format!(
            "kafka.brokers = {:?}\nsource.topic = {input:?}\nengine.kind = \"scripted\"\nstore.folder = {:?}\nhttp.listen = \"127.0.0.1:0\"\n\
             [topics]\nchanges = \"{input}.c\"\nprofiles = \"{input}.p\"\ncheckpoints = \"{input}.k\"\ndead_letters = \"{input}.d\"\n",
            case.broker.servers(),
            case.folder.path().join("state"),
        );
        std::fs::write(case.folder.path().join("limn.toml"), text).unwrap();
        case
    }

    fn limn(&self, arguments: &[&str]) -> Said {
        let output = Command::new(env!("CARGO_BIN_EXE_limn"))
            .args(arguments)
            .arg("--config")
            .arg(self.folder.path().join("limn.toml"))
            .output()
            .unwrap();
        let mut text = String::from_utf8(output.stdout).unwrap();
        text += &String::from_utf8(output.stderr).unwrap();
        Said {
            text,
            code: output.status.code(),
        }
    }

    /// The partitions of an output topic and one of its properties; `None` where it is not there.
    fn found(&self, suffix: &str, property: &str) -> Option<(usize, String)> {
        let name = format!("{}.{suffix}", self.input);
        let admin: AdminClient<DefaultClientContext> = self.broker.client().create().unwrap();
        let metadata = admin
            .inner()
            .fetch_metadata(None, crate::broker::DEADLINE)
            .unwrap();
        let topic = metadata.topics().iter().find(|t| t.name() == name)?;
        let described = tokio::runtime::Runtime::new()
            .unwrap()
            .block_on(
                admin.describe_configs(&[ResourceSpecifier::Topic(&name)], &AdminOptions::new()),
            )
            .unwrap();
        let resource = described.into_iter().next().unwrap().unwrap();
        let value = resource.get(property).and_then(|e| e.value.clone());
        Some((topic.partitions().len(), value.unwrap()))
    }
}

#[test]
fn topics_are_created_as_the_input_and_the_table_want_them_and_a_second_time_nothing_is() {
    let case = Case::new();
    case.broker.create_topic(&case.input, 3, &[]);
    let said = case.limn(&["topics", "--dry-run"]);
    assert_eq!(said.code, Some(0), "{}", said.text);
    assert_eq!(said.text.matches("missing ").count(), 4, "{}", said.text);
    assert_eq!(
        case.found("p", "cleanup.policy"),
        None,
        "a dry run creates nothing"
    );

    let missing = case.limn(&["check"]);
    assert_eq!(missing.code, Some(1), "{}", missing.text);
    assert_eq!(
        missing.text.matches("there is no topic").count(),
        4,
        "{}",
        missing.text
    );

    let said = case.limn(&["topics"]);
    assert_eq!(said.code, Some(0), "{}", said.text);
    for (suffix, property, wanted) in [
        ("c", "cleanup.policy", "delete"),
        ("c", "retention.ms", "604800000"),
        ("p", "cleanup.policy", "compact"),
        ("p", "min.cleanable.dirty.ratio", "0.1"),
        ("k", "cleanup.policy", "compact"),
        ("d", "cleanup.policy", "delete"),
        ("d", "retention.ms", "2592000000"),
        // As much as the input takes, and limn's headers.
        ("d", "max.message.bytes", "1050636"),
    ] {
        assert_eq!(
            case.found(suffix, property),
            Some((3, wanted.to_owned())),
            "{suffix} {property}"
        );
    }

    let again = case.limn(&["topics"]);
    assert_eq!(again.code, Some(0), "{}", again.text);
    assert_eq!(again.text.matches("there ").count(), 4, "{}", again.text);
    let sound = case.limn(&["check"]);
    assert_eq!(sound.code, Some(0), "{}", sound.text);
    assert!(
        !case.folder.path().join("state").exists(),
        "check leaves nothing behind"
    );
}

#[test]
fn a_topic_that_is_there_in_the_wrong_way_is_named_and_nothing_is_created() {
    let case = Case::new();
    case.broker.create_topic(&case.input, 3, &[]);
    case.broker.create_topic(
        &format!("{}.p", case.input),
        2,
        &[("cleanup.policy", "compact")],
    );
    case.broker.create_topic(
        &format!("{}.k", case.input),
        3,
        &[("cleanup.policy", "delete")],
    );
    for command in [&["topics"][..], &["topics", "--dry-run"], &["check"]] {
        let said = case.limn(command);
        assert_eq!(said.code, Some(1), "{}", said.text);
        let partitions = format!("topics.profiles: {}.p has 2 partitions", case.input);
        let cleanup = format!(
            "topics.checkpoints: {}.k has cleanup.policy=delete",
            case.input
        );
        assert!(
            said.text.contains(&partitions) && said.text.contains(&cleanup),
            "{}",
            said.text
        );
    }
    assert_eq!(case.found("c", "cleanup.policy"), None);
}

#[test]
fn without_the_input_nothing_is_created() {
    let case = Case::new();
    let said = case.limn(&["topics"]);
    assert_eq!(said.code, Some(1), "{}", said.text);
    assert!(
        said.text
            .contains(&format!("source.topic: there is no topic {}", case.input)),
        "{}",
        said.text
    );
    assert_eq!(case.found("c", "cleanup.policy"), None);
}

#[test]
fn check_tells_the_brokers_faults_beside_the_configurations_and_the_models() {
    let case = Case::new();
    let path = case.folder.path().join("limn.toml");
    let text = std::fs::read_to_string(&path).unwrap().replace(
        "engine.kind = \"scripted\"",
        "engine.model = \"/none/such.gguf\"",
    );
    std::fs::write(&path, format!("window.max_events = 0\n{text}")).unwrap();
    let said = case.limn(&["check"]);
    assert_eq!(said.code, Some(1), "{}", said.text);
    for wanted in [
        "window.max_events (line 1)",
        "source.topic: there is no topic",
        "engine.model: /none/such.gguf cannot be opened",
    ] {
        assert!(said.text.contains(wanted), "{wanted} in {}", said.text);
    }
}

#[test]
fn check_tells_a_dead_server_a_template_that_always_fails_and_a_prompt_without_room() {
    let case = Case::new();
    let path = case.folder.path().join("limn.toml");
    let sound = std::fs::read_to_string(&path).unwrap();
    let check = |engine: &str| {
        let text = sound.replace("engine.kind = \"scripted\"", engine);
        std::fs::write(&path, text).unwrap();
        let said = case.limn(&["check"]);
        assert_eq!(said.code, Some(1), "{}", said.text);
        said.text
    };
    let said = check(
        "engine.kind = \"openai\"\nengine.model = \"m\"\nengine.base_url = \"http://127.0.0.1:1/v1\"\nsummary.prompt_tokens = 300",
    );
    for wanted in [
        "engine.base_url: http://127.0.0.1:1/v1: the engine is not available: no connection",
        "summary.prompt_tokens is 300, but an update takes",
    ] {
        assert!(said.contains(wanted), "{wanted} in {said}");
    }
    let said = check("engine.kind = \"scripted\"\nsummary.event = \"{{ attributes.a.b.c }}\"");
    assert!(said.contains("summary.event"), "{said}");
}
