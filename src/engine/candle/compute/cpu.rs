//! A forward on the processor, with the kernels of this crate.

mod angles;
mod rows;
#[cfg(test)]
mod tests;

use std::time::Instant;

use candle_core::{Error, Result, Storage, Tensor, bail};

use super::super::kernels::{
    Activations, Attention, Cache, Format, Heads, Inputs, Kind, Matrix, Path, Pool, Run, Shared,
    Shelf,
};
use super::super::spec::Spec;
use super::super::step::{BLOCK, Step};
use super::{Compute, Precision, Times};
use angles::{Angles, Turns};
pub(crate) use rows::Rows;
use rows::Spare;

/// Rows of this many values are worth a task of their own.
const TASK: usize = 4096;

/// The processor.
pub(crate) struct Cpu {
    path: &'static dyn Path,
    pool: Pool,
    format: Format,
    epsilon: f32,
    context: usize,
    max_rows: usize,
    /// Of all positions so far.
    angles: Angles,
    /// Of the step's rows.
    turns: Turns,
    cache: Cache,
    attention: Attention,
    packed: Activations,
    spare: Spare,
    shelf: Shelf,
    times: Times,
}

impl Cpu {
    /// Room for `blocks` blocks of positions and steps of `max_rows` rows, on `threads` threads (the caller's included).
    ///
    /// # Errors
    /// Where the sizes are not such as the kernels can do, or there are no threads to be had.
    pub(crate) fn new(
        path: &'static dyn Path,
        spec: &Spec,
        format: Format,
        blocks: usize,
        max_rows: usize,
        threads: usize,
    ) -> Result<Self> {
        let heads = heads(spec);
        if heads.dim == 0 || !heads.dim.is_multiple_of(2) || heads.dim > Attention::MOST_DIM {
            bail!(
                "a head of {} values: even numbers up to {} can be done",
                heads.dim,
                Attention::MOST_DIM
            );
        }
        if heads.kv == 0 || !heads.queries.is_multiple_of(heads.kv) {
            bail!(
                "{} query heads cannot share {} heads of keys evenly",
                heads.queries,
                heads.kv
            );
        }
        Ok(Self {
            path,
            pool: Pool::new(threads).map_err(|e| Error::Io(e).context("starting threads"))?,
            format,
            epsilon: spec.norm_epsilon,
            context: spec.context,
            max_rows,
            angles: Angles::new(spec.rotary_frequencies()),
            turns: Turns::default(),
            cache: Cache::new(heads, spec.layers, blocks, halves(format))
                .map_err(|e| Error::msg(format!("engine.cache: {e}; make it smaller")))?,
            attention: Attention::default(),
            packed: Activations::default(),
            spare: Spare::default(),
            shelf: Shelf::default(),
            times: Times::default(),
        })
    }

    /// Bytes that a block of the cache takes, in all layers.
    pub(crate) fn bytes_per_block(spec: &Spec, format: Format) -> usize {
        Cache::bytes_per_block(heads(spec), spec.layers, halves(format))
    }

    /// The path's name.
    pub(crate) fn path(&self) -> &'static str {
        self.path.name()
    }

    /// Sees to it that the rows are as a product with such weights wants them: here, where they are not packed already.
    fn pack(&mut self, x: &Rows, w: &Matrix) -> Result<()> {
        if x.width() != w.k() {
            bail!("rows of {} by weights of {}", x.width(), w.k());
        }
        if x.packed_for(w, self.path).is_some() {
            return Ok(());
        }
        x.check()?;
        let kind = Kind::of(w.format(), self.path);
        let filling = self.packed.lay_out(kind, x.count(), x.width());
        let path = self.path;
        self.pool.split(x.count(), TASK / x.width().max(1), |part| {
            for row in part {
                // SAFETY: each row belongs to one part.
                unsafe { filling.row(path, row, x.row(row)) };
            }
        });
        Ok(())
    }

    /// Calls `body` for each row's values, and packs them for weights of the format that comes next.
    fn each_row(
        &mut self,
        count: usize,
        width: usize,
        next: Format,
        body: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Rows {
        let mut rows = self.spare.rows(count, width);
        let kind = Kind::of(next, self.path);
        let (values, packed) = rows.parts();
        let filling = packed.lay_out(kind, count, width);
        let values = Shared::new(values);
        self.pool.split(count, TASK / width.max(1), |part| {
            for row in part {
                // SAFETY: each row belongs to one part.
                unsafe {
                    let values = values.part(row * width, width);
                    body(row, values);
                    filling.row(self.path, row, values);
                }
            }
        });
        rows.set_packed();
        rows
    }
}

/// How the model's attention is divided.
fn heads(spec: &Spec) -> Heads {
    Heads {
        queries: spec.heads,
        kv: spec.kv_heads,
        dim: spec.head_dim,
    }
}

/// Whether keys and values are in half precision.
fn halves(format: Format) -> bool {
    format != Format::F32
}

/// Calls `body` with a tensor's values, without a copy where they lie together.
fn with_values<T>(tensor: &Tensor, body: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        bail!("weights that are not in the processor's memory");
    };
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(body(&values[start..end])),
        None => bail!("weights that do not lie together"),
    }
}

impl Compute for Cpu {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Rows = Rows;

    fn matrix(&self, parts: &[Tensor], precision: Precision) -> Result<Matrix> {
        let Some(first) = parts.first() else {
            bail!("a matrix without weights");
        };
        let k = first.dims2()?.1;
        let mut n = 0;
        for part in parts {
            if part.dims2()?.1 != k || k == 0 {
                bail!(
                    "weights of {:?} below such of {:?}",
                    part.shape(),
                    first.shape()
                );
            }
            n += part.dims2()?.0;
        }
        let format = match (self.format, precision) {
            (Format::Int8, Precision::Fine) if self.path.int8_by_16() => Format::Int16,
            (Format::Int8, Precision::Fine) => Format::Bf16,
            (format, _) => format,
        };
        let mut matrix = Matrix::zeros(&self.shelf, format, n, k).map_err(Error::wrap)?;
        let mut row = 0;
        for part in parts {
            with_values(part, |values| {
                matrix.set(self.path, &self.pool, row, values)
            })?;
            row += part.dims2()?.0;
        }
        Ok(matrix)
    }

    fn vector(&self, weights: &Tensor) -> Result<Vec<f32>> {
        weights.to_vec1::<f32>()
    }

    fn begin(&mut self, step: &Step) -> Result<()> {
        let rows = step.spans.iter().map(|span| span.rows).sum::<usize>();
        if rows != step.tokens.len() || rows > self.max_rows {
            bail!(
                "a step of {} tokens in {rows} rows, of {} at most",
                step.tokens.len(),
                self.max_rows
            );
        }
        let end = step.spans.iter().map(|span| span.start + span.rows).max();
        let end = end.unwrap_or(0);
        if end > self.context {
            bail!("position {end} is beyond the model's {}", self.context);
        }
        self.angles.reach(end);
        self.turns.clear();
        let mut runs = Vec::with_capacity(step.spans.len());
        let mut row = 0;
        for span in &step.spans {
            self.turns
                .take(&self.angles, span.start..span.start + span.rows);
            runs.push(Run {
                row,
                rows: span.rows,
                start: span.start,
                blocks: span.blocks.clone(),
            });
            row += span.rows;
        }
        self.attention
            .begin(&self.cache, self.path.rows(), runs)
            .map_err(Error::wrap)
    }

    fn embed(&mut self, embedding: &Matrix, tokens: &[u32]) -> Result<Rows> {
        let began = Instant::now();
        let (vocab, width) = (embedding.n(), embedding.k());
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab) {
            bail!("token {token} is beyond the vocabulary of {vocab}");
        }
        if embedding.format() == Format::Int8 {
            bail!("an embedding in 8 bits");
        }
        let mut rows = self.spare.rows(tokens.len(), width);
        let values = Shared::new(rows.values_mut());
        self.pool.split(tokens.len(), TASK / width, |part| {
            for row in part {
                // SAFETY: each row belongs to one part.
                let out = unsafe { values.part(row * width, width) };
                embedding.row(tokens[row] as usize, out);
            }
        });
        self.times.other += began.elapsed();
        Ok(rows)
    }

    fn norm(&mut self, x: &Rows, weight: &Vec<f32>, next: &Matrix) -> Result<Rows> {
        let began = Instant::now();
        x.check()?;
        let width = x.width();
        if width != weight.len() {
            bail!("a norm of {} weights for rows of {width}", weight.len());
        }
        let (path, epsilon) = (self.path, self.epsilon);
        let rows = self.each_row(x.count(), width, next.format(), |row, out| {
            path.norm(x.row(row), weight, epsilon, out);
        });
        self.times.other += began.elapsed();
        Ok(rows)
    }

    fn linear(&mut self, x: &Rows, w: &Matrix) -> Result<Rows> {
        let began = Instant::now();
        let mut rows = self.spare.rows(x.count(), w.n());
        self.pack(x, w)?;
        let packed = x.packed_for(w, self.path).unwrap_or(&self.packed);
        w.multiply(self.path, &self.pool, packed, rows.values_mut());
        self.times.matrix += began.elapsed();
        Ok(rows)
    }

    fn linear_gated(&mut self, x: &Rows, w: &Matrix, next: &Matrix) -> Result<Rows> {
        if !w.can_gate() {
            let gate_up = self.linear(x, w)?;
            return self.gate(gate_up, next);
        }
        let began = Instant::now();
        let mut rows = self.spare.rows(x.count(), w.n() / 2);
        self.pack(x, w)?;
        let packed = x.packed_for(w, self.path).unwrap_or(&self.packed);
        let out = rows.packed_alone();
        w.gated(self.path, &self.pool, packed, next.format(), out);
        self.times.matrix += began.elapsed();
        Ok(rows)
    }

    fn linear_added(&mut self, x: &mut Rows, y: &Rows, w: &Matrix) -> Result<()> {
        let began = Instant::now();
        x.check()?;
        if (x.count(), x.width()) != (y.count(), w.n()) {
            bail!("{} products to rows of {}", w.n(), x.width());
        }
        self.pack(y, w)?;
        let packed = y.packed_for(w, self.path).unwrap_or(&self.packed);
        w.add_to(self.path, &self.pool, packed, x.values_mut());
        self.times.matrix += began.elapsed();
        Ok(())
    }

    fn attend(
        &mut self,
        layer: usize,
        qkv: Rows,
        norms: Option<(&Vec<f32>, &Vec<f32>)>,
    ) -> Result<Rows> {
        let began = Instant::now();
        qkv.check()?;
        let heads = self.cache.heads();
        if qkv.count() != self.attention.rows() || qkv.width() != heads.width() {
            bail!("attention over {} rows of {}", qkv.count(), qkv.width());
        }
        let mut rows = self.spare.rows(qkv.count(), heads.queries * heads.dim);
        let inputs = Inputs {
            qkv: qkv.values(),
            norms: norms.map(|(queries, keys)| (&queries[..], &keys[..], self.epsilon)),
            cosines: &self.turns.cosines,
            sines: &self.turns.sines,
        };
        self.attention.attend(
            self.path,
            &self.pool,
            &mut self.cache,
            layer,
            &inputs,
            rows.values_mut(),
        );
        self.times.attention += began.elapsed();
        Ok(rows)
    }

    fn gate(&mut self, gate_up: Rows, next: &Matrix) -> Result<Rows> {
        let began = Instant::now();
        gate_up.check()?;
        if !gate_up.width().is_multiple_of(2) {
            bail!("a gate of {} values", gate_up.width());
        }
        let (path, width) = (self.path, gate_up.width() / 2);
        let rows = self.each_row(gate_up.count(), width, next.format(), |row, out| {
            let (gate, up) = gate_up.row(row).split_at(width);
            path.gate(gate, up, out);
        });
        self.times.other += began.elapsed();
        Ok(rows)
    }

    fn add(&mut self, x: &mut Rows, y: &Rows) -> Result<()> {
        let began = Instant::now();
        x.check()?;
        y.check()?;
        if (x.count(), x.width()) != (y.count(), y.width()) {
            bail!("rows of {} to such of {}", y.width(), x.width());
        }
        let values = Shared::new(x.values_mut());
        self.pool.split(y.values().len(), TASK * 4, |part| {
            // SAFETY: the parts are disjoint.
            let x = unsafe { values.part(part.start, part.len()) };
            self.path.add(x, &y.values()[part]);
        });
        self.times.other += began.elapsed();
        Ok(())
    }

    fn select(&mut self, x: &Rows, rows: &[usize]) -> Result<Rows> {
        let began = Instant::now();
        x.check()?;
        let mut selected = self.spare.rows(rows.len(), x.width());
        let width = x.width().max(1);
        for (out, &row) in selected.values_mut().chunks_exact_mut(width).zip(rows) {
            if row >= x.count() {
                bail!("row {row} of {}", x.count());
            }
            out.copy_from_slice(x.row(row));
        }
        self.times.other += began.elapsed();
        Ok(selected)
    }

    fn likeliest(&mut self, logits: &Rows) -> Result<Vec<u32>> {
        let began = Instant::now();
        logits.check()?;
        let mut tokens = vec![0; logits.count()];
        let places = Shared::new(&mut tokens);
        self.pool.run(logits.count(), |row| {
            // SAFETY: each row is one task.
            let place = &mut unsafe { places.part(row, 1) }[0];
            *place = u32::try_from(self.path.argmax(logits.row(row))).unwrap_or(u32::MAX);
        });
        self.times.other += began.elapsed();
        Ok(tokens)
    }

    fn logits(&mut self, logits: &Rows, row: usize) -> Result<Vec<f32>> {
        logits.check()?;
        if row >= logits.count() {
            bail!("row {row} of {}", logits.count());
        }
        Ok(logits.row(row).to_vec())
    }

    fn copy_block(&mut self, from: u32, to: u32) -> Result<()> {
        let blocks = self.cache.blocks();
        if from as usize >= blocks || to as usize >= blocks {
            bail!("block {from} to {to} of {blocks}");
        }
        self.cache.copy(from as usize, to as usize);
        Ok(())
    }

    fn times(&mut self) -> Times {
        std::mem::take(&mut self.times)
    }
}

const _: () = assert!(BLOCK == super::super::kernels::POSITIONS);
