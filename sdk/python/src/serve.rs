//! The daemon as a function: `kvtier.serve`, and `python -m kvtier serve`.

use std::ffi::OsString;

use clap::Parser;
use kvtier_daemon::command::{self, Ended, ServeArgs};
use pyo3::prelude::*;

/// The memory system for long-context LLM inference.
#[derive(Parser)]
#[command(name = "kvtier", bin_name = "python -m kvtier", version, about)]
struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// The daemon: one cache for all engines of this machine
    Serve(ServeArgs),
}

/// Runs a command, given as its words behind the program's name; returns its exit code and what is wrong.
#[pyfunction]
#[pyo3(name = "_run")]
pub(crate) fn run_command(py: Python<'_>, words: Vec<OsString>) -> (u8, String) {
    py.detach(|| {
        let line = match CommandLine::try_parse_from(std::iter::once("kvtier".into()).chain(words)) {
            Ok(line) => line,
            // Help and version, on stdout.
            Err(error) if !error.use_stderr() => {
                let _ = error.print();
                return (0, String::new());
            }
            Err(error) => return (2, error.render().to_string().trim_start_matches("error: ").trim_end().to_owned()),
        };
        let Command::Serve(args) = line.command;
        match command::run(&args, &mut std::io::stdout()) {
            Ok(()) => (0, String::new()),
            Err(Ended { code, message }) => (code, message),
        }
    })
}
