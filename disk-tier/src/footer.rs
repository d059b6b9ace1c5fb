//! The footer at the end of a sealed segment: its records under one sum, so that recovery need not walk it.

use cache_core::buffer::round_to_pages;
use cache_core::form::{FormMapId, Provenance};
use cache_core::hash::{BlockHash, Namespace};
use cache_core::key::{CopyKey, GroupId};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::{self, Kind};

const MAGIC: [u8; 8] = *b"kvtfoot1";

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawEntry {
    namespace: [u8; 32],
    hash: [u8; 32],
    group: U32,
    form: U32,
    provenance: U64,
    epoch: U64,
    first_page: U32,
    record_pages: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Trailer {
    magic: [u8; 8],
    store_id: [u8; 16],
    generation: U64,
    segment: U32,
    count: U32,
    tail: U64,
    sum: U64,
}

/// Bytes of one entry.
pub(crate) const ENTRY_BYTES: u64 = size_of::<RawEntry>() as u64;
/// Bytes of the trailer, the last of the segment.
pub(crate) const TRAILER_BYTES: u64 = size_of::<Trailer>() as u64;

/// One record of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub key: CopyKey,
    pub epoch: u64,
    /// First page in the segment.
    pub page: u32,
    pub pages: u32,
}

/// Whose footer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub store_id: [u8; 16],
    pub segment: u32,
    pub generation: u64,
}

/// Bytes of a footer of so many entries, whole pages.
pub(crate) fn bytes_for(entries: u64) -> u64 {
    round_to_pages(entries * ENTRY_BYTES + TRAILER_BYTES)
}

/// Writes a footer to `out`, which has [`bytes_for`] bytes. `tail`: where the last record ends.
pub(crate) fn encode(owner: &Owner, tail: u64, entries: &[Entry], out: &mut [u8]) {
    out.fill(0);
    for (target, entry) in out.chunks_exact_mut(ENTRY_BYTES as usize).zip(entries) {
        let raw = RawEntry {
            namespace: entry.key.namespace.0,
            hash: entry.key.hash.0,
            group: U32::new(entry.key.group.0),
            form: U32::new(entry.key.form.0),
            provenance: U64::new(entry.key.provenance.0),
            epoch: U64::new(entry.epoch),
            first_page: U32::new(entry.page),
            record_pages: U32::new(entry.pages),
        };
        target.copy_from_slice(raw.as_bytes());
    }
    let trailer = Trailer {
        magic: MAGIC,
        store_id: owner.store_id,
        generation: U64::new(owner.generation),
        segment: U32::new(owner.segment),
        count: U32::new(entries.len() as u32),
        tail: U64::new(tail),
        sum: U64::new(0),
    };
    let start = out.len() - TRAILER_BYTES as usize;
    out[start..].copy_from_slice(trailer.as_bytes());
    let end = out.len() - 8;
    let sum = format::sum(Kind::Footer, &out[..end]);
    out[end..].copy_from_slice(&sum.to_le_bytes());
}

/// How many bytes the footer has whose trailer ends `tail_bytes`; `None` when there is none of this owner. The count is a hint to read
/// by until [`decode`] has verified it.
pub(crate) fn claimed_bytes(owner: &Owner, tail_bytes: &[u8], segment_bytes: u64) -> Option<u64> {
    let trailer = trailer(owner, tail_bytes)?;
    let bytes = bytes_for(u64::from(trailer.count.get()));
    (bytes <= segment_bytes).then_some(bytes)
}

fn trailer(owner: &Owner, bytes: &[u8]) -> Option<Trailer> {
    let start = bytes.len().checked_sub(TRAILER_BYTES as usize)?;
    let trailer = Trailer::read_from_bytes(&bytes[start..]).ok()?;
    let is_ours = trailer.magic == MAGIC
        && trailer.store_id == owner.store_id
        && trailer.generation.get() == owner.generation
        && trailer.segment.get() == owner.segment;
    is_ours.then_some(trailer)
}

/// Reads a whole footer: where the last record ends, and the records. `None` when anything about it is unsound.
pub(crate) fn decode(owner: &Owner, bytes: &[u8], segment_bytes: u64) -> Option<(u64, Vec<Entry>)> {
    let trailer = trailer(owner, bytes)?;
    let count = u64::from(trailer.count.get());
    if bytes_for(count) != bytes.len() as u64
        || format::sum(Kind::Footer, &bytes[..bytes.len() - 8]) != trailer.sum.get()
    {
        return None;
    }
    let entries: Vec<Entry> = bytes
        .chunks_exact(ENTRY_BYTES as usize)
        .take(count as usize)
        .filter_map(|chunk| RawEntry::read_from_bytes(chunk).ok())
        .map(|raw| Entry {
            key: CopyKey {
                namespace: Namespace(raw.namespace),
                hash: BlockHash(raw.hash),
                group: GroupId(raw.group.get()),
                form: FormMapId(raw.form.get()),
                provenance: Provenance(raw.provenance.get()),
            },
            epoch: raw.epoch.get(),
            page: raw.first_page.get(),
            pages: raw.record_pages.get(),
        })
        .collect();
    let end = (segment_bytes - bytes.len() as u64) / crate::io::ALIGN_BYTES;
    let inside =
        |entry: &Entry| entry.page >= 1 && entry.pages >= 1 && u64::from(entry.page) + u64::from(entry.pages) <= end;
    (entries.iter().all(inside) && trailer.tail.get() <= segment_bytes).then(|| (trailer.tail.get(), entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footer_comes_back_for_its_owner_only_and_notices_every_bit() {
        let owner = Owner { store_id: [1; 16], segment: 3, generation: 77 };
        let entries: Vec<Entry> = (0..5u8)
            .map(|number| Entry {
                key: CopyKey::exact(Namespace([number; 32]), BlockHash([9; 32])),
                epoch: 2,
                page: 1 + 2 * u32::from(number),
                pages: 2,
            })
            .collect();
        let mut bytes = vec![0; bytes_for(5) as usize];
        encode(&owner, 11 * 4096, &entries, &mut bytes);
        assert_eq!(claimed_bytes(&owner, &bytes, 1 << 20), Some(4096));
        assert_eq!(decode(&owner, &bytes, 1 << 20), Some((11 * 4096, entries)));
        for other in
            [Owner { store_id: [2; 16], ..owner }, Owner { segment: 4, ..owner }, Owner { generation: 76, ..owner }]
        {
            assert_eq!(decode(&other, &bytes, 1 << 20), None);
        }
        assert_eq!(decode(&owner, &bytes, 8 * 4096), None, "records behind the end");
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&owner, &bytes, 1 << 20), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
