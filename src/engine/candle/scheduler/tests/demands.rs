//! One test for each promise.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::fake::{Fake, STOP, VOCAB, reference};
use super::*;

/// A text of its own for each number: no two have more than a few tokens in common.
fn text(number: u32, len: usize) -> Vec<u32> {
    let mut state = number;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        1 + (state >> 16) % (VOCAB - 1)
    };
    (0..len).map(next).collect()
}

fn request(id: u64, prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        id,
        prompt,
        previous: Vec::new(),
        max_tokens,
        sampling: Sampling::Greedy,
        cancelled: Box::new(|| false),
    }
}

fn scheduler(limits: Limits) -> (Scheduler, Fake) {
    (Scheduler::new(limits, vec![STOP]), Fake::new(limits.blocks))
}

fn all(scheduler: &mut Scheduler, fake: &mut Fake) -> Vec<Ended> {
    let mut ended = Vec::new();
    for _ in 0..10_000 {
        if scheduler.is_idle() {
            return ended;
        }
        ended.extend(scheduler.step(fake));
        check(scheduler);
    }
    panic!("no end");
}

fn done(end: &End) -> &Done {
    match end {
        End::Done(done) => done,
        other => panic!("{other:?}"),
    }
}

/// The `n`-th text from `from` on whose answer has at least so many tokens and ends as wanted.
fn answered(
    from: u32,
    len: usize,
    max: usize,
    wanted: impl Fn(&(Vec<u32>, Finish)) -> bool,
) -> Vec<u32> {
    let mut texts = (from..).map(|n| text(n, len));
    texts
        .find(|text| wanted(&reference(text, max, &Sampling::Greedy)))
        .unwrap()
}

#[test]
fn the_instructions_of_requests_that_come_together_are_computed_once() {
    // No multiple of a block: the block in which they end is copied for each.
    let instructions = text(1, 77);
    let (mut scheduler, mut fake) = scheduler(limits());
    let mut own = 0;
    for id in 0..16 {
        let mut prompt = instructions.clone();
        // The first own token differs.
        prompt.push(id as u32 + 1);
        prompt.extend(text(100 + id as u32, 40));
        own += prompt.len() - instructions.len();
        scheduler.submit(request(id, prompt, 1)).unwrap();
    }
    let ended = all(&mut scheduler, &mut fake);
    assert_eq!(fake.rows(), instructions.len() + own);
    assert_eq!(scheduler.counters().prefix_hits as usize, 15 * 77);
    let cached = |id| done(&ended.iter().find(|e| e.id == id).unwrap().end).cached_tokens;
    assert_eq!(cached(0), 0);
    assert!((1..16).all(|id| cached(id) == 77));
    // A single wait, not one for each.
    assert!(fake.steps.len() <= 5, "{}", fake.steps.len());
}

#[test]
fn nobody_waits_for_what_will_not_be_found() {
    let (mut scheduler, mut fake) = scheduler(limits());
    // Alike in their first 30 tokens, which fill no block; alike in 10 of a full block, which are not worth a step.
    let (mut first, mut second) = (text(1, 10), text(1, 30));
    first.extend(text(2, 60));
    second.push(1);
    for (id, prompt) in [first, second, text(1, 31)].into_iter().enumerate() {
        scheduler.submit(request(id as u64, prompt, 1)).unwrap();
    }
    scheduler.step(&mut fake);
    assert_eq!(fake.steps[0].spans.len(), 3);
}

#[test]
fn nobody_begins_who_would_be_sent_back_at_once() {
    let (mut scheduler, mut fake) = scheduler(Limits {
        blocks: 4,
        ..limits()
    });
    // Two blocks each. The first needs a third soon.
    for id in 0..2 {
        let prompt = answered(id as u32 * 100, 60, 30, |a| a.0.len() == 30);
        scheduler.submit(request(id, prompt, 30)).unwrap();
    }
    scheduler.step(&mut fake);
    assert_eq!(scheduler.gauges().running, 1);
    all(&mut scheduler, &mut fake);
    assert_eq!(scheduler.counters().preemptions, 0);
}

#[test]
fn a_prefix_is_found_again_after_its_last_user_left() {
    let (mut scheduler, mut fake) = scheduler(limits());
    scheduler.submit(request(0, text(1, 100), 1)).unwrap();
    all(&mut scheduler, &mut fake);
    assert_eq!(scheduler.gauges().blocks_cached, 3);
    let before = fake.rows();
    scheduler.submit(request(1, text(1, 100), 1)).unwrap();
    all(&mut scheduler, &mut fake);
    // The fourth block was never full.
    assert_eq!(fake.rows() - before, 4);
    // All of a prompt may be in the cache: its last token is computed nevertheless.
    scheduler.submit(request(2, text(1, 96), 1)).unwrap();
    let ended = all(&mut scheduler, &mut fake);
    assert_eq!(fake.rows() - before, 5);
    assert_eq!(done(&ended[0].end).cached_tokens, 95);
}

#[test]
fn every_sequence_that_decodes_goes_on_while_long_prompts_are_computed() {
    let (mut scheduler, mut fake) = scheduler(Limits {
        step_tokens: 64,
        ..limits()
    });
    let talker = answered(1, 10, 60, |a| a.0.len() > 50);
    scheduler.submit(request(0, talker, 60)).unwrap();
    scheduler.step(&mut fake);
    for id in 1..4 {
        scheduler
            .submit(request(id, text(50 + id as u32, 300), 1))
            .unwrap();
    }
    let mut ended = Vec::new();
    while ended.len() < 3 {
        let before = scheduler.running[0].tokens.len();
        ended.extend(scheduler.step(&mut fake));
        assert_eq!(scheduler.running[0].tokens.len(), before + 1);
        let step = fake.steps.last().unwrap();
        assert!(step.tokens.len() <= 64);
        assert_eq!((step.spans[0].rows, step.wanted[0].row), (1, 0));
    }
    // The rest of each step went to the prompts: 900 tokens, 63 a step.
    assert_eq!(fake.steps.len(), 1 + 900usize.div_ceil(63));
    assert_eq!(ended.iter().map(|e| e.id).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn who_came_first_begins_first() {
    let (mut scheduler, mut fake) = scheduler(Limits {
        sequences: 2,
        blocks: 12,
        ..limits()
    });
    // The second needs nearly all blocks; the third would fit beside the first, and waits for its turn.
    let lens = [100, 330, 10, 10];
    for (id, len) in lens.into_iter().enumerate() {
        let prompt = text(id as u32 + 1, len);
        scheduler.submit(request(id as u64, prompt, 5)).unwrap();
    }
    let mut begun: Vec<u64> = Vec::new();
    while !scheduler.is_idle() {
        scheduler.step(&mut fake);
        check(&scheduler);
        for sequence in &scheduler.running {
            if !begun.contains(&sequence.request.id) {
                begun.push(sequence.request.id);
            }
        }
    }
    assert!(begun.is_sorted(), "{begun:?}");
}

#[test]
fn a_full_cache_sends_the_youngest_back_and_no_answer_suffers() {
    let (mut scheduler, mut fake) = scheduler(Limits {
        blocks: 12,
        ..limits()
    });
    let mut prompts = Vec::new();
    for id in 0..5u32 {
        let prompt = answered(id * 1000, 40, 100, |a| a.0.len() == 100);
        prompts.push(prompt.clone());
        scheduler
            .submit(request(u64::from(id), prompt, 100))
            .unwrap();
    }
    let mut ended = Vec::new();
    while !scheduler.is_idle() {
        let ids: Vec<u64> = scheduler.running.iter().map(|s| s.request.id).collect();
        ended.extend(scheduler.step(&mut fake));
        check(&scheduler);
        let back: Vec<u64> = scheduler.waiting.iter().map(|s| s.request.id).collect();
        let stay: Vec<u64> = scheduler.running.iter().map(|s| s.request.id).collect();
        for id in ids.iter().filter(|id| back.contains(id)) {
            assert!(stay.iter().all(|other| other < id), "not the youngest");
        }
    }
    assert!(scheduler.counters().preemptions > 0);
    for end in &ended {
        let wanted = reference(&prompts[end.id as usize], 100, &Sampling::Greedy);
        assert_eq!(done(&end.end).tokens, wanted.0);
    }
}

#[test]
fn what_can_never_fit_is_refused_by_name() {
    let (mut scheduler, _) = scheduler(Limits {
        blocks: 4,
        ..limits()
    });
    let error = scheduler.submit(request(0, text(1, 100), 29)).unwrap_err();
    assert!(
        matches!(
            error,
            Error::TooLong {
                tokens: 100,
                answer: 29,
                context: 128,
                bound: Bound::Cache,
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("engine.cache"), "{error}");
    scheduler.submit(request(1, text(1, 100), 28)).unwrap();
    let error = scheduler.submit(request(2, Vec::new(), 1)).unwrap_err();
    assert!(error.to_string().contains("the prompt is empty"), "{error}");
    let short = Limits {
        context: 50,
        ..limits()
    };
    let error = Scheduler::new(short, vec![STOP]).submit(request(3, text(1, 50), 1));
    assert!(matches!(
        error,
        Err(Error::TooLong {
            context: 50,
            bound: Bound::Context,
            ..
        })
    ));
    let endless = request(4, text(1, 50), usize::MAX);
    assert!(scheduler.submit(endless).is_err());
}

#[test]
fn the_largest_that_fits_alone_is_served() {
    let (mut scheduler, mut fake) = scheduler(Limits {
        blocks: 4,
        ..limits()
    });
    let prompt = answered(1, 100, 28, |a| a.0.len() == 28);
    for id in 0..3 {
        scheduler.submit(request(id, prompt.clone(), 28)).unwrap();
    }
    let ended = all(&mut scheduler, &mut fake);
    assert!(ended.iter().all(|e| done(&e.end).tokens.len() == 28));
}

#[test]
fn who_is_given_up_is_gone_at_the_next_step_wherever_it_is() {
    let (mut scheduler, mut fake) = scheduler(Limits {
        sequences: 2,
        step_tokens: 40,
        ..limits()
    });
    let given_up = Arc::new(AtomicBool::new(false));
    // One decodes, one is in the midst of its prompt, one waits.
    for (id, len) in [(0, 5), (1, 400), (2, 5)] {
        let flag = given_up.clone();
        scheduler
            .submit(Request {
                cancelled: Box::new(move || flag.load(Ordering::Relaxed)),
                ..request(
                    id,
                    answered(id as u32 * 99, len, 90, |a| a.0.len() > 80),
                    90,
                )
            })
            .unwrap();
    }
    for _ in 0..3 {
        assert!(scheduler.step(&mut fake).is_empty());
    }
    assert!(scheduler.running[0].decodes() && !scheduler.running[1].decodes());
    assert_eq!(scheduler.gauges().waiting, 1);
    given_up.store(true, Ordering::Relaxed);
    let steps = fake.steps.len();
    let ended = scheduler.step(&mut fake);
    assert!(ended.iter().all(|e| matches!(e.end, End::Cancelled)));
    assert_eq!(ended.len(), 3);
    assert_eq!(
        (scheduler.gauges().blocks_in_use, fake.steps.len()),
        (0, steps)
    );
    assert!(scheduler.is_idle());
    check(&scheduler);
}

#[test]
fn a_failure_of_the_model_ends_what_runs_and_empties_the_cache() {
    let (mut scheduler, mut fake) = scheduler(Limits {
        sequences: 2,
        ..limits()
    });
    for id in 0..3 {
        scheduler.submit(request(id, text(1, 70), 20)).unwrap();
    }
    fake.fails_at = Some(2);
    let mut ended = Vec::new();
    while ended.is_empty() {
        ended = scheduler.step(&mut fake);
    }
    assert_eq!(ended.iter().map(|e| e.id).collect::<Vec<_>>(), [0, 1]);
    for end in ended {
        assert!(
            matches!(end.end, End::Failed(Error::Broken { reason }) if reason == "the script says so")
        );
    }
    let gauges = scheduler.gauges();
    assert_eq!((gauges.blocks_in_use, gauges.blocks_cached), (0, 0));
    // Who waited is served when the model works again.
    let ended = all(&mut scheduler, &mut fake);
    assert_eq!(
        done(&ended[0].end).tokens,
        reference(&text(1, 70), 20, &Sampling::Greedy).0
    );
}

#[test]
fn a_failed_copy_of_a_block_is_a_failure_of_the_model() {
    let (mut scheduler, mut fake) = scheduler(limits());
    scheduler.submit(request(0, text(1, 64), 1)).unwrap();
    all(&mut scheduler, &mut fake);
    fake.copies_fail = true;
    scheduler.submit(request(1, text(1, 50), 1)).unwrap();
    let ended = scheduler.step(&mut fake);
    assert!(matches!(ended[0].end, End::Failed(_)));
    check(&scheduler);
    assert!(scheduler.is_idle());
}

#[test]
fn logits_that_are_not_numbers_end_their_own_request_by_name() {
    let (mut scheduler, mut fake) = scheduler(limits());
    fake.poison = Some(39);
    let random = Sampling::Random {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 1,
    };
    for (id, last) in [(0, 39), (1, 38)] {
        let mut prompt = text(id as u32, 10);
        prompt.push(last);
        scheduler
            .submit(Request {
                sampling: random,
                ..request(id, prompt, 1)
            })
            .unwrap();
    }
    let ended = all(&mut scheduler, &mut fake);
    assert!(
        matches!(&ended[0].end, End::Failed(Error::Broken { reason }) if reason.contains("token 3 a logit that is not a number"))
    );
    assert_eq!(done(&ended[1].end).tokens.len(), 1);
}

#[test]
fn likeliest_tokens_of_logits_that_are_not_numbers_end_their_own_request_too() {
    let (mut scheduler, mut fake) = scheduler(limits());
    fake.poison = Some(39);
    for (id, last) in [(0, 39), (1, 38)] {
        let mut prompt = text(id as u32, 10);
        prompt.push(last);
        scheduler.submit(request(id, prompt, 1)).unwrap();
    }
    let ended = all(&mut scheduler, &mut fake);
    assert!(
        matches!(&ended[0].end, End::Failed(Error::Broken { reason }) if reason.contains("no token a likelihood"))
    );
    assert_eq!(done(&ended[1].end).tokens.len(), 1);
}

#[test]
fn an_answer_ends_by_itself_at_its_limit_or_in_a_loop() {
    let (mut scheduler, mut fake) = scheduler(limits());
    let wanted = [Finish::Stop, Finish::Length, Finish::Loop];
    let prompts: Vec<_> = wanted
        .iter()
        .map(|&finish| answered(1, 9, 120, |a| a.1 == finish && !a.0.is_empty()))
        .collect();
    for (id, prompt) in prompts.iter().enumerate() {
        scheduler
            .submit(request(id as u64, prompt.clone(), 120))
            .unwrap();
    }
    scheduler.submit(request(3, text(1, 9), 0)).unwrap();
    for end in all(&mut scheduler, &mut fake) {
        let finish = wanted.get(end.id as usize).unwrap_or(&Finish::Length);
        let done = done(&end.end);
        assert_eq!(done.finish, *finish);
        assert!(!done.tokens.contains(&STOP));
        assert_eq!(done.tokens.is_empty(), end.id == 3);
    }
}

#[test]
fn drafts_save_steps_and_change_neither_greedy_nor_sampled_answers() {
    let random = Sampling::Random {
        temperature: 0.7,
        top_k: 20,
        top_p: 0.95,
        min_p: 0.0,
        seed: 9,
    };
    for sampling in [Sampling::Greedy, random] {
        let mut runs = Vec::new();
        for most in [0, 32] {
            let (mut scheduler, mut fake) = scheduler(Limits {
                drafts: Policy {
                    most,
                    ..Policy::default()
                },
                ..limits()
            });
            let mut answers = Vec::new();
            for id in 0..20 {
                // The fake goes on as its prompt does.
                let prompt = text(id as u32, 60);
                let previous = prompt.clone();
                scheduler
                    .submit(Request {
                        previous,
                        sampling,
                        ..request(id, prompt, 100)
                    })
                    .unwrap();
                let ended = all(&mut scheduler, &mut fake);
                let done = done(&ended[0].end);
                answers.push((done.tokens.clone(), done.finish));
                assert!(done.tokens.len() <= 100);
            }
            runs.push((answers, scheduler.counters()));
        }
        let (plain, drafted) = (&runs[0], &runs[1]);
        assert_eq!(plain.0, drafted.0);
        assert_eq!(plain.1.draft_rows, 0);
        assert!(drafted.1.accepted > 0 && drafted.1.accepted <= drafted.1.draft_rows);
        let saved = drafted.1.steps as f64 / plain.1.steps as f64;
        assert!(saved < 0.7, "{saved}");
    }
}

#[test]
fn no_draft_goes_beyond_the_answers_limit_or_the_blocks() {
    let (mut scheduler, mut fake) = scheduler(Limits {
        blocks: 3,
        drafts: Policy {
            probability: 0.0,
            ..Policy::default()
        },
        ..limits()
    });
    let prompt = text(3, 60);
    let previous = prompt.clone();
    scheduler
        .submit(Request {
            previous,
            ..request(0, prompt, 36)
        })
        .unwrap();
    all(&mut scheduler, &mut fake);
    assert!(scheduler.counters().draft_rows > 0);
    for step in &fake.steps {
        // The answer's last token is never computed.
        assert!(step.spans[0].start + step.spans[0].rows < 96);
    }
}
