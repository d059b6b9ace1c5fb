//! Records of every form in one segment without a footer: recovery and scrub, which know no shape, find each of them and miss no damage.

mod support;

use std::sync::Arc;

use cache_core::buffer::Buffer;
use cache_core::chain::Link;
use cache_core::contract::Random;
use cache_core::extent::SectionExtent;
use cache_core::form::{Form, Layers, Lineage, Opaque};
use cache_core::hash::{BlockHash, Namespace};
use cache_core::header::{SlotHeader, encoded_bytes, seal_image};
use cache_core::key::CopyKey;
use cache_core::payload::BlockShape;
use disk_tier::io::rig::{Completion, CrashMedium, Image, MemoryMedium};
use disk_tier::io::{FileId, Medium, Memory};
use disk_tier::testing::Testing;
use disk_tier::{DiskEnd, DiskOk, DiskTier, VerifyReport, WriteRequest};
use support::{config, end, manual, scale};

/// Has room for every record.
const SEGMENT_BYTES: u64 = 512 << 10;
/// In small segments of the other tests: eight of these.
const SMALL_SEGMENTS: u64 = 64;

/// A block, and where its record lies in the first segment.
struct Record {
    shape: BlockShape,
    key: CopyKey,
    image: Buffer,
    offset: u64,
}

impl Record {
    /// What is under a sum, by first byte in the record and bytes: the header, then every section.
    fn spans(&self) -> Vec<(u64, u64)> {
        let header = (0, encoded_bytes(self.shape.section_count()));
        let sections = self.shape.sections().map(|section| (section.offset, section.bytes));
        std::iter::once(header).chain(sections).collect()
    }

    /// Every byte of the record that is under no sum.
    fn padding(&self) -> Vec<u64> {
        let spans = self.spans();
        let ends = spans.iter().map(|(first, bytes)| first + bytes);
        let starts = spans[1..].iter().map(|(first, _)| *first).chain([self.shape.slot_bytes()]);
        ends.zip(starts).flat_map(|(end, start)| end..start).collect()
    }

    fn is_whole(&self, written: &Image, found: &Image) -> bool {
        let bytes =
            |image: &Image, (first, bytes): (u64, u64)| image.bytes_at(FileId::segment(0), self.offset + first, bytes);
        self.spans().into_iter().all(|span| bytes(written, span) == bytes(found, span))
    }

    /// Reads the record. Panics at other bytes than were written.
    fn is_found(&self, tier: &DiskTier) -> bool {
        tier.read(self.key, self.shape, Memory::Owned(Buffer::zeroed(self.shape.slot_bytes() as usize)));
        let done = end(tier);
        match (done.result, done.memory) {
            (Ok(_), Some(Memory::Owned(found))) => {
                for (first, bytes) in self.spans() {
                    let span = first as usize..(first + bytes) as usize;
                    assert_eq!(self.image.as_slice()[span.clone()], found.as_slice()[span], "{:?}", self.shape);
                }
                true
            }
            (Err(DiskEnd::Miss(_)), _) => false,
            other => panic!("{:?}: {other:?}", self.shape),
        }
    }
}

/// Blocks of each form, of a map and of opaque bytes, in two shapes: one whose planes leave most of a page free, and one with planes of whole pages.
fn records() -> Vec<Record> {
    let mut offset = 4096;
    let mut records = Vec::new();
    let mut random = Random::new(1);
    for (layers, kv_heads, head_dim, block_tokens) in [(3, 2, 16, 16), (2, 1, 64, 64)] {
        let mixed = Form::mixed(Layers::range(0, 0), Layers::range(0, 1)).in_model(layers).unwrap();
        let opaque = Form::from(Opaque::new(90 * layers, [3; 32]).expect("a length"));
        for form in Form::ALL.into_iter().chain([mixed, opaque]) {
            let shape = BlockShape { layers, kv_heads, head_dim, block_tokens, form };
            let hash = BlockHash([records.len() as u8; 32]);
            let key = CopyKey { form: shape.form_map(), ..CopyKey::exact(Namespace([7; 32]), hash) };
            let mut image = Buffer::zeroed(shape.slot_bytes() as usize);
            image.as_mut_slice().fill_with(|| random.next() as u8);
            let link = Link { hash, parent: None, depth: 0 };
            seal_image(&shape, key, Lineage::of(key.form), link, image.as_mut_slice());
            records.push(Record { shape, key, image, offset });
            offset += shape.slot_bytes();
        }
    }
    records
}

fn open(medium: Arc<dyn Medium>) -> DiskTier {
    let testing = Testing { segment_bytes: Some(SEGMENT_BYTES), ..manual(None) };
    let tier = DiskTier::over_with(medium, config(SMALL_SEGMENTS), testing).unwrap();
    tier.wait_ready(20_000);
    tier
}

fn reopen(image: &Image) -> DiskTier {
    open(MemoryMedium::over(image.clone(), Completion::Inline))
}

/// The records written one after the other, and the medium that has them after the tier was dropped: no footer, no snapshot.
fn written() -> (Vec<Record>, Arc<CrashMedium>) {
    let records = records();
    let medium = CrashMedium::over(Image::new(), Completion::Inline, u64::MAX);
    let tier = open(Arc::clone(&medium) as Arc<dyn Medium>);
    for record in &records {
        let memory = Memory::Owned(record.image.clone());
        tier.submit_write(WriteRequest { key: record.key, shape: Some(record.shape), memory, is_live: false });
        assert_eq!(end(&tier).result, Ok(DiskOk::Written), "{:?}", record.shape);
    }
    let live = medium.live().image();
    for record in &records {
        let page = live.bytes_at(FileId::segment(0), record.offset, record.shape.header_bytes());
        let header = SlotHeader::decode(&page, record.shape.section_count()).expect("the record begins here");
        assert_eq!(header.key, record.key);
    }
    (records, medium)
}

fn verify(image: &Image) -> VerifyReport {
    DiskTier::verify_medium(MemoryMedium::over(image.clone(), Completion::Inline)).unwrap()
}

#[test]
fn records_of_every_form_survive_the_process() {
    let (records, medium) = written();
    let image = medium.live().image();
    let report = verify(&image);
    assert_eq!((report.records, report.footers, report.damage), (records.len() as u64, 0, vec![]));
    let tier = reopen(&image);
    assert!(records.iter().all(|record| record.is_found(&tier)));
    assert_eq!(tier.counters().skipped_records, 0);
}

#[test]
fn a_power_cut_costs_the_records_that_it_tore_and_no_other() {
    let (records, medium) = written();
    let live = medium.live().image();
    let (mut found, mut torn) = (vec![0; records.len()], 0);
    for seed in 0..scale(1000, 20_000) {
        let image = medium.crash(seed);
        let tier = reopen(&image);
        let mut whole = 0;
        for (record, found) in records.iter().zip(&mut found) {
            let is_whole = record.is_whole(&live, &image);
            assert_eq!(record.is_found(&tier), is_whole, "seed {seed}: {:?}", record.shape);
            whole += u64::from(is_whole);
            *found += u64::from(is_whole);
        }
        let report = verify(&image);
        assert_eq!((report.records, report.footers), (whole, 0), "seed {seed}");
        torn += report.damage.len();
    }
    println!("found of each record: {found:?}; {torn} torn");
    assert!(found.iter().all(|count| *count > 100) && torn > 1000);
}

#[test]
fn a_flip_under_a_sum_is_damage_and_one_in_the_padding_is_none() {
    let (records, medium) = written();
    let mut image = medium.live().image();
    let whole = records.len() as u64;
    let (mut sums, mut paddings) = (0, 0);
    for record in &records {
        let mut flip = |byte: u64, bit: u64| {
            let at = (record.offset + byte) * 8 + bit;
            assert!(image.flip_bit(FileId::segment(0), at));
            let report = verify(&image);
            assert!(image.flip_bit(FileId::segment(0), at));
            report
        };
        for (number, (first, bytes)) in record.spans().into_iter().enumerate() {
            // Each bit of each section in a long run; else some of each, its ends among them.
            let step = scale((bytes * 8 / 100).max(1) | 1, 5);
            for bit in (0..bytes * 8).step_by(step as usize).chain([bytes * 8 - 1]) {
                let report = flip(first + bit / 8, bit % 8);
                assert_eq!(report.records, whole - 1, "{:?}, span {number}, bit {bit}", record.shape);
                // A header that cannot be read is no record's, where there is no footer to tell of it.
                let expected: Vec<u64> = if number == 0 { vec![] } else { vec![record.offset] };
                let damage: Vec<u64> = report.damage.iter().map(|damage| damage.offset).collect();
                assert_eq!(damage, expected, "{:?}, span {number}, bit {bit}", record.shape);
                sums += 1;
            }
        }
        for byte in record.padding().into_iter().step_by(scale(61, 1) as usize) {
            let report = flip(byte, byte % 8);
            assert_eq!((report.records, report.damage), (whole, vec![]), "{:?}, byte {byte}", record.shape);
            paddings += 1;
        }
    }
    println!("{sums} flips under sums, {paddings} in the padding");
    assert!(sums > 1000 && paddings > 1000);
}

#[test]
fn extents_that_lead_out_of_the_image_are_damage() {
    let (records, medium) = written();
    let written = medium.live().image();
    for record in &records {
        let at = (FileId::segment(0), record.offset);
        let mut page = written.bytes_at(at.0, at.1, record.shape.header_bytes());
        let sound = SlotHeader::decode(&page, record.shape.section_count()).unwrap();
        let (first, last) = (0, sound.sections.len() - 1);
        let bits = |section: usize| sound.sections[section].extent.to_bits();
        for (section, bits) in [(first, u32::MAX), (first, 0), (first, bits(first) + 1), (last, bits(last) + 4096)] {
            let mut header = sound.clone();
            header.sections[section].extent = SectionExtent::from_bits(bits);
            header.encode(&mut page);
            let mut image = written.clone();
            image.write(at.0, at.1, &page);
            let report = verify(&image);
            let damage: Vec<u64> = report.damage.iter().map(|damage| damage.offset).collect();
            assert_eq!((report.records, damage), (records.len() as u64 - 1, vec![record.offset]));
            let tier = reopen(&image);
            assert_eq!(tier.counters().skipped_records, 1);
            for other in &records {
                assert_eq!(other.is_found(&tier), other.key != record.key, "{:?}", record.shape);
            }
        }
    }
}
