//! The cache in process: a device tier, a host tier and one manager shard behind one mutex.
//!
//! | file | part |
//! |---|---|
//! | `config` | what to open, and the arithmetic of the host budget |
//! | `state` | the shard, the sequences and their block tables |
//! | `driver` | performs the shard's actions on the tiers |
//! | `cache` | [`crate::cache::KvCache`] over the above |
//! | `explain` | why a block is or is not here |
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
mod driver;
mod explain;
mod extents;
#[cfg(feature = "testing")]
mod faults;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cache_core::manager::Budgets;
use cache_core::payload::BlockShape;
use cache_core::units::Now;
use gpu_tier::attention::Attention;
use gpu_tier::device::ExtentId;
use gpu_tier::tier::{DeviceTier, DeviceTierConfig};
use host_tier::HostTier;

use crate::cache::CacheError;
use crate::embedded::state::State;

pub use config::EmbeddedConfig;

/// The cache in process. See [`crate::embedded`].
pub struct Embedded {
    shape: BlockShape,
    device: Arc<dyn Attention>,
    tiers: Tiers,
    host_bytes: u64,
    /// Bytes of the host budget that the manager's index takes.
    index_bytes: u64,
    started: Instant,
    // Lock order: see the module.
    state: Mutex<State>,
}

/// The two tiers.
pub(crate) struct Tiers {
    device: DeviceTier<dyn Attention>,
    host: Option<Host>,
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
        let EmbeddedConfig { device, shape, device_slots, host_bytes } = config;
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
        let split = config::split(&shape, device_slots, host_bytes);
        let host = match host_bytes {
            0 => None,
            _ => Some(config::open_host(&device, shape, device_slots, host_bytes, split.tier_bytes)?),
        };
        let host_slots = host.as_ref().map_or(0, |host| host.tier.layout().slots());
        Ok(Embedded {
            shape,
            device,
            tiers: Tiers { device: device_tier, host },
            host_bytes,
            index_bytes: split.index_bytes,
            started: Instant::now(),
            state: Mutex::new(State::new(Budgets { device_slots, host_slots })),
        })
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
