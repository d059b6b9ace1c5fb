//! A log that stands for 200 GB: its segments are sparse files of the right length, with every header and footer in place and no payload.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use disk_tier::io::{Directory, FileId, FileInfo, IoChoice, Kind, Medium, Memory, Operation, Sink};
use disk_tier::{DiskConfig, DiskState, DiskTier};

use crate::pump::{BLOCK_BYTES, key, noise, seal};
use crate::{Spread, seconds};

const BUDGET_BYTES: u64 = 200_000_000_000;
const INDEX_BAR: f64 = 80.0;
const INDEXED_BAR: f64 = 10.0;
/// An open that does not wait for the index.
const AT_ONCE: f64 = 0.5;
const PAGE_BYTES: u64 = 4096;

/// A directory whose segments are not preallocated and whose records are written up to their header page.
struct Sparse {
    inner: Arc<dyn Medium>,
    directory: PathBuf,
}

impl Medium for Sparse {
    fn files(&self) -> io::Result<Vec<(FileId, FileInfo)>> {
        // What stands for 200 GB is counted as 200 GB.
        let files = self.inner.files()?;
        Ok(files.into_iter().map(|(file, info)| (file, FileInfo { allocated_bytes: info.bytes, ..info })).collect())
    }
    fn create(&self, file: FileId, bytes: u64) -> io::Result<()> {
        let Some(segment) = file.0.checked_sub(FileId::segment(0).0) else {
            return self.inner.create(file, bytes);
        };
        let path = self.directory.join(format!("segment.{:06}", segment + 1));
        std::fs::File::options().create(true).truncate(false).write(true).open(path)?.set_len(bytes)
    }
    fn remove(&self, file: FileId) -> io::Result<()> {
        self.inner.remove(file)
    }
    fn connect(&self, sink: Arc<dyn Sink>) {
        self.inner.connect(sink);
    }
    fn submit(&self, mut batch: Vec<Operation>) {
        for op in &mut batch {
            let is_record = op.range.end - op.range.start > BLOCK_BYTES / 2;
            if op.kind == Kind::Write && op.file.0 >= FileId::segment(0).0 && is_record {
                op.range.end = op.range.start + PAGE_BYTES;
            }
        }
        self.inner.submit(batch);
    }
    fn depth(&self) -> usize {
        self.inner.depth()
    }
    fn describe(&self) -> String {
        format!("{}, sparse", self.inner.describe())
    }
    fn close(&self, millis: u64) {
        self.inner.close(millis);
    }
}

fn config() -> DiskConfig {
    DiskConfig { record_bytes: BLOCK_BYTES, deadline_millis: 30_000, ..DiskConfig::new(BUDGET_BYTES) }
}

fn open(directory: &Path) -> DiskTier {
    let inner = Directory::open(directory, IoChoice::Auto, Vec::new(), 64, 30_000).expect("a directory");
    DiskTier::over(Arc::new(Sparse { inner, directory: directory.to_owned() }), config()).expect("a tier")
}

/// Blocks of a segment.
fn segment_blocks(tier: &DiskTier) -> u64 {
    tier.capacity().segment_bytes / BLOCK_BYTES - 1
}

/// Fills the log with headers until the budget is full and the oldest have gone; returns how many blocks were written.
fn fill(tier: &DiskTier) -> u64 {
    let most = u64::from(tier.capacity().segments_max + 2) * segment_blocks(tier);
    let mut buffers: Vec<_> = (0..32).map(noise).collect();
    let (mut next, mut under_way) = (0, 0);
    let mut done = Vec::new();
    while next < most || under_way > 0 {
        while next < most
            && let Some(mut image) = buffers.pop()
        {
            seal(next, &mut image);
            tier.write(key(next), Memory::Owned(image));
            (next, under_way) = (next + 1, under_way + 1);
        }
        assert!(tier.wait(30_000), "writes end");
        tier.poll(&mut done);
        for done in done.drain(..) {
            assert!(done.result.is_ok(), "{:?}", done.result);
            if let Some(Memory::Owned(buffer)) = done.memory {
                buffers.push(buffer);
            }
            under_way -= 1;
        }
    }
    most
}

/// Prints the table; returns the bars that were missed.
pub fn table(directory: &Path) -> Vec<String> {
    let directory = directory.join("sparse");
    println!("### A log that stands for 200 GB, blocks of 1 MiB\n");
    let tier = open(&directory);
    assert_eq!(tier.wait_ready(30_000), DiskState::Ready);
    let mut blocks = 0;
    let filled = seconds(|| blocks = fill(&tier));
    // Closed: the snapshot is read. Then dropped as by a crash: footers are. In this order, since of a tail without a footer the payload would
    // be read, and there is none.
    tier.close(60_000);
    let capacity = tier.capacity();
    let kept = capacity.records;
    let per_block = capacity.index_bytes as f64 / capacity.records_max as f64;
    println!(
        "{blocks} blocks written, {kept} kept in {} of {} segments, made in {filled:.0} s; index {:.1} MB for {} blocks: {per_block:.1} bytes each (bar: {INDEX_BAR}).\n",
        capacity.segments,
        capacity.segments_max,
        capacity.index_bytes as f64 / 1e6,
        capacity.records_max
    );
    println!("| end before | opened s | first find s | indexed s | blocks found | bar |");
    println!("|---|---|---|---|---|---|");
    let mut missed = Vec::new();
    if per_block > INDEX_BAR {
        missed.push(format!("index: {per_block:.1} bytes per block, the bar is {INDEX_BAR}"));
    }
    // A segment that is written, two that are free.
    let least = u64::from(capacity.segments_max - 3) * segment_blocks(&tier);
    if kept < least {
        missed.push(format!("{kept} blocks kept of {blocks}, {least} fit beside a segment to write and two free ones"));
    }
    drop(tier);
    for orderly in [true, false] {
        let (mut opened, mut answered, mut indexed, mut records) = (Vec::new(), Vec::new(), Vec::new(), u64::MAX);
        for _ in 0..if orderly { 1 } else { 3 } {
            let begun = Instant::now();
            let tier = open(&directory);
            opened.push(begun.elapsed().as_secs_f64());
            let _ = tier.find(&key(0));
            answered.push(begun.elapsed().as_secs_f64());
            assert_eq!(tier.wait_ready(60_000), DiskState::Ready);
            indexed.push(begun.elapsed().as_secs_f64());
            records = records.min(tier.capacity().records);
        }
        let (opened, answered, indexed) = (Spread::of(opened), Spread::of(answered), Spread::of(indexed));
        let name = if orderly { "orderly (snapshot)" } else { "crash (footers)" };
        println!(
            "| {name} | {} | {} | {} | {records} | {AT_ONCE} / {INDEXED_BAR} |",
            opened.show(1.0),
            answered.show(1.0),
            indexed.show(1.0)
        );
        if answered.median > AT_ONCE {
            missed.push(format!("{name}: open takes {:.2} s", answered.median));
        }
        if indexed.median > INDEXED_BAR || records != kept {
            missed.push(format!("{name}: {records} of {kept} blocks after {:.2} s", indexed.median));
        }
    }
    println!();
    drop(std::fs::remove_dir_all(directory));
    missed
}
