//! Every parser that reads what others wrote, against anything: a value or an error, never a panic. The wire protocol's own are fuzzed in `sdk`
//! (`wire_fuzz`), those of model files in `engine` (`gguf_damage`).
//!
//! For a moment each; `cargo xtask soak fuzz` runs all of them for ten minutes each, or `KVTIER_FUZZ_SECONDS`.

mod blocks;
mod disk;
mod endpoint;
mod kept;
mod settings;
mod stated;

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use bolero::{ValueGenerator, produce};

fn bytes(most: usize) -> impl ValueGenerator<Output = Vec<u8>> {
    produce::<Vec<u8>>().with().len(0..=most)
}

/// Where to change a sample, and into what.
type Edits = Vec<(u16, u8)>;

fn edits() -> impl ValueGenerator<Output = Edits> {
    produce::<Edits>().with().len(0..=8usize)
}

fn edit(sample: &[u8], edits: &[(u16, u8)], cut: Option<u16>) -> Vec<u8> {
    let mut bytes = sample.to_vec();
    for (position, byte) in edits {
        let position = usize::from(*position) % bytes.len();
        bytes[position] = *byte;
    }
    if let Some(cut) = cut {
        bytes.truncate(usize::from(cut) % (bytes.len() + 1));
    }
    bytes
}

/// How many inputs were taken for sound, and how many were refused.
#[derive(Default)]
struct Outcomes {
    taken: AtomicU64,
    refused: AtomicU64,
}

impl Outcomes {
    /// Counts one; gives it back.
    fn note<T, E>(&self, outcome: Result<T, E>) -> Option<T> {
        let counter = if outcome.is_ok() { &self.taken } else { &self.refused };
        counter.fetch_add(1, Relaxed);
        outcome.ok()
    }

    /// Inputs that all end alike test nothing.
    fn expect_both(self) {
        let (taken, refused) = (self.taken.into_inner(), self.refused.into_inner());
        assert!(taken.min(refused) > (taken + refused) / 1000, "{taken} taken, {refused} refused");
    }
}
