//! Who finds whose blocks: tenants, models, and what is deleted.

mod rig;

use cache_core::hash::WeightsId;
use cache_core::manifest::{GroupKind, LayerGroup, Manifest};
use cache_core::miss::MissReason;
use kvtier_daemon::config::Config;
use rig::raw::Raw;
use rig::*;

#[test]
fn what_one_salt_stores_it_always_finds_and_another_never() {
    let looked = isolation::paired(8 << 10);
    assert!(looked.own >= 24 << 10 && looked.foreign >= 24 << 10, "{looked:?}");
}

type Change = (&'static str, fn(&mut Manifest));

/// Every field of a manifest, its parts too.
const CHANGES: [Change; 20] = [
    ("weights", |m| m.weights = WeightsId([8; 32])),
    ("architecture", |m| m.architecture.push('x')),
    ("dtype", |m| m.dtype.push('x')),
    ("block_tokens", |m| m.block_tokens = 32),
    ("groups", |m| m.groups[0].kind = GroupKind::Window { tokens: 512 }),
    ("groups", |m| m.groups[0].kind = GroupKind::Recurrent { snapshot_bytes: 512 }),
    ("groups", |m| m.groups[0].kind = GroupKind::Latent { width: 16 }),
    ("groups", |m| m.groups[0].kind = GroupKind::Side { name: "indexer".to_owned() }),
    ("groups", |m| m.groups[0].layers = vec![0, 2]),
    ("groups", |m| m.groups[0].kv_heads = 2),
    ("groups", |m| m.groups[0].head_dim = 32),
    ("groups", |m| m.groups.push(LayerGroup { layers: vec![2], ..m.groups[0].clone() })),
    ("head_slice", |m| m.head_slice.tensor_parallel = (0, 2)),
    ("head_slice", |m| m.head_slice.pipeline = (0, 2)),
    ("rope", |m| m.rope.dimensions = 8),
    ("rope", |m| m.rope.base_bits += 1),
    ("rope", |m| m.rope.scaling.push_str("yarn")),
    ("adapter", |m| m.adapter.push_str("lora")),
    ("numerics", |m| m.numerics.push('x')),
    // The rank alone, beside the size.
    ("head_slice", |m| m.head_slice.tensor_parallel = (1, 1)),
];

/// The names cover the manifest: a new field has to come in here.
#[test]
fn every_field_of_a_manifest_is_changed() {
    let Manifest {
        weights: _,
        architecture: _,
        dtype: _,
        block_tokens: _,
        groups: _,
        head_slice: _,
        rope: _,
        adapter: _,
        numerics: _,
    } = manifest();
    let mut names: Vec<&str> = CHANGES.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 9, "{names:?}");
    for (name, change) in CHANGES {
        let mut changed = manifest();
        change(&mut changed);
        assert_eq!(manifest().differing(&changed), [name]);
    }
}

fn each_field_is_named(daemon: &Daemon) {
    let (mut raw, ..) = Raw::open(&daemon.socket);
    let own = raw.open_namespace(&manifest(), tenant("a"));
    let hashes: Vec<_> = links(own.namespace, 2).iter().map(|link| link.hash).collect();
    assert_eq!(raw.acquire_as("own", own, &hashes), (2, None));
    for (number, (name, change)) in CHANGES.into_iter().enumerate() {
        let mut changed = manifest();
        change(&mut changed);
        let parts = raw.open_namespace(&changed, tenant("a"));
        // What the engine would ask for, and the very hashes that are there.
        let named: Vec<_> = links(parts.namespace, 2).iter().map(|link| link.hash).collect();
        for (place, hashes) in [named, hashes.clone()].into_iter().enumerate() {
            let what = format!("{name} {number} {place}");
            assert_eq!(raw.acquire_as(&what, parts, &hashes), (0, Some(MissReason::Namespace)), "{what}");
            let told = raw.explain(parts, hashes[0]);
            assert_eq!((&told["reason"], &told["field"]), (&"namespace".into(), &name.into()), "{what}");
            let told = daemon.get(&format!("/explain?request={}", what.replace(' ', "%20")));
            let block = &told["blocks"][0];
            assert_eq!((&block["position"], &block["reason"]), (&0.into(), &"namespace".into()), "{what}: {told}");
            assert_eq!(block["field"], name, "{what}: {told}");
        }
        // Another tenant's miss tells nothing of what this one has.
        let other = raw.open_namespace(&changed, tenant("b"));
        let hashes: Vec<_> = links(other.namespace, 1).iter().map(|link| link.hash).collect();
        assert_eq!(raw.acquire_as("", other, &hashes), (0, Some(MissReason::NeverStored)), "{name}");
        assert_eq!(raw.explain(other, hashes[0])["field"], serde_json::Value::Null);
    }
}

#[test]
fn each_field_of_the_manifest_alone_is_a_miss_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |config: &mut Config| {
        with_disk(folder.path(), config);
        // Each shape is a class with an index of its own.
        config.host_mem_bytes = 256 << 20;
    };
    let daemon = start(folder.path(), settings);
    let client = daemon.client();
    let own = client.name(&manifest(), tenant("a"));
    put_all(&client, own, &links(own, 2));
    each_field_is_named(&daemon);
    daemon.settles("writes", |stats| stats["tiers"]["disk"]["blocks"] == 2);
    drop(client);
    daemon.end();
    let daemon = start(folder.path(), settings);
    daemon.settles("recovery", |stats| stats["state"] == "ready");
    each_field_is_named(&daemon);
    daemon.end();
}
