//! A real daemon on a thread, clients of it, and blocks whose bytes tell whose they are.
#![allow(dead_code, reason = "each test target uses its part")]

pub mod honest;
pub mod isolation;
pub mod process;
pub mod raw;
pub mod spoil;
pub mod traffic;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cache_core::chain::{Chain, Link};
use cache_core::form::{Accept, Form, Lineage, Provenance};
use cache_core::hash::{Namespace, TenantId, WeightsId};
use cache_core::header::seal_image;
use cache_core::key::CopyKey;
use cache_core::manifest::Manifest;
use cache_core::payload::BlockShape;
use kvtier_daemon::config::{Config, Machine};
use kvtier_daemon::{ServeError, serve};
use kvtier_sdk::client::{Client, ClientSettings, Lent, Place, Wanted};
use kvtier_sdk::wire::CommitCode;
use serde_json::Value;

/// 8 KiB a slot.
pub const SHAPE: BlockShape = BlockShape { layers: 2, kv_heads: 1, head_dim: 16, block_tokens: 16, form: Form::Raw16 };
/// How long anything may take; generous, since nothing here is measured.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Daemon {
    pub socket: PathBuf,
    pub http: SocketAddr,
    thread: JoinHandle<Result<(), ServeError>>,
}

/// Settings of a small daemon in `folder`, with its statistics on a free port.
pub fn config(folder: &Path) -> Config {
    let mut config = Config::defaults(&Machine::here().unwrap());
    config.socket = folder.join("kvtier.sock");
    config.http = Some(free_address());
    config.host_mem_bytes = 32 << 20;
    config.client_staging_bytes = 512 << 10;
    config.deadline_ms = 10_000;
    config
}

pub fn with_disk(folder: &Path, config: &mut Config) {
    config.disk = Some(folder.join("store"));
    config.disk_size_bytes = 64 << 20;
}

pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub fn start(folder: &Path, change: impl FnOnce(&mut Config)) -> Daemon {
    let mut config = config(folder);
    change(&mut config);
    let (socket, http) = (config.socket.clone(), config.http.expect("the tests read its statistics"));
    let thread = std::thread::spawn(move || serve(config));
    let until = Instant::now() + PATIENCE;
    while !socket.exists() {
        if thread.is_finished() {
            panic!("the daemon does not start: {:?}", thread.join());
        }
        assert!(Instant::now() < until, "the daemon does not start in time");
        std::thread::sleep(Duration::from_millis(5));
    }
    Daemon { socket, http, thread }
}

impl Daemon {
    pub fn client(&self) -> Client {
        self.client_of(SHAPE)
    }

    pub fn client_of(&self, shape: BlockShape) -> Client {
        client_at(&self.socket, shape)
    }

    /// An answer of the statistics endpoint, 200 or not.
    pub fn get(&self, path: &str) -> Value {
        get(self.http, path)
    }

    pub fn stats(&self) -> Value {
        self.get("/stats")
    }

    /// Waits until a figure is what it should be.
    pub fn settles(&self, what: &str, figure: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let stats = self.stats();
            if figure(&stats) {
                return stats;
            }
            assert!(Instant::now() < until, "{what}: {stats}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// An orderly end.
    pub fn end(self) {
        self.client().drain().unwrap();
        self.thread.join().unwrap().unwrap();
    }
}

pub fn client_at(socket: &Path, shape: BlockShape) -> Client {
    let settings = ClientSettings { socket: socket.to_owned(), name: "hostile test".to_owned(), deadline: PATIENCE };
    let client = Client::open(settings, shape);
    assert!(client.is_connected());
    client
}

/// An answer of a statistics endpoint, 200 or not.
pub fn get(http: SocketAddr, path: &str) -> Value {
    let config = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build();
    let agent: ureq::Agent = config.into();
    let mut answer = agent.get(format!("http://{http}{path}")).call().unwrap();
    serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap()
}

pub fn manifest() -> Manifest {
    manifest_of(SHAPE)
}

pub fn manifest_of(shape: BlockShape) -> Manifest {
    Manifest::plain(WeightsId([7; 32]), &shape, "test")
}

/// The chain of the same tokens in a namespace.
pub fn links(namespace: Namespace, blocks: usize) -> Vec<Link> {
    links_from(namespace, 0, blocks)
}

/// The chain of other tokens for each `first`.
pub fn links_from(namespace: Namespace, first: u32, blocks: usize) -> Vec<Link> {
    let tokens: Vec<u32> = (first..first + SHAPE.block_tokens * blocks as u32).collect();
    Chain::over(namespace, SHAPE.block_tokens, &tokens).links().to_vec()
}

pub fn key(shape: BlockShape, namespace: Namespace, provenance: Provenance, link: &Link) -> CopyKey {
    CopyKey { provenance, form: shape.form_map(), ..CopyKey::exact(namespace, link.hash) }
}

/// A block's slot image: its values repeat its own hash, which no other block and no other tenant has.
pub fn image_of(shape: BlockShape, namespace: Namespace, provenance: Provenance, link: &Link) -> Vec<u8> {
    let mut image = vec![0; shape.slot_bytes() as usize];
    let hash = link.hash.bytes();
    let end = shape.sections().last().map_or(0, |last| last.offset + last.bytes) as usize;
    for chunk in image[shape.header_bytes() as usize..end].chunks_mut(hash.len()) {
        chunk.copy_from_slice(&hash[..chunk.len()]);
    }
    let key = key(shape, namespace, provenance, link);
    seal_image(&shape, key, Lineage::of(key.form), *link, &mut image);
    image
}

pub fn image(namespace: Namespace, link: &Link) -> Vec<u8> {
    image_of(SHAPE, namespace, Provenance::EXACT, link)
}

pub fn wanted<'a>(namespace: Namespace, links: &'a [Link]) -> Wanted<'a> {
    Wanted { namespace, provenance: Provenance::EXACT, links }
}

/// What became of a block that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Committed(CommitCode),
    Not(Place),
}

/// Offers blocks, as many at once as the staging memory takes.
pub fn put(client: &Client, namespace: Namespace, links: &[Link]) -> Vec<Put> {
    put_as(client, namespace, Provenance::EXACT, links)
}

pub fn put_as(client: &Client, namespace: Namespace, provenance: Provenance, links: &[Link]) -> Vec<Put> {
    let shape = client.shape();
    let mut done = Vec::new();
    for links in links.chunks(8) {
        let wanted = Wanted { namespace, provenance, links };
        let places = client.reserve(&wanted, Lineage::of(shape.form_map())).unwrap();
        let mut reservations = Vec::new();
        for (place, link) in places.answers.iter().zip(links) {
            if let Place::Reserved { reservation, offset } = place {
                places.staging.write(*offset, &image_of(shape, namespace, provenance, link));
                reservations.push(*reservation);
            }
        }
        let mut codes = client.commit(places.connection, &reservations).unwrap().into_iter();
        done.extend(places.answers.iter().map(|place| match place {
            Place::Reserved { .. } => Put::Committed(codes.next().expect("a code for each")),
            place => Put::Not(*place),
        }));
    }
    done
}

/// Offers blocks and expects that all of them are taken.
pub fn put_all(client: &Client, namespace: Namespace, links: &[Link]) {
    let done = put(client, namespace, links);
    assert_eq!(done, vec![Put::Committed(CommitCode::Inserted); links.len()]);
}

/// Reads a lent block; `None` when its slot has changed hands.
pub fn read(lent: &Lent, shape: BlockShape) -> Option<Vec<u8>> {
    let mut bytes = vec![0; shape.slot_bytes() as usize];
    lent.read(0, &mut bytes).then_some(bytes)
}

/// Leases the longest run of blocks and compares each byte of them; returns how many there were and why the next was not there.
pub fn check_run(
    client: &Client,
    namespace: Namespace,
    links: &[Link],
) -> (usize, Option<cache_core::miss::MissReason>) {
    let (lent, miss) = client.acquire(&wanted(namespace, links), Accept::Exact).unwrap();
    for (lent, link) in lent.iter().zip(links) {
        assert_eq!(read(lent, SHAPE).unwrap(), image(namespace, link), "block {}", link.depth);
    }
    (lent.len(), miss)
}

pub fn tenant(salt: &str) -> TenantId {
    TenantId::of_salt(Some(salt))
}

/// Waits for something that has to happen.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}
