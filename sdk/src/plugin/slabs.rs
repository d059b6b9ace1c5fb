//! Where an engine keeps keys and values: one slab a layer, cut into blocks of its own size.
//!
//! ```text
//! slab of layer l:   | engine block 0 | ... | engine block 1 | ...      one every `stride` bytes, each `block_bytes` long
//! stored block:      | layer 0: c engine blocks | layer 1: c engine blocks | ...      one after the other
//! ```

use super::lossy::Coder;
use super::memory::{Bytes, Region};
use super::{Plugin, PluginError};

/// In the place of an engine's block: this part of the stored block goes nowhere. Only where blocks are loaded.
pub const SKIP: u32 = u32::MAX;

/// An engine's memory.
#[derive(Debug)]
pub struct Slabs {
    layers: Vec<Region>,
    block_bytes: u64,
    stride: u64,
    blocks: u32,
    is_writable: bool,
}

impl Slabs {
    /// Slabs of blocks of `block_bytes` bytes, one every `stride` bytes. Errors: [`PluginError::Usage`] when there is no layer, a
    /// block has no byte or overlaps the next one, or
    /// a slab holds none.
    pub fn new(layers: Vec<Region>, block_bytes: u64, stride: u64, is_writable: bool) -> Result<Slabs, PluginError> {
        if block_bytes == 0 || stride < block_bytes {
            let reason =
                format!("blocks of {block_bytes} bytes, one every {stride}: they are longer than 0 and do not overlap");
            return Err(PluginError::usage(reason));
        }
        let shortest = layers.iter().map(Region::bytes).min();
        let shortest = shortest.ok_or_else(|| PluginError::usage("slabs of no layer"))?;
        let behind_first = shortest.checked_sub(block_bytes);
        let behind_first = behind_first
            .ok_or_else(|| PluginError::usage(format!("a slab of {shortest} bytes holds no block of {block_bytes}")))?;
        let blocks = u32::try_from(behind_first / stride + 1).unwrap_or(SKIP);
        Ok(Slabs { layers, block_bytes, stride, blocks, is_writable })
    }

    /// Blocks that every layer has, numbered from 0.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Layers.
    pub fn layers(&self) -> u32 {
        self.layers.len() as u32
    }

    /// Bytes of a block of one layer.
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// The engine's blocks in a stored one, if these slabs fit.
    fn chunk(&self, plugin: &Plugin) -> Result<usize, PluginError> {
        let (layers, layer_bytes) = (plugin.shape().layers, plugin.layer_bytes());
        if self.layers() != layers {
            let reason = format!("{} slabs for blocks of {layers} layers", self.layers());
            return Err(PluginError::usage(reason));
        }
        if !layer_bytes.is_multiple_of(self.block_bytes) {
            let reason = format!("a layer of {layer_bytes} bytes is no whole number of blocks of {}", self.block_bytes);
            return Err(PluginError::usage(reason));
        }
        let chunk = (layer_bytes / self.block_bytes) as usize;
        match plugin.coder.as_ref().map(Coder::chunk) {
            Some(stated) if stated != chunk => {
                let reason = format!("{chunk} of the slabs' blocks make a stored one, by the layout {stated} do");
                Err(PluginError::usage(reason))
            }
            _ => Ok(chunk),
        }
    }

    /// Checks a list of blocks for so many stored ones and returns how many of them make one.
    pub(super) fn check(
        &self,
        plugin: &Plugin,
        stored: usize,
        blocks: &[u32],
        is_load: bool,
    ) -> Result<usize, PluginError> {
        let chunk = self.chunk(plugin)?;
        if Some(blocks.len()) != stored.checked_mul(chunk) {
            let reason = format!("{} blocks for {stored} stored ones of {chunk} each", blocks.len());
            return Err(PluginError::usage(reason));
        }
        let is_wrong = |block: &&u32| **block >= self.blocks && !(is_load && **block == SKIP);
        if let Some(block) = blocks.iter().find(is_wrong) {
            return Err(PluginError::usage(format!("block {block} of {}", self.blocks)));
        }
        if is_load && !self.is_writable {
            return Err(PluginError::usage("a load into slabs that are not writable"));
        }
        Ok(chunk)
    }

    /// The bytes of a layer's block. Panics when there is none.
    pub(super) fn block(&self, layer: u32, block: u32) -> Bytes<'_> {
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        Bytes::of_region(&self.layers[layer as usize], u64::from(block) * self.stride, self.block_bytes)
    }
}
