//! The modelled host link of a strict device: full duplex, one rate for each direction.
//!
//! Each direction has a virtual clock: a copy occupies the link for bytes / rate seconds from the later of its arrival
//! and the end of the copy before it. A sleep that wakes late delays that copy's completion, not the clock, so a busy
//! link keeps its rate whatever the timer's grain.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Waits below this yield instead of sleeping: a sleep's own grain is about as long.
const SHORTEST_SLEEP: Duration = Duration::from_micros(40);
/// Longest sleep before looking whether the device is closing.
const LONGEST_SLEEP: Duration = Duration::from_millis(20);

/// Which way bytes cross the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Host arena to device.
    In,
    /// Device to host arena.
    Out,
}

/// Both directions of the link.
pub(crate) struct Clock {
    /// `None`: nothing limits it.
    bytes_per_second: Option<f64>,
    /// When each direction has carried all it was given.
    free_at: [Mutex<Instant>; 2],
    closing: AtomicBool,
}

impl Clock {
    pub(crate) fn new(bytes_per_second: Option<f64>) -> Clock {
        let now = Instant::now();
        Clock { bytes_per_second, free_at: [Mutex::new(now), Mutex::new(now)], closing: AtomicBool::new(false) }
    }

    /// From now on nothing sleeps: the device is being dropped and its queues drain.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Occupies one direction for a copy of `bytes` that was ready at `ready`, and returns when it has crossed.
    pub(crate) fn carry(&self, direction: Direction, bytes: u64, ready: Instant) {
        let Some(rate) = self.bytes_per_second else { return };
        let end = {
            let mut free_at = self.free_at[direction as usize].lock().unwrap_or_else(PoisonError::into_inner);
            let end = ready.max(*free_at) + Duration::from_secs_f64(bytes as f64 / rate);
            *free_at = end;
            end
        };
        while !self.closing.load(Ordering::Relaxed) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            if left < SHORTEST_SLEEP {
                std::thread::yield_now();
            } else {
                std::thread::sleep(left.min(LONGEST_SLEEP));
            }
        }
    }
}
