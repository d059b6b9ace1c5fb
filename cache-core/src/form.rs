//! Stored forms, what they may stand in for, and where a copy's bits came from.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How the elements of one (layer, K or V) are stored. Only forms that are built have an id here; ids are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Form {
    /// bf16, rounded to nearest even.
    Raw16,
    /// f32, for measurement; never published.
    Raw32,
}

impl Form {
    /// Name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Form::Raw16 => "raw16",
            Form::Raw32 => "raw32",
        }
    }

    /// Bytes of one element.
    pub fn element_bytes(self) -> u64 {
        match self {
            Form::Raw16 => 2,
            Form::Raw32 => 4,
        }
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

    /// The trivial map of a form.
    pub fn uniform(form: Form) -> FormMapId {
        match form {
            Form::Raw16 => FormMapId::RAW16,
            Form::Raw32 => FormMapId::RAW32,
        }
    }

    /// True when decoding gives back the published bits.
    pub fn is_lossless(self) -> bool {
        self == FormMapId::RAW16
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

/// What a lookup is content with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Accept {
    /// A lossless form and exact provenance.
    Exact,
}

impl Accept {
    /// True when a copy of this form and provenance will do.
    pub fn admits(self, form: FormMapId, provenance: Provenance) -> bool {
        match self {
            Accept::Exact => form.is_lossless() && provenance == Provenance::EXACT,
        }
    }
}
