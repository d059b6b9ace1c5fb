//! What the tests of mediums share: a listener, lent memory, and every medium there is.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cache_core::buffer::Buffer;
use disk_tier::io::rig::{Completion, CrashMedium, FailNth, Fault, Image, MemoryMedium, Plan, SplitMix64};
use disk_tier::io::{Directory, Done, FileId, IoChoice, IoError, Kind, Medium, Memory, Operation, Region, Sink};

/// Longer than anything here takes on a machine that works; a test that waits so long fails.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const FILE: FileId = FileId(3);
pub const PAGE: u64 = 4096;

/// Hears of ends and hands them to the test.
pub struct Listener {
    sender: Mutex<Sender<Done>>,
    receiver: Mutex<Receiver<Done>>,
}

impl Listener {
    pub fn on(medium: &dyn Medium) -> Arc<Listener> {
        let (sender, receiver) = channel();
        let listener = Arc::new(Listener { sender: Mutex::new(sender), receiver: Mutex::new(receiver) });
        medium.connect(Arc::clone(&listener) as Arc<dyn Sink>);
        listener
    }

    /// The next end.
    pub fn next(&self) -> Done {
        self.receiver.lock().unwrap().recv_timeout(PATIENCE).expect("an operation ends")
    }

    /// The next so many ends, by id.
    pub fn take(&self, count: usize) -> Vec<Done> {
        let mut ended: Vec<Done> = (0..count).map(|_| self.next()).collect();
        ended.sort_by_key(|done| done.id);
        ended
    }

    /// The next end if it comes within `wait`.
    pub fn within(&self, wait: Duration) -> Option<Done> {
        self.receiver.lock().unwrap().recv_timeout(wait).ok()
    }
}

impl Sink for Listener {
    fn done(&self, ended: Vec<Done>) {
        let sender = self.sender.lock().unwrap();
        for done in ended {
            sender.send(done).expect("the listener lives");
        }
    }
}

/// Shared pages, as the host arena has them.
pub struct Pages {
    address: *mut u8,
    bytes: u64,
}

// SAFETY: the mapping belongs to the value and is reached only through lent parts, whose guards the tests hold.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

// SAFETY: a mapping of whole pages that lives until the value is dropped; tests lend disjoint parts.
unsafe impl Region for Pages {
    fn address(&self) -> *mut u8 {
        self.address
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Pages {
    pub fn new(bytes: u64) -> Arc<Pages> {
        use rustix::fs::MemfdFlags;
        use rustix::mm::{MapFlags, ProtFlags};
        let memfd = rustix::fs::memfd_create("io-test", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memfd, bytes).unwrap();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes as usize, protection, MapFlags::SHARED, &memfd, 0) };
        Arc::new(Pages { address: address.unwrap().cast(), bytes })
    }

    /// A part of it, with a guard that counts itself out when it goes.
    pub fn lend(self: &Arc<Pages>, offset: u64, bytes: u64, out: &Arc<AtomicUsize>) -> Memory {
        out.fetch_add(1, Ordering::SeqCst);
        Memory::Lent {
            region: Arc::clone(self) as Arc<dyn Region>,
            offset,
            bytes,
            guard: Box::new(Guard(Arc::clone(out))),
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`; nobody holds a part, since each part holds the region.
        unsafe { rustix::mm::munmap(self.address.cast(), self.bytes as usize) }.unwrap();
    }
}

struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A medium under test.
pub struct Subject {
    pub name: &'static str,
    pub medium: Arc<dyn Medium>,
    pub listener: Arc<Listener>,
    pub pages: Arc<Pages>,
    _directory: Option<tempfile::TempDir>,
}

pub const REGION_BYTES: u64 = 4 << 20;
pub const DEADLINE_MILLIS: u64 = 30_000;

/// A directory on a file system with direct I/O where there is one: beside the test program.
pub fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub fn open(path: &Path, choice: IoChoice, pages: &Arc<Pages>, depth: usize, deadline_millis: u64) -> Arc<dyn Medium> {
    Directory::open(path, choice, vec![Arc::clone(pages) as Arc<dyn Region>], depth, deadline_millis).expect("opens")
}

/// Name, and the way to the disk or the rig.
type Candidate = (&'static str, Option<IoChoice>, Option<Arc<dyn Medium>>);

/// Calls `check` with every medium, each empty and connected.
pub fn each(check: impl Fn(&Subject)) {
    let threads = |threads| Completion::Threads { threads, deadline_millis: DEADLINE_MILLIS };
    let crash = |completion| CrashMedium::over(Image::new(), completion, u64::MAX);
    let kinds: [Candidate; 8] = [
        ("io_uring", Some(IoChoice::IoUring), None),
        ("pread", Some(IoChoice::Pread), None),
        ("memory inline", None, Some(MemoryMedium::new(Completion::Inline))),
        ("memory on a thread", None, Some(MemoryMedium::new(Completion::THREAD))),
        ("memory on threads", None, Some(MemoryMedium::new(threads(4)))),
        ("crash inline", None, Some(crash(Completion::Inline))),
        ("crash on a thread", None, Some(crash(Completion::THREAD))),
        ("fail never", None, Some(FailNth::new(crash(Completion::THREAD), Plan::nth(u64::MAX, Fault::Short)))),
    ];
    for (name, choice, medium) in kinds {
        let pages = Pages::new(REGION_BYTES);
        let directory = choice.map(|_| directory());
        let medium = match (choice, &directory, medium) {
            (Some(choice), Some(directory), _) => open(directory.path(), choice, &pages, 16, DEADLINE_MILLIS),
            (_, _, Some(medium)) => medium,
            _ => unreachable!("a subject is a directory or a rig"),
        };
        println!("{name}: {}", medium.describe());
        let subject = Subject { name, listener: Listener::on(&*medium), medium, pages, _directory: directory };
        check(&subject);
        subject.medium.close(10_000);
    }
}

pub fn owned(bytes: u64) -> Memory {
    Memory::Owned(Buffer::zeroed(bytes as usize))
}

/// Bytes of a seed.
pub fn pattern(seed: u64, bytes: u64) -> Vec<u8> {
    let mut random = SplitMix64::new(seed);
    (0..bytes / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

pub fn filled(seed: u64, bytes: u64) -> Memory {
    fill(owned(bytes), seed)
}

pub fn fill(mut memory: Memory, seed: u64) -> Memory {
    let bytes = memory.bytes();
    memory.as_mut_slice().copy_from_slice(&pattern(seed, bytes));
    memory
}

pub fn operation(id: u64, kind: Kind, file: FileId, offset: u64, memory: Memory) -> Operation {
    let range = 0..memory.bytes();
    Operation { id, kind, file, offset, memory, range }
}

pub fn sync(id: u64, file: FileId) -> Operation {
    operation(id, Kind::Sync, file, 0, owned(0))
}

impl Subject {
    /// Performs one operation.
    pub fn run(&self, op: Operation) -> Done {
        self.medium.submit(vec![op]);
        self.listener.next()
    }

    pub fn write(&self, file: FileId, offset: u64, seed: u64, bytes: u64) -> Result<(), IoError> {
        self.run(operation(1, Kind::Write, file, offset, filled(seed, bytes))).result
    }

    pub fn read(&self, file: FileId, offset: u64, bytes: u64) -> (Vec<u8>, Result<(), IoError>) {
        let done = self.run(operation(2, Kind::Read, file, offset, owned(bytes)));
        (done.memory.expect("comes back").as_slice().to_vec(), done.result)
    }
}
