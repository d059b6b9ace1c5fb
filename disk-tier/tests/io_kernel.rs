//! What the kernel may deny or withhold: io_uring, locked memory, direct I/O, the lock, space, an answer.

mod io_common;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use disk_tier::io::rig::{Completion, MemoryMedium};
use disk_tier::io::{Directory, IoChoice, IoError, Kind, Medium, OpenError};
use io_common::{
    FILE, Listener, PAGE, PATIENCE, Pages, directory, fill, filled, open, operation, owned, pattern, sync,
};

/// Set for a test program that was started by one of its own tests; its value is a directory or another argument.
const CHILD: &str = "KVTIER_IO_TEST_CHILD";
const MIB: u64 = 1 << 20;

fn argument() -> Option<String> {
    std::env::var(CHILD).ok()
}

/// Starts this test program again, with that test alone, inside `wrapper`.
fn start(wrapper: &[&str], test: &str, argument: &str) -> std::io::Result<Child> {
    let program = std::env::current_exe().unwrap();
    let mut words = wrapper.iter().map(std::ffi::OsStr::new).chain([program.as_os_str()]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, argument);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

/// Runs a test in a process of its own, since what it changes cannot be changed back.
fn run_alone(test: &str, argument: &str) {
    let output = start(&[], test, argument).unwrap().wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{test} in a child: {}\n{said}", output.status);
    assert!(said.contains("1 passed"), "{test} ran in the child\n{said}");
}

/// Runs a test as root of a mount namespace of its own. False, and a skip by name, where that is not allowed.
fn run_with_mounts(test: &str) -> bool {
    let map = ["--map-root-user"];
    let user = if rustix::process::geteuid().is_root() { &[][..] } else { &map[..] };
    let wrapper = [&["unshare", "--mount"], user].concat();
    let allowed = Command::new(wrapper[0]).args(&wrapper[1..]).arg("true").output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        println!("SKIP: no mount namespaces");
        return false;
    }
    let output = start(&wrapper, test, "mounts").unwrap().wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{test} in a namespace: {}\n{said}", output.status);
    if let Some(skip) = said.lines().find(|line| line.starts_with("SKIP: ")) {
        println!("{skip}");
        return false;
    }
    true
}

fn sh(command: &str) -> bool {
    Command::new("sh").args(["-c", command]).status().is_ok_and(|status| status.success())
}

/// Writes and reads a file through owned and lent memory.
fn works(medium: &dyn Medium, pages: &Arc<Pages>) {
    let listener = Listener::on(medium);
    medium.create(FILE, 2 * MIB).unwrap();
    let out = Arc::new(AtomicUsize::new(0));
    let lent = fill(pages.lend(0, MIB, &out), 1);
    let writes = [(1, 0, filled(2, MIB)), (2, MIB, lent)];
    medium.submit(writes.map(|(id, offset, memory)| operation(id, Kind::Write, FILE, offset, memory)).into());
    let reads = [(3, 0, pages.lend(0, MIB, &out)), (4, MIB, owned(MIB))];
    assert!(listener.take(2).iter().all(|done| done.result == Ok(())));
    medium.submit(reads.map(|(id, offset, memory)| operation(id, Kind::Read, FILE, offset, memory)).into());
    for (done, seed) in listener.take(2).into_iter().zip([2, 1]) {
        assert_eq!(done.result, Ok(()));
        assert_eq!(done.memory.unwrap().as_slice(), pattern(seed, MIB));
    }
    medium.submit(vec![sync(5, FILE)]);
    assert_eq!(listener.next().result, Ok(()));
    medium.close(10_000);
}

/// A seccomp filter that answers `io_uring_setup` with an errno, as container engines do.
fn deny_io_uring(errno: i32) {
    let statement = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_io_uring_setup as u32, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32, 0, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the calls read the program, which lives across them, and change this thread of a process that exists for this test.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

#[test]
fn without_io_uring_the_pool_takes_over_and_says_why() {
    let Some(errno) = argument() else {
        for errno in [libc::EPERM, libc::ENOSYS] {
            run_alone("without_io_uring_the_pool_takes_over_and_says_why", &errno.to_string());
        }
        return;
    };
    let errno: i32 = errno.parse().unwrap();
    deny_io_uring(errno);
    let (pages, directory) = (Pages::new(MIB), directory());
    let asked = Directory::open(directory.path(), IoChoice::IoUring, Vec::new(), 4, 1000).map(|_| ());
    match asked {
        Err(OpenError::Ring { source }) => assert_eq!(source.raw_os_error(), Some(errno)),
        other => panic!("io_uring was denied: {other:?}"),
    }
    let medium = open(directory.path(), IoChoice::Auto, &pages, 16, 10_000);
    let reason = std::io::Error::from_raw_os_error(errno).to_string();
    assert!(medium.describe().starts_with("pread "), "{}", medium.describe());
    assert!(medium.describe().contains(&reason), "{}", medium.describe());
    works(&*medium, &pages);
}

#[test]
fn without_locked_memory_buffers_are_used_unregistered() {
    if argument().is_none() {
        return run_alone("without_locked_memory_buffers_are_used_unregistered", "memlock");
    }
    use rustix::process::{Resource, Rlimit};
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let limit = Rlimit { current: Some(8 * MIB), maximum: Some(8 * MIB) };
    rustix::process::setrlimit(Resource::Memlock, limit).unwrap();
    let mut own = capabilities(None).unwrap();
    own.effective -= CapabilitySet::IPC_LOCK;
    own.permitted -= CapabilitySet::IPC_LOCK;
    own.inheritable -= CapabilitySet::IPC_LOCK;
    set_capabilities(None, own).unwrap();

    let (pages, directory) = (Pages::new(16 * MIB), directory());
    let medium = open(directory.path(), IoChoice::IoUring, &pages, 16, 10_000);
    let says = "buffers not registered (16 MiB are more than the locked-memory limit of 8 MiB allows)";
    assert!(medium.describe().contains(says), "{}", medium.describe());
    works(&*medium, &pages);
}

/// A directory without direct I/O; every Linux has a tmpfs there.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

#[test]
fn tmpfs_is_used_buffered() {
    for choice in [IoChoice::IoUring, IoChoice::Pread] {
        let (pages, directory) = (Pages::new(MIB), in_memory());
        let medium = open(directory.path(), choice, &pages, 16, 10_000);
        assert!(medium.describe().contains("buffered (tmpfs has no direct I/O)"), "{}", medium.describe());
        works(&*medium, &pages);
        let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "the lock and the file: {names:?}");
    }
}

#[test]
fn one_process_holds_the_directory() {
    if let Some(path) = argument() {
        let path = Path::new(&path);
        let _medium = open(path, IoChoice::Auto, &Pages::new(MIB), 4, 1000);
        std::fs::write(path.join("held"), "").unwrap();
        std::thread::sleep(PATIENCE);
        return;
    }
    let directory = directory();
    let path = directory.path();
    let try_open = || Directory::open(path, IoChoice::Auto, Vec::new(), 4, 1000);
    let mut child = start(&[], "one_process_holds_the_directory", path.to_str().unwrap()).unwrap();
    let begun = Instant::now();
    while !path.join("held").exists() {
        assert!(begun.elapsed() < PATIENCE && child.try_wait().unwrap().is_none(), "the child holds the directory");
        std::thread::sleep(Duration::from_millis(5));
    }
    match try_open().map(|_| ()) {
        Err(OpenError::Held { path: named }) => assert_eq!(named, path),
        other => panic!("another process holds it: {other:?}"),
    }
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    let ours = try_open().expect("a killed process holds nothing");
    assert!(matches!(try_open(), Err(OpenError::Held { .. })), "nor can the same process open it twice");
    ours.close(1000);
    drop(ours);
    try_open().expect("closed and dropped");
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let directory = directory();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Directory::open(&file.join("below"), IoChoice::Auto, Vec::new(), 4, 1000).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::Io { what: "create the directory", .. }), "{error:?}");

    let below = directory.path().join("a/b");
    let medium = open(&below, IoChoice::Pread, &Pages::new(MIB), 4, 1000);
    medium.create(FILE, PAGE).unwrap();
    std::fs::remove_dir_all(directory.path().join("a")).unwrap();
    let gone = medium.files().unwrap_err();
    assert_eq!(gone.kind(), std::io::ErrorKind::NotFound, "{gone}");
    assert!(medium.create(FILE, PAGE).is_err(), "nothing can be made in a directory that is gone");
}

#[test]
fn full_and_read_only_file_systems_are_errors() {
    if argument().is_none() {
        run_with_mounts("full_and_read_only_file_systems_are_errors");
        return;
    }
    let (directory, pages) = (directory(), Pages::new(MIB));
    let at = directory.path().display();
    assert!(sh(&format!("mount -t tmpfs -o size=8m tmpfs {at}")));
    for choice in [IoChoice::IoUring, IoChoice::Pread] {
        let medium = open(directory.path(), choice, &pages, 4, 10_000);
        let listener = Listener::on(&*medium);
        medium.create(FILE, 4 * MIB).unwrap();
        let bigger = disk_tier::io::FileId(FILE.0 + 1);
        let full = medium.create(bigger, 8 * MIB).unwrap_err();
        assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
        let files: Vec<_> = medium.files().unwrap().into_iter().map(|(file, _)| file).collect();
        assert_eq!(files, [FILE], "what did not fit is not there");
        medium.create(bigger, 2 * MIB).expect("and its space is free again");
        medium.submit(vec![operation(1, Kind::Write, bigger, MIB, filled(1, MIB))]);
        assert_eq!(listener.next().result, Ok(()), "a preallocated file takes writes on a full disk");
        medium.remove(bigger).unwrap();
        medium.remove(FILE).unwrap();
        medium.close(1000);
    }
    assert!(sh(&format!("mount -o remount,ro {at}")));
    let error = Directory::open(directory.path(), IoChoice::Auto, Vec::new(), 4, 1000).map(|_| ()).unwrap_err();
    let OpenError::Io { source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.raw_os_error(), Some(libc::EROFS), "{error:?}");
    assert!(sh(&format!("umount {at}")));
}

/// A pipe in place of a segment: its reads wait until somebody writes. Only a store without direct I/O can open one.
fn pipe(directory: &Path) -> std::fs::File {
    use rustix::fs::{CWD, FileType, Mode};
    let path = directory.join("segment.000002");
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    std::fs::File::options().read(true).write(true).open(path).unwrap()
}

const PIPE: disk_tier::io::FileId = disk_tier::io::FileId(4);

#[test]
fn the_ring_tells_of_an_operation_without_an_answer_and_gives_its_memory_back_later() {
    let (directory, pages, out) = (in_memory(), Pages::new(MIB), Arc::new(AtomicUsize::new(0)));
    let medium = open(directory.path(), IoChoice::IoUring, &pages, 2, 100);
    let _pipe = pipe(directory.path());
    let listener = Listener::on(&*medium);
    medium.create(FILE, MIB).unwrap();
    let stuck = [1, 2, 3, 4].map(|id| operation(id, Kind::Read, PIPE, 0, pages.lend((id - 1) * PAGE, PAGE, &out)));
    medium.submit(stuck.into());
    for done in listener.take(4) {
        assert_eq!(done.result, Err(IoError::TimedOut { millis: 100 }), "{done:?}");
        assert!(done.memory.is_none());
    }
    // The depth is full of them until the kernel has cancelled them; then the medium goes on.
    medium.submit(vec![operation(5, Kind::Write, FILE, 0, filled(1, PAGE))]);
    assert_eq!(listener.next().result, Ok(()));
    medium.close(10_000);
    assert_eq!(out.load(Ordering::SeqCst), 0, "a closed medium holds no memory");
    assert!(listener.within(Duration::ZERO).is_none(), "nothing is told twice");
}

#[test]
fn the_ring_starts_no_more_than_its_depth() {
    use std::io::Write;
    let (directory, pages) = (in_memory(), Pages::new(MIB));
    let medium = open(directory.path(), IoChoice::IoUring, &pages, 2, 60_000);
    let mut pipe = pipe(directory.path());
    let listener = Listener::on(&*medium);
    medium.create(FILE, MIB).unwrap();
    let mut batch: Vec<_> = [1, 2].map(|id| operation(id, Kind::Read, PIPE, 0, owned(PAGE))).into();
    batch.push(operation(3, Kind::Read, FILE, 0, owned(PAGE)));
    medium.submit(batch);
    assert!(listener.within(Duration::from_millis(100)).is_none(), "the third waits for a place");
    pipe.write_all(&[7; PAGE as usize]).unwrap();
    let ended = listener.take(2);
    assert!(ended.iter().any(|done| done.id == 3) && ended.iter().all(|done| done.result == Ok(())), "{ended:?}");
    // What is under way at a close is waited for.
    let closing = std::thread::spawn({
        let medium = Arc::clone(&medium);
        move || medium.close(60_000)
    });
    assert!(
        listener.within(Duration::from_millis(50)).is_none(),
        "the other read of the pipe is with the kernel still"
    );
    assert!(!closing.is_finished());
    pipe.write_all(&[7; PAGE as usize]).unwrap();
    assert_eq!(listener.next().result, Ok(()));
    closing.join().unwrap();
}

#[test]
fn a_queue_that_runs_over_is_an_error_for_whoever_ran_it_over() {
    let (directory, pages) = (in_memory(), Pages::new(MIB));
    let medium = open(directory.path(), IoChoice::IoUring, &pages, 1, 60_000);
    let pipe = pipe(directory.path());
    let listener = Listener::on(&*medium);
    medium.submit((1..=2).map(|id| operation(id, Kind::Read, PIPE, 0, owned(PAGE))).collect());
    medium.submit((3..=20).map(|id| operation(id, Kind::Read, PIPE, 0, owned(PAGE))).collect());
    let done = listener.next();
    assert_eq!(done.result, Err(IoError::Errno(libc::EAGAIN)), "{done:?}");
    assert!(done.memory.is_some());
    drop(pipe);
    medium.close(0);
}

#[test]
fn stuck_threads_do_not_hold_the_news_or_the_close() {
    let (pages, out) = (Pages::new(MIB), Arc::new(AtomicUsize::new(0)));
    let medium = MemoryMedium::new(Completion::Threads { threads: 2, deadline_millis: 50 });
    let listener = Listener::on(&*medium);
    medium.create(FILE, MIB).unwrap();
    medium.stall(true);
    let lend = |id: u64| operation(id, Kind::Write, FILE, id * PAGE, fill(pages.lend(id * PAGE, PAGE, &out), id));
    medium.submit((0..4).map(lend).collect());
    for done in listener.take(4) {
        assert_eq!((done.result, done.memory.is_none()), (Err(IoError::TimedOut { millis: 50 }), true));
    }
    let begun = Instant::now();
    while out.load(Ordering::SeqCst) != 2 {
        assert!(begun.elapsed() < PATIENCE, "two are stuck with their threads, two were never started");
        std::thread::sleep(Duration::from_millis(1));
    }
    medium.submit(vec![lend(4)]);
    medium.close(10);
    assert_eq!(
        out.load(Ordering::SeqCst) - usize::from(listener.next().memory.is_some()),
        2,
        "the drive has them still"
    );
    medium.stall(false);
    medium.close(10_000);
    assert_eq!(out.load(Ordering::SeqCst), 0, "and gives them back");
    assert!(listener.within(Duration::ZERO).is_none(), "what was told is not told again");
}

/// The real thing: writes to a frozen ext4 do not come back, cannot be cancelled, and end when it is thawed.
#[test]
fn writes_to_a_frozen_file_system_time_out_and_land_later() {
    if argument().is_none() {
        run_with_mounts("writes_to_a_frozen_file_system_time_out_and_land_later");
        return;
    }
    let (image, directory) = (tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap(), directory());
    image.as_file().set_len(64 * MIB).unwrap();
    let (file, at) = (image.path().display(), directory.path().display());
    if !sh(&format!("mkfs.ext4 -q {file} && mount -o loop {file} {at}")) {
        println!("SKIP: no loop device with ext4");
        return;
    }
    for choice in [IoChoice::IoUring, IoChoice::Pread] {
        let (pages, out) = (Pages::new(4 * MIB), Arc::new(AtomicUsize::new(0)));
        let medium = open(directory.path(), choice, &pages, 4, 200);
        println!("{}", medium.describe());
        let listener = Listener::on(&*medium);
        medium.create(FILE, 4 * MIB).unwrap();
        let thaw = Freeze::new(directory.path());
        let write =
            |id: u64| operation(id, Kind::Write, FILE, id * MIB, fill(pages.lend(id * MIB, MIB, &out), 10 + id));
        medium.submit((0..2).map(write).collect());
        assert!(listener.take(2).iter().all(|done| done.result == Err(IoError::TimedOut { millis: 200 })));
        assert_eq!(out.load(Ordering::SeqCst), 2, "the kernel has the memory still");
        medium.submit(vec![operation(9, Kind::Read, FILE, 3 * MIB, owned(MIB))]);
        assert_eq!(listener.next().result, Ok(()), "a read has place beside them");
        medium.close(100);
        assert_eq!(out.load(Ordering::SeqCst), 2, "a close that ran out of time frees nothing");
        drop(thaw);
        medium.close(30_000);
        assert_eq!(out.load(Ordering::SeqCst), 0);
        drop(medium);
        let bytes = std::fs::read(directory.path().join("segment.000001")).unwrap();
        assert!(bytes[..2 * MIB as usize] == [pattern(10, MIB), pattern(11, MIB)].concat(), "late writes land");
    }
    // The same disk, filled.
    let medium = open(directory.path(), IoChoice::Auto, &Pages::new(MIB), 4, 10_000);
    let full = medium.create(disk_tier::io::FileId(9), 80 * MIB).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    assert!(medium.files().unwrap().iter().all(|(file, _)| *file == FILE), "what did not fit is not there");
    drop(medium);
    assert!(sh(&format!("umount {at}")));
}

/// A frozen mount until it is dropped.
struct Freeze {
    mount: std::fs::File,
    /// Should the test hang, the process must still be able to end: its watcher thaws when this is not dropped in time.
    watcher: Option<(std::sync::mpsc::Sender<()>, std::thread::JoinHandle<()>)>,
}

impl Freeze {
    fn new(mount: &Path) -> Freeze {
        let mount = std::fs::File::open(mount).unwrap();
        Freeze::ioctl(&mount, FIFREEZE);
        let second = mount.try_clone().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let watcher = std::thread::spawn(move || {
            if receiver.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                Freeze::ioctl(&second, FITHAW);
            }
        });
        Freeze { mount, watcher: Some((sender, watcher)) }
    }

    fn ioctl(mount: &std::fs::File, request: libc::c_ulong) {
        use std::os::fd::AsRawFd;
        // SAFETY: both requests take an integer that they ignore.
        let result = unsafe { libc::ioctl(mount.as_raw_fd(), request, 0) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}

/// `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)` of linux/fs.h.
const FIFREEZE: libc::c_ulong = 0xC004_5877;
const FITHAW: libc::c_ulong = 0xC004_5878;

impl Drop for Freeze {
    fn drop(&mut self) {
        Freeze::ioctl(&self.mount, FITHAW);
        if let Some((sender, watcher)) = self.watcher.take() {
            drop(sender);
            watcher.join().unwrap();
        }
    }
}
