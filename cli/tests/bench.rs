//! `kvtier bench forms`, `decode`, `daemon` and `cuda`: what scripts read, and that the decoded tokens are those of `kvtier run`.

#[path = "../../gpu-tier/tests/cuda_double/library.rs"]
mod double;

use std::process::{Command, Output};

use serde_json::Value;

const TEXT: &str = include_str!("../assets/moby-dick.txt");

fn kvtier(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvtier")).args(args).output().expect("the binary runs")
}

/// Lines of stdout.
fn lines(args: &[&str]) -> Vec<String> {
    let output = kvtier(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").lines().map(str::to_owned).collect()
}

fn objects(args: &[&str]) -> Vec<Value> {
    lines(args).iter().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

fn number(object: &Value, field: &str) -> f64 {
    let value = object[field].as_f64().unwrap_or_else(|| panic!("no number {field}: {object}"));
    assert!(value.is_finite() && value > 0.0, "{field}: {value}");
    value
}

#[test]
fn forms_gives_one_object_a_form() {
    let objects = objects(&["bench", "forms", "--json", "--rounds", "1", "--ctx", "512"]);
    let forms: Vec<&str> = objects.iter().map(|object| object["form"].as_str().expect("a form")).collect();
    assert_eq!(forms, ["raw16", "sx12", "i8h", "kc4vt4"]);
    // As the table of docs/forms.md: bits per value at 64 tokens and 64 channels.
    for (object, bits) in objects.iter().zip([16.0, 12.03, 8.25, 4.5]) {
        assert!((number(object, "ratio") - 16.0 / bits).abs() < 1e-3, "{object}");
        for way in ["encode", "decode"] {
            let range = object[format!("{way}_vs_memcpy_range")].as_array().expect("a pair");
            let median = number(object, &format!("{way}_vs_memcpy"));
            assert_eq!([range[0].as_f64(), range[1].as_f64()], [Some(median); 2], "one round has no spread");
            number(object, &format!("{way}_vs_memcpy_1mib"));
        }
        for field in ["gb_s", "encode_gb_s", "memcpy_gb_s", "gb_s_1mib", "encode_gb_s_1mib", "memcpy_gb_s_1mib"] {
            number(object, field);
        }
        // Speeds are of one round, so the ratio is their quotient.
        let quotient = number(object, "gb_s") / number(object, "memcpy_gb_s");
        assert!((quotient / number(object, "decode_vs_memcpy") - 1.0).abs() < 1e-9, "{object}");
        assert_eq!(object["lz4"].is_object(), object["form"] == "sx12");
        assert_eq!(object["attention_vs_exact"].is_number(), object["form"] == "i8h" || object["form"] == "kc4vt4");
    }
    for field in ["ratio", "gb_s", "encode_vs_memcpy", "decode_vs_memcpy_1mib"] {
        number(&objects[1]["lz4"], field);
    }
}

#[test]
fn forms_shows_people_a_table() {
    let lines = lines(&["bench", "forms", "--rounds", "1", "--ctx", "256"]);
    let names: Vec<&str> = lines.iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.ends_with(&["raw16", "sx12", "lz4", "i8h", "kc4vt4"]), "{names:?}");
}

#[test]
fn decode_gives_the_logits_of_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let document = folder.path().join("doc.txt");
    std::fs::write(&document, &TEXT[..1500]).expect("a document");
    let document = document.to_str().expect("UTF-8");
    let prompt = ["--file", document, "--ask", "Who speaks?", "--max-tokens", "5", "--json"];
    let mut digests = Vec::new();
    // Keys and values of 30 layers, 3 heads and 64 channels in two bytes.
    let token_bytes = 2.0 * 2.0 * 30.0 * 3.0 * 64.0;
    for (form, threads) in [("raw16", "1"), ("raw16", "2"), ("kc4vt4:k8=0-3:v8=29", "2")] {
        let form_args = ["--form", form, "--threads", threads];
        let run = objects(&[&["run", "--ignore-eos"][..], &form_args, &prompt].concat()).remove(0);
        let found = objects(&[&["bench", "decode"][..], &form_args, &prompt].concat());
        let [found] = &found[..] else { panic!("one object: {found:?}") };
        assert_eq!(found["logits_digest"], run["logits_digest"]);
        assert_eq!((&found["ctx"], &found["form"]), (&run["prompt_tokens"], &Value::from(form)));
        assert_eq!(found["attend"], "full");
        assert_eq!((&found["threads"].to_string()[..], &found["tokens"]), (threads, &Value::from(5)));
        let (bytes, kv) = (number(found, "bytes_per_token"), number(found, "kv_bytes_per_token"));
        let exact = token_bytes * number(found, "ctx");
        // Exact keys are read 16 tokens at a time. Of these few blocks the first and the latest stay exact.
        let expected = if form == "raw16" { exact..exact + token_bytes * 21.0 } else { 0.4 * exact..0.8 * exact };
        assert!(expected.contains(&kv), "{form}: {kv} of {exact}");
        let floor = bytes / number(found, "read_gb_s") / 1e6;
        assert!((number(found, "floor_ms") / floor - 1.0).abs() < 1e-9 && bytes > kv);
        number(found, "ms_per_token");
        digests.push(found["logits_digest"].clone());
    }
    assert!(digests[0] == digests[1] && digests[0] != digests[2], "{digests:?}");
    let other =
        objects(&["bench", "decode", "--ctx", "300", "--file", document, "--max-tokens", "5", "--json"]).remove(0);
    assert_ne!(other["logits_digest"], digests[0]);
    assert_eq!(other["ctx"], 300);
}

/// A document that is shorter than the context is read again from its start; without one the built-in text is taken.
#[test]
fn decode_fills_the_context_it_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let digest = |text: &str, ctx: &str| {
        let document = folder.path().join("doc.txt");
        std::fs::write(&document, text).expect("a document");
        let file = ["--file", document.to_str().expect("UTF-8")];
        objects(&[&["bench", "decode", "--ctx", ctx, "--max-tokens", "2", "--json"][..], &file].concat()).remove(0)
    };
    let once = digest(" sea sea sea sea", "16");
    assert_eq!(once["ctx"], 16);
    assert_eq!(once["logits_digest"], digest(&" sea".repeat(16), "16")["logits_digest"]);
    let built_in = objects(&["bench", "decode", "--ctx", "16", "--max-tokens", "2", "--json"]).remove(0);
    assert_eq!(built_in["logits_digest"], digest(TEXT, "16")["logits_digest"]);
}

#[test]
fn daemon_gives_one_object_a_system_and_operation() {
    let args = ["bench", "daemon", "--block-size", "128KiB", "--clients", "2", "--rounds", "1", "--no-redis", "--json"];
    let objects = objects(&args);
    let ops = ["put", "get", "acquire", "release", "acquire_batch", "release_batch"];
    let of = |system: &str| -> Vec<&Value> { objects.iter().filter(|object| object["system"] == system).collect() };
    let made = |objects: &[&Value]| -> Vec<String> {
        objects.iter().map(|object| object["op"].as_str().expect("an operation").to_owned()).collect()
    };
    assert_eq!(
        (made(&of("kvtier")), made(&of("copy"))),
        (ops.map(str::to_owned).to_vec(), made(&of("kvtier"))[..2].to_vec())
    );
    assert_eq!(objects.len(), ops.len() + 2);
    for object in &objects {
        assert_eq!((&object["block_bytes"], &object["clients"]), (&Value::from(128 << 10), &Value::from(2)));
        assert!(number(object, "p50_us") <= number(object, "p99_us"), "{object}");
        let moves_bytes = ["put", "get"].contains(&object["op"].as_str().expect("an operation"));
        assert_eq!(object["gb_s"].is_number(), moves_bytes, "{object}");
        if moves_bytes {
            // One round has no spread.
            assert_eq!(object["gb_s_rounds"].as_array().map(|rounds| &rounds[..]), Some(&[object["gb_s"].clone()][..]));
        }
    }
}

/// A process that goes with its test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Against a daemon whose staging memory does not hold one block: its own sentence comes through.
#[test]
fn daemon_says_what_a_daemon_refuses() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("kvtier.sock");
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_kvtier"));
    daemon.args(["serve", "--host-mem", "64MiB", "--http", "off", "--disk", "off", "--socket"]).arg(&socket);
    let mut daemon = Killed(daemon.env("KVTIER_CLIENT_STAGING", "128KiB").spawn().expect("the binary runs"));
    while !socket.exists() {
        assert!(daemon.0.try_wait().expect("a child").is_none(), "the daemon does not start");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let path = socket.to_str().expect("UTF-8");
    let output =
        kvtier(&["bench", "daemon", "--block-size", "256KiB", "--clients", "1", "--socket", path, "--no-redis"]);
    let message = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.code() == Some(3) && message.contains("raise client_staging"), "{message}");
    let output = kvtier(&["bench", "daemon", "--block-size", "100KiB"]);
    let message = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.code() == Some(2) && message.contains("128 KiB"), "{message}");
}

/// Runs it where the driver is the double: its times mean nothing.
fn on_the_double(args: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink(double::build(), folder.path().join("libcuda.so")).expect("a link");
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvtier"));
    command.args(args).env("LD_LIBRARY_PATH", folder.path()).output().expect("the binary runs")
}

#[test]
fn cuda_gives_one_object_a_kind_of_work() {
    let output = on_the_double(&["bench", "cuda", "--ctx", "64", "--rounds", "1", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let objects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect();
    let work: Vec<&str> = objects.iter().map(|object| object["work"].as_str().expect("a name")).collect();
    let expected = ["i8h encode", "i8h decode", "kc4vt4 encode", "kc4vt4 decode", "sx12 encode", "sx12 decode", "xxh3"];
    assert_eq!(work[..7], expected);
    assert_eq!(work[7..], ["attend exact", "attend i8h", "attend kc4vt4"]);
    // 64 positions of 8 heads of 128 channels, keys and values: bf16 in, a byte each and an f16 scale a position out.
    let values = 64 * 8 * 128 * 2;
    assert_eq!(objects[0]["bytes"], 3 * values + 64 * 8 * 2 * 2);
    for object in &objects {
        for field in ["seconds", "floor_seconds", "copy_gb_s", "matrix_tflop_s", "gb_s"] {
            number(object, field);
        }
        let quotient = number(object, "seconds") / number(object, "floor_seconds");
        assert!((quotient / number(object, "time_vs_floor") - 1.0).abs() < 1e-9, "{object}");
        assert_eq!(object["device"], "driver double");
        assert_eq!(object["operations"] == 0, !object["work"].as_str().expect("a name").starts_with("attend"));
    }
}

#[test]
fn cuda_shows_people_a_table_or_names_the_card_that_is_not_there() {
    let output = on_the_double(&["bench", "cuda", "--ctx", "64", "--rounds", "1"]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.starts_with("driver double: one layer of 64 positions"), "{text}");
    assert!(["i8h encode", "attend kc4vt4"].iter().all(|work| text.contains(work)), "{text}");

    // A driver that has no such device: what was asked for is not there, and nothing stands in for it.
    let output = on_the_double(&["bench", "cuda", "--device", "1", "--ctx", "64", "--rounds", "1"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), message.lines().count()), (Some(2), 1), "{message}");
    assert!(output.stdout.is_empty() && message.contains("no device 1"), "{message}");
}

/// Stdout without a driver, line by line; `None` where this machine has one.
fn without_a_driver(args: &[&str]) -> Option<Vec<String>> {
    let output = kvtier(args);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
    if message.is_empty() {
        println!("SKIP: a GPU is there");
        return None;
    }
    assert!(message.starts_with("kvtier: nothing is timed") && message.contains("cuda device"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    Some(String::from_utf8(output.stdout).expect("UTF-8").lines().map(str::to_owned).collect())
}

/// What a line says, however its cells are padded.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn cuda_without_a_driver_prints_the_table_of_counts() {
    let counts = include_str!("../../gpu-tier/kernels/traffic.tsv");
    let Some(lines) = without_a_driver(&["bench", "cuda", "--ctx", "64", "--rounds", "1"]) else { return };
    assert!(lines[0].starts_with("Counts of the compiled kernels") && lines[0].contains("not times"), "{lines:?}");
    let start = lines.iter().position(String::is_empty).expect("a line between text and table") + 1;
    let printed: Vec<Vec<&str>> = lines[start..].iter().map(|line| words(line)).collect();
    assert_eq!(printed, counts.lines().map(words).collect::<Vec<_>>());

    let Some(lines) = without_a_driver(&["bench", "cuda", "--json"]) else { return };
    let mut rows = counts.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let columns = rows.next().expect("a header");
    let rows: Vec<_> = rows.collect();
    assert_eq!(lines.len(), rows.len());
    for (line, row) in lines.iter().zip(rows) {
        let object: Value = serde_json::from_str(line).expect("one object a line");
        assert_eq!(object.as_object().map(|fields| fields.len()), Some(columns.len() + 1), "{object}");
        assert_eq!(object["counted"], true);
        for (column, cell) in columns.iter().zip(&row) {
            let found = &object[column.replace(" / ", "_per_").replace("% ", "percent_").replace([' ', '-'], "_")];
            match cell.parse::<f64>() {
                Ok(expected) => assert_eq!(found.as_f64(), Some(expected), "{column} of {object}"),
                Err(_) => assert_eq!(found, cell, "{column} of {object}"),
            }
        }
        for field in ["instructions_per_byte", "sectors_per_request"] {
            number(&object, field);
        }
        assert!(object["conflicts_per_shared_request"].is_number() && object["seconds"].is_null(), "{object}");
    }
}

#[test]
fn bad_input_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let empty = folder.path().join("empty.txt");
    std::fs::write(&empty, "").expect("a document");
    let empty = empty.to_str().expect("UTF-8");
    for (args, named) in [
        (&["bench", "forms", "--ctx", "100"][..], "multiple of 64"),
        (&["bench", "forms", "--rounds", "0"], "--rounds"),
        (&["bench", "cuda", "--ctx", "100"], "multiple of 64"),
        (&["bench", "cuda", "--rounds", "0"], "--rounds"),
        (&["bench", "decode"], "--ctx"),
        (&["bench", "decode", "--ask", "what?"], "--file"),
        (&["bench", "decode", "--ctx", "9", "--file", empty], "empty.txt"),
        (&["bench", "decode", "--ctx", "9", "--threads", "0"], "--threads"),
        (&["bench", "decode", "--ctx", "9", "--form", "q4_0"], "--form"),
        (&["bench", "decode", "--ctx", "9", "--form", "kc4vt4:k8=30"], "the model has 30 layers"),
        (&["bench", "decode", "--ctx", "9", "--form", "kc4vt4:k8=0,1"], "`0,1` is no layer"),
        (&["bench", "decode", "--ctx", "9", "--form", "sx12"], "attention does not read it"),
        (&["bench", "decode", "--ctx", "9", "--max-tokens", "1"], "--max-tokens"),
        (&["bench", "decode", "--ctx", "9000"], "8192"),
    ] {
        let output = kvtier(args);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
        assert!(output.stdout.is_empty() && message.contains(named), "{args:?}: {message}");
        assert!((1..=4).contains(&message.lines().count()), "{args:?}: {message}");
    }
}
