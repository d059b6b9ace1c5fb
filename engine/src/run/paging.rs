//! Attention of one sequence at one layer over blocks that lie on the device, in the host arena, or on their way.
//!
//! Blocks that the device cannot attend where they are travel layer by layer through **paging slots**: while copies run, attention works
//! on what is there. With partials, spans are attended in order of arrival and merged in span order at the end; with running state they
//! are attended in span order while later copies run ahead. Either way the bits are the same.

use std::collections::VecDeque;

use cache_core::payload::BlockShape;
use gpu_tier::DeviceError;
use gpu_tier::attention::{Accumulator, Attend, Attention, Geometry, SectionPlace};
use gpu_tier::device::{CopyPiece, DeviceRange, Event, HostRange, Stream};
use kvtier_sdk::cache::BlockPlace;

use crate::run::area::{blocks_per_group, spans_per_group};

/// Resident spans attended between two looks at the copies.
const SPANS_PER_LOOK: usize = 8;

/// A copy under way: which group, in which slot, done when.
struct Arrival {
    layer: u32,
    group: u32,
    slot: u32,
    event: Event,
}

/// Pages one sequence for the length of one step.
pub(crate) struct Pager<'a> {
    device: &'a dyn Attention,
    geometry: Geometry,
    shape: BlockShape,
    places: &'a [BlockPlace],
    /// Groups with a block that must be paged in, ascending; the same for every layer.
    missing: Vec<u32>,
    /// This sequence's paging slots.
    slots: DeviceRange,
    slot_bytes: u64,
    free: Vec<u32>,
    arrivals: VecDeque<Arrival>,
    /// Copies issued so far, as (layer, index into `missing`).
    issued: (u32, usize),
    /// Sections of the layer being attended.
    sections: Vec<Option<SectionPlace>>,
    spans: u32,
    loaded_bytes: u64,
}

impl<'a> Pager<'a> {
    /// `places`: every block that any row of the step sees. `slots` holds whole paging slots, at least one if anything is missing.
    pub(crate) fn new(
        device: &'a dyn Attention,
        geometry: Geometry,
        shape: BlockShape,
        places: &'a [BlockPlace],
        slots: DeviceRange,
        slot_bytes: u64,
        tokens: u32,
    ) -> Pager<'a> {
        let in_place = device.info().in_place;
        let per_group = blocks_per_group(&geometry) as usize;
        let missing = if in_place {
            Vec::new()
        } else {
            let away = |group: &[BlockPlace]| group.iter().any(|place| matches!(place, BlockPlace::Host(..)));
            places
                .chunks(per_group)
                .enumerate()
                .filter(|(_, group)| away(group))
                .map(|(index, _)| index as u32)
                .collect()
        };
        let free = (0..(slots.bytes / slot_bytes) as u32).rev().collect();
        let spans = tokens.div_ceil(gpu_tier::attention::SPAN_TOKENS);
        Pager {
            device,
            geometry,
            shape,
            places,
            missing,
            slots,
            slot_bytes,
            free,
            arrivals: VecDeque::new(),
            issued: (0, 0),
            sections: Vec::new(),
            spans,
            loaded_bytes: 0,
        }
    }

    /// True when nothing has to travel.
    pub(crate) fn is_resident(&self) -> bool {
        self.missing.is_empty()
    }

    /// Bytes of the copies issued so far.
    pub(crate) fn loaded_bytes(&self) -> u64 {
        self.loaded_bytes
    }

    /// Looks up the sections of `layer`; those that must travel stay `None`.
    pub(crate) fn begin_layer(&mut self, layer: u32) {
        let section = self.shape.code_section(layer);
        let in_place = self.device.info().in_place;
        self.sections.clear();
        self.sections.extend(self.places.iter().map(|place| match place {
            BlockPlace::Device(range, _) => Some(SectionPlace::Device(range.slice(section.offset, section.bytes))),
            BlockPlace::Host(range, _) if in_place => {
                Some(SectionPlace::Host(host_slice(*range, section.offset, section.bytes)))
            }
            BlockPlace::Host(..) | BlockPlace::Lost(_) => None,
        }));
    }

    /// This layer's sections, by block.
    pub(crate) fn sections(&self) -> &[Option<SectionPlace>] {
        &self.sections
    }

    /// Every span of the sequence.
    pub(crate) fn all_spans(&self) -> Vec<u32> {
        (0..self.spans).collect()
    }

    /// Attends all spans of `layer`, paging as needed, and lets the next layer's copies run ahead.
    pub(crate) fn attend(&mut self, layer: u32, job: &Attend<'_>) -> Result<(), DeviceError> {
        match job.into {
            Accumulator::Partials { .. } => self.attend_as_they_come(layer, job)?,
            Accumulator::Running { .. } => self.attend_in_order(layer, job)?,
        }
        if layer + 1 < self.shape.layers {
            self.issue(layer + 1)?;
        }
        Ok(())
    }

    fn attend_as_they_come(&mut self, layer: u32, job: &Attend<'_>) -> Result<(), DeviceError> {
        let resident: Vec<u32> =
            self.all_spans().into_iter().filter(|span| !self.is_missing(self.group_of(*span))).collect();
        let mut resident = resident.chunks(SPANS_PER_LOOK);
        loop {
            self.issue(layer)?;
            let arrived = match self.arrivals.front() {
                Some(front) if front.layer == layer => self.device.is_done(front.event)?,
                _ => false,
            };
            if !arrived && let Some(spans) = resident.next() {
                self.attend_spans(job, spans)?;
            } else if !self.attend_arrival(layer, job)? {
                return Ok(());
            }
        }
    }

    fn attend_in_order(&mut self, layer: u32, job: &Attend<'_>) -> Result<(), DeviceError> {
        let mut run = Vec::new();
        let mut span = 0;
        while span < self.spans {
            if self.is_missing(self.group_of(span)) {
                self.issue(layer)?;
                self.attend_spans(job, &run)?;
                run.clear();
                let arrived = self.attend_arrival(layer, job)?;
                assert!(arrived, "span {span} of layer {layer} was never sent for");
                span = (self.group_of(span) + 1) * spans_per_group(&self.geometry);
            } else {
                run.push(span);
                span += 1;
            }
        }
        self.attend_spans(job, &run)
    }

    /// Waits for the oldest copy of this layer and attends its group; false when there is none.
    fn attend_arrival(&mut self, layer: u32, job: &Attend<'_>) -> Result<bool, DeviceError> {
        let Some(arrival) = self.arrivals.pop_front_if(|front| front.layer == layer) else {
            return Ok(false);
        };
        self.device.wait(Stream::Compute, arrival.event)?;
        let blocks = self.blocks_of(arrival.group);
        let section_bytes = self.geometry.section_bytes();
        for (index, block) in blocks.clone().enumerate() {
            if matches!(self.places[block], BlockPlace::Host(..)) {
                let offset = u64::from(arrival.slot) * self.slot_bytes + index as u64 * section_bytes;
                self.sections[block] = Some(SectionPlace::Device(self.slots.slice(offset, section_bytes)));
            }
        }
        let first = arrival.group * spans_per_group(&self.geometry);
        let spans: Vec<u32> = (first..(first + spans_per_group(&self.geometry)).min(self.spans)).collect();
        self.attend_spans(job, &spans)?;
        for block in blocks {
            if matches!(self.places[block], BlockPlace::Host(..)) {
                self.sections[block] = None;
            }
        }
        // The slot may be filled again once attention has read it.
        let read = self.device.record(Stream::Compute)?;
        self.device.wait(Stream::CopyIn, read)?;
        self.free.push(arrival.slot);
        Ok(true)
    }

    fn attend_spans(&self, job: &Attend<'_>, spans: &[u32]) -> Result<(), DeviceError> {
        if spans.is_empty() {
            return Ok(());
        }
        self.device.attend(Stream::Compute, &self.geometry, &[Attend { sections: &self.sections, spans, ..*job }])
    }

    /// Starts copies of `layer` while there are free slots.
    fn issue(&mut self, layer: u32) -> Result<(), DeviceError> {
        if self.issued.0 != layer {
            self.issued = (layer, 0);
        }
        let section = self.shape.code_section(layer);
        while self.issued.1 < self.missing.len()
            && let Some(slot) = self.free.pop()
        {
            let group = self.missing[self.issued.1];
            self.issued.1 += 1;
            let mut pieces = Vec::new();
            for (index, block) in self.blocks_of(group).enumerate() {
                if let BlockPlace::Host(range, _) = &self.places[block] {
                    let offset = u64::from(slot) * self.slot_bytes + index as u64 * section.bytes;
                    pieces.push(CopyPiece {
                        host: host_slice(*range, section.offset, section.bytes),
                        device: self.slots.slice(offset, section.bytes),
                    });
                }
            }
            self.device.copy_in(Stream::CopyIn, &pieces)?;
            self.loaded_bytes += pieces.len() as u64 * section.bytes;
            let event = self.device.record(Stream::CopyIn)?;
            self.arrivals.push_back(Arrival { layer, group, slot, event });
        }
        Ok(())
    }

    fn group_of(&self, span: u32) -> u32 {
        span / spans_per_group(&self.geometry)
    }

    fn blocks_of(&self, group: u32) -> std::ops::Range<usize> {
        let per_group = blocks_per_group(&self.geometry) as usize;
        let first = group as usize * per_group;
        first..(first + per_group).min(self.places.len())
    }

    fn is_missing(&self, group: u32) -> bool {
        self.missing.binary_search(&group).is_ok()
    }
}

impl Drop for Pager<'_> {
    /// Copies that nobody waits for any more must end before their slots are given to another step.
    fn drop(&mut self) {
        if let Some(last) = self.arrivals.back() {
            let _ = self.device.synchronize(last.event);
        }
    }
}

fn host_slice(range: HostRange, offset: u64, bytes: u64) -> HostRange {
    HostRange { extent: range.extent, offset: range.offset + offset, bytes }
}
