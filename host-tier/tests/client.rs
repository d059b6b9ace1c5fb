//! What a client may do with the descriptor of an extent: map it read-only, and nothing else.

use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

use cache_core::contract::{SHAPE, block};
use cache_core::store::{Lend, Lookup, Resident};
use host_tier::{Extent, HostConfig, HostTier};
use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, ftruncate};
use rustix::io::{Errno, FdFlags, fcntl_getfd};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect, munmap};

fn tier() -> HostTier {
    HostTier::open(HostConfig::new(1 << 20, SHAPE)).unwrap()
}

fn map(file: impl AsFd, bytes: u64, protection: ProtFlags, flags: MapFlags) -> Result<*mut u8, Errno> {
    // SAFETY: no address is asked for, so no existing mapping is replaced.
    unsafe { mmap(std::ptr::null_mut(), bytes as usize, protection, flags, file, 0).map(|address| address.cast()) }
}

fn unmap(address: *mut u8, bytes: u64) {
    // SAFETY: the caller's own mapping, which nothing refers to any more.
    unsafe { munmap(address.cast(), bytes as usize).unwrap() }
}

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

#[test]
fn a_clients_descriptor_only_reads() {
    let tier = tier();
    let extent = &tier.extents()[0];
    let file = extent.duplicate().unwrap();
    let bytes = extent.bytes();

    assert_eq!(fcntl_getfd(&file).unwrap(), FdFlags::CLOEXEC);
    for size in [0, bytes - 4096, bytes + 4096] {
        assert_eq!(ftruncate(&file, size), Err(Errno::PERM), "truncate to {size}");
    }
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(fallocate(&file, punch, 0, 4096), Err(Errno::PERM));
    assert_eq!(fallocate(&file, FallocateFlags::empty(), bytes, 4096), Err(Errno::PERM));
    assert_eq!(rustix::io::pwrite(&file, b"other bytes", 0), Err(Errno::PERM));
    assert_eq!(map(&file, bytes, READ_WRITE, MapFlags::SHARED), Err(Errno::PERM));

    let address = map(&file, bytes, ProtFlags::READ, MapFlags::SHARED).unwrap();
    // SAFETY: the range is the mapping just made, and nothing refers to it.
    let raised = unsafe { mprotect(address.cast(), bytes as usize, MprotectFlags::READ | MprotectFlags::WRITE) };
    assert_eq!(raised, Err(Errno::ACCESS));
    unmap(address, bytes);
}

#[test]
fn reopening_the_descriptor_gains_nothing() {
    let tier = tier();
    let extent = &tier.extents()[0];
    let file = extent.duplicate().unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let Ok(again) = OpenOptions::new().read(true).write(true).open(path) else {
        return;
    };
    assert_eq!(map(&again, extent.bytes(), READ_WRITE, MapFlags::SHARED), Err(Errno::PERM));
    assert!(again.write_at(b"other bytes", 0).is_err());
    assert!(again.set_len(0).is_err());
}

#[test]
fn a_private_mapping_changes_nothing_for_others() {
    let tier = tier();
    let extent = &tier.extents()[0];
    let before = extent.generation(0);
    let file = extent.duplicate().unwrap();
    if let Ok(address) = map(&file, extent.bytes(), READ_WRITE, MapFlags::PRIVATE) {
        // SAFETY: inside the private mapping just made.
        unsafe { address.cast::<u64>().write(7) };
        unmap(address, extent.bytes());
    }
    assert_eq!(extent.generation(0), before);
}

#[test]
fn the_seals_are_complete_and_final() {
    let tier = tier();
    for extent in tier.extents() {
        let file = extent.duplicate().unwrap();
        let expected = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        let seals = fcntl_get_seals(&file).unwrap();
        assert!(seals.contains(expected), "{seals:?}");
        assert_eq!(fcntl_add_seals(&file, SealFlags::WRITE), Err(Errno::PERM), "and no client can seal the tier out");
    }
}

/// Permissions of the mapping at an address, as the kernel states them.
fn permissions(address: *const u8) -> String {
    let start = format!("{:x}-", address as usize);
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.starts_with(&start)).expect("the mapping is there");
    line.split_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn a_protected_reader_mapping_leaves_the_service_at_work() {
    let tier = tier();
    let extent: &Extent = &tier.extents()[0];
    assert_eq!(permissions(extent.service_address()), "rw-s");
    assert_eq!(permissions(extent.reader_address()), "r--s");
    for extent in tier.extents() {
        extent.protect_reader().unwrap();
    }
    assert_eq!(permissions(extent.reader_address()), "---s");

    let (sealed, image) = block(1);
    let mut slot = tier.reserve(sealed.key).unwrap();
    tier.write(&mut slot, 0, image.as_slice()).unwrap();
    slot.commit(&sealed).unwrap();
    let Lookup::Hit(lease) = tier.lookup(&sealed.key) else { panic!("it was committed") };
    let mut copy = vec![0; image.as_slice().len()];
    assert!(tier.read(&lease, 0, &mut copy) && tier.is_current(&lease));
    assert!(copy == image.as_slice());
}

#[test]
fn a_mapping_outlives_the_tier() {
    let tier = tier();
    let (sealed, image) = block(1);
    let mut slot = tier.reserve(sealed.key).unwrap();
    tier.write(&mut slot, 0, image.as_slice()).unwrap();
    let place = slot.place();
    slot.commit(&sealed).unwrap();
    let file = tier.extents()[place.extent as usize].duplicate().unwrap();
    let bytes = tier.extents()[place.extent as usize].bytes();
    let address = map(&file, bytes, ProtFlags::READ, MapFlags::SHARED).unwrap();
    drop((tier, file));
    // SAFETY: inside the mapping; the tier that wrote it is gone and the seal lets nobody else write.
    let found = unsafe { std::slice::from_raw_parts(address.add(place.offset as usize), place.bytes as usize) };
    assert!(found == image.as_slice(), "a client goes on reading the blocks it leases");
    unmap(address, bytes);
}
