//! Encoding exact sections in the form in which attention reads them closed, one side of one KV head at a time.

use std::ptr::slice_from_raw_parts;
use std::sync::atomic::{AtomicU32, Ordering};

use cache_core::codec::{Codec, Grid};
use cache_core::payload::Side;

use super::super::codec::Simd;
use super::super::device::CpuDevice;
use super::super::memory::Access;
use super::spans::section_address;
use super::unit::Scratch;
use super::views::{Layout, check_closed, check_disjoint, check_section, shape};
use crate::attention::closed::{Closed, Codes, Encode, FITS, STAYS_RAW};
use crate::attention::{Element, Geometry, SectionPlace};
use crate::device::DeviceRange;
use crate::error::DeviceError;

/// All jobs of a launch of `encode`.
pub(super) struct EncodeWork {
    geometry: Geometry,
    closed: Closed,
    jobs: Vec<Job>,
}

// SAFETY: the addresses are pinned by the launch and valid on every thread.
unsafe impl Sync for EncodeWork {}

/// One layer of one block, resolved: KV head 0 of each section.
struct Job {
    exact: *const u8,
    /// Others may write the exact section meanwhile.
    in_host: bool,
    /// Null when the form has no header plane.
    header: *mut u8,
    scale: *mut u8,
    codes: *mut u8,
    verdict: *mut u32,
}

impl EncodeWork {
    /// Checks a launch and resolves all its addresses.
    pub(super) fn resolve(
        device: &CpuDevice,
        access: &mut Access<'_>,
        geometry: &Geometry,
        closed: Closed,
        jobs: &[Encode],
    ) -> Result<EncodeWork, DeviceError> {
        check_closed("encode", geometry)?;
        if geometry.element != Element::Bf16 {
            return Err(shape("encode", format!("sections of {:?}", geometry.element)));
        }
        let heads = u64::from(geometry.kv_heads);
        let bytes = [closed.header_bytes(geometry), closed.scale_bytes(geometry), closed.code_bytes(geometry)];
        let [header_bytes, scale_bytes, code_bytes] = bytes.map(|bytes| heads * bytes);
        let mut ranges = Vec::with_capacity(5 * jobs.len());
        let mut resolved = Vec::with_capacity(jobs.len());
        for (index, job) in jobs.iter().enumerate() {
            let exact = (geometry.section_bytes(), 2);
            let (exact, in_host) = section_address(device, access, "encode", job.exact, index, exact)?;
            ranges.extend(device_range(job.exact));
            let mut target = |place: SectionPlace, bytes, alignment| {
                let range = device_range(place)
                    .ok_or_else(|| shape("encode", format!("target {index} is in the host arena")))?;
                check_section("encode", index, (range.offset, range.bytes), bytes, alignment)?;
                ranges.push(range);
                access.address(range)
            };
            resolved.push(Job {
                exact,
                in_host,
                header: match job.into.header {
                    Some(header) if header_bytes > 0 => target(header, header_bytes, 2)?,
                    None if header_bytes == 0 => std::ptr::null_mut(),
                    header => return Err(shape("encode", format!("header section {index}: {header:?}"))),
                },
                scale: target(job.into.scale, scale_bytes, 2)?,
                codes: target(job.into.codes, code_bytes, 2)?,
                verdict: target(SectionPlace::Device(job.verdict), 4, 4)?.cast(),
            });
        }
        // Sources too: nothing that a worker reads may be written by another.
        check_disjoint("encode", ranges)?;
        Ok(EncodeWork { geometry: *geometry, closed, jobs: resolved })
    }

    /// Sides of heads of sections.
    pub(super) fn parts(&self) -> usize {
        2 * self.jobs.len() * self.geometry.kv_heads as usize
    }

    /// Says of every job that it fits, until a part says otherwise.
    ///
    /// # Safety
    /// The launch's pins are held.
    pub(super) unsafe fn clear_verdicts(&self) {
        for job in &self.jobs {
            // SAFETY: four aligned bytes, as checked.
            unsafe { job.verdict.write(FITS) };
        }
    }

    /// Encodes part `i`.
    ///
    /// # Safety
    /// The launch's pins are held, and no other thread runs part `i`.
    pub(super) unsafe fn run(&self, i: usize, codec: &Simd, scratch: &mut Scratch) {
        let Geometry { kv_heads, head_dim, block_tokens, .. } = self.geometry;
        let side = Side::ALL[i % 2];
        let (head, job) = (i / 2 % kv_heads as usize, &self.jobs[i / 2 / kv_heads as usize]);
        let grid = Grid::new(side, head_dim, block_tokens);
        let layout = Layout::of(&self.geometry);
        let within = if side == Side::Value { layout.key_bytes } else { 0 };
        let exact = job.exact.wrapping_add(head * layout.head_bytes + within).cast::<u16>();
        let (scales, codes) = (self.scales(job, head, side), self.codes(job, head, side));
        // SAFETY: both sections were checked to hold every head's part and are pinned; parts are apart from each other and
        // from every exact section, so nobody else looks at these bytes.
        let (scales, codes) = unsafe { (&mut *scales, &mut *codes) };
        // SAFETY: the part lies in the section, which is aligned to its elements. In device memory nothing of this launch
        // writes it, and the caller orders other work. In the host arena anyone may: those bytes are copied first.
        let values = unsafe {
            let exact = if job.in_host {
                let copy = scratch.words(grid.elements());
                copy.copy_from_nonoverlapping(exact, grid.elements());
                copy.cast_const()
            } else {
                exact
            };
            &*slice_from_raw_parts(exact, grid.elements())
        };
        let form = if side == Side::Key { self.closed.keys } else { self.closed.values };
        let outcome = match form {
            Codes::Int8 => codec.encode_i8h(side, grid, values, scales, codes),
            Codes::Rows4 => codec.encode_rows4(grid, values, scales, codes),
        };
        if outcome.is_err() {
            // SAFETY: four aligned bytes, as checked; parts of one job may write them at once, atomically.
            unsafe { AtomicU32::from_ptr(job.verdict) }.store(STAYS_RAW, Ordering::Relaxed);
        }
    }

    /// Row headers, or token scales, of one side of a head.
    fn scales(&self, job: &Job, head: usize, side: Side) -> *mut [u8] {
        let (closed, geometry) = (self.closed, &self.geometry);
        let (per_head, keys) = (closed.scale_bytes(geometry), closed.key_scale_bytes(geometry));
        match (side, closed.keys) {
            (Side::Key, Codes::Rows4) => part(job.header, head, closed.header_bytes(geometry), 0, None),
            (Side::Key, Codes::Int8) => part(job.scale, head, per_head, 0, Some(keys)),
            (Side::Value, _) => part(job.scale, head, per_head, keys, None),
        }
    }

    /// Codes of one side of a head.
    fn codes(&self, job: &Job, head: usize, side: Side) -> *mut [u8] {
        let (per_head, keys) = (self.closed.code_bytes(&self.geometry), self.closed.key_code_bytes(&self.geometry));
        match side {
            Side::Key => part(job.codes, head, per_head, 0, Some(keys)),
            Side::Value => part(job.codes, head, per_head, keys, None),
        }
    }
}

/// Bytes `start..end` of a head's `per_head` bytes; to their end when there is no `end`.
fn part(section: *mut u8, head: usize, per_head: u64, start: u64, end: Option<u64>) -> *mut [u8] {
    let (first, bytes) = (head as u64 * per_head + start, end.unwrap_or(per_head) - start);
    std::ptr::slice_from_raw_parts_mut(section.wrapping_add(first as usize), bytes as usize)
}

fn device_range(place: SectionPlace) -> Option<DeviceRange> {
    match place {
        SectionPlace::Device(range) => Some(range),
        SectionPlace::Host(_) => None,
    }
}
