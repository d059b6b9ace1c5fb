//! `kvtier quality` as scripts see it.

use std::process::{Command, Output};

use serde_json::Value;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moby-dick.txt");

fn quality(args: &[&str]) -> Output {
    let command = ["quality", "--file", DOCUMENT].iter().chain(args);
    Command::new(env!("CARGO_BIN_EXE_kvtier")).args(command).output().expect("the binary runs")
}

#[test]
fn one_object_a_form_and_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("quality.html");
    let output = quality(&["--forms", "raw32,kc4vt4", "--tokens", "640", "--json", "--html", page.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect();
    assert_eq!(lines.iter().map(|line| line["form"].as_str().unwrap()).collect::<Vec<_>>(), ["raw32", "kc4vt4"]);
    assert_eq!(text.matches("\"form\"").count(), 2);
    for line in &lines {
        let numbers = [
            "bits_per_value",
            "kl_mean",
            "kl_median",
            "kl_p99",
            "kl_max",
            "top1",
            "ppl_ratio",
            "ppl_ratio_se",
            "floor_kl",
            "positions",
        ];
        assert!(numbers.iter().all(|field| line[field].is_number()), "{line}");
        assert_eq!(line["positions"], 319);
        assert_eq!(line["by_position"].as_array().unwrap().len(), 16);
        assert_eq!(line["greedy"]["prompts"], 1);
        assert_eq!(line["retrieval"], serde_json::json!([]));
    }
    let (floor, lossy) = (&lines[0], &lines[1]);
    assert_eq!((&floor["floor_kl"], &floor["right_after_hit"]), (&floor["kl_mean"], &Value::Null));
    assert_eq!((&lossy["floor_kl"], &lossy["bits_per_value"]), (&floor["kl_mean"], &serde_json::json!(4.5)));
    assert_eq!(lossy["first_difference"], 192);
    assert!(lossy["right_after_hit"]["found_tokens"].as_f64().unwrap() >= 64.0);
    assert!(lossy["kl_mean"].as_f64() > floor["kl_mean"].as_f64());

    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.matches("<svg").count() == 2 && page.matches("<table").count() == 3, "{}", page.len());
    assert!(page.contains("prefers-color-scheme:dark"));
    assert!(!page.replace("http://www.w3.org/2000/svg", "").contains("http"), "nothing is fetched");
    assert!(!page.contains("could not be drawn") && page.contains("kc4vt4"));
}

#[test]
fn what_cannot_be_measured_is_said_in_one_line() {
    let refused = |args: &[&str], word: &str| {
        let output = quality(args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{args:?}: {text}");
        assert!(text.contains(word) && output.stdout.is_empty(), "{args:?}: {text}");
    };
    refused(&["--forms", "q4_0"], "q4_0");
    refused(&["--forms", "i8h", "--form", "raw16"], "--forms");
    refused(&["--forms", "i8h", "--tokens", "9000"], "8192");
    refused(&["--forms", "i8h", "--chunks", "16"], "32768");
    refused(&["--forms", "i8h", "--html", "/nowhere/at/all.html"], "/nowhere/at/all.html");
}
