//! What all on-disk structures share: the version, sums, and random store ids. Byte tables in `docs/disk-format.md`.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Read;

use twox_hash::XxHash3_64;

/// Version of the on-disk format. Every change of a byte table changes it.
pub const VERSION: u32 = 3;

/// Structures with a sum of their own kind, so that none is taken for another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Superblock = 1,
    Segment = 2,
    Footer = 3,
    Snapshot = 4,
    Staged = 5,
}

/// XXH3-64 of a structure's bytes.
pub(crate) fn sum(kind: Kind, bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(0x6b76_7464_6973_6b00 | kind as u64, bytes)
}

/// 128 random bits: from the kernel, or from the process's hasher keys and the clock where it has no random device.
pub(crate) fn random_id() -> [u8; 16] {
    let mut id = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut id));
    if read.is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |age| age.as_nanos());
        for (part, half) in id.chunks_exact_mut(8).enumerate() {
            let mut hasher = RandomState::new().build_hasher();
            hasher.write_u128(now + part as u128);
            half.copy_from_slice(&hasher.finish().to_le_bytes());
        }
    }
    id
}

#[cfg(test)]
mod tests {
    use cache_core::chain::Link;
    use cache_core::extent::SectionExtent;
    use cache_core::form::Lineage;
    use cache_core::hash::{BlockHash, Namespace};
    use cache_core::header::{RecordPlace, SealedSection, SlotHeader};
    use cache_core::key::CopyKey;
    use cache_core::sum::SectionSum;

    use super::*;
    use crate::index::{Fingerprint, Known, Location, namespace_tag};
    use crate::record::{RecordHeader, StoredSection};
    use crate::snapshot::{SegmentState, Snapshot};
    use crate::stage::Coding;
    use crate::superblock::{Clean, Superblock};
    use crate::{footer, segment};

    /// Sums of the bytes of fixed structures. Whoever changes one changes the format: the version and `docs/disk-format.md` go along.
    #[test]
    fn golden_bytes() {
        let store_id = *b"0123456789abcdef";
        let key = CopyKey::exact(Namespace([1; 32]), BlockHash([2; 32]));
        let mut superblock = Superblock::new(store_id, 8 << 20);
        superblock.sequence = 7;
        superblock.run = 3;
        superblock.delete(key.namespace);
        superblock.clean = Some(Clean { snapshot_sum: 11, snapshot_bytes: 4096 });
        let mut header = vec![0; segment::HEADER_BYTES as usize];
        segment::SegmentHeader { generation: 3 << 32 | 5, epoch: 2 }.encode(store_id, 4, 8 << 20, &mut header);
        let owner = footer::Owner { store_id, segment: 4, generation: 3 << 32 | 5 };
        let mut end = vec![0; footer::bytes_for(1) as usize];
        footer::encode(&owner, 12_288, &[footer::Entry { key, epoch: 2, page: 1, pages: 2 }], &mut end);
        let fingerprint = Fingerprint::of(&store_id, &key);
        let location = Location { segment: 4, page: 1, pages: 2 };
        let snapshot = Snapshot {
            store_id,
            sequence: 8,
            segments: vec![SegmentState { segment: 4, is_sealed: true, generation: 3 << 32 | 5, epoch: 2 }],
            records: vec![Known { fingerprint, location, namespace: namespace_tag(&key.namespace), is_hit: true }],
        };
        let place = RecordPlace { store_id, epoch: 2, segment_generation: 3 << 32 | 5, offset: 4 * (8 << 20) + 4096 };
        let lengths = [(16, true), (16, false), (3000, true)];
        let sections = (9..)
            .zip(lengths)
            .map(|(sum, (bytes, begins_plane))| SealedSection {
                sum: SectionSum(sum),
                extent: SectionExtent::new(bytes, begins_plane),
            })
            .collect();
        let link = Link { hash: key.hash, parent: Some(BlockHash([3; 32])), depth: 6 };
        let slot = SlotHeader { key, lineage: Lineage(key.form), link, image_pages: 3, place, sections };
        let mut page = vec![0; slot.header_bytes() as usize];
        slot.encode(&mut page);
        // A section of each kind, in a page less than the image has.
        let codings = [(Coding::Sx12, 12), (Coding::Plain, 16), (Coding::Zstd, 1000)];
        let stored = codings.map(|(coding, bytes)| StoredSection::new(coding, bytes).unwrap()).to_vec();
        let staged = RecordHeader { slot, stored: Some(stored) };
        let staged = staged.placed(place);
        let seedless = |bytes: &[u8]| XxHash3_64::oneshot(bytes);
        let found = [
            seedless(&superblock.encode()),
            seedless(&header),
            seedless(&end),
            seedless(snapshot.encode().0.as_slice()),
            seedless(&page),
            seedless(staged.as_slice()),
        ];
        assert_eq!(found.map(|sum| format!("{sum:016x}")), GOLDEN);
    }

    const GOLDEN: [&str; 6] = [
        "6990e801cef1cfb7",
        "42348466f2eaf56e",
        "6e0676cac6611d9b",
        "debdb57b937e8cb8",
        "2767a647cf448e2d",
        "9da34f3d12ccacd9",
    ];
}
