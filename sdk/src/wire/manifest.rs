//! Manifest and shape in a body.
//!
//! A manifest stands there as the very bytes that [`Manifest::namespace`] hashes between the domain label and the tenant: every field, numbers
//! too, behind its length in 8 bytes. So whoever has these bytes has the namespace, without a second way to write a manifest down.

use cache_core::form::Form;
use cache_core::hash::WeightsId;
use cache_core::manifest::{GroupKind, HeadSlice, LayerGroup, Manifest, RopeIdentity};
use cache_core::payload::BlockShape;

use super::body::{Body, Input, Text};
use super::error::WireError;

/// The longest text in a manifest, in bytes.
pub const MANIFEST_TEXT_MAX: usize = 1024;
/// Layer groups of a manifest.
pub const GROUPS_MAX: usize = 64;
/// Layers of a group, and of a shape.
pub const LAYERS_MAX: usize = 1024;
/// The longest slot image, in bytes.
pub const SLOT_BYTES_MAX: u64 = 1 << 30;

/// The shortest group: `full`, no layer, two numbers, with their lengths.
const GROUP_BYTES_MIN: usize = 12 + 8 + 2 * 16;

fn put(out: &mut Vec<u8>, field: &[u8]) {
    (field.len() as u64).encode(out);
    out.extend_from_slice(field);
}

fn put_number(out: &mut Vec<u8>, value: u64) {
    put(out, &value.to_le_bytes());
}

fn take<'a>(input: &mut Input<'a>, field: &'static str, most: usize) -> Result<&'a [u8], WireError> {
    let bytes = u64::read(input.at(field))?;
    let bytes = input.at_most(bytes, most as u64)?;
    input.take(bytes)
}

fn take_text<'a>(input: &mut Input<'a>, field: &'static str) -> Result<&'a str, WireError> {
    let bytes = take(input, field, MANIFEST_TEXT_MAX)?;
    input.text(bytes)
}

fn take_number(input: &mut Input<'_>, field: &'static str) -> Result<u64, WireError> {
    let bytes = take(input, field, 8)?;
    bytes.try_into().map(u64::from_le_bytes).map_err(|_| input.value())
}

fn take_u32(input: &mut Input<'_>, field: &'static str) -> Result<u32, WireError> {
    let value = take_number(input, field)?;
    u32::try_from(value).map_err(|_| input.value())
}

fn take_pair(input: &mut Input<'_>, field: &'static str) -> Result<(u32, u32), WireError> {
    Ok((take_u32(input, field)?, take_u32(input, field)?))
}

impl Body<'_> for Manifest {
    fn encode(&self, out: &mut Vec<u8>) {
        put(out, self.weights.bytes());
        put(out, self.architecture.as_bytes());
        put(out, self.dtype.as_bytes());
        put_number(out, u64::from(self.block_tokens));
        put_number(out, self.groups.len() as u64);
        for group in &self.groups {
            put_group(out, group);
        }
        for rank in [self.head_slice.tensor_parallel, self.head_slice.pipeline] {
            put_number(out, u64::from(rank.0));
            put_number(out, u64::from(rank.1));
        }
        put_number(out, u64::from(self.rope.dimensions));
        put_number(out, u64::from(self.rope.base_bits));
        for text in [&self.rope.scaling, &self.adapter, &self.numerics] {
            put(out, text.as_bytes());
        }
    }

    fn read(input: &mut Input<'_>) -> Result<Manifest, WireError> {
        let weights = take(input, "manifest.weights", 32)?;
        let weights = WeightsId(weights.try_into().map_err(|_| input.value())?);
        let architecture = take_text(input, "manifest.architecture")?.to_owned();
        let dtype = take_text(input, "manifest.dtype")?.to_owned();
        let block_tokens = take_u32(input, "manifest.block_tokens")?;
        let count = take_number(input, "manifest.groups")?;
        let count = input.at_most(count, GROUPS_MAX as u64)?;
        let mut groups = Vec::with_capacity(count.min(input.left() / GROUP_BYTES_MIN));
        for _ in 0..count {
            groups.push(take_group(input)?);
        }
        let head_slice = HeadSlice {
            tensor_parallel: take_pair(input, "manifest.tensor_parallel")?,
            pipeline: take_pair(input, "manifest.pipeline")?,
        };
        let rope = RopeIdentity {
            dimensions: take_u32(input, "manifest.rope_dimensions")?,
            base_bits: take_u32(input, "manifest.rope_base_bits")?,
            scaling: take_text(input, "manifest.rope_scaling")?.to_owned(),
        };
        Ok(Manifest {
            weights,
            architecture,
            dtype,
            block_tokens,
            groups,
            head_slice,
            rope,
            adapter: take_text(input, "manifest.adapter")?.to_owned(),
            numerics: take_text(input, "manifest.numerics")?.to_owned(),
        })
    }
}

fn put_group(out: &mut Vec<u8>, group: &LayerGroup) {
    match &group.kind {
        GroupKind::Window { tokens } => {
            put(out, b"window");
            put_number(out, u64::from(*tokens));
        }
        GroupKind::Recurrent { snapshot_bytes } => {
            put(out, b"recurrent");
            put_number(out, *snapshot_bytes);
        }
        GroupKind::Latent { width } => {
            put(out, b"latent");
            put_number(out, u64::from(*width));
        }
        GroupKind::Side { name } => {
            put(out, b"side");
            put(out, name.as_bytes());
        }
        GroupKind::Full => put(out, b"full"),
        kind => unreachable!("{kind:?} is hashed by no manifest"),
    }
    (group.layers.len() as u64 * 4).encode(out);
    group.layers.iter().for_each(|layer| layer.encode(out));
    put_number(out, u64::from(group.kv_heads));
    put_number(out, u64::from(group.head_dim));
}

fn take_group(input: &mut Input<'_>) -> Result<LayerGroup, WireError> {
    let kind = match take(input, "manifest.group_kind", 16)? {
        b"full" => GroupKind::Full,
        b"window" => GroupKind::Window { tokens: take_u32(input, "manifest.window_tokens")? },
        b"recurrent" => GroupKind::Recurrent { snapshot_bytes: take_number(input, "manifest.snapshot_bytes")? },
        b"latent" => GroupKind::Latent { width: take_u32(input, "manifest.latent_width")? },
        b"side" => GroupKind::Side { name: take_text(input, "manifest.side_name")?.to_owned() },
        _ => return Err(input.value()),
    };
    let layers = take(input, "manifest.layers", 4 * LAYERS_MAX)?;
    let (layers, rest) = layers.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(input.value());
    }
    Ok(LayerGroup {
        kind,
        layers: layers.iter().map(|layer| u32::from_le_bytes(*layer)).collect(),
        kv_heads: take_u32(input, "manifest.kv_heads")?,
        head_dim: take_u32(input, "manifest.head_dim")?,
    })
}

/// Layers, KV heads, head size, tokens of a block, each 4 bytes, and the form's name. A shape that comes out of a body has a slot image of at
/// most [`SLOT_BYTES_MAX`], and its form is one of its model.
impl Body<'_> for BlockShape {
    fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.layers, self.kv_heads, self.head_dim, self.block_tokens] {
            number.encode(out);
        }
        let name = self.form.name();
        (name.len() as u32).encode(out);
        out.extend_from_slice(name.as_bytes());
    }

    fn read(input: &mut Input<'_>) -> Result<BlockShape, WireError> {
        let mut number = |field, most| {
            let found = u32::read(input.at(field))?;
            input.at_most(u64::from(found), most)?;
            if found == 0 { Err(input.value()) } else { Ok(found) }
        };
        let layers = number("shape.layers", LAYERS_MAX as u64)?;
        let kv_heads = number("shape.kv_heads", 1 << 12)?;
        let head_dim = number("shape.head_dim", 1 << 14)?;
        let block_tokens = number("shape.block_tokens", 1 << 14)?;
        let name = Text::<MANIFEST_TEXT_MAX>::read(input.at("shape.form"))?;
        let form = name.as_str().parse().and_then(|form: Form| form.in_model(layers)).map_err(|_| input.value())?;
        let is_plain = matches!(form, Form::Raw16 | Form::Raw32 | Form::Opaque(_));
        if !is_plain && (!head_dim.is_multiple_of(8) || !block_tokens.is_multiple_of(8)) {
            let contradiction = "this form needs a head size and a number of tokens that 8 divides";
            return Err(WireError::Contradiction { contradiction });
        }
        let shape = BlockShape { layers, kv_heads, head_dim, block_tokens, form };
        if shape.slot_bytes() > SLOT_BYTES_MAX {
            return Err(WireError::TooMany { field: "shape", found: shape.slot_bytes(), most: SLOT_BYTES_MAX });
        }
        Ok(shape)
    }
}
