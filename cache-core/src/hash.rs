//! SHA-256 identities, each its own type, built from length-prefixed fields.

use std::fmt;

use sha2::{Digest, Sha256};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::hex::Hex;

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The bytes.
            pub fn bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Hex(&self.0).fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:02x}{:02x}{:02x}{:02x}..)"), self.0[0], self.0[1], self.0[2], self.0[3])
            }
        }
    };
}

identity! {
    /// Names a block: SHA-256 over (parent hash, namespace, token ids).
    BlockHash
}
identity! {
    /// What makes blocks compatible: the digest of a [`crate::manifest::Manifest`] with the tenant's salt.
    Namespace
}
identity! {
    /// Digest over the SHA-256 of a model's files.
    WeightsId
}
identity! {
    /// Digest of a tenant's salt. Shown in quotas and deletion; metrics show a hash of it.
    TenantId
}

/// SHA-256 over fields that each carry their length, so that no two field lists collide by concatenation.
pub struct FieldHasher(Sha256);

impl FieldHasher {
    /// Starts with a domain label, such as `kvtier.block.v1`.
    pub fn new(domain: &str) -> FieldHasher {
        let mut hasher = FieldHasher(Sha256::new());
        hasher.field(domain.as_bytes());
        hasher
    }

    /// Adds one field: its length as u64 little-endian, then its bytes.
    pub fn field(&mut self, bytes: &[u8]) -> &mut FieldHasher {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// Adds a u64 field.
    pub fn number(&mut self, value: u64) -> &mut FieldHasher {
        self.field(&value.to_le_bytes())
    }

    /// Adds token ids as one field of u32 little-endian.
    pub fn tokens(&mut self, tokens: &[u32]) -> &mut FieldHasher {
        self.0.update((tokens.len() as u64 * 4).to_le_bytes());
        for token in tokens {
            self.0.update(token.to_le_bytes());
        }
        self
    }

    /// The digest.
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

impl TenantId {
    /// The tenant of a salt; no salt is the default tenant.
    pub fn of_salt(salt: Option<&str>) -> TenantId {
        let mut hasher = FieldHasher::new("kvtier.tenant.v1");
        match salt {
            None => hasher.number(0),
            Some(salt) => hasher.number(1).field(salt.as_bytes()),
        };
        TenantId(hasher.finish())
    }
}

impl WeightsId {
    /// Identity of a model made of files with these SHA-256 digests, in the order in which the model names them.
    pub fn of_files(digests: &[[u8; 32]]) -> WeightsId {
        let mut hasher = FieldHasher::new("kvtier.weights.v1");
        for digest in digests {
            hasher.field(digest);
        }
        WeightsId(hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_run_into_each_other() {
        let digest = |parts: &[&str]| {
            let mut hasher = FieldHasher::new("test");
            for part in parts {
                hasher.field(part.as_bytes());
            }
            hasher.finish()
        };
        assert_ne!(digest(&["org_1", "2345"]), digest(&["org_12345", ""]));
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
        assert_ne!(digest(&["ab"]), digest(&["ab", ""]));
    }

    #[test]
    fn no_salt_is_not_the_empty_salt() {
        assert_ne!(TenantId::of_salt(None), TenantId::of_salt(Some("")));
    }
}
