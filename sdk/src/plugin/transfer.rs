//! Load and store: whole blocks between an engine's slabs and the daemon.

use std::ops::Range;

use cache_core::chain::Link;
use cache_core::hash::BlockHash;
use cache_core::miss::MissReason;
use cache_core::payload::Section;
use cache_core::sum::{SectionHasher, SectionSum};
use host_tier::Staging;

use super::leases::{Leased, part};
use super::memory::Bytes;
use super::{Before, Found, Outcome, Plugin, PluginError, SKIP, Slabs, links};
use crate::client::{Client, Committing, Lent, Place, Places};
use crate::wire::{BATCH_MAX, ReservationId};

impl Plugin {
    /// Copies the longest run that is there into slabs. `blocks`: for each stored block the numbers of the engine's blocks that
    /// it fills, one after the other, or
    /// [`SKIP`]. Of a block that is beyond the run parts may have been written: it counts as failed. Errors:
    /// [`PluginError::Usage`] before anything is
    /// written; without a daemon, [`PluginError::Call`], unless something was loaded by then.
    pub fn load(
        &self,
        hashes: &[BlockHash],
        before: Before,
        slabs: &Slabs,
        blocks: &[u32],
    ) -> Result<Found, PluginError> {
        let (client, links) = (self.client()?, links(hashes, before)?);
        let chunk = slabs.check(self, links.len(), blocks, true)?;
        let mut loaded = Found { tiers: Vec::with_capacity(links.len()), miss: None };
        for (part, blocks) in links.chunks(BATCH_MAX).zip(blocks.chunks(BATCH_MAX * chunk)) {
            let (lent, miss) = match self.lease(client, part) {
                Err(error) if error.is_absence() && !loaded.tiers.is_empty() => {
                    (Vec::new(), Some(MissReason::TierOffline))
                }
                leased => leased?,
            };
            let layers = client.shape().layers;
            let is_filled = |lent: &Lent, blocks| self.fill(lent, slabs, blocks, 0..layers);
            let current = lent.iter().zip(blocks.chunks(chunk)).take_while(|(lent, blocks)| is_filled(lent, blocks));
            let good: Vec<_> = current.map(|(lent, _)| lent.tier()).collect();
            loaded.miss = if good.len() < lent.len() { Some(MissReason::LeaseLost) } else { miss };
            loaded.tiers.extend(good);
            drop(lent);
            // Else the blocks would stay leased until the next call, which may come late. A daemon that went away has them back.
            let _ = client.give_back();
            if loaded.miss.is_some() {
                break;
            }
        }
        Ok(loaded)
    }

    /// Copies blocks from slabs to the daemon and returns what became of each. `blocks` as in [`Plugin::load`], without [`SKIP`].
    /// Returns when the daemon has
    /// verified its copies; while it is at some of them the next ones are written. Errors: as for [`Plugin::load`]; blocks stored before a daemon
    /// went away stay stored.
    pub fn store(
        &self,
        hashes: &[BlockHash],
        before: Before,
        slabs: &Slabs,
        blocks: &[u32],
    ) -> Result<Vec<Outcome>, PluginError> {
        let (client, links) = (self.client()?, links(hashes, before)?);
        let chunk = slabs.check(self, links.len(), blocks, false)?;
        let mut store = Storing { plugin: self, client, links: &links, outcomes: vec![None; links.len()] };
        let mut piece = vec![0; PIECE_BYTES];
        // Written and not handed over yet; handed over and not answered yet.
        let (mut written, mut under_way) = (Group::default(), None);
        loop {
            store.settle(under_way.take()).inspect_err(|_| store.give_up(&written))?;
            let mut next = store.reserve(written.held.len()).inspect_err(|_| store.give_up(&written))?;
            let is_alone = written.held.is_empty();
            under_way = store.hand_over(written).inspect_err(|_| store.give_up(&next))?;
            if is_alone && next.held.is_empty() && (next.is_full || store.is_over()) {
                // Nothing is held that could make room.
                let full = |outcome: Option<Outcome>| outcome.unwrap_or(Outcome::Full);
                return Ok(store.outcomes.into_iter().map(full).collect());
            }
            let mut unfit = Vec::new();
            for (at, _, offset) in &next.held {
                let places = next.places.as_ref().expect("what is held has its places");
                let source = &blocks[at * chunk..(at + 1) * chunk];
                let image = image(client, places, *offset);
                let sums = match &self.coder {
                    Some(coder) => {
                        coder.write(image, (slabs, source), |section, bytes| self.sum(&links[*at], section, bytes))
                    }
                    None => Some(self.copy_block(client, image, &links[*at], (slabs, source), &mut piece)),
                };
                match sums {
                    Some(sums) => self.write_header(client, image, &links[*at], &sums),
                    None => unfit.push(*at),
                }
            }
            store.refuse(&mut next, &unfit);
            written = next;
        }
    }

    /// Fills the sections of a slot image and gives their sums. Bytes go through memory of our own, so that a section's sum is that of the bytes that
    /// were handed over.
    fn copy_block(
        &self,
        client: &Client,
        image: Bytes<'_>,
        link: &Link,
        (slabs, blocks): (&Slabs, &[u32]),
        piece: &mut [u8],
    ) -> Vec<SectionSum> {
        let (key, lineage) = (self.key(link), self.lineage());
        let sections = client.shape().sections().zip(0..);
        let mut sum = |(section, layer): (Section, u32)| {
            let mut hasher = SectionHasher::new(&key, lineage, section.index);
            let mut target = image.part(section.offset, section.bytes);
            for block in blocks {
                for source in slabs.block(layer, *block).pieces(piece.len()) {
                    let piece = &mut piece[..source.bytes() as usize];
                    source.read(piece);
                    hasher.write(piece);
                    let (part, rest) = target.split(source.bytes());
                    part.write(piece);
                    target = rest;
                }
            }
            hasher.sum()
        };
        sections.map(&mut sum).collect()
    }

    fn sum(&self, link: &Link, section: Section, bytes: &[u8]) -> SectionSum {
        let mut hasher = SectionHasher::new(&self.key(link), self.lineage(), section.index);
        hasher.write(bytes);
        hasher.sum()
    }

    /// Copies layers of a lent block into an engine's blocks; false when the bytes mean nothing.
    fn fill(&self, lent: &Lent, slabs: &Slabs, blocks: &[u32], layers: Range<u32>) -> bool {
        if let Some(coder) = &self.coder {
            return coder.fill(lent, slabs, blocks, layers);
        }
        let (payload, layer_bytes, piece_bytes) =
            (self.shape().header_bytes(), self.layer_bytes(), slabs.block_bytes());
        for layer in layers {
            for (piece, block) in blocks.iter().enumerate().filter(|(_, block)| **block != SKIP) {
                let offset = payload + u64::from(layer) * layer_bytes + piece as u64 * piece_bytes;
                slabs.block(layer, *block).copy_from(part(lent, offset, piece_bytes));
            }
        }
        lent.is_current()
    }
}

/// Bytes that are moved and summed at once: they stay in the processor's first cache meanwhile.
pub(super) const PIECE_BYTES: usize = 16 << 10;
/// Images that are handed over at once: so many bytes, or one. The daemon is at them while the next ones are written.
const GROUP_BYTES: u64 = 4 << 20;

/// Blocks on their way to the daemon.
struct Storing<'a> {
    plugin: &'a Plugin,
    client: &'a Client,
    links: &'a [Link],
    /// Of each block, once it is known or the block has a place.
    outcomes: Vec<Option<Outcome>>,
}

/// Places for some of them.
#[derive(Default)]
struct Group {
    places: Option<Places>,
    /// Number of the block, reservation, first byte of its image in the staging memory.
    held: Vec<(usize, ReservationId, u64)>,
    /// There was no room for the first one.
    is_full: bool,
}

impl Group {
    fn ids(&self) -> Vec<ReservationId> {
        self.held.iter().map(|(_, reservation, _)| *reservation).collect()
    }
}

impl Storing<'_> {
    /// True when every block has its outcome, or a place.
    fn is_over(&self) -> bool {
        self.outcomes.iter().all(Option::is_some)
    }

    /// Places for the first blocks that have none, beside `held` others.
    fn reserve(&mut self, held: usize) -> Result<Group, PluginError> {
        let Some(first) = self.outcomes.iter().position(Option::is_none) else {
            return Ok(Group::default());
        };
        let run = self.outcomes[first..].iter().take_while(|outcome| outcome.is_none()).count();
        let room =
            self.client.places_max().map_or(BATCH_MAX, |most| (most as usize).clamp(1, BATCH_MAX)).saturating_sub(held);
        let group = (GROUP_BYTES / self.client.shape().slot_bytes()).max(1) as usize;
        let links = &self.links[first..first + run.min(room).min(group)];
        if links.is_empty() {
            return Ok(Group::default());
        }
        let places = self.client.reserve(&self.plugin.wanted(links), self.plugin.lineage())?;
        let mut group =
            Group { is_full: places.answers.first().is_none_or(|place| *place == Place::Full), ..Group::default() };
        for (at, place) in (first..).zip(places.answers.iter().take(links.len())) {
            self.outcomes[at] = match place {
                // Until its commit is answered.
                Place::Reserved { reservation, offset } => {
                    group.held.push((at, *reservation, *offset));
                    Some(Outcome::Unknown)
                }
                Place::Present => Some(Outcome::Present),
                Place::PendingElsewhere => Some(Outcome::Pending),
                // Tried again when the places before it are free.
                Place::Full => None,
            };
        }
        group.places = Some(places);
        Ok(group)
    }

    /// Has the daemon take what was written.
    fn hand_over(&self, written: Group) -> Result<Option<(Committing, Group)>, PluginError> {
        let Some(places) = written.places.as_ref().filter(|_| !written.held.is_empty()) else {
            return Ok(None);
        };
        // Where there was no time for it the connection goes on, and with it what it holds.
        let begun = self.client.begin_commit(places.connection, &written.ids()).inspect_err(|_| self.give_up(&written));
        Ok(Some((begun?, written)))
    }

    /// Waits for what was handed over.
    fn settle(&mut self, under_way: Option<(Committing, Group)>) -> Result<(), PluginError> {
        let Some((committing, group)) = under_way else {
            return Ok(());
        };
        let codes = self.client.committed(committing).inspect_err(|_| self.give_up(&group))?;
        for ((at, ..), code) in group.held.iter().zip(codes) {
            self.outcomes[*at] = Some(Outcome::of(code));
        }
        Ok(())
    }

    /// Gives up the places of blocks that do not fit the form.
    fn refuse(&mut self, group: &mut Group, unfit: &[usize]) {
        if unfit.is_empty() {
            return;
        }
        let is_unfit = |(at, ..): &mut (usize, _, _)| unfit.contains(at);
        let refused: Vec<_> = group.held.extract_if(.., is_unfit).map(|(_, reservation, _)| reservation).collect();
        if let Some(places) = &group.places {
            // What is gone with its connection need not be given back.
            let _ = self.client.abort(places.connection, &refused);
        }
        unfit.iter().for_each(|at| self.outcomes[*at] = Some(Outcome::Unfit));
    }

    fn give_up(&self, group: &Group) {
        if let Some(places) = group.places.as_ref().filter(|_| !group.held.is_empty()) {
            // What is gone with its connection need not be given back.
            let _ = self.client.abort(places.connection, &group.ids());
        }
    }
}

fn image<'a>(client: &Client, places: &'a Places, offset: u64) -> Bytes<'a> {
    let staging: &Staging = &places.staging;
    Bytes::of_staging(staging, offset, client.shape().slot_bytes())
}

impl Leased {
    /// Copies some of its layers into an engine's blocks; `blocks` as in [`Plugin::load`], for this one. False when they mean nothing: the block has
    /// failed, whatever came before. True: these layers, and all that were copied before them, are the block's. Errors: [`PluginError::Usage`].
    pub fn load(&self, slabs: &Slabs, blocks: &[u32], layers: Range<u32>) -> Result<bool, PluginError> {
        let (plugin, shape) = (self.plugin(), self.shape());
        slabs.check(plugin, 1, blocks, true)?;
        if layers.start > layers.end || layers.end > shape.layers {
            let reason = format!("layers {} to {} of {}", layers.start, layers.end, shape.layers);
            return Err(PluginError::usage(reason));
        }
        Ok(plugin.fill(self.lent(), slabs, blocks, layers))
    }
}
