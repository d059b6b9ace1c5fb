//! The byte alphabet of byte-level BPE: every byte is a printable character in tokens and merges.
//!
//! Source: GPT-2's encoder.py (`bytes_to_unicode`). Bytes that print as themselves in Latin-1 stand for themselves;
//! the other 68, in order, are U+0100 and on.

use std::sync::OnceLock;

/// Whether a byte stands for itself.
const fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The character of a byte.
pub(super) fn to_char(byte: u8) -> char {
    static TABLE: OnceLock<[char; 256]> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut next = 0x100u32;
        std::array::from_fn(|value| {
            let byte = value as u8;
            if is_printable(byte) {
                return char::from(byte);
            }
            next += 1;
            char::from_u32(next - 1).expect("68 code points from U+0100 are characters")
        })
    });
    table[usize::from(byte)]
}

/// The byte of a character; `None` for one outside the alphabet.
pub(super) fn from_char(c: char) -> Option<u8> {
    match u32::from(c) {
        point @ 0..=0xFF => Some(point as u8).filter(|&byte| is_printable(byte)),
        _ => (0..=255).find(|&byte| to_char(byte) == c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip_and_known_characters_hold() {
        for byte in 0..=255 {
            assert_eq!(from_char(to_char(byte)), Some(byte));
        }
        assert_eq!(to_char(b' '), 'Ġ');
        assert_eq!(to_char(b'\n'), 'Ċ');
        assert_eq!(to_char(0xAD), 'Ń');
        assert_eq!(from_char(' '), None);
        assert_eq!(from_char('ń'), None);
    }
}
