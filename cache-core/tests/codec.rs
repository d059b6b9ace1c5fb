//! The reference codecs: round trips, error ceilings, outcomes, whole blocks.
#![cfg(feature = "testing")]

use cache_core::buffer::Buffer;
use cache_core::codec::image::{self, decode_block, encode_block};
use cache_core::codec::suite::{KINDS, Random, fill, parity};
use cache_core::codec::{Codec as _, Damaged, Grid, Scalar, StaysRaw, i8h, kc4vt4, raw16, read_f16, sx12};
use cache_core::form::Form;
use cache_core::payload::{BlockShape, Plane, Side};
use zerocopy::{FromBytes as _, IntoBytes as _};

const SHAPE: BlockShape = BlockShape { layers: 4, kv_heads: 3, head_dim: 64, block_tokens: 64, form: Form::Raw16 };

/// Relative error of one rounding to bf16.
const BF16: f64 = 1.0 / 256.0;

#[test]
fn the_reference_agrees_with_itself_and_is_lossless_where_it_says_so() {
    assert_eq!(parity(&Scalar, 1, 20_000), 60_000);
}

#[test]
fn kc4vt4_stays_under_its_ceiling() {
    let mut random = Random(7);
    let mut encoded = [0; KINDS];
    for round in 0..2_000 {
        let grid = Grid::new(Side::ALL[round % 2], 16 + 48 * (round as u32 % 2), 64);
        let mut values = vec![0; grid.elements()];
        fill(&mut random, round % KINDS, grid, &mut values);
        let (mut header, mut codes) = (vec![0; 4 * grid.rows], vec![0; grid.elements() / 2]);
        if Scalar.encode_rows4(grid, &values, &mut header, &mut codes).is_err() {
            continue;
        }
        encoded[round % KINDS] += 1;
        let mut decoded = vec![0; grid.elements()];
        Scalar.decode_rows4(grid, &header, &codes, &mut decoded).unwrap();
        for (index, (value, decoded)) in values.iter().zip(&decoded).enumerate() {
            let row = index / grid.lanes;
            let centre = f64::from(read_f16(&header, row));
            let half_range = f64::from(read_f16(&header, grid.rows + row));
            let (value, decoded) = (f64::from(raw16::decode(*value)), f64::from(raw16::decode(*decoded)));
            let arithmetic = (centre.abs() + half_range) * 2f64.powi(-21);
            let ceiling = half_range / 15.0 + arithmetic + BF16 * (centre.abs() + half_range);
            assert!((value - decoded).abs() <= ceiling, "{value:e} became {decoded:e}, row {centre:e} {half_range:e}");
            assert!((value - centre).abs() <= half_range * (1.0 + 1e-6), "the header bounds its row");
        }
    }
    assert!(encoded[0] > 100 && encoded.iter().filter(|count| **count > 0).count() >= 10, "{encoded:?}");
}

#[test]
fn i8h_stays_under_its_ceiling() {
    let mut random = Random(8);
    let mut encoded = [0; KINDS];
    for round in 0..2_000 {
        let side = Side::ALL[round % 2];
        let grid = Grid::new(side, 64, 16 + 48 * (round as u32 % 2));
        let mut values = vec![0; grid.elements()];
        fill(&mut random, round % KINDS, grid, &mut values);
        let (mut scales, mut codes) = (vec![0; 2 * i8h::tokens(side, grid)], vec![0; grid.elements()]);
        if Scalar.encode_i8h(side, grid, &values, &mut scales, &mut codes).is_err() {
            continue;
        }
        encoded[round % KINDS] += 1;
        let mut decoded = vec![0; grid.elements()];
        Scalar.decode_i8h(side, grid, &scales, &codes, &mut decoded).unwrap();
        for (index, (value, decoded)) in values.iter().zip(&decoded).enumerate() {
            let token = if side == Side::Key { index % grid.lanes } else { index / grid.lanes };
            let scale = f64::from(read_f16(&scales, token));
            let (value, decoded) = (f64::from(raw16::decode(*value)), f64::from(raw16::decode(*decoded)));
            let ceiling = scale * (0.5 + 2f64.powi(-15)) + BF16 * decoded.abs() + 2f64.powi(-134);
            assert!((value - decoded).abs() <= ceiling, "{value:e} became {decoded:e}, scale {scale:e}");
        }
    }
    assert!(encoded[0] > 100 && encoded.iter().filter(|count| **count > 0).count() >= 10, "{encoded:?}");
}

#[test]
fn rmse_of_normal_values_is_that_of_the_step() {
    let mut random = Random(9);
    let grid = Grid::new(Side::Key, 64, 64);
    let mut values = vec![0; grid.elements()];
    fill(&mut random, 0, grid, &mut values);
    let error = |decoded: &[u16]| {
        let square = |(a, b): (&u16, &u16)| f64::from(raw16::decode(*a) - raw16::decode(*b)).powi(2);
        (values.iter().zip(decoded).map(square).sum::<f64>() / values.len() as f64).sqrt()
    };
    let (mut header, mut codes) = (vec![0; 4 * grid.rows], vec![0; grid.elements() / 2]);
    Scalar.encode_rows4(grid, &values, &mut header, &mut codes).unwrap();
    let mut decoded = vec![0; grid.elements()];
    Scalar.decode_rows4(grid, &header, &codes, &mut decoded).unwrap();
    let steps = (0..64).map(|row| f64::from(read_f16(&header, 64 + row)) / 7.5);
    let expected = (steps.map(|step| step * step / 12.0).sum::<f64>() / 64.0).sqrt();
    assert!((0.9..1.15).contains(&(error(&decoded) / expected)), "{} of {expected}", error(&decoded));

    let (mut scales, mut codes) = (vec![0; 128], vec![0; grid.elements()]);
    Scalar.encode_i8h(Side::Key, grid, &values, &mut scales, &mut codes).unwrap();
    Scalar.decode_i8h(Side::Key, grid, &scales, &codes, &mut decoded).unwrap();
    let expected = ((0..64).map(|token| f64::from(read_f16(&scales, token)).powi(2) / 12.0).sum::<f64>() / 64.0).sqrt();
    assert!((0.9..1.15).contains(&(error(&decoded) / expected)), "{} of {expected}", error(&decoded));
}

#[test]
fn what_a_form_cannot_hold_stays_raw() {
    let grid = Grid::new(Side::Value, 8, 8);
    let (mut header, mut codes, mut bytes, mut scales) = ([0; 32], [0; 32], [0; 64], [0; 16]);
    let mut outcomes = |odd: f32| {
        let mut values = [raw16::encode(1.0); 64];
        values[37] = raw16::encode(odd);
        (
            Scalar.encode_rows4(grid, &values, &mut header, &mut codes),
            Scalar.encode_i8h(Side::Value, grid, &values, &mut scales, &mut bytes),
        )
    };
    assert_eq!(outcomes(2.0), (Ok(()), Ok(())));
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(outcomes(odd), (Err(StaysRaw::NonFinite), Err(StaysRaw::NonFinite)));
    }
    // Half of 2e5 does not fit f16, a 127th of it does.
    assert_eq!(outcomes(2e5), (Err(StaysRaw::HeaderRange), Ok(())));
    assert_eq!(outcomes(-1e7), (Err(StaysRaw::HeaderRange), Err(StaysRaw::HeaderRange)));
    assert_eq!(outcomes(3.3e38), (Err(StaysRaw::HeaderRange), Err(StaysRaw::HeaderRange)));
}

#[test]
fn zero_scale_gives_code_zero() {
    let grid = Grid::new(Side::Key, 8, 8);
    let values = [raw16::encode(-3.25); 64];
    let (mut header, mut codes) = ([0xff; 32], [0xff; 32]);
    Scalar.encode_rows4(grid, &values, &mut header, &mut codes).unwrap();
    assert_eq!((read_f16(&header, 0), read_f16(&header, 8), codes), (-3.25, 0.0, [0; 32]));
    let mut decoded = [0; 64];
    Scalar.decode_rows4(grid, &header, &codes, &mut decoded).unwrap();
    assert_eq!(decoded, values);

    let (mut scales, mut codes) = ([0xff; 16], [0xff; 64]);
    Scalar.encode_i8h(Side::Key, grid, &[0x8000; 64], &mut scales, &mut codes).unwrap();
    assert_eq!((scales, codes), ([0; 16], [0; 64]));
}

#[test]
fn codes_follow_from_the_rounded_header() {
    // The centre 2049.5 rounds to the f16 2050: the half-range is taken around that, so that both ends are inside.
    let (centre, half_range) = kc4vt4::row_header(2048.0, 2051.0).unwrap();
    let [c, r] = [centre, half_range].map(|bits| half::f16::from_bits(bits).to_f32());
    assert_eq!((c, r), (2050.0, 2.0));
    assert_eq!([kc4vt4::code(2048.0, c, r), kc4vt4::code(2051.0, c, r)], [0, 11]);
}

#[test]
fn the_window_follows_the_crowd_when_few_are_far_above() {
    let mut values = vec![(100u16) << 7; 4096];
    values[..13].fill(120 << 7);
    let (mut codes, mut escapes) = (vec![0; 6144], vec![0; 26]);
    let window = Scalar.encode_sx12(&values, &mut codes, &mut escapes).unwrap();
    assert_eq!((window.top, window.escapes), (114, 13));
    // As many below as the allowance: the largest exponent is the top.
    let mut values = vec![(100u16) << 7; 4096];
    values[..13].fill(0);
    let window = Scalar.encode_sx12(&values, &mut codes, &mut escapes).unwrap();
    assert_eq!((window.top, window.escapes), (100, 13));
}

#[test]
fn more_than_255_escapes_of_one_side_stay_raw() {
    let mut values = vec![100u16 << 7; 4096];
    values[..256].fill(0);
    let (mut codes, mut escapes) = (vec![0; 6144], vec![0; 4096]);
    assert_eq!(Scalar.encode_sx12(&values, &mut codes, &mut escapes), Err(StaysRaw::Escapes));
    values[0] = 100 << 7;
    assert_eq!(Scalar.encode_sx12(&values, &mut codes, &mut escapes).unwrap().escapes, 255);
}

/// A `raw16` image that looks like keys and values.
fn block(random: &mut Random, shape: &BlockShape) -> Buffer {
    let mut image = Buffer::zeroed(shape.slot_bytes() as usize);
    for layer in 0..shape.layers {
        let codes = image::layer_mut(shape, image.as_mut_slice(), layer).codes;
        let grid = Grid::new(Side::Key, shape.head_dim, shape.block_tokens);
        let values = <[u16]>::mut_from_bytes(codes).unwrap();
        values.chunks_exact_mut(grid.elements()).for_each(|part| fill(random, 0, grid, part));
    }
    image
}

#[test]
fn whole_blocks_go_there_and_back() {
    let mut random = Random(0x1234);
    let raw = block(&mut random, &SHAPE);
    for form in [Form::Raw16, Form::Sx12, Form::I8h, Form::Kc4vt4] {
        let shape = SHAPE.with_form(form);
        // Dirty pages: every byte of every section must be written.
        let [a, b] = [0x00, 0xff].map(|dirt| {
            let mut image = Buffer::zeroed(shape.slot_bytes() as usize);
            image.as_mut_slice().fill(dirt);
            let outcome = encode_block(&Scalar, &shape, raw.as_slice(), image.as_mut_slice());
            (image, outcome)
        });
        assert_eq!((a.1, b.1), (Ok(()), Ok(())), "{}", form.name());
        for section in shape.sections() {
            let range = section.offset as usize..(section.offset + section.bytes) as usize;
            assert_eq!(a.0.as_slice()[range.clone()], b.0.as_slice()[range], "{} {section:?}", form.name());
        }
        let mut back = Buffer::zeroed(SHAPE.slot_bytes() as usize);
        decode_block(&Scalar, &shape, a.0.as_slice(), back.as_mut_slice()).unwrap();
        let payload = SHAPE.header_bytes() as usize..;
        assert_eq!(back.as_slice()[payload.clone()] == raw.as_slice()[payload], form.is_lossless(), "{}", form.name());
    }
}

/// Each part of a mixed image is the part of the uniform image, and decodes as it does.
#[test]
fn parts_of_mixed_blocks_are_those_of_uniform_ones() {
    let raw = block(&mut Random(0x5678), &SHAPE);
    let image = |form: Form| {
        let shape = SHAPE.with_form(form);
        let (mut image, mut back) =
            (Buffer::zeroed(shape.slot_bytes() as usize), Buffer::zeroed(SHAPE.slot_bytes() as usize));
        image.as_mut_slice().fill(0xaa);
        encode_block(&Scalar, &shape, raw.as_slice(), image.as_mut_slice()).unwrap();
        decode_block(&Scalar, &shape, image.as_slice(), back.as_mut_slice()).unwrap();
        (shape, image, back)
    };
    let part = |(shape, image, _): &(BlockShape, Buffer, Buffer), plane, layer, head, side| {
        let section = shape.section(plane, layer)?;
        let range = shape.part(plane, layer, head, side);
        Some(image.as_slice()[section.offset as usize..][range].to_vec()).filter(|part| !part.is_empty())
    };
    let uniform = [Form::I8h, Form::Kc4vt4].map(image);
    for name in ["kc4vt4:k8=0-1:v8=1-2", "kc4vt4:k8=all", "kc4vt4:v8=all", "kc4vt4:k8=3", "kc4vt4:k8=0-2:v8=all"] {
        let form = name.parse::<Form>().unwrap().in_model(SHAPE.layers).unwrap();
        let mixed = image(form);
        for (layer, head) in (0..SHAPE.layers).flat_map(|layer| (0..SHAPE.kv_heads).map(move |head| (layer, head))) {
            for side in Side::ALL {
                let like = &uniform[usize::from(form.at(layer, side) == Form::Kc4vt4)];
                for plane in Plane::ALL {
                    let [found, expected] = [&mixed, like].map(|image| part(image, plane, layer, head, side));
                    assert!(found == expected, "{name}: {plane:?} of {side:?} in layer {layer}, head {head}");
                }
                let section = SHAPE.code_section(layer).offset as usize;
                let decoded =
                    |back: &Buffer| back.as_slice()[section..][SHAPE.part(Plane::Code, layer, head, side)].to_vec();
                assert!(decoded(&mixed.2) == decoded(&like.2), "{name}: {side:?} in layer {layer}, head {head}");
            }
        }
    }
}

#[test]
fn escape_areas_that_do_not_add_up_are_refused() {
    let mut raw = block(&mut Random(0x1234), &SHAPE);
    let shape = SHAPE.with_form(Form::Sx12);
    // Some zeros, so that there are escapes.
    let first = SHAPE.header_bytes() as usize;
    raw.as_mut_slice()[first..first + 8].fill(0);
    let mut image = Buffer::zeroed(shape.slot_bytes() as usize);
    encode_block(&Scalar, &shape, raw.as_slice(), image.as_mut_slice()).unwrap();
    let mut back = Buffer::zeroed(SHAPE.slot_bytes() as usize);
    let at = shape.section(Plane::Header, 0).unwrap().offset as usize + 1;
    for count in [image.as_slice()[at] - 1, image.as_slice()[at] + 1, 255] {
        let mut damaged = image.clone();
        damaged.as_mut_slice()[at] = count;
        let found = decode_block(&Scalar, &shape, damaged.as_slice(), back.as_mut_slice());
        assert_eq!(found, Err(Damaged::Escapes), "{count}");
    }
    decode_block(&Scalar, &shape, image.as_slice(), back.as_mut_slice()).unwrap();
    assert_eq!(back.as_slice().as_bytes()[first..], raw.as_slice()[first..]);
}

#[test]
fn swapping_planted_bytes_shows() {
    // A codec with the halves of a word exchanged, or with a scale off by one step, must not pass the suite.
    struct Planted(bool);
    impl cache_core::codec::Codec for Planted {
        fn encode_sx12(&self, v: &[u16], c: &mut [u8], e: &mut [u8]) -> Result<sx12::Window, StaysRaw> {
            Scalar.encode_sx12(v, c, e)
        }
        fn decode_sx12(&self, w: sx12::Window, c: &[u8], e: &[u8], v: &mut [u16]) -> Result<(), Damaged> {
            Scalar.decode_sx12(w, c, e, v)
        }
        fn encode_i8h(&self, side: Side, grid: Grid, v: &[u16], s: &mut [u8], c: &mut [u8]) -> Result<(), StaysRaw> {
            Scalar.encode_i8h(side, grid, v, s, c)?;
            if self.0 {
                s[0] ^= 1;
            }
            Ok(())
        }
        fn decode_i8h(&self, side: Side, grid: Grid, s: &[u8], c: &[u8], v: &mut [u16]) -> Result<(), Damaged> {
            Scalar.decode_i8h(side, grid, s, c, v)
        }
        fn encode_rows4(&self, grid: Grid, v: &[u16], h: &mut [u8], c: &mut [u8]) -> Result<(), StaysRaw> {
            Scalar.encode_rows4(grid, v, h, c)?;
            if !self.0 {
                c.iter_mut().for_each(|byte| *byte = byte.rotate_left(4));
            }
            Ok(())
        }
        fn decode_rows4(&self, grid: Grid, h: &[u8], c: &[u8], v: &mut [u16]) -> Result<(), Damaged> {
            Scalar.decode_rows4(grid, h, c, v)
        }
    }
    for planted in [Planted(false), Planted(true)] {
        std::panic::catch_unwind(|| parity(&planted, 1, 100)).expect_err("the suite must notice");
    }
}
