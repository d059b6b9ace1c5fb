//! Matrices that lie across the lanes of a warp (PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions").

use super::super::Machine;
use super::super::access::{Target, addresses, count_shared, resolve};
use super::super::block::Block;
use super::super::shared::Touch;
use super::super::warp::Warp;
use super::set;
use crate::decode::signed;
use crate::fault::{FaultKind, Wrong};
use crate::instruction::{Accumulator, Element, LANES, Multiply, Place, Plane};
use crate::number::{F16, F32, Round, TF32};

/// Rows of an 8 x 8 matrix of 16 bits each, and bytes of one.
const ROWS: usize = 8;
const ROW_BYTES: usize = 16;

/// Sources are read by lanes in their places, so all of them must take part.
fn whole(group: u32) -> Result<(), Wrong> {
    if group == !0 {
        return Ok(());
    }
    let missing = (!group).trailing_zeros();
    Err(Wrong::new(FaultKind::WarpDivergence, missing, "a matrix instruction needs all 32 lanes"))
}

/// Row and column of the first of two elements that a lane holds of an 8 x 8 matrix.
fn place_of(lane: usize) -> (usize, usize) {
    (lane / 4, lane % 4 * 2)
}

impl Machine<'_> {
    pub(super) fn load_matrix(
        &mut self,
        block: &mut Block,
        number: usize,
        targets: &[u32],
        transposed: bool,
        place: &Place,
        group: u32,
    ) -> Result<(), Wrong> {
        whole(group)?;
        let all = addresses(&block.warps[number], place);
        for (index, target) in targets.iter().enumerate() {
            let rows = self.rows(block, number, &all, index, place)?;
            let mut matrix = [[0u16; ROWS]; ROWS];
            for (row, start) in rows.into_iter().enumerate() {
                let thread = block.warps[number].thread(ROWS * index + row);
                block.shared.touch(&block.order, Touch::Read, start, ROW_BYTES, thread, &[])?;
                for (column, value) in matrix[row].iter_mut().enumerate() {
                    let at = start as usize + 2 * column;
                    *value = u16::from_le_bytes([block.shared.data[at], block.shared.data[at + 1]]);
                }
            }
            let result = std::array::from_fn(|lane| {
                let (row, column) = place_of(lane);
                let at = |column: usize| if transposed { matrix[column][row] } else { matrix[row][column] };
                u64::from(at(column)) | u64::from(at(column + 1)) << 16
            });
            set(&mut block.warps[number], *target, &result, group);
        }
        Ok(())
    }

    pub(super) fn store_matrix(
        &mut self,
        block: &mut Block,
        number: usize,
        sources: &[u32],
        transposed: bool,
        place: &Place,
        group: u32,
    ) -> Result<(), Wrong> {
        whole(group)?;
        let all = addresses(&block.warps[number], place);
        for (index, source) in sources.iter().enumerate() {
            let rows = self.rows(block, number, &all, index, place)?;
            let values = block.warps[number].registers[*source as usize];
            let mut matrix = [[0u16; ROWS]; ROWS];
            for (lane, value) in values.into_iter().enumerate() {
                let (row, column) = place_of(lane);
                for (step, part) in [value as u16, (value >> 16) as u16].into_iter().enumerate() {
                    let (row, column) = if transposed { (column + step, row) } else { (row, column + step) };
                    matrix[row][column] = part;
                }
            }
            for (row, start) in rows.into_iter().enumerate() {
                let thread = block.warps[number].thread(ROWS * index + row);
                let bytes: Vec<u8> = matrix[row].into_iter().flat_map(u16::to_le_bytes).collect();
                let at = block.shared.touch(&block.order, Touch::Write, start, ROW_BYTES, thread, &bytes)?;
                block.shared.data[at..at + ROW_BYTES].copy_from_slice(&bytes);
            }
        }
        Ok(())
    }

    /// Addresses of the eight rows of matrix `index`: lanes 8 index to 8 index + 7 name them.
    fn rows(
        &mut self,
        block: &Block,
        number: usize,
        all: &Plane,
        index: usize,
        place: &Place,
    ) -> Result<[u64; ROWS], Wrong> {
        let mut rows = [0; ROWS];
        let mut padded = [0; LANES];
        for (row, found) in rows.iter_mut().enumerate() {
            let lane = ROWS * index + row;
            let (target, address) = resolve(place.space, all[lane]);
            let wrong = |kind| Err(Wrong::new(kind, lane as u32, format!("row of a matrix at {address:#x}")));
            if target != Target::Shared || address as usize + ROW_BYTES > block.shared.data.len() {
                return wrong(FaultKind::OutOfBounds);
            }
            if !address.is_multiple_of(ROW_BYTES as u64) {
                return wrong(FaultKind::Misaligned);
            }
            (*found, padded[row]) = (address, address);
        }
        debug_assert!(number < block.warps.len());
        count_shared(&mut self.counts, &padded, (1 << ROWS) - 1, ROW_BYTES);
        Ok(rows)
    }
}

/// `movmatrix`: the transposed 8 x 8 matrix.
pub(super) fn transpose(warp: &mut Warp, target: u32, source: u32, group: u32) -> Result<(), Wrong> {
    whole(group)?;
    let values = warp.registers[source as usize];
    let at = |row: usize, column: usize| values[4 * row + column / 2] >> (16 * (column % 2)) & 0xFFFF;
    let result = std::array::from_fn(|lane| {
        let (row, column) = place_of(lane);
        at(column, row) | at(column + 1, row) << 16
    });
    set(warp, target, &result, group);
    Ok(())
}

/// Element `index` of a register, as a number. Products of these are exact in f64.
fn value(element: Element, register: u64, index: usize) -> f64 {
    match element {
        // The low 13 bits of a tf32's register are not looked at.
        Element::Float(TF32) => F32.decode(register & 0xFFFF_E000),
        Element::Float(format) => format.decode(register >> (16 * index) & 0xFFFF),
        Element::Signed8 => signed(register >> (8 * index) & 0xFF, 8) as f64,
        Element::Unsigned8 => (register >> (8 * index) & 0xFF) as f64,
    }
}

fn per_register(element: Element) -> usize {
    match element {
        Element::Float(TF32) => 1,
        Element::Float(_) => 2,
        Element::Signed8 | Element::Unsigned8 => 4,
    }
}

/// D = A B + C for A of 16 x K and B of K x 8. Products are exact; their sum is made in f64 and rounded to the accumulator once.
/// (The hardware's order and width of additions are not specified.)
pub(super) fn multiply(warp: &mut Warp, multiply: &Multiply, group: u32) -> Result<(), Wrong> {
    whole(group)?;
    let packed = per_register(multiply.a);
    let read = |register: &u32, lane: usize| warp.registers[*register as usize][lane];
    let mut a = vec![[0.0; 32]; 16];
    let mut b = vec![[0.0; 32]; 8];
    for lane in 0..LANES {
        let (outer, inner) = (lane / 4, lane % 4 * packed);
        for index in 0..packed {
            // Registers of A alternate between the upper and the lower rows, those of B go along K.
            for (number, register) in multiply.a_registers.iter().enumerate() {
                let (row, column) = (outer + 8 * (number % 2), inner + index + number / 2 * 4 * packed);
                a[row][column] = value(multiply.a, read(register, lane), index);
            }
            for (number, register) in multiply.b_registers.iter().enumerate() {
                b[outer][inner + index + number * 4 * packed] = value(multiply.b, read(register, lane), index);
            }
        }
    }
    let dot = |row: usize, column: usize| -> f64 {
        a[row][..multiply.k].iter().zip(&b[column][..multiply.k]).map(|(a, b)| a * b).sum()
    };
    let mut results = vec![[0u64; LANES]; multiply.targets.len()];
    for (number, result) in results.iter_mut().enumerate() {
        for (lane, place) in result.iter_mut().enumerate() {
            let c = read(&multiply.c_registers[number], lane);
            let column = lane % 4 * 2;
            *place = match multiply.accumulator {
                Accumulator::Float16 => {
                    // A register holds two neighbours of a row.
                    let row = lane / 4 + 8 * number;
                    let half = |index: usize| {
                        let sum = dot(row, column + index) + F16.decode(c >> (16 * index) & 0xFFFF);
                        F16.encode(sum, Round::Even)
                    };
                    half(0) | half(1) << 16
                }
                accumulator => {
                    let sum = dot(lane / 4 + 8 * (number / 2), column + number % 2);
                    accumulate(accumulator, sum, c)
                }
            };
        }
    }
    for (target, result) in multiply.targets.iter().zip(&results) {
        set(warp, *target, result, group);
    }
    Ok(())
}

fn accumulate(accumulator: Accumulator, sum: f64, c: u64) -> u64 {
    match accumulator {
        Accumulator::Signed32 { saturate } => {
            let exact = sum as i64 + signed(c, 32);
            let kept = if saturate { exact.clamp(i32::MIN.into(), i32::MAX.into()) } else { exact };
            kept as u64 & 0xFFFF_FFFF
        }
        _ => F32.encode(crate::number::sum(sum, F32.decode(c)), Round::Even),
    }
}
