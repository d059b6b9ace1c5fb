//! Form maps that are not uniform: some layers' keys, and some layers' values, have 8 bits while all others have 4.

use std::fmt;
use std::str::FromStr;

use super::{Form, FormError};
use crate::payload::Side;

/// A set of layers, of the first [`Layers::MOST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Layers(u128);

impl Layers {
    /// Layers that a set can tell apart.
    pub const MOST: u32 = u128::BITS;
    /// No layer.
    pub const NONE: Layers = Layers(0);
    /// Every layer, however many there are.
    pub const ALL: Layers = Layers(u128::MAX);

    /// Layers `0..end`; all of them from [`Layers::MOST`] on.
    pub fn before(end: u32) -> Layers {
        Layers(1u128.checked_shl(end).map_or(u128::MAX, |bit| bit - 1))
    }

    /// Layers `first..=last`. Panics from [`Layers::MOST`] on.
    pub fn range(first: u32, last: u32) -> Layers {
        assert!(last < Layers::MOST, "layer {last} of at most {}", Layers::MOST);
        Layers(Layers::before(last + 1).0 & !Layers::before(first).0)
    }

    /// Layers of either.
    pub fn or(self, other: Layers) -> Layers {
        Layers(self.0 | other.0)
    }

    /// True when the layer is in the set.
    pub fn contains(self, layer: u32) -> bool {
        self.0.checked_shr(layer).is_some_and(|rest| rest & 1 == 1)
    }

    /// True when every layer of `other` is in the set.
    pub fn contains_all(self, other: Layers) -> bool {
        other.0 & !self.0 == 0
    }

    /// The last layer; `None` of an empty set.
    fn last(self) -> Option<u32> {
        self.0.checked_ilog2()
    }

    /// The set in a model of so many layers. Errors: [`FormError::OutsideModel`].
    fn in_model(self, layers: u32) -> Result<Layers, FormError> {
        match self.last() {
            _ if self == Layers::ALL => Ok(Layers::before(layers)),
            Some(layer) if layer >= layers => Err(FormError::OutsideModel { layer, layers }),
            _ => Ok(self),
        }
    }
}

/// Runs of layers, `0-3+29`, or `all`.
impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Layers::ALL {
            return f.write_str("all");
        }
        let (mut rest, mut separator) = (self.0, "");
        while rest != 0 {
            let first = rest.trailing_zeros();
            let last = first + (rest >> first).trailing_ones() - 1;
            match first == last {
                true => write!(f, "{separator}{first}")?,
                false => write!(f, "{separator}{first}-{last}")?,
            }
            (rest, separator) = (rest & !Layers::before(last + 1).0, "+");
        }
        Ok(())
    }
}

/// Undoes `Display`; the error says what is wrong.
impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Layers, String> {
        if text == "all" {
            return Ok(Layers::ALL);
        }
        let layer = |text: &str| match text.parse::<u32>() {
            Ok(layer) if layer < Layers::MOST => Ok(layer),
            _ => Err(format!("`{text}` is no layer from 0 to {}", Layers::MOST - 1)),
        };
        text.split('+').try_fold(Layers::NONE, |layers, run| {
            let (first, last) = run.split_once('-').unwrap_or((run, run));
            let (first, last) = (layer(first)?, layer(last)?);
            match first <= last {
                true => Ok(layers.or(Layers::range(first, last))),
                false => Err(format!("`{run}` ends before it begins")),
            }
        })
    }
}

/// A map of which some entries are 8 bits (`i8h`) and others 4 (`kc4` keys, `vt4` values). Made by [`Form::mixed`], so that it never is one
/// of the uniform maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mixed {
    keys8: Layers,
    values8: Layers,
}

impl Mixed {
    /// Layers whose keys, or whose values, have 8 bits.
    pub fn eights(self, side: Side) -> Layers {
        match side {
            Side::Key => self.keys8,
            Side::Value => self.values8,
        }
    }

    /// The same as a number: layers of 8-bit keys, then of 8-bit values, little-endian, bit `l` for layer `l`.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&self.keys8.0.to_le_bytes());
        bytes[16..].copy_from_slice(&self.values8.0.to_le_bytes());
        bytes
    }

    /// How many of the layers `0..end` have which forms of keys and of values.
    pub(super) fn kinds(self, end: u32) -> [(Form, Form, u32); 4] {
        let (keys8, values8, all) = (self.keys8.0, self.values8.0, Layers::before(end).0);
        let count = |layers: u128| (layers & all).count_ones();
        [
            (Form::I8h, Form::I8h, count(keys8 & values8)),
            (Form::I8h, Form::Kc4vt4, count(keys8 & !values8)),
            (Form::Kc4vt4, Form::I8h, count(!keys8 & values8)),
            // Layers that no set names have 4 bits, however many there are.
            (Form::Kc4vt4, Form::Kc4vt4, end - count(keys8 | values8)),
        ]
    }
}

impl Form {
    /// The map whose keys have 8 bits in the layers `keys8`, whose values have in `values8`, and 4 bits elsewhere. It is
    /// [`Form::Kc4vt4`] when both are empty, and [`Form::I8h`] when both have all.
    pub fn mixed(keys8: Layers, values8: Layers) -> Form {
        match (keys8, values8) {
            (Layers::NONE, Layers::NONE) => Form::Kc4vt4,
            (Layers::ALL, Layers::ALL) => Form::I8h,
            (keys8, values8) => Form::Mixed(Mixed { keys8, values8 }),
        }
    }

    /// The map in a model of so many layers: the one that names the same forms of them, so that equal maps are equal.
    ///
    /// Errors: [`FormError::OutsideModel`] for a layer that the model lacks, [`FormError::TooManyLayers`] for a mixed map of a model of more
    /// layers than [`Layers::MOST`].
    pub fn in_model(self, layers: u32) -> Result<Form, FormError> {
        let Form::Mixed(Mixed { keys8, values8 }) = self else {
            return Ok(self);
        };
        if layers > Layers::MOST {
            return Err(FormError::TooManyLayers { layers });
        }
        let (keys8, values8) = (keys8.in_model(layers)?, values8.in_model(layers)?);
        let whole = Layers::before(layers);
        Ok(if (keys8, values8) == (whole, whole) { Form::I8h } else { Form::mixed(keys8, values8) })
    }
}

/// `kc4vt4:k8=0-3+29:v8=0`: 8-bit keys in layers 0 to 3 and 29, 8-bit values in layer 0, 4 bits elsewhere.
impl fmt::Display for Mixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Form::Kc4vt4)?;
        for (name, layers) in [("k8", self.keys8), ("v8", self.values8)] {
            if layers != Layers::NONE {
                write!(f, ":{name}={layers}")?;
            }
        }
        Ok(())
    }
}

/// What follows the colon in the name of a mixed map. The error says what is wrong.
pub(super) fn parse_parts(text: &str) -> Result<Form, String> {
    let (mut keys8, mut values8) = (None, None);
    for part in text.split(':') {
        let (name, layers) = part.split_once('=').unwrap_or((part, ""));
        let of = match name {
            "k8" => &mut keys8,
            "v8" => &mut values8,
            _ => return Err(format!("`{part}` is neither k8= nor v8=")),
        };
        if of.replace(layers.parse::<Layers>()?).is_some() {
            return Err(format!("{name}= stands there twice"));
        }
    }
    Ok(Form::mixed(keys8.unwrap_or(Layers::NONE), values8.unwrap_or(Layers::NONE)))
}
