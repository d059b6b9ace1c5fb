//! Numbers, and their names. None is ever used for another thing.

use std::ffi::{CStr, c_char};

use cache_core::miss::MissReason;
use cache_core::units::Tier;
use kvtier_sdk::plugin::{Outcome, PlaceState, PluginError, codes};

/// How a call ended.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kvtier_code {
    /// It was done.
    KVTIER_OK = 0,
    /// There is no daemon, or it went away during the call. The client connects again by itself.
    KVTIER_NOT_CONNECTED = 1,
    /// Not done in time.
    KVTIER_DEADLINE = 2,
    /// Reading or writing the socket failed in another way.
    KVTIER_IO = 3,
    /// The daemon speaks another language.
    KVTIER_PROTOCOL = 4,
    /// The daemon sends memory that cannot be used.
    KVTIER_MEMORY = 5,
    /// Arguments that make no sense: the caller's bug.
    KVTIER_USAGE = 6,
    /// Used across a fork. Each process opens a client of its own.
    KVTIER_FORKED = 7,
    /// Used after it was closed or committed.
    KVTIER_CLOSED = 8,
    /// The daemon refuses; the message says why.
    KVTIER_REFUSED = 9,
    /// As many calls are under way as the client takes: poll first.
    KVTIER_BUSY = 10,
    /// A bug in kvtier. The client is good still.
    KVTIER_PANIC = 11,
}

/// Where a block was found.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kvtier_tier {
    /// It was not.
    KVTIER_TIER_NONE = 0,
    /// Device memory.
    KVTIER_TIER_DEVICE = 1,
    /// The daemon's memory.
    KVTIER_TIER_HOST = 2,
    /// Its disk.
    KVTIER_TIER_DISK = 3,
    /// A shared store.
    KVTIER_TIER_REMOTE = 4,
}

/// What became of a block that was to be stored.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kvtier_outcome {
    /// There is no such block in this result.
    KVTIER_OUTCOME_NONE = 0,
    /// It is stored.
    KVTIER_INSERTED = 1,
    /// It was there first.
    KVTIER_PRESENT = 2,
    /// Another client is writing it.
    KVTIER_PENDING = 3,
    /// There is no room for it, or no leave.
    KVTIER_FULL = 4,
    /// The bytes changed while they were handed over.
    KVTIER_FAILED_CHECK = 5,
    /// The daemon knows of no such reservation.
    KVTIER_UNKNOWN = 6,
    /// It was given up here.
    KVTIER_ABANDONED = 7,
    /// The place is the engine's to fill.
    KVTIER_RESERVED = 8,
    /// Its values do not fit the form that it was to be stored in: a NaN, an infinity, or beyond what a header holds.
    KVTIER_UNFIT = 9,
}

use kvtier_code::*;

pub(crate) fn code_of(error: &PluginError) -> kvtier_code {
    match &error.code()[..] {
        codes::NOT_CONNECTED => KVTIER_NOT_CONNECTED,
        codes::DEADLINE => KVTIER_DEADLINE,
        codes::IO => KVTIER_IO,
        codes::PROTOCOL => KVTIER_PROTOCOL,
        codes::MEMORY => KVTIER_MEMORY,
        codes::USAGE => KVTIER_USAGE,
        codes::FORKED => KVTIER_FORKED,
        codes::CLOSED => KVTIER_CLOSED,
        _ => KVTIER_REFUSED,
    }
}

pub(crate) fn tier_of(tier: Tier) -> kvtier_tier {
    match tier {
        Tier::Device => kvtier_tier::KVTIER_TIER_DEVICE,
        Tier::Host => kvtier_tier::KVTIER_TIER_HOST,
        Tier::Disk => kvtier_tier::KVTIER_TIER_DISK,
        Tier::Remote => kvtier_tier::KVTIER_TIER_REMOTE,
    }
}

pub(crate) fn outcome_of(outcome: Outcome) -> kvtier_outcome {
    match outcome {
        Outcome::Inserted => kvtier_outcome::KVTIER_INSERTED,
        Outcome::Present => kvtier_outcome::KVTIER_PRESENT,
        Outcome::Pending => kvtier_outcome::KVTIER_PENDING,
        Outcome::Full => kvtier_outcome::KVTIER_FULL,
        Outcome::FailedCheck => kvtier_outcome::KVTIER_FAILED_CHECK,
        Outcome::Unknown => kvtier_outcome::KVTIER_UNKNOWN,
        Outcome::Abandoned => kvtier_outcome::KVTIER_ABANDONED,
        Outcome::Unfit => kvtier_outcome::KVTIER_UNFIT,
    }
}

pub(crate) fn state_of(state: PlaceState) -> kvtier_outcome {
    match state {
        PlaceState::Reserved => kvtier_outcome::KVTIER_RESERVED,
        PlaceState::Over(outcome) => outcome_of(outcome),
    }
}

/// The number of a miss, as in `docs/protocol.md`.
pub(crate) fn miss_of(miss: Option<MissReason>) -> u32 {
    miss.map_or(0, kvtier_sdk::wire::miss_number)
}

/// The name of a miss reason, such as `never_stored`; empty for 0, `unknown` for a number that is none. Never freed.
#[unsafe(no_mangle)]
pub extern "C" fn kvtier_miss_name(miss: u32) -> *const c_char {
    const NAMES: [&CStr; 12] = [
        c"",
        c"never_stored",
        c"evicted",
        c"namespace",
        c"failed_check",
        c"provenance",
        c"lease_lost",
        c"deadline",
        c"not_worth_it",
        c"quota",
        c"recovering",
        c"tier_offline",
    ];
    NAMES.get(miss as usize).unwrap_or(&c"unknown").as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_have_the_names_that_they_have_elsewhere() {
        for miss in MissReason::ALL {
            // SAFETY: names are static C strings.
            let name = unsafe { CStr::from_ptr(kvtier_miss_name(miss_of(Some(miss)))) };
            assert_eq!(name.to_str().unwrap(), miss.name());
        }
        // SAFETY: as above.
        assert_eq!(unsafe { CStr::from_ptr(kvtier_miss_name(12)) }, c"unknown");
    }
}
