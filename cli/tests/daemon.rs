//! The daemon's commands: settings and checks from the command line, and figures of an endpoint.

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use kvtier_daemon::http::Endpoint;
use kvtier_daemon::stats::{
    Amount, BlockStory, Client, Counters, Explanation, Gauges, Operation, Snapshot, Source, State, TierUse,
};
use kvtier_engine::run::MissReason;
use serde_json::Value;

/// Runs without the settings of whoever runs the tests.
fn kvtier(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvtier"));
    command.args(args).env_clear().envs(variables.iter().copied());
    // A home without settings, and the machine's settings not looked at.
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.toml");
    std::fs::write(&empty, "").unwrap();
    if !variables.iter().any(|(name, _)| *name == "KVTIER_CONFIG") {
        command.env("KVTIER_CONFIG", &empty);
    }
    command.output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn fine(args: &[&str]) -> String {
    let output = kvtier(args, &[]);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Expects this exit code and one line that names each of `named`.
fn refused(args: &[&str], variables: &[(&str, &str)], code: i32, named: &[&str]) {
    let output = kvtier(args, variables);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    assert!(message.starts_with("kvtier: ") && message.lines().count() == 1, "{args:?}: {message}");
    for name in named {
        assert!(message.contains(name), "{args:?} does not name `{name}`: {message}");
    }
}

#[test]
fn settings_are_printed_with_their_origins() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kvtier.toml");
    std::fs::write(&file, "clients_max = 9\nhost_mem = \"1GiB\"\n").unwrap();
    let file = file.to_str().unwrap();
    let args = ["serve", "--print-config", "--config", file, "--host-mem", "2GiB"];
    let output = kvtier(&args, &[("KVTIER_VERIFY", "always")]);
    let printed = text(&output.stdout);
    let line = |key: &str| printed.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap().to_owned();
    assert!(line("clients_max").contains("= 9 ") && line("clients_max").ends_with(&format!("# {file}")), "{printed}");
    assert!(line("host_mem").contains("\"2GiB\"") && line("host_mem").ends_with("# --host-mem"), "{printed}");
    assert!(line("verify").contains("\"always\"") && line("verify").ends_with("# KVTIER_VERIFY"), "{printed}");
    assert!(line("http").contains("\"127.0.0.1:7411\"") && line("http").ends_with("# default"), "{printed}");
}

#[test]
fn wrong_settings_end_with_exit_code_2_and_one_line() {
    refused(&["serve", "--host-mem", "lots"], &[], 2, &["host_mem", "lots", "--host-mem", "512MiB"]);
    refused(&["serve", "--print-config"], &[("KVTIER_HOSTMEM", "1GiB")], 2, &["KVTIER_HOSTMEM", "KVTIER_HOST_MEM"]);
    refused(&["serve", "--http", "0.0.0.0:7411"], &[], 2, &["0.0.0.0:7411", "--http", "http_public"]);
    refused(&["serve", "--disk", "/tmp/x", "--disk-size", "1MiB"], &[], 2, &["disk_size", "64MiB"]);
    refused(&["doctor", "--config", "/absent/kvtier.toml"], &[], 2, &["/absent/kvtier.toml"]);
    refused(&["stats"], &[("KVTIER_HTTP", "off")], 2, &["off", "--http"]);
}

#[test]
fn a_machine_is_checked_for_people_and_for_scripts() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (socket, store) = (at("run/kvtier.sock"), at("store"));
    let args = ["serve", "--check-config", "--socket", &socket, "--disk", &store, "--host-mem", "1MiB"];
    let checked = fine(&[&args[..], &["--disk-size", "64MiB"]].concat());
    assert!(checked.contains("socket folder") && checked.contains("disk io"), "{checked}");
    let output = kvtier(&[&args[..], &["--disk-size", "100000000GiB"]].concat(), &[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains("fail  disk space"), "{}", text(&output.stdout));
    let variables = [("KVTIER_SOCKET", socket.as_str()), ("KVTIER_HOST_MEM", "1MiB")];
    let output = kvtier(&["doctor", "--json"], &variables);
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), object["level"] == "fail"), (Some(0), false), "{object}");
    let names: Vec<&str> =
        object["checks"].as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert!(
        ["memory", "memlock", "socket folder", "disk io", "processor"].iter().all(|name| names.contains(name)),
        "{names:?}"
    );
}

/// A daemon's figures without a daemon.
struct Figures(Counters);

impl Source for Figures {
    fn snapshot(&self) -> Snapshot {
        let client =
            Client { name: "engine-a".into(), pid: 4711, leases: 12, reservations: 3, staging_bytes: 16 << 20 };
        self.0.snapshot(Gauges {
            daemon: [0xa5; 16],
            uptime: Duration::from_secs(3725),
            state: State::Ready,
            host: TierUse::new(3 << 28, 1 << 30, 480),
            clients: vec![client],
            clients_max: 256,
            leased_bytes: 5 << 20,
            ..Gauges::default()
        })
    }

    fn explain(&self, request: &str) -> Option<Explanation> {
        (request == "chat 7").then(|| Explanation {
            blocks: (0..3).map(|position| BlockStory::miss(position, MissReason::Evicted)).collect(),
            ..Explanation::new(request)
        })
    }

    fn ready(&self) -> Result<(), Vec<String>> {
        Ok(())
    }
}

fn serve() -> SocketAddr {
    let counters = Counters::default();
    counters.requested(Amount { blocks: 100, tokens: 6400, bytes: 100 << 20 });
    counters.took(Operation::Acquire, Duration::from_micros(42));
    let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = endpoint.address();
    // Ends with the process.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(endpoint.serve(Arc::new(Figures(counters)), std::future::pending()))
    });
    address
}

#[test]
fn figures_are_shown_as_json_as_tables_and_as_a_frame() {
    let address = serve().to_string();
    let object: Value = serde_json::from_str(&fine(&["stats", "--json", "--http", &address])).unwrap();
    assert_eq!((object["version"].as_u64(), object["requested"]["tokens"].as_u64()), (Some(1), Some(6400)));
    for shown in [fine(&["stats", "--http", &address]), fine(&["top", "--once", "--http", &address])] {
        for figure in ["ready for 1 h 2 min", "75.0 %", "6400", "engine-a", "4711", "acquire", "12 leases on 5MiB"] {
            assert!(shown.contains(figure), "no {figure} in\n{shown}");
        }
    }
}

#[test]
fn a_request_is_explained_and_an_unknown_one_is_told() {
    let address = serve().to_string();
    let told = fine(&["explain", "chat 7", "--http", &address]);
    assert_eq!(told, "request chat 7: 3 blocks\n  blocks 0 to 2: missed: evicted\n");
    let object: Value = serde_json::from_str(&fine(&["explain", "chat 7", "--json", "--http", &address])).unwrap();
    assert_eq!(object["blocks"][2]["reason"], "evicted");
    refused(&["explain", "other", "--http", &address], &[], 3, &["`other`"]);
}

#[test]
fn where_no_daemon_answers_the_address_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    drop(taken);
    for command in [&["stats"][..], &["top", "--once"], &["explain", "x"]] {
        refused(&[command, &["--http", &address]].concat(), &[], 3, &["no daemon answers", &address]);
    }
}
