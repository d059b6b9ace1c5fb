//! A client in namespaces of its own (user, mount, IPC, PID), whose file system has the socket's folder and nothing else in common with the daemon's: no
//! host IPC, no shared `/dev/shm`, no path to the daemon's memory. A daemon in namespaces from which its clients cannot be named. And who gets as far as the
//! socket at all: by its mode, and by the user that the kernel notes.

use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kvtier_tests::daemons::blocks::{Look, chain, client, get, look, put};
use kvtier_tests::daemons::figures::stats;
use kvtier_tests::daemons::process::{Daemon, PATIENCE, Settings, wait_until};
use serde_json::Value;

const CHILD: &str = env!("CARGO_BIN_EXE_daemon_child");

/// A root of its own: an empty file system with the system's libraries, the program and the socket's folder in it, and an empty `/dev/shm`.
const SCRIPT: &str = r#"
set -e
root=$1 program=$2 folder=$3; shift 3
mount -t tmpfs none "$root"
mkdir -p "$root/dev/shm" "$root/proc" "$root/run/kvtier"
for part in usr lib lib64 bin; do
    if [ -d "/$part" ]; then mkdir -p "$root/$part"; mount --rbind "/$part" "$root/$part"; fi
done
touch "$root/program"
mount --bind "$program" "$root/program"
mount --bind "$folder" "$root/run/kvtier"
mount -t proc none "$root/proc"
exec chroot "$root" /program "$@"
"#;

/// Runs `daemon_child` apart.
fn apart(folder: &Path, words: &[&str]) -> Command {
    let root = folder.join("root");
    std::fs::create_dir_all(&root).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--ipc", "--pid", "--fork", "sh", "-c", SCRIPT, "sh"]);
    command.arg(root).arg(CHILD).arg(folder.join("run")).args(words);
    command
}

fn may_unshare() -> bool {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--ipc", "--pid", "--fork", "true"]);
    command.output().is_ok_and(|output| output.status.success())
}

/// A daemon in new namespaces of these kinds, with its statistics.
fn started_apart(settings: &Settings, namespaces: &[&str]) -> Daemon {
    let mut command = Command::new("unshare");
    command.args(namespaces).arg(CHILD).args(settings.words());
    let daemon = Daemon::spawn(command);
    wait_until("the socket appears", || settings.socket.exists());
    daemon
}

/// What the statistics endpoint says of clients: it asks nobody who he is.
fn clients_of(http: SocketAddr) -> Value {
    let agent: ureq::Agent = ureq::Agent::config_builder().proxy(None).build().into();
    let mut answer = agent.get(format!("http://{http}/stats")).call().unwrap();
    let stats: Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
    stats["clients"].clone()
}

#[test]
fn a_client_in_namespaces_of_its_own_shares_blocks_with_one_outside() {
    if !may_unshare() {
        println!("SKIP: no namespaces of one's own");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    std::fs::create_dir(&run).unwrap();
    let settings = Settings { socket: run.join("kvtier.sock"), ..Settings::new(CHILD, folder.path()) };
    let daemon = settings.start();
    let outside = client(&settings.socket, "outside", Duration::from_secs(60));
    let (theirs, ours) = (chain(1, 8), chain(2, 8));
    assert_eq!(put(&outside, &ours).unwrap(), 8);
    // It reads ours in place, and puts theirs.
    let output = apart(folder.path(), &["visit", "/run/kvtier/kvtier.sock", "1", "2", "8"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said, "put 8, read 8 right, shared memory 0\n");
    let (lent, _) = get(&outside, &theirs).unwrap();
    assert_eq!(lent.len(), 8);
    lent.iter().zip(&theirs).for_each(|(lent, link)| assert_eq!(look(lent, link), Look::Right));
    drop(lent);
    wait_until("it has gone", || stats(&outside)["clients"]["count"] == 1);
    drop(daemon);
}

/// The kernel notes process 0 then: the client is served, and nobody knows its number.
#[test]
fn a_client_that_the_daemons_pid_namespace_does_not_see_is_served() {
    if !may_unshare() {
        println!("SKIP: no namespaces of one's own");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::new(CHILD, folder.path());
    let daemon = started_apart(&settings, &["--user", "--map-root-user", "--pid", "--fork"]);
    let outside = client(&settings.socket, "outside", PATIENCE);
    let links = chain(1, 8);
    assert_eq!(put(&outside, &links).unwrap(), 8);
    let (lent, _) = get(&outside, &links).unwrap();
    assert_eq!(lent.len(), 8);
    lent.iter().zip(&links).for_each(|(lent, link)| assert_eq!(look(lent, link), Look::Right));
    let told = &stats(&outside)["clients"]["connected"][0];
    assert_eq!((&told["name"], &told["pid"]), (&"outside".into(), &0.into()), "{told}");
    drop(daemon);
}

/// Without a map every user has the same id there, the daemon's own too: nobody can be told from anybody, so nobody is let in.
#[test]
fn a_user_whom_the_daemons_user_namespace_does_not_map_is_refused() {
    if !may_unshare() {
        println!("SKIP: no namespaces of one's own");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { http: true, ..Settings::new(CHILD, folder.path()) };
    let mut daemon = started_apart(&settings, &["--user"]);
    let http = daemon.http();
    let outside = client(&settings.socket, "outside", PATIENCE);
    let clients = || clients_of(http);
    wait_until("it tries to connect", || clients()["rejected"]["user"].as_u64() > Some(0));
    assert!(!outside.is_connected());
    assert_eq!(clients()["count"], 0);
    drop(daemon);
}

#[test]
fn a_user_who_is_not_in_the_list_is_refused_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let own = std::fs::metadata(folder.path()).unwrap().uid();
    for (allow_uid, is_allowed) in [(own + 1, false), (own, true)] {
        let settings = Settings { http: true, allow_uid: Some(allow_uid), ..Settings::new(CHILD, folder.path()) };
        let mut daemon = settings.start();
        let http = daemon.http();
        let rejected = || clients_of(http)["rejected"]["user"].as_u64().unwrap();
        // The start has looked whether somebody listens.
        wait_until("that look is over", || rejected() == u64::from(!is_allowed));
        let before = rejected();
        let mut stream = UnixStream::connect(&settings.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        if is_allowed {
            wait_until("it is let in", || clients_of(http)["count"] == 1);
            assert_eq!(rejected(), 0);
            drop(stream);
            let outside = client(&settings.socket, "outside", PATIENCE);
            assert_eq!(put(&outside, &chain(1, 8)).unwrap(), 8);
        } else {
            assert_eq!(stream.read(&mut [0; 64]).unwrap(), 0, "it is hung up on before it has said anything");
            wait_until("it is counted", || rejected() == before + 1);
            let outside = client(&settings.socket, "outside", Duration::from_secs(1));
            assert!(!outside.is_connected());
            assert!(put(&outside, &chain(1, 8)).is_err());
            assert_eq!(clients_of(http)["count"], 0);
        }
        daemon.kill();
    }
}

#[test]
fn the_socket_is_the_users_and_the_groups_and_so_is_a_folder_that_was_made_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let settings = Settings { socket: run.join("kvtier.sock"), ..Settings::new(CHILD, folder.path()) };
    let daemon = settings.start();
    let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(format!("{:o}", mode(&settings.socket)), "660");
    assert_eq!(format!("{:o}", mode(&run)), "750");
    assert_eq!(format!("{:o}", mode(&run.join("kvtier.sock.lock"))), "600");
    drop(daemon);
    // A folder that was there keeps the mode that its owner gave it.
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o700)).unwrap();
    let daemon = settings.start();
    assert_eq!(format!("{:o} {:o}", mode(&run), mode(&settings.socket)), "700 660");
    drop(daemon);
}
