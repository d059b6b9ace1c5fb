//! Choosing the next token.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The most likely token; the lowest id among equals.
    Greedy,
    /// From the softmax at a temperature.
    Seeded {
        /// Divides the logits; positive.
        temperature: f32,
        /// Same seed, same logits, same tokens.
        seed: u64,
    },
}

/// A sampler with its random state.
pub(crate) struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling) -> Sampler {
        let seed = match sampling {
            Sampling::Greedy => 0,
            Sampling::Seeded { seed, .. } => seed,
        };
        Sampler { sampling, random: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// The next token of one row of logits.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> u32 {
        match self.sampling {
            Sampling::Greedy => argmax(logits),
            Sampling::Seeded { temperature, .. } => {
                let uniform = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
                draw(logits, temperature, uniform)
            }
        }
    }
}

/// Index of the largest logit, the lowest among equals; NaN never wins over a number.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, value) in logits.iter().enumerate().skip(1) {
        if *value > logits[best] || logits[best].is_nan() {
            best = index;
        }
    }
    best as u32
}

/// log(sum exp(logits)) in f64, summed in index order.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(logits[argmax(logits) as usize]);
    largest + libm::log(logits.iter().map(|logit| libm::exp(f64::from(*logit) - largest)).sum::<f64>())
}

/// Inverts the cumulative softmax at `uniform` in [0, 1).
fn draw(logits: &[f32], temperature: f32, uniform: f64) -> u32 {
    let largest = f64::from(logits[argmax(logits) as usize]);
    let weight = |logit: f32| libm::exp((f64::from(logit) - largest) / f64::from(temperature));
    let total: f64 = logits.iter().map(|logit| weight(*logit)).sum();
    let mut left = uniform * total;
    for (index, logit) in logits.iter().enumerate() {
        left -= weight(*logit);
        if left < 0.0 {
            return index as u32;
        }
    }
    argmax(logits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_of_equals_wins() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, f32::NAN]), 1);
        assert_eq!(argmax(&[f32::NAN, -1.0]), 1);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0];
        let mut sampler = Sampler::new(Sampling::Seeded { temperature: 1.0, seed: 5 });
        let mut counts = [0u32; 3];
        for _ in 0..30_000 {
            counts[sampler.choose(&logits) as usize] += 1;
        }
        for (index, count) in counts.iter().enumerate() {
            let expected = 30_000.0 * (f64::from(logits[index]) - log_sum_exp(&logits)).exp();
            assert!((f64::from(*count) - expected).abs() < 5.0 * expected.sqrt(), "{counts:?}");
        }
    }

    #[test]
    fn a_seed_repeats_itself() {
        let logits: Vec<f32> = (0..100).map(|index| (index % 7) as f32).collect();
        let run = |seed| {
            let mut sampler = Sampler::new(Sampling::Seeded { temperature: 0.8, seed });
            (0..20).map(|_| sampler.choose(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }
}
