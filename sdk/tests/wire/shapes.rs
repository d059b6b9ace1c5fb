//! What the wire says of memory and of blocks: extents, shapes and manifests, each within its bounds and in agreement with itself.

use cache_core::form::{Form, Opaque};
use cache_core::key::GroupId;
use cache_core::manifest::Manifest;
use cache_core::payload::BlockShape;
use cache_core::units::SlotIndex;
use kvtier_sdk::wire::*;

use crate::samples::sample;

fn extent() -> MapExtentReply {
    let (bytes, words_bytes, slots_offset) = (3 * 4096 + 10 * 8192, 4096, 2 * 4096);
    MapExtentReply { bytes, words_offset: 4096, words_bytes, slots_offset, first_slot: SlotIndex(100), slots: 10 }
}

#[test]
fn an_extent_tells_where_its_slots_are_and_of_no_others() {
    let place = |slot| extent().place(SlotIndex(slot), 8192).map(|place| (place.word_offset, place.image_offset));
    assert_eq!(place(100), Some((4096, 8192)));
    assert_eq!(place(109), Some((4096 + 72, 8192 + 9 * 8192)));
    assert_eq!([place(99), place(110), place(u32::MAX)], [None; 3]);
    assert_eq!(extent().place(SlotIndex(109), 8704), None, "the image would end behind the extent");
    assert_eq!(extent().place(SlotIndex(101), u64::MAX), None);
}

#[test]
fn extents_that_contradict_themselves_are_refused() {
    let mut body = Vec::new();
    extent().encode(&mut body);
    assert_eq!(MapExtentReply::decode(&body), Ok(extent()));
    type Change = fn(&mut MapExtentReply);
    let changes: [Change; 9] = [
        |reply| reply.bytes += 1,
        |reply| reply.bytes = 4096,
        |reply| reply.words_offset = 8,
        |reply| reply.words_offset = 8192,
        |reply| reply.words_bytes = 8192,
        |reply| reply.words_offset = u64::MAX - 4095,
        |reply| reply.slots_offset += 8,
        |reply| reply.slots = 513,
        |reply| reply.first_slot = SlotIndex(u32::MAX - 1),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut reply = extent();
        change(&mut reply);
        body.clear();
        reply.encode(&mut body);
        assert!(matches!(MapExtentReply::decode(&body), Err(WireError::Contradiction { .. })), "{index}");
    }
}

#[test]
fn shapes_are_bounded_before_anyone_computes_with_them() {
    let sound = BlockShape { layers: 30, kv_heads: 3, head_dim: 64, block_tokens: 64, form: Form::Raw16 };
    let decoded = |shape: BlockShape| {
        let mut body = Vec::new();
        shape.encode(&mut body);
        BlockShape::decode(&body)
    };
    for name in ["raw16", "raw32", "sx12", "i8h", "kc4vt4", "kc4vt4:k8=0-3+29:v8=0"] {
        let shape = sound.with_form(name.parse().unwrap());
        assert_eq!(decoded(shape), Ok(shape));
    }
    let whole = sound.with_form("kc4vt4:k8=all:v8=0-29".parse().unwrap());
    assert_eq!(decoded(whole), Ok(sound.with_form(Form::I8h)), "a map is taken as one of its model");
    let too_many = |field, found, most| Err(WireError::TooMany { field, found, most });
    assert_eq!(decoded(BlockShape { layers: 1025, ..sound }), too_many("shape.layers", 1025, 1024));
    assert_eq!(
        decoded(BlockShape { head_dim: u32::MAX, ..sound }),
        too_many("shape.head_dim", u64::from(u32::MAX), 1 << 14)
    );
    assert_eq!(decoded(BlockShape { kv_heads: 0, ..sound }), Err(WireError::Value { field: "shape.kv_heads" }));
    assert_eq!(
        decoded(BlockShape { layers: 29, ..sound.with_form("kc4vt4:k8=29".parse().unwrap()) }),
        Err(WireError::Value { field: "shape.form" })
    );
    let odd = BlockShape { head_dim: 60, form: Form::I8h, ..sound };
    assert!(matches!(decoded(odd), Err(WireError::Contradiction { .. })));
    let largest =
        BlockShape { layers: 1024, kv_heads: 1 << 12, head_dim: 1 << 14, block_tokens: 1 << 14, form: Form::Raw32 };
    assert!(matches!(decoded(largest), Err(WireError::TooMany { field: "shape", most: SLOT_BYTES_MAX, .. })));
}

#[test]
fn a_shape_that_is_not_the_manifests_is_refused() {
    let parts = sample();
    let Request::OpenNamespace(sound) = parts.requests().swap_remove(1) else { panic!("the second kind") };
    type Change = fn(&mut OpenNamespace);
    let changes: [Change; 6] = [
        |open| open.shape.layers = 3,
        |open| open.shape.kv_heads = 4,
        |open| open.shape.head_dim = 128,
        |open| open.shape.block_tokens = 32,
        |open| open.group = GroupId(1),
        |open| open.group = GroupId(5),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let (mut open, mut body) = (sound.clone(), Vec::new());
        change(&mut open);
        open.encode(&mut body);
        let refused = OpenNamespace::decode(&body).unwrap_err();
        let group = WireError::Value { field: "OpenNamespace.group" };
        assert!(matches!(refused, WireError::Contradiction { .. }) || refused == group, "{index}: {refused}");
    }
}

/// The layout of opaque bytes is part of the namespace: a manifest that does not name it, or another one, is no manifest of such blocks.
#[test]
fn an_opaque_form_is_named_by_its_manifest() {
    let parts = sample();
    let Request::OpenNamespace(sound) = parts.requests().swap_remove(1) else { panic!("the second kind") };
    let [form, other] = ["NHD", "HND"].map(|layout| Form::from(Opaque::new(4097, Opaque::digest(layout)).unwrap()));
    let longer = Form::from(Opaque::new(4098, Opaque::digest("NHD")).unwrap());
    let opened = |dtype: String, form: Form| {
        let mut open = sound.clone();
        (open.manifest.dtype, open.shape.form) = (dtype, form);
        // Heads of any size, since they say nothing of the bytes.
        (open.manifest.groups[0].head_dim, open.shape.head_dim) = (57, 57);
        let mut body = Vec::new();
        open.encode(&mut body);
        OpenNamespace::decode(&body).map(|found| assert_eq!(found, *open))
    };
    assert_eq!(opened(form.name(), form), Ok(()));
    assert_eq!(opened("bf16".to_owned(), Form::Raw16), Ok(()));
    for (dtype, form) in [
        ("bf16".to_owned(), form),
        (other.name(), form),
        (longer.name(), form),
        (form.name(), Form::Raw16),
        ("opaque:4097".to_owned(), Form::Raw16),
    ] {
        let refused = opened(dtype.clone(), form);
        assert!(matches!(refused, Err(WireError::Contradiction { .. })), "{dtype} and {form}: {refused:?}");
    }
    let huge = Form::from(Opaque::new(Opaque::LAYER_BYTES_MAX, [0; 32]).unwrap());
    assert!(matches!(opened(huge.name(), huge), Err(WireError::TooMany { field: "shape", .. })));
}

#[test]
fn manifests_end_at_their_limits() {
    let sound = sample().manifest;
    let decoded = |change: &dyn Fn(&mut Manifest)| {
        let (mut manifest, mut body) = (sound.clone(), Vec::new());
        change(&mut manifest);
        manifest.encode(&mut body);
        Manifest::decode(&body).map(|decoded| assert_eq!(decoded, manifest))
    };
    assert_eq!(decoded(&|_| {}), Ok(()));
    assert_eq!(decoded(&|manifest| manifest.adapter = "x".repeat(1024)), Ok(()));
    let too_many = |field, found, most| Err(WireError::TooMany { field, found, most });
    assert_eq!(decoded(&|manifest| manifest.adapter = "x".repeat(1025)), too_many("manifest.adapter", 1025, 1024));
    assert_eq!(decoded(&|manifest| manifest.groups[0].layers = vec![1; 1024]), Ok(()));
    assert_eq!(decoded(&|manifest| manifest.groups[0].layers = vec![1; 1025]), too_many("manifest.layers", 4100, 4096));
    let groups = |count| vec![sound.groups[0].clone(); count];
    assert_eq!(decoded(&|manifest| manifest.groups = groups(64)), Ok(()));
    assert_eq!(decoded(&|manifest| manifest.groups = groups(65)), too_many("manifest.groups", 65, 64));
}
