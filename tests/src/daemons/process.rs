//! A daemon in a process of its own.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use disk_tier::io::rig::{FailNth, Fault, Plan, Repeat, Scope};
use disk_tier::io::{Directory, IoChoice};
use kvtier_daemon::config::{Config, Machine};
use kvtier_daemon::testing::{Planted, Point, Testing, serve_with};

/// How long anything may take that is waited for: far more than it takes on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Operations of the disk under way at once, and how long one may take.
const DISK_DEPTH: usize = 64;
const DISK_DEADLINE_MILLIS: u64 = 5000;

/// Looks again and again until `is_so`. Panics with `what` when it takes too long.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "{what}: not in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a daemon is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program `daemon_child`.
    pub program: PathBuf,
    /// Its socket.
    pub socket: PathBuf,
    /// Host budget in MiB.
    pub host_mib: u64,
    /// Staging memory of a client in KiB.
    pub staging_kib: u64,
    /// The folder of its store.
    pub store: Option<PathBuf>,
    /// Every read of the disk takes so much longer.
    pub read_millis: u64,
    /// With a statistics endpoint, at a port of its own.
    pub http: bool,
    /// The user whose processes may connect, in the place of the daemon's own.
    pub allow_uid: Option<u32>,
}

impl Settings {
    /// A daemon in `folder`, in memory alone.
    pub fn new(program: &str, folder: &Path) -> Settings {
        Settings {
            program: program.into(),
            socket: folder.join("kvtier.sock"),
            host_mib: 64,
            staging_kib: 256,
            store: None,
            read_millis: 0,
            http: false,
            allow_uid: None,
        }
    }

    /// Starts it; returns when its socket accepts connections.
    pub fn start(&self) -> Daemon {
        let mut command = Command::new(&self.program);
        command.args(self.words());
        let mut daemon = Daemon::spawn(command);
        wait_until("the socket appears", || {
            if let Some(status) = daemon.child.try_wait().expect("its state") {
                panic!("the daemon does not start: {status}");
            }
            std::os::unix::net::UnixStream::connect(&self.socket).is_ok()
        });
        daemon
    }

    /// What the program is told.
    pub fn words(&self) -> Vec<OsString> {
        let store = self.store.as_ref().map_or("-".into(), |path| path.clone().into_os_string());
        let number = |number: u64| number.to_string().into();
        let http = if self.http { "http" } else { "-" }.into();
        let allow_uid = self.allow_uid.map_or("-".into(), |uid| uid.to_string().into());
        let socket = self.socket.clone().into_os_string();
        vec![
            "serve".into(),
            socket,
            number(self.host_mib),
            store,
            number(self.read_millis),
            number(self.staging_kib),
            http,
            allow_uid,
        ]
    }
}

/// A daemon's process; killed when this goes.
pub struct Daemon {
    child: Child,
    input: ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    /// Starts a process that is or becomes one, and does not wait.
    pub fn spawn(mut command: Command) -> Daemon {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the daemon's process starts");
        let input = child.stdin.take().expect("it was asked for");
        let output = BufReader::new(child.stdout.take().expect("it was asked for"));
        Daemon { child, input, output }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its statistics are, if it was started with them.
    pub fn http(&mut self) -> SocketAddr {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it says where");
        line.trim().parse().expect("an address")
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs until it is killed");
        self.child.wait().expect("it ends");
    }

    /// Sends a signal by its number.
    pub fn signal(&self, signal: i32) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let signal = rustix::process::Signal::from_named_raw(signal).expect("a signal with a name");
        rustix::process::kill_process(pid, signal).expect("it runs");
    }

    /// Lets a thread of it panic.
    pub fn panic_in(&mut self, point: Point) {
        writeln!(self.input, "panic {}", point as u32).expect("it listens");
    }

    /// Waits until it has ended, and says how.
    pub fn wait(mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the daemon ends", || {
            status = self.child.try_wait().expect("its state");
            status.is_some()
        });
        status.expect("it was waited for")
    }
}

/// SIGTERM, SIGSTOP, SIGCONT.
pub const TERM: i32 = 15;
/// See [`TERM`].
pub const STOP: i32 = 19;
/// See [`TERM`].
pub const CONT: i32 = 18;

/// The process's side: `serve SOCKET HOST_MIB STORE|- READ_MILLIS STAGING_KIB http|- UID|-`. Ends with the daemon's exit code.
pub fn serve(words: &[String]) -> ! {
    let [socket, host_mib, store, read_millis, staging_kib, http, allow_uid] = words else {
        panic!("seven words, not {words:?}")
    };
    let mut config = Config::defaults(&Machine::here().expect("this machine"));
    config.socket = socket.into();
    config.host_mem_bytes = host_mib.parse::<u64>().expect("a number") << 20;
    config.client_staging_bytes = staging_kib.parse::<u64>().expect("a number") << 10;
    config.lease_ttl_ms = 600_000;
    config.disk_size_bytes = 128 << 20;
    config.disk = (store != "-").then(|| store.into());
    config.http = (http != "-").then(|| {
        // A port that was free a moment ago.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = taken.local_addr().expect("its address");
        println!("{address}");
        address
    });
    if allow_uid != "-" {
        config.allow_uids = vec![allow_uid.parse().expect("a number")];
    }
    let read_millis: u64 = read_millis.parse().expect("a number");
    let slow = |folder: &PathBuf| slow_reads(folder, read_millis);
    let medium = config.disk.as_ref().filter(|_| read_millis > 0).map(slow);
    let planted = Planted::default();
    listen(planted.clone());
    let code = match serve_with(config, Testing { medium, planted }) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("failed to {error}");
            error.exit_code()
        }
    };
    std::process::exit(i32::from(code))
}

/// The folder's store as a medium, once the daemon on a thread that had it has let it go: its connections' threads may outlive it by a moment.
pub fn store_medium(folder: &Path, depth: usize, deadline_millis: u64) -> Arc<dyn disk_tier::io::Medium> {
    let mut opened = None;
    wait_until("the store is free", || {
        opened = Directory::open(folder, IoChoice::Auto, Vec::new(), depth, deadline_millis).ok();
        opened.is_some()
    });
    opened.expect("it was waited for")
}

/// The folder's store, each of whose reads takes so much longer.
pub fn slow_reads(folder: &Path, millis: u64) -> Arc<dyn disk_tier::io::Medium> {
    let plan = Plan::nth(1, Fault::Slow { millis }).on(Scope::Read).repeat(Repeat::Forever);
    FailNth::new(store_medium(folder, DISK_DEPTH, DISK_DEADLINE_MILLIS), plan)
}

/// Does what the parent says, and does not outlive it.
fn listen(planted: Planted) {
    let points = [
        Point::Keeper,
        Point::DiskEnds,
        Point::Accept,
        Point::Http,
        Point::Toucher,
        Point::Session,
        Point::Commit,
        Point::HangUp,
    ];
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let line = line.expect("whole lines");
            let number: u32 = line.strip_prefix("panic ").and_then(|number| number.parse().ok()).expect("panic N");
            planted.arm(*points.iter().find(|point| **point as u32 == number).expect("a point"));
        }
        // The parent is gone, by whatever end.
        std::process::exit(9);
    });
}
