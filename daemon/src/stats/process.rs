//! What the kernel tells of the daemon's own process, under the names that Prometheus' clients give it.

use procfs::WithCurrentSystemInfo;
use procfs::process::LimitValue;
use serde::{Deserialize, Serialize};

/// The process; 0 for what cannot be read.
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
        read().unwrap_or_default()
    }
}

fn read() -> procfs::ProcResult<Process> {
    let this = procfs::process::Process::myself()?;
    let stat = this.stat()?;
    let ticks = procfs::ticks_per_second() as f64;
    let max_fds = match this.limits()?.max_open_files.soft_limit {
        LimitValue::Unlimited => u64::MAX,
        LimitValue::Value(limit) => limit,
    };
    Ok(Process {
        cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
        start_time_seconds: procfs::boot_time_secs()? as f64 + stat.starttime as f64 / ticks,
        resident_bytes: stat.rss_bytes().get(),
        virtual_bytes: stat.vsize,
        open_fds: this.fd_count()? as u64,
        max_fds,
    })
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
