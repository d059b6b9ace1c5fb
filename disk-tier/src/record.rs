//! Records: slot images whose header names their place, and staged records, whose sections stand encoded behind a header of their own.
//! Rebuilding the header pages, reading one whose shape is not known, and the way back from a staged record to its image.

use cache_core::buffer::{Buffer, round_to_pages};
use cache_core::codec::Codec;
use cache_core::header::{CheckFailure, MAGIC, RecordPlace, SlotHeader, encoded_bytes};
use cache_core::key::CopyKey;
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::{self, Kind};
use crate::io::ALIGN_BYTES;
use crate::stage::{self, Coding};

/// Most sections of a header that is read without its shape.
const SECTIONS_MAX: u32 = 1 << 16;
/// Where the section count stands in a slot header, and in that of a staged record.
const COUNT_AT: std::ops::Range<usize> = 8..12;
const STAGED_MAGIC: [u8; 8] = *b"kvtstag1";

/// How the header of a staged record begins. Behind it: one [`StoredSection`] a section, the slot header, a sum.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    sections: U32,
    record_pages: U32,
}

pub(crate) const HEAD_BYTES: usize = size_of::<Head>();
const SUM_BYTES: usize = 8;
/// Bits of a stored length; the coding stands above them.
const LENGTH_BITS: u32 = 28;

/// How a section stands in a staged record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredSection {
    pub coding: Coding,
    bytes: u32,
}

impl StoredSection {
    /// `None`: no record holds so many bytes.
    pub(crate) fn new(coding: Coding, bytes: u64) -> Option<StoredSection> {
        (bytes < 1 << LENGTH_BITS).then_some(StoredSection { coding, bytes: bytes as u32 })
    }

    fn to_bits(self) -> u32 {
        (self.coding as u32) << LENGTH_BITS | self.bytes
    }

    fn from_bits(bits: u32) -> Option<StoredSection> {
        let coding = Coding::of(bits >> LENGTH_BITS)?;
        Some(StoredSection { coding, bytes: bits & ((1 << LENGTH_BITS) - 1) })
    }
}

/// The header of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub slot: SlotHeader,
    /// How the sections of a staged record stand behind its header, one right behind the other; `None`: the record is the slot image.
    pub stored: Option<Vec<StoredSection>>,
}

/// Bytes of a staged record's header of so many sections, without what fills its last page.
pub(crate) fn staged_encoded_bytes(sections: u32) -> u64 {
    (HEAD_BYTES + size_of::<U32>() * sections as usize + SUM_BYTES) as u64 + encoded_bytes(sections)
}

/// Bytes of the header pages of a staged record of so many sections.
pub(crate) fn staged_header_bytes(sections: u32) -> u64 {
    round_to_pages(staged_encoded_bytes(sections))
}

impl RecordHeader {
    /// The header of a record that is a slot image.
    pub(crate) fn plain(slot: SlotHeader) -> RecordHeader {
        RecordHeader { slot, stored: None }
    }

    /// Pages of the record.
    pub(crate) fn pages(&self) -> u32 {
        match &self.stored {
            None => self.slot.image_pages,
            Some(stored) => (round_to_pages(self.header_bytes() + total_bytes(stored)) / ALIGN_BYTES) as u32,
        }
    }

    /// Bytes of the header pages.
    pub(crate) fn header_bytes(&self) -> u64 {
        match &self.stored {
            None => self.slot.header_bytes(),
            Some(stored) => staged_header_bytes(stored.len() as u32),
        }
    }

    /// The header pages of this record at `place`; everything else is carried on.
    pub(crate) fn placed(&self, place: RecordPlace) -> Buffer {
        let mut pages = Buffer::zeroed(self.header_bytes() as usize);
        let slot = SlotHeader { place, ..self.slot.clone() };
        let Some(stored) = &self.stored else {
            slot.encode(pages.as_mut_slice());
            return pages;
        };
        let sections = stored.len() as u32;
        let head = Head { magic: STAGED_MAGIC, sections: U32::new(sections), record_pages: U32::new(self.pages()) };
        let (target, rest) = pages.as_mut_slice().split_at_mut(HEAD_BYTES);
        target.copy_from_slice(head.as_bytes());
        let (table, rest) = rest.split_at_mut(size_of::<U32>() * stored.len());
        for (target, section) in table.chunks_exact_mut(size_of::<U32>()).zip(stored) {
            target.copy_from_slice(&section.to_bits().to_le_bytes());
        }
        slot.encode(rest);
        let end = staged_encoded_bytes(sections) as usize - SUM_BYTES;
        let sum = format::sum(Kind::Staged, &pages.as_slice()[..end]);
        pages.as_mut_slice()[end..end + SUM_BYTES].copy_from_slice(&sum.to_le_bytes());
        pages
    }

    /// Reads the header of a staged record of so many sections. What it says of its sections adds up: each is at most as long as it was
    /// sealed, they fill the record, the record is shorter than the image, and they were sealed to fill that.
    pub(crate) fn decode_staged(bytes: &[u8], sections: u32) -> Result<RecordHeader, CheckFailure> {
        read_staged(bytes, sections).ok_or(CheckFailure::Header)
    }

    /// How a section of a staged record is coded, and where it stands in the record. `None`: there is no such section, or the record is an
    /// image.
    pub(crate) fn stored_at(&self, section: u32) -> Option<(Coding, std::ops::Range<u64>)> {
        let stored = self.stored.as_ref()?;
        let own = stored.get(section as usize)?;
        let start = self.header_bytes() + total_bytes(&stored[..section as usize]);
        Some((own.coding, start..start + u64::from(own.bytes)))
    }

    /// Every section as it was sealed, from a whole staged record to its place in the image, each verified there unless `is_trusted`. What
    /// lies between them is zeroed. The image has the length that the header says.
    pub(crate) fn restore(
        &self,
        record: &[u8],
        codec: &dyn Codec,
        image: &mut [u8],
        is_trusted: bool,
    ) -> Result<(), CheckFailure> {
        let mut end = self.slot.header_bytes() as usize;
        for section in self.slot.layout() {
            let failed = CheckFailure::Section { section: section.index };
            let (coding, span) = self.stored_at(section.index).ok_or(failed)?;
            let stored = record.get(span.start as usize..span.end as usize).ok_or(failed)?;
            let (start, bytes) = (section.offset as usize, section.bytes as usize);
            image.get_mut(end..start).ok_or(failed)?.fill(0);
            end = start + bytes;
            let out = image.get_mut(start..end).ok_or(failed)?;
            if !stage::decode(codec, coding, stored, out) {
                return Err(failed);
            }
            if !is_trusted {
                self.slot.verify_section(section.index, out)?;
            }
        }
        image[end..].fill(0);
        Ok(())
    }

    /// Verifies every section of a record whose shape is not known, where its header says that it lies. `false`: damaged.
    pub(crate) fn verify_sections(&self, record: &[u8], codec: &dyn Codec) -> bool {
        if self.slot.expect_layout().is_err() {
            return false;
        }
        if self.stored.is_none() {
            return self.slot.verify_sections(self.slot.layout(), record).is_ok();
        }
        let longest = self.slot.layout().map(|section| section.bytes).max().unwrap_or(0);
        let mut scratch = Buffer::zeroed(longest as usize);
        self.slot.layout().all(|section| {
            let Some((coding, span)) = self.stored_at(section.index) else { return false };
            let Some(stored) = record.get(span.start as usize..span.end as usize) else { return false };
            let out = &mut scratch.as_mut_slice()[..section.bytes as usize];
            stage::decode(codec, coding, stored, out) && self.slot.verify_section(section.index, out).is_ok()
        })
    }
}

fn total_bytes(stored: &[StoredSection]) -> u64 {
    stored.iter().map(|section| u64::from(section.bytes)).sum()
}

fn read_staged(bytes: &[u8], sections: u32) -> Option<RecordHeader> {
    let end = staged_encoded_bytes(sections) as usize - SUM_BYTES;
    let sum = bytes.get(end..end + SUM_BYTES)?;
    if format::sum(Kind::Staged, &bytes[..end]).to_le_bytes() != sum {
        return None;
    }
    let (head, rest) = Head::read_from_prefix(&bytes[..end]).ok()?;
    if head.magic != STAGED_MAGIC || head.sections.get() != sections {
        return None;
    }
    let (table, slot) = rest.split_at_checked(size_of::<U32>() * sections as usize)?;
    let table = <[U32]>::ref_from_bytes(table).ok()?;
    let stored: Vec<StoredSection> =
        table.iter().map(|bits| StoredSection::from_bits(bits.get())).collect::<Option<_>>()?;
    let slot = SlotHeader::decode(slot, sections).ok()?;
    let fits = |(stored, sealed): (&StoredSection, u64)| match stored.coding {
        Coding::Plain => u64::from(stored.bytes) == sealed,
        _ => u64::from(stored.bytes) <= sealed,
    };
    let lengths = slot.sections.iter().map(|section| section.extent.bytes());
    let is_sound = stored.iter().zip(lengths).all(fits) && slot.expect_layout().is_ok();
    let header = RecordHeader { slot, stored: Some(stored) };
    let pages = header.pages();
    (is_sound && pages == head.record_pages.get() && pages < header.slot.image_pages).then_some(header)
}

/// Bytes of the header that seems to begin here, if a record does.
fn claimed_bytes(bytes: &[u8]) -> Option<(u32, u64)> {
    let count = u32::from_le_bytes(bytes.get(COUNT_AT)?.try_into().ok()?);
    if count > SECTIONS_MAX {
        return None;
    }
    let is_staged = bytes.starts_with(&STAGED_MAGIC);
    Some((count, if is_staged { staged_encoded_bytes(count) } else { encoded_bytes(count) }))
}

/// Reads the header at the start of `bytes` without knowing its shape: the section count is taken from the bytes, bounded, and counts only
/// under the header's sum.
pub(crate) fn peek(bytes: &[u8]) -> Option<RecordHeader> {
    let (count, header_bytes) = claimed_bytes(bytes)?;
    if header_bytes > bytes.len() as u64 {
        return None;
    }
    if bytes.starts_with(&STAGED_MAGIC) {
        return read_staged(bytes, count);
    }
    SlotHeader::decode(bytes, count).ok().map(RecordHeader::plain)
}

/// True when the header of a record may begin here.
pub(crate) fn begins(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC) || bytes.starts_with(&STAGED_MAGIC)
}

/// True when a header that begins here is longer than the bytes.
pub(crate) fn is_cut(bytes: &[u8]) -> bool {
    claimed_bytes(bytes).is_some_and(|(_, header_bytes)| header_bytes > bytes.len() as u64)
}

/// Header of an image to be written: sound, of this key, and of an image as long as the memory, which its sections fill.
pub(crate) fn header_of(key: &CopyKey, image: &[u8]) -> Result<SlotHeader, CheckFailure> {
    let RecordHeader { slot, stored } = peek(image).ok_or(CheckFailure::Header)?;
    slot.expect_key(key)?;
    slot.expect_layout()?;
    let is_whole = u64::from(slot.image_pages) * ALIGN_BYTES == image.len() as u64;
    if is_whole && stored.is_none() { Ok(slot) } else { Err(CheckFailure::Identity) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cache_core::chain::Link;
    use cache_core::codec::Scalar;
    use cache_core::contract::{Random, SHAPE, block};
    use cache_core::extent::SectionExtent;
    use cache_core::form::{Form, Lineage};
    use cache_core::header::{seal_image, verify_image};

    #[test]
    fn a_placed_record_is_the_same_image_under_another_header() {
        let (sealed, mut image) = block(3);
        let header = header_of(&sealed.key, image.as_slice()).unwrap();
        let place = RecordPlace { store_id: [3; 16], epoch: 4, segment_generation: 5, offset: 8192 };
        let pages = RecordHeader::plain(header).placed(place);
        image.as_mut_slice()[..pages.as_slice().len()].copy_from_slice(pages.as_slice());
        assert_eq!(verify_image(&SHAPE, &sealed.key, image.as_slice()).unwrap().place, place);
        assert_eq!(peek(image.as_slice()).unwrap().pages(), 2);
    }

    #[test]
    fn a_header_whose_sections_do_not_fill_the_image_is_not_taken() {
        let (sealed, mut image) = block(3);
        let mut header = header_of(&sealed.key, image.as_slice()).unwrap();
        for bytes in [0, 4096, (1 << 31) - 1] {
            header.sections[2].extent = SectionExtent::new(bytes, false);
            header.encode(&mut image.as_mut_slice()[..4096]);
            let found = header_of(&sealed.key, image.as_slice());
            assert_eq!(found.is_ok(), bytes == 0, "{bytes} bytes: two sections end in the same page as three");
        }
    }

    /// Extents of every kind under a right header sum: nothing outside the image is read, and a record counts if its sections fill the image
    /// and lie where they were sealed.
    #[test]
    fn random_extents_never_lead_out_of_the_image() {
        let forms = [Form::Raw16, Form::Sx12, Form::I8h, Form::Kc4vt4];
        let sealed = forms.map(|form| {
            let shape = SHAPE.with_form(form);
            let key = CopyKey { form: shape.form_map(), ..block(3).0.key };
            let mut image = Buffer::zeroed(shape.slot_bytes() as usize);
            let mut random = Random::new(4);
            image.as_mut_slice().fill_with(|| random.next() as u8);
            let link = Link { hash: key.hash, parent: None, depth: 0 };
            (seal_image(&shape, key, Lineage::of(key.form), link, image.as_mut_slice()), image)
        });
        let mut random = Random::new(5);
        let (mut whole, mut inside) = (0, 0);
        for _ in 0..100_000 {
            let (original, image) = &sealed[random.below(4) as usize];
            let (mut header, mut image) = (original.clone(), image.clone());
            for _ in 0..random.below(3) {
                change_extents(&mut header, &mut random);
            }
            image.as_mut_slice()[..4096].fill(0);
            header.encode(&mut image.as_mut_slice()[..4096]);
            let found = peek(image.as_slice()).unwrap();
            assert_eq!(found, RecordHeader::plain(header.clone()));
            // A walk reads as much as the header says, if there is as much.
            let bytes = u64::from(header.image_pages) * ALIGN_BYTES;
            let image = &image.as_slice()[..image.as_slice().len().min(bytes as usize)];
            let fills = header.expect_layout().is_ok() && image.len() as u64 == bytes;
            if fills {
                let mut end = header.header_bytes();
                for section in header.layout() {
                    assert!(section.offset >= end);
                    end = section.offset + section.bytes;
                }
                assert!(end <= bytes && end + ALIGN_BYTES > bytes);
                inside += 1;
            }
            let is_whole = fills && header.layout().eq(original.layout().take(header.sections.len()));
            assert_eq!(found.verify_sections(image, &Scalar), is_whole, "{header:?}");
            whole += u32::from(is_whole);
        }
        println!("{whole} whole, {inside} inside");
        assert!(whole > 10_000 && inside > whole + 10_000 && inside < 90_000);
    }

    /// One change to a header's table: one that keeps the end, one that moves it a little, or any 32 bits.
    fn change_extents(header: &mut SlotHeader, random: &mut Random) {
        let count = header.sections.len();
        let [one, other] = [0, 1].map(|_| random.below(count as u64) as usize);
        let bits = |header: &SlotHeader, at: usize| header.sections[at].extent.to_bits();
        let changed = match random.below(8) {
            0 => bits(header, one) ^ (1 << 31),
            1 => bits(header, one) ^ (1 << random.below(31)),
            2 => bits(header, one).wrapping_add(random.below(64) as u32),
            3 => bits(header, one).wrapping_sub(random.below(64) as u32),
            4 => random.next() as u32,
            5 => {
                let extent = header.sections[other].extent;
                header.sections[other].extent = std::mem::replace(&mut header.sections[one].extent, extent);
                return;
            }
            6 => {
                header.sections.truncate(one.max(1));
                return;
            }
            _ => {
                let end = 1 << random.below(33);
                header.image_pages = random.below(end) as u32;
                return;
            }
        };
        header.sections[one].extent = SectionExtent::from_bits(changed);
    }

    #[test]
    fn a_header_of_another_key_or_length_is_not_taken() {
        let (sealed, image) = block(3);
        let other = block(4).0.key;
        assert_eq!(header_of(&other, image.as_slice()), Err(CheckFailure::Identity));
        assert_eq!(header_of(&sealed.key, &image.as_slice()[..4096]), Err(CheckFailure::Identity));
        assert_eq!(header_of(&sealed.key, &[]), Err(CheckFailure::Header));
    }
}
