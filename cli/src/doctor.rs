//! `kvtier doctor`: what this machine offers and lacks.

use std::path::PathBuf;

use clap::Args;
use kvtier_daemon::check::{self, Level};
use kvtier_daemon::config::{Config, Sources};
use serde_json::json;

use crate::failure::Failure;
use crate::output;

/// `kvtier doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// File of settings [default: as for kvtier serve]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Runs the command. Exit codes: 0, 1 when something fails, 2 for settings that cannot be used.
pub fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let sources = Sources::here(args.config.clone(), Vec::new());
    let config = sources.and_then(|sources| Config::load(&sources)).map_err(|error| Failure::from_error(&error, 2))?;
    let checks = check::machine(&config);
    let worst = check::worst(&checks);
    match args.json {
        true => output::print_line(&json!({ "level": worst, "checks": checks }).to_string())?,
        false => output::print(&check::text(&checks))?,
    }
    if worst == Level::Fail { Err(Failure { code: 1, message: String::new() }) } else { Ok(()) }
}
