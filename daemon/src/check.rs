//! What this machine offers to a daemon with these settings, and what it lacks: for `kvtier doctor` and `kvtier serve --check-config`.
//!
//! Nothing is changed, but for a folder that is made beside the store (or among the temporary files), tried out and removed again.

use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use disk_tier::io::{Directory, IoChoice};
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Size, memory};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// The daemon works, with less.
    Warn,
    /// The daemon does not start, or does without something that the settings ask for.
    Fail,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "fail",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// How it came out.
    pub level: Level,
    /// What was found, in a sentence.
    pub sentence: String,
    /// What to do about it.
    pub fix: Option<String>,
}

impl Check {
    fn ok(name: &str, sentence: impl Into<String>) -> Check {
        Check { name: name.to_owned(), level: Level::Ok, sentence: sentence.into(), fix: None }
    }

    fn warn(name: &str, sentence: impl Into<String>, fix: impl Into<String>) -> Check {
        Check { level: Level::Warn, fix: Some(fix.into()), ..Check::ok(name, sentence) }
    }

    fn fail(name: &str, sentence: impl Into<String>, fix: impl Into<String>) -> Check {
        Check { level: Level::Fail, ..Check::warn(name, sentence, fix) }
    }
}

/// Looks at everything.
pub fn machine(config: &Config) -> Vec<Check> {
    let mut found = vec![host_mem(config), memlock(), socket_folder(config), socket(config)];
    found.extend(disk(config));
    found.extend([processor(), hugepages()]);
    found
}

/// The worst of some checks.
pub fn worst(checks: &[Check]) -> Level {
    checks.iter().map(|check| check.level).max().unwrap_or(Level::Ok)
}

/// Checks as lines for people.
pub fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for Check { name, level, sentence, fix } in checks {
        text.push_str(&format!("{level:<4}  {name:<13}  {sentence}\n"));
        if let Some(fix) = fix {
            text.push_str(&format!("{:21}-> {fix}\n", ""));
        }
    }
    text
}

fn host_mem(config: &Config) -> Check {
    let wanted = Size(config.host_mem_bytes);
    match (memory("MemTotal"), memory("MemAvailable")) {
        (Some(total), _) if total < wanted.0 => Check::fail(
            "memory",
            format!("host_mem is {wanted}, the machine has {}", Size(total)),
            format!("give host_mem at most {}", Size((total / 2) >> 20 << 20)),
        ),
        (_, Some(free)) if free < wanted.0 => Check::warn(
            "memory",
            format!("host_mem is {wanted}, {} are available now", Size(free)),
            "give less host_mem, or end other programs; the arena takes its memory as it fills",
        ),
        (Some(total), _) => Check::ok("memory", format!("host_mem is {wanted} of {}", Size(total))),
        (None, _) => Check::warn("memory", "the kernel does not tell the size of memory", "mount /proc"),
    }
}

/// The ring registers the arena's first 512 MiB at most; without it reads copy nothing more, but each pins its pages anew.
fn memlock() -> Check {
    const REGISTERED_BYTES_MAX: u64 = 512 << 20;
    match getrlimit(Resource::Memlock).current {
        Some(bytes) if bytes < REGISTERED_BYTES_MAX => Check::warn(
            "memlock",
            format!("{} of memory may be locked: buffers beyond that are not registered with io_uring", Size(bytes)),
            "raise it with ulimit -l unlimited, or LimitMEMLOCK=infinity in a service's unit",
        ),
        Some(bytes) => Check::ok("memlock", format!("{} of memory may be locked", Size(bytes))),
        None => Check::ok("memlock", "memory may be locked without limit"),
    }
}

/// Who may write to the socket's folder may put another socket there.
fn socket_folder(config: &Config) -> Check {
    let name = "socket folder";
    let Some(folder) = config.socket.parent() else {
        return Check::fail(name, "the socket has no folder", "give socket a path to a file");
    };
    let (held, nearest) = match nearest(folder) {
        Ok(found) => found,
        Err(error) => return Check::fail(name, format!("{}: {error}", folder.display()), "give socket another path"),
    };
    if nearest != folder {
        let shown = nearest.display();
        return match may_write(nearest) {
            true => Check::ok(name, format!("{} will be made, with mode 0750", folder.display())),
            false => Check::fail(
                name,
                format!("{} is missing and {shown} cannot be written", folder.display()),
                other(config),
            ),
        };
    }
    let (mode, shown) = (held.permissions().mode() & 0o7777, folder.display());
    if !held.is_dir() {
        Check::fail(name, format!("{shown} is no folder"), "give socket another path")
    } else if !may_write(folder) {
        Check::fail(name, format!("{shown} cannot be written by this user"), other(config))
    } else if held.uid() != rustix::process::geteuid().as_raw() {
        Check::fail(
            name,
            format!("{shown} belongs to user {}", held.uid()),
            "give socket a folder of the daemon's user",
        )
    } else if mode & 0o022 != 0 {
        Check::fail(
            name,
            format!("{shown} has mode {mode:04o}: others can put a socket there"),
            format!("chmod 0750 {shown}"),
        )
    } else if mode & 0o007 != 0 {
        Check::warn(
            name,
            format!("{shown} has mode {mode:04o}: anyone can reach the socket"),
            format!("chmod 0750 {shown}"),
        )
    } else {
        Check::ok(name, format!("{shown} has mode {mode:04o}"))
    }
}

fn other(config: &Config) -> String {
    format!("run as another user, or give socket a path that this one may write (now from {})", config.origin("socket"))
}

fn socket(config: &Config) -> Check {
    let shown = config.socket.display();
    match std::fs::symlink_metadata(&config.socket) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Check::ok("socket", format!("{shown} is free")),
        Err(error) => Check::fail("socket", format!("{shown}: {error}"), "give socket another path"),
        Ok(held) if !held.file_type().is_socket() => Check::fail(
            "socket",
            format!("{shown} is there and is no socket"),
            "remove it, or give socket another path",
        ),
        Ok(held) => match UnixStream::connect(&config.socket) {
            Ok(_) => Check::warn(
                "socket",
                format!("a daemon answers at {shown}, mode {:04o}", held.permissions().mode() & 0o777),
                "end it before another starts there",
            ),
            Err(_) => Check::ok("socket", format!("{shown} is left over from a daemon that has ended")),
        },
    }
}

fn disk(config: &Config) -> Vec<Check> {
    let Some(folder) = &config.disk else {
        let temporary = std::env::temp_dir();
        return vec![
            Check::ok("disk", "none is set: blocks do not outlive the daemon"),
            informational(medium(&temporary, config.disk_io)),
        ];
    };
    match nearest(folder) {
        Ok((_, nearest)) if may_write(nearest) => {
            vec![folder_mode(folder), space(nearest, folder, config), medium(nearest, config.disk_io)]
        }
        Ok((_, nearest)) => vec![Check::fail(
            "disk",
            format!("{} cannot be written by this user", nearest.display()),
            format!("give disk another folder (now from {})", config.origin("disk")),
        )],
        Err(error) => vec![Check::fail("disk", format!("{}: {error}", folder.display()), "give disk another folder")],
    }
}

/// Blocks are what was said to the model.
fn folder_mode(folder: &Path) -> Check {
    let shown = folder.display();
    match folder.metadata() {
        Err(_) => Check::ok("disk", format!("{shown} will be made, with mode 0700")),
        Ok(held) if !held.is_dir() => Check::fail("disk", format!("{shown} is no folder"), "give disk another path"),
        Ok(held) if held.permissions().mode() & 0o077 != 0 => Check::warn(
            "disk",
            format!("{shown} has mode {:04o}: others may read what is stored", held.permissions().mode() & 0o7777),
            format!("chmod 0700 {shown}"),
        ),
        Ok(held) => Check::ok("disk", format!("{shown} has mode {:04o}", held.permissions().mode() & 0o7777)),
    }
}

/// Bytes that a store has already count as free.
fn space(nearest: &Path, folder: &Path, config: &Config) -> Check {
    let wanted = Size(config.disk_size_bytes);
    let free = match rustix::fs::statvfs(nearest) {
        Ok(held) => held.f_bavail.saturating_mul(held.f_frsize),
        Err(error) => {
            return Check::fail("disk space", format!("{}: {error}", nearest.display()), "give disk another folder");
        }
    };
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let own: u64 = files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512)).sum();
    if free.saturating_add(own) >= wanted.0 {
        return Check::ok("disk space", format!("disk_size is {wanted}, {} are free", Size(free)));
    }
    Check::fail(
        "disk space",
        format!("disk_size is {wanted}, but {} are free and the store has {}", Size(free), Size(own)),
        format!("give disk_size at most {}, or another disk", Size(free.saturating_add(own) >> 20 << 20)),
    )
}

/// Opens a medium as the disk tier does, in a folder beside the store: the store itself may be in use.
fn medium(beside: &Path, choice: IoChoice) -> Check {
    let name = "disk io";
    let tried = tempfile::Builder::new().prefix(".kvtier-check-").tempdir_in(beside);
    let folder = match tried {
        Ok(folder) => folder,
        Err(error) => return Check::fail(name, format!("{}: {error}", beside.display()), "give disk another folder"),
    };
    let opened = Directory::open(folder.path(), choice, Vec::new(), 1, 1000);
    let described = match &opened {
        Ok(medium) => {
            let described = medium.describe();
            medium.close(1000);
            described
        }
        Err(error) => return Check::fail(name, chain(error), "give disk_io = auto, which takes what there is"),
    };
    drop(opened);
    let fix = match (choice, described.starts_with("io_uring"), described.contains("O_DIRECT")) {
        (IoChoice::Pread, _, true) | (_, true, true) => return Check::ok(name, described),
        (_, _, false) => {
            "take a folder on a drive: a file system in memory or without O_DIRECT copies everything twice"
        }
        (_, false, true) => {
            "allow io_uring: see /proc/sys/kernel/io_uring_disabled, and the container's seccomp profile; reads are slower without"
        }
    };
    Check::warn(name, described, fix)
}

/// Where no disk is set, nothing about it is wrong.
fn informational(check: Check) -> Check {
    Check { level: Level::Ok, fix: None, ..check }
}

fn processor() -> Check {
    #[cfg(target_arch = "x86_64")]
    let sets = [("AVX2", std::is_x86_feature_detected!("avx2")), ("AVX-512", std::is_x86_feature_detected!("avx512f"))];
    #[cfg(not(target_arch = "x86_64"))]
    let sets = [("AVX2", false), ("AVX-512", false)];
    let there: Vec<&str> = sets.iter().filter(|(_, is_there)| *is_there).map(|(name, _)| *name).collect();
    let there = if there.is_empty() { "neither AVX2 nor AVX-512".to_owned() } else { there.join(" and ") };
    Check::ok("processor", format!("{there}; sums and forms are computed by these or by plain code, with equal bits"))
}

fn hugepages() -> Check {
    let text = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    let mode = text.split('[').nth(1).and_then(|rest| rest.split(']').next()).unwrap_or("not told");
    Check::ok("huge pages", format!("shared memory: {mode}; {} reserved", Size(memory("Hugetlb").unwrap_or(0))))
}

/// The nearest of a path and the folders above it that exists.
fn nearest(path: &Path) -> io::Result<(Metadata, &Path)> {
    let found = path.ancestors().find_map(|path| match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        result => Some(result.map(|held| (held, path))),
    });
    found.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))
}

fn may_write(folder: &Path) -> bool {
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
