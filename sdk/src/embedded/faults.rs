//! Fault hooks: what evictions, lease limits and hostile neighbours do to a reader, on demand.

use cache_core::chain::Link;
use cache_core::hash::Namespace;
use cache_core::key::CopyKey;
use cache_core::store::{Lend, Lookup, Resident};
use disk_tier::{DiskConfig, DiskError, DiskTier};

use crate::cache::CacheError;
use crate::embedded::{Embedded, EmbeddedConfig, extents};

impl Embedded {
    /// Opens the cache over a disk tier that the caller makes, for instance over a medium that fails. Errors: those of
    /// [`Embedded::open`].
    pub fn open_over(
        config: EmbeddedConfig,
        tier: &dyn Fn(DiskConfig) -> Result<DiskTier, DiskError>,
    ) -> Result<Embedded, CacheError> {
        Embedded::open_with(config, &|_, config| tier(config))
    }

    /// Takes every access to the arena's reader mapping away: from now on an attention kernel that reads a block in place dies. For a
    /// strict device, where nothing but the copy engine may touch the arena.
    pub fn protect_host_reader(&self) -> Result<(), CacheError> {
        if self.device.info().in_place {
            return Err(CacheError::Host("protect the reader mapping: the device attends in place".to_owned()));
        }
        for extent in self.tiers.host.iter().flat_map(|host| host.tier.extents()) {
            extent
                .protect_reader()
                .map_err(|error| CacheError::Host(format!("protect the reader mapping: {error}")))?;
        }
        Ok(())
    }

    /// Fault hook: takes a host copy away under its readers, as an eviction, a lease's time limit or a client's hang-up does. The
    /// manager is not told; it finds out as it would then. Returns false when there was no such copy.
    pub fn revoke_host(&self, namespace: Namespace, link: Link) -> bool {
        let key = CopyKey::exact(namespace, link.hash);
        let Some(host) = &self.tiers.host else {
            return false;
        };
        let there = matches!(host.tier.lookup(&key), Lookup::Hit(_));
        host.tier.revoke(&key);
        there
    }

    /// Fault hook: as [`Embedded::revoke_host`], and the slot's bytes are overwritten at once, as its next tenant would. Whoever reads
    /// it now reads other bytes and must notice.
    pub fn overwrite_host(&self, namespace: Namespace, link: Link) -> bool {
        self.overwrite_host_copy(&CopyKey::exact(namespace, link.hash))
    }

    /// Fault hook: [`Embedded::overwrite_host`] for a copy of any form and provenance.
    pub fn overwrite_host_copy(&self, key: &CopyKey) -> bool {
        let Some(host) = &self.tiers.host else {
            return false;
        };
        // The lease makes the slot rest, so that nobody else writes it meanwhile.
        let Lookup::Hit(lease) = host.tier.lookup(key) else {
            return false;
        };
        host.tier.revoke(key);
        let place = lease.place();
        extents::overwrite(&host.tier.extents()[place.extent as usize], place);
        true
    }
}
