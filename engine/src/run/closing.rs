//! Closing: from which position on a block is read in its lossy form. Positions and policy alone decide, never what copies there are.
//!
//! The query at position `t` reads block `j` closed if and only if `j >= 1` and `(j + 1) B + W <= t`, and losslessly otherwise, in prefill rows
//! as in decode steps. So what is computed at positions from `2 B + W` on comes after something lossy: it is **tainted**, and so is the block
//! in which such a position lies.

use cache_core::form::{Form, FormMapId, Provenance};
use gpu_tier::attention::SPAN_TOKENS;
use gpu_tier::attention::closed::Closed;
use sha2::{Digest, Sha256};

/// Tokens between the end of a closed block and the first position that reads it closed.
pub const WINDOW: u32 = 64;

/// How blocks are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    form: Form,
    block_tokens: u32,
}

impl Closing {
    /// Closing into `form`, a mixed one [of the model](Form::in_model); `None` when attention does not read that form as it lies, or not in
    /// blocks of this size.
    pub fn into_form(form: Form, block_tokens: u32) -> Option<Closing> {
        Closed::of(form, 0).filter(|_| block_tokens.is_multiple_of(SPAN_TOKENS))?;
        Some(Closing { form, block_tokens })
    }

    /// The form of closed blocks.
    pub fn form(&self) -> Form {
        self.form
    }

    /// What attention reads in a layer.
    pub fn codes(&self, layer: u32) -> Closed {
        Closed::of(self.form, layer).expect("a form that is read as it lies in one layer is so in all")
    }

    /// Blocks `1..end(position)` are read closed by the row at `position`; at least 1.
    pub fn end(&self, position: u32) -> u32 {
        (position.saturating_sub(WINDOW) / self.block_tokens).max(1)
    }

    /// The first block that is computed after something lossy.
    pub fn first_tainted(&self) -> u32 {
        (2 * self.block_tokens + WINDOW) / self.block_tokens
    }

    /// Provenance of tainted blocks: a digest of the policy.
    pub fn provenance(&self) -> Provenance {
        let (id, block_tokens, window) =
            (FormMapId::of(self.form).0.to_le_bytes(), self.block_tokens.to_le_bytes(), WINDOW.to_le_bytes());
        match self.form {
            // The map whole: its id is a digest of 31 bits.
            Form::Mixed(map) => digest(&[b"kvtier.closing.v1", &id, &block_tokens, &window, &map.to_bytes()]),
            _ => digest(&[b"kvtier.closing.v1", &id, &block_tokens, &window]),
        }
    }

    /// Provenance of blocks from `block` on, when those before were found closed only, so that `block` was computed without its exact window.
    pub fn clamped(&self, before: Provenance, block: u32) -> Provenance {
        digest(&[b"kvtier.clamp.v1", &before.0.to_le_bytes(), &block.to_le_bytes()])
    }
}

/// The first 64 bits of a SHA-256 over length-prefixed fields; never 0, which is [`Provenance::EXACT`].
fn digest(fields: &[&[u8]]) -> Provenance {
    let mut hasher = Sha256::new();
    for field in fields {
        hasher.update((field.len() as u64).to_le_bytes());
        hasher.update(field);
    }
    let bytes: [u8; 32] = hasher.finalize().into();
    Provenance(u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_as_it_is_stated() {
        for block_tokens in [64, 128, 256] {
            let closing = Closing::into_form(Form::Kc4vt4, block_tokens).unwrap();
            let mut first_tainted = None;
            for position in 0..5 * block_tokens {
                let is_closed = |block: u32| block >= 1 && (block + 1) * block_tokens + WINDOW <= position;
                let closed: Vec<u32> = (0..8).filter(|block| is_closed(*block)).collect();
                assert_eq!(closed, (1..closing.end(position)).collect::<Vec<_>>(), "{position}");
                if !closed.is_empty() {
                    first_tainted.get_or_insert(position / block_tokens);
                }
            }
            assert_eq!(first_tainted, Some(closing.first_tainted()));
        }
    }

    #[test]
    fn provenance_tells_policies_and_clamps_apart() {
        let all = [
            ("i8h", 64),
            ("kc4vt4", 64),
            ("kc4vt4", 128),
            ("kc4vt4:k8=1", 64),
            ("kc4vt4:v8=1", 64),
            ("kc4vt4:k8=2", 64),
        ];
        let closings = all.map(|(form, block_tokens)| Closing::into_form(form.parse().unwrap(), block_tokens).unwrap());
        let mut seen = vec![Provenance::EXACT];
        for closing in closings {
            let own = closing.provenance();
            for provenance in [own, closing.clamped(own, 2), closing.clamped(own, 3)] {
                assert!(!seen.contains(&provenance));
                seen.push(provenance);
            }
        }
        assert_eq!(Closing::into_form(Form::Kc4vt4, 32), None);
        assert_eq!(Closing::into_form(Form::Raw16, 64), None);
    }
}
