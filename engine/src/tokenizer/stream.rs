//! Turning token pieces into text as they arrive.

/// Joins the bytes of pieces and gives out whole characters only.
///
/// A character split over tokens waits for its last byte. Bytes that can no longer become a character come out as
/// U+FFFD, one for each maximal invalid part, as `String::from_utf8_lossy` does on the whole text.
#[derive(Debug, Default)]
pub struct StreamDecoder {
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// A decoder with nothing waiting.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the bytes of the next piece; returns what is complete, which may be nothing.
    pub fn push(&mut self, piece: &[u8]) -> String {
        self.pending.extend_from_slice(piece);
        let mut out = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    out.push_str(std::str::from_utf8(valid).expect("valid up to here"));
                    rest = after;
                    let Some(bad) = error.error_len() else { break };
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[bad..];
                }
            }
        }
        self.pending = rest.to_vec();
        out
    }

    /// Ends the text: what still waits comes out as U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&rest).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_gives_the_text_of_the_whole() {
        let bytes = "aé€😀\u{200d}z".as_bytes();
        let mut text = bytes.to_vec();
        text.extend(b"\xFF\xE2\x82A\xF0\x9F\x98\xED\xA0\x80b\xF0\x9F");
        let whole = String::from_utf8_lossy(&text).into_owned();
        for step in 1..=text.len() {
            let mut decoder = StreamDecoder::new();
            let mut joined: String = text.chunks(step).map(|part| decoder.push(part)).collect();
            joined.push_str(&decoder.finish());
            assert_eq!(joined, whole, "pieces of {step} bytes");
        }
    }

    #[test]
    fn a_split_character_waits() {
        let mut decoder = StreamDecoder::new();
        assert_eq!(decoder.push(b"x\xF0\x9F"), "x");
        assert_eq!(decoder.push(b"\x98"), "");
        assert_eq!(decoder.push(b"\x80!"), "😀!");
        assert_eq!(decoder.finish(), "");
    }
}
