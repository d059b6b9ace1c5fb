//! Global memory as a launch sees it: live allocations, and nothing between them.

/// The memory that a kernel may touch. An access lies in one allocation as a whole or is refused.
///
/// Addresses whose top byte is 1 to 5 belong to the interpreter's own windows (shared, local, constant, parameter, module
/// variables) and must not be used.
pub trait Memory {
    /// The bytes of a readable range; `None` when it is not inside one live allocation.
    fn bytes(&self, address: u64, bytes: usize) -> Option<&[u8]>;
    /// The bytes of a writable range; `None` when it is not inside one live allocation, or only readable.
    fn bytes_mut(&mut self, address: u64, bytes: usize) -> Option<&mut [u8]>;
}

/// Alignment of an [`Arena`]'s allocations, as the driver promises it.
pub const ALIGNMENT: u64 = 256;
/// Byte around each allocation that nobody may touch.
const GAP: u64 = 4096;
const FIRST: u64 = 0x7F00_0000_0000;
/// What fresh memory holds: a NaN in every float type.
const FRESH: u8 = 0xFB;

#[derive(Debug)]
struct Block {
    start: u64,
    data: Vec<u8>,
    writable: bool,
}

/// Allocations of a test. Addresses are never used twice.
#[derive(Debug, Default)]
pub struct Arena {
    blocks: Vec<Block>,
    used: u64,
}

impl Arena {
    /// No allocation yet.
    pub fn new() -> Arena {
        Arena::default()
    }

    fn push(&mut self, data: Vec<u8>, writable: bool) -> u64 {
        let start = FIRST + self.used;
        self.used += (data.len() as u64).next_multiple_of(ALIGNMENT) + GAP;
        self.blocks.push(Block { start, data, writable });
        start
    }

    /// Allocates memory that holds 0xFB, a NaN in every float type.
    pub fn allocate(&mut self, bytes: usize) -> u64 {
        self.push(vec![FRESH; bytes], true)
    }

    /// Allocates memory with these bytes.
    pub fn upload(&mut self, data: &[u8]) -> u64 {
        self.push(data.to_vec(), true)
    }

    /// Allocates memory with these bytes, into which a kernel may not write.
    pub fn upload_read_only(&mut self, data: &[u8]) -> u64 {
        self.push(data.to_vec(), false)
    }

    /// Ends an allocation; later accesses are out of bounds. Panics when there is none at this address.
    pub fn free(&mut self, address: u64) {
        let index = self.blocks.iter().position(|block| block.start == address).expect("a live allocation starts here");
        self.blocks.remove(index);
    }

    /// The bytes of a range. Panics when it is not inside one allocation.
    pub fn download(&self, address: u64, bytes: usize) -> Vec<u8> {
        self.bytes(address, bytes).expect("the range is inside one allocation").to_vec()
    }

    fn find(&self, address: u64, bytes: usize) -> Option<(usize, usize)> {
        let index = self.blocks.partition_point(|block| block.start <= address).checked_sub(1)?;
        let block = &self.blocks[index];
        let offset = (address - block.start) as usize;
        (offset.checked_add(bytes)? <= block.data.len()).then_some((index, offset))
    }
}

impl Memory for Arena {
    fn bytes(&self, address: u64, bytes: usize) -> Option<&[u8]> {
        let (index, offset) = self.find(address, bytes)?;
        Some(&self.blocks[index].data[offset..offset + bytes])
    }

    fn bytes_mut(&mut self, address: u64, bytes: usize) -> Option<&mut [u8]> {
        let (index, offset) = self.find(address, bytes)?;
        let block = &mut self.blocks[index];
        block.writable.then(|| &mut block.data[offset..offset + bytes])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_lie_in_one_allocation() {
        let mut arena = Arena::new();
        let first = arena.upload(&[1, 2, 3]);
        let second = arena.upload_read_only(&[4]);
        assert_eq!(arena.bytes(first + 1, 2), Some(&[2, 3][..]));
        assert!(arena.bytes(first + 1, 3).is_none() && arena.bytes(first - 1, 1).is_none());
        assert!(arena.bytes(second, 1).is_some() && arena.bytes_mut(second, 1).is_none());
        arena.free(first);
        assert!(arena.bytes(first, 1).is_none());
        assert_eq!(first % ALIGNMENT, 0);
    }
}
