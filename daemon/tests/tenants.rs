//! What operators do to tenants: delete them, bound them; and memory that rots under all of them.

mod rig;

use cache_core::form::{Accept, Lineage};
use cache_core::hash::{Namespace, TenantId};
use cache_core::manifest::Manifest;
use cache_core::miss::MissReason;
use kvtier_daemon::config::Config;
use kvtier_sdk::client::{Client, Place};
use kvtier_sdk::wire::CommitCode;
use rig::*;

const TAKEN: Put = Put::Committed(CommitCode::Inserted);

fn adapted() -> Manifest {
    Manifest { adapter: "lora".to_owned(), ..manifest() }
}

/// The run that is there.
fn found(client: &Client, namespace: Namespace, blocks: usize) -> usize {
    client.lookup(&wanted(namespace, &links(namespace, blocks)), Accept::Exact).unwrap().0.len()
}

fn taken(done: &[Put]) -> usize {
    done.iter().filter(|put| **put == TAKEN).count()
}

#[test]
fn a_deleted_namespace_is_found_by_nobody_and_leases_on_it_are_lost() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |config: &mut Config| with_disk(folder.path(), config);
    let daemon = start(folder.path(), settings);
    let (writer, reader) = (daemon.client(), daemon.client());
    let [own, adapter, other] = [(manifest(), "a"), (adapted(), "a"), (manifest(), "b")].map(|(manifest, salt)| {
        let namespace = writer.name(&manifest, tenant(salt));
        put_all(&writer, namespace, &links(namespace, 8));
        reader.name(&manifest, tenant(salt))
    });
    daemon.settles("writes", |stats| stats["tiers"]["disk"]["blocks"] == 24);
    let links = links(own, 8);
    let (lent, miss) = reader.acquire(&wanted(own, &links), Accept::Exact).unwrap();
    assert_eq!((lent.len(), miss), (8, None));
    assert!(lent.iter().all(|lent| lent.is_current()));
    writer.delete_namespace(own).unwrap();
    assert!(lent.iter().all(|lent| !lent.is_current() && read(lent, SHAPE).is_none()), "generations have moved");
    for client in [&writer, &reader] {
        assert_eq!(found(client, own, 8), 0);
        assert_eq!((found(client, adapter, 8), found(client, other, 8)), (8, 8));
    }
    assert_eq!(daemon.stats()["leases"]["reclaimed"]["deleted"], 8);
    drop((lent, reader));
    drop(writer);
    daemon.end();
    let daemon = start(folder.path(), settings);
    daemon.settles("recovery", |stats| stats["state"] == "ready");
    let client = daemon.client();
    let named = [(manifest(), "a"), (adapted(), "a"), (manifest(), "b")].map(|(m, salt)| client.name(&m, tenant(salt)));
    assert_eq!(named, [own, adapter, other]);
    assert_eq!(named.map(|namespace| found(&client, namespace, 8)), [0, 8, 8]);
    assert_eq!(check_run(&client, own, &links).0, 0);
    // What is stored anew is there.
    put_all(&client, own, &links[..2]);
    assert_eq!(check_run(&client, own, &links).0, 2);
    drop(client);
    daemon.end();
}

/// A daemon that has just started has seen none of the tenant's namespaces; it knows them all the same.
#[test]
fn a_tenant_is_deleted_by_a_daemon_that_never_served_it() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |config: &mut Config| with_disk(folder.path(), config);
    let tenants = [(manifest(), "a"), (adapted(), "a"), (manifest(), "b")];
    let daemon = start(folder.path(), settings);
    let client = daemon.client();
    for (manifest, salt) in &tenants {
        let namespace = client.name(manifest, tenant(salt));
        put_all(&client, namespace, &links(namespace, 8));
    }
    daemon.settles("writes", |stats| stats["tiers"]["disk"]["blocks"] == 24);
    drop(client);
    daemon.end();
    let daemon = start(folder.path(), settings);
    let client = daemon.client();
    assert_eq!(client.delete_tenant(tenant("a")).unwrap(), 2);
    assert_eq!(client.delete_tenant(tenant("c")).unwrap(), 0);
    let left = |client: &Client| {
        let named = tenants.each_ref().map(|(manifest, salt)| client.name(manifest, tenant(salt)));
        named.map(|namespace| found(client, namespace, 8))
    };
    daemon.settles("recovery", |stats| stats["state"] == "ready");
    assert_eq!(left(&client), [0, 0, 8]);
    drop(client);
    daemon.end();
    let daemon = start(folder.path(), settings);
    daemon.settles("recovery", |stats| stats["state"] == "ready");
    let client = daemon.client();
    assert_eq!(left(&client), [0, 0, 8]);
    drop(client);
    daemon.end();
}

/// Blocks of 8 KiB: quotas in numbers of them.
fn quota(blocks: u64) -> u64 {
    blocks * SHAPE.slot_bytes()
}

#[test]
fn quotas_hold_in_memory_to_the_block_and_a_tenant_without_one_gets_the_default() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |config| {
        config.tenant_quota_bytes = Some(quota(8));
        config.quotas = [(tenant("large"), quota(24)), (tenant("none"), 0)].into();
    });
    let client = daemon.client();
    for (salt, expected) in [(Some("large"), 24), (Some("unknown"), 8), (None, 8), (Some("none"), 0)] {
        let tenant = TenantId::of_salt(salt);
        // Two models of one tenant share his quota.
        let [first, second] = [manifest(), adapted()].map(|manifest| client.name(&manifest, tenant));
        let done = put(&client, first, &links(first, expected / 2));
        assert_eq!(taken(&done), expected / 2, "{salt:?}");
        let done = put(&client, second, &links(second, 40));
        assert_eq!(taken(&done), expected - expected / 2, "{salt:?}");
        assert!(done[expected - expected / 2..].iter().all(|put| *put == Put::Not(Place::Full)), "{salt:?}: {done:?}");
        assert_eq!(check_run(&client, second, &links(second, 40)), (expected / 2, Some(MissReason::Quota)), "{salt:?}");
        // Deleting makes room again.
        client.delete_namespace(first).unwrap();
        assert_eq!(taken(&put(&client, first, &links(first, 40))), expected / 2, "{salt:?}");
    }
    daemon.end();
}

#[test]
fn what_is_reserved_counts_until_it_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |config| config.tenant_quota_bytes = Some(quota(8)));
    let (first, second) = (daemon.client(), daemon.client());
    let namespace = first.name(&manifest(), tenant("a"));
    second.name(&manifest(), tenant("a"));
    let links = links(namespace, 16);
    let places = first.reserve(&wanted(namespace, &links), Lineage::of(SHAPE.form_map())).unwrap();
    let reserved = |place: &&Place| matches!(place, Place::Reserved { .. });
    assert_eq!(places.answers.iter().filter(reserved).count(), 8);
    assert_eq!(taken(&put(&second, namespace, &links[8..])), 0);
    drop(first);
    daemon.settles("hanging up", |stats| stats["reservations"] == 0 && stats["clients"]["count"] == 1);
    assert_eq!(taken(&put(&second, namespace, &links)), 8);
    // A damaged image gives its room back.
    second.delete_namespace(namespace).unwrap();
    let places = second.reserve(&wanted(namespace, &links[..8]), Lineage::of(SHAPE.form_map())).unwrap();
    let reservations: Vec<_> = places
        .answers
        .iter()
        .map(|place| match place {
            Place::Reserved { reservation, offset } => {
                places.staging.write(*offset, &[0; 8]);
                *reservation
            }
            place => panic!("{place:?}"),
        })
        .collect();
    assert_eq!(second.commit(places.connection, &reservations).unwrap(), [CommitCode::FailedCheck; 8]);
    assert_eq!(taken(&put(&second, namespace, &links)), 8);
    daemon.end();
}

#[test]
fn quotas_hold_on_the_disk_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |config: &mut Config| {
        with_disk(folder.path(), config);
        config.tenant_quota_bytes = Some(quota(32));
    };
    let daemon = start(folder.path(), settings);
    let client = daemon.client();
    let namespace = client.name(&manifest(), tenant("a"));
    assert_eq!(taken(&put(&client, namespace, &links(namespace, 100))), 32);
    daemon.settles("writes", |stats| stats["tiers"]["disk"]["blocks"] == 32);
    drop(client);
    daemon.end();
    let daemon = start(folder.path(), settings);
    daemon.settles("recovery", |stats| stats["state"] == "ready");
    let client = daemon.client();
    // Nothing of it is in memory, and another model of the tenant has never stored anything.
    let other = client.name(&adapted(), tenant("a"));
    assert_eq!(taken(&put(&client, other, &links(other, 4))), 0);
    client.name(&manifest(), tenant("a"));
    assert_eq!(check_run(&client, namespace, &links(namespace, 100)), (32, Some(MissReason::NeverStored)));
    assert_eq!(daemon.stats()["tiers"]["disk"]["blocks"], 32);
    client.delete_namespace(namespace).unwrap();
    assert_eq!(taken(&put(&client, other, &links(other, 100))), 32);
    drop(client);
    daemon.end();
}

/// Where the quotas together fit the arena, nobody's blocks go for another's.
#[test]
fn a_flood_of_one_tenant_takes_nothing_from_another() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |config| config.tenant_quota_bytes = Some(quota(1000)));
    let (victim, flood) = (daemon.client(), daemon.client());
    let own = victim.name(&manifest(), tenant("victim"));
    put_all(&victim, own, &links(own, 1000));
    let flooded = flood.name(&manifest(), tenant("flood"));
    let mut refused = 0;
    for first in 0..40 {
        // Prefixes that nobody asks for again.
        let done = put(&flood, flooded, &links_from(flooded, first * 100_000, 100));
        refused += done.iter().filter(|put| **put == Put::Not(Place::Full)).count();
    }
    assert_eq!(refused, 3000);
    for links in links(own, 1000).chunks(100) {
        assert_eq!(check_run(&victim, own, links), (100, None));
    }
    assert_eq!(daemon.stats()["evictions"]["host"], 0);
    daemon.end();
}

#[test]
fn the_scrubber_finds_flipped_bits_before_a_reader_does() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |config| config.scrub_bytes_s = 1 << 30);
    let client = daemon.client();
    let namespace = client.name(&manifest(), tenant("scrubbed"));
    let alone: Vec<_> = (0..64).map(|first| links_from(namespace, 1000 * first, 1)[0]).collect();
    for link in &alone {
        put_all(&client, namespace, std::slice::from_ref(link));
    }
    // Header, first and last byte of values.
    let last = SHAPE.sections().last().expect("a block has sections");
    let bytes = [0, 100, 180, SHAPE.header_bytes(), last.offset + last.bytes - 1];
    for (index, link) in alone.iter().step_by(8).enumerate() {
        spoil::flip(&link.hash, bytes[index % bytes.len()], index as u8 % 8);
    }
    daemon.settles("the scrubber", |stats| stats["integrity_failures"]["host"] == 8);
    for (index, link) in alone.iter().enumerate() {
        let expected = if index % 8 == 0 { (0, Some(MissReason::FailedCheck)) } else { (1, None) };
        assert_eq!(check_run(&client, namespace, std::slice::from_ref(link)), expected, "block {index}");
    }
    // What is stored anew is sound again, while the slots rest, too.
    for link in alone.iter().step_by(8) {
        put_all(&client, namespace, std::slice::from_ref(link));
        assert_eq!(check_run(&client, namespace, std::slice::from_ref(link)), (1, None));
    }
    assert_eq!(daemon.stats()["integrity_failures"]["host"], 8);
    daemon.end();
}

/// Slots are granted for good; so room for clients is not granted to slots.
#[test]
fn a_client_that_comes_when_the_arena_is_full_finds_room() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |_| {});
    let client = daemon.client();
    let namespace = client.name(&manifest(), tenant("a"));
    for first in 0..50 {
        put(&client, namespace, &links_from(namespace, first * 100_000, 100));
    }
    assert!(daemon.stats()["evictions"]["host"].as_u64() > Some(0), "the arena is full");
    let late: Vec<Client> = (0..3).map(|_| daemon.client()).collect();
    let used = &daemon.stats()["tiers"]["host"];
    assert!(used["used_bytes"].as_u64() <= used["budget_bytes"].as_u64(), "{used}");
    for client in &late {
        client.name(&manifest(), tenant("a"));
        put(client, namespace, &links_from(namespace, 9_000_000, 1));
        assert_eq!(check_run(client, namespace, &links_from(namespace, 9_000_000, 1)), (1, None));
    }
    drop(late);
    daemon.end();
}
