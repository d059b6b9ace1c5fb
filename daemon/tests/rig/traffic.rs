//! Traffic of all kinds on a daemon, until it is ended.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::raw::Raw;
use super::*;

pub struct Traffic {
    ends: Arc<AtomicBool>,
    blocks: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Three clients of two tenants: they store, read, miss, hold leases and are disconnected; a fourth breaks the protocol.
    pub fn start(socket: &Path) -> Traffic {
        let (ends, blocks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let worker = |number: u32| {
            let (ends, blocks, socket) = (Arc::clone(&ends), Arc::clone(&blocks), socket.to_owned());
            std::thread::spawn(move || {
                let mut round = 0;
                while !ends.load(Ordering::SeqCst) {
                    blocks.fetch_add(work(&socket, number, round), Ordering::SeqCst);
                    round += 1;
                }
            })
        };
        let mut threads: Vec<_> = (0..3).map(worker).collect();
        let (over, path) = (Arc::clone(&ends), socket.to_owned());
        threads.push(std::thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                let (mut raw, ..) = Raw::open(&path);
                raw.release(&[kvtier_sdk::wire::LeaseId(7.into())]);
                raw.send(b"no frame at all, and long enough to be a header").unwrap();
                assert!(raw.is_over());
                std::thread::sleep(Duration::from_millis(50));
            }
        }));
        let traffic = Traffic { ends, blocks, threads };
        until("some traffic", || traffic.blocks.load(Ordering::SeqCst) > 300);
        traffic
    }

    /// Ends it; returns how many blocks were asked for at least.
    pub fn end(self) -> u64 {
        self.ends.store(true, Ordering::SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().expect("no client fails"));
        self.blocks.load(Ordering::SeqCst)
    }
}

/// One client's life: some prompts, in part those of before.
fn work(socket: &Path, number: u32, round: u32) -> u64 {
    let client = client_at(socket, SHAPE);
    let namespace = client.name(&manifest(), tenant(["a", "b"][number as usize % 2]));
    let mut asked = 0;
    let mut held = Vec::new();
    for turn in 0..12 {
        let links = links_from(namespace, 10_000 * ((round + turn) % 9), 24);
        let (lent, _) = client.acquire(&wanted(namespace, &links), Accept::Exact).unwrap();
        asked += links.len() as u64;
        if lent.len() < links.len() {
            put(&client, namespace, &links[lent.len()..]);
        }
        held = lent;
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(held);
    asked
}
