//! Attention of one sequence at one layer over blocks that lie on the device, in the host arena, on the disk, or on their way.
//!
//! Blocks that the device cannot attend where they are travel layer by layer: sections from the disk are **staged** in host memory, and
//! where there is a link, they and sections of host blocks go through **paging slots** on the device. While reads and copies run, attention
//! works on what is there. With partials, spans are attended in order of arrival and merged in span order at the end; with running state
//! they are attended in span order while later copies run ahead. Either way the bits are the same.

use std::collections::VecDeque;

use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use gpu_tier::DeviceError;
use gpu_tier::attention::{Accumulator, Attend, Attention, Geometry, SectionPlace};
use gpu_tier::device::{CopyPiece, DeviceRange, Event, HostRange, Stream};
use kvtier_sdk::cache::{BlockPlace, KvCache, SequenceId, Stage, StagedSection};

use crate::error::EngineError;
use crate::run::area::{blocks_per_group, spans_per_group};

/// Resident spans attended between two looks at the copies.
const SPANS_PER_LOOK: usize = 8;

/// Why paging stopped.
#[derive(Debug)]
pub(crate) enum PagingEnd {
    /// The device or the cache failed.
    Failed(EngineError),
    /// A block could not be read from the disk. The cache knows.
    Lost {
        /// The block, by its number in the sequence.
        block: u32,
        reason: MissReason,
    },
}

impl From<DeviceError> for PagingEnd {
    fn from(error: DeviceError) -> PagingEnd {
        PagingEnd::Failed(error.into())
    }
}

/// Bytes that travelled, by where they came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadedBytes {
    /// From the host arena.
    pub host: u64,
    /// From the disk.
    pub disk: u64,
}

impl std::ops::AddAssign for LoadedBytes {
    fn add_assign(&mut self, other: LoadedBytes) {
        self.host += other.host;
        self.disk += other.disk;
    }
}

/// Reads under way: which group's blocks that are on the disk.
struct Read {
    layer: u32,
    group: u32,
    blocks: Vec<u32>,
    stage: Box<dyn Stage>,
}

/// A group that has arrived or is being copied.
struct Arrival {
    layer: u32,
    group: u32,
    /// Where its missing blocks will be attended, and when.
    sections: Vec<(usize, SectionPlace)>,
    /// Its paging slot and the copy's end; none where the device attends in place.
    copy: Option<(u32, Event)>,
    read: Option<Read>,
}

/// What a pager works with, the same for every pager of a step.
#[derive(Clone, Copy)]
pub(crate) struct Paging<'a> {
    pub(crate) device: &'a dyn Attention,
    pub(crate) cache: &'a dyn KvCache,
    pub(crate) geometry: Geometry,
    pub(crate) shape: BlockShape,
    /// Bytes of a paging slot.
    pub(crate) slot_bytes: u64,
    /// Sections that each pager may have staged at once.
    pub(crate) staged_max: u32,
}

/// Pages one sequence for the length of one step.
pub(crate) struct Pager<'a> {
    with: Paging<'a>,
    sequence: SequenceId,
    places: &'a [BlockPlace],
    /// Groups with a block that must travel, ascending; the same for every layer.
    missing: Vec<u32>,
    /// This sequence's paging slots.
    slots: DeviceRange,
    free: Vec<u32>,
    reads: VecDeque<Read>,
    /// Reads started so far, as (layer, index into `missing`).
    read: (u32, usize),
    /// Sections staged now.
    staged: u32,
    arrivals: VecDeque<Arrival>,
    /// Groups sent for so far, as (layer, index into `missing`).
    issued: (u32, usize),
    /// Staged sections that a kernel may still read.
    retired: VecDeque<(Event, Read)>,
    /// Sections of the layer being attended.
    sections: Vec<Option<SectionPlace>>,
    spans: u32,
    loaded: LoadedBytes,
}

impl<'a> Pager<'a> {
    /// `places`: every block that any row of the step sees. `slots` holds whole paging slots, at least one if anything must be copied.
    pub(crate) fn new(
        with: Paging<'a>,
        sequence: SequenceId,
        places: &'a [BlockPlace],
        slots: DeviceRange,
        tokens: u32,
    ) -> Pager<'a> {
        let in_place = with.device.info().in_place;
        let per_group = blocks_per_group(&with.geometry) as usize;
        let travels = |place: &BlockPlace| match place {
            BlockPlace::Disk => true,
            BlockPlace::Host(..) => !in_place,
            BlockPlace::Device(..) | BlockPlace::Lost(_) => false,
        };
        let groups = places.chunks(per_group).enumerate();
        let missing = groups.filter(|(_, group)| group.iter().any(travels)).map(|(index, _)| index as u32).collect();
        Pager {
            with,
            sequence,
            places,
            missing,
            slots,
            free: (0..(slots.bytes / with.slot_bytes) as u32).rev().collect(),
            reads: VecDeque::new(),
            read: (0, 0),
            staged: 0,
            arrivals: VecDeque::new(),
            issued: (0, 0),
            retired: VecDeque::new(),
            sections: Vec::new(),
            spans: tokens.div_ceil(gpu_tier::attention::SPAN_TOKENS),
            loaded: LoadedBytes::default(),
        }
    }

    /// True when nothing has to travel.
    pub(crate) fn is_resident(&self) -> bool {
        self.missing.is_empty()
    }

    /// Bytes that were sent for so far.
    pub(crate) fn loaded(&self) -> LoadedBytes {
        self.loaded
    }

    /// Looks up the sections of `layer`; those that must travel stay `None`.
    pub(crate) fn begin_layer(&mut self, layer: u32) {
        let section = self.with.shape.code_section(layer);
        let in_place = self.in_place();
        self.sections.clear();
        self.sections.extend(self.places.iter().map(|place| match place {
            BlockPlace::Device(range, _) => Some(SectionPlace::Device(range.slice(section.offset, section.bytes))),
            BlockPlace::Host(range, _) if in_place => {
                Some(SectionPlace::Host(host_slice(*range, section.offset, section.bytes)))
            }
            BlockPlace::Host(..) | BlockPlace::Disk | BlockPlace::Lost(_) => None,
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

    /// Attends all spans of `layer`, paging as needed, and lets the next layer's reads and copies run ahead.
    pub(crate) fn attend(&mut self, layer: u32, job: &Attend<'_>) -> Result<(), PagingEnd> {
        match job.into {
            Accumulator::Partials { .. } => self.attend_as_they_come(layer, job)?,
            Accumulator::Running { .. } => self.attend_in_order(layer, job)?,
        }
        if layer + 1 < self.with.shape.layers {
            self.issue(layer + 1)?;
        }
        Ok(())
    }

    fn attend_as_they_come(&mut self, layer: u32, job: &Attend<'_>) -> Result<(), PagingEnd> {
        let resident: Vec<u32> =
            self.all_spans().into_iter().filter(|span| !self.is_missing(self.group_of(*span))).collect();
        let mut resident = resident.chunks(SPANS_PER_LOOK);
        loop {
            self.issue(layer)?;
            let arrived = match self.arrivals.front() {
                Some(Arrival { copy: Some((_, event)), .. }) => self.with.device.is_done(*event)?,
                Some(_) => true,
                None => false,
            };
            if !arrived && let Some(spans) = resident.next() {
                self.attend_spans(job, spans)?;
            } else if !self.attend_arrival(layer, job)? {
                return Ok(());
            }
        }
    }

    fn attend_in_order(&mut self, layer: u32, job: &Attend<'_>) -> Result<(), PagingEnd> {
        let mut run = Vec::new();
        let mut span = 0;
        while span < self.spans {
            if self.is_missing(self.group_of(span)) {
                self.issue(layer)?;
                self.attend_spans(job, &run)?;
                run.clear();
                let arrived = self.attend_arrival(layer, job)?;
                assert!(arrived, "span {span} of layer {layer} was never sent for");
                span = (self.group_of(span) + 1) * spans_per_group(&self.with.geometry);
            } else {
                run.push(span);
                span += 1;
            }
        }
        Ok(self.attend_spans(job, &run)?)
    }

    /// Waits for the oldest group of this layer and attends it; false when there is none left.
    fn attend_arrival(&mut self, layer: u32, job: &Attend<'_>) -> Result<bool, PagingEnd> {
        if self.arrivals.is_empty() && self.issued.1 < self.missing.len() {
            self.send_for_next(layer)?;
        }
        let Some(arrival) = self.arrivals.pop_front_if(|front| front.layer == layer) else {
            return Ok(false);
        };
        if let Some((_, event)) = arrival.copy {
            self.with.device.wait(Stream::Compute, event)?;
        }
        arrival.sections.iter().for_each(|(block, place)| self.sections[*block] = Some(*place));
        let first = arrival.group * spans_per_group(&self.with.geometry);
        let spans: Vec<u32> = (first..(first + spans_per_group(&self.with.geometry)).min(self.spans)).collect();
        self.attend_spans(job, &spans)?;
        arrival.sections.iter().for_each(|(block, _)| self.sections[*block] = None);
        // Slot and staged sections may be filled again once attention has read them.
        let attended = self.with.device.record(Stream::Compute)?;
        if let Some((slot, _)) = arrival.copy {
            self.with.device.wait(Stream::CopyIn, attended)?;
            self.free.push(slot);
        }
        if let Some(read) = arrival.read {
            self.retired.push_back((attended, read));
        }
        Ok(true)
    }

    fn attend_spans(&self, job: &Attend<'_>, spans: &[u32]) -> Result<(), DeviceError> {
        if spans.is_empty() {
            return Ok(());
        }
        let attend = Attend { sections: &self.sections, spans, ..*job };
        self.with.device.attend(Stream::Compute, &self.with.geometry, &[attend])
    }

    /// Sends for groups of `layer` while there are free slots and their reads have arrived; starts reads ahead.
    fn issue(&mut self, layer: u32) -> Result<(), PagingEnd> {
        if self.issued.0 != layer {
            self.issued = (layer, 0);
        }
        loop {
            self.read_ahead(layer)?;
            let Some(group) = self.missing.get(self.issued.1).copied() else {
                return Ok(());
            };
            let is_read = self.on_disk(group).is_empty()
                || self
                    .reads
                    .front()
                    .is_some_and(|read| (read.layer, read.group) == (layer, group) && read.stage.is_done());
            if !is_read || (!self.in_place() && self.free.is_empty()) {
                return Ok(());
            }
            self.send_for(layer, group)?;
        }
    }

    /// Waits until the next group of `layer` can be sent for. Nothing else is under way.
    fn send_for_next(&mut self, layer: u32) -> Result<(), PagingEnd> {
        let group = self.missing[self.issued.1];
        while !self.on_disk(group).is_empty() && self.reads.is_empty() {
            // What kernels still read is the only memory to wait for, unless another engine has it.
            match self.retired.front() {
                Some((attended, _)) => self.with.device.synchronize(*attended)?,
                None => std::thread::yield_now(),
            }
            self.read_ahead(layer)?;
        }
        self.send_for(layer, group)
    }

    /// Sends for a group whose reads, if it needs any, are the oldest; waits for them.
    fn send_for(&mut self, layer: u32, group: u32) -> Result<(), PagingEnd> {
        let mut read = if self.on_disk(group).is_empty() { None } else { self.reads.pop_front() };
        let section = self.with.shape.code_section(layer);
        let mut sources: Vec<(usize, HostRange)> = Vec::new();
        if let Some(read) = &mut read {
            for (block, staged) in read.blocks.iter().zip(read.stage.wait()) {
                match staged {
                    Ok(range) => sources.push((*block as usize, range)),
                    Err(reason) => return Err(self.lost(*block, reason)),
                }
            }
            self.loaded.disk += sources.len() as u64 * section.bytes;
        }
        self.issued.1 += 1;
        let arrival = if self.in_place() {
            let sections = sources.into_iter().map(|(block, range)| (block, SectionPlace::Host(range))).collect();
            Arrival { layer, group, sections, copy: None, read }
        } else {
            for block in self.blocks_of(group) {
                if let BlockPlace::Host(range, _) = &self.places[block] {
                    sources.push((block, host_slice(*range, section.offset, section.bytes)));
                    self.loaded.host += section.bytes;
                }
            }
            self.copy(layer, group, sources, read)?
        };
        self.arrivals.push_back(arrival);
        Ok(())
    }

    fn copy(
        &mut self,
        layer: u32,
        group: u32,
        sources: Vec<(usize, HostRange)>,
        read: Option<Read>,
    ) -> Result<Arrival, DeviceError> {
        let slot = self.free.pop().expect("with nothing under way every slot is free, else it was looked for");
        let offset = u64::from(slot) * self.with.slot_bytes;
        let target = |index: usize, bytes: u64| self.slots.slice(offset + index as u64 * bytes, bytes);
        let pieces = sources
            .iter()
            .enumerate()
            .map(|(index, (_, host))| CopyPiece { host: *host, device: target(index, host.bytes) });
        let pieces: Vec<CopyPiece> = pieces.collect();
        let sections =
            sources.iter().zip(&pieces).map(|((block, _), piece)| (*block, SectionPlace::Device(piece.device)));
        let sections = sections.collect();
        self.with.device.copy_in(Stream::CopyIn, &pieces)?;
        let event = self.with.device.record(Stream::CopyIn)?;
        Ok(Arrival { layer, group, sections, copy: Some((slot, event)), read })
    }

    fn lost(&self, block: u32, reason: MissReason) -> PagingEnd {
        match self.with.cache.lost(self.sequence, block, reason) {
            Ok(()) => PagingEnd::Lost { block, reason },
            Err(error) => PagingEnd::Failed(error.into()),
        }
    }

    /// Starts reads, in order, up to the end of `layer`'s successor, while there is memory to stage them in.
    fn read_ahead(&mut self, layer: u32) -> Result<(), PagingEnd> {
        while let Some((attended, _)) = self.retired.front()
            && self.with.device.is_done(*attended)?
        {
            let (_, read) = self.retired.pop_front().expect("it was just seen");
            self.staged -= read.blocks.len() as u32;
        }
        let last = (layer + 1).min(self.with.shape.layers - 1);
        while self.read.0 <= last {
            let Some(group) = self.missing.get(self.read.1).copied() else {
                self.read = (self.read.0 + 1, 0);
                continue;
            };
            let blocks = self.on_disk(group);
            if !blocks.is_empty() {
                let count = blocks.len() as u32;
                if self.staged + count > self.with.staged_max {
                    return Ok(());
                }
                let section = self.with.shape.code_section(self.read.0);
                let wanted: Vec<StagedSection> =
                    blocks.iter().map(|block| StagedSection { block: *block, section }).collect();
                let started = self.with.cache.stage(self.sequence, &wanted);
                let Some(stage) = started.map_err(|error| PagingEnd::Failed(error.into()))? else {
                    return Ok(());
                };
                self.staged += count;
                self.reads.push_back(Read { layer: self.read.0, group, blocks, stage });
            }
            self.read.1 += 1;
        }
        Ok(())
    }

    fn in_place(&self) -> bool {
        self.with.device.info().in_place
    }

    /// Blocks of a group that are on the disk only.
    fn on_disk(&self, group: u32) -> Vec<u32> {
        let on_disk = |block: &usize| matches!(self.places[*block], BlockPlace::Disk);
        self.blocks_of(group).filter(on_disk).map(|block| block as u32).collect()
    }

    fn group_of(&self, span: u32) -> u32 {
        span / spans_per_group(&self.with.geometry)
    }

    fn blocks_of(&self, group: u32) -> std::ops::Range<usize> {
        let per_group = blocks_per_group(&self.with.geometry) as usize;
        let first = group as usize * per_group;
        first..(first + per_group).min(self.places.len())
    }

    fn is_missing(&self, group: u32) -> bool {
        self.missing.binary_search(&group).is_ok()
    }
}

impl Drop for Pager<'_> {
    /// Copies that nobody waits for any more must end before their slots are given to another step, and kernels before what they read is.
    fn drop(&mut self) {
        if let Some((_, event)) = self.arrivals.iter().rev().find_map(|arrival| arrival.copy) {
            let _ = self.with.device.synchronize(event);
        }
        if let Some((attended, _)) = self.retired.back() {
            let _ = self.with.device.synchronize(*attended);
        }
    }
}

fn host_slice(range: HostRange, offset: u64, bytes: u64) -> HostRange {
    HostRange { extent: range.extent, offset: range.offset + offset, bytes }
}
