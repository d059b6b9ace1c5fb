//! Closing blocks that were full before the step that first reads them closed.

use std::ops::Range;

use cache_core::chain::Link;
use cache_core::miss::MissReason;
use cache_core::payload::{BlockShape, Plane, Section};
use gpu_tier::attention::SectionPlace;
use gpu_tier::attention::closed::{Closed, ClosedPlace, Encode, FITS};
use gpu_tier::device::{CopyPiece, DeviceRange, HostRange, Stream};
use kvtier_sdk::cache::{BlockPlace, Grant, NoRoom, Stage, StagedSection};
use zerocopy::IntoBytes;

use crate::error::EngineError;
use crate::run::area::StepArea;
use crate::run::step::Stepper;
use crate::run::tables::{Caches, ClosedCache, Tables};

/// How closing ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CloseEnd {
    /// Every block that the rows read closed is closed, or stays raw, as far as it was full.
    Done,
    /// No slot is free for a closed block. Nothing is held.
    NoRoom(NoRoom),
    /// Another sequence closes the same block.
    PendingElsewhere,
    /// The lossless copy of a block is gone.
    Lost(u32, MissReason),
}

/// What became of one block.
enum Encoded {
    Fits,
    StaysRaw,
    Lost(MissReason),
}

/// A lossless section to be encoded.
enum Source {
    /// The device reads it where it is.
    Readable(SectionPlace),
    /// It has to be copied to the device first.
    Afar(HostRange),
}

/// Sections of some layers, and the memory of those that were read from the disk, until they are encoded.
struct Sources {
    sections: Vec<Source>,
    _stage: Option<Box<dyn Stage>>,
}

impl Stepper {
    /// Closes the full blocks that rows at `positions` read closed, and gives up lossless copies that none of them reads.
    pub(crate) fn close_full(
        &mut self,
        caches: &Caches,
        tables: &mut Tables,
        links: &[Link],
        positions: &Range<u32>,
    ) -> Result<CloseEnd, EngineError> {
        let (Some(closed), Some(table)) = (&caches.closed, &tables.closed) else {
            return Ok(CloseEnd::Done);
        };
        let end = table.due(positions).end.min(positions.start / caches.block_tokens);
        let window = table.window_start(positions.start);
        for block in table.settled()..end {
            match tables.reserve_closed(caches, links, block + 1)? {
                Grant::Granted => {}
                Grant::NoRoom(figures) => return Ok(CloseEnd::NoRoom(figures)),
                Grant::PendingElsewhere => return Ok(CloseEnd::PendingElsewhere),
            }
            match self.encode(closed, tables, block)? {
                Encoded::Fits => {}
                Encoded::StaysRaw => tables.stays_raw(caches, block)?,
                Encoded::Lost(reason) => return Ok(CloseEnd::Lost(block, reason)),
            }
            tables.settle_closed(caches, links, block + 1)?;
        }
        tables.release_before(caches, window)?;
        Ok(CloseEnd::Done)
    }

    /// Encodes every layer of a block into its open slot.
    fn encode(&mut self, closed: &ClosedCache, tables: &Tables, block: u32) -> Result<Encoded, EngineError> {
        let lossless = &*self.caches.lossless;
        let table = tables.closed.as_ref().expect("only a sequence with closed blocks closes them");
        let from = lossless.places(tables.lossless)?.swap_remove(block as usize);
        let BlockPlace::Device(into, _) = closed.cache.places(table.id)?.swap_remove(block as usize) else {
            unreachable!("a block that is being closed is open on the device");
        };
        let (shape, closed_shape) = (lossless.shape(), closed.cache.shape());
        let area = StepArea::new(&self.plan, &self.geometry, self.area.range(), self.plan.rows);
        let most = match &from {
            BlockPlace::Disk => u64::from(lossless.stage_capacity()),
            _ => u64::from(shape.layers),
        };
        let at_once = (area.paging.bytes / shape.code_section(0).bytes).min(most).max(1) as u32;
        for first in (0..shape.layers).step_by(at_once as usize) {
            let layers = first..(first + at_once).min(shape.layers);
            let sources = match self.sources(tables, block, &from, &layers)? {
                Ok(sources) => sources,
                Err(reason) => return Ok(Encoded::Lost(reason)),
            };
            let jobs: Vec<Encode> = self
                .bring(&area, &sources.sections)?
                .into_iter()
                .zip(layers.clone())
                .map(|(exact, layer)| Encode {
                    exact,
                    into: layer_of(&closed_shape, into, layer),
                    verdict: area.verdicts.slice(4 * u64::from(layer), 4),
                })
                .collect();
            // Layers in a row whose codes are the same go in one launch.
            let codes: Vec<Closed> = layers.map(|layer| closed.closing.codes(layer)).collect();
            let mut rest = &jobs[..];
            for alike in codes.chunk_by(Closed::eq) {
                let (run, after) = rest.split_at(alike.len());
                self.device.encode(Stream::Compute, &self.geometry, alike[0], run)?;
                rest = after;
            }
            let encoded = self.device.record(Stream::Compute)?;
            self.device.synchronize(encoded)?;
        }
        let mut verdicts = vec![FITS; shape.layers as usize];
        let bytes = area.verdicts.slice(0, 4 * u64::from(shape.layers));
        self.device.download(Stream::Compute, bytes, verdicts.as_mut_bytes())?;
        if !lossless.check(tables.lossless, block, &from) {
            return Ok(Encoded::Lost(MissReason::LeaseLost));
        }
        let fits = verdicts.iter().all(|verdict| *verdict == FITS);
        Ok(if fits { Encoded::Fits } else { Encoded::StaysRaw })
    }

    /// Where the lossless sections of some layers of a block are; those on the disk are read. `Err`: the block is lost.
    fn sources(
        &self,
        tables: &Tables,
        block: u32,
        from: &BlockPlace,
        layers: &Range<u32>,
    ) -> Result<Result<Sources, MissReason>, EngineError> {
        let lossless = &*self.caches.lossless;
        let in_place = self.device.info().in_place;
        let in_host = |range| if in_place { Source::Readable(SectionPlace::Host(range)) } else { Source::Afar(range) };
        let sections = layers.clone().map(|layer| lossless.shape().code_section(layer));
        Ok(match from {
            BlockPlace::Device(range, _) => {
                let place = |section: Section| SectionPlace::Device(range.slice(section.offset, section.bytes));
                Ok(Sources { sections: sections.map(place).map(Source::Readable).collect(), _stage: None })
            }
            BlockPlace::Host(range, _) => {
                let part = |section: Section| HostRange {
                    extent: range.extent,
                    offset: range.offset + section.offset,
                    bytes: section.bytes,
                };
                Ok(Sources { sections: sections.map(part).map(in_host).collect(), _stage: None })
            }
            BlockPlace::Disk => {
                let wanted: Vec<StagedSection> = sections.map(|section| StagedSection { block, section }).collect();
                let mut stage = loop {
                    // No step runs, so only another engine can hold that memory, and it gives it back.
                    match lossless.stage(tables.lossless, &wanted)? {
                        Some(stage) => break stage,
                        None => std::thread::yield_now(),
                    }
                };
                match stage.wait().into_iter().collect::<Result<Vec<HostRange>, MissReason>>() {
                    Ok(ranges) => {
                        Ok(Sources { sections: ranges.into_iter().map(in_host).collect(), _stage: Some(stage) })
                    }
                    Err(reason) => {
                        lossless.lost(tables.lossless, block, reason)?;
                        Err(reason)
                    }
                }
            }
            BlockPlace::Lost(reason) => Err(*reason),
            BlockPlace::Absent => unreachable!("the lossless copy is kept until the block is closed"),
        })
    }

    /// Copies sections that the device cannot read where they are into the paging slots, which no step uses now.
    fn bring(&self, area: &StepArea, sections: &[Source]) -> Result<Vec<SectionPlace>, EngineError> {
        let mut pieces = Vec::new();
        let mut offset = 0;
        let mut brought = Vec::with_capacity(sections.len());
        for section in sections {
            brought.push(match section {
                Source::Readable(place) => *place,
                Source::Afar(host) => {
                    let device = area.paging.slice(offset, host.bytes);
                    offset += host.bytes;
                    pieces.push(CopyPiece { host: *host, device });
                    SectionPlace::Device(device)
                }
            });
        }
        if !pieces.is_empty() {
            self.device.copy_in(Stream::CopyIn, &pieces)?;
            let copied = self.device.record(Stream::CopyIn)?;
            self.device.wait(Stream::Compute, copied)?;
        }
        Ok(brought)
    }
}

/// The sections of one layer of a closed block in a device slot.
fn layer_of(shape: &BlockShape, slot: DeviceRange, layer: u32) -> ClosedPlace {
    let section = |plane| {
        let section = shape.section(plane, layer)?;
        Some(SectionPlace::Device(slot.slice(section.offset, section.bytes)))
    };
    ClosedPlace {
        header: section(Plane::Header),
        scale: section(Plane::Scale).expect("a closed form has scales"),
        codes: section(Plane::Code).expect("every form has codes"),
    }
}
