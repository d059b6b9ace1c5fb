//! A client of the daemon: its calls as functions, its memory mapped, its death survived.
//!
//! | file | part |
//! |---|---|
//! | `admin` | calls of those who look after a daemon |
//! | `link` | one connection, calls with deadlines |
//! | `places` | writing: places in staging memory, reserved, committed or given up |
//! | `mod` | the client: connects again, opens its namespaces again, gives leases back |
//!
//! **Never in the way.** A call has a deadline. One that fails ends the connection; from then on every call fails at once, and a thread of the client's connects
//! again in the background. Blocks that were leased stay readable: their memory is mapped here, and nobody writes it any more.
//!
//! **Connections** are numbered. A lease, a reservation, a class and an extent belong to the connection that they came from, and mean nothing on
//! another one.

mod admin;
mod link;
mod places;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cache_core::chain::Link as ChainLink;
use cache_core::form::{Accept, Provenance};
use cache_core::hash::{BlockHash, Namespace, TenantId};
use cache_core::key::GroupId;
use cache_core::manifest::Manifest;
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use cache_core::units::{Generation, SlotIndex, Tier};
use host_tier::{LentExtent, Staging};

pub use admin::{Deleted, delete};
pub use link::CallError;
use link::Link;
pub use places::{Committing, Place, Places};

use crate::wire::{
    AcceptId, Acquire, BATCH_MAX, Batch, ClassId, Empty, Forgo, Hit, KeyParts, LeaseId, Lookup, MapExtent,
    OpenNamespace, Release, Reply, Report, Request, Run, Tag, Text,
};

/// How long the thread waits between two attempts to connect.
const RETRY: Duration = Duration::from_millis(100);
/// How long a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// What the client calls itself, at most 64 bytes.
    pub name: String,
    /// How long a call may take, loads from the disk among them.
    pub deadline: Duration,
}

/// A client of one daemon, for blocks of one shape. See [`crate::client`].
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    settings: ClientSettings,
    shape: BlockShape,
    /// Lock order: before `returned`.
    state: Mutex<State>,
    /// Somebody wants the thread to look.
    wake: Condvar,
    /// Leases that nobody holds any more, by connection; given back with the next call.
    returned: Mutex<Vec<(u64, LeaseId)>>,
    ends: AtomicBool,
}

#[derive(Default)]
struct State {
    connected: Option<Connected>,
    /// Number of the newest connection.
    connections: u64,
    /// Namespaces that were named here, to be opened on each connection when they are first used.
    named: HashMap<Namespace, Arc<(Manifest, TenantId)>>,
}

struct Connected {
    number: u64,
    link: Link,
    staging: Arc<Staging>,
    /// Memory for this client's blocks was asked for.
    is_staged: bool,
    classes: HashMap<Namespace, ClassId>,
    extents: HashMap<u32, Arc<LentExtent>>,
}

/// A block that the daemon lends. Dropping it gives the lease back.
pub struct Lent {
    shared: Arc<Shared>,
    connection: u64,
    lease: LeaseId,
    class: ClassId,
    extent: Arc<LentExtent>,
    /// Number of the extent in its class.
    number: u32,
    /// Its slot: by its number in the class, and in the extent.
    slot: SlotIndex,
    local: u32,
    offset: u64,
    generation: Generation,
    tier: Tier,
}

impl Drop for Lent {
    fn drop(&mut self) {
        lock(&self.shared.returned).push((self.connection, self.lease));
    }
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lent({:?}, {:?}, connection {})", self.slot, self.generation, self.connection)
    }
}

impl Lent {
    /// The memory that it is in, mapped read-only.
    pub fn extent(&self) -> &Arc<LentExtent> {
        &self.extent
    }

    /// Which memory that is: connection and number of the extent.
    pub fn extent_name(&self) -> (u64, u32) {
        (self.connection, self.number)
    }

    /// First byte of its slot image in the extent.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Its slot, by its number in the class.
    pub fn slot(&self) -> SlotIndex {
        self.slot
    }

    /// The generation under which it was lent.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Where the daemon found it.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// True when all that was read from it so far is the block. Called after the copy or kernel has completed.
    pub fn is_current(&self) -> bool {
        self.extent.is_still(self.local, self.generation)
    }

    /// Copies bytes of the slot image; false when they mean nothing, since the slot has changed hands. `offset` and length are multiples of 8.
    pub fn read(&self, offset: u64, target: &mut [u8]) -> bool {
        self.extent.read(self.local, offset, target);
        self.is_current()
    }
}

/// Consecutive blocks of one chain, and the copies that are meant.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Where the hashes count; named by [`Client::name`].
    pub namespace: Namespace,
    /// What the copies were computed after.
    pub provenance: Provenance,
    /// The blocks; at most [`BATCH_MAX`] in one call are asked for, and the answer ends there.
    pub links: &'a [ChainLink],
}

impl Client {
    /// Connects. Without a daemon the client works as well: every call fails until there is one.
    pub fn open(settings: ClientSettings, shape: BlockShape) -> Client {
        let shared = Arc::new(Shared {
            settings,
            shape,
            state: Mutex::default(),
            wake: Condvar::new(),
            returned: Mutex::default(),
            ends: AtomicBool::new(false),
        });
        shared.try_connect(CONNECT_MAX.min(shared.settings.deadline));
        let thread = Arc::clone(&shared);
        // Without the thread it stays with the connection it has.
        let _ = std::thread::Builder::new().name("daemon-link".into()).spawn(move || thread.keep_connected());
        Client { shared }
    }

    /// The shape of its blocks.
    pub fn shape(&self) -> BlockShape {
        self.shared.shape
    }

    /// True while there is a connection.
    pub fn is_connected(&self) -> bool {
        self.shared.state().connected.is_some()
    }

    /// Names a namespace: from then on its blocks can be asked for.
    pub fn name(&self, manifest: &Manifest, tenant: TenantId) -> Namespace {
        let namespace = manifest.namespace(tenant);
        self.shared.state().named.entry(namespace).or_insert_with(|| Arc::new((manifest.clone(), tenant)));
        namespace
    }

    /// Says which request of its own the calls that follow belong to, for `kvtier explain`; empty for none.
    pub fn tag(&self, request: &str) -> Result<(), CallError> {
        let request = Request::Tag(Tag { request: Text::new(request)? });
        self.shared.call(|connected, until| {
            connected.link.call(&request, until, |reply, _| matches!(reply, Reply::Tag(_)).then_some(()))
        })
    }

    /// The tiers of the longest run that is there, and why the next block is not.
    pub fn lookup(&self, wanted: &Wanted<'_>, accept: Accept) -> Result<(Vec<Tier>, Option<MissReason>), CallError> {
        let hashes = hashes(wanted);
        self.shared.in_namespace(wanted, |connected, parts, until| {
            let accept = accept_id(accept)?;
            let request = Request::Lookup(Lookup { parts, accept, hashes: Batch::new(&hashes)? });
            connected.link.call(&request, until, |reply, _| match reply {
                Reply::Lookup(found) => Some((found.tiers.iter().map(|tier| Tier::from(*tier)).collect(), found.miss)),
                _ => None,
            })
        })
    }

    /// Has the daemon bring the longest run that is there into its host arena, without waiting for it; so many blocks are there or on their way.
    pub fn prefetch(&self, wanted: &Wanted<'_>, accept: Accept) -> Result<u32, CallError> {
        let hashes = hashes(wanted);
        self.shared.in_namespace(wanted, |connected, parts, limit| {
            let request =
                Request::Prefetch(Acquire { parts, accept: accept_id(accept)?, run: run_of(wanted, &hashes)? });
            connected.link.call(&request, limit, |reply, _| match reply {
                Reply::Prefetch(prefetched) => Some(prefetched.accepted),
                _ => None,
            })
        })
    }

    /// Says that the engine computes these blocks, since fetching them would take longer: misses (`not_worth_it`) in the daemon's statistics, and in what it
    /// explains of the request that was named by [`Client::tag`].
    pub fn forgo(&self, wanted: &Wanted<'_>) -> Result<(), CallError> {
        let hashes = hashes(wanted);
        self.shared.in_namespace(wanted, |connected, parts, until| {
            let request = Request::Forgo(Forgo { parts, run: run_of(wanted, &hashes)? });
            connected.link.call(&request, until, |reply, _| matches!(reply, Reply::Forgo(_)).then_some(()))
        })
    }

    /// Leases the longest run that is there, and says why the next block is not. Waits for what has to come from the disk.
    pub fn acquire(&self, wanted: &Wanted<'_>, accept: Accept) -> Result<(Vec<Lent>, Option<MissReason>), CallError> {
        let hashes = hashes(wanted);
        let shared = &self.shared;
        shared.in_namespace(wanted, |connected, parts, until| {
            let run = run_of(wanted, &hashes)?;
            let request = Request::Acquire(Acquire { parts, accept: accept_id(accept)?, run });
            let (hits, miss) = connected.link.call(&request, until, |reply, _| match reply {
                Reply::Acquire(found) => Some((found.hits.to_vec(), found.miss)),
                _ => None,
            })?;
            let mut lent: Vec<Lent> = Vec::with_capacity(hits.len());
            for hit in &hits {
                // Mostly the same as the one before.
                let last = lent.last().filter(|last| last.number == hit.extent.get());
                let extent = match last.map(|last| Arc::clone(&last.extent)) {
                    Some(extent) => Ok(extent),
                    None => shared.extent(connected, parts.class, hit, until),
                };
                // What cannot be used is given back with everything behind it.
                match extent.and_then(|extent| shared.lend(connected, parts.class, hit, extent)) {
                    Ok(block) => lent.push(block),
                    Err(error) if error.is_harmless() => {
                        let rest = hits[lent.len()..].iter().map(|hit| (connected.number, hit.lease));
                        lock(&shared.returned).extend(rest);
                        return Ok((lent, Some(MissReason::LeaseLost)));
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok((lent, miss))
        })
    }

    /// Gives back now what has been dropped; otherwise the next call does.
    pub fn give_back(&self) -> Result<(), CallError> {
        self.shared.call(|connected, until| connected.link.flush(until))
    }

    /// The daemon's statistics, as the JSON of its `/stats`.
    pub fn stats(&self) -> Result<String, CallError> {
        self.shared.call(|connected, until| {
            connected.link.call(&Request::Stats(Empty), until, |reply, _| match reply {
                Reply::Stats(text) => Some(text.0.to_owned()),
                _ => None,
            })
        })
    }

    /// Makes the daemon end in good order.
    pub fn drain(&self) -> Result<(), CallError> {
        self.shared.call(|connected, until| {
            connected
                .link
                .call(&Request::Drain(Empty), until, |reply, _| matches!(reply, Reply::Drain(_)).then_some(()))
        })
    }

    /// Tells the daemon that a lent block was not what it should be.
    pub fn report(&self, lent: &Lent, reason: MissReason) {
        let report = Report { class: lent.class, slot: lent.slot, generation: lent.generation, reason };
        let request = Request::Report(report);
        // A daemon that does not hear of it finds it itself.
        let _ = self.shared.call(|connected, until| match connected.number == lent.connection {
            true => connected.link.call(&request, until, |reply, _| matches!(reply, Reply::Report(_)).then_some(())),
            false => Ok(()),
        });
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        // Lent blocks that are still held keep their memory; their leases end with the connection.
        self.shared.state().connected = None;
        self.shared.wake.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// One call on the connection that there is; a failure ends it.
    fn call<T>(&self, call: impl FnOnce(&mut Connected, Instant) -> Result<T, CallError>) -> Result<T, CallError> {
        // All that is asked on the way counts, and that others were first.
        let until = Instant::now() + self.settings.deadline;
        let mut state = self.state();
        let connected = state.connected.as_mut().ok_or(CallError::NotConnected)?;
        let result = self.give_back(connected, until).and_then(|()| call(connected, until));
        if result.as_ref().is_err_and(|error| !error.is_harmless() && !matches!(error, CallError::NotConnected)) {
            state.connected = None;
            self.wake.notify_all();
        }
        result
    }

    /// A call about blocks of a namespace, which is opened first if it is not yet.
    fn in_namespace<T>(
        &self,
        wanted: &Wanted<'_>,
        call: impl FnOnce(&mut Connected, KeyParts, Instant) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let named = self.state().named.get(&wanted.namespace).cloned();
        let named = named.ok_or(CallError::Memory { reason: "a namespace that was not named".to_owned() })?;
        self.call(|connected, until| {
            let class = match connected.classes.get(&wanted.namespace) {
                Some(class) => *class,
                None => {
                    let (manifest, tenant) = (*named).clone();
                    let open = OpenNamespace { tenant, manifest, group: GroupId(0), shape: self.shape };
                    let request = Request::OpenNamespace(Box::new(open));
                    let opened = connected.link.call(&request, until, |reply, _| match reply {
                        Reply::OpenNamespace(opened) => Some(opened),
                        _ => None,
                    })?;
                    if opened.namespace != wanted.namespace || opened.slot_bytes != self.shape.slot_bytes() {
                        return Err(CallError::Memory {
                            reason: "the daemon makes another namespace of it".to_owned(),
                        });
                    }
                    connected.classes.insert(opened.namespace, opened.class);
                    opened.class
                }
            };
            let parts = KeyParts {
                namespace: wanted.namespace,
                provenance: wanted.provenance,
                class,
                group: GroupId(0),
                form: self.shape.form_map(),
            };
            call(connected, parts, until)
        })
    }

    /// Gives leases back that nobody holds any more.
    fn give_back(&self, connected: &mut Connected, until: Instant) -> Result<(), CallError> {
        let returned = std::mem::take(&mut *lock(&self.returned));
        let leases: Vec<LeaseId> = returned
            .into_iter()
            .filter(|(connection, _)| *connection == connected.number)
            .map(|(_, lease)| lease)
            .collect();
        for (number, some) in leases.chunks(BATCH_MAX).enumerate() {
            // With the call that comes now, or with the next one if the connection lives until then.
            connected.link.say(&Request::Release(Release { leases: Batch::new(some)? }))?;
            if leases.len() > BATCH_MAX {
                // Requests that pile up would fill the socket while nobody reads the answers.
                connected.link.flush(until).inspect_err(|_| {
                    let rest = leases.iter().skip((number + 1) * BATCH_MAX).map(|lease| (connected.number, *lease));
                    lock(&self.returned).extend(rest);
                })?;
            }
        }
        Ok(())
    }

    /// The extent that a hit is in, mapped if the hit is the first from there.
    fn extent(
        &self,
        connected: &mut Connected,
        class: ClassId,
        hit: &Hit,
        until: Instant,
    ) -> Result<Arc<LentExtent>, CallError> {
        let number = hit.extent.get();
        let slot_bytes = self.shape.slot_bytes();
        if !connected.extents.contains_key(&number) {
            let request = Request::MapExtent(MapExtent { class, extent: number });
            let (layout, descriptor) = connected.link.call(&request, until, |reply, descriptor| match reply {
                Reply::MapExtent(layout) => Some((layout, descriptor)),
                _ => None,
            })?;
            let descriptor = descriptor.ok_or_else(|| wrong("no descriptor came with the extent"))?;
            let extent = LentExtent::map(&descriptor, layout.slots, layout.first_slot, slot_bytes)
                .map_err(|error| wrong(&error.to_string()))?;
            if extent.bytes() != layout.bytes || extent.slot_offset(0) != Some(layout.slots_offset) {
                return Err(wrong("the extent is laid out in another way"));
            }
            connected.extents.insert(number, Arc::new(extent));
        }
        Ok(Arc::clone(&connected.extents[&number]))
    }

    /// Makes a lent block of a hit in this extent.
    fn lend(
        self: &Arc<Shared>,
        connected: &Connected,
        class: ClassId,
        hit: &Hit,
        extent: Arc<LentExtent>,
    ) -> Result<Lent, CallError> {
        let slot = SlotIndex(hit.slot.get());
        let local = extent.local(slot).ok_or_else(|| wrong("a slot that the extent does not have"))?;
        let offset = hit.offset.get();
        if extent.slot_offset(local) != Some(offset) {
            return Err(wrong("a slot that lies elsewhere"));
        }
        Ok(Lent {
            shared: Arc::clone(self),
            connection: connected.number,
            lease: hit.lease,
            class,
            extent,
            number: hit.extent.get(),
            slot,
            local,
            offset,
            generation: Generation(hit.generation.get()),
            tier: hit.tier.into(),
        })
    }

    fn try_connect(&self, limit: Duration) {
        let Ok((link, descriptor)) = Link::connect(&self.settings.socket, &self.settings.name, limit) else {
            return;
        };
        let Ok(staging) = Staging::map(descriptor, link.hello().staging_bytes) else {
            return;
        };
        let mut state = self.state();
        state.connections += 1;
        let number = state.connections;
        state.connected = Some(Connected {
            number,
            link,
            staging: Arc::new(staging),
            is_staged: false,
            classes: HashMap::new(),
            extents: HashMap::new(),
        });
    }

    /// Connects again whenever there is no connection, until the client goes.
    fn keep_connected(&self) {
        while !self.ends.load(Ordering::SeqCst) {
            if self.state().connected.is_none() {
                self.try_connect(CONNECT_MAX);
            }
            let mut state = self.state();
            if self.ends.load(Ordering::SeqCst) {
                state.connected = None;
            }
            drop(self.wake.wait_timeout(state, RETRY).unwrap_or_else(PoisonError::into_inner));
        }
    }
}

fn wrong(reason: &str) -> CallError {
    CallError::Memory { reason: reason.to_owned() }
}

fn hashes(wanted: &Wanted<'_>) -> Vec<BlockHash> {
    wanted.links.iter().take(BATCH_MAX).map(|link| link.hash).collect()
}

fn run_of<'a>(wanted: &Wanted<'_>, hashes: &'a [BlockHash]) -> Result<Run<'a>, CallError> {
    let first = wanted.links.first();
    let parent = first.and_then(|link| link.parent);
    Ok(Run::new(first.map_or(0, |link| link.depth), parent, hashes)?)
}

fn accept_id(accept: Accept) -> Result<AcceptId, CallError> {
    AcceptId::of(accept).ok_or(CallError::Memory { reason: "an acceptance that has no name".to_owned() })
}

/// No code here panics between two changes that belong together.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
