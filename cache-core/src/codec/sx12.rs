//! `sx12`, scalar reference: bf16 without loss in 12 bits, where exponents are close together.
//!
//! Each side of a slice has a **window** of 15 exponents, `top - 14 ..= top`. An element is one byte of sign and mantissa
//! (`sign << 7 | mantissa`) and a 4-bit code `top - exponent`; code 15 says that the exponent is outside of the window and
//! stands in the layer's escape area, which its sides fill one after the other (heads in order, keys before values), each in
//! the order of its elements. The area has a fixed size; a block that needs more stays `raw16`.
//!
//! ```text
//! codes          [n] u8 sign and mantissa | [n / 2] u8: low nibble of byte 16 g + j is element 32 g + j, high nibble 32 g + 16 + j
//! header section [2 kv_heads] (u8 top, u8 escapes) | [2 kv_heads allowance(n)] u8 exponents, unused ones 0
//! ```
//!
//! **Which window.** `top` is the largest exponent, at least 14, if at most [`allowance`] elements are below its window; else
//! the `top` whose window holds most elements, the largest of equals.

use super::{Damaged, StaysRaw};

/// Exponents of a window.
pub const WINDOW: u8 = 15;
/// The code that says that the exponent is an escape.
pub const ESCAPE: u8 = 15;
/// Elements of a group: 16 bytes of codes.
pub const GROUP: usize = 32;
/// Least top of a window, so that the window starts at exponent 0.
pub const TOP_MIN: u8 = WINDOW - 1;

/// The window of one side of a slice and how many escapes it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Largest exponent inside, at least [`TOP_MIN`].
    pub top: u8,
    /// Elements outside.
    pub escapes: u8,
}

/// Escapes that the area has room for, per side of `elements` elements.
pub const fn allowance(elements: u64) -> u64 {
    let share = elements * 13 / 4096;
    if share < 8 { 8 } else { share }
}

/// Header bytes per side of a slice: its window and its share of the escape area.
pub const fn header_bytes(elements: u64) -> u64 {
    2 + allowance(elements)
}

/// Exponent of a bf16.
pub fn exponent(value: u16) -> u8 {
    (value >> 7) as u8
}

/// The top of the window for these elements, given the largest exponent and a way to count those below one. Devices pass
/// a fast count.
pub fn choose_top(values: &[u16], largest: u8, count_below: impl FnOnce(u8) -> usize) -> u8 {
    let top = largest.max(TOP_MIN);
    if count_below(top - TOP_MIN) as u64 <= allowance(values.len() as u64) {
        return top;
    }
    // Four tables, so that equal neighbours do not wait for each other.
    let mut tables = [[0u32; 256]; 4];
    for four in values.chunks(4) {
        for (value, table) in four.iter().zip(&mut tables) {
            table[usize::from(exponent(*value))] += 1;
        }
    }
    let count = |exponent: u8| tables.iter().map(|table| table[usize::from(exponent)]).sum::<u32>();
    let mut inside: u32 = (0..=TOP_MIN).map(count).sum();
    let (mut best, mut most) = (TOP_MIN, inside);
    for top in TOP_MIN + 1..=u8::MAX {
        inside = inside + count(top) - count(top - WINDOW);
        if inside >= most {
            (best, most) = (top, inside);
        }
    }
    best
}

/// Encodes any positive multiple of 32 elements. `escapes` is the free rest of the layer's area. Panics when `codes` has
/// another length than 1.5 bytes per element.
pub fn encode(values: &[u16], codes: &mut [u8], escapes: &mut [u8]) -> Result<Window, StaysRaw> {
    check(values.len(), codes.len());
    let largest = values.iter().map(|value| exponent(*value)).max().unwrap_or(0);
    let top = choose_top(values, largest, |low| values.iter().filter(|value| exponent(**value) < low).count());
    let (bytes, nibbles) = codes.split_at_mut(values.len());
    nibbles.fill(0);
    let mut count = 0;
    for (index, value) in values.iter().enumerate() {
        bytes[index] = (value >> 8 & 0x80 | value & 0x7f) as u8;
        let code = top.wrapping_sub(exponent(*value)).min(ESCAPE);
        let nibble = &mut nibbles[index / GROUP * 16 + index % 16];
        *nibble |= if index % GROUP < 16 { code } else { code << 4 };
        if code == ESCAPE {
            *escapes.get_mut(count).ok_or(StaysRaw::Escapes)? = exponent(*value);
            count += 1;
        }
    }
    Ok(Window { top, escapes: u8::try_from(count).map_err(|_| StaysRaw::Escapes)? })
}

/// Decodes. `escapes` holds exactly those of the window. Panics when `codes` has another length than 1.5 bytes per element.
pub fn decode(window: Window, codes: &[u8], escapes: &[u8], values: &mut [u16]) -> Result<(), Damaged> {
    check(values.len(), codes.len());
    check_window(window, escapes)?;
    let (bytes, nibbles) = codes.split_at(values.len());
    let mut escapes = escapes.iter();
    for (index, value) in values.iter_mut().enumerate() {
        let nibble = nibbles[index / GROUP * 16 + index % 16];
        let code = if index % GROUP < 16 { nibble & 15 } else { nibble >> 4 };
        let exponent = if code == ESCAPE { *escapes.next().ok_or(Damaged::Escapes)? } else { window.top - code };
        let byte = u16::from(bytes[index]);
        *value = (byte & 0x80) << 8 | u16::from(exponent) << 7 | byte & 0x7f;
    }
    if escapes.len() == 0 { Ok(()) } else { Err(Damaged::Escapes) }
}

/// Refuses windows that no encoder writes, and another number of escapes than the window's.
pub fn check_window(window: Window, escapes: &[u8]) -> Result<(), Damaged> {
    if window.top < TOP_MIN {
        return Err(Damaged::Header);
    }
    if escapes.len() == usize::from(window.escapes) { Ok(()) } else { Err(Damaged::Escapes) }
}

/// Lengths of one side of a slice. Panics when one is wrong.
pub fn check(values: usize, codes: usize) {
    assert!(values > 0 && values.is_multiple_of(GROUP), "{values} elements are no whole number of groups");
    assert_eq!(codes, values / 2 * 3, "code bytes of {values} elements");
}
