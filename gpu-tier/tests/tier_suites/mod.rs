//! What a device tier must do, on any device: the contract suites of `cache_core::contract`, and what only a device tier does: open blocks.

use std::sync::Arc;

use cache_core::buffer::Buffer;
use cache_core::contract::{self, REST_MILLIS, Rig, SHAPE, SlotRig, block};
use cache_core::header::{CheckFailure, verify_image};
use cache_core::payload::BlockShape;
use cache_core::store::{Lease, Lend, Lookup, Resident, Sealed, Slot, Store, StoreError};
use cache_core::units::Now;
use gpu_tier::DeviceError;
use gpu_tier::device::{Device, Stream};
use gpu_tier::tier::{DeviceTier, DeviceTierConfig};

/// Opens a device with a budget in bytes.
pub type Opener<'a> = &'a dyn Fn(u64) -> Arc<dyn Device>;

struct DeviceRig(DeviceTier<dyn Device>, BlockShape);

fn device(on: Opener<'_>, slots: u32, shape: &BlockShape) -> Arc<dyn Device> {
    on(u64::from(slots) * shape.slot_bytes())
}

fn open(on: Opener<'_>, slots: u32) -> DeviceRig {
    open_in(on, SHAPE, slots)
}

fn open_in(on: Opener<'_>, shape: BlockShape, slots: u32) -> DeviceRig {
    let config = DeviceTierConfig { slots, shape, rest_millis: REST_MILLIS };
    DeviceRig(DeviceTier::open(device(on, slots, &shape), config).unwrap(), shape)
}

/// Waits for the work that a stream has.
fn finish(device: &Arc<dyn Device>, stream: Stream) {
    device.synchronize(device.record(stream).unwrap()).unwrap();
}

impl DeviceRig {
    fn upload(&self, slot: &Slot, offset: u64, bytes: &[u8]) {
        let target = self.0.range(slot.place()).slice(offset, bytes.len() as u64);
        self.0.device().upload(Stream::Compute, bytes, target).unwrap();
    }

    fn download(&self, place: cache_core::store::SlotPlace) -> Buffer {
        let mut buffer = Buffer::zeroed(place.bytes as usize);
        self.0.device().download(Stream::Compute, self.0.range(place), buffer.as_mut_slice()).unwrap();
        buffer
    }

    /// An open slot with the sections of a block, but no header.
    fn open_with(&self, number: u32) -> (Slot, Sealed) {
        let (sealed, image) = block(number);
        let slot = self.0.reserve_open().unwrap();
        let first = SHAPE.code_section(0).offset;
        self.upload(&slot, first, &image.as_slice()[first as usize..]);
        (slot, sealed)
    }
}

impl Rig for DeviceRig {
    type Tier = DeviceTier<dyn Device>;

    fn tier(&self) -> &DeviceTier<dyn Device> {
        &self.0
    }

    fn shape(&self) -> BlockShape {
        self.1
    }
}

impl SlotRig for DeviceRig {
    fn fill(&self, slot: &mut Slot, image: &[u8]) {
        self.upload(slot, 0, image);
    }

    fn fetch(&self, lease: &Lease) -> Buffer {
        self.download(lease.place())
    }

    fn advance(&self, now: Now) {
        self.0.advance(now);
    }
}

pub fn store(on: Opener<'_>) {
    contract::store::suite(|slots| open(on, slots));
}

pub fn lend(on: Opener<'_>) {
    contract::lend::suite(|slots| open(on, slots));
}

pub fn resident(on: Opener<'_>) {
    contract::resident::suite(|slots| open(on, slots));
}

pub fn model(on: Opener<'_>, seed: u64, steps: u32) {
    contract::model::run(&open(on, contract::model::SLOTS), seed, steps);
}

pub fn opaque_bytes(on: Opener<'_>, steps: u32) {
    let open = |slots| open_in(on, contract::opaque_shape(), slots);
    contract::store::suite(open);
    contract::lend::suite(open);
    contract::resident::suite(open);
    contract::model::run(&open(contract::model::SLOTS), 1, steps);
}

pub fn slots_come_from_the_devices_budget(on: Opener<'_>) {
    let device = device(on, 3, &SHAPE);
    let config = DeviceTierConfig { slots: 4, shape: SHAPE, rest_millis: 0 };
    assert!(matches!(DeviceTier::open(Arc::clone(&device), config), Err(DeviceError::Full { .. })));
    let tier = DeviceTier::open(Arc::clone(&device), DeviceTierConfig { slots: 3, ..config }).unwrap();
    assert_eq!(device.memory().used_bytes, 3 * SHAPE.slot_bytes());
    let slot = tier.reserve(block(1).0.key).unwrap();
    drop(tier);
    assert_eq!(device.memory().used_bytes, 3 * SHAPE.slot_bytes(), "a reservation keeps the memory");
    drop(slot);
    // Memory is given back when the work on it is done.
    [Stream::Compute, Stream::CopyIn, Stream::CopyOut].into_iter().for_each(|stream| finish(&device, stream));
    assert_eq!(device.memory().used_bytes, 0);
}

pub fn an_open_block_is_sealed_as_any_other(on: Opener<'_>) {
    let rig = open(on, 2);
    let (slot, sealed) = rig.open_with(1);
    assert!(matches!(rig.0.lookup(&sealed.key), Lookup::Miss(_)), "nobody knows its key yet");
    rig.0.commit_open(slot, &sealed).unwrap();
    let Lookup::Hit(lease) = rig.0.lookup(&sealed.key) else { panic!("sealed, but not there") };
    let image = rig.download(lease.place());
    assert!(
        image.as_slice() == block(1).1.as_slice(),
        "the header that the host's sealing writes, over the same bytes"
    );
    verify_image(&SHAPE, &sealed.key, image.as_slice()).unwrap();
    assert_eq!(rig.0.counters().sealed, 1);
}

pub fn an_open_slot_is_zeroed(on: Opener<'_>) {
    let rig = open(on, 1);
    let (slot, sealed) = rig.open_with(1);
    rig.0.commit_open(slot, &sealed).unwrap();
    rig.0.remove(&sealed.key).unwrap();
    let slot = rig.0.reserve_open().unwrap();
    assert!(rig.download(slot.place()).as_slice().iter().all(|byte| *byte == 0), "the last tenant's bytes are gone");
}

pub fn the_same_block_twice_is_kept_once(on: Opener<'_>) {
    let rig = open(on, 2);
    let (first, sealed) = rig.open_with(1);
    let (second, _) = rig.open_with(1);
    rig.0.commit_open(first, &sealed).unwrap();
    let (second, error) = rig.0.commit_open(second, &sealed).unwrap_err();
    assert_eq!(error, StoreError::Present);
    drop(second);
    assert_eq!((rig.0.capacity().used_slots, rig.0.counters().sealed), (1, 1));
}

pub fn a_block_of_another_form_is_not_sealed(on: Opener<'_>) {
    let rig = open(on, 1);
    let (slot, sealed) = rig.open_with(1);
    let key = cache_core::key::CopyKey { form: cache_core::form::FormMapId::RAW32, ..sealed.key };
    let (slot, error) = rig.0.commit_open(slot, &Sealed { key, ..sealed }).unwrap_err();
    assert_eq!(error, StoreError::Check(CheckFailure::Identity));
    rig.0.commit_open(slot, &sealed).unwrap();
}

pub fn an_arriving_copy_is_verified_and_not_resealed(on: Opener<'_>) {
    let rig = open(on, 1);
    let (sealed, mut image) = block(1);
    image.as_mut_slice()[SHAPE.code_section(2).offset as usize] ^= 1;
    let mut slot = rig.0.reserve(sealed.key).unwrap();
    rig.fill(&mut slot, image.as_slice());
    let (slot, error) = slot.commit(&sealed).unwrap_err();
    assert_eq!(error, StoreError::Check(CheckFailure::Section { section: 2 }));
    assert_eq!((rig.0.counters().failed_checks, rig.0.counters().sealed), (1, 0));
    assert!(rig.download(slot.place()).as_slice() == image.as_slice(), "its bytes are left as they came");
}

pub fn damage_in_device_memory_is_found_when_it_is_read(on: Opener<'_>) {
    let rig = open(on, 2);
    let (slot, sealed) = rig.open_with(1);
    let place = slot.place();
    rig.0.commit_open(slot, &sealed).unwrap();
    let section = rig.0.section(place, 1);
    rig.0.device().upload(Stream::Compute, &[0xff; 8], section.slice(16, 8)).unwrap();
    finish(rig.0.device(), Stream::Compute);
    let buffer = Buffer::zeroed(SHAPE.slot_bytes() as usize);
    rig.0.submit(cache_core::store::StoreOp::Read, sealed.key, buffer).unwrap();
    let mut done = Vec::new();
    rig.0.poll(&mut done);
    let reason = cache_core::miss::MissReason::FailedCheck;
    assert!(matches!(&done[0].outcome, cache_core::store::Outcome::Miss(found) if *found == reason));
    assert!(matches!(rig.0.lookup(&sealed.key), Lookup::Miss(_)), "it is never served again");
    assert_eq!(rig.0.counters().quarantined, 1);
}

pub fn a_known_key_is_not_an_open_block(on: Opener<'_>) {
    let rig = open(on, 1);
    let sealed = block(1).0;
    let slot = rig.0.reserve(sealed.key).unwrap();
    let _ = rig.0.commit_open(slot, &sealed);
}
