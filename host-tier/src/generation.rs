//! The generation word of a slot, shared with readers that only have a read-only mapping: a sequence lock whose counter is never shared
//! by two tenants of the slot.
//!
//! ```text
//! writer (the tier, one at a time per slot)      reader (any process)
//! withdraw:  word = odd            relaxed       observe:  word -> g, even            acquire
//!            fence                 release       read the slot's bytes
//! begin:     fence                 release       still:    fence                      acquire
//! write the slot's bytes                                   word == g ?                relaxed
//! publish:   word = even           release
//! ```
//! If a reader saw any byte of a later tenant, then the writer's release fence before that byte synchronises with the reader's acquire
//! fence after it, so the reader's second look sees the odd word or a later one, never `g`. `begin` stands apart from `withdraw` because
//! the thread that reserves a slot need not be the one that took it away. If a reader saw `g` at all, the bytes written before
//! `publish` are visible to it.
//!
//! A device that writes a slot on a thread of its own gets its work from the reserving thread through a queue, after `begin`; that the
//! odd word is visible wherever its bytes are then rests on stores becoming visible to all other processors at once (x86-64, AArch64).

use cache_core::units::Generation;

use super::sync::{AtomicU64, Ordering, fence};

/// Takes a slot away from its readers: stores an odd generation. The bytes may be written only after [`begin`].
pub(crate) fn withdraw(word: &AtomicU64, generation: Generation) {
    debug_assert!(generation.is_unstable());
    word.store(generation.0, Ordering::Relaxed);
    fence(Ordering::Release);
}

/// Called by a thread that is about to write bytes of a slot reserved for it.
pub(crate) fn begin() {
    fence(Ordering::Release);
}

/// Shows the bytes written so far: stores an even generation.
pub(crate) fn publish(word: &AtomicU64, generation: Generation) {
    debug_assert!(!generation.is_unstable());
    word.store(generation.0, Ordering::Release);
}

/// The generation before reading; an odd one means that there is nothing to read.
pub(crate) fn observe(word: &AtomicU64) -> Generation {
    Generation(word.load(Ordering::Acquire))
}

/// True when everything read since `generation` was observed belongs to it.
pub(crate) fn still(word: &AtomicU64, generation: Generation) -> bool {
    fence(Ordering::Acquire);
    word.load(Ordering::Relaxed) == generation.0
}
