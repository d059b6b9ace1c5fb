//! Opening a store: whose it is, in which version, and what is left of it.

use std::io;
use std::sync::{Arc, PoisonError};

use crate::config::{Admission, DiskConfig};
use crate::copies::CopyState;
use crate::error::DiskError;
use crate::format::{VERSION, random_id};
use crate::inner::{Inner, Request};
use crate::io::{FileId, IoError, Medium};
use crate::layout::{Layout, MINIMUM_BYTES};
use crate::log::{Log, Parts};
use crate::recovery::Recovery;
use crate::superblock::{self, Found, Superblock};
use crate::testing::{PlantedBug, Testing};

/// What the superblocks say together.
pub(crate) enum Store {
    /// No superblock there.
    None,
    /// There, and none is sound.
    Damaged,
    Sound(Superblock),
}

fn layout(config: &DiskConfig, testing: &Testing, segment_bytes: Option<u64>) -> Option<Layout> {
    let segment_bytes = segment_bytes.or(testing.segment_bytes);
    let mut layout = match testing.records_max {
        Some(records) => Layout::with_records(config.budget_bytes, records, segment_bytes),
        None => Layout::new(config.budget_bytes, config.record_bytes, segment_bytes),
    }?;
    if testing.has(PlantedBug::TooManySegments) {
        layout.segments_max *= 2;
    }
    Some(layout)
}

/// The smallest budget under which a store of such segments can be opened, where that of the settings is too small; found by halving, since
/// a larger budget never holds less.
fn least_budget(config: &DiskConfig, testing: &Testing, segment_bytes: u64) -> u64 {
    let fits =
        |budget_bytes| layout(&DiskConfig { budget_bytes, ..config.clone() }, testing, Some(segment_bytes)).is_some();
    let (mut low, mut high) = (config.budget_bytes, config.budget_bytes.saturating_mul(2));
    while !fits(high) && high < u64::MAX {
        (low, high) = (high, high.saturating_mul(2));
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { high = middle } else { low = middle }
    }
    high
}

/// Opens the store of a medium, or begins one; recovery is still to be done.
pub(crate) fn open(medium: Arc<dyn Medium>, config: DiskConfig, testing: Testing) -> Result<Arc<Inner>, DiskError> {
    let too_small = DiskError::Budget { found_bytes: config.budget_bytes, minimum_bytes: MINIMUM_BYTES };
    if config.budget_bytes < MINIMUM_BYTES && testing.segment_bytes.is_none() {
        return Err(too_small);
    }
    let Some(fresh) = layout(&config, &testing, None) else { return Err(too_small) };
    // A log without room serves until it is known what is there.
    let blank = Layout { records_max: 1, segments_max: 1, ..fresh };
    let log = Log::new(blank, testing, Superblock::new([0; 16], fresh.segment_bytes), parts(&config, &*medium));
    let inner = Inner::new(medium, config, testing, log);
    match begin(&inner, fresh) {
        Ok(()) => Ok(inner),
        Err(error) => {
            inner.lock().is_closing = true;
            inner.medium.close(inner.config.deadline_millis);
            Err(error)
        }
    }
}

fn parts(config: &DiskConfig, medium: &dyn Medium) -> Parts {
    Parts {
        second_hit: config.admission == Admission::SecondHit,
        write_limit_bytes_s: config.write_limit_bytes_s,
        depth: medium.depth(),
        probe_millis: config.probe_millis,
        stage: config.stage,
        bounce_bytes: config.bounce_bytes,
    }
}

fn begin(inner: &Arc<Inner>, fresh: Layout) -> Result<(), DiskError> {
    let found = read_superblocks(inner)?;
    let (superblock, layout, reformatted) = match found {
        Store::Sound(superblock) => {
            let (config, testing) = (&inner.config, &inner.testing);
            let layout = layout(config, testing, Some(superblock.segment_bytes)).ok_or_else(|| {
                let needed_bytes = least_budget(config, testing, superblock.segment_bytes);
                DiskError::BudgetOfStore { budget_bytes: config.budget_bytes, needed_bytes }
            })?;
            (Some(superblock), layout, 0)
        }
        Store::Damaged => (None, fresh, 1),
        Store::None => (None, fresh, 0),
    };
    let mut superblock = match superblock {
        Some(superblock) => superblock,
        None => {
            clear(inner).map_err(|source| DiskError::Files { what: "clear the store", source })?;
            Superblock::new(random_id(), fresh.segment_bytes)
        }
    };
    make_superblock_files(inner).map_err(|source| DiskError::Files { what: "make the superblocks", source })?;
    let recovery = Recovery::new(&superblock);
    superblock.run += 1;
    {
        let mut log = inner.lock();
        let (next, allocated_bytes) = (log.next, log.allocated_bytes);
        let counters = log.counters;
        let flights = std::mem::take(&mut log.flights);
        *log = Log::new(layout, inner.testing, superblock, parts(&inner.config, &*inner.medium));
        (log.next, log.allocated_bytes, log.counters, log.flights) = (next, allocated_bytes, counters, flights);
        log.counters.reformatted = reformatted;
        log.recovery = Some(recovery);
    }
    // From here on the mark of an orderly end is gone: what is written now is not in the snapshot.
    inner.write_superblocks(|_| None)
}

/// Reads both copies and notes which are sound. Errors: another version; copies that cannot be read while the other is not sound.
pub(crate) fn read_superblocks(inner: &Inner) -> Result<Store, DiskError> {
    let files = inner.list_files().map_err(|source| DiskError::Files { what: "list the store's files", source })?;
    let is_any = files.iter().any(|(file, _)| file.0 <= FileId::segment(0).0 || file.0 > FileId::SNAPSHOT.0);
    let mut sound: Option<Superblock> = None;
    let mut unreadable: Option<IoError> = None;
    let mut copies = inner.superblocks.lock().unwrap_or_else(PoisonError::into_inner);
    for (file, copy) in FileId::SUPERBLOCKS.into_iter().zip(&mut *copies) {
        *copy = CopyState::Torn;
        if !files.iter().any(|(found, info)| *found == file && info.bytes >= superblock::BYTES) {
            continue;
        }
        match inner.perform_one(Request::read(file, 0, superblock::BYTES), "read the superblock") {
            Err(error) => unreadable = Some(error),
            Ok(buffer) => match Superblock::decode(buffer.as_slice()) {
                Found::OtherVersion(found) => return Err(DiskError::Version { found, supported: VERSION }),
                Found::Sound(found) => {
                    *copy = CopyState::Sound;
                    if sound.as_ref().is_none_or(|other| other.sequence < found.sequence) {
                        sound = Some(found);
                    }
                }
                Found::Damaged => {}
            },
        }
    }
    match (sound, unreadable) {
        (Some(superblock), _) => Ok(Store::Sound(superblock)),
        (None, Some(source)) => Err(DiskError::Io { what: "read the superblock", source }),
        (None, None) if is_any => Ok(Store::Damaged),
        (None, None) => Ok(Store::None),
    }
}

/// Removes everything of a store that counts for nothing any more.
fn clear(inner: &Inner) -> io::Result<()> {
    for (file, _) in inner.medium.files()? {
        inner.medium.remove(file)?;
    }
    Ok(())
}

fn make_superblock_files(inner: &Inner) -> io::Result<()> {
    let files = inner.list_files()?;
    for file in FileId::SUPERBLOCKS {
        if !files.iter().any(|(found, info)| *found == file && info.bytes == superblock::BYTES) {
            inner.medium.create(file, superblock::BYTES)?;
        }
    }
    inner.list_files().map(drop)
}
