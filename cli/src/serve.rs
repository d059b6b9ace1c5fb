//! `kvtier serve`: the daemon.

use std::path::PathBuf;

use clap::Args;
use kvtier_daemon::check;
use kvtier_daemon::config::{Config, Flag, Sources};

use crate::doctor;
use crate::failure::Failure;
use crate::output;

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

/// Runs the daemon until it is told to end. Exit codes: 2 for settings that cannot be used, and where another daemon has the socket or
/// the store; 3 when it fails on the way.
pub fn run(args: &ServeArgs) -> Result<(), Failure> {
    let config = load(args)?;
    if args.print_config {
        return output::print(&config.print());
    }
    if args.check_config {
        return doctor::report(&check::machine(&config), false);
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(config.log_level).with_ansi(false).init();
    kvtier_daemon::serve(config).map_err(|error| {
        let code = error.exit_code();
        Failure::from_error(&error, code)
    })
}

fn load(args: &ServeArgs) -> Result<Config, Failure> {
    let typed = [
        ("socket", "--socket", &args.socket),
        ("host_mem", "--host-mem", &args.host_mem),
        ("disk", "--disk", &args.disk),
        ("disk_size", "--disk-size", &args.disk_size),
        ("http", "--http", &args.http),
    ];
    let flags = typed.into_iter().filter_map(|(key, flag, value)| Some(Flag { key, flag, value: value.clone()? }));
    let sources = Sources::here(args.config.clone(), flags.collect());
    sources.and_then(|sources| Config::load(&sources)).map_err(|error| Failure::from_error(&error, 2))
}
