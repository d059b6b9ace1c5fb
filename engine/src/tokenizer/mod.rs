//! Text to token ids and back, by the vocabulary a GGUF file carries.
//!
//! Supported: byte-level BPE (`tokenizer.ggml.model = gpt2`). Ids equal llama.cpp's for any bytes: special tokens are
//! cut out first ([`SpecialTokens`]), the rest is decoded loosely (`codepoints`), cut into words (`pretokenizer`),
//! spelled in the byte alphabet (`bytes`) and merged by rank within each word (the `tokenizers` crate).

mod bytes;
mod codepoints;
mod error;
mod pretokenizer;
mod special;
mod stream;

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};

use crate::gguf::GgufFile;
use pretokenizer::PreTokenizer;
use special::{END_OF_TURN_NAMES, Fragment, SpecialSet, TokenKind};

pub use error::TokenizerError;
pub use special::SpecialTokens;
pub use stream::StreamDecoder;

/// Words whose merges are remembered.
const CACHED_WORDS: usize = 100_000;

/// A vocabulary and its rules.
#[derive(Debug)]
pub struct Tokenizer {
    bpe: BPE,
    pre: PreTokenizer,
    specials: SpecialSet,
    kinds: Vec<TokenKind>,
    /// Bytes of each token, one after the other; `ends[id]` is where token `id` ends.
    pieces: Vec<u8>,
    ends: Vec<usize>,
    /// Whether each byte of the alphabet is a token: 256 flags.
    byte_known: Vec<bool>,
    ids: SpecialIds,
}

/// Tokens with a role.
#[derive(Debug, Clone)]
struct SpecialIds {
    bos: Option<u32>,
    eos: Option<u32>,
    end_of_turn: Option<u32>,
    add_bos: bool,
}

impl Tokenizer {
    /// Reads the tokenizer of a model file.
    ///
    /// Errors: metadata that is missing, of another type, or out of range; a tokenizer model or pre-tokenizer that is
    /// not supported, by name.
    pub fn from_gguf(file: &GgufFile) -> Result<Tokenizer, TokenizerError> {
        let model = file.str("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(TokenizerError::Model { found: model.to_owned() });
        }
        let name = file.optional_str("tokenizer.ggml.pre")?.unwrap_or("default");
        let pre = PreTokenizer::from_name(name)
            .ok_or_else(|| TokenizerError::Pre { found: name.to_owned(), known: pretokenizer::KNOWN })?;
        let tokens = file.strings("tokenizer.ggml.tokens")?;
        let mut kinds = read_kinds(file, tokens.len())?;
        let ids = SpecialIds::read(file, tokens, pre.add_bos)?;
        // llama.cpp turns the end-of-turn token into a control token where a conversion forgot to.
        if let Some(id) = ids.end_of_turn {
            kinds[id as usize] = TokenKind::Control;
        }
        let bpe = build_bpe(tokens, file.strings("tokenizer.ggml.merges")?, &pre)?;
        let (pieces, ends) = spell(tokens, &kinds);
        let byte_known = (0..=255)
            .map(|byte| {
                let mut spelled = [0; 4];
                let text: &str = bytes::to_char(byte).encode_utf8(&mut spelled);
                bpe.token_to_id(text).is_some()
            })
            .collect();
        let described = tokens.iter().zip(&kinds).zip(0..);
        let specials = SpecialSet::new(described.map(|((text, &kind), id)| (id, kind, text.as_str())));
        Ok(Tokenizer { bpe, pre, specials, kinds, pieces, ends, byte_known, ids })
    }

    /// Token ids of `text`, which may be any bytes; nothing is added at either end.
    ///
    /// A byte that starts no UTF-8 sequence is tokenised as U+FFFD, and a byte the vocabulary has no token for is
    /// left out, both as in llama.cpp.
    pub fn encode(&self, text: &[u8], special: SpecialTokens) -> Result<Vec<u32>, TokenizerError> {
        let mut out = Vec::with_capacity(text.len() / 3);
        for fragment in self.specials.cut(text, special) {
            match fragment {
                Fragment::Token(id) => out.push(id),
                Fragment::Text(text) => self.encode_fragment(text, &mut out)?,
            }
        }
        Ok(out)
    }

    fn encode_fragment(&self, text: &[u8], out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let points = codepoints::decode(text);
        let (mut raw, mut word) = (Vec::new(), String::new());
        let mut rest = points.as_slice();
        for length in self.pre.split(&points) {
            let (points, after) = rest.split_at(length);
            rest = after;
            raw.clear();
            for &point in points {
                codepoints::encode(point, &mut raw);
            }
            if self.pre.ignore_merges {
                word.clear();
                word.extend(raw.iter().map(|&byte| bytes::to_char(byte)));
                if let Some(id) = self.bpe.token_to_id(&word) {
                    out.push(id);
                    continue;
                }
            }
            // A byte without a token takes part in no merge, so it parts the word in two.
            for part in raw.split(|&byte| !self.byte_known[usize::from(byte)]) {
                word.clear();
                word.extend(part.iter().map(|&byte| bytes::to_char(byte)));
                let tokens = self
                    .bpe
                    .tokenize(&word)
                    .map_err(|error| TokenizerError::Word { bytes: part.len(), reason: error.to_string() })?;
                out.extend(tokens.into_iter().map(|token| token.id));
            }
        }
        Ok(())
    }

    /// The bytes a token stands for; control tokens give their name. Empty for an id outside the vocabulary. One
    /// piece alone need not be UTF-8: see [`StreamDecoder`].
    pub fn piece(&self, id: u32) -> &[u8] {
        let Some(&end) = self.ends.get(id as usize) else {
            return &[];
        };
        let start = match id {
            0 => 0,
            _ => self.ends[id as usize - 1],
        };
        &self.pieces[start..end]
    }

    /// The pieces of `ids`, joined.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter().flat_map(|&id| self.piece(id)).copied().collect()
    }

    /// Whether a token steers the model and is not text to show.
    pub fn is_control(&self, id: u32) -> bool {
        self.kinds.get(id as usize) == Some(&TokenKind::Control)
    }

    /// Whether generation ends with this token: end of sequence or end of turn.
    pub fn is_end(&self, id: u32) -> bool {
        self.ids.eos == Some(id) || self.ids.end_of_turn == Some(id)
    }

    /// Tokens in the vocabulary; ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.ends.len()
    }

    /// Beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.ids.bos
    }

    /// End-of-sequence token.
    pub fn eos(&self) -> Option<u32> {
        self.ids.eos
    }

    /// End-of-turn token: the file's, else the first known name in the vocabulary.
    pub fn eot(&self) -> Option<u32> {
        self.ids.end_of_turn
    }

    /// Whether the model expects [`bos`](Self::bos) before a text. [`encode`](Self::encode) never adds it.
    pub fn add_bos(&self) -> bool {
        self.ids.add_bos
    }
}

impl SpecialIds {
    fn read(file: &GgufFile, tokens: &[String], add_bos: bool) -> Result<SpecialIds, TokenizerError> {
        let id = |key: &'static str, default: Option<u32>| match file.optional_u32(key)? {
            Some(found) if found as usize >= tokens.len() => {
                Err(TokenizerError::SpecialId { key, found, vocab: tokens.len() })
            }
            Some(found) => Ok(Some(found)),
            None => Ok(default.filter(|&id| (id as usize) < tokens.len())),
        };
        let named = |name: &&str| tokens.iter().position(|token| token == name);
        // A position below the vocabulary's size, which `build_bpe` checks to fit a u32.
        let turn = END_OF_TURN_NAMES.iter().find_map(named).map(|at| at as u32);
        let bos = id("tokenizer.ggml.bos_token_id", Some(11))?;
        Ok(SpecialIds {
            bos,
            // 11 is llama.cpp's default for byte-level BPE.
            eos: id("tokenizer.ggml.eos_token_id", Some(11))?,
            end_of_turn: id("tokenizer.ggml.eot_token_id", turn)?,
            add_bos: bos.is_some() && file.optional_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos),
        })
    }
}

/// What each token is for; all normal where the file does not say.
fn read_kinds(file: &GgufFile, tokens: usize) -> Result<Vec<TokenKind>, TokenizerError> {
    let key = "tokenizer.ggml.token_type";
    match file.optional_i32s(key)? {
        None => Ok(vec![TokenKind::Normal; tokens]),
        Some(numbers) if numbers.len() != tokens => {
            Err(TokenizerError::Entries { key, found: numbers.len(), expected: tokens })
        }
        Some(numbers) => Ok(numbers.iter().map(|&number| TokenKind::from_number(number)).collect()),
    }
}

fn build_bpe(tokens: &[String], merges: &[String], pre: &PreTokenizer) -> Result<BPE, TokenizerError> {
    if u32::try_from(tokens.len()).is_err() {
        return Err(TokenizerError::Vocabulary { reason: format!("{} tokens, ids are 32-bit", tokens.len()) });
    }
    let vocab: Vocab = tokens.iter().cloned().zip(0..).collect();
    let mut seen = std::collections::HashSet::with_capacity(merges.len());
    let mut pairs = Vec::with_capacity(merges.len());
    for (index, merge) in merges.iter().enumerate() {
        // A token may itself start with a space, so the pair is parted at the first space after its first byte.
        let space = merge.bytes().skip(1).position(|byte| byte == b' ');
        let Some(space) = space else {
            return Err(TokenizerError::Merge { index, merge: merge.clone() });
        };
        // Of a merge listed twice the first rank counts.
        if seen.insert(merge.as_str()) {
            pairs.push((merge[..space + 1].to_owned(), merge[space + 2..].to_owned()));
        }
    }
    BPE::builder()
        .vocab_and_merges(vocab, pairs)
        .ignore_merges(pre.ignore_merges)
        .cache_capacity(CACHED_WORDS)
        .build()
        .map_err(|error| TokenizerError::Vocabulary { reason: error.to_string() })
}

/// The bytes of every token, joined, and where each ends. Only normal tokens are spelled in the byte alphabet.
fn spell(tokens: &[String], kinds: &[TokenKind]) -> (Vec<u8>, Vec<usize>) {
    let (mut pieces, mut ends) = (Vec::new(), Vec::with_capacity(tokens.len()));
    for (token, kind) in tokens.iter().zip(kinds) {
        let raw: Option<Vec<u8>> = token.chars().map(bytes::from_char).collect();
        match raw.filter(|_| *kind == TokenKind::Normal) {
            Some(raw) => pieces.extend(raw),
            None => pieces.extend(token.as_bytes()),
        }
        ends.push(pieces.len());
    }
    (pieces, ends)
}
