//! A medium over an [`Image`].

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rustix::io::Errno;

use super::super::check;
use super::super::ends::{Ends, ended, lock};
use super::super::pool::{Act, Pool};
use super::super::{FileId, FileInfo, IoError, Kind, Medium, Operation, Sink};
use super::Image;

/// When operations on memory end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Inside `submit`, on the caller's thread, in order. What the sink submits runs after its call has returned, not inside it. The caller
    /// must not hold a lock that its sink takes.
    Inline,
    /// On threads of the medium, as the kernel's twin does it; with one thread in the order of submission. Operations older than the
    /// deadline (0: none) end as timed out while their thread is stuck.
    Threads {
        /// How many.
        threads: usize,
        /// Deadline in milliseconds.
        deadline_millis: u64,
    },
    /// When the test says so, by [`MemoryMedium::step`]; nothing is read or written before.
    Stepped,
}

impl Completion {
    /// One thread, no deadline: deterministic, and never inside `submit`.
    pub const THREAD: Completion = Completion::Threads { threads: 1, deadline_millis: 0 };
}

/// Operations that end on the caller's thread.
#[derive(Default)]
struct Line {
    waiting: VecDeque<Operation>,
    /// Somebody is ending operations further up the stack, or on another thread.
    busy: bool,
    closed: bool,
}

enum Way {
    Line { line: Mutex<Line>, ends: Arc<Ends>, stepped: bool },
    Pool(Pool),
}

/// A medium over files in memory.
pub struct MemoryMedium {
    disk: Arc<MemoryDisk>,
    way: Way,
}

struct MemoryDisk {
    image: Mutex<Image>,
    limit_bytes: AtomicU64,
    stalled: Mutex<bool>,
    released: Condvar,
}

impl MemoryMedium {
    /// An empty one.
    pub fn new(completion: Completion) -> Arc<MemoryMedium> {
        MemoryMedium::over(Image::new(), completion)
    }

    /// Over the files of an image.
    pub fn over(image: Image, completion: Completion) -> Arc<MemoryMedium> {
        let disk = Arc::new(MemoryDisk {
            image: Mutex::new(image),
            limit_bytes: AtomicU64::new(u64::MAX),
            stalled: Mutex::new(false),
            released: Condvar::new(),
        });
        let line = |stepped| Way::Line { line: Mutex::default(), ends: Arc::new(Ends::new()), stepped };
        let way = match completion {
            Completion::Inline => line(false),
            Completion::Stepped => line(true),
            Completion::Threads { threads, deadline_millis } => Way::Pool(
                Pool::start(Arc::clone(&disk) as Arc<dyn Act>, threads, DEPTH, deadline_millis)
                    .expect("a test can start threads"),
            ),
        };
        Arc::new(MemoryMedium { disk, way })
    }

    /// The files as they are now.
    pub fn image(&self) -> Image {
        lock(&self.disk.image).clone()
    }

    /// Changes the files under whoever uses them.
    pub fn edit<T>(&self, change: impl FnOnce(&mut Image) -> T) -> T {
        change(&mut lock(&self.disk.image))
    }

    /// From now on all files together may take so many bytes; a create beyond ends in ENOSPC.
    pub fn limit(&self, bytes: u64) {
        self.disk.limit_bytes.store(bytes, Ordering::SeqCst);
    }

    /// Stops or starts a drive that answers nothing: with [`Completion::Threads`] its threads are stuck inside their operations meanwhile.
    pub fn stall(&self, stalled: bool) {
        *lock(&self.disk.stalled) = stalled;
        self.disk.released.notify_all();
    }

    /// Operations that wait for a step.
    pub fn waiting(&self) -> usize {
        match &self.way {
            Way::Line { line, .. } => lock(line).waiting.len(),
            Way::Pool(_) => 0,
        }
    }

    /// Performs and ends up to `count` operations in the order of submission, those included that the sink submits meanwhile. Returns how many.
    pub fn step(&self, count: usize) -> usize {
        (0..count).take_while(|_| self.step_at(0)).count()
    }

    /// Performs and ends the `index`-th waiting operation: any order is allowed to a drive.
    pub fn step_at(&self, index: usize) -> bool {
        let Way::Line { line, ends, .. } = &self.way else { return false };
        let Some(mut op) = lock(line).waiting.remove(index) else { return false };
        let result = self.disk.act(&mut op);
        ends.tell(vec![ended(op, result)]);
        true
    }

    /// Whether an operation would be performed: aligned, its file there, and, for a write, inside of it.
    pub(super) fn accepts(&self, op: &Operation) -> bool {
        let bytes = lock(&self.disk.image).bytes(op.file);
        check::operation(op).is_ok() && bytes.is_some_and(|bytes| check::write_end(op, bytes).is_ok())
    }
}

const DEPTH: usize = 64;

impl Act for MemoryDisk {
    fn act(&self, op: &mut Operation) -> Result<(), IoError> {
        let mut stalled = lock(&self.stalled);
        while *stalled {
            stalled = self.released.wait(stalled).unwrap_or_else(PoisonError::into_inner);
        }
        drop(stalled);
        check::operation(op)?;
        let mut image = lock(&self.image);
        let file_bytes = image.bytes(op.file).ok_or(check::errno(Errno::NOENT))?;
        check::write_end(op, file_bytes)?;
        let (range, asked_bytes) = (op.range.start as usize..op.range.end as usize, op.range.end - op.range.start);
        let done_bytes = match op.kind {
            Kind::Sync => return Ok(()),
            Kind::Read => image.read(op.file, op.offset, &mut op.memory.as_mut_slice()[range]),
            Kind::Write => image.write(op.file, op.offset, &op.memory.as_slice()[range]),
        } as u64;
        if done_bytes == asked_bytes { Ok(()) } else { Err(IoError::Short { done_bytes, asked_bytes }) }
    }
}

impl Medium for MemoryMedium {
    fn files(&self) -> io::Result<Vec<(FileId, FileInfo)>> {
        Ok(lock(&self.disk.image).files())
    }

    fn create(&self, file: FileId, bytes: u64) -> io::Result<()> {
        let mut image = lock(&self.disk.image);
        image.create(file, bytes);
        if image.allocated_bytes() > self.disk.limit_bytes.load(Ordering::SeqCst) {
            image.remove(file);
            return Err(Errno::NOSPC.into());
        }
        Ok(())
    }

    fn remove(&self, file: FileId) -> io::Result<()> {
        lock(&self.disk.image).remove(file);
        Ok(())
    }

    fn connect(&self, sink: Arc<dyn Sink>) {
        match &self.way {
            Way::Line { ends, .. } => ends.connect(sink),
            Way::Pool(pool) => pool.connect(sink),
        }
    }

    fn submit(&self, batch: Vec<Operation>) {
        let (line, ends, stepped) = match &self.way {
            Way::Line { line, ends, stepped } => (line, ends, *stepped),
            Way::Pool(pool) => return pool.submit(batch),
        };
        let mut guard = lock(line);
        if guard.closed {
            drop(guard);
            return ends.refuse(batch);
        }
        guard.waiting.extend(batch);
        if stepped || std::mem::replace(&mut guard.busy, true) {
            return;
        }
        drop(guard);
        loop {
            while self.step_at(0) {}
            // Whoever came while we were busy has left its operations to us: look again under the lock that clears the mark.
            let mut guard = lock(line);
            if guard.waiting.is_empty() {
                guard.busy = false;
                return;
            }
        }
    }

    fn depth(&self) -> usize {
        DEPTH
    }

    fn describe(&self) -> String {
        match &self.way {
            Way::Line { stepped: false, .. } => "memory, inline".into(),
            Way::Line { stepped: true, .. } => "memory, stepped".into(),
            Way::Pool(pool) => format!("memory, {} threads", pool.threads()),
        }
    }

    fn close(&self, millis: u64) {
        match &self.way {
            Way::Line { line, ends, .. } => {
                let waiting: Vec<Operation> = {
                    let mut guard = lock(line);
                    guard.closed = true;
                    guard.waiting.drain(..).collect()
                };
                ends.tell(waiting.into_iter().map(|op| ended(op, Err(IoError::Closed))).collect());
                ends.close();
            }
            Way::Pool(pool) => pool.close(millis),
        }
    }
}
