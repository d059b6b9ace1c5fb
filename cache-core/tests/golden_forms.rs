//! Layouts and codes against golden vectors that `golden_forms.py` computed in exact rational arithmetic.

use cache_core::codec::{Codec as _, Grid, Scalar, i8h, raw16};
use cache_core::form::{Form, FormMapId, Opaque};
use cache_core::payload::{BlockShape, Plane, Side};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use zerocopy::IntoBytes as _;

fn golden(part: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(include_str!("golden_forms.json")).expect("the file is JSON");
    file[part].as_array().expect("a list").clone()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is a number"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

#[test]
fn opaque_bytes() {
    let entries = golden("opaque");
    assert_eq!(entries.len(), 3);
    for entry in entries {
        let of = |name: &str| number(&entry[name]) as u32;
        let layout = Opaque::digest(entry["description"].as_str().unwrap());
        let form = Form::from(Opaque::new(of("layer_bytes"), layout).unwrap());
        let name = entry["name"].as_str().unwrap();
        assert_eq!((form.name().as_str(), name.parse(), FormMapId::of(form)), (name, Ok(form), FormMapId(6)));
        let shape = BlockShape { layers: of("layers"), kv_heads: 1, head_dim: 1, block_tokens: 1, form };
        let offsets: Vec<u64> = entry["offsets"].as_array().unwrap().iter().map(number).collect();
        assert!(shape.sections().map(|section| section.offset).eq(offsets));
        assert!(shape.sections().all(|section| section.bytes == u64::from(of("layer_bytes"))));
        assert_eq!(shape.slot_bytes(), number(&entry["slot_bytes"]));
    }
}

#[test]
fn layouts() {
    let entries = golden("layouts");
    assert_eq!(entries.len(), 25);
    for entry in entries {
        let of = |name: &str| number(&entry[name]) as u32;
        let shape = BlockShape {
            layers: of("layers"),
            kv_heads: of("kv_heads"),
            head_dim: of("head_dim"),
            block_tokens: of("block_tokens"),
            form: entry["form"].as_str().unwrap().parse::<Form>().unwrap(),
        };
        for (index, plane) in Plane::ALL.into_iter().enumerate() {
            assert_eq!(shape.layer_bytes(plane, 0), number(&entry["section_bytes"][index]), "{shape:?} {plane:?}");
            assert_eq!(shape.plane_offset(plane), number(&entry["plane_offsets"][index]), "{shape:?} {plane:?}");
            let first = shape.section(plane, 0);
            assert_eq!(first.map(|section| u64::from(section.index)), entry["first_sections"][index].as_u64());
            assert!(first.is_none_or(|section| section.offset == shape.plane_offset(plane)));
        }
        assert_eq!(u64::from(shape.section_count()), number(&entry["section_count"]), "{shape:?}");
        assert_eq!(shape.slot_bytes(), number(&entry["slot_bytes"]), "{shape:?}");
        assert_eq!(shape.bits_per_value(), entry["bits_per_value"].as_f64().unwrap(), "{shape:?}");
    }
}

/// The generator of `golden_forms.py`.
fn source(name: &str, rows: usize, lanes: usize) -> Vec<u16> {
    let mut x = name.bytes().map(u64::from).sum::<u64>() * 1000 + rows as u64;
    let mut grid = Vec::with_capacity(rows * lanes);
    for row in 0..rows {
        for lane in 0..lanes {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let top = (x >> 48) as u16;
            grid.push(match name {
                "like keys" => {
                    let spread = ((x >> 20).count_ones() as f32 - 22.0) / 8.0 * (1 + row % 5) as f32;
                    raw16::encode(spread + (row % 7) as f32 / 2.0 - 1.5)
                }
                "any finite exponent" => top & 0x807f | if lane % 9 == 0 { 120 << 7 } else { (90 + top % 50) << 7 },
                "equal in a row" => raw16::encode((row as f32 - 20.0) / 16.0),
                _ => top & 0x83ff,
            });
        }
    }
    grid
}

#[test]
fn codes() {
    let entries = golden("grids");
    assert_eq!(entries.len(), 12);
    for entry in entries {
        let (rows, lanes) = (number(&entry["rows"]) as usize, number(&entry["lanes"]) as usize);
        let name = format!("{} {rows} x {lanes}", entry["name"]);
        let values = source(entry["name"].as_str().unwrap(), rows, lanes);
        assert_eq!(sha(values.as_bytes()), entry["source"], "source, {name}");
        let grid = Grid { rows, lanes };
        let mut decoded = vec![0u16; values.len()];

        let (mut header, mut codes) = (vec![0; 4 * rows], vec![0; values.len() / 2]);
        Scalar.encode_rows4(grid, &values, &mut header, &mut codes).unwrap();
        Scalar.decode_rows4(grid, &header, &codes, &mut decoded).unwrap();
        assert_eq!(hex(&header), entry["rows4"]["header"], "rows4 header, {name}");
        assert_eq!(sha(&codes), entry["rows4"]["codes"], "rows4 codes, {name}");
        assert_eq!(sha(decoded.as_bytes()), entry["rows4"]["decoded"], "rows4 decoded, {name}");

        for (side, golden) in [(Side::Key, &entry["i8h keys"]), (Side::Value, &entry["i8h values"])] {
            let (mut scales, mut codes) = (vec![0; 2 * i8h::tokens(side, grid)], vec![0; values.len()]);
            Scalar.encode_i8h(side, grid, &values, &mut scales, &mut codes).unwrap();
            Scalar.decode_i8h(side, grid, &scales, &codes, &mut decoded).unwrap();
            assert_eq!(hex(&scales), golden["scales"], "i8h scales, {name} {side:?}");
            assert_eq!(sha(&codes), golden["codes"], "i8h codes, {name} {side:?}");
            assert_eq!(sha(decoded.as_bytes()), golden["decoded"], "i8h decoded, {name} {side:?}");
        }

        let mut codes = vec![0; values.len() / 2 * 3];
        let mut escapes = vec![0; values.len()];
        let window = match Scalar.encode_sx12(&values, &mut codes, &mut escapes) {
            Ok(window) => window,
            // The generator does not stop at 255 escapes.
            Err(_) => {
                assert!(number(&entry["sx12"]["window"][1]) > 255, "{name}");
                continue;
            }
        };
        assert_eq!(u64::from(window.top), number(&entry["sx12"]["window"][0]), "window, {name}");
        assert_eq!(u64::from(window.escapes), number(&entry["sx12"]["window"][1]), "escapes, {name}");
        assert_eq!(sha(&codes), entry["sx12"]["codes"], "sx12 codes, {name}");
        assert_eq!(sha(&escapes[..usize::from(window.escapes)]), entry["sx12"]["escapes"], "sx12 escapes, {name}");
    }
}
