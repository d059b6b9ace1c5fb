//! Moves of whole registers, and addresses between spaces (PTX ISA, "Data Movement and Conversion Instructions"). A move of a float keeps
//! every bit, those of a signalling NaN and of a subnormal too.

use super::{Row, row};

const WORDS: &[(&[u64], u64)] = &[
    (&[0x1234_5678], 0x1234_5678),
    (&[0xFFFF_FFFF], 0xFFFF_FFFF),
    (&[0x7F80_0001], 0x7F80_0001),
    (&[0x8000_0001], 0x8000_0001),
];
const HALVES: &[(&[u64], u64)] = &[(&[0x1234], 0x1234), (&[0xFFFF], 0xFFFF), (&[0x7C01], 0x7C01), (&[0x8001], 0x8001)];
const LONG: &[(&[u64], u64)] = &[
    (&[0x0123_4567_89AB_CDEF], 0x0123_4567_89AB_CDEF),
    (&[u64::MAX], u64::MAX),
    (&[0x7FF0_0000_0000_0001], 0x7FF0_0000_0000_0001),
    (&[0x8000_0000_0000_0001], 0x8000_0000_0000_0001),
];

pub const ROWS: &[Row] = &[
    row("mov.b16", "hh", HALVES),
    row("mov.u16", "hh", HALVES),
    row("mov.b32", "rr", WORDS),
    row("mov.u32", "rr", WORDS),
    row("mov.f32", "rr", WORDS),
    row("mov.b64", "dd", LONG),
    row("mov.u64", "dd", LONG),
    // A generic address inside global memory is the address there.
    row(
        "cvta.to.global.u64",
        "dd",
        &[(&[0x7F12_3456_7890], 0x7F12_3456_7890), (&[0], 0), (&[1 << 63 | 8], 1 << 63 | 8)],
    ),
];
