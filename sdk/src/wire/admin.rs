//! Bodies of those who look after a daemon.

use cache_core::hash::{BlockHash, Namespace, TenantId};

use super::blocks::KeyParts;
use super::body::{Body, Input, Text, body};
use super::error::WireError;
use super::session::NAME_BYTES_MAX;

body! {
    /// Deletes every block of a namespace, on the disk too, before it is answered.
    #[derive(Copy)]
    pub struct DeleteNamespace {
        /// Which.
        pub namespace: Namespace,
    }
}

body! {
    /// Deletes every block of a tenant, on the disk too, before it is answered.
    #[derive(Copy)]
    pub struct DeleteTenant {
        /// Which.
        pub tenant: TenantId,
    }
}

body! {
    /// Reply to [`DeleteTenant`].
    #[derive(Copy)]
    pub struct DeleteTenantReply {
        /// Namespaces that were deleted.
        pub namespaces: u32,
    }
}

/// Asks why blocks are or are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explain<'a> {
    /// Those of a request, by the name that [`Tag`](super::Tag) gave it.
    Request(Text<'a, NAME_BYTES_MAX>),
    /// This one.
    Block {
        /// All of its key but the hash.
        parts: KeyParts,
        /// Which block.
        hash: BlockHash,
    },
}

/// 4 bytes: 1 before a request's name, 2 before a key.
impl<'a> Body<'a> for Explain<'a> {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Explain::Request(name) => {
                1u32.encode(out);
                name.encode(out);
            }
            Explain::Block { parts, hash } => {
                2u32.encode(out);
                parts.encode(out);
                hash.encode(out);
            }
        }
    }

    fn read(input: &mut Input<'a>) -> Result<Explain<'a>, WireError> {
        match u32::read(input.at("Explain.what"))? {
            1 => Ok(Explain::Request(Text::read(input.at("Explain.request"))?)),
            2 => Ok(Explain::Block { parts: KeyParts::read(input)?, hash: BlockHash::read(input.at("Explain.hash"))? }),
            _ => Err(input.value()),
        }
    }
}
