//! What every [`Codec`] passes: bit-for-bit parity with the reference over random and adversarial grids.

use super::{Codec, Damaged, Grid, Scalar, StaysRaw, sx12};
use crate::payload::Side;

/// Random numbers for the cases (splitmix64): the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Roughly normal, mean 0, deviation 1.
    pub fn normal(&mut self) -> f32 {
        let sum: f32 = (0..12).map(|_| (self.bits() >> 40) as f32 / (1u32 << 24) as f32).sum();
        sum - 6.0
    }
}

/// Kinds of grids that [`fill`] makes.
pub const KINDS: usize = 14;

/// Fills a grid: `kind` 0 looks like keys and values, the others are awkward.
pub fn fill(random: &mut Random, kind: usize, grid: Grid, values: &mut [u16]) {
    let base = random.bits() as u16;
    let bf16 = |x: f32| super::raw16::encode(x);
    let spread = random.below(24) as i32;
    for row in values.chunks_exact_mut(grid.lanes) {
        let scale = 2f32.powi(random.below(6) as i32 - 3);
        let centre = random.normal() * scale * 2.0;
        for value in row.iter_mut() {
            let bits = random.bits() as u16;
            let finite = if bits & super::EXPONENT == super::EXPONENT { bits ^ 0x4000 } else { bits };
            *value = match kind {
                0 => bf16(random.normal() * scale + centre),
                // Any bits: NaN, infinities, denormals.
                1 => bits,
                2 => finite,
                // All equal, and all equal in a row.
                3 => base & 0xbfff,
                4 => bf16(centre),
                // Zeros of both signs; denormals.
                5 => bits & 0x8000,
                6 => bits & 0x80ff,
                // Around the least and the largest f16.
                7 => bf16(random.normal() * 2f32.powi(-26 + (bits & 3) as i32)),
                8 => bf16(65504.0 + 64.0 * f32::from(bits & 15) - 480.0),
                9 => bf16(8.3e6 + 1e4 * random.normal()),
                // Two values; ties between codes.
                10 => {
                    if bits & 1 == 0 {
                        base & 0xbfff
                    } else {
                        base & 0xbfff ^ 0x81
                    }
                }
                11 => bf16(f32::from(bits % 31) * 0.5),
                // Exponents around the edges of a window.
                12 => (bits & 0x807f) | ((100 + random.below(15) + usize::from(bits % 512 < 9) * 7) as u16) << 7,
                _ => bf16(random.normal() * 2f32.powi(random.below(spread as usize + 1) as i32 - spread)),
            };
        }
    }
}

/// Now and then puts a single element out of place.
fn misplace(random: &mut Random, values: &mut [u16]) {
    if random.below(16) == 0 {
        let at = random.below(values.len());
        values[at] = [0x7f80, 0xffff, 0x7fc1, 0x0001, 0x7f7f, 0x0000, 0x47c0][random.below(7)];
    }
}

/// Encodes and decodes `rounds` grids in every form with the codec and with the reference, and compares outcomes and
/// bytes. Gives the number of (form, grid) cases. Panics on the first difference, naming its seed.
pub fn parity(codec: &impl Codec, seed: u64, rounds: usize) -> usize {
    let sizes = [8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 128];
    let mut cases = 0;
    for round in 0..rounds {
        let seed = seed.wrapping_add(round as u64 * 0x1_0001);
        let mut random = Random(seed);
        // Mostly small grids, so that there are many.
        let most = if round % 64 == 0 { sizes.len() } else { 4 };
        let (head_dim, block_tokens) = (sizes[random.below(most)], sizes[random.below(most)]);
        let side = Side::ALL[random.below(2)];
        let grid = Grid::new(side, head_dim, block_tokens);
        let name = format!("seed {seed:#x}, kind {}, {grid:?}, {side:?}", round % KINDS);
        cases += compare(codec, &mut random, round % KINDS, side, grid, &name);
    }
    cases
}

/// The same for one grid of a kind; `name` is for the panic.
pub fn compare(codec: &impl Codec, random: &mut Random, kind: usize, side: Side, grid: Grid, name: &str) -> usize {
    let mut values = vec![0u16; grid.elements()];
    fill(random, kind, grid, &mut values);
    misplace(random, &mut values);
    rows4(codec, grid, &values, name);
    i8h(codec, side, grid, &values, name);
    sx12(codec, random, grid, &values, name);
    3
}

fn rows4(codec: &impl Codec, grid: Grid, values: &[u16], name: &str) {
    let [mut ours, mut reference] = [(); 2].map(|()| (vec![0xaau8; 4 * grid.rows], vec![0xaau8; grid.elements() / 2]));
    let outcome = codec.encode_rows4(grid, values, &mut ours.0, &mut ours.1);
    let expected = Scalar.encode_rows4(grid, values, &mut reference.0, &mut reference.1);
    assert_eq!(outcome, expected, "kc4vt4 outcome, {name}");
    if expected.is_err() {
        return;
    }
    assert_eq!(ours, reference, "kc4vt4 bytes, {name}");
    let [mut decoded, mut twin] = [(); 2].map(|()| vec![0u16; grid.elements()]);
    assert_eq!(codec.decode_rows4(grid, &ours.0, &ours.1, &mut decoded), Ok(()), "{name}");
    assert_eq!(Scalar.decode_rows4(grid, &ours.0, &ours.1, &mut twin), Ok(()), "{name}");
    assert_eq!(decoded, twin, "kc4vt4 values, {name}");
    ours.0[1] |= 0x7c;
    assert_eq!(codec.decode_rows4(grid, &ours.0, &ours.1, &mut decoded), Err(Damaged::Header), "{name}");
}

fn i8h(codec: &impl Codec, side: Side, grid: Grid, values: &[u16], name: &str) {
    let tokens = super::i8h::tokens(side, grid);
    let [mut ours, mut reference] = [(); 2].map(|()| (vec![0xaau8; 2 * tokens], vec![0xaau8; grid.elements()]));
    let outcome = codec.encode_i8h(side, grid, values, &mut ours.0, &mut ours.1);
    let expected = Scalar.encode_i8h(side, grid, values, &mut reference.0, &mut reference.1);
    assert_eq!(outcome, expected, "i8h outcome, {name}");
    if expected.is_err() {
        return;
    }
    assert_eq!(ours, reference, "i8h bytes, {name}");
    let [mut decoded, mut twin] = [(); 2].map(|()| vec![0u16; grid.elements()]);
    assert_eq!(codec.decode_i8h(side, grid, &ours.0, &ours.1, &mut decoded), Ok(()), "{name}");
    assert_eq!(Scalar.decode_i8h(side, grid, &ours.0, &ours.1, &mut twin), Ok(()), "{name}");
    assert_eq!(decoded, twin, "i8h values, {name}");
    ours.0[1] |= 0x80;
    assert_eq!(codec.decode_i8h(side, grid, &ours.0, &ours.1, &mut decoded), Err(Damaged::Header), "{name}");
}

fn sx12(codec: &impl Codec, random: &mut Random, grid: Grid, values: &[u16], name: &str) {
    let elements = grid.elements();
    let room = match random.below(4) {
        0 => elements,
        1 => 0,
        _ => 2 * sx12::allowance(elements as u64) as usize,
    };
    let [mut ours, mut reference] = [(); 2].map(|()| (vec![0xaau8; room], vec![0xaau8; elements / 2 * 3]));
    let outcome = codec.encode_sx12(values, &mut ours.1, &mut ours.0);
    let expected = Scalar.encode_sx12(values, &mut reference.1, &mut reference.0);
    assert_eq!(outcome, expected, "sx12 outcome, {name}");
    let Ok(window) = expected else {
        assert_eq!(expected, Err(StaysRaw::Escapes));
        return;
    };
    let count = usize::from(window.escapes);
    assert_eq!(ours.1, reference.1, "sx12 codes, {name}");
    assert_eq!(ours.0[..count], reference.0[..count], "sx12 escapes, {name}");
    let mut decoded = vec![0u16; elements];
    assert_eq!(codec.decode_sx12(window, &ours.1, &ours.0[..count], &mut decoded), Ok(()), "{name}");
    assert_eq!(decoded, values, "sx12 is lossless, {name}");
    if count > 0 {
        let short = sx12::Window { escapes: window.escapes - 1, ..window };
        let found = codec.decode_sx12(short, &ours.1, &ours.0[..count - 1], &mut decoded);
        assert_eq!(found, Err(Damaged::Escapes), "{name}");
    }
    if count < room && count < 255 {
        let long = sx12::Window { escapes: window.escapes + 1, ..window };
        let found = codec.decode_sx12(long, &ours.1, &ours.0[..count + 1], &mut decoded);
        assert_eq!(found, Err(Damaged::Escapes), "{name}");
    }
    let low = sx12::Window { top: sx12::TOP_MIN - 1, ..window };
    assert_eq!(codec.decode_sx12(low, &ours.1, &ours.0[..count], &mut decoded), Err(Damaged::Header), "{name}");
}
