//! A folder of kernels: everything that can be checked by compiling it.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::resources::{HEADER, Resources};
use super::{ARCHITECTURES, PTX_VERSION, Toolkit};
use crate::module::Module;

/// Threads that compile.
const WORKERS: usize = 2;
/// Set to 1, checked-in PTX and tables are written instead of compared.
const UPDATE: &str = "CUDA_LADDER_UPDATE";

/// A folder with sources, the PTX made of them and the table of their resources.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Each `*.cu` in it compiles by itself, with the folder as include folder.
    pub sources: PathBuf,
    /// `NAME.compute_ARCH.ptx` of each source and architecture.
    pub ptx: PathBuf,
    /// A line per kernel and architecture.
    pub table: PathBuf,
    /// Whether NVRTC compiles the sources too.
    pub nvrtc: bool,
    /// Kernels that may use exactly rounded operations only: no `.approx`, no `.ftz`.
    pub exact: fn(&str) -> bool,
    /// Kernels that may have arrays in local memory; the others have no stack.
    pub stack: fn(&str) -> bool,
}

/// What was checked, and what is wrong.
#[derive(Debug, Default)]
pub struct Report {
    /// Sources times architectures.
    pub compiled: usize,
    /// One text per failure; none is success.
    pub failures: Vec<String>,
    /// What ptxas said, by source, architecture and kernel.
    pub resources: Vec<Resources>,
}

/// A source for an architecture.
struct Job {
    source: PathBuf,
    architecture: &'static str,
}

impl Folder {
    /// Sources of the folder in order. Errors: it cannot be read.
    fn jobs(&self) -> Result<Vec<Job>, String> {
        let entries = fs::read_dir(&self.sources).map_err(|error| format!("{}: {error}", self.sources.display()))?;
        let mut sources: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
        sources.sort();
        let each = |source: PathBuf| ARCHITECTURES.map(|architecture| Job { source: source.clone(), architecture });
        Ok(sources.into_iter().flat_map(each).collect())
    }

    fn ptx_path(&self, job: &Job) -> PathBuf {
        let name = job.source.file_stem().unwrap_or_default().to_string_lossy();
        self.ptx.join(format!("{name}.compute_{}.ptx", job.architecture))
    }

    /// What can be said of the checked-in PTX without a compiler: it is there for each source and architecture, of the right version,
    /// the ladder executes it, and exact kernels are exact.
    pub fn check_ptx(&self) -> Report {
        let mut report = Report::default();
        match self.jobs() {
            Err(error) => report.failures.push(error),
            Ok(jobs) => {
                for job in jobs {
                    let path = self.ptx_path(&job);
                    match fs::read_to_string(&path) {
                        Ok(text) => self.judge(&text, &job, &path.display().to_string(), &mut report.failures),
                        Err(error) => report.failures.push(format!("{}: {error}", path.display())),
                    }
                }
            }
        }
        report
    }

    fn judge(&self, text: &str, job: &Job, name: &str, failures: &mut Vec<String>) {
        let module = match Module::parse(text) {
            Ok(module) => module,
            Err(error) => return failures.push(format!("{name}: {error}")),
        };
        if module.version != PTX_VERSION {
            failures.push(format!("{name}: .version {:?}, expected {PTX_VERSION:?}", module.version));
        }
        if module.target != format!("sm_{}", job.architecture) {
            failures.push(format!("{name}: .target {}", module.target));
        }
        failures.extend(inexact(text, self.exact).into_iter().map(|line| format!("{name}: {line}")));
    }

    /// Compiles everything and compares it with what is checked in. Results are kept in `cache` by the hash of what went in.
    pub fn check(&self, toolkit: &Toolkit, cache: &Path) -> Report {
        let jobs = match self.jobs().and_then(|jobs| {
            fs::create_dir_all(cache).map_err(|error| format!("{}: {error}", cache.display()))?;
            Ok(jobs)
        }) {
            Ok(jobs) => jobs,
            Err(error) => return Report { failures: vec![error], ..Report::default() },
        };
        let state = Mutex::new((jobs.into_iter().enumerate(), Report::default(), Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..WORKERS {
                scope.spawn(|| {
                    loop {
                        let next = state.lock().expect("no worker panics").0.next();
                        let Some((number, job)) = next else {
                            return;
                        };
                        let (failures, resources) = self.check_one(toolkit, cache, &job);
                        let (_, report, found) = &mut *state.lock().expect("no worker panics");
                        report.compiled += 1;
                        report.failures.extend(failures);
                        found.push((number, resources));
                    }
                });
            }
        });
        let (_, mut report, mut found) = state.into_inner().expect("no worker panics");
        found.sort();
        report.resources = found.into_iter().flat_map(|(_, resources)| resources).collect();
        self.check_table(&mut report);
        report.failures.sort();
        report
    }

    /// Compiles a source for an architecture with all compilers.
    fn check_one(&self, toolkit: &Toolkit, cache: &Path, job: &Job) -> (Vec<String>, Vec<Resources>) {
        let mut failures = Vec::new();
        let name = format!("{} for {}", job.source.display(), job.architecture);
        let key = self.key(job);
        let fresh = cache.join(format!("{key:016x}.ptx"));
        let part = cache.join(format!("{key:016x}.part"));
        if !fresh.exists() {
            let done = toolkit.ptx(&job.source, &self.sources, job.architecture, &part);
            // Put in its place only when it is whole.
            if let Err(error) = done.and_then(|()| fs::rename(&part, &fresh).map_err(|error| error.to_string())) {
                return (vec![format!("{name}: {error}")], Vec::new());
            }
        }
        let text = fs::read_to_string(&fresh).unwrap_or_default();
        self.judge(&text, job, &name, &mut failures);
        failures.extend(is_stale(&self.ptx_path(job), &text));
        let resources = toolkit.cubin(&fresh, job.architecture, &cache.join(format!("{key:016x}.cubin")));
        let resources = resources.unwrap_or_else(|error| {
            failures.push(format!("{name}: {error}"));
            Vec::new()
        });
        let compiled = cache.join(format!("{key:016x}.nvrtc"));
        if self.nvrtc && !compiled.exists() {
            match toolkit.nvrtc(&job.source, &self.sources, job.architecture) {
                Ok(text) => {
                    self.judge(&text, job, &format!("{name} by NVRTC"), &mut failures);
                    if failures.is_empty() {
                        failures.extend(fs::write(&compiled, text).err().map(|error| format!("{name}: {error}")));
                    }
                }
                Err(error) => failures.push(format!("{name} by NVRTC: {error}")),
            }
        }
        (failures, resources)
    }

    /// A hash of everything that a compilation reads: the source, all headers of the folder, the compilers' versions.
    fn key(&self, job: &Job) -> u64 {
        let mut hasher = DefaultHasher::new();
        (super::WHEELS, job.architecture, &job.source).hash(&mut hasher);
        let mut files: Vec<PathBuf> =
            fs::read_dir(&self.sources).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        files.retain(|path| *path == job.source || path.extension().is_some_and(|end| end == "cuh" || end == "h"));
        files.sort();
        for file in files {
            fs::read(&file).unwrap_or_default().hash(&mut hasher);
        }
        hasher.finish()
    }

    /// No kernel spills, and each needs what the table says.
    fn check_table(&self, report: &mut Report) {
        let is_wrong =
            |found: &&Resources| found.spill_bytes > 0 || found.stack_bytes > 0 && !(self.stack)(&found.kernel);
        for resources in report.resources.iter().filter(is_wrong) {
            report.failures.push(format!("spills or has a stack: {resources}"));
        }
        let lines: Vec<String> = report.resources.iter().map(|resources| format!("{resources}\n")).collect();
        let table = format!("{HEADER}\n{}", lines.concat());
        report.failures.extend(is_stale(&self.table, &table));
    }
}

/// Compares a checked-in file with what it should hold; or writes it, when that is asked for.
fn is_stale(path: &Path, wanted: &str) -> Option<String> {
    if std::env::var(UPDATE).is_ok_and(|value| value == "1") {
        return fs::write(path, wanted).err().map(|error| format!("{}: {error}", path.display()));
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    if found == wanted {
        return None;
    }
    let line = found.lines().zip(wanted.lines()).position(|(found, wanted)| found != wanted);
    let line = line.unwrap_or(found.lines().count().min(wanted.lines().count()));
    let [found, wanted] = [&found, wanted].map(|text| text.lines().nth(line).unwrap_or("the end").trim());
    let path = path.display();
    Some(format!("{path} is stale in line {}: {found}, now {wanted}; run with {UPDATE}=1 to write it", line + 1))
}

/// Instructions of exact kernels that are not: any `.approx`, `.full` or `.ftz`.
fn inexact(text: &str, exact: fn(&str) -> bool) -> Vec<String> {
    let (mut kernel, mut found) = ("", Vec::new());
    for (index, line) in text.lines().enumerate() {
        if let Some((_, rest)) = line.split_once(".entry ") {
            kernel = rest.split(['(', ' ']).next().unwrap_or_default();
        }
        let opcode = line.trim().trim_start_matches(['@', '!']);
        let words = opcode.split([' ', '\t']).find(|word| word.contains('.')).unwrap_or_default();
        let is_inexact = words.split('.').any(|word| matches!(word, "approx" | "full" | "ftz"));
        if is_inexact && exact(kernel) {
            found.push(format!("line {}: {kernel} must be exact: {}", index + 1, line.trim()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inexact_instructions_of_exact_kernels_are_found() {
        let text = ".visible .entry encode(\n)\n{\n\tadd.f32 %f1, %f2, %f3;\n\t@%p1 div.approx.f32 %f1, %f2, %f3;\n\
            \tadd.ftz.f32 %f1, %f2, %f3;\n}\n.visible .entry attend(\n)\n{\n\tex2.approx.ftz.f32 %f1, %f2;\n}\n";
        let found = inexact(text, |kernel| kernel == "encode");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("line 5: encode") && found[1].contains("line 6: encode"), "{found:?}");
        assert_eq!(inexact(text, |_| true).len(), 3);
    }
}
