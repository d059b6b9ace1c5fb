//! Rotary position embedding on interleaved pairs (2i, 2i + 1), as GGUF `llama` files store them.
//!
//! Angles are computed in f64 with the `libm` crate and rounded once, so that they are the same on every machine.
//! Sources: RoPE, arXiv 2104.09864; linear scaling, arXiv 2306.15595; YaRN, arXiv 2309.00071, with llama.cpp's ramp limits;
//! per-pair factors (`rope_freqs.weight`) as Llama 3.1 files carry them.

use crate::error::EngineError;
use crate::gguf::GgufFile;
use crate::gguf::TensorType;

/// How positions past the trained context are scaled.
#[derive(Clone, Debug, PartialEq)]
enum Scaling {
    None,
    Linear {
        factor: f32,
    },
    Yarn {
        factor: f32,
        original_context: u32,
        extrapolation: f32,
        attention_factor: f32,
        beta_fast: f32,
        beta_slow: f32,
    },
}

/// Rotary embedding of one model.
#[derive(Clone, Debug)]
pub struct Rope {
    dimensions: u32,
    base: f32,
    scaling: Scaling,
    /// Angle per position of each pair, and the factor on sine and cosine.
    frequencies: Vec<f64>,
    magnitude: f64,
    pair_factors: Vec<f32>,
}

impl Rope {
    /// Reads the `llama.rope.*` keys and the `rope_freqs.weight` tensor.
    pub fn from_gguf(file: &GgufFile, head_dim: u32) -> Result<Rope, EngineError> {
        let dimensions = file.optional_u32("llama.rope.dimension_count")?.unwrap_or(head_dim);
        if dimensions % 2 != 0 || dimensions > head_dim || dimensions == 0 {
            return Err(EngineError::Model(format!("RoPE over {dimensions} of {head_dim} channels")));
        }
        let base = file.optional_f32("llama.rope.freq_base")?.unwrap_or(10_000.0);
        if !(base.is_finite() && base > 0.0) {
            return Err(EngineError::Model(format!("RoPE base is {base}")));
        }
        let scaling = read_scaling(file)?;
        let pair_factors = read_pair_factors(file, dimensions / 2)?;
        Ok(Rope::new(dimensions, base, scaling, pair_factors))
    }

    fn new(dimensions: u32, base: f32, scaling: Scaling, pair_factors: Vec<f32>) -> Rope {
        let pairs = dimensions / 2;
        let frequencies = (0..pairs)
            .map(|pair| {
                let plain = libm::pow(f64::from(base), -2.0 * f64::from(pair) / f64::from(dimensions));
                let plain = plain / pair_factors.get(pair as usize).map_or(1.0, |factor| f64::from(*factor));
                scaling.frequency(plain, pair, dimensions, base)
            })
            .collect();
        let magnitude = scaling.magnitude();
        Rope { dimensions, base, scaling, frequencies, magnitude, pair_factors }
    }

    /// Rotated channels.
    pub fn dimensions(&self) -> u32 {
        self.dimensions
    }

    /// Base frequency.
    pub fn base(&self) -> f32 {
        self.base
    }

    /// Scaling and pair factors by the bits of their numbers, for the manifest; empty for none.
    pub fn scaling_identity(&self) -> String {
        let bits = |value: f32| format!("{:08x}", value.to_bits());
        let mut identity = match &self.scaling {
            Scaling::None => String::new(),
            Scaling::Linear { factor } => format!("linear:{}", bits(*factor)),
            Scaling::Yarn { factor, original_context, extrapolation, attention_factor, beta_fast, beta_slow } => {
                format!(
                    "yarn:{}:{original_context}:{}:{}:{}:{}",
                    bits(*factor),
                    bits(*extrapolation),
                    bits(*attention_factor),
                    bits(*beta_fast),
                    bits(*beta_slow)
                )
            }
        };
        if !self.pair_factors.is_empty() {
            identity.push_str("+pairs");
            self.pair_factors.iter().for_each(|factor| identity.push_str(&bits(*factor)));
        }
        identity
    }

    /// (cosine, sine) of each pair at `position`, appended to `table`.
    pub fn angles(&self, position: u32, table: &mut Vec<(f32, f32)>) {
        table.extend(self.frequencies.iter().map(|frequency| {
            let angle = f64::from(position) * frequency;
            ((libm::cos(angle) * self.magnitude) as f32, (libm::sin(angle) * self.magnitude) as f32)
        }));
    }

    /// Rotates one head in place. `angles`: one (cosine, sine) per pair.
    pub fn rotate(&self, head: &mut [f32], angles: &[(f32, f32)]) {
        for (pair, (cosine, sine)) in head.chunks_exact_mut(2).zip(angles) {
            let (a, b) = (pair[0], pair[1]);
            pair[0] = a * cosine - b * sine;
            pair[1] = a * sine + b * cosine;
        }
    }
}

impl Scaling {
    fn frequency(&self, plain: f64, pair: u32, dimensions: u32, base: f32) -> f64 {
        match self {
            Scaling::None => plain,
            Scaling::Linear { factor } => plain / f64::from(*factor),
            Scaling::Yarn { factor, original_context, extrapolation, beta_fast, beta_slow, .. } => {
                let limit = |beta: f32| {
                    let turns = f64::from(*original_context) / (f64::from(beta) * std::f64::consts::TAU);
                    f64::from(dimensions) * libm::log(turns) / (2.0 * libm::log(f64::from(base)))
                };
                let low = libm::floor(limit(*beta_fast)).max(0.0);
                let high = libm::ceil(limit(*beta_slow)).min(f64::from(dimensions - 1));
                let ramp = 1.0 - ((f64::from(pair) - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                let mix = ramp * f64::from(*extrapolation);
                plain / f64::from(*factor) * (1.0 - mix) + plain * mix
            }
        }
    }

    fn magnitude(&self) -> f64 {
        match self {
            Scaling::Yarn { factor, extrapolation, attention_factor, .. } if *extrapolation != 0.0 => {
                f64::from(*attention_factor) * (1.0 + 0.1 * libm::log(f64::from(*factor)))
            }
            Scaling::Yarn { attention_factor, .. } => f64::from(*attention_factor),
            _ => 1.0,
        }
    }
}

fn read_scaling(file: &GgufFile) -> Result<Scaling, EngineError> {
    let positive = |key: &str, default: f32| -> Result<f32, EngineError> {
        let value = file.optional_f32(key)?.unwrap_or(default);
        if value.is_finite() && value > 0.0 {
            Ok(value)
        } else {
            Err(EngineError::Model(format!("`{key}` is {value}, expected a positive number")))
        }
    };
    let kind = file.optional_str("llama.rope.scaling.type")?.unwrap_or("none");
    match kind {
        "none" => match file.optional_f32("llama.rope.scale_linear")? {
            Some(factor) if factor != 1.0 => Ok(Scaling::Linear { factor: positive("llama.rope.scale_linear", 1.0)? }),
            _ => Ok(Scaling::None),
        },
        "linear" => Ok(Scaling::Linear { factor: positive("llama.rope.scaling.factor", 1.0)? }),
        "yarn" => Ok(Scaling::Yarn {
            factor: positive("llama.rope.scaling.factor", 1.0)?,
            original_context: match file.optional_u32("llama.rope.scaling.original_context_length")? {
                Some(tokens) => tokens.max(1),
                None => file.u32("llama.context_length")?,
            },
            extrapolation: file.optional_f32("llama.rope.scaling.yarn_ext_factor")?.unwrap_or(1.0),
            attention_factor: positive("llama.rope.scaling.attn_factor", 1.0)?,
            beta_fast: positive("llama.rope.scaling.yarn_beta_fast", 32.0)?,
            beta_slow: positive("llama.rope.scaling.yarn_beta_slow", 1.0)?,
        }),
        other => {
            Err(EngineError::Model(format!("RoPE scaling `{other}` is not supported; `none`, `linear` and `yarn` are")))
        }
    }
}

fn read_pair_factors(file: &GgufFile, pairs: u32) -> Result<Vec<f32>, EngineError> {
    let Some(tensor) = file.find_tensor("rope_freqs.weight") else {
        return Ok(Vec::new());
    };
    let bytes = file.tensor_bytes(tensor);
    if tensor.kind != TensorType::F32 || bytes.len() != pairs as usize * 4 {
        return Err(EngineError::Model(format!("`rope_freqs.weight` is not F32 [{pairs}]")));
    }
    let factors: Vec<f32> =
        bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("chunks of 4"))).collect();
    match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
        None => Ok(factors),
        Some(factor) => Err(EngineError::Model(format!("`rope_freqs.weight` holds {factor}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(scaling: Scaling) -> Rope {
        Rope::new(64, 100_000.0, scaling, Vec::new())
    }

    #[test]
    fn position_zero_rotates_nothing() {
        let rope = plain(Scaling::None);
        let mut angles = Vec::new();
        rope.angles(0, &mut angles);
        let mut head: Vec<f32> = (0..64).map(|index| index as f32).collect();
        let before = head.clone();
        rope.rotate(&mut head, &angles);
        assert_eq!(head, before);
    }

    #[test]
    fn scores_depend_on_distance_only() {
        let rope = plain(Scaling::None);
        let score = |query_at: u32, key_at: u32| {
            let rotated = |position, seed: f32| {
                let mut head: Vec<f32> = (0..64).map(|index| libm::sinf(seed + index as f32)).collect();
                let mut angles = Vec::new();
                rope.angles(position, &mut angles);
                rope.rotate(&mut head, &angles);
                head
            };
            rotated(query_at, 1.0)
                .iter()
                .zip(rotated(key_at, 2.0))
                .map(|(a, b)| f64::from(*a) * f64::from(b))
                .sum::<f64>()
        };
        assert!((score(7, 3) - score(1004, 1000)).abs() < 1e-4);
    }

    #[test]
    fn linear_scaling_stretches_positions() {
        let (scaled, base) = (plain(Scaling::Linear { factor: 4.0 }), plain(Scaling::None));
        let (mut a, mut b) = (Vec::new(), Vec::new());
        scaled.angles(400, &mut a);
        base.angles(100, &mut b);
        assert_eq!(a, b);
    }

    /// The fastest pair keeps its frequency, the slowest is interpolated.
    #[test]
    fn yarn_mixes_between_its_limits() {
        let yarn = plain(Scaling::Yarn {
            factor: 4.0,
            original_context: 2048,
            extrapolation: 1.0,
            attention_factor: 1.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
        });
        let base = plain(Scaling::None);
        assert_eq!(yarn.frequencies[0], base.frequencies[0]);
        assert!((yarn.frequencies[31] - base.frequencies[31] / 4.0).abs() < 1e-15);
        assert!((yarn.magnitude - (1.0 + 0.1 * 4f64.ln())).abs() < 1e-12);
    }
}
