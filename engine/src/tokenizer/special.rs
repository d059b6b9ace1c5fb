//! Special tokens: which they are, and finding them in text.

use memchr::memmem;

/// Whether text may spell control tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// Text that spells a control token (`<|im_start|>`) becomes that token: for rendered chat templates.
    Parse,
    /// Control tokens are ordinary text: for documents. Tokens a model calls user-defined are found even so, as in
    /// llama.cpp.
    Plain,
}

/// What a token is for: `tokenizer.ggml.token_type`. Source: llama.h, `enum llama_token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// 1, and what no other number says.
    Normal,
    /// 2.
    Unknown,
    /// 3.
    Control,
    /// 4.
    UserDefined,
    /// 5: unused, 6: a raw byte of other tokenizer models, 0: undefined.
    Other,
}

impl TokenKind {
    pub(super) fn from_number(number: i32) -> TokenKind {
        match number {
            1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            _ => TokenKind::Other,
        }
    }
}

/// Names of tokens that end a turn; the first found is the end-of-turn token where the file names none.
/// Source: llama.cpp, src/llama-vocab.cpp (`special_eot_id`).
pub(super) const END_OF_TURN_NAMES: [&str; 11] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];

/// Part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fragment<'a> {
    /// Bytes to tokenise.
    Text(&'a [u8]),
    /// A special token.
    Token(u32),
}

/// The special tokens of a vocabulary, longest first.
#[derive(Debug)]
pub(super) struct SpecialSet {
    entries: Vec<(u32, TokenKind, memmem::Finder<'static>)>,
}

impl SpecialSet {
    /// `tokens`: id, kind and text of every token; the ordinary and the empty ones are left out.
    pub(super) fn new<'a>(tokens: impl Iterator<Item = (u32, TokenKind, &'a str)>) -> Self {
        let mut chosen: Vec<_> = tokens
            .filter(|(_, kind, text)| !matches!(kind, TokenKind::Normal | TokenKind::Other) && !text.is_empty())
            .collect();
        chosen.sort_by_key(|(_, _, text)| std::cmp::Reverse(text.len()));
        let entries =
            chosen.into_iter().map(|(id, kind, text)| (id, kind, memmem::Finder::new(text).into_owned())).collect();
        SpecialSet { entries }
    }

    /// Cuts `text` at special tokens: each in turn, longest first, takes all its occurrences in what is still text.
    /// So does llama.cpp (`tokenizer_st_partition`); the leftmost match of any token would differ where two overlap.
    pub(super) fn cut<'a>(&self, text: &'a [u8], special: SpecialTokens) -> Vec<Fragment<'a>> {
        let mut fragments = vec![Fragment::Text(text)];
        for (id, kind, finder) in &self.entries {
            if special == SpecialTokens::Plain && *kind != TokenKind::UserDefined {
                continue;
            }
            let mut cut = Vec::with_capacity(fragments.len());
            for fragment in fragments {
                let Fragment::Text(text) = fragment else {
                    cut.push(fragment);
                    continue;
                };
                let mut start = 0;
                for at in finder.find_iter(text) {
                    cut.push(Fragment::Text(&text[start..at]));
                    cut.push(Fragment::Token(*id));
                    start = at + finder.needle().len();
                }
                cut.push(Fragment::Text(&text[start..]));
            }
            cut.retain(|fragment| *fragment != Fragment::Text(b""));
            fragments = cut;
        }
        fragments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> SpecialSet {
        let tokens = [
            (0, TokenKind::Control, "<s>"),
            (1, TokenKind::Control, "a<s"),
            (2, TokenKind::UserDefined, "<user>"),
            (3, TokenKind::Normal, "x"),
            (4, TokenKind::Control, "<s><s>"),
        ];
        SpecialSet::new(tokens.into_iter())
    }

    #[test]
    fn longest_token_goes_first_even_when_it_starts_later() {
        let text = b"xa<s><s><s>y";
        assert_eq!(
            set().cut(text, SpecialTokens::Parse),
            [Fragment::Text(b"xa"), Fragment::Token(4), Fragment::Token(0), Fragment::Text(b"y")]
        );
    }

    #[test]
    fn plain_text_keeps_control_tokens_as_text_but_not_user_defined_ones() {
        assert_eq!(
            set().cut(b"<s><user><s>", SpecialTokens::Plain),
            [Fragment::Text(b"<s>"), Fragment::Token(2), Fragment::Text(b"<s>")]
        );
        assert_eq!(set().cut(b"", SpecialTokens::Parse), []);
    }
}
