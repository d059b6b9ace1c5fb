//! What engines and people state: names of forms, and identities with the layout of an engine's blocks.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use bolero::{check, produce};
use cache_core::form::Form;
use cache_core::manifest::{HeadSlice, Manifest};
use cache_core::payload::BlockShape;
use kvtier_sdk::plugin::{Identity, Lossy, RopeStated, Strides};
use kvtier_sdk::wire::Body;

use crate::{Outcomes, bytes};

/// A form that was read has one name, which is read as it; so has what it is in a model.
#[test]
fn names_of_forms() {
    let digits = "0123456789abcdef".repeat(4);
    let words = [
        "raw16",
        "raw32",
        "sx12",
        "i8h",
        "kc4vt4",
        "opaque",
        ":",
        ":",
        "k8=",
        "v8=",
        "=",
        "all",
        "-",
        "+",
        "0",
        "1",
        "007",
        "29",
        "63",
        "64",
        "127",
        "128",
        "2147483647",
        "2147483648",
        "4294967296",
        " ",
        &digits,
        &digits[1..],
    ];
    let generator = (produce::<Vec<u8>>().with().len(0..=10usize), bytes(8), 1..=200u32);
    let outcomes = Outcomes::default();
    check!().with_iterations(100_000).with_generator(generator).for_each(|(picks, odd, layers)| {
        let mut text = String::new();
        for pick in picks {
            match words.get(usize::from(pick % 32)) {
                Some(word) => text.push_str(word),
                None => text.push_str(&String::from_utf8_lossy(odd)),
            }
        }
        // Arbitrary words are seldom a form.
        for text in [&text, &format!("kc4vt4:k8={text}"), &format!("opaque:1024:{text}")] {
            let Some(form) = outcomes.note(text.parse::<Form>()) else { continue };
            assert_eq!(form.name().parse(), Ok(form), "{text}");
            let Ok(own) = form.in_model(*layers) else { continue };
            assert_eq!(own.name().parse(), Ok(own), "{text}");
            assert_eq!(own.in_model(*layers), Ok(own), "{text}");
        }
    });
    outcomes.expect_both();
}

/// An identity is refused, or has a manifest and a shape that a daemon reads as they are.
#[test]
fn identities() {
    let number = || (produce::<u32>(), 0..=31u8);
    let side = || [number(), number(), number(), number()];
    let numbers = [number(), number(), number(), number(), number(), number(), number()];
    let texts = [bytes(30), bytes(30), bytes(30), bytes(30)];
    let generator = (numbers, side(), side(), texts, 0..=127u8);
    let (outcomes, lossy_ones) = (Outcomes::default(), AtomicU64::new(0));
    check!().with_iterations(100_000).with_generator(generator).for_each(|(numbers, keys, values, texts, way)| {
        let small = |(number, shift): (u32, u8)| number >> shift;
        let [block_tokens, layers, kv_heads, head_dim, layer_bytes, tokens, rank] = numbers.map(small);
        let way = |bit: u8| way >> bit & 1 == 1;
        // A size that fits, blocks of the engine's that do, and the strides of a layout that is one, or whatever comes.
        let (kv_heads, head_dim) =
            if way(0) { (kv_heads % 4 + 1, 8 * (head_dim % 4 + 1)) } else { (kv_heads, head_dim) };
        let block_tokens = if way(0) { 8 * (block_tokens % 8 + 1) } else { block_tokens };
        let fitting =
            4u64.saturating_mul(kv_heads.into()).saturating_mul(head_dim.into()).saturating_mul(block_tokens.into());
        let layer_bytes = if way(1) { u32::try_from(fitting).unwrap_or(u32::MAX) } else { layer_bytes };
        let tokens = if way(2) { block_tokens } else { tokens };
        let strides = |side: &[(u32, u8); 4], half: u32| {
            let [first, heads, tokens_, channels] = side.map(small);
            let whole = Strides {
                first: half.wrapping_mul(tokens).wrapping_mul(kv_heads).wrapping_mul(head_dim),
                heads: head_dim,
                tokens: kv_heads.wrapping_mul(head_dim),
                channels: 1,
            };
            if way(3) { whole } else { Strides { first, heads, tokens: tokens_, channels } }
        };
        let form = [Form::I8h, Form::Kc4vt4, Form::Raw16, "kc4vt4:k8=0-1".parse().expect("a form")];
        let lossy = Lossy {
            form: form[texts[0].len() % form.len()],
            tokens,
            keys: strides(keys, 0),
            values: strides(values, 1),
        };
        let text = |at: usize| {
            let letters = |byte: &u8| char::from(if way(6) { b'!' + byte % 90 } else { *byte });
            texts[at].iter().map(letters).collect::<String>()
        };
        let identity = Identity {
            weights: [7; 32],
            architecture: text(0),
            dtype: if way(4) { "bf16".to_owned() } else { text(1) },
            block_tokens,
            layers,
            kv_heads,
            head_dim,
            ranks: HeadSlice { tensor_parallel: (rank, rank.wrapping_add(1)), ..HeadSlice::WHOLE },
            rope: RopeStated { dimensions: head_dim, base: f32::from_bits(layer_bytes), scaling: text(2) },
            adapter: text(3),
            numerics: text(1),
            layer_bytes,
            layout: text(2),
            lossy: way(5).then_some(lossy),
            salt: None,
        };
        let Some((manifest, shape)) = outcomes.note(identity.manifest()) else { return };
        lossy_ones.fetch_add(u64::from(way(5)), Relaxed);
        let (mut stated, mut sized) = (Vec::new(), Vec::new());
        manifest.encode(&mut stated);
        shape.encode(&mut sized);
        assert_eq!(Manifest::decode(&stated), Ok(manifest));
        assert_eq!(BlockShape::decode(&sized), Ok(shape));
    });
    outcomes.expect_both();
    assert!(lossy_ones.into_inner() > 0, "none in a lossy form");
}
