//! What one connection holds, and what it is answered.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use cache_core::hash::Namespace;
use cache_core::hasher::DigestMap;
use cache_core::key::CopyKey;
use cache_core::manager::EntryId;
use cache_core::store::{Lease, Sealed};
use cache_core::units::Tier;

use crate::server::class::ClassId;

/// All leases of a connection are looked at so many times at most in the time that one may last: one that is over ends that much later.
const LOOKS: u32 = 64;

/// What one connection holds.
#[derive(Default)]
pub(crate) struct Holdings {
    pub(super) leases: DigestMap<u64, Held>,
    pub(super) reservations: HashMap<u64, Reservation>,
    next: u64,
    /// No lease is older.
    oldest: Option<Instant>,
    /// When all leases were looked at.
    looked: Option<Instant>,
}

pub(super) struct Held {
    pub(super) class: ClassId,
    pub(super) entry: EntryId,
    pub(super) lease: Lease,
    pub(super) since: Instant,
}

#[derive(Clone, Copy)]
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

    /// Takes a lease in; returns its number.
    pub(super) fn lease(&mut self, held: Held) -> u64 {
        if self.leases.is_empty() {
            self.oldest = Some(held.since);
        }
        let number = self.number();
        self.leases.insert(number, held);
        number
    }

    /// When a lease may be over that is older than `age` by then; `None` while there are none. Looks at none of them.
    pub(crate) fn due(&self, age: Duration) -> Option<Instant> {
        let oldest = self.oldest.filter(|_| !self.leases.is_empty())?;
        Some((oldest + age).max(self.looked.map_or(oldest, |looked| looked + age / LOOKS)))
    }

    /// Takes the leases out that are older than `age`, once that is due.
    pub(super) fn take_over(&mut self, now: Instant, age: Duration) -> Vec<Held> {
        if self.due(age).is_none_or(|due| now < due) {
            return Vec::new();
        }
        let over = self.leases.extract_if(|_, held| held.since + age <= now).map(|(_, held)| held).collect();
        self.oldest = self.leases.values().map(|held| held.since).min();
        self.looked = Some(now);
        over
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
