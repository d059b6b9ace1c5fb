//! The plugin SDK: one cache trait, the tiers composed in process, and the wire protocol of the daemon.
#![deny(unsafe_code)]

pub mod cache;
pub mod client;
#[cfg(feature = "testing")]
pub mod contract;
pub mod embedded;
pub mod plugin;
pub mod socket;
pub mod wire;

pub use cache_core::hex;
