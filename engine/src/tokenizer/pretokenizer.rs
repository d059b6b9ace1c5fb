//! Cutting text into the words that byte-pair merges never cross.
//!
//! The scanners follow the hand-written ones in llama.cpp's src/unicode.cpp (`unicode_regex_split_custom_*`), which
//! stand for the regular expressions quoted below but differ from them in corners; patterns without one there (`\p{N}`
//! and those of `default`) go by the expression. A name selects a list of passes; each pass cuts the pieces the passes
//! before it left, and sees nothing outside its piece.

use super::codepoints::{Class, class};

/// One pass over each piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// `\p{N}`: each number character alone.
    EachNumber,
    /// `\p{N}+`: runs of numbers apart.
    NumberRuns,
    /// `[\p{P}\$\+<=>\^~\|]+`: runs of punctuation apart.
    PunctuationRuns,
    /// `[0-9][0-9][0-9]`: ASCII digits in threes from the left.
    DigitTriples,
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,MAX}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|`
    /// `\s+(?!\S)|\s+` with this many numbers at most.
    Llama3 {
        /// Numbers kept together: 3 for Llama 3, 1 for Qwen 2.
        numbers: usize,
    },
}

/// How `tokenizer.ggml.pre` says text is cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct PreTokenizer {
    passes: &'static [Pass],
    /// A word that is a token as it stands is not merged.
    pub(super) ignore_merges: bool,
    /// A beginning-of-sequence token is put first unless the file says otherwise.
    pub(super) add_bos: bool,
}

/// Names this module knows, for messages.
pub(super) const KNOWN: &str =
    "smollm, starcoder, refact, command-r, gpt-2, olmo, default, llama3, llama-bpe, qwen2, stablelm2";

impl PreTokenizer {
    /// The pre-tokenizer called `name` in a GGUF file; `None` for one not supported.
    pub(super) fn from_name(name: &str) -> Option<PreTokenizer> {
        let plain = |passes| PreTokenizer { passes, ignore_merges: false, add_bos: false };
        Some(match name {
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
                plain(&[Pass::EachNumber, Pass::Gpt2])
            }
            "gpt-2" | "phi-2" | "mpt" | "olmo" | "gigachat" => plain(&[Pass::Gpt2]),
            "default" => plain(&[Pass::PunctuationRuns, Pass::Gpt2, Pass::NumberRuns, Pass::DigitTriples]),
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "lfm2" => {
                PreTokenizer { passes: &[Pass::Llama3 { numbers: 3 }], ignore_merges: true, add_bos: true }
            }
            "dbrx" | "smaug-bpe" => plain(&[Pass::Llama3 { numbers: 3 }]),
            "qwen2" | "deepseek-r1-qwen" | "stablelm2" => plain(&[Pass::Llama3 { numbers: 1 }]),
            _ => return None,
        })
    }

    /// Lengths, in code points, of the words of `text`; they add up to its length and none is zero.
    pub(super) fn split(&self, text: &[u32]) -> Vec<usize> {
        let mut pieces = vec![text.len()];
        for pass in self.passes {
            let mut cut = Vec::with_capacity(pieces.len());
            let mut start = 0;
            for length in pieces {
                pass.cut(&text[start..start + length], &mut cut);
                start += length;
            }
            pieces = cut;
        }
        pieces.retain(|&length| length > 0);
        pieces
    }
}

impl Pass {
    /// Appends the lengths of the parts of one piece.
    fn cut(self, piece: &[u32], out: &mut Vec<usize>) {
        match self {
            Pass::EachNumber => cut_matches(piece, out, |rest| usize::from(class(rest[0]).is_number())),
            Pass::NumberRuns => cut_matches(piece, out, |rest| run(rest, Class::is_number)),
            Pass::PunctuationRuns => {
                cut_matches(piece, out, |rest| rest.iter().take_while(|&&p| is_punctuation(p)).count())
            }
            Pass::DigitTriples => cut_matches(piece, out, |rest| {
                let digit = |p: &u32| (0x30..=0x39).contains(p);
                let triple = rest.len() >= 3 && rest[..3].iter().all(digit);
                if triple { 3 } else { 0 }
            }),
            Pass::Gpt2 => cut_words(piece, out, gpt2_word),
            Pass::Llama3 { numbers } => {
                cut_words(piece, out, |rest| llama3_word(rest, numbers));
            }
        }
    }
}

/// `\p{P}` and the symbols the default pattern names.
fn is_punctuation(point: u32) -> bool {
    class(point).is_punctuation() || char::from_u32(point).is_some_and(|c| "$+<=>^~|".contains(c))
}

/// Length of the run of a class at the start.
fn run(points: &[u32], has: fn(Class) -> bool) -> usize {
    points.iter().take_while(|&&p| has(class(p))).count()
}

/// Cuts out each match, keeping what lies between matches as pieces of their own. `matched` gives the length of the
/// match at the start of what is left, 0 for none.
fn cut_matches(piece: &[u32], out: &mut Vec<usize>, matched: impl Fn(&[u32]) -> usize) {
    let (mut start, mut at) = (0, 0);
    while at < piece.len() {
        let length = matched(&piece[at..]);
        if length == 0 {
            at += 1;
            continue;
        }
        if at > start {
            out.push(at - start);
        }
        out.push(length);
        at += length;
        start = at;
    }
    if at > start {
        out.push(at - start);
    }
}

/// Cuts a piece into words; `word` gives the length of the first, at least 1.
fn cut_words(piece: &[u32], out: &mut Vec<usize>, word: impl Fn(&[u32]) -> usize) {
    let mut at = 0;
    while at < piece.len() {
        let length = word(&piece[at..]);
        out.push(length);
        at += length;
    }
}

/// Length of an English contraction's tail (`'s`, `'re`, ...), 0 for none.
fn contraction(points: &[u32], lower: fn(u32) -> u32) -> usize {
    if points.first() != Some(&0x27) {
        return 0;
    }
    let letter = |at: usize| points.get(at).and_then(|&p| char::from_u32(lower(p))).unwrap_or('\0');
    match (letter(1), letter(2)) {
        ('s' | 't' | 'm' | 'd', _) => 2,
        ('r' | 'v', 'e') | ('l', 'l') => 3,
        _ => 0,
    }
}

/// Lower case, as far as it can give one of `sdmtrevl`: only ASCII capitals do in llama.cpp's table.
fn lower(point: u32) -> u32 {
    match point {
        0x41..=0x5A => point + 0x20,
        _ => point,
    }
}

/// Length of a run of white space that starts a word: all of it at the end of the piece, all but the last character
/// before something else.
fn whitespace(points: &[u32]) -> usize {
    let length = run(points, Class::is_whitespace);
    if length > 1 && length < points.len() { length - 1 } else { length }
}

fn gpt2_word(points: &[u32]) -> usize {
    let tail = contraction(points, |p| p);
    if tail > 0 {
        return tail;
    }
    let skip = usize::from(points[0] == 0x20);
    if let Some(&next) = points.get(skip) {
        let body = &points[skip..];
        let class = class(next);
        if class.is_letter() {
            return skip + run(body, Class::is_letter);
        }
        if class.is_number() {
            return skip + run(body, Class::is_number);
        }
        if class.is_other() {
            return skip + run(body, Class::is_other);
        }
    }
    whitespace(points).max(1)
}

fn llama3_word(points: &[u32], numbers: usize) -> usize {
    let tail = contraction(points, lower);
    if tail > 0 {
        return tail;
    }
    let first = class(points[0]);
    let is_break = |point: u32| matches!(point, 0x0A | 0x0D);
    if !is_break(points[0]) && !first.is_number() {
        let letters = run(&points[1..], Class::is_letter);
        if first.is_letter() || letters > 0 {
            return 1 + letters;
        }
    }
    if first.is_number() {
        return run(points, Class::is_number).min(numbers);
    }
    let skip = usize::from(points[0] == 0x20);
    let others = run(&points[skip..], Class::is_other);
    if others > 0 {
        let end = skip + others;
        let breaks = points[end..].iter().take_while(|&&p| is_break(p)).count();
        return end + breaks;
    }
    let spaces = run(points, Class::is_whitespace);
    if let Some(last) = points[..spaces].iter().rposition(|&p| is_break(p)) {
        return last + 1;
    }
    whitespace(points).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(name: &str, text: &str) -> Vec<String> {
        let points: Vec<u32> = text.chars().map(u32::from).collect();
        let mut at = 0;
        let cut = PreTokenizer::from_name(name).unwrap().split(&points);
        cut.into_iter()
            .map(|length| {
                at += length;
                let word = &points[at - length..at];
                word.iter().filter_map(|&p| char::from_u32(p)).collect()
            })
            .collect()
    }

    #[test]
    fn gpt2_keeps_one_space_with_the_next_word() {
        assert_eq!(
            words("gpt-2", "I'll  go, 123 ok!?\n\n  x  "),
            ["I", "'ll", " ", " go", ",", " 123", " ok", "!?", "\n\n ", " x", "  "]
        );
        assert_eq!(words("gpt-2", "'S 'x é٣²"), ["'", "S", " '", "x", " é", "٣²"]);
    }

    #[test]
    fn smollm_takes_numbers_one_by_one() {
        assert_eq!(words("smollm", "a  12 b3"), ["a", "  ", "1", "2", " b", "3"]);
        assert_eq!(words("smollm", "x  "), ["x", "  "]);
        assert_eq!(words("smollm", " ½ⅷ"), [" ", "½", "ⅷ"]);
    }

    #[test]
    fn llama3_groups_three_numbers_and_qwen2_one() {
        let text = "I'LL say 12345\n\n \tfoo(bar)\r\n  end ";
        assert_eq!(
            words("llama-bpe", text),
            ["I", "'LL", " say", " ", "123", "45", "\n\n", " ", "\tfoo", "(bar", ")\r\n", " ", " end", " "]
        );
        assert_eq!(words("qwen2", "a12"), ["a", "1", "2"]);
        assert_eq!(words("qwen2", "_\u{301}a !!\n"), ["_\u{301}", "a", " !!\n"]);
    }

    #[test]
    fn default_cuts_punctuation_and_digit_triples() {
        assert_eq!(words("default", "x=1234567, y"), ["x", "=", "123", "456", "7", ",", " y"]);
        assert_eq!(words("default", "a 12 b"), ["a", " ", "12", " b"]);
    }

    #[test]
    fn words_cover_the_text_and_unknown_names_are_refused() {
        let points: Vec<u32> = (0..0x3000).chain(0xD7F0..0xE010).collect();
        for name in ["smollm", "gpt-2", "default", "llama-bpe", "qwen2", "dbrx"] {
            let cut = PreTokenizer::from_name(name).unwrap().split(&points);
            assert_eq!(cut.iter().sum::<usize>(), points.len(), "{name}");
        }
        assert!(PreTokenizer::from_name("tekken").is_none());
    }
}
