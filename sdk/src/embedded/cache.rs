//! [`KvCache`] over the embedded tiers.

use cache_core::chain::Link;
use cache_core::form::{Accept, Form, Lineage, Provenance};
use cache_core::hash::{Namespace, TenantId};
use cache_core::key::CopyKey;
use cache_core::manager::{Below, CopyState, EntryId, Event};
use cache_core::manifest::Manifest;
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use cache_core::store::{Lease, Lend, Lookup, Sealed, Store};
use cache_core::units::Tier;
use gpu_tier::DeviceError;

use crate::cache::{
    Acquired, BlockPlace, CacheError, CacheStats, Committed, Grant, KvCache, Prefetched, SequenceId, Stage,
    StagedSection, Stamp, Want,
};
use crate::embedded::disk::Disk;
use crate::embedded::driver::{Answer, Driver};
use crate::embedded::state::{Block, Sequence, State, owner, unknown};
use crate::embedded::{Embedded, explain};

impl Embedded {
    fn drive(
        &self,
        state: &mut State,
        namespace: Namespace,
        event: Event<'_>,
    ) -> (Option<Answer>, Option<DeviceError>) {
        Driver::new(self, state, namespace).run(event)
    }

    /// Feeds in an event that has no answer.
    fn tell(&self, state: &mut State, namespace: Namespace, event: Event<'_>) {
        let (answer, _) = self.drive(state, namespace, event);
        debug_assert!(answer.is_none(), "{answer:?} to a question that nobody asked");
    }

    /// Asks for room for blocks with these keys; opens them at the end of the sequence, or in the place of the lost block `replaced`.
    fn grant(
        &self,
        state: &mut State,
        sequence: SequenceId,
        keys: Vec<Option<CopyKey>>,
        replaced: Option<(u32, EntryId)>,
    ) -> Result<Grant, CacheError> {
        let namespace = state.sequence(sequence)?.namespace;
        let held = u32::from(replaced.is_some());
        let room = Event::Room { ticket: state.ticket(), owner: owner(sequence), keys: &keys, held };
        match self.drive(state, namespace, room) {
            (Some(Answer::Granted), _) => {}
            (Some(Answer::PendingElsewhere), _) => return Ok(Grant::PendingElsewhere),
            (_, Some(error)) => return Err(error.into()),
            (Some(Answer::Refused(no_room)), None) => return Ok(Grant::NoRoom(no_room)),
            (other, None) => unreachable!("{other:?} to a request for room"),
        }
        let slots = keys.iter().map(|_| self.tiers.device.reserve_open()).collect::<Result<Vec<_>, _>>();
        let slots = match slots {
            Ok(slots) => slots,
            Err(error) => {
                self.tell(state, namespace, Event::Abandon { owner: owner(sequence), keys: &keys, held });
                return Err(CacheError::DeviceTier(error));
            }
        };
        let blocks = &mut state.sequence_mut(sequence)?.blocks;
        for (slot, opened_for) in slots.into_iter().zip(keys) {
            match replaced {
                Some((index, entry)) => blocks[index as usize] = Block::Open { slot, opened_for, held: Some(entry) },
                None => blocks.push(Block::Open { slot, opened_for, held: None }),
            }
        }
        Ok(Grant::Granted)
    }

    fn grant_want(&self, state: &mut State, want: &Want) -> Result<Grant, CacheError> {
        if want.blocks.is_empty() {
            return Ok(Grant::Granted);
        }
        let sequence = state.sequence(want.sequence)?;
        let keys = want.blocks.iter().map(|link| link.and_then(|link| self.key_of(sequence, &link))).collect();
        self.grant(state, want.sequence, keys, None)
    }

    /// Takes blocks off the end of a sequence.
    fn shorten(&self, state: &mut State, sequence: SequenceId, blocks: u32) -> Result<(), CacheError> {
        let sequence_now = state.sequence_mut(sequence)?;
        let namespace = sequence_now.namespace;
        let keep = (blocks as usize).min(sequence_now.blocks.len());
        let dropped = sequence_now.blocks.split_off(keep);
        self.drop_blocks(state, namespace, sequence, dropped);
        Ok(())
    }

    /// Lets go of blocks that are not a sequence's any more.
    fn drop_blocks(&self, state: &mut State, namespace: Namespace, sequence: SequenceId, dropped: Vec<Block>) {
        let mut entries = Vec::new();
        for block in dropped {
            let (opened_for, held) = match block {
                Block::Held { entry, .. } => {
                    entries.push(entry);
                    continue;
                }
                Block::Absent { .. } => continue,
                Block::Open { opened_for, held, .. } => (opened_for, held),
                Block::Private { .. } => (None, None),
            };
            entries.extend(held);
            let event = Event::Abandon { owner: owner(sequence), keys: &[opened_for], held: u32::from(held.is_some()) };
            self.tell(state, namespace, event);
        }
        self.tell(state, namespace, Event::Release { entries: &entries });
    }

    /// Where a cache entry is. Copies that turn out to be gone are reported to the shard on the way.
    fn locate(&self, state: &mut State, namespace: Namespace, entry: EntryId, key: CopyKey) -> BlockPlace {
        // Each round ends in a place or takes one of the two copies away.
        for _ in 0..3 {
            let view = state.shard().entry(entry).expect("a sequence holds its entries live");
            let [device, host, disk] = view.copies;
            let tier = if device == CopyState::Resident {
                if let Lookup::Hit(lease) = self.tiers.device.lookup(&key) {
                    let stamp = Stamp { slot: lease.slot(), generation: lease.generation() };
                    return BlockPlace::Device(self.tiers.device.range(lease.place()), stamp);
                }
                Tier::Device
            } else if host == CopyState::Resident {
                if let Some(place) = self.locate_in_host(&key) {
                    return place;
                }
                Tier::Host
            } else if disk == CopyState::Resident && self.tiers.parent.is_none() {
                return BlockPlace::Disk;
            } else if disk == CopyState::Resident {
                if let Some(place) = self.locate_in_daemon(state, &key) {
                    return place;
                }
                Tier::Disk
            } else {
                return BlockPlace::Lost(view.loss.unwrap_or(MissReason::LeaseLost));
            };
            self.tell(state, namespace, Event::Lost { entry, tier, reason: MissReason::LeaseLost });
        }
        BlockPlace::Lost(MissReason::LeaseLost)
    }

    fn locate_in_host(&self, key: &CopyKey) -> Option<BlockPlace> {
        let host = self.tiers.host.as_ref()?;
        match host.tier.lookup(key) {
            Lookup::Hit(lease) => Some(BlockPlace::Host(host.range(lease.place()), lease)),
            Lookup::Pending | Lookup::Miss(_) => None,
        }
    }

    /// True when what was read in the daemon's memory was the block.
    fn check_lent(&self, state: &mut State, sequence: SequenceId, block: u32, lease: &Lease) -> bool {
        let Ok(known) = state.sequence(sequence) else {
            return false;
        };
        let namespace = known.namespace;
        let Ok(Block::Held { entry, key }) = known.block(block) else {
            return false;
        };
        let (entry, key) = (*entry, *key);
        let is_current = state.leases.is_current(&key, lease);
        if !is_current {
            let lost = Event::Lost { entry, tier: Tier::Disk, reason: MissReason::LeaseLost };
            self.tell(state, namespace, lost);
        }
        is_current
    }

    /// In memory that the daemon lends.
    fn locate_in_daemon(&self, state: &State, key: &CopyKey) -> Option<BlockPlace> {
        let lent = state.leases.pinned.get(key).filter(|lent| lent.is_current())?;
        let (range, lease) = self.tiers.parent.as_ref()?.place(lent).ok()?;
        Some(BlockPlace::Host(range, lease))
    }

    /// What is below the slots: what the disk's index says of each key, or the daemon.
    fn below(&self, keys: &[CopyKey], links: &[Link]) -> Vec<Below> {
        if let Some(parent) = self.tiers.parent.as_ref().filter(|_| publishes(&self.shape)) {
            return parent.look(keys, links);
        }
        let Some(disk) = self.tiers.disk.as_ref().filter(|_| publishes(&self.shape)) else {
            return Vec::new();
        };
        keys.iter().map(|key| disk.tier().find(key).map(|_| ())).collect()
    }

    fn keys_of(&self, sequence: &Sequence, links: &[Link]) -> Vec<CopyKey> {
        links.iter().map(|link| sequence.key(self.shape.form_map(), link)).collect()
    }

    fn key_of(&self, sequence: &Sequence, link: &Link) -> Option<CopyKey> {
        publishes(&self.shape).then(|| sequence.key(self.shape.form_map(), link))
    }

    /// Seals one block and makes it visible; what is below does not hear of it yet.
    fn commit_one(
        &self,
        state: &mut State,
        sequence: SequenceId,
        block: u32,
        link: Link,
    ) -> Result<Committed, CacheError> {
        let namespace = state.sequence(sequence)?.namespace;
        let Block::Open { opened_for, held, .. } = *state.sequence(sequence)?.block(block)? else {
            return Err(CacheError::Unknown { what: format!("open block {block} of sequence {}", sequence.0) });
        };
        let Some(key) = self.key_of(state.sequence(sequence)?, &link) else {
            state.sequence_mut(sequence)?.make_private(block);
            return Ok(Committed::Inserted);
        };
        let before = state.sequence(sequence)?.hash_before(block);
        let reopened_for_another = held.is_some() && opened_for != Some(key);
        if reopened_for_another || link.depth != block || before.is_some_and(|hash| link.parent != hash) {
            return Err(CacheError::Unknown { what: format!("{link:?} as block {block} of sequence {}", sequence.0) });
        }
        let sealed = Sealed { key, lineage: Lineage::of(key.form), link };
        let event = Event::Commit { owner: owner(sequence), opened_for, key, link, held: held.is_some() };
        let (Some(Answer::Committed(entry, how)), _) = self.drive(state, namespace, event) else {
            unreachable!("a commit is answered at once");
        };
        let slot = state.sequence_mut(sequence)?.hold(block, entry, key);
        if how == Committed::Present {
            return Ok(how);
        }
        match self.tiers.device.commit_open(slot, &sealed) {
            Ok(()) => Ok(how),
            Err((slot, error)) => {
                // Freed before the shard hears that the copy is gone.
                drop(slot);
                let lost = Event::Lost { entry, tier: Tier::Device, reason: MissReason::FailedCheck };
                self.tell(state, namespace, lost);
                Err(CacheError::DeviceTier(error))
            }
        }
    }
}

/// raw32 is never published.
fn publishes(shape: &BlockShape) -> bool {
    shape.form != Form::Raw32
}

impl KvCache for Embedded {
    fn shape(&self) -> BlockShape {
        self.shape
    }

    fn namespace(&self, manifest: &Manifest, tenant: TenantId) -> Namespace {
        match &self.tiers.parent {
            Some(parent) => parent.name(manifest, tenant),
            None => manifest.namespace(tenant),
        }
    }

    fn open(&self, namespace: Namespace) -> SequenceId {
        self.state().open(namespace)
    }

    fn taint(&self, sequence: SequenceId, from: u32, provenance: Provenance) -> Result<(), CacheError> {
        let mut state = self.state();
        let sequence_now = state.sequence_mut(sequence)?;
        if (from as usize) < sequence_now.blocks.len() {
            return Err(CacheError::Unknown { what: format!("a taint of block {from} of sequence {}", sequence.0) });
        }
        sequence_now.taint(from, provenance);
        Ok(())
    }

    fn close(&self, sequence: SequenceId) {
        let mut state = self.state();
        if self.shorten(&mut state, sequence, 0).is_ok() {
            state.sequences.remove(&sequence);
        }
    }

    fn lookup(&self, namespace: Namespace, links: &[Link], accept: Accept) -> Acquired {
        let keys = self.keys_of(&Sequence::new(namespace), links);
        let Some(parent) = self.tiers.parent.as_ref().filter(|_| publishes(&self.shape)) else {
            let below = self.below(&keys, links);
            let (tiers, miss) = self.state().shard().peek(&keys, &below, accept);
            return Acquired { tiers, miss };
        };
        let (below, lent) = parent.find(&keys, links);
        let (mut tiers, miss) = self.state().shard().peek(&keys, &below, accept);
        let below = tiers.iter_mut().enumerate().filter(|(_, tier)| **tier == Tier::Disk);
        below.for_each(|(block, tier)| *tier = lent.get(block).copied().unwrap_or(*tier));
        Acquired { tiers, miss }
    }

    fn forgo(&self, namespace: Namespace, links: &[Link]) {
        if let Some(parent) = self.tiers.parent.as_ref().filter(|_| publishes(&self.shape)) {
            parent.forgo(&self.keys_of(&Sequence::new(namespace), links), links);
        }
    }

    fn load_ahead(&self, namespace: Namespace, links: &[Link]) -> Result<SequenceId, CacheError> {
        let id = self.open(namespace);
        let keys = self.keys_of(&Sequence::new(namespace), links);
        if let Some(parent) = self.tiers.parent.as_ref().filter(|_| publishes(&self.shape)) {
            parent.prefetch(&keys, links);
            return Ok(id);
        }
        let below = self.below(&keys, links);
        let mut state = self.state();
        let event = Event::Acquire { keys: &keys, links, below: &below, accept: Accept::Exact };
        let (answer, _) = self.drive(&mut state, namespace, event);
        let Some(Answer::Acquired(hits, miss)) = answer else {
            unreachable!("{answer:?} to an acquire");
        };
        // They are somebody's hits once that somebody comes. A block that is open elsewhere was not counted as a miss.
        let next = keys.get(hits.len());
        let miss = miss.filter(|_| next.is_some_and(|key| state.shard().opened_by(key).is_none()));
        state.shard_mut(namespace).uncount(&hits, miss);
        let entries: Vec<EntryId> = hits.iter().rev().map(|(entry, _)| *entry).collect();
        let held = hits.into_iter().zip(keys).map(|((entry, _), key)| Block::Held { entry, key });
        state.sequence_mut(id)?.blocks.extend(held);
        let ticket = state.ticket();
        state.unawaited.insert(ticket);
        Driver::new(self, &mut state, namespace).start(Event::Load { ticket, entries: &entries });
        Ok(id)
    }

    fn acquire(&self, sequence: SequenceId, links: &[Link], accept: Accept) -> Result<Acquired, CacheError> {
        let mut state = self.state();
        let known = state.sequence(sequence)?;
        let (namespace, keys) = (known.namespace, self.keys_of(known, links));
        let below = match self.tiers.parent.as_ref().filter(|_| publishes(&self.shape)) {
            Some(parent) => parent.lease(&mut state.leases, &keys, links),
            None => self.below(&keys, links),
        };
        let event = Event::Acquire { keys: &keys, links, below: &below, accept };
        let (answer, _) = self.drive(&mut state, namespace, event);
        let Some(Answer::Acquired(hits, miss)) = answer else {
            unreachable!("{answer:?} to an acquire");
        };
        let mut tiers = Vec::with_capacity(hits.len());
        for (entry, tier) in hits {
            let key = state.shard().entry(entry).expect("it was made live just now").key;
            // Below a daemon's client is the daemon, which says where it had the block.
            let lent = state.leases.pinned.get(&key).filter(|_| tier == Tier::Disk);
            tiers.push(lent.map_or(tier, |lent| lent.tier()));
            state.sequence_mut(sequence)?.blocks.push(Block::Held { entry, key });
        }
        Ok(Acquired { tiers, miss })
    }

    fn skip(&self, sequence: SequenceId, link: Option<Link>) -> Result<(), CacheError> {
        let absent = Block::Absent { hash: link.map(|link| link.hash) };
        self.state().sequence_mut(sequence)?.blocks.push(absent);
        Ok(())
    }

    fn release(&self, sequence: SequenceId, block: u32) -> Result<(), CacheError> {
        let mut state = self.state();
        let known = state.sequence_mut(sequence)?;
        let hash = known.hash_of(block)?;
        let dropped = std::mem::replace(&mut known.blocks[block as usize], Block::Absent { hash });
        let namespace = known.namespace;
        self.drop_blocks(&mut state, namespace, sequence, vec![dropped]);
        Ok(())
    }

    fn reserve(&self, wants: &[Want]) -> Result<Vec<Grant>, CacheError> {
        let mut state = self.state();
        let had = wants.iter().map(|want| Ok((want.sequence, state.sequence(want.sequence)?.blocks.len() as u32)));
        let had = had.collect::<Result<Vec<_>, CacheError>>()?;
        let mut grants = Vec::with_capacity(wants.len());
        for want in wants {
            match self.grant_want(&mut state, want) {
                Ok(grant) => grants.push(grant),
                Err(error) => {
                    // Nobody hears of what was granted before: take it back.
                    for (sequence, blocks) in had.into_iter().rev() {
                        self.shorten(&mut state, sequence, blocks)?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(grants)
    }

    fn reopen(&self, sequence: SequenceId, block: u32) -> Result<Grant, CacheError> {
        let mut state = self.state();
        let Block::Held { entry, key } = *state.sequence(sequence)?.block(block)? else {
            return Err(CacheError::Unknown { what: format!("lost block {block} of sequence {}", sequence.0) });
        };
        let view = state.shard().entry(entry).expect("a sequence holds its entries live");
        if view.loss.is_none() {
            // Another sequence has computed it meanwhile.
            return Ok(Grant::PendingElsewhere);
        }
        self.grant(&mut state, sequence, vec![Some(key)], Some((block, entry)))
    }

    fn abandon(&self, sequence: SequenceId, block: u32) -> Result<(), CacheError> {
        let mut state = self.state();
        let namespace = state.sequence(sequence)?.namespace;
        let Block::Open { opened_for: Some(key), held: Some(entry), .. } = *state.sequence(sequence)?.block(block)?
        else {
            return Err(CacheError::Unknown { what: format!("reopened block {block} of sequence {}", sequence.0) });
        };
        drop(state.sequence_mut(sequence)?.hold(block, entry, key));
        self.tell(&mut state, namespace, Event::Abandon { owner: owner(sequence), keys: &[Some(key)], held: 1 });
        Ok(())
    }

    fn places(&self, sequence: SequenceId) -> Result<Vec<BlockPlace>, CacheError> {
        let mut state = self.state();
        let namespace = state.sequence(sequence)?.namespace;
        let count = state.sequence(sequence)?.blocks.len();
        let mut places = Vec::with_capacity(count);
        for index in 0..count {
            places.push(match state.sequence(sequence)?.blocks[index] {
                Block::Open { ref slot, .. } | Block::Private { ref slot } => {
                    let stamp = Stamp { slot: slot.index(), generation: slot.generation() };
                    BlockPlace::Device(self.tiers.device.range(slot.place()), stamp)
                }
                Block::Held { entry, key } => self.locate(&mut state, namespace, entry, key),
                Block::Absent { .. } => BlockPlace::Absent,
            });
        }
        Ok(places)
    }

    fn check(&self, sequence: SequenceId, block: u32, place: &BlockPlace) -> bool {
        let lease = match place {
            BlockPlace::Device(_, stamp) => return self.tiers.device.is_at(stamp.slot, stamp.generation),
            // What was read from the disk was verified when it came.
            BlockPlace::Disk | BlockPlace::Absent => return true,
            BlockPlace::Lost(_) => return false,
            BlockPlace::Host(_, lease) => lease,
        };
        if self.tiers.host.as_ref().is_some_and(|host| host.tier.is_current(lease)) {
            return true;
        }
        let mut state = self.state();
        if self.tiers.parent.is_some() {
            return self.check_lent(&mut state, sequence, block, lease);
        }
        let Ok(sequence) = state.sequence(sequence) else {
            return false;
        };
        let namespace = sequence.namespace;
        if let Ok(Block::Held { entry, key }) = sequence.block(block) {
            // The block may have been computed and demoted again since: that copy is sound, and the loss was counted then.
            if self.locate_in_host(key).is_none() {
                let lost = Event::Lost { entry: *entry, tier: Tier::Host, reason: MissReason::LeaseLost };
                self.tell(&mut state, namespace, lost);
            }
        }
        false
    }

    fn commit(&self, sequence: SequenceId, first: u32, links: &[Link]) -> Result<Vec<Committed>, CacheError> {
        let mut state = self.state();
        let namespace = state.sequence(sequence)?.namespace;
        let committed =
            (first..).zip(links).map(|(block, link)| self.commit_one(&mut state, sequence, block, *link)).collect();
        if self.tiers.disk.is_some() || self.tiers.parent.is_some() {
            Driver::new(self, &mut state, namespace).tend_below();
        }
        committed
    }

    fn truncate(&self, sequence: SequenceId, blocks: u32) -> Result<(), CacheError> {
        self.shorten(&mut self.state(), sequence, blocks)
    }

    fn prefetch(&self, sequence: SequenceId, nearest: Tier) -> Result<Prefetched, CacheError> {
        let mut state = self.state();
        let known = state.sequence(sequence).map_err(|_| unknown(sequence))?;
        let (namespace, entries) = (known.namespace, known.entries());
        let (ticket, entries) = (state.ticket(), &entries);
        let event = match nearest {
            Tier::Device => Event::Promote { ticket, entries },
            _ => Event::Load { ticket, entries },
        };
        match self.drive(&mut state, namespace, event) {
            (_, Some(error)) => Err(error.into()),
            (Some(Answer::Promoted { arrived, loaded }), None) => Ok(Prefetched {
                to_device_bytes: u64::from(arrived) * self.shape.slot_bytes(),
                to_host_bytes: u64::from(loaded) * self.shape.slot_bytes(),
            }),
            (other, None) => unreachable!("{other:?} to a prefetch"),
        }
    }

    fn stage(&self, sequence: SequenceId, sections: &[StagedSection]) -> Result<Option<Box<dyn Stage>>, CacheError> {
        let state = self.state();
        let blocks = state.sequence(sequence)?;
        let pinned = |wanted: &StagedSection| match blocks.block(wanted.block)? {
            Block::Held { key, .. } => state.disk.pins.get(key).map(|pin| (pin, wanted.section)).ok_or_else(|| {
                CacheError::Unknown { what: format!("record of block {} of sequence {}", wanted.block, sequence.0) }
            }),
            _ => Err(CacheError::Unknown { what: format!("full block {} of sequence {}", wanted.block, sequence.0) }),
        };
        let pinned = sections.iter().map(pinned).collect::<Result<Vec<_>, CacheError>>()?;
        let reads = self.tiers.disk.as_ref().and_then(|disk| disk.stage(&pinned));
        Ok(reads.map(|reads| Box::new(reads) as Box<dyn Stage>))
    }

    fn stage_capacity(&self) -> u32 {
        self.tiers.disk.as_ref().map_or(0, Disk::pieces)
    }

    fn lost(&self, sequence: SequenceId, block: u32, reason: MissReason) -> Result<(), CacheError> {
        let mut state = self.state();
        let known = state.sequence(sequence)?;
        let namespace = known.namespace;
        if let Block::Held { entry, .. } = *known.block(block)? {
            self.tell(&mut state, namespace, Event::Lost { entry, tier: Tier::Disk, reason });
        }
        Ok(())
    }

    fn stats(&self) -> CacheStats {
        let state = self.state();
        let shard = state.shard();
        let counters = shard.counters();
        let held = self.tiers.host.as_ref().map_or(0, |host| host.tier.capacity().held_bytes + self.index_bytes);
        CacheStats {
            device_slots: (shard.device_used(), shard.budgets().device_slots),
            host_slots: (shard.host_used(), shard.budgets().host_slots),
            host_bytes: (held, self.host_bytes),
            hits: counters.hits,
            misses: counters.misses,
            demoted_blocks: counters.demoted_blocks,
            promoted_blocks: counters.promoted_blocks,
            evicted_blocks: counters.evicted_blocks,
            blocks: u64::from(shard.blocks()),
            stored_blocks: counters.stored_blocks,
            loaded_blocks: counters.loaded_blocks,
            dropped_stores: state.disk.dropped_stores,
        }
    }

    fn explain(&self, namespace: Namespace, link: Link) -> String {
        let key = CopyKey { form: self.shape.form_map(), ..CopyKey::exact(namespace, link.hash) };
        let disk = self.tiers.disk.as_ref().map(|disk| disk.tier().find(&key).map(|record| record.bytes));
        explain::explain(self.state().shard(), disk, &key, self.now())
    }
}
