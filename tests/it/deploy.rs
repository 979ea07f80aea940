//! The files for operation name what this limn has: metrics, labels, configuration, paths. None of this needs a broker
//! or Docker; that the containers start is not shown here.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use limn::codec::Decoder;
use limn::config::{Config, Engine};
use limn::demo::form::GENRES;
use limn::event::Record;
use limn::metrics::{self, Kind, Metric};
use limn::summarize::{Line, Prompt};
use serde_json::Value;

const ALERTS: &str = "deploy/alerts.yml";
const COMPOSE: &str = "docker-compose.yml";
const DASHBOARD: &str = "deploy/grafana/dashboards/limn.json";
const OPERATIONS: &str = "docs/operations.md";

/// What Prometheus adds to each series.
const ADDED: [&str; 3] = ["job", "instance", "le"];

fn read(path: &str) -> String {
    let whole = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(whole).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Every `limn_…` name in a text: what stands before it, the name, what stands behind it.
fn named(text: &str) -> Vec<(&str, &str, &str)> {
    text.match_indices("limn_")
        .filter(|(at, _)| !text[..*at].ends_with(word))
        .map(|(at, _)| {
            let (before, rest) = text.split_at(at);
            let (name, behind) = rest.split_at(rest.find(|c: char| !word(c)).unwrap_or(rest.len()));
            (before, name, behind)
        })
        .collect()
}

fn metric(name: &str) -> Option<&'static Metric> {
    metrics::ALL.iter().find(|m| m.name == name)
}

/// The metric that a series belongs to. A histogram's series have a suffix, and only a histogram's have one.
fn series(name: &str) -> Option<&'static Metric> {
    let of_histogram = ["_bucket", "_sum", "_count"]
        .iter()
        .find_map(|suffix| metric(name.strip_suffix(suffix)?));
    match (metric(name), of_histogram) {
        (Some(m), _) if m.kind != Kind::Histogram => Some(m),
        (_, Some(m)) if m.kind == Kind::Histogram => Some(m),
        _ => None,
    }
}

/// The label matchers behind a series: label and values.
fn matchers(behind: &str) -> Vec<(&str, Vec<&str>)> {
    let Some((inside, _)) = behind.strip_prefix('{').and_then(|b| b.split_once('}')) else {
        return Vec::new();
    };
    inside
        .split(',')
        .map(|matcher| {
            let (label, rest) = matcher.trim().split_at(
                (matcher.trim().find(|c: char| !word(c))).unwrap_or_else(|| panic!("{matcher}")),
            );
            let value = rest.trim_start_matches(['=', '!', '~']).trim_matches('"');
            (label, value.split('|').collect())
        })
        .collect()
}

/// Panics unless every series of the expression is one of limn's, asked for as its kind wants it, by labels and values
/// that it has.
fn check(expression: &str) {
    for (before, name, behind) in named(expression) {
        let Some(metric) = series(name) else {
            panic!("there is no series {name}: {expression}");
        };
        let grows = before.ends_with("rate(") || before.ends_with("increase(");
        assert_eq!(
            grows,
            metric.kind != Kind::Gauge,
            "{name} is a {:?}: {expression}",
            metric.kind
        );
        for (label, values) in matchers(behind) {
            if ADDED.contains(&label) {
                continue;
            }
            let (own, known) = metric.label.unwrap_or(("", &[]));
            assert_eq!(label, own, "no such label of {name}: {expression}");
            for value in values {
                assert!(
                    known.is_empty() || known.contains(&value),
                    "{name} is never {value}: {expression}"
                );
            }
        }
    }
    for (at, _) in expression.match_indices("by (") {
        let (labels, _) = expression[at + 4..].split_once(')').unwrap();
        for label in labels.split(',').map(str::trim) {
            assert!(
                ADDED.contains(&label)
                    || metrics::ALL
                        .iter()
                        .any(|m| m.label.is_some_and(|l| l.0 == label)),
                "nothing has a label {label}: {expression}"
            );
        }
    }
}

#[test]
fn the_alerts_ask_for_series_that_there_are_and_each_is_explained() {
    let (alerts, operations) = (read(ALERTS), read(OPERATIONS));
    let prose = ["#", "summary:", "description:"];
    let expressions: Vec<&str> = alerts
        .lines()
        .filter(|line| !prose.iter().any(|p| line.trim_start().starts_with(p)))
        .collect();
    check(&expressions.join("\n"));
    let names: Vec<&str> = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        assert!(
            operations.contains(&format!("`{name}`")),
            "{OPERATIONS} does not explain {name}"
        );
    }
}

#[test]
fn the_dashboard_asks_for_series_that_there_are() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = HashSet::new();
    let mut asked = 0;
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            check(target["expr"].as_str().unwrap());
            asked += 1;
        }
        let row = panel["type"] == "row";
        assert_eq!(row, panel["targets"].is_null(), "{title}");
    }
    assert!(asked > 20, "{asked}");
}

#[test]
fn the_documents_name_metrics_that_there_are() {
    for path in [
        ALERTS,
        OPERATIONS,
        "docs/architecture.md",
        "CONTRIBUTING.md",
        COMPOSE,
        "deploy/prometheus.yml",
    ] {
        for (_, name, _) in named(&read(path)) {
            assert!(
                metric(name).is_some() || series(name).is_some(),
                "{path}: {name}"
            );
        }
    }
}

/// limn's variables as docker-compose.yml sets them where nothing else is set: `NAME: value`, `NAME: ${OTHER:-value}`.
fn variables(compose: &str) -> BTreeMap<String, String> {
    compose
        .lines()
        .filter_map(|line| line.trim().split_once(": "))
        .filter(|(name, _)| name.starts_with("LIMN_"))
        .map(|(name, value)| {
            let default = value.strip_prefix("${").and_then(|v| v.strip_suffix('}'));
            let value = default.map_or(value, |v| v.split_once(":-").unwrap().1);
            (name.to_owned(), value.to_owned())
        })
        .collect()
}

fn compose() -> Config {
    Config::parse(&read("config/compose.toml"), variables(&read(COMPOSE))).unwrap()
}

#[test]
fn the_configuration_for_compose_is_sound_and_fits_what_compose_mounts() {
    let (config, compose) = (compose(), read(COMPOSE));
    assert!(config.http.token.is_some());
    let port = config.http.listen.port();
    assert!(!config.http.listen.ip().is_loopback());
    assert!(compose.contains(&format!("/dev/tcp/127.0.0.1/{port} ")));
    assert!(compose.contains(&format!("- 127.0.0.1:{port}:{port}\n")));
    assert!(read("deploy/prometheus.yml").contains(&format!("\"limn:{port}\"")));
    let brokers = (config.kafka.consumer.reveal().into_iter())
        .find_map(|(name, value)| (name == "bootstrap.servers").then_some(value))
        .unwrap();
    assert!(compose.contains(&format!("PLAINTEXT://{brokers},")));
    assert!(compose.contains(&format!("\"--topic\", \"{}\"", config.source.topic)));
    let Engine::Candle(engine) = &config.engine else {
        panic!("{:?}", config.engine);
    };
    let model = engine.model.strip_prefix("/models").unwrap();
    let fetched = read("scripts/fetch-model.sh");
    assert!(fetched.contains(&format!("models/{} ", model.display())));
    let adapter = engine.adapter.as_deref().unwrap();
    let adapter = adapter
        .strip_prefix("/")
        .unwrap()
        .join("adapter_config.json");
    read(adapter.to_str().unwrap());
}

#[test]
fn the_model_for_compose_is_asked_what_its_adapter_was_trained_on() {
    let demo = Config::parse(&read("config/demo.toml"), [])
        .unwrap()
        .summary;
    let compose = compose().summary;
    assert_eq!(compose.instructions, demo.instructions);
    assert_eq!(compose.event, demo.event);
    assert_eq!(compose.message, demo.message);
    assert_eq!(compose.empty_profile, demo.empty_profile);
    assert_eq!(compose.max_events, demo.max_events);
    assert_eq!(compose.max_tokens, demo.max_tokens);
}

#[test]
fn the_sample_is_read_and_its_lines_are_the_adapters() {
    let config = compose();
    let decoder = Decoder::new(config.source.codec);
    let prompt = Prompt::new(&config.summary).unwrap();
    let mut events: BTreeMap<String, usize> = BTreeMap::new();
    for json in read("config/compose-sample.jsonl").lines() {
        let record = Record {
            key: None,
            value: Some(json.to_owned().into()),
            headers: [].into(),
        };
        let interaction = decoder.interaction(&record, Some(1)).unwrap();
        let user = interaction.user_id.clone();
        let line = prompt
            .line(Line {
                interaction,
                time_ms: 1,
                late: false,
                topic: "".into(),
                partition: 0,
                offset: 0,
            })
            .unwrap();
        let (said, rest) = line.split_once(" (").unwrap();
        let verbs = ["loved", "liked", "shrugged at", "disliked", "hated"];
        assert!(
            verbs.iter().any(|verb| {
                (said.strip_prefix(&format!("- {verb} "))).is_some_and(|title| !title.is_empty())
            }),
            "{line}"
        );
        let (year, genres) = rest.trim_end_matches(')').split_once("; ").unwrap();
        assert!(year.parse::<u16>().is_ok(), "{line}");
        assert!(genres.split(", ").all(|g| GENRES.contains(&g)), "{line}");
        *events.entry(user).or_default() += 1;
    }
    assert!(events.len() >= 3, "{events:?}");
    // Whole windows: nothing waits for a time to pass.
    let window = config.window.max_events;
    assert!(events.values().all(|n| n % window == 0), "{events:?}");
}

#[test]
fn compose_mounts_files_that_there_are_and_pins_its_images() {
    let compose = read(COMPOSE);
    let mut mounted = 0;
    for line in compose.lines().map(str::trim) {
        let source = (line.strip_prefix("source: "))
            .or_else(|| line.strip_prefix("- ")?.split_once(':').map(|(s, _)| s));
        if let Some(source) = source.filter(|s| s.starts_with("./")) {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
            assert!(path.exists(), "{source} is not there");
            mounted += 1;
        }
        if let Some(image) = line.strip_prefix("image: ")
            && image != "limn:local"
        {
            let (_, tag) = image.rsplit_once(':').unwrap();
            assert!(tag.split('.').count() == 3, "{image} is no release");
        }
    }
    assert!(mounted > 5, "{mounted}");
}

#[test]
fn the_image_is_built_with_the_rust_that_is_promised() {
    let after = |text: &str, key: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(key));
        line.unwrap().trim_matches('"').to_owned()
    };
    let promised = after(&read("Cargo.toml"), "rust-version = ");
    assert_eq!(after(&read("Dockerfile"), "ARG RUST="), promised);
}
