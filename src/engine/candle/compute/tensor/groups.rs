//! Sequences with a like number of rows side by side: candle has no ragged attention, so those of one group are padded to the longest.

use candle_core::{Device, Result, Tensor, bail};

use crate::engine::candle::step::{BLOCK, Span, Step};

/// Sequences whose attention is computed together.
pub(super) struct Group {
    /// How many.
    pub(super) sequences: usize,
    /// Rows of each, padded.
    pub(super) rows: usize,
    /// Cached positions of each, padded.
    pub(super) length: usize,
    /// The rows, `[sequences · rows]`.
    pub(super) queries: Tensor,
    /// The cache's slots, `[sequences · length]`.
    pub(super) slots: Tensor,
    /// 1 where a row may look, else 0: `[sequences, 1, rows, length]`.
    pub(super) mask: Tensor,
}

/// As candle's indexes.
pub(super) fn ids(numbers: &[usize]) -> Result<Vec<u32>> {
    numbers
        .iter()
        .map(|&n| u32::try_from(n).map_err(candle_core::Error::wrap))
        .collect()
}

/// A position's slot in the cache.
fn slot(span: &Span, position: usize) -> Result<u32> {
    let Some(&block) = span.blocks.get(position / BLOCK) else {
        bail!("position {position} has no block");
    };
    Ok(block * BLOCK as u32 + (position % BLOCK) as u32)
}

/// Each row's position and slot.
pub(super) fn places(step: &Step) -> Result<(Vec<u32>, Vec<u32>)> {
    let (mut positions, mut slots) = (Vec::new(), Vec::new());
    for span in &step.spans {
        for position in span.start..span.start + span.rows {
            positions.push(u32::try_from(position).map_err(candle_core::Error::wrap)?);
            slots.push(slot(span, position)?);
        }
    }
    if positions.len() != step.tokens.len() {
        bail!(
            "{} rows in spans, but {} tokens",
            positions.len(),
            step.tokens.len()
        );
    }
    Ok((positions, slots))
}

/// [`spread`] on a GPU.
pub(super) const ON_A_GPU: usize = 16;

/// How many times as many rows as a group's shortest span its longest one may have.
///
/// A processor computes what is padded: at most twice the work. A GPU hardly notices it, but has a dozen operations to begin
/// for each group and layer, and with a small model does little else.
pub(super) fn spread(device: &Device) -> usize {
    if device.is_cpu() { 2 } else { ON_A_GPU }
}

/// The least power of `spread` that is not below, `spread` itself at least.
fn rounded(rows: usize, spread: usize) -> usize {
    let mut power = spread;
    while power < rows {
        power = power.saturating_mul(spread);
    }
    power
}

/// The most scores of one query head in a group of several spans. They are padded to the widest and the longest of them, and three
/// tensors of scores are there at a time: of 32 heads in 16 bits 800 MB.
pub(super) const MOST_SCORES: usize = 1 << 22;

/// A span and its first row in the step.
type Member<'a> = (usize, &'a Span);

/// Rows and positions of the widest and the longest.
fn padded(members: &[Member<'_>]) -> (usize, usize) {
    let rows = members.iter().map(|(_, s)| s.rows).max().unwrap_or(0);
    let length = members.iter().map(|(_, s)| s.start + s.rows).max();
    (rows, length.unwrap_or(0))
}

/// Spans whose rows round up to the same power of `spread` go together, as far as their scores are not too many.
fn sorted(step: &Step, spread: usize) -> Vec<Vec<Member<'_>>> {
    let mut first_rows = Vec::with_capacity(step.spans.len());
    let mut next = 0;
    for span in &step.spans {
        first_rows.push(next);
        next += span.rows;
    }
    let spans = first_rows.into_iter().zip(&step.spans);
    let mut spans: Vec<Member<'_>> = spans.filter(|(_, s)| s.rows > 0).collect();
    spans.sort_by_key(|(_, s)| rounded(s.rows, spread));
    let mut groups: Vec<Vec<Member<'_>>> = Vec::new();
    for member in spans {
        let of_its_size = groups
            .last_mut()
            .filter(|group| rounded(group[0].1.rows, spread) == rounded(member.1.rows, spread));
        match of_its_size {
            Some(group) => {
                group.push(member);
                let (rows, length) = padded(group);
                if group.len() * rows * length > MOST_SCORES {
                    group.pop();
                    groups.push(vec![member]);
                }
            }
            None => groups.push(vec![member]),
        }
    }
    groups
}

/// The groups, and where each row stands in their outputs one below the other.
///
/// # Errors
/// Where one span's scores of all `heads` are more than candle's kernels can index, which they do with 32 bits.
pub(super) fn of(
    step: &Step,
    heads: usize,
    spread: usize,
    device: &Device,
) -> Result<(Vec<Group>, Vec<u32>)> {
    let mut order = vec![0; step.tokens.len()];
    let mut above = 0;
    let mut groups = Vec::new();
    for members in sorted(step, spread) {
        let (rows, length) = padded(&members);
        if members.len() * heads * rows * length > i32::MAX as usize {
            bail!(
                "engine.step_tokens: {rows} tokens at once that look at {length} positions are more than candle's attention can do; make it smaller"
            );
        }
        let mut queries = vec![0; members.len() * rows];
        let mut slots = vec![0; members.len() * length];
        let mut mask = vec![0u8; members.len() * rows * length];
        for (n, &(first, span)) in members.iter().enumerate() {
            // Padding is the sequence's own: what another one's are may be no numbers.
            slots[n * length..(n + 1) * length].fill(slot(span, 0)?);
            for position in 0..span.start + span.rows {
                slots[n * length + position] = slot(span, position)?;
            }
            for row in 0..rows {
                // Padding looks at the first position, so that its softmax is defined; nobody reads it.
                let real = row < span.rows;
                let seen = if real { span.start + row + 1 } else { 1 };
                let at = (n * rows + row) * length;
                mask[at..at + seen].fill(1);
                if real {
                    queries[n * rows + row] = first + row;
                    order[first + row] = above + n * rows + row;
                }
            }
        }
        above += members.len() * rows;
        groups.push(Group {
            sequences: members.len(),
            rows,
            length,
            queries: Tensor::new(ids(&queries)?, device)?,
            slots: Tensor::new(slots, device)?,
            mask: Tensor::from_vec(mask, (members.len(), 1, rows, length), device)?,
        });
    }
    Ok((groups, ids(&order)?))
}
