//! What a kernel needs of a multiprocessor, as ptxas reports it.

use std::fmt;

/// One kernel on one architecture.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resources {
    /// Its name.
    pub kernel: String,
    /// Such as `90a`.
    pub architecture: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of spills, stores and loads.
    pub spill_bytes: u32,
    /// Stack of a thread.
    pub stack_bytes: u32,
    /// Static shared memory of a block.
    pub shared_bytes: u32,
    /// Barriers of a block.
    pub barriers: u32,
}

/// The columns of the table.
pub(super) const HEADER: &str = "kernel\tarchitecture\tregisters\tspill bytes\tstack bytes\tshared bytes";

impl fmt::Display for Resources {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Resources { kernel, architecture, registers, spill_bytes, stack_bytes, shared_bytes, .. } = self;
        write!(formatter, "{kernel}\tsm_{architecture}\t{registers}\t{spill_bytes}\t{stack_bytes}\t{shared_bytes}")
    }
}

/// The number in front of ` what`.
fn number(line: &str, what: &str) -> Option<u32> {
    let (before, _) = line.split_once(what)?;
    before.trim_end().rsplit([' ', ',']).next()?.parse().ok()
}

/// Reads what `ptxas -v` says. Errors: words that it has never said before.
pub(super) fn read(said: &str, architecture: &str) -> Result<Vec<Resources>, String> {
    let mut found = Vec::new();
    let mut current: Option<Resources> = None;
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            current = Some(Resources {
                kernel,
                architecture: architecture.to_owned(),
                registers: 0,
                spill_bytes: 0,
                stack_bytes: 0,
                shared_bytes: 0,
                barriers: 0,
            });
        }
        let Some(resources) = &mut current else {
            continue;
        };
        if line.contains("bytes stack frame") {
            let part = |what| number(line, what).ok_or_else(|| format!("ptxas: {line}"));
            resources.stack_bytes = part(" bytes stack frame")?;
            resources.spill_bytes = part(" bytes spill stores")? + part(" bytes spill loads")?;
        }
        if line.contains("Used ") && line.contains(" registers") {
            resources.registers = number(line, " registers").ok_or_else(|| format!("ptxas: {line}"))?;
            resources.barriers = number(line, " barriers").unwrap_or(0);
            resources.shared_bytes = number(line, " bytes smem").unwrap_or(0);
            found.extend(current.take());
        }
    }
    found.sort();
    if found.is_empty() { Err(format!("ptxas reported no kernel:\n{said}")) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ptxas_says() {
        let said = "ptxas info    : 24 bytes gmem\n\
            ptxas info    : Compiling entry function 'b' for 'sm_90a'\n\
            ptxas info    : Function properties for b\n\
            \x20   16 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 110 registers, used 1 barriers, 20288 bytes smem\n\
            ptxas info    : Compile time = 596.193 ms\n\
            ptxas info    : Compiling entry function 'a' for 'sm_90a'\n\
            \x20   0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 12 registers, 380 bytes cmem[0]\n";
        let found = read(said, "90a").unwrap();
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["a\tsm_90a\t12\t0\t0\t0", "b\tsm_90a\t110\t16\t16\t20288"]);
        assert_eq!([found[0].barriers, found[1].barriers], [0, 1]);
        assert!(read("ptxas info", "80").is_err());
    }
}
