//! Reading in place: blocks as they lie in the daemon's memory.

use cache_core::chain::Link;
use cache_core::hash::BlockHash;
use cache_core::header::{SlotHeader, encoded_bytes};
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use cache_core::units::Tier;

use super::memory::Bytes;
use super::{Before, Plugin, PluginError, SharedPlugin, links};
use crate::client::{Client, Lent};
use crate::wire::BATCH_MAX;

/// A block that is leased. Dropping it gives the lease back, with the next call.
#[derive(Debug)]
pub struct Leased {
    plugin: SharedPlugin,
    /// `None` only while it is dropped.
    lent: Option<Lent>,
}

/// The longest run that was there.
#[derive(Debug)]
pub struct Leases {
    /// Its blocks.
    pub blocks: Vec<Leased>,
    /// Why the next one is not there.
    pub miss: Option<MissReason>,
}

impl Plugin {
    /// Leases the longest run that is there. Waits for what has to come from the disk, as far as the deadline allows.
    pub fn acquire(self: &SharedPlugin, hashes: &[BlockHash], before: Before) -> Result<Leases, PluginError> {
        let (client, links) = (self.client()?, links(hashes, before)?);
        let mut leases = Leases { blocks: Vec::with_capacity(links.len()), miss: None };
        for part in links.chunks(BATCH_MAX) {
            let (lent, miss) = match self.lease(client, part) {
                // What is leased by now is good.
                Err(error) if error.is_absence() && !leases.blocks.is_empty() => {
                    (Vec::new(), Some(MissReason::TierOffline))
                }
                leased => leased?,
            };
            let is_short = lent.len() < part.len();
            leases
                .blocks
                .extend(lent.into_iter().map(|lent| Leased { plugin: SharedPlugin::clone(self), lent: Some(lent) }));
            if is_short {
                leases.miss = miss;
                break;
            }
        }
        Ok(leases)
    }

    /// Gives back now what was dropped; otherwise the next call does.
    pub fn give_back(&self) -> Result<(), PluginError> {
        Ok(self.client()?.give_back()?)
    }

    /// Leases the longest run of one batch; there is a miss when it is shorter. Blocks are what they say they are: headers are
    /// checked here, sections were when they
    /// entered the daemon's memory.
    pub(super) fn lease(
        &self,
        client: &Client,
        links: &[Link],
    ) -> Result<(Vec<Lent>, Option<MissReason>), PluginError> {
        let (mut lent, mut miss) = client.acquire(&self.wanted(links), self.accept())?;
        lent.truncate(links.len());
        if let Some(wrong) = lent.iter().zip(links).position(|(lent, link)| !self.is_right(client, link, lent)) {
            lent.truncate(wrong);
            miss = Some(MissReason::FailedCheck);
        }
        let is_short = lent.len() < links.len();
        Ok((lent, if is_short { miss.or(Some(MissReason::NeverStored)) } else { None }))
    }

    fn is_right(&self, client: &Client, link: &Link, lent: &Lent) -> bool {
        let shape = client.shape();
        let mut header = vec![0; encoded_bytes(shape.section_count()).next_multiple_of(8) as usize];
        if !lent.read(0, &mut header) {
            // Whoever reads it finds that it has passed.
            return true;
        }
        let header = SlotHeader::decode(&header, shape.section_count());
        let key = self.key(link);
        let is_right =
            header.and_then(|header| header.expect_key(&key).and_then(|()| header.expect_shape(&shape))).is_ok();
        if !is_right {
            client.report(lent, MissReason::FailedCheck);
        }
        is_right
    }
}

impl Leased {
    pub(super) fn shape(&self) -> BlockShape {
        self.plugin.shape()
    }

    pub(super) fn plugin(&self) -> &Plugin {
        &self.plugin
    }

    pub(super) fn lent(&self) -> &Lent {
        self.lent.as_ref().expect("it is there until this is dropped")
    }

    /// Where the daemon found it.
    pub fn tier(&self) -> Tier {
        self.lent().tier()
    }

    /// True when all that was read from it so far is the block. Called after the last read has completed.
    pub fn is_current(&self) -> bool {
        self.lent().is_current()
    }

    /// Its payload: first byte and length, layers one after the other. Readable as long as this lives; the bytes may change under
    /// the reader, and are the block only if
    /// [`Leased::is_current`] says so afterwards. Errors: [`PluginError::Usage`] for lossy forms.
    pub fn payload(&self) -> Result<(*const u8, u64), PluginError> {
        let payload = self.plain()?;
        Ok((payload.address().cast_const(), payload.bytes()))
    }

    /// Copies bytes of the payload; false when they mean nothing. Panics when they leave it. Errors: [`PluginError::Usage`] for lossy forms.
    pub fn read(&self, offset: u64, target: &mut [u8]) -> Result<bool, PluginError> {
        self.plain()?.part(offset, target.len() as u64).read(target);
        Ok(self.is_current())
    }

    fn plain(&self) -> Result<Bytes<'_>, PluginError> {
        self.plugin.expect_plain()?;
        let shape = self.shape();
        Ok(part(self.lent(), shape.header_bytes(), shape.payload_bytes()))
    }

    /// Bytes of one layer in the engine's memory.
    pub fn layer_bytes(&self) -> u64 {
        self.plugin.layer_bytes()
    }

    /// Layers.
    pub fn layers(&self) -> u32 {
        self.shape().layers
    }
}

/// Part of a lent block's slot image.
pub(super) fn part(lent: &Lent, offset: u64, bytes: u64) -> Bytes<'_> {
    Bytes::of_lent(lent.extent(), lent.offset() + offset, bytes)
}

impl Drop for Leased {
    fn drop(&mut self) {
        if self.plugin.is_forked() {
            // The lease is the parent's, and the lock behind it may have been held when the process was copied.
            std::mem::forget(self.lent.take());
        }
    }
}
