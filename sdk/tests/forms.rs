//! Blocks that a sequence does not hold, blocks that were computed after something lossy, and two caches, one per form, over one store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cache_core::chain::Link;
use cache_core::form::{Accept, Form, Provenance};
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use cache_core::units::Tier;
use gpu_tier::attention::Attention;
use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::Workers;
use gpu_tier::cpu::{CpuConfig, CpuDevice, Link as HostLink};
use kvtier_sdk::cache::{BlockPlace, CacheError, Grant, KvCache, SequenceId};
use kvtier_sdk::contract::rig::{HOME, Rig, SHAPE, chain, pattern};
use kvtier_sdk::embedded::{
    Admission, ByteStage, DiskSettings, DiskStore, Embedded, EmbeddedConfig, IoChoice, StoreSettings, Writes,
};

const LOSSY: Accept = Accept::AtLeast(Form::I8h);
const TAINT: Provenance = Provenance(0x5eed);

#[test]
fn a_released_block_is_an_ordinary_entry_and_the_sequence_goes_on_without_it() {
    let rig = Rig::new(8, 0);
    let links = chain(HOME, 1, 5);
    let (sequence, _) = rig.run(HOME, &links[..4]);
    rig.cache.release(sequence, 1).unwrap();
    let places = rig.cache.places(sequence).unwrap();
    assert!(matches!(places[1], BlockPlace::Absent), "{places:?}");
    assert!(rig.cache.check(sequence, 1, &places[1]));
    rig.compute(sequence, &links, 4);
    assert_eq!(rig.cache.lookup(HOME, &links, Accept::Exact).tiers.len(), 5, "nothing was lost");
    // An open block is given up with its slot.
    assert_eq!(rig.reserve(sequence, None), Grant::Granted);
    let used = rig.cache.stats().device_slots.0;
    rig.cache.release(sequence, 5).unwrap();
    assert_eq!(rig.cache.stats().device_slots.0, used - 1);
    rig.check_budgets();
}

#[test]
fn a_released_block_goes_before_a_window_that_came_after_something_lossy_but_not_before_its_exact_children() {
    for (from, left) in [(0, 3), (9, 4)] {
        let rig = Rig::new(8, 0);
        let links = chain(HOME, 1, 4);
        let sequence = rig.cache.open(HOME);
        rig.cache.taint(sequence, from, TAINT).unwrap();
        rig.compute(sequence, &links, 0);
        rig.cache.release(sequence, 1).unwrap();
        let other = rig.cache.open(HOME);
        let opened = (0..8).take_while(|_| rig.reserve(other, None) == Grant::Granted).count();
        assert_eq!(opened, 8 - left);
        let held = rig.cache.places(sequence).unwrap();
        assert_eq!(held.iter().filter(|place| matches!(place, BlockPlace::Device(..))).count(), 3);
        rig.check_budgets();
    }
}

#[test]
fn a_skipped_block_names_the_parent_of_the_next() {
    let rig = Rig::new(8, 0);
    let links = chain(HOME, 1, 3);
    let sequence = rig.cache.open(HOME);
    rig.cache.skip(sequence, Some(links[0])).unwrap();
    assert_eq!(rig.reserve(sequence, Some(links[1])), Grant::Granted);
    let stranger = Link { parent: Some(links[2].hash), ..links[1] };
    rig.write(sequence, 1, links[1]);
    assert!(matches!(rig.cache.commit(sequence, 1, &[stranger]), Err(CacheError::Unknown { .. })));
    rig.fill(sequence, 1, links[1]);
    let reader = rig.cache.open(HOME);
    rig.cache.skip(reader, None).unwrap();
    assert_eq!(rig.cache.acquire(reader, &links[1..], Accept::Exact).unwrap().tiers, [Tier::Device]);
    rig.cache.truncate(reader, 0).unwrap();
    rig.check_budgets();
}

#[test]
fn a_tainted_block_is_found_by_readers_of_the_same_provenance_only() {
    let rig = Rig::new(8, 0);
    let links = chain(HOME, 1, 4);
    let writer = rig.cache.open(HOME);
    rig.cache.taint(writer, 2, TAINT).unwrap();
    rig.compute(writer, &links, 0);
    assert!(matches!(rig.cache.taint(writer, 3, TAINT), Err(CacheError::Unknown { .. })), "that block is there");
    let found = |from: u32, provenance, accept| {
        let reader = rig.cache.open(HOME);
        rig.cache.taint(reader, from, provenance).unwrap();
        let acquired = rig.cache.acquire(reader, &links, accept).unwrap();
        rig.cache.close(reader);
        (acquired.tiers.len(), acquired.miss)
    };
    assert_eq!(found(2, TAINT, LOSSY), (4, None));
    assert_eq!(found(2, Provenance(1), LOSSY), (2, Some(MissReason::Provenance)));
    assert_eq!(found(3, TAINT, LOSSY), (2, Some(MissReason::Provenance)), "exact up to block 3");
    assert_eq!(found(9, TAINT, Accept::Exact), (2, Some(MissReason::Provenance)));
    // The exact copy of block 2 is a block of its own beside the tainted one.
    let exact = rig.cache.open(HOME);
    let hits = rig.cache.acquire(exact, &links, Accept::Exact).unwrap().tiers.len();
    rig.compute(exact, &links, hits);
    assert_eq!((hits, rig.cache.stats().blocks), (2, 6));
    assert_eq!(found(9, TAINT, Accept::Exact), (4, None));
    rig.check_budgets();
}

struct Pair {
    lossless: Rig,
    closed: Rig,
}

fn open_pair(directory: &Path) -> Pair {
    let closed_shape = SHAPE.with_form(Form::I8h);
    let open = |shape: BlockShape, store, writes| {
        let config = CpuConfig {
            budget_bytes: 12 * shape.slot_bytes(),
            link: HostLink::InPlace,
            workers: Arc::new(Workers::new(1)),
            isa: Isa::detect(),
        };
        let device = Arc::new(CpuDevice::open(config).unwrap());
        let attention: Arc<dyn Attention> = device.clone();
        let disk = Some(DiskSettings { store, live_blocks: 32, pieces_min: 4, writes });
        let config = EmbeddedConfig { device: attention, shape, device_slots: 8, host_bytes: 4 << 20, disk };
        Rig { device, cache: Embedded::open(config).unwrap() }
    };
    let store = StoreSettings {
        directory: directory.to_owned(),
        budget_bytes: 64 << 20,
        admission: Admission::Always,
        write_limit_bytes_s: None,
        io: IoChoice::Auto,
        stage: ByteStage::Auto,
    };
    let closed = open(closed_shape, DiskStore::Own(store), Writes::All);
    closed.cache.disk_tier().expect("the store opens").wait_ready(10_000);
    let shared = DiskStore::Shared(closed.cache.share_store().unwrap());
    Pair { lossless: open(SHAPE, shared, Writes::Untainted), closed }
}

fn tainted(rig: &Rig) -> SequenceId {
    let sequence = rig.cache.open(HOME);
    rig.cache.taint(sequence, 2, TAINT).unwrap();
    sequence
}

#[test]
fn two_caches_share_a_store_and_each_finds_its_own_form_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let links = chain(HOME, 1, 5);
    {
        let pair = open_pair(directory.path());
        for rig in [&pair.lossless, &pair.closed] {
            rig.compute(tainted(rig), &links, 0);
        }
        assert!(pair.lossless.cache.drain_disk(Duration::from_secs(10)));
        assert!(pair.closed.cache.close_disk(Duration::from_secs(10)));
        // Three lossless blocks have something lossy before them: their closed copies are on the disk.
        assert_eq!((pair.lossless.cache.stats().stored_blocks, pair.closed.cache.stats().stored_blocks), (2, 5));
    }
    let pair = open_pair(directory.path());
    for (rig, expected) in [(&pair.lossless, 2), (&pair.closed, 5)] {
        let reader = tainted(rig);
        let acquired = rig.cache.acquire(reader, &links, LOSSY).unwrap();
        assert_eq!(acquired.tiers, vec![Tier::Disk; expected]);
        rig.cache.prefetch(reader, Tier::Device).unwrap();
        let places = rig.cache.places(reader).unwrap();
        for (block, place) in places.iter().enumerate() {
            let BlockPlace::Device(image, _) = place else { panic!("block {block} is {place:?}") };
            for section in rig.cache.shape().sections() {
                let mut bytes = vec![0; section.bytes as usize];
                let range = image.slice(section.offset, section.bytes);
                gpu_tier::device::Device::download(&*rig.device, gpu_tier::device::Stream::Compute, range, &mut bytes)
                    .unwrap();
                assert!(bytes == pattern(&links[block], section.index, section.bytes), "block {block}");
            }
        }
        rig.check_budgets();
    }
}
