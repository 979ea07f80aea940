//! Copy drafting: an updated summary mostly repeats the previous one, so its tokens are proposed as the next ones and
//! verified in the same step. What is proposed changes how many steps an answer takes, never the answer.
//!
//! The tokens that follow the same words in the previous summary are proposed, else those in the prompt (the events),
//! else those that followed in other recent answers. How often each kind of match was right is measured all the time,
//! and a draft ends where it would probably be rejected before.

mod experience;

pub(crate) use experience::Experience;
use experience::{Kind, LONGEST};

/// When drafts are worth their rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Policy {
    /// Most tokens of one draft; 0: no drafts.
    pub most: usize,
    /// Rows in a step up to which another row costs little: the step's time goes into reading the weights.
    pub knee_rows: usize,
    /// A token is drafted up to the knee where it will be accepted with at least this probability.
    pub probability: f64,
    /// The same past the knee, where a rejected row costs as much as any other.
    pub probability_past_knee: f64,
    /// Past the knee only requests are drafted for of whose draft tokens at least this share was accepted.
    pub acceptance_past_knee: f64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            most: 32,
            knee_rows: 32,
            probability: 0.12,
            probability_past_knee: 0.5,
            acceptance_past_knee: 0.35,
        }
    }
}

/// How much a step can take of one draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// Most tokens.
    pub tokens: usize,
    /// Of these, those below the knee.
    pub cheap: usize,
}

/// How much a request's average follows its last draft token.
const OWN_WEIGHT: f64 = 0.1;
/// What a request's average begins with.
const OWN_START: f64 = 0.6;

/// The proposals for one request.
#[derive(Debug)]
pub(crate) struct Drafter {
    previous: Vec<u32>,
    /// Where in the previous summary the answer has arrived: of several matches the nearest behind it is right.
    cursor: usize,
    acceptance: f64,
    /// What was foreseen last and why: the draft, and often one token more that was too unlikely to be drafted. That
    /// one is compared too, so that a kind of match that has become bad can become good again.
    foreseen: Vec<(Kind, u32)>,
}

/// A place from which tokens are copied.
#[derive(Clone, Copy)]
struct Source<'a> {
    tokens: &'a [u32],
    next: usize,
    /// Tokens before `next` that are the same as the answer's last, at most [`LONGEST`].
    run: usize,
    kind: fn(usize) -> Kind,
}

impl Source<'_> {
    fn foresee(&self) -> Option<(Kind, u32)> {
        let token = *self.tokens.get(self.next)?;
        Some(((self.kind)(self.run), token))
    }
}

impl Drafter {
    /// For a request whose answer is expected to repeat `previous`.
    pub(crate) fn new(previous: Vec<u32>) -> Self {
        Self {
            previous,
            cursor: 0,
            acceptance: OWN_START,
            foreseen: Vec::new(),
        }
    }

    /// The tokens that probably follow `answer`.
    pub(crate) fn propose(
        &mut self,
        experience: &Experience,
        policy: &Policy,
        prompt: &[u32],
        answer: &[u32],
        room: Room,
    ) -> Vec<u32> {
        self.foreseen.clear();
        let mut context = answer.to_vec();
        let most = room.tokens.min(policy.most);
        let mut draft = Vec::new();
        let mut probability = 1.0;
        let mut source: Option<Source<'_>> = None;
        while draft.len() < most {
            // A place once found is followed; it is looked for again where a phrase led elsewhere.
            let places = match source {
                Some(place) if place.next < place.tokens.len() => [Some(place), None],
                _ => places(&self.previous, self.cursor, prompt, &context),
            };
            let copied = places
                .into_iter()
                .flatten()
                .filter_map(|place| Some((place.foresee()?, Some(place))));
            let phrase = experience.phrase(&context).map(|foreseen| (foreseen, None));
            let Some(((kind, token), place)) = copied.chain(phrase).reduce(|best, other| {
                if experience.rate(other.0.0) > experience.rate(best.0.0) {
                    other
                } else {
                    best
                }
            }) else {
                break;
            };
            self.foreseen.push((kind, token));
            probability *= experience.rate(kind);
            let wanted = if draft.len() < room.cheap {
                policy.probability
            } else {
                policy.probability_past_knee
            };
            let gated = draft.len() >= room.cheap && self.acceptance < policy.acceptance_past_knee;
            if probability < wanted || gated {
                break;
            }
            draft.push(token);
            context.push(token);
            source = place.map(|place| Source {
                next: place.next + 1,
                run: (place.run + 1).min(LONGEST),
                ..place
            });
        }
        draft
    }

    /// Learns what the last step really chose: the accepted draft and the token after it. `answer` is the whole answer
    /// with them at its end.
    pub(crate) fn learn(&mut self, experience: &mut Experience, answer: &[u32], chosen: &[u32]) {
        for (&(kind, token), &real) in self.foreseen.iter().zip(chosen) {
            let right = token == real;
            experience.learn(kind, right);
            self.acceptance += OWN_WEIGHT * (f64::from(u8::from(right)) - self.acceptance);
            if !right {
                // What was foreseen behind a wrong token says nothing.
                break;
            }
        }
        self.foreseen.clear();
        if let Some((next, run)) = longest(&self.previous, answer, self.cursor)
            && run > 1
        {
            self.cursor = next;
        }
    }
}

/// Where the context's last words stand in the previous summary and in the prompt.
fn places<'a>(
    previous: &'a [u32],
    cursor: usize,
    prompt: &'a [u32],
    context: &[u32],
) -> [Option<Source<'a>>; 2] {
    // An answer begins as the previous one did.
    let begin = (context.is_empty() && !previous.is_empty()).then_some((0, LONGEST));
    let in_previous = begin.or_else(|| longest(previous, context, cursor));
    let in_prompt = longest(prompt, context, 0);
    [
        in_previous.map(|(next, run)| Source {
            tokens: previous,
            next,
            run,
            kind: Kind::Previous,
        }),
        in_prompt.map(|(next, run)| Source {
            tokens: prompt,
            next,
            run,
            kind: Kind::Prompt,
        }),
    ]
}

/// Where `tokens` go on after the longest run that `context` ends with: the place behind it, and how long the run is, at
/// most [`LONGEST`]. Of equals the nearest at or behind `cursor`, else the nearest before it.
fn longest(tokens: &[u32], context: &[u32], cursor: usize) -> Option<(usize, usize)> {
    let last = *context.last()?;
    let mut best: Option<(usize, usize)> = None;
    for next in 1..tokens.len() {
        if tokens[next - 1] != last {
            continue;
        }
        let behind = tokens[..next].iter().rev();
        let run = behind
            .zip(context.iter().rev())
            .take(LONGEST)
            .take_while(|(a, b)| a == b)
            .count();
        let better =
            best.is_none_or(|(place, longest)| run > longest || run == longest && (place < cursor));
        if better {
            best = Some((next, run));
        }
    }
    best
}

#[cfg(test)]
mod tests;
