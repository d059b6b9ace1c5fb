//! Whose blocks: the manifests and tenants of the namespaces that clients have opened since the daemon was started.

use std::collections::HashMap;

use cache_core::hash::{Namespace, TenantId};
use cache_core::manifest::Manifest;

/// Namespaces that are remembered; later ones work as well, but their misses are explained by less.
const KNOWN_MAX: usize = 4096;

struct Known {
    manifest: Manifest,
    tenant: TenantId,
    /// Something was stored or found in it since the daemon was started.
    has_blocks: bool,
}

#[derive(Default)]
pub(crate) struct Namespaces(HashMap<Namespace, Known>);

impl Namespaces {
    pub(crate) fn open(&mut self, manifest: Manifest, tenant: TenantId) -> Namespace {
        let namespace = manifest.namespace(tenant);
        if self.0.len() < KNOWN_MAX {
            self.0.entry(namespace).or_insert(Known { manifest, tenant, has_blocks: false });
        }
        namespace
    }

    /// Blocks of it were stored or found: other namespaces are compared with it.
    pub(crate) fn has_blocks(&mut self, namespace: &Namespace) {
        if let Some(known) = self.0.get_mut(namespace) {
            known.has_blocks = true;
        }
    }

    pub(crate) fn delete(&mut self, namespace: &Namespace) {
        if let Some(known) = self.0.get_mut(namespace) {
            known.has_blocks = false;
        }
    }

    pub(crate) fn tenant(&self, namespace: &Namespace) -> Option<TenantId> {
        self.0.get(namespace).map(|known| known.tenant)
    }

    /// The namespaces of a tenant.
    pub(crate) fn of(&self, tenant: &TenantId) -> Vec<Namespace> {
        self.0.iter().filter(|(_, known)| known.tenant == *tenant).map(|(namespace, _)| *namespace).collect()
    }

    /// Of a namespace without blocks: the one field in which it differs from the nearest of the same tenant that has some. `None` when none
    /// differs in one field alone. Another tenant's namespaces are never compared: a miss tells nobody what others store.
    pub(crate) fn differs(&self, namespace: &Namespace) -> Option<&'static str> {
        let own = self.0.get(namespace).filter(|known| !known.has_blocks)?;
        let others = self.0.values().filter(|known| known.has_blocks && known.tenant == own.tenant);
        let mut fields = others.filter_map(|other| match own.manifest.differing(&other.manifest)[..] {
            [field] => Some(field),
            _ => None,
        });
        fields.next()
    }
}
