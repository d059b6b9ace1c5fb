//! The kernels against their scalar twin, bit for bit, and against f64.

use half::f16;

use super::*;
use crate::gguf::dequant::dequantize_row;

/// A small deterministic generator (xorshift).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    /// In [-1, 1).
    fn unit(&mut self) -> f32 {
        (self.bits() & 0xff_ffff) as f32 / 8_388_608.0 - 1.0
    }
}

/// Stored rows with random codes and scales of the size found in models.
fn stored(kind: TensorType, rows: usize, cols: usize, random: &mut Random) -> Vec<u8> {
    let blocks = rows * cols / kind.block_elements();
    let mut bytes: Vec<u8> = (0..blocks * kind.block_bytes()).map(|_| random.bits() as u8).collect();
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        let scale = f16::from_f32(random.unit() * 0.02).to_le_bytes();
        let second = f16::from_f32(random.unit() * 0.1).to_le_bytes();
        match kind {
            TensorType::F32 => block.copy_from_slice(&random.unit().to_le_bytes()),
            TensorType::F16 => block.copy_from_slice(&f16::from_f32(random.unit()).to_le_bytes()),
            TensorType::Bf16 => block.copy_from_slice(&half::bf16::from_f32(random.unit()).to_le_bytes()),
            TensorType::Q4_1 | TensorType::Q4K => {
                block[..2].copy_from_slice(&scale);
                block[2..4].copy_from_slice(&second);
            }
            TensorType::Q6K => block[208..].copy_from_slice(&scale),
            TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 => block[..2].copy_from_slice(&scale),
        }
    }
    bytes
}

fn activations(m: usize, k: usize, random: &mut Random) -> Vec<f32> {
    let mut x: Vec<f32> = (0..m * k).map(|_| random.unit() * 3.0).collect();
    // An outlier and a run of zeros in each row.
    for row in x.chunks_exact_mut(k) {
        row[random.bits() as usize % k] = 180.0;
        let end = k.min(32);
        row[..end].fill(0.0);
    }
    x
}

/// 8-bit activations have the bits of the definition, whatever the instruction set, and are coarser.
#[test]
fn eight_bit_activations_are_the_same_on_every_set_and_coarser() {
    let workers = Workers::new(1);
    let mut random = Random(0x1234_5678_9abc_def1);
    let (rows, cols, m) = (40, 256, 5);
    let matrix = Matrix::from_rows(TensorType::Q8_0, rows, cols, &stored(TensorType::Q8_0, rows, cols, &mut random));
    let matrix = matrix.unwrap();
    let x = activations(m, cols, &mut random);
    let out = |isa, width| {
        let mut quantised = Activations::new().with_width(width);
        quantised.set(isa, &workers, &x, m, cols);
        let mut out = vec![f32::NAN; m * rows];
        matrix.multiply(isa, &workers, &quantised, &mut out);
        out
    };
    // An element is off by at most half a step of its 32 columns; 1/127 against 1/32767 of the largest.
    let rounded: Vec<f32> = x
        .chunks(32)
        .flat_map(|block| {
            let scale = block.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
            block.iter().map(move |x| if scale.is_normal() { (x / scale).round_ties_even() * scale } else { 0.0 })
        })
        .collect();
    let mut sixteen = Activations::new();
    sixteen.set(Isa::Scalar, &workers, &rounded, m, cols);
    let mut expected = vec![f32::NAN; m * rows];
    matrix.multiply(Isa::Scalar, &workers, &sixteen, &mut expected);
    let eight = out(Isa::Scalar, Width::Int8);
    let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    for (eight, expected) in eight.iter().zip(&expected) {
        assert!((eight - expected).abs() <= 1e-3 * largest, "{eight}, {expected}");
    }
    for isa in Isa::available() {
        assert_eq!(out(isa, Width::Int8), eight, "{}", isa.name());
        assert_ne!(out(isa, Width::Int16), eight, "{}", isa.name());
    }
}

fn product(isa: Isa, workers: &Workers, matrix: &Matrix, x: &[f32]) -> Vec<u32> {
    let m = x.len() / matrix.cols();
    let quantised = Activations::quantize(isa, workers, x, m, matrix.cols());
    let mut out = vec![f32::NAN; m * matrix.rows()];
    matrix.multiply(isa, workers, &quantised, &mut out);
    out.into_iter().map(f32::to_bits).collect()
}

#[test]
fn every_kernel_has_the_scalar_bits() {
    let teams = [Workers::new(1), Workers::new(2)];
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for kind in TensorType::ALL {
        for (rows, cols) in [(16, 256), (40, 512), (5, 768), (129, 256)] {
            let matrix = Matrix::from_rows(kind, rows, cols, &stored(kind, rows, cols, &mut random)).unwrap();
            for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 33] {
                let x = activations(m, cols, &mut random);
                let twin = product(Isa::Scalar, &teams[0], &matrix, &x);
                for isa in Isa::available() {
                    for team in &teams {
                        let found = product(isa, team, &matrix, &x);
                        assert!(found == twin, "{kind} {rows}x{cols}, m {m}, {}, {} workers", isa.name(), team.count());
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    let workers = Workers::new(2);
    let mut random = Random(99);
    for kind in TensorType::ALL {
        let (rows, cols) = (72, 512);
        let matrix = Matrix::from_rows(kind, rows, cols, &stored(kind, rows, cols, &mut random)).unwrap();
        let x = activations(130, cols, &mut random);
        for isa in Isa::available() {
            let all = product(isa, &workers, &matrix, &x);
            for (row, x) in x.chunks_exact(cols).enumerate() {
                let alone = product(isa, &workers, &matrix, x);
                assert!(alone == all[row * rows..][..rows], "{kind}, row {row}, {}", isa.name());
            }
        }
    }
}

#[test]
fn several_products_at_once_have_the_bits_of_each() {
    let workers = Workers::new(3);
    let mut random = Random(7);
    let matrices = [(TensorType::Q4_1, 100), (TensorType::Q8_0, 16), (TensorType::F16, 33)]
        .map(|(kind, rows)| Matrix::from_rows(kind, rows, 256, &stored(kind, rows, 256, &mut random)).unwrap());
    for m in [1, 70] {
        let x = activations(m, 256, &mut random);
        let quantised = Activations::quantize(Isa::detect(), &workers, &x, m, 256);
        let mut outs = matrices.each_ref().map(|matrix| vec![f32::NAN; m * matrix.rows()]);
        let mut products: Vec<(&Matrix, &mut [f32])> =
            matrices.iter().zip(&mut outs).map(|(matrix, out)| (matrix, out.as_mut_slice())).collect();
        multiply_many(Isa::detect(), &workers, &quantised, &mut products);
        for (matrix, out) in matrices.iter().zip(&outs) {
            let bits: Vec<u32> = out.iter().map(|value| value.to_bits()).collect();
            assert!(bits == product(Isa::detect(), &workers, matrix, &x));
        }
    }
}

/// Largest difference to the f64 product of the dequantised weights, over the sum of the magnitudes of its terms.
fn worst_error(kind: TensorType, rows: usize, cols: usize, results: &[f32], bytes: &[u8], x: &[f32]) -> f64 {
    let mut weights = vec![0.0; cols];
    let row_bytes = bytes.len() / rows;
    let mut worst = 0.0f64;
    for row in 0..rows {
        dequantize_row(kind, &bytes[row * row_bytes..][..row_bytes], &mut weights);
        for (index, x) in x.chunks_exact(cols).enumerate() {
            let terms = weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            worst = worst.max((f64::from(results[index * rows + row]) - sum).abs() / size);
        }
    }
    worst
}

/// 16-bit codes are off by at most 1/65534 of the block's largest magnitude; f32 sums of 512 terms by less than that.
#[test]
fn results_are_near_f64() {
    let workers = Workers::new(2);
    let mut random = Random(5);
    for kind in TensorType::ALL {
        let (rows, cols, m) = (37, 512, 5);
        let bytes = stored(kind, rows, cols, &mut random);
        let x: Vec<f32> = (0..m * cols).map(|_| random.unit()).collect();
        let matrix = Matrix::from_rows(kind, rows, cols, &bytes).unwrap();
        let results: Vec<f32> = product(Isa::detect(), &workers, &matrix, &x).into_iter().map(f32::from_bits).collect();
        let shipped = worst_error(kind, rows, cols, &results, &bytes, &x);
        let mut results = vec![0.0; m * rows];
        ReferenceMatrix::new(kind, rows, cols, bytes.as_slice()).unwrap().multiply(&workers, &x, m, &mut results);
        let reference = worst_error(kind, rows, cols, &results, &bytes, &x);
        println!("{kind}: shipped {shipped:.2e}, reference {reference:.2e}");
        assert!(shipped < 1e-5, "{kind}: {shipped:e}");
        assert!(reference < 1e-6, "{kind}: {reference:e}");
    }
}

#[test]
fn reference_bits_do_not_depend_on_rows_or_team() {
    let mut random = Random(11);
    let bytes = stored(TensorType::Q4_0, 53, 96, &mut random);
    let matrix = ReferenceMatrix::new(TensorType::Q4_0, 53, 96, bytes).unwrap();
    let x = activations(9, 96, &mut random);
    let mut all = vec![0.0; 9 * 53];
    matrix.multiply(&Workers::new(1), &x, 9, &mut all);
    for (x, row) in x.chunks_exact(96).zip(all.chunks_exact(53)) {
        let mut alone = vec![0.0; 53];
        matrix.multiply(&Workers::new(3), x, 1, &mut alone);
        assert_eq!(alone, row);
    }
}

#[test]
fn awkward_activations_stay_in_their_row() {
    let workers = Workers::new(2);
    let mut random = Random(21);
    for kind in TensorType::ALL {
        let matrix = Matrix::from_rows(kind, 20, 256, &stored(kind, 20, 256, &mut random)).unwrap();
        let clean = activations(6, 256, &mut random);
        let mut x = clean.clone();
        for (row, value) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30].into_iter().enumerate() {
            x[row * 256 + 40 + row] = value;
        }
        x[4 * 256..5 * 256].fill(1e-42);
        for isa in Isa::available() {
            let found: Vec<f32> = product(isa, &workers, &matrix, &x).into_iter().map(f32::from_bits).collect();
            assert!(found[..3 * 20].iter().all(|value| !value.is_finite()), "{kind}: {:?}", &found[..60]);
            assert!(found[3 * 20..4 * 20].iter().all(|value| !value.is_nan()), "{kind}");
            assert!(found[4 * 20..5 * 20].iter().all(|value| value.abs() < 1e-37), "{kind}");
            let last: Vec<u32> = found[5 * 20..].iter().map(|value| value.to_bits()).collect();
            assert!(last == product(isa, &workers, &matrix, &clean)[5 * 20..], "{kind}: a clean row changed");
        }
    }
}

#[test]
fn codes_survive_packing() {
    let mut random = Random(3);
    for kind in TensorType::ALL {
        let Some(format) = Format::of(kind) else { continue };
        let bytes = stored(kind, 18, 256, &mut random);
        let packed = pack::pack(kind, format, 18, 256, &bytes);
        let panel_bytes = 256 / BLOCK * format.record_bytes();
        let zero = format.zero_shift().map_or(0, |shift| 1 << shift);
        let mut expected = vec![0.0; 256];
        for row in 0..18 {
            dequantize_row(kind, &bytes[row * bytes.len() / 18..][..bytes.len() / 18], &mut expected);
            let panel = &packed.as_slice()[row / LANES * panel_bytes..][..panel_bytes];
            for (block, record) in panel.chunks_exact(format.record_bytes()).enumerate() {
                let weights = pack::take(format, record, row % LANES);
                for k in 0..BLOCK {
                    let value = (i32::from(weights.codes[k]) - zero) as f32 * weights.scale[k / 16] + weights.minimum;
                    assert_eq!(value, expected[block * BLOCK + k], "{kind}: row {row}, column {}", block * BLOCK + k);
                }
            }
        }
    }
}

#[test]
fn embedding_rows_are_the_stored_rows() {
    let mut random = Random(31);
    let bytes = stored(TensorType::Q8_0, 7, 64, &mut random);
    let mut expected = vec![0.0; 7 * 64];
    dequantize_row(TensorType::Q8_0, &bytes, &mut expected);
    let table = EmbeddingTable::new(TensorType::Q8_0, 7, 64, bytes).unwrap();
    for index in [6, 0, 3] {
        let mut row = vec![0.0; 64];
        table.row(index, &mut row);
        assert_eq!(row, expected[index * 64..][..64]);
    }
}

#[test]
fn misfits_are_errors() {
    let columns = Matrix::from_rows(TensorType::Q4K, 1, 128, &[0; 72]).err();
    assert_eq!(columns, Some(MatrixError::Columns { kind: TensorType::Q4K, cols: 128, multiple: 256 }));
    let bytes = Matrix::from_rows(TensorType::Q8_0, 2, 32, &[0; 67]).err();
    let expected = MatrixError::Bytes { kind: TensorType::Q8_0, rows: 2, cols: 32, found: 67, expected: 68 };
    assert_eq!(bytes, Some(expected));
    assert!(Matrix::from_rows(TensorType::F32, usize::MAX, 64, &[]).is_err());
    assert!(Matrix::from_rows(TensorType::Q4_1, 3, 0, &[]).is_err());
    assert!(EmbeddingTable::new(TensorType::F16, 3, 3, vec![0; 17]).is_err());
    assert!(ReferenceMatrix::new(TensorType::F16, 3, 3, vec![0; 19]).is_err());
}
