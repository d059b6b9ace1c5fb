//! What one connection holds, and what it is answered.

use std::collections::HashMap;
use std::time::Instant;

use cache_core::hash::Namespace;
use cache_core::hasher::DigestMap;
use cache_core::key::CopyKey;
use cache_core::manager::EntryId;
use cache_core::store::{Lease, Sealed};
use cache_core::units::Tier;

use crate::server::class::ClassId;

/// What one connection holds.
#[derive(Default)]
pub(crate) struct Holdings {
    pub(super) leases: DigestMap<u64, Held>,
    pub(super) reservations: HashMap<u64, Reservation>,
    next: u64,
}

pub(super) struct Held {
    pub(super) class: ClassId,
    pub(super) entry: EntryId,
    pub(super) lease: Lease,
    pub(super) since: Instant,
}

pub(super) struct Reservation {
    pub(super) class: ClassId,
    pub(super) sealed: Sealed,
    /// First byte of the image in the connection's staging memory.
    pub(super) offset: u64,
}

impl Holdings {
    pub(crate) fn leases(&self) -> usize {
        self.leases.len()
    }

    pub(crate) fn reservations(&self) -> usize {
        self.reservations.len()
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// One block that was acquired.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leased {
    /// Its number among the connection's leases.
    pub(crate) lease: u64,
    pub(crate) key: CopyKey,
    pub(crate) extent: u32,
    /// Its number in the class.
    pub(crate) slot: u32,
    /// First byte of the slot image in the extent.
    pub(crate) offset: u64,
    pub(crate) generation: u64,
    /// Where it was found.
    pub(crate) tier: Tier,
}

/// Answer to a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reserved {
    /// The image may be written to staging memory.
    Granted {
        reservation: u64,
    },
    Present,
    PendingElsewhere,
    Full,
    /// The tenant has its bytes.
    Quota,
}

/// Answer to a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    Inserted { class: ClassId, namespace: Namespace },
    Present { class: ClassId },
    FailedCheck,
    Full,
    Unknown,
}
