//! What the stored forms cost: ratio, and speed beside a plain copy of the same buffer, in one run.
//!
//! All speeds are bytes of `raw16` per second, whichever way, so that they compare with each other and with a copy. Forms
//! take turns, round by round, each beside a copy of its own; a figure is the median over rounds.

use std::hint::black_box;
use std::time::Instant;

use cache_core::buffer::Buffer;
use cache_core::codec::image::{decode_block, encode_block};
use cache_core::codec::{Codec, StaysRaw, raw16};
use cache_core::form::Form;
use cache_core::payload::{BlockShape, Plane};

/// What to measure on.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Channels of a head.
    pub head_dim: u32,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Slices one after the other, `raw16`: keys `[head_dim][block_tokens]`, values `[block_tokens][head_dim]`. Repeated to
    /// fill the buffer.
    pub values: Vec<u16>,
}

impl Sample {
    /// Slices that look like keys and values: normal, keys with a centre and a spread of their own in each channel.
    pub fn synthetic(head_dim: u32, block_tokens: u32, slices: usize) -> Sample {
        let elements = head_dim as usize * block_tokens as usize;
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        // A sum of uniform numbers, deviation 1.
        let mut normal = || {
            let mut sum = -6.0;
            for _ in 0..12 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                sum += (state >> 40) as f32 / (1u32 << 24) as f32;
            }
            sum
        };
        let mut values = Vec::with_capacity(2 * slices * elements);
        for _ in 0..slices {
            for _ in 0..head_dim {
                let (centre, spread) = (2.0 * normal(), 0.5 + normal().abs());
                (0..block_tokens).for_each(|_| values.push(raw16::encode(centre + spread * normal())));
            }
            values.extend((0..elements).map(|_| raw16::encode(0.5 * normal())));
        }
        Sample { head_dim, block_tokens, values }
    }
}

/// Speeds of one way, bytes of `raw16` per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Median over rounds.
    pub bytes_per_second: f64,
    /// Median over rounds of the ratio to the copy of the same round.
    pub versus_copy: f64,
    /// Least and largest ratio.
    pub versus_copy_range: (f64, f64),
}

/// Figures of one form, or of a general compressor beside it, for one buffer size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Bytes of the `raw16` buffer.
    pub buffer_bytes: u64,
    /// Bytes of `raw16` over bytes stored, headers and scales counted.
    pub ratio: f64,
    /// The plain copy beside it: bytes per second, median over rounds.
    pub copy_bytes_per_second: f64,
    /// From `raw16`.
    pub encode: Speed,
    /// To `raw16`.
    pub decode: Speed,
}

/// One form.
#[derive(Clone, Debug, PartialEq)]
pub struct FormFigures {
    /// Which.
    pub form: Form,
    /// One entry per buffer size.
    pub figures: Vec<Figures>,
    /// For `sx12`: lz4 (block format, the same bytes) beside it.
    pub lz4: Vec<Figures>,
}

/// Measures `forms` with `codec` on buffers of about `buffer_bytes` (whole slices), `rounds` times each, one thread.
///
/// Errors: the sample does not fit a form. Panics when the sample is not a whole number of slices or there are no rounds.
pub fn measure(
    codec: &impl Codec,
    sample: &Sample,
    forms: &[Form],
    buffer_bytes: &[u64],
    rounds: usize,
) -> Result<Vec<FormFigures>, (Form, StaysRaw)> {
    assert!(rounds > 0, "at least one round");
    let mut all: Vec<FormFigures> =
        forms.iter().map(|form| FormFigures { form: *form, figures: Vec::new(), lz4: Vec::new() }).collect();
    for bytes in buffer_bytes {
        let mut bench = Bench::new(sample, *bytes);
        let mut meters = vec![(Meter::default(), Meter::default()); forms.len()];
        for round in 0..=rounds {
            for (form, (meter, lz4)) in forms.iter().zip(&mut meters) {
                let (figures, compressor) = bench.round(codec, *form).map_err(|reason| (*form, reason))?;
                // The first round warms caches, pages and the clock up.
                if round > 0 {
                    meter.rounds.push(figures);
                    lz4.rounds.extend(compressor);
                }
            }
        }
        for (form, (meter, lz4)) in all.iter_mut().zip(&meters) {
            form.figures.push(meter.figures(bench.payload as u64));
            if !lz4.rounds.is_empty() {
                form.lz4.push(lz4.figures(bench.payload as u64));
            }
        }
    }
    Ok(all)
}

/// Seconds of one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    stored_bytes: u64,
    copy: f64,
    encode: f64,
    decode: f64,
}

#[derive(Clone, Default)]
struct Meter {
    rounds: Vec<Round>,
}

impl Meter {
    fn figures(&self, buffer_bytes: u64) -> Figures {
        let rate = |seconds: fn(&Round) -> f64| {
            median(self.rounds.iter().map(|round| buffer_bytes as f64 / seconds(round)).collect())
        };
        let speed = |seconds: fn(&Round) -> f64| {
            let mut ratios: Vec<f64> = self.rounds.iter().map(|round| round.copy / seconds(round)).collect();
            ratios.sort_by(f64::total_cmp);
            Speed {
                bytes_per_second: rate(seconds),
                versus_copy_range: (ratios[0], ratios[ratios.len() - 1]),
                versus_copy: median(ratios),
            }
        };
        let ratio = buffer_bytes as f64 / self.rounds[0].stored_bytes as f64;
        Figures {
            buffer_bytes,
            ratio,
            copy_bytes_per_second: rate(|round| round.copy),
            encode: speed(|round| round.encode),
            decode: speed(|round| round.decode),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Buffers of one size. A block of that size stands in for many: a "layer" per slice, one head.
struct Bench {
    raw: BlockShape,
    /// Bytes of `raw16`.
    payload: usize,
    source: Buffer,
    target: Buffer,
    encoded: Buffer,
    compressed: Vec<u8>,
}

impl Bench {
    fn new(sample: &Sample, bytes: u64) -> Bench {
        let mut raw = BlockShape {
            layers: 1,
            kv_heads: 1,
            head_dim: sample.head_dim,
            block_tokens: sample.block_tokens,
            form: Form::Raw16,
        };
        raw.layers = (bytes / raw.layer_bytes(Plane::Code, 0)).max(1) as u32;
        let slice = raw.layer_bytes(Plane::Code, 0) as usize / 2;
        assert!(!sample.values.is_empty() && sample.values.len().is_multiple_of(slice), "a whole number of slices");
        let mut source = Buffer::zeroed(raw.slot_bytes() as usize);
        let first = raw.header_bytes() as usize;
        let payload = raw.payload_bytes() as usize;
        for (to, from) in
            source.as_mut_slice()[first..first + payload].chunks_exact_mut(2).zip(sample.values.iter().cycle())
        {
            to.copy_from_slice(&from.to_le_bytes());
        }
        // `sx12` is the largest image of those that are not a copy, but `raw16` is measured too.
        let mut encoded = Buffer::zeroed(raw.slot_bytes() as usize + (1 << 20));
        let mut target = Buffer::zeroed(raw.slot_bytes() as usize);
        // Pages must be there before the clock starts.
        encoded.as_mut_slice().fill(1);
        target.as_mut_slice().fill(1);
        let room = lz4_flex::block::get_maximum_output_size(LZ4_CHUNK);
        let compressed = vec![1; payload.div_ceil(LZ4_CHUNK) * room];
        Bench { raw, payload, source, target, encoded, compressed }
    }

    fn round(&mut self, codec: &impl Codec, form: Form) -> Result<(Round, Option<Round>), StaysRaw> {
        let shape = self.raw.with_form(form);
        let slot = shape.slot_bytes() as usize;
        // A copy before and one after: a ratio compares with the mean of both.
        let before = self.copy();
        let mut encoded = Ok(());
        let encode = time(self.payload, || {
            encoded = encode_block(codec, &shape, self.source.as_slice(), &mut self.encoded.as_mut_slice()[..slot]);
        });
        encoded?;
        let decode = time(self.payload, || {
            let decoded = decode_block(codec, &shape, self.encoded.as_slice(), self.target.as_mut_slice());
            black_box(decoded).expect("it was encoded a moment ago");
        });
        let copy = (before + self.copy()) / 2.0;
        let round = Round { stored_bytes: shape.payload_bytes(), copy, encode, decode };
        Ok((round, (form == Form::Sx12).then(|| self.lz4(copy))))
    }

    fn copy(&mut self) -> f64 {
        let first = self.raw.header_bytes() as usize;
        time(self.payload, || {
            let source = &self.source.as_slice()[first..first + self.payload];
            self.target.as_mut_slice()[first..first + self.payload].copy_from_slice(black_box(source));
        })
    }

    /// lz4 over the same payload, in chunks that a reader could take one by one.
    fn lz4(&mut self, copy: f64) -> Round {
        let first = self.raw.header_bytes() as usize;
        let room = lz4_flex::block::get_maximum_output_size(LZ4_CHUNK);
        let mut lengths = vec![0; self.payload.div_ceil(LZ4_CHUNK)];
        let encode = time(self.payload, || {
            let source = self.source.as_slice()[first..first + self.payload].chunks(LZ4_CHUNK);
            for ((source, to), length) in source.zip(self.compressed.chunks_exact_mut(room)).zip(&mut lengths) {
                *length = lz4_flex::block::compress_into(source, to).expect("room for the worst case");
            }
        });
        let decode = time(self.payload, || {
            let target = self.target.as_mut_slice()[first..first + self.payload].chunks_mut(LZ4_CHUNK);
            for ((target, from), length) in target.zip(self.compressed.chunks_exact(room)).zip(&lengths) {
                lz4_flex::block::decompress_into(&from[..*length], target).expect("it was encoded a moment ago");
            }
        });
        Round { stored_bytes: lengths.iter().sum::<usize>() as u64, copy, encode, decode }
    }
}

/// Bytes that lz4 sees at once.
const LZ4_CHUNK: usize = 64 << 10;
/// Bytes that a time is taken over, at least.
const TIMED_BYTES: usize = 32 << 20;

/// Seconds of one call over `bytes`, from enough calls for the clock.
fn time(bytes: usize, mut call: impl FnMut()) -> f64 {
    let calls = TIMED_BYTES.div_ceil(bytes);
    let start = Instant::now();
    for _ in 0..calls {
        call();
    }
    start.elapsed().as_secs_f64() / calls as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::codec::Simd;

    #[test]
    fn every_form_has_figures() {
        let sample = Sample::synthetic(64, 64, 4);
        let forms = [Form::Raw16, Form::Sx12, Form::I8h, Form::Kc4vt4];
        let all = measure(&Simd::detect(), &sample, &forms, &[1 << 16], 1).unwrap();
        let ratios: Vec<f64> = all.iter().map(|form| form.figures[0].ratio).collect();
        assert_eq!(ratios, [1.0, 16384.0 / (12288.0 + 30.0), 16.0 / 8.25, 16.0 / 4.5]);
        for form in &all {
            let Figures { buffer_bytes, copy_bytes_per_second, encode, decode, .. } = form.figures[0];
            assert_eq!(buffer_bytes, 1 << 16);
            assert!(copy_bytes_per_second > 0.0 && encode.bytes_per_second > 0.0 && decode.versus_copy > 0.0);
            assert_eq!(form.lz4.len(), usize::from(form.form == Form::Sx12));
        }
    }

    #[test]
    fn a_sample_that_does_not_fit_is_named() {
        let mut sample = Sample::synthetic(16, 16, 1);
        sample.values[5] = 0x7f80;
        let found = measure(&Simd::detect(), &sample, &[Form::Sx12, Form::I8h], &[1 << 12], 1);
        assert_eq!(found, Err((Form::I8h, StaysRaw::NonFinite)));
    }
}
