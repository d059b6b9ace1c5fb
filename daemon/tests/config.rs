//! Settings: which source counts, what each value's origin is, and what is said about wrong ones.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cache_core::hash::TenantId;
use kvtier_daemon::config::{Config, Flag, KEYS, Machine, Origin, Sources, Verify};

fn machine() -> Machine {
    Machine {
        uid: 1000,
        ram_bytes: 16 << 30,
        runtime_folder: Some("/run/user/1000".into()),
        config_folders: Vec::new(),
        temporary_folder: "/tmp".into(),
    }
}

fn sources() -> Sources {
    Sources { machine: machine(), file: None, environment: Vec::new(), flags: Vec::new() }
}

fn variable(name: &str, value: &str) -> (OsString, OsString) {
    (name.into(), value.into())
}

fn file(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("kvtier.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// What is said about a file with this text.
fn refused(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let sources = Sources { file: Some(file(folder.path(), text)), ..sources() };
    Config::load(&sources).expect_err(text).to_string()
}

#[test]
fn without_any_source_the_documented_defaults_hold() {
    let config = Config::load(&sources()).unwrap();
    assert_eq!(config.socket, Path::new("/run/user/1000/kvtier/kvtier.sock"));
    assert_eq!(config.http, Some("127.0.0.1:7411".parse().unwrap()));
    assert_eq!((config.host_mem_bytes, config.disk, config.disk_size_bytes), (4 << 30, None, 8 << 30));
    assert_eq!((config.allow_uids, config.verify), (vec![1000], Verify::OnEntry));
    assert!(KEYS.iter().all(|key| *Config::load(&sources()).unwrap().origin(key.name) == Origin::Default));
}

#[test]
fn the_socket_is_in_a_folder_that_its_user_has() {
    let of = |machine: Machine| Config::defaults(&machine).socket;
    assert_eq!(of(Machine { uid: 0, ..machine() }), Path::new("/run/kvtier/kvtier.sock"));
    let bare = Machine { runtime_folder: None, ..machine() };
    assert_eq!(of(bare), Path::new("/tmp/kvtier-1000/kvtier.sock"));
}

#[test]
fn the_last_source_that_speaks_counts_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "host_mem = \"1GiB\"\nclients_max = 7\ndisk_size = \"1.5GiB\"\nhttp = \"off\"\n");
    let sources = Sources {
        file: Some(path.clone()),
        environment: vec![variable("KVTIER_CLIENTS_MAX", "8"), variable("KVTIER_DISK_SIZE", "2GiB")],
        flags: vec![Flag { key: "disk_size", flag: "--disk-size", value: "3GiB".into() }],
        ..sources()
    };
    let config = Config::load(&sources).unwrap();
    assert_eq!((config.host_mem_bytes, config.clients_max, config.disk_size_bytes), (1 << 30, 8, 3 << 30));
    assert_eq!(config.http, None);
    assert_eq!(*config.origin("host_mem"), Origin::File(path));
    assert_eq!(*config.origin("clients_max"), Origin::Environment("KVTIER_CLIENTS_MAX".into()));
    assert_eq!(*config.origin("disk_size"), Origin::Flag("--disk-size"));
    assert_eq!(*config.origin("verify"), Origin::Default);
}

#[test]
fn what_is_printed_reads_back_as_itself_with_every_origin() {
    let folder = tempfile::tempdir().unwrap();
    let tenant = "ab".repeat(32);
    let text = format!(
        "socket = \"/a \\\"b\\\"/s\"\nhttp_public = true\nhttp = \"0.0.0.0:1\"\ndisk = \"/d\"\ndisk_admission = \"second-hit\"\n\
         disk_io = \"pread\"\nallow_uids = [1, 2]\nverify = \"always\"\nscrub_rate = \"off\"\ntenant_quota = \"5GiB\"\n\
         log_level = \"debug\"\nhost_mem = \"1537MiB\"\n[quotas]\n{tenant} = \"1GiB\"\n"
    );
    let first = Config::load(&Sources { file: Some(file(folder.path(), &text)), ..sources() }).unwrap();
    assert_eq!(first.quota_bytes(&TenantId([0xab; 32])), Some(1 << 30));
    assert_eq!(first.quota_bytes(&TenantId([0; 32])), Some(5 << 30), "a tenant that nobody named");
    let printed = first.print();
    assert_eq!(printed.lines().count(), KEYS.len());
    assert!(printed.lines().any(|line| line.starts_with("deadline_ms = 1000") && line.ends_with("# default")));
    let second = Config::load(&Sources { file: Some(file(folder.path(), &printed)), ..sources() }).unwrap();
    let values = |text: &str| text.lines().map(|line| line.rsplit_once('#').unwrap().0.to_owned()).collect::<Vec<_>>();
    assert_eq!(values(&second.print()), values(&printed));
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_name() {
    let message = refused("disk_sise = \"1GiB\"");
    assert!(message.contains("`disk_sise`") && message.contains("did you mean `disk_size`?"), "{message}");
    assert!(message.contains("kvtier.toml"), "{message}");
    assert!(refused("temperature = 1").contains("--print-config lists them"));
}

#[test]
fn an_unknown_variable_of_ours_is_refused_and_the_engines_are_not() {
    let with = |name: &str, value: &str| {
        Config::load(&Sources { environment: vec![variable(name, value)], ..sources() })
            .map_err(|error| error.to_string())
    };
    let message = with("KVTIER_HOSTMEM", "1GiB").unwrap_err();
    assert!(message.contains("`KVTIER_HOSTMEM`") && message.contains("did you mean `KVTIER_HOST_MEM`?"), "{message}");
    let harmless = [
        ("KVTIER_ISA", "avx2"),
        ("KVTIER_DEVICE", "cuda"),
        ("KVTIER_MODEL_DIR", "/m"),
        ("PATH", "x"),
        ("KVTIER_HOST_MEM", ""),
    ];
    for (name, value) in harmless {
        assert!(with(name, value).is_ok(), "{name}");
    }
}

#[test]
fn wrong_values_name_key_value_origin_and_fix() {
    for (text, named) in [
        ("host_mem = 12", ["host_mem", "12", "512MiB"]),
        ("host_mem = \"12\"", ["host_mem", "\"12\"", "KiB, MiB or GiB"]),
        ("clients_max = 0", ["clients_max", "= 0", "from 1 to 10000"]),
        ("clients_max = \"many\"", ["clients_max", "many", "whole number"]),
        ("http = \"localhost\"", ["http", "localhost", "127.0.0.1:7411"]),
        ("http_public = 1", ["http_public", "= 1", "true or false"]),
        ("disk = \"store\"", ["disk", "store", "from the root"]),
        ("disk_admission = \"never\"", ["disk_admission", "never", "always or second-hit"]),
        ("disk_io = \"tape\"", ["disk_io", "tape", "io_uring"]),
        ("allow_uids = [\"me\"]", ["allow_uids", "me", "1000,1001"]),
        ("verify = true", ["verify", "true", "on_entry or always"]),
        ("log_level = \"loud\"", ["log_level", "loud", "error or warn"]),
        ("quotas = { anna = \"1GiB\" }", ["quotas", "anna", "64 hexadecimal digits"]),
        ("disk = \"/d\"\ndisk_size = \"63MiB\"", ["disk_size", "63MiB", "at least 64MiB"]),
        ("lease_ttl_ms = 5", ["lease_ttl_ms", "= 5", "from 1000"]),
    ] {
        let message = refused(text);
        for name in named.into_iter().chain(["kvtier.toml"]) {
            assert!(message.contains(name), "{text}: no `{name}` in: {message}");
        }
    }
    let typed = vec![Flag { key: "host_mem", flag: "--host-mem", value: "lots".into() }];
    let message = Config::load(&Sources { flags: typed, ..sources() }).unwrap_err().to_string();
    assert!(message.contains("host_mem = lots, from --host-mem"), "{message}");
}

#[test]
fn a_file_that_is_no_toml_is_refused_with_its_line() {
    let message = refused("clients_max = 3\nhost_mem = 1 GiB\n");
    assert!(message.contains("line 2"), "{message}");
}

#[test]
fn an_address_open_to_others_needs_to_be_allowed() {
    let message = refused("http = \"0.0.0.0:7411\"");
    assert!(message.contains("0.0.0.0:7411") && message.contains("http_public = true"), "{message}");
    let folder = tempfile::tempdir().unwrap();
    let allowed = file(folder.path(), "http = \"0.0.0.0:7411\"\nhttp_public = true");
    assert!(Config::load(&Sources { file: Some(allowed), ..sources() }).is_ok());
}

#[test]
fn a_conventional_file_is_found_and_a_named_one_must_exist() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("kvtier")).unwrap();
    file(&folder.path().join("kvtier"), "clients_max = 5");
    let machine = Machine { config_folders: vec![folder.path().into()], ..machine() };
    assert_eq!(Config::load(&Sources { machine: machine.clone(), ..sources() }).unwrap().clients_max, 5);
    let other = file(folder.path(), "clients_max = 6");
    let environment = vec![variable("KVTIER_CONFIG", other.to_str().unwrap())];
    assert_eq!(Config::load(&Sources { machine, environment, ..sources() }).unwrap().clients_max, 6);
    let absent = Sources { file: Some(folder.path().join("absent.toml")), ..sources() };
    assert!(Config::load(&absent).unwrap_err().to_string().contains("absent.toml"));
}

#[test]
fn the_operators_page_lists_every_setting() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/daemon.md")).unwrap();
    for key in &KEYS {
        let row = format!("| `{}` | {} | {} |", key.name, key.what, key.default);
        assert!(page.contains(&row), "docs/daemon.md lacks: {row}");
    }
}
