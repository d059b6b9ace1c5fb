//! Whose blocks: manifests and tenants of the namespaces that clients have opened, and of those that the store's list names.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use cache_core::hash::{Namespace, TenantId};
use cache_core::manifest::Manifest;

use crate::server::listed::{LINE_BYTES, List};

/// Namespaces that are known at once. One more takes the place of one without blocks; if there is none, nothing is stored in it.
const KNOWN_MAX: usize = 16_384;
/// Most bytes of the store's list.
pub(crate) const LIST_BYTES_MAX: u64 = (KNOWN_MAX * LINE_BYTES) as u64;
/// Bytes of all manifests that are kept; misses of later ones are explained by less.
const MANIFESTS_BYTES_MAX: usize = 16 << 20;

struct Known {
    /// Unknown after a restart, until a client opens it.
    manifest: Option<Arc<Manifest>>,
    tenant: TenantId,
    /// Something was stored or found in it since the daemon was started.
    has_blocks: bool,
    /// It stands in the store's list.
    is_listed: bool,
}

#[derive(Default)]
pub(crate) struct Namespaces {
    known: HashMap<Namespace, Known>,
    /// Each manifest once, whatever tenants it has.
    manifests: HashSet<Arc<Manifest>>,
    manifests_bytes: usize,
    /// Without a store there is nothing to be remembered.
    list: Option<List>,
}

/// About what a manifest takes in memory.
fn bytes_of(manifest: &Manifest) -> usize {
    let Manifest { architecture, dtype, groups, rope, adapter, numerics, .. } = manifest;
    let texts = [architecture, dtype, &rope.scaling, adapter, numerics].map(String::len);
    let groups = groups.iter().map(|group| size_of_val(group) + size_of_val(&group.layers[..]) + 1024);
    size_of::<Manifest>() + texts.iter().sum::<usize>() + groups.sum::<usize>()
}

impl Namespaces {
    /// Those of a store's list, and the list for those to come.
    pub(crate) fn listed(list: List, names: &[(Namespace, TenantId)]) -> Namespaces {
        let known = |tenant| Known { manifest: None, tenant, has_blocks: false, is_listed: true };
        let known = names.iter().map(|(namespace, tenant)| (*namespace, known(*tenant))).collect();
        Namespaces { known, list: Some(list), ..Namespaces::default() }
    }

    /// Notes a namespace that a client opens. `is_empty`: whether a namespace has no block, in no tier.
    pub(crate) fn open(
        &mut self,
        manifest: Manifest,
        tenant: TenantId,
        is_empty: impl Fn(&Namespace) -> bool,
    ) -> Namespace {
        let namespace = manifest.namespace(tenant);
        if self.known.get(&namespace).is_some_and(|known| known.manifest.is_some()) {
            return namespace;
        }
        if self.known.len() >= KNOWN_MAX {
            self.make_room(is_empty);
        }
        if self.known.len() < KNOWN_MAX || self.known.contains_key(&namespace) {
            let manifest = self.share(manifest);
            let known = Known { manifest: None, tenant, has_blocks: false, is_listed: false };
            self.known.entry(namespace).or_insert(known).manifest = manifest;
        }
        namespace
    }

    fn share(&mut self, manifest: Manifest) -> Option<Arc<Manifest>> {
        if let Some(shared) = self.manifests.get(&manifest) {
            return Some(Arc::clone(shared));
        }
        let bytes = bytes_of(&manifest);
        (self.manifests_bytes + bytes <= MANIFESTS_BYTES_MAX).then(|| {
            self.manifests_bytes += bytes;
            let shared = Arc::new(manifest);
            self.manifests.insert(Arc::clone(&shared));
            shared
        })
    }

    /// Forgets namespaces that have no blocks, in the list as well, and manifests that nobody has any more.
    fn make_room(&mut self, is_empty: impl Fn(&Namespace) -> bool) {
        let keeps: HashSet<Namespace> = self.known.keys().copied().filter(|namespace| !is_empty(namespace)).collect();
        if let Some(list) = &mut self.list {
            let listed = self.known.iter().filter(|(namespace, known)| known.is_listed && keeps.contains(*namespace));
            if let Err(error) = list.rewrite(listed.map(|(namespace, known)| (namespace, &known.tenant))) {
                tracing::warn!(%error, "the list of namespaces could not be written anew");
                return;
            }
        }
        self.known.retain(|namespace, _| keeps.contains(namespace));
        self.manifests.retain(|manifest| Arc::strong_count(manifest) > 1);
        self.manifests_bytes = self.manifests.iter().map(|manifest| bytes_of(manifest)).sum();
    }

    /// Makes sure that a namespace can be deleted with its tenant before anything is stored in it. Errors: a sentence.
    pub(crate) fn list(&mut self, namespace: &Namespace) -> Result<(), String> {
        let Some(known) = self.known.get_mut(namespace) else {
            return Err(format!("{KNOWN_MAX} namespaces with blocks are known, and no more are taken"));
        };
        let Some(list) = self.list.as_mut().filter(|_| !known.is_listed) else {
            return Ok(());
        };
        let failed = |error: io::Error| format!("the namespace cannot be listed beside the store: {error}");
        list.add(namespace, &known.tenant).map_err(failed)?;
        known.is_listed = true;
        Ok(())
    }

    /// Blocks of it were stored or found: other namespaces are compared with it.
    pub(crate) fn has_blocks(&mut self, namespace: &Namespace) {
        if let Some(known) = self.known.get_mut(namespace) {
            known.has_blocks = true;
        }
    }

    pub(crate) fn delete(&mut self, namespace: &Namespace) {
        if let Some(known) = self.known.get_mut(namespace) {
            known.has_blocks = false;
        }
    }

    /// The namespaces of a tenant.
    pub(crate) fn of(&self, tenant: &TenantId) -> Vec<Namespace> {
        self.known.iter().filter(|(_, known)| known.tenant == *tenant).map(|(namespace, _)| *namespace).collect()
    }

    /// Of a namespace without blocks: the one field in which it differs from the nearest of the same tenant that has some. `None` when none
    /// differs in one field alone. Another tenant's namespaces are never compared: a miss tells nobody what others store.
    pub(crate) fn differs(&self, namespace: &Namespace) -> Option<&'static str> {
        let own = self.known.get(namespace).filter(|known| !known.has_blocks)?;
        let manifest = own.manifest.as_ref()?;
        let others = self.known.values().filter(|known| known.has_blocks && known.tenant == own.tenant);
        let mut fields = others.filter_map(|other| match manifest.differing(other.manifest.as_ref()?)[..] {
            [field] => Some(field),
            _ => None,
        });
        fields.next()
    }
}

#[cfg(test)]
mod tests {
    use cache_core::hash::WeightsId;
    use cache_core::manifest::{HeadSlice, RopeIdentity};

    use super::*;

    fn manifest(number: u64, text_bytes: usize) -> Manifest {
        Manifest {
            weights: WeightsId([1; 32]),
            architecture: format!("{number}{}", "x".repeat(text_bytes)),
            dtype: String::new(),
            block_tokens: 16,
            groups: Vec::new(),
            head_slice: HeadSlice::WHOLE,
            rope: RopeIdentity { dimensions: 0, base_bits: 0, scaling: String::new() },
            adapter: String::new(),
            numerics: String::new(),
        }
    }

    #[test]
    fn namespaces_and_manifests_are_bounded_and_those_with_blocks_stay() {
        let mut namespaces = Namespaces::default();
        let tenant = |number: u64| TenantId::of_salt(Some(&number.to_string()));
        let first = namespaces.open(manifest(0, 0), tenant(0), |_| false);
        for number in 1..KNOWN_MAX as u64 + 10 {
            namespaces.open(manifest(0, 0), tenant(number), |namespace| *namespace != first);
        }
        assert!(namespaces.known.len() <= KNOWN_MAX);
        assert_eq!(namespaces.of(&tenant(0)), [first]);
        assert_eq!(namespaces.manifests.len(), 1);
        for number in 0..2 * (MANIFESTS_BYTES_MAX as u64 / 60_000) {
            namespaces.open(manifest(number, 60_000), tenant(0), |_| false);
        }
        assert!(namespaces.manifests_bytes <= MANIFESTS_BYTES_MAX);
        let held: usize = namespaces.manifests.iter().map(|manifest| bytes_of(manifest)).sum();
        assert_eq!(held, namespaces.manifests_bytes);
    }

    #[test]
    fn what_no_more_can_be_known_of_is_not_stored() {
        let mut namespaces = Namespaces::default();
        for number in 0..KNOWN_MAX as u64 {
            namespaces.open(manifest(number, 0), TenantId::of_salt(None), |_| false);
        }
        let one_more = namespaces.open(manifest(u64::MAX, 0), TenantId::of_salt(None), |_| false);
        assert!(namespaces.list(&one_more).is_err());
    }
}
