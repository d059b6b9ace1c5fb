//! Codecs, sums and copies as operations of device `cuda`, over the driver double: the kernels compiled for the host, and nvcc's PTX
//! of each architecture in the interpreter. The long form is `soak_cuda_shim.rs`.
#![cfg(target_arch = "x86_64")]

#[path = "../../../gpu-tier/tests/cuda_double/contract.rs"]
#[allow(dead_code, reason = "parts that other tests use")]
mod contract;
#[path = "common/device.rs"]
#[allow(dead_code, reason = "parts that other tests use")]
mod device;
#[path = "../../../gpu-tier/tests/cuda_double/double.rs"]
#[allow(dead_code, reason = "parts that other tests use")]
mod double;
#[path = "common/slices.rs"]
mod slices;

use cache_core::codec::image::{LayerMut, encode_layer};
use cache_core::codec::suite::{KINDS, Random, fill, parity};
use cache_core::codec::{Grid, Scalar};
use cache_core::form::Form;
use cache_core::payload::{BlockShape, Plane, Side};
use contract::BUDGET;
use device::{Engine, cuda, cuda_within};
use double::Double;
use gpu_tier::cuda::CudaDevice;
use gpu_tier::cuda::codec::{DONE, ESCAPES, Sum, Sx12Layer};
use gpu_tier::device::{Device, DeviceBuffer, DeviceRange, Stream};
use slices::OnDevice;
use twox_hash::XxHash3_64;

const ENGINES: [Engine; 4] =
    [Engine::Host, Engine::Ptx("compute_80"), Engine::Ptx("compute_90a"), Engine::Ptx("compute_100")];

/// More than 50,000 values of each form: a grid has 350 on average.
const GRIDS: usize = 200;

fn put(device: &CudaDevice, bytes: &[u8]) -> DeviceBuffer {
    let buffer = device.allocate(bytes.len() as u64).unwrap();
    device.upload(Stream::Compute, bytes, buffer.range()).unwrap();
    buffer
}

fn get(device: &CudaDevice, range: DeviceRange) -> Vec<u8> {
    let mut bytes = vec![0; range.bytes as usize];
    device.download(Stream::Compute, range, &mut bytes).unwrap();
    bytes
}

#[test]
fn slices_have_the_bits_of_the_reference() {
    let double = Double::take();
    for engine in ENGINES {
        let device = cuda(&double, engine);
        assert_eq!(parity(&OnDevice::new(&device), 0x511ce, GRIDS), 3 * GRIDS);
    }
}

/// Layers of all kinds of values, whole: windows, escapes and codes, and back.
#[test]
fn sx12_layers_have_the_bytes_of_the_reference() {
    let double = Double::take();
    for engine in ENGINES {
        let device = cuda(&double, engine);
        let (mut fit, mut stay) = (0, 0);
        for case in 0..2 * KINDS {
            match sx12_layer(&device, case) {
                DONE => fit += 1,
                ESCAPES => stay += 1,
                other => panic!("verdict {other}"),
            }
        }
        assert!(fit >= 10 && stay >= 4, "{fit} layers fit, {stay} stay raw");
    }
}

/// Encodes and decodes a layer; returns its verdict.
fn sx12_layer(device: &CudaDevice, case: usize) -> u32 {
    let mut random = Random(case as u64 * 77 + 5);
    let (kv_heads, head_dim, block_tokens) = (1 + case as u32 % 3, [32, 64, 96][case % 3], [64, 32][case % 2]);
    let shape = BlockShape { form: Form::Sx12, layers: 1, kv_heads, head_dim, block_tokens };
    let per_side = (head_dim * block_tokens) as usize;
    let mut raw = vec![0u16; 2 * kv_heads as usize * per_side];
    for (i, values) in raw.chunks_exact_mut(per_side).enumerate() {
        // Sides of their own kind, mostly ones that fit.
        let kind = if case < KINDS { case } else { [0, 12, 13, 3, 5][(case + i) % 5] };
        fill(&mut random, kind, Grid::new(Side::ALL[i % 2], head_dim, block_tokens), values);
    }
    let raw: Vec<u8> = raw.iter().flat_map(|x| x.to_le_bytes()).collect();
    let [mut header, mut codes] =
        [Plane::Header, Plane::Code].map(|plane| vec![0u8; shape.layer_bytes(plane, 0) as usize]);
    let out = LayerMut { header: &mut header, scale: &mut [], codes: &mut codes };
    let expected = encode_layer(&Scalar, &shape, 0, &raw, out);
    let blank = |bytes: &[u8]| put(device, &vec![0xa5; bytes.len()]);
    let (raw_on, header_on, codes_on, verdict) = (put(device, &raw), blank(&header), blank(&codes), blank(&[0; 4]));
    let layer = Sx12Layer {
        kv_heads,
        elements: per_side as u32,
        raw: raw_on.range(),
        header: header_on.range(),
        codes: codes_on.range(),
        verdict: verdict.range(),
    };
    device.encode_sx12(Stream::Compute, &[layer]).unwrap();
    let outcome = u32::from_ne_bytes(get(device, verdict.range()).try_into().unwrap());
    assert_eq!(outcome == DONE, expected.is_ok(), "case {case}: {expected:?}");
    if outcome != DONE {
        return outcome;
    }
    assert_eq!(get(device, header_on.range()), header, "case {case}, header");
    assert_eq!(get(device, codes_on.range()), codes, "case {case}, codes");
    device.upload(Stream::Compute, &vec![0xa5; raw.len()], raw_on.range()).unwrap();
    device.decode_sx12(Stream::Compute, &[layer]).unwrap();
    assert_eq!(get(device, verdict.range()), DONE.to_ne_bytes(), "case {case}, decoding");
    assert_eq!(get(device, raw_on.range()), raw, "case {case}, decoded");
    // A window that no encoder writes, and a count that does not add up.
    for (byte, value) in [(0, 13), (1, header[1].wrapping_add(1))] {
        let mut spoilt = header.clone();
        spoilt[byte] = value;
        device.upload(Stream::Compute, &spoilt, header_on.range()).unwrap();
        device.decode_sx12(Stream::Compute, &[layer]).unwrap();
        assert_ne!(get(device, verdict.range()), DONE.to_ne_bytes(), "case {case}, byte {byte} spoilt");
    }
    outcome
}

#[test]
fn sums_are_those_of_the_cpu() {
    let double = Double::take();
    for engine in ENGINES {
        let device = cuda(&double, engine);
        let mut random = Random(3);
        let longest = 40_000;
        let bytes: Vec<u8> = (0..longest).map(|_| random.bits() as u8).collect();
        let data = put(&device, &bytes);
        // Every path of XXH3: nothing, up to 3, 8, 16, 128 and 240 bytes, stripes, blocks, more blocks than threads take at once.
        let lengths =
            [0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 32, 33, 64, 65, 96, 97, 128, 129, 160, 239, 240, 241, 256, 257, 320];
        let more = [1023, 1024, 1025, 1088, 1089, 2047, 2048, 2049, 4096, 24_576, 32_768, 33_000, 36_864, longest];
        let lengths: Vec<usize> = lengths.into_iter().chain(more).collect();
        let sums = put(&device, &vec![0; 8 * lengths.len()]);
        let seeds: Vec<u64> = lengths.iter().map(|n| if n % 3 == 0 { 0 } else { random.bits() }).collect();
        let job = |(i, (n, seed)): (usize, (&usize, &u64))| Sum {
            data: data.range().slice(0, *n as u64),
            seed: *seed,
            sum: sums.range().slice(8 * i as u64, 8),
        };
        let jobs: Vec<Sum> = lengths.iter().zip(&seeds).enumerate().map(job).collect();
        device.sum(Stream::Compute, &jobs).unwrap();
        let found = get(&device, sums.range());
        for ((n, seed), found) in lengths.iter().zip(&seeds).zip(found.chunks_exact(8)) {
            let expected = XxHash3_64::oneshot_with_seed(*seed, &bytes[..*n]);
            assert_eq!(u64::from_ne_bytes(found.try_into().unwrap()), expected, "{n} bytes, {engine:?}");
        }
    }
}

#[test]
fn the_contract_of_devices_holds_with_the_gather_kernel() {
    for engine in ENGINES {
        let double = Double::take();
        double.set_jitter_us(50);
        contract::check(&cuda_within(&double, engine, BUDGET), 0);
        double.assert_nothing_left();
    }
}
