//! A model's shape, read from the GGUF's metadata and checked before anything is allocated.

use cache_core::hash::WeightsId;
use cache_core::manifest::{GroupKind, HeadSlice, LayerGroup, Manifest, RopeIdentity};

use crate::error::EngineError;
use crate::gguf::GgufFile;
use crate::model::rope::Rope;

/// Largest model dimension that is believed: anything above is a damaged file.
const MAX_DIMENSION: u32 = 1 << 20;

/// Shape of a Llama-family model.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Architecture as the file states it.
    pub architecture: String,
    /// Transformer layers.
    pub layers: u32,
    /// Model width.
    pub width: u32,
    /// Width of the feed-forward layers.
    pub feed_forward: u32,
    /// Query heads.
    pub heads: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Channels of a head.
    pub head_dim: u32,
    /// Positions the model was trained for.
    pub context_tokens: u32,
    /// Tokens in the vocabulary.
    pub vocabulary: u32,
    /// Epsilon of the RMS norms.
    pub norm_epsilon: f32,
    /// Rotary embedding.
    pub rope: Rope,
}

impl ModelConfig {
    /// Reads and checks the metadata of a `llama` file.
    ///
    /// Errors: [`EngineError::Gguf`] for a missing or ill-typed key, [`EngineError::Model`] for another architecture or a shape
    /// that the kernels do not cover.
    pub fn from_gguf(file: &GgufFile) -> Result<ModelConfig, EngineError> {
        let architecture = file.str("general.architecture")?.to_owned();
        if architecture != "llama" {
            return Err(EngineError::Model(format!(
                "architecture `{architecture}` is not supported; use a `llama` model"
            )));
        }
        let dimension = |key: &str| dimension(file, &format!("llama.{key}"));
        let heads = dimension("attention.head_count")?;
        let width = dimension("embedding_length")?;
        let kv_heads = match file.optional_u32("llama.attention.head_count_kv")? {
            Some(_) => dimension("attention.head_count_kv")?,
            None => heads,
        };
        let head_dim = match file.optional_u32("llama.attention.key_length")? {
            Some(_) => dimension("attention.key_length")?,
            None => width / heads.max(1),
        };
        let config = ModelConfig {
            layers: dimension("block_count")?,
            width,
            feed_forward: dimension("feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            context_tokens: dimension("context_length")?,
            vocabulary: vocabulary(file)?,
            norm_epsilon: file.f32("llama.attention.layer_norm_rms_epsilon")?,
            rope: Rope::from_gguf(file, head_dim)?,
            architecture,
        };
        config.check(file)?;
        Ok(config)
    }

    fn check(&self, file: &GgufFile) -> Result<(), EngineError> {
        let wrong = |problem: String| Err(EngineError::Model(problem));
        if !self.heads.is_multiple_of(self.kv_heads) {
            return wrong(format!("{} query heads are not a multiple of {} KV heads", self.heads, self.kv_heads));
        }
        if !self.head_dim.is_multiple_of(16) || self.head_dim > 256 {
            return wrong(format!("head_dim {} is not a multiple of 16 up to 256", self.head_dim));
        }
        if !self.norm_epsilon.is_finite() || self.norm_epsilon < 0.0 {
            return wrong(format!("RMS norm epsilon is {}", self.norm_epsilon));
        }
        if let Some(value_length) = file.optional_u32("llama.attention.value_length")?
            && value_length != self.head_dim
        {
            return wrong(format!(
                "values have {value_length} channels and keys {}; they must be equal",
                self.head_dim
            ));
        }
        if file.optional_u32("llama.expert_count")?.unwrap_or(0) > 0 {
            return wrong("mixture-of-experts models are not supported; use a dense `llama` model".to_owned());
        }
        Ok(())
    }

    /// Group sizes and everything else that stored blocks depend on.
    pub fn manifest(&self, weights: WeightsId, dtype: &str, block_tokens: u32, numerics: String) -> Manifest {
        Manifest {
            weights,
            architecture: self.architecture.clone(),
            dtype: dtype.to_owned(),
            block_tokens,
            groups: vec![LayerGroup {
                kind: GroupKind::Full,
                layers: (0..self.layers).collect(),
                kv_heads: self.kv_heads,
                head_dim: self.head_dim,
            }],
            head_slice: HeadSlice::WHOLE,
            rope: RopeIdentity {
                dimensions: self.rope.dimensions(),
                base_bits: self.rope.base().to_bits(),
                scaling: self.rope.scaling_identity(),
            },
            adapter: String::new(),
            numerics,
        }
    }

    /// Query channels of all heads.
    pub fn query_width(&self) -> usize {
        (self.heads * self.head_dim) as usize
    }

    /// Key (or value) channels of all KV heads.
    pub fn kv_width(&self) -> usize {
        (self.kv_heads * self.head_dim) as usize
    }
}

fn dimension(file: &GgufFile, key: &str) -> Result<u32, EngineError> {
    let value = file.u32(key)?;
    if value == 0 || value > MAX_DIMENSION {
        return Err(EngineError::Model(format!("`{key}` is {value}, expected 1 to {MAX_DIMENSION}")));
    }
    Ok(value)
}

fn vocabulary(file: &GgufFile) -> Result<u32, EngineError> {
    let rows = file.tensor("token_embd.weight")?.rows();
    u32::try_from(rows).map_err(|_| EngineError::Model(format!("`token_embd.weight` has {rows} rows")))
}
