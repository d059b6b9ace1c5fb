//! The attic: extents of the daemon before this one, kept by the service manager meanwhile.
//!
//! They are mapped read-only, since their seal allows no more. Their copies are found by the slot headers; a copy that a client asks for is brought back: copied
//! into a slot of this daemon's arena, verified there and committed as any other block. An extent is closed when all its copies were brought back, when the
//! arena wants the memory, or when something is deleted that was in it, since nothing in it can be erased. It counts against the host budget until then; at
//! most half of the budget is kept.
//!
//! What is handed over for the next daemon are this one's own extents, and the attic with them.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use cache_core::hash::Namespace;
use cache_core::header::CheckFailure;
use cache_core::key::CopyKey;
use cache_core::payload::BlockShape;
use cache_core::store::{Sealed, StoreError};
use cache_core::units::Generation;
use host_tier::{Adopted, AdoptedCopy};

use crate::server::manager::{Manager, extent_name, extent_of_name, is_extent};

/// What one copy takes in the attic's own tables, in bytes.
const COPY_BYTES: u64 = 512;
/// Bytes that are copied at once.
const PART_BYTES: u64 = 64 << 10;

struct Kept {
    name: String,
    memory: Arc<Adopted>,
    /// Copies in it that can be brought back.
    left: u64,
    /// Of all copies that are in it, brought back or not.
    namespaces: HashSet<Namespace>,
    bytes: u64,
}

struct Place {
    extent: usize,
    slot: u32,
    generation: Generation,
    sealed: Sealed,
}

/// A copy that can be brought back.
pub(crate) struct Found {
    pub(crate) sealed: Sealed,
    memory: Arc<Adopted>,
    slot: u32,
    generation: Generation,
}

impl Found {
    pub(crate) fn shape(&self) -> &BlockShape {
        self.memory.shape()
    }

    /// Hands its slot image over in parts, unverified. Errors: those of `take`, and that it is not there any more.
    pub(crate) fn copy(&self, mut take: impl FnMut(u64, &[u8]) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let end = self.shape().slot_bytes();
        let mut part = vec![0; end.min(PART_BYTES) as usize];
        for offset in (0..end).step_by(part.len()) {
            let part = &mut part[..(end - offset).min(PART_BYTES) as usize];
            self.memory.read(self.slot, offset, part);
            take(offset, part)?;
        }
        let is_whole = self.memory.is_current(self.slot, self.generation);
        is_whole.then_some(()).ok_or(StoreError::Check(CheckFailure::Identity))
    }
}

/// See the top of this file. Guarded by the state's lock.
#[derive(Default)]
pub(crate) struct Attic {
    manager: Option<Arc<Manager>>,
    daemon: [u8; 16],
    /// Extents handed over so far.
    handed: u64,
    /// `None`: closed.
    extents: Vec<Option<Kept>>,
    copies: HashMap<CopyKey, Place>,
}

impl Attic {
    /// Adopts extents, the fullest first, as far as `budget_bytes` go; the others are let go. Returns the attic and its bytes.
    pub(crate) fn adopt(
        manager: Option<Arc<Manager>>,
        daemon: [u8; 16],
        inherited: Vec<(String, OwnedFd)>,
        budget_bytes: u64,
    ) -> (Attic, u64) {
        let mut attic = Attic { manager, daemon, ..Attic::default() };
        let mut adopted = Vec::new();
        for (name, file) in inherited.into_iter().filter(|(name, _)| is_extent(name)) {
            let opened = extent_of_name(&name).map(|(shape, slots)| Adopted::open(file, shape, slots));
            match opened {
                Some(Ok(memory)) => {
                    let copies: Vec<_> = memory.copies().collect();
                    adopted.push((name, memory, copies));
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "an extent of the daemon before is let go");
                    attic.let_go(&name);
                }
                None => attic.let_go(&name),
            }
        }
        adopted.sort_by_key(|(name, _, copies)| (std::cmp::Reverse(copies.len()), name.clone()));
        let mut held = 0;
        for (name, memory, copies) in adopted {
            let bytes = memory.held_bytes() + COPY_BYTES * copies.len() as u64;
            if copies.is_empty() || held + bytes > budget_bytes {
                attic.let_go(&name);
                continue;
            }
            let namespaces = copies.iter().map(|copy| copy.header.key.namespace).collect();
            let extent = attic.extents.len();
            let before = attic.copies.len();
            for AdoptedCopy { slot, generation, header } in copies {
                let sealed = Sealed { key: header.key, lineage: header.lineage, link: header.link };
                // The same block may be in two of them.
                attic.copies.entry(header.key).or_insert(Place { extent, slot, generation, sealed });
            }
            let left = (attic.copies.len() - before) as u64;
            if left == 0 {
                attic.let_go(&name);
                continue;
            }
            held += bytes;
            attic.extents.push(Some(Kept { name, memory: Arc::new(memory), left, namespaces, bytes }));
        }
        tracing::info!(copies = attic.copies.len(), bytes = held, "adopted from the service manager");
        (attic, held)
    }

    /// Copies that can be brought back.
    pub(crate) fn copies(&self) -> u64 {
        self.copies.len() as u64
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }

    pub(crate) fn has(&self, key: &CopyKey) -> bool {
        self.copies.contains_key(key)
    }

    pub(crate) fn find(&self, key: &CopyKey) -> Option<Found> {
        let place = self.copies.get(key)?;
        let kept = self.extents[place.extent].as_ref().expect("a closed extent has no copies");
        let memory = Arc::clone(&kept.memory);
        Some(Found { sealed: place.sealed, memory, slot: place.slot, generation: place.generation })
    }

    /// Forgets a copy: it was brought back, or is none. Returns the bytes of an extent that was closed by it.
    pub(crate) fn forget(&mut self, key: &CopyKey) -> u64 {
        let Some(place) = self.copies.remove(key) else {
            return 0;
        };
        let kept = self.extents[place.extent].as_mut().expect("a closed extent has no copies");
        kept.left -= 1;
        if kept.left == 0 { self.close(place.extent) } else { 0 }
    }

    /// Closes every extent that has, or had, copies of a namespace; returns their bytes.
    pub(crate) fn delete(&mut self, namespace: &Namespace) -> u64 {
        let is_there = |kept: &Option<Kept>| kept.as_ref().is_some_and(|kept| kept.namespaces.contains(namespace));
        let closed: Vec<usize> = (0..self.extents.len()).filter(|extent| is_there(&self.extents[*extent])).collect();
        closed.into_iter().map(|extent| self.close(extent)).sum()
    }

    /// Closes everything: it cannot be told whose blocks these are. Returns the bytes.
    pub(crate) fn close_all(&mut self) -> u64 {
        (0..self.extents.len()).map(|extent| self.close(extent)).sum()
    }

    /// Closes the extent with the fewest copies, since its memory is wanted; returns its bytes, 0 when none can be closed now.
    pub(crate) fn make_room(&mut self) -> u64 {
        // One that is being read from is memory still.
        let is_idle = |kept: &Kept| Arc::strong_count(&kept.memory) == 1;
        let idle = self.extents.iter().enumerate().filter_map(|(at, kept)| Some((at, kept.as_ref()?)));
        match idle.filter(|(_, kept)| is_idle(kept)).min_by_key(|(_, kept)| kept.left).map(|(at, _)| at) {
            Some(extent) => self.close(extent),
            None => 0,
        }
    }

    fn close(&mut self, extent: usize) -> u64 {
        let Some(kept) = self.extents[extent].take() else {
            return 0;
        };
        self.copies.retain(|_, place| place.extent != extent);
        self.let_go(&kept.name);
        kept.bytes
    }

    fn let_go(&self, name: &str) {
        self.manager.iter().for_each(|manager| manager.let_go(name));
    }

    /// Has the extents of a new class kept for the daemon that comes next.
    pub(crate) fn hand_over(&mut self, shape: &BlockShape, extents: &[Arc<host_tier::Extent>]) {
        let Some(manager) = &self.manager else {
            return;
        };
        for extent in extents {
            self.handed += 1;
            let name = extent_name(&self.daemon, self.handed, shape, extent.slots());
            let is_kept = match (name, extent.duplicate()) {
                (Some(name), Ok(file)) => manager.keep(&name, file.as_fd()),
                _ => false,
            };
            if !is_kept {
                tracing::warn!("not all of the arena is handed to the service manager");
                return;
            }
        }
    }
}
