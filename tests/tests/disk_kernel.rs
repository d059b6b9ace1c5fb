//! What a kernel or an administrator may deny a disk: io_uring, locked memory, writing, space. The answer does not change, and the reason
//! is named. Each case is a process of its own, since what is denied cannot be allowed again.

use std::collections::HashMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use cache_core::hex::Hex;
use kvtier_tests::disk::expected;
use kvtier_tests::{fixture, turn};

const START: usize = 5000;
const LENGTH: usize = 200;
/// Tokens in full blocks before the last one.
const CACHEABLE: &str = "192";

/// What the child said, by the first word of the line, in order.
type Said = HashMap<String, Vec<String>>;

/// Answers in a child, started through `wrapper`, with `denied` called between fork and exec.
fn answer(wrapper: &[String], directory: &Path, denied: fn() -> io::Result<()>) -> Said {
    let program = env!("CARGO_BIN_EXE_disk_child").to_owned();
    let words = [program, "answer".into(), directory.display().to_string(), START.to_string(), LENGTH.to_string()];
    let words: Vec<String> = wrapper.iter().cloned().chain(words).collect();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    // SAFETY: the hooks make system calls on their own stack only; they allocate nothing and take no lock.
    unsafe { command.pre_exec(denied) };
    let output = command.output().expect("the child starts");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{}\n{text}", output.status);
    let mut said = Said::new();
    for (word, rest) in text.lines().filter_map(|line| line.split_once(' ')) {
        said.entry(word.to_owned()).or_default().push(rest.to_owned());
    }
    said
}

/// Both answers, cold and after a restart, are those of a run without any cache.
fn is_right(said: &Said) {
    let expected = Hex(expected(&fixture().prompt(START, LENGTH), 8)).to_string();
    assert_eq!(said["digest"], [expected.clone(), expected], "{said:?}");
}

fn allowed() -> io::Result<()> {
    Ok(())
}

fn checked(result: i64) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A seccomp filter that answers `io_uring_setup` with EPERM, as container engines do.
fn deny_io_uring() -> io::Result<()> {
    let statement = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_io_uring_setup as u32, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the calls read the program, which lives across them, and change this process alone, which is about to become the child.
    unsafe {
        checked(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
        checked(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program).into())
    }
}

/// 8 MiB of locked memory, as most systems allow, and no right to more.
fn limit_locked_memory() -> io::Result<()> {
    const CAP_IPC_LOCK: libc::c_ulong = 14;
    let limit = libc::rlimit { rlim_cur: 8 << 20, rlim_max: 8 << 20 };
    // SAFETY: the calls read `limit`, which lives across them, and change this process alone, which is about to become the child.
    unsafe {
        checked(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit).into())?;
        // Only root can give capabilities up this way, and only root has this one.
        if libc::geteuid() == 0 {
            checked(libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0).into())?;
        }
    }
    Ok(())
}

#[test]
fn without_io_uring() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let said = answer(&[], folder.path(), deny_io_uring);
    is_right(&said);
    assert!(said["medium"][0].contains("pread"), "{said:?}");
    assert!(said["medium"][0].contains("io_uring cannot be used: Operation not permitted"), "{said:?}");
    assert_eq!(said["disk"], ["0", CACHEABLE]);
}

#[test]
fn with_8_mib_of_locked_memory() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let said = answer(&[], folder.path(), limit_locked_memory);
    is_right(&said);
    // Where io_uring itself is denied to this test, the pool has nothing to register.
    if said["medium"][0].contains("io_uring,") {
        assert!(said["medium"][0].contains("locked-memory limit of 8 MiB"), "{said:?}");
    }
    assert_eq!(said["disk"], ["0", CACHEABLE]);
}

/// A shell that runs the child over a mount of its own; `None`, and a skip by name, where that is not allowed.
fn with_mount(commands: &str) -> Option<Vec<String>> {
    let user = if rustix::process::geteuid().is_root() { "" } else { "--map-root-user" };
    let script = format!("{commands} && exec \"$0\" \"$@\"");
    let words = ["unshare", "--mount", user, "sh", "-c", &script];
    let words: Vec<String> = words.into_iter().filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let probe = Command::new(&words[0]).args(&words[1..]).arg("true").output();
    if probe.is_ok_and(|output| output.status.success()) {
        return Some(words);
    }
    println!("SKIP: no mount namespaces");
    None
}

#[test]
fn on_a_read_only_file_system() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    let Some(wrapper) = with_mount(&format!("mount -t tmpfs -o ro,size=1m none {path}")) else { return };
    let said = answer(&wrapper, folder.path(), allowed);
    is_right(&said);
    assert!(said["absent"].iter().all(|reason| reason.contains("Read-only file system")), "{said:?}");
}

/// Room for the superblocks and a few segments of the eight that the budget has.
#[test]
fn on_a_file_system_that_is_too_small() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    let Some(wrapper) = with_mount(&format!("mount -t tmpfs -o size=36m none {path}")) else { return };
    let said = answer(&wrapper, folder.path(), allowed);
    is_right(&said);
    assert_eq!(said["disk"], ["0", CACHEABLE], "what fits is there");
    let Some(wrapper) = with_mount(&format!("mount -t tmpfs -o size=9m none {path}")) else { return };
    let said = answer(&wrapper, folder.path(), allowed);
    is_right(&said);
    let named =
        |word: &str| said.get(word).is_some_and(|lines| lines.iter().all(|line| line.contains("No space left")));
    assert!(named("notice") || named("status") || named("absent"), "{said:?}");
}
