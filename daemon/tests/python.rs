//! The client in Python, made from `docs/protocol.md` with nothing but its standard library, against a real daemon: each side reads what the other
//! wrote.

mod rig;

use std::path::Path;
use std::process::Command;

use cache_core::header::verify_image;
use kvtier_sdk::wire::Body;
use rig::*;
use serde_json::Value;

/// Lines that the client may have, empty ones not counted.
const LINES_MAX: usize = 150;

#[test]
fn a_client_of_150_lines_speaks_the_whole_protocol() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join("python");
    let text = std::fs::read_to_string(python.join("kvtier_client.py")).unwrap();
    let lines = text.lines().filter(|line| !line.trim().is_empty()).count();
    assert!(lines <= LINES_MAX, "{lines} lines");

    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |config| with_disk(folder.path(), config));
    let client = daemon.client();
    let namespace = client.name(&manifest(), tenant("python"));
    let links = links(namespace, 12);
    put_all(&client, namespace, &links[..4]);
    let mut bytes = Vec::new();
    manifest().encode(&mut bytes);
    let hex = cache_core::hex::Hex(&bytes).to_string();
    let output = Command::new("python3")
        .arg("-B")
        .arg(python.join("scenario.py"))
        .arg(&daemon.socket)
        .args([&hex, "python", "4"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["last"], links[11].hash.to_string(), "the same chain on both sides");
    // What Python wrote, byte for byte as it is written here.
    assert_eq!(check_run(&client, namespace, &links), (12, None));
    let (lent, _) = client.acquire(&wanted(namespace, &links[11..]), cache_core::form::Accept::Exact).unwrap();
    let image = read(&lent[0], SHAPE).unwrap();
    verify_image(&SHAPE, &key(SHAPE, namespace, cache_core::form::Provenance::EXACT, &links[11]), &image).unwrap();
    // And what it saw of the figures is what they are.
    let seen = &told["stats"];
    assert!(seen["clients"]["connected"].as_array().unwrap().iter().any(|client| client["pid"] == told["pid"]));
    assert_eq!(seen["protocol_errors"]["unknown_lease"], 12);
    assert_eq!(seen["protocol_errors"]["unknown_reservation"], 2);
    assert_eq!((&seen["stores"]["refused"]["failed_check"], &seen["copied_bytes"]), (&1.into(), &0.into()));
    drop(lent);
    // The lease is given back with the next call.
    client.lookup(&wanted(namespace, &links), cache_core::form::Accept::Exact).unwrap();
    daemon.settles("hanging up", |stats| stats["clients"]["count"] == 1 && stats["leases"]["count"] == 0);
    daemon.end();
}
