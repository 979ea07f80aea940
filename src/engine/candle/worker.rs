//! The thread that owns the model: takes requests as they come, steps the scheduler, and answers.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use super::chat::Chat;
use super::compute::Times;
use super::scheduler::{Counters, End, Ended, Gauges, Limits, Request, Scheduler};
use super::step::{Answer, Forward, Step};
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
pub(super) struct Shared(Arc<Mutex<(Figures, Gauges)>>);

impl Shared {
    pub(super) fn read(&self) -> Figures {
        self.lock().0
    }

    /// Sets the gauges as they were told last.
    #[allow(clippy::cast_precision_loss)] // gauges are floats
    pub(super) fn show(&self) {
        use ::metrics::gauge;
        let gauges = self.lock().1;
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

    fn lock(&self) -> MutexGuard<'_, (Figures, Gauges)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, counters: Counters, gauges: Gauges) {
        let mut told = self.lock();
        let first = || (counters.chosen > 0).then(Instant::now);
        let figures = Figures {
            steps: counters.steps,
            prefill_rows: counters.prefill_rows,
            decode_rows: counters.decode_rows,
            drafted: counters.draft_rows,
            accepted: counters.accepted,
            cached_tokens: counters.prefix_hits,
            preemptions: counters.preemptions,
            first_token: told.0.first_token.or_else(first),
        };
        *told = (figures, gauges);
    }
}

/// A request under way.
struct Open {
    reply: oneshot::Sender<Result<Output, Error>>,
    prompt_tokens: u32,
    began: Instant,
}

/// Runs until nobody can ask any more, or the model panics: whoever waits for an answer then has an error.
pub(super) fn run(
    mut model: impl Timed,
    limits: Limits,
    chat: &Chat,
    mut inbox: mpsc::Receiver<Work>,
    shared: &Shared,
) {
    let mut open = HashMap::new();
    // Nothing of what the panic may have left half done is used again.
    let served = catch_unwind(AssertUnwindSafe(|| {
        serve(&mut model, limits, chat, &mut inbox, shared, &mut open);
    }));
    if served.is_err() {
        // What the panic said is on standard error, and stays out of the log: it may quote the texts that it was about.
        tracing::error!("the model's thread has panicked and ends; standard error has its message");
        for (_, open) in open {
            // Whoever asked may have gone meanwhile.
            let _ = open.reply.send(Err(Error::Broken {
                reason: "the model's thread has panicked; its message is on standard error"
                    .to_owned(),
            }));
        }
    }
}

fn serve(
    model: &mut impl Timed,
    limits: Limits,
    chat: &Chat,
    inbox: &mut mpsc::Receiver<Work>,
    shared: &Shared,
    open: &mut HashMap<u64, Open>,
) {
    let mut scheduler = Scheduler::new(limits, chat.stops().to_vec());
    let mut next = 0;
    let mut told = Counters::default();
    shared.tell(told, scheduler.gauges());
    loop {
        // What waits beyond this waits in the channel: the scheduler needs no more to choose from.
        while scheduler.gauges().waiting < limits.sequences {
            let work = if scheduler.is_idle() {
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
            take(work, next, &mut scheduler, open);
        }
        let began = Instant::now();
        let mut watched = Watched { model, pass: None };
        let ended = scheduler.step(&mut watched);
        if let Some((entered, left)) = watched.pass {
            tell_times(entered - began, left.elapsed(), model.times());
        }
        let counters = scheduler.counters();
        tell_step(&told, &counters);
        // Before the answers: whoever has the last of them may ask for the figures at once.
        shared.tell(counters, scheduler.gauges());
        told = counters;
        for Ended { id, end } in ended {
            if let Some(open) = open.remove(&id) {
                answer(open, end, chat);
            }
        }
    }
}

/// Notes when the forward pass began and when it ended.
struct Watched<'a, F> {
    model: &'a mut F,
    pass: Option<(Instant, Instant)>,
}

impl<F: Forward> Forward for Watched<'_, F> {
    fn step(&mut self, step: &Step) -> Result<Vec<Answer>, Error> {
        let began = Instant::now();
        let answers = self.model.step(step);
        self.pass = Some((began, Instant::now()));
        answers
    }

    fn copy_block(&mut self, from: u32, to: u32) -> Result<(), Error> {
        self.model.copy_block(from, to)
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

fn tell_step(before: &Counters, now: &Counters) {
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
}

/// Tells where the time of a step with a forward pass went: before the pass, behind it, and in its parts.
fn tell_times(schedule: Duration, sample: Duration, times: Times) {
    let mut parts = vec![("schedule", schedule), ("sample", sample)];
    // A GPU computes while its next work is handed to it: nothing is known of its parts, and zeros would be wrong.
    if times != Times::default() {
        parts.extend(times.parts());
    }
    for (part, time) in parts {
        ::metrics::histogram!(metrics::ENGINE_STEP_SECONDS, "part" => part).record(time);
    }
}

#[cfg(test)]
mod tests;
