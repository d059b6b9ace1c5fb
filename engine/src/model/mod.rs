//! A Llama-family model: its configuration, its weights, and the forward pass up to attention.

pub mod config;
pub mod identity;
pub mod rope;
pub mod weights;

pub use config::ModelConfig;
pub use weights::{Model, Path};
