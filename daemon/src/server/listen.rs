//! The socket: who may connect, and that there is one daemon for it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvtier_sdk::socket::peer;
use rustix::fs::{FlockOperation, flock};

use crate::server::session::Session;
use crate::server::{ServeError, Server, users};
use crate::stats::Rejection;
use crate::testing::Point;

/// One look at the socket while nobody connects: how soon the thread notices that the daemon ends.
const LOOK: Duration = Duration::from_millis(20);
/// Stack of a connection's thread in bytes; its buffers are on the heap.
const STACK_BYTES: usize = 256 << 10;

pub(crate) struct Listener {
    socket: PathBuf,
    /// Where it is bound before it is shown.
    hidden: PathBuf,
    listener: UnixListener,
    /// The users whose processes may connect.
    allowed: Vec<u32>,
    /// Held as long as the daemon lives: two daemons cannot have one socket.
    _claim: File,
    sessions: AtomicU64,
}

impl Listener {
    /// Takes the path for this daemon, and listens where nobody looks yet. Errors: [`ServeError::Socket`].
    pub(crate) fn claim(socket: &Path, allow_uids: &[u32]) -> Result<Listener, ServeError> {
        let failed = |reason: String| ServeError::Socket { socket: socket.to_owned(), reason };
        let folder = socket.parent().ok_or_else(|| failed("the path has no folder".to_owned()))?;
        if !folder.is_dir() {
            fs::create_dir_all(folder)
                .and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o750)))
                .map_err(|error| failed(format!("its folder cannot be made: {error}")))?;
        }
        let owner =
            fs::metadata(folder).map_err(|error| failed(format!("its folder cannot be looked at: {error}")))?.uid();
        if ![0, rustix::process::geteuid().as_raw()].contains(&owner) {
            // Whoever has the folder could put another socket there.
            return Err(failed(format!("its folder belongs to user {owner}")));
        }
        let beside = |ending: &str| {
            let mut name = socket.file_name().unwrap_or_default().to_owned();
            name.push(ending);
            socket.with_file_name(name)
        };
        let claim = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(beside(".lock"))
            .map_err(|error| failed(format!("its lock cannot be made: {error}")))?;
        flock(&claim, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => failed("another daemon listens there".to_owned()),
            error => failed(format!("its lock cannot be taken: {error}")),
        })?;
        let hidden = beside(".new");
        // What a daemon left that did not end in good order. The lock says that it is nobody's.
        let _ = fs::remove_file(&hidden);
        let bound = |error: io::Error| failed(format!("it cannot be bound: {error}"));
        let listener = UnixListener::bind(&hidden).map_err(bound)?;
        listener.set_nonblocking(true).map_err(bound)?;
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o660)).map_err(bound)?;
        let anybody = users::anybody();
        if let Some(uid) = anybody.filter(|uid| allow_uids.contains(uid)) {
            tracing::warn!(uid, "allow_uids names the id of every user who is not mapped here: it lets nobody in");
        }
        let allowed = allow_uids.iter().copied().filter(|uid| Some(*uid) != anybody).collect();
        let socket = socket.to_owned();
        Ok(Listener { socket, hidden, listener, allowed, _claim: claim, sessions: AtomicU64::new(0) })
    }

    /// Lets clients find it.
    pub(crate) fn show(&self) -> Result<(), ServeError> {
        let failed = |error: io::Error| ServeError::Socket { socket: self.socket.clone(), reason: error.to_string() };
        fs::rename(&self.hidden, &self.socket).map_err(failed)
    }

    /// Takes it away from new clients.
    pub(crate) fn hide(&self) {
        let _ = fs::remove_file(&self.socket);
    }

    /// Accepts connections until the daemon ends.
    pub(crate) fn accept(&self, server: &Arc<Server>) {
        while !server.is_ending() {
            server.planted.strike(Point::Accept);
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(server, stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut waits = [rustix::event::PollFd::new(&self.listener, rustix::event::PollFlags::IN)];
                    let limit = rustix::event::Timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as i64 };
                    // A failed wait is a short one.
                    let _ = rustix::event::poll(&mut waits, Some(&limit));
                }
                Err(error) => {
                    // No descriptor left: those who are connected go on, and one may go.
                    tracing::warn!(%error, "a connection could not be accepted");
                    std::thread::sleep(LOOK);
                }
            }
        }
    }

    fn admit(&self, server: &Arc<Server>, stream: UnixStream) {
        let Ok(peer) = peer(&stream) else {
            return;
        };
        if !self.allowed.contains(&peer.uid) {
            server.counters.rejected(Rejection::User);
            tracing::warn!(uid = peer.uid, pid = peer.pid, "a user who is not in allow_uids tried to connect");
            return;
        }
        let id = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        if !server.enters(id) {
            server.counters.rejected(Rejection::Limit);
            return;
        }
        if stream.set_nonblocking(false).is_err() {
            server.left(id, 0);
            return;
        }
        let session = Session::new(Arc::clone(server), stream, id, peer);
        let thread = std::thread::Builder::new().name(format!("client-{id}")).stack_size(STACK_BYTES);
        // The session that is not served is dropped, and so ended.
        if let Err(error) = thread.spawn(move || session.serve()) {
            tracing::warn!(%error, "no thread for a connection");
        }
    }
}
