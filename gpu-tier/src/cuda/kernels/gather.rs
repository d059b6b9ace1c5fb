//! Launchers of `kernels/gather.cu`: copies a list of pieces in one launch.
//!
//! Kernel `kvtier_gather(descriptors, count)`: `descriptors` is the device address of `count` (u32) records of three u64:
//! source address, target address, bytes. Block i of the grid copies record i; records run in any order, so their targets
//! must not overlap. Sources and targets are addresses the device may use, in its memory or in mapped host memory.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaStream, DriverError, LaunchConfig, PushKernelArg};

use super::super::address::DevicePtr;
use super::super::staging::{CHUNK_BYTES, Staging};
use super::table::{Table, records};
use super::{Kernels, Launcher, Parameter};
use crate::error::DeviceError;

/// The kernels' names in a module.
pub(super) const NAME: &str = "kvtier_gather";
pub(super) const CLEAR: &str = "kvtier_clear";
/// Threads of a block.
const THREADS: u32 = 256;
/// Bytes of a record.
const RECORD_BYTES: usize = 24;

/// One piece to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Descriptor {
    pub(in super::super) source: DevicePtr,
    pub(in super::super) target: DevicePtr,
    pub(in super::super) bytes: u64,
}

/// A loaded gather kernel.
pub(in super::super) struct Gather<'a>(&'a CudaFunction);

impl Gather<'_> {
    /// The gather kernel, if the modules have one.
    pub(in super::super) fn of(kernels: &Kernels) -> Option<Gather<'_>> {
        kernels.get(NAME).map(Gather)
    }

    /// Enqueues the copies, in as few launches as the staging chunks allow. Every address and length has been checked, stays
    /// valid until the stream has done the work, and no two targets overlap.
    pub(in super::super) fn launch(
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
                let mut launch = stream.launch_builder(self.0);
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
pub(in super::super) fn targets_are_apart(list: &[Descriptor]) -> bool {
    let mut spans: Vec<(u64, u64)> = list.iter().map(|piece| (piece.target.raw(), piece.bytes)).collect();
    spans.sort_unstable();
    spans.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0)
}

/// Writes zeros to some u32, addresses at multiples of 4.
pub(in super::super) fn clear(launcher: Launcher<'_>, words: &[DevicePtr]) -> Result<(), DeviceError> {
    for words in words.chunks(records(8)) {
        let mut table = Table::default();
        table.longs(words.iter().map(|word| word.raw()));
        let count = u32::try_from(words.len()).expect("a table's records");
        launcher.launch(CLEAR, (count.div_ceil(THREADS), 1), THREADS, table.bytes(), &[Parameter::Word(count)])?;
    }
    Ok(())
}
