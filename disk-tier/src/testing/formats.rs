//! What stands on disk, each with a sound sample and its parser, for tests that feed them anything.

use std::sync::Arc;

use cache_core::buffer::Buffer;
use cache_core::chain::Link;
use cache_core::codec::Scalar;
use cache_core::form::{Form, FormMapId, Lineage};
use cache_core::hash::{BlockHash, Namespace};
use cache_core::header::{RecordPlace, encoded_bytes, seal_image};
use cache_core::key::CopyKey;
use cache_core::payload::BlockShape;
use cache_core::sum::header_sum;

use crate::footer::{self, Entry, Owner};
use crate::format::{self, Kind};
use crate::index::{Fingerprint, Known, Location};
use crate::io::ALIGN_BYTES;
use crate::record::{self, RecordHeader};
use crate::segment::{self, SegmentHeader};
use crate::snapshot::{SegmentState, Snapshot};
use crate::stage::{self, ByteStage, Coding, Encoder};
use crate::superblock::{self, Found, Superblock};

const STORE: [u8; 16] = [7; 16];
const SEGMENT_BYTES: u64 = 1 << 20;
const OWNER: Owner = Owner { store_id: STORE, segment: 3, generation: 1 << 32 | 5 };
const SHAPE: BlockShape = BlockShape { layers: 2, kv_heads: 1, head_dim: 16, block_tokens: 16, form: Form::Raw16 };

/// Longest image that a record is restored to here.
const IMAGE_BYTES_MAX: u64 = 1 << 20;

/// One structure of the store.
pub struct Format {
    /// Its name in messages.
    pub name: &'static str,
    /// Bytes that are sound.
    pub sample: Vec<u8>,
    /// Makes the sums right again that an edit has spoilt, so that what is behind them is reached.
    pub seal: fn(&mut [u8]),
    /// Reads it and looks at everything that it says; true when it is taken for sound.
    pub parse: fn(&[u8]) -> bool,
}

fn key(number: u8) -> CopyKey {
    CopyKey::exact(Namespace([9; 32]), BlockHash([number; 32]))
}

/// Puts the sum of all that stands before it into the last 8 bytes.
fn seal_end(kind: Kind, bytes: &mut [u8]) {
    if let Some(end) = bytes.len().checked_sub(8) {
        let sum = format::sum(kind, &bytes[..end]);
        bytes[end..].copy_from_slice(&sum.to_le_bytes());
    }
}

fn parse_superblock(bytes: &[u8]) -> bool {
    let Found::Sound(mut superblock) = Superblock::decode(bytes) else {
        return false;
    };
    assert!(superblock.deleted.len() <= superblock::DELETED_MAX);
    superblock.valid_from(&Namespace([9; 32]));
    if superblock.epoch < u64::MAX {
        superblock.delete(Namespace([9; 32]));
        assert!(superblock.deleted.len() <= superblock::DELETED_MAX);
        assert_eq!(Superblock::decode(&superblock.encode()), Found::Sound(superblock));
    }
    true
}

fn parse_segment(bytes: &[u8]) -> bool {
    SegmentHeader::decode(bytes, STORE, OWNER.segment, SEGMENT_BYTES).is_some()
}

fn parse_footer(bytes: &[u8]) -> bool {
    let claimed = footer::claimed_bytes(&OWNER, bytes, SEGMENT_BYTES);
    assert!(claimed.is_none_or(|bytes| bytes <= SEGMENT_BYTES));
    let Some((tail, entries)) = footer::decode(&OWNER, bytes, SEGMENT_BYTES) else {
        return false;
    };
    assert!(footer::bytes_for(entries.len() as u64) == bytes.len() as u64 && tail <= SEGMENT_BYTES);
    let ends = entries.iter().map(|entry| (u64::from(entry.page) + u64::from(entry.pages)) * 4096);
    assert!(ends.max().is_none_or(|end| end <= SEGMENT_BYTES), "a record inside its segment");
    true
}

fn parse_snapshot(bytes: &[u8]) -> bool {
    // Its sum stands in the superblock.
    let Some(snapshot) = Snapshot::decode(bytes, format::sum(Kind::Snapshot, bytes)) else {
        return false;
    };
    let (again, sum) = snapshot.encode();
    assert_eq!(Snapshot::decode(again.as_slice(), sum), Some(snapshot));
    true
}

fn parse_record(bytes: &[u8]) -> bool {
    if record::begins(bytes) && record::is_cut(bytes) {
        return false;
    }
    let Some(header) = record::peek(bytes) else {
        return false;
    };
    assert!(encoded_bytes(header.slot.sections.len() as u32) <= bytes.len() as u64);
    let is_sound = header.verify_sections(bytes, &Scalar);
    let image_bytes = u64::from(header.slot.image_pages) * ALIGN_BYTES;
    if header.stored.is_none() {
        return record::header_of(&header.slot.key, bytes).is_ok() && is_sound;
    }
    if image_bytes <= IMAGE_BYTES_MAX {
        let mut image = vec![0; image_bytes as usize];
        assert_eq!(header.restore(bytes, &Scalar, &mut image, false).is_ok(), is_sound);
    }
    is_sound
}

/// Sums a header whose count says how long it is; `at`: where it begins.
fn seal_header(bytes: &mut [u8], at: usize, length: u64, sum: impl Fn(&[u8]) -> u64) {
    let Some(end) = usize::try_from(length).ok().and_then(|length| at.checked_add(length)) else {
        return;
    };
    if let Some(header) = bytes.get_mut(at..end) {
        let split = header.len() - 8;
        let sum = sum(&header[..split]);
        header[split..].copy_from_slice(&sum.to_le_bytes());
    }
}

fn seal_record(bytes: &mut [u8]) {
    let Some(count) = bytes.get(8..12).map(|count| u32::from_le_bytes(count.try_into().expect("4 bytes"))) else {
        return;
    };
    // More than any header has.
    if count > 1 << 16 {
        return;
    }
    if bytes.starts_with(b"kvtstag1") {
        seal_header(bytes, record::HEAD_BYTES + 4 * count as usize, encoded_bytes(count), header_sum);
        seal_header(bytes, 0, record::staged_encoded_bytes(count), |bytes| format::sum(Kind::Staged, bytes));
    } else {
        seal_header(bytes, 0, encoded_bytes(count), header_sum);
    }
}

fn sealed(shape: &BlockShape) -> Vec<u8> {
    let mut image = vec![3; shape.slot_bytes() as usize];
    let link = Link { hash: key(1).hash, parent: None, depth: 0 };
    seal_image(shape, key(1), Lineage::of(FormMapId::RAW16), link, &mut image);
    image
}

/// Bytes of a section that is decoded here: bf16 values of one window and a half.
const SECTION_BYTES: usize = 3 << 12;

/// One section as it stands in a staged record.
fn section(stage: ByteStage) -> Vec<u8> {
    // Small numbers, some of them outside of the window.
    let values = (0..SECTION_BYTES / 2).map(|at| if at % 100 == 99 { at as u16 } else { 0x3f80 + at as u16 % 64 });
    let mut image = Buffer::zeroed(SECTION_BYTES);
    image
        .as_mut_slice()
        .chunks_exact_mut(2)
        .zip(values)
        .for_each(|(pair, value)| pair.copy_from_slice(&value.to_ne_bytes()));
    let mut room = vec![0; SECTION_BYTES];
    let mut encoder = Encoder::new(stage, Arc::new(Scalar));
    let bytes = encoder.section(stage.coding(FormMapId::RAW16), image.as_slice(), &mut room);
    room.truncate(bytes.expect("it gets shorter"));
    room
}

/// Decodes it as a section of the right length, and as a shorter and a longer one.
fn parse_section(coding: Coding, bytes: &[u8]) -> bool {
    let [shorter, right, longer] = [SECTION_BYTES - 64, SECTION_BYTES, SECTION_BYTES + 64]
        .map(|count| stage::decode(&Scalar, coding, bytes, Buffer::zeroed(count).as_mut_slice()));
    assert!(u8::from(shorter) + u8::from(right) + u8::from(longer) <= 1, "bytes of one length");
    right
}

/// A record whose sections stand encoded.
fn staged(stage: ByteStage) -> Vec<u8> {
    let image = sealed(&BlockShape { layers: 8, head_dim: 32, block_tokens: 32, ..SHAPE });
    let slot = record::header_of(&key(1), &image).expect("it is sealed");
    let mut bytes = vec![0; image.len()];
    let stored = Encoder::new(stage, Arc::new(Scalar)).encode(&slot, &image, &mut bytes);
    let header = RecordHeader { slot, stored: Some(stored.expect("equal values get shorter")) };
    let pages = header.placed(RecordPlace::default());
    bytes[..pages.as_slice().len()].copy_from_slice(pages.as_slice());
    bytes.truncate(header.pages() as usize * ALIGN_BYTES as usize);
    bytes
}

/// Every structure there is.
pub fn formats() -> Vec<Format> {
    let mut superblock = Superblock::new(STORE, SEGMENT_BYTES);
    (0..5).for_each(|number| superblock.delete(Namespace([number; 32])));
    let mut segment = vec![0; segment::HEADER_BYTES as usize];
    SegmentHeader { generation: OWNER.generation, epoch: 3 }.encode(STORE, OWNER.segment, SEGMENT_BYTES, &mut segment);
    let entries: Vec<Entry> =
        (0..20).map(|number| Entry { key: key(number), epoch: 2, page: 1 + u32::from(number), pages: 1 }).collect();
    let mut footer = vec![0; footer::bytes_for(entries.len() as u64) as usize];
    footer::encode(&OWNER, 21 * 4096, &entries, &mut footer);
    let known = |number: u32| Known {
        fingerprint: Fingerprint([u64::from(number), 77]),
        location: Location { segment: number % 3, page: number, pages: 2 },
        namespace: 9,
        is_hit: number.is_multiple_of(2),
    };
    let segments = (0..3).map(|segment| SegmentState { segment, is_sealed: true, generation: 8, epoch: 1 }).collect();
    let snapshot = Snapshot { store_id: STORE, sequence: 12, segments, records: (0..40).map(known).collect() };
    let record = |name, sample| Format { name, sample, seal: seal_record, parse: parse_record };
    let section = |name, stage, parse: fn(&[u8]) -> bool| Format { name, sample: section(stage), seal: |_| {}, parse };
    vec![
        Format {
            name: "superblock",
            sample: superblock.encode().to_vec(),
            seal: |bytes| seal_end(Kind::Superblock, bytes),
            parse: parse_superblock,
        },
        Format {
            name: "segment header",
            sample: segment,
            seal: |bytes| seal_end(Kind::Segment, bytes),
            parse: parse_segment,
        },
        Format { name: "footer", sample: footer, seal: |bytes| seal_end(Kind::Footer, bytes), parse: parse_footer },
        Format {
            name: "snapshot",
            sample: snapshot.encode().0.as_slice().to_vec(),
            seal: |_| {},
            parse: parse_snapshot,
        },
        record("record", sealed(&SHAPE)),
        record("record in sx12", staged(ByteStage::Sx12)),
        record("record in lz4", staged(ByteStage::Lz4)),
        record("record in zstd", staged(ByteStage::Zstd)),
        section("section in sx12", ByteStage::Sx12, |bytes| parse_section(Coding::Sx12, bytes)),
        section("section in lz4", ByteStage::Lz4, |bytes| parse_section(Coding::Lz4, bytes)),
        section("section in zstd", ByteStage::Zstd, |bytes| parse_section(Coding::Zstd, bytes)),
    ]
}
