//! Bodies around a connection: who speaks, which blocks it is about, where its memory is.

use cache_core::buffer::PAGE_BYTES;
use cache_core::form::Form;
use cache_core::hash::{Namespace, TenantId};
use cache_core::key::GroupId;
use cache_core::manifest::Manifest;
use cache_core::payload::BlockShape;
use cache_core::units::SlotIndex;

use super::body::{Body, Input, Text, Zero, body, wrapped};
use super::error::WireError;

/// The version that this code speaks.
pub const VERSION: u16 = 1;
/// The longest client name and request name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Names slots of one shape in one namespace; given by the daemon, good for all connections of one daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(pub u32);

wrapped!(ClassId);

body! {
    /// The first request of a connection.
    pub struct Hello<'a> {
        /// The oldest version that the client speaks.
        pub version_min: u16,
        /// The youngest.
        pub version_max: u16,
        /// Zero.
        pub reserved: Zero<4>,
        /// What the client calls itself.
        pub client: Text<'a, NAME_BYTES_MAX>,
    }
}

impl Hello<'_> {
    /// The version to speak with this client; `None` when there is none.
    pub fn version(&self) -> Option<u16> {
        (self.version_min..=self.version_max).contains(&VERSION).then_some(VERSION)
    }
}

body! {
    /// Reply to [`Hello`]. The staging memory's descriptor comes with it.
    pub struct HelloReply {
        /// The version that is spoken from now on.
        pub version: u16,
        /// Zero.
        pub reserved: Zero<2>,
        /// What a deadline of 0 stands for, in milliseconds.
        pub default_deadline_ms: u32,
        /// 128 random bits, new at every start of a daemon: with another one no lease, class, extent or generation of before counts.
        pub daemon_id: [u8; 16],
        /// Names the connection, in logs and statistics.
        pub session: u64,
        /// Length of the staging memory.
        pub staging_bytes: u64,
        /// Reservations that the connection may hold at once.
        pub reservations_max: u32,
        /// A lease older than this may be lost; 0 = leases without end.
        pub lease_ttl_ms: u32,
    }
}

/// Opens a namespace for this connection, and the slots of one layer group in one form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenNamespace {
    /// Whose blocks.
    pub tenant: TenantId,
    /// Of which model. The daemon computes the namespace from it and the tenant.
    pub manifest: Manifest,
    /// Which layer group.
    pub group: GroupId,
    /// Shape of its blocks: what the manifest says of the group, and a form.
    pub shape: BlockShape,
}

impl Body<'_> for OpenNamespace {
    fn encode(&self, out: &mut Vec<u8>) {
        self.tenant.encode(out);
        self.manifest.encode(out);
        self.group.encode(out);
        self.shape.encode(out);
    }

    fn read(input: &mut Input<'_>) -> Result<OpenNamespace, WireError> {
        let tenant = TenantId::read(input.at("OpenNamespace.tenant"))?;
        let manifest = Manifest::read(input)?;
        let group = GroupId::read(input.at("OpenNamespace.group"))?;
        let shape = BlockShape::read(input)?;
        let layers = manifest.groups.get(group.0 as usize).ok_or(input.at("OpenNamespace.group").value())?;
        let stated = (layers.layers.len(), layers.kv_heads, layers.head_dim, manifest.block_tokens);
        if stated != (shape.layers as usize, shape.kv_heads, shape.head_dim, shape.block_tokens) {
            return Err(WireError::Contradiction { contradiction: "the shape is not that of the manifest's group" });
        }
        // What opaque bytes mean is a matter of the namespace, not of the class: two layouts never have a key in common.
        let is_opaque = matches!(shape.form, Form::Opaque(_)) || manifest.dtype.starts_with("opaque:");
        if is_opaque && manifest.dtype != shape.form.name() {
            let contradiction = "the manifest's element type is not the name of the opaque form";
            return Err(WireError::Contradiction { contradiction });
        }
        Ok(OpenNamespace { tenant, manifest, group, shape })
    }
}

body! {
    /// Reply to [`OpenNamespace`].
    pub struct OpenNamespaceReply {
        /// Digest of manifest and tenant.
        pub namespace: Namespace,
        /// The slots.
        pub class: ClassId,
        /// Extents that there are by now, numbered from 0. There may be more later.
        pub extents: u32,
        /// Length of a slot image.
        pub slot_bytes: u64,
    }
}

body! {
    /// Asks for the descriptor of an extent.
    pub struct MapExtent {
        /// Of which slots.
        pub class: ClassId,
        /// Which extent of the class.
        pub extent: u32,
    }
}

/// Reply to [`MapExtent`]. The extent's descriptor comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapExtentReply {
    /// Length of the extent.
    pub bytes: u64,
    /// First byte of the generation words.
    pub words_offset: u64,
    /// Bytes of the pages that hold them.
    pub words_bytes: u64,
    /// First byte of the slot images.
    pub slots_offset: u64,
    /// Its first slot, by its number in the class.
    pub first_slot: SlotIndex,
    /// Its slots.
    pub slots: u32,
}

/// Where a slot is in its extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentPlace {
    /// First byte of its generation word.
    pub word_offset: u64,
    /// First byte of its image.
    pub image_offset: u64,
}

impl MapExtentReply {
    /// Where a slot is; `None` when this extent does not have it, or would have it outside its bytes.
    pub fn place(&self, slot: SlotIndex, slot_bytes: u64) -> Option<ExtentPlace> {
        let local = slot.0.checked_sub(self.first_slot.0).filter(|local| *local < self.slots).map(u64::from)?;
        let image_offset = local.checked_mul(slot_bytes)?.checked_add(self.slots_offset)?;
        let end = image_offset.checked_add(slot_bytes)?;
        (end <= self.bytes).then_some(ExtentPlace { word_offset: self.words_offset + 8 * local, image_offset })
    }

    fn is_sound(&self) -> bool {
        let pages = [self.bytes, self.words_offset, self.words_bytes, self.slots_offset];
        let words_end = self.words_offset.checked_add(self.words_bytes);
        pages.iter().all(|bytes| bytes.is_multiple_of(PAGE_BYTES))
            && 8 * u64::from(self.slots) <= self.words_bytes
            && words_end.is_some_and(|end| end <= self.slots_offset)
            && self.slots_offset <= self.bytes
            && self.first_slot.0.checked_add(self.slots).is_some()
    }
}

impl Body<'_> for MapExtentReply {
    fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.bytes, self.words_offset, self.words_bytes, self.slots_offset] {
            number.encode(out);
        }
        self.first_slot.encode(out);
        self.slots.encode(out);
    }

    fn read(input: &mut Input<'_>) -> Result<MapExtentReply, WireError> {
        let mut number = |field| u64::read(input.at(field));
        let reply = MapExtentReply {
            bytes: number("MapExtentReply.bytes")?,
            words_offset: number("MapExtentReply.words_offset")?,
            words_bytes: number("MapExtentReply.words_bytes")?,
            slots_offset: number("MapExtentReply.slots_offset")?,
            first_slot: SlotIndex::read(input.at("MapExtentReply.first_slot"))?,
            slots: u32::read(input.at("MapExtentReply.slots"))?,
        };
        let contradiction = "words and slots do not lie in the extent one after the other";
        if reply.is_sound() { Ok(reply) } else { Err(WireError::Contradiction { contradiction }) }
    }
}

body! {
    /// Asks for the staging memory that blocks need, in the place of what came with [`Hello`].
    #[derive(Copy)]
    pub struct Stage {
        /// What it must hold: one slot image. There is more where the daemon can do without.
        pub least_bytes: u64,
    }
}

body! {
    /// Reply to [`Stage`]. The staging memory's descriptor comes with it.
    #[derive(Copy)]
    pub struct StageReply {
        /// Its length.
        pub bytes: u64,
    }
}

body! {
    /// Says which request of the client's own the calls that follow belong to, for [`Explain`](super::Explain).
    pub struct Tag<'a> {
        /// Its name; empty for none.
        pub request: Text<'a, NAME_BYTES_MAX>,
    }
}
