//! Blocks of a small shape whose bytes everybody knows: put, got and compared.

use std::time::Duration;

use cache_core::chain::{Chain, Link};
use cache_core::form::{Accept, Form, Lineage, Provenance};
use cache_core::hash::{Namespace, TenantId, WeightsId};
use cache_core::header::seal_image;
use cache_core::key::CopyKey;
use cache_core::manifest::Manifest;
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use disk_tier::io::rig::SplitMix64;
use kvtier_sdk::client::{CallError, Client, ClientSettings, Lent, Place, Wanted};
use kvtier_sdk::wire::CommitCode;

/// Slot images of 20 KiB with their header.
pub const SHAPE: BlockShape = BlockShape { layers: 4, kv_heads: 1, head_dim: 64, block_tokens: 16, form: Form::Raw16 };

/// Of these blocks.
pub fn manifest() -> Manifest {
    Manifest::plain(WeightsId([3; 32]), &SHAPE, "test")
}

/// The namespace of [`manifest`] for nobody in particular.
pub fn namespace() -> Namespace {
    manifest().namespace(TenantId::of_salt(None))
}

/// The namespace of [`manifest`] for a tenant whose blocks others have nothing to do with.
pub fn namespace_of(tenant: TenantId) -> Namespace {
    manifest().namespace(tenant)
}

/// A client with this deadline, connected or not.
pub fn client(socket: &std::path::Path, name: &str, deadline: Duration) -> Client {
    let settings = ClientSettings { socket: socket.to_owned(), name: name.to_owned(), deadline };
    let client = Client::open(settings, SHAPE);
    client.name(&manifest(), TenantId::of_salt(None));
    client
}

/// Chain number `chain`, so many blocks.
pub fn chain(chain: u32, blocks: usize) -> Vec<Link> {
    chain_in(namespace(), chain, blocks)
}

/// The same in another namespace.
pub fn chain_in(namespace: Namespace, chain: u32, blocks: usize) -> Vec<Link> {
    let tokens: Vec<u32> = (0..SHAPE.block_tokens * blocks as u32).map(|token| token ^ chain << 12).collect();
    Chain::over(namespace, SHAPE.block_tokens, &tokens).links().to_vec()
}

/// The slot image of a block: bytes that follow from its hash.
pub fn image(link: &Link) -> Vec<u8> {
    image_in(namespace(), link)
}

/// The same in another namespace.
pub fn image_in(namespace: Namespace, link: &Link) -> Vec<u8> {
    let mut image = vec![0; SHAPE.slot_bytes() as usize];
    let seed = u64::from_le_bytes(link.hash.0[..8].try_into().expect("eight bytes"));
    let mut random = SplitMix64::new(seed);
    for word in image[SHAPE.header_bytes() as usize..].chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    let key = CopyKey::exact(namespace, link.hash);
    seal_image(&SHAPE, key, Lineage::of(key.form), *link, &mut image);
    image
}

/// Blocks of the namespace as a client asks for them.
pub fn wanted(links: &[Link]) -> Wanted<'_> {
    Wanted { namespace: namespace(), provenance: Provenance::EXACT, links }
}

/// Puts what is neither there nor written by others; returns how many blocks went in. Panics on an answer that an honest client never gets.
pub fn put(client: &Client, links: &[Link]) -> Result<usize, CallError> {
    let places = client.reserve(&wanted(links), Lineage::of(SHAPE.form_map()))?;
    let mut reservations = Vec::new();
    for (place, link) in places.answers.iter().zip(links) {
        if let Place::Reserved { reservation, offset } = place {
            places.staging.write(*offset, &image(link));
            reservations.push(*reservation);
        }
    }
    if reservations.is_empty() {
        return Ok(0);
    }
    let codes = client.commit(places.connection, &reservations)?;
    for code in &codes {
        // Full: what was promised rests after a reader that was killed.
        assert!(matches!(code, CommitCode::Inserted | CommitCode::Present | CommitCode::Full), "{code:?}");
    }
    Ok(codes.iter().filter(|code| **code == CommitCode::Inserted).count())
}

/// Leases what is there.
pub fn get(client: &Client, links: &[Link]) -> Result<(Vec<Lent>, Option<MissReason>), CallError> {
    client.acquire(&wanted(links), Accept::Exact)
}

/// What a look at a lent block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Its bytes are the block's.
    Right,
    /// Its generation has moved: they mean nothing.
    Moved,
    /// Its generation stands and its bytes are others.
    Wrong,
}

/// Reads a lent block in place and compares it.
pub fn look(lent: &Lent, link: &Link) -> Look {
    let mut read = vec![0; SHAPE.slot_bytes() as usize];
    if !lent.read(0, &mut read) {
        return Look::Moved;
    }
    if read == image(link) { Look::Right } else { Look::Wrong }
}
