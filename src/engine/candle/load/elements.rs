//! How a tensor's numbers lie in a file, and how they become 32-bit floats without being in memory twice.

use std::borrow::Cow;
use std::io::SeekFrom;

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use half::{bf16, f16};

use super::Source;

/// Numbers that are converted at a time; a multiple of every block.
const CHUNK: usize = 1 << 18;

/// A number format of model files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Elements {
    F32,
    F16,
    Bf16,
    /// Blocks of small integers with their scales, as GGUF has them.
    Blocks(GgmlDType),
}

impl Elements {
    /// Numbers in a block, and its bytes.
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Blocks(kind) => (kind.block_size(), kind.type_size()),
        }
    }

    /// Bytes of a tensor of that shape. `None` where its rows are no whole blocks or the size overflows.
    pub(super) fn bytes(self, shape: &[usize]) -> Option<u64> {
        let (numbers, bytes) = self.block();
        let row = shape.last().copied().unwrap_or(1);
        let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
        if !row.is_multiple_of(numbers) {
            return None;
        }
        u64::try_from((count / numbers).checked_mul(bytes)?).ok()
    }

    /// Reads `count` numbers from `offset` on. The caller has checked that the file holds them; `count` is of whole blocks.
    ///
    /// # Errors
    /// What reading said, or that a number is not finite.
    pub(super) fn read(
        self,
        source: &mut dyn Source,
        offset: u64,
        count: usize,
    ) -> Result<Vec<f32>, String> {
        let (numbers, bytes) = self.block();
        source
            .seek(SeekFrom::Start(offset))
            .map_err(|e| e.to_string())?;
        let mut all = Vec::with_capacity(count);
        let mut raw = vec![0; count.min(CHUNK) / numbers * bytes];
        while all.len() < count {
            let chunk = (count - all.len()).min(CHUNK);
            let raw = &mut raw[..chunk / numbers * bytes];
            source.read_exact(raw).map_err(|e| e.to_string())?;
            self.decode(raw, &mut all)?;
        }
        match all.iter().position(|x| !x.is_finite()) {
            Some(at) => Err(format!("number {at} is {}, not finite", all[at])),
            None => Ok(all),
        }
    }

    fn decode(self, raw: &[u8], into: &mut Vec<f32>) -> Result<(), String> {
        match self {
            Self::F32 => into.extend(raw.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
            Self::F16 => into.extend(
                raw.as_chunks()
                    .0
                    .iter()
                    .map(|b| f16::from_le_bytes(*b).to_f32()),
            ),
            Self::Bf16 => into.extend(
                raw.as_chunks()
                    .0
                    .iter()
                    .map(|b| bf16::from_le_bytes(*b).to_f32()),
            ),
            Self::Blocks(kind) => {
                let count = raw.len() / kind.type_size() * kind.block_size();
                let numbers = QStorage::from_data(Cow::Borrowed(raw), &Device::Cpu, kind)
                    .and_then(|storage| QTensor::new(storage, count))
                    .and_then(|tensor| tensor.dequantize(&Device::Cpu))
                    .and_then(|tensor| tensor.to_vec1::<f32>())
                    .map_err(|e| e.to_string())?;
                into.extend(numbers);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
