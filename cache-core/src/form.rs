//! Stored forms, what they may stand in for, and where a copy's bits came from.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How the elements of one (layer, K or V) are stored. Only forms that are built have an id here; ids are never reused.
/// `docs/forms.md` gives every byte of each.
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
}

impl Form {
    /// Every form, in the order of their ids.
    pub const ALL: [Form; 5] = [Form::Raw16, Form::Raw32, Form::Sx12, Form::I8h, Form::Kc4vt4];

    /// Name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Form::Raw16 => "raw16",
            Form::Raw32 => "raw32",
            Form::Sx12 => "sx12",
            Form::I8h => "i8h",
            Form::Kc4vt4 => "kc4vt4",
        }
    }

    /// The form of that name.
    pub fn from_name(name: &str) -> Option<Form> {
        Form::ALL.into_iter().find(|form| form.name() == name)
    }

    /// Bytes of one element once it is decoded: f32 for `raw32`, else bf16.
    pub fn element_bytes(self) -> u64 {
        match self {
            Form::Raw16 | Form::Sx12 | Form::I8h | Form::Kc4vt4 => 2,
            Form::Raw32 => 4,
        }
    }

    /// Bits of one element in the code plane, headers and scales not counted.
    pub fn code_bits(self) -> u64 {
        match self {
            Form::Raw16 => 16,
            Form::Raw32 => 32,
            Form::Sx12 => 12,
            Form::I8h => 8,
            Form::Kc4vt4 => 4,
        }
    }

    /// True when decoding gives back the published bits.
    pub fn is_lossless(self) -> bool {
        matches!(self, Form::Raw16 | Form::Sx12)
    }

    /// True when a copy in this form may stand where `least` would do: the lossless forms are equals, then comes `i8h`, then `kc4vt4`.
    /// `raw32` is never published and stands for nothing but itself.
    pub fn is_at_least(self, least: Form) -> bool {
        let rank = |form| match form {
            Form::Raw16 | Form::Sx12 => Some(0),
            Form::I8h => Some(1),
            Form::Kc4vt4 => Some(2),
            Form::Raw32 => None,
        };
        self == least || matches!((rank(self), rank(least)), (Some(rank), Some(least)) if rank <= least)
    }
}

/// Names a form map, (layer, K or V) -> form. A uniform form is the trivial map.
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

    /// The trivial map of a form.
    pub fn uniform(form: Form) -> FormMapId {
        match form {
            Form::Raw16 => FormMapId::RAW16,
            Form::Raw32 => FormMapId::RAW32,
            Form::Sx12 => FormMapId::SX12,
            Form::I8h => FormMapId::I8H,
            Form::Kc4vt4 => FormMapId::KC4VT4,
        }
    }

    /// The form of a trivial map; `None` for an id that is not known here.
    pub fn form(self) -> Option<Form> {
        Form::ALL.into_iter().find(|form| FormMapId::uniform(*form) == self)
    }

    /// True when decoding gives back the published bits.
    pub fn is_lossless(self) -> bool {
        self == FormMapId::RAW16 || self == FormMapId::SX12
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
    /// This form or a better one, computed after just what the reader itself would have computed it after. A copy of another provenance will
    /// not do, not even an exact one: what the reader computes would then depend on what happened to be there.
    AtLeast(Form),
}

impl Accept {
    /// True when a copy of this form and provenance will do for a reader who would have given it the provenance `own`.
    pub fn admits(self, form: FormMapId, provenance: Provenance, own: Provenance) -> bool {
        match self {
            Accept::Exact => form.is_lossless() && provenance == Provenance::EXACT,
            Accept::AtLeast(least) => provenance == own && form.form().is_some_and(|form| form.is_at_least(least)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinct_and_names_are_found_again() {
        for (index, form) in Form::ALL.into_iter().enumerate() {
            assert_eq!(FormMapId::uniform(form), FormMapId(index as u32 + 1));
            assert_eq!(Form::from_name(form.name()), Some(form));
            assert_eq!(FormMapId::uniform(form).is_lossless(), form.is_lossless());
        }
        assert_eq!(Form::from_name("q4_0"), None);
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
                assert_eq!(admits(least, FormMapId::uniform(form)), better <= index, "{form:?} for {least:?}");
            }
            assert!(admits(least, FormMapId::SX12) && !admits(least, FormMapId::RAW32) && !admits(least, FormMapId(99)));
        }
        for provenance in [Provenance::EXACT, Provenance(2)] {
            assert!(!Accept::AtLeast(Form::Kc4vt4).admits(FormMapId::KC4VT4, provenance, Provenance(1)));
        }
    }
}
