//! The name of one copy of a block.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::form::{FormMapId, Provenance};
use crate::hash::{BlockHash, Namespace};

/// Index of a layer group in the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GroupId(pub u32);

/// {namespace, hash, group, form, provenance}: a tainted or re-encoded copy never stands in an exact copy's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CopyKey {
    /// Where the hash counts.
    pub namespace: Namespace,
    /// Which block.
    pub hash: BlockHash,
    /// Which layer group of it.
    pub group: GroupId,
    /// In which form.
    pub form: FormMapId,
    /// Computed after what.
    pub provenance: Provenance,
}

impl CopyKey {
    /// The exact `raw16` copy of a block of group 0.
    pub fn exact(namespace: Namespace, hash: BlockHash) -> CopyKey {
        CopyKey { namespace, hash, group: GroupId(0), form: FormMapId::RAW16, provenance: Provenance::EXACT }
    }
}
