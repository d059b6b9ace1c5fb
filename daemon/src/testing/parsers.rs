//! What reads bytes that stood outside of the daemon before it started, for tests that feed it anything.

use cache_core::hash::{Namespace, TenantId};
use cache_core::payload::BlockShape;

use crate::server::{listed, manager};

/// One line of the list of namespaces beside a store.
pub fn namespaces_line(namespace: &Namespace, tenant: &TenantId) -> [u8; listed::LINE_BYTES] {
    listed::line(namespace, tenant)
}

/// What such a list says, damaged or not.
pub fn namespaces(list: &[u8]) -> Vec<(Namespace, TenantId)> {
    listed::read(list).found
}

/// Under which name a service manager keeps the first extent of a class; `None` when its shape is too long for one.
pub fn extent_name(shape: &BlockShape, slots: u32) -> Option<String> {
    manager::extent_name(&[0xab; 16], 1, shape, slots)
}

/// Shape and slots of an extent by its name; `None` when it is not the name of one.
pub fn extent_of_name(name: &str) -> Option<(BlockShape, u32)> {
    manager::extent_of_name(name)
}
