//! How a daemon begins and ends: misses while its disk is read, an orderly end whatever clients do, and panics of its threads.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use cache_core::form::Accept;
use cache_core::miss::MissReason;
use cache_core::units::Tier;
use disk_tier::io::Medium;
use disk_tier::io::rig::{FailNth, Fault, Plan, Repeat, Scope};
use kvtier_daemon::config::{Config, Machine};
use kvtier_daemon::testing::{Planted, Point, Testing, serve_with};
use kvtier_daemon::{ServeError, server::DRAIN_MAX};
use kvtier_sdk::client::Client;
use kvtier_sdk::wire::{AcceptId, Acquire, Await, Batch, Commit, Empty, Explain, Reply, Request, Tag, Text};
use kvtier_tests::daemons::blocks::{Look, chain, client, get, look, put, wanted};
use kvtier_tests::daemons::figures::{held, stats};
use kvtier_tests::daemons::gate::Gate;
use kvtier_tests::daemons::process::{PATIENCE, Settings, TERM, store_medium, wait_until};
use kvtier_tests::daemons::raw::{Raw, frame, hashes, run};

const CHILD: &str = env!("CARGO_BIN_EXE_daemon_child");
const BLOCKS: usize = 8;

fn config(folder: &Path) -> Config {
    let mut config = Config::defaults(&Machine::here().unwrap());
    config.socket = folder.join("kvtier.sock");
    config.http = None;
    config.host_mem_bytes = 32 << 20;
    config.client_staging_bytes = 256 << 10;
    config.disk = Some(folder.join("store"));
    config.disk_size_bytes = 64 << 20;
    config
}

/// A daemon on a thread, and a client of it.
fn start(config: &Config, medium: Option<Arc<dyn Medium>>) -> (JoinHandle<Result<(), ServeError>>, Client) {
    let (own, socket) = (config.clone(), config.socket.clone());
    let thread = std::thread::spawn(move || serve_with(own, Testing { medium, planted: Planted::default() }));
    wait_until("the socket appears", || socket.exists());
    (thread, client(&socket, "test", PATIENCE))
}

fn medium(config: &Config) -> Arc<dyn Medium> {
    store_medium(config.disk.as_ref().unwrap(), 64, 600_000)
}

#[test]
fn lookups_are_misses_while_the_index_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let links = chain(1, BLOCKS);
    let (thread, writer) = start(&config, None);
    assert_eq!(put(&writer, &links).unwrap(), BLOCKS);
    writer.drain().unwrap();
    thread.join().unwrap().unwrap();
    // The superblocks are read before anybody is served, everything else afterwards.
    let gate = Gate::new(medium(&config), 2);
    let (thread, reader) = start(&config, Some(Arc::clone(&gate) as Arc<dyn Medium>));
    wait_until("the index is being read", || gate.waiting() > 0);
    assert_eq!(stats(&reader)["state"], "recovering");
    let (tiers, miss) = reader.lookup(&wanted(&links), Accept::Exact).unwrap();
    assert_eq!((tiers.len(), miss), (0, Some(MissReason::Recovering)));
    let (lent, miss) = get(&reader, &links).unwrap();
    assert_eq!((lent.len(), miss), (0, Some(MissReason::Recovering)));
    let mut raw = Raw::introduced(&config.socket);
    let (parts, hashes) = (raw.open(), hashes(&links));
    let name = Text::new("early").unwrap();
    raw.call(&Request::Tag(Tag { request: name }), |_| ());
    raw.call(&Request::Acquire(Acquire { parts, accept: AcceptId::Exact, run: run(&links, &hashes) }), |_| ());
    let mut explained = |what| {
        raw.call(&Request::Explain(what), |reply| match reply {
            Reply::Explain(text) => serde_json::from_str::<serde_json::Value>(text.0).unwrap(),
            other => panic!("{other:?}"),
        })
    };
    let story = explained(Explain::Request(name));
    assert_eq!((&story["blocks"][0]["reason"], story["blocks"].as_array().unwrap().len()), (&"recovering".into(), 1));
    assert_eq!(explained(Explain::Block { parts, hash: links[0].hash })["reason"], "recovering");
    drop(raw);
    // What is put meanwhile is there at once.
    let others = chain(2, BLOCKS);
    assert_eq!(put(&reader, &others).unwrap(), BLOCKS);
    assert_eq!(get(&reader, &others).unwrap().0.len(), BLOCKS);
    gate.open();
    wait_until("the index is read", || stats(&reader)["state"] == "ready");
    wait_until("what was put meanwhile is written too", || stats(&reader)["tiers"]["disk"]["blocks"] == 2 * BLOCKS);
    let (lent, miss) = get(&reader, &links).unwrap();
    assert_eq!((lent.len(), miss), (BLOCKS, None));
    for (lent, link) in lent.iter().zip(&links) {
        assert_eq!((look(lent, link), lent.tier()), (Look::Right, Tier::Disk));
    }
    drop(lent);
    reader.drain().unwrap();
    thread.join().unwrap().unwrap();
}

/// Writes wait for the index, and blocks for their writes: not so many that what is put meanwhile finds no room.
#[test]
fn more_than_the_arena_holds_can_be_put_while_the_index_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let (thread, writer) = start(&config, None);
    assert_eq!(put(&writer, &chain(1, BLOCKS)).unwrap(), BLOCKS);
    writer.drain().unwrap();
    thread.join().unwrap().unwrap();
    let gate = Gate::new(medium(&config), 2);
    let (thread, writer) = start(&config, Some(Arc::clone(&gate) as Arc<dyn Medium>));
    wait_until("the index is being read", || gate.waiting() > 0);
    // 20 KiB each: half as much again as the arena of 32 MiB.
    for number in 2..302 {
        assert_eq!(put(&writer, &chain(number, BLOCKS)).unwrap(), BLOCKS, "chain {number}");
    }
    assert_eq!(stats(&writer)["state"], "recovering");
    gate.open();
    wait_until("the index is read", || stats(&writer)["state"] == "ready");
    writer.drain().unwrap();
    thread.join().unwrap().unwrap();
}

/// One client holds leases and a reservation and says nothing, one waits for hours, one asks and never reads.
#[test]
fn an_end_waits_for_no_client() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { store: Some(folder.path().join("store")), ..Settings::new(CHILD, folder.path()) };
    let daemon = settings.start();
    let links = chain(1, BLOCKS);
    put(&client(&settings.socket, "writer", PATIENCE), &links[..4]).unwrap();
    let mut holding = Raw::introduced(&settings.socket);
    let parts = holding.open();
    let hashes = hashes(&links);
    holding.call(&Request::Acquire(Acquire { parts, accept: AcceptId::Exact, run: run(&links, &hashes) }), |_| ());
    assert!(!holding.reserve(parts, &links[4..]).is_empty());
    let mut waiting = Raw::introduced(&settings.socket);
    waiting.open();
    waiting.ask(&Request::Await(Await { parts, hash: links[4].hash }), 3_600_000);
    let mut deaf = std::os::unix::net::UnixStream::connect(&settings.socket).unwrap();
    deaf.write_all(&frame(&kvtier_tests::daemons::raw::hello(), 1, 1000)).unwrap();
    deaf.set_nonblocking(true).unwrap();
    let question = frame(&Request::Stats(Empty), 2, 1000);
    // Until the daemon stops reading, since it waits for this client to take its answers.
    let mut refused = 0;
    wait_until("the daemon is in a write", || {
        match deaf.write(&question) {
            Ok(_) => refused = 0,
            Err(_) => refused += 1,
        }
        refused > 20
    });
    let begun = Instant::now();
    daemon.signal(TERM);
    let status = daemon.wait();
    let took = begun.elapsed();
    println!("an orderly end with three clients that do not go: {took:?}");
    assert_eq!(status.code(), Some(0));
    // A slow machine is let off; what must not be is an end that waits for a client.
    assert!(took < 3 * DRAIN_MAX, "{took:?}");
}

#[test]
fn an_end_waits_for_no_disk() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let (thread, writer) = start(&config, None);
    writer.drain().unwrap();
    thread.join().unwrap().unwrap();
    let never = Fault::Never { deadline_millis: 3_600_000 };
    let plan = Plan::nth(1, never).on(Scope::Write).repeat(Repeat::Forever);
    let rig = FailNth::new(medium(&config), plan);
    rig.heal();
    let (thread, writer) = start(&config, Some(Arc::clone(&rig) as Arc<dyn Medium>));
    wait_until("the index is read", || stats(&writer)["state"] == "ready");
    rig.arm(plan);
    assert_eq!(put(&writer, &chain(1, BLOCKS)).unwrap(), BLOCKS);
    wait_until("writes hang", || rig.held() > 0);
    let begun = Instant::now();
    writer.drain().unwrap();
    drop(writer);
    thread.join().unwrap().unwrap();
    let took = begun.elapsed();
    println!("an orderly end over a disk that never answers: {took:?}");
    assert!(took < 3 * DRAIN_MAX, "{took:?}");
}

/// A thread that works for all panics: the daemon ends, with an exit code that says so, and its clients go on without.
#[test]
fn a_panic_of_a_thread_that_works_for_all_ends_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let store = Some(folder.path().join("store"));
    let settings = Settings { store, http: true, ..Settings::new(CHILD, folder.path()) };
    for point in [Point::Keeper, Point::DiskEnds, Point::Accept, Point::Http, Point::Toucher] {
        let mut daemon = settings.start();
        let client = client(&settings.socket, "test", PATIENCE);
        put(&client, &chain(1, BLOCKS)).unwrap();
        let (lent, _) = get(&client, &chain(1, BLOCKS)).unwrap();
        assert!(!lent.is_empty(), "{point:?}");
        daemon.panic_in(point);
        assert_eq!(daemon.wait().code(), Some(3), "{point:?}");
        assert!(get(&client, &chain(1, BLOCKS)).is_err(), "{point:?}");
        assert_eq!(look(&lent[0], &chain(1, 1)[0]), Look::Right, "{point:?}");
    }
}

#[test]
fn a_panic_in_a_connection_frees_what_it_held_and_nobody_else_notices() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::new(CHILD, folder.path());
    let mut daemon = settings.start();
    let other = client(&settings.socket, "other", PATIENCE);
    let links = chain(1, BLOCKS);
    put(&other, &links[..4]).unwrap();
    let (lent, _) = get(&other, &links).unwrap();
    let before = held(&other, daemon.pid());
    assert_eq!(before.leases, 4);
    let mut raw = Raw::introduced(&settings.socket);
    let parts = raw.open();
    let hashes = hashes(&links);
    raw.call(&Request::Acquire(Acquire { parts, accept: AcceptId::Exact, run: run(&links, &hashes) }), |_| ());
    assert!(!raw.reserve(parts, &links[4..]).is_empty());
    let held_by_both = held(&other, daemon.pid());
    assert!(held_by_both.leases == 8 && held_by_both.reservations > 0, "{held_by_both:?}");
    daemon.panic_in(Point::Session);
    // Whoever asks first is struck: the other one says nothing meanwhile.
    wait_until("the connection ends", || !raw.is_answered(&Request::Stats(Empty)));
    wait_until("what it held is free", || held(&other, daemon.pid()) == before);
    assert_eq!(put(&other, &links[4..]).unwrap(), 4);
    lent.iter().zip(&links).for_each(|(lent, link)| assert_eq!(look(lent, link), Look::Right));
    daemon.signal(TERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_panic_amid_a_commit_gives_the_block_up() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::new(CHILD, folder.path());
    let mut daemon = settings.start();
    let other = client(&settings.socket, "other", PATIENCE);
    let links = chain(1, 1);
    let mut raw = Raw::introduced(&settings.socket);
    let parts = raw.open();
    daemon.panic_in(Point::Commit);
    // Until it strikes, an image that nobody has written fails its check.
    wait_until("the connection ends", || {
        let reserved = [raw.reserve(parts, &links)[0].0];
        let commit = Request::Commit(Commit { reservations: Batch::new(&reserved).unwrap() });
        !raw.is_answered(&commit)
    });
    wait_until("it is nobody's", || stats(&other)["clients"]["count"] == 1);
    assert_eq!(put(&other, &links).unwrap(), 1, "nobody is at it any more");
    daemon.signal(TERM);
    assert_eq!(daemon.wait().code(), Some(0));
}
