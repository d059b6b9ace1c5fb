//! A daemon below the device: blocks that it lends are read where they lie, and what is published here is handed over to it.
//!
//! To the shard the daemon stands where the disk would: something below the slots that is asked what it has, keeps what is pinned, and takes what
//! is written. A pin is a lease. A leased block is read in the daemon's memory, so a block that only the daemon has is
//! [`BlockPlace::Host`](crate::cache::BlockPlace::Host), not [`Disk`](crate::cache::BlockPlace::Disk).
//!
//! What is published is handed over at once, through staging memory: the daemon copies it out and verifies its copy before the call returns. Blocks that
//! are published together go together, in one message each way for as many as staging memory holds. A daemon that is gone takes nothing, and the block
//! stays what it is: one of this process's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cache_core::chain::Link;
use cache_core::form::{Accept, Lineage, Provenance};
use cache_core::hash::{Namespace, TenantId};
use cache_core::header::SlotHeader;
use cache_core::key::CopyKey;
use cache_core::manager::{Below, CopyEnd, EntryId, Event};
use cache_core::manifest::Manifest;
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use cache_core::store::{Lease, Lend, Lookup, Sealed, SlotOwner, SlotPlace, StoreError};
use cache_core::units::{Generation, SlotIndex, Tier};
use gpu_tier::DeviceError;
use gpu_tier::attention::Attention;
use gpu_tier::device::{CopyPiece, ExtentId, HostExtent, HostRange, Stream};

use crate::client::{Client, Lent, Place, Places, Wanted};
use crate::embedded::disk::{Waiting, Writes};
use crate::embedded::driver::Driver;
use crate::embedded::extents::{LentMemory, StagingMemory};
use crate::wire::{BATCH_MAX, CommitCode};

pub(crate) struct Parent {
    client: Client,
    device: Arc<dyn Attention>,
    shape: BlockShape,
    writes: Writes,
    /// What the device calls the daemon's memory, by connection: its extents, and its staging memory.
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    extents: HashMap<(u64, u32), ExtentId>,
    staging: Option<(u64, ExtentId)>,
}

/// The leases of one cache. Guarded by the state mutex.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    /// Of blocks that are pinned.
    pub(crate) pinned: HashMap<CopyKey, Arc<Lent>>,
    /// Of blocks that were just asked for, until the shard says which it wants pinned.
    fresh: HashMap<CopyKey, Arc<Lent>>,
}

impl Leases {
    /// True when the block that was read under `lease` is still where it was.
    pub(crate) fn is_current(&self, key: &CopyKey, lease: &Lease) -> bool {
        let is_same = |lent: &&Arc<Lent>| (lent.slot(), lent.generation()) == (lease.slot(), lease.generation());
        self.pinned.get(key).filter(is_same).is_some_and(|lent| lent.is_current())
    }
}

/// A lease that stands for as long as the lent block does: ending one of them ends nothing.
impl SlotOwner for Lent {
    fn release(&self, _slot: SlotIndex, _generation: Generation) {}

    fn commit(&self, slot: SlotIndex, _generation: Generation, _sealed: &Sealed) -> Result<(), StoreError> {
        Err(StoreError::Stale { slot })
    }

    fn abandon(&self, _slot: SlotIndex, _generation: Generation) {}
}

impl Parent {
    pub(crate) fn new(client: Client, device: Arc<dyn Attention>, writes: Writes) -> Parent {
        let shape = client.shape();
        Parent { client, device, shape, writes, known: Mutex::default() }
    }

    pub(crate) fn name(&self, manifest: &Manifest, tenant: TenantId) -> Namespace {
        self.client.name(manifest, tenant)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// What the daemon says of each key. Changes nothing there.
    pub(crate) fn look(&self, keys: &[CopyKey], links: &[Link]) -> Vec<Below> {
        self.below(keys, links, |wanted, accept| {
            let (tiers, miss) = self.client.lookup(wanted, accept).ok()?;
            Some((tiers.len(), miss))
        })
    }

    /// As [`Parent::look`], with the tiers in which the daemon has what is there.
    pub(crate) fn find(&self, keys: &[CopyKey], links: &[Link]) -> (Vec<Below>, Vec<Tier>) {
        let mut all = Vec::with_capacity(keys.len());
        let below = self.below(keys, links, |wanted, accept| {
            let (tiers, miss) = self.client.lookup(wanted, accept).ok()?;
            let found = tiers.len();
            all.extend(tiers);
            Some((found, miss))
        });
        (below, all)
    }

    /// Has the daemon bring what it has of these blocks into its host arena.
    pub(crate) fn prefetch(&self, keys: &[CopyKey], links: &[Link]) {
        self.below(keys, links, |wanted, accept| {
            let accepted = self.client.prefetch(wanted, accept).ok()?;
            Some((accepted as usize, None))
        });
    }

    /// Tells the daemon that these blocks are computed although it has them.
    pub(crate) fn forgo(&self, keys: &[CopyKey], links: &[Link]) {
        self.below(keys, links, |wanted, _| {
            self.client.forgo(wanted).ok()?;
            Some((wanted.links.len(), None))
        });
    }

    /// As [`Parent::look`], and leases what is there.
    pub(crate) fn lease(&self, leases: &mut Leases, keys: &[CopyKey], links: &[Link]) -> Vec<Below> {
        leases.fresh.clear();
        let mut leased = 0;
        self.below(keys, links, |wanted, accept| {
            let (lent, miss) = self.client.acquire(wanted, accept).ok()?;
            let mut good = 0;
            for block in lent {
                let key = &keys[leased + good];
                let Some(block) = self.accept(key, block) else {
                    return Some((good, Some(MissReason::FailedCheck)));
                };
                leases.fresh.insert(*key, block);
                good += 1;
            }
            leased += good;
            Some((good, miss))
        })
    }

    /// Asks about runs of one provenance each, up to the first miss.
    fn below(
        &self,
        keys: &[CopyKey],
        links: &[Link],
        mut ask: impl FnMut(&Wanted<'_>, Accept) -> Option<(usize, Option<MissReason>)>,
    ) -> Vec<Below> {
        let mut found: Vec<Below> = Vec::with_capacity(keys.len());
        while found.len() < keys.len() {
            let start = found.len();
            let CopyKey { namespace, provenance, .. } = keys[start];
            let same = keys[start..].iter().take(BATCH_MAX).take_while(|key| key.provenance == provenance).count();
            let wanted = Wanted { namespace, provenance, links: &links[start..start + same] };
            let (hits, miss) = ask(&wanted, self.accept_own(provenance)).unwrap_or((0, Some(MissReason::TierOffline)));
            found.extend((0..hits.min(same)).map(|_| Ok(())));
            if hits < same {
                found.resize(keys.len(), Err(miss.unwrap_or(MissReason::NeverStored)));
            }
        }
        found
    }

    /// Copies of exactly the keys that are asked for.
    fn accept_own(&self, provenance: Provenance) -> Accept {
        let is_exact = self.shape.form.is_lossless() && provenance == Provenance::EXACT;
        if is_exact { Accept::Exact } else { Accept::AtLeast(self.shape.form) }
    }

    /// Takes a lent block for what it says it is: its header is checked here, its sections were when they entered the daemon's memory. `None`: it is
    /// another block, and the daemon hears of it.
    fn accept(&self, key: &CopyKey, lent: Lent) -> Option<Arc<Lent>> {
        let mut header = vec![0; self.shape.header_bytes() as usize];
        let is_right = lent.read(0, &mut header)
            && SlotHeader::decode(&header, self.shape.section_count())
                .and_then(|header| header.expect_key(key).and_then(|()| header.expect_shape(&self.shape)))
                .is_ok();
        if !is_right {
            self.client.report(&lent, MissReason::FailedCheck);
            return None;
        }
        Some(Arc::new(lent))
    }

    /// Leases one block. `None` when it is not there any more.
    fn lease_one(&self, key: &CopyKey, link: Link) -> Option<Arc<Lent>> {
        let wanted = Wanted { namespace: key.namespace, provenance: key.provenance, links: &[link] };
        let (lent, _) = self.client.acquire(&wanted, self.accept_own(key.provenance)).ok()?;
        lent.into_iter().next().and_then(|lent| self.accept(key, lent))
    }

    /// A lent block as the device finds it, with a lease to check after use. Errors: the device's, when it does not take the memory.
    pub(crate) fn place(&self, lent: &Arc<Lent>) -> Result<(HostRange, Lease), DeviceError> {
        let name = lent.extent_name();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let extent = match known.extents.get(&name) {
            Some(extent) => *extent,
            None => {
                let memory = Arc::new(LentMemory::new(Arc::clone(lent.extent()))) as Arc<dyn HostExtent>;
                let extent = self.device.register(memory)?;
                known.extents.insert(name, extent);
                extent
            }
        };
        let bytes = self.shape.slot_bytes();
        let place = SlotPlace { extent: name.1, offset: lent.offset(), bytes };
        let owner = Arc::clone(lent) as Arc<dyn SlotOwner>;
        let lease = Lease::new(place, lent.slot(), lent.generation(), owner);
        Ok((HostRange { extent, offset: lent.offset(), bytes }, lease))
    }

    /// Where the device writes an image that is handed over.
    fn staging(&self, connection: u64, memory: &Arc<host_tier::Staging>) -> Result<ExtentId, DeviceError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.staging {
            Some((number, extent)) if number == connection => Ok(extent),
            _ => {
                let extent = self.device.register(Arc::new(StagingMemory::new(Arc::clone(memory))))?;
                known.staging = Some((connection, extent));
                Ok(extent)
            }
        }
    }
}

/// The driver's part.
impl<'a> Driver<'a> {
    fn parent(&self) -> &'a Parent {
        self.tiers.parent.as_ref().expect("without a daemon nothing is asked of it")
    }

    /// Keeps a block in the daemon's memory.
    pub(in crate::embedded) fn lease(&mut self, entry: EntryId, key: CopyKey) {
        let fresh = self.state.leases.fresh.remove(&key);
        let lent = fresh.or_else(|| {
            let link = self.state.shard().entry(entry)?.link;
            self.parent().lease_one(&key, link)
        });
        match lent {
            Some(lent) => drop(self.state.leases.pinned.insert(key, lent)),
            None => self.feed(Event::Lost { entry, tier: Tier::Disk, reason: MissReason::Evicted }),
        }
    }

    /// True when a published block is not the daemon's business.
    pub(in crate::embedded) fn is_kept_out(&self, key: &CopyKey) -> bool {
        self.parent().writes == Writes::Untainted && key.provenance != Provenance::EXACT
    }

    /// Hands over what waits for it, a run of blocks at a time.
    pub(in crate::embedded) fn hand_over_waiting(&mut self) {
        while !self.state.disk.waiting.is_empty() {
            let (run, links) = self.next_run();
            self.hand_over(&run, &links);
        }
    }

    /// A device copy is about to go: its last chance to be handed over.
    pub(in crate::embedded) fn hand_over_last(&mut self, key: &CopyKey) {
        if let Some(index) = self.state.disk.waiting.iter().position(|waiting| waiting.key == *key) {
            let waiting = self.state.disk.waiting.remove(index).expect("it was just found");
            self.hand_over_one(waiting);
        }
    }

    /// Hands over one block, whoever else waits.
    pub(in crate::embedded) fn hand_over_one(&mut self, waiting: Waiting) {
        let link = self.link_of(&waiting.key);
        self.hand_over(&[waiting], link.as_slice());
    }

    fn link_of(&self, key: &CopyKey) -> Option<Link> {
        self.state.shard().view(key).map(|(_, view)| view.link)
    }

    /// Takes the first blocks that wait, as far as they follow each other in one chain and fit the staging memory together. Without links: the one
    /// block is not there any more.
    fn next_run(&mut self) -> (Vec<Waiting>, Vec<Link>) {
        let most = self.parent().client.places_max().map_or(1, |places| (places as usize).clamp(1, BATCH_MAX));
        let (mut run, mut links): (Vec<Waiting>, Vec<Link>) = (Vec::new(), Vec::new());
        while let Some(next) = self.state.disk.waiting.front().copied().filter(|_| run.len() < most) {
            let link = self.link_of(&next.key);
            let follows = match (run.last(), links.last(), link) {
                (None, ..) => true,
                (Some(before), Some(last), Some(link)) => {
                    next.key == CopyKey { hash: link.hash, ..before.key }
                        && (link.parent, link.depth) == (Some(last.hash), last.depth + 1)
                }
                _ => false,
            };
            if !follows {
                break;
            }
            self.state.disk.waiting.pop_front();
            run.push(next);
            links.extend(link);
        }
        (run, links)
    }

    /// Hands a run over and tells the shard how that ended for each block.
    fn hand_over(&mut self, run: &[Waiting], links: &[Link]) {
        let mut ends = vec![CopyEnd::SourceLost; run.len()];
        if links.len() == run.len() {
            self.try_hand_over(run, links, &mut ends);
        }
        for (Waiting { key, is_live }, end) in run.iter().zip(ends) {
            self.state.disk.dropped_stores += u64::from(end != CopyEnd::Done);
            self.feed(Event::Stored { key: *key, spill: *is_live, end });
        }
    }

    /// One message for all places, the images copied there, one message that they are.
    fn try_hand_over(&mut self, run: &[Waiting], links: &[Link], ends: &mut [CopyEnd]) {
        let parent = self.parent();
        let CopyKey { namespace, provenance, form, .. } = run[0].key;
        let Ok(places) = parent.client.reserve(&Wanted { namespace, provenance, links }, Lineage::of(form)) else {
            return ends.fill(CopyEnd::Failed);
        };
        // The sources stay leased until their copies have arrived.
        let (mut filled, mut leases, mut given_up) = (Vec::new(), Vec::new(), Vec::new());
        // Whoever is at a block already publishes the same one; of blocks without an answer there was no room for any.
        ends.fill(CopyEnd::Full);
        for (at, (Waiting { key, .. }, place)) in run.iter().zip(&places.answers).enumerate() {
            match place {
                Place::Present => ends[at] = CopyEnd::Done,
                Place::PendingElsewhere | Place::Full => {}
                Place::Reserved { reservation, offset } => match self.copy_to_staging(&places, *offset, key) {
                    Ok(lease) => {
                        leases.push(lease);
                        filled.push((at, *reservation));
                    }
                    Err(end) => {
                        ends[at] = end;
                        given_up.push(*reservation);
                    }
                },
            }
        }
        if !filled.is_empty()
            && let Err(end) = self.wait(Stream::CopyOut)
        {
            for (at, reservation) in filled.drain(..) {
                ends[at] = end;
                given_up.push(reservation);
            }
        }
        if !given_up.is_empty() {
            // One that cannot be given up is nobody's any more.
            let _ = parent.client.abort(places.connection, &given_up);
        }
        if filled.is_empty() {
            return;
        }
        let reservations: Vec<_> = filled.iter().map(|(_, reservation)| *reservation).collect();
        let codes = parent.client.commit(places.connection, &reservations).ok();
        for (number, (at, _)) in filled.into_iter().enumerate() {
            ends[at] = match codes.as_ref().map(|codes| codes[number]) {
                Some(CommitCode::Inserted | CommitCode::Present) => CopyEnd::Done,
                Some(CommitCode::FailedCheck) => CopyEnd::Damaged,
                Some(CommitCode::Full | CommitCode::Unknown) => CopyEnd::Full,
                None => CopyEnd::Failed,
            };
        }
    }

    /// Starts to copy a block's image to a place in staging memory. Returns what keeps its slot meanwhile.
    fn copy_to_staging(&mut self, places: &Places, offset: u64, key: &CopyKey) -> Result<Lease, CopyEnd> {
        let Lookup::Hit(lease) = self.tiers.device.lookup(key) else {
            return Err(CopyEnd::SourceLost);
        };
        let extent = self.parent().staging(places.connection, &places.staging).map_err(|error| self.failed(error))?;
        let device = self.tiers.device.range(lease.place());
        let host = HostRange { extent, offset, bytes: device.bytes };
        self.enqueue(Stream::CopyOut, CopyPiece { host, device })?;
        Ok(lease)
    }
}
