//! What the engine has seen of its own answers: which words follow which, and how good each kind of match is.

/// Runs that match in more tokens are no better.
pub(super) const LONGEST: usize = 4;
/// The most that a phrase's strength counts to.
const STRONGEST: u8 = 15;
/// Strengths are told apart by their number of bits.
const STRENGTHS: usize = 4;
/// Phrases are known by this many tokens before the next, the longer first.
const ORDERS: [usize; 2] = [3, 2];
/// How much a rate follows the last token.
const WEIGHT: f64 = 0.02;
/// Phrases that are kept, a power of two: a newer one takes a weaker one's place.
const SLOTS: usize = 1 << 15;

/// Why a token is foreseen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It follows so many of the answer's last tokens in the previous summary.
    Previous(usize),
    /// It follows so many of the answer's last tokens in the prompt.
    Prompt(usize),
    /// It followed so many tokens in other answers, so consistently.
    Phrase { order: usize, strength: usize },
}

impl Kind {
    const COUNT: usize = 2 * LONGEST + ORDERS.len() * STRENGTHS;

    fn number(self) -> usize {
        match self {
            Self::Previous(run) => run.clamp(1, LONGEST) - 1,
            Self::Prompt(run) => LONGEST + run.clamp(1, LONGEST) - 1,
            Self::Phrase { order, strength } => {
                2 * LONGEST + order.min(ORDERS.len() - 1) * STRENGTHS + strength.min(STRENGTHS - 1)
            }
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// Tells apart most of the phrases that share a slot. A mistake costs a rejected token, no more.
    tag: u32,
    next: u32,
    /// 0: empty.
    strength: u8,
}

/// Shared by all requests of an engine. Of a text it keeps which token followed which two or three; the model verifies
/// what is proposed from it, so nothing of one answer can get into another.
#[derive(Debug)]
pub(crate) struct Experience {
    rates: [f64; Kind::COUNT],
    slots: Vec<Slot>,
}

impl Experience {
    /// Without any phrases; the rates begin with what was measured on `MovieLens` profiles.
    pub(crate) fn new() -> Self {
        let mut rates = [0.5; Kind::COUNT];
        rates[..LONGEST].copy_from_slice(&[0.3, 0.5, 0.6, 0.8]);
        rates[LONGEST..2 * LONGEST].copy_from_slice(&[0.2, 0.35, 0.4, 0.5]);
        Self {
            rates,
            slots: vec![Slot::default(); SLOTS],
        }
    }

    /// How often matches of this kind are right, from 0 to 1.
    pub(crate) fn rate(&self, kind: Kind) -> f64 {
        self.rates[kind.number()]
    }

    pub(super) fn learn(&mut self, kind: Kind, right: bool) {
        let rate = &mut self.rates[kind.number()];
        *rate += WEIGHT * (f64::from(u8::from(right)) - *rate);
    }

    /// The token that mostly follows the end of `context` in other answers.
    pub(super) fn phrase(&self, context: &[u32]) -> Option<(Kind, u32)> {
        ORDERS.iter().enumerate().find_map(|(order, &tokens)| {
            let (slot, tag) = place(context.get(context.len().checked_sub(tokens)?..)?);
            let slot = self.slots[slot];
            let known = slot.strength > 0 && slot.tag == tag;
            known.then(|| {
                let strength = slot.strength.ilog2() as usize;
                (Kind::Phrase { order, strength }, slot.next)
            })
        })
    }

    /// Learns the phrases of a finished answer.
    pub(crate) fn read(&mut self, answer: &[u32]) {
        for tokens in ORDERS {
            for window in answer.windows(tokens + 1) {
                let (slot, tag) = place(&window[..tokens]);
                let slot = &mut self.slots[slot];
                if slot.tag == tag && slot.next == window[tokens] && slot.strength > 0 {
                    slot.strength = (slot.strength + 1).min(STRONGEST);
                } else if slot.strength <= 1 {
                    *slot = Slot {
                        tag,
                        next: window[tokens],
                        strength: 1,
                    };
                } else {
                    slot.strength -= 1;
                }
            }
        }
    }
}

/// Slot and tag of the tokens before the next.
fn place(tokens: &[u32]) -> (usize, u32) {
    let mut hash = 0xcbf2_9ce4_8422_2325u64 ^ tokens.len() as u64;
    for &token in tokens {
        hash = (hash ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 29;
    }
    (hash as usize % SLOTS, (hash >> 32) as u32)
}
