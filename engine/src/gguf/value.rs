//! Metadata values.

use super::GgufError;
use super::cursor::Cursor;

/// Nested arrays deeper than this are refused; GGUF sets no limit, known files never nest.
const MAX_ARRAY_DEPTH: u32 = 4;

/// One metadata value. Source: the GGUF specification (`gguf_metadata_value_type`, numbers 0 to 12).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum MetaValue {
    /// 8-bit unsigned.
    U8(u8),
    /// 8-bit signed.
    I8(i8),
    /// 16-bit unsigned.
    U16(u16),
    /// 16-bit signed.
    I16(i16),
    /// 32-bit unsigned.
    U32(u32),
    /// 32-bit signed.
    I32(i32),
    /// 32-bit float.
    F32(f32),
    /// One byte, 0 or 1.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// Values of one type.
    Array(MetaArray),
    /// 64-bit unsigned.
    U64(u64),
    /// 64-bit signed.
    I64(i64),
    /// 64-bit float.
    F64(f64),
}

/// An array of one type.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum MetaArray {
    /// 8-bit unsigned.
    U8(Vec<u8>),
    /// 8-bit signed.
    I8(Vec<i8>),
    /// 16-bit unsigned.
    U16(Vec<u16>),
    /// 16-bit signed.
    I16(Vec<i16>),
    /// 32-bit unsigned.
    U32(Vec<u32>),
    /// 32-bit signed.
    I32(Vec<i32>),
    /// 32-bit float.
    F32(Vec<f32>),
    /// One byte each, 0 or 1.
    Bool(Vec<bool>),
    /// UTF-8 texts.
    Text(Vec<String>),
    /// Arrays, each with its own type.
    Array(Vec<MetaArray>),
    /// 64-bit unsigned.
    U64(Vec<u64>),
    /// 64-bit signed.
    I64(Vec<i64>),
    /// 64-bit float.
    F64(Vec<f64>),
}

impl MetaValue {
    /// Reads a value of GGUF type `number`.
    pub(super) fn read(cursor: &mut Cursor<'_>, number: u32, key: &str) -> Result<MetaValue, GgufError> {
        let what = || format!("metadata `{key}`");
        Ok(match number {
            0 => MetaValue::U8(u8::from_le_bytes(cursor.array(what)?)),
            1 => MetaValue::I8(i8::from_le_bytes(cursor.array(what)?)),
            2 => MetaValue::U16(u16::from_le_bytes(cursor.array(what)?)),
            3 => MetaValue::I16(i16::from_le_bytes(cursor.array(what)?)),
            4 => MetaValue::U32(u32::from_le_bytes(cursor.array(what)?)),
            5 => MetaValue::I32(i32::from_le_bytes(cursor.array(what)?)),
            6 => MetaValue::F32(f32::from_le_bytes(cursor.array(what)?)),
            7 => MetaValue::Bool(boolean(u8::from_le_bytes(cursor.array(what)?), key)?),
            8 => MetaValue::Text(cursor.text(what)?.to_owned()),
            9 => MetaValue::Array(MetaArray::read(cursor, key, 0)?),
            10 => MetaValue::U64(u64::from_le_bytes(cursor.array(what)?)),
            11 => MetaValue::I64(i64::from_le_bytes(cursor.array(what)?)),
            12 => MetaValue::F64(f64::from_le_bytes(cursor.array(what)?)),
            number => {
                return Err(GgufError::ValueType { key: key.to_owned(), number });
            }
        })
    }

    /// The value as a signed 128-bit integer, if it is an integer of any width.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            MetaValue::U8(v) => v.into(),
            MetaValue::I8(v) => v.into(),
            MetaValue::U16(v) => v.into(),
            MetaValue::I16(v) => v.into(),
            MetaValue::U32(v) => v.into(),
            MetaValue::I32(v) => v.into(),
            MetaValue::U64(v) => v.into(),
            MetaValue::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// What the value is, for messages: type and, where short, the value.
    pub fn describe(&self) -> String {
        match self {
            MetaValue::F32(v) => format!("the 32-bit float {v}"),
            MetaValue::F64(v) => format!("the 64-bit float {v}"),
            MetaValue::Bool(v) => format!("the boolean {v}"),
            MetaValue::Text(_) => "a text".to_owned(),
            MetaValue::Array(array) => {
                format!("an array of {} {}", array.len(), array.element_name())
            }
            integer => match integer.as_integer() {
                Some(v) => format!("the integer {v}"),
                None => "a value".to_owned(),
            },
        }
    }
}

/// Reads `count` fixed-width entries of an array.
macro_rules! entries {
    ($cursor:expr, $what:expr, $kind:ty) => {{
        const WIDTH: usize = size_of::<$kind>();
        let count = $cursor.count(WIDTH as u64, $what)?;
        let bytes = $cursor.take((count * WIDTH) as u64, $what)?;
        let entry = |b: &[u8]| <$kind>::from_le_bytes(b.try_into().expect("chunks are exactly one entry wide"));
        bytes.chunks_exact(WIDTH).map(entry).collect()
    }};
}

impl MetaArray {
    fn read(cursor: &mut Cursor<'_>, key: &str, depth: u32) -> Result<MetaArray, GgufError> {
        let what = || format!("array `{key}`");
        let number = cursor.u32(|| format!("element type of array `{key}`"))?;
        Ok(match number {
            0 => MetaArray::U8(entries!(cursor, what, u8)),
            1 => MetaArray::I8(entries!(cursor, what, i8)),
            2 => MetaArray::U16(entries!(cursor, what, u16)),
            3 => MetaArray::I16(entries!(cursor, what, i16)),
            4 => MetaArray::U32(entries!(cursor, what, u32)),
            5 => MetaArray::I32(entries!(cursor, what, i32)),
            6 => MetaArray::F32(entries!(cursor, what, f32)),
            7 => {
                let count = cursor.count(1, what)?;
                let bytes = cursor.take(count as u64, what)?;
                let flags: Result<_, _> = bytes.iter().map(|&b| boolean(b, key)).collect();
                MetaArray::Bool(flags?)
            }
            8 => {
                let count = cursor.count(8, what)?;
                let mut texts = Vec::with_capacity(count);
                for index in 0..count {
                    let text = cursor.text(|| format!("entry {index} of array `{key}`"))?;
                    texts.push(text.to_owned());
                }
                MetaArray::Text(texts)
            }
            9 => {
                if depth == MAX_ARRAY_DEPTH {
                    return Err(GgufError::OutOfRange {
                        what: format!("nesting of array `{key}`"),
                        value: u64::from(depth) + 1,
                        limit: format!("at most {MAX_ARRAY_DEPTH} is supported"),
                    });
                }
                let count = cursor.count(12, what)?;
                let mut arrays = Vec::with_capacity(count);
                for _ in 0..count {
                    arrays.push(MetaArray::read(cursor, key, depth + 1)?);
                }
                MetaArray::Array(arrays)
            }
            10 => MetaArray::U64(entries!(cursor, what, u64)),
            11 => MetaArray::I64(entries!(cursor, what, i64)),
            12 => MetaArray::F64(entries!(cursor, what, f64)),
            number => {
                return Err(GgufError::ValueType { key: key.to_owned(), number });
            }
        })
    }

    /// Entries in the array.
    pub fn len(&self) -> usize {
        match self {
            MetaArray::U8(v) => v.len(),
            MetaArray::I8(v) => v.len(),
            MetaArray::U16(v) => v.len(),
            MetaArray::I16(v) => v.len(),
            MetaArray::U32(v) => v.len(),
            MetaArray::I32(v) => v.len(),
            MetaArray::F32(v) => v.len(),
            MetaArray::Bool(v) => v.len(),
            MetaArray::Text(v) => v.len(),
            MetaArray::Array(v) => v.len(),
            MetaArray::U64(v) => v.len(),
            MetaArray::I64(v) => v.len(),
            MetaArray::F64(v) => v.len(),
        }
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the entries are, for messages.
    pub fn element_name(&self) -> &'static str {
        match self {
            MetaArray::F32(_) | MetaArray::F64(_) => "floats",
            MetaArray::Bool(_) => "booleans",
            MetaArray::Text(_) => "texts",
            MetaArray::Array(_) => "arrays",
            _ => "integers",
        }
    }
}

/// A boolean byte; GGUF allows 0 and 1 only.
fn boolean(byte: u8, key: &str) -> Result<bool, GgufError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(GgufError::OutOfRange {
            what: format!("boolean in metadata `{key}`"),
            value: other.into(),
            limit: "0 and 1 are allowed".to_owned(),
        }),
    }
}
