//! Which rows the next step has: first the decodes and the drafts behind them, then prompts, the oldest first.

use super::{Scheduler, Sequence};
use crate::engine::Error;
use crate::engine::candle::blocks::{Copy, Full, common};
use crate::engine::candle::draft::Room;
use crate::engine::candle::step::{BLOCK, Forward};

/// A request waits where one that runs will compute so many more tokens of its prompt than are in the cache now. Fewer
/// are not worth a step: two texts may begin alike by chance.
const WORTH_WAITING: usize = 16;

/// A running sequence's share of a step.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// Known tokens to be computed; 0: not in this step.
    pub rows: usize,
    /// Tokens to be verified behind them.
    pub draft: Vec<u32>,
    /// Whether the rows reach the last known token, so that the next is chosen.
    pub last: bool,
}

impl Part {
    /// Rows whose answers are wanted.
    pub fn answers(&self) -> usize {
        if self.last { 1 + self.draft.len() } else { 0 }
    }
}

impl Scheduler {
    /// The parts of the next step, one for each running sequence, with blocks for all of it.
    pub(super) fn plan(&mut self, forward: &mut impl Forward) -> Result<Vec<Part>, Error> {
        self.secure_decodes(forward)?;
        let mut parts: Vec<Part> = self.running.iter().map(|_| Part::default()).collect();
        let mut room = self.limits.step_tokens;
        self.plan_decodes(&mut parts, &mut room);
        for (index, part) in parts.iter_mut().enumerate() {
            if !self.running[index].decodes() {
                self.plan_prefill(index, part, &mut room);
            }
        }
        self.admit(forward, &mut parts, &mut room)?;
        Ok(parts)
    }

    /// A place in the cache for the next token of each sequence that decodes, the oldest first; the youngest makes room.
    fn secure_decodes(&mut self, forward: &mut impl Forward) -> Result<(), Error> {
        let mut index = 0;
        while let Some(sequence) = self.running.get_mut(index) {
            if !sequence.decodes() {
                index += 1;
                continue;
            }
            match self
                .blocks
                .reserve(&mut sequence.table, sequence.computed, 1)
            {
                Ok(copy) => {
                    index += 1;
                    apply(forward, copy)?;
                }
                // At last the sequence itself goes. The oldest never does: alone it fits, or it was refused.
                Err(Full) => self.preempt(),
            }
        }
        Ok(())
    }

    fn preempt(&mut self) {
        let Some(mut sequence) = self.running.pop() else {
            return;
        };
        self.blocks.release(std::mem::take(&mut sequence.table));
        sequence.computed = 0;
        self.counters.preemptions += 1;
        self.blocked = true;
        self.waiting.push_front(sequence);
    }

    fn plan_decodes(&mut self, parts: &mut [Part], room: &mut usize) {
        let decodes = self.running.iter().filter(|s| s.decodes()).count();
        *room -= decodes;
        let prefill = self.prefill_demand();
        // Drafts leave prompts at least half of what the step can take.
        let mut verified = if prefill > 0 { *room / 2 } else { *room };
        let mut cheap = self
            .limits
            .drafts
            .knee_rows
            .saturating_sub(decodes + prefill);
        let mut behind = decodes;
        for (index, part) in parts.iter_mut().enumerate() {
            if !self.running[index].decodes() {
                continue;
            }
            part.rows = 1;
            part.last = true;
            part.draft = self.draft(
                index,
                Room {
                    tokens: verified,
                    // What the older ones leave goes to the younger.
                    cheap: cheap / behind,
                },
            );
            behind -= 1;
            verified -= part.draft.len();
            cheap = cheap.saturating_sub(part.draft.len());
            *room -= part.draft.len();
        }
    }

    /// Prompt tokens that could go into this step.
    fn prefill_demand(&self) -> usize {
        let running = self.running.iter().filter(|s| !s.decodes());
        let started: usize = running.map(Sequence::pending).sum();
        let admits = !self.blocked && self.running.len() < self.limits.sequences;
        let waiting: usize = self.waiting.iter().map(|s| s.tokens.len()).sum();
        started + if admits { waiting } else { 0 }
    }

    /// The next chunk of a sequence whose blocks are all reserved.
    fn plan_prefill(&mut self, index: usize, part: &mut Part, room: &mut usize) {
        let pending = self.running[index].pending();
        part.rows = pending.min(*room);
        part.last = part.rows == pending;
        *room -= part.rows;
        if part.last {
            // A step with a chunk of a prompt in it is past the knee.
            let after = Room {
                tokens: *room / 2,
                cheap: 0,
            };
            part.draft = self.draft(index, after);
            *room -= part.draft.len();
        }
    }

    /// A draft behind the last known token, as long as there are blocks that nobody else needs.
    fn draft(&mut self, index: usize, room: Room) -> Vec<u32> {
        let sequence = &mut self.running[index];
        let mut draft = sequence.propose(&self.experience, &self.limits.drafts, &self.stops, room);
        let known = sequence.tokens.len();
        // The known tokens' own places are reserved, so there is nothing left to be copied.
        let reserved = self.blocks.reserve(&mut sequence.table, known, draft.len());
        if reserved.is_err() {
            draft.truncate(sequence.table.positions() - known);
        }
        draft
    }

    /// Lets those that wait begin, the oldest first, while there are blocks and rows.
    fn admit(
        &mut self,
        forward: &mut impl Forward,
        parts: &mut Vec<Part>,
        room: &mut usize,
    ) -> Result<(), Error> {
        self.blocked = false;
        while *room > 0 && self.running.len() < self.limits.sequences {
            let Some(mut sequence) = self.waiting.pop_front() else {
                break;
            };
            let (mut table, found) = self.blocks.find(&sequence.tokens);
            let wait = self.soon_in_cache(&sequence, found);
            let reserved = if wait {
                Err(Full)
            } else {
                let rows = sequence.tokens.len() - found;
                // Blocks for the whole prompt, and one more for each that runs: else the next step would drive it out.
                let reserved = self.blocks.reserve(&mut table, found, rows);
                reserved.and_then(|copy| {
                    let enough = self.blocks.available() >= self.running.len();
                    if enough { Ok(copy) } else { Err(Full) }
                })
            };
            let Ok(copy) = reserved else {
                self.blocks.release(table);
                self.waiting.push_front(sequence);
                self.blocked = !wait;
                break;
            };
            sequence.table = table;
            sequence.computed = found;
            if sequence.cached_tokens.is_none() {
                sequence.cached_tokens = Some(found);
                self.counters.prefix_hits += found as u64;
            }
            self.running.push(sequence);
            apply(forward, copy)?;
            let mut part = Part::default();
            self.plan_prefill(self.running.len() - 1, &mut part, room);
            parts.push(part);
        }
        Ok(())
    }

    /// Whether a sequence that runs is about to compute more of this prompt than the `found` tokens: the instructions
    /// of many requests that come together are computed once. It is older and gets on in every step, so this ends.
    fn soon_in_cache(&self, sequence: &Sequence, found: usize) -> bool {
        let most = sequence.tokens.len() - 1;
        let mut prefilling = self.running.iter().filter(|s| !s.decodes());
        prefilling.any(|other| {
            // Only full blocks are found.
            let full = other.tokens.len() / BLOCK * BLOCK;
            let run = common(&other.tokens[..full], &sequence.tokens[..most]);
            run >= found + WORTH_WAITING
        })
    }
}

fn apply(forward: &mut impl Forward, copy: Option<Copy>) -> Result<(), Error> {
    copy.map_or(Ok(()), |copy| forward.copy_block(copy.from, copy.to))
}
