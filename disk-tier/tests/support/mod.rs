//! What the tests of the log share: small tiers over memory, operations run to their end, blocks with versions.
#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::{Arc, Mutex};

use cache_core::buffer::Buffer;
use cache_core::contract::{self, Random, block_version};
use cache_core::hash::{BlockHash, Namespace};
use cache_core::header::seal_image;
use cache_core::key::CopyKey;
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use disk_tier::io::rig::{Completion, Image, MemoryMedium};
use disk_tier::io::{FileId, FileInfo, Kind, Medium, Memory, Operation, Sink};
use disk_tier::testing::{PlantedBug, Testing};
use disk_tier::{ByteStage, DiskConfig, DiskDone, DiskEnd, DiskError, DiskOk, DiskState, DiskTier, WriteRequest};

/// True in the binary that runs the suites of the log once more over staged records (`staged.rs`).
pub const IS_STAGED: bool = matches!(env!("CARGO_CRATE_NAME").as_bytes(), b"staged");
/// Blocks whose records have two pages: as they are, or, staged, a page less than the slot image.
pub const SHAPE: BlockShape = BlockShape { layers: if IS_STAGED { 5 } else { 3 }, ..contract::SHAPE };
/// Bytes of their records.
pub const RECORD_BYTES: u64 = 8192;
/// Bytes of a segment of a small tier: a header page, records of two pages, a footer.
pub const SEGMENT_BYTES: u64 = 64 << 10;
/// Records of [`SHAPE`] in it.
pub const SEGMENT_RECORDS: u32 = 7;
/// Bytes beside the segments: superblocks, snapshot, slack.
const FIXED_BYTES: u64 = 64 << 10;

/// True for the long runs.
pub fn is_soak() -> bool {
    std::env::var_os("KVTIER_SOAK").is_some_and(|value| value == "1")
}

/// `ci` steps, or `soak` of them in a long run.
pub fn scale(ci: u64, soak: u64) -> u64 {
    if is_soak() { soak } else { ci }
}

/// A tier of so many small segments.
pub fn config(segments: u64) -> DiskConfig {
    let mut config = DiskConfig::new(FIXED_BYTES + segments * (SEGMENT_BYTES + 8192));
    config.deadline_millis = 2000;
    config.probe_millis = 1 << 30;
    config.stage = if IS_STAGED { ByteStage::Sx12 } else { ByteStage::Off };
    config
}

/// A bf16 of random sign and mantissa with an exponent as most keys and values have.
pub fn realistic(random: &mut Random) -> u16 {
    let bits = random.next();
    (bits as u16 & 0x807f) | ((118 + (bits >> 32) % 8) as u16) << 7
}

/// No thread, small segments.
pub fn manual(bug: Option<PlantedBug>) -> Testing {
    Testing { segment_bytes: Some(SEGMENT_BYTES), records_max: Some(256), is_manual: true, bug }
}

/// As [`manual`], with the tier's thread.
pub fn threaded(bug: Option<PlantedBug>) -> Testing {
    Testing { is_manual: false, ..manual(bug) }
}

/// A tier over a medium, ready.
pub fn open(medium: Arc<dyn Medium>, segments: u64, testing: Testing) -> Result<DiskTier, DiskError> {
    let tier = DiskTier::over_with(medium, config(segments), testing)?;
    tier.wait_ready(20_000);
    Ok(tier)
}

/// A fresh tier over memory, and its medium.
pub fn fresh(segments: u64) -> (DiskTier, Arc<MemoryMedium>) {
    fresh_with(segments, None)
}

/// As [`fresh`], with a bug.
pub fn fresh_with(segments: u64, bug: Option<PlantedBug>) -> (DiskTier, Arc<MemoryMedium>) {
    let (tier, medium) = reopen(&Image::new(), segments, bug).unwrap();
    assert_eq!(tier.state(), DiskState::Ready);
    (tier, medium)
}

/// A tier over a copy of an image.
pub fn reopen(
    image: &Image,
    segments: u64,
    bug: Option<PlantedBug>,
) -> Result<(DiskTier, Arc<MemoryMedium>), DiskError> {
    let medium = MemoryMedium::over(image.clone(), Completion::Inline);
    let tier = open(Arc::clone(&medium) as Arc<dyn Medium>, segments, manual(bug))?;
    Ok((tier, medium))
}

/// The key of a block.
pub fn key(number: u32) -> CopyKey {
    block_version(number, 0).0.key
}

/// The image of a version of a block, as it is written and read.
pub fn image(number: u32, version: u32) -> Buffer {
    let (sealed, image) = block_version(number, version);
    if !IS_STAGED {
        return image;
    }
    let mut image = Buffer::zeroed(SHAPE.slot_bytes() as usize);
    let mut random = Random::new(u64::from(number) << 32 | u64::from(version));
    // What fills the last page is not carried on.
    let payload = SHAPE.header_bytes() as usize..(SHAPE.header_bytes() + SHAPE.payload_bytes()) as usize;
    for value in image.as_mut_slice()[payload].chunks_exact_mut(2) {
        value.copy_from_slice(&realistic(&mut random).to_le_bytes());
    }
    seal_image(&SHAPE, sealed.key, sealed.lineage, sealed.link, image.as_mut_slice());
    image
}

/// A block of another namespace: the same content under another name.
pub fn block_in(namespace: u8, number: u32, version: u32) -> (CopyKey, Buffer) {
    let (sealed, mut image) = (block_version(number, version).0, image(number, version));
    let key = CopyKey::exact(Namespace([namespace; 32]), BlockHash(sealed.key.hash.0));
    seal_image(&SHAPE, key, sealed.lineage, sealed.link, image.as_mut_slice());
    (key, image)
}

/// Runs the one operation that was just started to its end.
pub fn end(tier: &DiskTier) -> DiskDone {
    assert!(tier.wait(20_000), "the operation ends");
    let mut done = Vec::new();
    tier.poll(&mut done);
    assert_eq!(done.len(), 1, "one operation ends once: {done:?}");
    done.remove(0)
}

pub fn write_image(tier: &DiskTier, key: CopyKey, image: Buffer) -> Result<DiskOk, DiskEnd> {
    tier.submit_write(WriteRequest { key, shape: Some(SHAPE), memory: Memory::Owned(image), is_live: false });
    end(tier).result
}

pub fn write(tier: &DiskTier, number: u32, version: u32) -> Result<DiskOk, DiskEnd> {
    write_image(tier, key(number), image(number, version))
}

/// Writes blocks of version 0, each of which is taken.
pub fn written(tier: &DiskTier, numbers: std::ops::Range<u32>) {
    for number in numbers {
        assert_eq!(write(tier, number, 0), Ok(DiskOk::Written), "block {number}");
    }
}

pub fn read_key(tier: &DiskTier, key: CopyKey) -> Result<Buffer, DiskEnd> {
    tier.read(key, SHAPE, Memory::Owned(Buffer::zeroed(SHAPE.slot_bytes() as usize)));
    let done = end(tier);
    done.result.map(|_| match done.memory {
        Some(Memory::Owned(buffer)) => buffer,
        other => panic!("a read that ended well has its memory: {other:?}"),
    })
}

pub fn read(tier: &DiskTier, number: u32) -> Result<Buffer, DiskEnd> {
    read_key(tier, key(number))
}

pub fn delete(tier: &DiskTier, number: u32) -> Result<DiskOk, DiskEnd> {
    tier.delete(key(number));
    end(tier).result
}

/// True when two images are one: header and every section. What fills the last page is nobody's value and under no sum.
pub fn is_same(expected: &Buffer, found: &Buffer) -> bool {
    let end = (SHAPE.header_bytes() + SHAPE.payload_bytes()) as usize;
    expected.as_slice()[..end] == found.as_slice()[..end]
}

/// True when an image is this version of a block.
pub fn is_version(number: u32, version: u32, found: &Buffer) -> bool {
    is_same(&image(number, version), found)
}

/// Reads a block of one version: true when it was there, false when it missed. Panics at any other bytes.
pub fn holds(tier: &DiskTier, number: u32, version: u32) -> bool {
    match read(tier, number) {
        Ok(found) => {
            assert!(is_version(number, version, &found), "block {number}: wrong bytes");
            true
        }
        Err(DiskEnd::Miss(_)) => false,
        Err(other) => panic!("block {number}: {other:?}"),
    }
}

/// Does all the slow work there is.
pub fn settle(tier: &DiskTier) {
    while tier.step() {}
}

/// The reason of a miss.
pub fn miss(result: Result<Buffer, DiskEnd>) -> MissReason {
    match result {
        Err(DiskEnd::Miss(reason)) => reason,
        other => panic!("not a miss: {other:?}"),
    }
}

/// What stands between a log and its medium.
pub trait Between: Send + Sync {
    /// Sends a batch on.
    fn submit(&self, inner: &dyn Medium, batch: Vec<Operation>);
    /// The medium is about to close.
    fn close(&self, _inner: &dyn Medium) {}
}

/// A medium with something in between.
pub struct Tapped<B> {
    inner: Arc<dyn Medium>,
    pub between: B,
}

impl<B: Between> Tapped<B> {
    pub fn new(inner: Arc<dyn Medium>, between: B) -> Arc<Tapped<B>> {
        Arc::new(Tapped { inner, between })
    }
}

impl<B: Between> Medium for Tapped<B> {
    fn files(&self) -> std::io::Result<Vec<(FileId, FileInfo)>> {
        self.inner.files()
    }
    fn create(&self, file: FileId, bytes: u64) -> std::io::Result<()> {
        self.inner.create(file, bytes)
    }
    fn remove(&self, file: FileId) -> std::io::Result<()> {
        self.inner.remove(file)
    }
    fn connect(&self, sink: Arc<dyn Sink>) {
        self.inner.connect(sink);
    }
    fn submit(&self, batch: Vec<Operation>) {
        self.between.submit(&*self.inner, batch);
    }
    fn depth(&self) -> usize {
        self.inner.depth()
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn close(&self, millis: u64) {
        self.between.close(&*self.inner);
        self.inner.close(millis);
    }
}

/// Holds back the next read of one file until it is told to let it go.
#[derive(Default)]
pub struct Gate(Mutex<(Option<FileId>, Vec<Operation>)>);

impl Between for Gate {
    fn submit(&self, inner: &dyn Medium, batch: Vec<Operation>) {
        let mut held = self.0.lock().unwrap();
        let mut passed = Vec::new();
        for op in batch {
            if op.kind == Kind::Read && Some(op.file) == held.0 {
                held.0 = None;
                held.1.push(op);
            } else {
                passed.push(op);
            }
        }
        drop(held);
        inner.submit(passed);
    }
    fn close(&self, inner: &dyn Medium) {
        inner.submit(self.take());
    }
}

impl Gate {
    fn take(&self) -> Vec<Operation> {
        let mut held = self.0.lock().unwrap();
        held.0 = None;
        std::mem::take(&mut held.1)
    }
}

impl Tapped<Gate> {
    pub fn hold(&self, file: FileId) {
        self.between.0.lock().unwrap().0 = Some(file);
    }

    /// Lets go; returns how many were held.
    pub fn release(&self) -> usize {
        let batch = self.between.take();
        let count = batch.len();
        self.inner.submit(batch);
        count
    }
}
