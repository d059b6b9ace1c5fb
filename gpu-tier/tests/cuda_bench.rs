//! `cuda::bench` over the driver double: what is measured, and that its bytes are those which the kernels move. Times are the double's and
//! mean nothing.

#[path = "cuda_double/double.rs"]
#[expect(dead_code, reason = "tests of the double use the rest")]
mod double;

use double::Double;
use gpu_tier::DeviceError;
use gpu_tier::cuda::bench::{CudaBench, TOKENS_MAX, measure};

const BENCH: CudaBench = CudaBench { ordinal: 0, tokens: 128, rounds: 1 };
/// Each work, and the kernels that do it.
const WORK: [(&str, &str); 10] = [
    ("i8h encode", "kvtier_i8h_encode"),
    ("i8h decode", "kvtier_i8h_decode"),
    ("kc4vt4 encode", "kvtier_kc4vt4_encode"),
    ("kc4vt4 decode", "kvtier_kc4vt4_decode"),
    ("sx12 encode", "kvtier_sx12_e"),
    ("sx12 decode", "kvtier_sx12_decode"),
    ("xxh3", "kvtier_xxh3"),
    ("attend exact", "kvtier_attend"),
    ("attend i8h", "kvtier_attend"),
    ("attend kc4vt4", "kvtier_attend"),
];

#[test]
fn every_kernel_is_measured_by_the_bytes_that_it_moves() {
    let double = Double::take();
    let report = measure(BENCH).unwrap();
    assert!(!double.has_counts() || report.device == "driver double");
    let names: Vec<&str> = report.figures.iter().map(|figures| figures.work.as_str()).collect();
    assert_eq!(names, WORK.map(|(work, _)| work));
    for (figures, (_, kernels)) in report.figures.iter().zip(WORK) {
        let copy = figures.bytes as f64 / report.copy_bytes_per_second;
        let matrix = figures.operations as f64 / report.matrix_operations_per_second;
        assert_eq!(figures.floor_seconds, copy.max(matrix), "{figures:?}");
        let (least, most) = figures.seconds_range;
        assert!(least > 0.0 && (least..=most).contains(&figures.seconds), "{figures:?}");
        // 32 heads of 128 channels over 128 positions: a product and a sum for each score, and for each weighted value.
        let operations = if figures.work.starts_with("attend") { 4 * 32 * 128 * 128 } else { 0 };
        assert_eq!(figures.operations, operations, "{figures:?}");
        if operations == 0 && double.has_counts() {
            // One launch that is not counted, one that is; closing blocks for attention encodes once more, in parts of other sizes.
            let moved = 32 * double.kernel_counts(kernels).global_sectors;
            let launches = if kernels.ends_with("_encode") && !kernels.contains("sx12") { 2.5 } else { 2.0 };
            let ratio = moved as f64 / (launches * figures.bytes as f64);
            assert!((1.0..1.05).contains(&ratio), "{ratio}, {figures:?}");
        }
    }
    if double.has_counts() {
        // Two launches: 2 blocks of 8 warps on each of 4 multiprocessors, 16 rounds of 8 tiles of 16 by 8 by 16.
        let rate = double.kernel_counts("kvtier_rate");
        assert_eq!((rate.launches, rate.matrix_multiply_adds), (2, 2 * 8 * 8 * 16 * 8 * 16 * 8 * 16));
    }
    double.assert_nothing_left();
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let Some(double) = Double::take_hooks() else { return };
    for (tokens, rounds) in [(0, 1), (100, 1), (64, 0), (TOKENS_MAX + 64, 1)] {
        let refused = measure(CudaBench { tokens, rounds, ..BENCH }).unwrap_err();
        assert!(matches!(refused, DeviceError::Shape { what: "bench", .. }), "{refused}");
    }
    double.set_capacity(1 << 20);
    let refused = measure(CudaBench { tokens: TOKENS_MAX, ..BENCH }).unwrap_err();
    assert!(matches!(refused, DeviceError::Driver { .. } | DeviceError::Full { .. }), "{refused}");
    let refused = measure(CudaBench { ordinal: 7, ..BENCH }).unwrap_err();
    assert!(matches!(refused, DeviceError::Unavailable { .. }), "{refused}");
    double.assert_nothing_left();
}
