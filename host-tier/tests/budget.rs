//! Memory of the arena, counted by the kernel and by the allocator, beside what the tier says it holds.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use cache_core::contract::{Random, SHAPE, block};
use cache_core::form::Form;
use cache_core::payload::BlockShape;
use cache_core::store::{Lend, Lookup, Resident, Store};
use cache_core::units::Now;
use host_tier::{HostConfig, HostError, HostTier};

struct Counting;

thread_local! {
    /// Bytes that this thread has allocated less those that it has freed: the test harness allocates on threads of its own.
    static HEAP_BYTES: Cell<isize> = const { Cell::new(0) };
}

fn heap_bytes() -> isize {
    HEAP_BYTES.get()
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HEAP_BYTES.set(heap_bytes() + layout.size() as isize);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        HEAP_BYTES.set(heap_bytes() - layout.size() as isize);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(address, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes of the extents' pages that the kernel has committed.
fn committed_bytes(tier: &HostTier) -> u64 {
    let committed = |extent: &std::sync::Arc<host_tier::Extent>| {
        let stat = rustix::fs::fstat(extent.duplicate().unwrap()).unwrap();
        stat.st_blocks as u64 * 512
    };
    tier.extents().iter().map(committed).sum()
}

#[test]
fn what_is_held_is_what_is_counted() {
    let budget_bytes = 600 << 10;
    drop(HostTier::open(HostConfig::new(budget_bytes, SHAPE)).unwrap());
    let before = heap_bytes();
    let tier = HostTier::open(HostConfig { rest_millis: 1, ..HostConfig::new(budget_bytes, SHAPE) }).unwrap();
    let heap = heap_bytes() - before;
    let pages: u64 = (0..tier.layout().extents()).map(|extent| tier.layout().generation_bytes(extent)).sum();
    assert!(
        heap as u64 + pages <= tier.layout().metadata_bytes(),
        "{heap} + {pages} bytes, counted {:?}",
        tier.capacity()
    );
    assert!(tier.layout().metadata_bytes() - (heap as u64 + pages) < 16 << 10, "and not far more than there is");
    assert_eq!(committed_bytes(&tier), pages, "no slot is committed before it is used");

    let mut random = Random::new(11);
    let (mut leases, mut peak_bytes) = (Vec::new(), 0);
    for step in 0..4_000u64 {
        let number = random.below(200) as u32;
        let (sealed, image) = block(number);
        match random.below(4) {
            0 => drop(tier.reserve(sealed.key)),
            1 => {
                if let Ok(mut slot) = tier.reserve(sealed.key) {
                    tier.write(&mut slot, 0, image.as_slice()).unwrap();
                    slot.commit(&sealed).unwrap();
                }
            }
            2 => tier.revoke(&sealed.key),
            _ => match tier.lookup(&sealed.key) {
                Lookup::Hit(lease) if leases.len() < 20 => leases.push(lease),
                _ => leases.truncate(random.below(20) as usize),
            },
        }
        tier.advance(Now(step * 1_000_000));
        let capacity = tier.capacity();
        let slots = committed_bytes(&tier) - pages;
        assert!(tier.layout().metadata_bytes() + slots <= capacity.held_bytes, "{slots} bytes of slots: {capacity:?}");
        assert!(capacity.held_bytes <= budget_bytes, "{capacity:?}");
        peak_bytes = peak_bytes.max(capacity.held_bytes);
    }
    leases.clear();
    leases.shrink_to_fit();
    let grown = heap_bytes() - before;
    assert_eq!(grown, heap, "the tables were allocated when the tier was opened");
    assert!(budget_bytes - peak_bytes < SHAPE.slot_bytes(), "a full tier leaves less than a slot of its budget");
    drop(tier);
    report();
}

#[test]
fn slots_are_touched_ahead_in_the_order_in_which_they_are_used() {
    let tier = HostTier::open(HostConfig::new(600 << 10, SHAPE)).unwrap();
    let slot_bytes = tier.layout().slot_bytes();
    let before = committed_bytes(&tier);
    tier.limit_touched(3);
    let part = 4096;
    assert_eq!(tier.touch_ahead(part).unwrap(), part);
    assert_eq!((committed_bytes(&tier) - before, tier.touched_free()), (part, 0), "a part of the first slot");
    let mut touched = part;
    while let bytes @ 1.. = tier.touch_ahead(1 << 20).unwrap() {
        touched += bytes;
    }
    assert_eq!((touched, committed_bytes(&tier) - before), (3 * slot_bytes, 3 * slot_bytes), "as far as is allowed");
    assert_eq!(tier.capacity().held_bytes, tier.layout().metadata_bytes() + 3 * slot_bytes);
    for number in 0..3 {
        assert_eq!(tier.touched_free(), 3 - u64::from(number));
        let (sealed, image) = block(number);
        let mut slot = tier.reserve(sealed.key).unwrap();
        tier.write(&mut slot, 0, image.as_slice()).unwrap();
        slot.commit(&sealed).unwrap();
        assert_eq!(committed_bytes(&tier) - before, 3 * slot_bytes, "block {number} lies in memory that is there");
    }
    assert!(tier.reserve(block(3).0.key).is_err(), "what is allowed is used");
    tier.limit_touched(u64::MAX);
    drop(tier.reserve(block(3).0.key).unwrap());
    assert_eq!(tier.touch_ahead(1 << 20).unwrap(), slot_bytes, "behind the one that was used meanwhile");
    assert_eq!(tier.capacity().held_bytes, tier.layout().metadata_bytes() + 5 * slot_bytes);
}

#[test]
fn a_slot_that_is_touched_while_it_is_written_keeps_its_bytes() {
    let tier = HostTier::open(HostConfig::new(600 << 10, SHAPE)).unwrap();
    assert_eq!(tier.touch_ahead(4096).unwrap(), 4096);
    let (sealed, image) = block(1);
    let mut slot = tier.reserve(sealed.key).unwrap();
    tier.write(&mut slot, 0, image.as_slice()).unwrap();
    assert_eq!(tier.touch_ahead(1 << 20).unwrap(), tier.layout().slot_bytes() - 4096, "the rest of that very slot");
    slot.commit(&sealed).unwrap();
    assert_eq!(tier.verify(&sealed.key), Some(true));
}

/// Bytes of a budget that hold no block of the default model.
fn report() {
    let shape = BlockShape { layers: 30, kv_heads: 3, head_dim: 64, block_tokens: 64, form: Form::Raw16 };
    for budget_bytes in [16u64 << 20, 64 << 20, 1 << 30] {
        let tier = HostTier::open(HostConfig::new(budget_bytes, shape)).unwrap();
        let layout = tier.layout();
        println!(
            "{} MiB: {} extents, {} slots of {} bytes, {} bytes metadata, {} bytes unused",
            budget_bytes >> 20,
            layout.extents(),
            layout.slots(),
            layout.slot_bytes(),
            layout.metadata_bytes(),
            budget_bytes - layout.held_bytes()
        );
        assert!(layout.held_bytes() <= budget_bytes);
    }
    match HostTier::open(HostConfig::new(1 << 20, shape)) {
        Err(error @ HostError::Budget { .. }) => println!("failed to {error}"),
        other => panic!("1 MiB holds no block, but {other:?}"),
    }
}
