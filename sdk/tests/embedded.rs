//! The embedded cache on the real `cpu` device and the real host arena.

use cache_core::form::Accept;
use cache_core::miss::MissReason;
use cache_core::units::Tier;
use gpu_tier::cpu::Link as HostLink;
use gpu_tier::device::{CopyPiece, HostRange, Stream};
use kvtier_sdk::cache::{BlockPlace, CacheError, Committed, Grant, KvCache, NoRoom, Want};
use kvtier_sdk::contract;
use kvtier_sdk::contract::rig::{HOME, RAW32, Rig, SHAPE, chain, host_bytes};
use kvtier_sdk::embedded::{Embedded, EmbeddedConfig};

#[test]
fn the_contract_is_kept() {
    contract::run(&|device_slots| Rig::new(device_slots, 32));
}

fn misses(rig: &Rig, reason: MissReason) -> u64 {
    let index = MissReason::ALL.iter().position(|other| *other == reason).unwrap();
    rig.cache.stats().misses[index]
}

#[test]
fn device_pressure_demotes_and_the_bytes_come_back_equal() {
    let rig = Rig::new(4, 16);
    let links = chain(HOME, 1, 10);
    let (sequence, _) = rig.run(HOME, &links);
    assert_eq!(rig.verify(sequence, &links), 6);
    assert_eq!(rig.cache.stats().demoted_blocks, 6);
    // The front of the sequence stays in device memory.
    let places = rig.cache.places(sequence).unwrap();
    assert!(places[..3].iter().all(|place| matches!(place, BlockPlace::Device(..))));
    drop(places);
    rig.cache.close(sequence);
    let (again, hits) = rig.run(HOME, &links);
    assert_eq!(hits, 10);
    rig.verify(again, &links);
    assert_eq!(rig.cache.stats().hits, [4, 6, 0]);
    rig.check_budgets();
}

#[test]
fn no_room_names_its_figures_and_holds_nothing() {
    let rig = Rig::new(3, 2);
    let host_slots = rig.cache.stats().host_slots.1;
    let links = chain(HOME, 1, 3 + host_slots);
    let (sequence, _) = rig.run(HOME, &links);
    let more = chain(HOME, 1, 4 + host_slots);
    let expected =
        NoRoom { wanted_slots: 1, device_slots: 3, device_live_slots: 3, host_slots, host_live_slots: host_slots };
    assert_eq!(rig.reserve(sequence, Some(more[3 + host_slots as usize])), Grant::NoRoom(expected));
    assert_eq!(rig.reserve(sequence, None), Grant::NoRoom(expected));
    rig.verify(sequence, &links);
    rig.check_budgets();
    rig.cache.close(sequence);
    let (other, hits) = rig.run(HOME, &chain(HOME, 2, 3));
    assert_eq!(hits, 0);
    rig.verify(other, &chain(HOME, 2, 3));
    rig.check_budgets();
}

#[test]
fn more_than_all_slots_is_refused_at_once() {
    let rig = Rig::new(3, 8);
    let links = chain(HOME, 1, 3);
    rig.run(HOME, &links);
    let sequence = rig.cache.open(HOME);
    let grants = rig.cache.reserve(&[Want { sequence, blocks: vec![None; 4] }]).unwrap();
    assert!(matches!(grants[..], [Grant::NoRoom(NoRoom { wanted_slots: 4, device_slots: 3, .. })]));
    assert_eq!(rig.cache.stats().demoted_blocks, 0);
}

#[test]
fn a_revoked_block_is_lost_reopened_and_committed_again() {
    let rig = Rig::new(4, 16);
    let links = chain(HOME, 1, 8);
    let (sequence, _) = rig.run(HOME, &links);
    let places = rig.cache.places(sequence).unwrap();
    let victim = places.iter().position(|place| matches!(place, BlockPlace::Host(..))).unwrap();
    assert!(rig.cache.revoke_host(HOME, links[victim]));
    assert!(!rig.cache.check(sequence, victim as u32, &places[victim]), "the slot was taken away under the reader");
    assert!(
        places
            .iter()
            .enumerate()
            .all(|(index, place)| index == victim || rig.cache.check(sequence, index as u32, place))
    );
    drop(places);
    assert_eq!(misses(&rig, MissReason::LeaseLost), 1);
    let places = rig.cache.places(sequence).unwrap();
    assert!(matches!(places[victim], BlockPlace::Lost(MissReason::LeaseLost)));
    drop(places);
    assert_eq!(rig.cache.lookup(HOME, &links, Accept::Exact).miss, Some(MissReason::LeaseLost));
    assert!(rig.cache.explain(HOME, links[victim]).contains("lease_lost"));
    // Given up half way, it is lost again: nobody reads what was never written.
    assert_eq!(rig.cache.reopen(sequence, victim as u32).unwrap(), Grant::Granted);
    rig.cache.abandon(sequence, victim as u32).unwrap();
    assert!(matches!(rig.cache.places(sequence).unwrap()[victim], BlockPlace::Lost(MissReason::LeaseLost)));
    assert!(rig.cache.abandon(sequence, victim as u32).is_err());
    rig.check_budgets();
    assert_eq!(rig.cache.reopen(sequence, victim as u32).unwrap(), Grant::Granted);
    rig.check_budgets();
    assert_eq!(rig.fill(sequence, victim as u32, links[victim]), Committed::Inserted);
    rig.verify(sequence, &links);
    rig.check_budgets();
}

#[test]
fn a_late_check_spares_the_copy_that_was_made_since() {
    let rig = Rig::new(4, 16);
    let links = chain(HOME, 1, 9);
    let (first, _) = rig.run(HOME, &links[..8]);
    let (second, _) = rig.run(HOME, &links[..8]);
    let old = rig.cache.places(first).unwrap();
    assert!(matches!(old[6], BlockPlace::Host(..)));
    rig.cache.revoke_host(HOME, links[6]);
    assert!(matches!(rig.cache.places(second).unwrap()[6], BlockPlace::Lost(_)));
    assert_eq!(rig.cache.reopen(second, 6).unwrap(), Grant::Granted);
    rig.fill(second, 6, links[6]);
    // One more open block sends the new copy to the host.
    assert_eq!(rig.reserve(second, Some(links[8])), Grant::Granted);
    assert!(matches!(rig.cache.places(second).unwrap()[6], BlockPlace::Host(..)));
    assert!(!rig.cache.check(first, 6, &old[6]));
    drop(old);
    rig.verify(first, &links[..8]);
    assert_eq!(misses(&rig, MissReason::LeaseLost), 1);
    rig.check_budgets();
}

#[test]
fn a_revoked_copy_that_nobody_reads_is_a_miss_at_the_next_use() {
    let rig = Rig::new(2, 8);
    let links = chain(HOME, 1, 4);
    let (sequence, _) = rig.run(HOME, &links);
    rig.cache.close(sequence);
    rig.run(HOME, &chain(HOME, 2, 2));
    assert!(rig.cache.revoke_host(HOME, links[1]));
    let reader = rig.cache.open(HOME);
    assert_eq!(rig.cache.acquire(reader, &links, Accept::Exact).unwrap().tiers.len(), 4);
    let places = rig.cache.places(reader).unwrap();
    assert!(matches!(places[1], BlockPlace::Lost(MissReason::LeaseLost)), "{:?}", places[1]);
    drop(places);
    assert!(matches!(rig.cache.reopen(reader, 1).unwrap(), Grant::Granted));
    rig.fill(reader, 1, links[1]);
    rig.verify(reader, &links);
    rig.check_budgets();
}

/// Damages a copy by overwriting part of it behind the cache's back, as a stray write or a flipped bit would.
fn damage(rig: &Rig, place: &BlockPlace) {
    let section = rig.cache.shape().code_section(1);
    match place {
        BlockPlace::Device(image, _) => {
            rig.device.upload(Stream::Compute, &[0x5a; 8], image.slice(section.offset, 8)).unwrap()
        }
        BlockPlace::Host(image, _) => {
            let bytes = rig.device.allocate(4096).unwrap();
            rig.device.upload(Stream::CopyOut, &[0x5a; 8], bytes.range()).unwrap();
            let host = HostRange { offset: image.offset + section.offset, bytes: 8, ..*image };
            let piece = CopyPiece { host, device: bytes.range().slice(0, 8) };
            rig.device.copy_out(Stream::CopyOut, &[piece]).unwrap();
            rig.device.synchronize(rig.device.record(Stream::CopyOut).unwrap()).unwrap();
        }
        other => panic!("nothing to damage: {other:?}"),
    }
}

#[test]
fn a_device_copy_damaged_after_its_commit_never_reaches_the_host() {
    let rig = Rig::new(3, 8);
    let links = chain(HOME, 1, 4);
    let (sequence, _) = rig.run(HOME, &links[..3]);
    damage(&rig, &rig.cache.places(sequence).unwrap()[2]);
    assert_eq!(rig.reserve(sequence, Some(links[3])), Grant::Granted);
    rig.fill(sequence, 3, links[3]);
    let places = rig.cache.places(sequence).unwrap();
    assert!(matches!(places[2], BlockPlace::Lost(MissReason::FailedCheck)), "{:?}", places[2]);
    drop(places);
    assert_eq!((misses(&rig, MissReason::FailedCheck), rig.cache.stats().demoted_blocks), (1, 0));
    assert_eq!(rig.cache.reopen(sequence, 2).unwrap(), Grant::Granted);
    rig.fill(sequence, 2, links[2]);
    rig.verify(sequence, &links);
    rig.check_budgets();
}

#[test]
fn a_damaged_host_copy_never_reaches_the_device() {
    let rig = Rig::new(3, 8);
    let links = chain(HOME, 1, 4);
    let (sequence, _) = rig.run(HOME, &links);
    rig.cache.close(sequence);
    let (other, _) = rig.run(HOME, &chain(HOME, 2, 3));
    rig.cache.close(other);
    let reader = rig.cache.open(HOME);
    assert_eq!(rig.cache.acquire(reader, &links, Accept::Exact).unwrap().tiers.len(), 4);
    let places = rig.cache.places(reader).unwrap();
    let victim = places.iter().position(|place| matches!(place, BlockPlace::Host(..))).unwrap();
    damage(&rig, &places[victim]);
    drop(places);
    let promoted = rig.cache.stats().promoted_blocks;
    rig.cache.prefetch(reader, Tier::Device).unwrap();
    let places = rig.cache.places(reader).unwrap();
    assert!(matches!(places[victim], BlockPlace::Lost(MissReason::FailedCheck)), "{:?}", places[victim]);
    drop(places);
    assert_eq!(misses(&rig, MissReason::FailedCheck), 1);
    assert!(rig.cache.stats().promoted_blocks > promoted, "the sound copies arrived");
    assert_eq!(rig.cache.reopen(reader, victim as u32).unwrap(), Grant::Granted);
    rig.fill(reader, victim as u32, links[victim]);
    rig.verify(reader, &links);
    rig.check_budgets();
}

#[test]
fn prefetch_moves_bytes_into_free_room_only() {
    let rig = Rig::new(4, 16);
    let links = chain(HOME, 1, 6);
    let (sequence, _) = rig.run(HOME, &links);
    assert_eq!(rig.cache.prefetch(sequence, Tier::Device).unwrap().to_device_bytes, 0, "every slot holds a live block");
    rig.cache.close(sequence);
    // Another sequence takes three slots; then it ends, and its idle copies give way to the prefetch.
    let (other, _) = rig.run(HOME, &chain(HOME, 2, 3));
    rig.cache.close(other);
    let sequence = rig.cache.open(HOME);
    rig.cache.acquire(sequence, &links, Accept::Exact).unwrap();
    let before = rig.device.traffic().copied_in_bytes;
    let in_host = rig.verify(sequence, &links);
    let verified = rig.device.traffic().copied_in_bytes - before;
    let moved = rig.cache.prefetch(sequence, Tier::Device).unwrap().to_device_bytes;
    assert!(moved > 0 && in_host > 0);
    assert_eq!(rig.device.traffic().copied_in_bytes, before + verified + moved);
    assert_eq!(rig.verify(sequence, &links), 6 - 4, "all four slots hold this sequence's front");
    assert_eq!(rig.cache.stats().promoted_blocks * rig.cache.shape().slot_bytes(), moved);
    rig.check_budgets();
}

#[test]
fn a_strict_device_works_with_the_reader_mapping_closed() {
    for bytes_per_second in [None, Some(5e9)] {
        let rig = Rig::open(HostLink::Strict { bytes_per_second }, SHAPE, 3, host_bytes(3, 12));
        rig.cache.protect_host_reader().unwrap();
        let links = chain(HOME, 1, 9);
        let (sequence, _) = rig.run(HOME, &links);
        assert_eq!(rig.verify(sequence, &links), 6);
        assert_eq!(rig.device.traffic().attended_host_bytes, 0);
        rig.check_budgets();
    }
}

#[test]
fn eviction_from_the_host_leaves_a_reason() {
    let rig = Rig::new(2, 2);
    let host_slots = rig.cache.stats().host_slots.1;
    let first = chain(HOME, 1, 2 + host_slots);
    let (sequence, _) = rig.run(HOME, &first);
    rig.cache.close(sequence);
    let (sequence, _) = rig.run(HOME, &chain(HOME, 2, 2 + host_slots));
    let found = rig.cache.lookup(HOME, &first, Accept::Exact);
    assert_eq!((found.tiers.len(), found.miss), (0, Some(MissReason::Evicted)));
    assert!(rig.cache.explain(HOME, first[0]).contains("evicted"));
    assert!(rig.cache.explain(HOME, chain(HOME, 3, 1)[0]).contains("never stored"));
    rig.verify(sequence, &chain(HOME, 2, 2 + host_slots));
    rig.check_budgets();
}

#[test]
fn raw32_stays_private_and_on_the_device() {
    let rig = Rig::open(HostLink::InPlace, RAW32, 3, 0);
    let links = chain(HOME, 1, 4);
    let sequence = rig.cache.open(HOME);
    rig.compute(sequence, &links[..3], 0);
    rig.verify(sequence, &links[..3]);
    assert_eq!(rig.cache.stats().blocks, 0);
    assert!(rig.cache.lookup(HOME, &links, Accept::Exact).tiers.is_empty());
    assert!(matches!(rig.reserve(sequence, Some(links[3])), Grant::NoRoom(_)));
    rig.cache.close(sequence);
    assert_eq!(rig.cache.stats().device_slots.0, 0);
    rig.check_budgets();
}

#[test]
fn budgets_under_one_block_are_refused_with_the_minimum() {
    let rig = Rig::new(2, 0);
    let device = rig.device.clone();
    let open = |device_slots, host_bytes| {
        Embedded::open(EmbeddedConfig { device: device.clone(), shape: SHAPE, device_slots, host_bytes, disk: None })
            .map(|_| ())
    };
    assert!(matches!(open(0, 0), Err(CacheError::Budget { .. })));
    let Err(CacheError::Budget { minimum_bytes, .. }) = open(1, 5000) else { panic!("5000 bytes hold a block") };
    drop(rig);
    let rig = Rig::open(HostLink::InPlace, SHAPE, 1, minimum_bytes);
    assert_eq!(rig.cache.stats().host_slots.1, 1);
}
