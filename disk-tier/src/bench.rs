//! How fast a disk is through the tier, checksums and all, beside the medium alone: same directory, block size, depth and buffers, in one
//! run, turn by turn, so that whatever else the disk does meets both. Both write once over files that were preallocated before; ending full
//! segments, each with a sync and a footer, is part of what the tier does, and the medium alone syncs nothing.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cache_core::buffer::{Buffer, PAGE_BYTES};
use cache_core::chain::Link;
use cache_core::form::{Form, Lineage};
use cache_core::hash::{BlockHash, Namespace};
use cache_core::header::seal_image;
use cache_core::key::CopyKey;
use cache_core::payload::BlockShape;
use cache_core::store::OpId;

use crate::config::DiskConfig;
use crate::error::{DiskEnd, DiskError};
use crate::footer;
use crate::io::{Directory, Done, FileId, IoChoice, IoError, Kind, Medium, Memory, Operation, Sink};
use crate::report::{DiskOk, DiskState};
use crate::tier::DiskTier;
use crate::write::WriteRequest;

/// Turns of each side and direction: writes alternate, then reads do.
const TURNS: u64 = 16;
/// How long one operation may take, in milliseconds.
const DEADLINE_MILLIS: u64 = 30_000;
/// The largest block, in bytes.
const BLOCK_BYTES_MAX: u64 = 16 << 20;
/// Operations under way, at most.
const DEPTH_MAX: usize = 256;
/// Segments that the tier may have beside those that are full, in bytes: the largest size, three times.
const SPARE_BYTES: u64 = 3 * (256 << 20);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchSettings {
    /// Bytes of a record with its header, whole pages; raw operations have the same size.
    pub block_bytes: u64,
    /// Operations under way.
    pub depth: usize,
    /// Bytes that each side writes, and then reads.
    pub total_bytes: u64,
    /// Which way to the disk.
    pub io: IoChoice,
}

/// Percentiles over every operation, from its submission until its end was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Half of them took no longer.
    pub p50: Duration,
    /// 99 of 100 took no longer.
    pub p99: Duration,
}

/// What was measured. Rates are bytes over seconds, the median of the turns.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchReport {
    /// Through the tier: read, header and every section verified.
    pub read_bytes_s: f64,
    /// Through the tier: sealed (every section summed), verified, written.
    pub write_bytes_s: f64,
    /// The medium alone.
    pub raw_read_bytes_s: f64,
    /// The medium alone.
    pub raw_write_bytes_s: f64,
    /// Reads through the tier.
    pub read: Latency,
    /// Writes through the tier, sealing apart.
    pub write: Latency,
    /// What the medium is, for people.
    pub medium: String,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// Settings that make no sense. Names the option and the fix.
    #[error("{0}")]
    Settings(String),
    /// The tier or its directory.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// An operation through the tier ended otherwise than well.
    #[error("finish an operation through the tier: {0}")]
    Tier(String),
    /// An operation on the medium failed.
    #[error("finish an operation on the medium")]
    Raw(#[source] IoError),
}

/// Measures in an empty directory, which the caller removes. `watch` hears how many bytes of how many were moved.
///
/// Errors: [`BenchError::Settings`] before anything is written; whatever the disk says.
pub fn measure(
    directory: &Path,
    settings: &BenchSettings,
    watch: &mut dyn FnMut(u64, u64),
) -> Result<BenchReport, BenchError> {
    let shape = settings.check(directory)?;
    let count = settings.total_bytes / settings.block_bytes;
    let turns = (count / settings.depth as u64).clamp(1, TURNS);
    let mut tier = Tier::open(directory, settings, shape)?;
    let mut raw = Raw::open(directory, settings, count)?;
    let mut buffers: Vec<Buffer> = (0..settings.depth).map(|seed| noise(settings.block_bytes, seed as u64)).collect();
    let (mut by_tier, mut by_raw) = ([Sum::default(), Sum::default()], [Sum::default(), Sum::default()]);
    let (mut moved, whole) = (0, 4 * count * settings.block_bytes);
    for (kind, at) in [(Kind::Write, 0), (Kind::Read, 1)] {
        for turn in 0..turns {
            let blocks = count * turn / turns..count * (turn + 1) / turns;
            for is_tier in [turn % 2 == 1, turn % 2 == 0] {
                let (side, sum): (&mut dyn Side, _) =
                    if is_tier { (&mut tier, &mut by_tier[at]) } else { (&mut raw, &mut by_raw[at]) };
                let started = Instant::now();
                pump(side, kind, blocks.clone(), &mut buffers, &mut sum.each)?;
                let bytes = (blocks.end - blocks.start) * settings.block_bytes;
                sum.rates.push(bytes as f64 / started.elapsed().as_secs_f64().max(1e-9));
                moved += bytes;
                watch(moved, whole);
            }
        }
    }
    let report = BenchReport {
        read_bytes_s: by_tier[1].rate(),
        write_bytes_s: by_tier[0].rate(),
        raw_read_bytes_s: by_raw[1].rate(),
        raw_write_bytes_s: by_raw[0].rate(),
        read: by_tier[1].latency(),
        write: by_tier[0].latency(),
        medium: tier.tier.describe(),
    };
    tier.tier.close(DEADLINE_MILLIS);
    raw.medium.close(DEADLINE_MILLIS);
    Ok(report)
}

impl BenchSettings {
    /// The shape whose slot image has the block size. Errors: [`BenchError::Settings`].
    fn check(&self, directory: &Path) -> Result<BlockShape, BenchError> {
        let wrong = |text: String| Err(BenchError::Settings(text));
        let shape = match shape_of(self.block_bytes) {
            Some(shape) if self.block_bytes <= BLOCK_BYTES_MAX => shape,
            _ => {
                return wrong(format!(
                    "--block-size is {} bytes; give 8KiB to 16MiB in steps of 4KiB, such as 1MiB",
                    self.block_bytes
                ));
            }
        };
        if self.depth == 0 || self.depth > DEPTH_MAX {
            return wrong(format!("--depth is {}; give 1 to {DEPTH_MAX}", self.depth));
        }
        if self.total_bytes < self.block_bytes {
            return wrong(format!("--size is {} bytes; give at least one block of --block-size", self.total_bytes));
        }
        let needed = self.total_bytes.saturating_mul(2).saturating_add(SPARE_BYTES);
        let stat = rustix::fs::statvfs(directory)
            .map_err(|errno| DiskError::Files { what: "ask for free space", source: errno.into() })?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < needed {
            return wrong(format!(
                "{} has {} MiB free; {} MiB are needed; give a smaller --size",
                directory.display(),
                free >> 20,
                needed >> 20
            ));
        }
        Ok(shape)
    }
}

/// One header page and as many sections, up to 64, as divide the rest evenly.
fn shape_of(block_bytes: u64) -> Option<BlockShape> {
    let pages = (block_bytes / PAGE_BYTES).checked_sub(1).filter(|pages| *pages > 0)?;
    if !block_bytes.is_multiple_of(PAGE_BYTES) {
        return None;
    }
    // Keys and values of one head: 16 tokens of 16 channels, two bytes each, twice.
    let heads = pages * PAGE_BYTES / 1024;
    let layers = (1..=64).rev().find(|layers| heads.is_multiple_of(*layers))?;
    let kv_heads = u32::try_from(heads / layers).ok()?;
    let shape = BlockShape { layers: layers as u32, kv_heads, head_dim: 16, block_tokens: 16, form: Form::Raw16 };
    (shape.slot_bytes() == block_bytes).then_some(shape)
}

/// Bytes that do not compress.
fn noise(bytes: u64, seed: u64) -> Buffer {
    let mut buffer = Buffer::zeroed(bytes as usize);
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for word in buffer.as_mut_slice().chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    buffer
}

/// Bytes per second of every turn, and the time of every operation.
#[derive(Default)]
struct Sum {
    rates: Vec<f64>,
    each: Vec<Duration>,
}

impl Sum {
    fn rate(&mut self) -> f64 {
        self.rates.sort_unstable_by(f64::total_cmp);
        let turns = self.rates.len();
        f64::midpoint(self.rates[(turns - 1) / 2], self.rates[turns / 2])
    }

    fn latency(&mut self) -> Latency {
        self.each.sort_unstable();
        let at = |share: usize| self.each.get((self.each.len() * share / 100).min(self.each.len().max(1) - 1));
        Latency { p50: at(50).copied().unwrap_or_default(), p99: at(99).copied().unwrap_or_default() }
    }
}

/// The tier or the medium.
trait Side {
    /// Makes a buffer ready to be written as block `index`.
    fn prepare(&mut self, _index: u64, _buffer: &mut Buffer) {}
    fn begin(&mut self, kind: Kind, index: u64, buffer: Buffer);
    /// Blocks whose operations have ended since, at least one.
    fn ended(&mut self) -> Result<Vec<(u64, Buffer)>, BenchError>;
}

/// Moves blocks with as many operations under way as there are buffers.
fn pump(
    side: &mut dyn Side,
    kind: Kind,
    mut blocks: std::ops::Range<u64>,
    buffers: &mut Vec<Buffer>,
    each: &mut Vec<Duration>,
) -> Result<(), BenchError> {
    let mut under_way: HashMap<u64, Instant> = HashMap::new();
    loop {
        while !buffers.is_empty()
            && let Some(index) = blocks.next()
        {
            let mut buffer = buffers.pop().expect("one is left");
            if kind == Kind::Write {
                side.prepare(index, &mut buffer);
            }
            under_way.insert(index, Instant::now());
            side.begin(kind, index, buffer);
        }
        if under_way.is_empty() {
            break;
        }
        for (index, buffer) in side.ended()? {
            each.extend(under_way.remove(&index).map(|since| since.elapsed()));
            buffers.push(buffer);
        }
    }
    Ok(())
}

struct Tier {
    tier: DiskTier,
    shape: BlockShape,
    under_way: HashMap<OpId, u64>,
}

impl Tier {
    fn open(directory: &Path, settings: &BenchSettings, shape: BlockShape) -> Result<Tier, BenchError> {
        let config = DiskConfig {
            io: settings.io,
            record_bytes: settings.block_bytes,
            deadline_millis: DEADLINE_MILLIS,
            depth: settings.depth.max(64),
            // Twice, so that nothing is reclaimed; segments are made as they are needed.
            ..DiskConfig::new(settings.total_bytes.saturating_mul(2).saturating_add(SPARE_BYTES))
        };
        let tier = DiskTier::open(&directory.join("tier"), config)?;
        let state = tier.wait_ready(DEADLINE_MILLIS);
        if state != DiskState::Ready {
            return Err(BenchError::Tier(format!("it is not ready: {state:?}")));
        }
        let made = Tier { tier, shape, under_way: HashMap::new() };
        // A block and its entry in the footer each, and about a block for the header page and the trailer; two stay free.
        let each_bytes = settings.block_bytes + footer::ENTRY_BYTES;
        let blocks = (made.tier.capacity().segment_bytes / each_bytes).saturating_sub(1).max(1);
        let segments = (settings.total_bytes / settings.block_bytes).div_ceil(blocks) + 2;
        if !made.tier.make_ahead(segments as u32, DEADLINE_MILLIS) {
            return Err(BenchError::Tier(made.reason("its segments are not made")));
        }
        Ok(made)
    }
}

fn key(index: u64) -> CopyKey {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&index.to_le_bytes());
    CopyKey::exact(Namespace([0xB5; 32]), BlockHash(hash))
}

impl Side for Tier {
    fn prepare(&mut self, index: u64, buffer: &mut Buffer) {
        let key = key(index);
        let link = Link { hash: key.hash, parent: None, depth: 0 };
        seal_image(&self.shape, key, Lineage(self.shape.form_map()), link, buffer.as_mut_slice());
    }

    fn begin(&mut self, kind: Kind, index: u64, buffer: Buffer) {
        let memory = Memory::Owned(buffer);
        let op = match kind {
            Kind::Read => self.tier.read(key(index), self.shape, memory),
            // As the cache writes: every section is verified before anything is written.
            _ => self.tier.submit_write(WriteRequest {
                key: key(index),
                shape: Some(self.shape),
                memory,
                is_live: false,
            }),
        };
        self.under_way.insert(op, index);
    }

    fn ended(&mut self) -> Result<Vec<(u64, Buffer)>, BenchError> {
        if !self.tier.wait(2 * DEADLINE_MILLIS) {
            return Err(BenchError::Tier("no answer".to_owned()));
        }
        let mut done = Vec::new();
        self.tier.poll(&mut done);
        let take = |done: crate::report::DiskDone| {
            let index = self.under_way.remove(&done.op).expect("operations end once");
            match (done.result, done.memory) {
                (Ok(DiskOk::Written | DiskOk::Read), Some(Memory::Owned(buffer))) => Ok((index, buffer)),
                (Err(DiskEnd::Failed(error)), _) => Err(BenchError::Raw(error)),
                (result, _) => Err(BenchError::Tier(self.reason(&format!("{result:?}")))),
            }
        };
        done.into_iter().map(take).collect()
    }
}

impl Tier {
    /// The tier's own word where it is offline.
    fn reason(&self, result: &str) -> String {
        match self.tier.state() {
            DiskState::Offline { reason } => reason,
            _ => result.to_owned(),
        }
    }
}

/// The medium alone, in files as long as the tier's segments may be.
struct Raw {
    medium: Arc<dyn Medium>,
    ends: Arc<Ends>,
    block_bytes: u64,
    blocks_per_file: u64,
}

#[derive(Default)]
struct Ends {
    done: Mutex<Vec<Done>>,
    changed: Condvar,
}

impl Sink for Ends {
    fn done(&self, ended: Vec<Done>) {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).extend(ended);
        self.changed.notify_all();
    }
}

impl Raw {
    fn open(directory: &Path, settings: &BenchSettings, count: u64) -> Result<Raw, BenchError> {
        let depth = settings.depth.max(64);
        let medium = Directory::open(&directory.join("raw"), settings.io, Vec::new(), depth, DEADLINE_MILLIS)
            .map_err(DiskError::Open)?;
        let ends = Arc::new(Ends::default());
        medium.connect(Arc::clone(&ends) as Arc<dyn Sink>);
        let blocks_per_file = ((256 << 20) / settings.block_bytes).min(count);
        for file in 0..count.div_ceil(blocks_per_file) {
            medium
                .create(FileId::segment(file as u32), blocks_per_file * settings.block_bytes)
                .map_err(|source| DiskError::Files { what: "make a file", source })?;
        }
        Ok(Raw { medium, ends, block_bytes: settings.block_bytes, blocks_per_file })
    }
}

impl Side for Raw {
    fn begin(&mut self, kind: Kind, index: u64, buffer: Buffer) {
        self.medium.submit(vec![Operation {
            id: index,
            kind,
            file: FileId::segment((index / self.blocks_per_file) as u32),
            offset: index % self.blocks_per_file * self.block_bytes,
            memory: Memory::Owned(buffer),
            range: 0..self.block_bytes,
        }]);
    }

    fn ended(&mut self) -> Result<Vec<(u64, Buffer)>, BenchError> {
        let guard = self.ends.done.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = Duration::from_millis(2 * DEADLINE_MILLIS);
        let (mut guard, _) = self
            .ends
            .changed
            .wait_timeout_while(guard, wait, |done| done.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        if guard.is_empty() {
            return Err(BenchError::Raw(IoError::TimedOut { millis: 2 * DEADLINE_MILLIS }));
        }
        let take = |done: Done| match (done.result, done.memory) {
            (Ok(()), Some(Memory::Owned(buffer))) => Ok((done.id, buffer)),
            (Err(error), _) => Err(BenchError::Raw(error)),
            (Ok(()), _) => Err(BenchError::Raw(IoError::Closed)),
        };
        guard.drain(..).map(take).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_the_block_size() {
        for bytes in [8 << 10, 12 << 10, 64 << 10, 256 << 10, 1 << 20, 1_474_560 + 4096, 4 << 20, 16 << 20] {
            assert_eq!(shape_of(bytes).expect("a shape").slot_bytes(), bytes);
        }
        for bytes in [0, 4096, 5000, (1 << 20) + 512] {
            assert_eq!(shape_of(bytes), None, "{bytes}");
        }
    }

    #[test]
    fn both_sides_move_every_block_and_leave_figures() {
        for io in [IoChoice::Auto, IoChoice::Pread] {
            let folder = tempfile::tempdir().expect("a folder");
            let settings = BenchSettings { block_bytes: 64 << 10, depth: 4, total_bytes: 4 << 20, io };
            let mut seen = (0, 0);
            let report = measure(folder.path(), &settings, &mut |done, whole| seen = (done, whole)).expect("measured");
            assert_eq!(seen, (16 << 20, 16 << 20));
            let rates = [report.read_bytes_s, report.write_bytes_s, report.raw_read_bytes_s, report.raw_write_bytes_s];
            assert!(rates.iter().all(|rate| rate.is_finite() && *rate > 0.0), "{report:?}");
            assert!(report.read.p50 <= report.read.p99 && report.write.p50 <= report.write.p99, "{report:?}");
            assert!(!report.read.p50.is_zero() && !report.write.p50.is_zero(), "{report:?}");
        }
    }

    #[test]
    fn settings_that_make_no_sense_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let sound = BenchSettings { block_bytes: 1 << 20, depth: 4, total_bytes: 4 << 20, io: IoChoice::Auto };
        for (settings, name) in [
            (BenchSettings { block_bytes: 1000, ..sound }, "--block-size"),
            (BenchSettings { block_bytes: 32 << 20, ..sound }, "--block-size"),
            (BenchSettings { depth: 0, ..sound }, "--depth"),
            (BenchSettings { depth: 100_000, ..sound }, "--depth"),
            (BenchSettings { total_bytes: 4096, ..sound }, "--size"),
            (BenchSettings { total_bytes: 1 << 60, ..sound }, "--size"),
        ] {
            let error = measure(folder.path(), &settings, &mut |_, _| {}).expect_err("refused");
            assert!(matches!(&error, BenchError::Settings(text) if text.contains(name)), "{error}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }
}
