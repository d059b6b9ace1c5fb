//! Load and store: whole blocks between an engine's slabs and the daemon.

use cache_core::chain::Link;
use cache_core::hash::BlockHash;
use cache_core::miss::MissReason;
use cache_core::sum::section_sum;
use host_tier::Staging;

use super::leases::payload;
use super::memory::Bytes;
use super::{Before, Found, LINEAGE, Outcome, Plugin, PluginError, SKIP, Slabs, links};
use crate::client::{Client, Lent, Place, Places};
use crate::wire::BATCH_MAX;

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
        let chunk = slabs.check(&client.shape(), links.len(), blocks, true)?;
        let mut loaded = Found { tiers: Vec::with_capacity(links.len()), miss: None };
        for (part, blocks) in links.chunks(BATCH_MAX).zip(blocks.chunks(BATCH_MAX * chunk)) {
            let (lent, miss) = match self.lease(client, part) {
                Err(error) if error.is_absence() && !loaded.tiers.is_empty() => {
                    (Vec::new(), Some(MissReason::TierOffline))
                }
                leased => leased?,
            };
            let current =
                lent.iter().zip(blocks.chunks(chunk)).take_while(|(lent, blocks)| fill(client, lent, slabs, blocks));
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
    /// verified its copies. Errors: as for [`Plugin::load`]; blocks stored before a daemon went away stay stored.
    pub fn store(
        &self,
        hashes: &[BlockHash],
        before: Before,
        slabs: &Slabs,
        blocks: &[u32],
    ) -> Result<Vec<Outcome>, PluginError> {
        let (client, links) = (self.client()?, links(hashes, before)?);
        let chunk = slabs.check(&client.shape(), links.len(), blocks, false)?;
        let mut outcomes: Vec<Option<Outcome>> = vec![None; links.len()];
        let mut scratch = Vec::new();
        // Each round settles its first block: a place, or full when nothing else is held.
        while let Some(first) = outcomes.iter().position(Option::is_none) {
            let most = client.places_max().map_or(BATCH_MAX, |most| (most as usize).clamp(1, BATCH_MAX));
            let round = &links[first..links.len().min(first + most)];
            let places = client.reserve(&self.wanted(round), LINEAGE)?;
            if places.answers.first().is_none_or(|place| *place == Place::Full) {
                outcomes.iter_mut().for_each(|outcome| *outcome = Some(outcome.unwrap_or(Outcome::Full)));
                break;
            }
            let mut held = Vec::new();
            for (index, place) in places.answers.iter().enumerate().take(round.len()) {
                let at = first + index;
                match place {
                    Place::Reserved { reservation, offset } => {
                        let source = &blocks[at * chunk..(at + 1) * chunk];
                        let image = image(client, &places, *offset);
                        self.write_block(client, image, &links[at], (slabs, source), &mut scratch);
                        held.push((at, *reservation));
                    }
                    Place::Present => outcomes[at] = Some(outcomes[at].unwrap_or(Outcome::Present)),
                    Place::PendingElsewhere => outcomes[at] = Some(Outcome::Pending),
                    // Tried again when the places before it are free.
                    Place::Full => {}
                }
            }
            let ids: Vec<_> = held.iter().map(|(_, reservation)| *reservation).collect();
            let codes = match ids.is_empty() {
                true => Vec::new(),
                // Where there was no time for it the connection goes on, and with it what it holds.
                false => client.commit(places.connection, &ids).inspect_err(|_| {
                    let _ = client.abort(places.connection, &ids);
                })?,
            };
            for ((at, _), code) in held.iter().zip(codes) {
                outcomes[*at] = Some(Outcome::of(code));
            }
        }
        Ok(outcomes.into_iter().map(|outcome| outcome.expect("every round settles a block")).collect())
    }

    /// Fills and seals a slot image. Each section goes through memory of our own, so that its sum is that of the bytes that were
    /// handed over.
    fn write_block(
        &self,
        client: &Client,
        image: Bytes<'_>,
        link: &Link,
        (slabs, blocks): (&Slabs, &[u32]),
        scratch: &mut Vec<u8>,
    ) {
        let key = self.key(link);
        let piece_bytes = slabs.block_bytes() as usize;
        let sections = client.shape().sections().zip(0..);
        let sums: Vec<_> = sections
            .map(|(section, layer)| {
                scratch.resize(section.bytes as usize, 0);
                for (piece, block) in scratch.chunks_exact_mut(piece_bytes).zip(blocks) {
                    slabs.block(layer, *block).read(piece);
                }
                image.part(section.offset, section.bytes).write(scratch);
                section_sum(&key, LINEAGE, section.index, scratch)
            })
            .collect();
        self.write_header(client, image, link, &sums);
    }
}

fn image<'a>(client: &Client, places: &'a Places, offset: u64) -> Bytes<'a> {
    let staging: &Staging = &places.staging;
    Bytes::of_staging(staging, offset, client.shape().slot_bytes())
}

/// Copies a lent block into an engine's blocks; false when the bytes mean nothing.
fn fill(client: &Client, lent: &Lent, slabs: &Slabs, blocks: &[u32]) -> bool {
    let shape = client.shape();
    let payload = payload(lent, shape.header_bytes(), shape.payload_bytes());
    let piece_bytes = slabs.block_bytes();
    let layer_bytes = shape.code_section(0).bytes;
    for layer in 0..shape.layers {
        for (piece, block) in blocks.iter().enumerate().filter(|(_, block)| **block != SKIP) {
            let offset = u64::from(layer) * layer_bytes + piece as u64 * piece_bytes;
            slabs.block(layer, *block).copy_from(payload.part(offset, piece_bytes));
        }
    }
    lent.is_current()
}
