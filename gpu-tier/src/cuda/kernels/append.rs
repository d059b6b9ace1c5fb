//! Launcher of `kernels/append.cu`: `kvtier_append(runs)`.

use super::super::address::DevicePtr;
use super::Launcher;
use super::table::{Table, records};
use crate::attention::Geometry;
use crate::error::DeviceError;

pub(super) const NAME: &str = "kvtier_append";

const THREADS: u32 = 128;
const RECORD_BYTES: usize = 48;

/// Rows of one sequence in one block. Addresses are multiples of 16.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Run {
    /// f32 `[rows][kv_heads][head_dim]`.
    pub(in super::super) keys: DevicePtr,
    pub(in super::super) values: DevicePtr,
    /// The block's section.
    pub(in super::super) section: DevicePtr,
    pub(in super::super) rows: u32,
    /// Token of the first row in the block.
    pub(in super::super) slot: u32,
}

/// Writes the rows. No two runs write the same token of a section.
pub(in super::super) fn launch(launcher: Launcher<'_>, geometry: &Geometry, runs: &[Run]) -> Result<(), DeviceError> {
    for runs in runs.chunks(records(RECORD_BYTES)) {
        let mut table = Table::default();
        for run in runs {
            table.address(run.keys).address(run.values).address(run.section).word(run.rows).word(run.slot);
            table.word(geometry.kv_heads).word(geometry.head_dim).word(geometry.block_tokens);
            table.word(u32::try_from(geometry.element.bytes()).expect("2 or 4"));
        }
        let count = u32::try_from(runs.len()).expect("a table's records");
        launcher.launch(NAME, (count, geometry.kv_heads), THREADS, table.bytes(), &[])?;
    }
    Ok(())
}
