//! Who is at the other end of a connection: the one call that `rustix` cannot make for us. It takes a process id for a number that is never 0, and the kernel
//! gives 0 for a process that is not seen from here.
#![expect(unsafe_code, reason = "a system call that fills a structure in")]

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Who is at the other end of a connection, as the kernel noted when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// User, in this process's user namespace; one that is not mapped there has the id that stands for all of those (`/proc/sys/kernel/overflowuid`).
    pub uid: u32,
    /// Process, in this process's PID namespace; 0 when it is in one that is not seen from here.
    pub pid: i32,
}

/// Looks up the peer's credentials (`SO_PEERCRED`).
pub fn peer(stream: &UnixStream) -> io::Result<Peer> {
    // Nobody, should the kernel fill in less than all of it.
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = size_of_val(&credentials) as libc::socklen_t;
    let (into, length) = ((&raw mut credentials).cast(), &raw mut length);
    // SAFETY: the kernel writes at most `length` bytes to `credentials`, whose fields are plain numbers, and how many to `length`; both outlive the call. The
    // descriptor is the stream's, which is borrowed for as long.
    let failed = unsafe { libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, into, length) };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Peer { uid: credentials.uid, pid: credentials.pid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_of_a_pair_is_this_process() {
        let (here, _there) = UnixStream::pair().unwrap();
        assert_eq!(
            peer(&here).unwrap(),
            Peer { uid: rustix::process::getuid().as_raw(), pid: std::process::id() as i32 }
        );
    }
}
