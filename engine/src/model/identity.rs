//! Weights identity: digest over the files' SHA-256, remembered by what the file system says of them.

use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cache_core::hash::WeightsId;
use sha2::{Digest, Sha256};

/// Digests already computed, one small file per model file, named by (device, inode, size, mtime, ctime).
pub struct DigestCache {
    folder: Option<PathBuf>,
}

impl DigestCache {
    /// Remembers digests in `folder`; `None` remembers nothing. A folder that cannot be written is not an error.
    pub fn new(folder: Option<PathBuf>) -> DigestCache {
        DigestCache { folder }
    }

    /// Identity of the model made of these files. Errors: the file that could not be read.
    pub fn identify(&self, files: &[PathBuf]) -> std::io::Result<WeightsId> {
        let digests = files.iter().map(|file| self.digest(file)).collect::<std::io::Result<Vec<_>>>()?;
        Ok(WeightsId::of_files(&digests))
    }

    fn digest(&self, path: &Path) -> std::io::Result<[u8; 32]> {
        let mut file = File::open(path)?;
        let name = note_name(&file.metadata()?);
        let note = self.folder.as_ref().map(|folder| folder.join(name));
        if let Some(known) = note.as_ref().and_then(|note| fs::read(note).ok()).and_then(|bytes| bytes.try_into().ok())
        {
            return Ok(known);
        }
        let digest = sha256(&mut file)?;
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

fn sha256(file: &mut File) -> std::io::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hasher.finalize().into()),
            bytes => hasher.update(&chunk[..bytes]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_bytes_are_another_model_and_notes_are_used() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("m.gguf");
        let cache = DigestCache::new(Some(folder.path().join("notes")));
        fs::write(&model, b"one").unwrap();
        let first = cache.identify(std::slice::from_ref(&model)).unwrap();
        assert_eq!(cache.identify(std::slice::from_ref(&model)).unwrap(), first);
        assert_eq!(fs::read_dir(folder.path().join("notes")).unwrap().count(), 1);
        let other = folder.path().join("n.gguf");
        fs::write(&other, b"two").unwrap();
        assert_ne!(cache.identify(&[other]).unwrap(), first);
    }
}
