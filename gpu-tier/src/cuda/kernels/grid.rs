//! Parts of blocks as grids, for the launchers of `i8h` and `kc4vt4` (`kernels/grid.cuh`).

use cache_core::codec::Grid;

use super::super::address::DevicePtr;
use super::table::{Table, records};
use super::{Launcher, Parameter};
use crate::error::DeviceError;

/// Threads of a block.
const THREADS: u32 = 64;
/// Bytes of a record.
const RECORD_BYTES: usize = 64;

/// One side of one KV head of a block. All addresses but the verdict's are multiples of 16.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Part {
    /// bf16 `[rows][lanes]`.
    pub(in super::super) values: DevicePtr,
    /// f16: `[rows]` centres, `[rows]` half-ranges; or `[tokens]` scales.
    pub(in super::super) scales: DevicePtr,
    /// u32 `[rows / 8][lanes]`, or `[rows / 4][lanes]`.
    pub(in super::super) codes: DevicePtr,
    /// u32, a multiple of 4.
    pub(in super::super) verdict: DevicePtr,
    pub(in super::super) grid: Grid,
    /// A scale a lane (keys of `i8h`).
    pub(in super::super) by_lane: bool,
}

impl Part {
    /// Thread blocks that the part needs.
    fn blocks(&self) -> u32 {
        let Grid { rows, lanes } = self.grid;
        let team = (lanes / 8).next_power_of_two().min(32);
        let by_row = (rows / 8).div_ceil(THREADS as usize / team);
        // Encoding a part with a scale a lane, 8 to 32 threads share the rows of 8 lanes.
        let slices = (rows / 8).next_power_of_two().clamp(8, 32);
        let by_lane = (lanes / 8).div_ceil(THREADS as usize / slices);
        let blocks = if self.by_lane { by_row.max(by_lane) } else { by_row };
        u32::try_from(blocks).expect("a part has less than 2^32 elements")
    }
}

/// Launches a kernel over parts; `outcomes` are what it tells in verdicts.
pub(super) fn launch(
    launcher: Launcher<'_>,
    name: &'static str,
    parts: &[Part],
    outcomes: &[u32],
) -> Result<(), DeviceError> {
    for parts in parts.chunks(records(RECORD_BYTES)) {
        let mut table = Table::default();
        for part in parts {
            table.address(part.values).address(part.scales).address(part.codes).address(part.verdict);
            let word = |n: usize| u32::try_from(n).expect("rows and lanes of a block");
            table.word(word(part.grid.rows)).word(word(part.grid.lanes)).word(u32::from(part.by_lane)).words([0; 5]);
        }
        let tall = parts.iter().map(Part::blocks).max().unwrap_or(0);
        let parameters: Vec<Parameter> = outcomes.iter().map(|outcome| Parameter::Word(*outcome)).collect();
        let count = u32::try_from(parts.len()).expect("a table's records");
        launcher.launch(name, (count, tall), THREADS, table.bytes(), &parameters)?;
    }
    Ok(())
}
