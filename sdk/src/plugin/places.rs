//! Writing in place: slot images in staging memory, filled, sealed and committed.

use std::sync::Arc;

use cache_core::chain::Link;
use cache_core::hash::BlockHash;
use cache_core::header::{SealedSection, SlotHeader};
use cache_core::sum::SectionHasher;
use host_tier::Staging;

use super::memory::Bytes;
use super::transfer::PIECE_BYTES;
use super::{Before, Plugin, PluginError, SharedPlugin, links};
use crate::client::{Client, Place};
use crate::wire::{BATCH_MAX, CommitCode, ReservationId};

/// What became of a block that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It is stored.
    Inserted,
    /// It was there first.
    Present,
    /// Another client is writing it.
    Pending,
    /// There is no room for it, or no leave.
    Full,
    /// The bytes changed while they were handed over.
    FailedCheck,
    /// The daemon knows of no such reservation.
    Unknown,
    /// It was given up here.
    Abandoned,
    /// Its values do not fit the form that it was to be stored in: a NaN, an infinity, or beyond what a header holds.
    Unfit,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Outcome; 8] = [
        Outcome::Inserted,
        Outcome::Present,
        Outcome::Pending,
        Outcome::Full,
        Outcome::FailedCheck,
        Outcome::Unknown,
        Outcome::Abandoned,
        Outcome::Unfit,
    ];

    /// Name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Inserted => "inserted",
            Outcome::Present => "present",
            Outcome::Pending => "pending",
            Outcome::Full => "full",
            Outcome::FailedCheck => "failed_check",
            Outcome::Unknown => "unknown",
            Outcome::Abandoned => "abandoned",
            Outcome::Unfit => "unfit",
        }
    }

    pub(super) fn of(code: CommitCode) -> Outcome {
        match code {
            CommitCode::Inserted => Outcome::Inserted,
            CommitCode::Present => Outcome::Present,
            CommitCode::FailedCheck => Outcome::FailedCheck,
            CommitCode::Unknown => Outcome::Unknown,
            CommitCode::Full => Outcome::Full,
        }
    }
}

/// How a place stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlaceState {
    /// It is the engine's to fill, until it is committed or given up.
    Reserved,
    /// Nothing is to be written.
    Over(Outcome),
}

impl PlaceState {
    /// `reserved`, or the outcome's name.
    pub fn name(self) -> &'static str {
        match self {
            PlaceState::Reserved => "reserved",
            PlaceState::Over(outcome) => outcome.name(),
        }
    }
}

struct Reserved {
    link: Link,
    state: PlaceState,
    reservation: ReservationId,
    /// First byte of the slot image in the staging memory.
    offset: u64,
}

/// Places for a run of blocks. What is still reserved when this is dropped is given up.
pub struct Reservations {
    plugin: SharedPlugin,
    staging: Arc<Staging>,
    connection: u64,
    places: Vec<Reserved>,
}

impl Plugin {
    /// Reserves places for a run of blocks, at most 1,024; those beyond, and those that the staging memory does not hold beside
    /// the others, are `Full`. Errors: [`PluginError::Usage`] for lossy forms.
    pub fn reserve(self: &SharedPlugin, hashes: &[BlockHash], before: Before) -> Result<Reservations, PluginError> {
        self.expect_plain()?;
        let (client, links) = (self.client()?, links(hashes, before)?);
        let found = client.reserve(&self.wanted(&links[..links.len().min(BATCH_MAX)]), self.lineage())?;
        let answers = found.answers.iter().copied().chain(std::iter::repeat(Place::Full));
        let place = |(link, place): (&Link, Place)| {
            let over = |outcome| Reserved {
                link: *link,
                state: PlaceState::Over(outcome),
                reservation: ReservationId(0.into()),
                offset: 0,
            };
            match place {
                Place::Reserved { reservation, offset } => {
                    Reserved { link: *link, state: PlaceState::Reserved, reservation, offset }
                }
                Place::Present => over(Outcome::Present),
                Place::PendingElsewhere => over(Outcome::Pending),
                Place::Full => over(Outcome::Full),
            }
        };
        let places = links.iter().zip(answers).map(place).collect();
        let plugin = SharedPlugin::clone(self);
        Ok(Reservations { plugin, staging: found.staging, connection: found.connection, places })
    }

    /// Sums the sections of a filled image and writes its header.
    pub(super) fn seal(&self, client: &Client, image: Bytes<'_>, link: &Link, piece: &mut [u8]) {
        let (shape, key) = (client.shape(), self.key(link));
        let sum = |section: cache_core::payload::Section| {
            let mut hasher = SectionHasher::new(&key, self.lineage(), section.index);
            for source in image.part(section.offset, section.bytes).pieces(piece.len()) {
                let piece = &mut piece[..source.bytes() as usize];
                source.read(piece);
                hasher.write(piece);
            }
            hasher.sum()
        };
        let sums: Vec<_> = shape.sections().map(sum).collect();
        self.write_header(client, image, link, &sums);
    }

    /// Writes the header of an image whose sections have these sums.
    pub(super) fn write_header(
        &self,
        client: &Client,
        image: Bytes<'_>,
        link: &Link,
        sums: &[cache_core::sum::SectionSum],
    ) {
        let shape = client.shape();
        let sections =
            sums.iter().zip(shape.extents()).map(|(sum, extent)| SealedSection { sum: *sum, extent }).collect();
        let header = SlotHeader {
            key: self.key(link),
            lineage: self.lineage(),
            link: *link,
            image_pages: (shape.slot_bytes() / cache_core::buffer::PAGE_BYTES) as u32,
            place: cache_core::header::RecordPlace::default(),
            sections,
        };
        let mut bytes = vec![0; shape.header_bytes() as usize];
        header.encode(&mut bytes);
        image.part(0, bytes.len() as u64).write(&bytes);
    }
}

impl Reservations {
    /// How each place stands.
    pub fn states(&self) -> impl ExactSizeIterator<Item = PlaceState> {
        self.places.iter().map(|place| place.state)
    }

    /// The payload of a place: first byte and length, layers one after the other. Readable and writable as long as this lives;
    /// what is written after the commit
    /// spoils blocks to come. `None` unless it is reserved.
    pub fn payload(&self, place: usize) -> Option<(*mut u8, u64)> {
        let place = self.places.get(place).filter(|place| place.state == PlaceState::Reserved)?;
        let shape = self.plugin.shape();
        let payload = Bytes::of_staging(&self.staging, place.offset + shape.header_bytes(), shape.payload_bytes());
        Some((payload.address(), payload.bytes()))
    }

    /// Copies bytes into the payload of a place. Errors: [`PluginError::Usage`] when they leave it, or it is not reserved.
    pub fn write(&self, place: usize, offset: u64, bytes: &[u8]) -> Result<(), PluginError> {
        let reserved = self.places.get(place).filter(|place| place.state == PlaceState::Reserved);
        let reserved = reserved.ok_or_else(|| PluginError::usage(format!("place {place} is not reserved")))?;
        let shape = self.plugin.shape();
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= shape.payload_bytes());
        if end.is_none() {
            let reason = format!("{offset}+{} leaves a block of {} bytes", bytes.len(), shape.payload_bytes());
            return Err(PluginError::usage(reason));
        }
        Bytes::of_staging(&self.staging, reserved.offset + shape.header_bytes() + offset, bytes.len() as u64)
            .write(bytes);
        Ok(())
    }

    /// Seals every place that is reserved and commits them; returns what became of each block. Every reserved place has been
    /// filled by then.
    pub fn commit(&mut self) -> Result<Vec<Outcome>, PluginError> {
        let plugin = SharedPlugin::clone(&self.plugin);
        let client = plugin.client()?;
        let slot_bytes = client.shape().slot_bytes();
        let mut piece = vec![0; PIECE_BYTES];
        let reserved: Vec<usize> =
            (0..self.places.len()).filter(|place| self.places[*place].state == PlaceState::Reserved).collect();
        for place in &reserved {
            let Reserved { link, offset, .. } = &self.places[*place];
            plugin.seal(client, Bytes::of_staging(&self.staging, *offset, slot_bytes), link, &mut piece);
        }
        if !reserved.is_empty() {
            let ids: Vec<_> = reserved.iter().map(|place| self.places[*place].reservation).collect();
            // Whatever comes of it, nothing is left to be given up: they are used up, or their connection is.
            reserved.iter().for_each(|place| self.places[*place].state = PlaceState::Over(Outcome::Unknown));
            let codes = client.commit(self.connection, &ids).inspect_err(|_| {
                // Where there was no time for it the connection goes on, and with it what it holds.
                let _ = client.abort(self.connection, &ids);
            })?;
            for (place, code) in reserved.iter().zip(codes) {
                self.places[*place].state = PlaceState::Over(Outcome::of(code));
            }
        }
        let outcome = |state| match state {
            PlaceState::Over(outcome) => outcome,
            PlaceState::Reserved => unreachable!("all that was reserved has been committed"),
        };
        Ok(self.states().map(outcome).collect())
    }

    /// Gives up one place; others stay.
    pub fn abandon(&mut self, place: usize) -> Result<(), PluginError> {
        let is_reserved = self.places.get(place).is_some_and(|place| place.state == PlaceState::Reserved);
        if !is_reserved {
            return Err(PluginError::usage(format!("place {place} is not reserved")));
        }
        self.give_up(|index| index == place)
    }

    /// Gives up all that is still reserved.
    pub fn abort(&mut self) -> Result<(), PluginError> {
        self.give_up(|_| true)
    }

    fn give_up(&mut self, which: impl Fn(usize) -> bool) -> Result<(), PluginError> {
        let mut ids = Vec::new();
        for (index, place) in self.places.iter_mut().enumerate() {
            if place.state == PlaceState::Reserved && which(index) {
                place.state = PlaceState::Over(Outcome::Abandoned);
                ids.push(place.reservation);
            }
        }
        if ids.is_empty() {
            return Ok(());
        }
        Ok(self.plugin.client()?.abort(self.connection, &ids)?)
    }
}

impl Drop for Reservations {
    fn drop(&mut self) {
        // Without a daemon they ended with the connection.
        let _ = self.abort();
    }
}

impl std::fmt::Debug for Reservations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.states()).finish()
    }
}
