//! Calls of those who look after a daemon.

use cache_core::hash::{Namespace, TenantId};

use super::Client;
use super::link::CallError;
use crate::wire::{DeleteNamespace, DeleteTenant, Reply, Request};

impl Client {
    /// Deletes a namespace. When this returns, nobody finds any of it any more, on the disk and after a restart too; leases on it are lost.
    pub fn delete_namespace(&self, namespace: Namespace) -> Result<(), CallError> {
        let request = Request::DeleteNamespace(DeleteNamespace { namespace });
        self.shared.call(|connected, limit| {
            let done = |reply: Reply<'_>, _| matches!(reply, Reply::DeleteNamespace(_)).then_some(());
            connected.link.call(&request, limit, done)
        })
    }

    /// Deletes all namespaces of a tenant, as [`Client::delete_namespace`]; returns how many the daemon knew.
    pub fn delete_tenant(&self, tenant: TenantId) -> Result<u32, CallError> {
        let request = Request::DeleteTenant(DeleteTenant { tenant });
        self.shared.call(|connected, limit| {
            connected.link.call(&request, limit, |reply, _| match reply {
                Reply::DeleteTenant(deleted) => Some(deleted.namespaces),
                _ => None,
            })
        })
    }
}
