//! Blocks leased to a connection, and leases that end.

use super::*;

/// The run of blocks that are there, and why the next is not.
type Found = (Vec<(EntryId, Tier)>, Option<MissReason>);

impl Cache {
    /// Makes the longest run that is there live, and says why the next block is not.
    pub(super) fn make_live(&self, state: &mut State, asked: &Asked<'_>, keys: &[CopyKey], below: &[Below]) -> Found {
        let event = Event::Acquire { keys, links: asked.links, below, accept: asked.accept };
        let answers = self.drive(state, asked.class(), event);
        match answers.into_iter().next() {
            Some(Action::Acquired { hits, miss }) => (hits, miss),
            other => unreachable!("{other:?} to an acquire"),
        }
    }

    /// Leases the longest run that is there; what only the disk has is loaded first, as long as patience lasts.
    pub(crate) fn acquire(
        &self,
        holdings: &mut Holdings,
        asked: &Asked<'_>,
        patience: Patience<'_>,
    ) -> (Vec<Leased>, Option<MissReason>) {
        let keys = asked.keys();
        let below = self.below(&keys);
        let mut state = self.state();
        let class = asked.class();
        let (hits, miss) = self.make_live(&mut state, asked, &keys, &below);
        let mut wanted: Vec<EntryId> =
            hits.iter().filter(|(_, tier)| *tier == Tier::Disk).map(|(entry, _)| *entry).collect();
        self.cut_to_quota(&state, asked, &mut wanted);
        let mut is_late = false;
        if !wanted.is_empty() {
            (state, is_late) = self.load(state, class, &wanted, patience);
        }
        let (leased, missed) = lease(&mut state, holdings, class, &hits, is_late, self.now());
        let left: Vec<EntryId> = hits[leased.len()..].iter().map(|(entry, _)| *entry).collect();
        if !left.is_empty() {
            self.drive(&mut state, class, Event::Release { entries: &left });
        }
        (leased, missed.or(miss))
    }

    /// Leaves out loads for which the tenant has no bytes left in memory: those blocks are misses (`quota`).
    fn cut_to_quota(&self, state: &State, asked: &Asked<'_>, wanted: &mut Vec<EntryId>) {
        if !wanted.is_empty() {
            // Of memory alone, in which nothing counts twice.
            let left = state.left(&asked.parts.namespace, self.disk.as_ref(), 0);
            wanted.truncate(state.affordable(asked.class(), left.map(|left| left.loads), wanted.len()));
        }
    }

    /// Brings live blocks from the disk into slots; true when not all loads had ended in time.
    fn load<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        class: ClassId,
        entries: &[EntryId],
        patience: Patience<'_>,
    ) -> (MutexGuard<'a, State>, bool) {
        let ticket = Ticket(state.number());
        state.grow(class, entries.len() as u32);
        state.awaited.insert(ticket, false);
        self.drive(&mut state, class, Event::Promote { ticket, entries });
        loop {
            let has_ended = state.awaited[&ticket];
            match patience.next().filter(|_| !has_ended) {
                Some(part) => state = self.wait(state, part),
                None => {
                    state.awaited.remove(&ticket);
                    return (state, !has_ended);
                }
            }
        }
    }

    /// Ends leases by their numbers; returns how many there were. Others are harmless.
    pub(crate) fn release(&self, holdings: &mut Holdings, leases: &[u64]) -> u32 {
        let held: Vec<Held> = leases.iter().filter_map(|lease| holdings.leases.remove(lease)).collect();
        let released = held.len() as u32;
        self.let_go(held);
        released
    }

    /// The block that a connection leases in this slot, under this generation.
    pub(crate) fn leased(
        &self,
        holdings: &Holdings,
        class: ClassId,
        slot: SlotIndex,
        generation: Generation,
    ) -> Option<Link> {
        let is_meant =
            |held: &&Held| held.class == class && held.lease.slot() == slot && held.lease.generation() == generation;
        let held = holdings.leases.values().find(is_meant)?;
        self.state().class(class).shard.entry(held.entry).map(|view| view.link)
    }

    fn let_go(&self, held: Vec<Held>) {
        let mut by_class: Vec<(ClassId, Vec<EntryId>)> = Vec::new();
        for Held { class, entry, lease, .. } in held {
            drop(lease);
            match by_class.last_mut() {
                Some((last, entries)) if *last == class => entries.push(entry),
                _ => by_class.push((class, vec![entry])),
            }
        }
        let mut state = self.state();
        for (class, entries) in by_class {
            self.drive(&mut state, class, Event::Release { entries: &entries });
        }
    }

    /// Starts to bring the longest run that is there into slots; returns how many blocks are in one or on their way.
    pub(crate) fn prefetch(&self, asked: &Asked<'_>) -> u32 {
        let keys = asked.keys();
        let below = self.below(&keys);
        let mut state = self.state();
        let class = asked.class();
        let (hits, _) = self.make_live(&mut state, asked, &keys, &below);
        let entries: Vec<EntryId> = hits.iter().map(|(entry, _)| *entry).collect();
        let mut wanted: Vec<EntryId> =
            hits.iter().filter(|(_, tier)| *tier == Tier::Disk).map(|(entry, _)| *entry).collect();
        self.cut_to_quota(&state, asked, &mut wanted);
        let ticket = Ticket(state.number());
        state.grow(class, wanted.len() as u32);
        self.drive(&mut state, class, Event::Promote { ticket, entries: &wanted });
        let shard = &state.class(class).shard;
        let comes = |entry: &&EntryId| shard.entry(**entry).is_some_and(|view| view.copies[0] != CopyState::None);
        let accepted = entries.iter().filter(comes).count() as u32;
        // A load that has begun is ended, whoever reads the block by then.
        self.drive(&mut state, class, Event::Release { entries: &entries });
        accepted
    }

    /// A connection is gone: its reservations are given up; its leases end, and slots that it may still read rest before they are used again.
    pub(crate) fn hang_up(&self, holdings: &mut Holdings, owner: Owner) {
        let reservations: Vec<u64> = holdings.reservations.keys().copied().collect();
        for reservation in reservations {
            self.abort(holdings, owner, reservation);
        }
        self.take_back(holdings.leases.drain().map(|(_, held)| held).collect());
    }

    /// Ends leases that are older than `age`; returns how many. Their holder may still be reading.
    pub(crate) fn expire(&self, holdings: &mut Holdings, age: Duration) -> u64 {
        let over = holdings.take_over(Instant::now(), age);
        let expired = over.len() as u64;
        if expired > 0 {
            self.take_back(over);
        }
        expired
    }

    /// Ends leases whose slots may still be read: once they are taken from their blocks, they rest before they are used again.
    fn take_back(&self, held: Vec<Held>) {
        {
            let (state, now) = (self.state(), self.now());
            held.iter().for_each(|held| state.class(held.class).host.advance(now));
            held.iter().for_each(|held| state.class(held.class).host.rest_after_removal(&held.lease));
        }
        self.let_go(held);
    }
}

/// Leases the slots of live blocks, up to the first that has none.
fn lease(
    state: &mut State,
    holdings: &mut Holdings,
    class: ClassId,
    hits: &[(EntryId, Tier)],
    is_late: bool,
    now: Now,
) -> (Vec<Leased>, Option<MissReason>) {
    let State { classes, watched, .. } = state;
    let Class { host, shard, .. } = &classes[class as usize];
    let key = |entry: EntryId| shard.key(entry).expect("it was made live just now");
    let leases = host.lease_run(hits.iter().map(|(entry, _)| key(*entry)));
    let mut leased = Vec::with_capacity(hits.len());
    holdings.leases.reserve(leases.len());
    let since = Instant::now();
    for (lease, (entry, tier)) in leases.into_iter().zip(hits) {
        let place = lease.place();
        let (slot, generation) = (lease.slot().0, lease.generation().0);
        let key = *key(*entry);
        // What was loaded for this very lease has come just now.
        if *tier == Tier::Device {
            watched.used(&key, now);
        }
        leased.push(Leased {
            lease: holdings.lease(Held { class, entry: *entry, lease, since }),
            key,
            extent: place.extent,
            slot,
            offset: place.offset,
            generation,
            tier: named(*tier),
        });
    }
    let missing = hits.get(leased.len()).map(|(entry, _)| {
        let late = if is_late { MissReason::Deadline } else { MissReason::Quota };
        shard.entry(*entry).and_then(|view| view.loss).unwrap_or(late)
    });
    (leased, missing)
}
