//! Decode bandwidth and prefill arithmetic of the `cpu` device's attention, beside the machine's own read bandwidth.
//!
//! `cargo run --release -p gpu-tier --example bench_attention -- [THREADS] [TOKENS] [decode|prefill]`
//!
//! With one thread times are CPU time of that thread, so that other load on the machine counts less; with more, wall time.
//! Shape: SmolLM2-135M (30 layers, 9 heads over 3 KV heads, 64 channels, raw16: 22.5 KiB a token). Medians of several runs.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use gpu_tier::DeviceError;
use gpu_tier::attention::{Accumulator, Attend, Attention, Element, Finish, Geometry, SPAN_TOKENS, SectionPlace};
use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::{Workers, split};
use gpu_tier::cpu::{CpuConfig, CpuDevice, Link};
use gpu_tier::device::{Device, DeviceBuffer, Stream};

const LAYERS: u64 = 30;
static ONE_THREAD: AtomicBool = AtomicBool::new(false);

/// Seconds since some fixed point: CPU time of this thread if it works alone, else wall time.
fn clock() -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    if !ONE_THREAD.load(Ordering::Relaxed) {
        return START.elapsed().as_secs_f64();
    }
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default| arguments.get(i).map_or(Ok(default), |argument| argument.parse::<u32>());
    let (threads, tokens) = (number(0, 2)? as usize, number(1, 8192)?);
    let only = |what| arguments.get(2).is_none_or(|argument| argument == what);
    ONE_THREAD.store(threads == 1, Ordering::Relaxed);
    let workers = Arc::new(Workers::new(threads));
    println!("{threads} threads, {tokens} tokens");
    for block_tokens in [64, 16, 256] {
        for isa in Isa::available() {
            let bench = Bench::new(isa, &workers, tokens, block_tokens)?;
            if block_tokens == 64 && isa == Isa::Scalar {
                println!("plain read of the same bytes: {:.1} GB/s", bench.read_gb_s(&workers)?);
            }
            if only("decode") {
                bench.decode()?;
            }
            if only("prefill") {
                bench.prefill(if isa == Isa::Scalar { 8 } else { 512 }, threads)?;
            }
        }
    }
    Ok(())
}

struct Bench {
    device: CpuDevice,
    geometry: Geometry,
    tokens: u32,
    arena: DeviceBuffer,
    sections: Vec<Vec<Option<SectionPlace>>>,
}

impl Bench {
    fn new(isa: Isa, workers: &Arc<Workers>, tokens: u32, block_tokens: u32) -> Result<Bench, DeviceError> {
        let geometry =
            Geometry { heads: 9, kv_heads: 3, head_dim: 64, block_tokens, element: Element::Bf16, scale: 0.125 };
        let workers = Arc::clone(workers);
        let device = CpuDevice::open(CpuConfig { budget_bytes: 2 << 30, link: Link::InPlace, workers, isa })?;
        let (section, blocks) = (geometry.section_bytes(), u64::from(tokens.div_ceil(block_tokens)));
        let arena = device.allocate(blocks * LAYERS * section)?;
        // Ordinary numbers: bf16 around 1, from a small generator.
        let mut state = 1u64;
        let mut bytes = vec![0u8; 1 << 20];
        for pair in bytes.chunks_exact_mut(2) {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let value = half::bf16::from_f32((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0);
            pair.copy_from_slice(&value.to_bits().to_ne_bytes());
        }
        let total = arena.range().bytes;
        for offset in (0..total).step_by(bytes.len()) {
            let part = (total - offset).min(bytes.len() as u64);
            device.upload(Stream::Compute, &bytes[..part as usize], arena.range().slice(offset, part))?;
        }
        // As in the cache: a block holds its layers one after the other.
        let place =
            |layer, block| Some(SectionPlace::Device(arena.range().slice((block * LAYERS + layer) * section, section)));
        let sections = (0..LAYERS).map(|layer| (0..blocks).map(|block| place(layer, block)).collect()).collect();
        Ok(Bench { device, geometry, tokens, arena, sections })
    }

    /// Bandwidth of summing the whole arena with all threads.
    fn read_gb_s(&self, workers: &Workers) -> Result<f64, DeviceError> {
        let mut seconds = Vec::new();
        self.device.inspect(Stream::Compute, self.arena.range(), &mut |bytes| {
            for _ in 0..9 {
                let start = clock();
                workers.run(&|worker| {
                    let part = &bytes[split(bytes.len(), 4096, worker, workers.count())];
                    let (words, _) = part.as_chunks::<64>();
                    let mut sums = [0u64; 8];
                    for line in words {
                        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                            *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
                        }
                    }
                    black_box(sums);
                });
                seconds.push(clock() - start);
            }
        })?;
        Ok(self.arena.range().bytes as f64 / median(seconds) / 1e9)
    }

    /// All layers of one decoded token.
    fn decode(&self) -> Result<(), DeviceError> {
        let spans: Vec<u32> = (0..self.tokens.div_ceil(SPAN_TOKENS)).collect();
        let vectors = u64::from(self.geometry.heads);
        let queries = self.device.allocate(vectors * 256)?;
        let ones: Vec<u8> = (0..vectors * 64).flat_map(|i| ((i % 7) as f32 * 0.3 - 1.0).to_ne_bytes()).collect();
        self.device.upload(Stream::Compute, &ones, queries.range())?;
        let output = self.device.allocate(vectors * 256)?;
        let store = self.device.allocate(vectors * spans.len() as u64 * self.geometry.partial_bytes())?;
        let into = Accumulator::Partials { range: store.range(), spans: spans.len() as u32 };
        let (rows, first_position) = (1, self.tokens - 1);
        let mut attend_seconds = Vec::new();
        let mut seconds = Vec::new();
        let repeats = 15 * 8192_u32.div_ceil(self.tokens);
        for _ in 0..if self.device.isa() == Isa::Scalar { 1 } else { repeats } {
            let (mut attending, start) = (0.0, clock());
            for sections in &self.sections {
                let job = Attend { queries: queries.range(), rows, first_position, sections, spans: &spans, into };
                let before = clock();
                self.device.attend(Stream::Compute, &self.geometry, &[job])?;
                attending += clock() - before;
                let job = Finish { from: into, rows, first_position, output: output.range() };
                self.device.finish(Stream::Compute, &self.geometry, &[job])?;
            }
            seconds.push(clock() - start);
            attend_seconds.push(attending);
        }
        let (all, attend) = (median(seconds), median(attend_seconds));
        println!(
            "decode  {:7} B={:3}: {:6.2} ms ({:.2} ms attend), {:5.1} GB/s",
            self.device.isa().name(),
            self.geometry.block_tokens,
            all * 1e3,
            attend * 1e3,
            self.arena.range().bytes as f64 / all / 1e9
        );
        Ok(())
    }

    /// One layer of a chunk at the end of the context.
    fn prefill(&self, rows: u32, threads: usize) -> Result<(), DeviceError> {
        let first_position = self.tokens - rows;
        let spans: Vec<u32> = (0..self.tokens.div_ceil(SPAN_TOKENS)).collect();
        let vectors = u64::from(rows * self.geometry.heads);
        let queries = self.device.allocate(vectors * 256)?;
        let some: Vec<u8> = (0..vectors * 64).flat_map(|i| ((i % 7) as f32 * 0.3 - 1.0).to_ne_bytes()).collect();
        self.device.upload(Stream::Compute, &some, queries.range())?;
        let store = self.device.allocate(vectors * self.geometry.partial_bytes())?;
        let into = Accumulator::Running { range: store.range() };
        let mut seconds = Vec::new();
        for sections in &self.sections[..if rows < 64 { 1 } else { 7 }] {
            let job = Attend { queries: queries.range(), rows, first_position, sections, spans: &spans, into };
            let start = clock();
            self.device.attend(Stream::Compute, &self.geometry, &[job])?;
            seconds.push(clock() - start);
        }
        let visible: u64 = (0..u64::from(rows)).map(|row| u64::from(first_position) + row + 1).sum();
        let flops = (4 * 64 * 9 * visible) as f64;
        let seconds = median(seconds);
        println!(
            "prefill {:7} B={:3}: {:6.2} ms, {:5.1} GFLOP/s a thread ({rows} rows)",
            self.device.isa().name(),
            self.geometry.block_tokens,
            seconds * 1e3,
            flops / seconds / 1e9 / threads as f64
        );
        Ok(())
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
