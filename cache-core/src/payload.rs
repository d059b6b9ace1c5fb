//! Where the parts of a block stand in its slot image.
//!
//! ```text
//! slot image = header pages | header plane | scale plane | code plane          each on a 4 KiB boundary
//! plane      = [layer][kv head][ K part | V part ]
//! ```
//! A **section** is one layer of one plane: the smallest unit that has a sum. Sections are numbered plane by plane in the
//! order above, layer by layer inside a plane; planes that a form does not have take no number and no page. Under a mixed form map a layer's
//! sections have the lengths of the layer's own forms, and a layer that has nothing in a plane has no section there.
//!
//! `raw16` keys are channel-major `[head_dim][block_tokens]` and values token-major `[block_tokens][head_dim]`, so that
//! attention runs over lanes without horizontal sums; its header and scale planes are empty. The parts of the other forms
//! are described in [`crate::codec`], byte by byte in `docs/forms.md`.

use std::ops::Range;

use crate::buffer::round_to_pages;
use crate::codec::sx12;
use crate::extent::{SectionExtent, lay_out};
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

impl Plane {
    /// Every plane, in order.
    pub const ALL: [Plane; 3] = [Plane::Header, Plane::Scale, Plane::Code];
}

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Keys, channel-major.
    Key,
    /// Values, token-major.
    Value,
}

impl Side {
    /// Both, in the order in which they stand.
    pub const ALL: [Side; 2] = [Side::Key, Side::Value];
}

/// Shape of a block of one `Full` group in one form map. Forms other than `raw16`, `raw32` and `opaque` need `head_dim` and
/// `block_tokens` to be multiples of 8. Blocks in `opaque` have one section a layer, as long as the form says, and no parts.
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
    /// Stored form; a mixed one [of so many layers](Form::in_model).
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
    /// The same block in another form.
    pub fn with_form(&self, form: Form) -> BlockShape {
        BlockShape { form, ..*self }
    }

    /// The form map of every copy of this shape.
    pub fn form_map(&self) -> FormMapId {
        FormMapId::of(self.form)
    }

    /// Elements of the keys, or of the values, of one layer and head.
    pub fn side_elements(&self) -> u64 {
        u64::from(self.head_dim) * u64::from(self.block_tokens)
    }

    /// Bytes of a plane that the keys, or the values, of one layer and head take. Panics for `opaque`, which has no parts.
    pub fn part_bytes(&self, plane: Plane, layer: u32, side: Side) -> u64 {
        self.uniform_part_bytes(self.form.at(layer, side), plane, side)
    }

    fn uniform_part_bytes(&self, form: Form, plane: Plane, side: Side) -> u64 {
        let (elements, tokens, channels) =
            (self.side_elements(), u64::from(self.block_tokens), u64::from(self.head_dim));
        match (plane, form, side) {
            (_, Form::Mixed(_), _) => unreachable!("one layer's keys, or values, have a uniform form"),
            (_, Form::Opaque(_), _) => panic!("a layer of opaque bytes has no parts"),
            (Plane::Code, Form::Raw16, _) => 2 * elements,
            (Plane::Code, Form::Raw32, _) => 4 * elements,
            (Plane::Code, Form::Sx12, _) => elements * 3 / 2,
            (Plane::Code, Form::I8h, _) => elements,
            (Plane::Code, Form::Kc4vt4, _) => elements / 2,
            (Plane::Header, Form::Sx12, _) => sx12::header_bytes(elements),
            (Plane::Header, Form::Kc4vt4, Side::Key) => 4 * channels,
            (Plane::Scale, Form::Kc4vt4, Side::Value) => 4 * tokens,
            (Plane::Scale, Form::I8h, _) => 2 * tokens,
            (Plane::Header | Plane::Scale, _, _) => 0,
        }
    }

    /// Bytes of one layer of a plane: of its section. 0 when the layer has nothing there.
    pub fn layer_bytes(&self, plane: Plane, layer: u32) -> u64 {
        self.uniform_layer_bytes(plane, self.form.at(layer, Side::Key), self.form.at(layer, Side::Value))
    }

    /// Bytes of one layer whose keys and values have these forms.
    fn uniform_layer_bytes(&self, plane: Plane, keys: Form, values: Form) -> u64 {
        match keys {
            Form::Opaque(opaque) if plane == Plane::Code => opaque.layer_bytes(),
            Form::Opaque(_) => 0,
            _ => {
                let part = |form, side| self.uniform_part_bytes(form, plane, side);
                u64::from(self.kv_heads) * (part(keys, Side::Key) + part(values, Side::Value))
            }
        }
    }

    /// Sections of the layers `0..layer` of a plane, and their bytes.
    fn before(&self, plane: Plane, layer: u32) -> (u32, u64) {
        let (mut sections, mut bytes) = (0, 0);
        for (keys, values, layers) in self.form.kinds(layer) {
            if layers > 0 {
                let each = self.uniform_layer_bytes(plane, keys, values);
                sections += if each > 0 { layers } else { 0 };
                bytes += u64::from(layers) * each;
            }
        }
        (sections, bytes)
    }

    /// Number of sections, and so of sums.
    pub fn section_count(&self) -> u32 {
        Plane::ALL.into_iter().map(|plane| self.plane_sections(plane)).sum()
    }

    /// Number of sections of one plane.
    pub fn plane_sections(&self, plane: Plane) -> u32 {
        self.before(plane, self.layers).0
    }

    /// Bytes of the header pages before the planes.
    pub fn header_bytes(&self) -> u64 {
        round_to_pages(header::encoded_bytes(self.section_count()))
    }

    /// Bytes of a plane, without the padding after it.
    pub fn plane_bytes(&self, plane: Plane) -> u64 {
        self.before(plane, self.layers).1
    }

    /// First byte of a plane in the slot image, a page boundary.
    pub fn plane_offset(&self, plane: Plane) -> u64 {
        let before = Plane::ALL.into_iter().take_while(|each| *each < plane);
        self.header_bytes() + before.map(|each| round_to_pages(self.plane_bytes(each))).sum::<u64>()
    }

    /// The section of `layer` in a plane; `None` when the layer has nothing there. Panics when the group has no such layer.
    pub fn section(&self, plane: Plane, layer: u32) -> Option<Section> {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        let bytes = self.layer_bytes(plane, layer);
        let (sections, offset) = self.before(plane, layer);
        let planes = Plane::ALL.into_iter().take_while(|each| *each < plane);
        let index = planes.map(|each| self.plane_sections(each)).sum::<u32>() + sections;
        (bytes > 0).then(|| Section { index, offset: self.plane_offset(plane) + offset, bytes })
    }

    /// The section of `layer` in the code plane. Panics when the group has no such layer.
    pub fn code_section(&self, layer: u32) -> Section {
        self.section(Plane::Code, layer).expect("every form has a code plane")
    }

    /// Where the keys or values of one head are in a layer's section of a plane, counted from the section's start. `sx12`'s
    /// header plane is not split by head: see [`sx12`]. Panics when there is no such head, and for `opaque`.
    pub fn part(&self, plane: Plane, layer: u32, kv_head: u32, side: Side) -> Range<usize> {
        assert!(kv_head < self.kv_heads, "head {kv_head} of {}", self.kv_heads);
        let [keys, values] = Side::ALL.map(|side| self.part_bytes(plane, layer, side));
        let first = u64::from(kv_head) * (keys + values) + if side == Side::Value { keys } else { 0 };
        first as usize..(first + self.part_bytes(plane, layer, side)) as usize
    }

    /// Length of every section in the order of their sums. Panics when one has 2 GiB or more.
    pub fn extents(&self) -> impl Iterator<Item = SectionExtent> + use<> {
        let shape = *self;
        Plane::ALL.into_iter().flat_map(move |plane| {
            let lengths =
                (0..shape.layers).map(move |layer| shape.layer_bytes(plane, layer)).filter(|bytes| *bytes > 0);
            lengths.enumerate().map(|(number, bytes)| SectionExtent::new(bytes, number == 0))
        })
    }

    /// All sections in the order of their sums.
    pub fn sections(&self) -> impl Iterator<Item = Section> + use<> {
        lay_out(self.header_bytes(), self.extents())
    }

    /// Bytes of the slot image, whole pages: the one slot size of this (namespace, group, form).
    pub fn slot_bytes(&self) -> u64 {
        self.plane_offset(Plane::Code) + round_to_pages(self.plane_bytes(Plane::Code))
    }

    /// Bytes of all sections: keys and values with their headers and scales, no padding.
    pub fn payload_bytes(&self) -> u64 {
        Plane::ALL.into_iter().map(|plane| self.plane_bytes(plane)).sum()
    }

    /// Stored bits per element, headers and scales counted, padding not. For `opaque`, as if its bytes were the elements of the shape.
    pub fn bits_per_value(&self) -> f64 {
        let elements = 2 * u64::from(self.layers) * u64::from(self.kv_heads) * self.side_elements();
        (8 * self.payload_bytes()) as f64 / elements as f64
    }

    /// Slot bytes that one token of a block in this form takes.
    pub fn bytes_per_token(&self) -> f64 {
        self.slot_bytes() as f64 / f64::from(self.block_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::form::Layers;
    use proptest::strategy::Strategy;

    const RAW16: BlockShape = BlockShape { layers: 30, kv_heads: 3, head_dim: 64, block_tokens: 64, form: Form::Raw16 };

    #[test]
    fn smollm2_block_of_64() {
        let shape = RAW16;
        assert_eq!(shape.code_section(0).bytes, 48 * 1024);
        assert_eq!(shape.header_bytes(), 4096);
        assert_eq!(shape.slot_bytes(), 4096 + 30 * 48 * 1024);
        assert_eq!(shape.code_section(29).offset + shape.code_section(29).bytes, shape.slot_bytes());
        assert_eq!(shape.code_section(7).index, 7);
        assert_eq!(shape.section(Plane::Scale, 7), None);
    }

    /// The table of `docs/forms.md`.
    #[test]
    fn smollm2_slots_of_each_form() {
        let slots = [Form::Raw16, Form::Sx12, Form::I8h, Form::Kc4vt4].map(|form| RAW16.with_form(form).slot_bytes());
        assert_eq!(slots, [1_478_656, 1_114_112, 765_952, 421_888]);
        let bits = [Form::Sx12, Form::I8h, Form::Kc4vt4].map(|form| RAW16.with_form(form).bits_per_value());
        assert!(bits[0] <= 12.03 && bits[1..] == [8.25, 4.5], "{bits:?}");
        assert_eq!(RAW16.with_form(Form::Kc4vt4).bytes_per_token(), 6592.0);
        // A code slice is one page.
        assert_eq!(RAW16.with_form(Form::Kc4vt4).code_section(0).bytes, 3 * 4096);
        assert_eq!(126 * slots[3] + 2 * slots[0], 56_115_200);
        // Half of the entries in 8 bits.
        for map in ["kc4vt4:k8=0-29", "kc4vt4:v8=0-29", "kc4vt4:k8=0-14:v8=0-14"] {
            let shape = RAW16.with_form(map.parse().unwrap());
            assert_eq!((shape.slot_bytes(), shape.bits_per_value()), (593_920, 6.375), "{map}");
        }
    }

    #[test]
    fn sections_tile_their_planes_and_planes_start_on_pages() {
        let shapes = [
            RAW16,
            BlockShape { layers: 3, kv_heads: 1, head_dim: 16, block_tokens: 16, ..RAW16 },
            BlockShape { layers: 5, kv_heads: 2, head_dim: 80, block_tokens: 128, ..RAW16 },
        ];
        for shape in shapes.iter().flat_map(|shape| Form::ALL.map(|form| shape.with_form(form))) {
            let sections: Vec<Section> = shape.sections().collect();
            assert_eq!(sections.len() as u32, shape.section_count());
            assert!(sections.iter().enumerate().all(|(index, section)| section.index == index as u32));
            let mut end = shape.header_bytes();
            for section in &sections {
                let next_plane = section.offset != end;
                assert!(section.offset >= end && (!next_plane || section.offset == round_to_pages(end)), "{shape:?}");
                end = section.offset + section.bytes;
            }
            assert_eq!(round_to_pages(end), shape.slot_bytes());
            for plane in Plane::ALL {
                assert_eq!(shape.plane_offset(plane) % 4096, 0);
                let last = shape.part(plane, 0, shape.kv_heads - 1, Side::Value);
                assert_eq!(last.end as u64, shape.layer_bytes(plane, 0));
                assert_eq!(shape.part(plane, 0, 0, Side::Key).end, shape.part(plane, 0, 0, Side::Value).start);
            }
        }
    }

    #[test]
    fn opaque_blocks_are_layers_of_so_many_bytes() {
        for (layers, layer_bytes) in [(1, 1), (30, 49_152), (3, 5000), (1, 1 << 20)] {
            let opaque = Form::from(crate::form::Opaque::new(layer_bytes, [9; 32]).unwrap());
            let shape = BlockShape { layers, kv_heads: 5, head_dim: 7, block_tokens: 13, form: opaque };
            let bytes = u64::from(layer_bytes);
            assert_eq!((shape.section_count(), shape.payload_bytes()), (layers, u64::from(layers) * bytes));
            for (index, section) in shape.sections().enumerate() {
                let offset = shape.header_bytes() + index as u64 * bytes;
                assert_eq!(section, Section { index: index as u32, offset, bytes });
                assert_eq!(shape.code_section(index as u32), section);
            }
            assert_eq!(shape.slot_bytes(), shape.header_bytes() + round_to_pages(u64::from(layers) * bytes));
        }
    }

    /// The section of `docs/forms.md` on maps, walked plane by plane and layer by layer.
    fn walked(shape: &BlockShape, is_eight: impl Fn(u32, Side) -> bool) -> ([Vec<Option<Section>>; 3], u64) {
        let (tokens, channels) = (u64::from(shape.block_tokens), u64::from(shape.head_dim));
        let part = |plane: usize, layer: u32, side: Side| match (plane, is_eight(layer, side), side) {
            (0, false, Side::Key) => 4 * channels,
            (0, ..) => 0,
            (1, true, _) => 2 * tokens,
            (1, false, Side::Key) => 0,
            (1, false, Side::Value) => 4 * tokens,
            (_, true, _) => tokens * channels,
            (_, false, _) => tokens * channels / 2,
        };
        let bytes = |plane, layer| {
            u64::from(shape.kv_heads) * Side::ALL.into_iter().map(|side| part(plane, layer, side)).sum::<u64>()
        };
        let (mut offset, mut index) = (shape.header_bytes(), 0);
        let found = [0, 1, 2].map(|plane| {
            let mut sections = Vec::new();
            for layer in 0..shape.layers {
                let bytes = bytes(plane, layer);
                sections.push((bytes > 0).then_some(Section { index, offset, bytes }));
                offset += bytes;
                index += u32::from(bytes > 0);
            }
            offset = round_to_pages(offset);
            sections
        });
        assert_eq!(shape.section_count(), index);
        (found, offset)
    }

    proptest::proptest! {
        #[test]
        fn sections_of_mixed_maps_are_where_a_walk_finds_them(
            keys8 in proptest::prelude::any::<u128>(),
            values8 in proptest::prelude::any::<u128>(),
            layers in 1u32..=128,
            kv_heads in 1u32..6,
            head_dim in (1u32..20).prop_map(|eights| 8 * eights),
            block_tokens in (1u32..20).prop_map(|eights| 8 * eights),
        ) {
            let is_eight = |layer: u32, side: Side| match side {
                Side::Key => keys8 >> layer & 1 == 1,
                Side::Value => values8 >> layer & 1 == 1,
            };
            let set = |side| {
                let layers = (0..layers).filter(|layer| is_eight(*layer, side));
                layers.fold(Layers::NONE, |set, layer| set.or(Layers::range(layer, layer)))
            };
            let form = Form::mixed(set(Side::Key), set(Side::Value)).in_model(layers).unwrap();
            let shape = BlockShape { layers, kv_heads, head_dim, block_tokens, form };
            let (expected, end) = walked(&shape, is_eight);
            for (layer, plane) in (0..layers).flat_map(|layer| Plane::ALL.map(|plane| (layer, plane))) {
                let expected = expected[plane as usize][layer as usize];
                assert_eq!(shape.section(plane, layer), expected, "{plane:?} of layer {layer}");
                assert_eq!(shape.layer_bytes(plane, layer), expected.map_or(0, |at| at.bytes));
                let parts = (0..kv_heads).flat_map(|head| Side::ALL.map(|side| shape.part(plane, layer, head, side)));
                let end = parts.fold(0, |end, part| {
                    assert_eq!(part.start, end);
                    part.end
                });
                assert_eq!(end as u64, shape.layer_bytes(plane, layer));
            }
            assert_eq!(shape.slot_bytes(), end);
            assert_eq!(shape.payload_bytes(), shape.sections().map(|section| section.bytes).sum::<u64>());
            assert!(shape.sections().eq(expected.into_iter().flatten().flatten()));
        }
    }
}
