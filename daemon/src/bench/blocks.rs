//! Blocks whose bytes are known: a pattern that no two pages share, and the block's own number at the head of each page.

use cache_core::chain::Link;
use cache_core::form::{Form, Lineage};
use cache_core::hash::{BlockHash, FieldHasher, Namespace, TenantId, WeightsId};
use cache_core::header::{seal_image, verify_image};
use cache_core::key::CopyKey;
use cache_core::manifest::Manifest;
use cache_core::payload::BlockShape;

/// Keys and values of 8 heads of 128 channels in 32 layers, as an 8-billion-parameter model has them: 128 KiB a token.
const LAYERS: u32 = 32;
const KV_HEADS: u32 = 8;
const HEAD_DIM: u32 = 128;
const TOKEN_BYTES: u64 = 2 * 2 * (LAYERS * KV_HEADS * HEAD_DIM) as u64;
const PAGE: usize = 4096;

/// All blocks of one size.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    pub(super) shape: BlockShape,
    pub(super) manifest: Manifest,
    pub(super) namespace: Namespace,
    pattern: Vec<u8>,
}

impl Blocks {
    /// Errors: a size that is no whole number of tokens.
    pub(super) fn new(block_bytes: u64) -> Result<Blocks, String> {
        Blocks::shape_of(block_bytes).map(Blocks::of)
    }

    /// Errors: as [`Blocks::new`].
    pub(super) fn shape_of(block_bytes: u64) -> Result<BlockShape, String> {
        if block_bytes == 0 || !block_bytes.is_multiple_of(TOKEN_BYTES) || block_bytes > 256 << 20 {
            return Err(format!(
                "blocks of {block_bytes} bytes: give a multiple of {} KiB, 256 MiB at most",
                TOKEN_BYTES >> 10
            ));
        }
        let block_tokens = (block_bytes / TOKEN_BYTES) as u32;
        Ok(BlockShape { layers: LAYERS, block_tokens, ..Blocks::small_shape() })
    }

    /// Small blocks, of which batches are made: nobody looks into them.
    pub(super) fn small() -> Blocks {
        Blocks::of(Blocks::small_shape())
    }

    pub(super) fn small_shape() -> BlockShape {
        BlockShape { layers: 1, kv_heads: KV_HEADS, head_dim: HEAD_DIM, block_tokens: 16, form: Form::Raw16 }
    }

    fn of(shape: BlockShape) -> Blocks {
        // New at each run: what a daemon has from an earlier one is another namespace's.
        let numerics = format!("bench of {}", std::process::id());
        let manifest = Manifest::plain(WeightsId([0x6b; 32]), &shape, &numerics);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let payload = (shape.slot_bytes() - shape.header_bytes()) as usize;
        let mut pattern = vec![0; payload];
        for word in pattern.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        Blocks { shape, namespace: manifest.namespace(tenant()), manifest, pattern }
    }

    /// Bytes of a slot image.
    pub(super) fn image_bytes(&self) -> usize {
        self.shape.slot_bytes() as usize
    }

    /// Block `number`, in a chain of its own.
    pub(super) fn link(&self, number: u64) -> Link {
        let mut hasher = FieldHasher::new("kvtier.bench.v1");
        hasher.number(number);
        Link { hash: BlockHash(hasher.finish()), parent: None, depth: 0 }
    }

    /// A chain of so many blocks.
    pub(super) fn chain(&self, blocks: usize) -> Vec<Link> {
        let mut links: Vec<Link> = Vec::with_capacity(blocks);
        for depth in 0..blocks {
            let parent = links.last().map(|link| link.hash);
            links.push(Link { parent, depth: depth as u32, ..self.link(u64::MAX - depth as u64) });
        }
        links
    }

    pub(super) fn key(&self, link: &Link) -> CopyKey {
        CopyKey { form: self.shape.form_map(), ..CopyKey::exact(self.namespace, link.hash) }
    }

    pub(super) fn lineage(&self) -> Lineage {
        Lineage::of(self.shape.form_map())
    }

    /// Writes the whole image of a block.
    pub(super) fn fill(&self, link: &Link, number: u64, image: &mut [u8]) {
        let payload = &mut image[self.shape.header_bytes() as usize..];
        payload.copy_from_slice(&self.pattern);
        for page in payload.chunks_mut(PAGE) {
            page[..8].copy_from_slice(&number.to_le_bytes());
        }
        seal_image(&self.shape, self.key(link), self.lineage(), *link, image);
    }

    /// Compares every byte of an image with what was put, its header with whose it should be. Errors: whose block it is not.
    pub(super) fn compare(&self, link: &Link, number: u64, image: &[u8]) -> Result<(), String> {
        let payload = &image[self.shape.header_bytes() as usize..];
        let is_same = payload
            .chunks(PAGE)
            .zip(self.pattern.chunks(PAGE))
            .all(|(found, pattern)| found[..8] == number.to_le_bytes() && found[8..] == pattern[8..]);
        if !is_same {
            return Err(format!("block {number}: other bytes than were put"));
        }
        verify_image(&self.shape, &self.key(link), image).map(drop).map_err(|error| format!("block {number}: {error}"))
    }
}

pub(super) fn tenant() -> TenantId {
    TenantId::of_salt(Some("kvtier bench"))
}
