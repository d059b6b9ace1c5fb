//! What an engine of another language needs of the daemon: blocks of its own bytes, by hashes of its own. The C and the Python
//! interface are made of this.
//!
//! | file | part |
//! |---|---|
//! | `identity` | what makes blocks compatible, as an engine states it |
//! | `error` | why a call was not done, as a code and a sentence |
//! | `memory` | bytes moved between memory that others write: the module's unsafe code |
//! | `slabs` | where an engine keeps keys and values |
//! | `lossy` | the other forms: a block's elements out of an engine's memory, encoded, and back |
//! | `transfer` | load and store: whole blocks between slabs and the daemon |
//! | `leases` | reading in place |
//! | `places` | writing in place |
//! | `mod` | the plugin: a client for one namespace |
//!
//! **Blocks** are in the form `opaque`: so many bytes a layer, which only the engine can read. What was put comes back, bit for
//! bit, or not at all. An engine that [states](Lossy) where keys and values are in these bytes can have them stored in a lossy form instead: then what
//! comes back is what the form makes of them, and calls that show bytes in place are refused.
//!
//! **Chains** are the engine's: hashes of 32 bytes, each the child of the one before; `parent` and `depth` say what stands before
//! the first one.
//!
//! **Forks.** A connection is not shared between processes. A process that was forked gets [`PluginError::Forked`] from
//! everything it calls, and leaves its
//! parent's connection alone.

mod error;
mod identity;
mod leases;
mod lossy;
mod memory;
mod places;
mod slabs;
mod transfer;

use std::sync::Arc;

use cache_core::chain::Link;
use cache_core::form::{Accept, Lineage, Provenance};
use cache_core::hash::{BlockHash, Namespace, TenantId};
use cache_core::key::CopyKey;
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use cache_core::units::Tier;

pub use error::{PluginError, codes};
pub use identity::{Identity, RopeStated};
pub use leases::{Leased, Leases};
pub use lossy::{Lossy, Strides};
pub use memory::Region;
pub use places::{Outcome, PlaceState, Reservations};
pub use slabs::{SKIP, Slabs};

use self::lossy::{Coder, TAINTED};
use crate::client::{Client, ClientSettings, Wanted};
use crate::wire::BATCH_MAX;

/// What was found of a run of blocks: the tiers of those that are there, and why the next one is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Of the longest run that is there, the first block first.
    pub tiers: Vec<Tier>,
    /// `None` when all were there.
    pub miss: Option<MissReason>,
}

/// Where a run of blocks stands in its chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// The block before the first one; `None` exactly when `depth` is 0.
    pub parent: Option<BlockHash>,
    /// Blocks before the first one.
    pub depth: u32,
}

/// A client of one daemon for the blocks of one namespace.
pub struct Plugin {
    /// `None` only while it is dropped.
    client: Option<Client>,
    process: u32,
    namespace: Namespace,
    /// Bytes of a layer of a stored block in the engine's memory.
    layer_bytes: u64,
    /// For a lossy form.
    coder: Option<Coder>,
}

impl Plugin {
    /// Connects. Without a daemon the plugin is there as well: every call fails until there is one. Errors: [`PluginError::Usage`].
    pub fn open(settings: ClientSettings, identity: &Identity) -> Result<Plugin, PluginError> {
        let (manifest, shape) = identity.manifest()?;
        let client = Client::open(settings, shape);
        let namespace = client.name(&manifest, TenantId::of_salt(identity.salt.as_deref()));
        let coder = identity.lossy.map(|lossy| Coder::new(shape, lossy));
        let layer_bytes = identity.layer_bytes.into();
        Ok(Plugin { client: Some(client), process: std::process::id(), namespace, layer_bytes, coder })
    }

    /// The shape of its blocks.
    pub fn shape(&self) -> BlockShape {
        self.open_client().shape()
    }

    /// Bytes of one layer of a stored block in the engine's memory, keys and values together.
    pub fn layer_bytes(&self) -> u64 {
        self.layer_bytes
    }

    /// The digest of everything that makes blocks compatible.
    pub fn namespace(&self) -> Namespace {
        self.namespace
    }

    /// True while there is a connection. False in a process that was forked.
    pub fn is_connected(&self) -> bool {
        self.client().is_ok_and(Client::is_connected)
    }

    /// The tiers of the longest run that is there. Touches nothing.
    pub fn lookup(&self, hashes: &[BlockHash], before: Before) -> Result<Found, PluginError> {
        let (client, links) = (self.client()?, links(hashes, before)?);
        let mut found = Found { tiers: Vec::with_capacity(links.len()), miss: None };
        for part in links.chunks(BATCH_MAX) {
            let (tiers, miss) = client.lookup(&self.wanted(part), self.accept())?;
            let is_short = tiers.len() < part.len();
            found.tiers.extend(tiers);
            if is_short {
                found.miss = Some(miss.unwrap_or(MissReason::NeverStored));
                break;
            }
        }
        Ok(found)
    }

    /// Has the daemon bring the longest run that is there into its memory, without waiting for it; so many are there or on their way.
    pub fn prefetch(&self, hashes: &[BlockHash], before: Before) -> Result<u32, PluginError> {
        let (client, links) = (self.client()?, links(hashes, before)?);
        let mut accepted = 0;
        for part in links.chunks(BATCH_MAX) {
            let now = client.prefetch(&self.wanted(part), self.accept())?;
            accepted += now;
            if (now as usize) < part.len() {
                break;
            }
        }
        Ok(accepted)
    }

    /// Gets ready to store: the daemon makes room for blocks of this shape, and the memory through which they go is committed. The first stores do it
    /// otherwise, and take longer.
    pub fn prepare(&self) -> Result<(), PluginError> {
        Ok(self.client()?.prepare(self.namespace)?)
    }

    /// The daemon's statistics as JSON.
    pub fn stats(&self) -> Result<String, PluginError> {
        Ok(self.client()?.stats()?)
    }

    /// Why the blocks of a request that [`Plugin::tag`] named were there or not, as JSON.
    pub fn explain(&self, request: &str) -> Result<String, PluginError> {
        Ok(self.client()?.explain(request)?)
    }

    /// Says which request of the engine's the calls that follow belong to; empty for none. At most 64 bytes.
    pub fn tag(&self, request: &str) -> Result<(), PluginError> {
        Ok(self.client()?.tag(request)?)
    }

    fn client(&self) -> Result<&Client, PluginError> {
        if self.is_forked() { Err(PluginError::Forked) } else { Ok(self.open_client()) }
    }

    fn open_client(&self) -> &Client {
        self.client.as_ref().expect("it is there until the plugin is dropped")
    }

    /// True in a process that got this by a fork.
    fn is_forked(&self) -> bool {
        self.process != std::process::id()
    }

    fn wanted<'a>(&self, links: &'a [Link]) -> Wanted<'a> {
        Wanted { namespace: self.namespace, provenance: self.provenance(), links }
    }

    fn key(&self, link: &Link) -> CopyKey {
        let (form, provenance) = (self.shape().form_map(), self.provenance());
        CopyKey { form, provenance, ..CopyKey::exact(self.namespace, link.hash) }
    }

    /// What its copies are encoded from.
    fn lineage(&self) -> Lineage {
        Lineage::of(self.shape().form_map())
    }

    fn provenance(&self) -> Provenance {
        if self.coder.is_some() { TAINTED } else { Provenance::EXACT }
    }

    /// Its own copies and no others.
    fn accept(&self) -> Accept {
        if self.coder.is_some() { Accept::AtLeast(self.shape().form) } else { Accept::Exact }
    }

    /// For calls that show bytes where they lie. Errors: [`PluginError::Usage`] for those that are encoded.
    fn expect_plain(&self) -> Result<(), PluginError> {
        match self.coder {
            None => Ok(()),
            Some(_) => {
                let form = self.shape().form;
                Err(PluginError::usage(format!(
                    "blocks in {form} are encoded: they are loaded and stored, not read or written in place"
                )))
            }
        }
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if self.is_forked() {
            // Its locks may have been held when the process was copied, and its thread was not copied.
            std::mem::forget(self.client.take());
        }
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plugin({:?})", self.namespace)
    }
}

/// A plugin that leases and places keep alive.
pub type SharedPlugin = Arc<Plugin>;

fn links(hashes: &[BlockHash], before: Before) -> Result<Vec<Link>, PluginError> {
    if before.parent.is_some() != (before.depth > 0) {
        return Err(PluginError::usage("a depth above 0 comes with a parent, and a depth of 0 without one"));
    }
    let last = u32::try_from(hashes.len()).ok().and_then(|count| before.depth.checked_add(count));
    if last.is_none() {
        return Err(PluginError::usage("a chain has fewer than 2^32 blocks"));
    }
    let parents = std::iter::once(before.parent).chain(hashes.iter().copied().map(Some));
    let links = hashes.iter().zip(parents).zip(before.depth..);
    Ok(links.map(|((hash, parent), depth)| Link { hash: *hash, parent, depth }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_goes_on_behind_its_parent() {
        let [a, b, c] = [1, 2, 3].map(|byte| BlockHash([byte; 32]));
        let run = links(&[b, c], Before { parent: Some(a), depth: 7 }).unwrap();
        assert_eq!(run[0], Link { hash: b, parent: Some(a), depth: 7 });
        assert_eq!(run[1], Link { hash: c, parent: Some(b), depth: 8 });
        assert_eq!(links(&[a], Before::default()).unwrap()[0], Link { hash: a, parent: None, depth: 0 });
        for before in [Before { parent: Some(a), depth: 0 }, Before { parent: None, depth: 1 }] {
            assert!(matches!(links(&[b], before), Err(PluginError::Usage { .. })));
        }
        assert!(links(&[b, c], Before { parent: Some(a), depth: u32::MAX - 1 }).is_err());
    }
}
