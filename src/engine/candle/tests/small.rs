//! Small random models through the engine as a whole.

use std::collections::BTreeSet;

use candle_core::DType;
use tokio::task::JoinSet;

use super::super::made::{self, Made, TEMPLATE};
use super::super::spec::Spec;
use super::*;

/// A folder with a model that has room for real prompts.
struct Folder {
    dir: tempfile::TempDir,
    spec: Spec,
}

impl Folder {
    fn new() -> Self {
        let spec = Spec {
            context: 512,
            ..made::small()
        };
        let dir = tempfile::tempdir().unwrap();
        Made::new(spec.clone(), 3).folder(dir.path(), 1, DType::F32);
        Self { dir, spec }
    }

    fn config(&self) -> Config {
        Config {
            model: self.dir.path().to_owned(),
            dtype: Dtype::F32,
            threads: Some(2),
            ..Config::default()
        }
    }

    /// Bytes of a block of the cache as candle's tensors have it, in `f32`.
    fn plain_block(&self) -> u64 {
        let spec = &self.spec;
        (2 * spec.layers * spec.kv_heads * spec.head_dim * 32 * 4) as u64
    }

    /// Bytes for so many blocks of the cache in `f32`.
    fn blocks(&self, count: u64) -> Option<u64> {
        let spec = &self.spec;
        // A head's values are kept in tiles of 32.
        let values = 2 * spec.layers * spec.kv_heads * spec.head_dim.next_multiple_of(32);
        Some(count * (values * 32 * 4) as u64)
    }
}

/// Sixteen requests that share their instructions and mostly repeat the profile before.
fn requests() -> Vec<Request> {
    (0..16u64)
        .map(|n| {
            let previous = format!("Likes number {n} and the tea. ").repeat(2);
            Request {
                system: "Keep it short.".to_owned(),
                user: format!("{previous}Then came {}.", n * n),
                previous,
                max_tokens: 20 + u32::try_from(n).unwrap(),
                sampling: if n % 4 == 3 {
                    Sampling::Random {
                        temperature: 0.8,
                        top_k: 20,
                        top_p: 0.95,
                        min_p: 0.01,
                        seed: n,
                    }
                } else {
                    Sampling::Greedy
                },
            }
        })
        .collect()
}

type Said = (String, Finish, u32);

fn said(output: Output) -> Said {
    (output.text, output.finish, output.output_tokens)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
}

/// All at once, in the order of the requests.
fn together(candle: Candle) -> (Vec<Said>, Figures) {
    let candle = Arc::new(candle);
    let answers = runtime().block_on(async {
        let mut asking = JoinSet::new();
        for (n, request) in requests().into_iter().enumerate() {
            let candle = Arc::clone(&candle);
            asking.spawn(async move {
                let prepared = candle.prepare(request).unwrap();
                (n, said(candle.generate(prepared).await.unwrap()))
            });
        }
        asking.join_all().await
    });
    let mut answers = answers;
    answers.sort_by_key(|(n, _)| *n);
    (
        answers.into_iter().map(|(_, said)| said).collect(),
        candle.figures(),
    )
}

#[test]
fn sixteen_at_once_have_the_answers_they_have_alone_with_drafts_without_and_in_a_narrow_cache() {
    let folder = Folder::new();
    let alone: Vec<Said> = requests()
        .into_iter()
        .map(|request| {
            // An engine of its own: nothing is in its cache, and nothing runs beside it.
            let candle = Candle::open(&Config {
                drafts: false,
                ..folder.config()
            })
            .unwrap();
            let prepared = candle.prepare(request).unwrap();
            said(runtime().block_on(candle.generate(prepared)).unwrap())
        })
        .collect();
    let distinct: BTreeSet<_> = alone.iter().map(|said| &said.0).collect();
    assert!(distinct.len() > 8, "answers that tell nothing: {alone:?}");
    let open = |drafts, cache_bytes| {
        Candle::open(&Config {
            drafts,
            cache_bytes,
            ..folder.config()
        })
        .unwrap()
    };
    let (answers, figures) = together(open(true, None));
    assert_eq!(answers, alone);
    assert!(figures.drafted > 0, "{figures:?}");
    let (answers, figures) = together(open(false, None));
    assert_eq!(answers, alone);
    assert_eq!(figures.drafted, 0);
    assert!(figures.cached_tokens > 0, "{figures:?}");
    // About two requests' worth: they wait, and make room for each other.
    let narrow = open(true, folder.blocks(11));
    assert_eq!(narrow.description().context_tokens, 11 * 32);
    let (answers, _) = together(narrow);
    assert_eq!(answers, alone);
}

#[test]
fn without_vector_instructions_candle_computes_and_gives_the_same_answers() {
    let folder = Folder::new();
    let kernels = open::open_on(Some(kernels::paths()[0]), &folder.config()).unwrap();
    let fingerprint = kernels.description().fingerprint.clone();
    let (wanted, _) = together(kernels);
    // One request waits for room, so blocks are copied and computed again here too.
    for cache_bytes in [None, Some(12 * folder.plain_block())] {
        let config = Config {
            cache_bytes,
            ..folder.config()
        };
        let fallback = open::open_on(None, &config).unwrap();
        assert_ne!(fallback.description().fingerprint, fingerprint);
        let (answers, figures) = together(fallback);
        assert_eq!(answers, wanted);
        assert!(figures.drafted > 0, "{figures:?}");
    }
}

#[test]
fn a_request_that_the_cache_is_too_small_for_is_told_so() {
    let folder = Folder::new();
    let candle = Candle::open(&Config {
        cache_bytes: folder.blocks(2),
        ..folder.config()
    })
    .unwrap();
    let error = candle.prepare(requests().remove(0)).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("engine.cache"), "{said}");
    assert!(!said.contains("context"), "{said}");
}

#[test]
fn the_fingerprint_changes_with_all_that_changes_answers_and_with_nothing_else() {
    let folder = Folder::new();
    let of = |config: Config| {
        Candle::open(&config)
            .unwrap()
            .description()
            .fingerprint
            .clone()
    };
    let base = of(folder.config());
    assert_eq!(
        of(Config {
            concurrency: 2,
            step_tokens: 64,
            threads: Some(1),
            drafts: false,
            cache_bytes: folder.blocks(20),
            ..folder.config()
        }),
        base
    );
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    made::adapter(&at("adapter"), &folder.spec, 0.1);
    made::adapter(&at("other adapter"), &folder.spec, 0.2);
    let mut tokenizer = made::tokenizer();
    tokenizer["normalizer"] = serde_json::Value::Null;
    std::fs::write(at("tokenizer.json"), tokenizer.to_string()).unwrap();
    Made::new(folder.spec.clone(), 4).folder(&at("weights"), 1, DType::F32);
    let template = Folder::new();
    std::fs::write(
        template.dir.path().join("chat_template.jinja"),
        TEMPLATE.replace("assistant", "model"),
    )
    .unwrap();
    let with = |change: &dyn Fn(&mut Config)| {
        let mut config = folder.config();
        change(&mut config);
        of(config)
    };
    let prints = [
        base,
        with(&|c| c.model = at("weights")),
        with(&|c| c.adapter = Some(at("adapter"))),
        with(&|c| c.adapter = Some(at("other adapter"))),
        with(&|c| c.tokenizer = Some(at("tokenizer.json"))),
        with(&|c| c.model = template.dir.path().to_owned()),
        with(&|c| c.dtype = Dtype::Bf16),
        with(&|c| c.dtype = Dtype::Int8),
        with(&|c| c.thinking = true),
    ];
    let distinct: BTreeSet<_> = prints.iter().collect();
    assert_eq!(distinct.len(), prints.len(), "{prints:?}");
}

#[test]
fn answers_are_scored_also_with_steps_of_no_rows_and_the_models_own_score_best() {
    let folder = Folder::new();
    let request = requests().remove(0);
    let candle = Candle::open(&folder.config()).unwrap();
    let prepared = candle.prepare(request.clone()).unwrap();
    let own = runtime().block_on(candle.generate(prepared)).unwrap().text;
    let of = |step_tokens, text: &str| {
        let config = Config {
            step_tokens,
            ..folder.config()
        };
        score(&config, &[(request.clone(), text.to_owned())]).unwrap()
    };
    let whole = of(512, &own);
    assert!(whole.tokens > 1 && whole.mean_nll > 0.0);
    let single = of(0, &own);
    assert_eq!(single.tokens, whole.tokens);
    assert!((single.mean_nll - whole.mean_nll).abs() < 1e-4);
    assert!(of(512, "Something else altogether.").mean_nll > whole.mean_nll);
}
