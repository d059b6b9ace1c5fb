//! Memory that blocks come through and into: little for who only looks, enough for who stores, and there before it is written.

mod rig;

use std::os::fd::OwnedFd;

use cache_core::form::{Accept, Form, Lineage};
use cache_core::hash::{BlockHash, Namespace};
use cache_core::payload::BlockShape;
use kvtier_sdk::client::{Client, Place};
use kvtier_sdk::wire::{
    Abort, Batch, CommitCode, KeyParts, MapExtent, Reply, Request, ReservationId, Reserve, ReserveCode, Run, Stage,
    StageReply, Status,
};
use rig::raw::Raw;
use rig::*;
use rustix::fs::fstat;

/// 128 tokens of Llama-3-8B: 16 MiB, and a page for the header.
const LLAMA: BlockShape = BlockShape { layers: 32, kv_heads: 8, head_dim: 128, block_tokens: 128, form: Form::Raw16 };

/// Stores one block, and reads it back by another client.
fn goes_through(client: &Client, reader: &Client, namespace: Namespace, number: u32) {
    let link = links_from(namespace, 1000 * number, 1)[0];
    let image = image_of(LLAMA, namespace, cache_core::form::Provenance::EXACT, &link);
    let places = client.reserve(&wanted(namespace, &[link]), Lineage::of(LLAMA.form_map())).unwrap();
    let [Place::Reserved { reservation, offset }] = places.answers[..] else { panic!("{:?}", places.answers) };
    places.staging.write(offset, &image);
    assert_eq!(client.commit(places.connection, &[reservation]).unwrap(), [CommitCode::Inserted]);
    let (lent, _) = reader.acquire(&wanted(namespace, &[link]), Accept::Exact).unwrap();
    assert!(read(&lent[0], LLAMA).unwrap() == image, "block {number}");
}

#[test]
fn a_small_daemon_lets_many_clients_in_and_takes_their_large_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |config| {
        config.host_mem_bytes = 96 << 20;
        config.client_staging_bytes = 64 << 20;
    });
    let clients: Vec<Client> = (0..20).map(|_| daemon.client_of(LLAMA)).collect();
    let named: Vec<Namespace> = clients.iter().map(|client| client.name(&manifest_of(LLAMA), tenant("a"))).collect();
    let namespace = named[0];
    for client in &clients {
        let link = links_from(namespace, 0, 1);
        assert!(client.lookup(&wanted(namespace, &link), Accept::Exact).unwrap().0.is_empty(), "it is served");
    }
    let stats = daemon.stats();
    assert!(stats["tiers"]["host"]["used_bytes"].as_u64().unwrap() < 32 << 20, "who only looks takes little: {stats}");
    goes_through(&clients[0], &clients[1], namespace, 1);
    // The first one's staging memory goes with it.
    drop(clients);
    daemon.settles("they are gone", |stats| stats["clients"]["count"] == 0);
    let [client, reader] = [0, 1].map(|_| daemon.client_of(LLAMA));
    for client in [&client, &reader] {
        client.name(&manifest_of(LLAMA), tenant("a"));
    }
    goes_through(&client, &reader, namespace, 2);
    drop((client, reader));
    daemon.end();
}

/// Reserves one block that nobody else has.
fn reserve(raw: &mut Raw, parts: KeyParts, number: u8) -> kvtier_sdk::wire::Reserved {
    let hashes = [BlockHash([number; 32])];
    let run = Run::new(0, None, &hashes).unwrap();
    let answer = raw.call(&Request::Reserve(Reserve { parts, lineage: Lineage::of(parts.form), run })).unwrap();
    let Reply::Reserve(reserved) = answer.reply() else { panic!("{answer:?}") };
    reserved.answers[0]
}

fn stage(raw: &mut Raw, least_bytes: u64) -> Result<(u64, OwnedFd), Status> {
    let mut answer = raw.call(&Request::Stage(Stage { least_bytes })).unwrap();
    if let Some(status) = answer.status() {
        assert!(answer.descriptor.is_none(), "a refusal carries none");
        return Err(status);
    }
    let descriptor = answer.descriptor.take().expect("a descriptor comes along");
    let Reply::Stage(StageReply { bytes }) = answer.reply() else { panic!("{answer:?}") };
    assert_eq!(fstat(&descriptor).unwrap().st_size as u64, bytes);
    Ok((bytes, descriptor))
}

#[test]
fn staging_memory_is_replaced_only_while_nothing_is_written_there() {
    let folder = tempfile::tempdir().unwrap();
    let most = 4 << 20;
    let daemon = start(folder.path(), |config| config.client_staging_bytes = most);
    let (mut raw, hello, first) = Raw::open(&daemon.socket);
    assert_eq!(hello.staging_bytes, 256 << 10, "a beginning");
    assert_eq!(fstat(&first).unwrap().st_size, 256 << 10);
    let parts = raw.open_namespace(&manifest(), tenant("a"));
    let reserved = reserve(&mut raw, parts, 1);
    assert_eq!(reserved.answer, ReserveCode::Reserved);
    assert_eq!(stage(&mut raw, 1).err(), Some(Status::BadFrame), "a block is being written");
    let ids: [ReservationId; 1] = [reserved.reservation];
    assert!(raw.call(&Request::Abort(Abort { reservations: Batch::new(&ids).unwrap() })).unwrap().status().is_none());
    for least in [most + 1, u64::MAX] {
        assert_eq!(stage(&mut raw, least).err(), Some(Status::TooLarge), "more than a client may have");
    }
    assert_eq!(stage(&mut raw, 8 << 10).unwrap().0, most);
    let taken = daemon.stats()["tiers"]["host"]["used_bytes"].as_u64().unwrap();
    for _ in 0..3 {
        assert_eq!(stage(&mut raw, 8 << 10).unwrap().0, most, "what there is, again");
    }
    assert_eq!(daemon.stats()["tiers"]["host"]["used_bytes"].as_u64().unwrap(), taken, "nothing is counted twice");
    // More reservations than the first staging memory would hold.
    let images = (0..200).map(|number| reserve(&mut raw, parts, number)).collect::<Vec<_>>();
    assert!(images.iter().all(|reserved| reserved.answer == ReserveCode::Reserved));
    drop(raw);
    daemon.settles("its memory is given back", |stats| {
        stats["tiers"]["host"]["used_bytes"].as_u64().is_some_and(|used| used + most <= taken)
    });
    daemon.end();
}

/// Bytes of a class's first extent that the kernel has committed.
fn committed(raw: &mut Raw, parts: KeyParts) -> u64 {
    let answer = raw.call(&Request::MapExtent(MapExtent { class: parts.class, extent: 0 })).unwrap();
    fstat(answer.descriptor.expect("an extent comes with its reply")).unwrap().st_blocks as u64 * 512
}

#[test]
fn slots_are_committed_before_blocks_come_and_only_if_wanted() {
    let ahead = 2 << 20;
    for touch_ahead_bytes in [ahead, 0] {
        let folder = tempfile::tempdir().unwrap();
        let daemon = start(folder.path(), |config| config.touch_ahead_bytes = touch_ahead_bytes);
        let client = daemon.client();
        let namespace = client.name(&manifest(), tenant("a"));
        let (mut raw, ..) = Raw::open(&daemon.socket);
        let parts = raw.open_namespace(&manifest(), tenant("a"));
        let before = daemon.stats()["tiers"]["host"]["used_bytes"].as_u64().unwrap();
        if touch_ahead_bytes > 0 {
            until("memory is committed", || committed(&mut raw, parts) >= ahead);
        }
        put_all(&client, namespace, &links(namespace, 100));
        match touch_ahead_bytes {
            0 => assert!(committed(&mut raw, parts) < (100 * SHAPE.slot_bytes()) + (64 << 10), "as blocks came"),
            _ => until("as much again is", || committed(&mut raw, parts) >= ahead + 100 * SHAPE.slot_bytes()),
        }
        let used = daemon.stats()["tiers"]["host"]["used_bytes"].as_u64().unwrap() - before;
        assert!(used < 100 * SHAPE.slot_bytes() + (2 << 20), "what is free does not count as used: {used}");
        assert_eq!(check_run(&client, namespace, &links(namespace, 100)).0, 100);
        drop((client, raw));
        daemon.end();
    }
}

#[test]
fn commits_under_way_are_answered_whenever_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |_| {});
    let client = daemon.client();
    let namespace = client.name(&manifest(), tenant("a"));
    let links = links(namespace, 4);
    let places = client.reserve(&wanted(namespace, &links), Lineage::of(SHAPE.form_map())).unwrap();
    let ids: Vec<ReservationId> = (places.answers.iter().zip(&links))
        .map(|(place, link)| {
            let Place::Reserved { reservation, offset } = place else { panic!("{place:?}") };
            places.staging.write(*offset, &image(namespace, link));
            *reservation
        })
        .collect();
    let [one, _two, three] =
        [&ids[..1], &ids[1..2], &ids[2..3]].map(|ids| client.begin_commit(places.connection, ids).unwrap());
    // Other calls go by, and leases are given back with them.
    assert_eq!(check_run(&client, namespace, &links[..3]).0, 3, "what was sent before them is done before them");
    client.give_back().unwrap();
    assert_eq!(client.committed(three).unwrap(), [CommitCode::Inserted]);
    assert_eq!(client.committed(one).unwrap(), [CommitCode::Inserted]);
    assert_eq!(
        client.commit(places.connection, &ids[1..]).unwrap()[2..],
        [CommitCode::Inserted],
        "nobody asked, and it was done"
    );
    assert_eq!(check_run(&client, namespace, &links).0, 4);
    assert!(client.is_connected());
    drop(client);
    daemon.end();
}
