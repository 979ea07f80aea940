//! The thread around a model that counts: each token's successor is the next number.

use std::sync::atomic::AtomicUsize;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;

use candle_core::DType;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::super::draft::Policy;
use super::super::load::{Wanted, load};
use super::super::made::{Made, small};
use super::super::{Candle, Device, Dtype};
use super::*;
use crate::engine::{Bound, Description, Engine, Finish, Request as Asked, Sampling};

#[derive(Default)]
struct Counting {
    /// Where set, each step waits for one of these: the test says when the model gets on.
    go: Option<std_mpsc::Receiver<()>>,
    /// Tells the test that a step has begun.
    begun: Option<std_mpsc::Sender<()>>,
    panics: bool,
    steps: Arc<AtomicUsize>,
}

impl Forward for Counting {
    fn step(&mut self, step: &Step) -> Result<Vec<Answer>, Error> {
        if let Some(begun) = &self.begun {
            let _ = begun.send(());
        }
        if let Some(go) = &self.go {
            let _ = go.recv();
        }
        assert!(!self.panics, "what a user wrote");
        self.steps.fetch_add(1, Ordering::SeqCst);
        let answers = step.wanted.iter();
        Ok(answers
            .map(|wanted| Answer::Likeliest((step.tokens[wanted.row] + 1) % 256))
            .collect())
    }

    fn copy_block(&mut self, _: u32, _: u32) -> Result<(), Error> {
        Ok(())
    }
}

impl Timed for Counting {
    fn times(&mut self) -> Times {
        Times {
            matrix: Duration::from_millis(1),
            ..Times::default()
        }
    }
}

/// The engine on that model, its thread, and what the thread counts.
fn engine(model: Counting, sequences: usize) -> (Candle, JoinHandle<()>, PrometheusHandle) {
    let dir = tempfile::tempdir().unwrap();
    Made::new(small(), 1).folder(dir.path(), 1, DType::F32);
    let chat = load(&Wanted {
        model: dir.path(),
        adapter: None,
        tokenizer: None,
        thinking: false,
    })
    .unwrap()
    .chat;
    let limits = Limits {
        blocks: 64,
        context: 1000,
        step_tokens: 256,
        sequences,
        drafts: Policy {
            most: 0,
            ..Policy::default()
        },
    };
    let recorder = PrometheusBuilder::new().build_recorder();
    let counted = recorder.handle();
    let (work, inbox) = mpsc::channel(sequences);
    let shared = Shared::default();
    let (spoken, told) = (chat.clone(), shared.clone());
    let thread = std::thread::spawn(move || {
        ::metrics::with_local_recorder(&recorder, || run(model, limits, &spoken, inbox, &told));
    });
    let candle = Candle {
        description: Description {
            name: "counting".to_owned(),
            fingerprint: "counting".to_owned(),
            context_tokens: 1000,
            bound: Bound::Context,
            concurrency: sequences,
        },
        chat,
        device: Device::Cpu,
        dtype: Dtype::F32,
        work,
        shared,
    };
    (candle, thread, counted)
}

fn prepared(candle: &Candle, user: &str, max_tokens: u32) -> Prepared {
    let request = Asked {
        system: String::new(),
        user: user.to_owned(),
        previous: String::new(),
        max_tokens,
        sampling: Sampling::Greedy,
    };
    candle.prepare(request).unwrap()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
}

#[test]
fn an_answer_that_nobody_waits_for_frees_its_place_at_the_next_step() {
    let (go, goes) = std_mpsc::channel();
    let (begins, begun) = std_mpsc::channel();
    let steps = Arc::new(AtomicUsize::new(0));
    let model = Counting {
        go: Some(goes),
        begun: Some(begins),
        steps: Arc::clone(&steps),
        ..Counting::default()
    };
    let (candle, thread, counted) = engine(model, 1);
    let prepared = prepared(&candle, "one", 200);
    runtime().block_on(async {
        let mut answer = candle.generate(prepared);
        // Sent, and not answered.
        tokio::select! {
            biased;
            answer = &mut answer => panic!("{answer:?}"),
            () = std::future::ready(()) => {}
        }
        begun.recv().unwrap();
        go.send(()).unwrap();
        begun.recv().unwrap();
        drop(answer);
        go.send(()).unwrap();
    });
    // From here on the model gets on by itself.
    drop(go);
    let shared = candle.shared.clone();
    drop(candle);
    thread.join().unwrap();
    assert_eq!(steps.load(Ordering::SeqCst), 2);
    let gauges = shared.lock().1;
    assert_eq!(
        (gauges.running, gauges.waiting, gauges.blocks_in_use),
        (0, 0, 0)
    );
    // The turn that only dropped it computed nothing, and says so.
    let text = counted.render();
    let line = "limn_engine_step_seconds_count{part=\"matrix\"} 2";
    assert!(text.lines().any(|l| l == line), "{text}");
}

#[test]
fn more_requests_than_the_channel_holds_are_all_answered() {
    let (candle, thread, _) = engine(Counting::default(), 1);
    let candle = Arc::new(candle);
    let answers = runtime().block_on(async {
        let mut asking = JoinSet::new();
        for n in 0..20 {
            let candle = Arc::clone(&candle);
            let prepared = prepared(&candle, &format!("number {n}"), 3);
            asking.spawn(async move { candle.generate(prepared).await });
        }
        asking.join_all().await
    });
    assert_eq!(answers.len(), 20);
    for answer in answers {
        let answer = answer.unwrap();
        assert_eq!((answer.output_tokens, answer.finish), (3, Finish::Length));
    }
    drop(candle);
    thread.join().unwrap();
}

#[test]
fn the_thread_ends_when_the_engine_is_dropped() {
    let (candle, thread, _) = engine(Counting::default(), 4);
    let prepared = prepared(&candle, "one", 3);
    runtime().block_on(candle.generate(prepared)).unwrap();
    drop(candle);
    thread.join().unwrap();
}

#[test]
fn whoever_has_an_answer_finds_its_steps_and_the_first_token_in_the_figures() {
    let (candle, thread, _) = engine(Counting::default(), 1);
    let runtime = runtime();
    assert!(candle.figures().first_token.is_none());
    for n in 1..500 {
        // One token: the prompt's own step chooses it.
        let prepared = prepared(&candle, &format!("number {n}"), 1);
        runtime.block_on(candle.generate(prepared)).unwrap();
        let figures = candle.figures();
        assert_eq!(figures.steps, n);
        assert!(figures.first_token.is_some_and(|at| at <= Instant::now()));
        assert_eq!(figures.decode_rows, 0);
    }
    drop(candle);
    thread.join().unwrap();
}

#[test]
fn steps_are_counted_and_timed_and_gauges_are_there_while_nothing_is_done() {
    let (candle, thread, counted) = engine(Counting::default(), 2);
    let prepared = prepared(&candle, "one", 3);
    let prompt = prepared.prompt_tokens;
    runtime().block_on(candle.generate(prepared)).unwrap();
    let shown = PrometheusBuilder::new().build_recorder();
    ::metrics::with_local_recorder(&shown, || candle.show());
    let text = counted.render() + &shown.handle().render();
    for line in [
        "limn_engine_steps_total 3",
        &format!("limn_engine_rows_total{{phase=\"prefill\"}} {prompt}"),
        "limn_engine_rows_total{phase=\"decode\"} 2",
        "limn_engine_step_seconds_count{part=\"matrix\"} 3",
        "limn_engine_step_seconds_count{part=\"schedule\"} 3",
        "limn_engine_step_seconds_count{part=\"sample\"} 3",
        "limn_engine_batch 0",
        "limn_engine_cache_blocks{state=\"used\"} 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("limn_engine_cache_blocks{state=\"free\"}"));
    drop(candle);
    thread.join().unwrap();
}

#[test]
fn a_panic_of_the_model_fails_who_waits_by_name_and_ends_the_thread() {
    let (candle, thread, _) = engine(
        Counting {
            panics: true,
            ..Counting::default()
        },
        2,
    );
    let runtime = runtime();
    let ask = |user| runtime.block_on(candle.generate(prepared(&candle, user, 3)));
    let said = ask("one").unwrap_err().to_string();
    assert!(said.contains("has panicked"), "{said}");
    assert!(!said.contains("what a user wrote"), "{said}");
    thread.join().unwrap();
    let said = ask("two").unwrap_err().to_string();
    assert!(said.contains("the model's thread has ended"), "{said}");
}
