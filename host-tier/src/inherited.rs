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
const MOST: RawFd = 1 << 16;

/// Takes them, with their names. Empty when there are none, or when they were taken before. They are closed on exec from now on.
pub fn take_inherited() -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let variable = |name: &str| std::env::var(name).ok();
    let number = |name: &str| variable(name)?.parse::<RawFd>().ok();
    let is_ours = number("LISTEN_PID").is_some_and(|pid| pid.unsigned_abs() == std::process::id());
    let count = number("LISTEN_FDS").filter(|count| (0..=MOST).contains(count)).unwrap_or(0);
    if !is_ours || TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    let take = |number: RawFd| {
        let name = names.next().unwrap_or_default();
        // A promise that was not kept: what is not open is nobody's.
        std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).ok()?;
        // SAFETY: it is open (just looked at), and this process's to own: see the top of this file.
        let file = unsafe { OwnedFd::from_raw_fd(number) };
        // Without it a child would get it as well; there is none.
        let _ = fcntl_setfd(&file, FdFlags::CLOEXEC);
        Some((name, file))
    };
    (FIRST..FIRST + count).filter_map(take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_nobody_gave_anything_has_nothing() {
        assert!(take_inherited().is_empty());
    }
}
