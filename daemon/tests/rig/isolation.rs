//! Paired isolation: what one salt has stored it always finds, and another never; in memory, on the disk and after a restart.

use cache_core::hash::BlockHash;
use cache_core::miss::MissReason;
use kvtier_sdk::wire::KeyParts;

use super::raw::Raw;
use super::*;

/// Blocks of each tenant that stores: one lookup asks for all of them.
const BLOCKS: usize = 1024;

struct Tenant {
    salt: &'static str,
    parts: KeyParts,
    hashes: Vec<BlockHash>,
}

fn tenants(raw: &mut Raw, salts: [&'static str; 3]) -> [Tenant; 3] {
    salts.map(|salt| {
        let parts = raw.open_namespace(&manifest(), tenant(salt));
        let hashes = links(parts.namespace, BLOCKS).iter().map(|link| link.hash).collect();
        Tenant { salt, parts, hashes }
    })
}

/// How many keys were asked for that have to be there, and that must not.
#[derive(Debug, Default)]
pub struct Looked {
    pub own: usize,
    pub foreign: usize,
}

/// The last tenant has stored nothing. Everyone asks for what is there in his own name, and in every way for what is another's.
fn ask(daemon: &Daemon, lookups: usize, looked: &mut Looked) {
    let (mut raw, ..) = Raw::open(&daemon.socket);
    let tenants = tenants(&mut raw, ["a", "b", "none"]);
    let client = daemon.client();
    let namespaces: Vec<_> = tenants.iter().map(|one| client.name(&manifest(), tenant(one.salt))).collect();
    for turn in 0..lookups.div_ceil(BLOCKS) {
        let links = links(namespaces[turn % 2], BLOCKS);
        let (tiers, miss) = client.lookup(&wanted(namespaces[turn % 2], &links), Accept::Exact).unwrap();
        assert_eq!((tiers.len(), miss), (BLOCKS, None), "tenant {}", tenants[turn % 2].salt);
        looked.own += BLOCKS;
        // Its own hashes that it never stored, and the hashes of others under its own name.
        let whose = [(2, 2), (2, 0), (0, 1), (1, 0)][turn % 4];
        let (asks, owns) = (&tenants[whose.0], &tenants[whose.1]);
        let (found, reasons) = raw.lookup_each(asks.parts, &owns.hashes);
        assert_eq!(found, 0, "{} finds blocks of {}", asks.salt, owns.salt);
        assert_eq!(Vec::from_iter(reasons), [MissReason::NeverStored], "{} asks for {}", asks.salt, owns.salt);
        looked.foreign += BLOCKS;
    }
    // The bytes, too, are one's own.
    for namespace in &namespaces[..2] {
        for links in links(*namespace, BLOCKS).chunks(128) {
            assert_eq!(check_run(&client, *namespace, links), (links.len(), None));
        }
    }
    assert_eq!(check_run(&client, namespaces[2], &links(namespaces[2], 1)), (0, Some(MissReason::NeverStored)));
}

/// `lookups` keys of each kind in each of three places: in memory, on the disk after a restart, and in memory again.
pub fn paired(lookups: usize) -> Looked {
    let folder = tempfile::tempdir().unwrap();
    let mut looked = Looked::default();
    let settings = |config: &mut Config| with_disk(folder.path(), config);
    let daemon = start(folder.path(), settings);
    let client = daemon.client();
    let mut stored = 0;
    for salt in ["a", "b"] {
        let namespace = client.name(&manifest(), tenant(salt));
        for links in links(namespace, BLOCKS).chunks(128) {
            put_all(&client, namespace, links);
            // The queue to the disk is bounded; what does not fit into it is not written.
            stored += links.len();
            daemon.settles("writes", |stats| stats["tiers"]["disk"]["blocks"] == stored);
        }
    }
    ask(&daemon, lookups, &mut looked);
    drop(client);
    daemon.end();
    let daemon = start(folder.path(), settings);
    daemon.settles("recovery", |stats| stats["state"] == "ready");
    ask(&daemon, lookups, &mut looked);
    let loaded = daemon.stats();
    assert_eq!(loaded["loads"]["blocks"], 2 * BLOCKS, "all came from the disk: {loaded}");
    ask(&daemon, lookups, &mut looked);
    let end = daemon.stats();
    assert_eq!((&end["integrity_failures"]["host"], &end["integrity_failures"]["disk"]), (&0.into(), &0.into()));
    daemon.end();
    looked
}
