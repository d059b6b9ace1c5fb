//! What a daemon holds: by its own statistics, and by what the kernel says of its process.

use std::fs;
use std::path::PathBuf;

use kvtier_sdk::client::Client;
use serde_json::Value;

/// What must be as before once nobody does anything any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Leases that stand.
    pub leases: u64,
    /// Bytes of blocks that are leased, pinned or written to the disk.
    pub leased_bytes: u64,
    /// Reservations that stand.
    pub reservations: u64,
    /// Connections.
    pub clients: u64,
    /// Bytes of the host budget that are in use: blocks, metadata, staging memory.
    pub host_bytes: u64,
    /// Open descriptors of the process, but for the files of its store.
    pub descriptors: usize,
    /// Threads that serve a connection.
    pub threads: usize,
}

/// The daemon's statistics.
pub fn stats(client: &Client) -> Value {
    serde_json::from_str(&client.stats().expect("the daemon answers")).expect("JSON")
}

/// What it holds now.
pub fn held(client: &Client, pid: u32) -> Held {
    let stats = stats(client);
    let number = |value: &Value| value.as_u64().expect("a number");
    Held {
        leases: number(&stats["leases"]["count"]),
        leased_bytes: number(&stats["leases"]["bytes"]),
        reservations: number(&stats["reservations"]),
        clients: number(&stats["clients"]["count"]),
        host_bytes: number(&stats["tiers"]["host"]["used_bytes"]),
        descriptors: descriptors(pid),
        threads: client_threads(pid),
    }
}

fn entries(pid: u32, folder: &str) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(format!("/proc/{pid}/{folder}")).expect("the process runs").flatten().map(|entry| entry.path())
}

/// Open descriptors of a process: sockets, memory, pipes. Files of a store are left out: they become more as it is filled.
pub fn descriptors(pid: u32) -> usize {
    // One that is closed meanwhile does not count.
    let targets = entries(pid, "fd").filter_map(|entry| fs::read_link(entry).ok());
    targets.filter(|target| !target.to_string_lossy().contains("/store/")).count()
}

fn client_threads(pid: u32) -> usize {
    let names = entries(pid, "task").filter_map(|entry| fs::read_to_string(entry.join("comm")).ok());
    names.filter(|name| name.starts_with("client-")).count()
}

/// Resident memory of a process, in bytes.
pub fn resident_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of resident memory");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") << 10
}
