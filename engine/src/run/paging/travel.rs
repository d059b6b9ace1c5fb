//! Blocks on their way: read from the disk into host memory, copied to the device over a link.

use super::*;

/// A block's sections in the host arena, plane by plane.
struct Source {
    view: usize,
    block: usize,
    planes: Vec<HostRange>,
}

impl Pager<'_> {
    /// Sends for groups of `layer` while there are free slots and their reads have arrived; starts reads ahead.
    pub(super) fn issue(&mut self, layer: u32) -> Result<(), PagingEnd> {
        if self.issued.0 != layer {
            self.issued = (layer, 0);
        }
        loop {
            self.read_ahead(layer)?;
            let Some(group) = self.missing.get(self.issued.1).copied() else {
                return Ok(());
            };
            let is_next = |read: &Read| (read.layer, read.group) == (layer, group) && read.is_done();
            let is_read = !self.is_on_disk(group) || self.reads.front().is_some_and(is_next);
            if !is_read || (!self.in_place() && self.free.is_empty()) {
                return Ok(());
            }
            self.send_for(layer, group)?;
        }
    }

    /// Waits until the next group of `layer` can be sent for. Nothing else is under way.
    pub(super) fn send_for_next(&mut self, layer: u32) -> Result<(), PagingEnd> {
        let group = self.missing[self.issued.1];
        while self.is_on_disk(group) && self.reads.is_empty() {
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
        let mut read = if self.is_on_disk(group) { self.reads.pop_front() } else { None };
        let mut sources: Vec<Source> = Vec::new();
        for part in read.iter_mut().flat_map(|read| &mut read.parts) {
            let staged = part.stage.wait();
            for (block, planes) in part.blocks.iter().zip(staged.chunks(part.sections as usize)) {
                let planes: Result<Vec<HostRange>, MissReason> = planes.iter().copied().collect();
                match planes {
                    Ok(planes) => sources.push(Source { view: part.view, block: *block as usize, planes }),
                    Err(reason) => return Err(self.lost(part.view, *block, reason)),
                }
            }
        }
        self.loaded.disk += sources.iter().flat_map(|source| &source.planes).map(|plane| plane.bytes).sum::<u64>();
        self.issued.1 += 1;
        let arrival = if self.in_place() {
            let placed = sources.into_iter().map(|Source { view, block, planes }| Placed {
                view,
                block,
                planes: planes.into_iter().map(SectionPlace::Host).collect(),
            });
            Arrival { layer, group, placed: placed.collect(), copy: None, read }
        } else {
            for (view, of) in self.views.iter().enumerate() {
                for block in of.blocks(self.blocks_of(group), |place| matches!(place, BlockPlace::Host(..))) {
                    let BlockPlace::Host(range, _) = &of.places[block as usize] else {
                        unreachable!("it was just seen")
                    };
                    let planes: Vec<HostRange> =
                        of.sections(layer).map(|section| host_slice(*range, &section)).collect();
                    self.loaded.host += planes.iter().map(|plane| plane.bytes).sum::<u64>();
                    sources.push(Source { view, block: block as usize, planes });
                }
            }
            self.copy(layer, group, &sources, read)?
        };
        self.arrivals.push_back(arrival);
        Ok(())
    }

    fn copy(&mut self, layer: u32, group: u32, sources: &[Source], read: Option<Read>) -> Result<Arrival, DeviceError> {
        let slot = self.free.pop().expect("with nothing under way every slot is free, else it was looked for");
        let mut offset = u64::from(slot) * self.with.slot_bytes;
        let mut pieces: Vec<CopyPiece> = Vec::new();
        let mut placed = Vec::with_capacity(sources.len());
        for Source { view, block, planes } in sources {
            let first = pieces.len();
            for host in planes {
                pieces.push(CopyPiece { host: *host, device: self.slots.slice(offset, host.bytes) });
                offset += host.bytes;
            }
            let planes = pieces[first..].iter().map(|piece| SectionPlace::Device(piece.device)).collect();
            placed.push(Placed { view: *view, block: *block, planes });
        }
        self.with.device.copy_in(Stream::CopyIn, &pieces)?;
        let event = self.with.device.record(Stream::CopyIn)?;
        Ok(Arrival { layer, group, placed, copy: Some((slot, event)), read })
    }

    fn lost(&self, view: usize, block: u32, reason: MissReason) -> PagingEnd {
        let of = &self.views[view];
        match of.cache.lost(of.sequence, block, reason) {
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
            for part in read.parts {
                self.views[part.view].staged -= part.sections * part.blocks.len() as u32;
            }
        }
        let last = (layer + 1).min(self.with.layers - 1);
        while self.read.0 <= last {
            let Some(group) = self.missing.get(self.read.1).copied() else {
                self.read = (self.read.0 + 1, 0);
                continue;
            };
            let Some(parts) = self.start_reads(self.read.0, group)? else {
                return Ok(());
            };
            if !parts.is_empty() {
                self.reads.push_back(Read { layer: self.read.0, group, parts });
            }
            self.read.1 += 1;
        }
        Ok(())
    }

    /// Starts to read what the disk has of a group, in each form; `None` when there is no memory for all of it just now.
    fn start_reads(&mut self, layer: u32, group: u32) -> Result<Option<Vec<ReadPart>>, PagingEnd> {
        let mut parts = Vec::new();
        for (view, of) in self.views.iter().enumerate() {
            let blocks = of.on_disk(self.blocks_of(group));
            if blocks.is_empty() {
                continue;
            }
            let sections: Vec<Section> = of.sections(layer).collect();
            let wanted: Vec<StagedSection> = blocks
                .iter()
                .flat_map(|block| sections.iter().map(|section| StagedSection { block: *block, section: *section }))
                .collect();
            if of.staged + wanted.len() as u32 > of.staged_max {
                return Ok(None);
            }
            let started = of.cache.stage(of.sequence, &wanted);
            let Some(stage) = started.map_err(|error| PagingEnd::Failed(error.into()))? else {
                return Ok(None);
            };
            parts.push(ReadPart { view, blocks, sections: sections.len() as u32, stage });
        }
        for part in &parts {
            self.views[part.view].staged += part.sections * part.blocks.len() as u32;
        }
        Ok(Some(parts))
    }
}
