//! The thread that owns the model: takes requests as they come, steps the scheduler, and answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use super::chat::Chat;
use super::compute::Times;
use super::scheduler::{Counters, End, Ended, Gauges, Limits, Request, Scheduler};
use super::step::Forward;
use crate::engine::{Error, Output, Prepared};
use crate::metrics;

/// A request on its way to the thread.
pub(super) struct Work {
    /// The request.
    pub prepared: Prepared,
    /// The previous summary's tokens.
    pub previous: Vec<u32>,
    /// Set where nobody waits for the answer any more.
    pub gone: Arc<AtomicBool>,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Output, Error>>,
}

/// A model that can tell where its time went.
pub(super) trait Timed: Forward {
    /// Time by part of a step since the last question.
    fn times(&mut self) -> Times;
}

/// What the thread tells about itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Forward passes.
    pub steps: u64,
    /// Rows of prompts, those that were computed again included.
    pub prefill_rows: u64,
    /// Rows of single tokens.
    pub decode_rows: u64,
    /// Tokens proposed.
    pub drafted: u64,
    /// Of these, tokens that the model would have chosen itself.
    pub accepted: u64,
    /// Tokens of prompts that were found in the cache.
    pub cached_tokens: u64,
    /// Sequences that had to make room and were computed again.
    pub preemptions: u64,
    /// When the first token was there.
    pub first_token: Option<Instant>,
}

/// The thread's figures, shared with those who ask.
#[derive(Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Figures>>);

impl Shared {
    pub(super) fn read(&self) -> Figures {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Figures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, counters: Counters) {
        let mut figures = self.lock();
        let first = figures.first_token.or_else(|| {
            // A step that completes a prompt gives its first token; the first step with a decode is behind one.
            (counters.decode_rows > 0).then(Instant::now)
        });
        *figures = Figures {
            steps: counters.steps,
            prefill_rows: counters.prefill_rows,
            decode_rows: counters.decode_rows,
            drafted: counters.draft_rows,
            accepted: counters.accepted,
            cached_tokens: counters.prefix_hits,
            preemptions: counters.preemptions,
            first_token: first,
        };
    }
}

/// A request under way.
struct Open {
    reply: oneshot::Sender<Result<Output, Error>>,
    prompt_tokens: u32,
    began: Instant,
}

/// Runs until nobody can ask any more.
pub(super) fn run(
    mut model: impl Timed,
    limits: Limits,
    chat: &Chat,
    mut inbox: mpsc::Receiver<Work>,
    shared: &Shared,
) {
    let mut scheduler = Scheduler::new(limits, chat.stops().to_vec());
    let mut open = HashMap::new();
    let mut next = 0;
    let mut told = Counters::default();
    loop {
        // What waits beyond this waits in the channel: the scheduler needs no more to choose from.
        while scheduler.gauges().waiting < limits.sequences {
            let work = if scheduler.is_idle() {
                tell_gauges(scheduler.gauges());
                match inbox.blocking_recv() {
                    Some(work) => work,
                    None => return,
                }
            } else {
                match inbox.try_recv() {
                    Ok(work) => work,
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            };
            next += 1;
            take(work, next, &mut scheduler, &mut open);
        }
        for Ended { id, end } in scheduler.step(&mut model) {
            if let Some(open) = open.remove(&id) {
                answer(open, end, chat);
            }
        }
        let counters = scheduler.counters();
        tell_step(&told, &counters, model.times());
        tell_gauges(scheduler.gauges());
        shared.tell(counters);
        told = counters;
    }
}

fn take(work: Work, id: u64, scheduler: &mut Scheduler, open: &mut HashMap<u64, Open>) {
    let Work {
        prepared,
        previous,
        gone,
        reply,
    } = work;
    let request = Request {
        id,
        prompt: prepared.tokens,
        previous,
        max_tokens: prepared.request.max_tokens as usize,
        sampling: prepared.request.sampling,
        cancelled: Box::new(move || gone.load(Ordering::Relaxed)),
    };
    match scheduler.submit(request) {
        Ok(()) => {
            let opened = Open {
                reply,
                prompt_tokens: prepared.prompt_tokens,
                began: Instant::now(),
            };
            open.insert(id, opened);
        }
        // Whoever asked may have gone meanwhile.
        Err(error) => drop(reply.send(Err(error))),
    }
}

fn answer(open: Open, end: End, chat: &Chat) {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let result = match end {
        End::Done(done) => chat.decode(&done.tokens).map(|text| Output {
            text,
            finish: done.finish,
            prompt_tokens: open.prompt_tokens,
            cached_tokens: count(done.cached_tokens),
            output_tokens: count(done.tokens.len()),
            seconds: open.began.elapsed().as_secs_f64(),
        }),
        End::Failed(error) => Err(error),
        End::Cancelled => return,
    };
    // Whoever asked may have gone meanwhile.
    let _ = open.reply.send(result);
}

fn tell_step(before: &Counters, now: &Counters, times: Times) {
    use ::metrics::counter;
    counter!(metrics::ENGINE_STEPS).increment(now.steps - before.steps);
    for (phase, count) in [
        ("prefill", now.prefill_rows - before.prefill_rows),
        ("decode", now.decode_rows - before.decode_rows),
        ("draft", now.draft_rows - before.draft_rows),
    ] {
        counter!(metrics::ENGINE_ROWS, "phase" => phase).increment(count);
    }
    counter!(metrics::ENGINE_DRAFTS_ACCEPTED).increment(now.accepted - before.accepted);
    counter!(metrics::ENGINE_PREFIX_TOKENS).increment(now.prefix_hits - before.prefix_hits);
    counter!(metrics::ENGINE_PREEMPTIONS).increment(now.preemptions - before.preemptions);
    // A GPU computes while its next work is handed to it: nothing is known of its parts, and zeros would be wrong.
    if times == Times::default() {
        return;
    }
    for (part, time) in times.parts() {
        ::metrics::histogram!(metrics::ENGINE_STEP_SECONDS, "part" => part).record(time);
    }
}

#[allow(clippy::cast_precision_loss)] // gauges are floats
fn tell_gauges(gauges: Gauges) {
    use ::metrics::gauge;
    gauge!(metrics::ENGINE_BATCH).set(gauges.running as f64);
    let free = gauges.blocks - gauges.blocks_in_use - gauges.blocks_cached;
    for (state, blocks) in [
        ("used", gauges.blocks_in_use),
        ("cached", gauges.blocks_cached),
        ("free", free),
    ] {
        gauge!(metrics::ENGINE_CACHE_BLOCKS, "state" => state).set(blocks as f64);
    }
}
