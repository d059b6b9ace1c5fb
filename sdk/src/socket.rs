//! Descriptors on the daemon's socket: frames that carry one memory descriptor (`SCM_RIGHTS`), and who is at the other end.

mod credentials;

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg, socket_with,
};

pub use credentials::{Peer, peer};

/// Names the socket, for daemons and their clients.
pub const VARIABLE: &str = "KVTIER_SOCKET";

/// The socket of a daemon that was not told another one. Root's daemon serves the machine and everyone else's serves that user; who has no run-time
/// folder gets one of their own among the temporary files.
pub fn default_path(uid: u32, runtime_folder: Option<&Path>, temporary_folder: &Path) -> PathBuf {
    let folder = match (runtime_folder, uid) {
        (_, 0) => Path::new("/run/kvtier").to_owned(),
        (Some(folder), _) => folder.join("kvtier"),
        (None, uid) => temporary_folder.join(format!("kvtier-{uid}")),
    };
    folder.join("kvtier.sock")
}

/// The socket for a client that was not told one: what [`VARIABLE`] names, else the default one of this user.
pub fn path_here() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable(VARIABLE).unwrap_or_else(|| {
        let runtime_folder = variable("XDG_RUNTIME_DIR");
        default_path(rustix::process::geteuid().as_raw(), runtime_folder.as_deref(), &std::env::temp_dir())
    })
}

/// Connects, without waiting: where a daemon does not accept, and those who wait for it fill its queue, that is an error.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Writes bytes whose first one carries a descriptor.
pub fn send_with(stream: &UnixStream, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("a descriptor does not fit its message"));
    }
    let sent = loop {
        match sendmsg(stream.as_fd(), &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            ended => break ended?,
        }
    };
    let mut stream = stream;
    stream.write_all(&bytes[sent..])
}

/// A reader of the stream that keeps the descriptors that come along. Further ones than the first are closed.
#[derive(Debug)]
pub struct Descriptors<'a> {
    stream: &'a UnixStream,
    received: Option<OwnedFd>,
}

impl<'a> Descriptors<'a> {
    /// Reads from `stream`.
    pub fn new(stream: &'a UnixStream) -> Descriptors<'a> {
        Descriptors { stream, received: None }
    }

    /// The first descriptor that came.
    pub fn descriptor(&mut self) -> Option<OwnedFd> {
        self.received.take()
    }
}

impl io::Read for Descriptors<'_> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(self.stream.as_fd(), &mut [IoSliceMut::new(target)], &mut ancillary, flags)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                // What is not kept is closed here.
                for descriptor in descriptors {
                    self.received.get_or_insert(descriptor);
                }
            }
        }
        Ok(received.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_descriptor_comes_with_its_bytes_and_further_ones_are_closed() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send_with(&here, b"first", writer.as_fd()).unwrap();
        drop(writer);
        let mut end = Descriptors::new(&there);
        let mut bytes = [0; 5];
        end.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"first");
        let mut received = std::fs::File::from(end.descriptor().unwrap());
        received.write_all(b"through the pipe").unwrap();
        drop(received);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through the pipe");
        assert!(end.descriptor().is_none());
    }

    #[test]
    fn nobody_waits_for_a_daemon_that_does_not_accept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // Its queue is a few thousand long at most.
        let queued: Vec<UnixStream> = (0..100_000).map_while(|_| connect(&path).ok()).collect();
        assert!(!queued.is_empty() && queued.len() < 100_000);
        let (accepted, _) = listener.accept().unwrap();
        connect(&path).unwrap();
        drop(accepted);
    }
}
