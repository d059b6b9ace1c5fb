//! Weights identity: digest over the files' SHA-256, remembered by what the file system says of them.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cache_core::hash::WeightsId;
use sha2::{Digest, Sha256};

use crate::gguf::GgufFile;

/// Digests already computed, one small file per model file, named by (device, inode, size, mtime, ctime).
pub struct DigestCache {
    folder: Option<PathBuf>,
}

impl DigestCache {
    /// Remembers digests in `folder`; `None` remembers nothing. A folder that cannot be written is not an error.
    pub fn new(folder: Option<PathBuf>) -> DigestCache {
        DigestCache { folder }
    }

    /// Identity of the model made of these files, from the bytes that are mapped. Errors: the system's, when a file cannot be asked for
    /// its metadata.
    pub fn identify(&self, files: &[&GgufFile]) -> std::io::Result<WeightsId> {
        let digests = files.iter().map(|file| self.digest(file)).collect::<std::io::Result<Vec<_>>>()?;
        Ok(WeightsId::of_files(&digests))
    }

    fn digest(&self, file: &GgufFile) -> std::io::Result<[u8; 32]> {
        let metadata = file.file_metadata()?;
        let note = metadata.and_then(|metadata| Some(self.folder.as_ref()?.join(note_name(&metadata))));
        if let Some(known) = note.as_ref().and_then(|note| fs::read(note).ok()).and_then(|bytes| bytes.try_into().ok())
        {
            return Ok(known);
        }
        let digest = Sha256::digest(file.bytes()).into();
        if let Some(note) = note {
            remember(&note, &digest);
        }
        Ok(digest)
    }
}

fn note_name(metadata: &Metadata) -> String {
    format!(
        "{:x}-{:x}-{:x}-{:x}.{:x}-{:x}.{:x}.sha256",
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec()
    )
}

/// A note that could not be written only costs the next start some time.
fn remember(note: &Path, digest: &[u8; 32]) {
    let part = note.with_extension(format!("part{}", std::process::id()));
    let written = note.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&part, digest));
    if written.and_then(|()| fs::rename(&part, note)).is_err() {
        let _ = fs::remove_file(&part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header without anything behind it.
    fn empty_gguf(version: u8) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend([version, 0, 0, 0]);
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn other_bytes_are_another_model_and_notes_are_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DigestCache::new(Some(folder.path().join("notes")));
        let open = |name: &str, version| {
            let path = folder.path().join(name);
            fs::write(&path, empty_gguf(version)).unwrap();
            GgufFile::open(&path).unwrap()
        };
        let first = open("m.gguf", 3);
        let identity = cache.identify(&[&first]).unwrap();
        let notes = || fs::read_dir(folder.path().join("notes")).unwrap().map(|entry| entry.unwrap().path());
        assert_eq!(notes().count(), 1);
        assert_ne!(cache.identify(&[&open("n.gguf", 2)]).unwrap(), identity);
        // A note is believed: that it was written for this very file is what its name says.
        notes().for_each(|note| fs::write(note, [7; 32]).unwrap());
        assert_eq!(cache.identify(&[&first]).unwrap(), WeightsId::of_files(&[[7; 32]]));
        assert_eq!(DigestCache::new(None).identify(&[&first]).unwrap(), identity);
    }
}
