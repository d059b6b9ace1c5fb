//! The daemon's settings: built-in defaults, then a TOML file, then `KVTIER_...` variables, then flags; the last one that speaks counts.
//!
//! | file | part |
//! |---|---|
//! | `keys` | every setting: name, meaning, how it is read and written |
//! | `sources` | where values come from, and in which order |
//! | `given`, `size` | values as people write them |
//! | `machine` | what defaults are made from |
//! | `suggest`, `error` | what is said about a wrong name or value |
//!
//! The daemon works without any of them: `docs/daemon.md` lists the defaults.

mod error;
mod given;
mod keys;
mod machine;
mod size;
mod sources;
mod suggest;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use cache_core::hash::TenantId;
use disk_tier::io::IoChoice;
use disk_tier::{Admission, DiskTier};
use tracing::Level;

pub use error::ConfigError;
pub use keys::{KEYS, Key};
pub use machine::Machine;
pub use size::Size;
pub use sources::{Flag, Sources};

pub(crate) use machine::memory;

/// When sums of blocks in memory are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// When a block enters a tier.
    OnEntry,
    /// On each hit too.
    Always,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A file of settings.
    File(PathBuf),
    /// A variable.
    Environment(String),
    /// A flag, as it is typed.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => path.display().fmt(f),
            Origin::Environment(name) => f.write_str(name),
            Origin::Flag(flag) => f.write_str(flag),
        }
    }
}

/// Everything that the daemon can be told. [`KEYS`] says how each is written.
#[derive(Clone, Debug)]
pub struct Config {
    /// Path of the Unix socket.
    pub socket: PathBuf,
    /// Where the statistics endpoint listens; `None` for nowhere.
    pub http: Option<SocketAddr>,
    /// Whether that may be beyond this machine.
    pub http_public: bool,
    /// Hard limit of the host arena in bytes, metadata included.
    pub host_mem_bytes: u64,
    /// Folder of the store.
    pub disk: Option<PathBuf>,
    /// Hard limit of everything in it, in bytes.
    pub disk_size_bytes: u64,
    /// Which blocks are written.
    pub disk_admission: Admission,
    /// The way to the disk.
    pub disk_io: IoChoice,
    /// Users whose processes may connect.
    pub allow_uids: Vec<u32>,
    /// Connections at once, at most.
    pub clients_max: u32,
    /// Bytes of staging memory that a client may have.
    pub client_staging_bytes: u64,
    /// Bytes of free slots that are committed ahead of their use; 0 for none.
    pub touch_ahead_bytes: u64,
    /// Deadline of a call that names none, in milliseconds.
    pub deadline_ms: u32,
    /// Life of a lease, in milliseconds.
    pub lease_ttl_ms: u64,
    /// How long a connection may take to introduce itself or to finish a frame, in milliseconds.
    pub hello_timeout_ms: u64,
    /// How long a client that holds nothing may be silent, in milliseconds; 0 for ever.
    pub idle_timeout_ms: u64,
    /// Bytes that a tenant may take when it is not in `quotas`; `None` for no limit.
    pub tenant_quota_bytes: Option<u64>,
    /// Bytes by tenant.
    pub quotas: BTreeMap<TenantId, u64>,
    /// When sums of blocks in memory are checked.
    pub verify: Verify,
    /// Bytes a second that the scrubber reads; 0 for no scrubber.
    pub scrub_bytes_s: u64,
    /// What is logged.
    pub log_level: Level,
    /// By name; a key that is not here has its default.
    origins: BTreeMap<&'static str, Origin>,
}

impl Config {
    /// The settings from all sources. Errors: the first thing that is wrong, by name, value and origin.
    pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
        let mut config = Config::defaults(&sources.machine);
        sources.apply(&mut config)?;
        config.validate()?;
        Ok(config)
    }

    /// What holds when nothing is said.
    pub fn defaults(machine: &Machine) -> Config {
        Config {
            socket: machine.socket(),
            http: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 7411))),
            http_public: false,
            host_mem_bytes: (machine.ram_bytes / 4) >> 20 << 20,
            disk: None,
            disk_size_bytes: 8 << 30,
            disk_admission: Admission::Always,
            disk_io: IoChoice::Auto,
            allow_uids: vec![machine.uid],
            clients_max: 256,
            client_staging_bytes: 64 << 20,
            touch_ahead_bytes: 256 << 20,
            deadline_ms: 1000,
            lease_ttl_ms: 600_000,
            hello_timeout_ms: 5000,
            idle_timeout_ms: 0,
            tenant_quota_bytes: None,
            quotas: BTreeMap::new(),
            verify: Verify::OnEntry,
            scrub_bytes_s: 64 << 20,
            log_level: Level::INFO,
            origins: BTreeMap::new(),
        }
    }

    /// Where a key's value comes from.
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }

    /// Bytes that a tenant may take; `None` for no limit.
    pub fn quota_bytes(&self, tenant: &TenantId) -> Option<u64> {
        self.quotas.get(tenant).copied().or(self.tenant_quota_bytes)
    }

    /// Each key with its value and origin, as a file of settings that says the same.
    pub fn print(&self) -> String {
        let line = |key: &Key| (format!("{} = {}", key.name, (key.show)(self)), self.origin(key.name));
        let lines: Vec<_> = KEYS.iter().map(line).collect();
        let width = lines.iter().map(|(text, _)| text.chars().count()).filter(|width| *width <= 60).max().unwrap_or(0);
        lines.iter().map(|(text, origin)| format!("{text:<width$}  # {origin}\n")).collect()
    }

    /// What no value tells by itself.
    fn validate(&self) -> Result<(), ConfigError> {
        let least = DiskTier::minimum_bytes();
        if self.disk.is_some() && self.disk_size_bytes < least {
            return Err(self.wrong("disk_size", format!("a store needs at least {}", Size(least))));
        }
        match self.http {
            Some(address) if !address.ip().is_loopback() && !self.http_public => {
                let problem = "it is open to other machines; give an address such as 127.0.0.1, or http_public = true";
                Err(self.wrong("http", problem.to_owned()))
            }
            _ => Ok(()),
        }
    }

    fn wrong(&self, key: &'static str, problem: String) -> ConfigError {
        let found = KEYS.iter().find(|known| known.name == key).expect("a key of the table");
        ConfigError::Value { key, value: (found.show)(self), origin: self.origin(key).clone(), problem }
    }
}
