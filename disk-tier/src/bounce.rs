//! Bounce memory: buffers of the tier's own in which staged records stand on their way.

use cache_core::buffer::Buffer;

/// Buffers up to a limit in bytes. What comes back is kept for the next of its length, since fresh pages cost as much as decoding into
/// them.
pub(crate) struct Bounce {
    bytes_max: u64,
    /// Bytes of every buffer there is, lent or free.
    allocated_bytes: u64,
    free: Vec<Buffer>,
    lent: usize,
}

impl Bounce {
    pub(crate) fn new(bytes_max: u64) -> Bounce {
        Bounce { bytes_max, allocated_bytes: 0, free: Vec::new(), lent: 0 }
    }

    /// Bytes of every buffer there is.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.allocated_bytes
    }

    /// True when [`Bounce::take`] would give a buffer of so many bytes: a single one is always to be had, however long.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        let free_bytes: u64 = self.free.iter().map(length).sum();
        self.lent == 0 || self.allocated_bytes - free_bytes + bytes <= self.bytes_max
    }

    /// A buffer of so many bytes, whatever is in it.
    pub(crate) fn take(&mut self, bytes: u64) -> Option<Buffer> {
        if !self.has_room(bytes) {
            return None;
        }
        self.lent += 1;
        if let Some(at) = self.free.iter().position(|buffer| length(buffer) == bytes) {
            return Some(self.free.swap_remove(at));
        }
        while self.allocated_bytes + bytes > self.bytes_max
            && let Some(buffer) = self.free.pop()
        {
            self.allocated_bytes -= length(&buffer);
        }
        self.allocated_bytes += bytes;
        Some(Buffer::zeroed(bytes as usize))
    }

    /// Takes a buffer back.
    pub(crate) fn give(&mut self, buffer: Buffer) {
        self.lent -= 1;
        self.free.push(buffer);
    }

    /// A buffer of so many bytes is the medium's, which gives it to nobody any more.
    pub(crate) fn lose(&mut self, bytes: u64) {
        self.lent -= 1;
        self.allocated_bytes -= bytes;
    }
}

fn length(buffer: &Buffer) -> u64 {
    buffer.as_slice().len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_and_one_buffer_is_always_to_be_had() {
        let mut bounce = Bounce::new(3 * 8192);
        let taken: Vec<Buffer> = (0..3).map(|_| bounce.take(8192).unwrap()).collect();
        assert!(bounce.take(4096).is_none() && !bounce.has_room(4096));
        taken.into_iter().for_each(|buffer| bounce.give(buffer));
        assert_eq!(bounce.allocated_bytes(), 3 * 8192, "kept for the next");
        // Free ones of another length make way.
        let (a, b) = (bounce.take(4096).unwrap(), bounce.take(16384).unwrap());
        assert_eq!(bounce.allocated_bytes(), 4096 + 16384);
        assert!(bounce.take(8192).is_none());
        bounce.lose(16384);
        drop(b);
        bounce.give(a);
        let long = bounce.take(1 << 20).unwrap();
        assert_eq!(long.as_slice().len(), 1 << 20);
        assert!(bounce.take(4096).is_none());
        bounce.give(long);
        assert!(bounce.take(8192).is_some());
        assert_eq!(bounce.allocated_bytes(), 8192);
    }
}
