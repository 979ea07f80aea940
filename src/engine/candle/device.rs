//! Where a model is computed: on the processor, or on a GPU where limn was built for one.

#[cfg(feature = "cuda")]
mod cuda;
mod memory;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use super::{Dtype, kernels};
use crate::engine::Error;
pub(super) use memory::Memory;

/// Where a model is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// On the processor.
    Cpu,
    /// On an NVIDIA GPU, by its number as CUDA counts (`CUDA_VISIBLE_DEVICES` renumbers them).
    Cuda(u16),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.split_once(':') {
            None if name == "cpu" => Ok(Self::Cpu),
            None if name == "cuda" => Ok(Self::Cuda(0)),
            // parse() alone would take "+1".
            Some(("cuda", number)) if number.bytes().all(|b| b.is_ascii_digit()) => {
                number.parse().map(Self::Cuda).map_err(|_| ())
            }
            _ => Err(()),
        }
        .map_err(|()| Self::WANTED.to_owned())
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl Device {
    /// What a text must be to name one.
    pub const WANTED: &str =
        "wants \"cpu\", \"cuda\" or, where there are several GPUs, \"cuda:N\" (N from 0 on)";

    /// Whether this limn can compute there.
    ///
    /// # Errors
    /// Why not, and what would help.
    pub fn built(self) -> Result<(), &'static str> {
        match self {
            Self::Cuda(_) if !cfg!(feature = "cuda") => Err(
                "this limn was built without CUDA: build one with scripts/build-cuda.sh (or cargo's --features cuda), or give \"cpu\"",
            ),
            _ => Ok(()),
        }
    }

    /// The number format that is computed in: what [`Dtype::Auto`] means there, or the given one.
    ///
    /// # Errors
    /// Why it is not computed there, and what would do.
    pub fn dtype(self, wanted: Dtype) -> Result<Dtype, &'static str> {
        self.dtype_with(kernels::best().is_some(), wanted)
    }

    /// The same, the processor with or without `kernels` of ours.
    pub(super) fn dtype_with(self, kernels: bool, wanted: Dtype) -> Result<Dtype, &'static str> {
        match (self, wanted) {
            (Self::Cuda(_), Dtype::Int8) => Err(
                "int8 is computed on the processor only: a GPU computes in \"bf16\", which is its \"auto\", or in \"f32\"",
            ),
            (Self::Cuda(_), Dtype::Auto) => Ok(Dtype::Bf16),
            (Self::Cpu, Dtype::Int8) if !kernels => Err(
                "int8 wants AVX2 or AVX-512, and this processor has neither: give \"f32\", which is its \"auto\", or \"bf16\"",
            ),
            (Self::Cpu, Dtype::Auto) if kernels => Ok(Dtype::Int8),
            (Self::Cpu, Dtype::Auto) => Ok(Dtype::F32),
            (_, given) => Ok(given),
        }
    }

    /// As the engine's fingerprint names it: the same model gives other answers on another kind of device, and by candle's
    /// operations others than by the `kernels` of ours.
    pub(super) fn kind(self, kernels: bool) -> &'static str {
        match self {
            Self::Cpu if kernels => "cpu",
            Self::Cpu => "cpu-candle",
            Self::Cuda(_) => "cuda",
        }
    }

    /// Opens it for candle.
    ///
    /// # Errors
    /// [`Error::Broken`] where there is no such GPU, or this limn cannot use one.
    pub(super) fn open(self) -> Result<candle_core::Device, Error> {
        let broken = |reason: String| Error::Broken {
            reason: format!("engine.device: {self}: {reason}"),
        };
        self.built().map_err(|reason| broken(reason.to_owned()))?;
        match self {
            Self::Cpu => Ok(candle_core::Device::Cpu),
            Self::Cuda(number) => gpu(usize::from(number)).map_err(|error| {
                broken(format!(
                    "the GPU cannot be opened (nvidia-smi shows the GPUs and their driver): {error}"
                ))
            }),
        }
    }
}

fn gpu(number: usize) -> candle_core::Result<candle_core::Device> {
    // A stream of its own: candle's other choice is one for each thread, and the model is built by one thread and used by another,
    // which nothing would order.
    let device = candle_core::Device::new_cuda_with_stream(number)?;
    #[cfg(feature = "cuda")]
    cuda::set(device.as_cuda_device()?)?;
    Ok(device)
}

/// The memory that may be taken there, where the system tells.
pub(super) fn memory(device: &candle_core::Device) -> Option<Memory> {
    match device {
        // Nobody makes room on a GPU: what is not free there cannot be had.
        #[cfg(feature = "cuda")]
        candle_core::Device::Cuda(device) => {
            cuda::free_memory(device).map(|free| Memory { free, most: free })
        }
        _ => memory::of_process(),
    }
}
