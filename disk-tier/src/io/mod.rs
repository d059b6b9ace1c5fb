//! The medium under the log: numbered files in one directory, operations that own their memory until they have ended.
//!
//! The log never touches a file itself. It hands batches of [`Operation`]s to a [`Medium`] and hears of each exactly once through its
//! [`Sink`]. A medium may be the kernel (io_uring, or a pool of threads over `pread`/`pwrite`), or a rig that fails, delays, drops,
//! reorders or tears.

use std::any::Any;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use cache_core::buffer::Buffer;

#[expect(unsafe_code, reason = "slices of lent memory")]
mod bytes;
mod check;
mod ends;
mod files;
#[expect(unsafe_code, reason = "ring submission")]
mod flights;
mod open;
mod pool;
mod pread;
#[cfg(feature = "testing")]
pub mod rig;
#[expect(unsafe_code, reason = "ring submission")]
mod uring;

pub use open::{Directory, IO_ENV, IoChoice, OpenError};

/// Alignment of offsets, lengths and addresses of every operation, in bytes.
pub const ALIGN_BYTES: u64 = 4096;

/// A file of the store: 0 and 1 are the superblocks, 2 the index snapshot, 3 and up the segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

impl FileId {
    /// The two superblock copies.
    pub const SUPERBLOCKS: [FileId; 2] = [FileId(0), FileId(1)];
    /// The index snapshot of an orderly end.
    pub const SNAPSHOT: FileId = FileId(2);

    /// The file of a segment.
    pub fn segment(index: u32) -> FileId {
        FileId(3 + index)
    }
}

/// Memory of another tier that operations read from and write to directly, for instance an extent of the host arena.
///
/// # Safety
/// `address` is page-aligned and valid for reads and writes of `bytes` bytes as long as the value lives. Whoever lends a part of it to
/// an operation keeps everyone else from writing that part (for a write of the medium) or from touching it as anything but bytes that may
/// change (for a read of the medium) until the operation has ended.
#[expect(unsafe_code, reason = "a promise about raw memory that its owner makes")]
pub unsafe trait Region: Send + Sync {
    /// First byte.
    fn address(&self) -> *mut u8;
    /// Length in bytes, whole pages.
    fn bytes(&self) -> u64;
}

/// The memory of one operation.
pub enum Memory {
    /// The operation's own.
    Owned(Buffer),
    /// A part of a region, with whatever keeps others away from it (a slot, a lease).
    Lent {
        /// The region.
        region: Arc<dyn Region>,
        /// First byte in the region; a multiple of [`ALIGN_BYTES`].
        offset: u64,
        /// Length; a multiple of [`ALIGN_BYTES`].
        bytes: u64,
        /// Dropped when the operation has ended and its result was taken.
        guard: Box<dyn Any + Send>,
    },
}

impl Memory {
    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Memory::Owned(buffer) => buffer.as_slice().len() as u64,
            Memory::Lent { bytes, .. } => *bytes,
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if matches!(self, Memory::Owned(_)) { "Owned" } else { "Lent" };
        write!(f, "Memory::{kind}({} bytes)", self.bytes())
    }
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// File to memory.
    Read,
    /// Memory to file; the file never grows.
    Write,
    /// Everything written to the file so far is durable when this ends. Its memory and range are ignored.
    Sync,
}

/// One operation.
#[derive(Debug)]
pub struct Operation {
    /// Chosen by the log; names the operation in its [`Done`].
    pub id: u64,
    /// Read, write or sync.
    pub kind: Kind,
    /// The file.
    pub file: FileId,
    /// First byte in the file; a multiple of [`ALIGN_BYTES`].
    pub offset: u64,
    /// What is read into or written from.
    pub memory: Memory,
    /// The part of `memory` that takes part; bounds are multiples of [`ALIGN_BYTES`].
    pub range: Range<u64>,
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// The kernel's word, as an errno.
    #[error("use the disk: {}", io::Error::from_raw_os_error(*.0))]
    Errno(i32),
    /// Fewer bytes than asked for.
    #[error("use the disk: {done_bytes} bytes of {asked_bytes} were moved")]
    Short {
        /// Moved.
        done_bytes: u64,
        /// Asked for.
        asked_bytes: u64,
    },
    /// Not ended within the medium's deadline. The medium keeps the memory until the kernel has given it back.
    #[error("use the disk: no answer after {millis} ms")]
    TimedOut {
        /// The deadline.
        millis: u64,
    },
    /// The medium was closed before the operation was started.
    #[error("use the disk: it is closed")]
    Closed,
}

/// The end of an operation.
#[derive(Debug)]
pub struct Done {
    /// Which operation.
    pub id: u64,
    /// Its memory; `None` when it timed out.
    pub memory: Option<Memory>,
    /// How it ended: every byte was moved, or an error.
    pub result: Result<(), IoError>,
}

/// Hears of ended operations, from the medium's threads.
pub trait Sink: Send + Sync {
    /// Takes the ends of some operations, each exactly once. Must not block for long; may submit further operations.
    fn done(&self, ended: Vec<Done>);
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Its length in bytes.
    pub bytes: u64,
    /// Bytes of disk that it occupies.
    pub allocated_bytes: u64,
}

/// Numbered files and operations on them. Setting-up calls block; operations do not.
pub trait Medium: Send + Sync {
    /// Files that exist, by number.
    fn files(&self) -> io::Result<Vec<(FileId, FileInfo)>>;
    /// Makes a file of so many bytes, preallocated where the file system can, and durable as a name; an existing one is set to that
    /// length. Errors: the system's, ENOSPC among them, and then the file is not there.
    fn create(&self, file: FileId, bytes: u64) -> io::Result<()>;
    /// Removes a file; one that is not there is no error.
    fn remove(&self, file: FileId) -> io::Result<()>;
    /// Who hears of operations; called once, before the first [`Medium::submit`].
    fn connect(&self, sink: Arc<dyn Sink>);
    /// Starts operations. Each ends in one [`Done`], errors included; a caller keeps at most [`Medium::depth`] under way.
    fn submit(&self, batch: Vec<Operation>);
    /// Operations that may be under way at once.
    fn depth(&self) -> usize;
    /// What it is, for people: `io_uring, O_DIRECT, registered buffers`.
    fn describe(&self) -> String;
    /// Ends the medium: waits until the kernel has given back every buffer (or for so long), then stops its threads. What was not over in
    /// time holds what it needs, a folder's lock among it, until it is; another close waits for it once more.
    fn close(&self, millis: u64);
}
