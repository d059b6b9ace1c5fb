//! What tests of the daemon run in a process of its own: a daemon, a client that is killed, or one that visits.

use std::path::Path;
use std::time::Duration;

use kvtier_tests::daemons::blocks::{Look, chain, client, get, look, put};
use kvtier_tests::daemons::dying::{Step, die};
use kvtier_tests::daemons::process::serve;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize| words[index].parse::<u32>().expect("a number");
    match words.first().map(String::as_str) {
        Some("serve") => serve(&words[1..]),
        Some("die") => die(Path::new(&words[1]), Step::ALL[number(2) as usize], number(3)),
        Some("visit") => visit(Path::new(&words[1]), number(2), number(3), number(4) as usize),
        _ => panic!(
            "serve SOCKET HOST_MIB STORE|- READ_MILLIS STAGING_KIB http|- UID|- | die SOCKET STEP NUMBER | visit SOCKET PUT GET BLOCKS"
        ),
    }
}

/// Puts one chain and reads another in place, and says what came of it and what lies in `/dev/shm`.
fn visit(socket: &Path, put_chain: u32, get_chain: u32, blocks: usize) {
    let client = client(socket, "visitor", Duration::from_secs(60));
    let put = put(&client, &chain(put_chain, blocks)).expect("an honest call");
    let links = chain(get_chain, blocks);
    let (lent, _) = get(&client, &links).expect("an honest call");
    let right = lent.iter().zip(&links).filter(|(lent, link)| look(lent, link) == Look::Right).count();
    let shared = std::fs::read_dir("/dev/shm").expect("it is there").count();
    println!("put {put}, read {right} right, shared memory {shared}");
}
