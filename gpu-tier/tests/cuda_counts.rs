//! What the compiled kernels do for the bytes that they have to move, by the counts of the interpreter, on every architecture: the table
//! `kernels/traffic.tsv`, which `cargo xtask kernels` makes anew. Whatever changes a figure changes a line of it.

#[path = "cuda_double/contract.rs"]
#[allow(dead_code, reason = "tests of the device use the rest")]
mod contract;
#[path = "cuda_double/double.rs"]
#[expect(dead_code, reason = "tests of the double use the rest")]
mod double;
mod scene;

use std::fmt::Write as _;
use std::path::Path;

use cache_core::codec::suite::{Random, fill};
use cache_core::codec::{Grid, i8h, sx12};
use cache_core::payload::Side;
use contract::{Arena, finish, piece};
use cuda_ladder::{KINDS, Kind};
use double::{Double, KernelCounts};
use gpu_tier::attention::closed::{Closed, ClosedPlace, Codes, Encode};
use gpu_tier::attention::{Attention, Element, Products, SectionPlace};
use gpu_tier::cuda::codec::{DONE, Slice, Sum, Sx12Layer};
use gpu_tier::cuda::{CudaConfig, CudaDevice, KernelSource};
use gpu_tier::device::{Device, DeviceBuffer, HostRange, Stream};
use scene::{Scene, Stage, WHOLE};

/// Compute capabilities, and the architectures whose PTX they get.
const ARCHITECTURES: [(u32, &str); 3] = [(80, "sm_80"), (90, "sm_90a"), (100, "sm_100")];
const HEAD_DIMS: [u32; 2] = [64, 128];
const KV_HEADS: u32 = 2;
const GROUP: u32 = 4;
const BLOCK_TOKENS: u32 = 64;
const TOKENS: usize = 512;
/// Kinds of instructions in the table, and which of the ladder's kinds each has.
const MIX: [(&str, &[Kind]); 7] = [
    ("integer", &[Kind::Integer]),
    ("float", &[Kind::Float32, Kind::Float64, Kind::Float16, Kind::Special, Kind::Matrix]),
    ("convert", &[Kind::Convert]),
    ("compare", &[Kind::Compare]),
    ("move", &[Kind::Move]),
    ("memory", &[Kind::Global, Kind::Shared, Kind::Local, Kind::Constant, Kind::AsyncCopy]),
    ("other", &[Kind::Warp, Kind::Sync, Kind::Control]),
];

/// One line of the table.
struct Line {
    what: String,
    architecture: &'static str,
    head_dim: u32,
    /// What the work must read and write.
    bytes: u64,
    counts: KernelCounts,
}

impl Line {
    /// Bytes of the sectors that warps touch, over what they must.
    fn moved(&self) -> f64 {
        32.0 * self.counts.global_sectors as f64 / self.bytes as f64
    }

    /// Share of the bytes of threads' accesses that are in accesses of 16 bytes which touch no sector in vain.
    fn by_16(&self) -> f64 {
        let all = self.counts.global_load_bytes + self.counts.global_store_bytes;
        self.counts.global_coalesced16_bytes as f64 / all as f64
    }

    fn text(&self) -> String {
        let counts = &self.counts;
        let ratio = |a: u64, b: u64| if b == 0 { 0.0 } else { a as f64 / b as f64 };
        let mut text = format!(
            "{}\t{}\t{}\t{}\t{:.4}\t{:.4}\t{:.2}\t{:.2}\t{:.3}",
            self.what,
            self.architecture,
            self.head_dim,
            self.bytes,
            self.moved(),
            self.by_16(),
            ratio(counts.global_sectors, counts.global_requests),
            ratio(counts.shared_conflicts, counts.shared_requests),
            ratio(counts.thread_instructions, self.bytes),
        );
        for (_, kinds) in MIX {
            let some = kinds.iter().map(|kind| counts.by_kind[*kind as usize]).sum();
            write!(text, "\t{:.1}", 100.0 * ratio(some, counts.thread_instructions)).expect("text has room");
        }
        text
    }
}

fn header() -> String {
    let columns = "work\tarchitecture\thead dim\tbytes\tmoved / bytes\tin 16-byte accesses\tsectors / request\tconflicts / shared request\t\
                   instructions / byte";
    MIX.iter().fold(columns.to_owned(), |text, (name, _)| format!("{text}\t% {name}"))
}

/// Bytes of scales and of codes of one head's keys or values.
fn slice_bytes(form: Codes, side: Side, grid: Grid) -> (u64, u64) {
    let elements = grid.elements() as u64;
    match form {
        Codes::Int8 => (2 * i8h::tokens(side, grid) as u64, elements),
        Codes::Rows4 => (4 * grid.rows as u64, elements / 2),
    }
}

/// A device of one architecture, and what is measured on it.
struct Bench<'d> {
    double: &'d Double,
    device: CudaDevice,
    architecture: &'static str,
    head_dim: u32,
    lines: Vec<Line>,
}

impl Bench<'_> {
    /// Counts what kernels of some names do while `work` runs, which must move `bytes`.
    fn count(&mut self, what: &str, kernels: &str, bytes: u64, work: impl FnOnce(&CudaDevice)) {
        self.double.forget_counts();
        work(&self.device);
        for stream in [Stream::Compute, Stream::CopyIn, Stream::CopyOut] {
            finish(&self.device, stream);
        }
        self.add(what, kernels, bytes);
    }

    /// Adds a line of what kernels of some names have done.
    fn add(&mut self, what: &str, kernels: &str, bytes: u64) {
        let counts = self.double.kernel_counts(kernels);
        assert!(counts.launches > 0, "{what}: no kernel is called {kernels}");
        assert_eq!(counts.local_bytes, 0, "{what}, {}: spills", self.architecture);
        let (what, architecture, head_dim) = (what.to_owned(), self.architecture, self.head_dim);
        self.lines.push(Line { what, architecture, head_dim, bytes, counts });
    }

    fn put(&self, bytes: &[u8]) -> DeviceBuffer {
        let buffer = self.device.allocate(bytes.len() as u64).unwrap();
        self.device.upload(Stream::Compute, bytes, buffer.range()).unwrap();
        buffer
    }

    fn grid(&self, side: Side) -> Grid {
        Grid::new(side, self.head_dim, BLOCK_TOKENS)
    }

    /// Keys and values of a layer of a block, bf16.
    fn raw(&self) -> Vec<u8> {
        let mut random = Random(u64::from(self.head_dim));
        let side_of = |i: usize| {
            let grid = self.grid(Side::ALL[i % 2]);
            let mut values = vec![0u16; grid.elements()];
            fill(&mut random, 0, grid, &mut values);
            values
        };
        (0..2 * KV_HEADS as usize).flat_map(side_of).flat_map(u16::to_le_bytes).collect()
    }

    fn slices(&mut self, form: Codes, name: &str) {
        let raw = self.put(&self.raw());
        let mut at = [0u64; 3];
        let mut take = |which: usize, bytes: u64| {
            at[which] += bytes;
            (at[which] - bytes, bytes)
        };
        let mut places = Vec::new();
        for i in 0..2 * KV_HEADS as usize {
            let (side, grid) = (Side::ALL[i % 2], self.grid(Side::ALL[i % 2]));
            let (scales, codes) = slice_bytes(form, side, grid);
            places.push((side, grid, [take(0, 2 * grid.elements() as u64), take(1, scales), take(2, codes)]));
        }
        let [scales, codes] = [at[1], at[2]].map(|bytes| self.device.allocate(bytes).unwrap());
        let verdict = self.put(&[0; 4]);
        let slices: Vec<Slice> = places
            .into_iter()
            .map(|(side, grid, [values, scale, code])| Slice {
                form,
                side,
                grid,
                values: raw.range().slice(values.0, values.1),
                scales: scales.range().slice(scale.0, scale.1),
                codes: codes.range().slice(code.0, code.1),
                verdict: verdict.range(),
            })
            .collect();
        let bytes = at.iter().sum();
        self.count(&format!("{name} encode"), &format!("kvtier_{name}_encode"), bytes, |device| {
            device.encode_slices(Stream::Compute, &slices).unwrap();
        });
        self.assert_done(&verdict);
        self.count(&format!("{name} decode"), &format!("kvtier_{name}_decode"), bytes, |device| {
            device.decode_slices(Stream::Compute, &slices).unwrap();
        });
        self.assert_done(&verdict);
    }

    fn sx12(&mut self) {
        let elements = u64::from(self.head_dim * BLOCK_TOKENS);
        let parts = u64::from(2 * KV_HEADS);
        let raw = self.put(&self.raw());
        let [header, codes] = [parts * sx12::header_bytes(elements), parts * elements / 2 * 3]
            .map(|bytes| self.device.allocate(bytes).unwrap());
        let verdict = self.put(&[0; 4]);
        let layer = Sx12Layer {
            kv_heads: KV_HEADS,
            elements: elements as u32,
            raw: raw.range(),
            header: header.range(),
            codes: codes.range(),
            verdict: verdict.range(),
        };
        let bytes = [&raw, &header, &codes].iter().map(|buffer| buffer.range().bytes).sum();
        // Both of its kernels.
        self.count("sx12 encode", "kvtier_sx12_e", bytes, |device| {
            device.encode_sx12(Stream::Compute, &[layer]).unwrap();
        });
        self.assert_done(&verdict);
        self.count("sx12 decode", "kvtier_sx12_decode", bytes, |device| {
            device.decode_sx12(Stream::Compute, &[layer]).unwrap();
        });
        self.assert_done(&verdict);
    }

    fn assert_done(&self, verdict: &DeviceBuffer) {
        let mut word = [0; 4];
        self.device.download(Stream::Compute, verdict.range(), &mut word).unwrap();
        assert_eq!(u32::from_ne_bytes(word), DONE);
    }

    fn scene(&self, closed: Option<Closed>) -> Scene {
        Scene {
            group: GROUP,
            kv_heads: KV_HEADS,
            head_dim: self.head_dim,
            block_tokens: BLOCK_TOKENS,
            element: Element::Bf16,
            closed,
            tokens: TOKENS,
            rows: 1,
            seed: 9,
        }
    }

    fn attention(&mut self, name: &str, closed: Option<Closed>) {
        let scene = self.scene(closed);
        let geometry = scene.geometry();
        let stage = Stage::new(&self.device, scene).unwrap();
        let partials = (TOKENS as u64).div_ceil(64) * u64::from(geometry.heads) * geometry.partial_bytes();
        let rows = u64::from(geometry.heads * geometry.head_dim) * 4;
        let attended = self.device.traffic().attended_device_bytes;
        self.double.forget_counts();
        stage.attend(&WHOLE).unwrap();
        let kv_bytes = self.device.traffic().attended_device_bytes - attended;
        drop(stage);
        // Each span reads the row's queries and writes partials of its own.
        let spans = (TOKENS as u64).div_ceil(64);
        self.add(&format!("attend {name}"), "kvtier_attend", kv_bytes + spans * rows + partials);
        if name == "exact" {
            self.add("finish", "kvtier_finish", partials + rows);
        }
    }

    fn append(&mut self) {
        let scene = self.scene(None);
        let numbers = TOKENS as u64 * u64::from(KV_HEADS * self.head_dim) * 2;
        self.count("append", "kvtier_append", 6 * numbers, |device| drop(Stage::new(device, scene).unwrap()));
    }

    fn sums(&mut self) {
        let data = self.put(&self.raw());
        let sum = self.device.allocate(8).unwrap();
        let job = Sum { data: data.range(), seed: 1, sum: sum.range() };
        let bytes = data.range().bytes + 8;
        self.count("xxh3", "kvtier_xxh3", bytes, |device| device.sum(Stream::Compute, &[job]).unwrap());
    }

    fn gather(&mut self) {
        let piece_bytes = u64::from(2 * KV_HEADS * self.head_dim * BLOCK_TOKENS * 2);
        let arena = Arena::new(4 * piece_bytes as usize);
        let extent = self.device.register(arena).unwrap();
        let target = self.device.allocate(4 * piece_bytes).unwrap();
        let pieces = [2, 0, 3, 1]
            .map(|i| piece(extent, i * piece_bytes, target.range().slice((3 - i) * piece_bytes, piece_bytes)));
        self.count("gather", "kvtier_gather", 8 * piece_bytes, |device| {
            device.copy_in(Stream::CopyIn, &pieces).unwrap();
        });
        self.count("scatter", "kvtier_gather", 8 * piece_bytes, |device| {
            device.copy_out(Stream::CopyOut, &pieces).unwrap();
        });
    }

    /// Closing a block straight into a pinned host extent.
    fn encode_to_host(&mut self, name: &str, closed: Closed) {
        let geometry = self.scene(Some(closed)).geometry();
        // Header, scales and codes. Keys of `kc4vt4` have their scales in the header.
        let mut sizes = [0; 3];
        for (side, form) in [(Side::Key, closed.keys), (Side::Value, closed.values)] {
            let (scales, codes) = slice_bytes(form, side, self.grid(side));
            sizes[usize::from(side == Side::Value || form == Codes::Int8)] += u64::from(KV_HEADS) * scales;
            sizes[2] += u64::from(KV_HEADS) * codes;
        }
        let raw = self.put(&self.raw());
        let verdict = self.put(&[0; 4]);
        let stored: u64 = sizes.iter().sum();
        let extent = self.device.register(Arena::new(stored.next_multiple_of(4096) as usize)).unwrap();
        let mut end = 0;
        let mut take = |bytes: u64| {
            end += bytes;
            SectionPlace::Host(HostRange { extent, offset: end - bytes, bytes })
        };
        let header = (sizes[0] > 0).then(|| take(sizes[0]));
        let into = ClosedPlace { header, scale: take(sizes[1]), codes: take(sizes[2]) };
        let job = Encode { exact: SectionPlace::Device(raw.range()), into, verdict: verdict.range() };
        let bytes = raw.range().bytes + stored;
        self.count(&format!("{name} encode to host"), &format!("kvtier_{name}_encode"), bytes, |device| {
            device.encode(Stream::Compute, &geometry, closed, &[job]).unwrap();
        });
    }
}

fn measure(double: &Double) -> Vec<Line> {
    let mut all = Vec::new();
    for (capability, architecture) in ARCHITECTURES {
        double.set_capability(capability);
        for head_dim in HEAD_DIMS {
            let config = CudaConfig { ordinal: 0, budget_bytes: 64 << 20, kernels: KernelSource::Embedded };
            let device = CudaDevice::open(config.clone()).unwrap();
            let mut bench = Bench { double, device, architecture, head_dim, lines: Vec::new() };
            bench.slices(Codes::Int8, "i8h");
            bench.slices(Codes::Rows4, "kc4vt4");
            bench.sx12();
            bench.attention("exact", None);
            bench.attention("i8h", Some(Closed::I8H));
            bench.attention("kc4vt4", Some(Closed::KC4VT4));
            bench.device = CudaDevice::open_with(config.clone(), Products::Matrix).unwrap();
            bench.attention("exact, mma", None);
            bench.attention("i8h, mma", Some(Closed::I8H));
            bench.attention("kc4vt4, mma", Some(Closed::KC4VT4));
            bench.append();
            bench.sums();
            bench.gather();
            bench.encode_to_host("i8h", Closed::I8H);
            bench.encode_to_host("kc4vt4", Closed::KC4VT4);
            all.append(&mut bench.lines);
        }
    }
    all
}

#[test]
fn kernels_do_what_the_table_says() {
    let Some(double) = Double::take_hooks() else { return };
    let lines = measure(&double);
    assert_eq!(lines[0].counts.by_kind.len(), KINDS, "the double and the ladder have the same kinds");
    let is_judged =
        |line: &&Line| line.what.contains("code") || line.what.starts_with("attend") || line.what == "finish";
    for line in lines.iter().filter(is_judged) {
        assert!((1.0..1.05).contains(&line.moved()) && line.by_16() >= 0.99, "{}\n{}", header(), line.text());
    }
    let mut table = header() + "\n";
    lines.iter().for_each(|line| table += &(line.text() + "\n"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/traffic.tsv");
    if std::env::var("CUDA_LADDER_UPDATE").is_ok_and(|value| value == "1") {
        std::fs::write(&path, &table).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap();
    let changed: Vec<String> = found
        .lines()
        .zip(table.lines())
        .filter(|(old, new)| old != new)
        .map(|(old, new)| format!("- {old}\n+ {new}"))
        .collect();
    assert!(found == table, "the counts have changed; `cargo xtask kernels` writes them:\n{}", changed.join("\n"));
    double.assert_nothing_left();
}
