//! What callers pass.

use std::ffi::{CStr, c_char};

use cache_core::hash::BlockHash;
use cache_core::manifest::HeadSlice;
use kvtier_sdk::plugin::{Before, Identity, Lossy, RopeStated, Strides};

use crate::guard::Failure;

/// How a client is opened. Zero in a field means its default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvtier_options {
    /// `sizeof(kvtier_options)`.
    pub size: usize,
    /// Path of the daemon's socket; null: `$KVTIER_SOCKET`, else the default one.
    pub socket: *const c_char,
    /// What the client calls itself, at most 64 bytes; null: `c`.
    pub name: *const c_char,
    /// How long one call may take, loads from the disk among them; 0: 2,000.
    pub deadline_ms: u32,
    /// Calls that may be under way or wait to be polled; 0: 64. At most 65,536.
    pub queue_max: u32,
}

/// Everything that two blocks must share to stand for each other. What differs in any field never meets. Texts may be null for empty.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvtier_identity {
    /// `sizeof(kvtier_identity)`.
    pub size: usize,
    /// Digest of the weights.
    pub weights: [u8; 32],
    /// Architecture name.
    pub architecture: *const c_char,
    /// Element type of keys and values.
    pub dtype: *const c_char,
    /// Tokens of a stored block.
    pub block_tokens: u32,
    /// Layers of this process.
    pub layers: u32,
    /// KV heads of this rank.
    pub kv_heads: u32,
    /// Channels of a head.
    pub head_dim: u32,
    /// Tensor-parallel rank.
    pub tensor_parallel_rank: u32,
    /// Ranks there are; 0: 1.
    pub tensor_parallel_size: u32,
    /// Pipeline rank.
    pub pipeline_rank: u32,
    /// Ranks there are; 0: 1.
    pub pipeline_size: u32,
    /// Channels that RoPE rotates; 0: none.
    pub rope_dimensions: u32,
    /// RoPE's base frequency.
    pub rope_base: f32,
    /// RoPE's scaling.
    pub rope_scaling: *const c_char,
    /// Adapter.
    pub adapter: *const c_char,
    /// How the numbers come about: engine, its revision, device kind, kernels.
    pub numerics: *const c_char,
    /// How the bytes of a layer are laid out, in words and numbers of the engine's own.
    pub layout: *const c_char,
    /// The tenant's salt; null: none, which is another tenant than the empty salt's.
    pub salt: *const c_char,
    /// Bytes of one layer of a stored block in the engine's memory, keys and values together.
    pub layer_bytes: u32,
    /// The lossy form to store blocks in, such as `kc4vt4`; null: their bytes as they are. With it `dtype` is bf16, and all that follows is read.
    pub form: *const c_char,
    /// Tokens of one of the engine's blocks.
    pub engine_tokens: u32,
    /// Where its keys are.
    pub keys: kvtier_strides,
    /// Where its values are.
    pub values: kvtier_strides,
}

/// Where the keys or the values of a layer are in an engine's block, in elements of 16 bits: that of a head, token and channel is number
/// `first + head * heads + token * tokens + channel * channels`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvtier_strides {
    /// The first one's.
    pub first: u32,
    /// From a head to the next.
    pub heads: u32,
    /// From a token to the next.
    pub tokens: u32,
    /// From a channel to the next.
    pub channels: u32,
}

/// Consecutive blocks of one chain.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvtier_run {
    /// `sizeof(kvtier_run)`.
    pub size: usize,
    /// Hashes of 32 bytes, one after the other: each block the child of the one before.
    pub hashes: *const u8,
    /// How many.
    pub count: usize,
    /// Hash of the block before the first one; null exactly when `depth` is 0.
    pub parent: *const u8,
    /// Blocks before the first one.
    pub depth: u32,
    /// The engine's own request that the call is for, at most 64 bytes, to be asked for by `kvtier_submit_explain`; null: none. Names are shown to
    /// whoever may ask the daemon.
    pub request: *const c_char,
}

/// A struct that callers fill. All zero is a value of it, and the default.
///
/// # Safety
/// `repr(C)`, `size: usize` first, and every field good when all of it is zero.
pub(crate) unsafe trait Versioned: Copy {
    /// Bytes of the first version: its last field's end.
    const LEAST: usize;
    const NAME: &'static str;
}

// SAFETY: integers, floats, arrays of them and pointers that are checked for null.
unsafe impl Versioned for kvtier_options {
    const LEAST: usize = std::mem::offset_of!(kvtier_options, queue_max) + 4;
    const NAME: &'static str = "kvtier_options";
}

// SAFETY: as above.
unsafe impl Versioned for kvtier_identity {
    const LEAST: usize = std::mem::offset_of!(kvtier_identity, layer_bytes) + 4;
    const NAME: &'static str = "kvtier_identity";
}

// SAFETY: as above.
unsafe impl Versioned for kvtier_run {
    const LEAST: usize = std::mem::offset_of!(kvtier_run, depth) + 4;
    const NAME: &'static str = "kvtier_run";
}

/// Reads a struct of any version.
///
/// # Safety
/// `given` is null or readable for as many bytes as its first field says, and for that field.
pub(crate) unsafe fn read<T: Versioned>(given: *const T) -> Result<T, Failure> {
    if given.is_null() {
        return Err(Failure::usage(format!("failed to use what was given: {} is null", T::NAME)));
    }
    // SAFETY: the caller's promise: the size is first.
    let size = unsafe { given.cast::<usize>().read_unaligned() };
    if size < T::LEAST || size > 1 << 16 {
        let reason = format!("failed to use what was given: {} says that it has {size} bytes", T::NAME);
        return Err(Failure::usage(reason));
    }
    let known = size_of::<T>().min(size);
    // SAFETY: the caller's promise: so many bytes are there.
    let rest = unsafe { std::slice::from_raw_parts(given.cast::<u8>().add(known), size - known) };
    if rest.iter().any(|byte| *byte != 0) {
        let reason = format!("failed to use what was given: {} has fields of a newer version", T::NAME);
        return Err(Failure::usage(reason));
    }
    // SAFETY: `Versioned` promises that zero is a value. The copy stays inside both.
    unsafe {
        let mut value = std::mem::zeroed::<T>();
        std::ptr::copy_nonoverlapping(given.cast::<u8>(), (&raw mut value).cast::<u8>(), known);
        Ok(value)
    }
}

/// A text; `None` for null.
///
/// # Safety
/// `given` is null or a C string.
pub(crate) unsafe fn text(given: *const c_char, name: &str) -> Result<Option<String>, Failure> {
    if given.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(given) }.to_str();
    let text = text.map_err(|_| Failure::usage(format!("failed to use what was given: {name} is not UTF-8")))?;
    Ok(Some(text.to_owned()))
}

/// An identity as the SDK has it.
///
/// # Safety
/// Texts are null or C strings.
pub(crate) unsafe fn identity(given: &kvtier_identity) -> Result<Identity, Failure> {
    // SAFETY: the caller's promise.
    let word = |pointer, name| unsafe { text(pointer, name) }.map(Option::unwrap_or_default);
    let ranks = HeadSlice {
        tensor_parallel: (given.tensor_parallel_rank, given.tensor_parallel_size.max(1)),
        pipeline: (given.pipeline_rank, given.pipeline_size.max(1)),
    };
    Ok(Identity {
        weights: given.weights,
        architecture: word(given.architecture, "architecture")?,
        dtype: word(given.dtype, "dtype")?,
        block_tokens: given.block_tokens,
        layers: given.layers,
        kv_heads: given.kv_heads,
        head_dim: given.head_dim,
        ranks,
        rope: RopeStated {
            dimensions: given.rope_dimensions,
            base: given.rope_base,
            scaling: word(given.rope_scaling, "rope_scaling")?,
        },
        adapter: word(given.adapter, "adapter")?,
        numerics: word(given.numerics, "numerics")?,
        layer_bytes: given.layer_bytes,
        layout: word(given.layout, "layout")?,
        // SAFETY: the caller's promise.
        lossy: unsafe { text(given.form, "form") }?.map(|form| lossy(&form, given)).transpose()?,
        // SAFETY: the caller's promise.
        salt: unsafe { text(given.salt, "salt") }?,
    })
}

fn lossy(form: &str, given: &kvtier_identity) -> Result<Lossy, Failure> {
    let form = form.parse().map_err(|error| Failure::usage(format!("failed to use what was given: {error}")))?;
    let strides = |kvtier_strides { first, heads, tokens, channels }| Strides { first, heads, tokens, channels };
    Ok(Lossy { form, tokens: given.engine_tokens, keys: strides(given.keys), values: strides(given.values) })
}

/// A run as the SDK has it.
pub(crate) struct Run {
    pub(crate) hashes: Vec<BlockHash>,
    pub(crate) before: Before,
    pub(crate) request: Option<String>,
}

/// The longest name of a request, in bytes.
const REQUEST_BYTES_MAX: usize = 64;

/// The name of a request; `None` for null.
///
/// # Safety
/// `given` is null or a C string.
pub(crate) unsafe fn request(given: *const c_char) -> Result<Option<String>, Failure> {
    // SAFETY: the caller's promise.
    let name = unsafe { text(given, "request") }?;
    match name.as_ref().is_some_and(|name| name.len() > REQUEST_BYTES_MAX || name.contains(char::is_control)) {
        true => Err(Failure::usage(
            "failed to use what was given: request is longer than 64 bytes, or has control characters",
        )),
        false => Ok(name),
    }
}

/// The hashes of a run, what stands before it, and whose it is.
///
/// # Safety
/// `given` is as for [`read`]; `hashes` has 32 bytes for each of `count`, `parent` is null or has 32, and `request` is null or a C string.
pub(crate) unsafe fn run(given: *const kvtier_run) -> Result<Run, Failure> {
    // SAFETY: the caller's promise.
    let run = unsafe { read(given)? };
    if run.count > 1 << 20 || (run.hashes.is_null() && run.count > 0) {
        return Err(Failure::usage("failed to use what was given: hashes are null, or more than 2^20"));
    }
    // SAFETY: the caller's promise; an empty run has no pointer to be looked at.
    let hash = |at: usize| unsafe { run.hashes.cast::<[u8; 32]>().add(at).read_unaligned() };
    let hashes = (0..run.count).map(|at| BlockHash(hash(at))).collect();
    let parent = match run.parent.is_null() {
        true => None,
        // SAFETY: the caller's promise.
        false => Some(BlockHash(unsafe { run.parent.cast::<[u8; 32]>().read_unaligned() })),
    };
    // SAFETY: the caller's promise.
    let request = unsafe { request(run.request) }?;
    Ok(Run { hashes, before: Before { parent, depth: run.depth }, request })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_of(size: usize) -> kvtier_run {
        let (hashes, parent, request) = (std::ptr::null(), std::ptr::null(), std::ptr::null());
        kvtier_run { size, hashes, count: 0, parent, depth: 7, request }
    }

    /// As a program that was compiled with a header of a later version has it.
    #[repr(C)]
    struct Longer {
        run: kvtier_run,
        more: [u8; 16],
    }

    #[test]
    fn structs_of_other_versions_are_read() {
        let least = <kvtier_run as Versioned>::LEAST;
        for size in [least, size_of::<kvtier_run>()] {
            // SAFETY: a whole struct, which says at most its length.
            assert_eq!(unsafe { read(&run_of(size)) }.unwrap().depth, 7);
        }
        for size in [0, least - 1, usize::MAX] {
            // SAFETY: as above; a size that is refused is not believed.
            assert!(unsafe { read(&run_of(size)) }.is_err(), "{size}");
        }
        // SAFETY: null is refused.
        assert!(unsafe { read(std::ptr::null::<kvtier_run>()) }.is_err());
        let mut longer = Longer { run: run_of(size_of::<Longer>()), more: [0; 16] };
        // SAFETY: as long as it says.
        assert_eq!(unsafe { read((&raw const longer).cast::<kvtier_run>()) }.unwrap().depth, 7);
        longer.more[15] = 1;
        // SAFETY: as above.
        assert!(unsafe { read((&raw const longer).cast::<kvtier_run>()) }.is_err(), "a field that is not known is set");
    }
}
