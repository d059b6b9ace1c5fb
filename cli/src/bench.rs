//! `kvtier bench`: what this machine can do, beside what it does through us.

mod cuda;
mod daemon;
mod decode;
mod disk;
mod forms;

use crate::args::BenchCommand;
use crate::failure::Failure;

/// Runs the command.
pub fn run(command: &BenchCommand) -> Result<(), Failure> {
    match command {
        BenchCommand::Disk(args) => disk::run(args),
        BenchCommand::Forms(args) => forms::run(args),
        BenchCommand::Daemon(args) => daemon::run(args),
        BenchCommand::Cuda(args) => cuda::run(args),
        BenchCommand::Decode(args) => decode::run(args),
    }
}
