//! Launcher of `kernels/attend_mma.cu`: `kvtier_attend_mma_vV_cC`, of the parameters and tables of [`super::attend`].

use super::Launcher;
use super::attend::{Formats, Job, Kernel, chunks, launch_kernel, most_vectors};
use crate::attention::{Element, Geometry};
use crate::error::DeviceError;

/// By 64 channels of a head (1, 2, 4), for tiles of 8 query vectors, and of 16.
pub(super) const NAMES: [&str; 3] = ["kvtier_attend_mma_v8_c1", "kvtier_attend_mma_v8_c2", "kvtier_attend_mma_v8_c4"];
pub(super) const WIDE: [&str; 2] = ["kvtier_attend_mma_v16_c1", "kvtier_attend_mma_v16_c2"];

/// Whether the kernels take such blocks; else, why not.
pub(in super::super) fn check(geometry: &Geometry) -> Result<(), String> {
    if geometry.element != Element::Bf16 || !geometry.head_dim.is_multiple_of(64) {
        return Err(format!("matrix products over {:?}, heads of {} channels", geometry.element, geometry.head_dim));
    }
    Ok(())
}

/// The kernel for heads of a size, and jobs of at most so many query vectors. Heads beyond 128 channels leave no shared memory for 16.
fn kernel(head_dim: u32, vectors: u32) -> Kernel {
    match WIDE.get(chunks(head_dim)) {
        Some(name) if vectors > 8 => (name, 16),
        _ => (NAMES[chunks(head_dim)], 8),
    }
}

/// Attends all spans of all jobs; `geometry` has passed [`check`].
pub(in super::super) fn launch(
    launcher: Launcher<'_>,
    geometry: &Geometry,
    formats: Formats,
    jobs: &[Job],
) -> Result<(), DeviceError> {
    launch_kernel(launcher, kernel(geometry.head_dim, most_vectors(geometry, jobs)), geometry, formats, jobs)
}
