//! The cache in process: a device tier, a host tier and one manager shard behind one mutex.
//!
//! | file | part |
//! |---|---|
//! | `disk` | the disk under the slots, and bounce memory on the way there |
//! | `config` | what to open, and the arithmetic of the host budget |
//! | `state` | the shard, the sequences and their block tables |
//! | `driver` | performs the shard's actions on the tiers |
//! | `cache` | [`crate::cache::KvCache`] over the above |
//! | `explain` | why a block is or is not here |
//! | `parent` | a daemon below the device, in the place of host tier and disk |
//! | `extents` | host extents as a device sees them |
//! | `faults` | hooks with which tests take copies away (feature `testing`) |
//!
//! **Lock order**: `state`, then a tier's own locks, then the device's. The state mutex is held while an action's copies run, so a
//! `reserve` that demotes keeps other callers waiting for as long as its copies take; in exchange no other call ever sees a copy half
//! way. Leases and slots are dropped with or without the mutex: their owners never take it.
//!
//! **Places.** A host place holds a lease and is validated by `check`. A device place holds none: it is true until the next `reserve`,
//! `reopen` or `prefetch` of any sequence, which may move the block out. An engine that steps from one thread takes its places after
//! those calls; engines that share one cache between threads must keep their steps apart.
//!
//! **raw32** blocks (measurement) are never published: a commit keeps the block private to its sequence and in its device slot. Such a
//! sequence is not demoted; when it does not fit the device slots it gets `NoRoom`.

mod cache;
mod config;
mod disk;
mod driver;
mod explain;
mod extents;
#[cfg(feature = "testing")]
mod faults;
mod parent;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cache_core::hash::Namespace;
use cache_core::manager::Budgets;
use cache_core::payload::BlockShape;
use cache_core::store::Store;
use cache_core::units::Now;
use gpu_tier::attention::Attention;
use gpu_tier::device::ExtentId;
use gpu_tier::tier::{DeviceTier, DeviceTierConfig};
use host_tier::HostTier;

use crate::cache::CacheError;
use crate::client::Client;
use crate::embedded::config::HostPlan;
use crate::embedded::disk::{Disk, OpenTier};
use crate::embedded::driver::Driver;
use crate::embedded::parent::Parent;
use crate::embedded::state::State;

pub use config::{DaemonSettings, EmbeddedConfig};
pub use disk::{DiskSettings, DiskStatus, DiskStore, SharedStore, StoreSettings, Writes};
pub use disk_tier::io::IoChoice;
pub use disk_tier::{Admission, ByteStage, Damage, DiskError, DiskState, DiskTier, VerifyReport, bench};
pub use extents::ArenaExtent;

/// The cache in process. See [`crate::embedded`].
pub struct Embedded {
    shape: BlockShape,
    device: Arc<dyn Attention>,
    tiers: Tiers,
    /// Why there is no disk tier although one was asked for.
    absent: Option<String>,
    host_bytes: u64,
    /// Bytes of the host budget that the manager's index and the disk tier's own memory take.
    index_bytes: u64,
    started: Instant,
    // Lock order: see the module.
    state: Mutex<State>,
}

/// The tiers.
pub(crate) struct Tiers {
    device: DeviceTier<dyn Attention>,
    host: Option<Host>,
    disk: Option<Disk>,
    /// Instead of the two.
    parent: Option<Parent>,
}

/// The host tier and what the device calls its extents.
pub(crate) struct Host {
    tier: HostTier,
    extents: Vec<ExtentId>,
}

impl Embedded {
    /// Opens the tiers. Errors: [`CacheError::Budget`] when a budget does not hold one block with its metadata; whatever the device or
    /// the kernel refuses.
    pub fn open(config: EmbeddedConfig) -> Result<Embedded, CacheError> {
        Embedded::open_with(config, &|store, config| DiskTier::open(&store.directory, config))
    }

    fn open_with(config: EmbeddedConfig, open_tier: &OpenTier<'_>) -> Result<Embedded, CacheError> {
        let plan = HostPlan::of(&config);
        let EmbeddedConfig { device, shape, device_slots, host_bytes, disk } = config;
        let slot_bytes = shape.slot_bytes();
        if device_slots == 0 {
            return Err(CacheError::Budget {
                what: "a block in device memory",
                budget_bytes: 0,
                minimum_bytes: slot_bytes,
            });
        }
        let device_tier =
            DeviceTier::open(Arc::clone(&device), DeviceTierConfig { slots: device_slots, shape, rest_millis: 0 })?;
        let host = match host_bytes {
            0 => None,
            _ => Some(config::open_host(&device, &plan)?),
        };
        let (disk, absent) = match (&host, disk) {
            (Some(host), Some(settings)) => open_disk(&plan, host, &settings, open_tier)?,
            (None, Some(_)) => (None, Some("there is no host tier above it".to_owned())),
            (_, None) => (None, None),
        };
        let host_slots = host.as_ref().map_or(0, |host| {
            let capacity = host.tier.capacity();
            (capacity.slots - capacity.used_slots) as u32
        });
        let plan = HostPlan { below_entries: if disk.is_some() { plan.below_entries } else { 0 }, ..plan };
        Ok(Embedded {
            shape,
            device,
            tiers: Tiers { device: device_tier, host, disk, parent: None },
            absent,
            host_bytes,
            index_bytes: plan.split().index_bytes,
            started: Instant::now(),
            state: Mutex::new(State::new(plan.budgets(host_slots))),
        })
    }

    /// Opens a device tier over a daemon, which lends blocks and takes what is published. Without one that answers the cache works on its own until there is
    /// one. Errors: [`CacheError::Budget`] without a device slot; what the device refuses.
    pub fn over_daemon(
        device: Arc<dyn Attention>,
        shape: BlockShape,
        device_slots: u32,
        settings: DaemonSettings,
    ) -> Result<Embedded, CacheError> {
        let config = EmbeddedConfig { device, shape, device_slots, host_bytes: 0, disk: None };
        let mut cache = Embedded::open(config)?;
        let client = Client::open(settings.client, shape);
        cache.tiers.parent = Some(Parent::new(client, Arc::clone(&cache.device), settings.writes));
        let budgets = Budgets { device_slots, host_slots: 0, below_entries: settings.live_blocks };
        cache.state = Mutex::new(State::new(budgets));
        Ok(cache)
    }

    /// True while the daemon below is connected; `None` without one.
    pub fn is_daemon_connected(&self) -> Option<bool> {
        self.tiers.parent.as_ref().map(|parent| parent.client().is_connected())
    }

    /// What became of the disk tier.
    pub fn disk_status(&self) -> DiskStatus {
        match (&self.tiers.disk, &self.absent) {
            (Some(disk), _) => DiskStatus::Open(disk.tier().state()),
            (None, Some(reason)) => DiskStatus::Absent { reason: reason.clone() },
            (None, None) => DiskStatus::None,
        }
    }

    /// The store, for a second cache in this process; `None` when none is open. It is closed through the cache that opened it, after the
    /// others have drained theirs.
    pub fn share_store(&self) -> Option<SharedStore> {
        self.tiers.disk.as_ref().map(|disk| SharedStore(disk.port()))
    }

    /// The disk tier, if it is open.
    pub fn disk_tier(&self) -> Option<&DiskTier> {
        self.tiers.disk.as_ref().map(Disk::tier)
    }

    /// An orderly end of the disk tier: what waits to be written is written, the index is saved, both within the limit. The cache goes on
    /// without the disk. True when everything was written.
    pub fn close_disk(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let written = self.drain_disk(limit);
        if let Some(disk) = &self.tiers.disk {
            let left = until.saturating_duration_since(Instant::now());
            // A third of the time, at the least, is for the index.
            disk.tier().close(u64::try_from(left.max(limit / 3).as_millis()).unwrap_or(u64::MAX));
        }
        written
    }

    /// Writes what waits to be written, within the limit; true when that was everything.
    pub fn drain_disk(&self, limit: Duration) -> bool {
        let Some(disk) = &self.tiers.disk else {
            return true;
        };
        let until = Instant::now() + limit;
        let mut written = false;
        while !written && Instant::now() < until {
            let mut state = self.state();
            Driver::new(self, &mut state, Namespace([0; 32])).tend_below();
            written = state.disk.is_idle();
            drop(state);
            if !written {
                disk.tier().wait(10);
            }
        }
        written
    }

    /// The device that the blocks are on.
    pub fn device(&self) -> &Arc<dyn Attention> {
        &self.device
    }

    /// Checks the manager's books against each other; for tests. Errors: the first contradiction, in words.
    pub fn audit(&self) -> Result<(), String> {
        self.state().audit()
    }

    fn now(&self) -> Now {
        Now(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// A caller that panicked under the lock leaves counts that may be off, never bytes: generations and sums vouch for those.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type OpenDisk = (Option<Disk>, Option<String>);

fn open_disk(
    plan: &HostPlan,
    host: &Host,
    settings: &DiskSettings,
    open_tier: &OpenTier<'_>,
) -> Result<OpenDisk, CacheError> {
    let reserved = config::set_aside(plan, host, settings.pieces_min)?;
    Ok(match Disk::open(plan.shape, settings, host, reserved, open_tier)? {
        Ok(disk) => (Some(disk), None),
        Err(reason) => (None, Some(reason)),
    })
}
