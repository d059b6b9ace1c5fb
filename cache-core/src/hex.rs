//! Bytes in hexadecimal digits, and back.

use std::fmt;

/// Two lowercase digits for each byte.
pub struct Hex<B>(pub B);

impl<B: AsRef<[u8]>> fmt::Display for Hex<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The bytes of digits of either case, two for each; `None` when there is anything else, or half a byte.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    let pairs = digits.chunks_exact(2);
    pairs.remainder().is_empty().then(|| pairs.map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_nothing_else_is_read() {
        let bytes: Vec<u8> = (0..=255).collect();
        let text = Hex(&bytes).to_string();
        assert_eq!(text[508..], *"feff");
        assert_eq!((from_hex(&text), from_hex(&text.to_uppercase())), (Some(bytes.clone()), Some(bytes)));
        assert_eq!((from_hex(""), from_hex("0Fa5")), (Some(vec![]), Some(vec![0x0f, 0xa5])));
        for wrong in ["0", "0f5", "+f", "0x", " 0", "g0", "é0", "éé", "\u{ff11}0"] {
            assert_eq!(from_hex(wrong), None, "{wrong}");
        }
    }
}
