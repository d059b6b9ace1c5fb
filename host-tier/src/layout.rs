//! How a budget is cut into extents and slots, counted to the byte before anything is allocated.
//!
//! ```text
//! extent = generation pages (8 bytes a slot) | slot image | slot image | ...        each on a 4 KiB boundary
//! ```

use cache_core::buffer::round_to_pages;
use cache_core::payload::BlockShape;
use cache_core::slots::SlotTable;
use cache_core::store::SlotPlace;
use cache_core::units::SlotIndex;

use crate::error::HostError;

/// The largest extent, in bytes; a small budget has smaller ones, a quarter of it at most (but one slot at least).
pub const EXTENT_BYTES_MAX: u64 = 256 << 20;

/// Extents and slots of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    slot_bytes: u64,
    slots: u32,
    slots_per_extent: u32,
    fixed_bytes: u64,
    bytes_per_extent: u64,
}

impl Layout {
    /// The layout with the most slots that keeps slots, generation pages, slot table, `fixed_bytes` and `bytes_per_extent` for each
    /// extent's own record within `budget_bytes`. Errors: [`HostError::Budget`] when that is none.
    pub fn new(
        budget_bytes: u64,
        shape: &BlockShape,
        fixed_bytes: u64,
        bytes_per_extent: u64,
    ) -> Result<Layout, HostError> {
        let slot_bytes = shape.slot_bytes();
        let extent_bytes = EXTENT_BYTES_MAX.min(budget_bytes / 4);
        let fitting = |slots: &u64| round_to_pages(8 * slots) + slots * slot_bytes <= extent_bytes;
        let slots_per_extent = largest(extent_bytes / slot_bytes, fitting).max(1) as u32;
        let with =
            |slots: u64| Layout { slot_bytes, slots: slots as u32, slots_per_extent, fixed_bytes, bytes_per_extent };
        let slots = largest((budget_bytes / slot_bytes).min(u64::from(u32::MAX)), |slots| {
            with(*slots).held_bytes() <= budget_bytes
        });
        if slots == 0 {
            let minimum_bytes = Layout { slots_per_extent: 1, ..with(1) }.held_bytes();
            return Err(HostError::Budget { budget_bytes, slot_bytes, minimum_bytes });
        }
        Ok(with(slots))
    }

    /// Slots in all.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Bytes of a slot image.
    pub fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// Number of extents.
    pub fn extents(&self) -> u32 {
        self.slots.div_ceil(self.slots_per_extent)
    }

    /// Slots of one extent; the last may have fewer.
    pub fn extent_slots(&self, extent: u32) -> u32 {
        self.slots_per_extent.min(self.slots - extent * self.slots_per_extent)
    }

    /// First slot of one extent.
    pub fn first_slot(&self, extent: u32) -> u32 {
        extent * self.slots_per_extent
    }

    /// Bytes of one extent's generation pages.
    pub fn generation_bytes(&self, extent: u32) -> u64 {
        round_to_pages(8 * u64::from(self.extent_slots(extent)))
    }

    /// Bytes of one extent.
    pub fn extent_bytes(&self, extent: u32) -> u64 {
        self.generation_bytes(extent) + u64::from(self.extent_slots(extent)) * self.slot_bytes
    }

    /// Bytes that are no slot: generation pages, slot table, the tier's own records.
    pub fn metadata_bytes(&self) -> u64 {
        let pages = match self.extents() {
            0 => 0,
            extents => u64::from(extents - 1) * self.generation_bytes(0) + self.generation_bytes(extents - 1),
        };
        self.fixed_bytes + u64::from(self.extents()) * self.bytes_per_extent + pages + SlotTable::bytes_for(self.slots)
    }

    /// Bytes in all when every slot has been touched.
    pub fn held_bytes(&self) -> u64 {
        self.metadata_bytes() + u64::from(self.slots) * self.slot_bytes
    }

    /// Where a slot's image lies.
    pub fn place(&self, slot: SlotIndex) -> SlotPlace {
        let (extent, local) = (slot.0 / self.slots_per_extent, slot.0 % self.slots_per_extent);
        SlotPlace {
            extent,
            offset: self.generation_bytes(extent) + u64::from(local) * self.slot_bytes,
            bytes: self.slot_bytes,
        }
    }

    /// Extent and byte offset of a slot's generation word, a little-endian u64.
    pub fn generation_place(&self, slot: SlotIndex) -> (u32, u64) {
        (slot.0 / self.slots_per_extent, 8 * u64::from(slot.0 % self.slots_per_extent))
    }
}

/// The largest number up to `limit` that fits; smaller ones fit too.
fn largest(limit: u64, fits: impl Fn(&u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, limit);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(&middle) { low = middle } else { high = middle - 1 }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use cache_core::form::Form;

    const SMOLLM2: BlockShape =
        BlockShape { layers: 30, kv_heads: 3, head_dim: 64, block_tokens: 64, form: Form::Raw16 };
    const SMALL: BlockShape = BlockShape { layers: 1, kv_heads: 1, head_dim: 16, block_tokens: 16, form: Form::Raw16 };

    #[test]
    fn never_past_the_budget_and_never_a_slot_short() {
        for shape in [SMOLLM2, SMALL] {
            for budget_bytes in (1..400).map(|step| step * 777_777).chain([16 << 20, 64 << 20, 1 << 30, 100 << 30]) {
                let Ok(layout) = Layout::new(budget_bytes, &shape, 5000, 300) else {
                    continue;
                };
                let extents: u64 = (0..layout.extents()).map(|extent| layout.extent_bytes(extent)).sum();
                let records = 5000 + 300 * u64::from(layout.extents());
                assert_eq!(layout.held_bytes(), extents + records + SlotTable::bytes_for(layout.slots()));
                assert!(layout.held_bytes() <= budget_bytes);
                let more = Layout { slots: layout.slots + 1, ..layout };
                assert!(more.held_bytes() > budget_bytes, "one more slot fits {budget_bytes}");
                for extent in 0..layout.extents() {
                    let bytes = layout.extent_bytes(extent);
                    assert!(
                        bytes <= EXTENT_BYTES_MAX && (bytes <= budget_bytes / 4 || layout.extent_slots(extent) == 1)
                    );
                    assert_eq!(bytes % 4096, 0);
                }
            }
        }
    }

    #[test]
    fn slots_tile_their_extents() {
        let layout = Layout::new(64 << 20, &SMALL, 0, 0).unwrap();
        let mut next = (0, layout.generation_bytes(0));
        for slot in 0..layout.slots() {
            let place = layout.place(SlotIndex(slot));
            if place.extent != next.0 {
                assert_eq!(next.1, layout.extent_bytes(next.0), "extent {} is full", next.0);
                next = (place.extent, layout.generation_bytes(place.extent));
            }
            assert_eq!((place.extent, place.offset), next);
            let (extent, word) = layout.generation_place(SlotIndex(slot));
            assert!(extent == place.extent && word + 8 <= layout.generation_bytes(extent));
            next.1 += place.bytes;
        }
        assert_eq!(next, (layout.extents() - 1, layout.extent_bytes(layout.extents() - 1)));
    }

    #[test]
    fn sixteen_mebibytes_hold_eleven_blocks_of_the_default_model() {
        let layout = Layout::new(16 << 20, &SMOLLM2, 0, 0).unwrap();
        assert_eq!((layout.slots(), layout.extents(), layout.extent_slots(5)), (11, 6, 1));
    }

    #[test]
    fn under_one_block_names_the_minimum() {
        let Err(HostError::Budget { minimum_bytes, .. }) = Layout::new(1 << 20, &SMOLLM2, 100, 10) else {
            panic!("it fits")
        };
        assert!(Layout::new(minimum_bytes - 1, &SMOLLM2, 100, 10).is_err());
        assert_eq!(Layout::new(minimum_bytes, &SMOLLM2, 100, 10).unwrap().slots(), 1);
    }
}
