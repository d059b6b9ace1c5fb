//! Mediums that fail, delay, drop, reorder and tear, deterministically.
//!
//! | rig | what it is |
//! |---|---|
//! | [`Image`] | the files of a store as bytes in memory, cheap to copy; bit flips, stale and misdirected sectors are edits of it |
//! | [`MemoryMedium`] | a medium over an image; operations end at once, on a thread, or when the test says so |
//! | [`FailNth`] | over any medium: the n-th operation fails, is cut short, is slow, or never ends |
//! | [`CrashMedium`] | over memory: what a power cut leaves, at any moment, by a seed |

mod courier;
mod crash;
mod fail;
mod image;
mod memory;

pub use crash::{CrashMedium, CrashStyle};
pub use fail::{Effect, FailNth, Fault, Plan, Repeat, Scope};
pub use image::{Image, SECTOR_BYTES};
pub use memory::{Completion, MemoryMedium};

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> SplitMix64 {
        SplitMix64(seed)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "an endless sequence of numbers, not an iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 for a bound of 0. The bias for bounds far below 2^64 does not matter to a test.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// True in `of_256` of 256 cases.
    pub fn chance(&mut self, of_256: u64) -> bool {
        self.below(256) < of_256
    }

    /// Puts the items in a random order (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for index in (1..items.len()).rev() {
            items.swap(index, self.below(index as u64 + 1) as usize);
        }
    }
}
