//! The two copies of the superblock on disk: who writes them, in which order, and whether they are still there.

use std::sync::PoisonError;

use cache_core::buffer::Buffer;

use crate::error::DiskError;
use crate::inner::{Inner, Request};
use crate::io::{FileId, IoError};
use crate::superblock::{self, Clean, Found, Superblock};

/// What one copy is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CopyState {
    /// Whole and durable.
    #[default]
    Sound,
    /// Not there, or not whole.
    Torn,
    /// A write that was not ended in time may still reach it, and would undo what came after.
    Late,
}

impl Inner {
    /// Writes both superblocks, one after the other, each synced before the next is touched. `clean`: makes the mark of an orderly end from
    /// the sequence that will be written.
    pub(crate) fn write_superblocks(&self, clean: impl FnOnce(u64) -> Option<Clean>) -> Result<(), DiskError> {
        let mut copies = self.superblocks.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = self.lock().superblock.sequence + 1;
        let clean = clean(sequence);
        let superblock = {
            let mut log = self.lock();
            log.superblock.sequence = sequence;
            log.superblock.clean = clean;
            if log.recovery.is_none()
                && let Some(oldest) = log.segments.oldest_epoch()
            {
                log.superblock.forget_until(oldest);
            }
            log.superblock.clone()
        };
        let encoded = superblock.encode();
        // The one that is sound is what a crash leaves: it comes last.
        let order = if copies[0] == CopyState::Sound && copies[1] != CopyState::Sound { [1, 0] } else { [0, 1] };
        for copy in order {
            self.write_superblock(FileId::SUPERBLOCKS[copy], &encoded, &mut copies[copy])?;
        }
        let mut log = self.lock();
        log.durable_epoch = log.durable_epoch.max(superblock.epoch);
        Ok(())
    }

    fn write_superblock(&self, file: FileId, encoded: &[u8], copy: &mut CopyState) -> Result<(), DiskError> {
        if *copy == CopyState::Late {
            // What comes late then goes to a file without a name.
            let remade = self.medium.remove(file).and_then(|()| self.medium.create(file, superblock::BYTES));
            if let Err(source) = remade.and_then(|()| self.list_files().map(drop)) {
                let now = self.now();
                self.change(|log| log.go_offline(format!("make the superblock again: {source}"), now));
                return Err(DiskError::Files { what: "make the superblock again", source });
            }
        }
        *copy = CopyState::Torn;
        let failed = |source| DiskError::Io { what: "write the superblock", source };
        let mut buffer = Buffer::zeroed(superblock::BYTES as usize);
        buffer.as_mut_slice().copy_from_slice(encoded);
        if let Err(error) = self.perform_one(Request::write(file, 0, buffer), "write the superblock") {
            if matches!(error, IoError::TimedOut { .. }) {
                *copy = CopyState::Late;
            }
            return Err(failed(error));
        }
        self.perform_one(Request::sync(file), "sync the superblock").map_err(failed)?;
        *copy = CopyState::Sound;
        Ok(())
    }

    pub(crate) fn superblocks_are_there(&self) -> Result<(), String> {
        let files = self.list_files().map_err(|error| format!("list the files: {error}"))?;
        let is_there =
            |wanted: &FileId| files.iter().any(|(file, info)| file == wanted && info.bytes >= superblock::BYTES);
        if FileId::SUPERBLOCKS.iter().all(is_there) { Ok(()) } else { Err("the superblock has vanished".into()) }
    }

    pub(crate) fn superblock_is_ours(&self, file: FileId) -> bool {
        let read = self.perform_one(Request::read(file, 0, superblock::BYTES), "probe");
        let store_id = self.lock().superblock.store_id;
        read.is_ok_and(
            |buffer| matches!(Superblock::decode(buffer.as_slice()), Found::Sound(found) if found.store_id == store_id),
        )
    }
}
