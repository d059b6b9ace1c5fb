//! What can be wrong with a GGUF file.

use std::path::PathBuf;

/// Why a GGUF file, or one of its entries, cannot be used. Every case is bad input, never a bug of the reader.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file could not be opened or mapped.
    #[error("open model file {}: {source}; check the path and its permissions", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The path is a directory, a pipe or a device.
    #[error("open model file {}: not a regular file; name the .gguf file itself", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A named file was opened, but something in it is wrong.
    #[error("read {}: {problem}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: Box<GgufError>,
    },
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: it starts with bytes {found:02x?}, expected \"GGUF\"; give a .gguf model file")]
    Magic {
        /// The first bytes, at most four.
        found: Vec<u8>,
    },
    /// Version other than 2 or 3.
    #[error("GGUF version {found} is not supported (2 and 3 are); convert the model with a current converter")]
    Version {
        /// The version stored.
        found: u32,
    },
    /// Stored big-endian.
    #[error("GGUF file is big-endian, only little-endian is supported; convert the model for this machine")]
    BigEndian,
    /// The file ends before something it declares.
    #[error(
        "file is truncated or damaged: {what} needs {expected} bytes of file, found {found}; fetch the model again"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// The least file size that holds it.
        expected: u64,
        /// The file size.
        found: u64,
    },
    /// A count, length or offset that no file can have.
    #[error("file is damaged: {what} is {value}, {limit}; fetch the model again")]
    OutOfRange {
        /// What was read.
        what: String,
        /// The value stored.
        value: u64,
        /// The rule it breaks.
        limit: String,
    },
    /// Text that is not UTF-8.
    #[error("file is damaged: {what} is not UTF-8; fetch the model again")]
    Text {
        /// What was read.
        what: String,
    },
    /// A key or tensor name stored twice.
    #[error("file is damaged: {what} appears twice; fetch the model again")]
    Duplicate {
        /// The key or tensor.
        what: String,
    },
    /// A value type number GGUF does not define.
    #[error("file is damaged: metadata `{key}` has value type {number}, GGUF defines 0 to 12; fetch the model again")]
    ValueType {
        /// The metadata key.
        key: String,
        /// The type number stored.
        number: u32,
    },
    /// A tensor stored in a type this reader does not understand.
    #[error(
        "tensor `{tensor}` is stored as ggml type {number}, which is not supported; \
         use a file in F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q4_K or Q6_K"
    )]
    UnknownQuantisation {
        /// The tensor.
        tensor: String,
        /// ggml's type number.
        number: u32,
    },
    /// Rows that are not whole blocks.
    #[error(
        "file is damaged: tensor `{tensor}` has rows of {row} elements, {kind} stores blocks of {block}; fetch the model again"
    )]
    RowBlocks {
        /// The tensor.
        tensor: String,
        /// Elements in a row.
        row: u64,
        /// Its type.
        kind: super::TensorType,
        /// Elements in a block.
        block: usize,
    },
    /// A metadata key the model needs is absent.
    #[error("metadata `{key}` is missing; use a model file that carries it")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value of another type than the reader of the model needs.
    #[error("metadata `{key}` is {found}, expected {expected}; use a model file that carries it so")]
    WrongType {
        /// The key.
        key: String,
        /// What is there.
        found: String,
        /// What is needed.
        expected: &'static str,
    },
    /// A tensor the model needs is absent.
    #[error("tensor `{name}` is missing; use a complete model file of a supported architecture")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
}
