//! Launcher of `kernels/finish.cu`: `kvtier_finish(jobs, count, heads, kv_heads, head_dim)`.

use super::super::address::DevicePtr;
use super::table::{Table, records};
use super::{Launcher, Parameter};
use crate::attention::Geometry;
use crate::error::DeviceError;

pub(super) const NAME: &str = "kvtier_finish";

const THREADS: u32 = 64;
/// Vectors of a thread block, of one KV head.
const VECTORS: u32 = 4;
const RECORD_BYTES: usize = 64;

/// One sequence.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Job {
    /// What `attend` filled.
    pub(in super::super) store: DevicePtr,
    /// f32 `[rows][heads][head_dim]`.
    pub(in super::super) output: DevicePtr,
    /// Spans of the store; 1 for a running state.
    pub(in super::super) store_spans: u32,
    pub(in super::super) rows: u32,
    pub(in super::super) first_position: u32,
    /// One state a vector, merged already.
    pub(in super::super) running: bool,
}

/// Merges and divides.
pub(in super::super) fn launch(launcher: Launcher<'_>, geometry: &Geometry, jobs: &[Job]) -> Result<(), DeviceError> {
    for jobs in jobs.chunks(records(RECORD_BYTES)) {
        let mut table = Table::default();
        let mut units = 0;
        for job in jobs {
            table.address(job.store).address(job.output);
            table
                .word(job.store_spans)
                .word(units)
                .word(job.rows)
                .word(job.first_position)
                .word(u32::from(job.running));
            // Padding.
            table.word(0).longs([0; 3]);
            let vectors = job.rows * (geometry.heads / geometry.kv_heads);
            units += vectors.div_ceil(VECTORS) * geometry.kv_heads;
        }
        let count = u32::try_from(jobs.len()).expect("a table's records");
        let parameters = [count, geometry.heads, geometry.kv_heads, geometry.head_dim].map(Parameter::Word);
        launcher.launch(NAME, (units, 1), THREADS, table.bytes(), &parameters)?;
    }
    Ok(())
}
