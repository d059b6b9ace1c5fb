//! `cargo xtask soak NAME` and `cargo xtask bars NAME`: finds the target by its name and runs it in release.

use std::process::Stdio;

use serde_json::Value;

use crate::{daemon, forms, llama, stage, vllm};

/// A cargo target whose name starts with the wanted prefix.
struct Target {
    package: String,
    /// Whole name, prefix included.
    name: String,
}

/// Packages whose tests run at full scale (`KVTIER_SOAK=1`) as a part of a soak: name of the soak, package, test target or all of them.
const SCALED: [(&str, &str, Option<&str>); 5] = [
    ("disk", "disk-tier", None),
    ("disk", "kvtier-sdk", Some("embedded_disk")),
    ("fuzz", "kvtier-sdk", Some("wire_fuzz")),
    ("fuzz", "kvtier-engine", Some("gguf_damage")),
    ("fuzz", "kvtier-tests", Some("fuzz")),
];
/// Seconds that each fuzzed parser gets in a soak, and what they are without it.
const FUZZ_SECONDS: (&str, u64) = ("KVTIER_FUZZ_SECONDS", 600);

/// Runs the ignored tests of every test target `soak_<name>`, output shown as it comes, and what is [`SCALED`] with it: one at a time, but as many
/// parsers at once as there are cores (or `RUST_TEST_THREADS`).
pub fn soak(name: Option<&str>, rest: &[String]) -> Result<(), String> {
    for target in find("soak", "test", name)? {
        let mut command = stage::cargo();
        command.args(["test", "--release", "-p", &target.package, "--test", &target.name, "--"]);
        command.args(["--ignored", "--nocapture", "--test-threads=1"]).args(rest);
        stage::run(&format!("{} ({})", target.name, target.package), &mut command)?;
    }
    for (_, package, target) in SCALED.iter().filter(|(soak, ..)| Some(*soak) == name) {
        let mut command = stage::cargo();
        command.args(["test", "--release", "-p", package]).env("KVTIER_SOAK", "1");
        let is_fuzz = name == Some("fuzz");
        if is_fuzz {
            command.env("BOLERO_RANDOM_TEST_TIME_MS", (1000 * fuzz_seconds()?).to_string());
            command.env("BOLERO_RANDOM_ITERATIONS", u64::MAX.to_string());
        }
        match target {
            Some(target) => command.args(["--test", target]),
            None => command.arg("--tests"),
        };
        command.args(["--", "--nocapture"]).args((!is_fuzz).then_some("--test-threads=1")).args(rest);
        stage::run(&format!("{} at full scale ({package})", target.unwrap_or("tests")), &mut command)?;
    }
    Ok(())
}

/// Errors: what is set is no number of seconds. What bolero cannot read it leaves out, and then never ends.
fn fuzz_seconds() -> Result<u64, String> {
    let (name, default) = FUZZ_SECONDS;
    std::env::var_os(name).map_or(Ok(default), |text| {
        let seconds = text.to_str().and_then(|text| text.parse().ok()).filter(|seconds| (1..=86_400).contains(seconds));
        seconds.ok_or_else(|| format!("{name} is {text:?}, not a number of seconds from 1 to 86400"))
    })
}

/// Bars that are part of xtask itself: they run `kvtier` and its peers.
const OWN_BARS: [(&str, Bars); 4] =
    [("daemon", daemon::run), ("forms", forms::run), ("llama", llama::run), ("vllm", vllm::bars)];

type Bars = fn(&[String]) -> Result<(), String>;

/// Runs the program `bars_<name>`, or one of [`OWN_BARS`].
pub fn bars(name: Option<&str>, rest: &[String]) -> Result<(), String> {
    if let Some((_, run)) = OWN_BARS.iter().find(|(own, _)| Some(*own) == name) {
        return run(rest);
    }
    for target in find("bars", "bin", name)? {
        let mut command = stage::cargo();
        command.args(["run", "--release", "-p", &target.package, "--bin", &target.name, "--"]).args(rest);
        stage::run(&format!("{} ({})", target.name, target.package), &mut command)?;
    }
    Ok(())
}

/// The targets `<prefix>_<name>` of `kind` in the workspace, none for what is [`SCALED`] or one of [`OWN_BARS`] alone. Without a name, or with an unknown one, an error that
/// lists the names there are.
fn find(prefix: &str, kind: &str, name: Option<&str>) -> Result<Vec<Target>, String> {
    let all = matching(&metadata()?, prefix, kind);
    let mut names: Vec<_> = all.iter().map(|target| target.name[prefix.len() + 1..].to_owned()).collect();
    match prefix {
        "bars" => names.extend(OWN_BARS.map(|(own, _)| own.to_owned())),
        _ => names.extend(SCALED.map(|(soak, ..)| soak.to_owned())),
    }
    names.sort();
    names.dedup();
    let listed = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    match name {
        None => Err(format!("which {prefix}? there are: {listed}")),
        Some(name) if !names.iter().any(|known| known == name) => {
            Err(format!("no {prefix} is called {name}; there are: {listed}"))
        }
        Some(name) => Ok(all.into_iter().filter(|target| target.name[prefix.len() + 1..] == *name).collect()),
    }
}

/// What `cargo metadata` says about the workspace's own packages.
fn metadata() -> Result<Value, String> {
    let mut command = stage::cargo();
    command.args(["metadata", "--format-version", "1", "--no-deps"]).stderr(Stdio::inherit());
    let output = command.output().map_err(|error| format!("cargo metadata: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", output.status));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata: {error}"))
}

fn matching(metadata: &Value, prefix: &str, kind: &str) -> Vec<Target> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for package in list(&metadata["packages"]) {
        for target in list(&package["targets"]) {
            let name = text(&target["name"]);
            let right = name.strip_prefix(prefix).is_some_and(|rest| rest.len() > 1 && rest.starts_with('_'));
            if right && list(&target["kind"]).iter().any(|found| found == kind) {
                found.push(Target { package: text(&package["name"]), name });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_targets_by_prefix_and_kind() {
        let metadata = serde_json::json!({"packages": [{"name": "p", "targets": [
            {"name": "soak_engine", "kind": ["test"]},
            {"name": "soak_bin", "kind": ["bin"]},
            {"name": "soaked", "kind": ["test"]},
            {"name": "edges", "kind": ["test"]},
        ]}]});
        let found = matching(&metadata, "soak", "test");
        assert_eq!(
            found.iter().map(|t| (t.package.as_str(), t.name.as_str())).collect::<Vec<_>>(),
            [("p", "soak_engine")]
        );
    }

    #[test]
    fn an_unknown_name_is_refused_with_a_list() {
        let error = soak(Some("no-such-soak"), &[]).unwrap_err();
        assert!(error.starts_with("no soak is called no-such-soak; there are: "), "{error}");
    }
}
