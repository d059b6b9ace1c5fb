//! A service manager in small: it listens where `NOTIFY_SOCKET` says, keeps the descriptors that it is given, and gives them to the daemon that it starts next.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::daemons::process::{Daemon, Settings, wait_until};

/// Descriptors are numbered from here on for a moment, out of the way of those that a process starts with.
const ABOVE: i32 = 200;
/// Puts the descriptors `$FDS` at 3, 4, ... and becomes the program, under the same pid.
const SCRIPT: &str = r#"
number=3
for fd in $FDS; do eval "exec $number<&$fd $fd<&-"; number=$((number + 1)); done
export LISTEN_PID=$$
exec "$@"
"#;
/// One starts at a time, so that nobody else's child gets the descriptors.
static STARTING: Mutex<()> = Mutex::new(());

/// What it was told and keeps.
pub struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kept: Vec<(String, OwnedFd)>,
    said: Vec<String>,
}

impl Manager {
    /// Listens in `folder`.
    pub fn new(folder: &Path) -> Manager {
        let path = folder.join("notify.sock");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(1))).expect("a time limit");
        Manager { socket, path, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what was sent so far.
    pub fn listen(&self) {
        loop {
            let mut bytes = [0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let Ok(received) = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) else {
                return;
            };
            let text = String::from_utf8(bytes[..received.bytes].to_vec()).expect("text");
            let mut files: Vec<OwnedFd> = Vec::new();
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(more) = message {
                    files.extend(more);
                }
            }
            self.hear(&text, files);
        }
    }

    fn hear(&self, text: &str, files: Vec<OwnedFd>) {
        let mut state = self.state();
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let name = value("FDNAME").unwrap_or("stored").to_owned();
        if value("FDSTORE") == Some("1") {
            state.kept.extend(files.into_iter().map(|file| (name.clone(), file)));
        } else if value("FDSTOREREMOVE") == Some("1") {
            state.kept.retain(|(kept, _)| *kept != name);
        } else {
            state.said.extend(text.lines().map(str::to_owned));
        }
    }

    /// True when it was told this line since the last start.
    pub fn was_told(&self, line: &str) -> bool {
        self.listen();
        self.state().said.iter().any(|said| said == line)
    }

    /// Names of what it keeps.
    pub fn names(&self) -> Vec<String> {
        self.listen();
        self.state().kept.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Keeps something else, as a daemon could have sent it.
    pub fn keep(&self, name: &str, file: OwnedFd) {
        self.state().kept.push((name.to_owned(), file));
    }

    /// Starts a daemon with what it keeps; returns when it has said that it is ready.
    pub fn start(&self, settings: &Settings) -> Daemon {
        self.listen();
        self.state().said.clear();
        let starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state();
        let lent: Vec<OwnedFd> = state
            .kept
            .iter()
            .map(|(_, file)| {
                let file = fcntl_dupfd_cloexec(file, ABOVE).expect("a number");
                fcntl_setfd(&file, FdFlags::empty()).expect("it is open");
                file
            })
            .collect();
        let numbers: Vec<String> = lent.iter().map(|file| file.as_raw_fd().to_string()).collect();
        let names: Vec<&str> = state.kept.iter().map(|(name, _)| name.as_str()).collect();
        let mut command = Command::new("bash");
        command.args(["-c", SCRIPT, "bash"]).arg(&settings.program).args(settings.words());
        command.env("NOTIFY_SOCKET", &self.path).env("FDS", numbers.join(" "));
        command.env("LISTEN_FDS", lent.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let daemon = Daemon::spawn(command);
        drop((lent, state, starting));
        wait_until("the daemon is ready", || self.was_told("READY=1"));
        daemon
    }
}
