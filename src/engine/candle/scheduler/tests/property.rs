//! Whatever comes, whenever it comes and goes: every request ends once, with the answer it would get alone.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::fake::{Fake, STOP, VOCAB, reference};
use super::{check, limits};
use crate::engine::Sampling;
use crate::engine::candle::draft::Policy;
use crate::engine::candle::scheduler::{End, Limits, Request, Scheduler};
use crate::engine::candle::step::BLOCK;

#[derive(Debug, Clone)]
struct Case {
    /// The step before which it comes.
    arrives: usize,
    /// The step before which it is given up.
    cancelled: Option<usize>,
    prompt: Vec<u32>,
    previous: Vec<u32>,
    max_tokens: usize,
    sampling: Sampling,
}

/// Prompts share beginnings: of whole blocks and of parts of blocks.
fn prompt() -> impl Strategy<Value = Vec<u32>> {
    let text = |seed: u32, len: usize| -> Vec<u32> {
        (0..len as u32)
            .map(|i| 1 + (i * i * 7 + i * seed) % (VOCAB - 1))
            .collect()
    };
    (0u32..2, 0usize..75, 3u32..6, 1usize..50).prop_map(move |(system, shared, own, rest)| {
        let mut prompt = text(system, shared);
        prompt.extend(text(own, rest));
        prompt
    })
}

fn case() -> impl Strategy<Value = Case> {
    let sampling = prop_oneof![
        2 => Just(Sampling::Greedy),
        1 => (0u64..5).prop_map(|seed| Sampling::Random {
            temperature: 0.8, top_k: 10, top_p: 0.95, min_p: 0.01, seed
        }),
    ];
    (
        0usize..25,
        proptest::option::weighted(0.2, 0usize..60),
        prompt(),
        any::<bool>(),
        0usize..60,
        sampling,
    )
        .prop_map(
            |(arrives, cancelled, prompt, copies, max_tokens, sampling)| Case {
                arrives,
                cancelled: cancelled.map(|after| arrives + after),
                // The fake repeats the beginning of its prompt.
                previous: if copies { prompt.clone() } else { Vec::new() },
                prompt,
                max_tokens,
                sampling,
            },
        )
}

fn any_limits() -> impl Strategy<Value = Limits> {
    (
        1usize..16,
        1usize..6,
        1usize..200,
        prop_oneof![Just(0), Just(4), Just(32)],
        prop_oneof![Just(0), Just(8), Just(1000)],
        prop_oneof![Just(0.0), Just(0.2)],
    )
        .prop_map(
            |(blocks, sequences, step_tokens, most, knee_rows, probability)| Limits {
                blocks,
                sequences,
                step_tokens,
                drafts: Policy {
                    most,
                    knee_rows,
                    probability,
                    ..Policy::default()
                },
                ..limits()
            },
        )
}

fn run(limits: Limits, cases: &[Case], fails_at: Option<usize>) -> Result<(), TestCaseError> {
    let mut scheduler = Scheduler::new(limits, vec![STOP]);
    let mut fake = Fake::new(limits.blocks);
    fake.fails_at = fails_at;
    let flags: Vec<Arc<AtomicBool>> = cases.iter().map(|_| Arc::default()).collect();
    let mut taken = Vec::new();
    let mut ends: BTreeMap<u64, End> = BTreeMap::new();
    let last = cases.iter().map(|c| c.arrives).max().unwrap_or(0);
    // Each step brings the oldest a row further; what is preempted is computed again at most once for each older one.
    let work: usize = cases.iter().map(|c| c.prompt.len() + c.max_tokens).sum();
    let bound = last + (work + 2) * (cases.len() + 1);
    let number = Cell::new(0);
    while number.get() <= last || !scheduler.is_idle() {
        let now = number.get();
        prop_assert!(now < bound, "no end after {} steps", now);
        for (id, case) in cases.iter().enumerate().filter(|(_, c)| c.arrives == now) {
            let flag = flags[id].clone();
            let fits = case.prompt.len() + case.max_tokens <= scheduler.limits.longest().0;
            let result = scheduler.submit(Request {
                id: id as u64,
                prompt: case.prompt.clone(),
                previous: case.previous.clone(),
                max_tokens: case.max_tokens,
                sampling: case.sampling,
                cancelled: Box::new(move || flag.load(Ordering::Relaxed)),
            });
            prop_assert_eq!(result.is_ok(), fits);
            if fits {
                taken.push(id as u64);
            }
        }
        for (id, case) in cases.iter().enumerate() {
            if case.cancelled == Some(now) {
                flags[id].store(true, Ordering::Relaxed);
            }
        }
        let decoding: Vec<(u64, usize)> = scheduler
            .running
            .iter()
            .filter(|s| s.decodes())
            .map(|s| (s.request.id, s.tokens.len()))
            .collect();
        let oldest = scheduler.running.first().map(|s| s.request.id);
        let ended = scheduler.step(&mut fake);
        check(&scheduler);
        // Decodes never starve: each that was not sent back or ended has grown.
        for (id, len) in decoding {
            if let Some(sequence) = scheduler.running.iter().find(|s| s.request.id == id) {
                prop_assert!(sequence.tokens.len() > len, "request {} got no row", id);
            }
        }
        if let Some(oldest) = oldest {
            let back = scheduler.waiting.iter().any(|s| s.request.id == oldest);
            prop_assert!(!back, "the oldest was sent back");
        }
        for end in ended {
            prop_assert!(ends.insert(end.id, end.end).is_none(), "ended twice");
        }
        number.set(now + 1);
    }
    prop_assert_eq!(taken, ends.keys().copied().collect::<Vec<_>>());
    for (id, end) in &ends {
        let case = &cases[*id as usize];
        match end {
            End::Done(done) => {
                let wanted = reference(&case.prompt, case.max_tokens, &case.sampling);
                prop_assert_eq!((&done.tokens, done.finish), (&wanted.0, wanted.1));
                prop_assert!(
                    done.accepted <= done.drafted && done.cached_tokens < case.prompt.len()
                );
            }
            End::Cancelled => prop_assert!(case.cancelled.is_some()),
            End::Failed(_) => prop_assert!(fails_at.is_some()),
        }
    }
    let gauges = scheduler.gauges();
    prop_assert_eq!(gauges.blocks_in_use, 0);
    let counters = scheduler.counters();
    let failed = fails_at.and_then(|at| fake.steps.get(at));
    prop_assert_eq!(
        (counters.prefill_rows + counters.decode_rows + counters.draft_rows) as usize,
        fake.rows() - failed.map_or(0, |step| step.tokens.len())
    );
    for step in &fake.steps {
        prop_assert!(step.tokens.len() <= limits.step_tokens.max(limits.sequences + BLOCK));
        prop_assert!(step.spans.len() <= limits.sequences);
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_request_ends_once_with_its_own_answer_and_no_block_is_lost(
        limits in any_limits(),
        mut cases in proptest::collection::vec(case(), 1..14),
        fails_at in proptest::option::weighted(0.15, 0usize..40),
    ) {
        cases.sort_by_key(|case| case.arrives);
        run(limits, &cases, fails_at)?;
    }
}
