//! Numbers that stand for something. None is ever used for another thing.

use cache_core::form::{Accept, FormMapId};
use cache_core::miss::MissReason;
use cache_core::units::Tier;
use zerocopy::{Immutable, IntoBytes, KnownLayout, TryFromBytes, Unaligned};

use super::body::{Body, Input};
use super::error::WireError;

/// A [`Tier`] in a frame.
#[derive(
    TryFromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
#[repr(u8)]
pub enum TierCode {
    /// [`Tier::Device`].
    Device = 1,
    /// [`Tier::Host`].
    Host = 2,
    /// [`Tier::Disk`].
    Disk = 3,
    /// [`Tier::Remote`].
    Remote = 4,
}

impl From<Tier> for TierCode {
    fn from(tier: Tier) -> TierCode {
        match tier {
            Tier::Device => TierCode::Device,
            Tier::Host => TierCode::Host,
            Tier::Disk => TierCode::Disk,
            Tier::Remote => TierCode::Remote,
        }
    }
}

impl From<TierCode> for Tier {
    fn from(code: TierCode) -> Tier {
        match code {
            TierCode::Device => Tier::Device,
            TierCode::Host => Tier::Host,
            TierCode::Disk => Tier::Disk,
            TierCode::Remote => Tier::Remote,
        }
    }
}

/// What became of a wish to write a block.
#[derive(TryFromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ReserveCode {
    /// The place in the staging memory is the client's.
    Reserved = 1,
    /// The copy is there already: nothing is to be written.
    Present = 2,
    /// Another client is at it: it can be awaited.
    PendingElsewhere = 3,
    /// There is no room.
    Full = 4,
}

/// What became of a written block.
#[derive(TryFromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CommitCode {
    /// This copy is the block.
    Inserted = 1,
    /// An equal block was there first.
    Present = 2,
    /// The bytes do not verify.
    FailedCheck = 3,
    /// The connection holds no such reservation.
    Unknown = 4,
    /// There is no room after all: slots that rest.
    Full = 5,
}

/// The number of a miss reason. 0 is none of them: it says that nothing was missed.
pub fn miss_number(reason: MissReason) -> u32 {
    match reason {
        MissReason::NeverStored => 1,
        MissReason::Evicted => 2,
        MissReason::Namespace => 3,
        MissReason::FailedCheck => 4,
        MissReason::Provenance => 5,
        MissReason::LeaseLost => 6,
        MissReason::Deadline => 7,
        MissReason::NotWorthIt => 8,
        MissReason::Quota => 9,
        MissReason::Recovering => 10,
        MissReason::TierOffline => 11,
    }
}

/// The miss reason of a number.
pub fn miss_of_number(number: u32) -> Option<MissReason> {
    MissReason::ALL.into_iter().find(|reason| miss_number(*reason) == number)
}

impl Body<'_> for MissReason {
    fn encode(&self, out: &mut Vec<u8>) {
        miss_number(*self).encode(out);
    }

    fn read(input: &mut Input<'_>) -> Result<MissReason, WireError> {
        miss_of_number(u32::read(input)?).ok_or(input.value())
    }
}

/// `None`, as 0: nothing was missed.
impl Body<'_> for Option<MissReason> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.map_or(0, miss_number).encode(out);
    }

    fn read(input: &mut Input<'_>) -> Result<Option<MissReason>, WireError> {
        match u32::read(input)? {
            0 => Ok(None),
            number => miss_of_number(number).map(Some).ok_or(input.value()),
        }
    }
}

/// What a lookup is content with, as [`Accept`] but with the name of a form map in the form's place: whoever knows the map of that name
/// knows the form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AcceptId {
    /// A lossless form and exact provenance.
    Exact,
    /// This form map or a better one.
    AtLeast(FormMapId),
}

impl AcceptId {
    /// The name of `accept`.
    pub fn of(accept: Accept) -> Option<AcceptId> {
        match accept {
            Accept::Exact => Some(AcceptId::Exact),
            Accept::AtLeast(form) => Some(AcceptId::AtLeast(FormMapId::of(form))),
            _ => None,
        }
    }
}

/// A form map's id; 0, which no form map has, for exact.
impl Body<'_> for AcceptId {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            AcceptId::Exact => 0u32.encode(out),
            AcceptId::AtLeast(form) => form.encode(out),
        }
    }

    fn read(input: &mut Input<'_>) -> Result<AcceptId, WireError> {
        Ok(match u32::read(input)? {
            0 => AcceptId::Exact,
            form => AcceptId::AtLeast(FormMapId(form)),
        })
    }
}
