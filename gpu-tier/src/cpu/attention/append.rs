//! Rounding new keys and values to the stored element and scattering them into a block.

use crate::attention::Element;

/// Some rows of one sequence, one KV head, one block.
///
/// # Safety
/// Made by `append` after every range was checked and pinned: the sources hold `rows` rows that are `row` floats apart;
/// the targets are the head's keys and values of the block, and `slot + rows <= block_tokens`.
pub(super) struct Run {
    pub(super) element: Element,
    pub(super) head_dim: usize,
    pub(super) block_tokens: usize,
    pub(super) rows: usize,
    /// First token in the block.
    pub(super) slot: usize,
    /// f32 between two rows of the sources.
    pub(super) row: usize,
    pub(super) keys: *const f32,
    pub(super) values: *const f32,
    /// `[head_dim][block_tokens]`.
    pub(super) stored_keys: *mut u8,
    /// `[block_tokens][head_dim]`.
    pub(super) stored_values: *mut u8,
}

impl Run {
    /// Writes the rows.
    ///
    /// # Safety
    /// As the struct states.
    pub(super) unsafe fn write(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.element {
                Element::Bf16 => self.write_as(self.stored_keys.cast(), self.stored_values.cast(), round_bf16),
                Element::F32 => self.write_as(self.stored_keys.cast(), self.stored_values.cast(), |x: f32| x),
            }
        }
    }

    unsafe fn write_as<T>(&self, keys: *mut T, values: *mut T, round: impl Fn(f32) -> T) {
        let Run { head_dim, block_tokens, rows, slot, row, .. } = *self;
        // SAFETY: the caller's promise; section addresses were checked to be aligned to the element.
        unsafe {
            for d in 0..head_dim {
                for r in 0..rows {
                    *keys.add(d * block_tokens + slot + r) = round(*self.keys.add(r * row + d));
                }
            }
            for r in 0..rows {
                for d in 0..head_dim {
                    *values.add((slot + r) * head_dim + d) = round(*self.values.add(r * row + d));
                }
            }
        }
    }
}

/// bf16 nearest to `x`, ties to even, as bits; a NaN stays one (made quiet). The same as `half::bf16::from_f32`, in a
/// form that compilers turn into vectors.
fn round_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use super::round_bf16;

    #[test]
    fn rounding_is_that_of_half() {
        // Every upper half with the lower halves around the tie, so all exponents, both signs and all kinds of NaN.
        for high in 0..=u32::from(u16::MAX) {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(high << 16 | low);
                assert_eq!(round_bf16(x), half::bf16::from_f32(x).to_bits(), "{x:e}");
            }
        }
    }
}
