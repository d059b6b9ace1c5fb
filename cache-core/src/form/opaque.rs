//! Blocks whose bytes only the engine that brings them can read: so many bytes a layer, in a layout that a digest names.

use std::fmt;

use super::Form;
use crate::hash::FieldHasher;
use crate::hex::{Hex, from_hex};

/// What two blocks of an engine's own bytes must share to be alike. Never encoded and never decoded: what was put comes back.
///
/// The manifest of such blocks names the form as its element type ([`Manifest::dtype`](crate::manifest::Manifest) is [`Form::name`]), so that the
/// layout is part of the namespace and blocks of two layouts never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Opaque {
    layer_bytes: u32,
    layout: [u8; 32],
}

impl Opaque {
    /// Most bytes of one layer of a block: sections are shorter than 2 GiB.
    pub const LAYER_BYTES_MAX: u32 = i32::MAX as u32;

    /// So many bytes for the keys and values of one layer and block, 1 to [`Opaque::LAYER_BYTES_MAX`], else `None`, in the layout of this digest:
    /// [`Opaque::digest`] or any other 32 bytes that no other layout has.
    pub fn new(layer_bytes: u32, layout: [u8; 32]) -> Option<Opaque> {
        (1..=Opaque::LAYER_BYTES_MAX).contains(&layer_bytes).then_some(Opaque { layer_bytes, layout })
    }

    /// The digest of a layout that an engine describes in words and numbers: SHA-256 of the fields `kvtier.layout.v1` and the description, as
    /// those of block identity are made.
    pub fn digest(description: &str) -> [u8; 32] {
        let mut hasher = FieldHasher::new("kvtier.layout.v1");
        hasher.field(description.as_bytes());
        hasher.finish()
    }

    /// Bytes of one layer of a block.
    pub fn layer_bytes(self) -> u64 {
        u64::from(self.layer_bytes)
    }

    /// Digest of the layout.
    pub fn layout(&self) -> &[u8; 32] {
        &self.layout
    }
}

impl From<Opaque> for Form {
    fn from(opaque: Opaque) -> Form {
        Form::Opaque(opaque)
    }
}

/// `opaque:`, the bytes of a layer, `:`, and the layout in 64 hexadecimal digits.
impl fmt::Display for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "opaque:{}:{}", self.layer_bytes, Hex(&self.layout))
    }
}

/// What follows the first colon in the name; only what `Display` writes, so that a form has one name. The error says what is wrong.
pub(super) fn parse_parts(text: &str) -> Result<Form, String> {
    let (bytes, digits) = text.split_once(':').ok_or("opaque: wants the bytes of a layer and a layout")?;
    let layer_bytes = bytes.parse().ok().filter(|number: &u32| number.to_string() == bytes);
    let layout = from_hex(digits).and_then(|layout| <[u8; 32]>::try_from(layout).ok());
    let Some(layout) = layout.filter(|layout| Hex(layout).to_string() == digits) else {
        return Err(format!("`{digits}` is no layout of 64 digits from 0 to f"));
    };
    let opaque = layer_bytes.and_then(|layer_bytes| Opaque::new(layer_bytes, layout));
    opaque
        .map(Form::from)
        .ok_or_else(|| format!("`{bytes}` is no number of bytes from 1 to {}", Opaque::LAYER_BYTES_MAX))
}
