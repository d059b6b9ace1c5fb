//! The service through its socket: blocks in and out, what others may see of them, and what is left when a client goes.

mod rig;

use std::ops::Range;
use std::os::unix::fs::FileExt;

use cache_core::chain::Link;
use cache_core::form::{Accept, Lineage, Provenance};
use cache_core::hash::{Namespace, TenantId, WeightsId};
use cache_core::header::verify_image;
use cache_core::manifest::Manifest;
use cache_core::miss::MissReason;
use cache_core::units::Tier;
use kvtier_daemon::serve;
use kvtier_sdk::client::{Client, Place};
use kvtier_sdk::wire::CommitCode;
use rig::*;

/// Puts blocks, each image changed by `change` before it is committed.
fn put(client: &Client, namespace: Namespace, links: &[Link], change: impl Fn(&mut Vec<u8>)) -> Vec<CommitCode> {
    let wanted = wanted(namespace, links);
    let places = client.reserve(&wanted, Lineage::of(SHAPE.form_map())).unwrap();
    let mut reservations = Vec::new();
    for (place, link) in places.answers.iter().zip(links) {
        let Place::Reserved { reservation, offset } = place else { panic!("{place:?}") };
        let mut image = image(namespace, link);
        change(&mut image);
        places.staging.write(*offset, &image);
        reservations.push(*reservation);
    }
    client.commit(places.connection, &reservations).unwrap()
}

/// How the kernel has this memory mapped, and what it is memory of. Panics unless one mapping has all of it.
fn mapping_of(wanted: Range<u64>) -> (String, String) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let found = maps.lines().find_map(|line| {
        // Range, access, offset, device, inode, and a name that may have spaces in it.
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
        let access = fields.next()?;
        let has_all = start <= wanted.start && wanted.end <= end;
        has_all.then(|| (access.to_owned(), fields.nth(3).unwrap_or_default().trim().to_owned()))
    });
    found.unwrap_or_else(|| panic!("{wanted:x?} is in no mapping:\n{maps}"))
}

#[test]
fn what_one_client_puts_another_reads_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |_| {});
    let (writer, reader) = (daemon.client(), daemon.client());
    let namespace = writer.name(&manifest(), TenantId::of_salt(None));
    assert_eq!(reader.name(&manifest(), TenantId::of_salt(None)), namespace);
    let links = links(namespace, 5);
    assert_eq!(put(&writer, namespace, &links[..4], |_| {}), vec![CommitCode::Inserted; 4]);
    let (tiers, miss) = reader.lookup(&wanted(namespace, &links), Accept::Exact).unwrap();
    assert_eq!((tiers, miss), (vec![Tier::Host; 4], Some(MissReason::NeverStored)));
    let (lent, miss) = reader.acquire(&wanted(namespace, &links), Accept::Exact).unwrap();
    assert_eq!((lent.len(), miss), (4, Some(MissReason::NeverStored)));
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    for (lent, link) in lent.iter().zip(&links) {
        let slot_end = lent.offset() + SHAPE.slot_bytes();
        assert!(slot_end <= lent.extent().bytes(), "the block lies inside the mapped extent");
        // Where its reader has it is memory of the daemon's arena, mapped read-only: no copy of it.
        let address = lent.extent().address() as u64 + lent.offset();
        let (access, name) = mapping_of(address..address + SHAPE.slot_bytes());
        assert_eq!((access.as_str(), name.as_str()), ("r--s", "/memfd:kvtier-extent (deleted)"));
        let mut there = vec![0; SHAPE.slot_bytes() as usize];
        memory.read_exact_at(&mut there, address).unwrap();
        assert_eq!(there, image(namespace, link));
        let mut read = vec![0; SHAPE.slot_bytes() as usize];
        assert!(lent.read(0, &mut read));
        verify_image(&SHAPE, &key(SHAPE, namespace, Provenance::EXACT, link), &read).unwrap();
        assert_eq!(read, image(namespace, link));
    }
    let held = daemon.stats();
    assert_eq!((&held["leases"]["count"], &held["copied_bytes"]), (&4.into(), &0.into()), "{held}");
    // Whoever comes second is told.
    let places = writer.reserve(&wanted(namespace, &links[..1]), Lineage::of(SHAPE.form_map())).unwrap();
    assert_eq!(places.answers, [Place::Present]);
    drop(lent);
    // Leases are given back with the next call.
    reader.lookup(&wanted(namespace, &links[..1]), Accept::Exact).unwrap();
    daemon.settles("leases", |stats| stats["leases"]["count"] == 0);
    drop(reader);
    daemon.end();
}

#[test]
fn a_spoilt_image_is_refused_and_never_seen() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |_| {});
    let client = daemon.client();
    let namespace = client.name(&manifest(), TenantId::of_salt(None));
    let links = links(namespace, 1);
    let last = SHAPE.sections().last().expect("a block has sections");
    // The page after the last section is filled up with bytes that mean nothing and are not looked at.
    for byte in [0, 60, 200, SHAPE.header_bytes() as usize, (last.offset + last.bytes) as usize - 1] {
        let codes = put(&client, namespace, &links, |image| image[byte] ^= 1);
        assert_eq!(codes, [CommitCode::FailedCheck], "byte {byte}");
        let (tiers, _) = client.lookup(&wanted(namespace, &links), Accept::Exact).unwrap();
        assert!(tiers.is_empty(), "byte {byte}");
    }
    assert_eq!(put(&client, namespace, &links, |_| {}), [CommitCode::Inserted]);
    assert_eq!(daemon.stats()["reservations"], 0);
    daemon.end();
}

#[test]
fn tenants_and_models_find_nothing_of_each_other_and_a_changed_field_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |_| {});
    let client = daemon.client();
    let own = client.name(&manifest(), TenantId::of_salt(Some("a")));
    put(&client, own, &links(own, 2), |_| {});
    let found = |namespace| client.lookup(&wanted(namespace, &links(namespace, 2)), Accept::Exact).unwrap();
    assert_eq!(found(own).0.len(), 2);
    for salt in [None, Some("b")] {
        let other = client.name(&manifest(), TenantId::of_salt(salt));
        assert_eq!(found(other), (vec![], Some(MissReason::NeverStored)), "{salt:?}");
    }
    let changed: [fn(&mut Manifest); 5] = [
        |manifest| manifest.weights = WeightsId([8; 32]),
        |manifest| manifest.dtype.push('x'),
        |manifest| manifest.rope.dimensions = 8,
        |manifest| manifest.adapter.push('x'),
        |manifest| manifest.numerics.push('x'),
    ];
    for change in changed {
        let mut manifest = manifest();
        change(&mut manifest);
        let other = client.name(&manifest, TenantId::of_salt(Some("a")));
        assert_eq!(found(other), (vec![], Some(MissReason::Namespace)), "{manifest:?}");
    }
    daemon.end();
}

#[test]
fn a_client_that_goes_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |_| {});
    let watcher = daemon.client();
    let namespace = watcher.name(&manifest(), TenantId::of_salt(None));
    let links = links(namespace, 8);
    put(&watcher, namespace, &links[..4], |_| {});
    let start = daemon.stats();
    for _ in 0..20 {
        let client = daemon.client();
        client.name(&manifest(), TenantId::of_salt(None));
        let (lent, _) = client.acquire(&wanted(namespace, &links), Accept::Exact).unwrap();
        assert_eq!(lent.len(), 4);
        client.reserve(&wanted(namespace, &links[4..]), Lineage::of(SHAPE.form_map())).unwrap();
        // Its leases are not given back: the connection ends with them.
        lent.into_iter().for_each(std::mem::forget);
        drop(client);
        daemon.settles("holdings", |stats| {
            stats["leases"]["count"] == 0 && stats["reservations"] == 0 && stats["clients"]["count"] == 1
        });
    }
    let end = daemon.stats();
    assert_eq!(end["tiers"]["host"]["used_bytes"], start["tiers"]["host"]["used_bytes"]);
    assert_eq!(end["leases"]["reclaimed"]["hang_up"], 80);
    daemon.end();
}

#[test]
fn blocks_outlive_the_daemon_on_its_disk() {
    let folder = tempfile::tempdir().unwrap();
    let serve = || start(folder.path(), |config| with_disk(folder.path(), config));
    let daemon = serve();
    let client = daemon.client();
    let namespace = client.name(&manifest(), TenantId::of_salt(None));
    let links = links(namespace, 64);
    for links in links.chunks(8) {
        assert_eq!(put(&client, namespace, links, |_| {}), vec![CommitCode::Inserted; 8]);
    }
    let held = daemon.stats();
    let host = &held["tiers"]["host"];
    assert!(host["used_bytes"].as_u64() <= host["budget_bytes"].as_u64(), "{held}");
    daemon.end();
    let daemon = serve();
    let client = daemon.client();
    client.name(&manifest(), TenantId::of_salt(None));
    daemon.settles("recovery", |stats| stats["state"] == "ready");
    let (lent, miss) = client.acquire(&wanted(namespace, &links), Accept::Exact).unwrap();
    assert_eq!((lent.len(), miss), (64, None));
    for (lent, link) in lent.iter().zip(&links) {
        assert_eq!(lent.tier(), Tier::Disk);
        let mut read = vec![0; SHAPE.slot_bytes() as usize];
        assert!(lent.read(0, &mut read));
        assert_eq!(read, image(namespace, link));
    }
    drop(lent);
    daemon.end();
}

#[test]
fn a_second_daemon_on_one_socket_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |_| {});
    let refused = serve(config(folder.path())).unwrap_err();
    assert!(refused.to_string().contains("another daemon listens there"), "{refused}");
    daemon.end();
}
