//! Encoding of closed blocks: from jobs to the parts of the launchers. Sections go to device memory, or straight to a pinned extent: then a
//! block crosses the link once, as it is stored.

use std::sync::RwLockReadGuard;

use cache_core::codec::Grid;
use cache_core::payload::Side;

use super::super::Shared;
use super::super::address::DevicePtr;
use super::super::extent::Extents;
use super::super::kernels::grid::Part;
use super::super::kernels::{gather, i8h, kc4vt4};
use super::{Resolver, VECTOR_BYTES, in_device};
use crate::attention::checks::{check_apart, check_disjoint, check_section, shape};
use crate::attention::closed::{Closed, Codes, Encode, STAYS_RAW};
use crate::attention::{Geometry, SectionPlace};
use crate::device::{DeviceRange, HostRange, Stream};
use crate::error::DeviceError;

/// One launch of `encode` as it is put together. Nothing that was resolved goes away while it is held.
pub(super) struct Encoding<'a> {
    shared: &'a Shared,
    resolver: Resolver<'a>,
    extents: RwLockReadGuard<'a, Extents>,
    geometry: &'a Geometry,
    closed: Closed,
    parts: Vec<(Codes, Part)>,
    verdicts: Vec<DevicePtr>,
    /// Sources too: nothing that a thread block reads may be written by another.
    in_device: Vec<DeviceRange>,
    in_host: Vec<HostRange>,
}

impl<'a> Encoding<'a> {
    pub(super) fn new(shared: &'a Shared, what: &'static str, geometry: &'a Geometry, closed: Closed) -> Encoding<'a> {
        let (resolver, extents) = (shared.resolver(what), shared.extents());
        let (parts, verdicts, in_device, in_host) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Encoding { shared, resolver, extents, geometry, closed, parts, verdicts, in_device, in_host }
    }

    /// Address of a section to be written. Errors: shape, range, and a host extent that the driver has not pinned.
    fn target(&mut self, place: SectionPlace, index: usize, bytes: u64) -> Result<DevicePtr, DeviceError> {
        match place {
            SectionPlace::Device(range) => {
                self.in_device.push(range);
                self.resolver.section(place, index, bytes)
            }
            SectionPlace::Host(range) => {
                let what = self.resolver.what;
                check_section(what, index, (range.offset, range.bytes), bytes, VECTOR_BYTES)?;
                let address = self.extents.resolve_target(range)?.mapped;
                let address = address.ok_or_else(|| shape(what, format!("target {index} is in pageable memory")))?;
                self.in_host.push(range);
                Ok(address)
            }
        }
    }

    /// Adds the parts of a job.
    pub(super) fn add(&mut self, index: usize, job: &Encode) -> Result<(), DeviceError> {
        let (geometry, closed, what) = (self.geometry, self.closed, self.resolver.what);
        let heads = u64::from(geometry.kv_heads);
        let exact = self.resolver.section(job.exact, index, geometry.section_bytes())?;
        self.in_device.extend(in_device(job.exact));
        let header_bytes = closed.header_bytes(geometry);
        let header = match job.into.header {
            Some(header) if header_bytes > 0 => Some(self.target(header, index, heads * header_bytes)?),
            None if header_bytes == 0 => None,
            header => return Err(shape(what, format!("header section {index}: {header:?}"))),
        };
        let scale = self.target(job.into.scale, index, heads * closed.scale_bytes(geometry))?;
        let codes = self.target(job.into.codes, index, heads * closed.code_bytes(geometry))?;
        check_section(what, index, (job.verdict.offset, job.verdict.bytes), 4, 4)?;
        let verdict = self.resolver.address(job.verdict, 4)?;
        self.in_device.push(job.verdict);
        self.verdicts.push(verdict);
        let side_bytes = geometry.section_bytes() / heads / 2;
        for head in 0..heads {
            for side in Side::ALL {
                let is_value = side == Side::Value;
                let form = if is_value { closed.values } else { closed.keys };
                let scales = match header {
                    Some(header) if !is_value => header.add(head * header_bytes),
                    _ => scale.add(head * closed.scale_bytes(geometry)).add(
                        // Keys without a header have their scales first.
                        if is_value { closed.key_scale_bytes(geometry) } else { 0 },
                    ),
                };
                let within = if is_value { closed.key_code_bytes(geometry) } else { 0 };
                self.parts.push((
                    form,
                    Part {
                        values: exact.add((2 * head + u64::from(is_value)) * side_bytes),
                        scales,
                        codes: codes.add(head * closed.code_bytes(geometry) + within),
                        verdict,
                        grid: Grid::new(side, geometry.head_dim, geometry.block_tokens),
                        by_lane: form == Codes::Int8 && !is_value,
                    },
                ));
            }
        }
        Ok(())
    }

    /// Launches it; returns the bytes that go to the host. Errors: [`DeviceError::Shape`] for sections that overlap.
    pub(super) fn launch(self, stream: Stream) -> Result<u64, DeviceError> {
        let what = self.resolver.what;
        check_disjoint(what, self.in_device)?;
        let bytes = self.in_host.iter().map(|range| range.bytes).sum();
        check_apart(what, self.in_host, |range| (range.extent, range.offset, range.bytes))?;
        let launcher = self.shared.launcher(what, stream);
        gather::clear(launcher, &self.verdicts)?;
        let of =
            |codes| self.parts.iter().filter(|(form, _)| *form == codes).map(|(_, part)| *part).collect::<Vec<_>>();
        i8h::encode(launcher, &of(Codes::Int8), STAYS_RAW, STAYS_RAW)?;
        kc4vt4::encode(launcher, &of(Codes::Rows4), STAYS_RAW, STAYS_RAW)?;
        Ok(bytes)
    }
}
