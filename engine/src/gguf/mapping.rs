//! The bytes of a model file, mapped or owned.
//!
//! The one place in this module tree with `unsafe`: mapping a file hands out `&[u8]` over pages that another process
//! could change. The mapping is private and read-only, so nothing here writes through it. The states are: mapped (from
//! `open` to the drop of the last owner) and unmapped.
//!
//! **A file that is changed while it is mapped.** Writes to the file by another process may become visible, which
//! gives wrong weights but stays inside the mapping; if the file is truncated, reading past its new end raises
//! SIGBUS, which ends the process. Neither can be detected cheaply, so a model file must be replaced by renaming a
//! new one over it (as the model store does: the old file lives on for whoever maps it), never rewritten in place.

use std::fs::{File, Metadata};
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use super::GgufError;

/// Bytes of a whole file.
#[derive(Debug)]
pub(super) enum Bytes {
    /// Pages of the file itself, and the handle they came from.
    Mapped(Mmap, File),
    /// A copy in memory.
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a regular file.
    pub(super) fn map(path: &Path) -> Result<Bytes, GgufError> {
        let failed = |source| GgufError::Open { path: path.to_owned(), source };
        // Checked before opening: opening a pipe would wait for a writer.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(GgufError::NotAFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(failed)?;
        // SAFETY: the mapping is read-only and private, and `Bytes` keeps it until it is dropped, so every slice
        // borrowed from it ends first. That the file is not changed meanwhile is kept by its owner, as the module
        // documentation says; a truncation ends the process with SIGBUS rather than reading other memory.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        Ok(Bytes::Mapped(map, file))
    }
}

impl Bytes {
    /// What the file system says of the mapped file; `None` for bytes in memory. Errors: those of the system.
    pub(super) fn file_metadata(&self) -> std::io::Result<Option<Metadata>> {
        match self {
            Bytes::Mapped(_, file) => file.metadata().map(Some),
            Bytes::Owned(_) => Ok(None),
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map, _) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}
