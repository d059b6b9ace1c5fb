//! What makes an engine's blocks compatible, as the engine states it.

use cache_core::form::{Form, Opaque};
use cache_core::hash::WeightsId;
use cache_core::manifest::{GroupKind, HeadSlice, LayerGroup, Manifest, RopeIdentity};
use cache_core::payload::BlockShape;

use super::PluginError;

/// RoPE settings that change stored keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RopeStated {
    /// Rotated channels; 0 for none.
    pub dimensions: u32,
    /// Base frequency.
    pub base: f32,
    /// Scaling, in words and numbers of the engine's own; empty for none.
    pub scaling: String,
}

/// Everything that two blocks must share to stand for each other. Whatever differs in a field never meets.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// Digest of the weights.
    pub weights: [u8; 32],
    /// Architecture name.
    pub architecture: String,
    /// Element type of keys and values.
    pub dtype: String,
    /// Tokens of a stored block.
    pub block_tokens: u32,
    /// Layers of this process.
    pub layers: u32,
    /// KV heads of this rank.
    pub kv_heads: u32,
    /// Channels of a head.
    pub head_dim: u32,
    /// Tensor-parallel rank and size, pipeline rank and size.
    pub ranks: HeadSlice,
    /// RoPE settings.
    pub rope: RopeStated,
    /// Adapter identity; empty for none.
    pub adapter: String,
    /// How the numbers come about: engine, its revision, device kind, kernels.
    pub numerics: String,
    /// Bytes of one layer of a stored block, keys and values together.
    pub layer_bytes: u32,
    /// How these bytes are laid out, in words and numbers of the engine's own.
    pub layout: String,
    /// The tenant's salt. Other salts, and none, share nothing.
    pub salt: Option<String>,
}

impl Identity {
    /// The manifest and the shape of the blocks. The manifest's element type is the name of the form, as that of opaque blocks
    /// has to be; what `dtype` says is part
    /// of the layout's digest: that of `dtype`, a line feed and `layout`. Errors: [`PluginError::Usage`].
    pub fn manifest(&self) -> Result<(Manifest, BlockShape), PluginError> {
        let limits = [
            ("block_tokens", self.block_tokens, 16_384),
            ("layers", self.layers, 1_024),
            ("kv_heads", self.kv_heads, 4_096),
            ("head_dim", self.head_dim, 16_384),
        ];
        if let Some((name, value, most)) = limits.into_iter().find(|(_, value, most)| !(1..=*most).contains(value)) {
            return Err(PluginError::usage(format!("{name} is {value}, not from 1 to {most}")));
        }
        let ranks = [("tensor_parallel", self.ranks.tensor_parallel), ("pipeline", self.ranks.pipeline)];
        if let Some((name, (rank, size))) = ranks.into_iter().find(|(_, (rank, size))| rank >= size) {
            return Err(PluginError::usage(format!("{name} is rank {rank} of {size}")));
        }
        let texts = [
            ("architecture", &self.architecture),
            ("dtype", &self.dtype),
            ("rope_scaling", &self.rope.scaling),
            ("adapter", &self.adapter),
            ("numerics", &self.numerics),
        ];
        if let Some((name, _)) =
            texts.into_iter().find(|(_, text)| text.len() > 1_024 || text.contains(char::is_control))
        {
            return Err(PluginError::usage(format!("{name} is longer than 1,024 bytes, or has control characters")));
        }
        let layout = Opaque::digest(&format!("{}\n{}", self.dtype, self.layout));
        let opaque = Opaque::new(self.layer_bytes, layout).ok_or_else(|| {
            PluginError::usage(format!("layer_bytes is {}, not from 1 to 2^31 - 1", self.layer_bytes))
        })?;
        let form = Form::from(opaque);
        let &Identity { layers, kv_heads, head_dim, block_tokens, .. } = self;
        let shape = BlockShape { layers, kv_heads, head_dim, block_tokens, form };
        if shape.payload_bytes() >= 1 << 30 || shape.slot_bytes() > 1 << 30 {
            return Err(PluginError::usage(format!("a block of {} bytes is longer than 1 GiB", shape.payload_bytes())));
        }
        let group = LayerGroup { kind: GroupKind::Full, layers: (0..layers).collect(), kv_heads, head_dim };
        let manifest = Manifest {
            weights: WeightsId(self.weights),
            architecture: self.architecture.clone(),
            dtype: form.name(),
            block_tokens,
            groups: vec![group],
            head_slice: self.ranks,
            rope: RopeIdentity {
                dimensions: self.rope.dimensions,
                base_bits: self.rope.base.to_bits(),
                scaling: self.rope.scaling.clone(),
            },
            adapter: self.adapter.clone(),
            numerics: self.numerics.clone(),
        };
        Ok((manifest, shape))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashSet;

    use cache_core::hash::TenantId;

    use super::*;

    pub(crate) fn sample() -> Identity {
        Identity {
            weights: [7; 32],
            architecture: "llama".into(),
            dtype: "bf16".into(),
            block_tokens: 16,
            layers: 3,
            kv_heads: 2,
            head_dim: 8,
            ranks: HeadSlice::WHOLE,
            rope: RopeStated { dimensions: 8, base: 10_000.0, scaling: String::new() },
            adapter: String::new(),
            numerics: "test".into(),
            layer_bytes: 1024,
            layout: "[2, kv_heads, tokens, head_dim]".into(),
            salt: None,
        }
    }

    #[test]
    fn every_field_separates() {
        type Change = fn(&mut Identity);
        let changes: [Change; 17] = [
            |i| i.weights[31] = 8,
            |i| i.architecture = "llamb".into(),
            |i| i.dtype = "f16".into(),
            |i| i.block_tokens = 32,
            |i| i.layers = 4,
            |i| i.kv_heads = 4,
            |i| i.head_dim = 16,
            |i| i.ranks.tensor_parallel = (0, 2),
            |i| i.ranks.tensor_parallel = (1, 2),
            |i| i.ranks.pipeline = (0, 2),
            |i| i.rope.base = 1.0,
            |i| i.rope.scaling = "yarn".into(),
            |i| i.adapter = "lora".into(),
            |i| i.numerics = "other".into(),
            |i| i.layer_bytes = 1025,
            |i| i.layout = "other".into(),
            |i| i.salt = Some("tenant".into()),
        ];
        let namespace = |identity: &Identity| {
            let (manifest, _) = identity.manifest().unwrap();
            manifest.namespace(TenantId::of_salt(identity.salt.as_deref()))
        };
        let mut seen = HashSet::from([namespace(&sample())]);
        for (number, change) in changes.into_iter().enumerate() {
            let mut identity = sample();
            change(&mut identity);
            assert!(seen.insert(namespace(&identity)), "change {number}");
        }
    }

    #[test]
    fn what_the_daemon_would_refuse_is_refused_here() {
        type Change = fn(&mut Identity);
        let changes: [Change; 8] = [
            |i| i.layers = 0,
            |i| i.head_dim = 16_385,
            |i| i.ranks.pipeline = (1, 1),
            |i| i.ranks.tensor_parallel = (0, 0),
            |i| i.layer_bytes = 0,
            |i| i.layer_bytes = 1 << 29,
            |i| i.dtype = "bf16\n".into(),
            |i| i.numerics = "x".repeat(1_025),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut identity = sample();
            change(&mut identity);
            assert!(matches!(identity.manifest(), Err(PluginError::Usage { .. })), "change {number}");
        }
    }
}
