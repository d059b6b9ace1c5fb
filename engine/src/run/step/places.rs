//! Where the blocks of a step are, and whether they still were when it was over.

use super::*;

/// Where a sequence's blocks are for one step, in each form, as far as any of its rows sees them.
pub(super) struct Places {
    pub(super) lossless: Vec<BlockPlace>,
    pub(super) reads_lossless: Vec<bool>,
    /// Where blocks are closed.
    pub(super) closed: Vec<BlockPlace>,
    pub(super) reads_closed: Vec<bool>,
}

impl Places {
    pub(super) fn of(caches: &Caches, segment: &Segment<'_>) -> Result<Places, CacheError> {
        let positions = segment.positions();
        // Later blocks, which a repair goes past, are nothing to the step.
        let blocks = positions.end.div_ceil(caches.block_tokens) as usize;
        let mut lossless = caches.lossless.places(segment.tables.lossless)?;
        lossless.truncate(blocks);
        let (Some(table), Some(cache)) = (&segment.tables.closed, &caches.closed) else {
            let reads_lossless = vec![true; lossless.len()];
            return Ok(Places { lossless, reads_lossless, closed: Vec::new(), reads_closed: Vec::new() });
        };
        let mut closed = cache.cache.places(table.id)?;
        closed.truncate(blocks);
        let is_there = |places: &[BlockPlace], block: usize| {
            places.get(block).is_some_and(|place| !matches!(place, BlockPlace::Absent))
        };
        let window = table.window_start(positions.start) as usize;
        let closes = table.window_start(positions.end - 1) as usize;
        let reads_lossless =
            |block: usize| is_there(&lossless, block) && (block == 0 || block >= window || !is_there(&closed, block));
        let reads_closed = |block: usize| is_there(&closed, block) && (block < closes || !is_there(&lossless, block));
        let reads_lossless: Vec<bool> = (0..lossless.len()).map(reads_lossless).collect();
        let reads_closed = (0..closed.len()).map(reads_closed).collect();
        Ok(Places { reads_lossless, reads_closed, lossless, closed })
    }

    /// The places of a block that the step reads, lossless or closed.
    fn read(&self, block: usize) -> impl Iterator<Item = (bool, &BlockPlace)> {
        let of = |places: &'_ [BlockPlace], reads: &[bool]| {
            reads.get(block).is_some_and(|reads| *reads) && places.len() > block
        };
        let lossless = of(&self.lossless, &self.reads_lossless).then(|| (false, &self.lossless[block]));
        let closed = of(&self.closed, &self.reads_closed).then(|| (true, &self.closed[block]));
        lossless.into_iter().chain(closed)
    }

    /// True when what was read of a block was the block.
    pub(super) fn are_current(&self, caches: &Caches, tables: &Tables, block: usize) -> bool {
        self.read(block).all(|(is_closed, place)| match (&tables.closed, &caches.closed) {
            (Some(table), Some(closed)) if is_closed => closed.cache.check(table.id, block as u32, place),
            _ => caches.lossless.check(tables.lossless, block as u32, place),
        })
    }
}

/// Blocks that the step reads and that have no copy left.
pub(super) fn lost_blocks(places: &[Places]) -> Vec<LostBlock> {
    let mut lost = Vec::new();
    for (segment, places) in places.iter().enumerate() {
        for block in 0..places.lossless.len() {
            let reason = places.read(block).find_map(|(_, place)| match place {
                BlockPlace::Lost(reason) => Some(*reason),
                _ => None,
            });
            lost.extend(reason.map(|reason| LostBlock { segment, block: block as u32, reason }));
        }
    }
    lost
}
