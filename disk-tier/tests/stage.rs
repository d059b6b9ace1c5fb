//! The byte stage: what it saves, that it is undone bit by bit, and that no damage to a staged record gets through.

mod support;

use std::sync::Arc;

use cache_core::buffer::Buffer;
use cache_core::chain::Link;
use cache_core::contract::Random;
use cache_core::form::{Form, Lineage};
use cache_core::hash::{BlockHash, Namespace};
use cache_core::header::{SlotHeader, encoded_bytes, seal_image};
use cache_core::key::CopyKey;
use cache_core::payload::BlockShape;
use disk_tier::io::rig::{Completion, Image, MemoryMedium};
use disk_tier::io::{FileId, Memory};
use disk_tier::testing::Testing;
use disk_tier::{ByteStage, DiskConfig, DiskEnd, DiskOk, DiskTier, VerifyReport, WriteRequest, section_span};
use support::{config, end, manual, realistic, threaded};

/// Segments with room for the larger blocks; small ones have those of the other suites.
const LARGE_SEGMENT_BYTES: u64 = 8 << 20;
const SMALL_SEGMENTS: u64 = 8;
const HEADER_PAGE: u64 = 4096;
/// Bytes before the table of a staged record's sections.
const HEAD_BYTES: u64 = 16;
/// SmolLM2-135M's blocks.
const SMOLLM2: BlockShape = BlockShape { layers: 30, kv_heads: 3, head_dim: 64, block_tokens: 64, form: Form::Raw16 };
/// Small ones, whose sections are shorter than a part of `sx12`.
const SMALL: BlockShape = BlockShape { layers: 7, kv_heads: 2, head_dim: 16, block_tokens: 16, form: Form::Raw16 };

fn large_config(stage: ByteStage) -> DiskConfig {
    let mut config = DiskConfig::new(128 << 20);
    (config.stage, config.deadline_millis, config.probe_millis) = (stage, 20_000, 1 << 30);
    config
}

fn open_with(medium: Arc<MemoryMedium>, config: DiskConfig, testing: Testing) -> DiskTier {
    let tier = DiskTier::over_with(medium, config, testing).unwrap();
    tier.wait_ready(20_000);
    tier
}

/// A tier of small segments.
fn open(image: &Image, stage: ByteStage) -> (DiskTier, Arc<MemoryMedium>) {
    let medium = MemoryMedium::over(image.clone(), Completion::Inline);
    let config = DiskConfig { stage, ..config(SMALL_SEGMENTS) };
    (open_with(Arc::clone(&medium), config, manual(None)), medium)
}

fn large(testing: Testing) -> Testing {
    Testing { segment_bytes: Some(LARGE_SEGMENT_BYTES), ..testing }
}

fn open_large(image: &Image, stage: ByteStage) -> (DiskTier, Arc<MemoryMedium>) {
    let medium = MemoryMedium::over(image.clone(), Completion::Inline);
    (open_with(Arc::clone(&medium), large_config(stage), large(manual(None))), medium)
}

fn key(shape: &BlockShape, number: u8) -> CopyKey {
    CopyKey { form: shape.form_map(), ..CopyKey::exact(Namespace([7; 32]), BlockHash([number; 32])) }
}

/// A sealed image whose sections `fill` has filled.
fn sealed(shape: &BlockShape, number: u8, mut fill: impl FnMut(&mut [u8])) -> Buffer {
    let key = key(shape, number);
    let mut image = Buffer::zeroed(shape.slot_bytes() as usize);
    for section in shape.sections() {
        fill(&mut image.as_mut_slice()[section.offset as usize..(section.offset + section.bytes) as usize]);
    }
    let link = Link { hash: key.hash, parent: None, depth: 0 };
    seal_image(shape, key, Lineage::of(key.form), link, image.as_mut_slice());
    image
}

/// Values as most keys and values are: every section of any form is filled with them.
fn realistic_image(shape: &BlockShape, number: u8) -> Buffer {
    let mut random = Random::new(u64::from(number));
    sealed(shape, number, |section| {
        section.chunks_mut(2).for_each(|value| {
            value.copy_from_slice(&realistic(&mut random).to_le_bytes()[..value.len()]);
        });
    })
}

/// Bytes that every coding makes shorter: few values, in a random order.
fn repeated_image(shape: &BlockShape, number: u8) -> Buffer {
    let mut random = Random::new(u64::from(number));
    let words = [0x3f80u16, 0xbf12, 0x3e44, 0x3f81].map(u16::to_le_bytes);
    sealed(shape, number, |section| {
        for word in section.chunks_mut(8) {
            let value = words[random.below(4) as usize].repeat(4);
            word.copy_from_slice(&value[..word.len()]);
        }
    })
}

fn random_image(shape: &BlockShape, number: u8) -> Buffer {
    let mut random = Random::new(u64::from(number));
    sealed(shape, number, |section| section.fill_with(|| random.next() as u8))
}

fn write(tier: &DiskTier, shape: &BlockShape, number: u8, image: &Buffer) {
    let memory = Memory::Owned(image.clone());
    tier.submit_write(WriteRequest { key: key(shape, number), shape: Some(*shape), memory, is_live: false });
    let done = end(tier);
    assert_eq!(done.result, Ok(DiskOk::Written));
    let Some(Memory::Owned(back)) = done.memory else { panic!("the caller's memory comes back") };
    assert!(back.as_slice() == image.as_slice(), "as it was given");
}

/// Reads a block whole. `Ok`: it is what was written, to the last byte of its sections.
fn read(tier: &DiskTier, shape: &BlockShape, number: u8, expected: &Buffer) -> Result<(), DiskEnd> {
    let mut dirty = Buffer::zeroed(shape.slot_bytes() as usize);
    dirty.as_mut_slice().fill(0xaa);
    tier.read(key(shape, number), *shape, Memory::Owned(dirty));
    let done = end(tier);
    let Some(Memory::Owned(found)) = done.memory else { panic!("the caller's memory comes back") };
    done.result?;
    assert!(found.as_slice() == expected.as_slice(), "{shape:?}: other bytes");
    Ok(())
}

/// Reads a block section by section, in an order of its own; the same.
fn read_sections(tier: &DiskTier, shape: &BlockShape, number: u8, expected: &Buffer) -> Result<(), DiskEnd> {
    let pin = tier.pin(&key(shape, number)).ok_or(DiskEnd::Offline)?;
    let sections: Vec<_> = shape.sections().collect();
    for section in sections.iter().rev() {
        tier.read_section(&pin, *shape, *section, Memory::Owned(Buffer::zeroed(section_span(*section).bytes as usize)));
        let done = end(tier);
        let Some(Memory::Owned(found)) = done.memory else { panic!("the caller's memory comes back") };
        let Ok(DiskOk::Section { start }) = done.result else { return done.result.map(drop) };
        let found = &found.as_slice()[start as usize..(start + section.bytes) as usize];
        let range = section.offset as usize..(section.offset + section.bytes) as usize;
        assert!(found == &expected.as_slice()[range], "{shape:?}, section {}", section.index);
    }
    Ok(())
}

fn verify(image: &Image) -> VerifyReport {
    DiskTier::verify_medium(MemoryMedium::over(image.clone(), Completion::Inline)).unwrap()
}

#[test]
fn a_lossless_block_takes_a_quarter_less_of_the_disk_and_comes_back_bit_by_bit() {
    let (tier, medium) = open_large(&Image::new(), ByteStage::Auto);
    let image = realistic_image(&SMOLLM2, 1);
    write(&tier, &SMOLLM2, 1, &image);
    let per_token = |bytes: u64| bytes as f64 / f64::from(SMOLLM2.block_tokens);
    let (stored, slot) = (tier.capacity().record_bytes, SMOLLM2.slot_bytes());
    let ratio = slot as f64 / stored as f64;
    println!("{:.0} bytes a token instead of {:.0}: {ratio:.3} times fewer", per_token(stored), per_token(slot));
    assert!(ratio >= 1.3, "{ratio}");
    let counters = tier.counters();
    assert_eq!((counters.staged_writes, counters.saved_bytes), (1, slot - stored));
    assert_eq!(read(&tier, &SMOLLM2, 1, &image), Ok(()));
    assert_eq!(tier.counters().read_bytes, stored, "what is stored is read, and no more");
    assert_eq!(read_sections(&tier, &SMOLLM2, 1, &image), Ok(()));
    let sections = tier.counters().read_bytes - stored;
    assert!(sections < stored + 30 * 2 * 4096, "{sections} bytes for {stored}: whole pages around each section");
    drop(tier);
    let report = verify(&medium.image());
    assert_eq!((report.records, report.staged_records, report.record_bytes), (1, 1, stored));
    assert_eq!(report.damage, []);
}

#[test]
fn every_form_comes_back_under_every_stage() {
    let stages = [ByteStage::Off, ByteStage::Auto, ByteStage::Sx12, ByteStage::Lz4, ByteStage::Zstd];
    let shapes: Vec<BlockShape> = [SMALL, BlockShape { layers: 2, ..SMOLLM2 }]
        .iter()
        .flat_map(|shape| Form::ALL.map(|form| shape.with_form(form)))
        .collect();
    for stage in stages {
        let (tier, medium) = open_large(&Image::new(), stage);
        let images: Vec<Buffer> = (0..).zip(&shapes).map(|(number, shape)| repeated_image(shape, number)).collect();
        for (number, (shape, image)) in (0..).zip(shapes.iter().zip(&images)) {
            write(&tier, shape, number, image);
        }
        let staged = tier.counters().staged_writes;
        let expected = match stage {
            ByteStage::Off => 0,
            // `raw16` of both shapes.
            ByteStage::Auto | ByteStage::Sx12 => 2,
            ByteStage::Lz4 | ByteStage::Zstd => shapes.len() as u64,
        };
        assert_eq!(staged, expected, "{stage:?}");
        let report = verify(&medium.image());
        assert_eq!((report.records, report.staged_records, report.damage), (shapes.len() as u64, staged, vec![]));
        let read_all = |tier: &DiskTier| {
            for (number, (shape, image)) in (0..).zip(shapes.iter().zip(&images)) {
                assert_eq!(read(tier, shape, number, image), Ok(()), "{stage:?}, {shape:?}");
                assert_eq!(read_sections(tier, shape, number, image), Ok(()), "{stage:?}, {shape:?}");
            }
        };
        read_all(&tier);
        // Without a footer, record by record, by a tier that stages nothing.
        let (again, _) = open_large(&medium.image(), ByteStage::Off);
        assert_eq!((again.capacity().records, again.counters().skipped_records), (shapes.len() as u64, 0));
        read_all(&again);
    }
}

#[test]
fn what_does_not_gain_a_page_is_written_as_it_is() {
    for stage in [ByteStage::Sx12, ByteStage::Lz4, ByteStage::Zstd] {
        let (tier, medium) = open(&Image::new(), stage);
        let (plain, plain_medium) = open(&Image::new(), ByteStage::Off);
        let image = random_image(&SMALL, 1);
        for tier in [&tier, &plain] {
            write(tier, &SMALL, 1, &image);
            assert_eq!(tier.find(&key(&SMALL, 1)).unwrap().bytes, SMALL.slot_bytes());
        }
        assert_eq!(tier.counters().staged_writes, 0);
        let payload = (SMALL.header_bytes(), SMALL.slot_bytes() - SMALL.header_bytes());
        let bytes =
            |medium: &MemoryMedium| medium.image().bytes_at(FileId::segment(0), HEADER_PAGE + payload.0, payload.1);
        assert!(bytes(&medium) == bytes(&plain_medium));
        assert_eq!(read(&tier, &SMALL, 1, &image), Ok(()));
    }
}

#[test]
fn values_that_are_no_numbers_come_back_bit_by_bit() {
    let special = [0x7fc0u16, 0x7f81, 0xffff, 0x7f80, 0xff80, 0x0000, 0x8000, 0x0001, 0x807f, 0x7f7f];
    let (tier, _) = open_large(&Image::new(), ByteStage::Auto);
    let mut random = Random::new(3);
    let mut next = 0;
    let image = sealed(&SMOLLM2, 1, |section| {
        for value in section.chunks_exact_mut(2) {
            // A dozen of each head's keys or values.
            let is_special = random.below(340) == 0;
            next += usize::from(is_special);
            let bits = if is_special { special[next % special.len()] } else { realistic(&mut random) };
            value.copy_from_slice(&bits.to_le_bytes());
        }
    });
    assert!(next > 1000);
    write(&tier, &SMOLLM2, 1, &image);
    assert_eq!(tier.counters().staged_writes, 1);
    assert_eq!(read(&tier, &SMOLLM2, 1, &image), Ok(()));
    assert_eq!(read_sections(&tier, &SMOLLM2, 1, &image), Ok(()));
    // Nothing but them: too many for windows and escapes, or few enough kinds; lossless either way.
    let all = sealed(&SMALL, 2, |section| {
        section.chunks_exact_mut(2).zip(special.iter().cycle()).for_each(|(value, bits)| {
            value.copy_from_slice(&bits.to_le_bytes());
        });
    });
    write(&tier, &SMALL, 2, &all);
    assert_eq!(read(&tier, &SMALL, 2, &all), Ok(()));
}

/// One staged record alone in a log, its image, and what the log looks like.
fn one_staged(stage: ByteStage) -> (Buffer, Image, u64) {
    let (tier, medium) = open(&Image::new(), stage);
    let image = if stage == ByteStage::Sx12 { realistic_image(&SMALL, 1) } else { repeated_image(&SMALL, 1) };
    write(&tier, &SMALL, 1, &image);
    assert_eq!(tier.counters().staged_writes, 1);
    let bytes = tier.capacity().record_bytes;
    (image, medium.image(), bytes)
}

fn table_of(log: &Image) -> Vec<u32> {
    let bytes = log.bytes_at(FileId::segment(0), HEADER_PAGE + HEAD_BYTES, 4 * u64::from(SMALL.section_count()));
    bytes.chunks_exact(4).map(|bits| u32::from_le_bytes(bits.try_into().unwrap())).collect()
}

fn stored_bytes(table: &[u32]) -> u64 {
    table.iter().map(|bits| u64::from(bits & 0x0fff_ffff)).sum()
}

#[test]
fn every_flipped_byte_of_a_staged_record_is_noticed() {
    for stage in [ByteStage::Sx12, ByteStage::Lz4, ByteStage::Zstd] {
        let (image, mut log, _) = one_staged(stage);
        let sections = u64::from(SMALL.section_count());
        let header = HEAD_BYTES + 4 * sections + encoded_bytes(SMALL.section_count()) + 8;
        let stored = stored_bytes(&table_of(&log));
        // LZ4 and Zstandard can say one thing in several ways, most of all of values that repeat: a flip may turn one into another.
        let is_unique = stage == ByteStage::Sx12;
        let (mut noticed, mut harmless) = (0, 0);
        for byte in (0..header).chain(4096..4096 + stored) {
            let at = (HEADER_PAGE + byte) * 8 + byte % 8;
            assert!(log.flip_bit(FileId::segment(0), at));
            let (tier, _) = open(&log, ByteStage::Off);
            let found = read(&tier, &SMALL, 1, &image);
            let report = verify(&log);
            assert_eq!(report.records, u64::from(found.is_ok()), "{stage:?}, byte {byte}");
            if found.is_ok() {
                harmless += 1;
            } else {
                assert!(matches!(found, Err(DiskEnd::Miss(_))), "{stage:?}, byte {byte}: {found:?}");
                noticed += 1;
            }
            assert!(log.flip_bit(FileId::segment(0), at));
        }
        println!("{stage:?}: {noticed} noticed, {harmless} made no difference");
        assert!(noticed > header && (!is_unique || harmless == 0));
        assert!(harmless * 4 < noticed);
    }
}

/// Puts another table into the header of the one record, under right sums.
fn with_table(log: &Image, table: &[u32], pages: u32) -> Image {
    let mut log = log.clone();
    let sections = SMALL.section_count();
    let bytes = HEAD_BYTES + 4 * u64::from(sections) + encoded_bytes(sections);
    let mut header = log.bytes_at(FileId::segment(0), HEADER_PAGE, bytes);
    header[12..16].copy_from_slice(&pages.to_le_bytes());
    for (target, bits) in header[16..].chunks_exact_mut(4).zip(table) {
        target.copy_from_slice(&bits.to_le_bytes());
    }
    // The seed of staged headers.
    let sum = twox_hash::XxHash3_64::oneshot_with_seed(0x6b76_7464_6973_6b05, &header);
    header.extend(sum.to_le_bytes());
    log.write(FileId::segment(0), HEADER_PAGE, &header);
    log
}

#[test]
fn a_table_that_lies_is_a_miss() {
    for stage in [ByteStage::Sx12, ByteStage::Lz4, ByteStage::Zstd] {
        let (image, log, record_bytes) = one_staged(stage);
        let sound = table_of(&log);
        let pages = (record_bytes / 4096) as u32;
        let unchanged = with_table(&log, &sound, pages);
        assert!(unchanged == log, "the same table has the same sum");
        let last = sound.len() - 1;
        let mut lies: Vec<(Vec<u32>, u32)> = Vec::new();
        let mut lie = |at: usize, bits: u32| {
            let mut table = sound.clone();
            table[at] = bits;
            let claimed = ((4096 + stored_bytes(&table)).div_ceil(4096)) as u32;
            // Once with the length that follows from it, once with the right one.
            lies.push((table.clone(), claimed));
            lies.push((table, pages));
        };
        for at in [0, 3, last] {
            let (coding, bytes) = (sound[at] >> 28, sound[at] & 0x0fff_ffff);
            let numbers = [0, 1, bytes - 1, bytes + 1, bytes + 64, 1024 * 2, 1024 * 2 + 1, 0x0fff_ffff, 1 << 20];
            numbers.into_iter().filter(|number| *number != bytes).for_each(|number| lie(at, coding << 28 | number));
            (0..16).filter(|other| *other != coding).for_each(|other| lie(at, other << 28 | bytes));
        }
        // Another length of the record, under the right table.
        lies.extend([0, 1, pages - 1, pages + 1, u32::MAX].map(|pages| (sound.clone(), pages)));
        let mut random = Random::new(5);
        for _ in 0..2000 {
            let mut table = sound.clone();
            let [one, other] = [0, 1].map(|_| random.below(sound.len() as u64) as usize);
            let shift = random.below(40) as u32;
            // Two that make up for each other, so that the record's length stays.
            table[one] = table[one].wrapping_add(shift);
            table[other] = table[other].wrapping_sub(shift);
            lies.push((table, pages));
        }
        lies.retain(|(table, claimed)| *table != sound || *claimed != pages);
        let mut served = 0;
        for (table, claimed) in &lies {
            let log = with_table(&log, table, *claimed);
            let report = verify(&log);
            // Read record by record, and where the index believes that it is there.
            let (tier, _) = open(&log, ByteStage::Off);
            served += u64::from(read(&tier, &SMALL, 1, &image).is_ok());
            assert_eq!(report.records, 0, "{stage:?}: {table:x?}, {claimed} pages");
        }
        assert_eq!(served, 0, "{stage:?}");
    }
}

#[test]
fn a_header_that_is_changed_under_its_readers_is_a_miss() {
    let (image, log, record_bytes) = one_staged(ByteStage::Sx12);
    let sound = table_of(&log);
    for at in 0..sound.len() {
        let (tier, medium) = open(&log, ByteStage::Off);
        let mut table = sound.clone();
        table[at] -= 1;
        let lying = with_table(&log, &table, (record_bytes / 4096) as u32);
        medium.edit(|image| *image = lying);
        let found = if at % 2 == 0 { read(&tier, &SMALL, 1, &image) } else { read_sections(&tier, &SMALL, 1, &image) };
        assert!(matches!(found, Err(DiskEnd::Miss(_))), "section {at}: {found:?}");
        assert!(tier.find(&key(&SMALL, 1)).is_err(), "it is taken out");
    }
}

#[test]
fn the_slot_header_is_carried_on() {
    let (image, log, _) = one_staged(ByteStage::Sx12);
    let sections = SMALL.section_count();
    let at = HEADER_PAGE + HEAD_BYTES + 4 * u64::from(sections);
    let found = log.bytes_at(FileId::segment(0), at, encoded_bytes(sections));
    let (found, sealed) =
        (SlotHeader::decode(&found, sections).unwrap(), SlotHeader::decode(image.as_slice(), sections).unwrap());
    assert_eq!((found.key, found.lineage, found.link), (sealed.key, sealed.lineage, sealed.link));
    assert_eq!((found.sections, found.image_pages), (sealed.sections, sealed.image_pages));
}

#[test]
fn bounce_memory_is_bounded_whatever_is_under_way() {
    let medium = MemoryMedium::new(Completion::Threads { threads: 3, deadline_millis: 0 });
    let slot = SMOLLM2.slot_bytes();
    let settings = DiskConfig { bounce_bytes: 3 * slot, ..large_config(ByteStage::Auto) };
    let tier = open_with(medium, settings, large(threaded(None)));
    let images: Vec<Buffer> = (0..20).map(|number| realistic_image(&SMOLLM2, number)).collect();
    for (number, image) in (0..).zip(&images) {
        let memory = Memory::Owned(image.clone());
        let key = key(&SMOLLM2, number);
        tier.submit_write(WriteRequest { key, shape: Some(SMOLLM2), memory, is_live: false });
        assert!(tier.capacity().bounce_bytes <= 3 * slot);
    }
    assert!(tier.drain(20_000));
    let mut done = Vec::new();
    tier.poll(&mut done);
    assert!(done.iter().all(|done| done.result == Ok(DiskOk::Written)), "{done:?}");
    assert_eq!(tier.counters().staged_writes, 20);
    let pins: Vec<_> = (0..20).map(|number| tier.pin(&key(&SMOLLM2, number)).unwrap()).collect();
    for (number, pin) in (0..).zip(&pins) {
        tier.read(key(&SMOLLM2, number), SMOLLM2, Memory::Owned(Buffer::zeroed(slot as usize)));
        let section = SMOLLM2.code_section(u32::from(number) % SMOLLM2.layers);
        tier.read_section(pin, SMOLLM2, section, Memory::Owned(Buffer::zeroed(section_span(section).bytes as usize)));
        assert!(tier.capacity().bounce_bytes <= 3 * slot);
    }
    assert!(tier.drain(20_000));
    done.clear();
    tier.poll(&mut done);
    assert_eq!(done.len(), 40);
    for done in done {
        let image = &images[usize::from(done.key.hash.0[0])];
        let Some(Memory::Owned(found)) = done.memory else { panic!("the caller's memory comes back") };
        match done.result {
            Ok(DiskOk::Read) => assert!(found.as_slice() == image.as_slice()),
            Ok(DiskOk::Section { start }) => {
                let section = SMOLLM2.code_section(u32::from(done.key.hash.0[0]) % SMOLLM2.layers);
                let expected = &image.as_slice()[section.offset as usize..(section.offset + section.bytes) as usize];
                assert!(&found.as_slice()[start as usize..start as usize + expected.len()] == expected);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(tier.capacity().bounce_bytes <= 3 * slot);
}

#[test]
fn a_tier_that_is_closed_or_dropped_while_it_encodes_ends_every_write() {
    for is_closed in [true, false] {
        let medium = MemoryMedium::new(Completion::Threads { threads: 2, deadline_millis: 0 });
        let settings = DiskConfig { stage: ByteStage::Zstd, ..config(SMALL_SEGMENTS) };
        let tier = open_with(Arc::clone(&medium), settings, threaded(None));
        for number in 0..10 {
            let memory = Memory::Owned(realistic_image(&SMALL, number));
            tier.submit_write(WriteRequest { key: key(&SMALL, number), shape: Some(SMALL), memory, is_live: false });
        }
        if is_closed {
            tier.close(20_000);
            let mut done = Vec::new();
            tier.poll(&mut done);
            assert_eq!((done.len(), tier.under_way()), (10, 0));
        }
        drop(tier);
        let (again, _) = open(&medium.image(), ByteStage::Off);
        let there = again.capacity().records;
        assert!(there == 10 || !is_closed, "{there} of 10 are there");
        for number in 0..10 {
            let _ = read(&again, &SMALL, number, &realistic_image(&SMALL, number));
        }
    }
}
