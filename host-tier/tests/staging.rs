//! Images that come in through staging: visible when they are whole, refused when they are not, whatever their writer does meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use cache_core::buffer::Buffer;
use cache_core::chain::Link;
use cache_core::contract::{Random, SHAPE, block};
use cache_core::hash::BlockHash;
use cache_core::header::{CheckFailure, verify_image};
use cache_core::payload::BlockShape;
use cache_core::store::{Lend, Lookup, Resident, Sealed, Store, StoreError};
use host_tier::{HostConfig, HostTier, Staging};

/// Several pieces long, and no whole number of them.
const LONG: BlockShape = BlockShape { layers: 3, kv_heads: 2, head_dim: 64, block_tokens: 56, ..SHAPE };

/// Raises a flag when it goes, also when a failed assertion takes it.
struct RaiseOnDrop<'a>(&'a AtomicBool);

impl Drop for RaiseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn tier(shape: BlockShape) -> HostTier {
    HostTier::open(HostConfig::new(2 << 20, shape)).unwrap()
}

fn staging(image: &[u8], offset: u64) -> Staging {
    let staging = Staging::new((offset + image.len() as u64).next_multiple_of(4096)).unwrap();
    staging.write(offset, image);
    staging
}

/// Takes an image in; the slot is free again if it is refused.
fn take_in(tier: &HostTier, staging: &Staging, offset: u64, sealed: &Sealed) -> Result<(), StoreError> {
    let slot = tier.reserve(sealed.key).unwrap();
    tier.commit_from(slot, staging, offset, sealed).map_err(|(_, error)| error)
}

fn held(tier: &HostTier, sealed: &Sealed) -> Option<Buffer> {
    let Lookup::Hit(lease) = tier.lookup(&sealed.key) else {
        return None;
    };
    let mut copy = Buffer::zeroed(tier.layout().slot_bytes() as usize);
    assert!(tier.read(&lease, 0, copy.as_mut_slice()));
    Some(copy)
}

/// A block of [`LONG`].
fn long_block() -> (Sealed, Buffer) {
    let (sealed, _) = block(1);
    let mut image = Buffer::zeroed(LONG.slot_bytes() as usize);
    image.as_mut_slice().iter_mut().enumerate().for_each(|(index, byte)| *byte = (index % 253) as u8);
    cache_core::header::seal_image(&LONG, sealed.key, sealed.lineage, sealed.link, image.as_mut_slice());
    (sealed, image)
}

#[test]
fn an_image_is_visible_when_it_is_whole() {
    let (sealed, image) = long_block();
    assert!(LONG.slot_bytes() > 64 << 10 && !LONG.slot_bytes().is_multiple_of(16 << 10));
    for offset in [0, 4096, 64] {
        let tier = tier(LONG);
        take_in(&tier, &staging(image.as_slice(), offset), offset, &sealed).unwrap();
        assert!(held(&tier, &sealed).unwrap().as_slice() == image.as_slice(), "from byte {offset}");
        assert_eq!(tier.capacity().used_slots, 1, "dropping the committed slot frees nothing");
    }
}

#[test]
fn what_is_wrong_is_refused_and_its_slot_is_free() {
    let (sealed, image) = long_block();
    let tier = tier(LONG);
    let last = image.as_slice().len() - 1;
    for at in [0, 100, 5000, 40_000, LONG.header_bytes() as usize + LONG.payload_bytes() as usize - 1] {
        let mut damaged = image.clone();
        damaged.as_mut_slice()[at.min(last)] ^= 1;
        let refused = take_in(&tier, &staging(damaged.as_slice(), 0), 0, &sealed);
        assert!(matches!(refused, Err(StoreError::Check(_))), "byte {at}: {refused:?}");
        assert!(held(&tier, &sealed).is_none());
        assert_eq!(tier.capacity().used_slots, 0);
    }
    let elsewhere = Sealed { link: Link { parent: Some(BlockHash([9; 32])), depth: 7, ..sealed.link }, ..sealed };
    let refused = take_in(&tier, &staging(image.as_slice(), 0), 0, &elsewhere);
    assert_eq!(refused, Err(StoreError::Check(CheckFailure::Identity)), "another place in the chain");
    let cut = staging(&image.as_slice()[..32 << 10], 0);
    assert!(matches!(take_in(&tier, &cut, 0, &sealed), Err(StoreError::Size { .. })));
    assert!(matches!(take_in(&tier, &cut, u64::MAX - 63, &sealed), Err(StoreError::Size { .. })));
    assert_eq!(tier.counters().failed_checks, 6);
    take_in(&tier, &staging(image.as_slice(), 0), 0, &sealed).unwrap();
}

/// A client goes on writing to its staging memory while the image is taken out: what becomes visible is what was verified.
#[test]
fn a_client_that_writes_meanwhile_spoils_its_own_image_only() {
    let (sealed, image) = long_block();
    let staging = staging(image.as_slice(), 0);
    let (mut taken, mut refused) = (0, 0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random::new(7);
            while !stop.load(Ordering::Relaxed) {
                // A word is damaged for a moment, and mended.
                let at = random.below(image.as_slice().len() as u64 / 8) * 8;
                let word = &image.as_slice()[at as usize..][..8];
                staging.write(at, &random.next().to_le_bytes());
                staging.write(at, word);
                if random.below(4) == 0 {
                    thread::yield_now();
                }
            }
        });
        let finished = RaiseOnDrop(&stop);
        for _ in 0..500 {
            let tier = tier(LONG);
            match take_in(&tier, &staging, 0, &sealed) {
                Ok(()) => {
                    taken += 1;
                    let held = held(&tier, &sealed).unwrap();
                    verify_image(&LONG, &sealed.key, held.as_slice()).unwrap();
                }
                Err(StoreError::Check(_)) => refused += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
        drop(finished);
    });
    println!("{taken} taken, {refused} refused");
    assert_eq!(taken + refused, 500);
}

#[test]
fn a_run_is_leased_up_to_the_first_that_is_not_there() {
    let tier = tier(SHAPE);
    let blocks: Vec<_> = (0..4).map(block).collect();
    for (sealed, image) in blocks.iter().filter(|(sealed, _)| sealed.key != blocks[2].0.key) {
        take_in(&tier, &staging(image.as_slice(), 0), 0, sealed).unwrap();
    }
    let keys: Vec<_> = blocks.iter().map(|(sealed, _)| sealed.key).collect();
    let leases = tier.lease_run(keys.iter());
    assert_eq!(leases.len(), 2);
    assert!(leases.iter().all(|lease| tier.is_current(lease)));
    assert_eq!(tier.remove(&keys[0]), Err(StoreError::Leased { leases: 1 }));
    assert_eq!(tier.remove(&keys[3]), Ok(()));
    drop(leases);
    assert_eq!(tier.remove(&keys[0]), Ok(()));
    assert_eq!(tier.counters().stale_releases, 0);
}
