//! The shared host arena: memfd extents that clients map read-only, slots, generations, leases.
//!
//! Leases are a courtesy; validation is the safety. A reader takes (place, generation), copies or computes, and then looks at the slot's
//! generation word again: if it moved, the result is thrown away and the block is a miss.
#![deny(unsafe_code)]

mod adopted;
mod arena;
mod error;
mod extent;
mod generation;
mod inherited;
mod layout;
mod lent;
mod mapping;
mod staging;
mod tier;

/// The atomics of the generation protocol, under one name so that its tests can put a model checker's in their place.
mod sync {
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
}

pub use adopted::{Adopted, AdoptedCopy};
pub use error::HostError;
pub use extent::Extent;
pub use inherited::{promised, take_inherited};
pub use layout::{EXTENT_BYTES_MAX, Layout};
pub use lent::LentExtent;
pub use staging::Staging;
pub use tier::{HostConfig, HostCounters, HostTier};
