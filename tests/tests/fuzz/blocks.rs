//! What clients hand over: slot images, and blocks in stored forms.

use bolero::{check, produce};
use cache_core::buffer::Buffer;
use cache_core::chain::Link;
use cache_core::codec::Scalar;
use cache_core::codec::image::{decode_block, encode_block, layer};
use cache_core::contract::{Random, SHAPE};
use cache_core::form::{Form, FormMapId, Lineage};
use cache_core::hash::{BlockHash, Namespace};
use cache_core::header::{SlotHeader, encoded_bytes, seal_image, verify_image};
use cache_core::key::CopyKey;
use cache_core::sum::header_sum;
use gpu_tier::cpu::codec::Simd;

use crate::{Outcomes, bytes, edit, edits};

/// Slot images as clients hand them over: headers that lie under a right sum, and arbitrary bytes.
#[test]
fn slot_images() {
    let key = CopyKey::exact(Namespace([1; 32]), BlockHash([2; 32]));
    let mut sample = vec![5; SHAPE.slot_bytes() as usize];
    let link = Link { hash: key.hash, parent: None, depth: 0 };
    seal_image(&SHAPE, key, Lineage::of(FormMapId::RAW16), link, &mut sample);
    let header_bytes = encoded_bytes(SHAPE.section_count()) as usize;
    let generator = (edits(), produce::<Option<u16>>(), produce::<bool>(), bytes(300), produce::<u16>());
    check!().with_iterations(10_000).with_generator(generator).for_each(|(edits, cut, is_sealed, odd, count)| {
        let mut image = edit(&sample, &edits.iter().map(|(at, byte)| (at % 400, *byte)).collect::<Vec<_>>(), None);
        if *is_sealed {
            let sum = header_sum(&image[..header_bytes - 8]);
            image[header_bytes - 8..header_bytes].copy_from_slice(&sum.to_le_bytes());
        }
        let is_same = image == sample;
        let verified = verify_image(&SHAPE, &key, &image);
        assert!(!is_same || verified.is_ok());
        if let Ok(header) = verified {
            assert!(header.key == key && header.sections.len() == SHAPE.section_count() as usize);
            let payload = SHAPE.header_bytes() as usize;
            assert!(image[payload..] == sample[payload..], "other values under the same sums");
        }
        for bytes in [&odd[..], &edit(&sample, edits, *cut)] {
            for count in [SHAPE.section_count(), u32::from(*count)] {
                if let Ok(header) = SlotHeader::decode(bytes, count) {
                    let _ = (header.expect_key(&key), header.expect_shape(&SHAPE), header.expect_layout());
                    assert_eq!(header.layout().count(), header.sections.len());
                }
            }
        }
    });
}

/// Arbitrary bytes as blocks in stored forms: the same values, or the same damage, from every implementation on this machine.
#[test]
fn stored_blocks() {
    let outcomes = Outcomes::default();
    let forms = [Form::Sx12, Form::I8h, Form::Kc4vt4, "kc4vt4:k8=0:v8=1-2".parse().expect("a form")];
    let generator = (produce::<u8>(), produce::<u64>(), edits(), produce::<bool>());
    check!().with_iterations(10_000).with_generator(generator).for_each(|(which, seed, edits, is_sound)| {
        let shape = SHAPE.with_form(forms[usize::from(*which) % forms.len()]);
        let raw = SHAPE.with_form(Form::Raw16);
        let mut random = Random::new(*seed);
        let mut image = Buffer::zeroed(shape.slot_bytes() as usize);
        let mut values = [0; 2].map(|_| Buffer::zeroed(raw.slot_bytes() as usize));
        image.as_mut_slice().fill_with(|| random.next() as u8);
        if *is_sound {
            // Numbers between 2^-7 and 2: every form takes them.
            let pairs = values[0].as_mut_slice().chunks_exact_mut(2);
            pairs.for_each(|pair| pair.copy_from_slice(&[random.next() as u8, 0x3c + random.below(4) as u8]));
            let encoded = encode_block(&Scalar, &shape, values[0].as_slice(), image.as_mut_slice());
            assert_eq!(encoded, Ok(()));
        }
        let payload = shape.header_bytes() as usize;
        let spoilt = edit(&image.as_slice()[payload..], edits, None);
        image.as_mut_slice()[payload..].copy_from_slice(&spoilt);
        let [ours, scalar] = &mut values;
        let found = decode_block(&Simd::detect(), &shape, image.as_slice(), ours.as_mut_slice());
        assert_eq!(found, decode_block(&Scalar, &shape, image.as_slice(), scalar.as_mut_slice()));
        assert!(!*is_sound || !edits.is_empty() || found.is_ok());
        if outcomes.note(found).is_some() {
            let values_of = |image, index| layer(&raw, image, index).codes;
            let is_equal = |index| values_of(ours.as_slice(), index) == values_of(scalar.as_slice(), index);
            assert!((0..raw.layers).all(is_equal), "other values");
        }
    });
    outcomes.expect_both();
}
