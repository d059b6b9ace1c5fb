//! The embedded cache over a disk tier in memory: what goes down comes back, what is lost is told, and every pin is given back.
//! `KVTIER_SOAK=1`: more random lives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cache_core::chain::Link;
use cache_core::form::Accept;
use cache_core::hash::BlockHash;
use cache_core::miss::MissReason;
use cache_core::units::Tier;
use disk_tier::io::rig::{Completion, FailNth, Fault, Image, MemoryMedium, Plan, Repeat, Scope, SplitMix64};
use disk_tier::io::{FileId, Medium};
use disk_tier::testing::Testing;
use disk_tier::{DiskState, DiskTier};
use gpu_tier::attention::Attention;
use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::Workers;
use gpu_tier::cpu::{CpuConfig, CpuDevice, Link as HostLink};
use gpu_tier::device::{CopyPiece, HostRange, Stream};
use kvtier_sdk::cache::{BlockPlace, CacheError, Grant, KvCache, SequenceId, StagedSection};
use kvtier_sdk::contract::rig::{HOME, Rig, SHAPE, branch, chain, expected, host_bytes, pattern};
use kvtier_sdk::embedded::{
    Admission, ByteStage, DiskSettings, DiskStatus, DiskStore, Embedded, EmbeddedConfig, IoChoice, StoreSettings,
    Writes,
};

/// A header page and ten records of three pages, or a few more.
const SEGMENT_BYTES: u64 = 128 << 10;
const PIECES: u32 = 4;

struct Below {
    rig: Rig,
    tier: DiskTier,
}

/// A cache of so many device slots, so many host slots for blocks, and a disk of so many segments over `medium`.
fn open(device_slots: u32, host_slots: u32, segments: u64, medium: Arc<dyn Medium>) -> Below {
    try_open(device_slots, host_bytes_for(device_slots, host_slots, segments), segments, medium).unwrap()
}

/// Smallest host budget that leaves so many slots for blocks, beside bounce memory and indexes.
fn host_bytes_for(device_slots: u32, host_slots: u32, segments: u64) -> u64 {
    let mut bytes = host_bytes(device_slots, host_slots);
    loop {
        let blank = MemoryMedium::new(Completion::Inline);
        match try_open(device_slots, bytes, segments, blank as Arc<dyn Medium>) {
            Ok(below) if below.rig.cache.stats().host_slots.1 >= host_slots => return bytes,
            Ok(_) => bytes += SHAPE.slot_bytes(),
            Err(CacheError::Budget { minimum_bytes, .. }) => bytes = minimum_bytes,
            Err(other) => panic!("{other}"),
        }
    }
}

fn try_open(device_slots: u32, host_bytes: u64, segments: u64, medium: Arc<dyn Medium>) -> Result<Below, CacheError> {
    let config = CpuConfig {
        budget_bytes: u64::from(device_slots + 4) * SHAPE.slot_bytes(),
        link: HostLink::InPlace,
        workers: Arc::new(Workers::new(1)),
        isa: Isa::detect(),
    };
    let device = Arc::new(CpuDevice::open(config).unwrap());
    let store = StoreSettings {
        directory: "unused".into(),
        budget_bytes: (64 << 10) + segments * (SEGMENT_BYTES + 8192),
        admission: Admission::Always,
        write_limit_bytes_s: None,
        io: IoChoice::Auto,
        stage: ByteStage::Auto,
    };
    let settings =
        DiskSettings { store: DiskStore::Own(store), live_blocks: 256, pieces_min: PIECES, writes: Writes::All };
    let attention: Arc<dyn Attention> = device.clone();
    let config = EmbeddedConfig { device: attention, shape: SHAPE, device_slots, host_bytes, disk: Some(settings) };
    let cache = Embedded::open_over(config, &|config| {
        let config = disk_tier::DiskConfig { deadline_millis: 2000, probe_millis: 20, ..config };
        let testing =
            Testing { segment_bytes: Some(SEGMENT_BYTES), records_max: Some(256), is_manual: false, bug: None };
        DiskTier::over_with(Arc::clone(&medium), config, testing)
    })?;
    let DiskStatus::Open(_) = cache.disk_status() else {
        return Err(CacheError::Host(format!("{:?}", cache.disk_status())));
    };
    let tier = cache.disk_tier().unwrap().clone();
    tier.wait_ready(5000);
    Ok(Below { rig: Rig { device, cache }, tier })
}

fn over(image: Image) -> Arc<MemoryMedium> {
    MemoryMedium::over(image, Completion::Threads { threads: 2, deadline_millis: 2000 })
}

/// How a section that was read from the disk compares with its pattern.
fn staged(below: &Below, sequence: SequenceId, block: u32, link: &Link) -> Result<(), MissReason> {
    let Below { rig, .. } = below;
    for section in rig.cache.shape().sections() {
        let stage = rig.cache.stage(sequence, &[StagedSection { block, section }]).unwrap();
        let found = stage.expect("there is bounce memory").wait().remove(0)?;
        let mut bytes = vec![0; section.bytes as usize];
        read_host(rig, found, &mut bytes);
        assert!(bytes == pattern(link, section.index, section.bytes), "block {block}, section {}", section.index);
    }
    Ok(())
}

fn read_host(rig: &Rig, range: HostRange, bytes: &mut [u8]) {
    let bounce = rig.device.allocate(SHAPE.slot_bytes()).unwrap();
    let device = bounce.range().slice(0, range.bytes);
    rig.device.copy_in(Stream::CopyIn, &[CopyPiece { host: range, device }]).unwrap();
    rig.device.download(Stream::CopyIn, device, bytes).unwrap();
}

/// Reads every block from where it is; returns how many were on device, host and disk, and which are lost.
fn verify(below: &Below, sequence: SequenceId, links: &[Link]) -> ([usize; 3], Vec<u32>) {
    let rig = &below.rig;
    let (mut counts, mut lost) = ([0; 3], Vec::new());
    let places = rig.cache.places(sequence).unwrap();
    assert_eq!(places.len(), links.len());
    for (block, (place, link)) in places.into_iter().zip(links).enumerate() {
        let index = block as u32;
        match &place {
            BlockPlace::Disk => match staged(below, sequence, index, link) {
                Ok(()) => counts[2] += 1,
                Err(reason) => {
                    rig.cache.lost(sequence, index, reason).unwrap();
                    lost.push(index);
                }
            },
            BlockPlace::Lost(_) => lost.push(index),
            BlockPlace::Absent => panic!("block {block} is held"),
            BlockPlace::Device(..) | BlockPlace::Host(..) => {
                let image = rig.read(&place).unwrap();
                assert!(rig.cache.check(sequence, index, &place));
                assert!(image == expected(link, &SHAPE), "block {block} at {place:?} has other bytes");
                counts[usize::from(matches!(place, BlockPlace::Host(..)))] += 1;
            }
        }
    }
    (counts, lost)
}

/// Computes a lost block again; false when there was no room for it.
fn repair(below: &Below, sequence: SequenceId, block: u32, link: Link) -> bool {
    match below.rig.cache.reopen(sequence, block).unwrap() {
        Grant::Granted => {
            below.rig.fill(sequence, block, link);
            true
        }
        Grant::PendingElsewhere => true,
        Grant::NoRoom(_) => false,
    }
}

/// Waits until everything that was queued for the disk is there.
fn settle(below: &Below) {
    for _ in 0..200 {
        // Any call takes in what has ended.
        let sequence = below.rig.cache.open(HOME);
        below.rig.cache.prefetch(sequence, Tier::Host).unwrap();
        below.rig.cache.close(sequence);
        if below.tier.drain(20) {
            return;
        }
    }
    panic!("the disk did not come to rest: {:?}", below.tier.counters());
}

#[test]
fn published_blocks_outlive_the_cache() {
    let medium = over(Image::new());
    let links = chain(HOME, 1, 12);
    let below = open(16, 8, 6, medium.clone());
    let (sequence, _) = below.rig.run(HOME, &links);
    below.rig.cache.close(sequence);
    assert!(below.rig.cache.close_disk(Duration::from_secs(5)));
    assert_eq!(below.rig.cache.stats().stored_blocks, 12);
    below.rig.check_budgets();
    drop(below);

    let below = open(4, 4, 6, over(medium.image()));
    assert_eq!(below.rig.cache.lookup(HOME, &links, Accept::Exact).tiers, vec![Tier::Disk; 12]);
    let sequence = below.rig.cache.open(HOME);
    let acquired = below.rig.cache.acquire(sequence, &links, Accept::Exact).unwrap();
    assert_eq!((acquired.tiers, acquired.miss), (vec![Tier::Disk; 12], None));
    assert_eq!(below.tier.capacity().pinned, 12, "live blocks are pinned");
    assert_eq!(verify(&below, sequence, &links), ([0, 0, 12], vec![]));
    assert_eq!(below.rig.cache.stats().hits, [0, 0, 12]);
    below.rig.cache.close(sequence);
    assert_eq!(below.tier.capacity().pinned, 0, "nobody reads them any more");
    below.rig.check_budgets();
}

#[test]
fn a_prefetch_brings_blocks_up_with_equal_bytes() {
    let medium = over(Image::new());
    let links = chain(HOME, 1, 10);
    let below = open(16, 8, 6, medium.clone());
    below.rig.run(HOME, &links);
    assert!(below.rig.cache.close_disk(Duration::from_secs(5)));
    drop(below);

    let below = open(3, 4, 6, over(medium.image()));
    let sequence = below.rig.cache.open(HOME);
    below.rig.cache.acquire(sequence, &links, Accept::Exact).unwrap();
    let host_slots = below.rig.cache.stats().host_slots.1 as usize;
    let moved = below.rig.cache.prefetch(sequence, Tier::Host).unwrap();
    let in_host = host_slots.min(10);
    assert_eq!(moved.to_host_bytes, in_host as u64 * SHAPE.slot_bytes());
    assert_eq!(verify(&below, sequence, &links), ([0, in_host, 10 - in_host], vec![]));
    let moved = below.rig.cache.prefetch(sequence, Tier::Device).unwrap();
    assert_eq!(moved.to_device_bytes, 3 * SHAPE.slot_bytes());
    let (counts, lost) = verify(&below, sequence, &links);
    assert_eq!((counts[0], counts.iter().sum::<usize>(), lost), (3, 10, vec![]));
    below.rig.check_budgets();
    below.rig.cache.close(sequence);
    assert_eq!(below.tier.capacity().pinned, 0);
}

/// One live sequence, much longer than device and host together: its blocks are spilled, and none is lost.
#[test]
fn a_sequence_lies_on_three_tiers_at_once() {
    let below = open(3, 2, 8, over(Image::new()));
    let host_slots = below.rig.cache.stats().host_slots.1 as usize;
    let count = 3 + host_slots + 20;
    let links = chain(HOME, 1, count as u32);
    let sequence = below.rig.cache.open(HOME);
    for (index, link) in links.iter().enumerate() {
        assert_eq!(below.rig.reserve(sequence, Some(*link)), Grant::Granted, "block {index}");
        below.rig.fill(sequence, index as u32, *link);
        let (counts, lost) = verify(&below, sequence, &links[..=index]);
        assert_eq!((counts.iter().sum::<usize>(), lost), (index + 1, vec![]));
        below.rig.check_budgets();
    }
    let (counts, _) = verify(&below, sequence, &links);
    assert!(counts.iter().all(|count| *count > 0) && counts[2] >= 20, "{counts:?}");
    below.rig.cache.close(sequence);
    settle(&below);
    assert_eq!(below.tier.capacity().pinned, 0);
    let (again, hits) = below.rig.run(HOME, &links);
    assert_eq!(hits, count);
    assert_eq!(verify(&below, again, &links).1, vec![]);
}

/// A chain three times as long as the disk: what it reads stays right, what the disk cannot take is not stored, and once nobody reads it
/// the log goes round.
#[test]
fn a_chain_three_times_the_disk() {
    let below = open(4, 160, 5, over(Image::new()));
    let holds = 5 * SEGMENT_BYTES / SHAPE.slot_bytes();
    let count = 3 * holds as u32;
    assert!(below.rig.cache.stats().host_slots.1 >= count, "the host holds the chain");
    let links = chain(HOME, 1, count);
    let (sequence, _) = below.rig.run(HOME, &links);
    settle(&below);
    assert_eq!(verify(&below, sequence, &links).1, vec![]);
    let on_disk =
        links.iter().filter(|link| below.tier.find(&cache_core::key::CopyKey::exact(HOME, link.hash)).is_ok()).count();
    assert!(on_disk as u64 > holds / 2 && (on_disk as u64) <= holds, "{on_disk} of {holds}");
    assert!(below.rig.cache.stats().dropped_stores > 0);
    below.rig.check_budgets();
    below.rig.cache.close(sequence);
    let mut reclaimed = below.tier.counters().reclaimed_segments;
    for seed in 2..5 {
        let (sequence, _) = below.rig.run(HOME, &chain(HOME, seed, 40));
        settle(&below);
        below.rig.cache.close(sequence);
        let now = below.tier.counters().reclaimed_segments;
        assert!(now > reclaimed, "{:?}", below.tier.counters());
        reclaimed = now;
    }
    let capacity = below.tier.capacity();
    assert!(capacity.allocated_bytes <= capacity.budget_bytes, "{capacity:?}");
    assert_eq!(capacity.pinned, 0);
    below.rig.check_budgets();
}

/// Where a block's record begins in the medium: by its hash in the newest header.
fn record(image: &Image, hash: BlockHash) -> (FileId, u64) {
    let mut found = None;
    for (file, info) in image.files() {
        for offset in (0..info.bytes).step_by(4096) {
            let page = image.bytes_at(file, offset, 4096);
            if page.starts_with(&cache_core::header::MAGIC) && page[48..80] == hash.0 {
                found = Some((file, offset));
            }
        }
    }
    found.expect("the block was written")
}

/// One bit of the only copy of a live block: the section is not served, the block is computed again.
#[test]
fn a_flipped_bit_of_the_only_copy_is_a_loss_that_can_be_repaired() {
    let medium = over(Image::new());
    let below = open(3, 2, 8, medium.clone());
    let links = chain(HOME, 1, 24);
    let (sequence, _) = below.rig.run(HOME, &links);
    let places = below.rig.cache.places(sequence).unwrap();
    let on_disk: Vec<u32> = (0..24).filter(|block| matches!(places[*block as usize], BlockPlace::Disk)).collect();
    drop(places);
    let (in_payload, in_header) = (on_disk[0], on_disk[1]);
    for (block, byte) in [(in_payload, 4096 + 5000), (in_header, 60)] {
        let (file, offset) = medium.edit(|image| record(image, links[block as usize].hash));
        assert!(medium.edit(|image| image.flip_bit(file, 8 * (offset + byte) + 3)));
    }
    let (_, lost) = verify(&below, sequence, &links);
    assert_eq!(lost, [in_payload, in_header]);
    assert!(matches!(
        below.rig.cache.places(sequence).unwrap()[in_payload as usize],
        BlockPlace::Lost(MissReason::FailedCheck)
    ));
    for block in lost {
        assert!(repair(&below, sequence, block, links[block as usize]));
    }
    assert_eq!(verify(&below, sequence, &links).1, vec![]);
    below.rig.check_budgets();
    below.rig.cache.close(sequence);
    settle(&below);
    assert_eq!(below.tier.capacity().pinned, 0);
}

/// A damaged record is not brought up either.
#[test]
fn a_damaged_record_does_not_load() {
    let medium = over(Image::new());
    let links = chain(HOME, 1, 3);
    let below = open(8, 8, 6, medium.clone());
    below.rig.run(HOME, &links);
    assert!(below.rig.cache.close_disk(Duration::from_secs(5)));
    drop(below);
    let medium = over(medium.image());
    let below = open(8, 8, 6, medium.clone());
    let (file, offset) = medium.edit(|image| record(image, links[1].hash));
    assert!(medium.edit(|image| image.flip_bit(file, 8 * (offset + 4096))));
    let sequence = below.rig.cache.open(HOME);
    below.rig.cache.acquire(sequence, &links, Accept::Exact).unwrap();
    below.rig.cache.prefetch(sequence, Tier::Device).unwrap();
    let (counts, lost) = verify(&below, sequence, &links);
    assert_eq!((counts.iter().sum::<usize>(), lost), (2, vec![1]));
    assert!(repair(&below, sequence, 1, links[1]));
    assert_eq!(verify(&below, sequence, &links).1, vec![]);
    below.rig.check_budgets();
}

/// One read hangs until it is given up: the blocks that have come meanwhile are in device memory before that, and this one stays on the disk.
#[test]
fn blocks_go_on_to_device_memory_while_others_are_read() {
    let medium = over(Image::new());
    let links = chain(HOME, 1, 3);
    let below = open(8, 8, 6, medium.clone());
    below.rig.run(HOME, &links);
    assert!(below.rig.cache.close_disk(Duration::from_secs(5)));
    drop(below);
    let medium = FailNth::new(over(medium.image()), Plan::nth(u64::MAX, Fault::Errno(5)));
    let below = open(8, 8, 6, medium.clone());
    let Below { rig: Rig { cache, device }, tier } = &below;
    let sequence = cache.open(HOME);
    assert_eq!(cache.acquire(sequence, &links, Accept::Exact).unwrap().tiers, [Tier::Disk; 3]);
    medium.arm(Plan::nth(3, Fault::Never { deadline_millis: 60_000 }).on(Scope::Read));
    let (overlapped, moved) = std::thread::scope(|scope| {
        let prefetch = scope.spawn(|| cache.prefetch(sequence, Tier::Device).unwrap());
        let mut overlapped = false;
        while !prefetch.is_finished() {
            // The tier counts a read that it gives up before it tells of it.
            let copied = device.traffic().copied_in_bytes == 2 * SHAPE.slot_bytes();
            overlapped |= copied && tier.counters().timeouts == 0;
            std::thread::sleep(Duration::from_millis(1));
        }
        (overlapped, prefetch.join().unwrap())
    });
    assert!(overlapped, "the copies waited for the last read");
    assert_eq!([moved.to_host_bytes, moved.to_device_bytes], [2 * SHAPE.slot_bytes(); 2]);
    medium.release();
    assert_eq!(verify(&below, sequence, &links), ([2, 0, 1], vec![]));
    below.rig.check_budgets();
}

#[test]
fn staged_sections_give_their_memory_back() {
    let medium = MemoryMedium::new(Completion::Threads { threads: 1, deadline_millis: 2000 });
    let below = open(3, 2, 8, medium.clone());
    let links = chain(HOME, 1, 24);
    let (sequence, _) = below.rig.run(HOME, &links);
    let places = below.rig.cache.places(sequence).unwrap();
    let on_disk: Vec<u32> = (0..24).filter(|block| matches!(places[*block as usize], BlockPlace::Disk)).collect();
    drop(places);
    let capacity = below.rig.cache.stage_capacity();
    assert!(capacity >= PIECES);
    let section = SHAPE.code_section(0);
    let wanted: Vec<StagedSection> =
        on_disk.iter().cycle().take(capacity as usize).map(|block| StagedSection { block: *block, section }).collect();
    // Dropped while the reads are under way, with and without waiting: the memory comes back each time.
    for round in 0..20 {
        // Nothing but the calls themselves takes in what has ended.
        let until = Instant::now() + Duration::from_secs(10);
        let mut stage = loop {
            match below.rig.cache.stage(sequence, &wanted).unwrap() {
                Some(stage) => break stage,
                None => assert!(Instant::now() < until, "round {round}: the memory did not come back"),
            }
        };
        assert!(below.rig.cache.stage(sequence, &wanted[..1]).unwrap().is_none(), "all of it is in use");
        if round % 2 == 0 {
            let found = stage.wait();
            assert!(stage.is_done());
            assert!(found.iter().all(Result::is_ok));
            // Waiting again tells the same.
            assert_eq!(stage.wait(), found);
        }
    }
    below.rig.cache.close(sequence);
    below.rig.check_budgets();
}

/// The medium fails for good: the tier goes offline with a reason, the cache goes on with what it has, and says when that is not enough.
#[test]
fn a_failing_medium_costs_what_was_only_there() {
    let medium = FailNth::new(over(Image::new()), Plan::nth(u64::MAX, Fault::Errno(5)));
    let below = open(4, 2, 8, medium.clone());
    let links = chain(HOME, 1, 30);
    let (sequence, _) = below.rig.run(HOME, &links[..20]);
    let (counts, lost) = verify(&below, sequence, &links[..20]);
    assert_eq!(lost, vec![]);
    medium.arm(Plan::nth(1, Fault::Errno(5)).repeat(Repeat::Forever));
    let (after, lost) = verify(&below, sequence, &links[..20]);
    assert_eq!((after[0], after[1], lost.len()), (counts[0], counts[1], counts[2]), "memory is untouched");
    let DiskStatus::Open(DiskState::Offline { reason }) = below.rig.cache.disk_status() else {
        panic!("{:?}", below.rig.cache.disk_status());
    };
    assert!(reason.contains("Input/output error"), "{reason}");
    let repaired = lost.iter().filter(|block| repair(&below, sequence, **block, links[**block as usize])).count();
    assert!(repaired < lost.len(), "device and host do not hold the sequence");
    let Grant::NoRoom(figures) = below.rig.reserve(sequence, Some(links[20])) else { panic!("there is no room") };
    assert_eq!(figures.device_live_slots, 4);
    below.rig.check_budgets();
    below.rig.cache.close(sequence);
    // A sequence that fits goes on.
    let short = chain(HOME, 9, 4);
    let (sequence, _) = below.rig.run(HOME, &short);
    assert_eq!(verify(&below, sequence, &short).1, vec![]);
    below.rig.cache.close(sequence);
    // The medium is well again: a probe brings the tier back.
    medium.heal();
    for _ in 0..200 {
        if below.tier.state() == DiskState::Ready {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(below.tier.state(), DiskState::Ready);
    let (sequence, _) = below.rig.run(HOME, &links);
    assert_eq!(verify(&below, sequence, &links).1, vec![]);
    below.rig.check_budgets();
}

/// The n-th operation of the medium fails, for every n of a life that spills, loads and stages.
#[test]
fn whichever_operation_fails_nothing_wrong_is_read() {
    let host_bytes = host_bytes_for(3, 2, 5);
    let faults =
        [Fault::Errno(5), Fault::Errno(28), Fault::Short, Fault::Flip { bit: 40_011 }, Fault::Slow { millis: 3 }];
    for fault in faults {
        let mut n = 1;
        loop {
            let medium = FailNth::new(over(Image::new()), Plan::nth(n, fault));
            match try_open(3, host_bytes, 5, Arc::clone(&medium) as Arc<dyn Medium>) {
                Ok(below) => live(&below),
                // The tier could not be opened, and the reason is named.
                Err(error) => assert!(error.to_string().contains("Absent"), "{error}"),
            }
            if medium.fired() == 0 {
                break;
            }
            n += 7;
        }
        println!("{fault:?}: every 7th of {n} operations failed once");
        assert!(n > 50, "{fault:?}: {n}");
    }
}

fn live(below: &Below) {
    let links = [chain(HOME, 1, 14), chain(HOME, 2, 14)];
    for round in 0..4 {
        let links = &links[round % 2];
        let sequence = below.rig.cache.open(HOME);
        let acquired = below.rig.cache.acquire(sequence, links, Accept::Exact).unwrap();
        below.rig.cache.prefetch(sequence, Tier::Host).unwrap();
        let mut have = acquired.tiers.len();
        while have < links.len() && below.rig.reserve(sequence, Some(links[have])) == Grant::Granted {
            below.rig.fill(sequence, have as u32, links[have]);
            have += 1;
        }
        for _ in 0..3 {
            let (_, lost) = verify(below, sequence, &links[..have]);
            lost.into_iter().all(|block| repair(below, sequence, block, links[block as usize]));
        }
        below.rig.check_budgets();
        below.rig.cache.close(sequence);
    }
    settle(below);
    assert_eq!(below.tier.capacity().pinned, 0);
}

/// Random sequences over shared chains beside a medium that fails, flips bits and comes back, and reopened now and then.
#[test]
fn random_lives_never_read_wrong_bytes() {
    let (mut lost_in_all, mut on_disk, mut hits, mut offline) = (0, 0, 0, 0);
    let host_bytes = host_bytes_for(4, 4, 6);
    let is_soak = std::env::var_os("KVTIER_SOAK").is_some_and(|value| value == "1");
    for seed in 0..if is_soak { 1500 } else { 24 } {
        let mut random = SplitMix64::new(seed);
        let mut image = Image::new();
        for _ in 0..3 {
            let memory = over(image);
            let medium = FailNth::new(memory.clone(), Plan::nth(u64::MAX, Fault::Errno(5)));
            let below = try_open(4, host_bytes, 6, Arc::clone(&medium) as Arc<dyn Medium>).unwrap();
            let mut running: Vec<(SequenceId, Vec<Link>, usize)> = Vec::new();
            for _ in 0..60 {
                match random.below(12) {
                    0..4 if running.len() < 3 => {
                        let links = branch(
                            HOME,
                            random.below(3) as u32,
                            random.below(12) as u32,
                            10 + random.below(3) as u32,
                            18,
                        );
                        let sequence = below.rig.cache.open(HOME);
                        let found = below.rig.cache.acquire(sequence, &links, Accept::Exact).unwrap().tiers;
                        hits += found.iter().filter(|tier| **tier == Tier::Disk).count();
                        running.push((sequence, links, found.len()));
                    }
                    0..7 if !running.is_empty() => {
                        let index = random.below(running.len() as u64) as usize;
                        let (sequence, links, have) = &mut running[index];
                        for _ in 0..1 + random.below(6) {
                            if *have == links.len()
                                || below.rig.reserve(*sequence, Some(links[*have])) != Grant::Granted
                            {
                                break;
                            }
                            below.rig.fill(*sequence, *have as u32, links[*have]);
                            *have += 1;
                        }
                    }
                    7 if !running.is_empty() => {
                        let index = random.below(running.len() as u64) as usize;
                        below.rig.cache.close(running.swap_remove(index).0);
                    }
                    8 if !running.is_empty() => {
                        let index = random.below(running.len() as u64) as usize;
                        let nearest = if random.chance(128) { Tier::Device } else { Tier::Host };
                        below.rig.cache.prefetch(running[index].0, nearest).unwrap();
                    }
                    9 => {
                        let fault = [Fault::Errno(5), Fault::Short, Fault::Flip { bit: random.below(90_000) }]
                            [random.below(3) as usize];
                        let scope = [Scope::Read, Scope::Write, Scope::Any][random.below(3) as usize];
                        medium.arm(Plan::nth(1, fault).on(scope).repeat(Repeat::Times(1 + random.below(6))));
                    }
                    10 => {
                        medium.heal();
                        memory.edit(|image| {
                            let files = image.files();
                            let (file, info) = files[random.below(files.len() as u64) as usize];
                            if file.0 > 2 {
                                image.flip_bit(file, random.below(8 * info.bytes));
                            }
                        });
                    }
                    _ => medium.heal(),
                }
                for (sequence, links, have) in &running {
                    let (counts, lost) = verify(&below, *sequence, &links[..*have]);
                    on_disk += counts[2];
                    lost_in_all += lost.len();
                    for block in lost {
                        repair(&below, *sequence, block, links[block as usize]);
                    }
                }
                below.rig.check_budgets();
            }
            for (sequence, ..) in running {
                below.rig.cache.close(sequence);
            }
            medium.heal();
            if random.chance(128) {
                below.rig.cache.close_disk(Duration::from_secs(2));
            } else {
                settle(&below);
                assert_eq!(below.tier.capacity().pinned, 0);
            }
            let capacity = below.tier.capacity();
            assert!(memory.image().allocated_bytes() <= capacity.budget_bytes);
            offline += below.tier.counters().offline;
            drop(below);
            image = memory.image();
        }
    }
    println!("{on_disk} blocks read from the disk, {hits} hits there, {lost_in_all} losses, {offline} times offline");
    assert!(on_disk > 1000 && hits > 100 && lost_in_all > 50);
}
