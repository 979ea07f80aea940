//! Causal attention over blocks of a cache, for rows of many sequences at once.

use super::line::copy;
use super::{COLUMNS, Cache, Heads, Line, MOST_ROWS, POSITIONS, Path, Pool, Shared, Softmax, Tile};

/// Most values in a head.
pub(super) const MOST_DIM: usize = 256;

/// Why a step cannot be attended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// Positions without a block.
    #[error("a sequence has {blocks} blocks of the cache for {positions} positions")]
    Blocks {
        /// How many it has.
        blocks: usize,
        /// How far its rows reach.
        positions: usize,
    },
    /// A block that does not exist.
    #[error("block {block} is beyond the {blocks} of the cache")]
    Beyond {
        /// Its number.
        block: u32,
        /// How many there are.
        blocks: usize,
    },
    /// Two sequences that write to one block.
    #[error("two sequences of a step write to block {block} of the cache")]
    Shared {
        /// Its number.
        block: u32,
    },
}

/// A sequence's rows in this step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first row.
    pub row: usize,
    /// How many rows.
    pub rows: usize,
    /// The first row's position.
    pub start: usize,
    /// The sequence's blocks, at least as far as its last position.
    pub blocks: Vec<u32>,
}

/// What goes into a layer's attention.
pub(crate) struct Inputs<'a> {
    /// `[rows, (heads + 2 kv heads) dim]`.
    pub qkv: &'a [f32],
    /// The weights of the queries' and of the keys' norm, and its epsilon.
    pub norms: Option<(&'a [f32], &'a [f32], f32)>,
    /// `[rows, dim / 2]`.
    pub cosines: &'a [f32],
    /// `[rows, dim / 2]`.
    pub sines: &'a [f32],
}

/// Rows of one run and one head of keys and values that are worked on together.
struct Task {
    run: usize,
    head: usize,
    /// The first query, counted within the run: row * group + query head.
    first: usize,
    queries: usize,
}

/// The attention of a step: which rows belong together, and room for the queries.
#[derive(Default)]
pub(crate) struct Attention {
    /// `[kv head][dim / 16]`, and there a line for each row and query head of the group.
    queries: Vec<Line>,
    /// Runs cut at blocks: run, first row within it, rows.
    pieces: Vec<(usize, usize, usize)>,
    tasks: Vec<Task>,
    runs: Vec<Run>,
    rows: usize,
}

impl Attention {
    /// Most values in a head.
    pub(crate) const MOST_DIM: usize = MOST_DIM;

    /// Takes up a step: runs whose rows follow each other.
    ///
    /// # Errors
    /// Where blocks are missing or not in the cache, or two runs write to the same block.
    ///
    /// # Panics
    /// Where rows do not follow each other.
    pub(crate) fn begin(
        &mut self,
        cache: &Cache,
        rows_per_tile: usize,
        runs: Vec<Run>,
    ) -> Result<(), Fault> {
        let heads = cache.heads();
        self.pieces.clear();
        self.tasks.clear();
        self.runs.clear();
        self.rows = 0;
        let mut written = Vec::new();
        for (number, run) in runs.iter().enumerate() {
            assert_eq!(run.row, self.rows);
            let end = run.start + run.rows;
            let Some(used) = run.blocks.get(..end.div_ceil(POSITIONS)) else {
                return Err(Fault::Blocks {
                    blocks: run.blocks.len(),
                    positions: end,
                });
            };
            if let Some(&block) = used.iter().find(|&&block| block as usize >= cache.blocks()) {
                return Err(Fault::Beyond {
                    block,
                    blocks: cache.blocks(),
                });
            }
            if run.rows > 0 {
                written.extend_from_slice(&used[run.start / POSITIONS..]);
            }
            let mut row = 0;
            while row < run.rows {
                let rows = (POSITIONS - (run.start + row) % POSITIONS).min(run.rows - row);
                self.pieces.push((number, row, rows));
                row += rows;
            }
            self.rows += run.rows;
        }
        // The threads write without looking at each other: what each writes must be its own.
        written.sort_unstable();
        if let Some(pair) = written.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Fault::Shared { block: pair[0] });
        }
        // All of a head first: a prefix that sequences share then stays in the cache of the processor.
        for head in 0..heads.kv {
            for (number, run) in runs.iter().enumerate() {
                let all = run.rows * heads.group();
                let height = all.div_ceil(all.div_ceil(rows_per_tile).max(1)).max(1);
                for first in (0..all).step_by(height) {
                    self.tasks.push(Task {
                        run: number,
                        head,
                        first,
                        queries: height.min(all - first),
                    });
                }
            }
        }
        self.runs = runs;
        Ok(())
    }

    /// Rows of the step.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Norms and turns queries and keys, writes keys and values to the cache, and attends: `out[rows, heads * dim]`.
    ///
    /// # Panics
    /// Where the lengths do not fit those of the step.
    pub(crate) fn attend(
        &mut self,
        path: &dyn Path,
        pool: &Pool,
        cache: &mut Cache,
        layer: usize,
        inputs: &Inputs<'_>,
        out: &mut [f32],
    ) {
        let heads = cache.heads();
        assert!(heads.dim <= MOST_DIM);
        assert_eq!(inputs.qkv.len(), self.rows * heads.width());
        assert_eq!(out.len(), self.rows * heads.queries * heads.dim);
        let stride = self.stride(heads);
        let lines = heads.kv * heads.tiles() * 2 * stride;
        if self.queries.len() < lines {
            self.queries.resize(lines, Line::ZERO);
        }
        self.store(path, pool, cache, layer, inputs);
        let out = Shared::new(out);
        pool.run(self.tasks.len(), |task| {
            self.task(path, cache, layer, &self.tasks[task], &out);
        });
    }

    /// Lines from a query's block of 16 values to its next.
    fn stride(&self, heads: Heads) -> usize {
        (self.rows * heads.group()) | 1
    }

    /// Everything before the scores.
    fn store(
        &mut self,
        path: &dyn Path,
        pool: &Pool,
        cache: &mut Cache,
        layer: usize,
        inputs: &Inputs<'_>,
    ) {
        let heads = cache.heads();
        let stride = self.stride(heads);
        let (pieces, runs) = (&self.pieces, &self.runs);
        let queries = Shared::new(&mut self.queries);
        let cache = cache.writing(layer);
        let one = |number: usize| {
            let (run, first, rows) = pieces[number / heads.kv];
            let (run, head) = (&runs[run], number % heads.kv);
            for i in first..first + rows {
                let (row, position) = (run.row + i, run.start + i);
                let place = (
                    run.blocks[position / POSITIONS] as usize,
                    position % POSITIONS,
                );
                store_row(path, heads, inputs, row, head, |part| match part {
                    Part::Query(member, values) => {
                        let query = row * heads.group() + member;
                        for block in 0..heads.tiles() * 2 {
                            let end = |block: usize| (block * 16).min(values.len());
                            let values = &values[end(block)..end(block + 1)];
                            let at = (head * heads.tiles() * 2 + block) * stride + query;
                            // SAFETY: this line is this row's and head's, and so this task's.
                            let line = &mut unsafe { queries.part(at, 1) }[0];
                            if values.len() < 16 {
                                // The keys are 0 there, but what another step left may be NaN.
                                *line = Line::ZERO;
                            }
                            copy::<16>(&mut line.floats_mut()[..values.len()], values);
                        }
                    }
                    Part::KeysAndValues(keys, values) => {
                        // SAFETY: a piece is the only one in its block (`begin`), and this task has the head of it.
                        unsafe { cache.write(path, place, head, keys, values) };
                    }
                });
            }
        };
        pool.split(pieces.len() * heads.kv, 4, |numbers| numbers.for_each(one));
    }

    /// The queries of one task, from scores to results.
    fn task(
        &self,
        path: &dyn Path,
        cache: &Cache,
        layer: usize,
        task: &Task,
        out: &Shared<'_, f32>,
    ) {
        let (heads, run, rows) = (cache.heads(), &self.runs[task.run], task.queries);
        let (group, tiles, stride) = (heads.group(), heads.tiles(), self.stride(heads));
        let mut scores = [Line::ZERO; MOST_ROWS * 2];
        let mut weights = [Line::ZERO; MOST_ROWS * 2];
        let mut sums = [Line::ZERO; MOST_ROWS * MOST_DIM / 16];
        let mut states = Softmax {
            largest: [f32::NEG_INFINITY; MOST_ROWS],
            sum: [0.0; MOST_ROWS],
        };
        let (mut valid, mut rescale) = ([0; MOST_ROWS], [1.0; MOST_ROWS]);
        let mut positions = [0; MOST_ROWS];
        for (i, position) in positions[..rows].iter_mut().enumerate() {
            *position = run.start + (task.first + i) / group;
        }
        let product = |tile: Tile<'_>| {
            if cache.halves() {
                path.f16(tile);
            } else {
                path.f32(tile);
            }
        };
        let queries =
            &self.queries[task.head * tiles * 2 * stride + run.row * group + task.first..];
        let last = positions[rows - 1] / POSITIONS;
        for (number, &block) in run.blocks[..=last].iter().enumerate() {
            let block = block as usize;
            // Blocks lie anywhere in memory; the processor cannot know the next one.
            let next = run.blocks[..=last].get(number + 1);
            let next = next.map_or(&[][..], |&next| cache.both(layer, next as usize, task.head));
            let mut ahead = next.chunks(next.len().div_ceil(1 + tiles).max(1));
            scores[..rows * 2].fill(Line::ZERO);
            product(Tile {
                rows,
                blocks: tiles * 2,
                a: queries,
                stride,
                b: cache.keys(layer, block, task.head),
                c: Line::floats_of_mut(&mut scores[..rows * 2]),
                ahead: ahead.next().unwrap_or_default(),
            });
            for (valid, position) in valid.iter_mut().zip(&positions[..rows]) {
                *valid = (position + 1)
                    .saturating_sub(number * POSITIONS)
                    .min(POSITIONS);
            }
            let rescaled = path.softmax(
                Line::floats_of(&scores[..rows * 2]),
                &valid[..rows],
                &mut states,
                &mut weights[..rows * 2],
                &mut rescale,
            );
            for tile in 0..tiles {
                let sums = &mut sums[tile * rows * 2..(tile + 1) * rows * 2];
                let sums = Line::floats_of_mut(sums);
                if rescaled {
                    for (sums, &rescale) in sums.chunks_exact_mut(COLUMNS).zip(&rescale) {
                        path.scale(sums, rescale);
                    }
                }
                product(Tile {
                    rows,
                    blocks: 2,
                    a: &weights[..rows * 2],
                    stride: rows,
                    b: cache.values(layer, block, task.head, tile),
                    c: sums,
                    ahead: ahead.next().unwrap_or_default(),
                });
            }
        }
        for (i, total) in states.sum[..rows].iter().enumerate() {
            let (row, member) = (run.row + (task.first + i) / group, (task.first + i) % group);
            let at = (row * heads.queries + task.head * group + member) * heads.dim;
            // SAFETY: this head of this row is this task's.
            let out = unsafe { out.part(at, heads.dim) };
            for (tile, out) in out.chunks_mut(COLUMNS).enumerate() {
                let sums = Line::floats_of(&sums[(tile * rows + i) * 2..][..2]);
                copy::<COLUMNS>(out, &sums[..out.len()]);
                path.scale(out, 1.0 / total);
            }
        }
    }
}

/// What a row gives for one head of keys and values.
enum Part<'a> {
    /// A query head of the group, ready for the scores.
    Query(usize, &'a [f32]),
    KeysAndValues(&'a [f32], &'a [f32]),
}

/// Norms and turns a row's queries and keys for one head of keys and values.
fn store_row(
    path: &dyn Path,
    heads: Heads,
    inputs: &Inputs<'_>,
    row: usize,
    head: usize,
    mut put: impl FnMut(Part<'_>),
) {
    let Heads { queries, kv, dim } = heads;
    let values = &inputs.qkv[row * heads.width()..(row + 1) * heads.width()];
    let (cosines, sines) = (
        &inputs.cosines[row * dim / 2..(row + 1) * dim / 2],
        &inputs.sines[row * dim / 2..(row + 1) * dim / 2],
    );
    let mut room = [0.0; MOST_DIM];
    let room = &mut room[..dim];
    let take = |number: usize| &values[number * dim..(number + 1) * dim];
    let turned = |number: usize, norm: Option<(&[f32], f32)>, room: &mut [f32]| {
        match norm {
            Some((weight, epsilon)) => path.norm(take(number), weight, epsilon, room),
            None => copy::<64>(room, take(number)),
        }
        path.rotate(room, cosines, sines);
    };
    let factor = 1.0 / (dim as f32).sqrt();
    for member in 0..heads.group() {
        let norm = inputs.norms.map(|(queries, _, epsilon)| (queries, epsilon));
        turned(head * heads.group() + member, norm, room);
        room.iter_mut().for_each(|value| *value *= factor);
        put(Part::Query(member, room));
    }
    let norm = inputs.norms.map(|(_, keys, epsilon)| (keys, epsilon));
    turned(queries + head, norm, room);
    put(Part::KeysAndValues(room, take(queries + kv + head)));
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
