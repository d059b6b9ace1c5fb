//! What tests of the disk tier run in a process of its own: one that is killed, or one that the kernel denies something.

use std::path::Path;

use cache_core::hex::Hex;
use disk_tier::testing::PlantedBug;
use kvtier_engine::run::engine::EngineOptions;
use kvtier_sdk::embedded::DiskStatus;
use kvtier_tests::disk::with_disk_of;
use kvtier_tests::{ask, fixture, kill, options};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize| words[index].parse().expect("a number");
    match words.first().map(String::as_str) {
        Some("work") => {
            let bug = words.get(4).map(|_| PlantedBug::ForgetDeletion);
            kill::work(Path::new(&words[1]), number(2), number(3) as u32, bug);
        }
        Some("answer") => answer(Path::new(&words[1]), number(2) as usize, number(3) as usize),
        _ => panic!("work DIRECTORY SEED VERSIONS [bug] | answer DIRECTORY START LENGTH"),
    }
}

/// Answers the same prompt twice, each time with a fresh engine over the same store, and says what came of it.
fn answer(directory: &Path, start: usize, length: usize) {
    let prompt = fixture().prompt(start, length);
    for _ in 0..2 {
        let options = EngineOptions { host_bytes: 24 << 20, ..options() };
        let mut engine = fixture().engine(with_disk_of(directory, 64 << 20, options));
        let cache = std::sync::Arc::clone(engine.cache());
        if let Some(tier) = cache.disk_tier() {
            tier.wait_ready(10_000);
            println!("medium {}", tier.describe());
        }
        let answer = ask(&mut engine, &prompt, 8);
        println!("digest {}", Hex(&answer.logits_digest));
        println!("disk {}", answer.cached_tokens.disk);
        if let Some(notice) = cache.disk_tier().and_then(|tier| tier.notice()) {
            println!("notice {notice}");
        }
        match cache.disk_status() {
            DiskStatus::Absent { reason } => println!("absent {reason}"),
            status => println!("status {status:?}"),
        }
        cache.close_disk(std::time::Duration::from_secs(10));
        cache.audit().expect("sound books");
    }
}
