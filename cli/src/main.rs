//! The one binary of kvtier.
#![forbid(unsafe_code)]

mod args;
mod chat;
mod demo;
mod failure;
mod load;
mod model;
mod output;
mod run;
mod score;
mod size;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Score(args) => score::run(&args),
        Command::Model(command) => model::run(&command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("kvtier: {}", failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}
