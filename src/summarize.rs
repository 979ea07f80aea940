//! Closed windows in, one update out: the prompt, the model call or its journal entry, the gate.

mod budget;
mod done;
mod gate;
mod journal;
mod prompt;
mod seed;
#[cfg(test)]
mod tests;

pub use budget::check;
pub use done::Done;
use done::{Settled, settle};
pub use gate::Refusal;
pub use prompt::{Line, Prompt, TemplateError};

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::codec::{self, Reason, Rejected, proto};
use crate::engine::{self, Engine, Output, Prepared, Request, Sampling};
use crate::profile;
use crate::store::{self, Store};
use crate::window::{Bag, CloseReason, Closed, View};
use crate::{failpoint, metrics};

/// How updates are made.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The instructions: the same for every update.
    pub instructions: String,
    /// Template of one event's line; see [`Line`] for what it may use.
    pub event: String,
    /// Template of the message: `profile` is the summary so far, `events` the lines.
    pub message: String,
    /// Stands for the summary of a user who has none.
    pub empty_profile: String,
    /// Most tokens of a summary.
    pub max_tokens: u32,
    /// Most tokens of a prompt.
    pub prompt_tokens: u32,
    /// Most events folded by one update.
    pub max_events: usize,
    /// How tokens are chosen. A seed in it is that of all requests: each draws by one of its own, made of it and the prompt.
    pub sampling: Sampling,
    /// How often a refused answer is asked for again before the window is halved.
    pub retries: u32,
    /// How the tokens of these are chosen.
    pub retry_sampling: Sampling,
    /// Wait before a failed engine is asked again, at first; it doubles up to `backoff_max`.
    pub backoff: Duration,
    /// Longest such wait.
    pub backoff_max: Duration,
    /// An engine that has not answered after so long counts as failed; the next time it has twice as long.
    pub answer_timeout: Duration,
}

/// What waits to be folded into one user's profile.
#[derive(Debug)]
pub struct Job {
    /// The user.
    pub user: Arc<str>,
    /// The input topic and partition, which templates may name.
    pub topic: Arc<str>,
    /// The input partition.
    pub partition: i32,
    /// The profile so far.
    pub profile: Option<Arc<proto::ProfileState>>,
    /// The closed windows, in the order in which they are folded. Not empty, and none of them is.
    pub windows: VecDeque<Closed>,
}

/// One folding of events into a profile.
#[derive(Debug)]
pub struct Update {
    /// The new summary.
    pub summary: String,
    /// The events that it was made of.
    pub events: Bag,
    /// How many closed windows these complete.
    pub windows: u32,
    /// Why the last of the windows touched closed.
    pub reason: CloseReason,
    /// What the calls took, refused ones included.
    pub usage: proto::Usage,
    /// BLAKE3 of what the model was asked.
    pub call: [u8; 32],
    /// What was taken away and added.
    pub edits: Vec<proto::Edit>,
}

/// Why no update can be made at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine will never answer as it is configured.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The journal cannot be read or written.
    #[error("journal: {0}")]
    Journal(#[from] store::Error),
    /// A template is wrong, whatever the events.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// No event could ever be folded.
    #[error("summary.prompt_tokens is {given}{}, but an update takes {needed} tokens at least: the instructions, a profile of summary.max_tokens ({answer}) and one short event. Make room for {needed}, or make summary.instructions or summary.max_tokens smaller",
        .context.map_or_else(String::new, |(bound, context, left)| format!(", and {bound} {context}, which leaves {left} beside an answer")))]
    Budget {
        /// `summary.prompt_tokens`.
        given: u32,
        /// `summary.max_tokens`.
        answer: u32,
        /// What the engine can take, why, and what that leaves beside an answer, where it is less than `given`.
        context: Option<(engine::Bound, u32, u32)>,
        /// Tokens of the smallest prompt that must fit.
        needed: u32,
    },
}

/// Makes updates. Shared by all tasks.
pub struct Summarizer {
    config: Config,
    prompt: Prompt,
    engine: Arc<dyn Engine>,
    store: Arc<Store>,
    decoder: codec::Decoder,
}

impl Summarizer {
    /// Compiles the templates.
    ///
    /// # Errors
    /// [`TemplateError`] where one is wrong.
    pub fn new(
        config: Config,
        decoder: codec::Decoder,
        engine: Arc<dyn Engine>,
        store: Arc<Store>,
    ) -> Result<Self, TemplateError> {
        Ok(Self {
            prompt: Prompt::new(&config)?,
            config,
            engine,
            store,
            decoder,
        })
    }

    /// The engine that answers.
    #[must_use]
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Most events that one update takes.
    #[must_use]
    pub fn max_events(&self) -> usize {
        self.config.max_events.max(1)
    }

    /// Makes one update out of as many of the waiting events as one prompt holds, or gives some of them up: each call
    /// settles at least one event. What is over goes back to the queue.
    ///
    /// A failing engine is asked again until it answers; no event is given up for it. Dropping the future ends that.
    ///
    /// # Errors
    /// See [`Error`]: nothing of the job is settled then.
    pub async fn update(&self, job: Job) -> Result<Done, Error> {
        let mut done = Done {
            update: None,
            dead: Vec::new(),
            rest: job.windows,
            refusals: Vec::new(),
        };
        let (mut lines, rejected) = self.lines(&job.topic, job.partition, &done.rest);
        if let Some(rejected) = rejected.filter(|_| lines.is_empty()) {
            return Ok(done.give_up_first(rejected));
        }
        let before = job.profile.as_ref().map_or("", |p| p.summary.as_str());
        let (mut count, prepared) = match self.fit(before, &lines)? {
            Fit::Takes(count, prepared) => (count, prepared),
            Fit::Not(rejected) => return Ok(done.give_up_first(rejected)),
        };
        // What the model is not asked about need not be here twice for as long as it takes.
        lines.truncate(count);
        let mut usage = proto::Usage::default();
        let mut answer = self
            .answer(prepared, &mut usage, &mut done.refusals)
            .await?;
        if answer.is_none() && count > 1 {
            // Half of the events may pass where all did not; the others get an update of their own.
            count = count.div_ceil(2);
            if let Some(prepared) = self.prepare(before, &lines[..count])? {
                answer = self
                    .answer(prepared, &mut usage, &mut done.refusals)
                    .await?;
            }
        }
        let Settled {
            events,
            windows,
            reason,
        } = settle(&mut done.rest, count);
        match answer {
            Some((summary, call)) => {
                done.update = Some(Update {
                    edits: profile::edits(before, &summary)
                        .into_iter()
                        .map(Into::into)
                        .collect(),
                    summary,
                    events,
                    windows,
                    reason,
                    usage,
                    call,
                });
            }
            None => {
                let why = done.refusals.last().map_or("refused", |r| r.name());
                let detail = format!(
                    "{why}: {} answers for the {} events folded together were refused",
                    done.refusals.len(),
                    events.len()
                );
                let reason = Reason::Refused;
                done.dead.extend(events.iter().map(|e| {
                    (
                        e,
                        Rejected {
                            reason,
                            detail: detail.clone(),
                        },
                    )
                }));
            }
        }
        Ok(done)
    }

    /// The lines of the events that may be folded together, up to the first that has none, and why that has none.
    fn lines(
        &self,
        topic: &Arc<str>,
        partition: i32,
        windows: &VecDeque<Closed>,
    ) -> (Vec<String>, Option<Rejected>) {
        let mut lines = Vec::new();
        let waiting = windows.iter().flat_map(|w| w.events.views());
        for event in waiting.take(self.max_events()) {
            match self.line(topic, partition, event) {
                Ok(line) => lines.push(line),
                // Its template fails on it, or it was accepted under another configuration and cannot be read any more.
                // One event must not hold up the others.
                Err(rejected) => return (lines, Some(rejected)),
            }
        }
        (lines, None)
    }

    /// An event's line in the prompt.
    fn line(&self, topic: &Arc<str>, partition: i32, event: View<'_>) -> Result<String, Rejected> {
        let interaction = if self.prompt.reads_events() {
            // The event time was settled when the event was read.
            self.decoder
                .interaction_of(event.key, event.value, Some(event.time_ms))?
        } else {
            proto::Interaction::default()
        };
        let line = self.prompt.line(Line {
            interaction,
            time_ms: event.time_ms,
            late: event.late,
            topic: Arc::clone(topic),
            partition,
            offset: event.offset,
        });
        line.map_err(template)
    }

    /// How many tokens an event's line has, for windows that are limited by tokens.
    ///
    /// # Errors
    /// [`TemplateError`] where the template fails on it.
    pub fn line_tokens(&self, line: Line) -> Result<u32, TemplateError> {
        Ok(self.engine.count(&self.prompt.line(line)?))
    }

    /// As many of the lines as the prompt budget holds.
    fn fit(&self, before: &str, lines: &[String]) -> Result<Fit, Error> {
        let budget = budget::most(&self.config, self.engine.as_ref());
        let mut count = lines.len();
        let mut sum: u32 = 0;
        for (n, line) in lines.iter().enumerate() {
            sum = sum.saturating_add(self.engine.count(line));
            if sum > budget {
                count = n.max(1);
                break;
            }
        }
        loop {
            let request = match self.request(before, &lines[..count]) {
                Ok(request) => request,
                Err(error) if count == 1 => return Ok(Fit::Not(template(error))),
                Err(_) => {
                    count = count.div_ceil(2);
                    continue;
                }
            };
            let tokens = match self.engine.prepare(request) {
                Ok(prepared) if prepared.prompt_tokens <= budget => {
                    return Ok(Fit::Takes(count, prepared));
                }
                Ok(prepared) => prepared.prompt_tokens,
                Err(engine::Error::TooLong { tokens, .. }) => tokens,
                Err(error) => return Err(error.into()),
            };
            if count == 1 {
                return Ok(Fit::Not(self.over_budget(before, tokens, budget)));
            }
            // Too many by about the share that is over, and by at least one.
            let share = u64::from(budget) * count as u64 / u64::from(tokens.max(1));
            count = usize::try_from(share).unwrap_or(1).clamp(1, count - 1);
        }
    }

    /// Why not even one event fits: it is too long, or leaves no room for itself beside what stands around it.
    fn over_budget(&self, before: &str, tokens: u32, budget: u32) -> Rejected {
        let around = self
            .engine
            .count(&self.config.instructions)
            .saturating_add(self.engine.count(before));
        let detail = format!(
            "the prompt of this event alone has {tokens} tokens, {around} of them the instructions and the profile; the budget is {budget} (summary.prompt_tokens, or what the engine can take less summary.max_tokens)"
        );
        Rejected::new(Reason::OverBudget, detail)
    }

    fn prepare(&self, before: &str, lines: &[String]) -> Result<Option<Prepared>, Error> {
        let Ok(request) = self.request(before, lines) else {
            return Ok(None);
        };
        match self.engine.prepare(request) {
            Ok(prepared) => Ok(Some(prepared)),
            Err(engine::Error::TooLong { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn request(&self, before: &str, lines: &[String]) -> Result<Request, TemplateError> {
        let system = self.config.instructions.clone();
        let user = self.prompt.message(before, lines)?;
        Ok(Request {
            sampling: seed::seeded(self.config.sampling, 0, &system, &user),
            system,
            user,
            previous: before.to_owned(),
            max_tokens: self.config.max_tokens,
        })
    }

    /// Asks until an answer passes the gate or the retries are used up.
    async fn answer(
        &self,
        prepared: Prepared,
        usage: &mut proto::Usage,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<(String, [u8; 32])>, Error> {
        let mut next = Some(prepared);
        let mut attempt = 0;
        while let Some(prepared) = next.take() {
            let (request, key) = (prepared.request.clone(), prepared.key);
            let refusal = match self.ask(prepared, usage).await? {
                Ok(output) => match gate::pass(&output, request.max_tokens, self.engine.as_ref()) {
                    Ok(summary) => return Ok(Some((summary, key))),
                    Err(refusal) => refusal,
                },
                Err(rejected) => rejected,
            };
            refusals.push(refusal);
            if attempt < self.config.retries {
                attempt += 1;
                let (system, user) = (&request.system, &request.user);
                let sampling = seed::seeded(self.config.retry_sampling, attempt, system, user);
                next = match self.engine.prepare(Request {
                    sampling,
                    ..request
                }) {
                    Ok(prepared) => Some(prepared),
                    Err(engine::Error::TooLong { .. }) => None,
                    Err(error) => return Err(error.into()),
                };
            }
        }
        Ok(None)
    }

    /// The journal's answer, else the model's; the inner error is an engine that refuses this very request.
    async fn ask(
        &self,
        prepared: Prepared,
        usage: &mut proto::Usage,
    ) -> Result<Result<Output, Refusal>, Error> {
        usage.calls = usage.calls.saturating_add(1);
        let key = prepared.key;
        if let Some(kept) = self
            .store
            .journal
            .get(&key)?
            .and_then(|b| journal::finished(&b))
        {
            usage.journal = true;
            usage.prompt_tokens = usage.prompt_tokens.saturating_add(kept.prompt_tokens);
            usage.output_tokens = usage.output_tokens.saturating_add(kept.output_tokens);
            return Ok(Ok(kept));
        }
        usage.journal = false;
        let (mut wait, mut limit) = (self.config.backoff, self.config.answer_timeout);
        let output = loop {
            let asked = self.engine.generate(prepared.clone());
            let answer = match tokio::time::timeout(limit, asked).await {
                Ok(answer) => answer,
                Err(_) => {
                    let reason = format!(
                        "no answer within {limit:?} (summary.answer_timeout, and twice as long each time)"
                    );
                    // It may have been slow and not stuck: the next time it gets twice as long.
                    limit = limit.saturating_mul(2);
                    Err(engine::Error::Unavailable {
                        reason,
                        retry_after: None,
                    })
                }
            };
            match answer {
                Ok(output) => break output,
                Err(engine::Error::Rejected { reason }) => return Ok(Err(Refusal::Engine(reason))),
                Err(engine::Error::Unavailable {
                    reason,
                    retry_after,
                }) => {
                    // Full jitter, so that many tasks do not knock at the same instant.
                    let jittered = wait.mul_f64(0.5 + fastrand::f64() / 2.0);
                    let pause = jittered.max(retry_after.unwrap_or_default());
                    tracing::warn!(reason, ?pause, "the engine is not available; asking again");
                    tokio::time::sleep(pause).await;
                    wait = (wait * 2).min(self.config.backoff_max);
                }
                Err(error) => return Err(error.into()),
            }
        };
        failpoint::pass("model_answered");
        usage.prompt_tokens = usage.prompt_tokens.saturating_add(output.prompt_tokens);
        usage.cached_tokens = usage.cached_tokens.saturating_add(output.cached_tokens);
        usage.output_tokens = usage.output_tokens.saturating_add(output.output_tokens);
        usage.seconds += output.seconds;
        ::metrics::histogram!(metrics::MODEL_SECONDS).record(output.seconds);
        for (kind, tokens) in [
            ("prompt", output.prompt_tokens),
            ("output", output.output_tokens),
        ] {
            ::metrics::counter!(metrics::TOKENS, "kind" => kind).increment(tokens.into());
        }
        // Refused answers are kept too: the same refusal is then come to again without a call.
        self.store
            .journal
            .put(&key, &codec::encode(&journal::call(&output)))?;
        Ok(Ok(output))
    }
}

enum Fit {
    /// So many of the lines, and the request that holds them.
    Takes(usize, Prepared),
    /// Not even the first line, and why.
    Not(Rejected),
}

/// An event that a template fails on. The error names the place in the template and none of the event's text.
#[allow(clippy::needless_pass_by_value)] // for map_err
fn template(error: TemplateError) -> Rejected {
    Rejected::new(Reason::Template, error.to_string())
}
