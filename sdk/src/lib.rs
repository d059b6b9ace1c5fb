//! The plugin SDK: one cache trait, and the tiers composed in process.
#![deny(unsafe_code)]

pub mod cache;
pub mod embedded;
