//! Blocks of an engine's own bytes through the daemon's socket: put, found and read in place as they were, after a restart too; and never by an
//! engine that lays out its blocks in another way.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cache_core::chain::{Chain, Link};
use cache_core::form::{Accept, Form, FormMapId, Lineage, Opaque, Provenance};
use cache_core::hash::{Namespace, TenantId, WeightsId};
use cache_core::header::{seal_image, verify_image};
use cache_core::key::CopyKey;
use cache_core::manifest::Manifest;
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use cache_core::units::Tier;
use kvtier_daemon::config::{Config, Machine};
use kvtier_daemon::{ServeError, serve};
use kvtier_sdk::client::{Client, ClientSettings, Place, Wanted};
use kvtier_sdk::wire::CommitCode;
use serde_json::Value;

const BLOCKS: usize = 3;

type Served = JoinHandle<Result<(), ServeError>>;

fn start(folder: &Path) -> (PathBuf, Served) {
    let socket = folder.join("kvtier.sock");
    let mut config = Config::defaults(&Machine::here().unwrap());
    config.socket = socket.clone();
    config.http = None;
    config.host_mem_bytes = 32 << 20;
    config.client_staging_bytes = 256 << 10;
    config.disk = Some(folder.join("store"));
    config.disk_size_bytes = 64 << 20;
    let thread = std::thread::spawn(move || serve(config));
    let until = Instant::now() + Duration::from_secs(60);
    while !socket.exists() {
        assert!(!thread.is_finished() && Instant::now() < until, "the daemon does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    (socket, thread)
}

fn client(socket: &Path, shape: BlockShape) -> Client {
    let deadline = Duration::from_secs(20);
    let settings = ClientSettings { socket: socket.to_owned(), name: "opaque test".to_owned(), deadline };
    let client = Client::open(settings, shape);
    assert!(client.is_connected());
    client
}

/// Two layers of so many bytes in a layout. Heads and tokens are of no consequence to the bytes, and 8 does not divide them.
fn shape(layer_bytes: u32, layout: &str) -> BlockShape {
    let form = Form::from(Opaque::new(layer_bytes, Opaque::digest(layout)).unwrap());
    BlockShape { layers: 2, kv_heads: 3, head_dim: 57, block_tokens: 10, form }
}

fn manifest(shape: &BlockShape, dtype: String) -> Manifest {
    Manifest { dtype, ..Manifest::plain(WeightsId([7; 32]), shape, "a foreign engine") }
}

fn named(client: &Client) -> (Namespace, Vec<Link>) {
    let shape = client.shape();
    let namespace = client.name(&manifest(&shape, shape.form.name()), TenantId::of_salt(None));
    let tokens: Vec<u32> = (0..shape.block_tokens * BLOCKS as u32).collect();
    (namespace, Chain::over(namespace, shape.block_tokens, &tokens).links().to_vec())
}

fn key(namespace: Namespace, link: &Link) -> CopyKey {
    CopyKey { form: FormMapId::OPAQUE, ..CopyKey::exact(namespace, link.hash) }
}

/// Bytes of no number format in particular.
fn image(shape: &BlockShape, namespace: Namespace, link: &Link) -> Vec<u8> {
    let mut image = vec![0; shape.slot_bytes() as usize];
    let start = shape.header_bytes() as usize;
    image[start..start + shape.payload_bytes() as usize]
        .iter_mut()
        .enumerate()
        .for_each(|(at, byte)| *byte = (at as u32 * 131 + link.depth * 17) as u8);
    let key = key(namespace, link);
    seal_image(shape, key, Lineage::of(key.form), *link, &mut image);
    image
}

fn wanted<'a>(namespace: Namespace, links: &'a [Link]) -> Wanted<'a> {
    Wanted { namespace, provenance: Provenance::EXACT, links }
}

fn put(client: &Client) -> Vec<CommitCode> {
    let ((namespace, links), shape) = (named(client), client.shape());
    let places = client.reserve(&wanted(namespace, &links), Lineage::of(FormMapId::OPAQUE)).unwrap();
    let mut reservations = Vec::new();
    for (place, link) in places.answers.iter().zip(&links) {
        let Place::Reserved { reservation, offset } = place else { panic!("{place:?}") };
        places.staging.write(*offset, &image(&shape, namespace, link));
        reservations.push(*reservation);
    }
    client.commit(places.connection, &reservations).unwrap()
}

/// Reads every block where it lies and compares it with what was put.
fn reads_back(client: &Client, accept: Accept) {
    let ((namespace, links), shape) = (named(client), client.shape());
    let (lent, miss) = client.acquire(&wanted(namespace, &links), accept).unwrap();
    assert_eq!((lent.len(), miss), (BLOCKS, None));
    for (lent, link) in lent.iter().zip(&links) {
        let mut read = vec![0; shape.slot_bytes() as usize];
        assert!(lent.read(0, &mut read));
        verify_image(&shape, &key(namespace, link), &read).unwrap();
        assert!(read == image(&shape, namespace, link), "block {}", link.depth);
    }
}

fn end(client: Client, served: Served) {
    client.drain().unwrap();
    drop(client);
    served.join().unwrap().unwrap();
}

#[test]
fn opaque_blocks_come_back_as_they_were_after_a_restart_too() {
    let folder = tempfile::tempdir().unwrap();
    let shape = shape(5001, "NHD fp8_e4m3");
    let (socket, served) = start(folder.path());
    let (writer, reader) = (client(&socket, shape), client(&socket, shape));
    assert_eq!(put(&writer), [CommitCode::Inserted; BLOCKS]);
    reads_back(&reader, Accept::Exact);
    reads_back(&reader, Accept::AtLeast(shape.form));
    let stats: Value = serde_json::from_str(&writer.stats().unwrap()).unwrap();
    assert!(stats["saved"]["form_bytes"]["opaque"].is_u64(), "{stats}");
    drop(reader);
    end(writer, served);
    let (socket, served) = start(folder.path());
    let reader = client(&socket, shape);
    let (namespace, links) = named(&reader);
    // The store's index is read behind the start.
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match reader.lookup(&wanted(namespace, &links), Accept::Exact).unwrap() {
            (tiers, None) => break assert_eq!(tiers, [Tier::Disk; BLOCKS]),
            found => assert!(Instant::now() < until, "{found:?}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    reads_back(&reader, Accept::Exact);
    end(reader, served);
}

#[test]
fn blocks_of_two_layouts_never_meet() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, served) = start(folder.path());
    let own = client(&socket, shape(5001, "NHD"));
    assert_eq!(put(&own), [CommitCode::Inserted; BLOCKS]);
    let found = |client: &Client| {
        let (namespace, links) = named(client);
        client.lookup(&wanted(namespace, &links), Accept::Exact).unwrap()
    };
    assert_eq!(found(&own).0.len(), BLOCKS);
    // Blocks as long in another layout, and longer ones in the same.
    for other in [shape(5001, "HND"), shape(5002, "NHD")] {
        let other = client(&socket, other);
        assert_ne!(named(&other).0, named(&own).0);
        assert_eq!(found(&other), (vec![], Some(MissReason::Namespace)), "known under another layout");
        assert_eq!(put(&other), [CommitCode::Inserted; BLOCKS]);
        reads_back(&other, Accept::Exact);
    }
    reads_back(&own, Accept::Exact);
    // Who leaves the layout out of the manifest, or names another one there, is served nothing: the answer is no namespace but a refusal.
    let liar = client(&socket, shape(5001, "HND"));
    let manifest = manifest(&liar.shape(), shape(5001, "NHD").form.name());
    let namespace = liar.name(&manifest, TenantId::of_salt(None));
    let links = named(&own).1;
    let answer = liar.lookup(&wanted(namespace, &links), Accept::Exact);
    assert!(!matches!(&answer, Ok((tiers, _)) if !tiers.is_empty()), "{answer:?}");
    reads_back(&own, Accept::Exact);
    drop(liar);
    end(own, served);
}
