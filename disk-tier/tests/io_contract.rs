//! The contract of `Medium`, over io_uring, the pool of threads, memory and the rigs.

mod io_common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use disk_tier::io::rig::SplitMix64;
use disk_tier::io::{Done, FileId, IoError, Kind, Medium, Memory, Operation, Sink};
use io_common::{FILE, Listener, PAGE, REGION_BYTES, each, fill, filled, operation, owned, pattern, sync};

const MIB: u64 = 1 << 20;

#[test]
fn bytes_come_back_from_owned_and_lent_memory() {
    each(|subject| {
        let out = Arc::new(AtomicUsize::new(0));
        subject.medium.create(FILE, 4 * MIB).unwrap();
        let lent = fill(subject.pages.lend(MIB, MIB, &out), 1);
        let part = Operation { range: PAGE..MIB - PAGE, ..operation(2, Kind::Write, FILE, 2 * MIB, filled(2, MIB)) };
        subject.medium.submit(vec![operation(1, Kind::Write, FILE, 0, lent), part]);
        for done in subject.listener.take(2) {
            assert_eq!(done.result, Ok(()), "{}: {}", subject.name, done.id);
            assert_eq!(done.memory.expect("comes back").bytes(), MIB);
        }
        assert_eq!(subject.run(sync(3, FILE)).result, Ok(()));
        assert_eq!(out.load(Ordering::SeqCst), 0, "the lent part was given back with its guard");

        let lent = fill(subject.pages.lend(2 * MIB, MIB, &out), 9);
        let read = Operation { range: 0..MIB - 2 * PAGE, ..operation(4, Kind::Read, FILE, 2 * MIB, lent) };
        subject.medium.submit(vec![operation(5, Kind::Read, FILE, 0, owned(MIB)), read]);
        let ended = subject.listener.take(2);
        assert_eq!(ended.iter().map(|done| (done.id, done.result)).collect::<Vec<_>>(), [(4, Ok(())), (5, Ok(()))]);
        let [part, whole] = [0, 1].map(|index: usize| ended[index].memory.as_ref().expect("comes back").as_slice());
        assert_eq!(whole, pattern(1, MIB), "{}", subject.name);
        let moved = (MIB - 2 * PAGE) as usize;
        assert_eq!(part[..moved], pattern(2, MIB)[PAGE as usize..][..moved], "{}", subject.name);
        assert_eq!(
            part[moved..],
            pattern(9, MIB)[moved..],
            "{}: bytes outside the range are not touched",
            subject.name
        );
        drop(ended);
        assert_eq!(out.load(Ordering::SeqCst), 0);

        let (middle, result) = subject.read(FILE, MIB, PAGE);
        assert_eq!(
            (middle, result),
            (vec![0; PAGE as usize], Ok(())),
            "{}: what was never written is zeros",
            subject.name
        );
    });
}

/// Random reads and writes with the depth kept full: every id ends once, and every read finds the last write of its place.
#[test]
fn batches_end_each_once_with_the_right_bytes() {
    const CHUNK: u64 = 64 << 10;
    const CHUNKS: u64 = 64;
    each(|subject| {
        let mut random = SplitMix64::new(7);
        subject.medium.create(FILE, CHUNK * CHUNKS).unwrap();
        let mut seeds = [None::<u64>; CHUNKS as usize];
        let mut id = 0;
        for _ in 0..40 {
            let mut places: Vec<u64> = (0..CHUNKS).collect();
            random.shuffle(&mut places);
            places.truncate(1 + random.below(subject.medium.depth().min(16) as u64) as usize);
            let mut expected = BTreeSet::new();
            let mut batch = Vec::new();
            let mut reads = Vec::new();
            for place in places {
                id += 1;
                expected.insert(id);
                let seed = &mut seeds[place as usize];
                if random.chance(128) {
                    *seed = Some(random.next());
                    batch.push(operation(id, Kind::Write, FILE, place * CHUNK, filled(seed.expect("just set"), CHUNK)));
                } else {
                    reads.push((id, *seed));
                    batch.push(operation(id, Kind::Read, FILE, place * CHUNK, filled(3, CHUNK)));
                }
            }
            let half = batch.split_off(batch.len() / 2);
            subject.medium.submit(batch);
            subject.medium.submit(half);
            let ended = subject.listener.take(expected.len());
            assert_eq!(ended.iter().map(|done| done.id).collect::<BTreeSet<_>>(), expected, "{}", subject.name);
            for done in ended {
                assert_eq!(done.result, Ok(()), "{}", subject.name);
                if let Some((_, seed)) = reads.iter().find(|(read, _)| *read == done.id) {
                    let right = seed.map_or_else(|| vec![0; CHUNK as usize], |seed| pattern(seed, CHUNK));
                    assert_eq!(done.memory.expect("comes back").as_slice(), right, "{}", subject.name);
                }
            }
        }
        assert!(subject.listener.within(std::time::Duration::ZERO).is_none(), "{}: nothing ends twice", subject.name);
    });
}

#[test]
fn what_is_not_aligned_or_not_inside_is_an_error() {
    each(|subject| {
        let out = Arc::new(AtomicUsize::new(0));
        subject.medium.create(FILE, MIB).unwrap();
        let base = |memory: Memory| operation(1, Kind::Read, FILE, 0, memory);
        let whole = || owned(4 * PAGE);
        let cases = [
            ("offset", Operation { offset: 512, ..base(whole()) }),
            ("start", Operation { range: 512..PAGE, ..base(whole()) }),
            ("end", Operation { range: 0..PAGE + 512, ..base(whole()) }),
            ("empty", Operation { range: PAGE..PAGE, ..base(whole()) }),
            ("backwards", Operation { range: std::ops::Range { start: 2 * PAGE, end: PAGE }, ..base(whole()) }),
            ("past the memory", Operation { range: 0..5 * PAGE, ..base(whole()) }),
            ("far past the memory", Operation { range: 0..u64::MAX - 4095, ..base(whole()) }),
            ("offset past i64", Operation { offset: u64::MAX - 4095, ..base(whole()) }),
            ("short buffer", Operation { range: 0..PAGE, ..base(owned(100)) }),
            ("lent part misaligned", base(subject.pages.lend(512, PAGE, &out))),
            ("lent part outside", base(subject.pages.lend(REGION_BYTES - PAGE, 2 * PAGE, &out))),
        ];
        for (what, op) in cases {
            let kinds = [Kind::Read, Kind::Write];
            let Operation { id, file, offset, memory, range, .. } = op;
            let mut memory = Some(memory);
            for kind in kinds {
                let memory_now = memory.take().expect("came back");
                let done = subject.run(Operation { id, kind, file, offset, memory: memory_now, range: range.clone() });
                assert_eq!(done.result, Err(IoError::Errno(libc::EINVAL)), "{}: {what}, {kind:?}", subject.name);
                memory = done.memory;
            }
        }
        assert_eq!(out.load(Ordering::SeqCst), 0);
        let (bytes, result) = subject.read(FILE, 0, MIB);
        assert_eq!(
            (bytes.iter().all(|byte| *byte == 0), result),
            (true, Ok(())),
            "{}: nothing was written",
            subject.name
        );
    });
}

#[test]
fn the_end_of_a_file_is_a_wall() {
    each(|subject| {
        subject.medium.create(FILE, 8 * PAGE).unwrap();
        assert_eq!(subject.write(FILE, 0, 5, 8 * PAGE), Ok(()));
        let (bytes, result) = subject.read(FILE, 6 * PAGE, 4 * PAGE);
        assert_eq!(result, Err(IoError::Short { done_bytes: 2 * PAGE, asked_bytes: 4 * PAGE }), "{}", subject.name);
        assert_eq!(bytes[..2 * PAGE as usize], pattern(5, 8 * PAGE)[6 * PAGE as usize..]);
        let (_, result) = subject.read(FILE, 64 * PAGE, PAGE);
        assert_eq!(result, Err(IoError::Short { done_bytes: 0, asked_bytes: PAGE }), "{}", subject.name);

        for offset in [7 * PAGE, 8 * PAGE, 1 << 40] {
            assert_eq!(subject.write(FILE, offset, 6, 2 * PAGE), Err(IoError::Errno(libc::EFBIG)), "{}", subject.name);
        }
        let files = subject.medium.files().unwrap();
        assert_eq!(
            files.iter().map(|(file, info)| (*file, info.bytes)).collect::<Vec<_>>(),
            [(FILE, 8 * PAGE)],
            "{}",
            subject.name
        );
        assert_eq!(
            subject.read(FILE, 0, 8 * PAGE).0,
            pattern(5, 8 * PAGE),
            "{}: a refused write left the file alone",
            subject.name
        );

        for op in [
            operation(1, Kind::Read, FileId(9), 0, owned(PAGE)),
            operation(1, Kind::Write, FileId(9), 0, owned(PAGE)),
            sync(1, FileId(9)),
        ] {
            assert_eq!(subject.run(op).result, Err(IoError::Errno(libc::ENOENT)), "{}", subject.name);
        }
    });
}

#[test]
fn files_are_made_sized_listed_and_removed() {
    each(|subject| {
        let medium = &subject.medium;
        assert_eq!(medium.files().unwrap(), []);
        let made = [FileId(0), FileId(1), FileId::SNAPSHOT, FileId::segment(0), FileId::segment(1_000_000)];
        for file in made {
            medium.create(file, 1 << 16).unwrap();
        }
        let files = medium.files().unwrap();
        assert_eq!(files.iter().map(|(file, _)| *file).collect::<Vec<_>>(), made, "{}", subject.name);
        for (_, info) in &files {
            assert_eq!(info.bytes, 1 << 16);
            assert!(
                info.allocated_bytes >= 1 << 16 && info.allocated_bytes.is_multiple_of(512),
                "{}: {info:?}",
                subject.name
            );
        }

        assert_eq!(subject.write(FileId(1), 0, 8, 1 << 16), Ok(()));
        medium.create(FileId(1), 2 * PAGE).unwrap();
        assert_eq!(
            subject.write(FileId(1), 2 * PAGE, 8, PAGE),
            Err(IoError::Errno(libc::EFBIG)),
            "{}: the new length counts",
            subject.name
        );
        medium.create(FileId(1), 4 * PAGE).unwrap();
        let (bytes, result) = subject.read(FileId(1), 0, 4 * PAGE);
        let right = [&pattern(8, 1 << 16)[..2 * PAGE as usize], &vec![0; 2 * PAGE as usize]].concat();
        assert_eq!((bytes, result), (right, Ok(())), "{}: what was cut off is gone", subject.name);

        medium.remove(FileId(1)).unwrap();
        medium.remove(FileId(1)).unwrap();
        assert_eq!(subject.read(FileId(1), 0, PAGE).1, Err(IoError::Errno(libc::ENOENT)), "{}", subject.name);
        medium.create(FileId(1), PAGE).unwrap();
        assert_eq!(
            subject.read(FileId(1), 0, PAGE),
            (vec![0; PAGE as usize], Ok(())),
            "{}: a new file is zeros",
            subject.name
        );
        for file in made {
            medium.remove(file).unwrap();
        }
        assert_eq!(medium.files().unwrap(), [], "{}", subject.name);
    });
}

/// More files than descriptors are kept open.
#[test]
fn many_files_are_used_in_turn() {
    each(|subject| {
        let count = 600u32;
        for index in 0..count {
            subject.medium.create(FileId::segment(index), PAGE).unwrap();
            assert_eq!(subject.write(FileId::segment(index), 0, u64::from(index), PAGE), Ok(()), "{}", subject.name);
        }
        for index in (0..count).step_by(7) {
            let (bytes, result) = subject.read(FileId::segment(index), 0, PAGE);
            assert_eq!((bytes, result), (pattern(u64::from(index), PAGE), Ok(())), "{}: {index}", subject.name);
        }
    });
}

/// A sink may submit from inside `done`, and one that panics does not take the medium along.
#[test]
fn a_sink_may_submit_and_may_fail() {
    struct Chain {
        medium: std::sync::Weak<dyn Medium>,
        left: AtomicUsize,
        told: Arc<Listener>,
    }
    impl Sink for Chain {
        fn done(&self, ended: Vec<Done>) {
            let left = self.left.fetch_sub(1, Ordering::SeqCst) - 1;
            if left == 0 {
                return self.told.done(ended);
            }
            if let Some(medium) = self.medium.upgrade() {
                medium.submit(vec![operation(left as u64, Kind::Write, FILE, 0, filled(left as u64, PAGE))]);
            }
            assert!(!left.is_multiple_of(100), "this panic is part of the test");
        }
    }
    each(|subject| {
        subject.medium.create(FILE, PAGE).unwrap();
        let medium = Arc::downgrade(&subject.medium);
        let chain = Chain { medium, left: AtomicUsize::new(500), told: Arc::clone(&subject.listener) };
        subject.medium.connect(Arc::new(chain));
        subject.medium.submit(vec![operation(500, Kind::Write, FILE, 0, filled(500, PAGE))]);
        let last = subject.listener.next();
        assert_eq!((last.id, last.result), (1, Ok(())), "{}", subject.name);
    });
}

#[test]
fn after_the_close_operations_end_as_closed_with_their_memory() {
    each(|subject| {
        subject.medium.create(FILE, MIB).unwrap();
        assert_eq!(subject.write(FILE, 0, 1, PAGE), Ok(()));
        subject.medium.close(10_000);
        let done = subject.run(operation(77, Kind::Read, FILE, 0, owned(PAGE)));
        assert_eq!((done.id, done.result), (77, Err(IoError::Closed)), "{}", subject.name);
        assert_eq!(done.memory.expect("comes back").bytes(), PAGE);
        subject.medium.close(10_000);
    });
}
