//! `cargo xtask kernels`: compiles gpu-tier/kernels with a pinned nvcc into the PTX and the table of resources that are checked in, or
//! says what is not fresh.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The toolkit, all of it pinned: its parts do not pin each other.
const WHEELS: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];
/// What PTX is made for, and what each is assembled for to learn its registers.
const ARCHITECTURES: [&str; 3] = ["80", "90a", "100"];
/// Codecs give the reference's bits: none of these in their PTX.
const INEXACT: [&str; 2] = [".approx", ".ftz"];
/// A folder with `bin/nvcc`, if the wheels are not to be installed.
const TOOLKIT: &str = "KVTIER_CUDA";

/// Makes the files, or with `check` compares them with those that are there.
pub fn run(check: bool) -> Result<(), String> {
    let toolkit = toolkit()?;
    let folder = Path::new("gpu-tier/kernels");
    let mut made = BTreeMap::new();
    let mut resources = String::from("kernel\tarchitecture\tregisters\tspill bytes\tstack bytes\tshared bytes\n");
    for source in sources(folder)? {
        for architecture in ARCHITECTURES {
            let (name, ptx, rows) = compile(&toolkit, folder, &source, architecture)?;
            if let Some(word) = INEXACT.iter().find(|word| ptx.contains(*word)) {
                return Err(format!("{name}: {word} in the PTX of a kernel whose bits are promised"));
            }
            made.insert(folder.join("ptx").join(name), ptx);
            resources += &rows;
        }
    }
    made.insert(folder.join("resources.tsv"), resources);
    let spills =
        |row: &&str| row.split('\t').nth(3).is_some_and(|bytes| bytes.parse().is_ok_and(|bytes: u32| bytes > 0));
    if let Some(row) = made[&folder.join("resources.tsv")].lines().find(spills) {
        return Err(format!("a kernel spills registers: {row}"));
    }
    for (path, text) in &made {
        if !check {
            std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        } else if std::fs::read_to_string(path).ok().as_deref() != Some(text) {
            return Err(format!("{} is not fresh: run `cargo xtask kernels`", path.display()));
        }
    }
    println!("{} files {}", made.len(), if check { "are fresh" } else { "written" });
    Ok(())
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    files.sort();
    Ok(files)
}

/// The folder of the toolkit; installs it into `target/cuda` when it is not there.
fn toolkit() -> Result<PathBuf, String> {
    if let Some(given) = std::env::var_os(TOOLKIT) {
        return Ok(PathBuf::from(given));
    }
    let home = std::env::current_dir().map_err(|error| error.to_string())?.join("target/cuda");
    if !home.join("installed").exists() {
        println!("installing nvcc into {} (130 MB)", home.display());
        output(Command::new("python3").args(["-m", "venv"]).arg(&home))?;
        output(Command::new(home.join("bin/pip")).args(["install", "--quiet"]).args(WHEELS))?;
        std::fs::write(home.join("installed"), WHEELS.join("\n")).map_err(|error| error.to_string())?;
    }
    let libraries = std::fs::read_dir(home.join("lib")).map_err(|error| error.to_string())?;
    let candidates = libraries.filter_map(|entry| Some(entry.ok()?.path().join("site-packages/nvidia/cu13")));
    candidates.into_iter().find(|path| path.exists()).ok_or_else(|| format!("no toolkit under {}", home.display()))
}

/// Name and text of the PTX of a kernel file, and its kernels' rows of the table.
fn compile(
    toolkit: &Path,
    folder: &Path,
    source: &Path,
    architecture: &str,
) -> Result<(String, String, String), String> {
    let stem = source.file_stem().and_then(|stem| stem.to_str()).ok_or("a kernel file without a name")?;
    let name = format!("{stem}.compute_{architecture}.ptx");
    let scratch = Path::new("target/kernels");
    std::fs::create_dir_all(scratch).map_err(|error| error.to_string())?;
    let ptx = scratch.join(&name);
    let target = format!("-arch=compute_{architecture}");
    output(
        Command::new(toolkit.join("bin/nvcc"))
            .args(["-O3", "-std=c++17", "-Werror", "all-warnings", "-ptx", &target, "-I"])
            .arg(folder)
            .arg("-o")
            .arg(&ptx)
            .arg(source),
    )?;
    let target = format!("-arch=sm_{architecture}");
    let assembled =
        output(Command::new(toolkit.join("bin/ptxas")).args(["-O3", "-v", &target, "-o", "/dev/null"]).arg(&ptx))?;
    let text = std::fs::read_to_string(&ptx).map_err(|error| error.to_string())?;
    Ok((name, text, rows(&assembled, architecture)))
}

/// Rows of the table from what ptxas says.
fn rows(said: &str, architecture: &str) -> String {
    let number = |line: &str, what: &str| {
        let before = line.split(what).next().filter(|before| before.len() < line.len())?;
        before.rsplit(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty()).map(str::to_owned)
    };
    let (mut kernel, mut memory, mut out) = (String::new(), (String::new(), String::new()), Vec::new());
    for line in said.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            kernel = rest.split('\'').next().unwrap_or_default().to_owned();
        } else if line.contains("bytes stack frame") {
            let of = |what| number(line, what).unwrap_or_default();
            memory = (of(" bytes spill stores"), of(" bytes stack frame"));
        } else if line.contains("Used ") {
            let registers = number(line, " registers").unwrap_or_default();
            let shared = number(line, " bytes smem").unwrap_or_else(|| "0".to_owned());
            out.push(format!("{kernel}\tsm_{architecture}\t{registers}\t{}\t{}\t{shared}\n", memory.0, memory.1));
        }
    }
    out.sort();
    out.concat()
}

/// Runs a command; what it says, or that with its failure.
fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(said) } else { Err(format!("{command:?}: {said}")) }
}

#[cfg(test)]
mod tests {
    use super::rows;

    #[test]
    fn rows_tell_what_ptxas_said() {
        let said = "ptxas info    : Compiling entry function 'kvtier_b' for 'sm_90a'\n\
            ptxas info    : Function properties for kvtier_b\n    \
            16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 122 registers, used 1 barriers, 2048 bytes smem\n\
            ptxas info    : Compiling entry function 'kvtier_a' for 'sm_90a'\n    \
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 32 registers, used 0 barriers, 360 bytes cmem[0]\n";
        assert_eq!(rows(said, "90a"), "kvtier_a\tsm_90a\t32\t0\t0\t0\nkvtier_b\tsm_90a\t122\t8\t16\t2048\n");
    }
}
