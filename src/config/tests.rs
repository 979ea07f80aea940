use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::codec;
use crate::demo::movielens;
use crate::event::Record;

const LIMN: &str = include_str!("../../config/limn.toml");
const DEMO: &str = include_str!("../../config/demo.toml");
const SMALLEST: &str = "engine.model = \"models/model.gguf\"\n";

fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Config, Faults> {
    Config::parse(
        text,
        variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    )
}

fn faults(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let faults = parse(&format!("{SMALLEST}{text}"), variables).unwrap_err();
    faults.0.iter().map(Fault::to_string).collect()
}

fn known() -> Vec<reader::Known> {
    let notes = Notes::default();
    Config::read(SMALLEST, [], &notes).unwrap();
    notes.known.into_inner()
}

/// Keys of the file by section, those behind a `#` too, with what is written behind them on the line.
fn shown(text: &str) -> BTreeMap<String, String> {
    let mut section = String::new();
    let mut keys = BTreeMap::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name.to_owned();
        } else if let Some((key, value)) = line.trim_start_matches('#').split_once(" = ")
            && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        {
            keys.insert(format!("{section}.{key}"), value.to_owned());
        }
    }
    keys
}

#[test]
fn the_taught_file_is_the_defaults() {
    assert_eq!(parse(LIMN, &[]).unwrap(), parse(SMALLEST, &[]).unwrap());
}

#[test]
fn the_taught_file_shows_every_key_with_its_default() {
    let shown = shown(LIMN);
    for reader::Known { key, default } in known() {
        let Some(value) = shown.get(&key) else {
            panic!("{key} is not in config/limn.toml");
        };
        // A text over several lines is compared as loaded, by the test above.
        if let Some(default) = default.filter(|_| !value.starts_with("\"\"\"")) {
            let comparable = |text: &str| match text.trim_matches('"') {
                "1m" => "60s".to_owned(),
                other => other.to_owned(),
            };
            assert_eq!(comparable(value), comparable(&default), "{key}");
        }
    }
    let known: Vec<_> = known().into_iter().map(|k| k.key).collect();
    for key in shown.keys() {
        assert!(known.contains(key), "{key} of config/limn.toml is no key");
    }
}

#[test]
fn the_demo_asks_the_adapter_what_it_was_trained_on() {
    let config = parse(DEMO, &[]).unwrap();
    assert_eq!(config.window.max_events, 6);
    assert_eq!(config.summary.max_events, 6);
    assert_eq!(config.summary.max_tokens, 128);
    // From the rating to the prompt, by the mapping and the templates.
    let rating = movielens::Event {
        user: 99,
        time_s: 885_678_840,
        action: "loved",
        film: Arc::new(movielens::Film {
            id: "286".into(),
            title: "The English Patient".into(),
            year: "1996".into(),
            genres: "drama, romance, war".into(),
        }),
    };
    let record = Record {
        key: None,
        value: Some(rating.row().value.into()),
        headers: Vec::new().into(),
    };
    let decoder = codec::Decoder::new(config.source.codec.clone());
    let interaction = decoder.interaction(&record, None).unwrap();
    assert_eq!(interaction.user_id, "99");
    assert_eq!(interaction.id, "99:286");
    assert_eq!(interaction.time_ms, 885_678_840_000);
    let prompt = summarize::Prompt::new(&config.summary).unwrap();
    let line = prompt
        .line(summarize::Line {
            time_ms: interaction.time_ms,
            interaction,
            late: false,
            topic: "".into(),
            partition: 0,
            offset: 0,
        })
        .unwrap();
    assert_eq!(line, rating.line());
    assert_eq!(
        prompt.message("", &[line]).unwrap(),
        "Profile so far: Nothing is known yet.\nSince then:\n- loved The English Patient (1996; drama, romance, war)"
    );
}

#[test]
fn all_faults_are_told_at_once_each_with_what_would_do() {
    let found = faults(
        r#"
        colour = "blue"
        [kafka]
        brokers = "nowhere"
        [window]
        gap = 5
        max_event = 3
        max_events = 0
        [source]
        format = "jsno"
        json.user = "user"
        [summary]
        message = "{{ profile }}"
        event = "{{ action"
        retry_temperature = "hot"
        [store]
        cache = "64 parsecs"
        [http]
        listen = "localhost"
        "#,
        &[],
    );
    for (key, wanted) in [
        (
            "kafka.brokers (line 5)",
            "given \"nowhere\"; wants host:port",
        ),
        (
            "window.gap (line 7)",
            "given 5; wants a duration with its unit",
        ),
        (
            "window.max_event (line 8)",
            "did you mean window.max_events?",
        ),
        (
            "window.max_events (line 9)",
            "given 0; wants a whole number from 1",
        ),
        ("source.format (line 11)", "did you mean \"json\"?"),
        ("source.json.user (line 12)", "wants a JSON pointer"),
        ("summary.message (line 14)", "{{ events }}"),
        ("summary.event (line 15)", "not a template"),
        ("summary.retry_temperature (line 16)", "wants a number from"),
        ("store.cache (line 18)", "wants a size such as"),
        ("http.listen (line 20)", "wants an IP address and a port"),
    ] {
        assert!(
            found
                .iter()
                .any(|f| f.starts_with(key) && f.contains(wanted)),
            "{key}: {wanted} in {found:#?}"
        );
    }
    assert_eq!(found.len(), 12, "{found:#?}");
}

#[test]
fn every_line_that_is_no_toml_is_told() {
    let found = faults("[window\ngap = \n[http]\nlisten = \"hush\n", &[]);
    assert!(found.len() >= 2, "{found:#?}");
    assert!(found.iter().all(|f| f.contains("not TOML")), "{found:#?}");
    assert!(!found.concat().contains("hush"), "{found:#?}");
}

#[test]
fn an_unknown_section_or_key_is_told_with_the_one_that_was_meant() {
    let found = faults(
        "[windows]\nsize = \"1h\"\n[sorce.json]\nuser = \"/u\"\n",
        &[("LIMN_WINDOW__MAX_EVENT", "3")],
    );
    assert_eq!(
        found,
        [
            "windows (line 2): there is no such key; did you mean window?",
            "sorce (line 4): there is no such key; did you mean source?",
            "window.max_event (environment variable LIMN_WINDOW__MAX_EVENT): there is no such key; did you mean LIMN_WINDOW__MAX_EVENTS?",
        ]
    );
}

#[test]
fn what_computes_is_the_processor_or_a_gpu_that_this_build_can_use() {
    let wrong = faults("engine.device = \"gpu\"\n", &[]);
    let wanted = "engine.device (line 2): given \"gpu\"; wants \"cpu\"";
    assert!(wrong[0].starts_with(wanted), "{wrong:?}");
    // Every fault at once: of the build and of the number format.
    let found = faults("engine.device = \"cuda:1\"\nengine.dtype = \"int8\"\n", &[]);
    let [build @ .., format] = &found[..] else {
        panic!("no fault");
    };
    assert!(
        format.starts_with("engine.dtype (line 3): int8") && format.contains("bf16"),
        "{format}"
    );
    assert_eq!(build.len(), usize::from(!cfg!(feature = "cuda")));
    for fault in build {
        assert!(
            fault.starts_with("engine.device (line 2): ") && fault.contains("build-cuda.sh"),
            "{fault}"
        );
    }
}

#[test]
fn the_environment_goes_before_the_file() {
    let config = parse(
        &format!("{SMALLEST}[window]\nmax_events = 7\n"),
        &[
            ("LIMN_WINDOW__MAX_EVENTS", "9"),
            ("LIMN_SOURCE__JSON__USER", "/uid"),
            ("LIMN_SUMMARY__TEMPERATURE", "0.6"),
            ("LIMN_SUMMARY__MIN_P", "0.05"),
            ("LIMN_SUMMARY__SEED", "12"),
            ("LIMN_STORE__CACHE", "2097152"),
            ("LIMN_KAFKA__PROPERTIES__FETCH_MIN_BYTES", "10"),
            ("LIMN_CONFIG", "not a key"),
            ("PATH", "not ours"),
        ],
    )
    .unwrap();
    assert_eq!(config.window.max_events, 9);
    assert_eq!(config.store.cache_bytes, 2 << 20);
    let drawn = |temperature| crate::engine::Sampling::Random {
        temperature,
        top_k: 20,
        top_p: 0.95,
        min_p: 0.05,
        seed: 12,
    };
    assert_eq!(config.summary.sampling, drawn(0.6));
    assert_eq!(config.summary.retry_sampling, drawn(0.7));
    let properties = config.kafka.consumer.reveal();
    assert!(properties.contains(&("fetch.min.bytes".into(), "10".into())));
    let crate::codec::Format::Json(json) = config.source.codec.format else {
        panic!()
    };
    assert_eq!(json.user.as_deref(), Some("/uid"));
}

#[test]
fn secrets_come_from_environment_or_file_and_are_never_shown() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hush-hush-file\n").unwrap();
    let text = format!(
        "engine = {{ kind = \"openai\", model = \"m\", api_key = {{ file = {:?} }} }}\n\
         [http]\ntoken = {{ env = \"TOKEN\" }}\n\
         [kafka.properties]\n\"sasl.username\" = \"limn\"\n\"sasl.password\" = {{ env = \"PASSWORD\" }}\n",
        file.path()
    );
    let config = parse(
        &text,
        &[
            ("TOKEN", "hush-hush-token"),
            ("PASSWORD", "hush-hush-password"),
        ],
    )
    .unwrap();
    let Engine::OpenAi(openai) = &config.engine else {
        panic!()
    };
    assert_eq!(openai.api_key.as_ref().unwrap().reveal(), "hush-hush-file");
    assert_eq!(
        config.http.token.as_ref().unwrap().reveal(),
        "hush-hush-token"
    );
    let password = ("sasl.password".to_owned(), "hush-hush-password".to_owned());
    assert!(config.kafka.producer.reveal().contains(&password));
    let shown = format!("{config:?} {config:#?}");
    assert!(!shown.contains("hush") && shown.contains("***"), "{shown}");
}

#[test]
fn no_fault_shows_a_secret() {
    let text = r#"
        [http]
        token = "hush-hush-1"
        tokn = "hush-hush-2"
        [engine]
        kind = "openai"
        model = "m"
        api_key = { evn = "hush-hush-3" }
        base_url = "http://me:hush-hush-4@host/v1"
        [kafka.properties]
        "sasl.password" = "hush-hush-5"
        "sasl.pasword" = "hush-hush-6"
        "linger.ms" = { env = "SEVENTH" }
        [[kafka.producer.list]]
        "#;
    let found = parse(
        text,
        &[
            ("SEVENTH", "hush-hush-7"),
            ("LIMN_HTTP__TOKN", "hush-hush-8"),
            ("LIMN_HTTP__TOKEN__FIL", "hush-hush-9"),
        ],
    )
    .unwrap_err();
    let shown = format!("{found} {found:?}");
    assert!(!shown.contains("hush"), "{shown}");
    for wanted in [
        "http.token (",
        "http.tokn (",
        "engine.api_key (",
        "engine.base_url (",
        "sasl.password (",
        "did you mean sasl.password?",
        "linger.ms (",
    ] {
        assert!(shown.contains(wanted), "{wanted} in {found}");
    }
}

#[test]
fn a_secret_that_is_not_there_is_a_fault() {
    let found = faults(
        "http.token = { env = \"NONE\" }\nkafka.properties.\"ssl.key.password\" = { file = \"/none/such\" }",
        &[],
    );
    assert!(
        found
            .iter()
            .any(|f| f.contains("the environment has no variable NONE")),
        "{found:#?}"
    );
    assert!(
        found
            .iter()
            .any(|f| f.contains("/none/such cannot be read")),
        "{found:#?}"
    );
    let found = faults("", &[("LIMN_HTTP__TOKEN", "short")]);
    assert!(found[0].starts_with("http.token"), "{found:#?}");
}

#[test]
fn properties_that_carry_the_guarantees_are_refused_with_the_reason() {
    let found = faults(
        "[kafka.consumer]\n\"isolation.level\" = \"read_uncommitted\"\n[kafka.properties]\nenable.auto.commit = true\nacks = 1\n",
        &[],
    );
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(
        found.iter().all(|f| f.contains("is not yours to set: ")),
        "{found:#?}"
    );
    assert!(
        found
            .iter()
            .any(|f| f.starts_with("kafka.properties.enable.auto.commit (line 5)")),
        "{found:#?}"
    );
}

#[test]
fn every_property_that_librdkafka_does_not_take_is_named() {
    let found = faults(
        "[kafka.properties]\n\"fetch.min.byte\" = 1\n\"security.protocol\" = \"plain\"\n\"linger.ms\" = \"soon\"\n",
        &[],
    );
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(
        found[0].starts_with("kafka.properties.fetch.min.byte (line 3)")
            && found[0].contains("did you mean fetch.min.bytes?"),
        "{found:#?}"
    );
    assert!(
        found
            .iter()
            .skip(1)
            .all(|f| f.contains("librdkafka says: ")),
        "{found:#?}"
    );
}

#[test]
fn other_machines_may_only_be_let_in_with_a_token() {
    let found = faults("http.listen = \"0.0.0.0:80\"\n", &[]);
    assert_eq!(found.len(), 1);
    assert!(
        found[0].contains("http.token") && found[0].contains("0.0.0.0:80"),
        "{found:#?}"
    );
    let open = format!("{SMALLEST}http.listen = \"[::]:80\"\n");
    assert!(parse(&open, &[("LIMN_HTTP__TOKEN", "hush-hush")]).is_ok());
    assert!(parse(&format!("{SMALLEST}http.listen = \"[::1]:80\"\n"), &[]).is_ok());
}

#[test]
fn keys_of_another_kind_are_told() {
    let found = faults(
        "engine.base_url = \"http://h/v1\"\nengine.delay = \"1s\"\nwindow.size = \"1h\"\n",
        &[],
    );
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(
        found.iter().all(|f| f.contains("belongs to kind = ")),
        "{found:#?}"
    );
}

#[test]
fn keys_that_do_not_go_together_are_told() {
    let found = faults(
        r#"
        engine.context_tokens = 1000
        source.max_text_bytes = "2MiB"
        window.gap = "3h"
        topics.changes = "interactions"
        topics.profiles = "limn.checkpoints"
        commit.transaction_timeout = "10m"
        summary.backoff = "50s"
        summary.backoff_max = "40s"
        "#,
        &[],
    );
    for key in [
        "summary.prompt_tokens",
        "source.max_text_bytes",
        "window.gap",
        "topics.changes",
        "topics.checkpoints",
        "store.restore_timeout",
        "summary.backoff",
    ] {
        assert!(
            found
                .iter()
                .any(|f| f.starts_with(&format!("{key}: ")) || f.starts_with(&format!("{key} ("))),
            "{key} in {found:#?}"
        );
    }
    assert_eq!(found.len(), 7, "{found:#?}");
}

#[test]
fn the_offsets_of_an_assignment_are_waited_for_longer_than_a_dead_owners_transaction() {
    let waits = |text: &str| {
        let config = parse(&format!("engine.model = \"m\"\n{text}"), &[]).unwrap();
        config.source_room().assign_timeout
    };
    assert_eq!(waits(""), Duration::from_secs(45));
    assert_eq!(waits("kafka.timeout = \"90s\""), Duration::from_secs(90));
    let long = "commit.transaction_timeout = \"100s\"";
    assert_eq!(waits(long), Duration::from_secs(115));
}

#[test]
fn what_is_not_fetched_from_the_hub_is_refused_where_it_is_configured() {
    for key in ["ADAPTER", "TOKENIZER"] {
        let found = faults("", &[(&format!("LIMN_ENGINE__{key}"), "hf:someone/else")]).join("\n");
        assert!(found.contains("only engine.model is fetched"), "{found}");
    }
}

#[test]
fn a_model_must_be_named() {
    let found = parse("", &[]).unwrap_err().to_string();
    assert_eq!(
        found,
        "engine.model: is missing; wants the path of a GGUF file, or of a safetensors file or its folder, or a hub id such as hf:Qwen/Qwen3-8B"
    );
}

#[test]
fn oauthbearer_is_refused_since_no_token_can_be_had() {
    for key in ["sasl.mechanism", "sasl.mechanisms"] {
        let text = format!("[kafka.properties]\n{key:?} = \"OAUTHBEARER\"\n");
        let found = parse(&text, &[]).unwrap_err().to_string();
        assert!(
            found.contains(key) && found.contains("SCRAM-SHA-512"),
            "{found}"
        );
    }
}
