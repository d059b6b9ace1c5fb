//! The C ABI as its users have it: the header alone, libraries installed into a folder, and programs in C against a real daemon,
//! under valgrind too.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvtier_daemon::config::{Config, Machine};
use kvtier_daemon::{ServeError, serve};

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; is it installed?"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    output
}

/// Compilers' words for: nothing may be doubtful.
const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-pedantic"];

#[test]
fn the_header_is_what_cbindgen_makes_of_the_source() {
    let config = cbindgen::Config::from_file(here().join("cbindgen.toml")).unwrap();
    let made = cbindgen::generate_with_config(here(), config).unwrap();
    let mut header = Vec::new();
    made.write(&mut header);
    let path = here().join("include").join("kvtier.h");
    if std::env::var_os("KVTIER_WRITE_HEADER").is_some() {
        std::fs::write(&path, &header).unwrap();
    }
    let kept = std::fs::read(&path).unwrap_or_default();
    assert!(kept == header, "include/kvtier.h is old: KVTIER_WRITE_HEADER=1 cargo test --workspace --test abi");
}

#[test]
fn the_header_compiles_alone_as_c_and_as_cxx() {
    for (compiler, language, standard) in [("cc", "c", "-std=c11"), ("c++", "c++", "-std=c++17")] {
        let mut command = Command::new(compiler);
        command.args(["-x", language, standard, "-fsyntax-only"]).args(STRICT);
        // A header that is compiled itself is warned of by its `#pragma once`, which it does not have.
        succeed(command.arg(here().join("include").join("kvtier.h")));
    }
}

/// Header, libraries and pkg-config file in a folder, as `install.sh` puts them there.
fn installed() -> tempfile::TempDir {
    let prefix = tempfile::tempdir().unwrap();
    // Beside this test, where cargo built them for it.
    let built = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    succeed(Command::new("bash").arg(here().join("install.sh")).arg(prefix.path()).arg(built));
    prefix
}

fn pkg_config(prefix: &Path, words: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.env("PKG_CONFIG_PATH", prefix.join("lib").join("pkgconfig")).args(words).arg("kvtier");
    let output = succeed(&mut command);
    String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
}

fn compile(prefix: &Path, source: &Path, is_static: bool) -> PathBuf {
    let program = prefix.join(format!("{}-{is_static}", source.file_stem().unwrap().to_str().unwrap()));
    let mut command = Command::new("cc");
    command
        .args(["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-g", "-O1"])
        .args(STRICT)
        .arg(source)
        .arg("-o")
        .arg(&program);
    command.args(pkg_config(prefix, &["--cflags"]));
    match is_static {
        true => command.arg(prefix.join("lib").join("libkvtier_c.a")).args(["-lpthread", "-ldl", "-lm", "-lgcc_s"]),
        false => command.args(pkg_config(prefix, &["--libs"])).arg(format!("-Wl,-rpath,{}/lib", prefix.display())),
    };
    succeed(&mut command);
    program
}

struct Daemon {
    folder: tempfile::TempDir,
    served: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Daemon {
    fn start() -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::defaults(&Machine::here().unwrap());
        config.socket = folder.path().join("kvtier.sock");
        config.http = None;
        config.host_mem_bytes = 16 << 20;
        config.client_staging_bytes = 256 << 10;
        let daemon = Daemon { served: Some(std::thread::spawn(move || serve(config))), folder };
        let until = Instant::now() + Duration::from_secs(60);
        while !daemon.socket().exists() {
            let is_over = daemon.served.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!is_over && Instant::now() < until, "the daemon does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("kvtier.sock")
    }
}

const TOLD: &str = "stored: 3 blocks\nloaded: 3 blocks, then never_stored\nexplained: never_stored\nread in place: 1 blocks\n\
                    written in place: 1 block\nin memory or on their way: 4 blocks\nfound: 4 blocks\n";

/// One daemon, and so one test, since a daemon of this process ends with the process.
#[test]
fn programs_in_c_go_through_all_calls_and_leave_nothing_behind() {
    let prefix = installed();
    let example = here().join("examples").join("roundtrip.c");
    let misuse = here().join("tests").join("misuse.c");
    for is_static in [false, true] {
        let daemon = Daemon::start();
        let program = compile(prefix.path(), &example, is_static);
        let output = succeed(Command::new(&program).arg(daemon.socket()));
        assert_eq!(String::from_utf8(output.stdout).unwrap(), TOLD, "static: {is_static}");
        // It has its blocks already.
        assert!(!Command::new(&program).arg(daemon.socket()).output().unwrap().status.success());
    }
    for source in [example, misuse] {
        let daemon = Daemon::start();
        let program = compile(prefix.path(), &source, false);
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=definite,indirect", "-q"]);
        valgrind.args(["--errors-for-leak-kinds=definite,indirect"]);
        succeed(valgrind.arg(program).arg(daemon.socket()));
    }
}
