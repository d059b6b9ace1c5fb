//! Comparisons, selections and predicates (PTX ISA, "Comparison and Selection Instructions").

use super::{Row, row};

const NAN: u64 = 0x7FC0_0000;
const ONE: u64 = 0x3F80_0000;
const TWO: u64 = 0x4000_0000;
const ALL: u64 = 0xFFFF_FFFF;
const NEG_ZERO: u64 = 0x8000_0000;

const SELECT: &[(&[u64], u64)] =
    &[(&[5, 6, 1], 5), (&[5, 6, 0], 6), (&[0x7F80_0001, ONE, 1], 0x7F80_0001), (&[ONE, 0x8000_0001, 0], 0x8000_0001)];
const SELECT_SHORT: &[(&[u64], u64)] =
    &[(&[5, 6, 1], 5), (&[5, 6, 0], 6), (&[0x8001, 1, 1], 0x8001), (&[1, 0xFFFF, 0], 0xFFFF)];

/// Less, equal, greater and unordered, in this order.
macro_rules! float {
    ($name:literal, $less:literal, $equal:literal, $greater:literal, $unordered:literal) => {
        row(
            $name,
            "prr",
            &[
                (&[ONE, TWO], $less),
                (&[ONE, ONE], $equal),
                (&[NEG_ZERO, 0], $equal),
                (&[TWO, ONE], $greater),
                (&[NAN, ONE], $unordered),
                (&[ONE, NAN], $unordered),
                // As integers the other way round.
                (&[0xBF80_0000, 0xC000_0000], $greater),
                (&[1, 2], $less),
            ],
        )
    };
}

/// Less, equal, greater for small numbers; and -1 against 1, with signs and without.
macro_rules! integer {
    ($name:literal, $less:literal, $equal:literal, $greater:literal, $minus_one:literal) => {
        row(
            $name,
            "prr",
            &[
                (&[1, 2], $less),
                (&[NAN, NAN], $equal),
                (&[2, 1], $greater),
                (&[ALL, 1], $minus_one),
                (&[NEG_ZERO, 0], $minus_one),
                (&[NAN, ONE], $greater),
                (&[ONE, NAN], $less),
            ],
        )
    };
}

/// The same for 64 bits, and numbers whose order one half alone does not show.
macro_rules! long {
    ($name:literal, $less:literal, $equal:literal, $greater:literal, $minus_one:literal) => {
        row(
            $name,
            "pdd",
            &[
                (&[1, 2], $less),
                (&[0x8000_0000_0000_0001, 0x8000_0000_0000_0001], $equal),
                (&[2, 1], $greater),
                (&[u64::MAX, 1], $minus_one),
                (&[1 << 63, 0], $minus_one),
                (&[1 << 32, ALL], $greater),
                (&[ALL, 1 << 32], $less),
                (&[0x7FF8_0000_0000_0000, 1], $greater),
            ],
        )
    };
}

/// The same for 16 bits.
macro_rules! short {
    ($name:literal, $less:literal, $equal:literal, $greater:literal, $minus_one:literal) => {
        row(
            $name,
            "phh",
            &[
                (&[1, 2], $less),
                (&[0x8001, 0x8001], $equal),
                (&[2, 1], $greater),
                (&[0xFFFF, 1], $minus_one),
                (&[0x8000, 0], $minus_one),
                (&[0x7FC0, 1], $greater),
                (&[1, 0x7FC0], $less),
            ],
        )
    };
}

pub const ROWS: &[Row] = &[
    float!("setp.eq.f32", 0, 1, 0, 0),
    float!("setp.ne.f32", 1, 0, 1, 0),
    float!("setp.lt.f32", 1, 0, 0, 0),
    float!("setp.le.f32", 1, 1, 0, 0),
    float!("setp.gt.f32", 0, 0, 1, 0),
    float!("setp.ge.f32", 0, 1, 1, 0),
    float!("setp.equ.f32", 0, 1, 0, 1),
    float!("setp.neu.f32", 1, 0, 1, 1),
    float!("setp.ltu.f32", 1, 0, 0, 1),
    float!("setp.leu.f32", 1, 1, 0, 1),
    float!("setp.gtu.f32", 0, 0, 1, 1),
    float!("setp.geu.f32", 0, 1, 1, 1),
    float!("setp.num.f32", 1, 1, 1, 0),
    float!("setp.nan.f32", 0, 0, 0, 1),
    row("setp.lt.ftz.f32", "prr", &[(&[1, 2], 0), (&[ONE, TWO], 1), (&[NAN, ONE], 0), (&[TWO, ONE], 0)]),
    integer!("setp.eq.s32", 0, 1, 0, 0),
    integer!("setp.ne.s32", 1, 0, 1, 1),
    integer!("setp.lt.s32", 1, 0, 0, 1),
    integer!("setp.le.s32", 1, 1, 0, 1),
    integer!("setp.gt.s32", 0, 0, 1, 0),
    integer!("setp.ge.s32", 0, 1, 1, 0),
    integer!("setp.lt.u32", 1, 0, 0, 0),
    integer!("setp.le.u32", 1, 1, 0, 0),
    integer!("setp.gt.u32", 0, 0, 1, 1),
    integer!("setp.ge.u32", 0, 1, 1, 1),
    integer!("setp.eq.b32", 0, 1, 0, 0),
    long!("setp.eq.b64", 0, 1, 0, 0),
    long!("setp.eq.s64", 0, 1, 0, 0),
    long!("setp.ne.s64", 1, 0, 1, 1),
    long!("setp.lt.s64", 1, 0, 0, 1),
    long!("setp.lt.u64", 1, 0, 0, 0),
    long!("setp.le.u64", 1, 1, 0, 0),
    long!("setp.gt.u64", 0, 0, 1, 1),
    long!("setp.ge.u64", 0, 1, 1, 1),
    short!("setp.eq.s16", 0, 1, 0, 0),
    short!("setp.ne.s16", 1, 0, 1, 1),
    short!("setp.gt.s16", 0, 0, 1, 0),
    row(
        "setp.gt.f64",
        "pdd",
        &[
            (&[0x4000_0000_0000_0000, 0x3FF0_0000_0000_0000], 1),
            (&[0x3FF0_0000_0000_0000, 0xBFF0_0000_0000_0000], 1),
            (&[0x7FF8_0000_0000_0000, 0], 0),
        ],
    ),
    row("setp.lt.s16", "phh", &[(&[0x7FC0, 1], 0), (&[0xFFFF, 1], 1), (&[2, 1], 0)]),
    row("setp.lt.u16", "phh", &[(&[0xFFFF, 1], 0), (&[1, 2], 1)]),
    row(
        "setp.gt.f16",
        "phh",
        &[(&[0x4000, 0x3C00], 1), (&[0x3C00, 0xBC00], 1), (&[0x7E00, 0], 0), (&[0x8000, 0], 0), (&[0xBC00, 0xC000], 1)],
    ),
    row(
        "setp.ltu.bf16",
        "phh",
        &[(&[0x3F80, 0x4000], 1), (&[0x7FC0, 0], 1), (&[0x4000, 0x3F80], 0), (&[0xBF80, 0x8000], 1)],
    ),
    row("setp.lt.and.s32", "prrp", &[(&[1, 2, 1], 1), (&[1, 2, 0], 0), (&[2, 1, 1], 0), (&[2, 1, 0], 0)]),
    row("setp.lt.or.s32", "prrp", &[(&[1, 2, 0], 1), (&[2, 1, 1], 1), (&[2, 1, 0], 0), (&[1, 2, 1], 1)]),
    row("setp.lt.xor.s32", "prrp", &[(&[1, 2, 1], 0), (&[2, 1, 1], 1), (&[1, 2, 0], 1)]),
    row("set.lt.u32.s32", "rrr", &[(&[1, 2], ALL), (&[ALL, 1], ALL), (&[1, ALL], 0)]),
    row("set.lt.f32.s32", "rrr", &[(&[ALL, 1], ONE), (&[1, ALL], 0)]),
    row("set.gtu.u32.f32", "rrr", &[(&[TWO, ONE], ALL), (&[NAN, ONE], ALL), (&[ONE, TWO], 0)]),
    // Every bit is kept, a signalling NaN's and a subnormal's too.
    row("selp.b32", "rrrp", SELECT),
    row("selp.u32", "rrrp", SELECT),
    row("selp.f32", "rrrp", SELECT),
    row("selp.b16", "hhhp", SELECT_SHORT),
    row("selp.u16", "hhhp", SELECT_SHORT),
    row("selp.b64", "dddp", &[(&[1 << 40, 6, 1], 1 << 40), (&[5, 1 << 50, 0], 1 << 50)]),
    row(
        "slct.b32.s32",
        "rrrr",
        &[(&[5, 6, 0], 5), (&[5, 6, ALL], 6), (&[5, 6, NEG_ZERO], 6), (&[5, 6, 0x7FC0_0000], 5)],
    ),
    row("slct.b32.f32", "rrrr", &[(&[5, 6, NEG_ZERO], 5), (&[5, 6, NAN], 6), (&[5, 6, ALL], 6), (&[5, 6, ONE], 5)]),
    row("and.pred", "ppp", &[(&[1, 1], 1), (&[1, 0], 0), (&[0, 0], 0)]),
    row("or.pred", "ppp", &[(&[1, 1], 1), (&[1, 0], 1), (&[0, 0], 0)]),
    row("xor.pred", "ppp", &[(&[1, 1], 0), (&[1, 0], 1), (&[0, 0], 0)]),
    row("not.pred", "pp", &[(&[1], 0), (&[0], 1)]),
    row("mov.pred", "pp", &[(&[1], 1), (&[0], 0)]),
];
