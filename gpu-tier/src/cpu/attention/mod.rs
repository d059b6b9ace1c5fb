//! The attention kernels of the `cpu` device: checks, addresses and the split over workers. The definition of what
//! they compute is in [`crate::attention`].
//!
//! # Safety
//! Everything unsafe below this module works on addresses that `views.rs` and `encode.rs` resolved under `Memory::pin`: ranges were
//! checked against live allocations or registered extents, and pins keep the allocations until the call ends. Contents
//! of KV blocks are data only: no length or index is read from them.

mod append;
mod closed;
mod encode;
#[cfg(target_arch = "x86_64")]
mod finish;
#[cfg(target_arch = "x86_64")]
mod kernel;
#[cfg(target_arch = "x86_64")]
mod lanes;
mod scalar;
mod spans;
mod unit;
mod views;

use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) use unit::Scratch;

use super::codec::Simd;
use super::device::CpuDevice;
use super::isa::Isa;
use crate::attention::closed::{AttendMixed, Closed, Encode};
use crate::attention::{Append, Attend, Attention, Finish, Geometry};
use crate::device::Stream;
use crate::error::DeviceError;
use closed::places::Task;
use encode::EncodeWork;

impl Attention for CpuDevice {
    fn append(&self, stream: Stream, geometry: &Geometry, jobs: &[Append<'_>]) -> Result<(), DeviceError> {
        views::check_launch("append", stream, geometry)?;
        let (runs, pinned) = self.memory.pin(|access| views::append_runs(access, geometry, jobs))?;
        let _running = self.start_compute()?;
        // SAFETY: the runs' addresses are checked and pinned; runs of one call write different heads or tokens.
        self.share(runs.len(), 16, &|i, _| unsafe { runs.as_slice()[i].write() });
        drop(pinned);
        Ok(())
    }

    fn attend(&self, stream: Stream, geometry: &Geometry, jobs: &[Attend<'_>]) -> Result<(), DeviceError> {
        self.attend_forms(stream, geometry, None, &jobs.iter().map(AttendMixed::exact_only).collect::<Vec<_>>())
    }

    fn attend_mixed(
        &self,
        stream: Stream,
        geometry: &Geometry,
        closed: Closed,
        jobs: &[AttendMixed<'_>],
    ) -> Result<(), DeviceError> {
        self.attend_forms(stream, geometry, Some(closed), jobs)
    }

    fn encode(&self, stream: Stream, geometry: &Geometry, closed: Closed, jobs: &[Encode]) -> Result<(), DeviceError> {
        views::check_launch("encode", stream, geometry)?;
        let (work, pinned) = self.memory.pin(|access| EncodeWork::resolve(self, access, geometry, closed, jobs))?;
        let _running = self.start_compute()?;
        // SAFETY: the words' addresses are checked and pinned.
        unsafe { work.clear_verdicts() };
        let (codec, parts) = (Simd::new(self.isa), work.parts());
        let batch = (parts / (self.workers.count() * 4)).clamp(2, 32);
        self.share(parts, batch, &|i, claim| {
            let mut scratch = self.scratch[claim.worker].lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: all addresses are checked and pinned, and each part has targets of its own.
            unsafe { work.run(i, &codec, &mut scratch) };
        });
        drop(pinned);
        Ok(())
    }

    fn finish(&self, stream: Stream, geometry: &Geometry, jobs: &[Finish]) -> Result<(), DeviceError> {
        views::check_launch("finish", stream, geometry)?;
        let (work, pinned) = self.memory.pin(|access| views::finish_work(access, geometry, jobs))?;
        let _running = self.start_compute()?;
        let (heads, head_dim) = (geometry.heads as usize, geometry.head_dim as usize);
        let items: usize = work.iter().map(|job| job.rows * heads).sum();
        self.share(items, 1.max(items / (self.workers.count() * 8)), &|i, _| {
            let mut i = i;
            for job in work.as_slice() {
                if i >= job.rows * heads {
                    i -= job.rows * heads;
                    continue;
                }
                let (row, count) = (i / heads, job.count(i / heads));
                let partials = job.from.wrapping_add(row * job.from_row + i % heads * job.from_head);
                // SAFETY: both ranges were checked for `rows * heads` items and are pinned.
                unsafe {
                    merge(self.isa, partials, job.stride, count, head_dim, job.output.wrapping_add(i * head_dim))
                };
                return;
            }
        });
        drop(pinned);
        Ok(())
    }
}

/// The run of items that a worker has taken.
#[derive(Clone, Copy)]
struct Claim {
    worker: usize,
    end: usize,
}

impl CpuDevice {
    fn attend_forms(
        &self,
        stream: Stream,
        geometry: &Geometry,
        closed: Option<Closed>,
        jobs: &[AttendMixed<'_>],
    ) -> Result<(), DeviceError> {
        views::check_launch("attend", stream, geometry)?;
        let (work, pinned) = self.memory.pin(|access| views::attend_work(self, access, geometry, closed, jobs))?;
        let _running = self.start_compute()?;
        let units = work.units();
        let batch = (units / (self.workers.count() * 16)).clamp(1, 24);
        self.share(units, batch, &|i, claim| {
            let mut scratch = self.scratch[claim.worker].lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: the units' addresses are checked and pinned, and each unit has targets of its own.
            work.run(i, i + 1 < claim.end, |task| unsafe { run_task(self.isa, &task, &mut scratch) });
        });
        self.counters.attended_device_bytes.fetch_add(work.device_bytes, Ordering::Relaxed);
        self.counters.attended_host_bytes.fetch_add(work.host_bytes, Ordering::Relaxed);
        drop(pinned);
        Ok(())
    }

    /// Does items `0..count` on the workers, which take `batch` at a time.
    fn share(&self, count: usize, batch: usize, item: &(dyn Fn(usize, Claim) + Sync)) {
        if count <= batch {
            (0..count).for_each(|i| item(i, Claim { worker: 0, end: count }));
            return;
        }
        let next = AtomicUsize::new(0);
        self.workers.run(&|worker| {
            loop {
                let start = next.fetch_add(batch, Ordering::Relaxed);
                if start >= count {
                    return;
                }
                let end = (start + batch).min(count);
                (start..end).for_each(|i| item(i, Claim { worker, end }));
            }
        });
    }
}

/// Attends one unit.
///
/// # Safety
/// As `Unit` or `ClosedUnit` states; the processor has the set.
unsafe fn run_task(isa: Isa, task: &Task<'_>, scratch: &mut Scratch) {
    // SAFETY: the caller's promise.
    unsafe {
        match (task, isa) {
            #[cfg(target_arch = "x86_64")]
            (Task::Exact(unit), Isa::Avx2) => kernel::run_unit::<lanes::Avx2>(unit, scratch),
            #[cfg(target_arch = "x86_64")]
            (Task::Exact(unit), Isa::Avx512) => kernel::run_unit::<lanes::Avx512>(unit, scratch),
            (Task::Exact(unit), _) => scalar::run_unit(unit),
            #[cfg(target_arch = "x86_64")]
            (Task::Closed(unit), Isa::Avx2) => closed::kernel::run_unit::<lanes::Avx2>(unit, scratch),
            #[cfg(target_arch = "x86_64")]
            (Task::Closed(unit), Isa::Avx512) => closed::kernel::run_unit::<lanes::Avx512>(unit, scratch),
            (Task::Closed(unit), _) => closed::scalar::run_unit(unit),
        }
    }
}

/// Merges the partials of one row and head.
///
/// # Safety
/// As `scalar::finish` states; the processor has the set.
unsafe fn merge(isa: Isa, partials: *const f32, stride: usize, count: usize, head_dim: usize, output: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                <lanes::Avx2 as lanes::Lanes>::run(finish::Finish { partials, stride, count, head_dim, output });
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                <lanes::Avx512 as lanes::Lanes>::run(finish::Finish { partials, stride, count, head_dim, output });
            }
            _ => scalar::finish(partials, stride, count, head_dim, output),
        }
    }
}
