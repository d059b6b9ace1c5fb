//! Codecs, sums and copies as operations of device `cuda`, over the driver double: the kernels compiled for the host, and nvcc's PTX
//! of each architecture in the interpreter. The long form is `soak_cuda.rs`.
#![cfg(target_arch = "x86_64")]

#[path = "common/codes.rs"]
mod codes;
#[path = "../../../gpu-tier/tests/cuda_double/contract.rs"]
#[allow(dead_code, reason = "parts that other tests use")]
mod contract;
#[path = "common/device.rs"]
#[allow(dead_code, reason = "parts that other tests use")]
mod device;
#[path = "../../../gpu-tier/tests/cuda_double/double.rs"]
#[allow(dead_code, reason = "parts that other tests use")]
mod double;

use cache_core::codec::suite::Random;
use contract::BUDGET;
use device::{ENGINES, cuda, cuda_within};
use double::Double;
use gpu_tier::cuda::codec::Sum;
use gpu_tier::device::Stream;
use twox_hash::XxHash3_64;

/// Of each form and engine, here; a soak has a million.
const VALUES: u64 = 50_000;

#[test]
fn codes_are_those_of_the_reference() {
    let double = Double::take();
    for engine in ENGINES {
        let found = codes::check(&cuda(&double, engine), 0x511ce, VALUES);
        println!("{engine:?}: {found:?}");
    }
}

#[test]
fn sums_are_those_of_the_cpu() {
    let double = Double::take();
    for engine in ENGINES {
        let device = cuda(&double, engine);
        let mut random = Random(3);
        let longest = 40_000;
        let bytes: Vec<u8> = (0..longest).map(|_| random.bits() as u8).collect();
        let data = codes::put(&device, &bytes);
        // Every path of XXH3: nothing, up to 3, 8, 16, 128 and 240 bytes, stripes, blocks, more blocks than threads take at once.
        let lengths =
            [0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 32, 33, 64, 65, 96, 97, 128, 129, 160, 239, 240, 241, 256, 257, 320];
        let more = [1023, 1024, 1025, 1088, 1089, 2047, 2048, 2049, 4096, 24_576, 32_768, 33_000, 36_864, longest];
        let lengths: Vec<usize> = lengths.into_iter().chain(more).collect();
        let sums = codes::put(&device, &vec![0; 8 * lengths.len()]);
        let seeds: Vec<u64> = lengths.iter().map(|n| if n % 3 == 0 { 0 } else { random.bits() }).collect();
        let job = |(i, (n, seed)): (usize, (&usize, &u64))| Sum {
            data: data.range().slice(0, *n as u64),
            seed: *seed,
            sum: sums.range().slice(8 * i as u64, 8),
        };
        let jobs: Vec<Sum> = lengths.iter().zip(&seeds).enumerate().map(job).collect();
        device.sum(Stream::Compute, &jobs).unwrap();
        let found = codes::get(&device, sums.range());
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
