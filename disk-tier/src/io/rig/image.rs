//! The files of a store as bytes in memory.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use cache_core::buffer::PAGE_BYTES;

use super::super::files::{file_id, file_name};
use super::super::{FileId, FileInfo};

/// The smallest unit that a drive writes whole.
pub const SECTOR_BYTES: u64 = 512;

const PAGE: usize = PAGE_BYTES as usize;

/// `None` is a page of zeros. Pages are shared between copies of an image until one of them writes.
type Page = Option<Arc<[u8; PAGE]>>;

#[derive(Clone, Debug, Default)]
struct File {
    bytes: u64,
    pages: Vec<Page>,
}

/// The files of a store, by number. A clone costs 8 bytes per page and shares the bytes.
#[derive(Clone, Debug, Default)]
pub struct Image {
    files: BTreeMap<FileId, File>,
}

impl Image {
    /// No file.
    pub fn new() -> Image {
        Image::default()
    }

    /// The files, as a medium would list them; every byte counts as allocated.
    pub fn files(&self) -> Vec<(FileId, FileInfo)> {
        let info =
            |file: &File| FileInfo { bytes: file.bytes, allocated_bytes: file.bytes.next_multiple_of(PAGE_BYTES) };
        self.files.iter().map(|(id, file)| (*id, info(file))).collect()
    }

    /// Length of a file; `None` when it is not there.
    pub fn bytes(&self, file: FileId) -> Option<u64> {
        self.files.get(&file).map(|file| file.bytes)
    }

    /// Sum of the allocated bytes of all files.
    pub fn allocated_bytes(&self) -> u64 {
        self.files().iter().map(|(_, info)| info.allocated_bytes).sum()
    }

    /// Makes a file of zeros, or sets the length of one that is there; what grows is zeros.
    pub fn create(&mut self, file: FileId, bytes: u64) {
        let file = self.files.entry(file).or_default();
        file.pages.resize(bytes.div_ceil(PAGE_BYTES) as usize, None);
        if bytes < file.bytes && !bytes.is_multiple_of(PAGE_BYTES) {
            let tail = (bytes % PAGE_BYTES) as usize;
            if let Some(page) = file.pages.last_mut().and_then(Option::as_mut) {
                Arc::make_mut(page)[tail..].fill(0);
            }
        }
        file.bytes = bytes;
    }

    /// Removes a file; one that is not there is no error.
    pub fn remove(&mut self, file: FileId) {
        self.files.remove(&file);
    }

    /// Reads up to `target.len()` bytes; returns how many there were before the end of the file.
    pub fn read(&self, file: FileId, offset: u64, target: &mut [u8]) -> usize {
        let Some(file) = self.files.get(&file) else { return 0 };
        let count = target.len().min(usize::try_from(file.bytes.saturating_sub(offset)).unwrap_or(usize::MAX));
        for (page, within, part) in parts(offset, count) {
            match file.pages.get(page).and_then(Option::as_ref) {
                Some(page) => target[part.clone()].copy_from_slice(&page[within..within + part.len()]),
                None => target[part].fill(0),
            }
        }
        count
    }

    /// Writes up to the end of the file; returns how many bytes fitted. Never grows a file.
    pub fn write(&mut self, file: FileId, offset: u64, source: &[u8]) -> usize {
        let Some(file) = self.files.get_mut(&file) else { return 0 };
        let count = source.len().min(usize::try_from(file.bytes.saturating_sub(offset)).unwrap_or(usize::MAX));
        for (page, within, part) in parts(offset, count) {
            let page = file.pages[page].get_or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within..within + part.len()].copy_from_slice(&source[part]);
        }
        count
    }

    /// Bytes of a range of a file; shorter at its end.
    pub fn bytes_at(&self, file: FileId, offset: u64, bytes: u64) -> Vec<u8> {
        let mut found = vec![0; bytes as usize];
        let count = self.read(file, offset, &mut found);
        found.truncate(count);
        found
    }

    /// Flips bit `bit % 8` (0 the lowest) of byte `bit / 8`. False when the file ends before it.
    pub fn flip_bit(&mut self, file: FileId, bit: u64) -> bool {
        let mut byte = [0u8];
        if self.read(file, bit / 8, &mut byte) == 0 {
            return false;
        }
        byte[0] ^= 1 << (bit % 8);
        self.write(file, bit / 8, &byte) == 1
    }

    /// Puts `sectors` sectors of 512 bytes back to what `older` holds at the same place: writes that the drive acknowledged and lost.
    /// Returns how many of them differed.
    pub fn make_stale(&mut self, older: &Image, file: FileId, sector: u64, sectors: u64) -> u64 {
        (sector..sector + sectors).map(|at| u64::from(self.copy_sector(older, (file, at), (file, at)))).sum()
    }

    /// Puts a copy of `sectors` sectors at another place: a write that the drive sent astray, or a read that it took from there.
    /// Returns how many sectors of the target changed.
    pub fn misdirect(&mut self, source: (FileId, u64), target: (FileId, u64), sectors: u64) -> u64 {
        let from = self.clone();
        let place = |(file, sector): (FileId, u64), at| (file, sector + at);
        (0..sectors).map(|at| u64::from(self.copy_sector(&from, place(source, at), place(target, at)))).sum()
    }

    fn copy_sector(&mut self, from: &Image, source: (FileId, u64), target: (FileId, u64)) -> bool {
        let bytes = from.bytes_at(source.0, source.1 * SECTOR_BYTES, SECTOR_BYTES);
        let before = self.bytes_at(target.0, target.1 * SECTOR_BYTES, SECTOR_BYTES);
        let common = bytes.len().min(before.len());
        self.write(target.0, target.1 * SECTOR_BYTES, &bytes[..common]);
        bytes[..common] != before[..common]
    }

    /// Writes the files into a directory under the names that a store on disk has; pages of zeros become holes.
    pub fn save(&self, directory: &Path) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        std::fs::create_dir_all(directory)?;
        for (id, file) in &self.files {
            let target = std::fs::File::create(directory.join(file_name(*id)))?;
            target.set_len(file.bytes)?;
            for (index, page) in file.pages.iter().enumerate() {
                let offset = index as u64 * PAGE_BYTES;
                let count = (file.bytes - offset).min(PAGE_BYTES) as usize;
                if let Some(page) = page {
                    target.write_all_at(&page[..count], offset)?;
                }
            }
        }
        Ok(())
    }

    /// The files of a store in a directory.
    pub fn load(directory: &Path) -> io::Result<Image> {
        let mut image = Image::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let Some(id) = entry.file_name().to_str().and_then(file_id) else { continue };
            let bytes = std::fs::read(entry.path())?;
            image.create(id, bytes.len() as u64);
            for (index, page) in bytes.chunks(PAGE).enumerate() {
                if page.iter().any(|byte| *byte != 0) {
                    image.write(id, index as u64 * PAGE_BYTES, page);
                }
            }
        }
        Ok(image)
    }
}

impl PartialEq for Image {
    /// Equal names, lengths and bytes; a page of zeros is equal to one that was never written.
    fn eq(&self, other: &Image) -> bool {
        let same = |pages: (&Page, &Page)| match pages {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
            (Some(page), None) | (None, Some(page)) => page.iter().all(|byte| *byte == 0),
            (None, None) => true,
        };
        self.files.len() == other.files.len()
            && self.files.iter().zip(&other.files).all(|((id, file), (other_id, other))| {
                id == other_id && file.bytes == other.bytes && file.pages.iter().zip(&other.pages).all(same)
            })
    }
}

/// Cuts `count` bytes from `offset` on into (page, first byte in the page, range of the bytes).
fn parts(offset: u64, count: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == count {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % PAGE_BYTES) as usize;
        let part = done..done + (PAGE - within).min(count - done);
        done = part.end;
        Some(((at / PAGE_BYTES) as usize, within, part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId(5);

    #[test]
    fn writes_do_not_show_in_copies_and_edits_change_what_they_name() {
        let mut image = Image::new();
        image.create(FILE, 3 * PAGE_BYTES);
        let old = image.clone();
        assert_eq!(image.write(FILE, 1000, &[7; 6000]), 6000);
        assert_eq!(old.bytes_at(FILE, 1000, 6000), vec![0; 6000]);
        assert_eq!(image.bytes_at(FILE, 999, 6002), [vec![0], vec![7; 6000], vec![0]].concat());
        assert_eq!(image.write(FILE, 3 * PAGE_BYTES - 1, &[1, 2]), 1, "a file never grows");
        assert_ne!(image, old);

        assert!(image.flip_bit(FILE, 1000 * 8 + 3));
        assert_eq!(image.bytes_at(FILE, 1000, 1), [7 ^ 8]);
        assert!(!image.flip_bit(FILE, 3 * PAGE_BYTES * 8));

        assert_eq!(image.make_stale(&old, FILE, 2, 2), 2);
        assert_eq!(image.bytes_at(FILE, 1024, 1024), vec![0; 1024]);
        assert_eq!(image.misdirect((FILE, 4), (FILE, 20), 1), 1);
        assert_eq!(image.bytes_at(FILE, 20 * 512, 512), vec![7; 512]);
        assert_eq!(image.misdirect((FILE, 5), (FILE, 20), 1), 0, "equal sectors change nothing");
    }

    #[test]
    fn a_file_cut_and_grown_again_is_zero_there() {
        let mut image = Image::new();
        image.create(FILE, PAGE_BYTES);
        image.write(FILE, 0, &[9; PAGE]);
        image.create(FILE, 100);
        image.create(FILE, 2 * PAGE_BYTES);
        assert_eq!(image.bytes_at(FILE, 99, 3), [9, 0, 0]);
        assert_eq!(image.allocated_bytes(), 2 * PAGE_BYTES);
        image.remove(FILE);
        assert_eq!(image, Image::new());
    }
}
