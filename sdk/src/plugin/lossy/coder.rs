//! Encodes and decodes blocks whose layout an engine stated.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use cache_core::codec::image::{self, Layer, LayerMut};
use cache_core::codec::{Damaged, StaysRaw};
use cache_core::form::Form;
use cache_core::payload::{BlockShape, Plane, Section, Side};
use cache_core::sum::SectionSum;
use gpu_tier::cpu::codec::Simd;
use zerocopy::IntoBytes;

use super::Lossy;
use crate::client::Lent;
use crate::plugin::leases::part;
use crate::plugin::memory::Bytes;
use crate::plugin::{SKIP, Slabs};

/// Encodes and decodes stored blocks, between an engine's blocks and slot images.
#[derive(Debug)]
pub(in crate::plugin) struct Coder {
    shape: BlockShape,
    lossy: Lossy,
    codec: Simd,
    /// As many as were ever used at once.
    benches: Mutex<Vec<Bench>>,
}

/// Memory that a layer passes through.
#[derive(Debug)]
struct Bench {
    /// One block of the engine's.
    engine: Vec<u16>,
    /// The stored block as `raw16`.
    raw: Vec<u16>,
    /// Its sections, in the order of [`Plane::ALL`]; of the planes that the layer has nothing in, empty.
    sections: [Vec<u8>; 3],
}

impl Coder {
    pub(in crate::plugin) fn new(shape: BlockShape, lossy: Lossy) -> Coder {
        Coder { shape, lossy, codec: Simd::detect(), benches: Mutex::default() }
    }

    /// The engine's blocks in a stored one.
    pub(in crate::plugin) fn chunk(&self) -> usize {
        (self.shape.block_tokens / self.lossy.tokens) as usize
    }

    /// Encodes the engine's blocks of a stored one into its slot image and gives the sums of its sections, which `sum` makes of their bytes. `None` when a
    /// value does not fit the form: then the image means nothing.
    pub(in crate::plugin) fn write(
        &self,
        image: Bytes<'_>,
        (slabs, blocks): (&Slabs, &[u32]),
        sum: impl Fn(Section, &[u8]) -> SectionSum,
    ) -> Option<Vec<SectionSum>> {
        self.with_bench(|bench| {
            let mut sums = vec![SectionSum(0); self.shape.section_count() as usize];
            for layer in 0..self.shape.layers {
                for (number, block) in blocks.iter().enumerate() {
                    slabs.block(layer, *block).read(bench.engine.as_mut_bytes());
                    self.gather(bench, number);
                }
                self.encode(bench, layer).ok()?;
                for (section, bytes) in self.sections(layer).zip(&bench.sections) {
                    if let Some(section) = section {
                        sums[section.index as usize] = sum(section, bytes);
                        image.part(section.offset, section.bytes).write(bytes);
                    }
                }
            }
            Some(sums)
        })
    }

    /// Decodes layers of a lent block into the engine's; false when the bytes mean nothing: of such a layer nothing is written.
    pub(in crate::plugin) fn fill(&self, lent: &Lent, slabs: &Slabs, blocks: &[u32], mut layers: Range<u32>) -> bool {
        self.with_bench(|bench| {
            layers.all(|layer| {
                self.clear_sections(bench, layer);
                for (section, bytes) in self.sections(layer).zip(&mut bench.sections) {
                    if let Some(section) = section {
                        part(lent, section.offset, section.bytes).read(bytes);
                    }
                }
                let is_good = lent.is_current() && self.decode(bench, layer).is_ok();
                if is_good {
                    for (number, block) in blocks.iter().enumerate().filter(|(_, block)| **block != SKIP) {
                        self.scatter(bench, number);
                        slabs.block(layer, *block).write(bench.engine.as_bytes());
                    }
                }
                is_good
            })
        })
    }

    fn with_bench<T>(&self, call: impl FnOnce(&mut Bench) -> T) -> T {
        let benches = || self.benches.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bench = benches().pop().unwrap_or_else(|| self.bench());
        let done = call(&mut bench);
        benches().push(bench);
        done
    }

    fn bench(&self) -> Bench {
        let raw = self.raw().layer_bytes(Plane::Code, 0) as usize / 2;
        Bench { engine: vec![0; raw / self.chunk()], raw: vec![0; raw], sections: Default::default() }
    }

    fn raw(&self) -> BlockShape {
        self.shape.with_form(Form::Raw16)
    }

    /// Where the sections of a layer are in a slot image, in the order of [`Plane::ALL`].
    fn sections(&self, layer: u32) -> impl Iterator<Item = Option<Section>> {
        Plane::ALL.into_iter().map(move |plane| self.shape.section(plane, layer))
    }

    /// Makes room for the sections of a layer.
    fn clear_sections(&self, bench: &mut Bench, layer: u32) {
        for (bytes, plane) in bench.sections.iter_mut().zip(Plane::ALL) {
            bytes.resize(self.shape.layer_bytes(plane, layer) as usize, 0);
        }
    }

    /// Puts the engine's block on the bench in its place, the `number`th of the stored one.
    fn gather(&self, bench: &mut Bench, number: usize) {
        let Bench { engine, raw, .. } = bench;
        self.rows(number, |row, from, stride| {
            let row = &mut raw[row];
            match stride {
                1 => row.copy_from_slice(&engine[from..from + row.len()]),
                _ => row.iter_mut().zip(engine[from..].iter().step_by(stride)).for_each(|(to, from)| *to = *from),
            }
        });
    }

    /// The other way round: every element of the engine's block is written.
    fn scatter(&self, bench: &mut Bench, number: usize) {
        let Bench { engine, raw, .. } = bench;
        self.rows(number, |row, to, stride| {
            let row = &raw[row];
            match stride {
                1 => engine[to..to + row.len()].copy_from_slice(row),
                _ => engine[to..].iter_mut().step_by(stride).zip(row).for_each(|(to, from)| *to = *from),
            }
        });
    }

    /// The rows of an engine's block: where each is in the stored block's `raw16`, its first element in the engine's, and the distance of those that
    /// follow: at least 1, also of a row of one.
    fn rows(&self, number: usize, mut row: impl FnMut(Range<usize>, usize, usize)) {
        let raw = self.raw();
        let BlockShape { kv_heads, head_dim, block_tokens, .. } = self.shape;
        let tokens = self.lossy.tokens;
        let first = number as u32 * tokens;
        for head in 0..kv_heads {
            for side in Side::ALL {
                let strides = self.lossy.strides(side);
                let start = raw.part(Plane::Code, 0, head, side).start / 2;
                match side {
                    Side::Key => (0..head_dim).for_each(|channel| {
                        let begin = start + (channel * block_tokens + first) as usize;
                        let from = strides.at(head, 0, channel) as usize;
                        row(begin..begin + tokens as usize, from, strides.tokens.max(1) as usize);
                    }),
                    Side::Value => (0..tokens).for_each(|token| {
                        let begin = start + ((first + token) * head_dim) as usize;
                        let from = strides.at(head, token, 0) as usize;
                        row(begin..begin + head_dim as usize, from, strides.channels as usize);
                    }),
                }
            }
        }
    }

    /// Encodes what was gathered.
    fn encode(&self, bench: &mut Bench, layer: u32) -> Result<(), StaysRaw> {
        self.clear_sections(bench, layer);
        let [header, scale, codes] = &mut bench.sections;
        image::encode_layer(&self.codec, &self.shape, layer, bench.raw.as_bytes(), LayerMut { header, scale, codes })
    }

    /// Decodes the sections on the bench, to be scattered.
    fn decode(&self, bench: &mut Bench, layer: u32) -> Result<(), Damaged> {
        let [header, scale, codes] = &bench.sections;
        image::decode_layer(&self.codec, &self.shape, layer, Layer { header, scale, codes }, bench.raw.as_mut_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{RAW, by_channel, bytes, token_major};
    use super::*;

    #[test]
    fn elements_land_where_the_layout_has_them_and_come_back() {
        // In a block of one token the distance of tokens is nobody's business.
        let mut single = token_major(Form::I8h, 1, 2, 16);
        (single.keys.tokens, single.values.tokens) = (0, 7);
        let others = [token_major(Form::I8h, 8, 2, 16), by_channel(Form::I8h, 8, 16), by_channel(Form::I8h, 24, 16)];
        for lossy in others.into_iter().chain([single]) {
            let coder = Coder::new(lossy.shape(&RAW, bytes()).unwrap(), lossy);
            let chunk = RAW.block_tokens / lossy.tokens;
            let value = |side: Side, head: u32, token: u32, channel: u32| {
                (u32::from(side == Side::Value) << 15 | head << 14 | token << 8 | channel) as u16
            };
            let elements = || {
                (0..2).flat_map(|head| (0..lossy.tokens).flat_map(move |token| (0..16).map(move |c| (head, token, c))))
            };
            let mut bench = coder.bench();
            for number in 0..chunk {
                for (side, (head, token, channel)) in
                    Side::ALL.into_iter().flat_map(|side| elements().map(move |at| (side, at)))
                {
                    let place = lossy.strides(side).at(head, token, channel);
                    bench.engine[place as usize] = value(side, head, number * lossy.tokens + token, channel);
                }
                coder.gather(&mut bench, number as usize);
            }
            for head in 0..2 {
                for (token, channel) in (0..24).flat_map(|token| (0..16).map(move |channel| (token, channel))) {
                    let start = |side| RAW.part(Plane::Code, 0, head, side).start / 2;
                    let key = bench.raw[start(Side::Key) + (channel * 24 + token) as usize];
                    let of_value = bench.raw[start(Side::Value) + (token * 16 + channel) as usize];
                    assert_eq!(
                        (key, of_value),
                        (value(Side::Key, head, token, channel), value(Side::Value, head, token, channel))
                    );
                }
            }
            for number in 0..chunk {
                bench.engine.fill(0xffff);
                coder.scatter(&mut bench, number as usize);
                for (side, (head, token, channel)) in
                    Side::ALL.into_iter().flat_map(|side| elements().map(move |at| (side, at)))
                {
                    let place = lossy.strides(side).at(head, token, channel);
                    assert_eq!(bench.engine[place as usize], value(side, head, number * lossy.tokens + token, channel));
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// What an engine gets back is what the reference codec makes of the block in the daemon's layout, whatever its own layout is.
        #[test]
        fn engines_get_what_the_form_makes_of_their_elements(values in proptest::collection::vec(-4.0f32..4.0, 24 * 2 * 16 * 2), is_four in any::<bool>(), wide in any::<bool>()) {
            let form = if is_four { Form::Kc4vt4 } else { Form::I8h };
            let lossy = if wide { token_major(form, 8, 2, 16) } else { by_channel(form, 12, 16) };
            let coder = Coder::new(lossy.shape(&RAW, bytes()).unwrap(), lossy);
            let bf16: Vec<u16> = values.iter().map(|value| (value.to_bits() >> 16) as u16).collect();
            let mut bench = coder.bench();
            let size = bench.engine.len();
            for (number, block) in bf16.chunks(size).enumerate() {
                bench.engine.copy_from_slice(block);
                coder.gather(&mut bench, number);
            }
            let raw = bench.raw.clone();
            coder.encode(&mut bench, 1).unwrap();
            coder.decode(&mut bench, 1).unwrap();
            let (mut image, mut back) = (vec![0u64; 4096], vec![0u64; 4096]);
            let shape = coder.shape;
            let image = &mut image.as_mut_bytes()[..shape.slot_bytes() as usize];
            let back = &mut back.as_mut_bytes()[..RAW.slot_bytes() as usize];
            image::encode_layer(&cache_core::codec::Scalar, &shape, 1, raw.as_bytes(), image::layer_mut(&shape, image, 1)).unwrap();
            let out = image::layer_mut(&RAW, back, 1).codes;
            image::decode_layer(&cache_core::codec::Scalar, &shape, 1, image::layer(&shape, image, 1), out).unwrap();
            prop_assert_eq!(bench.raw.as_bytes(), &*out);
            prop_assert_ne!(bench.raw.as_bytes(), raw.as_bytes());
        }
    }
}
