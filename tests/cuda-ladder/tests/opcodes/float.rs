//! f32 and f64 (PTX ISA, "Floating Point Instructions").

use super::{Row, row};

const ONE: u64 = 0x3F80_0000;
const TWO: u64 = 0x4000_0000;
const THREE: u64 = 0x4040_0000;
const INF: u64 = 0x7F80_0000;
const NEG_INF: u64 = 0xFF80_0000;
/// What arithmetic gives for NaN, and a signalling one with a payload.
const NAN: u64 = 0x7FFF_FFFF;
const SNAN: u64 = 0x7F80_0001;
const NEG_ZERO: u64 = 0x8000_0000;
const MAX: u64 = 0x7F7F_FFFF;
/// 2^-24: half of the distance from 1 to the next f32; and a little more.
const HALF_ULP: u64 = 0x3380_0000;
const MORE_THAN_HALF_ULP: u64 = 0x3380_0001;
const SUBNORMAL: u64 = 1;

/// Without a modifier they are rounded to nearest, ties to even.
const DIFFERENCES: &[(&[u64], u64)] = &[
    (&[ONE, HALF_ULP], 0x3F7F_FFFF),
    (&[0x3F80_0001, HALF_ULP], ONE),
    (&[INF, INF], NAN),
    (&[0, 0], 0),
    (&[NEG_ZERO, 0], NEG_ZERO),
];
const PRODUCTS: &[(&[u64], u64)] = &[
    (&[TWO, THREE], 0x40C0_0000),
    (&[INF, 0], NAN),
    (&[NEG_ZERO, ONE], NEG_ZERO),
    (&[MAX, TWO], INF),
    (&[0x0080_0000, 0x3F00_0000], 0x0040_0000),
    (&[0x3F80_0001, 0x3F80_0001], 0x3F80_0002),
];

pub const ROWS: &[Row] = &[
    row(
        "add.rn.f32",
        "rrr",
        &[
            (&[ONE, HALF_ULP], ONE),
            (&[0x3F80_0001, HALF_ULP], 0x3F80_0002),
            (&[ONE, MORE_THAN_HALF_ULP], 0x3F80_0001),
            (&[INF, NEG_INF], NAN),
            (&[MAX, MAX], INF),
            (&[ONE, 0xBF80_0000], 0),
            (&[NEG_ZERO, NEG_ZERO], NEG_ZERO),
            (&[SNAN, ONE], NAN),
            (&[SUBNORMAL, SUBNORMAL], 2),
        ],
    ),
    row(
        "add.rz.f32",
        "rrr",
        &[
            (&[ONE, MORE_THAN_HALF_ULP], ONE),
            (&[0xBF80_0000, 0xB380_0001], 0xBF80_0000),
            (&[MAX, MAX], MAX),
            (&[ONE, 0xBF80_0000], 0),
            (&[ONE, SUBNORMAL], ONE),
        ],
    ),
    row(
        "add.rm.f32",
        "rrr",
        &[
            (&[ONE, MORE_THAN_HALF_ULP], ONE),
            (&[0xBF80_0000, 0xB380_0001], 0xBF80_0001),
            (&[ONE, 0xBF80_0000], NEG_ZERO),
            (&[MAX, MAX], MAX),
            (&[0xBF80_0000, 0x8000_0001], 0xBF80_0001),
        ],
    ),
    row(
        "add.rp.f32",
        "rrr",
        &[
            (&[ONE, SUBNORMAL], 0x3F80_0001),
            (&[0xBF80_0000, 0xB380_0001], 0xBF80_0000),
            (&[ONE, 0xBF80_0000], 0),
            (&[MAX, MAX], INF),
        ],
    ),
    row(
        "add.ftz.f32",
        "rrr",
        &[
            (&[SUBNORMAL, SUBNORMAL], 0),
            (&[0x8000_0001, NEG_ZERO], NEG_ZERO),
            (&[0x0080_0000, 0x8040_0000], 0x0080_0000),
            (&[ONE, TWO], THREE),
        ],
    ),
    row(
        "add.sat.f32",
        "rrr",
        &[(&[ONE, ONE], ONE), (&[ONE, 0xC000_0000], 0), (&[NAN, ONE], 0), (&[0x3E80_0000, 0x3E80_0000], 0x3F00_0000)],
    ),
    row("sub.f32", "rrr", DIFFERENCES),
    row("sub.rn.f32", "rrr", DIFFERENCES),
    row("mul.f32", "rrr", PRODUCTS),
    row("mul.rn.f32", "rrr", PRODUCTS),
    row(
        "mul.rp.f32",
        "rrr",
        &[(&[0x3F80_0001, 0x3F80_0001], 0x3F80_0003), (&[SUBNORMAL, 0x3F00_0000], 1), (&[TWO, THREE], 0x40C0_0000)],
    ),
    row("mul.rm.f32", "rrr", &[(&[0xBF80_0001, 0x3F80_0001], 0xBF80_0003), (&[MAX, TWO], MAX)]),
    row(
        "mul.ftz.f32",
        "rrr",
        &[(&[0x0080_0000, 0x3F00_0000], 0), (&[SUBNORMAL, 0x7F00_0000], 0), (&[TWO, THREE], 0x40C0_0000)],
    ),
    // (1 + 2^-23)^2 - (1 + 2^-22) = 2^-46, which two roundings lose.
    row(
        "fma.rn.f32",
        "rrrr",
        &[
            (&[ONE, ONE, MORE_THAN_HALF_ULP], 0x3F80_0001),
            (&[0x3F80_0001, 0x3F80_0001, 0xBF80_0002], 0x2880_0000),
            (&[INF, 0, ONE], NAN),
            (&[INF, ONE, NEG_INF], NAN),
            (&[TWO, THREE, ONE], 0x40E0_0000),
            (&[ONE, 0, NEG_ZERO], 0),
            (&[0x3F80_0001, 0x3F80_0001, 0], 0x3F80_0002),
            (&[SUBNORMAL, ONE, SUBNORMAL], 2),
        ],
    ),
    row(
        "fma.rz.f32",
        "rrrr",
        &[
            (&[0xBF80_0000, ONE, 0xA500_0000], 0xBF80_0000),
            (&[ONE, ONE, 0xA500_0000], 0x3F7F_FFFF),
            (&[0x3F80_0001, 0x3F80_0001, 0x3380_0000], 0x3F80_0002),
        ],
    ),
    row(
        "fma.rp.f32",
        "rrrr",
        &[(&[ONE, ONE, 0x2500_0000], 0x3F80_0001), (&[0xBF80_0000, ONE, 0x2500_0000], 0xBF7F_FFFF)],
    ),
    row(
        "fma.rm.f32",
        "rrrr",
        &[
            (&[ONE, ONE, 0x2500_0000], ONE),
            (&[ONE, 0xBF80_0000, ONE], NEG_ZERO),
            (&[0xBF80_0000, ONE, 0xA500_0000], 0xBF80_0001),
        ],
    ),
    row("fma.rn.ftz.f32", "rrrr", &[(&[SUBNORMAL, ONE, SUBNORMAL], 0), (&[TWO, THREE, ONE], 0x40E0_0000)]),
    row("fma.rn.sat.f32", "rrrr", &[(&[TWO, THREE, ONE], ONE), (&[ONE, 0xBF80_0000, 0], 0), (&[INF, 0, ONE], 0)]),
    row(
        "div.rn.f32",
        "rrr",
        &[
            (&[ONE, 0x7F00_0000], 0x0040_0000),
            (&[ONE, THREE], 0x3EAA_AAAB),
            (&[ONE, 0], INF),
            (&[0xBF80_0000, 0], NEG_INF),
            (&[0, 0], NAN),
            (&[INF, INF], NAN),
            (&[SUBNORMAL, TWO], 0),
            (&[ONE, 0x7E80_0000], 0x0080_0000),
        ],
    ),
    row("div.rz.f32", "rrr", &[(&[ONE, THREE], 0x3EAA_AAAA), (&[0xBF80_0000, THREE], 0xBEAA_AAAA)]),
    row(
        "div.rp.f32",
        "rrr",
        &[(&[0xBF80_0000, THREE], 0xBEAA_AAAA), (&[ONE, THREE], 0x3EAA_AAAB), (&[SUBNORMAL, TWO], 1)],
    ),
    row(
        "div.full.f32",
        "rrr",
        &[
            (&[ONE, THREE], 0x3EAA_AAAB),
            (&[ONE, 0x7F00_0000], 0x0040_0000),
            (&[ONE, 0], INF),
            (&[SUBNORMAL, TWO], 0),
            (&[0x3F80_0001, 0x3F80_0002], 0x3F7F_FFFE),
        ],
    ),
    // Divisors beyond 2^126 give zero, and infinity over them NaN.
    row(
        "div.approx.f32",
        "rrr",
        &[(&[ONE, 0x7F00_0000], 0), (&[INF, 0x7F00_0000], NAN), (&[ONE, 0xC000_0000], 0xBF00_0000)],
    ),
    row(
        "min.f32",
        "rrr",
        &[
            (&[0xBF80_0000, 0xC000_0000], 0xC000_0000),
            (&[ONE, TWO], ONE),
            (&[SNAN, ONE], ONE),
            (&[ONE, NAN], ONE),
            (&[NAN, NAN], NAN),
            (&[0, NEG_ZERO], NEG_ZERO),
            (&[NEG_ZERO, 0], NEG_ZERO),
            (&[NEG_INF, ONE], NEG_INF),
            (&[SUBNORMAL, 2], 1),
        ],
    ),
    row(
        "max.f32",
        "rrr",
        &[
            (&[0xBF80_0000, 0xC000_0000], 0xBF80_0000),
            (&[0x3F80_0001, 0x3F7F_0002], 0x3F80_0001),
            (&[ONE, TWO], TWO),
            (&[NAN, ONE], ONE),
            (&[0, NEG_ZERO], 0),
            (&[NEG_ZERO, 0], 0),
            (&[NEG_INF, ONE], ONE),
            (&[SUBNORMAL, 2], 2),
        ],
    ),
    row("min.NaN.f32", "rrr", &[(&[NAN, ONE], NAN), (&[ONE, SNAN], NAN), (&[ONE, TWO], ONE)]),
    row(
        "max.NaN.f32",
        "rrr",
        &[(&[0xBF80_0000, 0xC000_0000], 0xBF80_0000), (&[NAN, ONE], NAN), (&[ONE, TWO], TWO), (&[NEG_ZERO, 0], 0)],
    ),
    row(
        "max.ftz.f32",
        "rrr",
        &[(&[ONE, TWO], TWO), (&[SUBNORMAL, 2], 0), (&[ONE, NAN], ONE), (&[0x8000_0005, NEG_INF], NEG_ZERO)],
    ),
    row(
        "abs.f32",
        "rr",
        &[
            (&[ONE], ONE),
            (&[0x3F80_8000], 0x3F80_8000),
            (&[0xBF80_0000], ONE),
            (&[NEG_ZERO], 0),
            (&[NEG_INF], INF),
            (&[0x8000_0001], 1),
        ],
    ),
    row("abs.ftz.f32", "rr", &[(&[0x8000_0001], 0), (&[0xBF80_0000], ONE)]),
    row("neg.f32", "rr", &[(&[ONE], 0xBF80_0000), (&[0], NEG_ZERO), (&[NEG_INF], INF)]),
    row("copysign.f32", "rrr", &[(&[NEG_ZERO, ONE], 0xBF80_0000), (&[ONE, 0xC000_0000], TWO)]),
    row(
        "rcp.rn.f32",
        "rr",
        &[(&[THREE], 0x3EAA_AAAB), (&[0], INF), (&[NEG_ZERO], NEG_INF), (&[INF], 0), (&[0x7F00_0000], 0x0040_0000)],
    ),
    row("rcp.rz.f32", "rr", &[(&[THREE], 0x3EAA_AAAA), (&[TWO], 0x3F00_0000)]),
    row("rcp.approx.ftz.f32", "rr", &[(&[THREE], 0x3EAA_AAAB), (&[0x7F00_0000], 0), (&[SUBNORMAL], INF)]),
    row(
        "sqrt.rn.f32",
        "rr",
        &[
            (&[TWO], 0x3FB5_04F3),
            (&[0xBF80_0000], NAN),
            (&[NEG_ZERO], NEG_ZERO),
            (&[INF], INF),
            (&[SUBNORMAL], 0x1A35_04F3),
        ],
    ),
    row("sqrt.rp.f32", "rr", &[(&[TWO], 0x3FB5_04F4), (&[0x4080_0000], TWO)]),
    row("sqrt.approx.ftz.f32", "rr", &[(&[0x4080_0000], TWO), (&[SUBNORMAL], 0), (&[0x8000_0001], NEG_ZERO)]),
    row(
        "rsqrt.approx.f32",
        "rr",
        &[(&[0x4080_0000], 0x3F00_0000), (&[0], INF), (&[NEG_ZERO], NEG_INF), (&[INF], 0), (&[0xBF80_0000], NAN)],
    ),
    row(
        "ex2.approx.f32",
        "rr",
        &[
            (&[0], ONE),
            (&[NEG_INF], 0),
            (&[INF], INF),
            (&[ONE], TWO),
            (&[0xC300_0000], 0x0020_0000),
            (&[0x3F00_0000], 0x3FB5_04F3),
        ],
    ),
    row("ex2.approx.ftz.f32", "rr", &[(&[0xC300_0000], 0), (&[SUBNORMAL], ONE), (&[THREE], 0x4100_0000)]),
    row(
        "lg2.approx.f32",
        "rr",
        &[(&[ONE], 0), (&[0], NEG_INF), (&[0xBF80_0000], NAN), (&[0x4100_0000], THREE), (&[SUBNORMAL], 0xC315_0000)],
    ),
    row("sin.approx.f32", "rr", &[(&[0], 0), (&[NEG_ZERO], NEG_ZERO), (&[INF], NAN), (&[ONE], 0x3F57_6AA4)]),
    row("cos.approx.f32", "rr", &[(&[0], ONE), (&[INF], NAN), (&[ONE], 0x3F0A_5140)]),
    row(
        "tanh.approx.f32",
        "rr",
        &[(&[0], 0), (&[INF], ONE), (&[NEG_INF], 0xBF80_0000), (&[ONE], 0x3F42_F7D6), (&[NEG_ZERO], NEG_ZERO)],
    ),
    row("testp.finite.f32", "pr", &[(&[ONE], 1), (&[INF], 0), (&[NAN], 0), (&[SUBNORMAL], 1)]),
    row("testp.infinite.f32", "pr", &[(&[INF], 1), (&[NEG_INF], 1), (&[NAN], 0), (&[ONE], 0)]),
    row("testp.number.f32", "pr", &[(&[INF], 1), (&[NAN], 0), (&[ONE], 1)]),
    row("testp.notanumber.f32", "pr", &[(&[SNAN], 1), (&[INF], 0)]),
    row("testp.normal.f32", "pr", &[(&[SUBNORMAL], 0), (&[0], 0), (&[0x0080_0000], 1), (&[INF], 0)]),
    row("testp.subnormal.f32", "pr", &[(&[SUBNORMAL], 1), (&[0x0080_0000], 0), (&[0], 0)]),
    row(
        "add.f64",
        "ddd",
        &[
            (&[0x4000_0000_0000_0000, 0x4008_0000_0000_0000], 0x4014_0000_0000_0000),
            (&[0x3FF0_0000_0000_0000, 0x3CA0_0000_0000_0000], 0x3FF0_0000_0000_0000),
            (&[0x3FF0_0000_0000_0000, 0x3CA0_0000_0000_0001], 0x3FF0_0000_0000_0001),
        ],
    ),
    row("mul.f64", "ddd", &[(&[0x4000_0000_0000_0000, 0x4008_0000_0000_0000], 0x4018_0000_0000_0000)]),
    row(
        "div.rn.f64",
        "ddd",
        &[
            (&[0x3FF0_0000_0000_0000, 0x4008_0000_0000_0000], 0x3FD5_5555_5555_5555),
            (&[0x3FF0_0000_0000_0000, 0], 0x7FF0_0000_0000_0000),
        ],
    ),
    row(
        "max.f64",
        "ddd",
        &[
            (&[0x4000_0000_0000_0000, 0x3FF0_0000_0000_0000], 0x4000_0000_0000_0000),
            (&[0x7FF8_0000_0000_0000, 0x3FF0_0000_0000_0000], 0x3FF0_0000_0000_0000),
            (&[0x8000_0000_0000_0000, 0], 0),
        ],
    ),
    row(
        "fma.rn.f64",
        "dddd",
        &[
            (&[0x3FF0_0000_0000_0001, 0x3FF0_0000_0000_0001, 0xBFF0_0000_0000_0002], 0x3970_0000_0000_0000),
            (&[0x4000_0000_0000_0000, 0x4008_0000_0000_0000, 0x3FF0_0000_0000_0000], 0x401C_0000_0000_0000),
        ],
    ),
    row("sqrt.rn.f64", "dd", &[(&[0x4000_0000_0000_0000], 0x3FF6_A09E_667F_3BCD)]),
    row("neg.f64", "dd", &[(&[0x3FF0_0000_0000_0000], 0xBFF0_0000_0000_0000)]),
    row(
        "abs.f64",
        "dd",
        &[(&[0x3FF0_0000_0000_0000], 0x3FF0_0000_0000_0000), (&[0xBFF0_0000_0000_0000], 0x3FF0_0000_0000_0000)],
    ),
];
