//! Descriptors that a service manager has handed over when it started the process (`sd_listen_fds(3)`): from 3 on, as many as `LISTEN_FDS` says, named in
//! `LISTEN_FDNAMES`, for the process that `LISTEN_PID` names.
//!
//! **Safety.** An owned descriptor is made of a number once: [`take_inherited`] does nothing the second time. The variables are this process's own (the pid says
//! so), so these descriptors came with it; nothing else in the process has them, since what it opens gets other numbers while these are taken.
#![expect(unsafe_code, reason = "descriptors by their numbers")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_setfd};

/// The first one.
const FIRST: RawFd = 3;
/// More are not believed.
const MOST: u32 = 1 << 16;

/// The names of descriptors from 3 on that the variables promise to the process `pid`; empty ones where no name is said. What is no promise, or one to
/// another process, promises nothing.
pub fn promised(pid: u32, variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let number = |name: &str| variable(name)?.parse::<u32>().ok();
    let count = number("LISTEN_FDS").filter(|count| *count <= MOST && number("LISTEN_PID") == Some(pid)).unwrap_or(0);
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    names.split(':').map(str::to_owned).chain(std::iter::repeat(String::new())).take(count as usize).collect()
}

/// Takes them, with their names. Empty when there are none, or when they were taken before. They are closed on exec from now on.
pub fn take_inherited() -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let names = promised(std::process::id(), |name| std::env::var(name).ok());
    if names.is_empty() || TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let take = |(number, name): (RawFd, String)| {
        // A promise that was not kept: what is not open is nobody's.
        std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).ok()?;
        // SAFETY: it is open (just looked at), and this process's to own: see the top of this file.
        let file = unsafe { OwnedFd::from_raw_fd(number) };
        // Without it a child would get it as well; there is none.
        let _ = fcntl_setfd(&file, FdFlags::CLOEXEC);
        Some((name, file))
    };
    (FIRST..).zip(names).filter_map(take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_nobody_gave_anything_has_nothing() {
        assert!(take_inherited().is_empty());
    }
}
