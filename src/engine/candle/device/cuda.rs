//! What candle leaves to be set on a GPU, and to be asked of it.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{result, sys};
use candle_core::{CudaDevice, Result};

/// Makes it ready. Comes before the first tensor.
pub(super) fn set(device: &CudaDevice) -> Result<()> {
    // Two events for each buffer and one for each use of it, to no end here.
    // SAFETY: events order the streams that share memory. There is one stream, which is in order by itself.
    unsafe { device.disable_event_tracking() };
    keep_freed_memory(device)
}

/// A forward frees and takes again thousands of buffers. The driver's pool gives what is free back to the system at each wait for the GPU
/// unless it is told to keep it, and taking it anew costs more than the computation.
fn keep_freed_memory(device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    let context = stream.context();
    // Without a pool cudarc takes and frees each buffer at once.
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut all = u64::MAX;
    // SAFETY: the device is the context's own, the pool is the device's, and the attribute is a 64-bit number.
    unsafe {
        let pool = result::device::get_mem_pool(context.cu_device()).w()?;
        result::mem_pool::set_attribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut all).cast(),
        )
        .w()
    }
}

/// Bytes of the GPU's memory that nobody holds, where the driver tells.
pub(super) fn free_memory(device: &CudaDevice) -> Option<usize> {
    let (free, _) = device.cuda_stream().context().mem_get_info().ok()?;
    Some(free)
}
