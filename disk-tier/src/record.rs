//! Records: slot images whose header names their place. Rebuilding the header page, and reading one whose shape is not known.

use cache_core::buffer::{Buffer, round_to_pages};
use cache_core::header::{CheckFailure, RecordPlace, SlotHeader, encoded_bytes};
use cache_core::key::CopyKey;

use crate::io::ALIGN_BYTES;

/// Most sections of a header that is read without its shape.
const SECTIONS_MAX: u32 = 1 << 16;
/// How a slot header begins.
const MAGIC: &[u8] = b"kvtslot1";
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
    bytes.starts_with(MAGIC)
}

/// True when a header that begins here is longer than the bytes.
pub(crate) fn is_cut(bytes: &[u8]) -> bool {
    let count = bytes.get(COUNT_AT).and_then(|count| count.try_into().ok()).map_or(0, u32::from_le_bytes);
    count <= SECTIONS_MAX && encoded_bytes(count) > bytes.len() as u64
}

/// Bytes of the header pages of a header that has been read.
pub(crate) fn header_bytes(header: &SlotHeader) -> u64 {
    round_to_pages(encoded_bytes(header.sums.len() as u32))
}

/// Header of an image to be written: sound, of this key, and of an image as long as the memory.
pub(crate) fn header_of(key: &CopyKey, image: &[u8]) -> Result<SlotHeader, CheckFailure> {
    let header = peek(image).ok_or(CheckFailure::Header)?;
    header.expect_key(key)?;
    let is_whole = u64::from(header.image_pages) * ALIGN_BYTES == image.len() as u64
        && header_bytes(&header) <= image.len() as u64;
    if is_whole { Ok(header) } else { Err(CheckFailure::Identity) }
}

/// The header pages of a record at `place`; section sums are carried on.
pub(crate) fn placed_header(header: &SlotHeader, place: RecordPlace) -> Buffer {
    let mut pages = Buffer::zeroed(header_bytes(header) as usize);
    SlotHeader { place, ..header.clone() }.encode(pages.as_mut_slice());
    pages
}

/// Verifies every section of an image whose shape is not known, for sections of one length in a row: the length is the first under which
/// some section's sum is right. `false`: damaged, or of another build.
pub(crate) fn verify_sections(header: &SlotHeader, image: &[u8]) -> bool {
    let start = header_bytes(header);
    let count = header.sums.len() as u64;
    let Some(payload) = (image.len() as u64).checked_sub(start) else { return false };
    if count == 0 {
        return payload == 0;
    }
    let fits = |index: u64, bytes: u64| {
        let first = (start + index * bytes) as usize;
        image.get(first..first + bytes as usize).is_some_and(|part| header.verify_section(index as u32, part).is_ok())
    };
    // Elements have 2 bytes at least, and the padding is less than a page: few lengths are possible.
    let longest = payload / count;
    let shortest = (payload.saturating_sub(ALIGN_BYTES - 1)).div_ceil(count);
    let length = (0..count.min(2)).find_map(|probe| {
        (shortest..=longest).rev().filter(|bytes| bytes.is_multiple_of(2)).find(|bytes| fits(probe, *bytes))
    });
    length.is_some_and(|bytes| (0..count).all(|index| fits(index, bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cache_core::contract::{SHAPE, block};
    use cache_core::header::verify_image;

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
    fn sections_are_verified_without_the_shape() {
        let (sealed, mut image) = block(3);
        let header = header_of(&sealed.key, image.as_slice()).unwrap();
        assert!(verify_sections(&header, image.as_slice()));
        for section in SHAPE.sections() {
            let at = (section.offset + section.bytes - 1) as usize;
            image.as_mut_slice()[at] ^= 1;
            assert!(!verify_sections(&header, image.as_slice()), "section {}", section.index);
            image.as_mut_slice()[at] ^= 1;
        }
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
