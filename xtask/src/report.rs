//! Reads what `cargo test -- --show-output` prints and keeps the tally.

use std::fmt;

/// The only reasons for which a test may be skipped where everything else is required: what the machine is, one way or the other.
const ALLOWED: [&str; 2] = ["no GPU", "a GPU is there"];

/// Sums over all test programs of one `cargo test`.
#[derive(Default)]
pub struct Report {
    /// Tests that ran to their end and printed no `SKIP: ` line.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
    /// Tests that printed `SKIP: <reason>`, or are ignored outside of a soak.
    pub skips: Vec<Skip>,
    /// Ignored tests of targets named `soak_*`; `cargo xtask soak` runs them.
    pub soaks: Vec<String>,
    program: String,
    section: Section,
    /// Passed tests of the current program that printed a skip.
    skipped_here: usize,
}

/// A test that did not check what it is there for.
#[derive(Debug, PartialEq, Eq)]
pub struct Skip {
    test: String,
    reason: String,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.test, self.reason)
    }
}

/// Which part of a test program's output the next line belongs to.
#[derive(Default)]
enum Section {
    /// One line per test, or output that nobody captured.
    #[default]
    Running,
    /// What a passed test printed; its name, and whether it has printed a skip.
    Passed { test: String, skipped: bool },
    /// What failed tests printed.
    Failures,
}

impl Report {
    /// Takes one line; returns whether it should be shown (what passed tests printed is not).
    pub fn read(&mut self, line: &str) -> bool {
        let text = line.trim();
        if let Some(program) = program(text) {
            self.program = program;
            self.section = Section::Running;
        } else if let Some(result) = text.strip_prefix("test result: ") {
            // libtest counts a test that printed a skip as passed.
            self.passed += count(result, "passed").saturating_sub(std::mem::take(&mut self.skipped_here));
            self.failed += count(result, "failed");
            self.section = Section::Running;
        } else if line == "successes:" {
            self.section = Section::Passed { test: String::new(), skipped: false };
            return false;
        } else if line == "failures:" {
            self.section = Section::Failures;
        } else {
            return self.read_inside(line, text);
        }
        true
    }

    fn read_inside(&mut self, line: &str, text: &str) -> bool {
        let place = |test: &str| format!("{}::{test}", self.program);
        match &mut self.section {
            Section::Running => {
                if let Some((test, reason)) = ignored(text) {
                    if self.program.starts_with("soak_") {
                        self.soaks.push(place(test));
                    } else {
                        self.skips.push(Skip { test: place(test), reason: format!("ignored {reason}").trim().into() });
                    }
                } else if let Some(reason) = text.strip_prefix("SKIP: ") {
                    self.skips.push(Skip { test: self.program.clone(), reason: reason.into() });
                }
                true
            }
            Section::Passed { test, skipped } => {
                let header = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
                if let Some(name) = header {
                    *test = name.to_owned();
                    *skipped = false;
                } else if let Some(reason) = text.strip_prefix("SKIP: ") {
                    let test = format!("{}::{test}", self.program);
                    let skip = Skip { test, reason: reason.into() };
                    if !self.skips.contains(&skip) {
                        self.skips.push(skip);
                    }
                    if !*skipped {
                        self.skipped_here += 1;
                        *skipped = true;
                    }
                }
                false
            }
            Section::Failures => true,
        }
    }

    /// One message per skip that a machine with everything, or everything but a GPU, must not have.
    pub fn forbidden_skips(&self) -> Vec<String> {
        let forbidden = self.skips.iter().filter(|skip| !ALLOWED.contains(&&skip.reason[..]));
        forbidden.map(|skip| format!("not allowed with CI=true: skipped {skip}")).collect()
    }
}

/// `Running tests/edges.rs (target/debug/deps/edges-0f3a)` -> `edges`; `Doc-tests kvtier_sdk` -> `doc-tests kvtier_sdk`.
fn program(text: &str) -> Option<String> {
    if let Some(name) = text.strip_prefix("Doc-tests ") {
        return Some(format!("doc-tests {name}"));
    }
    let (_, path) = text.strip_prefix("Running ")?.strip_suffix(')')?.split_once(" (")?;
    let file = path.rsplit('/').next()?;
    Some(file.rsplit_once('-').map_or(file, |(name, _)| name).to_owned())
}

/// `test NAME ... ignored[, REASON]` -> name and reason.
fn ignored(text: &str) -> Option<(&str, &str)> {
    let (name, outcome) = text.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let reason = outcome.strip_prefix("ignored")?;
    Some((name, reason.trim_start_matches([',', ' '])))
}

/// The number before ` <word>` in `ok. 3 passed; 0 failed; ...`; 0 when it isn't there.
fn count(result: &str, word: &str) -> usize {
    let part = result.split([';', '.']).map(str::trim).find_map(|part| part.strip_suffix(word));
    part.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
     Running unittests src/lib.rs (target/debug/deps/gpu_tier-0a1b)

running 4 tests
test device::copies ... ok
test device::on_cuda ... ok
test device::on_both ... ok
test device::slow ... ignored, needs an hour

successes:

---- device::copies stdout ----
copied 3 blocks

---- device::on_cuda stdout ----
SKIP: no GPU
SKIP: no GPU

---- device::on_both stdout ----
SKIP: no driver library


successes:
    device::copies
    device::on_cuda
    device::on_both

test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s

     Running tests/soak_engine.rs (/somewhere/else/debug/deps/soak_engine-9f)

running 1 test
test thirty_prompts ... ignored

test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

     Running tests/broken.rs (target/debug/deps/broken-77)

running 2 tests
test good ... ok
test bad ... FAILED

failures:

---- bad stdout ----
SKIP: a failed test is never a skip

failures:
    bad

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

   Doc-tests kvtier_sdk

running 1 test
test sdk/src/lib.rs - KvCache (line 12) ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s
";

    fn report() -> (Report, Vec<&'static str>) {
        let mut report = Report::default();
        let shown = OUTPUT.lines().filter(|line| report.read(line)).collect();
        (report, shown)
    }

    #[test]
    fn sums_over_all_programs_without_the_skipped() {
        let (report, _) = report();
        assert_eq!((report.passed, report.failed), (3, 1));
        let skips: Vec<_> = report.skips.iter().map(ToString::to_string).collect();
        assert_eq!(
            skips,
            [
                "gpu_tier::device::slow: ignored needs an hour",
                "gpu_tier::device::on_cuda: no GPU",
                "gpu_tier::device::on_both: no driver library",
            ]
        );
        assert_eq!(report.soaks, ["soak_engine::thirty_prompts"]);
    }

    #[test]
    fn only_a_missing_gpu_may_skip() {
        let (report, _) = report();
        let forbidden = report.forbidden_skips();
        assert_eq!(forbidden.len(), 2, "{forbidden:?}");
        assert!(forbidden.iter().all(|text| !text.contains("no GPU")));
    }

    #[test]
    fn output_of_passed_tests_is_hidden_and_of_failed_ones_shown() {
        let (_, shown) = report();
        assert!(!shown.contains(&"copied 3 blocks"));
        assert!(shown.contains(&"SKIP: a failed test is never a skip"));
        assert!(shown.contains(&"test bad ... FAILED"));
    }
}
