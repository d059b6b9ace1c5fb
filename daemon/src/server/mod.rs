//! The service: a Unix socket over one cache of host arena and disk, and what operators see of it.
//!
//! | file | part |
//! |---|---|
//! | `error` | why it does not serve |
//! | `listen` | the socket: who may connect, one daemon a socket |
//! | `incoming` | its frames as they come in |
//! | `session` | one connection: requests in, answers out, everything given back at its end |
//! | `staging` | a connection's memory for blocks on their way in |
//! | `cache` | classes over arena and disk behind one mutex: what requests do |
//! | `ages` | how old copies in the arena get, for operators |
//! | `attic` | extents of the daemon before, whose blocks are brought back |
//! | `manager` | the service manager, which keeps them in between |
//! | `class` | the blocks of one shape: slots, shard, share of the budget |
//! | `driver` | performs a shard's actions on arena and disk |
//! | `namespaces`, `listed` | whose blocks: manifests, tenants, what differs; the list of it beside the store |
//! | `quota` | what tenants may have |
//! | `paced` | answers on their way out, each by its time |
//! | `requests` | what became of named requests, for `explain` |
//! | `scrub` | blocks in memory checked again, at a pace |
//! | `signals` | the signals that end it |
//! | `statistics` | the endpoint for operators beside it |
//! | `told` | what operators are told: figures, and why blocks were not there |
//! | `touch` | memory committed ahead of its use |
//! | `users` | who a user id stands for |
//!
//! **Threads.** One for each connection, since its requests are answered in order and most take microseconds; one that takes in what the disk ends; one that
//! keeps time (pins that expire) and scrubs; one that touches memory ahead of its use; the HTTP endpoint has a runtime of its own. A thread that works for all and panics ends the daemon.

mod ages;
mod attic;
mod cache;
mod class;
mod driver;
mod error;
mod incoming;
pub(crate) mod listed;
mod listen;
pub(crate) mod manager;
mod namespaces;
mod paced;
mod quota;
mod requests;
mod scrub;
mod session;
mod signals;
mod staging;
mod statistics;
mod told;
mod touch;
mod users;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cache_core::buffer::PAGE_BYTES;
use cache_core::hash::{Namespace, TenantId};
use cache_core::key::CopyKey;
use cache_core::manifest::Manifest;
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use cache_core::units::Tier;
use disk_tier::{DiskConfig, DiskState, DiskTier};

use crate::config::Config;
use crate::http::Endpoint;
use crate::server::attic::Attic;
use crate::server::cache::{Aside, Asked, Cache, Leased, Patience};
use crate::server::class::{ClassId, Pool};
use crate::server::listed::List;
use crate::server::listen::Listener;
use crate::server::manager::Manager;
use crate::server::namespaces::Namespaces;
use crate::server::requests::Requests;
use crate::stats::{
    Amount, BlockStory, Client, Counters, Disk, Explanation, Gauges, Process, Snapshot, Source, State, TierUse,
};
use crate::testing::{Planted, Point, Testing};

pub use error::ServeError;
use signals::Signals;
use statistics::{Http, serve_http};

/// How long an orderly end may take.
pub const DRAIN_MAX: Duration = Duration::from_secs(10);
/// Staging memory with which a connection begins, in bytes.
const FIRST_STAGING_BYTES: u64 = 256 << 10;
/// The smallest usual record on the disk: its index is made for as many as fit the budget.
const RECORD_BYTES: u64 = 256 << 10;

/// Everything that the threads share.
pub(crate) struct Server {
    config: Config,
    pub(crate) planted: Planted,
    /// Names this run.
    pub(crate) id: [u8; 16],
    started: Instant,
    pub(crate) cache: Cache,
    pub(crate) counters: Counters,
    namespaces: Mutex<Namespaces>,
    requests: Mutex<Requests>,
    connected: Mutex<BTreeMap<u64, Client>>,
    /// A connection has ended.
    fewer: Condvar,
    draining: AtomicBool,
    /// The time for a good end has passed.
    over: AtomicBool,
    ended: Mutex<Sender<End>>,
}

/// Why the daemon ends.
enum End {
    /// A signal, or a client's request.
    Asked,
    Panicked(String),
}

/// An error with its causes, in one line.
pub(crate) fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = format!("failed to {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Serves until SIGTERM, SIGINT or a client's `Drain`; then ends in good order within [`DRAIN_MAX`]. The socket appears once connections are accepted.
/// Errors: [`ServeError`].
pub fn serve(config: Config) -> Result<(), ServeError> {
    serve_with(config, Testing::default())
}

/// As [`serve`], with switches for tests.
pub fn serve_with(config: Config, testing: Testing) -> Result<(), ServeError> {
    let (sender, receiver) = mpsc::channel();
    // Before anything is opened: of two daemons on one socket or store the second one touches nothing.
    let listener = Listener::claim(&config.socket, &config.allow_uids)?;
    let endpoint = config.http.map(Endpoint::bind).transpose()?;
    let manager = Manager::here().map(Arc::new);
    let server = Server::open(config, testing, manager.clone(), sender)?;
    let signals = Signals::take(&server).map_err(ServeError::Start)?;
    let http = endpoint.map(|endpoint| serve_http(&server, endpoint)).transpose().map_err(ServeError::Start)?;
    let mut threads = Vec::new();
    if server.cache.disk().is_some() {
        let collecting = Arc::clone(&server);
        threads.push(server.spawn("disk-ends", move || {
            collecting.cache.collect_disk(&collecting.counters, &|| {
                collecting.planted.strike(Point::DiskEnds);
                collecting.is_closed()
            });
        })?);
    }
    let keeping = Arc::clone(&server);
    threads.push(server.spawn("keeper", move || keeping.keep())?);
    if server.config.touch_ahead_bytes > 0 {
        let touching = Arc::clone(&server);
        threads.push(server.spawn("toucher", move || {
            touch::touch(&touching.cache, touching.config.touch_ahead_bytes, &|| {
                touching.planted.strike(Point::Toucher);
                touching.is_ending()
            });
        })?);
    }
    let accepting = Arc::clone(&server);
    let listener = Arc::new(listener);
    let accepted = Arc::clone(&listener);
    listener.show()?;
    tracing::info!(socket = %server.config.socket.display(), "serving");
    threads.push(server.spawn("accept", move || accepted.accept(&accepting))?);
    manager.iter().for_each(|manager| manager.ready());
    let end = wait(&receiver);
    manager.iter().for_each(|manager| manager.stopping());
    listener.hide();
    server.end(http);
    signals.give_back();
    // They see that the daemon is ending, and hold its socket and its store as long as they live.
    threads.into_iter().for_each(|thread| thread.join().expect("a panic was told of, not passed on"));
    match end {
        End::Asked => Ok(()),
        End::Panicked(thread) => Err(ServeError::Panicked { thread }),
    }
}

fn wait(receiver: &Receiver<End>) -> End {
    receiver.recv().unwrap_or(End::Asked)
}

impl Server {
    fn open(
        config: Config,
        testing: Testing,
        manager: Option<Arc<Manager>>,
        ended: Sender<End>,
    ) -> Result<Arc<Server>, ServeError> {
        let Testing { medium, planted } = testing;
        let disk = config.disk.as_ref().map(|folder| {
            let settings = DiskConfig {
                admission: config.disk_admission,
                io: config.disk_io,
                record_bytes: RECORD_BYTES,
                ..DiskConfig::new(store_bytes(&config))
            };
            let opened = match medium {
                Some(medium) => DiskTier::over(medium, settings),
                None => DiskTier::open(folder, settings),
            };
            opened.map_err(|source| ServeError::Disk { folder: folder.clone(), source })
        });
        let disk = disk.transpose()?;
        let mut id = [0; 16];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| ServeError::Start(error.into()))?;
        let mut pool = Pool::new(config.host_mem_bytes, staging_bytes(&config));
        // The other half is for what comes, and for clients.
        let (attic, attic_bytes) = Attic::adopt(manager, id, host_tier::take_inherited(), config.host_mem_bytes / 2);
        pool.take_attic(attic_bytes);
        let cache = Cache::new(pool, attic, disk, planted.clone());
        let namespaces = namespaces_of(&config, &cache)?;
        Ok(Arc::new(Server {
            cache,
            config,
            planted,
            id,
            started: Instant::now(),
            counters: Counters::default(),
            namespaces: Mutex::new(namespaces),
            requests: Mutex::default(),
            connected: Mutex::default(),
            fewer: Condvar::new(),
            draining: AtomicBool::new(false),
            over: AtomicBool::new(false),
            ended: Mutex::new(ended),
        }))
    }

    /// A thread that works for all: if it panics, the daemon ends.
    fn spawn(
        self: &Arc<Server>,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<JoinHandle<()>, ServeError> {
        let server = Arc::clone(self);
        let thread = name.to_owned();
        let body = move || {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                server.tell(End::Panicked(thread));
            }
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(body).map_err(ServeError::Start)
    }

    fn tell(&self, end: End) {
        // Nobody listens once the daemon is ending.
        let _ = lock(&self.ended).send(end);
    }

    /// Begins the end: nothing new is taken.
    pub(crate) fn drain(&self) {
        if !self.draining.swap(true, Ordering::SeqCst) {
            self.tell(End::Asked);
        }
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// True when no connection can give the disk anything to do any more.
    fn is_closed(&self) -> bool {
        let is_over = self.over.load(Ordering::SeqCst);
        is_over || self.is_ending() && lock(&self.connected).is_empty() && !self.cache.is_writing()
    }

    /// Ends: connections first, then what waits for the disk, then the index.
    fn end(self: &Arc<Server>, http: Option<Http>) {
        self.draining.store(true, Ordering::SeqCst);
        // With what follows, at most nine tenths of the limit.
        let until = Instant::now() + DRAIN_MAX.mul_f32(0.4);
        let mut connected = lock(&self.connected);
        while !connected.is_empty() && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            connected = self.fewer.wait_timeout(connected, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(connected);
        self.close_disk(DRAIN_MAX / 2);
        self.over.store(true, Ordering::SeqCst);
        if let Some(Http { runtime, end }) = http {
            drop(end);
            runtime.shutdown_timeout(Duration::from_millis(500));
        }
    }

    /// Ends the disk in good order, or leaves it after so long: one that never answers holds its own threads up, and its store is sound all the same.
    fn close_disk(self: &Arc<Server>, limit: Duration) {
        let server = Arc::clone(self);
        let (ended, end) = mpsc::channel();
        let closing = std::thread::Builder::new().name("disk-close".to_owned()).spawn(move || {
            server.cache.close(limit);
            // The store is free once nobody has the server any more.
            drop(server);
            // Who waited may have given up.
            let _ = ended.send(());
        });
        match closing {
            Ok(_) if end.recv_timeout(limit).is_err() => tracing::warn!("the disk does not end in time and is left"),
            Ok(_) => {}
            Err(_) => self.cache.close(limit),
        }
    }

    /// Keeps time until the end.
    fn keep(&self) {
        let mut scrubber = scrub::Scrubber::new(self.config.scrub_bytes_s);
        while !self.is_ending() {
            std::thread::sleep(scrub::PACE);
            self.planted.strike(Point::Keeper);
            self.cache.keep_time();
            scrubber.go_on(&self.cache, &self.counters);
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn hello_timeout(&self) -> Duration {
        Duration::from_millis(self.config.hello_timeout_ms.max(1))
    }

    pub(crate) fn lease_ttl(&self) -> Duration {
        Duration::from_millis(self.config.lease_ttl_ms)
    }

    pub(crate) fn idle_timeout(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.config.idle_timeout_ms)).filter(|limit| !limit.is_zero())
    }

    pub(crate) fn default_deadline_ms(&self) -> u32 {
        self.config.deadline_ms
    }

    /// How long a call may take that asks for `asked_ms`, 0 for the default.
    pub(crate) fn deadline(&self, asked_ms: u32) -> Duration {
        Duration::from_millis(u64::from(if asked_ms == 0 { self.config.deadline_ms } else { asked_ms }))
    }

    /// Staging memory that a connection may have, in bytes.
    pub(crate) fn staging_max(&self) -> u64 {
        staging_bytes(&self.config)
    }

    /// Takes the staging memory with which a connection begins out of the host budget: most look blocks up and store none. Errors: that it does not
    /// hold it.
    pub(crate) fn take_staging(&self) -> Result<u64, String> {
        let bytes = FIRST_STAGING_BYTES.min(self.staging_max());
        match self.cache.take_staging(bytes) {
            true => Ok(bytes),
            false => Err(no_staging(bytes)),
        }
    }

    /// Takes staging memory for images of `least_bytes` each. Errors: that the host budget does not hold it.
    pub(crate) fn share_staging(&self, least_bytes: u64) -> Result<u64, String> {
        let least_bytes = least_bytes.next_multiple_of(PAGE_BYTES);
        self.cache.share_staging(least_bytes, self.staging_max()).ok_or_else(|| no_staging(least_bytes))
    }

    pub(crate) fn give_staging_back(&self, bytes: u64) {
        self.cache.give_staging_back(bytes);
    }

    /// A connection has said who it is.
    pub(crate) fn introduced(&self, session: u64, client: Client) {
        lock(&self.connected).insert(session, client);
    }

    /// What a connection holds now.
    pub(crate) fn report_holdings(&self, session: u64, leases: usize, reservations: usize, staging_bytes: u64) {
        if let Some(client) = lock(&self.connected).get_mut(&session) {
            (client.leases, client.reservations) = (leases as u64, reservations as u64);
            client.staging_bytes = staging_bytes;
        }
    }

    /// A connection has ended.
    pub(crate) fn left(&self, session: u64, staging_bytes: u64) {
        self.cache.give_staging_back(staging_bytes);
        lock(&self.connected).remove(&session);
        self.fewer.notify_all();
    }

    /// Lets a connection in, if there are not too many.
    pub(crate) fn enters(&self, session: u64) -> bool {
        let mut connected = lock(&self.connected);
        let fits = connected.len() < self.config.clients_max as usize;
        if fits {
            connected.insert(session, Client::default());
        }
        fits
    }

    pub(crate) fn amount(&self, class: ClassId, blocks: u64) -> Amount {
        Amount::of(blocks, &self.cache.state().class(class).shape)
    }

    /// A block of this class was taken in.
    pub(crate) fn inserted(&self, class: ClassId, namespace: &Namespace) {
        let shape = self.cache.state().class(class).shape;
        let raw16 = BlockShape { form: cache_core::form::Form::Raw16, ..shape };
        self.counters.accepted(self.amount(class, 1), shape.form, raw16.slot_bytes());
        lock(&self.namespaces).has_blocks(namespace);
    }

    /// Notes a namespace that a client has opened.
    pub(crate) fn knows(&self, manifest: Manifest, tenant: TenantId) -> Namespace {
        let is_empty = |namespace: &Namespace| self.cache.is_empty(namespace);
        let namespace = lock(&self.namespaces).open(manifest, tenant, is_empty);
        self.cache.state().quotas.open(namespace, tenant, self.config.quota_bytes(&tenant));
        namespace
    }

    /// Makes sure that blocks of a namespace can be deleted with their tenant. Errors: a sentence; nothing may be stored then.
    pub(crate) fn lists(&self, namespace: &Namespace) -> Result<(), String> {
        lock(&self.namespaces).list(namespace)
    }

    /// Blocks of a namespace were found; after a restart that is the first that is known of it.
    pub(crate) fn found(&self, namespace: &Namespace) {
        lock(&self.namespaces).has_blocks(namespace);
    }

    /// The reason of a miss, as far as the namespace explains it.
    pub(crate) fn reason(&self, namespace: &Namespace, miss: Option<MissReason>) -> Option<MissReason> {
        let differs = || lock(&self.namespaces).differs(namespace).is_some();
        if miss == Some(MissReason::NeverStored) && differs() { Some(MissReason::Namespace) } else { miss }
    }

    pub(crate) fn delete_namespace(&self, namespace: Namespace) -> Result<(), String> {
        lock(&self.namespaces).delete(&namespace);
        self.cache.delete(namespace, &self.counters).map_err(|error| sentence(&error))
    }

    pub(crate) fn delete_tenant(&self, tenant: TenantId) -> Result<u32, String> {
        // Of a namespace that nobody has opened since the start it is not known whose it is.
        self.cache.close_attic();
        let all = lock(&self.namespaces).of(&tenant);
        all.iter().try_for_each(|namespace| self.delete_namespace(*namespace))?;
        Ok(all.len() as u32)
    }

    /// Brings blocks of the run back that the attic has, up to the first that is nowhere.
    pub(crate) fn bring_back(&self, asked: &Asked<'_>, patience: Patience<'_>) {
        let class = asked.parts.class.0;
        for link in asked.links {
            if !self.cache.has_attic() || patience.is_out() {
                return;
            }
            match self.cache.look_aside(class, &asked.parts.key(link.hash)) {
                Aside::Elsewhere { is_there: true } => {}
                Aside::Elsewhere { is_there: false } => return,
                Aside::Found(found) => {
                    if found.sealed.link != *link || !self.cache.bring_back(class, found, patience) {
                        return;
                    }
                }
            }
        }
    }
}

/// Budget of the store: the list of namespaces beside it has its part, unless that leaves less than a store can be.
fn store_bytes(config: &Config) -> u64 {
    let left = config.disk_size_bytes.saturating_sub(namespaces::LIST_BYTES_MAX);
    if left < DiskTier::minimum_bytes() { config.disk_size_bytes } else { left }
}

/// Staging memory that a client may have, whole pages.
fn staging_bytes(config: &Config) -> u64 {
    config.client_staging_bytes.next_multiple_of(PAGE_BYTES)
}

fn no_staging(bytes: u64) -> String {
    format!("host_mem has no {bytes} bytes left for this client's staging memory")
}

/// The namespaces that the store's list names; their tenants' quotas count from the start.
fn namespaces_of(config: &Config, cache: &Cache) -> Result<Namespaces, ServeError> {
    let Some(folder) = &config.disk else {
        return Ok(Namespaces::default());
    };
    let (list, names) = List::open(folder).map_err(|source| ServeError::Names { folder: folder.clone(), source })?;
    let mut state = cache.state();
    names.iter().for_each(|(namespace, tenant)| state.quotas.open(*namespace, *tenant, config.quota_bytes(tenant)));
    Ok(Namespaces::listed(list, &names))
}

/// Nothing here leaves half a change behind when it panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
