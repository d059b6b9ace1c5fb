//! The contract suites on the host tier.

use cache_core::buffer::Buffer;
use cache_core::contract::{self, REST_MILLIS, Rig, SHAPE, SlotRig};
use cache_core::payload::BlockShape;
use cache_core::store::{Lease, Slot};
use cache_core::units::Now;
use host_tier::{HostConfig, HostTier};

struct HostRig(HostTier, BlockShape);

/// A tier of exactly `slots` slots: the smallest budget that gives them.
fn open(slots: u32) -> HostRig {
    open_in(SHAPE, slots)
}

fn open_in(shape: BlockShape, slots: u32) -> HostRig {
    let (mut low, mut high) = (0, u64::from(slots + 1) * shape.slot_bytes() + (1 << 20));
    while low + 1 < high {
        let middle = low.midpoint(high);
        match HostTier::open(HostConfig::new(middle, shape)) {
            Ok(tier) if tier.layout().slots() >= slots => high = middle,
            _ => low = middle,
        }
    }
    let tier = HostTier::open(HostConfig { rest_millis: REST_MILLIS, ..HostConfig::new(high, shape) }).unwrap();
    assert_eq!(tier.layout().slots(), slots);
    HostRig(tier, shape)
}

impl Rig for HostRig {
    type Tier = HostTier;

    fn tier(&self) -> &HostTier {
        &self.0
    }

    fn shape(&self) -> BlockShape {
        self.1
    }
}

impl SlotRig for HostRig {
    fn fill(&self, slot: &mut Slot, image: &[u8]) {
        self.0.write(slot, 0, image).unwrap();
    }

    fn fetch(&self, lease: &Lease) -> Buffer {
        let mut buffer = Buffer::zeroed(lease.place().bytes as usize);
        self.0.read(lease, 0, buffer.as_mut_slice());
        buffer
    }

    fn advance(&self, now: Now) {
        self.0.advance(now);
    }
}

#[test]
fn store() {
    contract::store::suite(open);
}

#[test]
fn lend() {
    contract::lend::suite(open);
}

#[test]
fn resident() {
    contract::resident::suite(open);
}

#[test]
fn model() {
    for seed in 1..=8 {
        contract::model::run(&open(contract::model::SLOTS), seed, 3000);
    }
}

#[test]
fn opaque_bytes() {
    let open = |slots| open_in(contract::opaque_shape(), slots);
    contract::store::suite(open);
    contract::lend::suite(open);
    contract::resident::suite(open);
    contract::model::run(&open(contract::model::SLOTS), 1, 3000);
}
