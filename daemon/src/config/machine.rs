//! What defaults are made from.

use std::path::PathBuf;

use kvtier_sdk::socket::default_path;

use crate::config::ConfigError;

/// The machine and the user, as far as defaults depend on them.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The user that the daemon runs as.
    pub uid: u32,
    /// Memory of the machine in bytes.
    pub ram_bytes: u64,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_folder: Option<PathBuf>,
    /// Where a file of settings is looked for: `XDG_CONFIG_HOME`, or `.config` in the home folder, then `/etc`.
    pub config_folders: Vec<PathBuf>,
    /// Where temporary files go.
    pub temporary_folder: PathBuf,
}

impl Machine {
    /// This machine, this user. Errors: `Machine` when `/proc/meminfo` tells no size.
    pub fn here() -> Result<Machine, ConfigError> {
        let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let own = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")));
        Ok(Machine {
            uid: rustix::process::geteuid().as_raw(),
            ram_bytes: memory("MemTotal").ok_or_else(|| ConfigError::Machine {
                problem: "/proc/meminfo names no MemTotal; mount /proc".to_owned(),
            })?,
            runtime_folder: folder("XDG_RUNTIME_DIR"),
            config_folders: own.into_iter().chain([PathBuf::from("/etc")]).collect(),
            temporary_folder: std::env::temp_dir(),
        })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        default_path(self.uid, self.runtime_folder.as_deref(), &self.temporary_folder)
    }

    /// The first file of settings that exists.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        let mut files = self.config_folders.iter().map(|folder| folder.join("kvtier").join("kvtier.toml"));
        files.find(|path| path.exists())
    }
}

/// A line of `/proc/meminfo` in bytes.
pub(crate) fn memory(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
