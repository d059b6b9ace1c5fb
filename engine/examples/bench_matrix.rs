//! Times the matrix products of one SmolLM2-135M token against what reading the weights costs.
//!
//! `cargo run --release -p kvtier-engine --example bench_matrix [ROUNDS]`: each layer is timed by itself, ROUNDS (default
//! 15) times; figures are sums of the layers' bests and medians. Shapes: width 576, feed-forward 1536, key/value 192, vocabulary 49152; 30 layers
//! Q4_1 and a Q8_0 head.

use std::hint::black_box;
use std::time::Instant;

use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::{Workers, split};
use kvtier_engine::gguf::TensorType;
use kvtier_engine::matrix::{Activations, Matrix, ReferenceMatrix, multiply_many};

const WIDTH: usize = 576;
const FEED: usize = 1536;
const KEYS: usize = 192;
const VOCABULARY: usize = 49152;
const LAYERS: usize = 30;
/// Parts of the buffer whose reading is timed, each about as long as a layer's weights.
const READ_STEPS: usize = 100;

/// The matrices of one layer, in the order in which they are used.
struct Layer {
    qkv: [Matrix; 3],
    output: Matrix,
    gate_up: [Matrix; 2],
    down: Matrix,
}

/// Bytes that are stored blocks of `kind`: random codes, small scales.
fn stored(kind: TensorType, rows: usize, cols: usize, seed: usize) -> Vec<u8> {
    let len = rows * kind.row_bytes(cols).expect("rows of whole blocks");
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ seed as u64;
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    })
    .take(len)
    .collect();
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        // 0x2000: 2^-7 as f16.
        block[..2].copy_from_slice(&[0, 0x20]);
        if kind == TensorType::Q4_1 {
            block[2..4].copy_from_slice(&[0, 0xa8]);
        }
    }
    bytes
}

fn matrix(kind: TensorType, rows: usize, cols: usize, seed: usize) -> Matrix {
    Matrix::from_rows(kind, rows, cols, &stored(kind, rows, cols, seed)).expect("the bytes fit the shape")
}

fn layer(kind: TensorType, seed: usize) -> Layer {
    let square = |rows| matrix(kind, rows, WIDTH, seed + rows);
    Layer {
        qkv: [square(WIDTH), square(KEYS), square(KEYS)],
        output: square(WIDTH),
        gate_up: [square(FEED), square(FEED)],
        down: matrix(kind, WIDTH, FEED, seed),
    }
}

impl Layer {
    fn bytes(&self) -> usize {
        let matrices = self.qkv.iter().chain(&self.gate_up).chain([&self.output, &self.down]);
        matrices.map(Matrix::bytes).sum()
    }
}

/// Buffers of one pass over `m` rows.
struct Pass {
    m: usize,
    x: Vec<f32>,
    wide: Vec<f32>,
    outs: [Vec<f32>; 5],
    activations: Activations,
}

impl Pass {
    fn new(m: usize) -> Pass {
        let x = |k: usize| (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<f32>>();
        let outs = [WIDTH, KEYS, KEYS, FEED, FEED].map(|rows| vec![0.0; m * rows]);
        Pass { m, x: x(WIDTH), wide: x(FEED), outs, activations: Activations::integers_only() }
    }

    /// Quantises and multiplies as a layer does, without attention and norms.
    fn layer(&mut self, isa: Isa, workers: &Workers, layer: &Layer) {
        let [q, k, v, gate, up] = &mut self.outs;
        self.activations.set(isa, workers, &self.x, self.m, WIDTH);
        let mut products: Vec<(&Matrix, &mut [f32])> = vec![(&layer.qkv[0], q), (&layer.qkv[1], k), (&layer.qkv[2], v)];
        multiply_many(isa, workers, &self.activations, &mut products);
        self.activations.set(isa, workers, &self.x, self.m, WIDTH);
        layer.output.multiply(isa, workers, &self.activations, q);
        self.activations.set(isa, workers, &self.x, self.m, WIDTH);
        multiply_many(isa, workers, &self.activations, &mut [(&layer.gate_up[0], gate), (&layer.gate_up[1], up)]);
        self.activations.set(isa, workers, &self.wide, self.m, FEED);
        layer.down.multiply(isa, workers, &self.activations, q);
    }
}

/// Milliseconds of `steps` steps done one after another, `rounds` times over after one round that is not counted: the
/// sum of each step's best and of each step's median. Short steps find the moments in which nobody else computes.
fn time_steps(rounds: usize, steps: usize, mut step: impl FnMut(usize)) -> (f64, f64) {
    let mut times = vec![Vec::with_capacity(rounds); steps];
    for round in 0..=rounds {
        for (index, times) in times.iter_mut().enumerate() {
            let start = Instant::now();
            step(index);
            if round > 0 {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    (times.iter().map(|times| times[0]).sum(), times.iter().map(|times| times[rounds / 2]).sum())
}

fn read_bandwidth(rounds: usize, workers: &Workers) -> f64 {
    let words = vec![1u64; 256 << 17];
    let (best, _) = time_steps(rounds, READ_STEPS, |step| {
        let words = &words[split(words.len(), 32, step, READ_STEPS)];
        workers.run(&|worker| {
            let own = &words[split(words.len(), 32, worker, workers.count())];
            let mut sums = [0u64; 32];
            for chunk in own.as_chunks::<32>().0 {
                for (sum, word) in sums.iter_mut().zip(chunk) {
                    *sum = sum.wrapping_add(*word);
                }
            }
            black_box(sums);
        });
    });
    words.len() as f64 * 8.0 / best / 1e6
}

fn main() {
    let rounds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(15);
    let start = Instant::now();
    let layers: Vec<Layer> = (0..LAYERS).map(|index| layer(TensorType::Q4_1, index * 10_000)).collect();
    let head = matrix(TensorType::Q8_0, VOCABULARY, WIDTH, 1);
    let layer_bytes: usize = layers.iter().map(Layer::bytes).sum();
    let token_bytes = layer_bytes + head.bytes();
    println!("packed {:.1} MB in {:.2} s", token_bytes as f64 / 1e6, start.elapsed().as_secs_f64());

    for threads in [1, 2] {
        let workers = Workers::new(threads);
        let bandwidth = read_bandwidth(rounds, &workers);
        let floor = token_bytes as f64 / bandwidth / 1e6;
        println!("{threads} threads: reads {bandwidth:.1} GB/s, floor {floor:.2} ms per token");
        let (best, median) = time_steps(rounds, 10, |_| (0..100).for_each(|_| workers.run(&|_| ())));
        println!("  empty call: {best:.2} us, median {median:.2} us");
        for isa in Isa::available().into_iter().filter(|isa| *isa != Isa::Scalar) {
            let mut pass = Pass::new(1);
            let mut logits = vec![0.0; VOCABULARY];
            let (best, median) = time_steps(rounds, LAYERS + 1, |step| match layers.get(step) {
                Some(layer) => pass.layer(isa, &workers, layer),
                None => head.multiply(isa, &workers, &pass.activations_for_head(isa, &workers), &mut logits),
            });
            println!(
                "  {:7} m 1: {best:.2} ms per token ({:.2} x floor), median {median:.2}",
                isa.name(),
                best / floor
            );
            for m in [8, 64, 512] {
                let mut pass = Pass::new(m);
                let (best, median) =
                    time_steps(rounds.div_ceil(3), LAYERS, |step| pass.layer(isa, &workers, &layers[step]));
                let rate = |ms: f64| m as f64 / ms * 1e3;
                println!("  {:7} m {m}: {:.0} tok/s without head, median {:.0}", isa.name(), rate(best), rate(median));
            }
        }
        reference(threads, &workers);
    }
}

impl Pass {
    /// One quantised row for the head.
    fn activations_for_head(&mut self, isa: Isa, workers: &Workers) -> Activations {
        Activations::quantize(isa, workers, &self.x[..WIDTH], 1, WIDTH)
    }
}

/// The reference product on one feed-forward matrix, scaled to all layers.
fn reference(threads: usize, workers: &Workers) {
    let bytes = stored(TensorType::Q4_1, FEED, WIDTH, 3);
    let matrix = ReferenceMatrix::new(TensorType::Q4_1, FEED, WIDTH, bytes).expect("the bytes fit the shape");
    let m = 256;
    let x: Vec<f32> = (0..m * WIDTH).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut out = vec![0.0; m * FEED];
    let (best, _) = time_steps(3, 1, |_| matrix.multiply(workers, &x, m, &mut out));
    let per_layer = (WIDTH * (WIDTH * 2 + KEYS * 2) + FEED * WIDTH * 3) as f64 / (FEED * WIDTH) as f64;
    println!(
        "  reference m {m}, {threads} threads: {:.0} tok/s without head",
        m as f64 / best * 1e3 / per_layer / LAYERS as f64
    );
}
