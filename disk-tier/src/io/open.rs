//! A store's directory as a medium: which way in, and why.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use super::files::{Files, file_id};
use super::pread::Pread;
use super::uring::Uring;
use super::{Medium, Region};

/// Names the way to the disk: `auto`, `io_uring` or `pread`.
pub const IO_ENV: &str = "KVTIER_DISK_IO";

/// Operations under way at once, at most: the ring's completion queue holds twice as many.
const DEPTH_MAX: usize = 1024;

/// The way to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoChoice {
    /// io_uring where the kernel allows it, else the pool of threads.
    #[default]
    Auto,
    /// io_uring or an error.
    IoUring,
    /// The pool of threads over `pread` and `pwrite`.
    Pread,
}

impl IoChoice {
    /// What [`IO_ENV`] says; `None` when it is unset or empty. Errors: `Choice`.
    pub fn from_env() -> Result<Option<IoChoice>, OpenError> {
        match std::env::var_os(IO_ENV) {
            None => Ok(None),
            Some(value) if value.is_empty() => Ok(None),
            Some(value) => value.to_string_lossy().parse().map(Some),
        }
    }
}

impl FromStr for IoChoice {
    type Err = OpenError;

    fn from_str(value: &str) -> Result<IoChoice, OpenError> {
        match value {
            "auto" => Ok(IoChoice::Auto),
            "io_uring" => Ok(IoChoice::IoUring),
            "pread" => Ok(IoChoice::Pread),
            _ => Err(OpenError::Choice { value: value.into() }),
        }
    }
}

impl fmt::Display for IoChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IoChoice::Auto => "auto",
            IoChoice::IoUring => "io_uring",
            IoChoice::Pread => "pread",
        })
    }
}

/// Why a directory did not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process, or another store of this one, has it.
    #[error("open {}: it is in use by another process", path.display())]
    Held {
        /// The directory.
        path: PathBuf,
    },
    /// The system's word.
    #[error("open {}: {what}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// io_uring was asked for and is not to be had.
    #[error("set up io_uring ({IO_ENV}=auto or pread does without)")]
    Ring {
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Not a way to the disk.
    #[error("read {IO_ENV}: {value:?} is none of auto, io_uring, pread")]
    Choice {
        /// What was given.
        value: String,
    },
}

/// A store's directory.
#[derive(Debug)]
pub struct Directory;

impl Directory {
    /// True when the directory holds a file of a store. Looks at names alone and changes nothing.
    pub fn holds_store(path: &Path) -> bool {
        let mut names = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.any(|name| name.to_str().is_some_and(|name| file_id(name).is_some()))
    }

    /// Opens a directory as a medium; makes it where it is missing.
    ///
    /// `regions`: memory that most operations will use; registered with the ring where the locked-memory limit allows it, and kept until the
    /// last operation is over. `depth`: operations under way at once, 1 to 1,024. `deadline_millis`: how old an operation may get before it is told as
    /// timed out; 0 for no deadline.
    ///
    /// Errors: `Held` while another process has the directory, `Io` where it cannot be used, `Ring` only with [`IoChoice::IoUring`].
    pub fn open(
        path: &Path,
        choice: IoChoice,
        regions: Vec<Arc<dyn Region>>,
        depth: usize,
        deadline_millis: u64,
    ) -> Result<Arc<dyn Medium>, OpenError> {
        let files = Arc::new(Files::open(path)?);
        let depth = depth.clamp(1, DEPTH_MAX);
        let reason = match choice {
            IoChoice::Pread => None,
            IoChoice::Auto | IoChoice::IoUring => {
                match Uring::start(Arc::clone(&files), regions, depth, deadline_millis) {
                    Ok(ring) => return Ok(Arc::new(ring)),
                    Err(source) if choice == IoChoice::IoUring => return Err(OpenError::Ring { source }),
                    Err(source) => Some(format!("io_uring cannot be used: {source}")),
                }
            }
        };
        let pool = Pread::start(files, depth, deadline_millis, reason);
        let failed = |source| OpenError::Io { what: "start threads", path: path.to_path_buf(), source };
        Ok(Arc::new(pool.map_err(failed)?))
    }
}
