//! What side-by-side measurements share: programs and their figures, medians, and the machine.

use std::fs;
use std::process::Command;

use serde_json::Value;

/// Load average up to which a machine counts as quiet.
const QUIET: f64 = 0.5;

/// Standard output of a program that must exit with 0; its standard error is shown only when it does not.
pub fn read(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("start {command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

/// The number of that name in an object.
pub fn number(value: &Value, name: &str) -> Result<f64, String> {
    value[name].as_f64().ok_or_else(|| format!("no number {name} in {value}"))
}

/// The middle value, or the mean of the two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) }
}

/// Median and extremes.
pub fn spread(values: &[f64]) -> String {
    let low = values.iter().copied().fold(f64::MAX, f64::min);
    let high = values.iter().copied().fold(f64::MIN, f64::max);
    format!("{:.1} ({low:.1} to {high:.1})", median(values))
}

/// Load average of the last minute; empty where the system does not tell.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// True when the load average says that others use the machine too.
pub fn is_busy() -> bool {
    load().parse().is_ok_and(|load: f64| load > QUIET)
}

/// The processor and the vector instruction sets that matter here.
pub fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| info.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(": "));
    let flags = field("flags").map_or("", |(_, flags)| flags);
    let sets = ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx_vnni"];
    let sets: Vec<_> = sets.into_iter().filter(|set| flags.split(' ').any(|flag| flag == *set)).collect();
    format!("CPU: {}; {}", field("model name").map_or("unknown", |(_, name)| name), sets.join(" "))
}
