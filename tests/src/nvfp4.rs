//! NVFP4 as a measuring stick: closed blocks hold what it would leave of their keys and values. For measurement only; no form of kvtier.
//!
//! An element is an E2M1 number times the E4M3 scale of its 16 neighbouring channels times an f32 scale of the tensor, which here is the
//! keys, or the values, of one layer of one block: finer than the one scale that a whole cache usually has.
//!
//! ```text
//! tensor = f32 nearest to  max |x| / (448 * 6)              over the layer's keys, or values, of the block
//! scale  = E4M3 nearest to max |x| / (6 * tensor)           over 16 channels of one token and head
//! value  = (E2M1 nearest to x / (scale * tensor)) * scale * tensor
//! ```
//!
//! Every rounding is that of the real number, to nearest, ties to the even code, saturating. Values then go into slots of `i8h`, so that
//! attention, window and block tables are the engine's own. Both steps after NVFP4's own add little to it: bf16 up to 2^-9 of a value,
//! `i8h` up to 1/254 of a token's largest, where E2M1 is off by up to 1/6 of the largest of 16.

use std::array::from_fn;
use std::sync::LazyLock;

use cache_core::codec::raw16;
use cache_core::payload::Side;
use gpu_tier::DeviceError;
use gpu_tier::attention::closed::{Closed, Encode};
use gpu_tier::attention::{Attention, Geometry};
use gpu_tier::cpu::CpuDevice;
use gpu_tier::device::{Device, Stream};

use crate::wrapped::{Change, download, in_device};

/// Channels of one scale.
const GROUP: usize = 16;
/// Magnitudes of E2M1 by their codes.
const E2M1: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
/// Magnitudes of E4M3 by their codes, without the NaN at the end: steps of 2^-9 up to 2^-6, then 8 a binade, up to 448.
static E4M3: LazyLock<[f64; 127]> = LazyLock::new(|| {
    from_fn(|code| {
        let (exponent, mantissa) = (code as i32 / 8, (code % 8) as f64 / 8.0);
        if exponent == 0 { mantissa * 2f64.powi(-6) } else { (1.0 + mantissa) * 2f64.powi(exponent - 7) }
    })
});

/// Bits of an element with its share of the 16's scale; the tensor's scale adds less than 0.01.
pub const BITS: f64 = 4.0 + 8.0 / GROUP as f64;

/// Writes what NVFP4 leaves of a block's keys and values instead of them.
#[derive(Clone, Copy)]
pub(crate) struct Nvfp4;

impl Change for Nvfp4 {
    fn encode(
        &self,
        device: &CpuDevice,
        stream: Stream,
        geometry: &Geometry,
        closed: Closed,
        jobs: &[Encode],
    ) -> Result<(), DeviceError> {
        let mut kept = Vec::with_capacity(jobs.len());
        for range in jobs.iter().map(|job| in_device(job.exact)) {
            let exact = download(device, stream, range)?;
            device.upload(stream, &rounded(&exact, geometry), range)?;
            kept.push((range, exact));
        }
        device.encode(stream, geometry, closed, jobs)?;
        // Rows inside the window still read the lossless block.
        kept.iter().try_for_each(|(range, exact)| device.upload(stream, exact, *range))
    }
}

/// A layer's `raw16` section of a block, through NVFP4 and back.
fn rounded(section: &[u8], geometry: &Geometry) -> Vec<u8> {
    let mut values: Vec<u16> = section.chunks_exact(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]])).collect();
    let (channels, tokens) = (geometry.head_dim as usize, geometry.block_tokens as usize);
    for side in Side::ALL {
        let mut parts: Vec<_> = values.chunks_exact_mut(channels * tokens).skip(side as usize).step_by(2).collect();
        let all = parts.iter().flat_map(|part| part.iter());
        let tensor = (all.map(|value| magnitude(*value)).fold(0.0, f64::max) / (E4M3[126] * E2M1[7])) as f32;
        for part in &mut parts {
            for (token, group) in (0..tokens).flat_map(|token| (0..channels / GROUP).map(move |group| (token, group))) {
                let at = |channel: usize| match side {
                    Side::Key => channel * tokens + token,
                    Side::Value => token * channels + channel,
                };
                let places: [usize; GROUP] = from_fn(|index| at(group * GROUP + index));
                round_group(part, &places, f64::from(tensor));
            }
        }
    }
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Rounds the elements at `places`, which share a scale.
fn round_group(part: &mut [u16], places: &[usize; GROUP], tensor: f64) {
    let largest = places.iter().map(|at| magnitude(part[*at])).fold(0.0, f64::max);
    // At most 4 bits by 24: exact, and so is its product with any code or middle of two.
    let unit = nearest(&*E4M3, largest, E2M1[7] * tensor) * tensor;
    for at in places {
        let value = nearest(&E2M1, magnitude(part[*at]), unit) * unit;
        part[*at] = part[*at] & 0x8000 | raw16::encode(value as f32);
    }
}

/// The entry of an ascending table whose product with `unit` is nearest to `magnitude`; of two, the one at the even index. 0 for a `unit` of 0.
fn nearest(table: &[f64], magnitude: f64, unit: f64) -> f64 {
    if unit == 0.0 {
        return 0.0;
    }
    let above = table.partition_point(|entry| entry * unit <= magnitude);
    if above == table.len() {
        return table[above - 1];
    }
    let middle = (table[above - 1] + table[above]) / 2.0 * unit;
    let up = magnitude > middle || magnitude == middle && above.is_multiple_of(2);
    table[if up { above } else { above - 1 }]
}

fn magnitude(value: u16) -> f64 {
    let value = f64::from(raw16::decode(value & 0x7fff));
    assert!(value.is_finite(), "keys and values of a real text are finite");
    value
}

#[cfg(test)]
mod tests {
    use gpu_tier::attention::Element;

    use super::*;

    #[test]
    fn scales_have_the_values_of_the_format() {
        assert_eq!(
            [0, 1, 7, 8, 9, 56, 126].map(|code| E4M3[code]),
            [0.0, 2f64.powi(-9), 7.0 / 512.0, 2f64.powi(-6), 9.0 / 512.0, 1.0, 448.0]
        );
        assert!(E4M3.is_sorted());
    }

    #[test]
    fn ties_go_to_the_even_code_and_what_is_too_large_to_the_largest() {
        let found = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 5.1, 9.0].map(|x| nearest(&E2M1, x * 0.1875, 0.1875));
        assert_eq!(found, [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 6.0]);
        assert_eq!(nearest(&E2M1, 0.26, 1.0), 0.5);
        assert_eq!(nearest(&E2M1, 3.0, 0.0), 0.0);
    }

    /// Two heads of 16 channels by 8 tokens: keys lie by channels, values by tokens, and each of the two has a scale of its own.
    #[test]
    fn a_section_by_hand() {
        let geometry =
            Geometry { heads: 2, kv_heads: 2, head_dim: 16, block_tokens: 8, element: Element::Bf16, scale: 1.0 };
        let mut values = vec![0u16; 4 * 128];
        let bf16 = raw16::encode;
        // The largest key, 6 x 448 x 2^-7: the tensor's scale is 2^-7. -5 beside it is 1.43 units of 3.5: code 1.5.
        values[2 * 8 + 3] = bf16(21.0);
        values[5 * 8 + 3] = bf16(-5.0);
        // Token 4 of the same channels has a scale of its own: 1/128 is 6 x 2^-7 / 6, scale 1/6 -> 0.171875 = 11/64.
        values[5 * 8 + 4] = bf16(1.0 / 128.0);
        // Values of the second head: 448 x 6 as it is, and in another token 100: scale 16.667 -> 16, 6 x 16 = 96.
        values[3 * 128 + 16] = bf16(2688.0);
        values[3 * 128 + 2 * 16 + 1] = bf16(100.0);
        let section: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let found = rounded(&section, &geometry);
        let at = |index: usize| raw16::decode(u16::from_le_bytes([found[2 * index], found[2 * index + 1]]));
        assert_eq!((at(2 * 8 + 3), at(5 * 8 + 3)), (21.0, -5.25));
        assert_eq!(at(5 * 8 + 4), 6.0 * 0.171_875 / 128.0);
        assert_eq!((at(3 * 128 + 16), at(3 * 128 + 2 * 16 + 1)), (2688.0, 96.0));
        assert_eq!(found.chunks_exact(2).filter(|bytes| bytes[0] != 0 || bytes[1] != 0).count(), 5);
    }
}
