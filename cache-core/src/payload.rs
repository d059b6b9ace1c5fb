//! Where the parts of a block stand in its slot image.
//!
//! ```text
//! slot image = header pages | header plane | scale plane | code plane          each on a 4 KiB boundary
//! code plane = [layer][kv head][ K codes | V codes ]
//! ```
//! A **section** is one layer of one plane: the smallest unit that has a sum. `raw16` keys are channel-major
//! `[head_dim][block_tokens]` and values token-major `[block_tokens][head_dim]`, so that attention runs over lanes without
//! horizontal sums; its header and scale planes are empty.

use crate::buffer::round_to_pages;
use crate::form::{Form, FormMapId};
use crate::header;

/// The planes, in the order in which they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Plane {
    /// K centre and half-range per channel, sub-digests.
    Header,
    /// V scales.
    Scale,
    /// Codes.
    Code,
}

/// Shape of a block of one `Full` group in one uniform form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockShape {
    /// Layers of the group.
    pub layers: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Channels of a head.
    pub head_dim: u32,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Stored form.
    pub form: Form,
}

/// One section: which it is and where it stands in the slot image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its number among the sections of the block: the index of its sum.
    pub index: u32,
    /// First byte in the slot image.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl BlockShape {
    /// The form map of every copy of this shape.
    pub fn form_map(&self) -> FormMapId {
        FormMapId::uniform(self.form)
    }

    /// Bytes of one layer of the code plane.
    pub fn section_bytes(&self) -> u64 {
        2 * u64::from(self.kv_heads)
            * u64::from(self.head_dim)
            * u64::from(self.block_tokens)
            * self.form.element_bytes()
    }

    /// Number of sections, and so of sums.
    pub fn section_count(&self) -> u32 {
        self.layers
    }

    /// Bytes of the header pages before the planes.
    pub fn header_bytes(&self) -> u64 {
        round_to_pages(header::encoded_bytes(self.section_count()))
    }

    /// The section of `layer` in the code plane. Panics when the group has no such layer.
    pub fn code_section(&self, layer: u32) -> Section {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        let bytes = self.section_bytes();
        Section { index: layer, offset: self.header_bytes() + u64::from(layer) * bytes, bytes }
    }

    /// All sections in the order of their sums.
    pub fn sections(&self) -> impl Iterator<Item = Section> + use<> {
        let shape = *self;
        (0..shape.layers).map(move |layer| shape.code_section(layer))
    }

    /// Bytes of the slot image, whole pages: the one slot size of this (namespace, group, form).
    pub fn slot_bytes(&self) -> u64 {
        round_to_pages(self.header_bytes() + u64::from(self.layers) * self.section_bytes())
    }

    /// Bytes of keys and values alone.
    pub fn payload_bytes(&self) -> u64 {
        u64::from(self.layers) * self.section_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smollm2_block_of_64() {
        let shape = BlockShape { layers: 30, kv_heads: 3, head_dim: 64, block_tokens: 64, form: Form::Raw16 };
        assert_eq!(shape.section_bytes(), 48 * 1024);
        assert_eq!(shape.header_bytes(), 4096);
        assert_eq!(shape.slot_bytes(), 4096 + 30 * 48 * 1024);
        assert_eq!(shape.code_section(29).offset + shape.section_bytes(), shape.slot_bytes());
    }
}
