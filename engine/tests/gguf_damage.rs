//! Damaged, truncated, hostile and random GGUF files: an error that names the thing, never a panic, never more memory
//! than the file's size warrants.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use bolero::{ValueGenerator, check, produce};
use gguf_writer::{GgufWriter, array, text};
use kvtier_engine::gguf::dequant::dequantize_row;
use kvtier_engine::gguf::{GgufError, GgufFile, MetaArray, MetaValue, TensorType};
use kvtier_engine::model::{Model, Path};
use kvtier_engine::tokenizer::{SpecialTokens, Tokenizer};

#[path = "common/gguf_writer.rs"]
mod gguf_writer;

/// The system's allocator, noting the largest request of the thread.
struct Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(bytes: usize) {
    // The cell is gone while a thread ends: nothing is measured then.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(bytes)));
}

// SAFETY: every method hands its arguments to the system's allocator unchanged and returns what that returns; the
// note beside it touches a thread-local integer that neither allocates nor has a destructor.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` comes from `System`, to which every allocation went.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: as for `dealloc`, and the caller keeps `realloc`'s contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// A sound file with a value of every type, a tokenizer, and a tensor of every type.
fn sound() -> GgufWriter {
    let tokens = ["a", "b", "ab", "<|im_end|>"];
    let mut writer = GgufWriter::new()
        .meta("general.architecture", 8, &text("llama"))
        .meta("k.u8", 0, &[7])
        .meta("k.i8", 1, &[0xFF])
        .meta("k.u16", 2, &[1, 2])
        .meta("k.i16", 3, &[0xFE, 0xFF])
        .meta("k.u32", 4, &9u32.to_le_bytes())
        .meta("k.i32", 5, &(-9i32).to_le_bytes())
        .meta("k.f32", 6, &1.5f32.to_le_bytes())
        .meta("k.bool", 7, &[1])
        .meta("k.u64", 10, &u64::MAX.to_le_bytes())
        .meta("k.i64", 11, &(-1i64).to_le_bytes())
        .meta("k.f64", 12, &0.1f64.to_le_bytes())
        .meta("k.bools", 9, &array(7, &[0u8, 1], |b| vec![*b]))
        .meta("k.f32s", 9, &array(6, &[0.5f32, 2.0], |v| v.to_le_bytes().to_vec()))
        .meta("k.nested", 9, &array(9, &[1u8, 2], |v| array(0, &[*v], |b| vec![*b])))
        .meta("tokenizer.ggml.model", 8, &text("gpt2"))
        .meta("tokenizer.ggml.pre", 8, &text("smollm"))
        .meta("tokenizer.ggml.tokens", 9, &array(8, &tokens, |t| text(t)))
        .meta("tokenizer.ggml.token_type", 9, &array(5, &[1i32, 1, 1, 3], |v| v.to_le_bytes().to_vec()))
        .meta("tokenizer.ggml.merges", 9, &array(8, &["a b"], |t| text(t)))
        .meta("tokenizer.ggml.eos_token_id", 4, &3u32.to_le_bytes());
    for kind in TensorType::ALL {
        let bytes = kind.row_bytes(256).unwrap();
        let data = vec![0x11; 2 * bytes];
        writer = writer.tensor(&format!("t.{kind}"), &[256, 2], kind.ggml_number(), &data);
    }
    writer
}

/// Opens a file and uses all of it. Every range must lie in the file and every row must dequantise.
fn open(bytes: Vec<u8>) -> Result<GgufFile, GgufError> {
    let file = GgufFile::from_bytes(bytes)?;
    let mut row = vec![0.0; 4096];
    for tensor in file.tensors() {
        let stored = file.tensor_bytes(tensor);
        assert_eq!(stored.len(), tensor.row_bytes() * tensor.rows());
        if let Some(out) = row.get_mut(..tensor.row_elements()) {
            dequantize_row(tensor.kind, &stored[..tensor.row_bytes()], out);
        }
    }
    Ok(file)
}

/// Opens a damaged file; returns whether it still opens. `case` names it should the reader ask for too much memory.
fn try_open(bytes: &[u8], case: &dyn Fn() -> String) -> bool {
    let copy = bytes.to_vec();
    LARGEST.with(|largest| largest.set(0));
    let opened = GgufFile::from_bytes(copy);
    let largest = LARGEST.with(Cell::get);
    // The costliest entry is an empty nested array: 12 bytes of file, 32 of memory, and vectors double as they grow.
    let bound = 8 * bytes.len() + 4096;
    assert!(largest <= bound, "{}: asked for {largest} bytes", case());
    let Ok(file) = opened else { return false };
    for tensor in file.tensors() {
        assert!(tensor.range.end <= bytes.len(), "{}", case());
        let _ = file.tensor_bytes(tensor);
    }
    true
}

#[test]
fn a_sound_file_reads_back() {
    let file = open(sound().finish()).unwrap();
    assert_eq!(file.version(), 3);
    assert_eq!(file.u32("k.u8").unwrap(), 7);
    assert_eq!(file.u32("k.u16").unwrap(), 513);
    assert_eq!(file.f32("k.f32").unwrap(), 1.5);
    assert_eq!(file.f32("k.f64").unwrap(), 0.1);
    assert_eq!(file.f32("k.i32").unwrap(), -9.0);
    assert_eq!(file.optional_bool("k.bool").unwrap(), Some(true));
    assert_eq!(file.optional_bool("none").unwrap(), None);
    assert_eq!(file.optional_f32s("k.f32s").unwrap(), Some(&[0.5, 2.0][..]));
    assert_eq!(file.str("general.architecture").unwrap(), "llama");
    assert_eq!(file.strings("tokenizer.ggml.tokens").unwrap().len(), 4);
    assert_eq!(file.get("k.u64"), Some(&MetaValue::U64(u64::MAX)));
    let nested = MetaArray::Array(vec![MetaArray::U8(vec![1]), MetaArray::U8(vec![2])]);
    assert_eq!(file.get("k.nested"), Some(&MetaValue::Array(nested)));
    assert_eq!(file.tensors().len(), TensorType::ALL.len());
    let tensor = file.tensor("t.Q4_K").unwrap();
    assert_eq!((tensor.row_elements(), tensor.rows()), (256, 2));
    assert_eq!(file.tensor_bytes(tensor), [0x11; 288]);
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    assert_eq!((tokenizer.eos(), tokenizer.eot()), (Some(3), Some(3)));

    let mut second = sound();
    second.version = 2;
    assert_eq!(open(second.finish()).unwrap().version(), 2);
}

#[test]
fn every_truncation_is_an_error_that_tells_the_sizes() {
    let whole = sound().finish();
    // The last tensor's padding may be cut.
    let end = open(whole.clone()).unwrap().tensors().last().unwrap().range.end;
    for length in 0..end {
        assert!(!try_open(&whole[..length], &|| format!("{length} bytes")));
    }
    assert!(try_open(&whole[..end], &|| "no padding".to_owned()));
    let error = open(whole[..end - 700].to_vec()).unwrap_err().to_string();
    assert!(error.contains(&end.to_string()) && error.contains(&(end - 700).to_string()), "{error}");
    let error = open(b"GG".to_vec()).unwrap_err();
    assert!(matches!(error, GgufError::Truncated { found: 2, .. }), "{error}");
}

#[test]
fn no_mutation_panics() {
    let whole = sound().finish();
    let directory = directory_bytes(&whole);
    let (mut cases, mut survived) = (0u32, 0u32);
    // Every bit of the metadata and the directory, and hostile values in every place.
    let mut bytes = whole.clone();
    for at in 0..directory.min(whole.len()) {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            survived += u32::from(try_open(&bytes, &|| format!("bit {bit} of byte {at}")));
            bytes[at] = whole[at];
            cases += 1;
        }
        for hostile in [u64::MAX, u64::MAX / 2, 1 << 32, 1 << 20, whole.len() as u64, 0] {
            let end = (at + 8).min(whole.len());
            bytes[at..end].copy_from_slice(&hostile.to_le_bytes()[..end - at]);
            survived += u32::from(try_open(&bytes, &|| format!("{hostile} at byte {at}")));
            bytes[at..end].copy_from_slice(&whole[at..end]);
            cases += 1;
        }
    }
    // Both outcomes must occur, or the mutations test nothing.
    assert!(survived > 1000 && survived < cases / 2, "{survived} of {cases}");
}

/// Bytes of a file before its tensors.
fn directory_bytes(whole: &[u8]) -> usize {
    open(whole.to_vec()).unwrap().tensors().iter().map(|tensor| tensor.range.start).min().unwrap()
}

/// A change of a file's metadata and directory: its kind, its place, a value, and another place.
type Change = (u8, u16, u8, u16);

fn changes() -> impl ValueGenerator<Output = Vec<Change>> {
    produce::<Vec<Change>>().with().len(1..=6usize)
}

/// Bytes changed, runs copied elsewhere, cuts.
fn changed(whole: &[u8], directory: usize, changes: &[Change]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for (kind, at, value, from) in changes {
        let at = usize::from(*at) % directory;
        match kind % 4 {
            0 => bytes[at] = *value,
            1 => bytes[at] = [0, 1, 9, 0x7F, 0x80, 0xFF][usize::from(value % 6)],
            2 => {
                let length = usize::from(value % 24).min(whole.len() - at);
                let from = usize::from(*from) % (whole.len() - length);
                bytes.copy_within(from..from + length, at);
            }
            _ => {
                let length = usize::from(value % 9).min(bytes.len() - at);
                bytes.drain(at..at + length);
                bytes.resize(whole.len(), 0);
            }
        }
    }
    bytes
}

#[test]
fn changed_files_are_read_or_refused() {
    let whole = sound().finish();
    let directory = directory_bytes(&whole);
    let (opened, spoke) = (AtomicU32::new(0), AtomicU32::new(0));
    check!().with_iterations(60_000).with_generator(changes()).for_each(|changes| {
        let bytes = changed(&whole, directory, changes);
        if !try_open(&bytes, &|| format!("{changes:?}")) {
            return;
        }
        opened.fetch_add(1, Relaxed);
        let file = open(bytes).expect("it opened before");
        if let Ok(tokenizer) = Tokenizer::from_gguf(&file) {
            spoke.fetch_add(1, Relaxed);
            if let Ok(ids) = tokenizer.encode(b"ab ba<|im_end|>", SpecialTokens::Parse) {
                assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
                let _ = tokenizer.decode(&ids);
            }
        }
    });
    assert!(opened.into_inner() > 0 && spoke.into_inner() > 0, "all were refused");
}

/// A whole model of one layer.
fn model() -> GgufWriter {
    let number = |value: u32| value.to_le_bytes();
    let mut writer = GgufWriter::new()
        .meta("general.architecture", 8, &text("llama"))
        .meta("llama.block_count", 4, &number(1))
        .meta("llama.context_length", 4, &number(128))
        .meta("llama.embedding_length", 4, &number(32))
        .meta("llama.feed_forward_length", 4, &number(64))
        .meta("llama.attention.head_count", 4, &number(2))
        .meta("llama.attention.head_count_kv", 4, &number(1))
        .meta("llama.attention.key_length", 4, &number(16))
        .meta("llama.attention.value_length", 4, &number(16))
        .meta("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes())
        .meta("llama.rope.dimension_count", 4, &number(16))
        .meta("llama.rope.freq_base", 6, &10_000f32.to_le_bytes())
        .meta("llama.rope.scaling.type", 8, &text("yarn"))
        .meta("llama.rope.scaling.factor", 6, &4f32.to_le_bytes())
        .meta("llama.rope.scaling.original_context_length", 4, &number(32));
    let tensors: [(&str, &[u64]); 12] = [
        ("token_embd.weight", &[32, 4]),
        ("output_norm.weight", &[32]),
        ("rope_freqs.weight", &[8]),
        ("blk.0.attn_norm.weight", &[32]),
        ("blk.0.attn_q.weight", &[32, 32]),
        ("blk.0.attn_k.weight", &[32, 16]),
        ("blk.0.attn_v.weight", &[32, 16]),
        ("blk.0.attn_output.weight", &[32, 32]),
        ("blk.0.ffn_norm.weight", &[32]),
        ("blk.0.ffn_gate.weight", &[32, 64]),
        ("blk.0.ffn_up.weight", &[32, 64]),
        ("blk.0.ffn_down.weight", &[64, 32]),
    ];
    for (name, dims) in tensors {
        let ones = 1f32.to_le_bytes().repeat(dims.iter().product::<u64>() as usize);
        writer = writer.tensor(name, dims, TensorType::F32.ggml_number(), &ones);
    }
    writer
}

#[test]
fn changed_models_are_loaded_or_refused() {
    let whole = model().finish();
    let directory = directory_bytes(&whole);
    let load = |bytes, path| Model::load(&Arc::new(open(bytes)?), path);
    for path in [Path::Fast, Path::Reference] {
        assert_eq!(load(whole.clone(), path).map(|model| model.config.kv_width()).unwrap(), 16);
    }
    let (loaded, refused) = (AtomicU32::new(0), AtomicU32::new(0));
    check!().with_iterations(20_000).with_generator((changes(), produce::<bool>())).for_each(|(changes, is_fast)| {
        let path = if *is_fast { Path::Fast } else { Path::Reference };
        match load(changed(&whole, directory, changes), path) {
            Ok(model) => {
                loaded.fetch_add(1, Relaxed);
                let config = &model.config;
                assert!(config.query_width() > 0 && config.query_width().is_multiple_of(config.kv_width()));
                assert!(
                    model.layers.len() == config.layers as usize && model.output_norm.len() == config.width as usize
                );
            }
            Err(error) => {
                refused.fetch_add(1, Relaxed);
                assert!(!error.to_string().is_empty());
            }
        }
    });
    let (loaded, refused) = (loaded.into_inner(), refused.into_inner());
    assert!(loaded > refused / 100 && refused > loaded / 100, "{loaded} loaded, {refused} refused");
}

#[test]
fn random_bytes_do_not_open() {
    let mut random = Random(21);
    for case in 0..20_000 {
        let mut bytes: Vec<u8> = (0..random.below(200)).map(|_| random.next() as u8).collect();
        if case % 2 == 0 {
            let mut head = b"GGUF\x03\0\0\0".to_vec();
            head.extend((random.below(4) as u64).to_le_bytes());
            head.extend((random.below(4) as u64 + 1).to_le_bytes());
            bytes.splice(0..0, head);
        }
        assert!(!try_open(&bytes, &|| format!("random case {case}")));
    }
}

#[test]
fn errors_name_the_thing() {
    let message = |writer: GgufWriter| open(writer.finish()).unwrap_err().to_string();
    let new = GgufWriter::new;
    let say = |error: String, parts: &[&str]| {
        for part in parts {
            assert!(error.contains(part), "{part} in {error}");
        }
    };
    say(open(b"PK\x03\x04....".to_vec()).unwrap_err().to_string(), &["not a GGUF file", "50, 4b"]);
    let mut old = new();
    old.version = 1;
    say(message(old), &["version 1"]);
    let mut swapped = new();
    swapped.version = 3u32.swap_bytes();
    say(message(swapped), &["big-endian"]);
    say(message(new().tensor("blk.0.x", &[256], 10, &[0; 84])), &["blk.0.x", "type 10", "Q4_K"]);
    say(message(new().tensor("t", &[33], 2, &[0; 36])), &["`t`", "33", "Q4_0", "32"]);
    say(message(new().tensor("t", &[0], 0, &[])), &["dimension 0", "`t`"]);
    say(message(new().tensor("t", &[], 0, &[])), &["dimension count", "`t`"]);
    say(message(new().tensor("t", &[1 << 40, 1 << 40], 0, &[])), &["dimension 1", "`t`"]);
    say(message(new().tensor_at("t", &[8], 0, 7)), &["offset", "`t`", "7", "32"]);
    say(message(new().tensor_at("t", &[8], 0, u64::MAX - 31)), &["offset", "`t`"]);
    say(message(new().tensor_at("t", &[8], 0, 1 << 30)), &["`t`", &((1u64 << 30) + 96).to_string()]);
    let twice = new().tensor("t", &[1], 0, &[0; 4]).tensor("t", &[1], 0, &[0; 4]);
    say(message(twice), &["`t`", "twice"]);
    say(message(new().meta("a", 0, &[1]).meta("a", 0, &[1])), &["`a`", "twice"]);
    say(message(new().meta("a", 13, &[1])), &["`a`", "type 13"]);
    say(message(new().meta("a", 7, &[2])), &["`a`", "boolean", "2"]);
    say(message(new().meta("a", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xFF])), &["`a`", "UTF-8"]);
    let mut deep = array(0, &[1u8], |b| vec![*b]);
    for _ in 0..6 {
        deep = array(9, &[deep], Clone::clone);
    }
    say(message(new().meta("a", 9, &deep)), &["`a`", "nesting"]);
    say(message(new().meta("general.alignment", 4, &[3, 0, 0, 0])), &["general.alignment", "3", "power of two"]);

    let file = open(sound().finish()).unwrap();
    say(file.u32("none").unwrap_err().to_string(), &["`none`", "missing"]);
    say(file.u32("k.i8").unwrap_err().to_string(), &["`k.i8`", "-1"]);
    say(file.u32("k.f32").unwrap_err().to_string(), &["`k.f32`", "1.5"]);
    say(file.strings("k.f32s").unwrap_err().to_string(), &["`k.f32s`", "2 floats"]);
    say(file.tensor("none").unwrap_err().to_string(), &["`none`"]);
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("m.gguf");
    let missing = GgufFile::open(&path).unwrap_err();
    assert!(matches!(missing, GgufError::Open { .. }) && missing.to_string().contains("m.gguf"));
    let directory = GgufFile::open(place.path()).unwrap_err();
    assert!(matches!(directory, GgufError::NotAFile { .. }), "{directory}");
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(GgufFile::open(&path), Err(GgufError::InFile { .. })));
    let whole = sound().finish();
    std::fs::write(&path, &whole).unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.file_bytes(), whole.len());
    std::fs::write(place.path().join("cut.gguf"), &whole[..whole.len() / 2]).unwrap();
    let cut = GgufFile::open(place.path().join("cut.gguf")).unwrap_err().to_string();
    assert!(cut.contains("cut.gguf") && cut.contains("truncated"), "{cut}");
}

#[test]
fn tokenizers_that_cannot_be_used_are_named() {
    let head = || GgufWriter::new().meta("tokenizer.ggml.model", 8, &text("gpt2"));
    let tokens =
        |writer: GgufWriter| writer.meta("tokenizer.ggml.tokens", 9, &array(8, &["a", "b", "ab"], |t| text(t)));
    let merges =
        |writer: GgufWriter, merge: &str| writer.meta("tokenizer.ggml.merges", 9, &array(8, &[merge], |t| text(t)));
    let fails = |writer: GgufWriter, parts: &[&str]| {
        let file = open(writer.finish()).unwrap();
        let error = Tokenizer::from_gguf(&file).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{part} in {error}");
        }
    };
    fails(GgufWriter::new(), &["tokenizer.ggml.model"]);
    fails(GgufWriter::new().meta("tokenizer.ggml.model", 8, &text("llama")), &["`llama`", "gpt2"]);
    fails(head().meta("tokenizer.ggml.pre", 8, &text("tekken")), &["`tekken`", "smollm"]);
    fails(head(), &["tokenizer.ggml.tokens"]);
    fails(tokens(head()), &["tokenizer.ggml.merges"]);
    fails(merges(tokens(head()), "ab"), &["entry 0", "`ab`"]);
    fails(merges(tokens(head()), "a c"), &["vocabulary and merges"]);
    let types = array(5, &[1i32], |v| v.to_le_bytes().to_vec());
    let short = merges(tokens(head()), "a b").meta("tokenizer.ggml.token_type", 9, &types);
    fails(short, &["token_type", "1", "3"]);
    let eos = merges(tokens(head()), "a b").meta("tokenizer.ggml.eos_token_id", 4, &[3, 0, 0, 0]);
    fails(eos, &["eos_token_id", "3"]);
    let file = open(merges(tokens(head()), "a b").finish()).unwrap();
    assert!(Tokenizer::from_gguf(&file).is_ok());
}
