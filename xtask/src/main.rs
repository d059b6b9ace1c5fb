//! Developer commands: `cargo xtask test | soak | bars | vllm | peer | kernels`.
#![forbid(unsafe_code)]

mod daemon;
mod forms;
mod kernels;
mod llama;
mod measure;
mod peer;
mod report;
mod stage;
mod targets;
mod test;
mod vllm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// kvtier's developer commands.
#[derive(Parser)]
#[command(name = "cargo xtask", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Formatting, lints and every test; skips are listed with their reasons.
    Test,
    /// Long tests: runs the test target `soak_NAME` in release (`fuzz`: every parser for ten minutes). Without NAME, lists them.
    Soak {
        /// The part after `soak_`.
        name: Option<String>,
        /// Passed on to the test program, for instance a filter.
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// Measurements against stated bars: runs the program `bars_NAME` in release (`llama`: beside llama.cpp; `daemon`: beside Redis and LMCache; `vllm`:
    /// inside vLLM, beside LMCache and plain files). Without
    /// NAME, lists them.
    Bars {
        /// The part after `bars_`.
        name: Option<String>,
        /// Passed on to the program.
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// A real vLLM on the CPU with our connector, point by point; builds its Python environment (6 GB) under `target/vllm`.
    Vllm {
        /// Only these points, by their numbers.
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// Builds another system to measure and compare with, under `target/peer`.
    Peer {
        /// Which one.
        #[arg(value_enum)]
        name: peer::Peer,
    },
    /// Compiles the CUDA kernels into the PTX and the tables (resources, traffic) that are checked in, with nvcc from pinned wheels (installed into
    /// `target/cuda-toolkit`).
    Kernels,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Test => test::run(),
        Command::Soak { name, rest } => targets::soak(name.as_deref(), &rest),
        Command::Bars { name, rest } => targets::bars(name.as_deref(), &rest),
        Command::Vllm { rest } => vllm::run(&rest),
        Command::Peer { name } => peer::run(name),
        Command::Kernels => kernels::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
