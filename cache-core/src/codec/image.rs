//! Whole layers and blocks: from a `raw16` image to another form and back, with any [`Codec`].

use zerocopy::{FromBytes, IntoBytes};

use super::{Codec, Damaged, Grid, StaysRaw, sx12};
use crate::form::Form;
use crate::payload::{BlockShape, Plane, Side};

/// One layer of each plane of a block; empty where the form has no such plane.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// Its section of the header plane.
    pub header: &'a [u8],
    /// Its section of the scale plane.
    pub scale: &'a [u8],
    /// Its section of the code plane.
    pub codes: &'a [u8],
}

/// [`Layer`], to be written.
#[derive(Debug)]
pub struct LayerMut<'a> {
    /// Its section of the header plane.
    pub header: &'a mut [u8],
    /// Its section of the scale plane.
    pub scale: &'a mut [u8],
    /// Its section of the code plane.
    pub codes: &'a mut [u8],
}

/// The sections of a layer in a slot image. Panics when the image is shorter than the shape's slot.
pub fn layer<'a>(shape: &BlockShape, image: &'a [u8], layer: u32) -> Layer<'a> {
    let of = |plane| {
        let section = shape.section(plane, layer);
        section.map_or(&[][..], |at| &image[at.offset as usize..(at.offset + at.bytes) as usize])
    };
    Layer { header: of(Plane::Header), scale: of(Plane::Scale), codes: of(Plane::Code) }
}

/// The sections of a layer in a slot image, writable. Panics when the image is shorter than the shape's slot.
pub fn layer_mut<'a>(shape: &BlockShape, image: &'a mut [u8], layer: u32) -> LayerMut<'a> {
    let (head, codes) = image.split_at_mut(shape.plane_offset(Plane::Code) as usize);
    let (header, scale) = head.split_at_mut(shape.plane_offset(Plane::Scale) as usize);
    let of = |plane, bytes: &'a mut [u8]| match shape.section(plane, layer) {
        Some(at) => {
            let start = (at.offset - shape.plane_offset(plane)) as usize;
            &mut bytes[start..start + at.bytes as usize]
        }
        None => &mut [],
    };
    let header = header.get_mut(shape.plane_offset(Plane::Header) as usize..).unwrap_or(&mut []);
    LayerMut { header: of(Plane::Header, header), scale: of(Plane::Scale, scale), codes: of(Plane::Code, codes) }
}

/// Encodes one layer, given as its `raw16` section (aligned to 2 bytes), in the forms that `shape` has there. Every byte of the sections is
/// written. Panics for `raw32`, which is never made from `raw16`, and on sections of another shape.
pub fn encode_layer(
    codec: &impl Codec,
    shape: &BlockShape,
    layer: u32,
    raw: &[u8],
    out: LayerMut<'_>,
) -> Result<(), StaysRaw> {
    let raw = words(shape, raw);
    let LayerMut { header, scale, codes } = out;
    if shape.form == Form::Sx12 {
        return encode_sx12_layer(codec, shape, raw, header, codes);
    }
    for (head, side) in sides(shape) {
        let grid = Grid::new(side, shape.head_dim, shape.block_tokens);
        let values = part_of(shape, raw, head, side);
        let part = |plane| shape.part(plane, layer, head, side);
        let codes = &mut codes[part(Plane::Code)];
        match (shape.form.at(layer, side), side) {
            (Form::Raw16, _) => codes.copy_from_slice(values.as_bytes()),
            (Form::I8h, _) => codec.encode_i8h(side, grid, values, &mut scale[part(Plane::Scale)], codes)?,
            (Form::Kc4vt4, Side::Key) => codec.encode_rows4(grid, values, &mut header[part(Plane::Header)], codes)?,
            (Form::Kc4vt4, Side::Value) => codec.encode_rows4(grid, values, &mut scale[part(Plane::Scale)], codes)?,
            (form, _) => panic!("{form} is not made from raw16 parts"),
        }
    }
    Ok(())
}

/// Decodes one layer to its `raw16` section (aligned to 2 bytes). Panics for `raw32` and on sections of another shape.
pub fn decode_layer(
    codec: &impl Codec,
    shape: &BlockShape,
    layer: u32,
    from: Layer<'_>,
    raw: &mut [u8],
) -> Result<(), Damaged> {
    check_section(shape, raw);
    let raw = <[u16]>::mut_from_bytes(raw).expect("sections are aligned to their elements");
    if shape.form == Form::Sx12 {
        return decode_sx12_layer(codec, shape, from, raw);
    }
    for (head, side) in sides(shape) {
        let grid = Grid::new(side, shape.head_dim, shape.block_tokens);
        let values = part_of_mut(shape, raw, head, side);
        let part = |plane| shape.part(plane, layer, head, side);
        let (header, scale) = (&from.header[part(Plane::Header)], &from.scale[part(Plane::Scale)]);
        let codes = &from.codes[part(Plane::Code)];
        match (shape.form.at(layer, side), side) {
            (Form::Raw16, _) => values.as_mut_bytes().copy_from_slice(codes),
            (Form::I8h, _) => codec.decode_i8h(side, grid, scale, codes, values)?,
            (Form::Kc4vt4, Side::Key) => codec.decode_rows4(grid, header, codes, values)?,
            (Form::Kc4vt4, Side::Value) => codec.decode_rows4(grid, scale, codes, values)?,
            (form, _) => panic!("{form} does not decode to raw16 parts"),
        }
    }
    Ok(())
}

/// Encodes a whole block from its `raw16` image to an image of `shape`, all sections, no slot header. Padding stays as it is.
pub fn encode_block(
    codec: &impl Codec,
    shape: &BlockShape,
    raw_image: &[u8],
    image: &mut [u8],
) -> Result<(), StaysRaw> {
    let raw = shape.with_form(Form::Raw16);
    (0..shape.layers)
        .try_for_each(|i| encode_layer(codec, shape, i, layer(&raw, raw_image, i).codes, layer_mut(shape, image, i)))
}

/// Decodes a whole block from its image to a `raw16` image, all sections, no slot header.
pub fn decode_block(codec: &impl Codec, shape: &BlockShape, image: &[u8], raw_image: &mut [u8]) -> Result<(), Damaged> {
    let raw = shape.with_form(Form::Raw16);
    (0..shape.layers)
        .try_for_each(|i| decode_layer(codec, shape, i, layer(shape, image, i), layer_mut(&raw, raw_image, i).codes))
}

fn encode_sx12_layer(
    codec: &impl Codec,
    shape: &BlockShape,
    raw: &[u16],
    header: &mut [u8],
    codes: &mut [u8],
) -> Result<(), StaysRaw> {
    let (windows, area) = header.split_at_mut(4 * shape.kv_heads as usize);
    let mut used = 0;
    for ((head, side), entry) in sides(shape).zip(windows.chunks_exact_mut(2)) {
        let codes = &mut codes[shape.part(Plane::Code, 0, head, side)];
        let window = codec.encode_sx12(part_of(shape, raw, head, side), codes, &mut area[used..])?;
        entry.copy_from_slice(&[window.top, window.escapes]);
        used += usize::from(window.escapes);
    }
    area[used..].fill(0);
    Ok(())
}

fn decode_sx12_layer(codec: &impl Codec, shape: &BlockShape, from: Layer<'_>, raw: &mut [u16]) -> Result<(), Damaged> {
    let (windows, mut area) = from.header.split_at(4 * shape.kv_heads as usize);
    for ((head, side), entry) in sides(shape).zip(windows.chunks_exact(2)) {
        let window = sx12::Window { top: entry[0], escapes: entry[1] };
        let (escapes, rest) = area.split_at_checked(usize::from(window.escapes)).ok_or(Damaged::Escapes)?;
        area = rest;
        let codes = &from.codes[shape.part(Plane::Code, 0, head, side)];
        codec.decode_sx12(window, codes, escapes, part_of_mut(shape, raw, head, side))?;
    }
    Ok(())
}

fn sides(shape: &BlockShape) -> impl Iterator<Item = (u32, Side)> + use<> {
    (0..shape.kv_heads).flat_map(|head| Side::ALL.map(|side| (head, side)))
}

fn check_section(shape: &BlockShape, section: &[u8]) {
    let bytes = shape.with_form(Form::Raw16).layer_bytes(Plane::Code, 0);
    assert_eq!(section.len() as u64, bytes, "bytes of a raw16 section");
}

fn words<'a>(shape: &BlockShape, section: &'a [u8]) -> &'a [u16] {
    check_section(shape, section);
    <[u16]>::ref_from_bytes(section).expect("sections are aligned to their elements")
}

fn element_range(shape: &BlockShape, head: u32, side: Side) -> std::ops::Range<usize> {
    let bytes = shape.with_form(Form::Raw16).part(Plane::Code, 0, head, side);
    bytes.start / 2..bytes.end / 2
}

fn part_of<'a>(shape: &BlockShape, raw: &'a [u16], head: u32, side: Side) -> &'a [u16] {
    &raw[element_range(shape, head, side)]
}

fn part_of_mut<'a>(shape: &BlockShape, raw: &'a mut [u16], head: u32, side: Side) -> &'a mut [u16] {
    &mut raw[element_range(shape, head, side)]
}
