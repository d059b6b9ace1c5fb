//! A writer of small GGUF files, sound or damaged on purpose.

/// A GGUF file in the making. Metadata values come as type number and bytes, so that wrong ones can be written too.
pub struct GgufWriter {
    pub version: u32,
    metadata: Vec<u8>,
    metadata_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

/// A length and that many bytes.
pub fn text(value: &str) -> Vec<u8> {
    let mut out = (value.len() as u64).to_le_bytes().to_vec();
    out.extend(value.as_bytes());
    out
}

/// The bytes of an array value: element type, count, elements.
pub fn array<T>(kind: u32, values: &[T], bytes: impl Fn(&T) -> Vec<u8>) -> Vec<u8> {
    let mut out = kind.to_le_bytes().to_vec();
    out.extend((values.len() as u64).to_le_bytes());
    out.extend(values.iter().flat_map(bytes));
    out
}

#[allow(dead_code, reason = "each test that includes this file uses a part of it")]
impl GgufWriter {
    pub fn new() -> Self {
        GgufWriter {
            version: 3,
            metadata: Vec::new(),
            metadata_count: 0,
            tensors: Vec::new(),
            tensor_count: 0,
            data: Vec::new(),
        }
    }

    /// Adds a metadata value of GGUF type `kind`.
    pub fn meta(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.metadata.extend(text(key));
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
        self.metadata_count += 1;
        self
    }

    /// Adds a tensor of ggml type `kind` whose data is `bytes`, aligned to 32.
    pub fn tensor(self, name: &str, dims: &[u64], kind: u32, bytes: &[u8]) -> Self {
        let offset = self.data.len() as u64;
        let mut new = self.tensor_at(name, dims, kind, offset);
        new.data.extend(bytes);
        new.data.resize(new.data.len().next_multiple_of(32), 0);
        new
    }

    /// Adds a directory entry alone.
    pub fn tensor_at(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors.extend(text(name));
        self.tensors.extend((dims.len() as u32).to_le_bytes());
        self.tensors.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.tensor_count += 1;
        self
    }

    /// The file.
    pub fn finish(self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.to_le_bytes());
        out.extend(self.metadata_count.to_le_bytes());
        out.extend(self.metadata);
        out.extend(self.tensors);
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(self.data);
        out
    }
}
