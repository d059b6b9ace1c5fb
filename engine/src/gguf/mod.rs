//! GGUF model files: metadata, tensor directory, and the values stored in tensors.
//!
//! [`GgufFile`] reads untrusted bytes: every count, length and offset is checked against the file before anything is
//! read or allocated for it, so memory use stays in proportion to the file and no input panics.

mod cursor;
pub mod dequant;
mod error;
mod file;
mod mapping;
mod tensor_type;
mod value;

pub use error::GgufError;
pub use file::{GgufFile, TensorInfo};
pub use tensor_type::TensorType;
pub use value::{MetaArray, MetaValue};
