//! How fast threads read memory: the floor under what reads weights and blocks.

use std::hint::black_box;
use std::time::Instant;

use super::workers::{Workers, split};

/// Far beyond every cache.
const BYTES: usize = 512 << 20;
/// Of which the median counts.
const ROUNDS: usize = 7;

/// Bytes per second that `threads` threads read from memory together, each a part of its own: median of a few rounds.
/// Panics when `threads` is 0.
pub fn read_rate(threads: usize) -> f64 {
    let workers = Workers::new(threads);
    let words = vec![1u64; BYTES / 8];
    let mut seconds = [0.0; ROUNDS];
    // The first round warms up and does not count.
    for round in 0..=ROUNDS {
        let start = Instant::now();
        workers.run(&|worker| {
            black_box(sum(&words[split(words.len(), 64, worker, threads)]));
        });
        seconds[round.saturating_sub(1)] = start.elapsed().as_secs_f64();
    }
    seconds.sort_by(f64::total_cmp);
    BYTES as f64 / seconds[ROUNDS / 2]
}

/// Sum of all words, in as many lanes as keep the loads busy.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 32];
    let (chunks, rest) = words.as_chunks::<32>();
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.into_iter().chain(rest.iter().copied()).fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_by_one_thread() {
        let words: Vec<u64> = (0..1003).collect();
        for threads in [1, 2, 3] {
            let parts = (0..threads).map(|worker| sum(&words[split(words.len(), 64, worker, threads)]));
            assert_eq!(parts.sum::<u64>(), 1003 * 1002 / 2);
        }
    }

    #[test]
    fn memory_is_read_at_some_rate() {
        let rate = read_rate(2);
        assert!(rate.is_finite() && rate > 0.0);
    }
}
