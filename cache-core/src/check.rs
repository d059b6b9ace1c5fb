//! A slot image verified while its bytes pass by, so that whoever copies it looks at each byte once, while it is in the processor's cache.

use crate::header::{CheckFailure, SlotHeader};
use crate::key::CopyKey;
use crate::payload::{BlockShape, Section};
use crate::sum::SectionHasher;

/// The same check as [`verify_image`](crate::header::verify_image), over bytes that come in pieces of any length, from the image's first byte on.
#[derive(Debug)]
pub struct ImageCheck {
    shape: BlockShape,
    key: CopyKey,
    /// Bytes of the image that have passed.
    passed: u64,
    /// The header pages, until they are whole.
    pages: Vec<u8>,
    header: Option<SlotHeader>,
    /// The section that comes next, or is passing.
    section: Option<(Section, Option<SectionHasher>)>,
    /// Those behind it.
    rest: std::vec::IntoIter<Section>,
}

impl ImageCheck {
    /// Of an image that should be `key`'s.
    pub fn new(shape: BlockShape, key: CopyKey) -> ImageCheck {
        let pages = Vec::with_capacity(shape.header_bytes() as usize);
        ImageCheck { shape, key, passed: 0, pages, header: None, section: None, rest: Vec::new().into_iter() }
    }

    /// Takes the next bytes. Errors: what is wrong with those so far; the image is then refused, whatever follows.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<(), CheckFailure> {
        if self.header.is_none() {
            let missing = self.shape.header_bytes() as usize - self.pages.len();
            let (head, rest) = bytes.split_at(missing.min(bytes.len()));
            self.pages.extend_from_slice(head);
            self.passed += head.len() as u64;
            bytes = rest;
            if head.len() < missing {
                return Ok(());
            }
            let header = SlotHeader::decode(&self.pages, self.shape.section_count())?;
            header.expect_key(&self.key)?;
            header.expect_shape(&self.shape)?;
            self.header = Some(header);
            self.rest = self.shape.sections().collect::<Vec<_>>().into_iter();
            self.section = self.rest.next().map(|section| (section, None));
        }
        while let Some((section, hasher)) = &mut self.section {
            // What lies before it belongs to no section.
            let gap = (section.offset.saturating_sub(self.passed)).min(bytes.len() as u64);
            let left = (section.offset + section.bytes).saturating_sub(self.passed + gap);
            let (part, rest) = bytes[gap as usize..].split_at(left.min(bytes.len() as u64 - gap) as usize);
            self.passed += gap + part.len() as u64;
            bytes = rest;
            let header = self.header.as_ref().expect("sections come after the header");
            let (index, end) = (section.index, section.offset + section.bytes);
            let hasher = hasher.get_or_insert_with(|| SectionHasher::new(&self.key, header.lineage, index));
            hasher.write(part);
            if self.passed < end {
                return Ok(());
            }
            if header.sections.get(index as usize).map(|sealed| sealed.sum) != Some(hasher.sum()) {
                return Err(CheckFailure::Section { section: index });
            }
            self.section = self.rest.next().map(|section| (section, None));
        }
        self.passed += bytes.len() as u64;
        Ok(())
    }

    /// After the last byte: the header. Errors: [`CheckFailure::Header`], [`CheckFailure::Section`] when the image is shorter than its shape.
    pub fn finish(self) -> Result<SlotHeader, CheckFailure> {
        match (self.header, self.section) {
            (Some(header), None) if self.passed == self.shape.slot_bytes() => Ok(header),
            (Some(_), Some((section, _))) => Err(CheckFailure::Section { section: section.index }),
            _ => Err(CheckFailure::Header),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Buffer;
    use crate::chain::Link;
    use crate::form::{Form, Layers, Lineage};
    use crate::hash::{BlockHash, Namespace};
    use crate::header::{seal_image, verify_image};

    fn check(shape: BlockShape, key: &CopyKey, image: &[u8], piece: usize) -> Result<SlotHeader, CheckFailure> {
        let mut check = ImageCheck::new(shape, *key);
        image.chunks(piece).try_for_each(|bytes| check.take(bytes))?;
        check.finish()
    }

    fn sealed(form: Form) -> (BlockShape, CopyKey, Buffer) {
        // One section is no whole number of words of the hash's stripes, and none a whole number of pages.
        let shape = BlockShape { layers: 3, kv_heads: 3, head_dim: 24, block_tokens: 16, form };
        let key = CopyKey { form: shape.form_map(), ..CopyKey::exact(Namespace([3; 32]), BlockHash([4; 32])) };
        let mut image = Buffer::zeroed(shape.slot_bytes() as usize);
        image.as_mut_slice().iter_mut().enumerate().for_each(|(index, byte)| *byte = (index % 251) as u8);
        let link = Link { hash: key.hash, parent: Some(BlockHash([5; 32])), depth: 9 };
        seal_image(&shape, key, Lineage::of(key.form), link, image.as_mut_slice());
        (shape, key, image)
    }

    fn forms() -> Vec<Form> {
        let mixed = Form::mixed(Layers::range(0, 0), Layers::range(0, 1)).in_model(3).unwrap();
        Form::ALL.into_iter().chain([mixed]).collect()
    }

    #[test]
    fn pieces_of_any_length_say_what_the_whole_image_says() {
        for form in forms() {
            let (shape, key, image) = sealed(form);
            let expected = verify_image(&shape, &key, image.as_slice());
            assert!(expected.is_ok());
            for piece in [1, 7, 64, 1000, 4096, 5000, 1 << 20] {
                assert_eq!(check(shape, &key, image.as_slice(), piece), expected, "{form}, pieces of {piece}");
            }
        }
    }

    #[test]
    fn every_damaged_byte_is_noticed_as_in_the_whole_image() {
        for form in forms() {
            let (shape, key, mut image) = sealed(form);
            for at in (0..image.as_slice().len()).step_by(13) {
                image.as_mut_slice()[at] ^= 0x10;
                let expected = verify_image(&shape, &key, image.as_slice());
                assert_eq!(check(shape, &key, image.as_slice(), 640), expected, "{form}, byte {at}");
                image.as_mut_slice()[at] ^= 0x10;
            }
        }
    }

    #[test]
    fn another_block_and_a_cut_image_are_refused() {
        let (shape, key, image) = sealed(Form::Raw16);
        let other = CopyKey { hash: BlockHash([6; 32]), ..key };
        assert_eq!(check(shape, &other, image.as_slice(), 512), Err(CheckFailure::Identity));
        for bytes in [0, 100, 4096, 5000, image.as_slice().len() - 1] {
            assert!(check(shape, &key, &image.as_slice()[..bytes], 512).is_err(), "{bytes} bytes");
        }
        let mut longer = image.as_slice().to_vec();
        longer.push(0);
        assert!(check(shape, &key, &longer, 512).is_err(), "a byte too many");
    }
}
