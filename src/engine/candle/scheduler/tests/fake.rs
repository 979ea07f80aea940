//! A model that knows only what it finds in its cache, and notices when that is not one sequence from its beginning.

use crate::engine::candle::sample;
use crate::engine::candle::scheduler::loops::loops;
use crate::engine::candle::step::{Answer, BLOCK, Forward, NOTHING, Step};
use crate::engine::{Error, Finish, Sampling};

/// Small, so that texts repeat.
pub const VOCAB: u32 = 40;
/// Ends the turn.
pub const STOP: u32 = 0;

/// What K and V of a position depend on: its token and all before it.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Slot {
    token: u32,
    history: u64,
}

pub struct Fake {
    cache: Vec<Option<Slot>>,
    /// All steps so far.
    pub steps: Vec<Step>,
    /// The step that fails, counted from 0.
    pub fails_at: Option<usize>,
    /// Copies fail, too, from this step on.
    pub copies_fail: bool,
    /// Answers to a sequence that ends in this token are not numbers.
    pub poison: Option<u32>,
}

fn mix(history: u64, token: u32) -> u64 {
    let mut z = history ^ (u64::from(token) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 27)
}

fn history(tokens: &[u32]) -> u64 {
    tokens.iter().fold(7, |history, &token| mix(history, token))
}

/// The logits behind a sequence: mostly what followed the last token where it stood first, sometimes anything.
fn logits(tokens: &[u32], history: u64) -> Vec<f32> {
    let mut logits: Vec<f32> = (0..VOCAB)
        .map(|token| (mix(history, token) % 1000) as f32 / 200.0)
        .collect();
    logits[STOP as usize] -= 1.0;
    let last = tokens[tokens.len() - 1];
    let first = tokens.iter().position(|&t| t == last).unwrap();
    if let Some(&next) = tokens.get(first + 1)
        && !history.is_multiple_of(5)
    {
        logits[next as usize] += 6.0;
    }
    logits
}

/// The answer that a request must get, whatever else runs.
pub fn reference(prompt: &[u32], max_tokens: usize, sampling: &Sampling) -> (Vec<u32>, Finish) {
    let mut tokens = prompt.to_vec();
    loop {
        let n = tokens.len() - prompt.len();
        if n >= max_tokens {
            return (tokens[prompt.len()..].to_vec(), Finish::Length);
        }
        let token = sample::choose(sampling, n, &logits(&tokens, history(&tokens))).unwrap();
        if token == STOP {
            return (tokens[prompt.len()..].to_vec(), Finish::Stop);
        }
        tokens.push(token);
        if loops(&tokens[prompt.len()..]) {
            return (tokens[prompt.len()..].to_vec(), Finish::Loop);
        }
    }
}

impl Fake {
    pub fn new(blocks: usize) -> Self {
        Self {
            cache: vec![None; blocks * BLOCK],
            steps: Vec::new(),
            fails_at: None,
            copies_fail: false,
            poison: None,
        }
    }

    /// Rows computed so far.
    pub fn rows(&self) -> usize {
        self.steps.iter().map(|step| step.tokens.len()).sum()
    }
}

impl Forward for Fake {
    fn step(&mut self, step: &Step) -> Result<Vec<Answer>, Error> {
        let number = self.steps.len();
        self.steps.push(step.clone());
        assert_eq!(
            step.spans.iter().map(|s| s.rows).sum::<usize>(),
            step.tokens.len()
        );
        assert!(step.wanted.is_sorted_by(|a, b| a.row < b.row));
        for (i, span) in step.spans.iter().enumerate() {
            assert!(span.rows > 0);
            let written = span.start / BLOCK..(span.start + span.rows).div_ceil(BLOCK);
            for block in &span.blocks[written] {
                for (j, other) in step.spans.iter().enumerate() {
                    assert!(
                        i == j || !other.blocks.contains(block),
                        "block {block} is written while another sequence reads it"
                    );
                }
            }
        }
        let fails = self.fails_at == Some(number);
        let (mut row, mut answers) = (0, Vec::new());
        for span in &step.spans {
            let slot =
                |position: usize| span.blocks[position / BLOCK] as usize * BLOCK + position % BLOCK;
            let mut tokens = Vec::new();
            let mut before = 7;
            // What is there already must be one sequence from its beginning.
            for position in 0..span.start {
                let found = self.cache[slot(position)].expect("a position that was never computed");
                assert_eq!(
                    found.history,
                    mix(before, found.token),
                    "position {position} is of another sequence"
                );
                before = found.history;
                tokens.push(found.token);
            }
            for position in span.start..span.start + span.rows {
                let token = step.tokens[row];
                before = mix(before, token);
                tokens.push(token);
                // A step that fails leaves anything behind.
                self.cache[slot(position)] = (!fails).then_some(Slot {
                    token,
                    history: before,
                });
                if let Ok(wanted) = step.wanted.binary_search_by_key(&row, |w| w.row) {
                    let mut logits = logits(&tokens, before);
                    if self.poison == Some(token) {
                        logits[3] = f32::NAN;
                    }
                    answers.push(if step.wanted[wanted].logits {
                        Answer::Logits(logits)
                    } else {
                        Answer::Likeliest(sample::likeliest(&logits).unwrap_or(NOTHING))
                    });
                }
                row += 1;
            }
        }
        if fails {
            return Err(Error::Broken {
                reason: "the script says so".to_owned(),
            });
        }
        Ok(answers)
    }

    fn copy_block(&mut self, from: u32, to: u32) -> Result<(), Error> {
        if self.copies_fail {
            return Err(Error::Broken {
                reason: "a copy failed".to_owned(),
            });
        }
        let from = from as usize * BLOCK;
        self.cache
            .copy_within(from..from + BLOCK, to as usize * BLOCK);
        Ok(())
    }
}
