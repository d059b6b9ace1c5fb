//! The gather kernel's launcher: copies a list of pieces in one launch.
//!
//! Kernel `kvtier_gather(descriptors, count)`: `descriptors` is the device address of `count` (u32) records of three u64:
//! source address, target address, bytes. Block i of the grid copies record i; records run in any order, so their targets
//! must not overlap. Sources and targets are addresses the device may use, in its memory or in mapped host memory.

use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DriverError, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

use super::address::DevicePtr;
use super::staging::{CHUNK_BYTES, Staging};

/// The kernel's name in a module.
const NAME: &str = "kvtier_gather";
/// Threads of a block.
const THREADS: u32 = 256;
/// Bytes of a record.
const RECORD_BYTES: usize = 24;

/// One piece to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) source: DevicePtr,
    pub(super) target: DevicePtr,
    pub(super) bytes: u64,
}

/// A loaded gather kernel.
pub(super) struct Gather(CudaFunction);

impl Gather {
    /// Loads a module from its image (PTX text); `None` when it has no gather kernel.
    pub(super) fn load(context: &Arc<CudaContext>, image: &str) -> Result<Option<Gather>, DriverError> {
        let module = context.load_module(Ptx::from_src(image))?;
        match module.load_function(NAME) {
            Ok(function) => Ok(Some(Gather(function))),
            Err(DriverError(CUresult::CUDA_ERROR_NOT_FOUND)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Enqueues the copies, in as few launches as the staging chunks allow. Every address and length has been checked, stays
    /// valid until the stream has done the work, and no two targets overlap.
    pub(super) fn launch(
        &self,
        stream: &Arc<CudaStream>,
        staging: &mut Staging,
        list: &[Descriptor],
    ) -> Result<(), DriverError> {
        for part in list.chunks(CHUNK_BYTES / RECORD_BYTES) {
            let words = part.iter().flat_map(|piece| [piece.source.raw(), piece.target.raw(), piece.bytes]);
            let table: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
            let count = u32::try_from(part.len()).expect("a chunk holds fewer than 2^32 records");
            staging.with(stream, &table, |staged| {
                let descriptors = staged.mapped.raw();
                let config = LaunchConfig { grid_dim: (count, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
                let mut launch = stream.launch_builder(&self.0);
                launch.arg(&descriptors).arg(&count);
                // SAFETY: the arguments are those of the kernel (module header); the table stays in its chunk until this launch
                // is done, and the caller vouches for the addresses in it.
                unsafe { launch.launch(config) }.map(|_| ())
            })?;
        }
        Ok(())
    }
}

/// Whether no two targets overlap: only then may the pieces run in any order.
pub(super) fn targets_are_apart(list: &[Descriptor]) -> bool {
    let mut spans: Vec<(u64, u64)> = list.iter().map(|piece| (piece.target.raw(), piece.bytes)).collect();
    spans.sort_unstable();
    spans.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0)
}
