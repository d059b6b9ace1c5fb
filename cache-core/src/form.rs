//! Stored forms, what they may stand in for, and where a copy's bits came from.

mod mixed;
mod opaque;

use std::fmt;
use std::str::FromStr;

use twox_hash::XxHash3_64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use mixed::{Layers, Mixed};
pub use opaque::Opaque;

use crate::payload::Side;

/// How the keys and the values of a block's layers are stored: alike in every layer, or by a map. Only forms that are built have an id here;
/// ids are never reused. `docs/forms.md` gives every byte of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Form {
    /// bf16, rounded to nearest even.
    Raw16,
    /// f32, for measurement; never published.
    Raw32,
    /// `raw16` without loss: 8 bits of sign and mantissa, 4 bits of exponent code, escapes.
    Sx12,
    /// int8 per token and head with an f16 scale.
    I8h,
    /// 4 bits, K per channel over the block and V per token, each row with an f16 centre and half-range.
    Kc4vt4,
    /// 8 bits as in `i8h` or 4 bits as in `kc4vt4`, by layer and side.
    Mixed(Mixed),
    /// An engine's own bytes.
    Opaque(Opaque),
}

/// Why there is no such form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormError {
    /// A name that is none.
    #[error(
        "read the form `{text}`: {fault}; forms are raw16, raw32, sx12, i8h, kc4vt4, and maps such as kc4vt4:k8=0-3+29:v8=0, \
         with 8-bit keys in layers 0 to 3 and 29 and 8-bit values in layer 0"
    )]
    Name {
        /// The name.
        text: String,
        /// What is wrong with it.
        fault: String,
    },
    /// A map of a layer that the model lacks.
    #[error("use the form: its map names layer {layer}, but the model has {layers} layers, from 0 on")]
    OutsideModel {
        /// The layer.
        layer: u32,
        /// Layers of the model.
        layers: u32,
    },
    /// A map of a model with more layers than maps can tell apart.
    #[error("use the form: the model has {layers} layers, maps are for at most {}; take i8h or kc4vt4", Layers::MOST)]
    TooManyLayers {
        /// Layers of the model.
        layers: u32,
    },
}

impl Form {
    /// Every uniform form of keys and values, in the order of their ids.
    pub const ALL: [Form; 5] = [Form::Raw16, Form::Raw32, Form::Sx12, Form::I8h, Form::Kc4vt4];

    /// Name on the command line and in JSON; [`FromStr`] undoes it.
    pub fn name(self) -> String {
        self.to_string()
    }

    /// The uniform form of the keys or of the values of one layer.
    pub fn at(self, layer: u32, side: Side) -> Form {
        match self {
            Form::Mixed(mixed) if mixed.eights(side).contains(layer) => Form::I8h,
            Form::Mixed(_) => Form::Kc4vt4,
            uniform => uniform,
        }
    }

    /// How many of the layers `0..end` have which uniform forms of keys and of values.
    pub(crate) fn kinds(self, end: u32) -> [(Form, Form, u32); 4] {
        match self {
            Form::Mixed(mixed) => mixed.kinds(end),
            uniform => [end, 0, 0, 0].map(|layers| (uniform, uniform, layers)),
        }
    }

    /// Bytes of one element once it is decoded: f32 for `raw32`, else bf16; a byte of `opaque`, whose elements nobody knows.
    pub fn element_bytes(self) -> u64 {
        match self {
            Form::Opaque(_) => 1,
            Form::Raw16 | Form::Sx12 | Form::I8h | Form::Kc4vt4 | Form::Mixed(_) => 2,
            Form::Raw32 => 4,
        }
    }

    /// True when decoding gives back the published bits.
    pub fn is_lossless(self) -> bool {
        matches!(self, Form::Raw16 | Form::Sx12 | Form::Opaque(_))
    }

    /// True when a copy in this form may stand where `least` would do, entry by entry: the lossless forms are equals, then comes `i8h`, then
    /// `kc4vt4`. `raw32` is never published and stands for nothing but itself, and of two layouts of `opaque` neither stands for the other.
    pub fn is_at_least(self, least: Form) -> bool {
        let eights = |form| match form {
            Form::I8h => Some((Layers::ALL, Layers::ALL)),
            Form::Kc4vt4 => Some((Layers::NONE, Layers::NONE)),
            Form::Mixed(mixed) => Some((mixed.eights(Side::Key), mixed.eights(Side::Value))),
            Form::Raw16 | Form::Raw32 | Form::Sx12 | Form::Opaque(_) => None,
        };
        match (eights(self), eights(least)) {
            _ if self == least => true,
            (Some(own), Some(least)) => own.0.contains_all(least.0) && own.1.contains_all(least.1),
            (Some(_), None) => false,
            _ if matches!((self, least), (Form::Opaque(_), Form::Opaque(_))) => false,
            (None, _) => self.is_lossless() && least != Form::Raw32,
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Form::Raw16 => "raw16",
            Form::Raw32 => "raw32",
            Form::Sx12 => "sx12",
            Form::I8h => "i8h",
            Form::Kc4vt4 => "kc4vt4",
            Form::Mixed(mixed) => return mixed.fmt(f),
            Form::Opaque(opaque) => return opaque.fmt(f),
        })
    }
}

impl FromStr for Form {
    type Err = FormError;

    fn from_str(text: &str) -> Result<Form, FormError> {
        if let Some(form) = Form::ALL.into_iter().find(|form| form.name() == text) {
            return Ok(form);
        }
        let found = match text.split_once(':') {
            Some(("kc4vt4", parts)) => mixed::parse_parts(parts),
            Some(("opaque", parts)) => opaque::parse_parts(parts),
            Some((base, _)) => Err(format!("a map begins with kc4vt4, not with `{base}`")),
            None => Err("there is none of that name".to_owned()),
        };
        found.map_err(|fault| FormError::Name { text: text.to_owned(), fault })
    }
}

/// Names a form map, (layer, K or V) -> form. A uniform form is the trivial map and has a small number; any other map has a digest with the
/// top bit set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FormMapId(pub u32);

impl FormMapId {
    /// Every layer, K and V, in `raw16`.
    pub const RAW16: FormMapId = FormMapId(1);
    /// Every layer, K and V, in `raw32`.
    pub const RAW32: FormMapId = FormMapId(2);
    /// Every layer, K and V, in `sx12`.
    pub const SX12: FormMapId = FormMapId(3);
    /// Every layer, K and V, in `i8h`.
    pub const I8H: FormMapId = FormMapId(4);
    /// Every layer in `kc4vt4`.
    pub const KC4VT4: FormMapId = FormMapId(5);
    /// An engine's own bytes. Which layout they have, their namespace says.
    pub const OPAQUE: FormMapId = FormMapId(6);

    /// The map of a form. A mixed one is [of its model](Form::in_model), else the same map would have two names.
    pub fn of(form: Form) -> FormMapId {
        match form {
            Form::Raw16 => FormMapId::RAW16,
            Form::Raw32 => FormMapId::RAW32,
            Form::Sx12 => FormMapId::SX12,
            Form::I8h => FormMapId::I8H,
            Form::Kc4vt4 => FormMapId::KC4VT4,
            Form::Opaque(_) => FormMapId::OPAQUE,
            Form::Mixed(mixed) => {
                let digest = XxHash3_64::oneshot_with_seed(0x6b76_7469_6572_0003, &mixed.to_bytes());
                FormMapId(1 << 31 | (digest >> 33) as u32)
            }
        }
    }

    /// The form of a trivial map; `None` for a digest, for `opaque`, whose layout the id does not tell, and for an id that is not known here.
    pub fn form(self) -> Option<Form> {
        Form::ALL.into_iter().find(|form| FormMapId::of(*form) == self)
    }

    /// True when decoding gives back the published bits.
    pub fn is_lossless(self) -> bool {
        [FormMapId::RAW16, FormMapId::SX12, FormMapId::OPAQUE].contains(&self)
    }
}

/// `EXACT`, or the 64-bit digest of the policy that anything before the block was computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Provenance(pub u64);

impl Provenance {
    /// Nothing before the block was lossy, selective or degraded.
    pub const EXACT: Provenance = Provenance(0);
}

/// The form map that a copy was encoded from; a copy that the engine published itself has its own form here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Lineage(pub FormMapId);

impl Lineage {
    /// What a copy in this form is encoded from. Lossy forms are encoded from `raw16` alone: no encoder reads a lossy copy.
    pub fn of(form: FormMapId) -> Lineage {
        Lineage(if form.is_lossless() || form == FormMapId::RAW32 { form } else { FormMapId::RAW16 })
    }
}

/// What a lookup is content with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Accept {
    /// A lossless form and exact provenance.
    Exact,
    /// This form, or one whose name tells that no entry is worse, computed after just what the reader itself would have computed it after. A
    /// copy of another provenance will not do, not even an exact one: what the reader computes would then depend on what happened to be there.
    AtLeast(Form),
}

impl Accept {
    /// True when a copy of this form and provenance will do for a reader who would have given it the provenance `own`.
    pub fn admits(self, form: FormMapId, provenance: Provenance, own: Provenance) -> bool {
        match self {
            Accept::Exact => form.is_lossless() && provenance == Provenance::EXACT,
            Accept::AtLeast(least) => {
                // In a namespace there is one layout of opaque bytes, and no copy in another form.
                let is_opaque = form == FormMapId::OPAQUE && least != Form::Raw32;
                let is_at_least = form.form().is_some_and(|form| form.is_at_least(least));
                provenance == own && (form == FormMapId::of(least) || is_opaque || is_at_least)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(name: &str) -> Form {
        name.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn ids_are_distinct_and_names_are_found_again() {
        for (index, form) in Form::ALL.into_iter().enumerate() {
            assert_eq!(FormMapId::of(form), FormMapId(index as u32 + 1));
            assert_eq!((form.name().parse(), FormMapId::of(form).form()), (Ok(form), Some(form)));
            assert_eq!(FormMapId::of(form).is_lossless(), form.is_lossless());
        }
    }

    /// Ids are stored: they must not change.
    #[test]
    fn maps_have_ids_of_their_own() {
        let golden =
            [("kc4vt4:k8=0-3+29:v8=0", 0xb13d_2039), ("kc4vt4:k8=0-29", 0xc7ff_64d3), ("kc4vt4:v8=0-29", 0xd70d_f5c3)];
        for (name, id) in golden {
            assert_eq!((FormMapId::of(form(name)), FormMapId(id).form()), (FormMapId(id), None), "{name}");
        }
        // Every map of 5 layers: none has another's id, a small one, or that of the same map with keys and values exchanged.
        let sets = (0..32u32).map(|bits| (0..5).filter(move |layer| bits >> layer & 1 == 1));
        let sets: Vec<Layers> =
            sets.map(|layers| layers.fold(Layers::NONE, |set, layer| set.or(Layers::range(layer, layer)))).collect();
        let maps =
            sets.iter().flat_map(|keys| sets.iter().map(|values| Form::mixed(*keys, *values).in_model(5).unwrap()));
        let ids: std::collections::BTreeSet<FormMapId> = maps.map(FormMapId::of).collect();
        assert_eq!(ids.len(), 1 << 10);
        assert!(ids.iter().all(|id| id.0 >> 31 == 1 || [FormMapId::I8H, FormMapId::KC4VT4].contains(id)));
    }

    #[test]
    fn names_of_maps_are_found_again_and_equal_maps_are_equal() {
        let names = ["kc4vt4:k8=0-3+29:v8=0", "kc4vt4:k8=all", "kc4vt4:k8=0-127:v8=127", "kc4vt4:v8=1+3+5-6"];
        for name in names {
            let expected = name.replace("k8=0-127", "k8=all");
            assert_eq!(form(name).name(), expected);
        }
        assert_eq!(form("kc4vt4:v8=6+5+3+1+5-6:k8=2"), form("kc4vt4:k8=2:v8=1+3+5-6"));
        for (name, layers, expected) in [
            ("kc4vt4:k8=all:v8=all", 30, "i8h"),
            ("kc4vt4:k8=0-29:v8=all", 30, "i8h"),
            ("kc4vt4:k8=0-29:v8=all", 31, "kc4vt4:k8=0-29:v8=0-30"),
            ("kc4vt4:k8=all", 30, "kc4vt4:k8=0-29"),
            ("kc4vt4", 300, "kc4vt4"),
        ] {
            assert_eq!(form(name).in_model(layers).unwrap().name(), expected);
        }
        let outside = form("kc4vt4:k8=0-3+29:v8=0").in_model(29);
        assert_eq!(outside, Err(FormError::OutsideModel { layer: 29, layers: 29 }));
        assert_eq!(form("kc4vt4:k8=2").in_model(129), Err(FormError::TooManyLayers { layers: 129 }));
    }

    #[test]
    fn names_that_are_none_are_told_with_an_example() {
        for (name, fault) in [
            ("q4_0", "there is none of that name"),
            ("", "there is none of that name"),
            ("i8h:k8=0", "a map begins with kc4vt4, not with `i8h`"),
            ("kc4vt4:", "`` is neither k8= nor v8="),
            ("kc4vt4:k4=0", "`k4=0` is neither k8= nor v8="),
            ("kc4vt4:k8", "`` is no layer from 0 to 127"),
            ("kc4vt4:k8=0,1", "`0,1` is no layer from 0 to 127"),
            ("kc4vt4:k8=128", "`128` is no layer from 0 to 127"),
            ("kc4vt4:k8=3-1", "`3-1` ends before it begins"),
            ("kc4vt4:k8=1:k8=2", "k8= stands there twice"),
        ] {
            let error = name.parse::<Form>().unwrap_err();
            assert_eq!(error, FormError::Name { text: name.to_owned(), fault: fault.to_owned() });
            assert!(error.to_string().contains("such as kc4vt4:k8=0-3+29:v8=0,"), "{error}");
        }
    }

    #[test]
    fn maps_compare_entry_by_entry() {
        let at_least = |better: &str, least: &str| {
            let (better, least) = (form(better), form(least));
            let admitted = Accept::AtLeast(least).admits(FormMapId::of(better), Provenance(1), Provenance(1));
            // A digest does not tell its map, so of mixed copies only the very map that is asked for is admitted.
            assert_eq!(admitted, better.is_at_least(least) && (!matches!(better, Form::Mixed(_)) || better == least));
            better.is_at_least(least)
        };
        let order = ["raw16", "i8h", "kc4vt4:k8=0-3:v8=2+5", "kc4vt4:k8=1-2:v8=5", "kc4vt4:k8=1", "kc4vt4"];
        for (index, least) in order.iter().enumerate() {
            for (better, form) in order.iter().enumerate() {
                assert_eq!(at_least(form, least), better <= index, "{form} for {least}");
            }
        }
        for (a, b) in [("kc4vt4:k8=1", "kc4vt4:v8=1"), ("kc4vt4:k8=1+2", "kc4vt4:k8=2-3"), ("kc4vt4:k8=1", "raw32")] {
            assert!(!at_least(a, b) && !at_least(b, a), "{a} and {b}");
        }
    }

    #[test]
    fn opaque_bytes_are_exact_and_their_layouts_do_not_meet() {
        let [a, b] =
            ["NHD bf16", "HND bf16"].map(|layout| Form::from(Opaque::new(64, Opaque::digest(layout)).unwrap()));
        let longer = Form::from(Opaque::new(65, Opaque::digest("NHD bf16")).unwrap());
        for form in [a, b, longer] {
            assert_eq!((form.name().parse(), form.in_model(3), form.at(2, Side::Key)), (Ok(form), Ok(form), form));
            assert_eq!((FormMapId::of(form), FormMapId::OPAQUE.form()), (FormMapId(6), None));
            assert!(form.is_lossless() && FormMapId::of(form).is_lossless());
            assert_eq!(Lineage::of(FormMapId::of(form)).0, FormMapId::OPAQUE);
            for lossless in [Form::Raw16, Form::Sx12] {
                assert!(form.is_at_least(lossless) && lossless.is_at_least(form));
            }
            assert!(form.is_at_least(Form::Kc4vt4) && !Form::I8h.is_at_least(form));
            assert!(!form.is_at_least(Form::Raw32) && !Form::Raw32.is_at_least(form));
            for other in [a, b, longer] {
                assert_eq!(form.is_at_least(other), form == other);
            }
            let admits = |accept: Accept, provenance| accept.admits(FormMapId::of(form), provenance, provenance);
            assert!(admits(Accept::Exact, Provenance::EXACT) && !admits(Accept::Exact, Provenance(1)));
            assert!(admits(Accept::AtLeast(form), Provenance(1)) && admits(Accept::AtLeast(Form::I8h), Provenance(1)));
            assert!(!admits(Accept::AtLeast(Form::Raw32), Provenance(1)));
        }
        assert_eq!((Opaque::new(0, [0; 32]), Opaque::new(1 << 31, [0; 32])), (None, None));
        let digits = "00".repeat(32);
        for (name, fault) in [
            ("opaque:64".to_owned(), "opaque: wants the bytes of a layer and a layout"),
            (format!("opaque:0:{digits}"), "`0` is no number of bytes from 1 to 2147483647"),
            (format!("opaque:064:{digits}"), "`064` is no number of bytes from 1 to 2147483647"),
            (format!("opaque:+64:{digits}"), "`+64` is no number of bytes from 1 to 2147483647"),
            ("opaque:64:ABCD".to_owned(), "`ABCD` is no layout of 64 digits from 0 to f"),
        ] {
            assert_eq!(name.parse::<Form>(), Err(FormError::Name { text: name, fault: fault.to_owned() }));
        }
        assert!(format!("opaque:64:{}", "AB".repeat(32)).parse::<Form>().is_err(), "one name each");
    }

    #[test]
    fn exact_lookups_take_lossless_forms_only() {
        let exact = |form, provenance| Accept::Exact.admits(form, provenance, Provenance(1));
        assert!(exact(FormMapId::SX12, Provenance::EXACT));
        assert!(!exact(FormMapId::SX12, Provenance(1)));
        assert!(!exact(FormMapId::I8H, Provenance::EXACT));
        assert!(!exact(FormMapId::KC4VT4, Provenance::EXACT));
    }

    #[test]
    fn a_lossy_lookup_takes_its_form_or_better_of_its_own_provenance() {
        let admits = |least, form| Accept::AtLeast(least).admits(form, Provenance(1), Provenance(1));
        let order = [Form::Raw16, Form::I8h, Form::Kc4vt4];
        for (index, least) in order.into_iter().enumerate() {
            for (better, form) in order.into_iter().enumerate() {
                assert_eq!(admits(least, FormMapId::of(form)), better <= index, "{form:?} for {least:?}");
            }
            assert!(
                admits(least, FormMapId::SX12) && !admits(least, FormMapId::RAW32) && !admits(least, FormMapId(99))
            );
        }
        for provenance in [Provenance::EXACT, Provenance(2)] {
            assert!(!Accept::AtLeast(Form::Kc4vt4).admits(FormMapId::KC4VT4, provenance, Provenance(1)));
        }
    }
}
