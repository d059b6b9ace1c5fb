//! `kvtier bench daemon`: a daemon under clients, beside a plain copy of the same bytes and beside Redis.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use kvtier_daemon::bench::{self, Figure, Needs, Op, Settings};
use serde_json::{Value, json};

use crate::args::BenchDaemonArgs;
use crate::failure::Failure;
use crate::output;
use crate::signals::Signals;

/// How long a server may take to listen.
const START_MAX: Duration = Duration::from_secs(30);

/// Runs the command.
pub fn run(args: &BenchDaemonArgs) -> Result<(), Failure> {
    let signals = Signals::install()?;
    let bar = ProgressBar::no_length().with_message("measuring");
    let mut figures = Vec::new();
    let mut has_redis = false;
    for size in &args.block_size {
        for clients in &args.clients {
            let folder = tempfile::Builder::new().prefix("kvtier-bench-").tempdir()?;
            let path = folder.path().to_owned();
            signals.at_end(move || drop(std::fs::remove_dir_all(path)));
            let needs = bench::needs(size.0, *clients as usize).map_err(Failure::input)?;
            let daemon = match &args.socket {
                Some(_) => None,
                None => Some(Server::daemon(folder.path(), needs, &signals)?),
            };
            let redis = if args.no_redis { None } else { Server::redis(folder.path(), &signals)? };
            has_redis |= redis.is_some();
            let settings = Settings {
                socket: args
                    .socket
                    .clone()
                    .or(daemon.as_ref().map(|daemon| daemon.socket.clone()))
                    .expect("one is given"),
                redis: redis.as_ref().map(|redis| redis.socket.clone()),
                block_bytes: size.0,
                clients: *clients as usize,
                rounds: args.rounds as usize,
            };
            let measured = bench::measure(&settings, &mut |done, whole| {
                bar.set_length(whole as u64);
                bar.set_position(done as u64);
            });
            let measured = measured.map_err(|message| Failure { code: 3, message })?;
            if args.json {
                measured.iter().try_for_each(|figure| output::print_line(&object(figure).to_string()))?;
            }
            figures.extend(measured);
        }
    }
    bar.finish_and_clear();
    if !args.no_redis && !has_redis {
        output::note("kvtier: redis-server is not installed: measured without it\n");
    }
    if args.json { Ok(()) } else { print(&figures) }
}

/// A server in a process of its own; gone when this is, or when a signal ends this process.
struct Server {
    /// Taken by whoever ends it.
    process: Arc<Mutex<Option<Child>>>,
    socket: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        kill(&self.process);
    }
}

/// It has nothing that is worth an orderly end.
fn kill(process: &Mutex<Option<Child>>) {
    let process = process.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(mut process) = process {
        let _ = process.kill();
        let _ = process.wait();
    }
}

impl Server {
    fn daemon(folder: &Path, needs: Needs, signals: &Signals) -> Result<Server, Failure> {
        let (socket, settings) = (folder.join("kvtier.sock"), folder.join("kvtier.toml"));
        let Needs { host_mem_bytes, client_staging_bytes, clients_max } = needs;
        let kib = |bytes: u64| format!("{}KiB", bytes.div_ceil(1024));
        // A file of settings: whoever measures may have others in variables, and flags outdo both.
        std::fs::write(
            &settings,
            format!("client_staging = \"{}\"\nclients_max = {clients_max}\n", kib(client_staging_bytes)),
        )?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg("--config").arg(&settings).arg("--socket").arg(&socket);
        command.args(["--host-mem", &kib(host_mem_bytes), "--disk", "off", "--http", "off"]);
        command.env("KVTIER_CLIENT_STAGING", kib(client_staging_bytes));
        command.env("KVTIER_CLIENTS_MAX", clients_max.to_string()).env("KVTIER_LOG_LEVEL", "error");
        Server::start(&mut command, socket, signals)
    }

    /// `None` when it is not installed.
    fn redis(folder: &Path, signals: &Signals) -> Result<Option<Server>, Failure> {
        let socket = folder.join("redis.sock");
        let mut command = Command::new("redis-server");
        command.arg("--unixsocket").arg(&socket).args(["--port", "0", "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(folder).args(["--maxclients", "2000", "--proto-max-bulk-len", "512mb"]);
        match Server::start(&mut command, socket, signals) {
            Err(failure) if failure.code == NOT_INSTALLED => Ok(None),
            started => started.map(Some),
        }
    }

    fn start(command: &mut Command, socket: PathBuf, signals: &Signals) -> Result<Server, Failure> {
        let process =
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map_err(|error| match error.kind() {
                ErrorKind::NotFound => Failure { code: NOT_INSTALLED, message: "it is not installed".to_owned() },
                _ => Failure::from(error),
            })?;
        let server = Server { process: Arc::new(Mutex::new(Some(process))), socket };
        let ending = Arc::clone(&server.process);
        signals.at_end(move || kill(&ending));
        let until = Instant::now() + START_MAX;
        while UnixStream::connect(&server.socket).is_err() {
            if let Some(status) = server.has_ended()? {
                return Err(Failure { code: 3, message: format!("{command:?} has ended: {status}") });
            }
            if Instant::now() >= until {
                return Err(Failure { code: 3, message: format!("{command:?} does not listen") });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }
}

impl Server {
    fn has_ended(&self) -> std::io::Result<Option<ExitStatus>> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        process.as_mut().map_or(Ok(None), Child::try_wait)
    }
}

/// Never left to whoever runs the command.
const NOT_INSTALLED: u8 = 127;

fn object(figure: &Figure) -> Value {
    json!({
        "system": figure.system,
        "op": figure.op.name(),
        "block_bytes": figure.block_bytes,
        "clients": figure.clients,
        "gb_s": figure.gb_s.as_ref().map(|(median, _)| median),
        "gb_s_rounds": figure.gb_s.as_ref().map(|(_, rounds)| rounds),
        "p50_us": figure.p50_us,
        "p99_us": figure.p99_us,
        "samples": figure.samples,
    })
}

fn print(figures: &[Figure]) -> Result<(), Failure> {
    let head = ["block", "clients", "operation", "system", "GB/s", "median us", "99 % us"].map(str::to_owned).to_vec();
    let mut rows = vec![head];
    let mut sorted: Vec<&Figure> = figures.iter().collect();
    sorted.sort_by_key(|figure| {
        let op = Op::ALL.iter().position(|op| *op == figure.op);
        (figure.block_bytes, figure.clients, op, figure.system)
    });
    for figure in sorted {
        rows.push(vec![
            format!("{} KiB", figure.block_bytes >> 10),
            figure.clients.to_string(),
            figure.op.name().to_owned(),
            figure.system.to_owned(),
            figure.gb_s.as_ref().map_or("-".to_owned(), |(median, _)| format!("{median:.2}")),
            format!("{:.1}", figure.p50_us),
            format!("{:.1}", figure.p99_us),
        ]);
    }
    output::print_table(&rows)
}
