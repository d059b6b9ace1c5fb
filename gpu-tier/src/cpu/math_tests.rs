//! The vector forms against the scalar twins, and those against f64.

use super::*;

/// Numbers that break careless code: signed zeros, subnormals, the ends of `exp`'s range, infinities, NaN.
const AWKWARD: [f32; 20] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-40,
    -1e-40,
    f32::MIN_POSITIVE,
    f32::MAX,
    f32::MIN,
    EXP_LOWEST,
    EXP_LOWEST.next_down(),
    EXP_HIGHEST,
    EXP_HIGHEST.next_up(),
    -104.0,
    88.0,
    0.346_573_6,
    -0.346_573_6,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
];

/// A small deterministic generator (xorshift), as any bit pattern or as a number in [-scale, scale].
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }

    fn within(&mut self, scale: f32) -> f32 {
        (f64::from(self.bits()) / f64::from(u32::MAX) * 2.0 - 1.0) as f32 * scale
    }
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// `exp` of a slice on one instruction set; its length is a multiple of 16.
fn exp_all(isa: Isa, x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    match isa {
        Isa::Scalar => out.iter_mut().zip(x).for_each(|(out, x)| *out = exp(*x)),
        Isa::Avx2 => x.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<8>().0).for_each(|(x, out)| {
            // SAFETY: the test loops over `Isa::available`; the arrays hold what is read and written.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), exp_avx2(_mm256_loadu_ps(x.as_ptr()))) }
        }),
        Isa::Avx512 => x.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0).for_each(|(x, out)| {
            // SAFETY: the test loops over `Isa::available`; the arrays hold what is read and written.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), exp_avx512(_mm512_loadu_ps(x.as_ptr()))) }
        }),
    }
    out
}

/// Every 1021st bit pattern of all f32, and every 61st from 2^-24 to 2^7 with both signs.
fn strided_inputs() -> Vec<f32> {
    let mut inputs: Vec<f32> = (0..=u32::MAX).step_by(1021).map(f32::from_bits).collect();
    let span = (2.0f32.powi(-24).to_bits()..2.0f32.powi(7).to_bits()).step_by(61).map(f32::from_bits);
    inputs.extend(span.flat_map(|x| [x, -x]));
    inputs.extend(AWKWARD);
    // The neighbourhood of both ends, where the exponent field is about to leave the normal range.
    for end in [EXP_LOWEST, EXP_HIGHEST] {
        inputs.extend((0..2000).map(|step| f32::from_bits(end.to_bits() - 1000 + step)));
    }
    inputs.resize(inputs.len().next_multiple_of(16), 0.5);
    inputs
}

#[test]
fn exp_has_the_same_bits_everywhere() {
    let inputs = strided_inputs();
    let twin = exp_all(Isa::Scalar, &inputs);
    for isa in Isa::available() {
        for ((x, a), b) in inputs.iter().zip(exp_all(isa, &inputs)).zip(&twin) {
            assert!(same(a, *b), "{}: exp({x:e}) = {a:e}, scalar {b:e}", isa.name());
        }
    }
}

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    let mut worst = 0.0f64;
    for x in strided_inputs() {
        let y = exp(x);
        if x.is_nan() {
            assert!(y.is_nan());
        } else if x < EXP_LOWEST {
            assert_eq!(y.to_bits(), 0, "exp({x:e})");
        } else if x > EXP_HIGHEST {
            assert_eq!(y, f32::INFINITY, "exp({x:e})");
        } else {
            assert!(y.is_normal(), "exp({x:e}) = {y:e}");
            let unit = f64::from(f32::from_bits(y.to_bits() & 0x7f80_0000)) * f64::from(f32::EPSILON);
            let error = (f64::from(y) - f64::from(x).exp()).abs() / unit;
            worst = worst.max(error);
            assert!(error < 2.0, "exp({x:e}) = {y:e}, {error} units off");
        }
    }
    println!("exp: at most {worst:.3} units in the last place");
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(exp(f32::NEG_INFINITY), 0.0);
}

/// Lengths around the lane counts.
const LENGTHS: [usize; 12] = [1, 7, 8, 9, 15, 16, 17, 31, 33, 576, 577, 1536];

/// Numbers of `scale`, then rows with awkward ones in them.
fn rows(len: usize, random: &mut Random) -> Vec<Vec<f32>> {
    let mut rows: Vec<Vec<f32>> =
        [1.0, 1e-3, 100.0, 1e18].iter().map(|scale| (0..len).map(|_| random.within(*scale)).collect()).collect();
    rows.push(vec![0.0; len]);
    rows.push((0..len).map(|_| f32::from_bits(random.bits())).collect());
    rows.extend(AWKWARD.map(|value| {
        let mut row: Vec<f32> = (0..len).map(|_| random.within(2.0)).collect();
        row[random.bits() as usize % len] = value;
        row
    }));
    rows
}

#[test]
fn norm_and_gate_have_the_same_bits_everywhere() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for len in LENGTHS {
        let weight: Vec<f32> = (0..len).map(|_| random.within(3.0)).collect();
        for x in rows(len, &mut random) {
            let results = Isa::available().into_iter().map(|isa| {
                let mut norm = vec![0.0; len];
                rms_norm(isa, &x, &weight, 1e-5, &mut norm);
                let mut gate = x.clone();
                silu_multiply(isa, &mut gate, &weight);
                norm.push(sum_squares(isa, &x));
                norm.append(&mut gate);
                (isa, norm)
            });
            let results: Vec<_> = results.collect();
            for (isa, result) in &results[1..] {
                for (i, (a, b)) in result.iter().zip(&results[0].1).enumerate() {
                    assert!(same(*a, *b), "{}: length {len}, value {i}: {a:e}, scalar {b:e}", isa.name());
                }
            }
        }
    }
}

#[test]
fn norm_and_gate_are_near_f64() {
    let mut random = Random(77);
    for len in LENGTHS {
        let x: Vec<f32> = (0..len).map(|_| random.within(4.0)).collect();
        let weight: Vec<f32> = (0..len).map(|_| random.within(2.0)).collect();
        let mut norm = vec![0.0; len];
        rms_norm(Isa::detect(), &x, &weight, 1e-5, &mut norm);
        let mut gate = x.clone();
        silu_multiply(Isa::detect(), &mut gate, &weight);
        let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / len as f64;
        for i in 0..len {
            let (x, weight) = (f64::from(x[i]), f64::from(weight[i]));
            let expected = x / (mean + 1e-5).sqrt() * weight;
            assert!((f64::from(norm[i]) - expected).abs() <= 1e-6 * (1.0 + expected.abs()), "norm {i} of {len}");
            let expected = x / (1.0 + (-x).exp()) * weight;
            assert!((f64::from(gate[i]) - expected).abs() <= 1e-6 * (1.0 + expected.abs()), "gate {i} of {len}");
        }
    }
}
