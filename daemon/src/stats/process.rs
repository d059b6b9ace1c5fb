//! What the kernel tells of the daemon's own process, under the names that Prometheus' clients give it.

use std::sync::{Mutex, PoisonError};

use procfs::WithCurrentSystemInfo;
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

/// The process: as it was when it could last be read, 0 for what never could.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Seconds of processor time, user and system.
    pub cpu_seconds: f64,
    /// When it was started, in seconds since 1970.
    pub start_time_seconds: f64,
    /// Bytes of memory that it has: all of the arena that was touched, and what it keeps beside it.
    pub resident_bytes: u64,
    /// Bytes of address space.
    pub virtual_bytes: u64,
    /// Descriptors that are open.
    pub open_fds: u64,
    /// Descriptors that may be.
    pub max_fds: u64,
}

impl Process {
    /// This process, now.
    pub fn here() -> Process {
        // When no descriptor is left its files cannot be read; what is known stays.
        static KNOWN: Mutex<Option<Process>> = Mutex::new(None);
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get_or_insert_default();
        known.read();
        *known
    }

    /// Reads what can be read; the other figures stay.
    fn read(&mut self) {
        self.max_fds = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let Ok(this) = procfs::process::Process::myself() else {
            return;
        };
        let ticks = procfs::ticks_per_second() as f64;
        if let Ok(stat) = this.stat() {
            self.cpu_seconds = (stat.utime + stat.stime) as f64 / ticks;
            self.resident_bytes = stat.rss_bytes().get();
            self.virtual_bytes = stat.vsize;
            if let (Ok(boot), true) = (procfs::boot_time_secs(), self.start_time_seconds == 0.0) {
                self.start_time_seconds = boot as f64 + stat.starttime as f64 / ticks;
            }
        }
        if let Ok(count) = this.fd_count() {
            self.open_fds = count as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_this_process() {
        let files: Vec<_> = (0..50).map(|_| std::fs::File::open("/proc/self/stat").unwrap()).collect();
        let mut memory = vec![0u8; 64 << 20];
        memory.chunks_mut(4096).for_each(|page| page[0] = 1);
        let told = Process::here();
        assert!(told.open_fds >= 50 && told.open_fds <= told.max_fds, "{told:?}");
        assert!(told.resident_bytes >= 64 << 20 && told.virtual_bytes >= told.resident_bytes, "{told:?}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(told.start_time_seconds > 1.7e9 && told.start_time_seconds < now + 2.0, "{told:?}");
        assert!(told.cpu_seconds < now - told.start_time_seconds + 3600.0 && memory[0] == 1 && files.len() == 50);
    }
}
