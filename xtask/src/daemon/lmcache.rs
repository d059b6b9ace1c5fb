//! LMCache's daemon, driven by its own benchmark.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::peer;

/// 32 layers of 8 heads of 128 channels in 16-bit floats, 128 KiB a token; 128 blocks of 16 tokens.
const SHAPE: &str = "(2,128,16,8,128):float16:32";
const TOKEN_BYTES: f64 = (128 << 10) as f64;
const TOKENS: u32 = 1024;
const REQUESTS: u32 = 6;
/// It loads PyTorch first: 160 s on a machine with ten times as much to do as it has cores.
const START_MAX: Duration = Duration::from_secs(240);
const BENCH_MAX: Duration = Duration::from_secs(300);
const END_MAX: Duration = Duration::from_secs(15);

/// Bytes of a request over the median of its requests' durations.
pub struct Rates {
    pub store_gb_s: f64,
    pub retrieve_gb_s: f64,
}

/// Runs server and benchmark. Errors: that it is not installed, in words for a table, or what went wrong.
pub fn measure() -> Result<Rates, String> {
    let program = peer::lmcache_program();
    if !program.is_file() {
        return Err("not installed (`cargo xtask peer lmcache`)".to_owned());
    }
    let (port, http) = (free_port()?, free_port()?);
    let name = format!("kvtier-bars-{}", std::process::id());
    let mut command = python(&program);
    command.args(["server", "--l1-size-gb", "2", "--eviction-policy", "LRU", "--supported-transfer-mode", "auto"]);
    command.args(["--shm-name", &name, "--port", &port.to_string(), "--http-port", &http.to_string()]);
    let server = Server { process: spawn(&mut command)?, memory: Path::new("/dev/shm").join(&name) };
    wait_for(http)?;
    let mut bench = python(&program);
    bench.args(["bench", "server", "--mode", "cpu", "--format", "json", "--interval", "0", "--start", "0"]);
    bench.args(["--end", &REQUESTS.to_string(), "--num-tokens", &TOKENS.to_string(), "--kvcache-shape-spec", SHAPE]);
    bench.args(["--rpc-url", &format!("tcp://localhost:{port}"), "--url", &format!("http://localhost:{http}")]);
    let text = output(&mut bench)?;
    drop(server);
    rates(&text)
}

fn python(program: &Path) -> Command {
    let mut command = Command::new(program);
    // It would report its use to its makers.
    command.env("LMCACHE_TRACK_USAGE", "false").env("HF_HUB_OFFLINE", "1").stdin(Stdio::null()).stderr(Stdio::null());
    command
}

fn spawn(command: &mut Command) -> Result<Child, String> {
    command.stdout(Stdio::null()).spawn().map_err(|error| format!("start {command:?}: {error}"))
}

struct Server {
    process: Child,
    memory: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        // In good order it takes its shared memory with it.
        let _ = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status();
        let until = Instant::now() + END_MAX;
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.memory);
    }
}

fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.map(|address| address.port()).map_err(|error| format!("find a free port: {error}"))
}

fn wait_for(port: u16) -> Result<(), String> {
    let until = Instant::now() + START_MAX;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() >= until {
            return Err(format!("LMCache's server does not listen within {} s", START_MAX.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Standard output of a program that has so long.
fn output(command: &mut Command) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("LMCache's benchmark: {error}");
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(failed)?;
    let mut pipe = child.stdout.take().expect("it was asked for");
    let reader = std::thread::spawn(move || std::io::read_to_string(&mut pipe));
    let until = Instant::now() + BENCH_MAX;
    while child.try_wait().map_err(failed)?.is_none() {
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("LMCache's benchmark takes longer than {} s", BENCH_MAX.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    reader.join().expect("reading does not panic").map_err(failed)
}

/// Reads the medians out of what the benchmark prints: JSON, perhaps among other lines.
fn rates(text: &str) -> Result<Rates, String> {
    let median = |name: &str| {
        let rest = text.split_once(&format!("\"{name}\"")).map(|(_, rest)| rest.trim_start_matches([':', ' ']));
        let digits = rest.and_then(|rest| rest.split([',', '}', '\n', ' ']).next());
        digits.and_then(|digits| digits.trim().parse::<f64>().ok()).filter(|millis| *millis > 0.0)
    };
    let rate = |name: &str| {
        let millis = median(name).ok_or_else(|| format!("LMCache's benchmark says no {name}"))?;
        Ok::<f64, String>(TOKEN_BYTES * f64::from(TOKENS) / (millis * 1e-3) / 1e9)
    };
    Ok(Rates { store_gb_s: rate("cold_store_p50")?, retrieve_gb_s: rate("warm_retrieve_p50")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_become_rates() {
        let text = "noise\n{\n  \"cold_store\": {\"cold_store_p50\": 899.5,\n \"cold_store_p99\": 1000},\n \"warm_retrieve_p50\": 178.25}";
        let rates = rates(text).unwrap();
        assert!((rates.store_gb_s - 0.149_2).abs() < 1e-3 && (rates.retrieve_gb_s - 0.753).abs() < 1e-3);
        assert!(super::rates("{\"cold_store_p50\": 10}").is_err_and(|error| error.contains("warm_retrieve_p50")));
    }
}
