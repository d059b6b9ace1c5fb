//! A small cache on a real device and host arena, and block contents that can be recognised.

use std::sync::Arc;

use cache_core::chain::{Chain, Link};
use cache_core::form::{Accept, Form};
use cache_core::hash::{Namespace, TenantId, WeightsId};
use cache_core::manager::Budgets;
use cache_core::manifest::Manifest;
use cache_core::payload::BlockShape;
use gpu_tier::attention::Attention;
use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::Workers;
use gpu_tier::cpu::{CpuConfig, CpuDevice, Link as HostLink};
use gpu_tier::device::{CopyPiece, Stream};
use host_tier::Layout;

use crate::cache::{BlockPlace, Committed, Grant, KvCache, SequenceId, Want};
use crate::embedded::{DaemonSettings, Embedded, EmbeddedConfig};

/// Tokens of a block.
pub const TOKENS: u32 = 16;
/// 8 KiB a slot.
pub const SHAPE: BlockShape =
    BlockShape { layers: 3, kv_heads: 2, head_dim: 16, block_tokens: TOKENS, form: Form::Raw16 };
/// The same in f32.
pub const RAW32: BlockShape = BlockShape { form: Form::Raw32, ..SHAPE };
/// A namespace that nobody named: for caches of one process.
pub const HOME: Namespace = Namespace([7; 32]);
/// Another one.
pub const AWAY: Namespace = Namespace([8; 32]);

/// A cache with its device.
pub struct Rig {
    /// The device.
    pub device: Arc<dyn Attention>,
    /// The cache.
    pub cache: Embedded,
}

/// Smallest host budget that gives exactly `slots` slots.
pub fn host_bytes(device_slots: u32, slots: u32) -> u64 {
    let index = Budgets { device_slots, host_slots: slots + 1, below_entries: 0 }.metadata_bytes();
    let mut bytes = u64::from(slots) * SHAPE.slot_bytes();
    while Layout::new(bytes, &SHAPE, 40_000, 500).map_or(0, |layout| layout.slots()) < slots {
        bytes += 1024;
    }
    index + bytes
}

impl Rig {
    /// The `cpu` device and host arena in this process.
    pub fn open(link: HostLink, shape: BlockShape, device_slots: u32, host_bytes: u64) -> Rig {
        Rig::on(cpu(link, shape, device_slots), shape, device_slots, host_bytes)
    }

    /// A device, which has room for four slots beside the blocks, and host arena in this process.
    pub fn on(device: Arc<dyn Attention>, shape: BlockShape, device_slots: u32, host_bytes: u64) -> Rig {
        let config = EmbeddedConfig { device: Arc::clone(&device), shape, device_slots, host_bytes, disk: None };
        let cache = Embedded::open(config).unwrap();
        Rig { device, cache }
    }

    /// A device over a daemon.
    pub fn over_daemon(device_slots: u32, settings: DaemonSettings) -> Rig {
        let device = cpu(HostLink::InPlace, SHAPE, device_slots);
        let cache = Embedded::over_daemon(Arc::clone(&device), SHAPE, device_slots, settings).unwrap();
        Rig { device, cache }
    }

    /// The namespace of a tenant, made known to whatever is below the device.
    pub fn namespace(&self, salt: &str) -> Namespace {
        let shape = self.cache.shape();
        let plain = Manifest::plain(WeightsId([7; 32]), &shape, "contract");
        let manifest = Manifest { dtype: shape.form.name(), ..plain };
        self.cache.namespace(&manifest, TenantId::of_salt(Some(salt)))
    }

    /// In place, with about `host_slots` host slots (exactly what `stats` says).
    pub fn new(device_slots: u32, host_slots: u32) -> Rig {
        Rig::open(
            HostLink::InPlace,
            SHAPE,
            device_slots,
            if host_slots == 0 { 0 } else { host_bytes(device_slots, host_slots) },
        )
    }

    /// Opens one block of a sequence for `link`.
    pub fn reserve(&self, sequence: SequenceId, link: Option<Link>) -> Grant {
        let mut grants = self.cache.reserve(&[Want { sequence, blocks: vec![link] }]).unwrap();
        assert_eq!(grants.len(), 1);
        grants.remove(0)
    }

    /// Writes the pattern of `link` into an open block, as kernels would, and commits it.
    pub fn fill(&self, sequence: SequenceId, block: u32, link: Link) -> Committed {
        self.write(sequence, block, link);
        self.cache.commit(sequence, block, &[link]).unwrap().remove(0)
    }

    /// Writes the pattern of `link` into an open block.
    pub fn write(&self, sequence: SequenceId, block: u32, link: Link) {
        let BlockPlace::Device(image, _) = self.cache.places(sequence).unwrap().swap_remove(block as usize) else {
            panic!("an open block is in device memory");
        };
        for section in self.cache.shape().sections() {
            let target = image.slice(section.offset, section.bytes);
            self.device.upload(Stream::Compute, &pattern(&link, section.index, section.bytes), target).unwrap();
        }
    }

    /// Computes a block after `have` others: reserve, fill, commit.
    pub fn compute(&self, sequence: SequenceId, links: &[Link], have: usize) {
        for (index, link) in links.iter().enumerate().skip(have) {
            assert_eq!(self.reserve(sequence, Some(*link)), Grant::Granted, "block {index}");
            self.fill(sequence, index as u32, *link);
        }
    }

    /// Acquires what is there of `links` and computes the rest; returns the sequence and how many blocks were hits.
    pub fn run(&self, namespace: Namespace, links: &[Link]) -> (SequenceId, usize) {
        let sequence = self.cache.open(namespace);
        let acquired = self.cache.acquire(sequence, links, Accept::Exact).unwrap();
        self.compute(sequence, links, acquired.tiers.len());
        (sequence, acquired.tiers.len())
    }

    /// Reads every block of a sequence from where it is and compares it with its pattern; returns how many were in the host arena.
    pub fn verify(&self, sequence: SequenceId, links: &[Link]) -> usize {
        let places = self.cache.places(sequence).unwrap();
        assert_eq!(places.len(), links.len());
        let mut in_host = 0;
        for (index, (place, link)) in places.iter().zip(links).enumerate() {
            let image = self.read(place).unwrap_or_else(|| panic!("block {index} is {place:?}"));
            assert!(self.cache.check(sequence, index as u32, place));
            assert!(image == expected(link, &self.cache.shape()), "block {index} at {place:?} has other bytes");
            in_host += usize::from(matches!(place, BlockPlace::Host(..)));
        }
        in_host
    }

    /// Bytes of all sections at a place, read through the device, in place or over the copy engine.
    pub fn read(&self, place: &BlockPlace) -> Option<Vec<u8>> {
        let shape = self.cache.shape();
        let (from, to) = (shape.header_bytes(), shape.header_bytes() + shape.payload_bytes());
        match place {
            BlockPlace::Device(image, _) => {
                let mut bytes = vec![0; (to - from) as usize];
                self.device.download(Stream::Compute, image.slice(from, to - from), &mut bytes).unwrap();
                Some(bytes)
            }
            BlockPlace::Host(range, _) => {
                let bounce = self.device.allocate(shape.slot_bytes()).unwrap();
                let piece = CopyPiece { host: *range, device: bounce.range() };
                self.device.copy_in(Stream::CopyIn, &[piece]).unwrap();
                let mut bytes = vec![0; (to - from) as usize];
                self.device.download(Stream::CopyIn, bounce.range().slice(from, to - from), &mut bytes).unwrap();
                Some(bytes)
            }
            BlockPlace::Disk | BlockPlace::Lost(_) | BlockPlace::Absent => None,
        }
    }

    /// The budgets hold and the books agree.
    pub fn check_budgets(&self) {
        let stats = self.cache.stats();
        let memory = self.device.memory();
        assert!(memory.peak_bytes <= memory.budget_bytes, "{memory:?}");
        assert!(stats.device_slots.0 <= stats.device_slots.1 && stats.host_slots.0 <= stats.host_slots.1, "{stats:?}");
        assert!(stats.host_bytes.0 <= stats.host_bytes.1, "{stats:?}");
        self.cache.audit().unwrap();
    }
}

fn cpu(link: HostLink, shape: BlockShape, device_slots: u32) -> Arc<dyn Attention> {
    let config = CpuConfig {
        // Blocks, and a bounce buffer for each of up to four threads that read the host arena.
        budget_bytes: u64::from(device_slots + 4) * shape.slot_bytes(),
        link,
        workers: Arc::new(Workers::new(1)),
        isa: Isa::detect(),
    };
    Arc::new(CpuDevice::open(config).unwrap())
}

/// Links over tokens that a seed names.
pub fn chain(namespace: Namespace, seed: u32, blocks: u32) -> Vec<Link> {
    let tokens: Vec<u32> = (0..blocks * TOKENS).map(|index| seed.wrapping_mul(7919) ^ index).collect();
    Chain::over(namespace, TOKENS, &tokens).links().to_vec()
}

/// A chain that shares its first `shared` blocks with `chain(namespace, seed, ..)`.
pub fn branch(namespace: Namespace, seed: u32, shared: u32, other: u32, blocks: u32) -> Vec<Link> {
    let token = |index: u32| (if index < shared * TOKENS { seed } else { other }).wrapping_mul(7919) ^ index;
    let tokens: Vec<u32> = (0..blocks * TOKENS).map(token).collect();
    Chain::over(namespace, TOKENS, &tokens).links().to_vec()
}

/// Bytes of one section that depend on the block and the section.
pub fn pattern(link: &Link, section: u32, bytes: u64) -> Vec<u8> {
    let seed = u64::from_le_bytes(link.hash.0[..8].try_into().unwrap())
        ^ u64::from(section).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..bytes).map(|index| (seed.wrapping_add(index).wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8).collect()
}

/// Bytes of all sections of a block.
pub fn expected(link: &Link, shape: &BlockShape) -> Vec<u8> {
    shape.sections().flat_map(|section| pattern(link, section.index, section.bytes)).collect()
}
