//! End-to-end sums: XXH3-64 per section, computed once when the section is encoded and carried unchanged through every tier.

use std::hash::Hasher;

use twox_hash::XxHash3_64;
use zerocopy::IntoBytes;

use crate::form::Lineage;
use crate::key::CopyKey;

/// XXH3-64 of one section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SectionSum(pub u64);

/// Sum over a section's bytes together with everything that says whose bytes they are: key (with form and provenance), lineage and
/// section index. The identity is folded into the seed, so that the bytes are hashed in one run.
pub fn section_sum(key: &CopyKey, lineage: Lineage, section: u32, bytes: &[u8]) -> SectionSum {
    SectionSum(XxHash3_64::oneshot_with_seed(seed(key, lineage, section), bytes))
}

fn seed(key: &CopyKey, lineage: Lineage, section: u32) -> u64 {
    let mut identity = XxHash3_64::with_seed(0x6b76_7469_6572_0001);
    identity.write(key.as_bytes());
    identity.write(lineage.as_bytes());
    identity.write(&section.to_le_bytes());
    identity.finish()
}

/// [`section_sum`] over bytes that come in pieces.
pub struct SectionHasher(XxHash3_64);

impl SectionHasher {
    /// Of a section whose bytes are this key's.
    pub fn new(key: &CopyKey, lineage: Lineage, section: u32) -> SectionHasher {
        SectionHasher(XxHash3_64::with_seed(seed(key, lineage, section)))
    }

    /// Takes the next bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The sum of all bytes so far.
    pub fn sum(&self) -> SectionSum {
        SectionSum(self.0.finish())
    }
}

impl std::fmt::Debug for SectionHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SectionHasher")
    }
}

/// Sum over a header's bytes.
pub fn header_sum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(0x6b76_7469_6572_0002, bytes)
}
