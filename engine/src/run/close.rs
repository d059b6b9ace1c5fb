//! Closing blocks that were full before the step that first reads them closed.

use std::ops::Range;

use cache_core::chain::Link;
use cache_core::miss::MissReason;
use cache_core::payload::{BlockShape, Plane, Section};
use gpu_tier::attention::SectionPlace;
use gpu_tier::attention::closed::{Closed, ClosedPlace, Encode, FITS};
use gpu_tier::device::{CopyPiece, DeviceRange, HostRange, Stream};
use kvtier_sdk::cache::{BlockPlace, Grant, NoRoom, StagedSection};
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
        let layers_at_once = (area.paging.bytes / shape.code_section(0).bytes).clamp(1, u64::from(shape.layers)) as u32;
        let mut first = 0;
        while first < shape.layers {
            let mut layers = first..(first + layers_at_once).min(shape.layers);
            let in_place = self.device.info().in_place;
            // Keeps the memory of what was read from the disk until it is encoded.
            let mut stage = None;
            let from_host = |range: HostRange| match in_place {
                true => Ok(SectionPlace::Host(range)),
                false => Err(range),
            };
            let sections: Vec<Section> = layers.clone().map(|layer| shape.code_section(layer)).collect();
            let places: Vec<Result<SectionPlace, HostRange>> = match &from {
                BlockPlace::Device(range, _) => sections
                    .iter()
                    .map(|section| Ok(SectionPlace::Device(range.slice(section.offset, section.bytes))))
                    .collect(),
                BlockPlace::Host(range, _) => sections
                    .iter()
                    .map(|section| {
                        let offset = range.offset + section.offset;
                        from_host(HostRange { extent: range.extent, offset, bytes: section.bytes })
                    })
                    .collect(),
                BlockPlace::Disk => {
                    let most = lossless.stage_capacity().max(1);
                    layers.end = layers.end.min(layers.start + most);
                    let wanted: Vec<StagedSection> = sections[..layers.len()]
                        .iter()
                        .map(|section| StagedSection { block, section: *section })
                        .collect();
                    let reads = stage.insert(loop {
                        // No step runs, so only another engine can hold that memory, and it gives it back.
                        match lossless.stage(tables.lossless, &wanted)? {
                            Some(reads) => break reads,
                            None => std::thread::yield_now(),
                        }
                    });
                    let read = reads.wait().into_iter().collect::<Result<Vec<HostRange>, MissReason>>();
                    match read {
                        Ok(ranges) => ranges.into_iter().map(from_host).collect(),
                        Err(reason) => {
                            lossless.lost(tables.lossless, block, reason)?;
                            return Ok(Encoded::Lost(reason));
                        }
                    }
                }
                BlockPlace::Lost(reason) => return Ok(Encoded::Lost(*reason)),
                BlockPlace::Absent => unreachable!("the lossless copy is kept until the block is closed"),
            };
            let places = self.bring(&area, &places)?;
            let jobs: Vec<Encode> = places
                .into_iter()
                .zip(layers.clone())
                .map(|(exact, layer)| Encode {
                    exact,
                    into: layer_of(&closed_shape, into, layer),
                    verdict: area.verdicts.slice(4 * u64::from(layer), 4),
                })
                .collect();
            // Layers in a row whose codes are the same go in one launch.
            let codes: Vec<Closed> = layers.clone().map(|layer| closed.closing.codes(layer)).collect();
            let mut rest = &jobs[..];
            for alike in codes.chunk_by(Closed::eq) {
                let (run, after) = rest.split_at(alike.len());
                self.device.encode(Stream::Compute, &self.geometry, alike[0], run)?;
                rest = after;
            }
            let encoded = self.device.record(Stream::Compute)?;
            self.device.synchronize(encoded)?;
            drop(stage);
            first = layers.end;
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

    /// Copies sections that the device cannot read where they are into the paging slots, which no step uses now.
    fn bring(
        &self,
        area: &StepArea,
        places: &[Result<SectionPlace, HostRange>],
    ) -> Result<Vec<SectionPlace>, EngineError> {
        let mut pieces = Vec::new();
        let mut offset = 0;
        let mut brought = Vec::with_capacity(places.len());
        for place in places {
            brought.push(match place {
                Ok(place) => *place,
                Err(host) => {
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
