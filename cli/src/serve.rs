//! `kvtier serve`: the daemon.

pub use kvtier_daemon::command::ServeArgs;
use kvtier_daemon::command::{self, Ended};

use crate::failure::Failure;

/// Runs the daemon until it is told to end. Exit codes: those of [`Ended`].
pub fn run(args: &ServeArgs) -> Result<(), Failure> {
    // Not locked: a daemon has its output for as long as it runs.
    command::run(args, &mut std::io::stdout()).map_err(|Ended { code, message }| Failure { code, message })
}
