//! Bytes that no encoder wrote: every decoder must make the same of them as the reference.

use cache_core::codec::suite::Random;
use cache_core::codec::sx12::{TOP_MIN, Window};
use cache_core::codec::{Codec, Grid, Scalar, i8h};
use cache_core::payload::Side;

/// Decodes `rounds` grids of arbitrary codes under arbitrary headers in every form with the codec and with the reference, and compares
/// outcomes and values. Panics on the first difference, naming its seed.
pub fn decode(codec: &impl Codec, seed: u64, rounds: usize) {
    let sizes = [8, 16, 24, 32, 40, 64, 80, 128];
    for round in 0..rounds {
        let seed = seed.wrapping_add(round as u64 * 0x1_0001);
        let mut random = Random(seed);
        // Mostly small grids, so that there are many.
        let most = if round % 64 == 0 { sizes.len() } else { 4 };
        let (head_dim, block_tokens) = (sizes[random.below(most)], sizes[random.below(most)]);
        let side = Side::ALL[random.below(2)];
        let grid = Grid::new(side, head_dim, block_tokens);
        let n = grid.elements();
        let name = format!("seed {seed:#x}, {grid:?}, {side:?}");

        let (header, codes) = (headers(&mut random, grid.rows, grid.rows), bytes(&mut random, n / 2));
        agree(n, &name, &|values| codec.decode_rows4(grid, &header, &codes, values), &|values| {
            Scalar.decode_rows4(grid, &header, &codes, values)
        });
        let (scales, codes) = (headers(&mut random, 0, i8h::tokens(side, grid)), bytes(&mut random, n));
        agree(n, &name, &|values| codec.decode_i8h(side, grid, &scales, &codes, values), &|values| {
            Scalar.decode_i8h(side, grid, &scales, &codes, values)
        });
        let (window, codes, escapes) = sx12(&mut random, n);
        agree(n, &name, &|values| codec.decode_sx12(window, &codes, &escapes, values), &|values| {
            Scalar.decode_sx12(window, &codes, &escapes, values)
        });
    }
}

fn agree<E: PartialEq + std::fmt::Debug>(
    elements: usize,
    name: &str,
    ours: &dyn Fn(&mut [u16]) -> Result<(), E>,
    reference: &dyn Fn(&mut [u16]) -> Result<(), E>,
) {
    let [mut found, mut expected] = [(); 2].map(|()| vec![0u16; elements]);
    let outcome = reference(&mut expected);
    assert_eq!(ours(&mut found), outcome, "{name}");
    if outcome.is_ok() {
        assert_eq!(found, expected, "{name}");
    }
}

fn bytes(random: &mut Random, count: usize) -> Vec<u8> {
    (0..count).map(|_| random.bits() as u8).collect()
}

/// f16 of either sign, then f16 without one, all finite; every eighth array has one that a decoder may refuse.
fn headers(random: &mut Random, signed: usize, unsigned: usize) -> Vec<u8> {
    let mut header = |index: usize| {
        let bits = random.bits() as u16;
        let sign = if index < signed { bits & 0x8000 } else { 0 };
        sign | (bits % 0x7c00)
    };
    let mut headers: Vec<u8> = (0..signed + unsigned).flat_map(|index| header(index).to_le_bytes()).collect();
    if random.below(8) == 0 {
        let at = 2 * random.below(signed + unsigned);
        headers[at..at + 2].copy_from_slice(&(random.bits() as u16).to_le_bytes());
    }
    headers
}

/// Codes with as many escapes as their window says, and now and then with others.
fn sx12(random: &mut Random, elements: usize) -> (Window, Vec<u8>, Vec<u8>) {
    let mut codes = bytes(random, elements / 2 * 3);
    let rare = random.below(4);
    let mut escapes = 0usize;
    for nibbles in &mut codes[elements..] {
        if *nibbles & 15 == 15 && (rare > 0 || escapes >= 200) {
            *nibbles ^= 8;
        }
        if *nibbles >> 4 == 15 && escapes >= 200 {
            *nibbles ^= 0x80;
        }
        escapes += usize::from(*nibbles & 15 == 15) + usize::from(*nibbles >> 4 == 15);
    }
    let count = if random.below(8) == 0 { random.below(256) } else { escapes };
    let top = if random.below(16) == 0 { random.bits() as u8 } else { TOP_MIN + random.below(242) as u8 };
    (Window { top, escapes: count as u8 }, codes, bytes(random, count))
}
