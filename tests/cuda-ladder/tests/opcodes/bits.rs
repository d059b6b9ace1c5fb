//! Logic, shifts, bit fields and bytes (PTX ISA, "Logic and Shift Instructions", "Integer Arithmetic Instructions", `prmt`).

use super::{Row, row};

const ALL: u64 = 0xFFFF_FFFF;

pub const ROWS: &[Row] = &[
    row("and.b32", "rrr", &[(&[0xF0F0_F0F0, 0xFF00_FF00], 0xF000_F000)]),
    row("or.b32", "rrr", &[(&[0xF0F0_F0F0, 0xFF00_FF00], 0xFFF0_FFF0)]),
    row("xor.b32", "rrr", &[(&[0xF0F0_F0F0, 0xFF00_FF00], 0x0FF0_0FF0)]),
    row("and.b64", "ddd", &[(&[u64::MAX, 0xFF00_0000_0000_0001], 0xFF00_0000_0000_0001), (&[2, 1], 0)]),
    row("or.b64", "ddd", &[(&[1 << 63, 1], 1 << 63 | 1), (&[3, 1], 3)]),
    row("xor.b64", "ddd", &[(&[1, 2], 3), (&[u64::MAX, 1], u64::MAX - 1), (&[3, 3], 0)]),
    row("and.b16", "hhh", &[(&[0xFF0F, 0x0FF0], 0x0F00)]),
    row("xor.b16", "hhh", &[(&[0xFF0F, 0x0FF0], 0xF0FF)]),
    row("not.b32", "rr", &[(&[0], ALL), (&[0x1234_5678], 0xEDCB_A987)]),
    row("not.b64", "dd", &[(&[0], u64::MAX), (&[1 << 63], u64::MAX >> 1)]),
    row("not.b16", "hh", &[(&[0x00FF], 0xFF00)]),
    row("cnot.b32", "rr", &[(&[0], 1), (&[7], 0), (&[1], 0)]),
    // Amounts beyond the width are clamped, not wrapped.
    row("shl.b32", "rrr", &[(&[1, 31], 0x8000_0000), (&[1, 32], 0), (&[1, 33], 0), (&[3, 1], 6), (&[1, ALL], 0)]),
    row(
        "shr.u32",
        "rrr",
        &[(&[0x8000_0000, 31], 1), (&[ALL, 32], 0), (&[ALL, 40], 0), (&[0x8000_0000, 4], 0x0800_0000)],
    ),
    row(
        "shr.s32",
        "rrr",
        &[
            (&[0x8000_0000, 31], ALL),
            (&[0x8000_0000, 40], ALL),
            (&[0x4000_0000, 40], 0),
            (&[0xFFFF_FFF0, 2], 0xFFFF_FFFC),
        ],
    ),
    row("shl.b64", "ddr", &[(&[1, 63], 1 << 63), (&[1, 64], 0), (&[5, 2], 20)]),
    row("shr.u64", "ddr", &[(&[1 << 63, 63], 1), (&[u64::MAX, 64], 0), (&[1 << 63, 1], 1 << 62)]),
    row("shr.s64", "ddr", &[(&[1 << 63, 63], u64::MAX), (&[1 << 63, 200], u64::MAX), (&[20, 2], 5)]),
    row("shl.b16", "hhr", &[(&[0x8001, 1], 2), (&[1, 16], 0)]),
    row("shr.s16", "hhr", &[(&[0x8000, 15], 0xFFFF), (&[0x8000, 20], 0xFFFF)]),
    row("shr.u16", "hhr", &[(&[0x8000, 15], 1), (&[0x8000, 20], 0)]),
    // d = high 32 bits of b:a << c; low 32 bits of b:a >> c.
    row("shf.l.wrap.b32", "rrrr", &[(&[0x8000_0000, 1, 1], 3), (&[5, 9, 32], 9), (&[0x8000_0000, 1, 33], 3)]),
    row("shf.l.clamp.b32", "rrrr", &[(&[0x8000_0000, 1, 1], 3), (&[5, 9, 32], 5), (&[5, 9, 40], 5)]),
    row("shf.r.wrap.b32", "rrrr", &[(&[2, 1, 1], 0x8000_0001), (&[5, 9, 32], 5), (&[2, 1, 33], 0x8000_0001)]),
    row("shf.r.clamp.b32", "rrrr", &[(&[2, 1, 1], 0x8000_0001), (&[5, 9, 32], 9), (&[5, 9, 40], 9)]),
    row("popc.b32", "rr", &[(&[0], 0), (&[ALL], 32), (&[0x8000_0001], 2)]),
    row("popc.b64", "rd", &[(&[0], 0), (&[u64::MAX], 64), (&[1 << 63 | 1], 2)]),
    row("clz.b32", "rr", &[(&[0], 32), (&[1], 31), (&[ALL], 0)]),
    row("clz.b64", "rd", &[(&[0], 64), (&[1], 63), (&[u64::MAX], 0)]),
    row("brev.b32", "rr", &[(&[1], 0x8000_0000), (&[0x0000_00F0], 0x0F00_0000)]),
    row("brev.b64", "dd", &[(&[1], 1 << 63), (&[0xF0], 0x0F00_0000_0000_0000)]),
    row("bfind.u32", "rr", &[(&[0], ALL), (&[1], 0), (&[0x8000_0000], 31), (&[0xFFFF_FFFE], 31)]),
    row("bfind.s32", "rr", &[(&[0], ALL), (&[ALL], ALL), (&[0x8000_0000], 30), (&[0xFFFF_FFFE], 0), (&[4], 2)]),
    row("bfind.shiftamt.u32", "rr", &[(&[0], ALL), (&[1], 31), (&[0x8000_0000], 0)]),
    row("bfind.u64", "rd", &[(&[0], ALL), (&[1 << 40], 40)]),
    // Position and length use their low 8 bits.
    row(
        "bfe.u32",
        "rrrr",
        &[
            (&[0xABCD_1234, 8, 8], 0x12),
            (&[0x8000_0000, 31, 5], 1),
            (&[ALL, 32, 4], 0),
            (&[ALL, 4, 0], 0),
            (&[ALL, 0x100, 0x104], 15),
            (&[0x8000_0000, 0, 255], 0x8000_0000),
        ],
    ),
    row(
        "bfe.s32",
        "rrrr",
        &[
            (&[0x0000_F000, 12, 4], ALL),
            (&[0x0000_7000, 12, 4], 7),
            (&[0x8000_0000, 31, 5], ALL),
            (&[0x8000_0000, 40, 4], ALL),
            (&[ALL, 4, 0], 0),
            (&[0x4000_0000, 30, 1], ALL),
        ],
    ),
    row("bfe.u64", "ddrr", &[(&[u64::MAX, 60, 8], 15), (&[0xAB00_0000_0000, 40, 8], 0xAB), (&[u64::MAX, 64, 1], 0)]),
    row(
        "bfe.s64",
        "ddrr",
        &[
            (&[u64::MAX, 60, 8], u64::MAX),
            (&[0xAB00_0000_0000, 40, 8], 0xFFFF_FFFF_FFFF_FFAB),
            (&[1 << 63, 70, 3], u64::MAX),
        ],
    ),
    row(
        "prmt.b32",
        "rrrr",
        &[
            (&[0x3322_1100, 0x7766_5544, 0x7531], 0x7755_3311),
            (&[0x0000_0080, 0, 0x8888], ALL),
            (&[0x7F, 0, 0x8888], 0),
            (&[0x3322_1100, 0x7766_5544, 0x0246], 0x0022_4466),
        ],
    ),
    row(
        "prmt.b32.f4e",
        "rrrr",
        &[
            (&[0x3322_1100, 0x7766_5544, 0], 0x3322_1100),
            (&[0x3322_1100, 0x7766_5544, 3], 0x6655_4433),
            (&[0x3322_1100, 0x7766_5544, 5], 0x4433_2211),
        ],
    ),
    row(
        "prmt.b32.b4e",
        "rrrr",
        &[(&[0x3322_1100, 0x7766_5544, 0], 0x5566_7700), (&[0x3322_1100, 0x7766_5544, 2], 0x7700_1122)],
    ),
    row("prmt.b32.rc8", "rrrr", &[(&[0x3322_1100, 0x7766_5544, 2], 0x2222_2222), (&[0x3322_1100, 0, 7], 0x3333_3333)]),
    row("prmt.b32.ecl", "rrrr", &[(&[0x3322_1100, 0, 0], 0x3322_1100), (&[0x3322_1100, 0, 2], 0x3322_2222)]),
    row("prmt.b32.ecr", "rrrr", &[(&[0x3322_1100, 0, 0], 0), (&[0x3322_1100, 0, 2], 0x2222_1100)]),
    row("prmt.b32.rc16", "rrrr", &[(&[0x3322_1100, 0, 0], 0x1100_1100), (&[0x3322_1100, 0, 1], 0x3322_3322)]),
    Row {
        opcode: "lop3.b32",
        suffix: ", 0xE8",
        kinds: "rrrr",
        cases: &[(&[0xF0F0_F0F0, 0xCCCC_CCCC, 0xAAAA_AAAA], 0xE8E8_E8E8)],
    },
    Row {
        opcode: "lop3.b32",
        suffix: ", 0x96",
        kinds: "rrrr",
        cases: &[(&[1, 2, 4], 7), (&[3, 3, 8], 8), (&[ALL, ALL, ALL], ALL)],
    },
    Row { opcode: "lop3.b32", suffix: ", 0x1", kinds: "rrrr", cases: &[(&[1, 2, 4], 0xFFFF_FFF8)] },
    Row {
        opcode: "bfi.b32",
        suffix: ", 8, 4",
        kinds: "rrr",
        cases: &[(&[0xFFFF_FFF5, 0x1234_5678], 0x1234_5578), (&[0, ALL], 0xFFFF_F0FF)],
    },
    Row {
        opcode: "bfi.b32",
        suffix: ", 30, 8",
        kinds: "rrr",
        cases: &[(&[ALL, 0], 0xC000_0000), (&[1, ALL], 0x7FFF_FFFF)],
    },
    Row { opcode: "bfi.b32", suffix: ", 32, 8", kinds: "rrr", cases: &[(&[ALL, 0x1234], 0x1234)] },
    Row { opcode: "bfi.b32", suffix: ", 3, 0", kinds: "rrr", cases: &[(&[ALL, 0x1234], 0x1234)] },
    Row { opcode: "bfi.b64", suffix: ", 60, 32", kinds: "ddd", cases: &[(&[0xAB, 1], 0xB000_0000_0000_0001)] },
];
