//! Writing: places in staging memory, reserved, then committed or given up.

use std::sync::Arc;
use std::time::Instant;

use cache_core::form::{Lineage, Provenance};
use cache_core::hash::Namespace;
use host_tier::Staging;

use super::link::Posted;
use super::{CallError, Client, Connected, Shared, Wanted, hashes, run_of, wrong};
use crate::wire::{
    Abort, Batch, Commit, CommitCode, Reply, Request, ReservationId, Reserve, ReserveCode, Reserved, Stage,
};

/// Staging memory that is committed before the first store, at least: two groups of blocks as a plugin hands them over.
const READY_BYTES: u64 = 8 << 20;

/// Places in staging memory that were reserved for blocks, in the order asked for.
pub struct Places {
    /// The memory.
    pub staging: Arc<Staging>,
    /// Number of the connection.
    pub connection: u64,
    /// The answer for each block.
    pub answers: Vec<Place>,
}

/// A commit under way. Its answer is to be taken by [`Client::committed`]; dropped, nobody hears what became of it.
#[derive(Debug)]
pub struct Committing {
    connection: u64,
    reservations: usize,
    posted: Posted,
}

/// The answer for one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Its slot image goes to staging memory from byte `offset` on.
    Reserved {
        /// To be committed.
        reservation: ReservationId,
        /// First byte.
        offset: u64,
    },
    /// It is there already.
    Present,
    /// Another client is at it.
    PendingElsewhere,
    /// There is no room.
    Full,
}

impl Shared {
    /// Sees to it that a connection's staging memory is for blocks of this shape. A connection begins with little, since not every client stores; it asks
    /// for more before it reserves for the first time, and whenever what it has does not hold one block. Where there is no more, it goes on with that.
    fn stage(&self, connected: &mut Connected, until: Instant) -> Result<(), CallError> {
        let least_bytes = self.shape.slot_bytes();
        if connected.is_staged && connected.staging.bytes() >= least_bytes {
            return Ok(());
        }
        let asked =
            connected.link.call(&Request::Stage(Stage { least_bytes }), until, |reply, descriptor| match reply {
                Reply::Stage(staged) => Some((staged.bytes, descriptor)),
                _ => None,
            });
        match asked {
            Ok((bytes, Some(descriptor))) => {
                let staging = Staging::map(descriptor, bytes).map_err(|error| wrong(&error.to_string()))?;
                connected.staging = Arc::new(staging);
            }
            Ok((_, None)) => return Err(wrong("no descriptor came with the staging memory")),
            Err(error @ CallError::Refused { .. }) if error.is_harmless() => {}
            Err(error) => return Err(error),
        }
        connected.is_staged = true;
        Ok(())
    }
}

impl Client {
    /// Gets ready to store blocks of a namespace: has the daemon make room for its shape, and commits the staging memory through which the first ones go.
    /// Without it the first stores do both, and take longer.
    pub fn prepare(&self, namespace: Namespace) -> Result<(), CallError> {
        let nothing = Wanted { namespace, provenance: Provenance::EXACT, links: &[] };
        let staging = self.shared.in_namespace(&nothing, |connected, _, until| {
            self.shared.stage(connected, until)?;
            Ok(Arc::clone(&connected.staging))
        })?;
        let first = (2 * self.shared.shape.slot_bytes()).max(READY_BYTES).min(staging.bytes());
        // Memory that is short now is committed when it is written.
        let _ = staging.touch(0, first);
        Ok(())
    }

    /// Reserves places in staging memory.
    pub fn reserve(&self, wanted: &Wanted<'_>, lineage: Lineage) -> Result<Places, CallError> {
        let hashes = hashes(wanted);
        self.shared.in_namespace(wanted, |connected, parts, until| {
            self.shared.stage(connected, until)?;
            let request = Request::Reserve(Reserve { parts, lineage, run: run_of(wanted, &hashes)? });
            let answers = connected.link.call(&request, until, |reply, _| match reply {
                Reply::Reserve(reserved) => Some(reserved.answers.to_vec()),
                _ => None,
            })?;
            let staging = Arc::clone(&connected.staging);
            let slot_bytes = self.shared.shape.slot_bytes();
            let place = |answer: &Reserved| match answer.answer {
                ReserveCode::Reserved => {
                    let offset = answer.staging_offset.get();
                    let fits = offset.is_multiple_of(4096)
                        && offset.checked_add(slot_bytes).is_some_and(|end| end <= staging.bytes());
                    let outside = || CallError::Memory { reason: "a place outside the staging memory".to_owned() };
                    fits.then_some(Place::Reserved { reservation: answer.reservation, offset }).ok_or_else(outside)
                }
                ReserveCode::Present => Ok(Place::Present),
                ReserveCode::PendingElsewhere => Ok(Place::PendingElsewhere),
                ReserveCode::Full => Ok(Place::Full),
            };
            let answers = answers.iter().map(place).collect::<Result<_, _>>()?;
            Ok(Places { staging, connection: connected.number, answers })
        })
    }

    /// Says that reserved slot images are written. Errors: [`CallError::NotConnected`] when the connection that they were reserved on is gone.
    pub fn commit(&self, connection: u64, reservations: &[ReservationId]) -> Result<Vec<CommitCode>, CallError> {
        self.committed(self.begin_commit(connection, reservations)?)
    }

    /// As [`Client::commit`], but does not wait: the daemon copies and verifies while the next images are written. [`Client::committed`] has the
    /// answer. Errors: as for that.
    pub fn begin_commit(&self, connection: u64, reservations: &[ReservationId]) -> Result<Committing, CallError> {
        let request = Request::Commit(Commit { reservations: Batch::new(reservations)? });
        self.shared.call(|connected, until| match connected.number == connection {
            true => {
                let posted = connected.link.post(&request, until)?;
                Ok(Committing { connection, reservations: reservations.len(), posted })
            }
            false => Err(CallError::NotConnected),
        })
    }

    /// Waits for a commit. Errors: as for [`Client::commit`].
    pub fn committed(&self, committing: Committing) -> Result<Vec<CommitCode>, CallError> {
        let Committing { connection, reservations, posted } = committing;
        self.shared.call(|connected, _| match connected.number == connection {
            true => connected.link.answer(posted, |reply| match reply {
                Reply::Commit(committed) if committed.answers.len() == reservations => Some(committed.answers.to_vec()),
                _ => None,
            }),
            false => Err(CallError::NotConnected),
        })
    }

    /// Gives up reservations that will not be written. On another connection than theirs there is nothing to give up.
    pub fn abort(&self, connection: u64, reservations: &[ReservationId]) -> Result<(), CallError> {
        let request = Request::Abort(Abort { reservations: Batch::new(reservations)? });
        self.shared.call(|connected, until| match connected.number == connection {
            true => connected.link.call(&request, until, |reply, _| matches!(reply, Reply::Abort(_)).then_some(())),
            false => Ok(()),
        })
    }

    /// Places that one connection can have reserved at once: as many slot images as its staging memory holds, as far as the daemon allows. `None`
    /// while there is no connection.
    pub fn places_max(&self) -> Option<u32> {
        let state = self.shared.state();
        let connected = state.connected.as_ref()?;
        let images = connected.staging.bytes() / self.shared.shape.slot_bytes();
        Some(connected.link.hello().reservations_max.min(u32::try_from(images).unwrap_or(u32::MAX)))
    }
}
