//! Launcher of `kernels/rate.cu`: `kvtier_rate(table, rounds)`.

use super::super::address::DevicePtr;
use super::table::Table;
use super::{Launcher, Parameter};
use crate::error::DeviceError;

pub(super) const NAME: &str = "kvtier_rate";

/// Threads of a block.
pub(in super::super) const THREADS: u32 = 256;
/// Multiplications and additions of a block in each round: 8 warps with 8 accumulators, tiles of 16 by 8 by 16.
pub(in super::super) const OPERATIONS: u64 = 8 * 8 * 2 * 16 * 8 * 16;

/// Multiplies; `sums` has an f32 for each thread: 16 times `rounds`.
pub(in super::super) fn launch(
    launcher: Launcher<'_>,
    blocks: u32,
    rounds: u32,
    sums: DevicePtr,
) -> Result<(), DeviceError> {
    let mut table = Table::default();
    table.address(sums);
    launcher.launch(NAME, (blocks, 1), THREADS, table.bytes(), &[Parameter::Word(rounds)])
}
