//! Continuous batching: sequences join and leave between steps, and each step mixes single decodes, the verification of
//! drafts and chunks of prompts. Pure: a [`Forward`] stands for the model.
//!
//! Requests are served in the order of their arrival: whatever runs is older than whatever waits. When the cache is full
//! the youngest that runs goes back to wait and is computed again later, so the oldest always gets on.

mod loops;
mod plan;
mod sequence;

#[cfg(test)]
pub(crate) use sequence::Done;
pub(crate) use sequence::{End, Ended, Request};

use std::collections::VecDeque;

use super::blocks::{Blocks, common};
use super::draft::{Experience, Policy};
use super::step::{Answer, BLOCK, Forward, Span, Step, Wanted};
use crate::engine::{Bound, Error, Finish, Sampling};
use plan::Part;
use sequence::Sequence;

/// How much is done at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Limits {
    /// Blocks of the cache.
    pub blocks: usize,
    /// Most positions of a sequence.
    pub context: usize,
    /// Most rows of a step; at least one block more than sequences.
    pub step_tokens: usize,
    /// Most sequences that run at once; at least one.
    pub sequences: usize,
    /// When drafts are worth their rows.
    pub drafts: Policy,
}

impl Limits {
    /// Most tokens that prompt and answer may have together, and whose limit that is: the context's, or the whole cache's.
    pub(crate) fn longest(&self) -> (usize, Bound) {
        let cached = self.blocks * BLOCK;
        if cached < self.context {
            (cached, Bound::Cache)
        } else {
            (self.context, Bound::Context)
        }
    }
}

/// What has been done since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Steps of the model.
    pub steps: u64,
    /// Rows of prompts, and of what was computed again.
    pub prefill_rows: u64,
    /// Rows of single tokens.
    pub decode_rows: u64,
    /// Rows of draft tokens: tokens proposed.
    pub draft_rows: u64,
    /// Draft tokens that the model would have chosen itself.
    pub accepted: u64,
    /// Tokens of prompts that were found in the cache.
    pub prefix_hits: u64,
    /// Sequences that had to make room and are computed again.
    pub preemptions: u64,
    /// Tokens chosen, those that end a turn included.
    pub chosen: u64,
}

/// What is there now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Gauges {
    /// Sequences that run.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Blocks of the cache.
    pub blocks: usize,
    /// Blocks that sequences hold.
    pub blocks_in_use: usize,
    /// Blocks that nobody holds but whose tokens are still known.
    pub blocks_cached: usize,
}

/// Decides what each step computes.
pub(crate) struct Scheduler {
    limits: Limits,
    /// Tokens that end the model's turn.
    stops: Vec<u32>,
    blocks: Blocks,
    /// The oldest first.
    running: Vec<Sequence>,
    /// The oldest first; all younger than those that run.
    waiting: VecDeque<Sequence>,
    /// Ended without a step.
    ended: Vec<Ended>,
    experience: Experience,
    counters: Counters,
    /// Whether the last step found no room for the request that waits longest.
    blocked: bool,
}

impl Scheduler {
    /// With an empty cache. `stops` are the tokens that end the model's turn.
    pub(crate) fn new(limits: Limits, stops: Vec<u32>) -> Self {
        let sequences = limits.sequences.max(1);
        Self {
            limits: Limits {
                sequences,
                // All that decode go on in each step, and something is left for a prompt.
                step_tokens: limits.step_tokens.max(sequences + BLOCK),
                ..limits
            },
            stops,
            blocks: Blocks::new(limits.blocks),
            running: Vec::new(),
            waiting: VecDeque::new(),
            ended: Vec::new(),
            experience: Experience::new(),
            counters: Counters::default(),
            blocked: false,
        }
    }

    /// Takes a request. It ends exactly once, in the answer of some [`Scheduler::step`].
    ///
    /// # Errors
    /// [`Error::TooLong`] where it fits neither now nor later; [`Error::Rejected`] where there is no prompt. It is then
    /// not taken.
    pub(crate) fn submit(&mut self, request: Request) -> Result<(), Error> {
        let (longest, bound) = self.limits.longest();
        if request.prompt.is_empty() {
            return Err(Error::Rejected {
                reason: "the prompt is empty".to_owned(),
            });
        }
        if request.prompt.len().saturating_add(request.max_tokens) > longest {
            let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            return Err(Error::TooLong {
                tokens: count(request.prompt.len()),
                answer: count(request.max_tokens),
                context: count(longest),
                bound,
            });
        }
        let sequence = Sequence::new(request);
        if sequence.remaining() == 0 {
            self.ended.push(Ended {
                id: sequence.request.id,
                end: End::Done(sequence.done(Finish::Length)),
            });
        } else {
            self.waiting.push_back(sequence);
        }
        Ok(())
    }

    /// Whether a step would do nothing.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.ended.is_empty()
    }

    /// What has been done since the start.
    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    /// What is there now.
    pub(crate) fn gauges(&self) -> Gauges {
        Gauges {
            running: self.running.len(),
            waiting: self.waiting.len(),
            blocks: self.blocks.count(),
            blocks_in_use: self.blocks.in_use(),
            blocks_cached: self.blocks.cached(),
        }
    }

    /// Computes one step and gives the requests that ended with it.
    ///
    /// Where the model fails, the requests that ran end with its error and the cache is empty; those that wait go on waiting.
    pub(crate) fn step(&mut self, forward: &mut impl Forward) -> Vec<Ended> {
        self.drop_cancelled();
        if let Err(error) = self.compute(forward) {
            self.fail(&error);
        }
        std::mem::take(&mut self.ended)
    }

    fn compute(&mut self, forward: &mut impl Forward) -> Result<(), Error> {
        let parts = self.plan(forward)?;
        let step = self.pack(&parts);
        if step.tokens.is_empty() {
            return Ok(());
        }
        let answers = forward.step(&step)?;
        if answers.len() != step.wanted.len() {
            let (got, wanted) = (answers.len(), step.wanted.len());
            return Err(Error::Broken {
                reason: format!("the model gave {got} answers for {wanted} rows"),
            });
        }
        self.counters.steps += 1;
        let mut answers = answers.as_slice();
        for (sequence, part) in std::mem::take(&mut self.running).into_iter().zip(parts) {
            let (own, rest) = answers.split_at(part.answers());
            answers = rest;
            self.take(sequence, &part, own);
        }
        Ok(())
    }

    /// The step that the parts make, one for each running sequence.
    fn pack(&self, parts: &[Part]) -> Step {
        let mut step = Step::default();
        for (sequence, part) in self.running.iter().zip(parts) {
            if part.rows == 0 {
                continue;
            }
            let start = sequence.computed;
            let rows = part.rows + part.draft.len();
            let own = &sequence.tokens[start..start + part.rows];
            step.tokens.extend_from_slice(own);
            step.tokens.extend_from_slice(&part.draft);
            let end = step.tokens.len();
            step.wanted
                .extend((end - part.answers()..end).map(|row| Wanted {
                    row,
                    logits: sequence.request.sampling != Sampling::Greedy,
                }));
            let blocks = &sequence.table.blocks()[..(start + rows).div_ceil(BLOCK)];
            step.spans.push(Span {
                rows,
                start,
                blocks: blocks.to_vec(),
            });
        }
        step
    }

    /// Goes on with a sequence whose part of the step is computed.
    fn take(&mut self, mut sequence: Sequence, part: &Part, answers: &[Answer]) {
        let rows = part.rows as u64;
        if sequence.decodes() {
            self.counters.decode_rows += rows;
        } else {
            self.counters.prefill_rows += rows;
        }
        sequence.computed += part.rows;
        let mut end = None;
        if part.last {
            let known = sequence.tokens.len();
            let (chosen, ended) = sequence.take(&part.draft, answers, &self.stops);
            end = ended;
            // A draft token's row is right where the very token was chosen; what was written behind is not.
            let accepted = common(&part.draft, &chosen);
            sequence.computed = (known + accepted).min(sequence.tokens.len());
            sequence.drafted += part.draft.len();
            sequence.accepted += accepted;
            self.counters.draft_rows += part.draft.len() as u64;
            self.counters.accepted += accepted as u64;
            self.counters.chosen += chosen.len() as u64;
            sequence.learn(&mut self.experience, &chosen);
        }
        // What a failed request computed may be no numbers: nobody shall find it.
        if !matches!(end, Some(Err(_))) {
            let computed = sequence.computed;
            self.blocks
                .publish(&mut sequence.table, &sequence.tokens, computed);
        }
        let Some(end) = end else {
            let known = sequence.tokens.len();
            self.blocks.truncate(&mut sequence.table, known);
            self.running.push(sequence);
            return;
        };
        let end = match end {
            Ok(finish) => {
                if finish == Finish::Stop {
                    self.experience.read(sequence.answer());
                }
                End::Done(sequence.done(finish))
            }
            Err(error) => End::Failed(error),
        };
        self.end(sequence, end);
    }

    /// Drops what nobody waits for any more, wherever it is.
    fn drop_cancelled(&mut self) {
        let gone = |sequence: &Sequence| (sequence.request.cancelled)();
        let running = std::mem::take(&mut self.running);
        let (cancelled, running): (Vec<_>, _) = running.into_iter().partition(gone);
        self.running = running;
        let waiting = std::mem::take(&mut self.waiting);
        let (also, waiting): (Vec<_>, _) = waiting.into_iter().partition(gone);
        self.waiting = waiting.into();
        for sequence in cancelled.into_iter().chain(also) {
            self.end(sequence, End::Cancelled);
        }
    }

    fn fail(&mut self, error: &Error) {
        for sequence in std::mem::take(&mut self.running) {
            self.end(sequence, End::Failed(error.clone()));
        }
        // After a failure nobody knows what the cache holds.
        self.blocks.forget();
    }

    /// Frees the sequence's blocks and notes its end. The sequence is gone with it: a request ends once.
    fn end(&mut self, sequence: Sequence, end: End) {
        self.blocks.release(sequence.table);
        self.ended.push(Ended {
            id: sequence.request.id,
            end,
        });
    }
}

#[cfg(test)]
mod tests;
