//! Kernels that nvcc compiled, for three architectures, under several schedules; and faults planted in their PTX.

use cuda_ladder::{Approximation, Arena, Counts, Fault, FaultKind, Kind, Launch, Memory, Module, Schedule};

const PTX: [(&str, &str); 3] = [
    ("80", include_str!("kernels/basics.compute_80.ptx")),
    ("90a", include_str!("kernels/basics.compute_90a.ptx")),
    ("100", include_str!("kernels/basics.compute_100.ptx")),
];
const SCHEDULES: [Schedule; 5] =
    [Schedule::Forward, Schedule::Reverse, Schedule::Random(1), Schedule::Random(2), Schedule::Random(3)];

fn bytes<T: Copy, const N: usize>(values: &[T], encode: fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|value| encode(*value)).collect()
}

fn floats(data: &[u8]) -> Vec<f32> {
    data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn words(data: &[u8]) -> Vec<u32> {
    data.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// Runs a kernel; `params` are the raw values.
fn run(
    text: &str,
    kernel: &str,
    shape: (u32, u32, u32),
    params: &[&[u8]],
    schedule: Schedule,
    memory: &mut Arena,
) -> Result<Counts, Fault> {
    let module = Module::parse(text).unwrap();
    let entry = module.entry(kernel).unwrap();
    let packed = entry.pack(params).unwrap();
    let launch = Launch {
        shared_bytes: shape.2,
        schedule,
        global_races: true,
        ..Launch::new([shape.0, 1, 1], [shape.1, 1, 1], &packed)
    };
    module.run(entry, &launch, memory)
}

fn each(mut check: impl FnMut(&str, Schedule)) {
    for (arch, text) in PTX {
        for schedule in SCHEDULES {
            println!("compute_{arch}, {schedule:?}");
            check(text, schedule);
        }
    }
}

#[test]
fn axpy_rounds_once() {
    let x: Vec<f32> = (0..1000).map(|index| (index as f32).sin()).collect();
    let y: Vec<f32> = (0..1000).map(|index| (index as f32).cos()).collect();
    each(|text, schedule| {
        let mut memory = Arena::new();
        let [from_x, from_y] = [&x, &y].map(|data| memory.upload_read_only(&bytes(data, f32::to_le_bytes)));
        let z = memory.allocate(4000);
        let params: [&[u8]; 5] = [
            &from_x.to_le_bytes(),
            &from_y.to_le_bytes(),
            &z.to_le_bytes(),
            &0.3f32.to_le_bytes(),
            &1000u32.to_le_bytes(),
        ];
        let counts = run(text, "axpy", (8, 128, 0), &params, schedule, &mut memory).unwrap();
        let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 0.3f32.mul_add(*x, *y)).collect();
        assert_eq!(floats(&memory.download(z, 4000)), expected);
        assert_eq!((counts.global_bytes(), counts.global_coalesced16_bytes, counts.blocks), (12000, 0, 8));
        if schedule == Schedule::Forward {
            // 1000 threads are 31 whole warps and one of 8 lanes; every request is contiguous.
            assert_eq!((counts.global_requests, counts.global_sectors), (96, 3 * 125));
            assert_eq!(counts.global_sectors, counts.global_sectors_least);
        }
    });
}

#[test]
fn softmax_sums_to_one() {
    let rows: Vec<f32> = (0..600).map(|index| ((index * 37) % 101) as f32 / 10.0).collect();
    let (mut exact, mut perturbed) = (Vec::new(), Vec::new());
    each(|text, schedule| {
        let mut memory = Arena::new();
        let from = memory.upload_read_only(&bytes(&rows, f32::to_le_bytes));
        let to = memory.allocate(2400);
        let params: [&[u8]; 3] = [&from.to_le_bytes(), &to.to_le_bytes(), &200u32.to_le_bytes()];
        let counts = run(text, "softmax", (3, 128, 0), &params, schedule, &mut memory).unwrap();
        let out = floats(&memory.download(to, 2400));
        for row in out.chunks(200) {
            let sum: f32 = row.iter().sum();
            assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        }
        assert_eq!(counts.barriers, 9);
        assert!(counts.threads(Kind::Warp) >= 3 * 128 * 10);
        exact = out;
    });
    let module = Module::parse(PTX[0].1).unwrap();
    let entry = module.entry("softmax").unwrap();
    let mut memory = Arena::new();
    let from = memory.upload_read_only(&bytes(&rows, f32::to_le_bytes));
    let to = memory.allocate(2400);
    let packed = entry.pack(&[&from.to_le_bytes(), &to.to_le_bytes(), &200u32.to_le_bytes()]).unwrap();
    for seed in 0..2 {
        let approximation = Approximation::Perturbed { seed, ulps: 2 };
        let launch = Launch { approximation, ..Launch::new([3, 1, 1], [128, 1, 1], &packed) };
        module.run(entry, &launch, &mut memory).unwrap();
        perturbed.push(floats(&memory.download(to, 2400)));
    }
    assert!(perturbed[0] != exact && perturbed[0] != perturbed[1], "seeds perturb differently");
    for (moved, exact) in perturbed[0].iter().zip(&exact) {
        assert!((moved - exact).abs() <= 1e-6 * exact.abs(), "{moved} is not near {exact}");
    }
}

/// `reverse` over two blocks with the PTX changed by `change`.
fn reverse(text: &str, schedule: Schedule, change: impl Fn(String) -> String) -> Result<(Vec<u32>, Counts), Fault> {
    let mut memory = Arena::new();
    let data: Vec<u32> = (0..256).collect();
    let from = memory.upload(&bytes(&data, u32::to_le_bytes));
    let to = memory.allocate(1024);
    let params: [&[u8]; 2] = [&from.to_le_bytes(), &to.to_le_bytes()];
    let counts = run(&change(text.to_owned()), "reverse", (2, 128, 512), &params, schedule, &mut memory)?;
    Ok((words(&memory.download(to, 1024)), counts))
}

/// Removes the lines of one kernel that contain a text; there must be some.
fn without(text: &str, kernel: &str, line: &str) -> String {
    let (mut inside, mut removed, mut kept) = (false, 0, String::new());
    for found in text.lines() {
        if found.contains(".entry") {
            inside = found.contains(kernel);
        }
        if inside && found.contains(line) {
            removed += 1;
            kept.push('\n');
            continue;
        }
        kept += found;
        kept.push('\n');
    }
    assert!(removed > 0, "{kernel} has no line with {line}");
    kept
}

#[test]
fn reverse_through_asynchronous_copies() {
    each(|text, schedule| {
        let (out, counts) = reverse(text, schedule, |text| text).unwrap();
        let expected: Vec<u32> =
            (0..2).flat_map(|block| (0..128).map(move |index| block * 128 + 127 - index)).collect();
        assert_eq!(out, expected);
        // The copies move 16 bytes a thread, the stores 4.
        assert_eq!((counts.global_load_bytes[4], counts.global_store_bytes[2]), (1024, 1024));
        assert_eq!(counts.global_coalesced16_bytes, 1024);
        assert_eq!(counts.coalesced16_share(), 0.5);
    });
}

#[test]
fn planted_missing_barrier_is_caught() {
    each(|text, schedule| {
        let fault = reverse(text, schedule, |text| without(&text, "reverse", "bar.sync")).unwrap_err();
        // Whoever comes first: a reader before or after the writer.
        let kinds = [FaultKind::SharedRace, FaultKind::UninitialisedShared, FaultKind::PendingCopy];
        assert!(kinds.contains(&fault.kind), "{fault}");
        assert!(fault.line > 0 && fault.entry == "reverse");
        let mut memory = Arena::new();
        let from = memory.upload(&bytes(&[1f32; 128], f32::to_le_bytes));
        let to = memory.allocate(512);
        let params: [&[u8]; 3] = [&from.to_le_bytes(), &to.to_le_bytes(), &128u32.to_le_bytes()];
        let changed = without(text, "softmax", "bar.sync");
        let fault = run(&changed, "softmax", (1, 128, 0), &params, schedule, &mut memory).unwrap_err();
        assert!([FaultKind::SharedRace, FaultKind::UninitialisedShared].contains(&fault.kind), "{fault}");
    });
}

#[test]
fn planted_missing_wait_is_caught() {
    each(|text, schedule| {
        let fault = reverse(text, schedule, |text| without(&text, "reverse", "cp.async.wait_group")).unwrap_err();
        assert_eq!(fault.kind, FaultKind::PendingCopy, "{fault}");
    });
}

#[test]
fn planted_bound_off_by_one_is_caught() {
    each(|text, schedule| {
        let mut memory = Arena::new();
        let data = bytes(&[1f32; 100], f32::to_le_bytes);
        let [x, y] = [memory.upload(&data), memory.upload(&data)];
        let z = memory.allocate(400);
        let params: [&[u8]; 5] =
            [&x.to_le_bytes(), &y.to_le_bytes(), &z.to_le_bytes(), &2f32.to_le_bytes(), &100u32.to_le_bytes()];
        // `index < count` becomes `index <= count`.
        let changed = text.replacen("setp.ge.u32", "setp.gt.u32", 1).replacen("setp.le.u32", "setp.lt.u32", 1);
        assert_ne!(changed, text);
        let fault = run(&changed, "axpy", (1, 128, 0), &params, schedule, &mut memory).unwrap_err();
        assert_eq!((fault.kind.clone(), fault.thread), (FaultKind::OutOfBounds, [100, 0, 0]), "{fault}");
        assert!(memory.bytes(z, 400).is_some());
    });
}

#[test]
fn tile_multiplies_on_the_matrix_unit() {
    let bf16 = |value: f32| (value.to_bits() >> 16) as u16;
    let a: Vec<f32> = (0..256).map(|index| ((index * 7) % 13) as f32 - 6.0).collect();
    let b: Vec<f32> = (0..128).map(|index| ((index * 5) % 11) as f32 - 5.0).collect();
    let expected: Vec<f32> = (0..16)
        .flat_map(|row| (0..8).map(move |column| (row, column)))
        .map(|(row, column)| (0..16).map(|k| a[16 * row + k] * b[16 * column + k]).sum())
        .collect();
    each(|text, schedule| {
        let mut memory = Arena::new();
        let encode = |values: &[f32]| values.iter().flat_map(|value| bf16(*value).to_le_bytes()).collect::<Vec<u8>>();
        let [from_a, from_b] = [&a, &b].map(|data| memory.upload_read_only(&encode(data)));
        let to = memory.allocate(512);
        let params: [&[u8]; 3] = [&from_a.to_le_bytes(), &from_b.to_le_bytes(), &to.to_le_bytes()];
        let counts = run(text, "tile", (1, 32, 0), &params, schedule, &mut memory).unwrap();
        assert_eq!(floats(&memory.download(to, 512)), expected);
        assert_eq!(counts.matrix_multiply_adds, 16 * 8 * 16);
        let fault = {
            let changed = without(text, "tile", "bar.warp.sync");
            run(&changed, "tile", (1, 32, 0), &params, schedule, &mut memory).unwrap_err()
        };
        assert!([FaultKind::SharedRace, FaultKind::UninitialisedShared].contains(&fault.kind), "{fault}");
    });
}

#[test]
fn calls_local_arrays_constants_and_module_variables() {
    each(|text, schedule| {
        let module = Module::parse(text).unwrap();
        let entry = module.entry("odds").unwrap();
        let mut memory = Arena::new();
        let data: Vec<u32> = (0..40).map(|index| index + 5).collect();
        let from = memory.upload_read_only(&bytes(&data, u32::to_le_bytes));
        let to = memory.upload(&[0; 4 * 66]);
        let packed = entry.pack(&[&from.to_le_bytes(), &to.to_le_bytes(), &40u32.to_le_bytes()]).unwrap();
        let launch = Launch { schedule, ..Launch::new([1, 1, 1], [64, 1, 1], &packed) };
        for round in 1..3 {
            module.run(entry, &launch, &mut memory).unwrap();
            let out = words(&memory.download(to, 4 * 66));
            // in[0] % 8 + 1 = 6 values with weights 1, 10, 100, 1000, 1, 10.
            let weigh = |thread: usize| {
                let weights = [1, 10, 100, 1000, 1, 10];
                (0..6).map(|index| data[(thread + index) % 40] * weights[index]).sum::<u32>()
            };
            let expected: Vec<u32> = (0..64).map(weigh).collect();
            assert_eq!(out[1..65], expected);
            assert_eq!(out[0], *expected.iter().max().unwrap());
            assert_eq!(out[65], 3 + 64 * round, "the module's variable lives on");
        }
    });
}
