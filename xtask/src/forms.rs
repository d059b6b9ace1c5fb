//! `cargo xtask bars forms`: what each stored form costs beside a plain copy, and attention over it beside exact attention, as a table.

use std::process::Command;

use serde_json::Value;

use crate::measure::{is_busy, load, number, processor, read};
use crate::stage;

/// Fields of `kvtier bench forms --json` and the least that each form's must be.
const BARS: [(&str, &[(&str, f64)]); 3] = [
    ("sx12", &[("encode_vs_memcpy", 0.3), ("decode_vs_memcpy", 0.5)]),
    ("i8h", &[("encode_vs_memcpy", 0.5), ("decode_vs_memcpy", 0.5)]),
    ("kc4vt4", &[("encode_vs_memcpy", 0.3), ("decode_vs_memcpy", 0.5), ("attention_vs_exact", 1.3)]),
];

/// Measures, prints a table, and fails when a figure is under its bar.
pub fn run(rest: &[String]) -> Result<(), String> {
    stage::run("build kvtier", stage::cargo().args(["build", "--release", "-p", "kvtier"]))?;
    let busy = is_busy();
    println!("{}\nLoad at the start: {}", processor(), load());
    let kvtier = stage::target().join("release").join("kvtier");
    let lines = read(Command::new(kvtier).args(["bench", "forms", "--json", "--rounds", "21"]).args(rest))?;
    println!(
        "\n| form | ratio | encode, 64 MiB | decode, 64 MiB | encode, 1 MiB | decode, 1 MiB | attention / exact |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut missed = Vec::new();
    for line in lines.lines() {
        let row: Value = serde_json::from_str(line).map_err(|error| format!("kvtier's JSON: {error}"))?;
        let form = row["form"].as_str().ok_or("a line without form")?;
        println!("{}", cells(form, &row)?);
        if row["lz4"].is_object() {
            println!("{}", cells("lz4", &row["lz4"])?);
        }
        for (field, least) in BARS.iter().filter(|(name, _)| *name == form).flat_map(|(_, bars)| *bars) {
            let found = number(&row, field)?;
            if found < *least {
                missed.push(format!("{form}: {field} {found:.2} is under {least}"));
            }
        }
    }
    println!(
        "\nOne thread, made-up keys and values; speeds of raw16 over a copy of the same buffer. Load at the end: {}",
        load()
    );
    if busy {
        println!("The machine was NOT QUIET at the start: figures not to be published.");
    }
    if missed.is_empty() { Ok(()) } else { Err(missed.join("; ")) }
}

fn cells(name: &str, row: &Value) -> Result<String, String> {
    let range = |field: &str| {
        let [low, high] = [0, 1].map(|end| row[format!("{field}_range")][end].as_f64().unwrap_or(f64::NAN));
        Ok::<String, String>(format!("{:.2} ({low:.2} to {high:.2})", number(row, field)?))
    };
    let attention = row["attention_vs_exact"].as_f64().map_or("-".to_owned(), |times| format!("{times:.2}x"));
    Ok(format!(
        "| `{name}` | {:.2} | {} | {} | {:.2} | {:.2} | {attention} |",
        number(row, "ratio")?,
        range("encode_vs_memcpy")?,
        range("decode_vs_memcpy")?,
        number(row, "encode_vs_memcpy_1mib")?,
        number(row, "decode_vs_memcpy_1mib")?
    ))
}
