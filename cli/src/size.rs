//! Sizes on the command line are written as in the daemon's settings.

pub use kvtier_daemon::config::Size;
