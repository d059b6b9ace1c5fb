//! Why the daemon does not serve.

use std::path::PathBuf;

use disk_tier::DiskError;

use crate::http::HttpError;

/// Why the daemon does not serve, or stopped. Text reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be made: another daemon has it, or the folder cannot be used.
    #[error("listen at {}: {reason}", socket.display())]
    Socket {
        /// Its path.
        socket: PathBuf,
        /// Why.
        reason: String,
    },
    /// The store cannot be opened.
    #[error("open the store in {}", folder.display())]
    Disk {
        /// Its folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// The list of namespaces beside the store cannot be used.
    #[error("read the list of namespaces in {}", folder.display())]
    Names {
        /// The store's folder.
        folder: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// The statistics endpoint cannot listen.
    #[error("serve statistics")]
    Http(#[from] HttpError),
    /// The system refuses a thread or a signal handler.
    #[error("start")]
    Start(#[source] std::io::Error),
    /// A thread that everything depends on has panicked, or ended before its time.
    #[error("go on: the thread {thread} has panicked")]
    Panicked {
        /// Its name.
        thread: String,
    },
}

impl ServeError {
    /// What a process that serves ends with: 2 when it never served, since settings or another daemon are in the way; 3 when it failed on the way.
    pub fn exit_code(&self) -> u8 {
        if matches!(self, ServeError::Panicked { .. }) { 3 } else { 2 }
    }
}
