//! Attention of one sequence at one layer over blocks that lie on the device, in the host arena, on the disk, or on their way.
//!
//! Blocks that the device cannot attend where they are travel layer by layer: sections from the disk are **staged** in host memory, and
//! where there is a link, they and sections of host blocks go through **paging slots** on the device. While reads and copies run, attention
//! works on what is there. With partials, spans are attended in order of arrival and merged in span order at the end; with running state
//! they are attended in span order while later copies run ahead. Either way the bits are the same.
//!
//! A step has a view of a sequence per form: of lossless blocks, and where blocks are closed, of closed ones. A block may travel in either, or in both.
//!
//! | file | part |
//! |---|---|
//! | `paging` | what is attended, as it comes or in order |
//! | `travel` | what is on its way |

mod travel;

use std::collections::VecDeque;

use cache_core::miss::MissReason;
use cache_core::payload::{BlockShape, Plane, Section};
use gpu_tier::DeviceError;
use gpu_tier::attention::closed::{AttendMixed, Closed, ClosedPlace};
use gpu_tier::attention::{Accumulator, Attend, Attention, Geometry, SectionPlace};
use gpu_tier::device::{CopyPiece, DeviceRange, Event, HostRange, Stream};
use kvtier_sdk::cache::{BlockPlace, KvCache, SequenceId, Stage, StagedSection};

use crate::error::EngineError;
use crate::run::area::{blocks_per_group, spans_per_group};
use crate::run::closing::Closing;

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

/// Index of the view of lossless blocks, and of that of closed ones.
pub(crate) const LOSSLESS: usize = 0;
pub(crate) const CLOSED: usize = 1;

/// One form of a sequence's blocks: where they are, and which of them the step reads in it.
pub(crate) struct View<'a> {
    pub(crate) cache: &'a dyn KvCache,
    pub(crate) sequence: SequenceId,
    pub(crate) shape: BlockShape,
    pub(crate) places: &'a [BlockPlace],
    /// Per block: some row of the step reads it in this form.
    pub(crate) reads: Vec<bool>,
    /// Sections that may be staged at once.
    pub(crate) staged_max: u32,
    /// Sections that are staged now.
    pub(crate) staged: u32,
}

impl View<'_> {
    /// The sections of one layer, plane by plane.
    fn sections(&self, layer: u32) -> impl Iterator<Item = Section> + use<> {
        let shape = self.shape;
        Plane::ALL.into_iter().filter_map(move |plane| shape.section(plane, layer))
    }

    /// Blocks of a group that the step reads in this form and that `is` of their places.
    fn blocks(&self, group: std::ops::Range<usize>, is: impl Fn(&BlockPlace) -> bool) -> Vec<u32> {
        let group = group.start..group.end.min(self.places.len());
        group.filter(|block| self.reads[*block] && is(&self.places[*block])).map(|block| block as u32).collect()
    }

    fn on_disk(&self, group: std::ops::Range<usize>) -> Vec<u32> {
        self.blocks(group, |place| matches!(place, BlockPlace::Disk))
    }
}

/// Reads under way: which group's blocks that are on the disk.
struct Read {
    layer: u32,
    group: u32,
    parts: Vec<ReadPart>,
}

/// Of one view. A block's sections follow each other, plane by plane.
struct ReadPart {
    view: usize,
    blocks: Vec<u32>,
    sections: u32,
    stage: Box<dyn Stage>,
}

impl Read {
    fn is_done(&self) -> bool {
        self.parts.iter().all(|part| part.stage.is_done())
    }
}

/// A block's sections where they will be attended, plane by plane.
struct Placed {
    view: usize,
    block: usize,
    planes: Vec<SectionPlace>,
}

/// A group that has arrived or is being copied.
struct Arrival {
    layer: u32,
    group: u32,
    /// Its missing blocks.
    placed: Vec<Placed>,
    /// Its paging slot and the copy's end; none where the device attends in place.
    copy: Option<(u32, Event)>,
    read: Option<Read>,
}

/// What a pager works with, the same for every pager of a step.
#[derive(Clone, Copy)]
pub(crate) struct Paging<'a> {
    pub(crate) device: &'a dyn Attention,
    pub(crate) geometry: Geometry,
    /// How blocks are closed, if any are.
    pub(crate) closing: Option<Closing>,
    pub(crate) layers: u32,
    /// Bytes of a paging slot.
    pub(crate) slot_bytes: u64,
}

/// Attends jobs over lossless blocks, and over closed ones where there are any.
pub(crate) fn attend(
    device: &dyn Attention,
    geometry: &Geometry,
    codes: Option<Closed>,
    jobs: &[AttendMixed<'_>],
) -> Result<(), DeviceError> {
    if jobs.is_empty() {
        return Ok(());
    }
    if let Some(codes) = codes {
        return device.attend_mixed(Stream::Compute, geometry, codes, jobs);
    }
    let jobs: Vec<Attend<'_>> = jobs
        .iter()
        .map(|job| Attend {
            queries: job.queries,
            rows: job.rows,
            first_position: job.first_position,
            sections: job.exact,
            spans: job.spans,
            into: job.into,
        })
        .collect();
    device.attend(Stream::Compute, geometry, &jobs)
}

/// Pages one sequence for the length of one step.
pub(crate) struct Pager<'a> {
    with: Paging<'a>,
    views: Vec<View<'a>>,
    blocks: usize,
    /// Groups with a block that must travel, ascending; the same for every layer.
    missing: Vec<u32>,
    /// This sequence's paging slots.
    slots: DeviceRange,
    free: Vec<u32>,
    reads: VecDeque<Read>,
    /// Reads started so far, as (layer, index into `missing`).
    read: (u32, usize),
    arrivals: VecDeque<Arrival>,
    /// Groups sent for so far, as (layer, index into `missing`).
    issued: (u32, usize),
    /// Staged sections that a kernel may still read.
    retired: VecDeque<(Event, Read)>,
    /// Lossless sections of the layer being attended.
    sections: Vec<Option<SectionPlace>>,
    /// Closed ones.
    closed: Vec<Option<ClosedPlace>>,
    spans: u32,
    loaded: LoadedBytes,
}

impl<'a> Pager<'a> {
    /// `views`: lossless blocks, then closed ones where there are any. `slots` holds whole paging slots, at least one if anything must be
    /// copied.
    pub(crate) fn new(with: Paging<'a>, views: Vec<View<'a>>, slots: DeviceRange, tokens: u32) -> Pager<'a> {
        let in_place = with.device.info().in_place;
        let per_group = blocks_per_group(&with.geometry) as usize;
        let travels = |place: &BlockPlace| match place {
            BlockPlace::Disk => true,
            BlockPlace::Host(..) => !in_place,
            BlockPlace::Device(..) | BlockPlace::Lost(_) | BlockPlace::Absent => false,
        };
        let blocks = views[LOSSLESS].places.len();
        let groups = 0..blocks.div_ceil(per_group);
        let group = |index: usize| index * per_group..(index + 1) * per_group;
        let missing = groups
            .filter(|index| views.iter().any(|view| !view.blocks(group(*index), travels).is_empty()))
            .map(|index| index as u32)
            .collect();
        Pager {
            with,
            views,
            blocks,
            missing,
            slots,
            free: (0..(slots.bytes / with.slot_bytes) as u32).rev().collect(),
            reads: VecDeque::new(),
            read: (0, 0),
            arrivals: VecDeque::new(),
            issued: (0, 0),
            retired: VecDeque::new(),
            sections: Vec::new(),
            closed: Vec::new(),
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

    /// Looks up the sections of `layer`; those that must travel, and those that no row reads, stay `None`.
    pub(crate) fn begin_layer(&mut self, layer: u32) {
        self.sections.clear();
        self.sections.resize(self.blocks, None);
        self.closed.clear();
        self.closed.resize(if self.views.len() > CLOSED { self.blocks } else { 0 }, None);
        let in_place = self.in_place();
        for view in 0..self.views.len() {
            let sections: Vec<Section> = self.views[view].sections(layer).collect();
            for block in 0..self.views[view].places.len().min(self.blocks) {
                let of = &self.views[view];
                if !of.reads[block] {
                    continue;
                }
                let planes: Vec<SectionPlace> = match &of.places[block] {
                    BlockPlace::Device(range, _) => sections
                        .iter()
                        .map(|section| SectionPlace::Device(range.slice(section.offset, section.bytes)))
                        .collect(),
                    BlockPlace::Host(range, _) if in_place => {
                        sections.iter().map(|section| SectionPlace::Host(host_slice(*range, section))).collect()
                    }
                    _ => continue,
                };
                self.place(&Placed { view, block, planes });
            }
        }
    }

    fn place(&mut self, placed: &Placed) {
        match placed.view {
            LOSSLESS => self.sections[placed.block] = Some(placed.planes[0]),
            _ => self.closed[placed.block] = Some(closed_place(&placed.planes)),
        }
    }

    fn displace(&mut self, placed: &Placed) {
        match placed.view {
            LOSSLESS => self.sections[placed.block] = None,
            _ => self.closed[placed.block] = None,
        }
    }

    /// This layer's lossless sections, by block.
    pub(crate) fn sections(&self) -> &[Option<SectionPlace>] {
        &self.sections
    }

    /// This layer's closed sections, by block; empty where no block is closed.
    pub(crate) fn closed(&self) -> &[Option<ClosedPlace>] {
        &self.closed
    }

    /// Every span of the sequence.
    pub(crate) fn all_spans(&self) -> Vec<u32> {
        (0..self.spans).collect()
    }

    /// Attends all spans of `layer`, paging as needed, and lets the next layer's reads and copies run ahead.
    pub(crate) fn attend(&mut self, layer: u32, job: &AttendMixed<'_>) -> Result<(), PagingEnd> {
        match job.into {
            Accumulator::Partials { .. } => self.attend_as_they_come(layer, job)?,
            Accumulator::Running { .. } => self.attend_in_order(layer, job)?,
        }
        if layer + 1 < self.with.layers {
            self.issue(layer + 1)?;
        }
        Ok(())
    }

    fn attend_as_they_come(&mut self, layer: u32, job: &AttendMixed<'_>) -> Result<(), PagingEnd> {
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
                self.attend_spans(layer, job, spans)?;
            } else if !self.attend_arrival(layer, job)? {
                return Ok(());
            }
        }
    }

    fn attend_in_order(&mut self, layer: u32, job: &AttendMixed<'_>) -> Result<(), PagingEnd> {
        let mut run = Vec::new();
        let mut span = 0;
        while span < self.spans {
            if self.is_missing(self.group_of(span)) {
                self.issue(layer)?;
                self.attend_spans(layer, job, &run)?;
                run.clear();
                let arrived = self.attend_arrival(layer, job)?;
                assert!(arrived, "span {span} of layer {layer} was never sent for");
                span = (self.group_of(span) + 1) * spans_per_group(&self.with.geometry);
            } else {
                run.push(span);
                span += 1;
            }
        }
        Ok(self.attend_spans(layer, job, &run)?)
    }

    /// Waits for the oldest group of this layer and attends it; false when there is none left.
    fn attend_arrival(&mut self, layer: u32, job: &AttendMixed<'_>) -> Result<bool, PagingEnd> {
        if self.arrivals.is_empty() && self.issued.1 < self.missing.len() {
            self.send_for_next(layer)?;
        }
        let Some(arrival) = self.arrivals.pop_front_if(|front| front.layer == layer) else {
            return Ok(false);
        };
        if let Some((_, event)) = arrival.copy {
            self.with.device.wait(Stream::Compute, event)?;
        }
        arrival.placed.iter().for_each(|placed| self.place(placed));
        let first = arrival.group * spans_per_group(&self.with.geometry);
        let spans: Vec<u32> = (first..(first + spans_per_group(&self.with.geometry)).min(self.spans)).collect();
        self.attend_spans(layer, job, &spans)?;
        arrival.placed.iter().for_each(|placed| self.displace(placed));
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

    fn attend_spans(&self, layer: u32, job: &AttendMixed<'_>, spans: &[u32]) -> Result<(), DeviceError> {
        if spans.is_empty() {
            return Ok(());
        }
        let job = AttendMixed { exact: &self.sections, closed: &self.closed, spans, ..*job };
        let codes = self.with.closing.map(|closing| closing.codes(layer));
        attend(self.with.device, &self.with.geometry, codes, &[job])
    }

    fn in_place(&self) -> bool {
        self.with.device.info().in_place
    }

    /// True when the step reads blocks of a group that are on the disk only.
    fn is_on_disk(&self, group: u32) -> bool {
        self.views.iter().any(|view| !view.on_disk(self.blocks_of(group)).is_empty())
    }

    fn group_of(&self, span: u32) -> u32 {
        span / spans_per_group(&self.with.geometry)
    }

    fn blocks_of(&self, group: u32) -> std::ops::Range<usize> {
        let per_group = blocks_per_group(&self.with.geometry) as usize;
        let first = group as usize * per_group;
        first..(first + per_group).min(self.blocks)
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

/// A closed block's sections: header plane if the layer has one, scale plane, code plane.
fn closed_place(planes: &[SectionPlace]) -> ClosedPlace {
    match *planes {
        [header, scale, codes] => ClosedPlace { header: Some(header), scale, codes },
        [scale, codes] => ClosedPlace { header: None, scale, codes },
        _ => unreachable!("a closed layer has two planes or three, not {}", planes.len()),
    }
}

fn host_slice(range: HostRange, section: &Section) -> HostRange {
    HostRange { extent: range.extent, offset: range.offset + section.offset, bytes: section.bytes }
}
