//! The slot header: whose block this is, where its sections lie and their sums, under a sum of its own.
//!
//! | bytes | field |
//! |---|---|
//! | 8 | magic `kvtslot2` |
//! | 4 | section count |
//! | 4 | lineage (form map id) |
//! | 80 | copy key: namespace 32, hash 32, group 4, form 4, provenance 8 |
//! | 32 | parent hash, zero for block 0 |
//! | 4 | depth |
//! | 4 | image pages: length of the slot image in pages of 4 KiB, so that a walk over records needs no shape |
//! | 16 | store id, zero outside a disk or remote store |
//! | 8, 8, 8 | epoch, segment generation, offset; zero outside a disk store |
//! | 12 x sections | section sum 8, section extent 4 |
//! | 8 | XXH3-64 of everything before |
//!
//! Extents are for walks over records, which know no shape. Who knows the shape takes lengths and offsets from there, and refuses a
//! header that says otherwise.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::buffer::{PAGE_BYTES, round_to_pages};
use crate::chain::Link;
use crate::extent::{SectionExtent, lay_out};
use crate::form::{FormMapId, Lineage, Provenance};
use crate::hash::{BlockHash, Namespace};
use crate::key::{CopyKey, GroupId};
use crate::payload::{BlockShape, Section};
use crate::sum::{SectionSum, header_sum, section_sum};

/// How a slot header begins.
pub const MAGIC: [u8; 8] = *b"kvtslot2";

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Fixed {
    magic: [u8; 8],
    section_count: U32,
    lineage: U32,
    namespace: [u8; 32],
    hash: [u8; 32],
    group: U32,
    form: U32,
    provenance: U64,
    parent: [u8; 32],
    depth: U32,
    image_pages: U32,
    store_id: [u8; 16],
    epoch: U64,
    segment_generation: U64,
    offset: U64,
}

/// A section's line in the table behind the fixed part.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Entry {
    sum: U64,
    extent: U32,
}

const FIXED_BYTES: usize = std::mem::size_of::<Fixed>();
const ENTRY_BYTES: usize = std::mem::size_of::<Entry>();

/// Where a record lies in a disk store; all zero elsewhere. Stale, misdirected or foreign records fail on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordPlace {
    /// 128 random bits, new at every format.
    pub store_id: [u8; 16],
    /// Deletion epoch of the namespace.
    pub epoch: u64,
    /// Generation of the segment.
    pub segment_generation: u64,
    /// First byte of the record in the store.
    pub offset: u64,
}

/// What a header says of one section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedSection {
    /// Sum of its bytes.
    pub sum: SectionSum,
    /// Its length, and whether it begins a plane.
    pub extent: SectionExtent,
}

/// A decoded slot header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotHeader {
    /// Whose copy this is.
    pub key: CopyKey,
    /// What it was encoded from.
    pub lineage: Lineage,
    /// Its place in the chain; `link.hash == key.hash`.
    pub link: Link,
    /// Length of the slot image in pages of 4 KiB.
    pub image_pages: u32,
    /// Where the record lies.
    pub place: RecordPlace,
    /// The sections by their index.
    pub sections: Vec<SealedSection>,
}

/// Why bytes are not the block they should be. Always a counted miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckFailure {
    /// No header, or one whose own sum is wrong.
    #[error("read the slot header: its sum is wrong")]
    Header,
    /// A sound header of something else: another key, parent or place, or sections that lie elsewhere.
    #[error("accept the slot header: it belongs to another block or shape")]
    Identity,
    /// A section's bytes differ from its sum.
    #[error("verify section {section}: its sum is wrong")]
    Section {
        /// Index of the section.
        section: u32,
    },
}

/// Bytes of a header of so many sections.
pub fn encoded_bytes(section_count: u32) -> u64 {
    FIXED_BYTES as u64 + ENTRY_BYTES as u64 * u64::from(section_count) + 8
}

impl SlotHeader {
    /// Writes the header to the start of `out` and zeroes the rest. Panics when `out` is shorter than [`encoded_bytes`].
    pub fn encode(&self, out: &mut [u8]) {
        let fixed = Fixed {
            magic: MAGIC,
            section_count: U32::new(self.sections.len() as u32),
            lineage: U32::new(self.lineage.0.0),
            namespace: self.key.namespace.0,
            hash: self.key.hash.0,
            group: U32::new(self.key.group.0),
            form: U32::new(self.key.form.0),
            provenance: U64::new(self.key.provenance.0),
            parent: self.link.parent.map_or([0; 32], |parent| parent.0),
            depth: U32::new(self.link.depth),
            image_pages: U32::new(self.image_pages),
            store_id: self.place.store_id,
            epoch: U64::new(self.place.epoch),
            segment_generation: U64::new(self.place.segment_generation),
            offset: U64::new(self.place.offset),
        };
        let summed = (encoded_bytes(self.sections.len() as u32) - 8) as usize;
        out[..FIXED_BYTES].copy_from_slice(fixed.as_bytes());
        for (target, section) in out[FIXED_BYTES..summed].chunks_exact_mut(ENTRY_BYTES).zip(&self.sections) {
            let entry = Entry { sum: U64::new(section.sum.0), extent: U32::new(section.extent.to_bits()) };
            target.copy_from_slice(entry.as_bytes());
        }
        let sum = header_sum(&out[..summed]);
        out[summed..summed + 8].copy_from_slice(&sum.to_le_bytes());
        out[summed + 8..].fill(0);
    }

    /// Reads a header that must have `section_count` sections. The count comes from form and manifest, never from the bytes.
    pub fn decode(bytes: &[u8], section_count: u32) -> Result<SlotHeader, CheckFailure> {
        let summed = (encoded_bytes(section_count) - 8) as usize;
        let sum = bytes.get(summed..summed + 8).ok_or(CheckFailure::Header)?;
        if header_sum(&bytes[..summed]).to_le_bytes() != sum {
            return Err(CheckFailure::Header);
        }
        let (fixed, table) = Fixed::read_from_prefix(&bytes[..summed]).map_err(|_| CheckFailure::Header)?;
        if fixed.magic != MAGIC || fixed.section_count.get() != section_count {
            return Err(CheckFailure::Header);
        }
        let key = CopyKey {
            namespace: Namespace(fixed.namespace),
            hash: BlockHash(fixed.hash),
            group: GroupId(fixed.group.get()),
            form: FormMapId(fixed.form.get()),
            provenance: Provenance(fixed.provenance.get()),
        };
        let depth = fixed.depth.get();
        let parent = (depth > 0).then_some(BlockHash(fixed.parent));
        let place = RecordPlace {
            store_id: fixed.store_id,
            epoch: fixed.epoch.get(),
            segment_generation: fixed.segment_generation.get(),
            offset: fixed.offset.get(),
        };
        let entries = <[Entry]>::ref_from_bytes(table).map_err(|_| CheckFailure::Header)?;
        let sections = entries
            .iter()
            .map(|entry| SealedSection {
                sum: SectionSum(entry.sum.get()),
                extent: SectionExtent::from_bits(entry.extent.get()),
            })
            .collect();
        Ok(SlotHeader {
            key,
            lineage: Lineage(FormMapId(fixed.lineage.get())),
            link: Link { hash: key.hash, parent, depth },
            image_pages: fixed.image_pages.get(),
            place,
            sections,
        })
    }

    /// Bytes of the header pages.
    pub fn header_bytes(&self) -> u64 {
        round_to_pages(encoded_bytes(self.sections.len() as u32))
    }

    /// Where the extents say that the sections lie: behind the header pages, in a row, none over another. Only
    /// [`expect_layout`](Self::expect_layout) says that they lie inside the image.
    pub fn layout(&self) -> impl Iterator<Item = Section> {
        lay_out(self.header_bytes(), self.sections.iter().map(|section| section.extent))
    }

    /// Checks that this is the header of `key`.
    pub fn expect_key(&self, key: &CopyKey) -> Result<(), CheckFailure> {
        if self.key == *key { Ok(()) } else { Err(CheckFailure::Identity) }
    }

    /// Checks that image and sections are as long as those of this shape.
    pub fn expect_shape(&self, shape: &BlockShape) -> Result<(), CheckFailure> {
        let is_alike = self.image_pages == image_pages(shape)
            && self.sections.iter().map(|section| section.extent).eq(shape.extents());
        if is_alike { Ok(()) } else { Err(CheckFailure::Identity) }
    }

    /// Checks that the sections fill the image up to its last page, for those who do not know the shape.
    pub fn expect_layout(&self) -> Result<(), CheckFailure> {
        let end = self.layout().last().map_or(self.header_bytes(), |section| section.offset + section.bytes);
        if round_to_pages(end) == u64::from(self.image_pages) * PAGE_BYTES {
            Ok(())
        } else {
            Err(CheckFailure::Identity)
        }
    }

    /// Checks one section's bytes.
    pub fn verify_section(&self, section: u32, bytes: &[u8]) -> Result<(), CheckFailure> {
        let expected = self.sections.get(section as usize).ok_or(CheckFailure::Section { section })?;
        if section_sum(&self.key, self.lineage, section, bytes) == expected.sum {
            Ok(())
        } else {
            Err(CheckFailure::Section { section })
        }
    }

    /// Checks sections where they lie in the slot image.
    pub fn verify_sections(
        &self,
        mut sections: impl Iterator<Item = Section>,
        image: &[u8],
    ) -> Result<(), CheckFailure> {
        sections.try_for_each(|section| {
            let bytes = image
                .get(section.offset as usize..(section.offset + section.bytes) as usize)
                .ok_or(CheckFailure::Section { section: section.index })?;
            self.verify_section(section.index, bytes)
        })
    }
}

fn image_pages(shape: &BlockShape) -> u32 {
    (shape.slot_bytes() / PAGE_BYTES) as u32
}

/// Verifies a whole slot image of `key`: header, identity, every section. Returns the header.
pub fn verify_image(shape: &BlockShape, key: &CopyKey, image: &[u8]) -> Result<SlotHeader, CheckFailure> {
    let header = SlotHeader::decode(image, shape.section_count())?;
    header.expect_key(key)?;
    header.expect_shape(shape)?;
    header.verify_sections(shape.sections(), image)?;
    Ok(header)
}

/// Sums every section of a slot image and writes its header: what an engine does once, when it publishes a block.
pub fn seal_image(shape: &BlockShape, key: CopyKey, lineage: Lineage, link: Link, image: &mut [u8]) -> SlotHeader {
    let header = seal_sums(shape, key, lineage, link, image);
    header.encode(&mut image[..shape.header_bytes() as usize]);
    header
}

/// Sums every section of a slot image; the header is returned, not written. For tiers whose memory is not written in place.
pub fn seal_sums(shape: &BlockShape, key: CopyKey, lineage: Lineage, link: Link, image: &[u8]) -> SlotHeader {
    let sections = shape
        .sections()
        .zip(shape.extents())
        .map(|(section, extent)| {
            let bytes = &image[section.offset as usize..(section.offset + section.bytes) as usize];
            SealedSection { sum: section_sum(&key, lineage, section.index, bytes), extent }
        })
        .collect();
    SlotHeader { key, lineage, link, image_pages: image_pages(shape), place: RecordPlace::default(), sections }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Buffer;
    use crate::form::{Form, Layers};
    use crate::payload::BlockShape;

    fn sealed() -> (BlockShape, CopyKey, Buffer) {
        sealed_in(Form::Raw16)
    }

    fn sealed_in(form: Form) -> (BlockShape, CopyKey, Buffer) {
        let shape = BlockShape { layers: 3, kv_heads: 1, head_dim: 16, block_tokens: 16, form };
        let key = CopyKey { form: shape.form_map(), ..CopyKey::exact(Namespace([3; 32]), BlockHash([4; 32])) };
        let mut image = Buffer::zeroed(shape.slot_bytes() as usize);
        for (index, byte) in image.as_mut_slice().iter_mut().enumerate() {
            *byte = (index % 251) as u8;
        }
        let link = Link { hash: key.hash, parent: Some(BlockHash([5; 32])), depth: 9 };
        seal_image(&shape, key, Lineage::of(key.form), link, image.as_mut_slice());
        (shape, key, image)
    }

    #[test]
    fn a_sealed_image_verifies_and_keeps_its_link() {
        let (shape, key, image) = sealed();
        let header = verify_image(&shape, &key, image.as_slice()).unwrap();
        assert_eq!((header.link.depth, header.link.parent), (9, Some(BlockHash([5; 32]))));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (shape, key, mut image) = sealed();
        let used = encoded_bytes(shape.section_count()) as usize;
        let payload = shape.header_bytes() as usize..(shape.header_bytes() + shape.payload_bytes()) as usize;
        for byte in (0..used).chain(payload) {
            for bit in 0..8 {
                image.as_mut_slice()[byte] ^= 1 << bit;
                assert!(verify_image(&shape, &key, image.as_slice()).is_err(), "byte {byte} bit {bit}");
                image.as_mut_slice()[byte] ^= 1 << bit;
            }
        }
    }

    #[test]
    fn another_blocks_image_is_refused() {
        let (shape, key, image) = sealed();
        for other in [
            CopyKey { namespace: Namespace([9; 32]), ..key },
            CopyKey { hash: BlockHash([9; 32]), ..key },
            CopyKey { group: GroupId(1), ..key },
            CopyKey { form: FormMapId::RAW32, ..key },
            CopyKey { provenance: Provenance(1), ..key },
        ] {
            assert_eq!(verify_image(&shape, &other, image.as_slice()), Err(CheckFailure::Identity));
        }
    }

    fn forms() -> Vec<Form> {
        let mixed = Form::mixed(Layers::range(0, 0), Layers::range(0, 1)).in_model(3).unwrap();
        let opaque = Form::from(crate::form::Opaque::new(700, [3; 32]).unwrap());
        Form::ALL.into_iter().chain([mixed, opaque]).collect()
    }

    #[test]
    fn a_header_alone_tells_where_the_sections_of_any_form_lie() {
        for form in forms() {
            let (shape, _, image) = sealed_in(form);
            let header = SlotHeader::decode(image.as_slice(), shape.section_count()).unwrap();
            assert!(header.layout().eq(shape.sections()), "{form}");
            assert_eq!(header.expect_layout(), Ok(()));
            assert_eq!(header.verify_sections(header.layout(), image.as_slice()), Ok(()), "{form}");
        }
    }

    #[test]
    fn extents_that_contradict_the_shape_are_refused() {
        for form in forms() {
            let (shape, key, mut image) = sealed_in(form);
            let sound = verify_image(&shape, &key, image.as_slice()).unwrap();
            for section in 0..shape.section_count() as usize {
                let bits = sound.sections[section].extent.to_bits();
                for wrong in [bits ^ 1, bits ^ (1 << 31), 0, u32::MAX, bits + 1] {
                    let mut header = sound.clone();
                    header.sections[section].extent = SectionExtent::from_bits(wrong);
                    header.encode(&mut image.as_mut_slice()[..shape.header_bytes() as usize]);
                    assert_eq!(verify_image(&shape, &key, image.as_slice()), Err(CheckFailure::Identity), "{form}");
                }
            }
        }
    }

    #[test]
    fn swapped_sections_are_refused() {
        let (shape, key, mut image) = sealed();
        let (a, b) = (shape.code_section(0), shape.code_section(1));
        let bytes = image.as_mut_slice();
        for index in 0..a.bytes as usize {
            bytes.swap(a.offset as usize + index, b.offset as usize + index);
        }
        assert_eq!(verify_image(&shape, &key, image.as_slice()), Err(CheckFailure::Section { section: 0 }));
    }
}
