//! f16 and bf16, single and packed (PTX ISA, "Half Precision Floating Point Instructions").

use super::{Row, row};

pub const ROWS: &[Row] = &[
    // 2048 + 1 is a tie to even in f16; 65504 is the largest one.
    row(
        "add.f16",
        "hhh",
        &[
            (&[0x6800, 0x3C00], 0x6800),
            (&[0x6801, 0x3C00], 0x6802),
            (&[0x7BFF, 0x5000], 0x7C00),
            (&[0x7BFF, 0x4B80], 0x7BFF),
            (&[0x7C00, 0xFC00], 0x7FFF),
            (&[1, 1], 2),
            (&[0x8000, 0x8000], 0x8000),
        ],
    ),
    row("sub.f16", "hhh", &[(&[0x6800, 0x3C00], 0x67FF), (&[0x3C00, 0x3C00], 0)]),
    row(
        "mul.f16",
        "hhh",
        &[(&[0x4200, 0x4200], 0x4880), (&[1, 0x3800], 0), (&[3, 0x3800], 2), (&[0x7BFF, 0x4000], 0x7C00)],
    ),
    row("mul.ftz.f16", "hhh", &[(&[3, 0x3C00], 0), (&[0x4200, 0x4200], 0x4880)]),
    row("mul.sat.f16", "hhh", &[(&[0x4200, 0x4200], 0x3C00), (&[0xBC00, 0x3C00], 0), (&[0x7C00, 0], 0)]),
    // (1 + 2^-10)^2 - (1 + 2^-9) = 2^-20, which a rounded product loses.
    row(
        "fma.rn.f16",
        "hhhh",
        &[
            (&[0x3C00, 0xBC00, 0], 0xBC00),
            (&[0x3C01, 0x3C01, 0xBC02], 0x0010),
            (&[0x7C00, 0, 0x3C00], 0x7FFF),
            (&[0x4200, 0x4200, 0x3C00], 0x4900),
        ],
    ),
    row(
        "fma.rn.relu.f16",
        "hhhh",
        &[(&[0x3C00, 0xBC00, 0], 0), (&[0x4200, 0x4200, 0x3C00], 0x4900), (&[0x7C00, 0, 0], 0x7FFF)],
    ),
    row("add.f16x2", "rrr", &[(&[0x3C00_6800, 0x4000_3C00], 0x4200_6800), (&[0x7C00_0001, 0xFC00_0001], 0x7FFF_0002)]),
    row("mul.f16x2", "rrr", &[(&[0x4200_0003, 0x4200_3800], 0x4880_0002)]),
    row("sub.f16x2", "rrr", &[(&[0x4200_3C00, 0x3C00_4200], 0x4000_C000)]),
    row("fma.rn.f16x2", "rrrr", &[(&[0x3C01_4200, 0x3C01_4200, 0xBC02_3C00], 0x0010_4900)]),
    row(
        "min.f16x2",
        "rrr",
        &[
            (&[0xFC01_BC00, 0x3C00_C000], 0x3C00_C000),
            (&[0x7FFF_3C00, 0x3C00_4000], 0x3C00_3C00),
            (&[0x8000_0000, 0x0000_8000], 0x8000_8000),
        ],
    ),
    row("max.f16x2", "rrr", &[(&[0x7C01_BC00, 0x3C00_C000], 0x3C00_BC00), (&[0x7FFF_3C00, 0x3C00_4000], 0x3C00_4000)]),
    row(
        "max.NaN.f16x2",
        "rrr",
        &[(&[0x4000_4000, 0x4200_3C00], 0x4200_4000), (&[0x7E00_3C00, 0x3C00_4000], 0x7FFF_4000)],
    ),
    row("abs.f16x2", "rr", &[(&[0x3C00_3C00], 0x3C00_3C00), (&[0xBC00_8000], 0x3C00_0000)]),
    row("neg.f16x2", "rr", &[(&[0xBC00_0000], 0x3C00_8000)]),
    row("abs.f16", "hh", &[(&[0x3C00], 0x3C00), (&[0xBC00], 0x3C00), (&[0xFC00], 0x7C00)]),
    row("neg.f16", "hh", &[(&[0xBC00], 0x3C00), (&[0], 0x8000)]),
    row("neg.bf16x2", "rr", &[(&[0xBF80_3F80], 0x3F80_BF80)]),
    // 1 + 2^-8 is a tie in bf16.
    row("add.bf16", "hhh", &[(&[0x3F80, 0x3B80], 0x3F80), (&[0x3F81, 0x3B80], 0x3F82), (&[0x7F80, 0xFF80], 0x7FFF)]),
    row("mul.bf16", "hhh", &[(&[0x4040, 0x4040], 0x4110), (&[0x7F7F, 0x4000], 0x7F80)]),
    row("fma.rn.bf16", "hhhh", &[(&[0x3F81, 0x3F81, 0xBF82], 0x3880), (&[0x4040, 0x4040, 0x3F80], 0x4120)]),
    row("add.bf16x2", "rrr", &[(&[0x3F80_3F81, 0x4000_3B80], 0x4040_3F82)]),
    row("mul.bf16x2", "rrr", &[(&[0x4040_3F80, 0x4040_C000], 0x4110_C000)]),
    row("fma.rn.bf16x2", "rrrr", &[(&[0x3F81_4040, 0x3F81_4040, 0xBF82_3F80], 0x3880_4120)]),
    row(
        "max.bf16x2",
        "rrr",
        &[
            (&[0x7C01_BF80, 0x3F80_C000], 0x7C01_BF80),
            (&[0x3F80_BF80, 0x4000_C000], 0x4000_BF80),
            (&[0x7FFF_BF80, 0x3F80_BF00], 0x3F80_BF00),
        ],
    ),
    row("min.bf16x2", "rrr", &[(&[0xFC01_3F80, 0x3F80_BF80], 0xFC01_BF80), (&[0x7FFF_BF80, 0x3F80_BF00], 0x3F80_BF80)]),
    row("ex2.approx.f16", "hh", &[(&[0x3C00], 0x4000), (&[0xFC00], 0), (&[0xCE00], 1)]),
    row("ex2.approx.ftz.bf16x2", "rr", &[(&[0x3F80_0000], 0x4000_3F80)]),
    row("tanh.approx.f16x2", "rr", &[(&[0x7C00_0000], 0x3C00_0000), (&[0xFC00_3C00], 0xBC00_3A18)]),
];
