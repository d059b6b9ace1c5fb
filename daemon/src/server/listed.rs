//! The list of namespaces beside the store: whose each of them is, so that a tenant can be deleted and his quota counted after a restart.
//!
//! A namespace is a digest and does not tell its tenant, and a record does not name him. So before the first block of a namespace is taken in, its
//! line is in this file, synced. Lines are 72 bytes: namespace, tenant, and the first 8 bytes of the SHA-256 of both; one that is torn or damaged is
//! left out.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cache_core::hash::{Namespace, TenantId};
use sha2::{Digest, Sha256};

pub(crate) const LINE_BYTES: usize = 72;

pub(crate) struct List {
    path: PathBuf,
    file: File,
}

pub(crate) fn line(namespace: &Namespace, tenant: &TenantId) -> [u8; LINE_BYTES] {
    let mut line = [0; LINE_BYTES];
    line[..32].copy_from_slice(namespace.bytes());
    line[32..64].copy_from_slice(tenant.bytes());
    let digest = Sha256::digest(&line[..64]);
    line[64..].copy_from_slice(&digest[..8]);
    line
}

/// What a list says.
pub(crate) struct Listed {
    pub(crate) found: Vec<(Namespace, TenantId)>,
    /// Whole lines that nobody wrote.
    damaged: usize,
    /// Bytes behind the last whole line.
    torn: usize,
}

/// Reads a list, damaged or not.
pub(crate) fn read(bytes: &[u8]) -> Listed {
    let lines = bytes.chunks_exact(LINE_BYTES);
    let torn = lines.remainder().len();
    let count = lines.len();
    let found: Vec<_> = lines.filter_map(parse).collect();
    Listed { damaged: count - found.len(), found, torn }
}

fn parse(bytes: &[u8]) -> Option<(Namespace, TenantId)> {
    let half = |at: usize| <[u8; 32]>::try_from(&bytes[at..at + 32]).expect("a line has both");
    let (namespace, tenant) = (Namespace(half(0)), TenantId(half(32)));
    (line(&namespace, &tenant) == bytes).then_some((namespace, tenant))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

impl List {
    /// Opens the list in a store's folder, or begins one; returns what it says. Errors: the system's.
    pub(crate) fn open(folder: &Path) -> io::Result<(List, Vec<(Namespace, TenantId)>)> {
        let path = folder.join("namespaces");
        let mut file = open(&path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let Listed { found, damaged, torn } = read(&bytes);
        if damaged > 0 {
            tracing::error!(damaged, path = %path.display(), "lines of the list of namespaces are damaged: those are not deleted with their tenant");
        }
        if torn > 0 {
            // Nothing was stored under a line that was not whole.
            file.set_len((bytes.len() - torn) as u64)?;
        }
        Ok((List { path, file }, found))
    }

    /// Adds a line; it is there for good when this returns. Errors: the system's.
    pub(crate) fn add(&mut self, namespace: &Namespace, tenant: &TenantId) -> io::Result<()> {
        self.file.write_all(&line(namespace, tenant))?;
        self.file.sync_data()
    }

    /// Writes the list anew. Errors: the system's; the old list then stays.
    pub(crate) fn rewrite<'a>(&mut self, lines: impl Iterator<Item = (&'a Namespace, &'a TenantId)>) -> io::Result<()> {
        let beside = self.path.with_extension("new");
        let _ = fs::remove_file(&beside);
        let mut file = open(&beside)?;
        let bytes: Vec<u8> = lines.flat_map(|(namespace, tenant)| line(namespace, tenant)).collect();
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        self.file = file;
        self.path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u8) -> (Namespace, TenantId) {
        (Namespace([number; 32]), TenantId([number + 100; 32]))
    }

    #[test]
    fn a_torn_line_and_a_damaged_one_are_left_out_and_the_next_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (mut list, found) = List::open(folder.path()).unwrap();
        assert!(found.is_empty());
        for number in 0..3 {
            let (namespace, tenant) = name(number);
            list.add(&namespace, &tenant).unwrap();
        }
        list.file.write_all(&[7; 30]).unwrap();
        let path = folder.path().join("namespaces");
        let mut bytes = fs::read(&path).unwrap();
        bytes[LINE_BYTES + 40] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let (mut list, found) = List::open(folder.path()).unwrap();
        assert_eq!(found, [name(0), name(2)]);
        let (namespace, tenant) = name(3);
        list.add(&namespace, &tenant).unwrap();
        let (mut list, found) = List::open(folder.path()).unwrap();
        assert_eq!(found, [name(0), name(2), name(3)]);
        list.rewrite(found[1..].iter().map(|(namespace, tenant)| (namespace, tenant))).unwrap();
        let (namespace, tenant) = name(4);
        list.add(&namespace, &tenant).unwrap();
        assert_eq!(List::open(folder.path()).unwrap().1, [name(2), name(3), name(4)]);
    }
}
