//! The byte stage: sections of a record encoded so that they take fewer bytes on disk, and back.
//!
//! Every coding is without loss and is undone before anything is verified: sums are those of the section as it was sealed. What a record
//! says of its sections is in `record`; `docs/disk-format.md` gives the bytes of each coding.
//!
//! **Where it runs.** Encoding takes from 0.1 ms (`sx12`) to several ms (`zstd`) a block. Whoever submits a write may hold a lock of his own,
//! and the medium's threads bring the ends of reads, so it runs on neither but on a thread of its own (`disk-stage-0`, see `staging`).
//! Decoding runs where a read is verified, section by section, so that sums are taken of what the cache still holds.

use std::sync::Arc;

use cache_core::codec::Codec;
use cache_core::codec::sx12::{GROUP, Window};
use cache_core::form::FormMapId;
use cache_core::header::SlotHeader;
use zerocopy::FromBytes;
use zstd::bulk::Compressor;

use crate::io::ALIGN_BYTES;
use crate::record::{StoredSection, staged_header_bytes};

/// Who encodes and decodes `sx12`: the scalar reference, or a device's faster twin.
pub type SectionCodec = Arc<dyn Codec + Send + Sync>;

/// How sections are encoded in records to be written. Records of any stage are read under any setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ByteStage {
    /// Not at all.
    Off,
    /// `sx12` for `raw16`, nothing for the other forms.
    #[default]
    Auto,
    /// `sx12` for `raw16`; it is no coding of other forms.
    Sx12,
    /// LZ4, for every form.
    Lz4,
    /// Zstandard, for every form.
    Zstd,
}

impl ByteStage {
    /// The coding of sections of copies in this form.
    pub(crate) fn coding(self, form: FormMapId) -> Coding {
        match self {
            ByteStage::Auto | ByteStage::Sx12 if form == FormMapId::RAW16 => Coding::Sx12,
            ByteStage::Off | ByteStage::Auto | ByteStage::Sx12 => Coding::Plain,
            ByteStage::Lz4 => Coding::Lz4,
            ByteStage::Zstd => Coding::Zstd,
        }
    }
}

/// How one section stands in a record. Numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// As it is.
    Plain = 0,
    /// Parts of [`PART`] bf16 values, each under a window of its own.
    Sx12 = 1,
    /// One LZ4 block.
    Lz4 = 2,
    /// One Zstandard frame.
    Zstd = 3,
}

impl Coding {
    pub(crate) fn of(number: u32) -> Option<Coding> {
        [Coding::Plain, Coding::Sx12, Coding::Lz4, Coding::Zstd].into_iter().find(|coding| *coding as u32 == number)
    }
}

/// Values under one window of `sx12`: keys or values of a head at 64 tokens and 64 channels.
const PART: usize = 4096;
/// Level of Zstandard.
const ZSTD_LEVEL: i32 = 1;
/// A section is encoded if it gets shorter by one in so many bytes at least.
const GAIN: usize = 16;

/// Encodes records; keeps what the codings need between one and the next.
pub(crate) struct Encoder {
    stage: ByteStage,
    codec: SectionCodec,
    /// LZ4 wants room for its worst case.
    scratch: Vec<u8>,
    zstd: Option<Compressor<'static>>,
}

impl Encoder {
    pub(crate) fn new(stage: ByteStage, codec: SectionCodec) -> Encoder {
        Encoder { stage, codec, scratch: Vec::new(), zstd: None }
    }

    /// Puts the sections of a slot image into `out`, as long as the image, behind the place of a staged record's header. Returns how each
    /// section stands there; `None`: the record would not be a page shorter than the image. Panics when the image is shorter than its
    /// header says.
    pub(crate) fn encode(&mut self, header: &SlotHeader, image: &[u8], out: &mut [u8]) -> Option<Vec<StoredSection>> {
        let coding = self.stage.coding(header.key.form);
        let limit = out.len().checked_sub(ALIGN_BYTES as usize)?;
        let mut end = staged_header_bytes(header.sections.len() as u32) as usize;
        let mut stored = Vec::with_capacity(header.sections.len());
        for section in header.layout() {
            let bytes = &image[section.offset as usize..(section.offset + section.bytes) as usize];
            let room = out.get_mut(end..limit)?;
            let most = (bytes.len() - bytes.len() / GAIN).min(room.len());
            let (coding, count) = match self.section(coding, bytes, &mut room[..most]) {
                Some(count) => (coding, count),
                None => {
                    room.get_mut(..bytes.len())?.copy_from_slice(bytes);
                    (Coding::Plain, bytes.len())
                }
            };
            stored.push(StoredSection::new(coding, count as u64)?);
            end += count;
        }
        out[end..end.next_multiple_of(ALIGN_BYTES as usize)].fill(0);
        Some(stored)
    }

    /// Encodes one section into the room for it; returns how many bytes it took. `None`: it is stored as it is.
    pub(crate) fn section(&mut self, coding: Coding, bytes: &[u8], room: &mut [u8]) -> Option<usize> {
        match coding {
            Coding::Plain => None,
            Coding::Sx12 => encode_sx12(&*self.codec, bytes, room),
            Coding::Lz4 => {
                self.scratch.resize(lz4_flex::block::get_maximum_output_size(bytes.len()), 0);
                let count = lz4_flex::block::compress_into(bytes, &mut self.scratch).ok()?;
                room.get_mut(..count)?.copy_from_slice(&self.scratch[..count]);
                Some(count)
            }
            Coding::Zstd => {
                if self.zstd.is_none() {
                    self.zstd = Compressor::new(ZSTD_LEVEL).ok();
                }
                self.zstd.as_mut()?.compress_to_buffer(bytes, room).ok()
            }
        }
    }
}

/// Undoes a coding: `out` has the section's length. False: these are not bytes that an encoder wrote for so long a section.
pub(crate) fn decode(codec: &dyn Codec, coding: Coding, stored: &[u8], out: &mut [u8]) -> bool {
    match coding {
        Coding::Plain => {
            let is_whole = stored.len() == out.len();
            if is_whole {
                out.copy_from_slice(stored);
            }
            is_whole
        }
        Coding::Sx12 => decode_sx12(codec, stored, out).is_some(),
        Coding::Lz4 => lz4_flex::block::decompress_into(stored, out).is_ok_and(|count| count == out.len()),
        Coding::Zstd => zstd::bulk::decompress_to_buffer(stored, out).is_ok_and(|count| count == out.len()),
    }
}

/// Bytes of the windows of so many values, and where their codes end.
fn sx12_ends(values: usize) -> Option<(usize, usize)> {
    let is_whole = values > 0 && values.is_multiple_of(GROUP);
    let windows = 2 * values.div_ceil(PART);
    is_whole.then_some((windows, windows + values / 2 * 3))
}

fn encode_sx12(codec: &dyn Codec, bytes: &[u8], out: &mut [u8]) -> Option<usize> {
    let values = <[u16]>::ref_from_bytes(bytes).ok()?;
    let (windows_end, codes_end) = sx12_ends(values.len())?;
    let (fixed, escapes) = out.split_at_mut_checked(codes_end)?;
    let (windows, codes) = fixed.split_at_mut(windows_end);
    let mut used = 0;
    let parts = values.chunks(PART).zip(codes.chunks_mut(PART / 2 * 3));
    for ((values, codes), window) in parts.zip(windows.chunks_exact_mut(2)) {
        let found = codec.encode_sx12(values, codes, &mut escapes[used..]).ok()?;
        window.copy_from_slice(&[found.top, found.escapes]);
        used += usize::from(found.escapes);
    }
    Some(codes_end + used)
}

fn decode_sx12(codec: &dyn Codec, stored: &[u8], out: &mut [u8]) -> Option<()> {
    let values = <[u16]>::mut_from_bytes(out).ok()?;
    let (windows_end, codes_end) = sx12_ends(values.len())?;
    let (fixed, mut escapes) = stored.split_at_checked(codes_end)?;
    let (windows, codes) = fixed.split_at(windows_end);
    let parts = values.chunks_mut(PART).zip(codes.chunks(PART / 2 * 3));
    for ((values, codes), window) in parts.zip(windows.chunks_exact(2)) {
        let window = Window { top: window[0], escapes: window[1] };
        let (own, rest) = escapes.split_at_checked(usize::from(window.escapes))?;
        codec.decode_sx12(window, codes, own, values).ok()?;
        escapes = rest;
    }
    escapes.is_empty().then_some(())
}

#[cfg(test)]
mod tests {
    use cache_core::buffer::Buffer;
    use cache_core::codec::Scalar;
    use cache_core::contract::Random;

    use super::*;

    /// Lengths around a part, values of every kind: what is encoded comes back, and nothing else does.
    #[test]
    fn sx12_sections_of_any_length_come_back() {
        let mut random = Random::new(1);
        for count in [32, 64, 4064, PART, PART + 32, 3 * PART - 32, 6 * PART] {
            for specials_of_256 in [0, 3, 256] {
                let mut values = vec![0u16; count];
                for value in &mut values {
                    let bits = random.next();
                    let is_special = bits >> 40 & 0xff < specials_of_256;
                    *value = if is_special { bits as u16 } else { bits as u16 & 0x83ff | 0x3c00 };
                }
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
                let (mut source, mut target) = (Buffer::zeroed(bytes.len()), Buffer::zeroed(bytes.len()));
                source.as_mut_slice().copy_from_slice(&bytes);
                let mut out = vec![0; bytes.len()];
                let Some(length) = encode_sx12(&Scalar, source.as_slice(), &mut out) else {
                    assert_eq!(specials_of_256, 256, "{count} values");
                    continue;
                };
                assert!(decode(&Scalar, Coding::Sx12, &out[..length], target.as_mut_slice()));
                assert!(target.as_slice() == bytes, "{count} values");
                assert!(!decode(&Scalar, Coding::Sx12, &out[..length - 1], target.as_mut_slice()));
                out.push(0);
                assert!(!decode(&Scalar, Coding::Sx12, &out[..length + 1], target.as_mut_slice()));
                assert!(encode_sx12(&Scalar, source.as_slice(), &mut out[..length - 1]).is_none(), "no room");
            }
        }
        assert!(encode_sx12(&Scalar, Buffer::zeroed(62).as_slice(), &mut [0; 64]).is_none());
    }

    #[test]
    fn random_bytes_decode_to_nothing_or_to_something_and_never_panic() {
        let mut random = Random::new(2);
        for round in 0..20_000 {
            let coding = [Coding::Plain, Coding::Sx12, Coding::Lz4, Coding::Zstd][round % 4];
            let stored: Vec<u8> = (0..random.below(200)).map(|_| random.next() as u8).collect();
            let mut out = Buffer::zeroed(random.below(300) as usize);
            let is_decoded = decode(&Scalar, coding, &stored, out.as_mut_slice());
            assert!(!is_decoded || coding != Coding::Plain || stored == out.as_slice());
        }
    }
}
