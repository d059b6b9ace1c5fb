//! The blocks of one sequence: a table of lossless ones, and where blocks are closed, a table of closed ones beside it.
//!
//! ```text
//! lossless   0 | released ........ | window | open
//! closed     - | closed .......... | being closed |
//! ```
//! Block 0 is never closed. A block is closed from its lossless copy when the first row that reads it closed is computed; the lossless copy is
//! given up when no row to come reads it. A block that its form cannot hold [stays raw](cache_core::codec::StaysRaw) and is read losslessly by
//! every row.
//!
//! **Clamps.** Closed blocks can be found in the cache without the lossless copies of the window that the next row needs. The last closed block is
//! then computed again, so that the window of what follows is there; the rows of that block read what lies before them closed. What is
//! computed from there on depends on it, and so its provenance does.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use cache_core::chain::Link;
use cache_core::form::{Accept, Provenance};
use cache_core::hash::Namespace;
use cache_core::miss::MissReason;
use cache_core::units::Tier;
use gpu_tier::attention::Geometry;
use kvtier_sdk::cache::{CacheError, Grant, KvCache, Prefetched, SequenceId, Want};

use crate::run::area::sections_per_group;
use crate::run::closing::Closing;
use crate::run::load::Ahead;

/// The caches of an engine, one per form.
#[derive(Clone)]
pub(crate) struct Caches {
    pub(crate) lossless: Arc<dyn KvCache>,
    pub(crate) closed: Option<ClosedCache>,
    pub(crate) block_tokens: u32,
    /// False: nothing is looked up or published.
    pub(crate) publishes: bool,
}

/// The cache of closed blocks.
#[derive(Clone)]
pub(crate) struct ClosedCache {
    pub(crate) cache: Arc<dyn KvCache>,
    pub(crate) closing: Closing,
}

impl Caches {
    /// Groups of blocks of which a step may have sections staged at once, in any of the forms; `None` without a disk.
    pub(crate) fn stage_groups(&self, geometry: &Geometry) -> Option<u32> {
        let groups = |cache: &dyn KvCache| match cache.stage_capacity() {
            0 => None,
            capacity => Some(capacity / sections_per_group(&cache.shape(), geometry)),
        };
        let closed = self.closed.as_ref().and_then(|closed| groups(&*closed.cache));
        [groups(&*self.lossless), closed].into_iter().flatten().min()
    }
}

/// The tables of one sequence.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) lossless: SequenceId,
    pub(crate) closed: Option<ClosedTable>,
    /// Blocks of the sequence, open ones included.
    pub(crate) blocks: u32,
    /// Blocks that are published (or were found).
    pub(crate) committed: u32,
    /// Blocks behind the end that are being loaded.
    pub(crate) ahead: Option<Ahead>,
}

/// The closed blocks of one sequence.
#[derive(Debug)]
pub(crate) struct ClosedTable {
    pub(crate) id: SequenceId,
    closing: Closing,
    /// Blocks of the table, open ones included. Block 0 is absent.
    pub(crate) blocks: u32,
    /// Blocks `1..settled` are closed or stay raw.
    settled: u32,
    /// The lossless copies of blocks `1..released` were given up, but those that stay raw.
    released: u32,
    stays_raw: BTreeSet<u32>,
    /// From which block on blocks are computed after what, ascending.
    taints: Vec<(u32, Provenance)>,
    /// Positions from which on something was computed without its exact window.
    clamped_at: Vec<u32>,
}

impl ClosedTable {
    /// True for a block that has no lossless copy in this sequence.
    pub(crate) fn is_released(&self, block: u32) -> bool {
        block >= 1 && block < self.released && !self.stays_raw.contains(&block)
    }

    /// The rows from this position on read no lossless copy of blocks before this one but of block 0, and of those that stay raw.
    pub(crate) fn window_start(&self, position: u32) -> u32 {
        self.closing.end(position)
    }

    /// The first block that is neither closed yet nor known to stay raw.
    pub(crate) fn settled(&self) -> u32 {
        self.settled
    }

    /// Blocks that the rows of these positions read closed and that are not closed yet.
    pub(crate) fn due(&self, positions: &Range<u32>) -> Range<u32> {
        self.settled..self.closing.end(positions.end - 1).max(self.settled)
    }
}

/// What a look into the cache has brought.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The tier of each block that was found, in order.
    pub(crate) tiers: Vec<Tier>,
    /// Why the next one was not; `None` when all were.
    pub(crate) miss: Option<MissReason>,
}

impl Tables {
    /// Tables without blocks. `exact`: nothing is closed.
    pub(crate) fn open(caches: &Caches, namespace: Namespace, exact: bool) -> Tables {
        let closed = caches.closed.as_ref().filter(|_| !exact);
        let closed = closed.map(|ClosedCache { cache, closing }| ClosedTable {
            id: cache.open(namespace),
            closing: *closing,
            blocks: 1,
            settled: 1,
            released: 1,
            stays_raw: BTreeSet::new(),
            taints: Vec::new(),
            clamped_at: Vec::new(),
        });
        let mut tables =
            Tables { lossless: caches.lossless.open(namespace), closed, blocks: 0, committed: 0, ahead: None };
        tables.prepare(caches).expect("sequences that were opened just now are there");
        tables
    }

    fn prepare(&mut self, caches: &Caches) -> Result<(), CacheError> {
        if let (Some(table), Some(closed)) = (&self.closed, &caches.closed) {
            closed.cache.skip(table.id, None)?;
        }
        self.taint(caches, false)
    }

    /// Ends the sequence.
    pub(crate) fn close(&self, caches: &Caches) {
        self.ahead.iter().for_each(|ahead| ahead.end(caches));
        caches.lossless.close(self.lossless);
        if let (Some(table), Some(closed)) = (&self.closed, &caches.closed) {
            closed.cache.close(table.id);
        }
    }

    /// Positions from which on something was computed without its exact window.
    pub(crate) fn clamped_at(&self) -> &[u32] {
        self.closed.as_ref().map_or(&[], |table| &table.clamped_at)
    }

    fn accept(&self) -> Accept {
        self.closed.as_ref().map_or(Accept::Exact, |table| Accept::AtLeast(table.closing.form()))
    }

    /// States what the blocks after those that are there are computed after.
    fn taint(&mut self, caches: &Caches, is_clamped: bool) -> Result<(), CacheError> {
        let (Some(table), Some(ClosedCache { cache, closing })) = (&mut self.closed, &caches.closed) else {
            return Ok(());
        };
        let here = self.blocks;
        table.taints.retain(|(from, _)| *from < here);
        let before = table.taints.last().map_or(closing.provenance(), |(_, provenance)| *provenance);
        let taint = match is_clamped {
            true => (here, closing.clamped(before, here)),
            false => (closing.first_tainted().max(here), before),
        };
        table.clamped_at.retain(|position| *position < here * caches.block_tokens);
        if is_clamped {
            table.clamped_at.push(here * caches.block_tokens);
        }
        table.taints.push(taint);
        caches.lossless.taint(self.lossless, taint.0, taint.1)?;
        cache.taint(table.id, taint.0, taint.1)
    }

    /// Takes what the cache has of the blocks of `links`, the sequence's full blocks from block 0 on.
    pub(crate) fn acquire(&mut self, caches: &Caches, links: &[Link]) -> Result<Found, CacheError> {
        let mut found = Found::default();
        if self.closed.is_none() || self.blocks == 0 {
            let most = if self.closed.is_none() { links.len() } else { links.len().min(1) };
            self.acquire_lossless(caches, &links[..most], &mut found)?;
        }
        if self.closed.is_some() && self.blocks > 0 {
            while self.acquire_closed(caches, links, &mut found)? {}
        }
        Ok(found)
    }

    fn acquire_lossless(&mut self, caches: &Caches, links: &[Link], found: &mut Found) -> Result<u32, CacheError> {
        let Some(links) = links.get(self.blocks as usize..).filter(|links| !links.is_empty()) else {
            found.miss = None;
            return Ok(0);
        };
        let acquired = caches.lossless.acquire(self.lossless, links, self.accept())?;
        let blocks = acquired.tiers.len() as u32;
        self.blocks += blocks;
        self.committed += blocks;
        found.tiers.extend(acquired.tiers);
        found.miss = acquired.miss;
        Ok(blocks)
    }

    /// One run of closed blocks and the lossless ones after it; true when another run may follow, after a clamp.
    fn acquire_closed(&mut self, caches: &Caches, links: &[Link], found: &mut Found) -> Result<bool, CacheError> {
        let (accept, had) = (self.accept(), self.blocks);
        let (Some(table), Some(ClosedCache { cache, .. })) = (&mut self.closed, &caches.closed) else {
            return Ok(false);
        };
        let first = table.blocks;
        let tiers = match links.get(first as usize..) {
            // Blocks that are being closed stand at the table's end: their copies are this sequence's to make.
            Some(links) if table.blocks == table.settled && !links.is_empty() => {
                cache.acquire(table.id, links, accept)?.tiers
            }
            _ => Vec::new(),
        };
        table.blocks += tiers.len() as u32;
        table.settled = table.settled.max(table.blocks);
        let end = table.blocks;
        if end <= had {
            self.acquire_lossless(caches, links, found)?;
            return Ok(false);
        }
        // The last closed block is in the window of the next row: without its lossless copy it is computed again.
        let last = end - 1;
        self.release_before(caches, last)?;
        for block in had..last {
            caches.lossless.skip(self.lossless, Some(links[block as usize]))?;
            found.tiers.push(tiers[(block - first) as usize]);
        }
        (self.blocks, self.committed) = (last, last);
        if self.acquire_lossless(caches, links, found)? > 0 {
            return Ok(false);
        }
        let is_clamped = self.drop_closed_from(caches, last)?;
        // Where nothing new stands before the block, whatever is before it was so before.
        if !is_clamped || last == had {
            return Ok(false);
        }
        self.taint(caches, true)?;
        Ok(true)
    }

    /// Takes closed blocks from `block` on off the table. True when the block before them has no lossless copy here, so that what is
    /// computed next lacks its exact window.
    fn drop_closed_from(&mut self, caches: &Caches, block: u32) -> Result<bool, CacheError> {
        let (Some(table), Some(ClosedCache { cache, .. })) = (&mut self.closed, &caches.closed) else {
            return Ok(false);
        };
        let keep = block.max(1).min(table.blocks);
        cache.truncate(table.id, keep)?;
        table.blocks = keep;
        table.settled = table.settled.min(keep);
        table.released = table.released.min(keep);
        table.stays_raw.retain(|raw| *raw < block);
        Ok(block.checked_sub(1).is_some_and(|before| table.is_released(before)))
    }

    /// Gives up what was computed from `block` on, which was lost: the sequence goes on from there.
    pub(crate) fn rewind(&mut self, caches: &Caches, block: u32) -> Result<(), CacheError> {
        caches.lossless.truncate(self.lossless, block)?;
        (self.blocks, self.committed) = (self.blocks.min(block), self.committed.min(block));
        let is_clamped = self.drop_closed_from(caches, block)?;
        self.taint(caches, is_clamped)
    }

    /// Brings found blocks nearer.
    pub(crate) fn prefetch(&self, caches: &Caches, nearest: Tier) -> Result<Prefetched, CacheError> {
        let mut moved = caches.lossless.prefetch(self.lossless, nearest)?;
        if let (Some(table), Some(closed)) = (&self.closed, &caches.closed) {
            let more = closed.cache.prefetch(table.id, nearest)?;
            moved.to_device_bytes += more.to_device_bytes;
            moved.to_host_bytes += more.to_host_bytes;
        }
        Ok(moved)
    }

    /// Opens what a step over `positions` fills: lossless blocks, and closed ones of blocks that it fills and reads closed. Blocks that
    /// were full before are closed already.
    pub(crate) fn reserve(
        &mut self,
        caches: &Caches,
        links: &[Link],
        positions: &Range<u32>,
    ) -> Result<Grant, CacheError> {
        let link = |block: u32| links.get(block as usize).copied().filter(|_| caches.publishes);
        let had = self.blocks;
        let needed = positions.end.div_ceil(caches.block_tokens);
        if needed > had {
            let want = Want { sequence: self.lossless, blocks: (had..needed).map(link).collect() };
            match granted(caches.lossless.reserve(&[want])?) {
                Grant::Granted => self.blocks = needed,
                refused => return Ok(refused),
            }
        }
        let end = self.closed.as_ref().map_or(0, |table| table.due(positions).end);
        let grant = self.reserve_closed(caches, links, end)?;
        if grant != Grant::Granted {
            caches.lossless.truncate(self.lossless, had)?;
            self.blocks = had;
        }
        Ok(grant)
    }

    /// Opens closed blocks before `end`.
    pub(crate) fn reserve_closed(&mut self, caches: &Caches, links: &[Link], end: u32) -> Result<Grant, CacheError> {
        let (Some(table), Some(closed)) = (&mut self.closed, &caches.closed) else {
            return Ok(Grant::Granted);
        };
        let link = |block: u32| links.get(block as usize).copied().filter(|_| caches.publishes);
        if end > table.blocks {
            let want = Want { sequence: table.id, blocks: (table.blocks..end).map(link).collect() };
            match granted(closed.cache.reserve(&[want])?) {
                Grant::Granted => table.blocks = end,
                refused => return Ok(refused),
            }
        }
        Ok(Grant::Granted)
    }

    /// A block of the closed table turned out not to fit its form.
    pub(crate) fn stays_raw(&mut self, caches: &Caches, block: u32) -> Result<(), CacheError> {
        if let (Some(table), Some(closed)) = (&mut self.closed, &caches.closed) {
            table.stays_raw.insert(block);
            closed.cache.release(table.id, block)?;
        }
        Ok(())
    }

    /// Blocks of the closed table that are encoded now are whole up to `end`: they are published.
    pub(crate) fn settle_closed(&mut self, caches: &Caches, links: &[Link], end: u32) -> Result<(), CacheError> {
        let (Some(table), Some(closed)) = (&mut self.closed, &caches.closed) else {
            return Ok(());
        };
        while table.settled < end {
            let stays_raw = |block: &u32| table.stays_raw.contains(block);
            let first = (table.settled..end).find(|block| !stays_raw(block)).unwrap_or(end);
            let next = (first..end).find(stays_raw).unwrap_or(end);
            if caches.publishes && first < next {
                closed.cache.commit(table.id, first, &links[first as usize..next as usize])?;
            }
            table.settled = next;
        }
        Ok(())
    }

    /// After a step over `positions`: publishes what became full, and gives up lossless copies that no row to come reads.
    pub(crate) fn advance(
        &mut self,
        caches: &Caches,
        links: &[Link],
        positions: &Range<u32>,
    ) -> Result<(), CacheError> {
        let full = positions.end / caches.block_tokens;
        if caches.publishes && self.committed < full {
            caches.lossless.commit(self.lossless, self.committed, &links[self.committed as usize..full as usize])?;
            self.committed = full;
        }
        let Some(table) = &self.closed else {
            return Ok(());
        };
        let (due, next) = (table.due(positions), table.window_start(positions.end));
        self.settle_closed(caches, links, due.end)?;
        self.release_before(caches, next)
    }

    /// Gives up the lossless copies of closed blocks before `block`.
    pub(crate) fn release_before(&mut self, caches: &Caches, block: u32) -> Result<(), CacheError> {
        let Some(table) = &mut self.closed else {
            return Ok(());
        };
        let end = block.min(table.settled);
        for lossless in table.released..end.min(self.blocks) {
            if !table.stays_raw.contains(&lossless) {
                caches.lossless.release(self.lossless, lossless)?;
            }
        }
        table.released = table.released.max(end);
        Ok(())
    }
}

fn granted(grants: Vec<Grant>) -> Grant {
    grants.into_iter().next().expect("one want has one grant")
}
