//! What a power cut leaves: a medium that keeps the bytes a reader sees apart from the bytes that are safe.
//!
//! A write is *pending* from its submission until a sync of its file that was submitted after the write's end has ended (or, with a window,
//! until so many bytes of newer writes are pending: a drive's cache is not endless). A crash keeps or drops pending writes by a seed, each
//! 512-byte sector for itself in the harshest styles. Creating and removing files is durable at once, as `Medium` promises.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use super::super::ends::{Ends, lock};
use super::super::{Done, FileId, FileInfo, Kind, Medium, Operation, Sink};
use super::{Completion, Image, MemoryMedium, SECTOR_BYTES, SplitMix64};

/// How a crash treats pending writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashStyle {
    /// All are lost.
    Nothing,
    /// All are there, in order: the process died, not the machine.
    Everything,
    /// In order up to a point, and there one write is torn at a sector: a drive without reordering.
    Prefix,
    /// Each write is kept whole or dropped whole; kept ones in order.
    Writes,
    /// As `Writes`, and applied in a random order: an older write of a sector may win over a newer one.
    ReorderedWrites,
    /// Each sector of each write is kept or dropped; in order.
    Sectors,
    /// As `Sectors`, in a random order.
    ReorderedSectors,
}

impl CrashStyle {
    /// All of them.
    pub const ALL: [CrashStyle; 7] = [
        CrashStyle::Nothing,
        CrashStyle::Everything,
        CrashStyle::Prefix,
        CrashStyle::Writes,
        CrashStyle::ReorderedWrites,
        CrashStyle::Sectors,
        CrashStyle::ReorderedSectors,
    ];
}

struct Pending {
    id: u64,
    file: FileId,
    offset: u64,
    bytes: Vec<u8>,
    submitted: u64,
    ended: Option<u64>,
}

#[derive(Default)]
struct Journal {
    durable: Image,
    /// By submission.
    pending: Vec<Pending>,
    pending_bytes: u64,
    /// File, and the moment of submission.
    syncs: HashMap<u64, (FileId, u64)>,
    /// Counts submissions and ends.
    moment: u64,
    lie: bool,
}

impl Journal {
    fn tick(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// Makes those writes durable, oldest first.
    fn settle(&mut self, safe: impl Fn(&Pending) -> bool) {
        let durable = &mut self.durable;
        let pending_bytes = &mut self.pending_bytes;
        self.pending.retain(|write| {
            let safe = safe(write);
            if safe {
                durable.write(write.file, write.offset, &write.bytes);
                *pending_bytes -= write.bytes.len() as u64;
            }
            !safe
        });
    }

    /// Makes the oldest ended writes durable until the rest fits into the window.
    fn squeeze(&mut self, window_bytes: u64) {
        let mut over = self.pending_bytes.saturating_sub(window_bytes);
        let mut last = None;
        for write in self.pending.iter().filter(|write| write.ended.is_some()) {
            if over == 0 {
                break;
            }
            over = over.saturating_sub(write.bytes.len() as u64);
            last = Some(write.submitted);
        }
        if let Some(last) = last {
            self.settle(|write| write.ended.is_some() && write.submitted <= last);
        }
    }
}

/// A medium in memory that can say, at any moment, what a power cut would leave.
pub struct CrashMedium {
    live: Arc<MemoryMedium>,
    tap: Arc<Tap>,
}

impl CrashMedium {
    /// Over an image, all of it durable. Of the writes since the last sync, those behind the newest `window_bytes` become durable in order
    /// (`u64::MAX`: none does). With [`Completion::Stepped`] a crash between two steps meets operations under way.
    pub fn over(image: Image, completion: Completion, window_bytes: u64) -> Arc<CrashMedium> {
        let journal = Journal { durable: image.clone(), ..Journal::default() };
        let tap = Arc::new(Tap { journal: Mutex::new(journal), ends: Ends::new(), window_bytes });
        let live = MemoryMedium::over(image, completion);
        live.connect(Arc::clone(&tap) as Arc<dyn Sink>);
        Arc::new(CrashMedium { live, tap })
    }

    /// The medium that readers see: to step it, to limit it, to edit it.
    pub fn live(&self) -> &MemoryMedium {
        &self.live
    }

    /// The bytes that are safe.
    pub fn durable(&self) -> Image {
        lock(&self.tap.journal).durable.clone()
    }

    /// Writes that a crash could lose.
    pub fn pending_writes(&self) -> usize {
        lock(&self.tap.journal).pending.len()
    }

    /// From now on syncs end well and make nothing durable: a drive that lies.
    pub fn ignore_syncs(&self, lie: bool) {
        lock(&self.tap.journal).lie = lie;
    }

    /// What a power cut leaves now; style and odds by the seed.
    pub fn crash(&self, seed: u64) -> Image {
        let mut random = SplitMix64::new(seed);
        let style = CrashStyle::ALL[random.below(CrashStyle::ALL.len() as u64) as usize];
        self.crash_with(style, random.next())
    }

    /// What a power cut leaves now, in one style.
    pub fn crash_with(&self, style: CrashStyle, seed: u64) -> Image {
        let mut random = SplitMix64::new(seed);
        let journal = lock(&self.tap.journal);
        let mut image = journal.durable.clone();
        let mut writes: Vec<&Pending> = journal.pending.iter().collect();
        // Seldom, often, or half the time: even odds alone would hardly ever keep or lose a long run of sectors.
        let keep_of_256 = [16, 128, 240][random.below(3) as usize];
        match style {
            CrashStyle::Nothing => writes.clear(),
            CrashStyle::Everything | CrashStyle::Sectors => {}
            CrashStyle::Prefix => {
                writes.truncate(random.below(writes.len() as u64 + 1) as usize);
            }
            CrashStyle::Writes => writes.retain(|_| random.chance(keep_of_256)),
            CrashStyle::ReorderedWrites => {
                writes.retain(|_| random.chance(keep_of_256));
                random.shuffle(&mut writes);
            }
            CrashStyle::ReorderedSectors => random.shuffle(&mut writes),
        }
        let torn = matches!(style, CrashStyle::Sectors | CrashStyle::ReorderedSectors);
        let last = writes.len().saturating_sub(1);
        for (index, write) in writes.into_iter().enumerate() {
            let sectors = write.bytes.chunks(SECTOR_BYTES as usize).enumerate();
            let cut = if style == CrashStyle::Prefix && index == last {
                random.below(sectors.len() as u64 + 1)
            } else {
                u64::MAX
            };
            if !torn && cut == u64::MAX {
                image.write(write.file, write.offset, &write.bytes);
                continue;
            }
            for (sector, bytes) in sectors {
                let sector = sector as u64;
                if sector < cut && (!torn || random.chance(keep_of_256)) {
                    image.write(write.file, write.offset + sector * SECTOR_BYTES, bytes);
                }
            }
        }
        image
    }
}

impl Medium for CrashMedium {
    fn files(&self) -> io::Result<Vec<(FileId, FileInfo)>> {
        self.live.files()
    }

    fn create(&self, file: FileId, bytes: u64) -> io::Result<()> {
        let mut journal = lock(&self.tap.journal);
        let created = self.live.create(file, bytes);
        match created {
            Ok(()) => journal.durable.create(file, bytes),
            Err(_) => journal.durable.remove(file),
        }
        created
    }

    fn remove(&self, file: FileId) -> io::Result<()> {
        let mut journal = lock(&self.tap.journal);
        journal.durable.remove(file);
        journal.pending.retain(|write| write.file != file);
        journal.pending_bytes = journal.pending.iter().map(|write| write.bytes.len() as u64).sum();
        self.live.remove(file)
    }

    fn connect(&self, sink: Arc<dyn Sink>) {
        self.tap.ends.connect(sink);
    }

    fn submit(&self, batch: Vec<Operation>) {
        let mut journal = lock(&self.tap.journal);
        for op in &batch {
            let submitted = journal.tick();
            match op.kind {
                Kind::Read => {}
                Kind::Sync => {
                    journal.syncs.insert(op.id, (op.file, submitted));
                }
                Kind::Write if self.live.accepts(op) => {
                    let bytes = op.memory.as_slice()[op.range.start as usize..op.range.end as usize].to_vec();
                    journal.pending_bytes += bytes.len() as u64;
                    journal.pending.push(Pending {
                        id: op.id,
                        file: op.file,
                        offset: op.offset,
                        bytes,
                        submitted,
                        ended: None,
                    });
                }
                Kind::Write => {}
            }
        }
        drop(journal);
        self.live.submit(batch);
    }

    fn depth(&self) -> usize {
        self.live.depth()
    }

    fn describe(&self) -> String {
        format!("{}, with crashes", self.live.describe())
    }

    fn close(&self, millis: u64) {
        self.live.close(millis);
        self.tap.ends.close();
    }
}

/// Stands between the live medium and the log.
struct Tap {
    journal: Mutex<Journal>,
    ends: Ends,
    window_bytes: u64,
}

impl Sink for Tap {
    fn done(&self, ended: Vec<Done>) {
        let mut journal = lock(&self.journal);
        for done in &ended {
            let now = journal.tick();
            // The latest of that name: a log may use a number again once it has ended.
            if let Some(write) =
                journal.pending.iter_mut().rev().find(|write| write.id == done.id && write.ended.is_none())
            {
                write.ended = Some(now);
            }
            if let Some((file, submitted)) = journal.syncs.remove(&done.id)
                && done.result.is_ok()
                && !journal.lie
            {
                journal.settle(|write| write.file == file && write.ended.is_some_and(|ended| ended < submitted));
            }
        }
        journal.squeeze(self.window_bytes);
        drop(journal);
        self.ends.tell(ended);
    }
}
