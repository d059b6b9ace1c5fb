//! The files of a store in a directory: names, lock, descriptors, preallocation.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cache_core::buffer::{Buffer, PAGE_BYTES};
use rustix::fs::{AtFlags, Dir, FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::ends::lock;
use super::open::OpenError;
use super::{FileId, FileInfo};

/// Held as long as a medium, or an operation of it, lives. Always empty.
const LOCK_NAME: &str = "lock";
/// Written once at open to see whether direct I/O works here, and removed.
const PROBE_NAME: &str = "probe";
const SEGMENT_PREFIX: &str = "segment.";
/// Descriptors kept open. A segment that is not among them is opened again when it is used; the usual limit of a process is 1,024.
const DESCRIPTORS_MAX: usize = 256;
/// Block size of `st_blocks`, whatever the file system's own is.
const STAT_BLOCK_BYTES: u64 = 512;
/// File systems in memory: they take `O_DIRECT` (Linux 6.6 and later) and copy all the same.
const MEMORY_FILE_SYSTEMS: [(i64, &str); 2] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs")];

/// `superblock.0`, `superblock.1`, `index`, `segment.000001` (the first segment), ...
pub(super) fn file_name(file: FileId) -> String {
    match file {
        FileId(copy @ 0..=1) => format!("superblock.{copy}"),
        FileId::SNAPSHOT => "index".into(),
        FileId(number) => format!("{SEGMENT_PREFIX}{:06}", number - 2),
    }
}

/// The file of a name; `None` for names that are not ours.
pub(super) fn file_id(name: &str) -> Option<FileId> {
    let file = match name {
        "superblock.0" => FileId(0),
        "superblock.1" => FileId(1),
        "index" => FileId::SNAPSHOT,
        _ => {
            FileId(name.strip_prefix(SEGMENT_PREFIX)?.parse::<u32>().ok().filter(|number| *number > 0)?.checked_add(2)?)
        }
    };
    // Only the spelling that we write: `segment.7` and `segment.+00007` are somebody else's.
    (file_name(file) == name).then_some(file)
}

/// An open file.
pub(super) struct Open {
    pub(super) fd: OwnedFd,
    /// Its length as we made or found it; files never grow while running.
    pub(super) bytes: AtomicU64,
}

struct Cached {
    open: Arc<Open>,
    used: u64,
}

#[derive(Default)]
struct Cache {
    files: HashMap<FileId, Cached>,
    clock: u64,
}

/// The directory, locked.
pub(super) struct Files {
    path: PathBuf,
    directory: OwnedFd,
    _lock: OwnedFd,
    /// Why not, in words; `None` when `O_DIRECT` works.
    buffered: Option<String>,
    cache: Mutex<Cache>,
}

impl Files {
    /// Makes the directory where it is missing, locks it and sees whether direct I/O works in it.
    pub(super) fn open(path: &Path) -> Result<Files, OpenError> {
        let failed =
            |what: &'static str| move |source: io::Error| OpenError::Io { what, path: path.to_path_buf(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create the directory"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed("open the directory")(e.into()))?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let lock = rustix::fs::openat(&directory, LOCK_NAME, flags, mode)
            .map_err(|e| failed("open the lock file")(e.into()))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(OpenError::Held { path: path.to_path_buf() }),
            Err(errno) => return Err(failed("lock the directory")(errno.into())),
        }
        let buffered = probe_direct(&directory).map_err(|e| failed("write a file")(e.into()))?;
        Ok(Files { path: path.to_path_buf(), directory, _lock: lock, buffered, cache: Mutex::default() })
    }

    /// `O_DIRECT`, or why it is not used.
    pub(super) fn describe(&self) -> String {
        self.buffered.as_ref().map_or_else(|| "O_DIRECT".into(), |reason| format!("buffered ({reason})"))
    }

    /// Files that exist, looked up by name, so that one removed behind our back is noticed.
    pub(super) fn list(&self) -> io::Result<Vec<(FileId, FileInfo)>> {
        if rustix::fs::fstat(&self.directory)?.st_nlink == 0 {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("the directory {} was removed", self.path.display()),
            ));
        }
        let mut found = Vec::new();
        for entry in Dir::read_from(&self.directory)? {
            let entry = entry?;
            let Some(file) = entry.file_name().to_str().ok().and_then(file_id) else { continue };
            match rustix::fs::statat(&self.directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => found.push((file, info(&stat))),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        found.sort_unstable_by_key(|(file, _)| *file);
        Ok(found)
    }

    /// Makes a file, or sets the length of one that is there; preallocated, synced, and durable as a name.
    pub(super) fn create(&self, file: FileId, bytes: u64) -> io::Result<()> {
        let made = self.open_file(file, OFlags::CREATE).and_then(|open| {
            rustix::fs::ftruncate(&open.fd, bytes)?;
            preallocate(&open.fd, bytes)?;
            rustix::fs::fsync(&open.fd)?;
            rustix::fs::fsync(&self.directory)?;
            open.bytes.store(bytes, Ordering::Release);
            Ok(open)
        });
        match made {
            Ok(open) => {
                self.keep(file, open);
                Ok(())
            }
            Err(error) => {
                // The first error is the one to report; a file that cannot be removed either is seen by the next list.
                let _ = self.remove(file);
                Err(error)
            }
        }
    }

    pub(super) fn remove(&self, file: FileId) -> io::Result<()> {
        lock(&self.cache).files.remove(&file);
        match rustix::fs::unlinkat(&self.directory, file_name(file), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(rustix::fs::fsync(&self.directory)?),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The descriptor of a file, opened where it is not. Whoever uses it holds it: a file may be removed meanwhile.
    pub(super) fn get(&self, file: FileId) -> io::Result<Arc<Open>> {
        let mut cache = lock(&self.cache);
        cache.clock += 1;
        let clock = cache.clock;
        if let Some(cached) = cache.files.get_mut(&file) {
            cached.used = clock;
            return Ok(Arc::clone(&cached.open));
        }
        drop(cache);
        let open = self.open_file(file, OFlags::empty())?;
        Ok(self.keep(file, open))
    }

    fn open_file(&self, file: FileId, extra: OFlags) -> io::Result<Open> {
        let direct = if self.buffered.is_none() { OFlags::DIRECT } else { OFlags::empty() };
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | direct | extra;
        let fd = rustix::fs::openat(&self.directory, file_name(file), flags, Mode::RUSR | Mode::WUSR)?;
        let bytes = rustix::fs::fstat(&fd)?.st_size;
        Ok(Open { fd, bytes: AtomicU64::new(bytes.try_into().unwrap_or(0)) })
    }

    fn keep(&self, file: FileId, open: Open) -> Arc<Open> {
        let mut cache = lock(&self.cache);
        cache.clock += 1;
        let used = cache.clock;
        if let Some(cached) = cache.files.get_mut(&file) {
            // Opened by another thread, or set to another length by `create`: one descriptor per file, so that all see one length.
            cached.open.bytes.store(open.bytes.load(Ordering::Acquire), Ordering::Release);
            cached.used = used;
            return Arc::clone(&cached.open);
        }
        if cache.files.len() >= DESCRIPTORS_MAX
            && let Some(oldest) = cache.files.iter().min_by_key(|(_, cached)| cached.used).map(|(file, _)| *file)
        {
            cache.files.remove(&oldest);
        }
        let open = Arc::new(open);
        cache.files.insert(file, Cached { open: Arc::clone(&open), used });
        open
    }
}

fn info(stat: &rustix::fs::Stat) -> FileInfo {
    FileInfo {
        bytes: stat.st_size.try_into().unwrap_or(0),
        allocated_bytes: stat.st_blocks.try_into().unwrap_or(0) * STAT_BLOCK_BYTES,
    }
}

/// Gives a file its blocks. Where the file system cannot, zeros are written, so that a full disk shows here and not under a running log.
fn preallocate(fd: &OwnedFd, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    loop {
        match rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return write_zeros(fd, bytes),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Fills the file where it has no blocks yet: only a hole, so that an existing file keeps its bytes.
fn write_zeros(fd: &OwnedFd, bytes: u64) -> io::Result<()> {
    const STEP_BYTES: u64 = 1 << 20;
    let zeros = Buffer::zeroed(STEP_BYTES as usize);
    let mut read_back = Buffer::zeroed(STEP_BYTES as usize);
    for offset in (0..bytes).step_by(STEP_BYTES as usize) {
        let count = STEP_BYTES.min((bytes - offset).next_multiple_of(PAGE_BYTES)) as usize;
        // What reads as zeros is written as zeros; anything else has blocks.
        let found = rustix::io::pread(fd, &mut read_back.as_mut_slice()[..count], offset)?;
        if read_back.as_slice()[..found].iter().all(|byte| *byte == 0) {
            let written = rustix::io::pwrite(fd, &zeros.as_slice()[..count], offset)?;
            if written < count {
                return Err(Errno::NOSPC.into());
            }
        }
    }
    // Whole pages were written: cut the last one back to the length asked for.
    Ok(rustix::fs::ftruncate(fd, bytes)?)
}

/// Writes and reads one page directly. `None`: it works, or nothing can be said (a full disk). Errors: the directory cannot be written.
fn probe_direct(directory: &OwnedFd) -> rustix::io::Result<Option<String>> {
    let kind = rustix::fs::fstatfs(directory)?.f_type as i64;
    let in_memory = MEMORY_FILE_SYSTEMS.iter().find(|(number, _)| *number == kind);
    if let Some((_, name)) = in_memory {
        return Ok(Some(format!("{name} has no direct I/O")));
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let probed = match rustix::fs::openat(directory, PROBE_NAME, flags | OFlags::DIRECT, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => {
            let mut page = Buffer::zeroed(PAGE_BYTES as usize);
            let written = rustix::io::pwrite(&fd, page.as_slice(), 0);
            written.and_then(|_| rustix::io::pread(&fd, page.as_mut_slice(), 0))
        }
        Err(errno) => Err(errno),
    };
    let removed = rustix::fs::unlinkat(directory, PROBE_NAME, AtFlags::empty());
    match probed {
        Ok(_) | Err(Errno::NOSPC | Errno::DQUOT) => {}
        Err(errno @ (Errno::INVAL | Errno::OPNOTSUPP)) => return Ok(Some(format!("O_DIRECT is refused: {errno}"))),
        Err(errno) => return Err(errno),
    }
    removed.map(|()| None).or_else(|errno| if errno == Errno::NOENT { Ok(None) } else { Err(errno) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_one_to_one() {
        for number in [0, 1, 2, 3, 4, 1000, 1_000_002, u32::MAX] {
            assert_eq!(file_id(&file_name(FileId(number))), Some(FileId(number)), "{}", file_name(FileId(number)));
        }
        assert_eq!(file_name(FileId::segment(0)), "segment.000001");
        for foreign in [
            "segment.1",
            "segment.000000",
            "segment.+00001",
            "segment.4294967295",
            "superblock.2",
            "lock",
            "",
            "segment.",
        ] {
            assert_eq!(file_id(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn zeros_fill_holes_and_leave_bytes() {
        let directory = tempfile::tempdir().expect("a directory");
        let files = Files::open(directory.path()).expect("opens");
        let open = files.open_file(FileId(3), OFlags::CREATE).expect("opens");
        rustix::fs::ftruncate(&open.fd, 3 << 20).expect("sets the length");
        let mut page = Buffer::zeroed(4096);
        page.as_mut_slice().fill(9);
        rustix::io::pwrite(&open.fd, page.as_slice(), (1 << 20) + 4096).expect("writes");
        write_zeros(&open.fd, 3 << 20).expect("fills");
        let (_, info) = files.list().expect("lists")[0];
        assert_eq!(info.bytes, 3 << 20);
        assert!(info.allocated_bytes > (2 << 20), "{info:?}");
        let mut found = Buffer::zeroed(4096);
        rustix::io::pread(&open.fd, found.as_mut_slice(), (1 << 20) + 4096).expect("reads");
        assert_eq!(found.as_slice(), page.as_slice());
    }
}
