//! How long operations took, counted in fixed buckets without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::stats::snapshot::Latency;

/// Upper ends of the buckets in microseconds, inclusive: close together where a hit in memory lies, a decade apart in three steps beyond.
/// What takes longer than the last is counted too, in a bucket without an end.
pub const BOUNDS_US: [u64; 27] = [
    5, 10, 20, 30, 40, 50, 60, 80, 100, 150, 200, 300, 500, 750, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000,
    200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
];

/// The same for how long blocks stay: 10 ms to a week.
pub const AGE_BOUNDS_US: [u64; 14] = [
    10_000,
    100_000,
    1_000_000,
    5_000_000,
    15_000_000,
    60_000_000,
    300_000_000,
    900_000_000,
    3_600_000_000,
    10_800_000_000,
    43_200_000_000,
    86_400_000_000,
    259_200_000_000,
    604_800_000_000,
];

/// Durations by bucket. Any number of threads record; a reader sees each of them once, sooner or later.
#[derive(Debug)]
pub struct Histogram {
    bounds_us: &'static [u64],
    counts: Box<[AtomicU64]>,
    sum_nanos: AtomicU64,
}

/// Of operations: up to [`BOUNDS_US`].
impl Default for Histogram {
    fn default() -> Histogram {
        Histogram::new(&BOUNDS_US)
    }
}

impl Histogram {
    /// With these upper ends, and a bucket without one. The ends rise.
    pub fn new(bounds_us: &'static [u64]) -> Histogram {
        let counts = (0..=bounds_us.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds_us, counts, sum_nanos: AtomicU64::new(0) }
    }

    /// Counts one duration.
    pub fn record(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.bounds_us.partition_point(|bound| bound * 1000 < nanos);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn read(&self) -> Latency {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let sum_us = self.sum_nanos.load(Ordering::Relaxed) as f64 / 1e3;
        let [p50_us, p90_us, p99_us] = [0.5, 0.9, 0.99].map(|share| quantile(self.bounds_us, &counts, share));
        Latency { count: counts.iter().sum(), sum_us, counts, p50_us, p90_us, p99_us }
    }
}

/// The duration in microseconds that `share` of them did not exceed, taking those of a bucket as spread evenly over it; the last
/// end for the bucket without one. `None` when nothing was counted.
fn quantile(bounds_us: &[u64], counts: &[u64], share: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    let wanted = share * total as f64;
    let mut before = 0.0;
    for (bucket, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let count = *count as f64;
        if before + count >= wanted {
            let low = bucket.checked_sub(1).map_or(0, |below| bounds_us[below]) as f64;
            let high = bounds_us.get(bucket).or(bounds_us.last()).copied().unwrap_or(0) as f64;
            return Some(low + (high - low).max(0.0) * (wanted - before) / count);
        }
        before += count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_on_a_bound_is_inside_and_one_past_the_last_is_counted() {
        let histogram = Histogram::default();
        for nanos in [0, 5_000, 5_001, 10_000_000_000, 10_000_000_001, u64::MAX] {
            histogram.record(Duration::from_nanos(nanos));
        }
        let counts = histogram.read().counts;
        assert_eq!((counts[0], counts[1], counts[26], counts[27]), (2, 1, 1, 2));
    }

    #[test]
    fn percentiles_lie_inside_their_bucket() {
        let histogram = Histogram::default();
        assert_eq!(histogram.read().p50_us, None);
        for _ in 0..90 {
            histogram.record(Duration::from_micros(55));
        }
        for _ in 0..10 {
            histogram.record(Duration::from_micros(1500));
        }
        let read = histogram.read();
        let within = |value: Option<f64>, low: f64, high: f64| value.is_some_and(|value| low <= value && value <= high);
        assert!(within(read.p50_us, 50.0, 60.0) && within(read.p90_us, 50.0, 60.0), "{read:?}");
        assert!(within(read.p99_us, 1000.0, 2000.0), "{read:?}");
        assert_eq!(read.sum_us, 90.0 * 55.0 + 10.0 * 1500.0);
    }

    #[test]
    fn threads_lose_no_count() {
        let histogram = Histogram::default();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let histogram = &histogram;
                scope.spawn(move || (0..10_000).for_each(|n| histogram.record(Duration::from_micros(thread * n))));
            }
        });
        assert_eq!(histogram.read().count, 40_000);
    }
}
