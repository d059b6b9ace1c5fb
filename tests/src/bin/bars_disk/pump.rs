//! Blocks of 1 MiB in and out of a tier, so many at once.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use cache_core::buffer::Buffer;
use cache_core::chain::Link;
use cache_core::form::{Form, Lineage};
use cache_core::hash::{BlockHash, Namespace};
use cache_core::header::seal_image;
use cache_core::key::CopyKey;
use cache_core::payload::BlockShape;
use cache_core::store::OpId;
use disk_tier::io::Memory;
use disk_tier::io::rig::SplitMix64;
use disk_tier::{DiskConfig, DiskOk, DiskState, DiskTier, WriteRequest};

/// Slot images of 1 MiB: a header page, and 51 sections of 20 KiB that end a page before the image does.
pub const SHAPE: BlockShape = BlockShape { layers: 51, kv_heads: 5, head_dim: 64, block_tokens: 16, form: Form::Raw16 };
/// Bytes of a block with its header.
pub const BLOCK_BYTES: u64 = 1 << 20;
const PATIENCE_MILLIS: u64 = 30_000;

/// The key of a block.
pub fn key(number: u64) -> CopyKey {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&number.to_le_bytes());
    CopyKey::exact(Namespace([0xBA; 32]), BlockHash(hash))
}

/// Names the image as block `number` and sums its sections.
pub fn seal(number: u64, image: &mut Buffer) {
    let key = key(number);
    let link = Link { hash: key.hash, parent: None, depth: 0 };
    seal_image(&SHAPE, key, Lineage(SHAPE.form_map()), link, image.as_mut_slice());
}

/// Bytes that do not compress.
pub fn noise(seed: u64) -> Buffer {
    let mut buffer = Buffer::zeroed(BLOCK_BYTES as usize);
    let mut random = SplitMix64::new(seed);
    for word in buffer.as_mut_slice().chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    buffer
}

/// Opens a tier for such blocks.
pub fn open(directory: &Path, budget_bytes: u64) -> DiskTier {
    let config =
        DiskConfig { record_bytes: BLOCK_BYTES, deadline_millis: PATIENCE_MILLIS, ..DiskConfig::new(budget_bytes) };
    let tier = DiskTier::open(directory, config).expect("a tier");
    assert_eq!(tier.wait_ready(PATIENCE_MILLIS), DiskState::Ready);
    tier
}

/// What an operation is, for [`Pump`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Read,
    Write,
}

/// Operations under way on a tier, with their buffers.
pub struct Pump<'a> {
    tier: &'a DiskTier,
    under_way: HashMap<OpId, (Kind, u64, Instant)>,
    buffers: Vec<Buffer>,
}

impl<'a> Pump<'a> {
    pub fn new(tier: &'a DiskTier, depth: usize) -> Pump<'a> {
        Pump { tier, under_way: HashMap::new(), buffers: (0..depth as u64).map(noise).collect() }
    }

    /// Operations of one kind under way.
    pub fn count(&self, kind: Kind) -> usize {
        self.under_way.values().filter(|(found, ..)| *found == kind).count()
    }

    /// True while another operation can be started.
    pub fn has_room(&self) -> bool {
        !self.buffers.is_empty()
    }

    pub fn start(&mut self, kind: Kind, number: u64) {
        let mut buffer = self.buffers.pop().expect("whoever starts has looked");
        let begun = Instant::now();
        let op = match kind {
            Kind::Write => {
                seal(number, &mut buffer);
                let memory = Memory::Owned(buffer);
                self.tier.submit_write(WriteRequest { key: key(number), shape: Some(SHAPE), memory, is_live: false })
            }
            Kind::Read => self.tier.read(key(number), SHAPE, Memory::Owned(buffer)),
        };
        self.under_way.insert(op, (kind, number, begun));
    }

    /// Waits for ends; hands each over with how long it took.
    pub fn finish(&mut self, each: &mut dyn FnMut(Kind, u64, Duration)) {
        assert!(self.tier.wait(PATIENCE_MILLIS), "operations end");
        let mut done = Vec::new();
        self.tier.poll(&mut done);
        for done in done {
            let (kind, number, begun) = self.under_way.remove(&done.op).expect("an operation ends once");
            let is_well = matches!(
                (kind, done.result),
                (Kind::Read, Ok(DiskOk::Read)) | (Kind::Write, Ok(DiskOk::Written | DiskOk::Present))
            );
            assert!(is_well, "{kind:?} of block {number}: {:?}", done.result);
            match done.memory {
                Some(Memory::Owned(buffer)) => self.buffers.push(buffer),
                other => panic!("{other:?} after {kind:?}"),
            }
            each(kind, number, begun.elapsed());
        }
    }

    /// Runs all blocks through; bytes per second.
    pub fn run(&mut self, kind: Kind, blocks: &mut dyn Iterator<Item = u64>) -> f64 {
        let begun = Instant::now();
        let mut count = 0u64;
        loop {
            while self.has_room()
                && let Some(number) = blocks.next()
            {
                self.start(kind, number);
                count += 1;
            }
            if self.under_way.is_empty() {
                return (count * BLOCK_BYTES) as f64 / begun.elapsed().as_secs_f64();
            }
            self.finish(&mut |_, _, _| {});
        }
    }
}
