//! `kvtier delete`: blocks of a tenant or of a namespace, for good.

use std::time::Duration;

use clap::Args;
use kvtier_daemon::config::{Config, Flag, Sources};
use kvtier_sdk::client::{CallError, ClientSettings, Deleted, delete};
use kvtier_sdk::hex::from_hex;
use serde_json::json;

use crate::failure::Failure;
use crate::output;

/// How long a deletion may take: both superblocks are written and synced for each namespace.
const LIMIT: Duration = Duration::from_secs(60);

/// `kvtier delete`.
///
/// When it returns, nobody finds any of it any more, in memory and on the disk, after a restart too. Readers that lease a block of it lose the lease.
#[derive(Args, Clone, Debug)]
pub struct DeleteArgs {
    /// Everything of the tenant with this salt
    #[arg(long, value_name = "TEXT", required_unless_present = "namespace", conflicts_with = "namespace")]
    pub salt: Option<String>,
    /// One namespace: 64 hexadecimal digits
    #[arg(long, value_name = "ID", value_parser = parse_digest)]
    pub namespace: Option<[u8; 32]>,
    /// Path of the daemon's socket [default: where its settings have it]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<String>,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Runs the command. Exit codes: 2 for settings that cannot be used, 3 where no daemon answers or it could not delete everything.
pub fn run(args: &DeleteArgs) -> Result<(), Failure> {
    let flag = args.socket.clone().map(|value| Flag { key: "socket", flag: "--socket", value });
    let sources = Sources::here(None, flag.into_iter().collect());
    let config = sources.and_then(|sources| Config::load(&sources)).map_err(|error| Failure::from_error(&error, 2))?;
    let settings = ClientSettings { socket: config.socket, name: "kvtier delete".to_owned(), deadline: LIMIT };
    let what = match (&args.salt, args.namespace) {
        (Some(salt), _) => Deleted::Salt(salt),
        (None, Some(namespace)) => Deleted::Namespace(namespace),
        (None, None) => unreachable!("the command line names one of them"),
    };
    let namespaces = delete(&settings, what).map_err(|error| match error {
        CallError::NotConnected => Failure {
            code: 3,
            message: format!("no daemon answers at {}; --socket names another path", settings.socket.display()),
        },
        error => Failure::from_error(&error, 3),
    })?;
    if args.json {
        return output::print_line(&json!({ "namespaces": namespaces }).to_string());
    }
    let noun = if namespaces == 1 { "namespace" } else { "namespaces" };
    output::print_line(&format!("deleted {namespaces} {noun}"))
}

fn parse_digest(text: &str) -> Result<[u8; 32], String> {
    let digest = from_hex(text).and_then(|bytes| bytes.try_into().ok());
    digest.ok_or_else(|| "give the 64 hexadecimal digits of a namespace".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_has_64_digits() {
        let digest = parse_digest(&"0Fa5".repeat(16)).unwrap();
        assert_eq!(digest[..4], [0x0f, 0xa5, 0x0f, 0xa5]);
        for wrong in ["", "0f", &"g".repeat(64), &"0".repeat(63), &"0".repeat(65), &"é".repeat(32)] {
            assert!(parse_digest(wrong).is_err(), "{wrong}");
        }
    }
}
