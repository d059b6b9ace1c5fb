//! Vocabulary and decisions of kvtier: block identity, layouts, forms, sums, the cache manager and the store traits.
//!
//! No I/O, no runtime, no clock, no unsafe: time and randomness come in as arguments.
#![forbid(unsafe_code)]

pub mod buffer;
pub mod chain;
pub mod check;
pub mod codec;
pub mod completions;
#[cfg(feature = "testing")]
pub mod contract;
pub mod extent;
pub mod form;
pub mod hash;
pub mod hasher;
pub mod header;
pub mod hex;
pub mod key;
pub mod manager;
pub mod manifest;
pub mod miss;
pub mod payload;
pub mod slots;
pub mod store;
pub mod sum;
pub mod units;
