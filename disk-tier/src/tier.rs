//! The disk tier as the rest of kvtier sees it.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use cache_core::hash::Namespace;
use cache_core::key::CopyKey;
use cache_core::miss::MissReason;
use cache_core::payload::{BlockShape, Section};
use cache_core::store::OpId;

use crate::config::DiskConfig;
use crate::error::{DiskEnd, DiskError};
use crate::index::namespace_tag;
use crate::inner::Inner;
use crate::io::{ALIGN_BYTES, Directory, Medium, Memory};
use crate::keeper::FREE_WANTED;
use crate::layout::MINIMUM_BYTES;
use crate::open;
use crate::pin::Pin;
use crate::read::Wanted;
use crate::report::{DiskCapacity, DiskCounters, DiskDone, DiskState, RecordInfo};
use crate::stage::ByteStage;
use crate::staging;
use crate::testing::{PlantedBug, Testing};
use crate::write::{self, WriteRequest};

/// Blocks on disk. A handle; the last one that goes ends the tier as a crash would, unless [`DiskTier::close`] came first.
///
/// Operations are started here and end in a [`DiskDone`] each, which [`DiskTier::poll`] hands out. They never block on the disk.
#[derive(Clone)]
pub struct DiskTier(Arc<Handle>);

struct Handle {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Handle {
    fn join(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads.into_iter().filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // One that panicked has said so; there is nothing more to learn from it.
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inner.drop_all(|| self.join());
    }
}

/// The thread's life. A panic in it takes the tier offline for good, rather than leaving it to fill up in silence.
fn keep(inner: &Arc<Inner>) {
    if catch_unwind(AssertUnwindSafe(|| inner.keep())).is_err() {
        let now = inner.now();
        inner.change(|log| log.go_offline("the log's thread has panicked".into(), now));
    }
}

impl DiskTier {
    /// Opens the store of a directory, or begins one there. Returns when the superblocks were read and written; the index is read in the
    /// background. Errors: [`DiskError::Budget`], [`DiskError::BudgetOfStore`], [`DiskError::Version`], [`DiskError::Open`] (held by another process among them), and
    /// what the medium says.
    pub fn open(dir: &Path, config: DiskConfig) -> Result<DiskTier, DiskError> {
        if config.budget_bytes < MINIMUM_BYTES {
            return Err(DiskError::Budget { found_bytes: config.budget_bytes, minimum_bytes: MINIMUM_BYTES });
        }
        let regions = config.regions.clone();
        let medium =
            Directory::open(dir, config.io, regions, config.depth, config.deadline_millis).map_err(DiskError::Open)?;
        DiskTier::over(medium, config)
    }

    /// As [`DiskTier::open`], over any medium.
    pub fn over(medium: Arc<dyn Medium>, config: DiskConfig) -> Result<DiskTier, DiskError> {
        DiskTier::start(medium, config, Testing::default())
    }

    /// As [`DiskTier::over`], with switches for tests.
    #[cfg(feature = "testing")]
    pub fn over_with(medium: Arc<dyn Medium>, config: DiskConfig, testing: Testing) -> Result<DiskTier, DiskError> {
        DiskTier::start(medium, config, testing)
    }

    fn start(medium: Arc<dyn Medium>, config: DiskConfig, testing: Testing) -> Result<DiskTier, DiskError> {
        let inner = open::open(medium, config, testing)?;
        let handle = Handle { inner: Arc::clone(&inner), threads: Mutex::default() };
        let start = |thread: io::Result<JoinHandle<()>>| {
            let thread = thread.map_err(DiskError::Thread)?;
            handle.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
            Ok(())
        };
        if !testing.is_manual && inner.config.stage != ByteStage::Off {
            start(staging::start(&inner))?;
        }
        if !testing.is_manual {
            start(std::thread::Builder::new().name("disk-log-0".into()).spawn(move || keep(&inner)))?;
        }
        Ok(DiskTier(Arc::new(handle)))
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.0.inner
    }

    /// What the tier is doing.
    pub fn state(&self) -> DiskState {
        self.inner().lock().state()
    }

    /// Waits until the index was read, or so long; returns what the tier is doing then.
    pub fn wait_ready(&self, millis: u64) -> DiskState {
        let settled = |state: &DiskState| !matches!(state, DiskState::Recovering { .. });
        self.inner().wait_until(millis, |log| Some(log.state()).filter(settled)).unwrap_or_else(|| self.state())
    }

    /// The smallest budget, in bytes.
    pub fn minimum_bytes() -> u64 {
        MINIMUM_BYTES
    }

    /// Most index bytes for one record.
    pub fn index_record_bytes() -> u64 {
        crate::layout::INDEX_RECORD_BYTES
    }

    /// What the medium is, for people.
    pub fn describe(&self) -> String {
        self.inner().medium.describe()
    }

    /// Looks a key up in the index, without I/O. Says why it is not there.
    pub fn find(&self, key: &CopyKey) -> Result<RecordInfo, MissReason> {
        let mut log = self.inner().lock();
        let fingerprint = log.fingerprint(key);
        let found = log.lookup(&fingerprint);
        log.counters.misses += u64::from(found.is_err());
        found.map(|known| RecordInfo { bytes: known.location.bytes() })
    }

    /// [`DiskTier::find`] for many keys, as one step.
    pub fn find_all(&self, keys: &[CopyKey]) -> Vec<Result<RecordInfo, MissReason>> {
        let mut log = self.inner().lock();
        let mut misses = 0;
        let found = keys.iter().map(|key| {
            let found = log.lookup(&log.fingerprint(key));
            misses += u64::from(found.is_err());
            found.map(|known| RecordInfo { bytes: u64::from(known.location.pages) * ALIGN_BYTES })
        });
        let found = found.collect();
        log.counters.misses += misses;
        found
    }

    /// True when the index knows the record. Counts nothing.
    pub fn has(&self, key: &CopyKey) -> bool {
        let log = self.inner().lock();
        log.lookup(&log.fingerprint(key)).is_ok()
    }

    /// How long ago reclaim dropped a record that is not there any more, to the second. `None` when that is not remembered.
    pub fn dropped(&self, key: &CopyKey) -> Option<Duration> {
        let (inner, log) = (self.inner(), self.inner().lock());
        let seconds = log.ghosts.age(&log.fingerprint(key), inner.now())?;
        Some(Duration::from_secs(u64::from(seconds)))
    }

    /// Bytes of the records of a namespace.
    pub fn bytes_of(&self, namespace: &Namespace) -> u64 {
        self.inner().lock().index.pages_of(namespace_tag(namespace)) * ALIGN_BYTES
    }

    /// Pins a record that the index knows.
    pub fn pin(&self, key: &CopyKey) -> Option<Pin> {
        Pin::new(self.inner(), key)
    }

    /// Writes a whole sealed slot image; its header is verified now, its sections when they are read. [`DiskTier::submit_write`] verifies
    /// them before.
    pub fn write(&self, key: CopyKey, memory: Memory) -> OpId {
        self.submit_write(WriteRequest { key, shape: None, memory, is_live: false })
    }

    /// Writes a whole sealed slot image. It can be found once every byte was written without an error. The memory comes back as it was.
    pub fn submit_write(&self, request: WriteRequest) -> OpId {
        let checked = write::check(&request);
        let is_damaged = matches!(checked, Err(DiskEnd::Damaged(_)));
        let now = self.inner().now();
        self.inner().change(|log| {
            log.counters.damaged_writes += u64::from(is_damaged);
            log.start_write(request, checked, now)
        })
    }

    /// Reads a whole image into `memory`, which has exactly its size; header, place, identity and every section are verified.
    pub fn read(&self, key: CopyKey, shape: BlockShape, memory: Memory) -> OpId {
        let now = self.inner().now();
        self.inner().change(|log| log.start_read(key, shape, Wanted::Whole, memory, now))
    }

    /// Reads the pages around one section into `memory`, which holds at least [`crate::section_span`] of it; the section is verified against
    /// the record's header, which is read and verified once per pin. Of a staged record what is stored of the section is read into bounce memory
    /// and the section alone is written to `memory`, at the same place.
    pub fn read_section(&self, pin: &Pin, shape: BlockShape, section: Section, memory: Memory) -> OpId {
        let now = self.inner().now();
        let wanted = Wanted::Section(section, pin.header());
        self.inner().change(|log| log.start_read(*pin.key(), shape, wanted, memory, now))
    }

    /// Forgets a record: at once for everybody, and on disk before the operation ends.
    pub fn delete(&self, key: CopyKey) -> OpId {
        self.inner().change(|log| log.start_delete(key))
    }

    /// Moves finished operations to `out`.
    pub fn poll(&self, out: &mut Vec<DiskDone>) {
        out.extend(self.inner().lock().finished.drain(..));
    }

    /// Waits until a finished operation can be polled, or so long. True when there is one.
    pub fn wait(&self, millis: u64) -> bool {
        self.inner().wait_until(millis, |log| (!log.finished.is_empty()).then_some(())).is_some()
    }

    /// Deletes everything of a namespace. When this returns, no record of it that was stored before is served ever again, whatever crash
    /// follows. Errors: the medium's; the namespace is gone for this process all the same, and for good once the tier is back.
    pub fn delete_namespace(&self, namespace: Namespace) -> Result<(), DiskError> {
        {
            let mut log = self.inner().lock();
            if log.is_closing {
                return Err(DiskError::Closed);
            }
            log.counters.deleted_namespaces += 1;
            log.superblock.delete(namespace);
            log.forget_namespace(&namespace);
            if let DiskState::Offline { reason } = log.state() {
                return Err(DiskError::Offline { reason });
            }
        }
        if self.inner().testing.has(PlantedBug::ForgetDeletion) {
            return Ok(());
        }
        self.inner().write_superblocks(|_| None)
    }

    /// Waits until no operation is under way, or so long. True when none is.
    pub fn drain(&self, millis: u64) -> bool {
        self.inner().wait_until(millis, |log| (log.under_way == 0).then_some(())).is_some()
    }

    /// Makes segments until so many are free, for measurements that leave their making out. `false`: not in this time, or not in this budget.
    pub(crate) fn make_ahead(&self, segments: u32, millis: u64) -> bool {
        let wanted = segments as usize;
        self.inner().change(|log| (log.free_wanted, log.is_due) = (wanted, true));
        let made = self.inner().wait_until(millis, |log| (log.segments.free.len() >= wanted).then_some(()));
        self.inner().change(|log| log.free_wanted = FREE_WANTED);
        made.is_some()
    }

    /// True when so many operations are under way or not polled that no more are taken.
    pub(crate) fn is_busy(&self) -> bool {
        self.inner().lock().is_busy()
    }

    /// Operations under way.
    pub fn under_way(&self) -> usize {
        self.inner().lock().under_way
    }

    /// Ends the tier: waits for operations under way, seals segments, writes the index snapshot and the mark that lets it be trusted, syncs,
    /// and closes the medium. What is not done in time is left to recovery.
    pub fn close(&self, millis: u64) {
        self.inner().close(millis, || self.0.join());
    }

    /// What keeps the tier from using its whole budget, for people.
    pub fn notice(&self) -> Option<String> {
        let log = self.inner().lock();
        let (cap, word) = log.segments_cap.as_ref()?;
        Some(format!("{cap} of {} segments could be made: {word}", log.layout.segments_max))
    }

    /// Counts since the tier was opened.
    pub fn counters(&self) -> DiskCounters {
        self.inner().lock().counters
    }

    /// Sizes and use.
    pub fn capacity(&self) -> DiskCapacity {
        let log = self.inner().lock();
        DiskCapacity {
            budget_bytes: log.layout.budget_bytes,
            allocated_bytes: log.allocated_bytes,
            records: u64::from(log.index.len()),
            records_max: u64::from(log.index.capacity()),
            record_bytes: log.index.pages() * ALIGN_BYTES,
            index_bytes: log.index_bytes(),
            bounce_bytes: log.read_bounce.allocated_bytes() + log.write_bounce.allocated_bytes(),
            segments: log.segments_count(),
            segments_max: log.segments_limit(),
            segment_bytes: log.layout.segment_bytes,
            free_segments: log.segments.free.len() as u32,
            pinned: log.pins.len() as u64,
        }
    }

    /// Does one piece of the log's slow work, where it has no thread. `false`: there was none.
    #[cfg(feature = "testing")]
    pub fn step(&self) -> bool {
        self.inner().step()
    }
}

impl fmt::Debug for DiskTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskTier({}, {:?})", self.describe(), self.state())
    }
}
