//! Requests, engine and score after each other, on a small random model in a GGUF file.

use std::path::Path;
use std::time::Duration;

use candle_core::quantized::GgmlDType;

use super::super::requests::{Making, requests};
use super::super::score::score;
use super::*;
use crate::config::Config;
use crate::engine::Dtype;
use crate::engine::made::{Made, small};

/// A folder with a model that has room for the demo's prompts.
fn model(folder: &Path) -> CandleConfig {
    let file = folder.join("small.gguf");
    let mut spec = small();
    spec.context = 1024;
    Made::new(spec, 3).gguf(&file, GgmlDType::F32);
    CandleConfig {
        model: file,
        dtype: Dtype::F32,
        threads: Some(2),
        ..CandleConfig::default()
    }
}

fn options(engine: CandleConfig, requests: PathBuf) -> EngineOptions {
    EngineOptions {
        engine,
        requests,
        concurrency: 2,
        outputs: None,
        compare: None,
        began: Instant::now(),
    }
}

fn measured(options: &EngineOptions) -> Result<EngineReport, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(engine(options))
}

/// Two people of the demo, each with four ratings of one film after the other.
fn ratings(folder: &Path) {
    let films = "item_id\tmovie_title\trelease_year\tclass\n1\tKolya\t1996\tComedy\n2\tFargo\t1996\tCrime\n3\tScream\t1996\tHorror\n4\tBean\t1997\tComedy\n";
    let mut events = "user_id\titem_id\trating\ttimestamp\n".to_owned();
    for user in [99, 789] {
        for film in 1..=4 {
            events += &format!("{user}\t{film}\t{film}\t{}\n", 1000 * film + user);
        }
    }
    std::fs::write(folder.join("ml-100k.item"), films).unwrap();
    std::fs::write(folder.join("ml-100k.inter"), events).unwrap();
}

#[test]
fn requests_are_made_answered_and_scored_and_the_figures_have_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let config = model(dir.path());
    ratings(dir.path());
    let demo = Config::parse(include_str!("../../../config/demo.toml"), []).unwrap();
    let making = Making {
        data: dir.path().to_owned(),
        users: 2,
        events_per_user: 4,
        requests: 3,
        codec: demo.source.codec.clone(),
        window: crate::window::Config {
            max_events: 2,
            ..demo.window.clone()
        },
        summary: crate::summarize::Config {
            max_tokens: 16,
            prompt_tokens: 900,
            backoff: Duration::from_millis(1),
            ..demo.summary
        },
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let candle = Arc::new(Candle::open(&config).unwrap());
    let mut made = Vec::new();
    runtime
        .block_on(requests(&making, candle, &mut made))
        .unwrap();
    let lines = String::from_utf8(made).unwrap();
    assert_eq!(lines.lines().count(), 3);
    assert!(lines.contains("Kolya (1996; comedy)"), "{lines}");
    std::fs::write(at("requests"), &lines).unwrap();

    let mut options = options(config.clone(), at("requests"));
    options.outputs = Some(at("answers"));
    let first = measured(&options).unwrap();
    options.compare = Some(at("answers"));
    let second = measured(&options).unwrap();
    assert_eq!((second.updates, second.identical), (3, Some(3)));
    let figures = serde_json::to_value(&first).unwrap();
    for key in [
        "updates_per_second",
        "seconds",
        "prompt_tokens",
        "cached_tokens",
        "output_tokens",
        "model_steps",
        "drafted",
        "accepted",
        "first_token_seconds",
        "load_seconds",
    ] {
        assert!(figures[key].is_number(), "{key} is not in {figures}");
    }
    if cfg!(target_os = "linux") {
        assert!(figures["peak_memory_bytes"].is_u64(), "{figures}");
    }
    assert_eq!(figures["dtype"], "f32");
    // The first token comes before the last answer, of which there is no other.
    assert!(first.model_steps > 0 && first.output_tokens > 0);
    let until_done = first.load_seconds + first.seconds;
    let token = first.first_token_seconds.unwrap();
    assert!(first.load_seconds < token && token <= until_done + 0.001);

    let scored = score(&config, &at("requests"), &at("answers")).unwrap();
    assert!(scored.tokens > 0 && scored.mean_nll > 0.0, "{scored:?}");
    std::fs::write(at("others"), "\n{\"id\": \"nobody\", \"text\": \"\"}\n").unwrap();
    let error = score(&config, &at("requests"), &at("others")).unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("line 2: there is no request nobody"),
        "{said}"
    );
}

#[test]
fn a_request_that_does_not_fit_is_named_with_its_line_and_an_empty_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = model(dir.path());
    let file = dir.path().join("requests");
    let line = |id: &str, user: &str| {
        serde_json::json!({"id": id, "system": "s", "user": user, "max_tokens": 4}).to_string()
    };
    let said = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let error = measured(&options(config.clone(), file.clone())).unwrap_err();
        error.to_string()
    };
    let long = said(&format!(
        "{}\n\n{}\n",
        line("short", "u"),
        line("long", &"many words ".repeat(200))
    ));
    for part in ["line 3, request long", "engine.context_tokens", "1024"] {
        assert!(long.contains(part), "{part} is not in: {long}");
    }
    assert!(said("\n \n").contains("requests: there is nothing in it"));
    assert!(said("{}").contains("line 1"));
    // An answer of no tokens has no first one.
    std::fs::write(&file, line("none", "u").replace(":4", ":0")).unwrap();
    let report = measured(&options(config.clone(), file.clone())).unwrap();
    assert_eq!(
        (report.output_tokens, report.first_token_seconds),
        (0, None)
    );
}
