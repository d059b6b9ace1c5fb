//! The daemon's cache: classes over one host arena and one disk, behind one mutex.
//!
//! **Lock order**: `state`, then a tier's own locks. Bytes are copied and verified outside `state`: a commit fills and verifies its slot before the shard
//! hears of it, a load after the disk has read it.
//!
//! A connection's leases and reservations are its own ([`Holdings`]): one thread serves it, and gives everything back when it hangs up.
//!
//! | file | part |
//! |---|---|
//! | `cache` | the state, lookups, deletion, figures |
//! | `lease` | blocks leased, loaded where only the disk has them, and leases that end |
//! | `put` | blocks on their way in |
//! | `holdings` | what one connection holds |
//! | `kept` | pins, and what is due when time passes |
//! | `checks` | blocks in memory looked at again |
//! | `adopt` | blocks brought back from the attic |

mod adopt;
mod checks;
mod holdings;
mod kept;
mod lease;
mod put;

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cache_core::chain::Link;
use cache_core::form::Accept;
use cache_core::hash::Namespace;
use cache_core::key::CopyKey;
use cache_core::manager::{Action, Below, Census, CopyState, EntryId, Event, Owner, Ticket};
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use cache_core::store::{OpId, Resident, Sealed, StoreError};
use cache_core::units::{Generation, Now, SlotIndex, Tier};
use disk_tier::{DiskError, DiskState, DiskTier, Pin};
use host_tier::{HostError, HostTier, Staging};
use kvtier_sdk::wire::KeyParts;

pub(crate) use adopt::Aside;
pub(crate) use holdings::{Committed, Holdings, Leased, Reserved};

use crate::server::ages::Watched;
use crate::server::attic::Attic;
use crate::server::cache::holdings::{Held, Reservation};
use crate::server::cache::kept::Kept;
use crate::server::class::{Class, ClassId, Pool};
use crate::server::driver::{self, Brought, Driver, Load, Write};
use crate::server::quota::{Left, Quotas};
use crate::stats::{Ages, Amount, Counters, Reclaim};
use crate::testing::{Planted, Point};

/// How often the disk's thread looks whether it is to end, in milliseconds.
const LOOK_MILLIS: u64 = 100;

/// How long a wait may take, and what ends it before its time.
#[derive(Clone, Copy)]
pub(crate) struct Patience<'a> {
    pub(crate) until: Instant,
    /// True when nobody waits any more: the client has hung up, or the daemon ends. Looked at now and then.
    pub(crate) is_over: &'a dyn Fn() -> bool,
}

impl Patience<'_> {
    /// True when it is over.
    pub(crate) fn is_out(&self) -> bool {
        self.next().is_none()
    }

    /// How long the next part of the wait may be; `None` when it is over.
    fn next(&self) -> Option<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        (!left.is_zero() && !(self.is_over)()).then(|| left.min(Duration::from_millis(LOOK_MILLIS)))
    }
}

pub(crate) struct Cache {
    disk: Option<DiskTier>,
    planted: Planted,
    started: Instant,
    state: Mutex<State>,
    /// Something has ended that somebody may wait for: a load, a commit, an abort.
    ended: Condvar,
}

/// What the mutex guards.
pub(crate) struct State {
    classes: Vec<Class>,
    /// The class that was last opened, or written to.
    recent: ClassId,
    pub(crate) pool: Pool,
    attic: Attic,
    pub(crate) pins: HashMap<CopyKey, Pin>,
    pub(crate) writes: HashMap<OpId, Write>,
    /// Writes that wait until the disk's index is read.
    pub(crate) deferred: Vec<Write>,
    pub(crate) loads: HashMap<OpId, Load>,
    /// Requests for loads that somebody waits for, and whether each has ended.
    pub(crate) awaited: HashMap<Ticket, bool>,
    /// What came and went since somebody last asked.
    pub(crate) moved: Moved,
    pub(crate) watched: Watched,
    /// Blocks that clients want kept, each with the reader that keeps it, until then.
    kept: HashMap<CopyKey, Kept>,
    pub(crate) quotas: Quotas,
    next: u64,
}

impl State {
    pub(crate) fn class(&self, class: ClassId) -> &Class {
        &self.classes[class as usize]
    }

    pub(crate) fn class_mut(&mut self, class: ClassId) -> &mut Class {
        &mut self.classes[class as usize]
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// How many blocks of a class a tenant may take with so many bytes left, at most `wanted`.
    fn affordable(&self, class: ClassId, left_bytes: Option<u64>, wanted: usize) -> usize {
        left_bytes.map_or(wanted, |bytes| wanted.min((bytes / self.class(class).shape.slot_bytes()) as usize))
    }

    /// Bytes that are left to the namespace's tenant; exact where that is less than `wanted_bytes`, else perhaps less than there are.
    fn left(&self, namespace: &Namespace, disk: Option<&DiskTier>, wanted_bytes: u64) -> Option<Left> {
        let left = self.quotas.left(namespace, &self.classes, disk, |_| 0)?;
        if left.stores >= wanted_bytes {
            return Some(left);
        }
        // A write that the disk has ended counts as unwritten until the shard hears of it.
        self.quotas.left(namespace, &self.classes, disk, |namespace| {
            let is_twice =
                |write: &&Write| write.key.namespace == *namespace && disk.is_some_and(|disk| disk.has(&write.key));
            self.writes.values().filter(is_twice).map(|write| self.class(write.class).shape.slot_bytes()).sum()
        })
    }

    /// A reservation of a block of this class has ended.
    fn settle(&mut self, class: ClassId, key: &CopyKey) {
        let slot_bytes = self.class(class).shape.slot_bytes();
        self.quotas.settle(&key.namespace, slot_bytes);
    }

    fn grow(&mut self, class: ClassId, wanted: u32) {
        loop {
            self.classes[class as usize].grow(wanted, &mut self.pool);
            // The attic gives way before anything is evicted.
            if !self.classes[class as usize].is_short_of(wanted) || !self.make_room() {
                return;
            }
        }
    }
}

/// Blocks as one client asks for them. The parts' class is one that there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) parts: KeyParts,
    pub(crate) accept: Accept,
    /// Consecutive blocks of one chain.
    pub(crate) links: &'a [Link],
    /// The class's.
    pub(crate) shape: BlockShape,
}

impl Asked<'_> {
    fn class(&self) -> ClassId {
        self.parts.class.0
    }

    fn keys(&self) -> Vec<CopyKey> {
        self.links.iter().map(|link| self.parts.key(link.hash)).collect()
    }
}

/// Copies that came into the arena from the disk, and that were dropped from it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moved {
    pub(crate) evicted: Amount,
    pub(crate) loaded: Amount,
    /// Copies in the attic that did not verify.
    pub(crate) damaged: u64,
    /// Bytes of blocks that were copied out of the attic.
    pub(crate) copied_bytes: u64,
}

/// What is known of a block that is not there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gone {
    /// Where its last copy went from, and how many milliseconds ago.
    pub(crate) ghost: Option<(Tier, u64)>,
    /// What went longer ago may be forgotten, in milliseconds.
    pub(crate) forgotten_ms: Option<u64>,
    /// When the disk dropped it, as far as that remembers: so many milliseconds ago, to the second.
    pub(crate) dropped_ms: Option<u64>,
}

/// How the host budget is used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub(crate) bytes: u64,
    pub(crate) blocks: u64,
    /// Of slots that leases hold, each counted once.
    pub(crate) leased_bytes: u64,
}

/// The tier of a shard's place, for people.
fn named(tier: Tier) -> Tier {
    if tier == Tier::Device { Tier::Host } else { tier }
}

impl Cache {
    /// `pool` without what the attic takes.
    pub(crate) fn new(pool: Pool, attic: Attic, disk: Option<DiskTier>, planted: Planted) -> Cache {
        Cache {
            disk,
            planted,
            started: Instant::now(),
            state: Mutex::new(State {
                classes: Vec::new(),
                recent: 0,
                pool,
                attic,
                pins: HashMap::new(),
                writes: HashMap::new(),
                deferred: Vec::new(),
                loads: HashMap::new(),
                awaited: HashMap::new(),
                moved: Moved::default(),
                watched: Watched::default(),
                kept: HashMap::new(),
                quotas: Quotas::default(),
                next: 0,
            }),
            ended: Condvar::new(),
        }
    }

    pub(crate) fn disk(&self) -> Option<&DiskTier> {
        self.disk.as_ref()
    }

    /// A caller that panicked under the lock leaves counts that may be off, never bytes: generations and sums vouch for those.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Now {
        Now(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn drive(&self, state: &mut State, class: ClassId, event: Event<'_>) -> Vec<Action> {
        Driver::new(self.disk.as_ref(), state, class, self.now()).run(event)
    }

    /// The class of this shape, made if there is none. Errors: [`HostError::Budget`] when the host budget does not hold another.
    pub(crate) fn class_of(&self, shape: BlockShape) -> Result<ClassId, HostError> {
        let mut state = self.state();
        if let Some(class) = state.classes.iter().position(|class| class.shape == shape) {
            return Ok(class as ClassId);
        }
        let class = loop {
            match Class::open(shape, &mut state.pool, self.disk.is_some()) {
                Err(HostError::Budget { .. }) if state.make_room() => {}
                opened => break opened?,
            }
        };
        state.attic.hand_over(&shape, class.host.extents());
        state.watched.grow(class.host.layout().slots());
        state.classes.push(class);
        state.recent = state.classes.len() as ClassId - 1;
        Ok(state.recent)
    }

    /// The arena in which memory is to be committed ahead of its use, if that is due: that of the class which blocks come to, as long as fewer than
    /// `ahead_bytes` of free slots are committed there, and no more than a quarter of the budget. Beside other classes a class gets no more ahead than it has in
    /// use, since it keeps what it was granted.
    pub(crate) fn touch_target(&self, ahead_bytes: u64) -> Option<HostTier> {
        let state = &mut *self.state();
        let is_alone = state.classes.len() == 1;
        let class = state.classes.get_mut(state.recent as usize)?;
        let used_bytes = u64::from(class.shard.device_used()) * class.shape.slot_bytes();
        let most_bytes = if is_alone { ahead_bytes } else { ahead_bytes.min(used_bytes) };
        let ahead_bytes = most_bytes.min(state.pool.budget_bytes / 4);
        class.wants_touched(ahead_bytes, &mut state.pool).then(|| class.host.clone())
    }

    /// What the disk's index says of each key.
    fn below(&self, keys: &[CopyKey]) -> Vec<Below> {
        let find = |disk: &DiskTier| disk.find_all(keys).into_iter().map(|found| found.map(drop)).collect();
        self.disk.as_ref().map(find).unwrap_or_default()
    }

    /// The tiers of the longest run that is there, and why the next block is not. Changes nothing.
    pub(crate) fn lookup(&self, asked: &Asked<'_>) -> (Vec<Tier>, Option<MissReason>) {
        let keys = asked.keys();
        let below = self.below(&keys);
        self.state().peek(asked.class(), &keys, &below, asked.accept)
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.ended.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Deletes everything of a namespace, on the disk first. Errors: the disk's; in memory the namespace is gone all the same.
    pub(crate) fn delete(&self, namespace: Namespace, counters: &Counters) -> Result<(), DiskError> {
        let on_disk = self.disk.as_ref().map_or(Ok(()), |disk| disk.delete_namespace(namespace));
        let mut state = self.state();
        let attic_bytes = state.attic.delete(&namespace);
        state.pool.give_attic_back(attic_bytes);
        for class in 0..state.classes.len() as ClassId {
            for (entry, view) in state.class(class).shard.entries_of(&namespace) {
                if let Some(kept) = state.kept.remove(&view.key) {
                    self.drive(&mut state, class, Event::Release { entries: &[kept.entry] });
                }
                for (tier, copy) in [Tier::Device, Tier::Disk].into_iter().zip([view.copies[0], view.copies[2]]) {
                    // What is just being loaded goes when it has come.
                    if matches!(copy, CopyState::Resident | CopyState::Arriving) {
                        let lost = Event::Lost { entry, tier, reason: MissReason::NeverStored };
                        self.drive(&mut state, class, lost);
                    }
                }
                counters.reclaimed(Reclaim::Deleted, u64::from(view.live));
            }
        }
        on_disk
    }

    /// Takes staging memory out of the host budget; false when it is not there.
    pub(crate) fn take_staging(&self, bytes: u64) -> bool {
        self.state().pool.take_staging(bytes)
    }

    /// Takes a share of it for blocks; `None` when there is not even `least`.
    pub(crate) fn share_staging(&self, least_bytes: u64, most_bytes: u64) -> Option<u64> {
        self.state().pool.share_staging(least_bytes, most_bytes)
    }

    /// Gives it back.
    pub(crate) fn give_staging_back(&self, bytes: u64) {
        self.state().pool.give_staging_back(bytes);
    }

    /// True while published blocks are being written to the disk.
    pub(crate) fn is_writing(&self) -> bool {
        !self.state().writes.is_empty()
    }

    /// What came and went since this was last asked.
    pub(crate) fn take_moved(&self) -> Moved {
        std::mem::take(&mut self.state().moved)
    }

    /// How old copies get.
    pub(crate) fn ages(&self) -> Ages {
        self.state().watched.read()
    }

    pub(crate) fn used(&self) -> Used {
        let state = self.state();
        let mut used = Used { bytes: state.pool.granted_bytes, blocks: state.attic.copies(), ..Used::default() };
        for class in &state.classes {
            let live = class.shard.live_entries();
            used.blocks += u64::from(class.shard.resident());
            used.leased_bytes += live.len() as u64 * class.shape.slot_bytes();
            used.bytes -= u64::from(class.unused()) * class.shape.slot_bytes();
        }
        used
    }

    /// True when no block of a namespace is in memory or on the disk, as far as that can be told now.
    pub(crate) fn is_empty(&self, namespace: &Namespace) -> bool {
        let on_disk =
            self.disk.as_ref().is_some_and(|disk| disk.state() != DiskState::Ready || disk.bytes_of(namespace) > 0);
        let state = self.state();
        let in_class =
            |class: &Class| class.shard.census(namespace) != Census::default() || class.shard.has_open(namespace);
        !on_disk && !state.classes.iter().any(in_class)
    }

    /// Where a block is, or why it is not there.
    pub(crate) fn find(&self, class: ClassId, key: &CopyKey) -> Result<Tier, MissReason> {
        let below = self.below(std::slice::from_ref(key));
        let state = self.state();
        let accept =
            if key.form.is_lossless() { Accept::Exact } else { Accept::AtLeast(state.class(class).shape.form) };
        let (tiers, miss) = state.peek(class, std::slice::from_ref(key), &below, accept);
        tiers.first().copied().ok_or(miss.unwrap_or(MissReason::NeverStored))
    }

    /// What is known of a block that is not there.
    pub(crate) fn gone(&self, class: ClassId, key: &CopyKey) -> Gone {
        let now = self.now();
        let ago = |then: Now| now.since(then) / 1_000_000;
        let dropped = self.disk.as_ref().and_then(|disk| disk.dropped(key));
        let state = self.state();
        let shard = &state.class(class).shard;
        Gone {
            ghost: shard.ghost(key).map(|ghost| (named(ghost.tier), ago(ghost.when))),
            forgotten_ms: shard.forgotten_until().map(ago),
            dropped_ms: dropped.map(|ago| ago.as_secs() * 1000),
        }
    }

    /// Takes in what the disk ends, until `is_over`.
    pub(crate) fn collect_disk(&self, counters: &Counters, is_over: &dyn Fn() -> bool) {
        let Some(disk) = &self.disk else {
            return;
        };
        let mut ended = Vec::new();
        while !is_over() {
            disk.wait(LOOK_MILLIS);
            disk.poll(&mut ended);
            if ended.is_empty() {
                continue;
            }
            let brought: Vec<Brought> = ended.drain(..).map(Brought::new).collect();
            let now = self.now();
            let mut state = self.state();
            for (operation, time) in brought.into_iter().filter_map(|brought| brought.feed(disk, &mut state, now)) {
                counters.took(operation, time);
            }
            drop(state);
            self.ended.notify_all();
        }
    }

    /// Waits until everything published is on the disk, or so long; then saves its index.
    pub(crate) fn close(&self, limit: Duration) {
        let until = Instant::now() + limit.mul_f32(0.6);
        let mut state = self.state();
        while !(state.writes.is_empty() && state.deferred.is_empty()) && Instant::now() < until {
            self.resume_writes(&mut state);
            state = self.wait(state, Duration::from_millis(LOOK_MILLIS));
        }
        drop(state);
        if let Some(disk) = &self.disk {
            disk.close(u64::try_from((limit / 3).as_millis()).unwrap_or(u64::MAX));
        }
    }
}
