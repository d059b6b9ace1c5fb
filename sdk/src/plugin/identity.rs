//! What makes an engine's blocks compatible, as the engine states it.

use cache_core::form::{Form, Opaque};
use cache_core::hash::WeightsId;
use cache_core::manifest::{GroupKind, HeadSlice, LayerGroup, Manifest, RopeIdentity};
use cache_core::payload::BlockShape;

use super::{Lossy, PluginError};
use crate::wire::MANIFEST_TEXT_MAX;

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
    /// Stored in a lossy form, by a layout that the store understands; `None`: as they are.
    pub lossy: Option<Lossy>,
    /// The tenant's salt. Other salts, and none, share nothing.
    pub salt: Option<String>,
}

impl Identity {
    /// The manifest and the shape of the blocks. The manifest's element type is the name of the form, as that of opaque blocks has to be; what `dtype`
    /// says is part of the layout's digest: that of `dtype`, a line feed and `layout`. Blocks in a lossy form are bf16 to the manifest, and this
    /// name, with the form and where elements are, is part of its numerics. Errors: [`PluginError::Usage`].
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
            texts.into_iter().find(|(_, text)| text.len() > MANIFEST_TEXT_MAX || text.contains(char::is_control))
        {
            return Err(PluginError::usage(format!("{name} is longer than 1,024 bytes, or has control characters")));
        }
        let layout = Opaque::digest(&format!("{}\n{}", self.dtype, self.layout));
        let opaque = Opaque::new(self.layer_bytes, layout).ok_or_else(|| {
            PluginError::usage(format!("layer_bytes is {}, not from 1 to 2^31 - 1", self.layer_bytes))
        })?;
        let &Identity { layers, kv_heads, head_dim, block_tokens, .. } = self;
        let shape = BlockShape { layers, kv_heads, head_dim, block_tokens, form: Form::from(opaque) };
        if shape.payload_bytes() >= 1 << 30 || shape.slot_bytes() > 1 << 30 {
            return Err(PluginError::usage(format!("a block of {} bytes is longer than 1 GiB", shape.payload_bytes())));
        }
        let (shape, dtype, numerics) = match &self.lossy {
            None => (shape, shape.form.name(), self.numerics.clone()),
            Some(_) if !BF16.contains(&self.dtype.as_str()) => {
                let reason =
                    format!("dtype is {}, but lossy forms are made from {} alone", self.dtype, BF16.join(" or "));
                return Err(PluginError::usage(reason));
            }
            Some(lossy) => {
                let shape = lossy.shape(&shape.with_form(Form::Raw16), self.layer_bytes)?;
                let numerics = format!("{};{};{opaque}", self.numerics, lossy.name(shape.form));
                if numerics.len() > MANIFEST_TEXT_MAX {
                    let reason = format!("numerics and layout take {} bytes of {MANIFEST_TEXT_MAX}", numerics.len());
                    return Err(PluginError::usage(reason));
                }
                (shape, BF16[0].to_owned(), numerics)
            }
        };
        let group = LayerGroup { kind: GroupKind::Full, layers: (0..layers).collect(), kv_heads, head_dim };
        let manifest = Manifest {
            weights: WeightsId(self.weights),
            architecture: self.architecture.clone(),
            dtype,
            block_tokens,
            groups: vec![group],
            head_slice: self.ranks,
            rope: RopeIdentity {
                dimensions: self.rope.dimensions,
                base_bits: self.rope.base.to_bits(),
                scaling: self.rope.scaling.clone(),
            },
            adapter: self.adapter.clone(),
            numerics,
        };
        Ok((manifest, shape))
    }
}

/// What engines call the only element type that lossy forms are made from.
const BF16: [&str; 2] = ["bf16", "bfloat16"];

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashSet;

    use cache_core::hash::TenantId;

    use super::*;
    use crate::plugin::Strides;

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
            lossy: None,
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

    /// As [`sample`], stored in 4 bits.
    pub(crate) fn lossy() -> Identity {
        let keys = Strides { first: 0, heads: 128, tokens: 1, channels: 16 };
        let values = Strides { first: 256, heads: 128, tokens: 8, channels: 1 };
        let lossy = Lossy { form: Form::Kc4vt4, tokens: 16, keys, values };
        Identity { lossy: Some(lossy), ..sample() }
    }

    #[test]
    fn lossy_forms_and_their_layouts_are_apart_from_each_other_and_from_what_is_exact() {
        let (manifest, shape) = lossy().manifest().unwrap();
        assert_eq!((shape.form, manifest.dtype.as_str()), (Form::Kc4vt4, "bf16"));
        let stated = lossy().lossy.unwrap();
        let with = |stated: Lossy| Identity { lossy: Some(stated), ..lossy() };
        // Keys and values exchanged, and the same tokens in smaller blocks.
        let exchanged = Lossy {
            keys: Strides { first: 256, ..stated.keys },
            values: Strides { first: 0, ..stated.values },
            ..stated
        };
        let halves = |first, tokens, channels| Strides { first, heads: 128, tokens, channels };
        let smaller = Lossy { tokens: 8, keys: halves(0, 1, 8), values: halves(64, 8, 1), ..stated };
        let others = [
            sample(),
            Identity { layout: "other".into(), ..lossy() },
            Identity { numerics: "other".into(), ..lossy() },
            with(Lossy { form: Form::I8h, ..stated }),
            with(Lossy { form: "kc4vt4:v8=1".parse().unwrap(), ..stated }),
            with(exchanged),
            with(smaller),
        ];
        let namespace = |identity: &Identity| identity.manifest().unwrap().0.namespace(TenantId::of_salt(None));
        let mut seen = HashSet::from([namespace(&lossy())]);
        for (number, identity) in others.iter().enumerate() {
            assert!(seen.insert(namespace(identity)), "identity {number}");
        }
    }

    #[test]
    fn what_the_daemon_would_refuse_is_refused_here() {
        type Change = fn(&mut Identity);
        let changes: [Change; 10] = [
            |i| i.layers = 0,
            |i| i.head_dim = 16_385,
            |i| i.ranks.pipeline = (1, 1),
            |i| i.ranks.tensor_parallel = (0, 0),
            |i| i.layer_bytes = 0,
            |i| i.layer_bytes = 1 << 29,
            |i| i.dtype = "bf16\n".into(),
            |i| i.numerics = "x".repeat(1_025),
            |i| *i = Identity { dtype: "f16".into(), ..lossy() },
            |i| *i = Identity { numerics: "x".repeat(1_000), ..lossy() },
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut identity = sample();
            change(&mut identity);
            assert!(matches!(identity.manifest(), Err(PluginError::Usage { .. })), "change {number}");
        }
    }
}
