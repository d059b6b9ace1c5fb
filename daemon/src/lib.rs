//! kvtier's daemon: one shared cache per machine, and what it tells about itself.
//!
//! | module | part |
//! |---|---|
//! | `config` | settings: defaults, file, environment, flags; each value knows its origin |
//! | `command` | `kvtier serve` as a function: options, output, exit code |
//! | `check` | what this machine offers to a daemon with these settings, and what it lacks |
//! | `stats` | counters, the snapshot made of them, and why a request's blocks were missed |
//! | `http` | the statistics endpoint: JSON, Prometheus text, the live page |
//! | `bench` | the service measured from outside, beside a plain copy and Redis |
//! | `server` | the service itself: the socket, connections, the cache |
#![forbid(unsafe_code)]

pub mod bench;
pub mod check;
pub mod command;
pub mod config;
pub mod http;
pub mod server;
pub mod stats;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(not(feature = "testing"))]
mod testing;

pub use server::{ServeError, serve};
