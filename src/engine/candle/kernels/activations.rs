//! Activations as the register tiles read them.

use super::{Format, INT16_ACTIVATION, Line, Path, SCALED, Shared, half::bf16_from, matrix::whole};

/// The number format of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Floats, 16 a line.
    F32,
    /// Bfloats, 32 a line.
    Bf16,
    /// Signed bytes, 64 a line, with a scale for each line.
    Int8,
    /// Of 16 bits, 32 a line, with a scale for each two lines, at the first.
    Int16,
    /// The same, turned ([`Path::hadamard`]).
    Turned16,
}

impl Kind {
    /// What this path multiplies weights of this format with.
    pub(crate) fn of(format: Format, path: &dyn Path) -> Self {
        match format {
            Format::F32 => Self::F32,
            Format::Bf16 if path.rounds_to_bf16() => Self::Bf16,
            Format::Bf16 => Self::F32,
            Format::Int8 if path.int8_by_16() => Self::Turned16,
            Format::Int16 => Self::Int16,
            Format::Int8 => Self::Int8,
        }
    }

    /// Values in a line.
    pub(crate) fn per_line(self) -> usize {
        match self {
            Self::F32 => 16,
            Self::Bf16 | Self::Int16 | Self::Turned16 => 32,
            Self::Int8 => SCALED,
        }
    }
}

/// Rows of activations, line by line: line `block * stride + row`. Filled up with zeros to whole lines.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    kind: Option<Kind>,
    rows: usize,
    width: usize,
    stride: usize,
    lines: Vec<Line>,
    scales: Vec<f32>,
    offsets: Vec<i32>,
}

impl Activations {
    /// Makes room for `rows` rows of `width` values, and lends it to be filled row by row.
    pub(crate) fn lay_out(&mut self, kind: Kind, rows: usize, width: usize) -> Filling<'_> {
        // An odd number of lines: blocks of a row do not all fall into the same few sets of the cache.
        let stride = rows | 1;
        // Whole blocks of 64 values, as the weights have them in every format.
        let blocks = width.next_multiple_of(SCALED) / kind.per_line();
        let lines = stride * blocks;
        self.kind = Some(kind);
        (self.rows, self.width, self.stride) = (rows, width, stride);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line::ZERO);
        }
        let scaled = matches!(kind, Kind::Int8 | Kind::Int16 | Kind::Turned16);
        if scaled && self.scales.len() < lines {
            self.scales.resize(lines, 0.0);
            self.offsets.resize(lines, 0);
        }
        Filling {
            kind,
            rows,
            width,
            stride,
            lines: Shared::new(&mut self.lines),
            scales: Shared::new(&mut self.scales),
            offsets: Shared::new(&mut self.offsets),
        }
    }

    /// How many rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Lines from a row's block to its next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Their number format; none as long as nothing was laid out.
    pub(crate) fn kind(&self) -> Option<Kind> {
        self.kind
    }

    /// The lines.
    pub(crate) fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Each block's scale, at its first line; only with integers.
    pub(crate) fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Each line's offset (see [`super::Scales`]); only with bytes.
    pub(crate) fn offsets(&self) -> &[i32] {
        &self.offsets
    }
}

/// Activations that are being filled, by several threads.
pub(crate) struct Filling<'a> {
    kind: Kind,
    rows: usize,
    width: usize,
    stride: usize,
    lines: Shared<'a, Line>,
    scales: Shared<'a, f32>,
    offsets: Shared<'a, i32>,
}

impl Filling<'_> {
    /// Fills a row.
    ///
    /// # Safety
    /// No other thread may fill the same row at the same time.
    ///
    /// # Panics
    /// Where there is no such row, or it has another width.
    pub(crate) unsafe fn row(&self, path: &dyn Path, row: usize, values: &[f32]) {
        assert!(row < self.rows && values.len() == self.width);
        for block in 0..self.width.div_ceil(SCALED) {
            let values = &values[block * SCALED..self.width.min((block + 1) * SCALED)];
            // SAFETY: the caller has the whole row.
            unsafe { self.block(path, row, block, values) };
        }
    }

    /// Fills a block of 64 values of a row; the last one may have less.
    ///
    /// # Safety
    /// No other thread may fill the same block of the same row at the same time.
    ///
    /// # Panics
    /// Where there is no such block.
    pub(crate) unsafe fn block(&self, path: &dyn Path, row: usize, block: usize, values: &[f32]) {
        assert!(row < self.rows && block * SCALED + values.len() <= self.width);
        assert!(values.len() <= SCALED);
        let per_line = self.kind.per_line();
        let at = |line: usize| (block * SCALED / per_line + line) * self.stride + row;
        // SAFETY: these lines, and what goes with them, belong to this block of this row, which the caller has for itself.
        let line = |i| &mut unsafe { self.lines.part(at(i), 1) }[0];
        match self.kind {
            Kind::F32 | Kind::Bf16 => {
                for i in 0..SCALED / per_line {
                    let part = &values[(i * per_line).min(values.len())..];
                    let part = &part[..part.len().min(per_line)];
                    if self.kind == Kind::F32 {
                        let floats = line(i).floats_mut();
                        floats[..part.len()].copy_from_slice(part);
                        floats[part.len()..].fill(0.0);
                    } else {
                        let halves = line(i).halves_mut();
                        for (half, &value) in halves.iter_mut().zip(part) {
                            *half = bf16_from(value);
                        }
                        halves[part.len()..].fill(0);
                    }
                }
            }
            Kind::Int8 => {
                let mut turned = whole(values);
                path.hadamard(&mut turned);
                let (scale, offset) = path.quantize(&turned, line(0));
                // SAFETY: as for the lines.
                unsafe {
                    self.scales.part(at(0), 1)[0] = scale;
                    self.offsets.part(at(0), 1)[0] = offset;
                }
            }
            Kind::Int16 | Kind::Turned16 => {
                let (mut lines, mut values) = ([Line::ZERO; 2], whole(values));
                if self.kind == Kind::Turned16 {
                    path.hadamard(&mut values);
                }
                let scale = path.quantize_16(&values, INT16_ACTIVATION, &mut lines);
                [*line(0), *line(1)] = lines;
                // SAFETY: as for the lines.
                unsafe { self.scales.part(at(0), 1)[0] = scale };
            }
        }
    }
}
