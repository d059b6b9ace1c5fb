//! Code points and their classes, as llama.cpp sees them.
//!
//! Token ids must equal llama.cpp's for any bytes, so text is decoded by its rules (`unicode_cpt_from_utf8` and
//! `unicode_cpts_from_utf8` in src/unicode.cpp), which are looser than UTF-8: overlong forms and surrogates decode to
//! the value they spell, and re-encoding that value gives the bytes that are tokenised.

use std::sync::OnceLock;

/// What a byte that starts no sequence becomes.
const REPLACEMENT: u32 = 0xFFFD;
/// The last Unicode code point.
const LAST: u32 = 0x10_FFFF;

/// Decodes text into code points, at most one for each byte.
///
/// A lead byte fixes a length of 1 to 4; when that many bytes with the right upper bits are there, they are one code
/// point, whatever its value. Otherwise the one byte becomes U+FFFD and decoding goes on at the next byte. Differs
/// from llama.cpp in one case: a value past U+10FFFF makes llama.cpp end the process, here its four bytes become
/// four U+FFFD.
pub(super) fn decode(text: &[u8]) -> Vec<u32> {
    let mut points = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let (point, length) = decode_one(&text[at..]).unwrap_or((REPLACEMENT, 1));
        points.push(point);
        at += length;
    }
    points
}

/// The first code point of a text that is not empty, and its length in bytes.
fn decode_one(text: &[u8]) -> Option<(u32, usize)> {
    let lead = text[0];
    let (length, bits) = match lead {
        0x00..=0x7F => return Some((lead.into(), 1)),
        0x80..=0xBF => return None,
        0xC0..=0xDF => (2, lead & 0x1F),
        0xE0..=0xEF => (3, lead & 0x0F),
        0xF0..=0xF7 => (4, lead & 0x07),
        0xF8..=0xFF => return None,
    };
    let mut point = u32::from(bits);
    for &byte in text.get(1..length)? {
        if byte & 0xC0 != 0x80 {
            return None;
        }
        point = point << 6 | u32::from(byte & 0x3F);
    }
    (point <= LAST).then_some((point, length))
}

/// Appends the shortest encoding of a code point; surrogates take three bytes.
pub(super) fn encode(point: u32, out: &mut Vec<u8>) {
    let tail = |shift: u32| 0x80 | (point >> shift & 0x3F) as u8;
    match point {
        0..=0x7F => out.push(point as u8),
        0x80..=0x7FF => out.extend([0xC0 | (point >> 6) as u8, tail(0)]),
        0x800..=0xFFFF => out.extend([0xE0 | (point >> 12) as u8, tail(6), tail(0)]),
        _ => out.extend([0xF0 | (point >> 18) as u8, tail(12), tail(6), tail(0)]),
    }
}

/// Classes of one code point that pre-tokenizers ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Class(u8);

impl Class {
    const LETTER: u8 = 1;
    const NUMBER: u8 = 2;
    const WHITESPACE: u8 = 4;
    const PUNCTUATION: u8 = 8;

    /// `\p{L}`.
    pub(super) fn is_letter(self) -> bool {
        self.0 & Self::LETTER != 0
    }

    /// `\p{N}`.
    pub(super) fn is_number(self) -> bool {
        self.0 & Self::NUMBER != 0
    }

    /// `\s`, all of Unicode's `White_Space`.
    pub(super) fn is_whitespace(self) -> bool {
        self.0 & Self::WHITESPACE != 0
    }

    /// `\p{P}`.
    pub(super) fn is_punctuation(self) -> bool {
        self.0 & Self::PUNCTUATION != 0
    }

    /// `[^\s\p{L}\p{N}]`.
    pub(super) fn is_other(self) -> bool {
        self.0 & (Self::LETTER | Self::NUMBER | Self::WHITESPACE) == 0
    }
}

/// The classes of a code point of [`decode`].
pub(super) fn class(point: u32) -> Class {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    let table = TABLE.get_or_init(build_table);
    Class(table[point as usize])
}

/// One byte for each code point, from regex-syntax's tables. llama.cpp's src/unicode-data.cpp holds Unicode 15.1, so
/// code points assigned later are unassigned here too: classes must not change when a dependency is upgraded.
fn build_table() -> Vec<u8> {
    let mut table = vec![0u8; LAST as usize + 1];
    let classes = [
        (r"[\p{L}&&\p{age:15.1}]", Class::LETTER),
        (r"[\p{N}&&\p{age:15.1}]", Class::NUMBER),
        (r"[\p{P}&&\p{age:15.1}]", Class::PUNCTUATION),
        (r"\p{White_Space}", Class::WHITESPACE),
    ];
    for (pattern, flag) in classes {
        let parsed = regex_syntax::parse(pattern).expect("the pattern is a constant");
        let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(set)) = parsed.kind() else {
            unreachable!("{pattern} is a Unicode class");
        };
        for range in set.iter() {
            for entry in &mut table[range.start() as usize..=range.end() as usize] {
                *entry |= flag;
            }
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_bytes_become_replacements_one_by_one() {
        assert_eq!(decode(b"a\xFFb"), [0x61, REPLACEMENT, 0x62]);
        // A lead without its continuation: only the lead is replaced.
        assert_eq!(decode(b"\xE2\x82A"), [REPLACEMENT, REPLACEMENT, 0x41]);
        assert_eq!(decode(b"\xE2\x82"), [REPLACEMENT, REPLACEMENT]);
        assert_eq!(decode(b"\xF0\x9F\x98"), [REPLACEMENT; 3]);
        assert_eq!(decode(b"\x80\xBF"), [REPLACEMENT; 2]);
        assert_eq!(decode(b"\xF8\x88\x80\x80\x80"), [REPLACEMENT; 5]);
    }

    #[test]
    fn overlong_forms_and_surrogates_keep_their_value() {
        assert_eq!(decode(b"\xC0\x80\xC1\x81"), [0, 0x41]);
        assert_eq!(decode(b"\xE0\x80\xAF"), [0x2F]);
        assert_eq!(decode(b"\xED\xA0\x80"), [0xD800]);
        assert_eq!(decode(b"\xF4\x90\x80\x80"), [REPLACEMENT; 4]);
        let mut bytes = Vec::new();
        encode(0xD800, &mut bytes);
        encode(0, &mut bytes);
        assert_eq!(bytes, b"\xED\xA0\x80\0");
    }

    #[test]
    fn every_character_round_trips() {
        for c in (0..=LAST).filter_map(char::from_u32) {
            let mut bytes = Vec::new();
            encode(c.into(), &mut bytes);
            assert_eq!(bytes, c.to_string().as_bytes());
            assert_eq!(decode_one(&bytes), Some((c.into(), bytes.len())));
        }
    }

    /// Counts of Unicode 15.1 (llama.cpp's table holds the same): a changed table changes token ids.
    #[test]
    fn classes_are_those_of_unicode_15_1() {
        let count = |has: fn(Class) -> bool| (0..=LAST).filter(|&p| has(class(p))).count();
        assert_eq!(count(Class::is_letter), 136_726);
        assert_eq!(count(Class::is_number), 1_831);
        assert_eq!(count(Class::is_punctuation), 842);
        assert_eq!(count(Class::is_whitespace), 25);
        // Unicode 16 letters stay unassigned.
        assert!(class(0x10D4A).is_other() && class(0x105C0).is_other());
    }
}
