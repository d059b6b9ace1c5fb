//! The life of records: written, found, pinned, reclaimed, deleted, recovered.

mod io_common;
mod support;

use std::sync::Arc;

use cache_core::buffer::Buffer;
use cache_core::hash::Namespace;
use cache_core::miss::MissReason;
use disk_tier::io::rig::{Completion, CrashMedium, Image, MemoryMedium};
use disk_tier::io::{FileId, Medium, Memory};
use disk_tier::testing::{PlantedBug, Testing};
use disk_tier::{Admission, DiskConfig, DiskEnd, DiskError, DiskOk, DiskState, DiskTier, Refusal, section_span};
use io_common::Pages;
use support::*;

#[test]
fn what_was_written_survives_an_orderly_end_and_a_crash() {
    let (tier, medium) = fresh(16);
    written(&tier, 0..30);
    let crashed = medium.image();
    tier.close(5000);
    let closed = medium.image();
    for (image, snapshots, what) in [(crashed, 0, "crash"), (closed, 1, "orderly end")] {
        let (tier, medium) = reopen(&image, 16, None).unwrap();
        assert_eq!(tier.counters().snapshot_loads, snapshots, "{what}");
        assert_eq!(tier.capacity().records, 30, "{what}");
        assert!((0..30).all(|number| holds(&tier, number, 0)), "{what}");
        assert_eq!(tier.capacity().allocated_bytes, medium.image().allocated_bytes());
        written(&tier, 30..40);
        assert!((0..40).all(|number| holds(&tier, number, 0)), "{what}");
        drop(tier);
        // The mark went when it was opened: what came after the snapshot is found all the same.
        let (tier, _) = reopen(&medium.image(), 16, None).unwrap();
        assert_eq!((tier.counters().snapshot_loads, tier.capacity().records), (0, 40), "{what}");
    }
}

/// Fills the log until it has gone round; leaves it in the middle of a segment or at the end of one.
fn filled(segments: u64, extra: u32, is_settled: bool) -> (DiskTier, Arc<MemoryMedium>) {
    let (tier, medium) = fresh(segments);
    written(&tier, 0..(segments as u32 + 2) * SEGMENT_RECORDS + extra);
    if is_settled {
        settle(&tier);
    }
    (tier, medium)
}

#[test]
fn a_full_log_loses_nothing_by_being_opened_again() {
    const SEGMENTS: u64 = 8;
    for (extra, is_settled) in (0..2 * SEGMENT_RECORDS).flat_map(|extra| [(extra, false), (extra, true)]) {
        let (tier, medium) = filled(SEGMENTS, extra, is_settled);
        let killed = (medium.image(), tier.capacity());
        tier.close(5000);
        let closed = (medium.image(), tier.capacity());
        for (what, snapshots, (image, before)) in [("killed", 0, killed), ("orderly end", 1, closed)] {
            let what = format!("{extra} records more, settled: {is_settled}, {what}");
            assert!(before.records >= (SEGMENTS - 3) * u64::from(SEGMENT_RECORDS), "{what}: {before:?}");
            let (tier, medium) = reopen(&image, SEGMENTS, None).unwrap();
            // Whatever the log does by itself, it does before anything is asked of it.
            settle(&tier);
            assert_eq!(tier.counters().snapshot_loads, snapshots, "{what}");
            assert_eq!(tier.capacity().records, before.records, "{what}");
            assert_eq!(tier.counters().evicted, 0, "{what}");
            let there = (0..1000).filter(|number| holds(&tier, *number, 0)).count() as u64;
            assert_eq!(there, before.records, "{what}");
            // Opened and ended again and again, still without a write.
            tier.close(5000);
            let (tier, _) = reopen(&medium.image(), SEGMENTS, None).unwrap();
            settle(&tier);
            assert_eq!((tier.counters().snapshot_loads, tier.capacity().records), (1, before.records), "{what}");
            // Room is made when it is wanted.
            written(&tier, 2000..2000 + 2 * SEGMENT_RECORDS);
            assert!(tier.counters().evicted > 0, "{what}");
        }
    }
}

#[test]
fn a_power_cut_costs_a_full_log_no_more_than_its_unsealed_tail() {
    const SEGMENTS: u64 = 8;
    for extra in 0..SEGMENT_RECORDS {
        let medium = CrashMedium::over(Image::new(), Completion::Inline, u64::MAX);
        let tier = open(Arc::clone(&medium) as Arc<dyn Medium>, SEGMENTS, manual(None)).unwrap();
        let count = (SEGMENTS as u32 + 2) * SEGMENT_RECORDS + extra;
        written(&tier, 0..count);
        settle(&tier);
        let sealed = 0..(count - 1) / SEGMENT_RECORDS * SEGMENT_RECORDS;
        let before: Vec<u32> = sealed.filter(|number| tier.find(&key(*number)).is_ok()).collect();
        assert!(before.len() >= (SEGMENTS as usize - 3) * SEGMENT_RECORDS as usize);
        for seed in 0..20 {
            let (tier, _) = reopen(&medium.crash(seed), SEGMENTS, None).unwrap();
            settle(&tier);
            let lost = before.iter().filter(|number| !holds(&tier, **number, 0)).count();
            assert_eq!(lost, 0, "{extra} records more, seed {seed}");
        }
    }
}

#[test]
fn a_snapshot_that_does_not_fit_is_not_trusted() {
    let (tier, medium) = fresh(16);
    written(&tier, 0..10);
    tier.close(5000);
    let mut image = medium.image();
    image.flip_bit(FileId::SNAPSHOT, 77);
    let (tier, _) = reopen(&image, 16, None).unwrap();
    assert_eq!((tier.counters().snapshot_loads, tier.capacity().records), (0, 10));
}

#[test]
fn a_second_writer_skips() {
    let (tier, _) = fresh(8);
    written(&tier, 1..2);
    assert_eq!(write(&tier, 1, 0), Ok(DiskOk::Present));
    let medium = MemoryMedium::new(Completion::Stepped);
    let pump = Arc::clone(&medium);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let stepper = std::thread::spawn(move || {
        while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
            pump.step(1);
            std::thread::yield_now();
        }
    });
    let tier = open(Arc::clone(&medium) as Arc<dyn Medium>, 8, manual(None)).unwrap();
    settle(&tier);
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    stepper.join().unwrap();
    tier.write(key(2), Memory::Owned(image(2, 0)));
    tier.write(key(2), Memory::Owned(image(2, 0)));
    assert_eq!(end(&tier).result, Err(DiskEnd::Refused(Refusal::PendingElsewhere)));
    assert_eq!(tier.find(&key(2)), Err(MissReason::NeverStored), "invisible until every byte was written");
    if IS_STAGED {
        assert!(tier.step(), "it is encoded");
    }
    assert_eq!(medium.step(1), 1);
    assert_eq!(end(&tier).result, Ok(DiskOk::Written));
    assert_eq!(tier.find(&key(2)).unwrap().bytes, RECORD_BYTES);
}

#[test]
fn a_long_chain_makes_progress_and_pinned_records_stay() {
    const SEGMENTS: u64 = 8;
    let run = |bug| {
        let (tier, medium) = fresh_with(SEGMENTS, bug);
        written(&tier, 0..4);
        let pins: Vec<_> = (0..4).map(|number| tier.pin(&key(number)).unwrap()).collect();
        // Three times what the disk holds.
        for number in 10..10 + 3 * SEGMENTS as u32 * SEGMENT_RECORDS {
            assert_eq!(write(&tier, number, 0), Ok(DiskOk::Written), "block {number}");
            assert!(medium.image().allocated_bytes() <= tier.capacity().budget_bytes);
        }
        let kept = (0..4).filter(|number| holds(&tier, *number, 0)).count();
        let counters = tier.counters();
        assert!(counters.reclaimed_segments >= 2 * SEGMENTS, "{counters:?}");
        if bug.is_none() {
            assert!(counters.reinserted >= 4, "{counters:?}");
            let evicted = (10..100).filter(|number| tier.find(&key(*number)) == Err(MissReason::Evicted)).count();
            assert!(evicted > 20, "{evicted} of 90 misses say that the block was dropped");
        }
        drop(pins);
        kept
    };
    assert_eq!(run(None), 4);
    assert!(run(Some(PlantedBug::IgnorePins)) < 4, "the planted bug was not noticed");
}

#[test]
fn when_everything_is_pinned_a_write_is_full_and_nothing_is_lost() {
    let (tier, _) = fresh(5);
    let mut pins = Vec::new();
    let mut number = 0;
    let end = loop {
        match write(&tier, number, 0) {
            Ok(_) => pins.push(tier.pin(&key(number)).unwrap()),
            Err(end) => break end,
        }
        number += 1;
        assert!(number < 1000);
    };
    assert_eq!(end, DiskEnd::Full);
    // All segments but the one in reserve are full of pinned records.
    assert_eq!(number, 4 * SEGMENT_RECORDS);
    assert!((0..number).all(|number| holds(&tier, number, 0)));
    drop(pins);
    written(&tier, number..number + 20);
}

#[test]
fn read_records_are_written_again_before_unread_ones() {
    let (tier, _) = fresh(6);
    written(&tier, 0..7);
    for number in [1, 4] {
        assert!(holds(&tier, number, 0));
    }
    let mut number = 100;
    while tier.counters().reclaimed_segments == 0 {
        written(&tier, number..number + 1);
        number += 1;
    }
    let there: Vec<u32> = (0..7).filter(|number| tier.find(&key(*number)).is_ok()).collect();
    assert_eq!(there, [1, 4]);
}

#[test]
fn a_segment_is_not_reused_under_its_readers() {
    let run = |bug| {
        let gate = Tapped::new(MemoryMedium::new(Completion::Inline), Gate::default());
        let tier = open(Arc::clone(&gate) as Arc<dyn Medium>, 6, manual(bug)).unwrap();
        written(&tier, 0..7);
        gate.hold(FileId::segment(0));
        let op = tier.read(key(3), SHAPE, Memory::Owned(Buffer::zeroed(SHAPE.slot_bytes() as usize)));
        // Until the read's segment has been reclaimed, and written full again if it may be.
        for number in 100..100 + 10 * SEGMENT_RECORDS {
            tier.write(key(number), Memory::Owned(image(number, 0)));
            settle(&tier);
        }
        assert!(tier.counters().reclaimed_segments >= 1);
        assert_eq!(gate.release(), 1);
        assert!(tier.drain(5000));
        let mut done = Vec::new();
        tier.poll(&mut done);
        done.into_iter().find(|done| done.op == op).expect("the read ends").result
    };
    assert_eq!(run(None), Ok(DiskOk::Read), "its bytes were still there");
    let missed = run(Some(PlantedBug::ReuseUnderReaders));
    // Which of the two it is depends on whether the index has forgotten the record by then.
    let is_noticed = matches!(missed, Err(DiskEnd::Miss(MissReason::Evicted | MissReason::NeverStored)));
    assert!(is_noticed, "reused: not its bytes, and noticed by its place: {missed:?}");
}

#[test]
fn sections_are_read_under_a_pin_with_one_header_read() {
    let (tier, _) = fresh(8);
    written(&tier, 0..3);
    let pin = tier.pin(&key(1)).unwrap();
    let expected = image(1, 0);
    for section in SHAPE.sections() {
        let span = section_span(section);
        tier.read_section(&pin, SHAPE, section, Memory::Owned(Buffer::zeroed(span.bytes as usize)));
        let done = end(&tier);
        let Ok(DiskOk::Section { start }) = done.result else { panic!("{:?}", done.result) };
        let Some(Memory::Owned(found)) = done.memory else { panic!("no memory") };
        let range = section.offset as usize..(section.offset + section.bytes) as usize;
        assert!(found.as_slice()[start as usize..(start + section.bytes) as usize] == expected.as_slice()[range]);
    }
    assert_eq!(tier.counters().section_reads, u64::from(SHAPE.section_count()));
    assert!(tier.pin(&key(9)).is_none());
}

#[test]
fn a_damaged_section_is_a_miss_and_the_record_goes() {
    let (tier, medium) = fresh(8);
    written(&tier, 0..1);
    let pin = tier.pin(&key(0)).unwrap();
    let section = SHAPE.code_section(2);
    medium.edit(|image| image.flip_bit(FileId::segment(0), (4096 + section.offset + 5) * 8));
    tier.read_section(&pin, SHAPE, section, Memory::Owned(Buffer::zeroed(8192)));
    assert_eq!(end(&tier).result, Err(DiskEnd::Miss(MissReason::FailedCheck)));
    assert_eq!((tier.counters().failed_checks, tier.counters().quarantined), (1, 1));
    written(&tier, 0..1);
    assert!(holds(&tier, 0, 0), "written again elsewhere");
}

#[test]
fn lent_memory_is_written_and_read_where_it_lies_and_stays_as_it_was() {
    let (tier, _) = fresh(8);
    let bytes = SHAPE.slot_bytes();
    let (pages, out) = (Pages::new(2 * bytes), Arc::default());
    let lent = |offset| pages.lend(offset, bytes, &out);
    let mut given = lent(0);
    given.as_mut_slice().copy_from_slice(image(5, 0).as_slice());
    tier.write(key(5), given);
    let done = end(&tier);
    assert_eq!(done.result, Ok(DiskOk::Written));
    assert!(done.memory.unwrap().as_slice() == image(5, 0).as_slice(), "what was lent is as it was");
    tier.read(key(5), SHAPE, lent(bytes));
    let done = end(&tier);
    assert_eq!(done.result, Ok(DiskOk::Read));
    assert!(done.memory.unwrap().as_slice() == image(5, 0).as_slice());
}

#[test]
fn a_deleted_namespace_stays_deleted() {
    let run = |bug| {
        let (tier, medium) = fresh_with(16, bug);
        for number in 0..10 {
            for namespace in [1, 2] {
                let (key, image) = block_in(namespace, number, 0);
                assert_eq!(write_image(&tier, key, image), Ok(DiskOk::Written));
            }
        }
        let _ = tier.delete_namespace(Namespace([1; 32]));
        let count = |tier: &DiskTier, namespace| {
            (0..10).filter(|number| read_key(tier, block_in(namespace, *number, 0).0).is_ok()).count()
        };
        assert_eq!((count(&tier, 1), count(&tier, 2)), (0, 10));
        let crashed = medium.image();
        drop(tier);
        let (tier, medium) = reopen(&crashed, 16, None).unwrap();
        let resurrected = count(&tier, 1);
        assert_eq!(count(&tier, 2), 10);
        // What is written later under the same name counts again.
        let (key, image) = block_in(1, 3, 1);
        if bug.is_none() {
            assert_eq!(write_image(&tier, key, image), Ok(DiskOk::Written));
            tier.close(5000);
            let (tier, _) = reopen(&medium.image(), 16, None).unwrap();
            assert_eq!(tier.counters().snapshot_loads, 1);
            assert_eq!((count(&tier, 1), count(&tier, 2)), (1, 10));
        }
        resurrected
    };
    assert_eq!(run(None), 0);
    assert_eq!(run(Some(PlantedBug::ForgetDeletion)), 10, "the planted bug was not noticed");
}

#[test]
fn a_read_under_way_does_not_outlive_its_namespace() {
    let run = |bug| {
        let gate = Tapped::new(MemoryMedium::new(Completion::Inline), Gate::default());
        let tier = open(Arc::clone(&gate) as Arc<dyn Medium>, 8, manual(bug)).unwrap();
        let (key, image) = block_in(1, 3, 0);
        assert_eq!(write_image(&tier, key, image), Ok(DiskOk::Written));
        gate.hold(FileId::segment(0));
        tier.read(key, SHAPE, Memory::Owned(Buffer::zeroed(SHAPE.slot_bytes() as usize)));
        tier.delete_namespace(Namespace([1; 32])).unwrap();
        assert_eq!(gate.release(), 1);
        end(&tier).result
    };
    assert!(matches!(run(None), Err(DiskEnd::Miss(_))), "{:?}", run(None));
    assert_eq!(run(Some(PlantedBug::IgnoreEpoch)), Ok(DiskOk::Read), "the planted bug was not noticed");
}

#[test]
fn a_deletion_leaves_the_table_when_nothing_older_remains() {
    let (tier, medium) = fresh(5);
    let (key, image) = block_in(1, 0, 0);
    assert_eq!(write_image(&tier, key, image), Ok(DiskOk::Written));
    tier.delete_namespace(Namespace([1; 32])).unwrap();
    let listed = |medium: &MemoryMedium| {
        let bytes = medium.image().bytes_at(FileId(0), 12, 4);
        u32::from_le_bytes(bytes.try_into().unwrap())
    };
    assert_eq!(listed(&medium), 1);
    written(&tier, 100..100 + 8 * SEGMENT_RECORDS);
    tier.close(5000);
    assert_eq!(listed(&medium), 0, "every segment was begun anew since");
}

#[test]
fn deleted_records_stay_deleted_across_a_crash() {
    let (tier, medium) = fresh(8);
    written(&tier, 0..12);
    assert_eq!(delete(&tier, 2), Ok(DiskOk::Deleted));
    assert_eq!(delete(&tier, 10), Ok(DiskOk::Deleted));
    assert_eq!(delete(&tier, 10), Err(DiskEnd::Miss(MissReason::NeverStored)));
    let (tier, _) = reopen(&medium.image(), 8, None).unwrap();
    let there: Vec<u32> = (0..12).filter(|number| holds(&tier, *number, 0)).collect();
    assert_eq!(there, [0, 1, 3, 4, 5, 6, 7, 8, 9, 11]);
}

#[test]
fn damaged_bytes_are_not_written() {
    let (tier, _) = fresh(8);
    let mut bad = image(1, 0);
    bad.as_mut_slice()[SHAPE.code_section(1).offset as usize] ^= 1;
    assert!(matches!(write_image(&tier, key(1), bad), Err(DiskEnd::Damaged(_))));
    assert!(matches!(write_image(&tier, key(2), image(1, 0)), Err(DiskEnd::Damaged(_))));
    assert!(matches!(write_image(&tier, key(1), Buffer::zeroed(4096)), Err(DiskEnd::Size { .. })));
    assert_eq!(tier.counters().damaged_writes, 2);
    assert_eq!(tier.find(&key(1)), Err(MissReason::NeverStored));
}

#[test]
fn admission_and_limit_refuse_and_live_writes_go() {
    let medium = MemoryMedium::new(Completion::Inline);
    let mut settings = config(8);
    settings.admission = Admission::SecondHit;
    settings.write_limit_bytes_s = Some(4 * SHAPE.slot_bytes());
    let tier = DiskTier::over_with(medium, settings, manual(None)).unwrap();
    tier.wait_ready(5000);
    let refused = |refusal| Err(DiskEnd::Refused(refusal));
    assert_eq!(write(&tier, 1, 0), refused(Refusal::Admission));
    assert_eq!(write(&tier, 1, 0), Ok(DiskOk::Written));
    for number in 2..20 {
        assert_eq!(write(&tier, number, 0), refused(Refusal::Admission));
    }
    let limited = (2..20).filter(|number| write(&tier, *number, 0) == refused(Refusal::Limit)).count();
    assert!(limited >= 10, "{limited} of 18 writes at once were held back");
    let memory = Memory::Owned(image(30, 0));
    tier.submit_write(disk_tier::WriteRequest { key: key(30), shape: None, memory, is_live: true });
    assert_eq!(end(&tier).result, Ok(DiskOk::Written));
}

#[test]
fn budgets_too_small_are_refused_with_the_minimum() {
    assert_eq!(DiskTier::minimum_bytes(), 64 << 20);
    let medium = MemoryMedium::new(Completion::Inline);
    let error = DiskTier::over(medium, DiskConfig::new((64 << 20) - 1)).unwrap_err();
    assert!(matches!(error, DiskError::Budget { minimum_bytes: 67_108_864, .. }), "{error}");
    let medium = MemoryMedium::new(Completion::Inline);
    let tier = DiskTier::over(Arc::clone(&medium) as Arc<dyn Medium>, DiskConfig::new(64 << 20)).unwrap();
    assert_eq!(tier.wait_ready(5000), DiskState::Ready);
    written(&tier, 0..10);
    assert!(medium.image().allocated_bytes() <= 64 << 20);
    let capacity = tier.capacity();
    assert!(capacity.index_bytes <= capacity.records_max * 80, "{capacity:?}");
    println!("index bytes per record: {}", capacity.index_bytes as f64 / capacity.records_max as f64);
}

#[test]
fn another_version_is_refused_by_name_and_nothing_is_touched() {
    let (tier, medium) = fresh(8);
    written(&tier, 0..5);
    tier.close(5000);
    let mut image = medium.image();
    // Another version under a right sum: XXH3-64 with the superblock's seed over all but the last 8 bytes.
    for version in [2, 7] {
        for file in FileId::SUPERBLOCKS {
            let mut bytes = image.bytes_at(file, 0, 4096);
            bytes[8] = version;
            let sum = twox_hash::XxHash3_64::oneshot_with_seed(0x6b76_7464_6973_6b01, &bytes[..4088]);
            bytes[4088..].copy_from_slice(&sum.to_le_bytes());
            image.write(file, 0, &bytes);
        }
        let error = reopen(&image, 8, None).map(drop).unwrap_err();
        assert!(matches!(error, DiskError::Version { supported: 3, .. }), "{error}");
        let said = format!("open the disk tier: it has format version {version}, this program reads version 3");
        assert_eq!(error.to_string(), said);
        let medium = MemoryMedium::over(image.clone(), Completion::Inline);
        assert!(matches!(DiskTier::verify_medium(Arc::clone(&medium) as _), Err(DiskError::Version { .. })));
        assert!(medium.image() == image);
    }
}

#[test]
fn two_damaged_superblocks_are_an_empty_store_under_a_new_id() {
    let (tier, medium) = fresh(8);
    written(&tier, 0..5);
    drop(tier);
    let id = |image: &Image| image.bytes_at(FileId(0), 16, 16);
    let old = id(&medium.image());
    let mut one = medium.image();
    one.flip_bit(FileId(0), 300);
    let (tier, _) = reopen(&one, 8, None).unwrap();
    assert_eq!((tier.counters().reformatted, tier.capacity().records), (0, 5));
    let mut both = one;
    both.flip_bit(FileId(1), 999);
    let (tier, medium) = reopen(&both, 8, None).unwrap();
    assert_eq!((tier.counters().reformatted, tier.capacity().records), (1, 0));
    assert_ne!(id(&medium.image()), old);
    written(&tier, 0..5);
}

#[test]
fn a_vanished_superblock_takes_the_tier_offline_until_it_is_back() {
    let medium = MemoryMedium::new(Completion::Inline);
    let mut settings = config(8);
    settings.probe_millis = 1;
    let tier = DiskTier::over_with(Arc::clone(&medium) as _, settings, manual(None)).unwrap();
    tier.wait_ready(5000);
    written(&tier, 0..3);
    let superblock = medium.image().bytes_at(FileId(1), 0, 4096);
    medium.edit(|image| image.remove(FileId(1)));
    let state = loop {
        settle(&tier);
        if tier.state() != DiskState::Ready {
            break tier.state();
        }
        std::thread::yield_now();
    };
    assert_eq!(state, DiskState::Offline { reason: "the superblock has vanished".into() });
    assert_eq!(miss(read(&tier, 1)), MissReason::TierOffline);
    assert_eq!(write(&tier, 7, 0), Err(DiskEnd::Offline));
    medium.edit(|image| {
        image.create(FileId(1), 4096);
        image.write(FileId(1), 0, &superblock);
    });
    assert!(matches!(tier.wait_ready(5000), DiskState::Offline { .. } | DiskState::Ready));
    while tier.state() != DiskState::Ready {
        settle(&tier);
        std::thread::yield_now();
    }
    assert!(holds(&tier, 1, 0));
}

#[test]
fn a_full_file_system_caps_the_log() {
    let medium = MemoryMedium::new(Completion::Inline);
    medium.limit(8192 + 5 * SEGMENT_BYTES + 1000);
    let tier = open(Arc::clone(&medium) as _, 12, manual(None)).unwrap();
    written(&tier, 0..60);
    assert_eq!((tier.state(), tier.capacity().segments), (DiskState::Ready, 5));
    assert_eq!(tier.notice().unwrap(), "5 of 12 segments could be made: No space left on device (os error 28)");
    let medium = MemoryMedium::new(Completion::Inline);
    medium.limit(8192 + SEGMENT_BYTES);
    let tier = open(Arc::clone(&medium) as _, 12, manual(None)).unwrap();
    settle(&tier);
    let DiskState::Offline { reason } = tier.state() else { panic!("{:?}", tier.state()) };
    assert!(reason.starts_with("make a segment: No space left on device"), "{reason}");
}

#[test]
fn another_budget_keeps_what_fits() {
    let (tier, medium) = fresh(16);
    written(&tier, 0..80);
    tier.close(5000);
    let (tier, medium) = reopen(&medium.image(), 8, None).unwrap();
    let capacity = tier.capacity();
    assert!(medium.image().allocated_bytes() <= capacity.budget_bytes, "{capacity:?}");
    let there = (0..80).filter(|number| holds(&tier, *number, 0)).count();
    assert!((20..80).contains(&there), "{there} of 80 records are in the segments that were kept");
    tier.close(5000);
    let (tier, medium) = reopen(&medium.image(), 20, None).unwrap();
    assert_eq!((0..80).filter(|number| holds(&tier, *number, 0)).count(), there);
    written(&tier, 100..200);
    assert!(medium.image().allocated_bytes() <= tier.capacity().budget_bytes);
    assert!(tier.capacity().segments > 8);
}

#[test]
fn a_budget_too_small_for_the_store_is_refused_and_nothing_is_touched() {
    let (tier, medium) = fresh(16);
    written(&tier, 0..80);
    tier.close(5000);
    let image = medium.image();
    let with = |budget_bytes: u64| {
        let medium = MemoryMedium::over(image.clone(), Completion::Inline);
        // A new store under this budget would have smaller segments.
        let testing = Testing { segment_bytes: Some(SEGMENT_BYTES / 4), ..manual(None) };
        let tier = DiskTier::over_with(Arc::clone(&medium) as _, DiskConfig::new(budget_bytes), testing);
        (tier, medium)
    };
    let budget_bytes = config(2).budget_bytes;
    let (refused, medium) = with(budget_bytes);
    let error = refused.unwrap_err();
    let DiskError::BudgetOfStore { budget_bytes: given, needed_bytes } = error else { panic!("{error}") };
    assert!(medium.image() == image, "nothing was touched");
    let text = error.to_string();
    assert_eq!(given, budget_bytes);
    assert!(text.contains(&budget_bytes.to_string()) && text.contains(&needed_bytes.to_string()), "{text}");
    // What it names is the least there is.
    assert!(matches!(with(needed_bytes - 1).0, Err(DiskError::BudgetOfStore { .. })));
    let (tier, medium) = with(needed_bytes);
    let tier = tier.unwrap();
    assert_eq!((tier.wait_ready(5000), tier.capacity().segments_max), (DiskState::Ready, 4));
    assert!(tier.capacity().records > 0);
    assert!(medium.image().allocated_bytes() <= needed_bytes);
}

#[test]
fn the_scrub_finds_what_is_damaged() {
    let (tier, medium) = fresh(8);
    written(&tier, 0..16);
    delete(&tier, 3).unwrap();
    tier.close(5000);
    let verify = |image| DiskTier::verify_medium(MemoryMedium::over(image, Completion::Inline) as _).unwrap();
    let report = verify(medium.image());
    assert_eq!((report.records, report.superblocks, report.has_snapshot), (15, 2, true));
    assert_eq!(report.damage, []);
    assert_eq!(report.footers, 3);
    let mut image = medium.image();
    let payload = (4096 + SHAPE.code_section(0).offset) * 8;
    image.flip_bit(FileId::segment(0), payload);
    image.flip_bit(FileId::segment(1), (4096 + 100) * 8);
    image.flip_bit(FileId(1), 5);
    let report = verify(image);
    assert_eq!((report.records, report.superblocks), (13, 1));
    assert_eq!(report.damage.len(), 3, "{:?}", report.damage);
}

#[test]
fn the_tier_works_with_its_thread() {
    let medium = MemoryMedium::new(Completion::Threads { threads: 4, deadline_millis: 0 });
    let tier = open(medium, 8, Testing { is_manual: false, ..manual(None) }).unwrap();
    assert_eq!(tier.state(), DiskState::Ready);
    let mut written = 0;
    for number in 0..400 {
        tier.write(key(number), Memory::Owned(image(number, 0)));
        if number % 16 == 15 {
            assert!(tier.drain(10_000));
            let mut done = Vec::new();
            tier.poll(&mut done);
            written += done.iter().filter(|done| done.result == Ok(DiskOk::Written)).count();
        }
    }
    assert_eq!(written, 400);
    let there = (0..400).filter(|number| holds(&tier, *number, 0)).count();
    assert!(there >= 14, "{there} records of the last segments are there");
    tier.close(5000);
    assert_eq!(tier.state(), DiskState::Closed);
}

#[test]
fn a_log_of_many_segments_is_open_at_once_and_indexed_soon() {
    let directory = tempfile::tempdir().unwrap();
    let budget = scale(1_000_000_000, 200_000_000_000);
    let records = disk_tier::testing::sparse_log(directory.path(), budget, 1 << 20).unwrap();
    let started = std::time::Instant::now();
    let tier = DiskTier::open(directory.path(), DiskConfig::new(budget)).unwrap();
    let opened = started.elapsed();
    assert_eq!(tier.wait_ready(60_000), DiskState::Ready);
    let capacity = tier.capacity();
    println!(
        "{} segments, {records} records: open after {opened:?}, indexed after {:?}, {} index bytes a record, {}",
        capacity.segments,
        started.elapsed(),
        capacity.index_bytes / capacity.records_max,
        tier.describe(),
    );
    assert_eq!(capacity.records, records);
    assert_eq!(tier.counters().skipped_records, 0);
}
