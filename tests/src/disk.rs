//! What the scenarios of the disk tier share: engines with a disk, and hands in its files.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cache_core::hash::BlockHash;
use cache_core::header::{MAGIC, SlotHeader};
use cache_core::payload::BlockShape;
use kvtier_engine::EngineError;
use kvtier_engine::run::engine::{DiskOptions, Engine, EngineOptions};
use kvtier_sdk::embedded::{Admission, ByteStage, DiskState, DiskStatus, IoChoice};

use crate::{ask, fixture, plain};

const PAGE_BYTES: u64 = 4096;
/// How a staged record begins; its slot header stands behind the table of its sections (`docs/disk-format.md`).
const STAGED_MAGIC: [u8; 8] = *b"kvtstag1";

/// `options` with a disk of 256 MiB in `directory`.
pub fn with_disk(directory: &Path, options: EngineOptions) -> EngineOptions {
    with_disk_of(directory, 256 << 20, options)
}

/// `options` with a disk of so many bytes in `directory`.
pub fn with_disk_of(directory: &Path, budget_bytes: u64, options: EngineOptions) -> EngineOptions {
    let disk = DiskOptions {
        directory: directory.to_owned(),
        budget_bytes,
        admission: Admission::Always,
        io: IoChoice::Auto,
        stage: ByteStage::Auto,
    };
    EngineOptions { disk: Some(disk), ..options }
}

/// An engine whose disk is ready.
pub fn open(options: EngineOptions) -> Engine {
    let engine = fixture().engine(options);
    let DiskStatus::Open(_) = engine.cache().disk_status() else {
        panic!("{:?}", engine.cache().disk_status());
    };
    let state = engine.cache().disk_tier().expect("it is open").wait_ready(10_000);
    assert_eq!(state, DiskState::Ready);
    engine
}

/// An orderly end: everything was written, and the books agree.
pub fn close(engine: Engine) {
    assert!(engine.close_disk(Duration::from_secs(10)), "everything was written");
    engine.cache().audit().expect("sound books");
    engine.closed_cache().map_or(Ok(()), |closed| closed.audit()).expect("sound books of closed blocks");
}

/// What a run without any cache says.
pub fn expected(prompt: &[u32], max_tokens: u32) -> [u8; 32] {
    ask(&mut fixture().engine(plain()), prompt, max_tokens).logits_digest
}

/// `options` with the least device and the least host budget that an engine accepts.
pub fn least(mut options: EngineOptions) -> EngineOptions {
    options.host_bytes = 4096;
    options.device_bytes = 4096;
    for _ in 0..8 {
        match Engine::open(Arc::clone(&fixture().model), fixture().weights, options.clone()) {
            Ok(_) => return options,
            Err(EngineError::Budget { what: "--device-mem", minimum_bytes, .. }) => {
                options.device_bytes = minimum_bytes
            }
            Err(EngineError::Budget { what: "--host-mem", minimum_bytes, .. }) => options.host_bytes = minimum_bytes,
            Err(other) => panic!("{other}"),
        }
    }
    panic!("the stated minima are not enough: {options:?}");
}

/// Allocated bytes of a store's files.
pub fn allocated_bytes(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|data| data.blocks() * 512).sum()
}

/// A record in a store's files.
#[derive(Clone, Debug)]
pub struct RecordAt {
    /// The segment's file.
    pub file: PathBuf,
    /// First byte of the record's header.
    pub offset: u64,
    /// First bytes of its sections, from the record's start.
    pub sections: Vec<u64>,
}

impl RecordAt {
    /// Turns one bit of one byte over, `byte` bytes after the record's start.
    pub fn flip(&self, byte: u64) {
        let file = OpenOptions::new().read(true).write(true).open(&self.file).expect("the segment is there");
        let mut found = [0];
        file.read_exact_at(&mut found, self.offset + byte).expect("the record is whole");
        file.write_all_at(&[found[0] ^ 1], self.offset + byte).expect("the segment can be written");
        file.sync_all().expect("the segment can be synced");
    }
}

/// Finds the newest record of a block in a store's segments by its header.
pub fn record(directory: &Path, shape: &BlockShape, hash: BlockHash) -> Option<RecordAt> {
    let sections = shape.sections().count() as u32;
    let behind_table = 16 + 4 * sections as usize;
    let mut found: Option<(u64, RecordAt)> = None;
    for path in segments(directory) {
        let Ok(file) = File::open(&path) else { continue };
        let bytes = file.metadata().map_or(0, |data| data.len());
        let mut page = vec![0; shape.header_bytes() as usize];
        for offset in (0..bytes.saturating_sub(shape.header_bytes())).step_by(PAGE_BYTES as usize) {
            if file.read_exact_at(&mut page[..8], offset).is_err() {
                continue;
            }
            let start = if page[..8] == STAGED_MAGIC { behind_table } else { 0 };
            if start == 0 && page[..8] != MAGIC {
                continue;
            }
            file.read_exact_at(&mut page, offset).ok()?;
            let Ok(header) = SlotHeader::decode(&page[start..], sections) else { continue };
            let generation = header.place.segment_generation;
            if header.key.hash == hash && found.as_ref().is_none_or(|(newest, _)| *newest < generation) {
                let at = RecordAt { file: path.clone(), offset, sections: sections_of(shape, &page[..start]) };
                found = Some((generation, at));
            }
        }
    }
    found.map(|(_, at)| at)
}

/// Where the sections of a record begin whose header begins with `table`: the table of a staged one, or nothing.
fn sections_of(shape: &BlockShape, table: &[u8]) -> Vec<u64> {
    if table.is_empty() {
        return shape.sections().map(|section| section.offset).collect();
    }
    let stored = table[16..].chunks_exact(4).map(|bits| u32::from_le_bytes(bits.try_into().expect("four bytes")));
    // One behind the other after a header of one page.
    stored.scan(PAGE_BYTES, |end, bits| Some(std::mem::replace(end, *end + u64::from(bits & 0x0fff_ffff)))).collect()
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let is_segment =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("segment."));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_segment).collect();
    paths.sort();
    paths
}
