//! The tokenizer and the chat template on the default model's own file.
//!
//! The model is fetched when it is not in the model directory, so these tests need it there or a way to fetch it.

use std::fmt::Write as _;
use std::sync::OnceLock;

use kvtier_engine::gguf::GgufFile;
use kvtier_engine::models::{DEFAULT_MODEL, ModelStore};
use kvtier_engine::template::{ChatTemplate, Message};
use kvtier_engine::tokenizer::{SpecialTokens, StreamDecoder, Tokenizer};
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[path = "common/gguf_writer.rs"]
mod gguf_writer;
#[path = "common/mixed_text.rs"]
mod mixed_text;

/// Ids from another program, made by `golden/tokens.py`.
#[derive(Deserialize)]
struct Golden {
    text_sha256: String,
    count: usize,
    ids_sha256: String,
    prefix_ids: Vec<u32>,
}

fn model() -> &'static (GgufFile, Tokenizer) {
    static MODEL: OnceLock<(GgufFile, Tokenizer)> = OnceLock::new();
    MODEL.get_or_init(|| {
        let store = ModelStore::from_env().unwrap();
        let path = store.resolve(DEFAULT_MODEL, |_| ()).unwrap_or_else(|error| panic!("{error}"));
        let file = GgufFile::open(path).unwrap();
        let tokenizer = Tokenizer::from_gguf(&file).unwrap();
        (file, tokenizer)
    })
}

fn plain(text: impl AsRef<[u8]>) -> Vec<u32> {
    let ids = model().1.encode(text.as_ref(), SpecialTokens::Plain);
    ids.unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    let mut hex = String::new();
    for byte in Sha256::digest(bytes) {
        write!(hex, "{byte:02x}").unwrap();
    }
    hex
}

#[test]
fn ids_equal_llama_cpp_on_a_megabyte_of_mixed_text() {
    let text = mixed_text::mixed_text();
    let golden: Golden = serde_json::from_str(include_str!("golden/tokens.json")).unwrap();
    assert_eq!(sha256(&text), golden.text_sha256, "the text has changed since golden/tokens.py ran");
    let ids = plain(&text);
    let shared = golden.prefix_ids.len().min(ids.len());
    assert_eq!(ids[..shared], golden.prefix_ids[..shared]);
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    assert_eq!((ids.len(), sha256(&bytes)), (golden.count, golden.ids_sha256));
}

/// Count and digest of the ids of the same text with the model's vocabulary under other pre-tokenizers. From the same
/// build of llama-tokenize and the same options as `golden/tokens.py`, over copies of the model file in which
/// `tokenizer.ggml.pre` was replaced. (This vocabulary has no token of two digits, so llama-bpe and qwen2 agree.)
#[test]
fn ids_equal_llama_cpp_under_every_pre_tokenizer() {
    let golden = [
        ("gpt-2", 412_192, "26fbb0f3ac87ee7677ed6a78811c32cfdb27ba6d05c3b453cf93f1decf31f97c"),
        ("default", 433_123, "d3d5dc3b38f7742f27fc0d4ff8c3e0808b8dd1d29955ed558032cec47bbfbdc5"),
        ("llama-bpe", 411_886, "4658dfb255ddf39b40107a3808c6eeb825d078d4677c9dfa77269ffe3bcf886a"),
        ("qwen2", 411_886, "4658dfb255ddf39b40107a3808c6eeb825d078d4677c9dfa77269ffe3bcf886a"),
    ];
    let text = mixed_text::mixed_text();
    for (pre, count, expected) in golden {
        let ids = with_pre_tokenizer(pre).encode(&text, SpecialTokens::Plain).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        assert_eq!((ids.len(), sha256(&bytes).as_str()), (count, expected), "{pre}");
    }
}

/// The model's vocabulary and merges under another pre-tokenizer.
fn with_pre_tokenizer(pre: &str) -> Tokenizer {
    use gguf_writer::{GgufWriter, array, text};
    let strings = |key| array(8, model().0.strings(key).unwrap(), |value| text(value));
    let kinds = model().0.optional_i32s("tokenizer.ggml.token_type").unwrap().unwrap();
    let bytes = GgufWriter::new()
        .meta("tokenizer.ggml.model", 8, &text("gpt2"))
        .meta("tokenizer.ggml.pre", 8, &text(pre))
        .meta("tokenizer.ggml.tokens", 9, &strings("tokenizer.ggml.tokens"))
        .meta("tokenizer.ggml.merges", 9, &strings("tokenizer.ggml.merges"))
        .meta("tokenizer.ggml.token_type", 9, &array(5, kinds, |kind| kind.to_le_bytes().to_vec()))
        .finish();
    Tokenizer::from_gguf(&GgufFile::from_bytes(bytes).unwrap()).unwrap()
}

#[test]
fn text_without_special_tokens_comes_back_byte_for_byte() {
    for text in [
        "The capital of France is Paris. It's 1,234.5 km away!\r\n\t  done  ",
        "naïve Ünïcödé 你好 שלום 👩\u{200d}👩\u{200d}👧 e\u{301}",
        "<|im_start|>user\nnot a turn<|im_end|>",
        "",
    ] {
        let ids = plain(text);
        let decoded = model().1.decode(&ids);
        assert_eq!(String::from_utf8_lossy(&decoded), text);
    }
}

#[test]
fn invalid_bytes_read_as_replacement_characters() {
    assert_eq!(plain(b"a\xFFb"), plain("a\u{fffd}b"));
    assert_eq!(plain(b"\xE2\x82 x"), plain("\u{fffd}\u{fffd} x"));
    // Overlong forms are what they spell.
    assert_eq!(plain(b"\xC1\x81BC"), plain("ABC"));
    // A surrogate keeps its three bytes.
    assert_eq!(model().1.decode(&plain(b"\xED\xA0\x80")), b"\xED\xA0\x80");
    // This vocabulary has no token for byte 4, and merges do not cross it.
    assert_eq!(plain("th\u{4}e"), [plain("th"), plain("e")].concat());
}

/// As the golden file, without `--no-parse-special`.
#[test]
fn ids_equal_llama_cpp_with_special_tokens_parsed() {
    let text = mixed_text::mixed_text();
    let ids = model().1.encode(&text, SpecialTokens::Parse).unwrap();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let expected = "355584ec2fe3baa9c51aa00446b2de0c5a81528cf19332f5569803d68f619ad2";
    assert_eq!((ids.len(), sha256(&bytes).as_str()), (405_814, expected));
}

#[test]
fn special_tokens_are_parsed_only_when_asked() {
    let tokenizer = &model().1;
    let text = b"<|im_start|>user\nhi<|im_end|>\n";
    let parsed = tokenizer.encode(text, SpecialTokens::Parse).unwrap();
    assert_eq!((parsed[0], parsed[parsed.len() - 2]), (1, 2));
    assert!(tokenizer.is_control(1) && tokenizer.is_end(2) && !tokenizer.is_end(1));
    assert_eq!(tokenizer.decode(&parsed), text);
    assert!(plain(text).iter().all(|&id| !tokenizer.is_control(id)));
}

#[test]
fn roles_are_those_of_the_file() {
    let tokenizer = &model().1;
    assert_eq!(tokenizer.vocab_size(), 49_152);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.eot()), (Some(1), Some(2), Some(2)));
    assert!(!tokenizer.add_bos());
    assert_eq!(tokenizer.piece(49_152), b"");
}

#[test]
fn streamed_pieces_give_the_same_text() {
    let text = mixed_text::mixed_text();
    let ids = plain(&text[..50_000]);
    let tokenizer = &model().1;
    let mut stream = StreamDecoder::new();
    let mut joined: String = ids.iter().map(|&id| stream.push(tokenizer.piece(id))).collect();
    joined.push_str(&stream.finish());
    assert_eq!(joined, String::from_utf8_lossy(&tokenizer.decode(&ids)));
}

#[test]
fn the_chat_template_renders_and_tokenises() {
    let (file, tokenizer) = model();
    let template = ChatTemplate::from_gguf(file, tokenizer).unwrap();
    let text = template.render(&[Message::user("Hi")]).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    let ids = tokenizer.encode(text.as_bytes(), SpecialTokens::Parse).unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == 1).count(), 3);
    assert_eq!(ids.iter().filter(|&&id| id == 2).count(), 2);
}

#[test]
fn the_fetched_file_is_the_one_known() {
    model();
    let store = ModelStore::from_env().unwrap();
    let path = store.verify(DEFAULT_MODEL).unwrap();
    assert_eq!(path, store.path(DEFAULT_MODEL).unwrap());
    assert!(store.list().iter().any(|(known, present)| known.name == DEFAULT_MODEL && *present));
}
