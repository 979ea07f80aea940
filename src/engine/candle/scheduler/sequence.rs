//! A request on its way through the scheduler.

use super::loops::loops;
use crate::engine::candle::blocks::Table;
use crate::engine::candle::draft::{Drafter, Experience, Policy, Room};
use crate::engine::candle::sample::{self, Fault};
use crate::engine::candle::step::{Answer, NOTHING};
use crate::engine::{Error, Finish, Sampling};

/// What the scheduler is asked.
pub(crate) struct Request {
    /// The caller's own; not used twice at the same time.
    pub id: u64,
    /// The prompt, the template's markers included.
    pub prompt: Vec<u32>,
    /// The previous summary alone, as the answer would repeat it; may be empty.
    pub previous: Vec<u32>,
    /// Most tokens of the answer.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Whether nobody waits for the answer any more. Asked once a step.
    pub cancelled: Box<dyn Fn() -> bool + Send>,
}

/// The one end of a request.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The request's.
    pub id: u64,
    /// How it ended.
    pub end: End,
}

/// How a request ends.
#[derive(Debug)]
pub(crate) enum End {
    /// With an answer.
    Done(Done),
    /// The model failed.
    Failed(Error),
    /// Nobody waited for it any more.
    Cancelled,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Done {
    /// The answer's tokens, without the one that ended the turn.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt that were found in the cache when the request was first admitted.
    pub cached_tokens: usize,
    /// Tokens proposed for it.
    pub drafted: usize,
    /// Of these, tokens that the model would have chosen itself.
    pub accepted: usize,
}

/// A request with what has been computed of it.
pub(super) struct Sequence {
    pub request: Request,
    /// The prompt, then the answer so far.
    pub tokens: Vec<u32>,
    pub table: Table,
    /// Positions whose K and V are in the cache.
    pub computed: usize,
    /// See [`Done::cached_tokens`]; `None` before the first admission.
    pub cached_tokens: Option<usize>,
    pub drafter: Drafter,
    pub drafted: usize,
    pub accepted: usize,
}

impl Sequence {
    pub fn new(mut request: Request) -> Self {
        let previous = std::mem::take(&mut request.previous);
        Self {
            tokens: request.prompt.clone(),
            request,
            table: Table::default(),
            computed: 0,
            cached_tokens: None,
            drafter: Drafter::new(previous),
            drafted: 0,
            accepted: 0,
        }
    }

    /// Tokens that are known but not computed. A running sequence has at least one: the last, whose successor is wanted.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether only the last token is to be computed.
    pub fn decodes(&self) -> bool {
        self.pending() == 1
    }

    pub fn answer(&self) -> &[u32] {
        &self.tokens[self.request.prompt.len()..]
    }

    /// Tokens that the answer may still get.
    pub fn remaining(&self) -> usize {
        self.request.max_tokens.saturating_sub(self.answer().len())
    }

    /// Takes the answers of its last rows: the first chooses the next token; each further one counts as long as the
    /// draft token before it is the one chosen. Gives the tokens chosen and the end, if one of them is it.
    ///
    /// A sampled token is drawn from its own row in order, so that the draft does not change what is drawn.
    pub fn take(
        &mut self,
        draft: &[u32],
        answers: &[Answer],
        stops: &[u32],
    ) -> (Vec<u32>, Option<Result<Finish, Error>>) {
        let mut chosen = Vec::new();
        for (i, answer) in answers.iter().enumerate() {
            let token = match self.choose(answer) {
                Ok(token) => token,
                Err(error) => return (chosen, Some(Err(error))),
            };
            chosen.push(token);
            if stops.contains(&token) {
                return (chosen, Some(Ok(Finish::Stop)));
            }
            self.tokens.push(token);
            if loops(self.answer()) {
                return (chosen, Some(Ok(Finish::Loop)));
            }
            if self.remaining() == 0 {
                return (chosen, Some(Ok(Finish::Length)));
            }
            if draft.get(i) != Some(&token) {
                break;
            }
        }
        (chosen, None)
    }

    fn choose(&self, answer: &Answer) -> Result<u32, Error> {
        let token = match answer {
            Answer::Likeliest(NOTHING) => Err(Fault::NoHighest),
            Answer::Likeliest(token) => Ok(*token),
            Answer::Logits(logits) => {
                sample::choose(&self.request.sampling, self.answer().len(), logits)
            }
        };
        token.map_err(|fault| Error::Broken {
            reason: fault.to_string(),
        })
    }

    /// Lets the drafts learn from the tokens chosen in the last step.
    pub fn learn(&mut self, experience: &mut Experience, chosen: &[u32]) {
        let answer = &self.tokens[self.request.prompt.len()..];
        self.drafter.learn(experience, answer, chosen);
    }

    /// The tokens that probably follow, up to the end of the turn: the row before that gives it.
    pub fn propose(
        &mut self,
        experience: &Experience,
        policy: &Policy,
        stops: &[u32],
        room: Room,
    ) -> Vec<u32> {
        let room = Room {
            // Each row chooses one token: what goes beyond the answer's limit is not worth one.
            tokens: room.tokens.min(self.remaining().saturating_sub(1)),
            ..room
        };
        let (prompt, answer) = self.tokens.split_at(self.request.prompt.len());
        let mut draft = self
            .drafter
            .propose(experience, policy, prompt, answer, room);
        let end = draft.iter().position(|token| stops.contains(token));
        draft.truncate(end.unwrap_or(draft.len()));
        draft
    }

    pub fn done(&self, finish: Finish) -> Done {
        Done {
            tokens: self.answer().to_vec(),
            finish,
            cached_tokens: self.cached_tokens.unwrap_or(0),
            drafted: self.drafted,
            accepted: self.accepted,
        }
    }
}
