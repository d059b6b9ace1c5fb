//! What a client process can do with the memory that it is given: an extent is for reading, whatever is tried; staging memory it can spoil, for itself alone.

mod rig;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use cache_core::chain::Link;
use cache_core::form::{Accept, Lineage};
use cache_core::hash::Namespace;
use cache_core::sum::header_sum;
use host_tier::Staging;
use kvtier_sdk::client::{Client, Place};
use kvtier_sdk::wire::{ClassId, CommitCode, MapExtent, Reply, Request, ReservationId};
use rig::honest::Honest;
use rig::process::{Process, serve_if_asked};
use rig::raw::Raw;
use rig::*;
use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mprotect, munmap};

#[test]
fn the_other_process() {
    serve_if_asked(|_| {});
}

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);
const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

fn map(file: impl AsFd, bytes: u64, protection: ProtFlags) -> Result<*mut std::ffi::c_void, Errno> {
    // SAFETY: no address is asked for, so no existing mapping is replaced.
    unsafe { mmap(std::ptr::null_mut(), bytes as usize, protection, MapFlags::SHARED, file, 0) }
}

/// An extent's descriptor and length, as a client gets them.
fn extent(raw: &mut Raw, class: ClassId) -> (OwnedFd, u64) {
    let answer = raw.call(&Request::MapExtent(MapExtent { class, extent: 0 })).unwrap();
    let Reply::MapExtent(layout) = answer.reply() else { panic!("{answer:?}") };
    let bytes = layout.bytes;
    (answer.descriptor.expect("an extent comes with its reply"), bytes)
}

/// Everything that would change an extent, by a descriptor; each by its name, and what came of it.
fn attacks(file: &OwnedFd, bytes: u64) -> Vec<(&'static str, io::Result<()>)> {
    let done = |result: Result<(), Errno>| result.map_err(io::Error::from);
    let address = map(file, bytes, ProtFlags::READ).expect("it can be read");
    // SAFETY: the range is the mapping just made, and nothing refers to it.
    let raised = unsafe { mprotect(address, bytes as usize, MprotectFlags::READ | MprotectFlags::WRITE) };
    // SAFETY: as above; what it would free is shared memory that nothing here refers to.
    let removed = unsafe { madvise(address, bytes as usize, Advice::LinuxDontNeed) };
    assert!(removed.is_ok(), "dropping one's own view is nobody's business");
    // SAFETY: the mapping just made, which nothing refers to any more.
    unsafe { munmap(address, bytes as usize).unwrap() };
    let again = |how: &str, attack: &dyn Fn(&std::fs::File) -> io::Result<()>| {
        let path = format!("/proc/{how}/fd/{}", file.as_raw_fd());
        OpenOptions::new().read(true).write(true).open(path).and_then(|file| attack(&file))
    };
    vec![
        ("truncate to nothing", done(ftruncate(file, 0))),
        ("truncate by a page", done(ftruncate(file, bytes - 4096))),
        ("lengthen", done(ftruncate(file, bytes + 4096))),
        ("lengthen by allocation", done(fallocate(file, FallocateFlags::empty(), bytes, 4096))),
        ("punch a hole", done(fallocate(file, PUNCH, 0, 4096))),
        ("zero a range", done(fallocate(file, FallocateFlags::ZERO_RANGE, 0, 4096))),
        ("write", done(rustix::io::pwrite(file, b"other bytes", 0).map(drop))),
        ("map for writing", done(map(file, bytes, READ_WRITE).map(drop))),
        ("make a mapping writable", done(raised)),
        ("seal against writes", done(fcntl_add_seals(file, SealFlags::WRITE))),
        ("open again and write", again("self", &|file| file.write_all_at(b"other bytes", 0))),
        ("open again and truncate", again("self", &|file| file.set_len(0))),
        ("open again and map for writing", again("self", &|file| done(map(file, bytes, READ_WRITE).map(drop)))),
        ("open again and punch a hole", again("self", &|file| done(fallocate(file, PUNCH, 0, 4096)))),
    ]
}

#[test]
fn an_extent_is_for_reading_whatever_is_tried() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Process::start(folder.path());
    let honest = Honest::beside(&daemon.socket);
    let (mut raw, ..) = Raw::open(&daemon.socket);
    let parts = raw.open_namespace(&manifest(), tenant("honest"));
    let (file, bytes) = extent(&mut raw, parts.class);
    for (what, came_of_it) in attacks(&file, bytes) {
        let error = came_of_it.expect_err(what);
        let refused = [Errno::PERM, Errno::ACCESS, Errno::OPNOTSUPP].map(Errno::raw_os_error);
        assert!(refused.contains(&error.raw_os_error().unwrap()), "{what}: {error}");
    }
    // The daemon's own descriptors, where the kernel lets one user look at another process of his.
    let theirs = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let is_extent =
            std::fs::read_link(&path).is_ok_and(|target| target.to_string_lossy().contains("kvtier-extent"));
        is_extent.then(|| OpenOptions::new().read(true).write(true).open(&path).ok())?
    });
    for file in theirs {
        assert!(file.write_all_at(b"other bytes", 0).is_err() && file.set_len(0).is_err());
        assert_eq!(map(&file, bytes, READ_WRITE), Err(Errno::PERM));
        assert_eq!(fallocate(&file, PUNCH, 0, 4096), Err(Errno::PERM));
    }
    honest.end();
    daemon.end();
}

#[test]
fn staging_memory_keeps_its_length_and_its_seals() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Process::start(folder.path());
    let honest = Honest::beside(&daemon.socket);
    let (mut raw, hello, file) = Raw::open(&daemon.socket);
    for bytes in [0, hello.staging_bytes - 4096, hello.staging_bytes + 4096] {
        assert_eq!(ftruncate(&file, bytes), Err(Errno::PERM));
    }
    assert_eq!(fcntl_add_seals(&file, SealFlags::FUTURE_WRITE), Err(Errno::PERM));
    // Its pages are the client's: a hole in them is an image of zeros.
    fallocate(&file, PUNCH, 0, hello.staging_bytes).unwrap();
    assert!(matches!(raw.call(&Request::Stats(kvtier_sdk::wire::Empty)).unwrap().reply(), Reply::Stats(_)));
    honest.end();
    daemon.end();
}

/// A place for one block.
fn reserve(client: &Client, namespace: Namespace, link: Link) -> (std::sync::Arc<Staging>, u64, ReservationId, u64) {
    let places = client.reserve(&wanted(namespace, &[link]), Lineage::of(SHAPE.form_map())).unwrap();
    let [Place::Reserved { reservation, offset }] = places.answers[..] else { panic!("{:?}", places.answers) };
    (places.staging, places.connection, reservation, offset)
}

fn alone(namespace: Namespace, number: u32) -> Link {
    links_from(namespace, 100 * number, 1)[0]
}

#[test]
fn what_is_changed_after_the_commit_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Process::start(folder.path());
    let honest = Honest::beside(&daemon.socket);
    let client = daemon.client();
    let namespace = client.name(&manifest(), tenant("a"));
    for number in 0..20 {
        let link = alone(namespace, number);
        let (staging, connection, reservation, offset) = reserve(&client, namespace, link);
        staging.write(offset, &image(namespace, &link));
        // What is there, and not committed, nobody sees.
        assert_eq!(check_run(&client, namespace, &[link]).0, 0);
        assert_eq!(client.commit(connection, &[reservation]).unwrap(), [CommitCode::Inserted]);
        staging.write(offset, &vec![0xff; SHAPE.slot_bytes() as usize]);
        assert_eq!(check_run(&client, namespace, &[link]), (1, None));
    }
    honest.end();
    daemon.end();
}

/// Ends the writer, also when something else fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// About as long as an image is copied.
fn linger() {
    let until = std::time::Instant::now() + std::time::Duration::from_micros(2);
    while std::time::Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// A writer that never stops, at headers and values, while image after image is committed: each is refused, or is whole.
#[test]
fn what_is_changed_while_the_commit_runs_is_refused_or_whole() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Process::start(folder.path());
    let honest = Honest::beside(&daemon.socket);
    let client = daemon.client();
    let namespace = client.name(&manifest(), tenant("a"));
    let (staging, connection, first, offset) = reserve(&client, namespace, alone(namespace, 0));
    staging.write(offset, &image(namespace, &alone(namespace, 0)));
    assert_eq!(client.commit(connection, &[first]).unwrap(), [CommitCode::Inserted]);
    let ends = AtomicBool::new(false);
    let (mut inserted, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // One word of the image after the other becomes something else for a moment.
            let mut at = 0;
            while !ends.load(Ordering::Relaxed) {
                let mut word = [0; 8];
                staging.read(offset + at, &mut word);
                staging.write(offset + at, &word.map(|byte| !byte));
                linger();
                staging.write(offset + at, &word);
                linger();
                at = (at + 8) % (SHAPE.header_bytes() + SHAPE.payload_bytes());
            }
        });
        let mut number = 1;
        let _ends = Ends(&ends);
        // Both have to be seen, and some more.
        until("whole and spoilt images", || {
            let link = alone(namespace, number);
            number += 1;
            let (staging, connection, reservation, at) = reserve(&client, namespace, link);
            assert_eq!(at, offset, "the same place each time");
            staging.write(offset, &image(namespace, &link));
            match client.commit(connection, &[reservation]).unwrap()[..] {
                [CommitCode::Inserted] => {
                    inserted += 1;
                    let (lent, _) = client.acquire(&wanted(namespace, &[link]), Accept::Exact).unwrap();
                    let bytes = read(&lent[0], SHAPE).expect("nobody takes it away");
                    // What no sum covers means nothing: the rest of the header pages.
                    let values = SHAPE.header_bytes() as usize..;
                    assert!(bytes[values.clone()] == image(namespace, &link)[values], "what is taken is whole");
                }
                [CommitCode::FailedCheck] => {
                    refused += 1;
                    assert_eq!(check_run(&client, namespace, &[link]).0, 0, "what is refused is not there");
                }
                ref codes => panic!("{codes:?}"),
            }
            inserted >= 20 && refused >= 20 || number > 2000
        });
    });
    println!("{inserted} taken, {refused} refused");
    assert!(inserted > 0 && refused > 0, "{inserted} taken, {refused} refused");
    assert_eq!(daemon.stats()["stores"]["refused"]["failed_check"], refused);
    honest.end();
    daemon.end();
}

/// Headers that lie under a right sum: counts and lengths are never used unchecked.
#[test]
fn headers_that_lie_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Process::start(folder.path());
    let honest = Honest::beside(&daemon.socket);
    let client = daemon.client();
    let namespace = client.name(&manifest(), tenant("a"));
    let end = 176 + 12 * SHAPE.section_count() as usize;
    let mut refused = 0;
    for at in (0..176 + 12 * SHAPE.section_count() as usize).step_by(4) {
        for (number, value) in [0u32, 1, 0x7fff_ffff, u32::MAX].into_iter().enumerate() {
            let link = alone(namespace, (8 * at + number) as u32);
            let sound = image(namespace, &link);
            let mut image = sound.clone();
            image[at..at + 4].copy_from_slice(&value.to_le_bytes());
            if image == sound {
                continue;
            }
            let sum = header_sum(&image[..end]);
            image[end..end + 8].copy_from_slice(&sum.to_le_bytes());
            let (staging, connection, reservation, offset) = reserve(&client, namespace, link);
            staging.write(offset, &image);
            let codes = client.commit(connection, &[reservation]).unwrap();
            let (lent, _) = client.acquire(&wanted(namespace, &[link]), Accept::Exact).unwrap();
            // A parent of block 0, and the place of a record: nobody looks at them, and they are not carried on.
            if (96..128).contains(&at) || (136..176).contains(&at) {
                let bytes = read(&lent[0], SHAPE).unwrap();
                assert!(bytes[end + 8..] == sound[end + 8..], "{value:#x} at {at}");
                continue;
            }
            assert_eq!(codes, [CommitCode::FailedCheck], "{value:#x} at {at}");
            assert!(lent.is_empty(), "{value:#x} at {at}");
            refused += 1;
        }
    }
    assert!(refused > 100);
    honest.end();
    daemon.end();
}
