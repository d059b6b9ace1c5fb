//! A reader of little-endian fields that cannot leave its bytes.

use super::GgufError;

/// Position in the bytes of a file; every read is checked against the end.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Bytes left.
    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `count` bytes. `what` names them should the file end first.
    pub(super) fn take(&mut self, count: u64, what: impl FnOnce() -> String) -> Result<&'a [u8], GgufError> {
        let wanted = usize::try_from(count).ok().filter(|&count| count <= self.remaining());
        let Some(wanted) = wanted else {
            return Err(GgufError::Truncated {
                what: what(),
                expected: (self.at as u64).saturating_add(count),
                found: self.bytes.len() as u64,
            });
        };
        let taken = &self.bytes[self.at..self.at + wanted];
        self.at += wanted;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self, what: impl FnOnce() -> String) -> Result<[u8; N], GgufError> {
        let bytes = self.take(N as u64, what)?;
        Ok(bytes.try_into().expect("take returns exactly N bytes"))
    }

    pub(super) fn u32(&mut self, what: impl FnOnce() -> String) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: impl FnOnce() -> String) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A u64 length and that many bytes of UTF-8.
    pub(super) fn text(&mut self, what: impl Fn() -> String) -> Result<&'a str, GgufError> {
        let count = self.u64(|| format!("length of {}", what()))?;
        let bytes = self.take(count, &what)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::Text { what: what() })
    }

    /// A u64 count of entries that take at least `least_bytes` each, refused when the file cannot hold them: what is
    /// allocated for the entries stays in proportion to the file.
    pub(super) fn count(&mut self, least_bytes: u64, what: impl Fn() -> String) -> Result<usize, GgufError> {
        let count = self.u64(|| format!("count of {}", what()))?;
        let needed = count.saturating_mul(least_bytes);
        if needed > self.remaining() as u64 {
            return Err(GgufError::Truncated {
                what: format!("{count} entries of {}", what()),
                expected: (self.at as u64).saturating_add(needed),
                found: self.bytes.len() as u64,
            });
        }
        Ok(usize::try_from(count).expect("no larger than the remaining bytes"))
    }
}
