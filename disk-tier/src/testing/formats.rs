//! What stands on disk, each with a sound sample and its parser, for tests that feed them anything.

use std::sync::Arc;

use cache_core::chain::Link;
use cache_core::codec::Scalar;
use cache_core::form::{Form, FormMapId, Lineage};
use cache_core::hash::{BlockHash, Namespace};
use cache_core::header::{RecordPlace, SlotHeader, encoded_bytes, seal_image};
use cache_core::key::CopyKey;
use cache_core::payload::BlockShape;
use cache_core::sum::header_sum;

use crate::footer::{self, Entry, Owner};
use crate::format::{self, Kind};
use crate::index::{Fingerprint, Known, Location};
use crate::record::{self, RecordHeader};
use crate::segment::{self, SegmentHeader};
use crate::snapshot::{SegmentState, Snapshot};
use crate::stage::{ByteStage, Encoder};
use crate::superblock::{self, Found, Superblock};

const STORE: [u8; 16] = [7; 16];
const SEGMENT_BYTES: u64 = 1 << 20;
const OWNER: Owner = Owner { store_id: STORE, segment: 3, generation: 1 << 32 | 5 };
const SHAPE: BlockShape = BlockShape { layers: 2, kv_heads: 1, head_dim: 16, block_tokens: 16, form: Form::Raw16 };

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
    let is_image = record::header_of(&header.slot.key, bytes).is_ok();
    assert!(!is_image || header.stored.is_none(), "a staged record is no image");
    header.verify_sections(bytes, &Scalar)
}

/// Sections of the header that begins here, where it claims as many as there can be.
fn sections(bytes: &[u8]) -> Option<u32> {
    let count = u32::from_le_bytes(bytes.get(8..12)?.try_into().expect("4 bytes"));
    (encoded_bytes(count) <= bytes.len() as u64).then_some(count)
}

fn seal_record(bytes: &mut [u8]) {
    if let Some(end) = sections(bytes).map(|count| encoded_bytes(count) as usize) {
        let sum = header_sum(&bytes[..end - 8]);
        bytes[end - 8..end].copy_from_slice(&sum.to_le_bytes());
    }
}

/// The slot header inside first, then what is around it.
fn seal_staged(bytes: &mut [u8]) {
    let Some(count) = sections(bytes) else {
        return;
    };
    let end = record::staged_encoded_bytes(count) as usize;
    if end <= bytes.len() {
        seal_record(&mut bytes[record::HEAD_BYTES + 4 * count as usize..end - 8]);
        seal_end(Kind::Staged, &mut bytes[..end]);
    }
}

fn image(shape: BlockShape) -> (SlotHeader, Vec<u8>) {
    let mut image = vec![3; shape.slot_bytes() as usize];
    let link = Link { hash: key(1).hash, parent: None, depth: 0 };
    let header = seal_image(&shape, key(1), Lineage::of(FormMapId::RAW16), link, &mut image);
    (header, image)
}

fn staged() -> Vec<u8> {
    let (slot, image) = image(BlockShape { layers: 16, ..SHAPE });
    let mut staged = vec![0; image.len()];
    let stored = Encoder::new(ByteStage::Lz4, Arc::new(Scalar)).encode(&slot, &image, &mut staged);
    let header = RecordHeader { slot, stored: Some(stored.expect("equal bytes are encoded in fewer")) };
    let pages = header.placed(RecordPlace::default());
    staged[..pages.as_slice().len()].copy_from_slice(pages.as_slice());
    staged.truncate(header.pages() as usize * 4096);
    staged
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
        Format { name: "record", sample: image(SHAPE).1, seal: seal_record, parse: parse_record },
        Format { name: "staged record", sample: staged(), seal: seal_staged, parse: parse_record },
    ]
}
