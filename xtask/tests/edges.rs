//! The workspace's import edges are the drawn ones: a new edge is a decision, not an accident.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

const TIERS: [&str; 4] = ["gpu-tier", "host-tier", "disk-tier", "remote-tier"];

/// What `package` may import of the workspace, in any kind of dependency; `None` for an unknown package.
///
/// ```text
/// cache-core <- tiers (never each other) <- sdk <- daemon, engine <- cli
///                                           sdk <- sdk/c, sdk/python
///                                        daemon <- sdk/python
///                                gpu-tier <- engine
///                    host-tier, disk-tier <- daemon
/// ```
/// `cache-core` is the vocabulary and may be named by everything above it but the cli. `tests` may import anything,
/// `xtask` nothing.
fn drawn(package: &str) -> Option<Vec<&'static str>> {
    Some(match package {
        // The ladder executes anybody's PTX and knows nothing of the project.
        "cache-core" | "cuda-ladder" | "xtask" => vec![],
        // Runs the kernels' sources; its tests also run their PTX.
        "cuda-shim" => vec!["cache-core", "cuda-ladder", "gpu-tier"],
        // The double stands in for a foreign library: it runs kernels on the ladder, and nothing links it.
        "cuda-driver-double" => vec!["cuda-ladder"],
        // Its kernels are tested on the ladder.
        "gpu-tier" => vec!["cache-core", "cuda-ladder"],
        tier if TIERS.contains(&tier) => vec!["cache-core"],
        "kvtier-sdk" => [&["cache-core"][..], &TIERS].concat(),
        "kvtier-engine" => vec!["cache-core", "gpu-tier", "kvtier-sdk"],
        "kvtier-daemon" => vec!["cache-core", "host-tier", "disk-tier", "kvtier-sdk"],
        "kvtier" => vec!["kvtier-sdk", "kvtier-engine", "kvtier-daemon"],
        // Engines of other languages. Python can be a daemon as well; C has one in its tests alone.
        "kvtier-c" => vec!["cache-core", "kvtier-sdk", "kvtier-daemon"],
        "kvtier-python" => vec!["cache-core", "kvtier-sdk", "kvtier-daemon"],
        "kvtier-tests" => {
            [&["cache-core", "kvtier-sdk", "kvtier-engine", "kvtier-daemon", "kvtier"][..], &TIERS].concat()
        }
        _ => return None,
    })
}

/// One message per edge of `metadata` that isn't drawn, and per package that isn't known.
fn undrawn(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let members: Vec<_> = packages.iter().map(name).collect();
    let mut found = Vec::new();
    for package in packages {
        let from = name(package);
        let Some(allowed) = drawn(&from) else {
            found.push(format!("package {from} is not in the picture"));
            continue;
        };
        // A dependency of a package on itself (dev, to switch on a feature for its tests) is no edge.
        for to in package["dependencies"].as_array().unwrap().iter().map(name) {
            if members.contains(&to) && to != from && !allowed.contains(&to.as_str()) {
                found.push(format!("{from} -> {to}"));
            }
        }
    }
    found
}

fn metadata() -> Value {
    // At run time, since checkouts may share a target folder; in the root, since in a member's folder that member alone
    // is the default.
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
    let root = Path::new(&xtask).parent().unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_edge_is_drawn() {
    assert_eq!(undrawn(&metadata()), Vec::<String>::new());
}

#[test]
fn plain_cargo_commands_mean_the_cli() {
    let metadata = metadata();
    let members = metadata["workspace_default_members"].as_array().unwrap();
    assert_eq!(members.len(), 1, "{members:?}");
    let cli = metadata["packages"].as_array().unwrap().iter().find(|package| package["name"] == "kvtier").unwrap();
    assert_eq!(members[0], cli["id"]);
    assert!(cli["manifest_path"].as_str().unwrap().ends_with("/cli/Cargo.toml"));
}

#[test]
fn an_undrawn_edge_is_found() {
    let package = |name: &str, imports: &[&str]| {
        let imports: Vec<_> = imports.iter().map(|import| serde_json::json!({"name": import})).collect();
        serde_json::json!({"name": name, "dependencies": imports})
    };
    let metadata = serde_json::json!({"packages": [
        package("cache-core", &["sha2", "cache-core"]),
        package("gpu-tier", &["cache-core"]),
        package("host-tier", &["cache-core", "gpu-tier"]),
        package("kvtier-engine", &["host-tier", "kvtier-sdk"]),
        package("stranger", &[]),
        package("xtask", &["clap"]),
    ]});
    let expected = ["host-tier -> gpu-tier", "kvtier-engine -> host-tier", "package stranger is not in the picture"];
    assert_eq!(undrawn(&metadata), expected);
}
