//! `cargo xtask test`: everything that can be checked on this machine.

use crate::report::Report;
use crate::stage;

/// Runs all stages, also after a failure, and prints one summary. A stage that fails without a failed test counts as
/// one failure. With `CI=true` a skip for any reason other than that there is no GPU, or that there is one, is a failure too.
pub fn run() -> Result<(), String> {
    let mut failures = Vec::new();
    let mut fmt = stage::cargo();
    fmt.args(["fmt", "--all", "--", "--check"]);
    failures.extend(stage::run("fmt", &mut fmt).err());

    let mut clippy = stage::cargo();
    clippy.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    failures.extend(stage::run("clippy", &mut clippy).err());

    let mut report = Report::default();
    let mut tests = stage::cargo();
    tests.args(["test", "--workspace", "--no-fail-fast", "--", "--show-output"]);
    let tested = stage::read("test", &mut tests, |line| {
        if report.read(line) {
            println!("{line}");
        }
    });
    if report.failed == 0 {
        failures.extend(tested.err());
    }
    if std::env::var("CI").is_ok_and(|value| value == "true") {
        failures.extend(report.forbidden_skips());
    }
    finish(&report, &failures)
}

fn finish(report: &Report, failures: &[String]) -> Result<(), String> {
    for test in &report.soaks {
        println!("left to soak: {test}");
    }
    for skip in &report.skips {
        println!("skipped: {skip}");
    }
    for failure in failures {
        println!("failed: {failure}");
    }
    let failed = report.failed + failures.len();
    println!("{} passed, {failed} failed, {} skipped", report.passed, report.skips.len());
    if failed == 0 { Ok(()) } else { Err("something failed, see above".into()) }
}
