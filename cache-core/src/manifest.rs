//! The manifest: every fact that two blocks must share to be interchangeable. Its digest with the tenant is the namespace.

use crate::hash::{FieldHasher, Namespace, TenantId, WeightsId};
use crate::payload::BlockShape;

/// What a layer group keeps per token or per sequence.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GroupKind {
    /// Keys and values of every earlier token.
    Full,
    /// Keys and values of the last `tokens` tokens.
    Window {
        /// Length of the sliding window.
        tokens: u32,
    },
    /// A state snapshot (convolution, SSM, RWKV) of so many bytes; never quantised.
    Recurrent {
        /// Size of one snapshot.
        snapshot_bytes: u64,
    },
    /// One vector per token that stands for keys and values (MLA).
    Latent {
        /// Its length.
        width: u32,
    },
    /// Anything that must be kept beside another group, such as an indexer's cache.
    Side {
        /// Its name.
        name: String,
    },
}

/// A set of layers whose blocks have one shape and are evicted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LayerGroup {
    /// What is kept.
    pub kind: GroupKind,
    /// Indexes of the model's layers, ascending.
    pub layers: Vec<u32>,
    /// KV heads of this rank.
    pub kv_heads: u32,
    /// Channels of a head.
    pub head_dim: u32,
}

/// RoPE settings that change the stored keys. Floats are compared by their bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RopeIdentity {
    /// Rotated channels.
    pub dimensions: u32,
    /// Bits of the base frequency.
    pub base_bits: u32,
    /// Scaling as the model file states it: kind and the bits of its numbers; empty for none.
    pub scaling: String,
}

/// The part of the model's heads that this process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeadSlice {
    /// Tensor-parallel rank and size.
    pub tensor_parallel: (u32, u32),
    /// Pipeline rank and size.
    pub pipeline: (u32, u32),
}

impl HeadSlice {
    /// The whole model in one process.
    pub const WHOLE: HeadSlice = HeadSlice { tensor_parallel: (0, 1), pipeline: (0, 1) };
}

/// Everything that makes blocks compatible.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Manifest {
    /// Identity of the weights.
    pub weights: WeightsId,
    /// Architecture name as the model file states it.
    pub architecture: String,
    /// Element type in which KV is computed and published, such as `bf16`.
    pub dtype: String,
    /// Tokens per block.
    pub block_tokens: u32,
    /// Layer groups, in a fixed order: [`crate::key::GroupId`] counts into it.
    pub groups: Vec<LayerGroup>,
    /// Rank of this process.
    pub head_slice: HeadSlice,
    /// RoPE settings.
    pub rope: RopeIdentity,
    /// Adapter (LoRA) identity; empty for none.
    pub adapter: String,
    /// How the numbers come about: engine revision, device kind, activation mode, span, kernel set (DESIGN 8).
    pub numerics: String,
}

impl Manifest {
    /// What the blocks of a model without anything particular have in common: all its layers in one group, in one process, bf16, no adapter. For rigs and
    /// benchmarks.
    pub fn plain(weights: WeightsId, shape: &BlockShape, numerics: &str) -> Manifest {
        let BlockShape { layers, kv_heads, head_dim, block_tokens, .. } = *shape;
        Manifest {
            weights,
            architecture: "llama".to_owned(),
            dtype: "bf16".to_owned(),
            block_tokens,
            groups: vec![LayerGroup { kind: GroupKind::Full, layers: (0..layers).collect(), kv_heads, head_dim }],
            head_slice: HeadSlice::WHOLE,
            rope: RopeIdentity { dimensions: head_dim, base_bits: 10_000f32.to_bits(), scaling: String::new() },
            adapter: String::new(),
            numerics: numerics.to_owned(),
        }
    }

    /// The namespace of this manifest for one tenant.
    pub fn namespace(&self, tenant: TenantId) -> Namespace {
        let mut hasher = FieldHasher::new("kvtier.namespace.v1");
        hasher.field(self.weights.bytes()).field(self.architecture.as_bytes()).field(self.dtype.as_bytes());
        hasher.number(u64::from(self.block_tokens)).number(self.groups.len() as u64);
        for group in &self.groups {
            group.add_to(&mut hasher);
        }
        for rank in [self.head_slice.tensor_parallel, self.head_slice.pipeline] {
            hasher.number(u64::from(rank.0)).number(u64::from(rank.1));
        }
        hasher.number(u64::from(self.rope.dimensions)).number(u64::from(self.rope.base_bits));
        hasher.field(self.rope.scaling.as_bytes()).field(self.adapter.as_bytes()).field(self.numerics.as_bytes());
        hasher.field(tenant.bytes());
        Namespace(hasher.finish())
    }
}

impl Manifest {
    /// Names of the fields in which two manifests differ.
    pub fn differing(&self, other: &Manifest) -> Vec<&'static str> {
        let Manifest { weights, architecture, dtype, block_tokens, groups, head_slice, rope, adapter, numerics } = self;
        let fields = [
            ("weights", *weights == other.weights),
            ("architecture", *architecture == other.architecture),
            ("dtype", *dtype == other.dtype),
            ("block_tokens", *block_tokens == other.block_tokens),
            ("groups", *groups == other.groups),
            ("head_slice", *head_slice == other.head_slice),
            ("rope", *rope == other.rope),
            ("adapter", *adapter == other.adapter),
            ("numerics", *numerics == other.numerics),
        ];
        fields.into_iter().filter(|(_, is_equal)| !is_equal).map(|(name, _)| name).collect()
    }
}

impl LayerGroup {
    fn add_to(&self, hasher: &mut FieldHasher) {
        match &self.kind {
            GroupKind::Full => hasher.field(b"full"),
            GroupKind::Window { tokens } => hasher.field(b"window").number(u64::from(*tokens)),
            GroupKind::Recurrent { snapshot_bytes } => hasher.field(b"recurrent").number(*snapshot_bytes),
            GroupKind::Latent { width } => hasher.field(b"latent").number(u64::from(*width)),
            GroupKind::Side { name } => hasher.field(b"side").field(name.as_bytes()),
        };
        hasher.tokens(&self.layers).number(u64::from(self.kv_heads)).number(u64::from(self.head_dim));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Manifest {
        Manifest {
            weights: WeightsId([7; 32]),
            architecture: "llama".into(),
            dtype: "bf16".into(),
            block_tokens: 64,
            groups: vec![LayerGroup { kind: GroupKind::Full, layers: vec![0, 1], kv_heads: 3, head_dim: 64 }],
            head_slice: HeadSlice::WHOLE,
            rope: RopeIdentity { dimensions: 64, base_bits: 100_000f32.to_bits(), scaling: String::new() },
            adapter: String::new(),
            numerics: "test".into(),
        }
    }

    /// S2: each field alone changes the namespace.
    #[test]
    fn every_field_separates() {
        let tenant = TenantId::of_salt(None);
        let base = sample().namespace(tenant);
        type Change = fn(&mut Manifest);
        let changes: [Change; 14] = [
            |m| m.weights = WeightsId([8; 32]),
            |m| m.architecture = "llamb".into(),
            |m| m.dtype = "f32".into(),
            |m| m.block_tokens = 16,
            |m| m.groups[0].kind = GroupKind::Window { tokens: 512 },
            |m| m.groups[0].layers = vec![0, 2],
            |m| m.groups[0].kv_heads = 4,
            |m| m.groups[0].head_dim = 128,
            |m| m.head_slice.tensor_parallel = (0, 2),
            |m| m.head_slice.pipeline = (0, 2),
            |m| m.rope.dimensions = 32,
            |m| m.rope.base_bits += 1,
            |m| m.adapter = "lora".into(),
            |m| m.numerics = "other".into(),
        ];
        let mut seen = std::collections::HashSet::from([base, sample().namespace(TenantId::of_salt(Some("a")))]);
        for change in changes {
            let mut manifest = sample();
            change(&mut manifest);
            assert!(seen.insert(manifest.namespace(tenant)));
        }
    }

    #[test]
    fn golden_vector() {
        assert_eq!(
            sample().namespace(TenantId::of_salt(None)).to_string(),
            "eaa1c216b7139e75a9266654a948e8d4fbd019cc7f8f96e939da1a4c101be1e0"
        );
    }
}
