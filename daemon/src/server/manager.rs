//! The service manager (`sd_notify(3)`): it is told how the daemon is, and keeps the arena's extents for the daemon that comes next.
//!
//! It is found by `NOTIFY_SOCKET`; without one nobody is told anything. What cannot be sent is logged, and the daemon goes on.

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use cache_core::hex::{Hex, from_hex};
use cache_core::payload::BlockShape;
use kvtier_sdk::wire::Body;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// The longest name that a service manager takes for a descriptor.
const NAME_BYTES_MAX: usize = 255;
/// How long a message may wait for room in its queue.
const SEND_MAX: Duration = Duration::from_millis(500);
/// What the names of extents begin with: ours, and the version of what they say and of the extents' layout.
const PREFIX: &str = "kvtier-arena-1";

/// A service manager that listens.
#[derive(Debug)]
pub(crate) struct Manager(UnixDatagram);

impl Manager {
    /// The one of this process; `None` without one.
    pub(crate) fn here() -> Option<Manager> {
        let path = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty())?;
        match connect(path) {
            Ok(socket) => Some(Manager(socket)),
            Err(error) => {
                tracing::warn!(%error, "the service manager cannot be reached");
                None
            }
        }
    }

    /// Clients are served.
    pub(crate) fn ready(&self) {
        self.send("READY=1\n", None);
    }

    /// The daemon ends.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1\n", None);
    }

    /// Keeps an extent under a name; false when the manager does not listen.
    pub(crate) fn keep(&self, name: &str, extent: BorrowedFd<'_>) -> bool {
        // Unpolled: a memfd never hangs up, and a manager that watches it gains nothing.
        self.send(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n"), Some(extent))
    }

    /// Lets what it keeps under a name go.
    pub(crate) fn let_go(&self, name: &str) {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), None);
    }

    fn send(&self, text: &str, file: Option<BorrowedFd<'_>>) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
        let fits = files.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(&files));
        debug_assert!(fits, "there is room for one");
        let sent = sendmsg(&self.0, &[IoSlice::new(text.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL);
        if let Err(error) = &sent {
            tracing::warn!(%error, "the service manager does not listen");
        }
        sent.is_ok()
    }
}

fn connect(path: OsString) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold the daemon up; one that is only behind has a few messages in its queue.
    socket.set_write_timeout(Some(SEND_MAX))?;
    match path.as_bytes().split_first() {
        Some((b'@', name)) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        _ => socket.connect(path)?,
    }
    Ok(socket)
}

/// The name of an extent of so many slots: all that its memory is not asked. `None` when that is too much for a name.
pub(crate) fn extent_name(daemon: &[u8; 16], number: u64, shape: &BlockShape, slots: u32) -> Option<String> {
    let mut bytes = Vec::new();
    shape.encode(&mut bytes);
    let name = format!("{PREFIX}.{}.{slots}.{}.{number}", Hex(&bytes), Hex(&daemon[..8]));
    (name.len() <= NAME_BYTES_MAX).then_some(name)
}

/// Shape and slots of an extent by its name; `None` when it is not the name of one.
pub(crate) fn extent_of_name(name: &str) -> Option<(BlockShape, u32)> {
    let mut parts = name.strip_prefix(PREFIX)?.strip_prefix('.')?.split('.');
    let bytes = from_hex(parts.next()?)?;
    let shape = BlockShape::decode(&bytes).ok()?;
    let slots = parts.next()?.parse().ok().filter(|slots| *slots > 0)?;
    (parts.count() == 2).then_some((shape, slots))
}

/// True for the names of extents of any version.
pub(crate) fn is_extent(name: &str) -> bool {
    name.starts_with("kvtier-arena-")
}

#[cfg(test)]
mod tests {
    use cache_core::form::Form;

    use super::*;

    #[test]
    fn a_name_says_what_its_extent_is_and_no_other_name_does() {
        let shape = BlockShape { layers: 30, kv_heads: 3, head_dim: 64, block_tokens: 64, form: Form::Kc4vt4 };
        let name = extent_name(&[0xab; 16], 7, &shape, 512).unwrap();
        assert!(name.len() < NAME_BYTES_MAX && !name.contains(':') && name.bytes().all(|byte| byte.is_ascii_graphic()));
        assert_eq!(extent_of_name(&name), Some((shape, 512)));
        for cut in 0..name.len() {
            // Of the last two parts the daemon only wants that they are there.
            let whole = name[..cut].matches('.').count() == 4;
            assert_eq!(extent_of_name(&name[..cut]).is_some(), whole, "{}", &name[..cut]);
        }
        assert_eq!(extent_of_name(&name.replace(".512.", ".0.")), None);
        assert_eq!(extent_of_name(&name.replace("arena-1", "arena-2")), None);
        assert!(is_extent(&name.replace("arena-1", "arena-2")) && !is_extent("connection"));
    }
}
