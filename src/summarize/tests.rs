//! The real model, SmolLM2-135M-Instruct with the MovieLens adapter, through the gate and the journal.
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::codec::{Format, JsonMapping};
use crate::engine::{Answer, Candle, CandleConfig, Description};
use crate::event::Record;

fn real_model() -> Candle {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/limn");
    let cache = std::env::var_os("LIMN_CACHE").map_or_else(home, PathBuf::from);
    let model = cache.join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(model.exists(), "no model: run scripts/fetch-model.sh");
    let adapter = Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("adapters/movielens"));
    Candle::open(&CandleConfig {
        model,
        adapter,
        context_tokens: Some(2048),
        ..CandleConfig::default()
    })
    .unwrap()
}

/// Counts the calls of the model.
struct Counted(Candle, AtomicUsize);

impl Engine for Counted {
    fn description(&self) -> &Description {
        self.0.description()
    }

    fn count(&self, text: &str) -> u32 {
        self.0.count(text)
    }

    fn prepare(&self, request: Request) -> Result<Prepared, engine::Error> {
        self.0.prepare(request)
    }

    fn generate(&self, prepared: Prepared) -> Answer<'_> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.generate(prepared)
    }
}

fn config() -> Config {
    let environment = [("LIMN_ENGINE__MODEL".to_owned(), "m".to_owned())];
    crate::config::Config::parse(include_str!("../../config/demo.toml"), environment)
        .unwrap()
        .summary
}

fn summarizer(engine: &Arc<Counted>, folder: &Path) -> Summarizer {
    let mapping = JsonMapping {
        user: Some("/user".into()),
        action: Some("/action".into()),
        item_title: Some("/title".into()),
        ..JsonMapping::default()
    };
    let decoder = codec::Decoder::new(codec::Config {
        format: Format::Json(Box::new(mapping)),
        max_text_bytes: 1000,
        max_event_bytes: 1000,
    });
    let store = Store::open(&store::Config {
        folder: folder.to_owned(),
        cache_bytes: 1 << 20,
        history: 1,
        journal_entries: 10,
    });
    let engine: Arc<dyn Engine> = Arc::clone(engine) as _;
    Summarizer::new(config(), decoder, engine, Arc::new(store.unwrap())).unwrap()
}

fn job() -> Job {
    let films = [
        (
            "loved",
            "The English Patient",
            "1996",
            "drama, romance, war",
        ),
        (
            "hated",
            "Spawn",
            "1997",
            "action, adventure, science fiction, thriller",
        ),
        ("loved", "Fargo", "1996", "crime, drama, thriller"),
    ];
    let events = (0..)
        .zip(films)
        .map(|(offset, (action, title, year, genres))| {
            let value = serde_json::json!({
                "user": "ann", "action": action, "title": title, "year": year, "genres": genres
            });
            let record = Record {
                value: Some(value.to_string().into_bytes().into()),
                ..Record::default()
            };
            Event {
                offset,
                time_ms: 1000 + offset,
                tokens: 0,
                late: false,
                record,
            }
        });
    let closed = Closed {
        user: "ann".into(),
        events: events.collect(),
        reason: CloseReason::Events,
        lowest_open: None,
    };
    Job {
        user: "ann".into(),
        topic: "in".into(),
        partition: 0,
        profile: None,
        windows: [closed].into(),
    }
}

#[test]
fn the_real_models_answer_comes_from_the_journal_the_second_time_and_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Arc::new(Counted(real_model(), AtomicUsize::new(0)));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let update = |summarizer: &Summarizer| {
        let done = runtime.block_on(summarizer.update(job())).unwrap();
        assert!(done.dead.is_empty() && done.refusals.is_empty(), "{done:?}");
        done.update.unwrap()
    };
    check(&config(), engine.as_ref()).unwrap();
    let by_model = update(&summarizer(&engine, folder.path()));
    assert!(
        crate::demo::form::in_form(&by_model.summary),
        "{}",
        by_model.summary
    );
    assert!(!by_model.usage.journal);
    let calls = engine.1.load(Ordering::SeqCst);
    assert_eq!(calls, 1);
    // A new start on the same folder.
    let by_journal = update(&summarizer(&engine, folder.path()));
    assert_eq!(
        engine.1.load(Ordering::SeqCst),
        calls,
        "the model was asked again"
    );
    assert!(by_journal.usage.journal);
    assert_eq!(by_journal.summary, by_model.summary);
    assert_eq!(by_journal.call, by_model.call);
    assert_eq!(by_journal.edits, by_model.edits);
    assert_eq!(by_journal.usage.output_tokens, by_model.usage.output_tokens);
    // Without the journal the model says the same again.
    let elsewhere = tempfile::tempdir().unwrap();
    let again = update(&summarizer(&engine, elsewhere.path()));
    assert_eq!(engine.1.load(Ordering::SeqCst), calls + 1);
    assert_eq!(
        (again.summary, again.call),
        (by_model.summary, by_model.call)
    );
}
