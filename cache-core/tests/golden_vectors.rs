//! Block identity against golden vectors that `golden_vectors.py` computed with hashlib alone.

use cache_core::chain::Chain;
use cache_core::hash::{Namespace, TenantId, WeightsId};
use cache_core::manifest::{GroupKind, HeadSlice, LayerGroup, Manifest, RopeIdentity};
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden_vectors.json")).expect("the file is JSON")
}

fn bytes(hex: &Value) -> [u8; 32] {
    let hex = text(hex);
    assert_eq!(hex.len(), 64);
    std::array::from_fn(|index| u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).expect("hex digits"))
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn number(value: &Value) -> u32 {
    value.as_u64().and_then(|number| u32::try_from(number).ok()).expect("a u32")
}

fn numbers(value: &Value) -> Vec<u32> {
    list(value).iter().map(number).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn group(value: &Value) -> LayerGroup {
    let kind = match text(&value["kind"]) {
        "full" => GroupKind::Full,
        "window" => GroupKind::Window { tokens: number(&value["tokens"]) },
        "recurrent" => GroupKind::Recurrent { snapshot_bytes: value["snapshot_bytes"].as_u64().expect("a u64") },
        "latent" => GroupKind::Latent { width: number(&value["width"]) },
        "side" => GroupKind::Side { name: text(&value["name"]).to_owned() },
        other => panic!("no group kind {other}"),
    };
    LayerGroup {
        kind,
        layers: numbers(&value["layers"]),
        kv_heads: number(&value["kv_heads"]),
        head_dim: number(&value["head_dim"]),
    }
}

fn manifest(value: &Value) -> Manifest {
    let pair = |name: &str| (number(&value[name][0]), number(&value[name][1]));
    let rope = &value["rope"];
    Manifest {
        weights: WeightsId(bytes(&value["weights"])),
        architecture: text(&value["architecture"]).to_owned(),
        dtype: text(&value["dtype"]).to_owned(),
        block_tokens: number(&value["block_tokens"]),
        groups: list(&value["groups"]).iter().map(group).collect(),
        head_slice: HeadSlice { tensor_parallel: pair("tensor_parallel"), pipeline: pair("pipeline") },
        rope: RopeIdentity {
            dimensions: number(&rope["dimensions"]),
            base_bits: (rope["base"].as_f64().expect("a number") as f32).to_bits(),
            scaling: text(&rope["scaling"]).to_owned(),
        },
        adapter: text(&value["adapter"]).to_owned(),
        numerics: text(&value["numerics"]).to_owned(),
    }
}

#[test]
fn tenants_and_weights() {
    let golden = golden();
    for vector in list(&golden["tenants"]) {
        assert_eq!(TenantId::of_salt(vector["salt"].as_str()).to_string(), text(&vector["tenant"]));
    }
    for vector in list(&golden["weights"]) {
        let files: Vec<[u8; 32]> = list(&vector["files"]).iter().map(bytes).collect();
        assert_eq!(WeightsId::of_files(&files).to_string(), text(&vector["weights"]));
    }
    assert_eq!((list(&golden["tenants"]).len(), list(&golden["weights"]).len()), (4, 3));
}

#[test]
fn namespaces() {
    let golden = golden();
    for vector in list(&golden["manifests"]) {
        let tenant = TenantId::of_salt(vector["salt"].as_str());
        assert_eq!(manifest(&vector["manifest"]).namespace(tenant).to_string(), text(&vector["namespace"]));
    }
    assert_eq!(list(&golden["manifests"]).len(), 4);
}

#[test]
fn chains() {
    let golden = golden();
    for vector in list(&golden["chains"]) {
        let namespace = Namespace(bytes(&vector["namespace"]));
        let chain = Chain::over(namespace, number(&vector["block_tokens"]), &numbers(&vector["tokens"]));
        let hashes: Vec<String> = chain.links().iter().map(|link| link.hash.to_string()).collect();
        assert_eq!(hashes, list(&vector["hashes"]).iter().map(text).collect::<Vec<_>>());
        assert!(!hashes.is_empty());
    }
    assert_eq!(list(&golden["chains"]).len(), 3);
}
