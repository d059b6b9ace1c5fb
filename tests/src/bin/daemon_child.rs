//! What tests of the daemon run in a process of its own: a daemon, or a client that is killed.

use std::path::Path;

use kvtier_tests::daemons::dying::{Step, die};
use kvtier_tests::daemons::process::serve;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize| words[index].parse().expect("a number");
    match words.first().map(String::as_str) {
        Some("serve") => serve(&words[1..]),
        Some("die") => die(Path::new(&words[1]), Step::ALL[number(2) as usize], number(3)),
        _ => panic!("serve SOCKET HOST_MIB STORE|- READ_MILLIS STAGING_KIB http|- | die SOCKET STEP NUMBER"),
    }
}
