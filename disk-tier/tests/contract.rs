//! The contract suite of stores on the disk tier.

use cache_core::contract::{self, Rig, SHAPE};
use cache_core::payload::BlockShape;
use disk_tier::io::rig::{Completion, MemoryMedium};
use disk_tier::testing::Testing;
use disk_tier::{ByteStage, DiskConfig, DiskState, DiskStore, DiskTier};

struct DiskRig(DiskStore, BlockShape);

impl Rig for DiskRig {
    type Tier = DiskStore;

    fn tier(&self) -> &DiskStore {
        &self.0
    }

    fn shape(&self) -> BlockShape {
        self.1
    }

    fn settle(&self) {
        assert!(self.0.tier().drain(10_000));
    }
}

fn open(is_manual: bool, completion: Completion) -> DiskRig {
    open_in(SHAPE, is_manual, completion, ByteStage::Off)
}

fn open_in(shape: BlockShape, is_manual: bool, completion: Completion, stage: ByteStage) -> DiskRig {
    let testing = Testing { segment_bytes: Some(128 << 10), is_manual, ..Testing::default() };
    let config = DiskConfig { stage, ..DiskConfig::new(2 << 20) };
    let tier = DiskTier::over_with(MemoryMedium::new(completion), config, testing).unwrap();
    assert_eq!(tier.wait_ready(10_000), DiskState::Ready);
    DiskRig(DiskStore::new(tier, shape), shape)
}

#[test]
fn store_without_a_thread() {
    contract::store::suite(|_| open(true, Completion::Inline));
}

#[test]
fn store_with_threads() {
    contract::store::suite(|_| open(false, Completion::Threads { threads: 3, deadline_millis: 0 }));
}

/// With and without a byte stage, which leaves such blocks as they are, or makes of them what it makes of any bytes.
#[test]
fn store_of_opaque_bytes() {
    for stage in [ByteStage::Off, ByteStage::Auto, ByteStage::Lz4, ByteStage::Zstd] {
        contract::store::suite(|_| open_in(contract::opaque_shape(), true, Completion::Inline, stage));
    }
}
