//! Launcher of `kernels/finish.cu`: `kvtier_finish(jobs, count)`.

use super::super::address::DevicePtr;
use super::table::{Table, records};
use super::{Launcher, Parameter};
use crate::attention::Geometry;
use crate::error::DeviceError;

pub(super) const NAME: &str = "kvtier_finish";

const THREADS: u32 = 64;
const RECORD_BYTES: usize = 64;

/// One sequence.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Job {
    /// f32, (m, l, o) each.
    pub(in super::super) from: DevicePtr,
    /// f32 `[rows][heads][head_dim]`.
    pub(in super::super) output: DevicePtr,
    /// f32 between rows, heads and spans of `from`.
    pub(in super::super) strides: [u64; 3],
    pub(in super::super) rows: u32,
    pub(in super::super) first_position: u32,
    /// One state a vector, merged already.
    pub(in super::super) running: bool,
}

/// Merges and divides.
pub(in super::super) fn launch(launcher: Launcher<'_>, geometry: &Geometry, jobs: &[Job]) -> Result<(), DeviceError> {
    for jobs in jobs.chunks(records(RECORD_BYTES)) {
        let mut table = Table::default();
        let mut vectors = 0;
        for job in jobs {
            table.address(job.from).address(job.output);
            table.longs(job.strides);
            table.word(vectors).word(job.first_position).word(u32::from(job.running));
            table.word(geometry.heads).word(geometry.head_dim).word(0);
            vectors += job.rows * geometry.heads;
        }
        let count = u32::try_from(jobs.len()).expect("a table's records");
        launcher.launch(NAME, (vectors, 1), THREADS, table.bytes(), &[Parameter::Word(count)])?;
    }
    Ok(())
}
