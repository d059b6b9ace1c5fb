//! The decode engine of kvtier: model files, text, kernels, and paged attention over stored blocks.

mod error;
pub mod gguf;
pub mod machine;
pub mod matrix;
pub mod model;
pub mod models;
pub mod quality;
pub mod run;
pub mod template;
pub mod tokenizer;

pub use error::EngineError;
