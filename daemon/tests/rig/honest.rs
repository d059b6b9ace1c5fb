//! A client that does what it should, beside those that do not: it sees neither an error nor a wrong byte.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::*;

const BLOCKS: usize = 32;

pub struct Honest {
    ends: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Honest {
    /// Begins to work: reads its blocks, byte by byte, and now and then stores one more.
    pub fn beside(socket: &Path) -> Honest {
        let client = client_at(socket, SHAPE);
        let namespace = client.name(&manifest(), tenant("honest"));
        let links = links(namespace, BLOCKS);
        put_all(&client, namespace, &links);
        let (ends, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (over, counted) = (Arc::clone(&ends), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                assert_eq!(check_run(&client, namespace, &links), (BLOCKS, None));
                let round = counted.fetch_add(1, Ordering::SeqCst) as u32;
                if round.is_multiple_of(16) && round < 16 * 64 {
                    put_all(&client, namespace, &links_from(namespace, 1_000_000 + 1000 * round, 1));
                }
            }
        });
        let honest = Honest { ends, rounds, thread };
        honest.goes_on();
        honest
    }

    /// Waits until it has got through its work some more times.
    pub fn goes_on(&self) {
        let before = self.rounds.load(Ordering::SeqCst);
        until("an honest client's work", || {
            assert!(!self.thread.is_finished(), "the honest client has failed");
            self.rounds.load(Ordering::SeqCst) > before + 3
        });
    }

    pub fn end(self) {
        self.goes_on();
        self.ends.store(true, Ordering::SeqCst);
        self.thread.join().expect("no error and no wrong byte");
    }
}
