//! A log that stands for any size: sealed segments with headers and footers, and holes where the records would be.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use cache_core::hash::{BlockHash, Namespace};
use cache_core::key::CopyKey;

use crate::footer;
use crate::format::random_id;
use crate::io::ALIGN_BYTES;
use crate::layout::{Layout, SEGMENTS_MIN};
use crate::segment::{HEADER_BYTES, SegmentHeader};
use crate::superblock::Superblock;

/// Makes a store in `directory` as a crash leaves it, full of records of `record_bytes` in the name of `budget_bytes`; on disk it takes a few
/// pages a segment. Three segments of the budget are left to be made. Returns how many records its footers list.
pub fn sparse_log(directory: &Path, budget_bytes: u64, record_bytes: u64) -> io::Result<u64> {
    let layout = Layout::new(budget_bytes, record_bytes, None)
        .filter(|layout| layout.segments_max > SEGMENTS_MIN)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the budget is below the minimum"))?;
    fs::create_dir_all(directory)?;
    let superblock = Superblock::new(random_id(), layout.segment_bytes);
    let record_pages = record_bytes.div_ceil(ALIGN_BYTES).max(1);
    let mut count = 0u64;
    for segment in 0..layout.segments_max - 3 {
        let owner =
            footer::Owner { store_id: superblock.store_id, segment, generation: 1 << 32 | u64::from(segment + 1) };
        let mut entries = Vec::new();
        let mut tail = HEADER_BYTES;
        while tail + record_pages * ALIGN_BYTES + footer::bytes_for(entries.len() as u64 + 1) <= layout.segment_bytes {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&count.to_le_bytes());
            let key = CopyKey::exact(Namespace([0x5a; 32]), BlockHash(hash));
            let page = (tail / ALIGN_BYTES) as u32;
            entries.push(footer::Entry { key, epoch: superblock.epoch, page, pages: record_pages as u32 });
            tail += record_pages * ALIGN_BYTES;
            count += 1;
        }
        let file = File::create(directory.join(format!("segment.{:06}", segment + 1)))?;
        file.set_len(layout.segment_bytes)?;
        let mut page = vec![0; HEADER_BYTES as usize];
        let header = SegmentHeader { generation: owner.generation, epoch: superblock.epoch };
        header.encode(owner.store_id, segment, layout.segment_bytes, &mut page);
        file.write_all_at(&page, 0)?;
        let mut end = vec![0; footer::bytes_for(entries.len() as u64) as usize];
        footer::encode(&owner, tail, &entries, &mut end);
        file.write_all_at(&end, layout.segment_bytes - end.len() as u64)?;
    }
    for copy in 0..2 {
        fs::write(directory.join(format!("superblock.{copy}")), Superblock { run: 1, ..superblock.clone() }.encode())?;
    }
    Ok(count)
}
