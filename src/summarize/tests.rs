//! The real model, SmolLM2-135M-Instruct with the MovieLens adapter, through the gate and the journal.
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::codec::{Format, JsonMapping};
use crate::engine::{Answer, Candle, CandleConfig, Description, Finish, Script, Scripted};
use crate::event::{Event, Record};

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
    with(config(), Arc::clone(engine) as _, folder)
}

fn with(config: Config, engine: Arc<dyn Engine>, folder: &Path) -> Summarizer {
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
    Summarizer::new(config, decoder, engine, Arc::new(store.unwrap())).unwrap()
}

fn job() -> Job {
    job_of("ann")
}

fn job_of(user: &str) -> Job {
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
                "user": user, "action": action, "title": title, "year": year, "genres": genres
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
        user: user.into(),
        events: events.collect(),
        reason: CloseReason::Events,
        lowest_open: None,
    };
    Job {
        user: user.into(),
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

/// What the engine is asked for a job whose answers are all refused: the seeds, in order.
fn seeds(job: Job, seed: u64) -> Vec<u64> {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let asked = Arc::clone(&seen);
    let engine = Scripted::with(1, move |request, _| {
        asked.lock().unwrap().push(request.sampling);
        Script::Text(String::new(), Finish::Stop)
    });
    let drawn = Sampling::Random {
        temperature: 0.5,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed,
    };
    let config = Config {
        sampling: drawn,
        retry_sampling: drawn,
        retries: 2,
        ..config()
    };
    let folder = tempfile::tempdir().unwrap();
    let summarizer = with(config, Arc::new(engine), folder.path());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(summarizer.update(job)).unwrap();
    let seen = seen.lock().unwrap();
    let seed = |sampling: &Sampling| match sampling {
        Sampling::Random { seed, .. } => *seed,
        Sampling::Greedy => panic!("not drawn"),
    };
    seen.iter().map(seed).collect()
}

#[test]
fn users_and_retries_draw_by_seeds_of_their_own_and_a_replay_by_the_same() {
    let ann = seeds(job_of("ann"), 1);
    // The whole window and its half, three answers each.
    assert_eq!(ann.len(), 6);
    assert_eq!(ann, seeds(job_of("ann"), 1));
    let mut other = job_of("bob");
    other.windows[0].events.split_front(1);
    let all: Vec<u64> = [ann, seeds(other, 1), seeds(job_of("ann"), 2)].concat();
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len(), "{all:?}");
}
