//! The generation protocol and the slot table under a model checker: every interleaving, and every value that relaxed atomics may return.

use std::sync::Arc;

use cache_core::hash::{BlockHash, Namespace};
use cache_core::key::CopyKey;
use cache_core::slots::{Found, SlotTable};
use cache_core::units::{Generation, Now};
use loom::sync::Mutex;
use loom::thread;
use sync::{AtomicU64, Ordering};

/// The model checker's atomics in the place of the processor's.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
}

#[path = "../src/generation.rs"]
mod generation;

fn key(number: u8) -> CopyKey {
    CopyKey::exact(Namespace([0; 32]), BlockHash([number; 32]))
}

/// One slot: its table, its generation word, and two words of "image" that must always be read as a pair.
struct Slot {
    table: Mutex<SlotTable>,
    word: AtomicU64,
    image: [AtomicU64; 2],
}

impl Slot {
    /// Holds block 1, image (1, 1).
    fn new() -> Slot {
        let mut table = SlotTable::new(1, 0);
        let (slot, generation) = table.reserve(Some(key(1))).unwrap();
        let even = table.commit(slot, generation, key(1)).unwrap();
        Slot { table: Mutex::new(table), word: AtomicU64::new(even.0), image: [AtomicU64::new(1), AtomicU64::new(1)] }
    }

    /// What a client does: it has place and generation from an earlier lookup, and no lock.
    fn read(&self, leased: Generation) -> Option<(u64, u64)> {
        if generation::observe(&self.word) != leased {
            return None;
        }
        let pair = self.load();
        generation::still(&self.word, leased).then_some(pair)
    }

    fn load(&self) -> (u64, u64) {
        (self.image[0].load(Ordering::Relaxed), self.image[1].load(Ordering::Relaxed))
    }

    fn store(&self, value: u64) {
        self.image[0].store(value, Ordering::Relaxed);
        self.image[1].store(value, Ordering::Relaxed);
    }

    /// As `HostTier::revoke`, with no rest.
    fn revoke(&self) {
        let mut table = self.table.lock().unwrap();
        if let Some(slot) = table.revoke(&key(1)) {
            generation::withdraw(&self.word, table.generation(slot));
            table.advance(Now(1));
        }
    }

    /// As `HostTier::submit` of a write: reserve, write, commit. False when there is no free slot.
    fn put(&self, number: u8, fenced: bool) -> bool {
        let reserved = {
            let mut table = self.table.lock().unwrap();
            let reserved = table.reserve(Some(key(number)));
            if let Ok((_, generation)) = reserved {
                self.word.store(generation.0, Ordering::Relaxed);
            }
            reserved
        };
        let Ok((slot, reserved)) = reserved else { return false };
        if fenced {
            generation::begin();
        }
        self.store(u64::from(number));
        let mut table = self.table.lock().unwrap();
        let even = table.commit(slot, reserved, key(number)).unwrap();
        generation::publish(&self.word, even);
        true
    }

    fn lease(&self, number: u8) -> Found {
        self.table.lock().unwrap().lease(&key(number))
    }
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn reader_beside_a_new_tenant(fenced: bool) {
    check(move || {
        let slot = Arc::new(Slot::new());
        let Found::Leased(_, leased) = slot.lease(1) else { panic!("block 1 is there") };
        let reader = thread::spawn({
            let slot = Arc::clone(&slot);
            move || {
                if let Some(pair) = slot.read(leased) {
                    assert_eq!(pair, (1, 1), "accepted bytes of another tenant");
                }
            }
        });
        slot.revoke();
        assert!(slot.put(2, fenced));
        reader.join().unwrap();
    });
}

#[test]
fn a_reader_never_accepts_the_next_tenants_bytes() {
    reader_beside_a_new_tenant(true);
}

#[test]
fn whoever_takes_the_slot_away_need_not_be_who_writes_it() {
    check(|| {
        let slot = Arc::new(Slot::new());
        let Found::Leased(_, leased) = slot.lease(1) else { panic!("block 1 is there") };
        let revoker = thread::spawn({
            let slot = Arc::clone(&slot);
            move || slot.revoke()
        });
        let writer = thread::spawn({
            let slot = Arc::clone(&slot);
            move || slot.put(2, true)
        });
        if let Some(pair) = slot.read(leased) {
            assert_eq!(pair, (1, 1), "accepted bytes of another tenant");
        }
        revoker.join().unwrap();
        writer.join().unwrap();
    });
}

#[test]
fn what_is_published_is_whole() {
    check(|| {
        let slot = Arc::new(Slot::new());
        slot.revoke();
        let writer = thread::spawn({
            let slot = Arc::clone(&slot);
            move || assert!(slot.put(2, true))
        });
        let seen = generation::observe(&slot.word);
        if !seen.is_unstable()
            && let Some(pair) = slot.read(seen)
        {
            assert_eq!(pair, (2, 2), "published, but not whole");
        }
        writer.join().unwrap();
    });
}

#[test]
fn a_lease_keeps_the_slot() {
    check(|| {
        let slot = Arc::new(Slot::new());
        let remover = thread::spawn({
            let slot = Arc::clone(&slot);
            move || {
                let removed = {
                    let mut table = slot.table.lock().unwrap();
                    let removed = table.remove(&key(1));
                    if let Ok(Some(index)) = removed {
                        generation::withdraw(&slot.word, table.generation(index));
                    }
                    removed
                };
                assert_eq!(slot.put(2, true), removed.is_ok());
            }
        });
        match slot.lease(1) {
            Found::Leased(index, leased) => {
                assert_eq!(slot.read(leased), Some((1, 1)), "removed under a lease");
                slot.table.lock().unwrap().release(index, leased);
            }
            Found::Absent => {}
            Found::Pending => panic!("nobody writes block 1"),
        }
        remover.join().unwrap();
        assert_eq!(slot.table.lock().unwrap().stale_releases(), 0);
    });
}

/// The rig must catch a protocol without the writer's fence.
#[test]
#[should_panic(expected = "accepted bytes of another tenant")]
fn the_rig_finds_a_missing_fence() {
    check(|| {
        let slot = Arc::new(Slot::new());
        let leased = Generation(slot.word.load(Ordering::Relaxed));
        let reader = thread::spawn({
            let slot = Arc::clone(&slot);
            move || {
                if let Some(pair) = slot.read(leased) {
                    assert_eq!(pair, (1, 1), "accepted bytes of another tenant");
                }
            }
        });
        slot.word.store(leased.0 + 1, Ordering::Relaxed);
        slot.store(2);
        generation::publish(&slot.word, Generation(leased.0 + 2));
        reader.join().unwrap();
    });
}

/// Nor does the fence of whoever took the slot away do for whoever writes it.
#[test]
#[should_panic(expected = "accepted bytes of another tenant")]
fn the_rig_finds_a_missing_fence_after_a_hand_over() {
    check(|| {
        let slot = Arc::new(Slot::new());
        let Found::Leased(_, leased) = slot.lease(1) else { panic!("block 1 is there") };
        let revoker = thread::spawn({
            let slot = Arc::clone(&slot);
            move || slot.revoke()
        });
        let writer = thread::spawn({
            let slot = Arc::clone(&slot);
            move || slot.put(2, false)
        });
        if let Some(pair) = slot.read(leased) {
            assert_eq!(pair, (1, 1), "accepted bytes of another tenant");
        }
        revoker.join().unwrap();
        writer.join().unwrap();
    });
}
