//! Reclaim: one sealed segment is emptied and begun anew. At most half a segment of what it held is written again, pinned records first, then
//! those that were read; so every reclaim frees at least half a segment.
//!
//! What is not kept leaves the index first. What is kept moves when its new record is whole on disk; until then its old one serves. The
//! segment is stale after that, and begun anew by the keeper once nobody reads it any more.

use cache_core::buffer::Buffer;

use crate::index::{Fingerprint, Known, Location, namespace_tag};
use crate::inner::{Inner, Request};
use crate::io::{ALIGN_BYTES, FileId};
use crate::log::{Log, Tombstone};
use crate::record;
use crate::segment::{HEADER_BYTES, Phase};
use crate::testing::PlantedBug;

/// Images read and written again at a time.
const GROUP: usize = 8;
/// A segment whose live part is smaller than one in so many is taken before older ones, and kept whole.
const SPARSE: u64 = 4;

struct Plan {
    segment: u32,
    keep: Vec<Known>,
    dropped: Vec<Known>,
}

/// A record on its way to its new place.
struct Move {
    known: Known,
    key: cache_core::key::CopyKey,
    to: Location,
    epoch: u64,
}

impl Inner {
    /// Reclaims one segment. `false`: there is none that can be.
    pub(crate) fn reclaim(&self) -> bool {
        let now = self.now();
        let Some(Plan { segment, keep, dropped }) = self.change(|log| log.plan_reclaim(now)) else { return false };
        let is_moved = keep.chunks(GROUP).all(|group| self.move_group(group));
        self.change(|log| {
            let is_empty = log.index.of_segment(segment).next().is_none();
            let reusable = is_moved && is_empty;
            log.segments.at_mut(segment).phase = if reusable { Phase::Stale } else { Phase::Sealed };
            log.counters.reclaimed_segments += u64::from(reusable);
            if !reusable {
                dropped.iter().for_each(|known| log.bury(known.location));
            }
            log.is_due = true;
            log.place_waiting();
        });
        true
    }

    /// Writes some records again. `false`: the medium failed or there was no room; the rest stays where it is.
    fn move_group(&self, group: &[Known]) -> bool {
        let reads = group.iter().map(|known| {
            let bytes = u64::from(known.location.pages) * ALIGN_BYTES;
            Request::read(FileId::segment(known.location.segment), u64::from(known.location.page) * ALIGN_BYTES, bytes)
        });
        let read = self.perform(reads.collect(), "read a record");
        let mut moves = Vec::new();
        let mut writes = Vec::new();
        let mut is_whole = true;
        self.change(|log| {
            for (known, result) in group.iter().zip(read) {
                match result {
                    Ok(image) => match log.prepare_move(known, image) {
                        Prepared::Move(prepared, request) => {
                            moves.push(prepared);
                            writes.push(request);
                        }
                        Prepared::Gone => {}
                        Prepared::NoRoom => is_whole = false,
                    },
                    Err(crate::io::IoError::TimedOut { .. } | crate::io::IoError::Closed) => is_whole = false,
                    Err(_) => log.quarantine(&known.fingerprint, known.location),
                }
            }
        });
        let written = self.perform(writes, "write a record again");
        self.change(|log| {
            for (moved, result) in moves.into_iter().zip(written) {
                is_whole &= log.end_move(&moved, result.as_ref().map(drop).map_err(|error| *error));
            }
        });
        is_whole
    }
}

enum Prepared {
    Move(Move, Request),
    /// It was deleted meanwhile, or is not what it should be.
    Gone,
    NoRoom,
}

impl Log {
    /// Chooses a segment and what of it is kept; the rest leaves the index here. Sparse segments first, then the oldest; none of which more
    /// than half is pinned.
    fn plan_reclaim(&mut self, now_nanos: u64) -> Option<Plan> {
        let half_pages = self.layout.segment_bytes / ALIGN_BYTES / 2;
        let room_pages = self.room_pages();
        let mut candidates: Vec<(bool, u64, u32)> = self
            .segments
            .in_phase(Phase::Sealed)
            .map(|at| {
                let segment = self.segments.at(at);
                let is_dense = segment.live_pages * SPARSE > half_pages * 2;
                (is_dense, segment.generation, at)
            })
            .collect();
        candidates.sort_unstable();
        for (_, _, segment) in candidates {
            let (mut pinned, mut others): (Vec<Known>, Vec<Known>) =
                self.index.of_segment(segment).partition(|known| self.is_pinned(&known.fingerprint));
            let budget = half_pages.min(room_pages);
            let mut pages: u64 = pinned.iter().map(|known| u64::from(known.location.pages)).sum();
            if pages > budget {
                continue;
            }
            let is_sparse = self.segments.at(segment).live_pages * SPARSE <= half_pages * 2;
            others.sort_unstable_by_key(|known| (!known.is_hit, known.location.page));
            let (kept, dropped): (Vec<Known>, Vec<Known>) = others.into_iter().partition(|known| {
                let fits = (known.is_hit || is_sparse) && pages + u64::from(known.location.pages) <= budget;
                pages += if fits { u64::from(known.location.pages) } else { 0 };
                fits
            });
            pinned.extend(kept);
            for known in &dropped {
                self.forget(&known.fingerprint);
                self.ghosts.add(&known.fingerprint, now_nanos);
                self.counters.evicted += 1;
                self.counters.evicted_bytes += u64::from(known.location.pages) * ALIGN_BYTES;
            }
            self.segments.at_mut(segment).phase = Phase::Reclaiming;
            return Some(Plan { segment, keep: pinned, dropped });
        }
        None
    }

    fn is_pinned(&self, fingerprint: &Fingerprint) -> bool {
        self.pins.contains_key(fingerprint) && !self.has(PlantedBug::IgnorePins)
    }

    /// Pages that reclaim may write: the rest of the active segment, or a free one.
    fn room_pages(&self) -> u64 {
        let fresh = (self.layout.segment_bytes - HEADER_BYTES) / ALIGN_BYTES;
        let rest = self.segments.active.map_or(0, |active| {
            let segment = self.segments.at(active);
            let entries = segment.entries.len() as u64 + u64::from(segment.writers) + GROUP as u64;
            (self.layout.segment_bytes.saturating_sub(segment.tail + crate::footer::bytes_for(entries))) / ALIGN_BYTES
        });
        if self.segments.free.is_empty() { rest } else { fresh }
    }

    fn prepare_move(&mut self, known: &Known, mut image: Buffer) -> Prepared {
        let is_there = |log: &Log| log.index.find(&known.fingerprint).is_some_and(|now| now.location == known.location);
        if !is_there(self) {
            return Prepared::Gone;
        }
        let expected = self.record_place(&known.location, 0);
        let header = record::peek(image.as_slice()).filter(|header| {
            let (place, key) = (&header.slot.place, &header.slot.key);
            place.store_id == expected.store_id
                && place.segment_generation == expected.segment_generation
                && place.offset == expected.offset
                && header.pages() == known.location.pages
                && self.fingerprint(key) == known.fingerprint
                && namespace_tag(&key.namespace) == known.namespace
        });
        let Some(header) = header else {
            self.counters.failed_checks += 1;
            self.quarantine(&known.fingerprint, known.location);
            return Prepared::Gone;
        };
        let key = header.slot.key;
        if header.slot.place.epoch < self.superblock.valid_from(&key.namespace) {
            self.forget(&known.fingerprint);
            return Prepared::Gone;
        }
        let Some(to) = self.allocate(known.location.pages, true) else { return Prepared::NoRoom };
        let epoch = self.durable_epoch;
        let pages = header.placed(self.record_place(&to, epoch));
        image.as_mut_slice()[..pages.as_slice().len()].copy_from_slice(pages.as_slice());
        let request = Request::write(FileId::segment(to.segment), u64::from(to.page) * ALIGN_BYTES, image);
        Prepared::Move(Move { known: *known, key, to, epoch }, request)
    }

    /// A record was written again, or not.
    fn end_move(&mut self, moved: &Move, result: Result<(), crate::io::IoError>) -> bool {
        let segment = self.segments.at_mut(moved.to.segment);
        segment.writers -= 1;
        self.is_due = true;
        if let Err(error) = result {
            self.abandon(moved.to.segment, &error);
            self.bury(moved.to);
            return false;
        }
        let bytes = u64::from(moved.to.pages) * ALIGN_BYTES;
        self.counters.reinserted_bytes += bytes;
        if let Some(limit) = &mut self.limit {
            limit.force(bytes);
        }
        let is_there =
            self.index.find(&moved.known.fingerprint).is_some_and(|known| known.location == moved.known.location);
        if !is_there || moved.epoch < self.superblock.valid_from(&moved.key.namespace) {
            // Deleted meanwhile: the new record goes before that deletion ends.
            let generation = self.segments.at(moved.to.segment).generation;
            self.tombstones.push_front(Tombstone { op: None, place: Some((moved.to, generation)) });
            return true;
        }
        let old = self.segments.at_mut(moved.known.location.segment);
        old.live_pages = old.live_pages.saturating_sub(u64::from(moved.known.location.pages));
        self.index.relocate(&moved.known.fingerprint, moved.to);
        self.list(&moved.key, moved.to, moved.epoch);
        self.counters.reinserted += 1;
        true
    }
}
