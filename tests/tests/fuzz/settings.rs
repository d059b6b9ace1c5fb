//! Settings of the daemon, by a file and by the environment.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use bolero::{check, produce};
use kvtier_daemon::config::{Config, KEYS, Machine, Sources};

use crate::bytes;

/// Settings that are read are settings that can be printed, and read again as the same.
fn check_settings(sources: &Sources, again: &Path) {
    let Ok(config) = Config::load(sources) else {
        return;
    };
    let printed = config.print();
    fs::write(again, &printed).expect("a folder that can be written");
    let sources = Sources { file: Some(again.to_owned()), environment: Vec::new(), ..sources.clone() };
    let read = Config::load(&sources).unwrap_or_else(|error| panic!("{error}\n{printed}"));
    // All but where the values come from.
    let values = |config: &Config| format!("{config:?}").split(", origins:").next().map(str::to_owned);
    assert_eq!(values(&config), values(&read), "{printed}");
}

/// Values as people mean them, next to others.
const VALUES: [&str; 16] = [
    "\"off\"",
    "\"auto\"",
    "\"always\"",
    "\"8GiB\"",
    "\"0.5MiB\"",
    "\"-1KiB\"",
    "0",
    "1",
    "-1",
    "1e300",
    "9223372036854775807",
    "[1000, 1001]",
    "{ a = 1 }",
    "true",
    "\"/run/x.sock\"",
    "\"127.0.0.1:0\"",
];

/// A file of settings: arbitrary text, and settings with sensible, odd and arbitrary values.
#[test]
fn files_of_settings() {
    let machine = Machine::here().expect("a machine");
    let folder = tempfile::tempdir().expect("a folder");
    let (file, again) = (folder.path().join("fuzz.toml"), folder.path().join("again.toml"));
    let line = (produce::<u8>(), produce::<u8>(), bytes(12));
    let lines = produce::<Vec<(u8, u8, Vec<u8>)>>().with().values(line).len(0..=6usize);
    check!().with_iterations(2_000).with_generator((lines, bytes(40), produce::<bool>())).for_each(
        |(lines, tail, has_tail)| {
            let mut text = String::new();
            for (key, value, odd) in lines {
                let key = KEYS[usize::from(*key) % KEYS.len()].name;
                let odd = String::from_utf8_lossy(odd);
                let value = VALUES
                    .get(usize::from(*value) % 24)
                    .map_or_else(|| format!("\"{odd}\""), |value| (*value).to_owned());
                text.push_str(&format!("{key} = {value}\n"));
            }
            if *has_tail {
                text.push_str(&String::from_utf8_lossy(tail));
            }
            fs::write(&file, &text).expect("a folder that can be written");
            let sources = Sources {
                machine: machine.clone(),
                file: Some(file.clone()),
                environment: Vec::new(),
                flags: Vec::new(),
            };
            check_settings(&sources, &again);
        },
    );
}

/// Variables of the environment, no UTF-8 among them.
#[test]
fn variables() {
    let machine = Machine::here().expect("a machine");
    let folder = tempfile::tempdir().expect("a folder");
    let (empty, again) = (folder.path().join("empty.toml"), folder.path().join("again.toml"));
    fs::write(&empty, "").expect("a folder that can be written");
    let variable = (produce::<u8>(), produce::<u8>(), bytes(16));
    let variables = produce::<Vec<(u8, u8, Vec<u8>)>>().with().values(variable).len(0..=4usize);
    check!().with_iterations(2_000).with_generator(variables).for_each(|variables| {
        let variables = variables.iter().map(|(key, value, odd)| {
            let name = KEYS.get(usize::from(*key) % (KEYS.len() + 1)).map_or_else(
                || OsString::from_vec([b"KVTIER_", &odd[..]].concat()),
                |key| OsString::from(key.variable()),
            );
            let plain = VALUES.get(usize::from(*value) % 32).map(|value| value.trim_matches('"').into());
            (name, plain.unwrap_or_else(|| OsString::from_vec(odd.clone())))
        });
        let environment = variables.filter(|(name, _)| name != "KVTIER_CONFIG").collect();
        let sources = Sources { machine: machine.clone(), file: Some(empty.clone()), environment, flags: Vec::new() };
        check_settings(&sources, &again);
    });
}
