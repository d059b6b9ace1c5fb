//! The contract suite of stores on the disk tier.

use cache_core::contract::{self, Rig, SHAPE};
use disk_tier::io::rig::{Completion, MemoryMedium};
use disk_tier::testing::Testing;
use disk_tier::{DiskConfig, DiskState, DiskStore, DiskTier};

struct DiskRig(DiskStore);

impl Rig for DiskRig {
    type Tier = DiskStore;

    fn tier(&self) -> &DiskStore {
        &self.0
    }

    fn settle(&self) {
        assert!(self.0.tier().drain(10_000));
    }
}

fn open(is_manual: bool, completion: Completion) -> DiskRig {
    let testing = Testing { segment_bytes: Some(128 << 10), is_manual, ..Testing::default() };
    let config = DiskConfig::new(2 << 20);
    let tier = DiskTier::over_with(MemoryMedium::new(completion), config, testing).unwrap();
    assert_eq!(tier.wait_ready(10_000), DiskState::Ready);
    DiskRig(DiskStore::new(tier, SHAPE))
}

#[test]
fn store_without_a_thread() {
    contract::store::suite(|_| open(true, Completion::Inline));
}

#[test]
fn store_with_threads() {
    contract::store::suite(|_| open(false, Completion::Threads { threads: 3, deadline_millis: 0 }));
}
