//! What was read, verified and decoded: the bytes alone, without any lock.

use super::*;

/// What verification found.
pub(crate) enum Verified {
    /// The header of a staged record, in which a section's place stands: the section can be read now.
    Header,
    /// All of it; the record's epoch.
    Whole(Result<u64, CheckFailure>),
}

impl ReadJob {
    /// Verifies what was read, without any lock.
    pub(crate) fn verify(&mut self, testing: &Testing, codec: &dyn Codec) -> Verified {
        match &self.wanted {
            Wanted::Whole if self.is_staged => Verified::Whole(self.restore_whole(testing, codec)),
            Wanted::Whole => Verified::Whole(self.verify_whole(testing)),
            Wanted::Section(section, cell) => {
                let (section, cell) = (*section, Arc::clone(cell));
                let header = match self.section_header(&cell, testing) {
                    Ok(header) => header,
                    Err(failure) => return Verified::Whole(Err(failure)),
                };
                if self.is_staged && self.stored.is_none() {
                    self.header = Some(header);
                    return Verified::Header;
                }
                let result = if self.is_staged {
                    self.restore_section(section, &header, codec)
                } else {
                    self.verify_section(section, &header.slot)
                };
                Verified::Whole(result.map(|()| header.slot.place.epoch))
            }
        }
    }

    /// The header at the start of `bytes`, of this record and at its place.
    fn header(&self, bytes: &[u8], testing: &Testing) -> Result<RecordHeader, CheckFailure> {
        let sections = self.shape.section_count();
        let header = if self.is_staged {
            RecordHeader::decode_staged(bytes, sections)?
        } else {
            RecordHeader::plain(SlotHeader::decode(bytes, sections)?)
        };
        header.slot.expect_key(&self.key)?;
        header.slot.expect_shape(&self.shape)?;
        let is_here = is_at(&header.slot.place, &self.place) || testing.has(PlantedBug::IgnorePlace);
        if is_here && header.pages() == self.location.pages { Ok(header) } else { Err(CheckFailure::Identity) }
    }

    /// The header that the pin has, or the one that was just read, which the pin then has.
    fn section_header(&self, cell: &HeaderCell, testing: &Testing) -> Result<Arc<RecordHeader>, CheckFailure> {
        if let Some(header) = &self.header {
            return Ok(Arc::clone(header));
        }
        let pages = self.header_pages.as_ref().ok_or(CheckFailure::Header)?;
        let header = Arc::new(self.header(pages.as_slice(), testing)?);
        *cell.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&header));
        Ok(header)
    }

    fn verify_whole(&mut self, testing: &Testing) -> Result<u64, CheckFailure> {
        let image = self.memory.as_ref().map_or(&[][..], Memory::as_slice);
        let header = self.header(image, testing)?.slot;
        if !testing.has(PlantedBug::IgnoreSums) {
            header.verify_sections(self.shape.sections(), image)?;
        }
        Ok(self.unplace(header))
    }

    fn restore_whole(&mut self, testing: &Testing, codec: &dyn Codec) -> Result<u64, CheckFailure> {
        let stored = self.stored.as_ref().map_or(&[][..], Buffer::as_slice);
        let header = self.header(stored, testing)?;
        let image = self.memory.as_mut().map_or(&mut [][..], Memory::as_mut_slice);
        header.restore(stored, codec, image, testing.has(PlantedBug::IgnoreSums))?;
        Ok(self.unplace(header.slot))
    }

    /// Outside the disk the header names no place: the image becomes what was written. Returns the record's epoch.
    fn unplace(&mut self, header: SlotHeader) -> u64 {
        let epoch = header.place.epoch;
        let header_bytes = self.shape.header_bytes() as usize;
        if let Some(pages) = self.memory.as_mut().and_then(|memory| memory.as_mut_slice().get_mut(..header_bytes)) {
            SlotHeader { place: RecordPlace::default(), ..header }.encode(pages);
        }
        epoch
    }

    fn verify_section(&self, section: Section, header: &SlotHeader) -> Result<(), CheckFailure> {
        let span = self.memory.as_ref().map_or(&[][..], Memory::as_slice);
        let in_span = Section { offset: section_span(section).start, ..section };
        header.verify_sections(std::iter::once(in_span), span)
    }

    fn restore_section(
        &mut self,
        section: Section,
        header: &RecordHeader,
        codec: &dyn Codec,
    ) -> Result<(), CheckFailure> {
        let failed = CheckFailure::Section { section: section.index };
        let (coding, span) = header.stored_at(section.index).ok_or(failed)?;
        let pages = self.stored.as_ref().map_or(&[][..], Buffer::as_slice);
        let [from, to] = [span.start, span.end].map(|at| (at - self.stored_range.start) as usize);
        let stored = pages.get(from..to).ok_or(failed)?;
        let start = section_span(section).start as usize;
        let memory = self.memory.as_mut().map_or(&mut [][..], Memory::as_mut_slice);
        let out = memory.get_mut(start..start + section.bytes as usize).ok_or(failed)?;
        if stage::decode(codec, coding, stored, out) {
            header.slot.verify_section(section.index, out)
        } else {
            Err(failed)
        }
    }
}
