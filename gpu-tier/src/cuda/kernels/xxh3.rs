//! Launcher of `kernels/xxh3.cu`: `kvtier_xxh3(jobs)`.

use super::super::address::DevicePtr;
use super::Launcher;
use super::table::{Table, records};
use crate::error::DeviceError;

pub(super) const NAME: &str = "kvtier_xxh3";

const THREADS: u32 = 128;
const RECORD_BYTES: usize = 32;

/// One section.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Job {
    /// At a multiple of 16 bytes.
    pub(in super::super) data: DevicePtr,
    pub(in super::super) bytes: u64,
    pub(in super::super) seed: u64,
    /// u64, a multiple of 8.
    pub(in super::super) sum: DevicePtr,
}

/// Writes the XXH3-64 of each job's bytes.
pub(in super::super) fn launch(launcher: Launcher<'_>, jobs: &[Job]) -> Result<(), DeviceError> {
    for jobs in jobs.chunks(records(RECORD_BYTES)) {
        let mut table = Table::default();
        for job in jobs {
            table.address(job.data).long(job.bytes).long(job.seed).address(job.sum);
        }
        let count = u32::try_from(jobs.len()).expect("a table's records");
        launcher.launch(NAME, (count, 1), THREADS, table.bytes(), &[])?;
    }
    Ok(())
}
