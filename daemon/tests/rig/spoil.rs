//! Memory that rots: flips bits of resident blocks under the daemon, through the mapping that only it can write.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use cache_core::hash::BlockHash;

/// Where a slot header has the block's hash: behind magic, counts and namespace.
const HASH_OFFSET: usize = 16 + 32;
const PAGE: usize = 4096;

/// The daemon's writable mappings of host extents in this process: first address and length.
fn arenas() -> Vec<(u64, u64)> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let arena = |line: &str| {
        let range = line.split(' ').next()?;
        let (start, end) = range.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        (line.contains(" rw-s ") && line.contains("memfd:kvtier-extent")).then_some((start, end - start))
    };
    maps.lines().filter_map(arena).collect()
}

/// Addresses of the slot images that hold a block.
fn images_of(memory: &File, hash: &BlockHash) -> Vec<u64> {
    let mut found = Vec::new();
    for (start, bytes) in arenas() {
        let mut page = [0; PAGE];
        for offset in (0..bytes).step_by(PAGE) {
            // What was never touched stays untouched: only its first bytes are looked at.
            if memory.read_exact_at(&mut page[..HASH_OFFSET + 32], start + offset).is_err() {
                // Another daemon of this process, which has ended meanwhile.
                break;
            }
            if page.starts_with(b"kvtslot2") && page[HASH_OFFSET..HASH_OFFSET + 32] == *hash.bytes() {
                found.push(start + offset);
            }
        }
    }
    found
}

/// Flips one bit of a block's resident image. Panics when there is not exactly one.
pub fn flip(hash: &BlockHash, byte: u64, bit: u8) {
    let memory = OpenOptions::new().read(true).write(true).open("/proc/self/mem").unwrap();
    let images = images_of(&memory, hash);
    assert_eq!(images.len(), 1, "the block is resident once");
    let mut value = [0];
    memory.read_exact_at(&mut value, images[0] + byte).unwrap();
    value[0] ^= 1 << bit;
    memory.write_all_at(&value, images[0] + byte).unwrap();
}
