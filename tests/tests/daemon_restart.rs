//! Extents that the service manager keeps over a daemon's end: the next one finds its blocks in them, and believes nothing that it has not checked.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use cache_core::form::Accept;
use cache_core::units::Tier;
use kvtier_sdk::client::Client;
use kvtier_sdk::wire::{AcceptId, Acquire, DeleteNamespace, Pin, Reply, Request};
use kvtier_tests::daemons::blocks::{Look, SHAPE, chain, client, get, look, namespace, put, wanted};
use kvtier_tests::daemons::figures::stats;
use kvtier_tests::daemons::manager::Manager;
use kvtier_tests::daemons::process::{PATIENCE, Settings, TERM, wait_until};
use kvtier_tests::daemons::raw::{Raw, hashes, run};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

const CHILD: &str = env!("CARGO_BIN_EXE_daemon_child");
const BLOCKS: usize = 24;

struct Scene {
    folder: tempfile::TempDir,
    manager: Manager,
}

impl Scene {
    fn new() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let manager = Manager::new(folder.path());
        Scene { folder, manager }
    }

    fn settings(&self, host_mib: u64) -> Settings {
        Settings { host_mib, ..Settings::new(CHILD, self.folder.path()) }
    }

    fn client(&self) -> Client {
        client(&self.settings(0).socket, "test", PATIENCE)
    }
}

/// Puts whole chains, as far as a client's staging memory goes at once.
fn put_chains(client: &Client, chains: std::ops::Range<u32>) {
    for number in chains {
        for part in chain(number, BLOCKS).chunks(8) {
            put(client, part).unwrap();
        }
    }
}

/// Blocks of these chains that are there, all of them right.
fn right(client: &Client, chains: std::ops::Range<u32>) -> usize {
    let found = chains.map(|number| {
        let links = chain(number, BLOCKS);
        let (lent, _) = get(client, &links).unwrap();
        for (lent, link) in lent.iter().zip(&links) {
            assert_eq!((look(lent, link), lent.tier()), (Look::Right, Tier::Host), "chain {number}");
        }
        lent.len()
    });
    found.sum()
}

fn host(client: &Client) -> (u64, u64) {
    let stats = stats(client);
    let number = |key: &str| stats["tiers"]["host"][key].as_u64().unwrap();
    (number("used_bytes"), number("budget_bytes"))
}

#[test]
fn blocks_outlive_a_daemon_that_is_killed_and_one_that_ends() {
    let scene = Scene::new();
    // A tenth of the memory is used: all of it is kept.
    let settings = scene.settings(128);
    let mut daemon = scene.manager.start(&settings);
    put_chains(&scene.client(), 0..20);
    let handed = scene.manager.names().len();
    assert!(handed >= 4, "{handed} extents were handed over");
    for life in 0..3 {
        if life == 1 {
            daemon.signal(TERM);
            assert!(daemon.wait().success());
            assert!(scene.manager.was_told("STOPPING=1"));
        } else {
            daemon.kill();
        }
        daemon = scene.manager.start(&settings);
        let reader = scene.client();
        let links = chain(19, BLOCKS);
        // Found without having been touched.
        let (tiers, miss) = reader.lookup(&wanted(&links), Accept::Exact).unwrap();
        assert_eq!((tiers, miss), (vec![Tier::Host; BLOCKS], None), "life {life}");
        let blocks = stats(&reader)["tiers"]["host"]["blocks"].as_u64().unwrap();
        assert!(blocks >= 20 * BLOCKS as u64, "life {life}: {blocks}");
        assert_eq!(right(&reader, 0..20), 20 * BLOCKS, "life {life}");
        // Each was copied once, and is read in place from then on.
        let copied_bytes = (20 * BLOCKS) as u64 * SHAPE.slot_bytes();
        assert_eq!(stats(&reader)["copied_bytes"], copied_bytes, "life {life}");
        assert_eq!(right(&reader, 0..20), 20 * BLOCKS, "life {life}");
        assert_eq!(stats(&reader)["copied_bytes"], copied_bytes, "life {life}: of what is in the arena");
        let (used, budget) = host(&reader);
        assert!(used <= budget, "life {life}");
        // Everything was brought back: only this daemon's own extents are left.
        wait_until("drained extents are let go", || scene.manager.names().len() == handed);
    }
    drop(daemon);
}

#[test]
fn a_full_arena_comes_back_by_half_and_gives_way() {
    let scene = Scene::new();
    let settings = scene.settings(32);
    let daemon = scene.manager.start(&settings);
    put_chains(&scene.client(), 0..100);
    daemon.kill();
    let daemon = scene.manager.start(&settings);
    let reader = scene.client();
    let (used, budget) = host(&reader);
    assert!(used <= budget && used > budget / 8, "{used} of {budget}");
    let kept = stats(&reader)["tiers"]["host"]["blocks"].as_u64().unwrap();
    assert!(kept > 100, "{kept}");
    // Clients still get in, and new blocks too: more than what was left beside the attic.
    let others: Vec<Client> = (0..4).map(|_| scene.client()).collect();
    assert!(others.iter().all(Client::is_connected));
    put_chains(&reader, 200..300);
    let (used, budget) = host(&reader);
    assert!(used <= budget, "{used} of {budget}");
    assert!(right(&reader, 290..300) > 5 * BLOCKS, "what was put last is there");
    wait_until("the attic gave way", || {
        let names = scene.manager.names();
        let daemons: HashSet<&str> = names.iter().filter_map(|name| name.split('.').nth(3)).collect();
        daemons.len() == 1
    });
    drop(daemon);
}

#[test]
fn what_was_deleted_does_not_come_back() {
    let scene = Scene::new();
    let settings = scene.settings(128);
    let daemon = scene.manager.start(&settings);
    put_chains(&scene.client(), 0..4);
    let delete = || {
        let mut raw = Raw::introduced(&settings.socket);
        raw.open();
        raw.call(&Request::DeleteNamespace(DeleteNamespace { namespace: namespace() }), |_| ());
    };
    // Out of the attic, where nothing can be erased.
    daemon.kill();
    let daemon = scene.manager.start(&settings);
    let reader = scene.client();
    assert_eq!(right(&reader, 0..1), BLOCKS);
    delete();
    assert_eq!(right(&reader, 0..4), 0);
    daemon.kill();
    let daemon = scene.manager.start(&settings);
    let reader = scene.client();
    assert_eq!(right(&reader, 0..4), 0, "after one more life");
    // Out of the arena.
    put_chains(&reader, 0..4);
    delete();
    daemon.kill();
    let daemon = scene.manager.start(&settings);
    assert_eq!(right(&scene.client(), 0..4), 0);
    drop(daemon);
}

/// Memory under the name of an extent, sealed or not, with bytes of whoever made it.
fn forged(bytes: u64, seals: SealFlags, fill: impl FnOnce(&std::fs::File)) -> OwnedFd {
    let file = memfd_create("forged", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, bytes).unwrap();
    let file = std::fs::File::from(file);
    fill(&file);
    fcntl_add_seals(file.as_fd(), seals).unwrap();
    file.into()
}

#[test]
fn nothing_in_the_memory_is_believed() {
    use std::os::unix::fs::FileExt;
    let scene = Scene::new();
    let settings = scene.settings(128);
    let daemon = scene.manager.start(&settings);
    let links = chain(0, 8);
    put(&scene.client(), &links).unwrap();
    let name = scene.manager.names()[0].clone();
    let slots: u64 = name.split('.').nth(2).unwrap().parse().unwrap();
    daemon.kill();
    let words_bytes = (8 * slots).next_multiple_of(4096);
    let bytes = words_bytes + slots * SHAPE.slot_bytes();
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
    let with = |link: usize, change: &dyn Fn(&mut Vec<u8>)| {
        let mut image = kvtier_tests::daemons::blocks::image(&chain(50, 8)[link]);
        change(&mut image);
        image
    };
    // A sound block; one with a wrong byte under a sound header; a wrong header; one that was being written; and noise.
    let fill = |file: &std::fs::File| {
        let payload = SHAPE.header_bytes() as usize + 5;
        let images = [
            (2u64, with(0, &|_| ())),
            (2, with(1, &|image| image[payload] ^= 1)),
            (2, with(2, &|image| image[20] ^= 1)),
            (3, with(3, &|_| ())),
            (2, vec![0xff; SHAPE.slot_bytes() as usize]),
        ];
        for (slot, (generation, image)) in images.iter().enumerate() {
            file.write_all_at(&generation.to_le_bytes(), 8 * slot as u64).unwrap();
            file.write_all_at(image, words_bytes + slot as u64 * SHAPE.slot_bytes()).unwrap();
        }
    };
    let rename = |number: u64| format!("{}.{number}", name.rsplit_once('.').unwrap().0);
    scene.manager.keep(&rename(9001), forged(bytes, all, fill));
    // Not sealed, too short, too long, absurdly many slots, and names that say nothing.
    scene.manager.keep(&rename(9002), forged(bytes, SealFlags::SHRINK, fill));
    scene.manager.keep(&rename(9003), forged(bytes - 4096, all, |_| ()));
    scene.manager.keep(&rename(9004), forged(bytes + 4096, all, |_| ()));
    scene.manager.keep(&name.replacen(&format!(".{slots}."), ".4294967295.", 1), forged(bytes, all, |_| ()));
    scene.manager.keep("kvtier-arena-9.ff.1.x.1", forged(4096, all, |_| ()));
    scene.manager.keep("kvtier-arena-1.ff.1.x.1", forged(4096, all, |_| ()));
    scene.manager.keep("connection", forged(4096, all, |_| ()));
    let daemon = scene.manager.start(&settings);
    let reader = scene.client();
    let (lent, _) = get(&reader, &chain(50, 8)).unwrap();
    assert_eq!(lent.len(), 1, "only the sound block is there");
    assert_eq!(look(&lent[0], &chain(50, 8)[0]), Look::Right);
    let failed = |stats: &serde_json::Value| stats["integrity_failures"].to_string();
    assert!(failed(&stats(&reader)).contains('1'), "{}", stats(&reader)["integrity_failures"]);
    assert_eq!(get(&reader, &links).unwrap().0.len(), 8, "what was kept in good faith is there");
    let names = scene.manager.names();
    for number in [9002, 9003, 9004] {
        assert!(!names.contains(&rename(number)), "{number} is let go");
    }
    assert!(!names.iter().any(|name| name.contains("4294967295") || name.ends_with(".x.1")), "{names:?}");
    assert!(names.contains(&"connection".to_owned()), "what is not an arena's is left alone");
    drop(daemon);
}

#[test]
fn pins_and_prefetches_bring_blocks_back_as_well() {
    let scene = Scene::new();
    let settings = scene.settings(128);
    let daemon = scene.manager.start(&settings);
    put_chains(&scene.client(), 0..2);
    daemon.kill();
    let daemon = scene.manager.start(&settings);
    let mut raw = Raw::introduced(&settings.socket);
    let (parts, accept) = (raw.open(), AcceptId::Exact);
    let links = [chain(0, BLOCKS), chain(1, BLOCKS)];
    let hashes = links.each_ref().map(|links| hashes(links));
    let prefetch = Acquire { parts, accept, run: run(&links[0], &hashes[0]) };
    let pin = Pin { parts, accept, ttl_ms: 60_000, run: run(&links[1], &hashes[1]) };
    let found = [Request::Prefetch(prefetch), Request::Pin(pin)].map(|request| {
        raw.call(&request, |reply| match reply {
            Reply::Prefetch(prefetched) => prefetched.accepted,
            Reply::Pin(pinned) => pinned.pinned,
            other => panic!("{other:?}"),
        })
    });
    assert_eq!(found, [BLOCKS as u32; 2]);
    drop(daemon);
}

#[test]
fn without_a_manager_the_arena_starts_empty() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::new(CHILD, folder.path());
    let daemon = settings.start();
    put(&client(&settings.socket, "test", PATIENCE), &chain(0, 8)).unwrap();
    daemon.kill();
    let daemon = settings.start();
    let reader = client(&settings.socket, "test", Duration::from_secs(60));
    assert!(get(&reader, &chain(0, 8)).unwrap().0.is_empty());
    drop(daemon);
}
