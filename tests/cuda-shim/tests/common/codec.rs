//! The codec kernels as a [`Codec`], one part a launch.

use cache_core::codec::{Codec, Damaged, Grid, StaysRaw, sx12};
use cache_core::payload::Side;
use cuda_shim::Argument::{Address, Word};
use cuda_shim::Schedule;

use super::{Bytes, run, table};

/// Threads of a block of the kernels over grids.
const GRID_THREADS: u32 = 64;
const SX12_THREADS: u32 = 128;

/// Outcomes that the launches ask for.
const HEADER: u32 = 1;
const NON_FINITE: u32 = 2;
const ESCAPES: u32 = 3;

pub struct Kernels(pub Schedule);

/// One part's memory.
struct Part {
    values: Bytes,
    scales: Bytes,
    codes: Bytes,
    verdict: Bytes,
    grid: Grid,
    by_lane: bool,
}

impl Part {
    fn new(values: &[u16], scales: &[u8], codes: &[u8], grid: Grid, by_lane: bool) -> Part {
        let verdict = Bytes::filled(4, 0);
        Part {
            values: Bytes::of_words(values),
            scales: Bytes::of(scales),
            codes: Bytes::of(codes),
            verdict,
            grid,
            by_lane,
        }
    }

    fn run(&self, kernel: &str, outcomes: &[u32], schedule: Schedule) -> u32 {
        let Grid { rows, lanes } = self.grid;
        let table = table(&[
            self.values.address(),
            self.scales.address(),
            self.codes.address(),
            self.verdict.address(),
            rows as u64 | (lanes as u64) << 32,
            u64::from(self.by_lane),
        ]);
        let team = (lanes / 8).next_power_of_two().min(32);
        let by_row = (rows / 8).div_ceil(GRID_THREADS as usize / team);
        let blocks = if self.by_lane { by_row.max(lanes.div_ceil(64)) } else { by_row };
        let arguments: Vec<_> =
            [Address(table.address())].into_iter().chain(outcomes.iter().map(|o| Word(*o))).collect();
        run(kernel, [1, blocks as u32, 1], GRID_THREADS, &arguments, schedule);
        u32::from_le_bytes(self.verdict.as_ref().try_into().unwrap())
    }
}

fn stays(verdict: u32) -> Result<(), StaysRaw> {
    match verdict {
        0 => Ok(()),
        HEADER => Err(StaysRaw::HeaderRange),
        NON_FINITE => Err(StaysRaw::NonFinite),
        ESCAPES => Err(StaysRaw::Escapes),
        other => panic!("verdict {other}"),
    }
}

fn damaged(verdict: u32) -> Result<(), Damaged> {
    match verdict {
        0 => Ok(()),
        HEADER => Err(Damaged::Header),
        ESCAPES => Err(Damaged::Escapes),
        other => panic!("verdict {other}"),
    }
}

/// A layer of one part.
struct Layer {
    values: Bytes,
    codes: Bytes,
    windows: Bytes,
    escapes: Bytes,
    verdict: Bytes,
}

impl Layer {
    fn run(&self, kernel: &str, outcomes: &[u32], area: usize, schedule: Schedule) -> u32 {
        let elements = self.values.as_ref().len() as u64 / 2;
        let table = table(&[
            self.values.address(),
            self.codes.address(),
            self.windows.address(),
            self.escapes.address(),
            self.verdict.address(),
            elements,
            1 | (area as u64) << 32,
        ]);
        let arguments: Vec<_> =
            [Address(table.address())].into_iter().chain(outcomes.iter().map(|o| Word(*o))).collect();
        run(kernel, [1, 1, 1], SX12_THREADS, &arguments, schedule);
        u32::from_le_bytes(self.verdict.as_ref().try_into().unwrap())
    }
}

impl Codec for Kernels {
    fn encode_sx12(&self, values: &[u16], codes: &mut [u8], escapes: &mut [u8]) -> Result<sx12::Window, StaysRaw> {
        let layer = Layer {
            values: Bytes::of_words(values),
            codes: Bytes::of(codes),
            windows: Bytes::filled(2, 0xaa),
            escapes: Bytes::of(escapes),
            verdict: Bytes::filled(4, 0),
        };
        stays(layer.run("kvtier_sx12_windows", &[ESCAPES], escapes.len(), self.0))?;
        stays(layer.run("kvtier_sx12_encode", &[ESCAPES], escapes.len(), self.0))?;
        codes.copy_from_slice(layer.codes.as_ref());
        let window = layer.windows.as_ref();
        let window = sx12::Window { top: window[0], escapes: window[1] };
        // The kernel clears the rest of the area, which the reference leaves to its caller.
        let used = usize::from(window.escapes);
        assert!(layer.escapes.as_ref()[used..].iter().all(|byte| *byte == 0));
        escapes[..used].copy_from_slice(&layer.escapes.as_ref()[..used]);
        Ok(window)
    }

    fn decode_sx12(
        &self,
        window: sx12::Window,
        codes: &[u8],
        escapes: &[u8],
        values: &mut [u16],
    ) -> Result<(), Damaged> {
        let layer = Layer {
            values: Bytes::of_words(values),
            codes: Bytes::of(codes),
            windows: Bytes::of(&[window.top, window.escapes]),
            escapes: Bytes::of(escapes),
            verdict: Bytes::filled(4, 0),
        };
        // The reference also takes the count from the length of the slice, which must be the window's.
        if window.top >= sx12::TOP_MIN && escapes.len() != usize::from(window.escapes) {
            return Err(Damaged::Escapes);
        }
        damaged(layer.run("kvtier_sx12_decode", &[ESCAPES, HEADER], escapes.len(), self.0))?;
        values.copy_from_slice(&layer.values.words());
        Ok(())
    }

    fn encode_i8h(
        &self,
        side: Side,
        grid: Grid,
        values: &[u16],
        scales: &mut [u8],
        codes: &mut [u8],
    ) -> Result<(), StaysRaw> {
        let part = Part::new(values, scales, codes, grid, side == Side::Key);
        stays(part.run("kvtier_i8h_encode", &[NON_FINITE, HEADER], self.0))?;
        scales.copy_from_slice(part.scales.as_ref());
        codes.copy_from_slice(part.codes.as_ref());
        Ok(())
    }

    fn decode_i8h(
        &self,
        side: Side,
        grid: Grid,
        scales: &[u8],
        codes: &[u8],
        values: &mut [u16],
    ) -> Result<(), Damaged> {
        let part = Part::new(values, scales, codes, grid, side == Side::Key);
        damaged(part.run("kvtier_i8h_decode", &[HEADER], self.0))?;
        values.copy_from_slice(&part.values.words());
        Ok(())
    }

    fn encode_rows4(&self, grid: Grid, values: &[u16], header: &mut [u8], codes: &mut [u8]) -> Result<(), StaysRaw> {
        let part = Part::new(values, header, codes, grid, false);
        stays(part.run("kvtier_kc4vt4_encode", &[NON_FINITE, HEADER], self.0))?;
        header.copy_from_slice(part.scales.as_ref());
        codes.copy_from_slice(part.codes.as_ref());
        Ok(())
    }

    fn decode_rows4(&self, grid: Grid, header: &[u8], codes: &[u8], values: &mut [u16]) -> Result<(), Damaged> {
        let part = Part::new(values, header, codes, grid, false);
        damaged(part.run("kvtier_kc4vt4_decode", &[HEADER], self.0))?;
        values.copy_from_slice(&part.values.words());
        Ok(())
    }
}
