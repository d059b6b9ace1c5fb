//! A GGUF file: metadata and tensor directory, checked in full when it is opened.
//!
//! Layout (little-endian): magic `GGUF`, u32 version (2 or 3, which differ in nothing read here), u64 tensor count,
//! u64 metadata count; metadata entries (text key, u32 type, value); tensor entries (text name, u32 dimension count,
//! u64 dimensions innermost first, u32 type, u64 offset); padding to `general.alignment` (default 32); tensor data,
//! to which the offsets are relative. A text is a u64 byte count and UTF-8. Source: the GGUF specification in ggml.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use super::cursor::Cursor;
use super::mapping::Bytes;
use super::{GgufError, MetaArray, MetaValue, TensorType};

/// Tensors have at most this many dimensions (ggml's `GGML_MAX_DIMS`).
const MAX_DIMS: u32 = 4;
/// Alignment of tensor data when `general.alignment` is absent.
const DEFAULT_ALIGNMENT: u32 = 32;

/// Where a tensor lies and what it is. The range was checked against the file and the type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, as `blk.0.attn_q.weight`.
    pub name: String,
    /// Dimensions, innermost (row length) first; 1 to 4 of them, none zero. Their product fits a `usize`.
    pub dims: Vec<usize>,
    /// How elements are stored.
    pub kind: TensorType,
    /// Bytes within the file.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// Elements in one row.
    pub fn row_elements(&self) -> usize {
        self.dims[0]
    }

    /// Number of rows: the product of all other dimensions.
    pub fn rows(&self) -> usize {
        self.dims[1..].iter().product()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.range.len() / self.rows()
    }
}

/// An open GGUF file. Cheap to keep: tensor data stays in the mapping.
#[derive(Debug)]
pub struct GgufFile {
    bytes: Bytes,
    version: u32,
    metadata: BTreeMap<String, MetaValue>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl GgufFile {
    /// Maps and checks the file at `path`. The file must not be changed while it is open; see the note on truncation
    /// in this module tree's `mapping.rs`: replace a model file by renaming, never in place.
    ///
    /// Errors: any [`GgufError`]; those about the content are wrapped with the path.
    pub fn open(path: impl AsRef<Path>) -> Result<GgufFile, GgufError> {
        let path = path.as_ref();
        Self::parse(Bytes::map(path)?)
            .map_err(|problem| GgufError::InFile { path: path.to_owned(), problem: Box::new(problem) })
    }

    /// Checks a file held in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<GgufFile, GgufError> {
        Self::parse(Bytes::Owned(bytes))
    }

    fn parse(bytes: Bytes) -> Result<GgufFile, GgufError> {
        let mut cursor = Cursor::new(&bytes);
        let version = read_version(&mut cursor)?;
        // Least entry sizes: name length, dimension count, one dimension, type, offset; key length, type, one byte.
        let tensor_count = cursor.u64(|| "tensor count".to_owned())?;
        let metadata_count = cursor.count(8 + 4 + 1, || "metadata".to_owned())?;

        let mut metadata = BTreeMap::new();
        for index in 0..metadata_count {
            let key = cursor.text(|| format!("metadata key {index}"))?;
            let number = cursor.u32(|| format!("type of metadata `{key}`"))?;
            let value = MetaValue::read(&mut cursor, number, key)?;
            if metadata.insert(key.to_owned(), value).is_some() {
                return Err(GgufError::Duplicate { what: format!("metadata `{key}`") });
            }
        }
        let (tensors, by_name) = read_tensors(&mut cursor, tensor_count, &metadata, bytes.len())?;
        Ok(GgufFile { version, metadata, tensors, by_name, bytes })
    }

    /// GGUF version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the file system says of the very file that is mapped, whatever its path names by now; `None` for bytes in
    /// memory. Errors: those of the system.
    pub fn file_metadata(&self) -> std::io::Result<Option<std::fs::Metadata>> {
        self.bytes.file_metadata()
    }

    /// Size of the file in bytes.
    pub fn file_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// All metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, MetaValue> {
        &self.metadata
    }

    /// The tensor directory, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`, if there is one.
    pub fn find_tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&index| &self.tensors[index])
    }

    /// The tensor called `name`. Errors: `MissingTensor`.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, GgufError> {
        self.find_tensor(name).ok_or_else(|| GgufError::MissingTensor { name: name.to_owned() })
    }

    /// The stored bytes of a tensor of this file.
    ///
    /// Panics when `tensor` comes from another, longer file.
    pub fn tensor_bytes(&self, tensor: &TensorInfo) -> &[u8] {
        &self.bytes[tensor.range.clone()]
    }

    /// The value of `key`, if present.
    pub fn get(&self, key: &str) -> Option<&MetaValue> {
        self.metadata.get(key)
    }

    /// An integer of any stored width that fits a u32. Errors: `MissingKey`, `WrongType`.
    pub fn u32(&self, key: &str) -> Result<u32, GgufError> {
        self.required(key, "an integer from 0 to 4294967295", integer_u32)
    }

    /// As [`u32`](Self::u32), `None` when the key is absent.
    pub fn optional_u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.optional(key, "an integer from 0 to 4294967295", integer_u32)
    }

    /// A float, or an integer where a converter stored one. Errors: `MissingKey`, `WrongType`.
    pub fn f32(&self, key: &str) -> Result<f32, GgufError> {
        self.required(key, "a number", number_f32)
    }

    /// As [`f32`](Self::f32), `None` when the key is absent.
    pub fn optional_f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.optional(key, "a number", number_f32)
    }

    /// A boolean, `None` when the key is absent. Errors: `WrongType`.
    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.optional(key, "a boolean", |value| match value {
            MetaValue::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// A text. Errors: `MissingKey`, `WrongType`.
    pub fn str(&self, key: &str) -> Result<&str, GgufError> {
        self.required(key, "a text", text)
    }

    /// As [`str`](Self::str), `None` when the key is absent.
    pub fn optional_str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.optional(key, "a text", text)
    }

    /// An array of texts. Errors: `MissingKey`, `WrongType`.
    pub fn strings(&self, key: &str) -> Result<&[String], GgufError> {
        self.required(key, "an array of texts", |value| match value {
            MetaValue::Array(MetaArray::Text(texts)) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// An array of 32-bit signed integers, `None` when the key is absent. Errors: `WrongType`.
    pub fn optional_i32s(&self, key: &str) -> Result<Option<&[i32]>, GgufError> {
        self.optional(key, "an array of 32-bit integers", |value| match value {
            MetaValue::Array(MetaArray::I32(numbers)) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// An array of 32-bit floats, `None` when the key is absent. Errors: `WrongType`.
    pub fn optional_f32s(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        self.optional(key, "an array of 32-bit floats", |value| match value {
            MetaValue::Array(MetaArray::F32(numbers)) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    fn required<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a MetaValue) -> Option<T>,
    ) -> Result<T, GgufError> {
        self.optional(key, expected, convert)?.ok_or_else(|| GgufError::MissingKey { key: key.to_owned() })
    }

    fn optional<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a MetaValue) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(GgufError::WrongType { key: key.to_owned(), found: value.describe(), expected }),
        }
    }
}

fn integer_u32(value: &MetaValue) -> Option<u32> {
    value.as_integer().and_then(|v| u32::try_from(v).ok())
}

fn number_f32(value: &MetaValue) -> Option<f32> {
    match value {
        MetaValue::F32(v) => Some(*v),
        MetaValue::F64(v) => Some(*v as f32),
        other => other.as_integer().map(|v| v as f32),
    }
}

fn text(value: &MetaValue) -> Option<&str> {
    match value {
        MetaValue::Text(text) => Some(text),
        _ => None,
    }
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let start = cursor.clone().remaining().min(4) as u64;
    let magic = cursor.clone().take(start, || "magic".to_owned())?;
    if !b"GGUF".starts_with(magic) {
        return Err(GgufError::Magic { found: magic.to_owned() });
    }
    cursor.take(4, || "magic".to_owned())?;
    match cursor.u32(|| "version".to_owned())? {
        version @ (2 | 3) => Ok(version),
        found if matches!(found.swap_bytes(), 2 | 3) => Err(GgufError::BigEndian),
        found => Err(GgufError::Version { found }),
    }
}

/// `general.alignment`, checked.
fn alignment(metadata: &BTreeMap<String, MetaValue>) -> Result<u64, GgufError> {
    let key = "general.alignment";
    let Some(value) = metadata.get(key) else {
        return Ok(DEFAULT_ALIGNMENT.into());
    };
    match integer_u32(value) {
        Some(alignment) if alignment.is_power_of_two() => Ok(alignment.into()),
        _ => Err(GgufError::WrongType { key: key.to_owned(), found: value.describe(), expected: "a power of two" }),
    }
}

type Directory = (Vec<TensorInfo>, HashMap<String, usize>);

/// A tensor entry as stored, before its place is known.
struct Entry {
    name: String,
    dims: Vec<usize>,
    kind: TensorType,
    offset: u64,
    bytes: u64,
}

/// Reads the tensor directory and places every tensor in a file of `file_bytes` bytes.
fn read_tensors(
    cursor: &mut Cursor<'_>,
    count: u64,
    metadata: &BTreeMap<String, MetaValue>,
    file_bytes: usize,
) -> Result<Directory, GgufError> {
    let alignment = alignment(metadata)?;
    let least = count.saturating_mul(8 + 4 + 8 + 4 + 8);
    if least > cursor.remaining() as u64 {
        return Err(GgufError::Truncated {
            what: format!("directory of {count} tensors"),
            expected: (cursor.position() as u64).saturating_add(least),
            found: file_bytes as u64,
        });
    }
    let entries: Result<Vec<Entry>, GgufError> = (0..count).map(|index| read_entry(cursor, index)).collect();
    let data = (cursor.position() as u64).next_multiple_of(alignment);

    let mut tensors: Vec<TensorInfo> = Vec::new();
    let mut by_name = HashMap::new();
    // The furthest end is reported, so that a truncated file's message gives the whole size it should have.
    let mut furthest: Option<(u64, String)> = None;
    for entry in entries? {
        let end = place(&entry, data, alignment)?;
        if end > file_bytes as u64 && furthest.as_ref().is_none_or(|(most, _)| end > *most) {
            furthest = Some((end, entry.name.clone()));
        }
        if by_name.insert(entry.name.clone(), tensors.len()).is_some() {
            return Err(GgufError::Duplicate { what: format!("tensor `{}`", entry.name) });
        }
        // Within the file unless `furthest` says otherwise below, so the casts lose nothing.
        let range = (end - entry.bytes) as usize..end as usize;
        tensors.push(TensorInfo { name: entry.name, dims: entry.dims, kind: entry.kind, range });
    }
    if let Some((expected, name)) = furthest {
        return Err(GgufError::Truncated { what: format!("tensor `{name}`"), expected, found: file_bytes as u64 });
    }
    Ok((tensors, by_name))
}

/// Where a tensor's data ends in the file.
fn place(entry: &Entry, data: u64, alignment: u64) -> Result<u64, GgufError> {
    let out_of_range = |limit: String| GgufError::OutOfRange {
        what: format!("offset of tensor `{}`", entry.name),
        value: entry.offset,
        limit,
    };
    if !entry.offset.is_multiple_of(alignment) {
        return Err(out_of_range(format!("not a multiple of the alignment {alignment}")));
    }
    data.checked_add(entry.offset)
        .and_then(|start| start.checked_add(entry.bytes))
        .ok_or_else(|| out_of_range("beyond any file".to_owned()))
}

fn read_entry(cursor: &mut Cursor<'_>, index: u64) -> Result<Entry, GgufError> {
    let name = cursor.text(|| format!("name of tensor {index}"))?;
    let count = cursor.u32(|| format!("dimension count of tensor `{name}`"))?;
    if !(1..=MAX_DIMS).contains(&count) {
        return Err(GgufError::OutOfRange {
            what: format!("dimension count of tensor `{name}`"),
            value: count.into(),
            limit: format!("1 to {MAX_DIMS} are allowed"),
        });
    }
    let mut dims = Vec::with_capacity(count as usize);
    let mut elements = 1usize;
    for axis in 0..count {
        let dim = cursor.u64(|| format!("dimension {axis} of tensor `{name}`"))?;
        let fits =
            usize::try_from(dim).ok().filter(|&dim| dim > 0).and_then(|dim| Some((dim, elements.checked_mul(dim)?)));
        let Some((dim, product)) = fits else {
            return Err(GgufError::OutOfRange {
                what: format!("dimension {axis} of tensor `{name}`"),
                value: dim,
                limit: "zero or too large for any file".to_owned(),
            });
        };
        elements = product;
        dims.push(dim);
    }
    let number = cursor.u32(|| format!("type of tensor `{name}`"))?;
    let offset = cursor.u64(|| format!("offset of tensor `{name}`"))?;
    let kind = TensorType::from_ggml(number)
        .ok_or_else(|| GgufError::UnknownQuantisation { tensor: name.to_owned(), number })?;
    let row = dims[0];
    if !row.is_multiple_of(kind.block_elements()) {
        return Err(GgufError::RowBlocks {
            tensor: name.to_owned(),
            row: row as u64,
            kind,
            block: kind.block_elements(),
        });
    }
    let bytes = kind.row_bytes(elements).ok_or_else(|| GgufError::OutOfRange {
        what: format!("element count of tensor `{name}`"),
        value: elements as u64,
        limit: "too large for any file".to_owned(),
    })?;
    Ok(Entry { name: name.to_owned(), dims, kind, offset, bytes: bytes as u64 })
}
