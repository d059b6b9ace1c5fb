//! The one binary of kvtier.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod chat;
mod delete;
mod demo;
mod disk;
mod doctor;
mod endpoint;
mod explain;
mod failure;
mod load;
mod model;
mod output;
mod prompt;
mod quality;
mod run;
mod score;
mod serve;
mod session;
mod signals;
mod size;
mod stats;
mod top;
mod verify;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::args::{Cli, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    let result = Cli::try_parse().map_err(|error| {
        if !error.use_stderr() {
            // Help and version, on stdout.
            error.exit();
        }
        Failure::input(command_line(&error))
    });
    match result.and_then(|cli| run_command(&cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                output::note(&format!("kvtier: {}\n", failure.message));
            }
            ExitCode::from(failure.code)
        }
    }
}

fn run_command(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Demo(args) => demo::run(args),
        Command::Run(args) => run::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Score(args) => score::run(args),
        Command::Quality(args) => quality::run(args),
        Command::Model(command) => model::run(command),
        Command::Verify(args) => verify::run(args),
        Command::Bench(command) => bench::run(command),
        Command::Serve(args) => serve::run(args),
        Command::Top(args) => top::run(args),
        Command::Stats(args) => stats::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Delete(args) => delete::run(args),
        Command::Doctor(args) => doctor::run(args),
    }
}

/// What is wrong with a command line, in one to four lines.
fn command_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.trim().is_empty()).collect();
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let usage = lines.iter().find_map(|line| line.strip_prefix("Usage: ")).unwrap_or("kvtier <COMMAND>");
        return format!("a command is missing: {usage}; --help lists them");
    }
    let told = |line: &&&str| !line.starts_with("Usage:") && !line.starts_with("For more information");
    let lines: Vec<&str> = lines.iter().filter(told).copied().collect();
    let (first, rest) = lines.split_at(lines.len().min(2));
    let rest = rest.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    let mut text = first.join("\n");
    if error.kind() == ErrorKind::InvalidSubcommand {
        text.push_str("\n  --help lists the commands");
    }
    if !rest.is_empty() {
        text.push('\n');
        text.push_str(&rest);
    }
    text.strip_prefix("error: ").unwrap_or(&text).to_owned()
}
