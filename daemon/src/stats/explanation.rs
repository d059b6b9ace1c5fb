//! Why the blocks of a request were there or not: the answer of `/explain`.

use cache_core::miss::MissReason;
use cache_core::units::Tier;
use serde::{Deserialize, Serialize};

use crate::stats::snapshot::{Name, VERSION};

/// What became of the blocks that one request asked for, in their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Version of the format, the same as that of `/stats`.
    pub version: u32,
    /// The request, as the client named it.
    pub request: String,
    /// Its blocks. A lookup stops at the first miss, so blocks behind that one were not looked for.
    pub blocks: Vec<BlockStory>,
}

/// What became of one block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockStory {
    /// Its place in the chain, from 0 on.
    pub position: u32,
    /// The tier it was found in; none for a miss.
    pub tier: Option<Name>,
    /// Why it was not there; none for a hit.
    pub reason: Option<Name>,
    /// The tier that its last copy was dropped from, when that is remembered.
    pub evicted_from: Option<Name>,
    /// How many milliseconds before the request, to the second for the disk; for `never_stored`, what was stored longer ago may have been forgotten; for
    /// `quota`, when it was refused.
    pub ago_ms: Option<u64>,
    /// The part of the namespace that differs from the nearest one that is known.
    pub field: Option<String>,
}

impl Explanation {
    /// Nothing is known of any block yet.
    pub fn new(request: &str) -> Explanation {
        Explanation { version: VERSION, request: request.to_owned(), blocks: Vec::new() }
    }
}

impl BlockStory {
    /// A block that was there.
    pub fn hit(position: u32, tier: Tier) -> BlockStory {
        BlockStory { tier: Some(tier.name().into()), ..BlockStory::nothing(position) }
    }

    /// A block that was not.
    pub fn miss(position: u32, reason: MissReason) -> BlockStory {
        BlockStory { reason: Some(reason.name().into()), ..BlockStory::nothing(position) }
    }

    /// Where its last copy went, and when.
    pub fn gone(self, tier: Tier, ago_ms: u64) -> BlockStory {
        BlockStory { evicted_from: Some(tier.name().into()), ago_ms: Some(ago_ms), ..self }
    }

    /// One sentence for people.
    pub fn sentence(&self) -> String {
        let ago = self.ago_ms.map(|ms| format!("{:.1} s", ms as f64 / 1e3));
        match (&self.tier, &self.reason) {
            (Some(tier), _) => format!("found in {tier}"),
            (None, Some(reason)) => {
                let mut text = format!("missed: {}", reason.replace('_', " "));
                match (&self.evicted_from, &ago) {
                    (None, Some(ago)) if reason == "quota" => text.push_str(&format!(", refused {ago} before")),
                    (Some(tier), Some(ago)) => text.push_str(&format!(" from {tier} {ago} before")),
                    (Some(tier), None) => text.push_str(&format!(" from {tier}")),
                    (None, Some(ago)) => text.push_str(&format!(", or forgotten {ago} before")),
                    (None, None) => {}
                }
                if let Some(field) = &self.field {
                    text.push_str(&format!("; {field} differs"));
                }
                text
            }
            (None, None) => "not looked for".to_owned(),
        }
    }

    fn nothing(position: u32) -> BlockStory {
        BlockStory { position, tier: None, reason: None, evicted_from: None, ago_ms: None, field: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_say_what_is_known() {
        let evicted = BlockStory::miss(3, MissReason::Evicted).gone(Tier::Disk, 1500);
        assert_eq!(evicted.sentence(), "missed: evicted from disk 1.5 s before");
        assert_eq!(BlockStory::hit(0, Tier::Host).sentence(), "found in host");
        let refused = BlockStory { ago_ms: Some(400), ..BlockStory::miss(0, MissReason::Quota) };
        assert_eq!(refused.sentence(), "missed: quota, refused 0.4 s before");
        let other = BlockStory { field: Some("rope.base".into()), ..BlockStory::miss(0, MissReason::Namespace) };
        assert_eq!(other.sentence(), "missed: namespace; rope.base differs");
    }
}
