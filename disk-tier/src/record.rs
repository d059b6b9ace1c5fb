//! Records: slot images whose header names their place. Rebuilding the header page, and reading one whose shape is not known.

use cache_core::buffer::Buffer;
use cache_core::header::{CheckFailure, MAGIC, RecordPlace, SlotHeader, encoded_bytes};
use cache_core::key::CopyKey;

use crate::io::ALIGN_BYTES;

/// Most sections of a header that is read without its shape.
const SECTIONS_MAX: u32 = 1 << 16;
/// Where the section count stands in a slot header.
const COUNT_AT: std::ops::Range<usize> = 8..12;

/// Reads the header at the start of `bytes` without knowing its shape: the section count is taken from the bytes, bounded, and counts only
/// under the header's sum.
pub(crate) fn peek(bytes: &[u8]) -> Option<SlotHeader> {
    let count = u32::from_le_bytes(bytes.get(COUNT_AT)?.try_into().ok()?);
    if count > SECTIONS_MAX || encoded_bytes(count) > bytes.len() as u64 {
        return None;
    }
    SlotHeader::decode(bytes, count).ok()
}

/// True when a slot header may begin here.
pub(crate) fn begins(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// True when a header that begins here is longer than the bytes.
pub(crate) fn is_cut(bytes: &[u8]) -> bool {
    let count = bytes.get(COUNT_AT).and_then(|count| count.try_into().ok()).map_or(0, u32::from_le_bytes);
    count <= SECTIONS_MAX && encoded_bytes(count) > bytes.len() as u64
}

/// Header of an image to be written: sound, of this key, and of an image as long as the memory, which its sections fill.
pub(crate) fn header_of(key: &CopyKey, image: &[u8]) -> Result<SlotHeader, CheckFailure> {
    let header = peek(image).ok_or(CheckFailure::Header)?;
    header.expect_key(key)?;
    header.expect_layout()?;
    let is_whole = u64::from(header.image_pages) * ALIGN_BYTES == image.len() as u64;
    if is_whole { Ok(header) } else { Err(CheckFailure::Identity) }
}

/// The header pages of a record at `place`; what is said of sections is carried on.
pub(crate) fn placed_header(header: &SlotHeader, place: RecordPlace) -> Buffer {
    let mut pages = Buffer::zeroed(header.header_bytes() as usize);
    SlotHeader { place, ..header.clone() }.encode(pages.as_mut_slice());
    pages
}

/// Verifies every section of an image whose shape is not known, where its header says that it lies. `false`: damaged.
pub(crate) fn verify_sections(header: &SlotHeader, image: &[u8]) -> bool {
    header.expect_layout().is_ok() && header.verify_sections(header.layout(), image).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cache_core::chain::Link;
    use cache_core::contract::{Random, SHAPE, block};
    use cache_core::extent::SectionExtent;
    use cache_core::form::{Form, Lineage};
    use cache_core::header::{seal_image, verify_image};

    #[test]
    fn a_placed_record_is_the_same_image_under_another_header() {
        let (sealed, mut image) = block(3);
        let header = header_of(&sealed.key, image.as_slice()).unwrap();
        let place = RecordPlace { store_id: [3; 16], epoch: 4, segment_generation: 5, offset: 8192 };
        let pages = placed_header(&header, place);
        image.as_mut_slice()[..pages.as_slice().len()].copy_from_slice(pages.as_slice());
        assert_eq!(verify_image(&SHAPE, &sealed.key, image.as_slice()).unwrap().place, place);
        assert_eq!(peek(image.as_slice()).unwrap().image_pages, 2);
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
            assert_eq!(found, header);
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
            assert_eq!(verify_sections(&found, image), is_whole, "{header:?}");
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
