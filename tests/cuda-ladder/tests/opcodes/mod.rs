//! Every opcode that has a case computed from the PTX ISA manual.

use std::collections::BTreeSet;

mod bits;
mod compare;
mod convert;
mod float;
mod half;
mod integer;
pub mod memory;
mod moves;

/// An opcode, what follows its operands, the kinds of its operands (target first), and cases: inputs and result.
///
/// Kinds: `h`, `r`, `d` are registers of 16, 32 and 64 bits, `p` is a predicate.
pub struct Row {
    pub opcode: &'static str,
    pub suffix: &'static str,
    pub kinds: &'static str,
    pub cases: &'static [(&'static [u64], u64)],
}

const fn row(opcode: &'static str, kinds: &'static str, cases: &'static [(&'static [u64], u64)]) -> Row {
    Row { opcode, suffix: "", kinds, cases }
}

pub fn rows() -> Vec<&'static Row> {
    [bits::ROWS, compare::ROWS, convert::ROWS, float::ROWS, half::ROWS, integer::ROWS, moves::ROWS]
        .into_iter()
        .flatten()
        .collect()
}

/// Opcodes of control flow and of several threads, and the tests of `warp.rs` and `matrix.rs` whose cases they are.
pub const ELSEWHERE: &[(&str, &str)] = &[
    ("bar.sync", "barriers_order_count_and_diverge"),
    ("bra", "branches_tables_and_carries"),
    ("bra.uni", "branches_tables_and_carries"),
    ("cp.async.cg.shared.global", "wide_copies_move_16_bytes"),
    ("cp.async.commit_group", "copies_are_carried_out_group_by_group"),
    ("cp.async.wait_group", "copies_are_carried_out_group_by_group"),
    ("ldmatrix.sync.aligned.m8n8.x4.shared.b16", "four_matrices_are_loaded_plain_and_transposed"),
    ("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", "four_matrices_are_loaded_plain_and_transposed"),
    ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "products_are_those_of_the_figures"),
    ("ret", "a_thread_that_returns_does_nothing_more"),
    ("shfl.sync.bfly.b32", "shuffles_stay_inside_their_segments"),
    ("shfl.sync.up.b32", "shuffles_stay_inside_their_segments"),
];

/// All of them, as they are spelled in PTX.
pub fn opcodes() -> BTreeSet<&'static str> {
    let accesses = memory::LOADS.iter().map(|load| load.opcode).chain(memory::STORES.iter().map(|store| store.opcode));
    let atomics = memory::ATOMICS.iter().map(|atomic| atomic.opcode);
    let elsewhere = ELSEWHERE.iter().map(|(opcode, _)| *opcode);
    rows().into_iter().map(|row| row.opcode).chain(accesses).chain(atomics).chain(elsewhere).collect()
}
