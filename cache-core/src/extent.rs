//! Section extents: where the sections of a slot image lie, told by their lengths alone.

use crate::buffer::round_to_pages;
use crate::payload::Section;

/// Length of one section, and whether it begins a plane: 32 bits, the length in the lower 31, the top one set where it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionExtent(u32);

const BEGINS_PLANE: u32 = 1 << 31;

impl SectionExtent {
    /// Panics when the section has 2 GiB or more.
    pub fn new(bytes: u64, begins_plane: bool) -> SectionExtent {
        assert!(bytes < u64::from(BEGINS_PLANE), "a section of {bytes} bytes");
        SectionExtent(bytes as u32 | if begins_plane { BEGINS_PLANE } else { 0 })
    }

    /// As it stands in a header. Any 32 bits are some extent.
    pub fn from_bits(bits: u32) -> SectionExtent {
        SectionExtent(bits)
    }

    /// The bits that stand in a header.
    pub fn to_bits(self) -> u32 {
        self.0
    }

    /// Length in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0 & !BEGINS_PLANE)
    }

    /// True when the section begins a plane, and so stands on the next page boundary.
    pub fn begins_plane(self) -> bool {
        self.0 & BEGINS_PLANE != 0
    }
}

/// The sections of these extents from byte `start` on: each right behind the one before it, or on the next page where it begins a plane.
pub fn lay_out(start: u64, extents: impl Iterator<Item = SectionExtent>) -> impl Iterator<Item = Section> {
    extents.zip(0..).scan(start, |end, (extent, index)| {
        let offset = if extent.begins_plane() { round_to_pages(*end) } else { *end };
        *end = offset + extent.bytes();
        Some(Section { index, offset, bytes: extent.bytes() })
    })
}
