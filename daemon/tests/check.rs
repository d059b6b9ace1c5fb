//! What is said about a machine: each finding in its turn, and nothing left behind.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kvtier_daemon::check::{self, Check, Level};
use kvtier_daemon::config::{Config, Machine};

/// Settings whose socket and store are inside `folder`.
fn config(folder: &Path) -> Config {
    let mut config = Config::defaults(&Machine::here().unwrap());
    config.host_mem_bytes = 1 << 20;
    config.socket = folder.join("run").join("kvtier.sock");
    config.disk = Some(folder.join("store"));
    config.disk_size_bytes = 64 << 20;
    config
}

fn find(config: &Config, name: &str) -> Check {
    let checks = check::machine(config);
    checks.into_iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no check is called {name}"))
}

fn mode(path: &Path, mode: u32) {
    fs::create_dir_all(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_machine_without_anything_yet_is_fine_and_stays_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let checks = check::machine(&config(folder.path()));
    assert_ne!(check::worst(&checks), Level::Fail, "{checks:#?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something was left behind");
    assert!(checks.iter().all(|check| (check.level == Level::Ok) == check.fix.is_none()), "{checks:#?}");
}

#[test]
fn folders_open_to_others_are_told_with_the_command_that_closes_them() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let (run, store) = (folder.path().join("run"), folder.path().join("store"));
    for (bits, expected) in [(0o750, Level::Ok), (0o755, Level::Warn), (0o777, Level::Fail)] {
        mode(&run, bits);
        let check = find(&config, "socket folder");
        assert_eq!(check.level, expected, "{bits:o}: {check:?}");
        assert!(expected == Level::Ok || check.fix.unwrap().starts_with("chmod 0750 "));
    }
    for (bits, expected) in [(0o700, Level::Ok), (0o755, Level::Warn)] {
        mode(&store, bits);
        assert_eq!(find(&config, "disk").level, expected, "{bits:o}");
    }
}

#[test]
fn a_disk_budget_over_the_free_space_fails_with_what_would_fit() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.disk_size_bytes = 1 << 60;
    let check = find(&config, "disk space");
    assert_eq!(check.level, Level::Fail);
    assert!(check.fix.as_deref().is_some_and(|fix| fix.contains("disk_size at most")), "{check:?}");
}

#[test]
fn more_host_memory_than_the_machine_has_fails() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.host_mem_bytes = 1 << 60;
    assert_eq!(find(&config, "memory").level, Level::Fail);
}

#[test]
fn what_stands_at_the_sockets_path_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    mode(&folder.path().join("run"), 0o750);
    assert_eq!(find(&config, "socket").level, Level::Ok);
    let listener = std::os::unix::net::UnixListener::bind(&config.socket).unwrap();
    let check = find(&config, "socket");
    assert!(check.level == Level::Warn && check.sentence.contains("a daemon answers"), "{check:?}");
    drop(listener);
    let check = find(&config, "socket");
    assert!(check.level == Level::Ok && check.sentence.contains("left over"), "{check:?}");
    fs::remove_file(&config.socket).unwrap();
    fs::write(&config.socket, "").unwrap();
    assert_eq!(find(&config, "socket").level, Level::Fail);
}

#[test]
fn the_way_to_the_disk_is_the_one_that_the_settings_ask_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.disk_io = "pread".parse().unwrap();
    let check = find(&config, "disk io");
    assert!(check.sentence.starts_with("pread"), "{check:?}");
}
