//! `kvtier serve` as a function: its options, its output and its exit code, for whoever has a command line. The `kvtier` binary
//! is one, `python -m kvtier` another.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::check;
use crate::config::{Config, ConfigError, Flag, Sources};

/// `kvtier serve`.
///
/// Settings come from built-in defaults, then a TOML file, then KVTIER_... variables, then these flags. It works without any of them.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// File of settings [default: KVTIER_CONFIG, else kvtier/kvtier.toml in the user's configuration folder, else /etc/kvtier/kvtier.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Path of the Unix socket
    #[arg(long, value_name = "PATH")]
    pub socket: Option<String>,
    /// Hard limit of the host arena
    #[arg(long, value_name = "SIZE")]
    pub host_mem: Option<String>,
    /// Folder of the store in which blocks outlive the daemon
    #[arg(long, value_name = "DIR")]
    pub disk: Option<String>,
    /// Hard limit of everything in it
    #[arg(long, value_name = "SIZE")]
    pub disk_size: Option<String>,
    /// Address of the statistics endpoint, or off
    #[arg(long, value_name = "ADDR:PORT")]
    pub http: Option<String>,
    /// Print every setting with its value and origin, and end
    #[arg(long)]
    pub print_config: bool,
    /// Check settings and machine, and end: exit code 0, or 1 when the daemon would not start or do without something
    #[arg(long, conflicts_with = "print_config")]
    pub check_config: bool,
}

/// How the command ended when it did not end well.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Ended {
    /// Exit code: 1 for a check that failed, 2 for settings that cannot be used, and where another daemon has the socket or the
    /// store; 3 when it failed on the way.
    pub code: u8,
    /// One to four lines that name the thing and the fix; empty where the output has told it.
    pub message: String,
}

/// The text of an error and its causes, in one line.
pub fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = error.source();
    }
    message
}

impl Ended {
    fn of(error: &(dyn std::error::Error + 'static), code: u8) -> Ended {
        Ended { code, message: sentence(error) }
    }

    /// A reader of the output that goes away ends the command quietly.
    fn of_output(error: &std::io::Error) -> Ended {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Ended { code: 0, message: String::new() },
            _ => Ended::of(error, 3),
        }
    }
}

impl From<ConfigError> for Ended {
    fn from(error: ConfigError) -> Ended {
        Ended::of(&error, 2)
    }
}

/// Runs the daemon until it is told to end, or prints what was asked for. The log goes to stderr.
pub fn run(args: &ServeArgs, out: &mut dyn Write) -> Result<(), Ended> {
    let config = load(args)?;
    if args.print_config {
        return print(out, &config.print());
    }
    if args.check_config {
        let checks = check::machine(&config);
        print(out, &check::text(&checks))?;
        let is_sound = check::worst(&checks) != check::Level::Fail;
        return if is_sound { Ok(()) } else { Err(Ended { code: 1, message: String::new() }) };
    }
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(config.log_level).with_ansi(false);
    // A process that has a log of its own keeps it.
    let _ = log.try_init();
    crate::serve(config).map_err(|error| Ended::of(&error, error.exit_code()))
}

fn print(out: &mut dyn Write, text: &str) -> Result<(), Ended> {
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| Ended::of_output(&error))
}

fn load(args: &ServeArgs) -> Result<Config, ConfigError> {
    let typed = [
        ("socket", "--socket", &args.socket),
        ("host_mem", "--host-mem", &args.host_mem),
        ("disk", "--disk", &args.disk),
        ("disk_size", "--disk-size", &args.disk_size),
        ("http", "--http", &args.http),
    ];
    let flags = typed.into_iter().filter_map(|(key, flag, value)| Some(Flag { key, flag, value: value.clone()? }));
    Config::load(&Sources::here(args.config.clone(), flags.collect())?)
}
