//! Readers beside forced reuse and beside a writer that breaks every rule: a discarded result, never other bytes, never a fault.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;

use cache_core::buffer::Buffer;
use cache_core::contract::{REST_MILLIS, Random, SHAPE, block, block_version};
use cache_core::header::verify_image;
use cache_core::miss::MissReason;
use cache_core::store::{Completion, Lease, Lend, Lookup, Outcome, Resident, Store, StoreError, StoreOp};
use cache_core::units::{Generation, Now, SlotIndex};
use host_tier::{HostConfig, HostTier};
use support::Client;

const LEASE_MILLIS: u64 = 5_000;

/// Raises a flag when it goes, also when a failed assertion takes it: nobody may wait for a thread that spins for ever.
struct RaiseOnDrop<'a>(&'a AtomicBool);

impl Drop for RaiseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A tier of exactly one slot.
fn one_slot() -> HostTier {
    let minimum = match HostTier::open(HostConfig::new(0, SHAPE)) {
        Err(host_tier::HostError::Budget { minimum_bytes, .. }) => minimum_bytes,
        other => panic!("no budget, but {other:?}"),
    };
    let config = HostConfig {
        rest_millis: REST_MILLIS,
        lease_ttl_millis: Some(LEASE_MILLIS),
        ..HostConfig::new(minimum, SHAPE)
    };
    let tier = HostTier::open(config).unwrap();
    assert_eq!(tier.layout().slots(), 1);
    tier
}

fn run(tier: &HostTier, op: StoreOp, number: u32, buffer: Buffer) -> Completion {
    tier.submit(op, block(number).0.key, buffer).unwrap();
    let mut done = Vec::new();
    tier.poll(&mut done);
    done.remove(0)
}

fn put(tier: &HostTier, number: u32, version: u32) {
    let completion = run(tier, StoreOp::Write, number, block_version(number, version).1);
    assert!(matches!(completion.outcome, Outcome::Done), "{completion:?}");
}

fn lease(tier: &HostTier, number: u32) -> Lease {
    match tier.lookup(&block(number).0.key) {
        Lookup::Hit(lease) => lease,
        other => panic!("block {number} should be there: {other:?}"),
    }
}

/// A reader copies half of block 1, stops at a gate, and copies the rest after `reuse` has given the slot to block 2.
fn gated_reader_beside(reuse: impl FnOnce(&HostTier, Lease)) {
    let tier = one_slot();
    put(&tier, 1, 0);
    let held = lease(&tier, 1);
    let (place, generation) = (held.place(), held.generation());
    let (_, word_offset) = tier.layout().generation_place(held.slot());
    let client = Client::map(&tier.extents()[0]);
    let (reached, at_gate) = mpsc::channel();
    let (open, gate) = mpsc::channel::<()>();

    thread::scope(|scope| {
        // Closed when an assertion below fails, so that the reader ends as well.
        let open = open;
        let reader = scope.spawn(move || {
            let mut copy = Buffer::zeroed(place.bytes as usize);
            let half = place.bytes as usize / 2;
            client.load(place, 0, &mut copy.as_mut_slice()[..half]);
            assert!(client.still(word_offset, generation));
            reached.send(()).unwrap();
            gate.recv().unwrap();
            client.load(place, half as u64, &mut copy.as_mut_slice()[half..]);
            (client.still(word_offset, generation), copy)
        });
        at_gate.recv().unwrap();
        reuse(&tier, held);
        put(&tier, 2, 0);
        open.send(()).unwrap();
        let (accepted, copy) = reader.join().unwrap();
        assert!(!accepted, "the reader took a copy of two blocks");
        let half = place.bytes as usize / 2;
        assert!(copy.as_slice()[..half] == block(1).1.as_slice()[..half], "the race is real: half of one block");
        assert!(copy.as_slice()[half..] == block(2).1.as_slice()[half..], "and half of the other");
        assert!(verify_image(&SHAPE, &block(1).0.key, copy.as_slice()).is_err(), "the sums would have found it too");
    });
    assert!(matches!(tier.lookup(&block(1).0.key), Lookup::Miss(_)));
}

fn rests(tier: &HostTier, from: Now) {
    let (sealed, image) = block(2);
    tier.submit(StoreOp::Write, sealed.key, image).unwrap();
    let mut done = Vec::new();
    tier.poll(&mut done);
    assert!(matches!(done[0].outcome, Outcome::Failed(StoreError::Full { .. })), "the slot rests: {done:?}");
    tier.advance(from.after_millis(REST_MILLIS));
}

#[test]
fn a_lease_that_ran_out() {
    gated_reader_beside(|tier, lease| {
        let early = Now(0).after_millis(LEASE_MILLIS - 1);
        assert_eq!(tier.expire_leases(early), 0);
        assert!(tier.is_current(&lease));
        let late = Now(0).after_millis(LEASE_MILLIS);
        assert_eq!(tier.expire_leases(late), 1);
        assert!(!tier.is_current(&lease));
        assert_eq!(tier.counters().lost_leases, 1);
        rests(tier, late);
        drop(lease);
        assert_eq!(tier.counters().stale_releases, 1);
    });
}

#[test]
fn a_reader_that_hung_up() {
    gated_reader_beside(|tier, lease| {
        tier.rest_after_removal(&lease);
        drop(lease);
        assert!(matches!(tier.lookup(&block(1).0.key), Lookup::Hit(_)), "others keep the copy");
        tier.remove(&block(1).0.key).unwrap();
        rests(tier, Now(0));
    });
}

#[test]
fn a_forced_eviction() {
    gated_reader_beside(|tier, lease| {
        assert_eq!(tier.remove(&block(1).0.key), Err(StoreError::Leased { leases: 1 }));
        tier.revoke(&block(1).0.key);
        assert!(!tier.is_current(&lease));
        rests(tier, Now(0));
    });
}

/// Free-running: slots change hands without any rest, two clients read them all the time, and every accepted copy is whole and the one
/// that was leased.
#[test]
fn accepted_copies_are_whole() {
    const ROUNDS: u32 = 5_000;
    let tier = HostTier::open(HostConfig { rest_millis: 0, ..HostConfig::new(256 << 10, SHAPE) }).unwrap();
    let clients: Vec<Client> = tier.extents().iter().map(|extent| Client::map(extent)).collect();
    let layout = *tier.layout();
    // What was committed last, as a client learns it from an answer: block, version, slot, generation.
    let told = Mutex::new(None::<(u32, u32, SlotIndex, Generation)>);
    let (accepted, discarded) = (AtomicU64::new(0), AtomicU64::new(0));
    let read = |copy: &mut Buffer| {
        let Some((number, version, slot, generation)) = *told.lock().unwrap() else {
            return;
        };
        let (extent, word_offset) = layout.generation_place(slot);
        let client = &clients[extent as usize];
        client.load(layout.place(slot), 0, copy.as_mut_slice());
        if client.still(word_offset, generation) {
            assert!(copy.as_slice() == block_version(number, version).1.as_slice(), "block {number} version {version}");
            accepted.fetch_add(1, Ordering::Relaxed);
        } else {
            discarded.fetch_add(1, Ordering::Relaxed);
        }
    };
    let done = AtomicBool::new(false);

    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut copy = Buffer::zeroed(SHAPE.slot_bytes() as usize);
                while !done.load(Ordering::Relaxed) {
                    read(&mut copy);
                }
            });
        }
        let finished = RaiseOnDrop(&done);
        let mut random = Random::new(5);
        for round in 0..ROUNDS {
            let number = random.below(3) as u32;
            tier.revoke(&block(number).0.key);
            tier.advance(Now(u64::from(round)));
            put(&tier, number, round);
            let lease = lease(&tier, number);
            *told.lock().unwrap() = Some((number, round, lease.slot(), lease.generation()));
        }
        read(&mut Buffer::zeroed(SHAPE.slot_bytes() as usize));
        drop(finished);
    });
    println!("{accepted:?} copies accepted, {discarded:?} discarded");
    assert!(accepted.load(Ordering::Relaxed) > 0, "the last copy at least is still there");
}

/// A writer that holds no reservation scribbles over a committed slot while it is read and verified.
#[test]
fn a_scribbled_slot_is_discarded() {
    const ROUNDS: u32 = 300;
    let tier = HostTier::open(HostConfig { rest_millis: 0, ..HostConfig::new(256 << 10, SHAPE) }).unwrap();
    let (mut whole, mut discarded) = (0, 0);
    for round in 0..ROUNDS {
        put(&tier, 1, 0);
        let held = lease(&tier, 1);
        let place = held.place();
        drop(held);
        let base = tier.extents()[place.extent as usize].service_address() as usize + place.offset as usize;
        let (stop, begun) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = Random::new(u64::from(round));
                while !stop.load(Ordering::Relaxed) {
                    let offset = random.below(place.bytes / 8) as usize * 8;
                    // SAFETY: an aligned word inside the slot, in a mapping that lives as long as the tier; the tier reads it atomically.
                    unsafe { AtomicU64::from_ptr((base + offset) as *mut u64) }.store(random.next(), Ordering::Relaxed);
                    begun.store(true, Ordering::Release);
                }
            });
            let finished = RaiseOnDrop(&stop);
            while round % 2 == 0 && !begun.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            for _ in 0..4 {
                let completion = run(&tier, StoreOp::Read, 1, Buffer::zeroed(SHAPE.slot_bytes() as usize));
                match completion.outcome {
                    Outcome::Done => {
                        whole += 1;
                        verify_image(&SHAPE, &block(1).0.key, completion.buffer.as_slice()).unwrap();
                    }
                    Outcome::Miss(MissReason::FailedCheck | MissReason::NeverStored) => discarded += 1,
                    other => panic!("{other:?}"),
                }
            }
            drop(finished);
        });
        tier.revoke(&block(1).0.key);
        tier.advance(Now(u64::from(round)));
    }
    let counters = tier.counters();
    println!("{whole} whole, {discarded} discarded, {counters:?}");
    assert_eq!(whole + discarded, 4 * ROUNDS);
    assert!(counters.failed_checks > 0 && counters.failed_checks == counters.quarantined);
    assert_eq!((counters.lost_leases, counters.stale_releases), (0, 0), "no reader held a lease");
}
