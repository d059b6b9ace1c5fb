//! Calls of those who look after a daemon.

use std::time::Instant;

use cache_core::hash::{Namespace, TenantId};

use super::link::{CallError, Link};
use super::{CONNECT_MAX, Client, ClientSettings};
use crate::wire::{DeleteNamespace, DeleteTenant, Explain, Reply, Request, Text};

/// What is to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted<'a> {
    /// Every namespace of the tenant with this salt.
    Salt(&'a str),
    /// One namespace, by its digest.
    Namespace([u8; 32]),
}

/// Deletes on a connection of its own; returns how many namespaces the daemon knew. When this returns, nobody finds any of it any more, on the disk and
/// after a restart too; leases on it are lost. Errors: [`CallError::NotConnected`] where no daemon answers.
pub fn delete(settings: &ClientSettings, what: Deleted<'_>) -> Result<u32, CallError> {
    let connected = Link::connect(&settings.socket, &settings.name, CONNECT_MAX);
    let (mut link, _) = connected.map_err(|error| match error {
        CallError::Io(_) => CallError::NotConnected,
        error => error,
    })?;
    let request = match what {
        Deleted::Salt(salt) => Request::DeleteTenant(DeleteTenant { tenant: TenantId::of_salt(Some(salt)) }),
        Deleted::Namespace(digest) => Request::DeleteNamespace(DeleteNamespace { namespace: Namespace(digest) }),
    };
    link.call(&request, Instant::now() + settings.deadline, |reply, _| deleted(&reply))
}

fn deleted(reply: &Reply<'_>) -> Option<u32> {
    match reply {
        Reply::DeleteTenant(deleted) => Some(deleted.namespaces),
        Reply::DeleteNamespace(_) => Some(1),
        _ => None,
    }
}

impl Client {
    /// Deletes a namespace, as [`delete`] does.
    pub fn delete_namespace(&self, namespace: Namespace) -> Result<(), CallError> {
        let request = Request::DeleteNamespace(DeleteNamespace { namespace });
        self.shared.call(|connected, until| connected.link.call(&request, until, |reply, _| deleted(&reply)).map(drop))
    }

    /// Deletes all namespaces of a tenant, as [`delete`] does; returns how many the daemon knew.
    pub fn delete_tenant(&self, tenant: TenantId) -> Result<u32, CallError> {
        let request = Request::DeleteTenant(DeleteTenant { tenant });
        self.shared.call(|connected, until| connected.link.call(&request, until, |reply, _| deleted(&reply)))
    }

    /// Why the blocks of a request were there or not, as JSON: of one that [`Client::tag`] named, here or on another connection.
    pub fn explain(&self, request: &str) -> Result<String, CallError> {
        let request = Request::Explain(Explain::Request(Text::new(request)?));
        self.shared.call(|connected, until| {
            connected.link.call(&request, until, |reply, _| match reply {
                Reply::Explain(text) => Some(text.0.to_owned()),
                _ => None,
            })
        })
    }
}
