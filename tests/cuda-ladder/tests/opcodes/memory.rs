//! Loads, stores and atomics (PTX ISA, "Data Movement and Conversion Instructions", `ld`, `st`; "Parallel Synchronization and
//! Communication Instructions", `atom`). Bytes are in little-endian order; a load into a wider register extends it with zeros unless
//! its type has a sign; a store takes the low bits of its register.

/// What lies in memory: bytes 0xA0, 0xA1 and so on.
pub const DATA: [u8; 32] = {
    let mut data = [0; 32];
    let mut index = 0;
    while index < 32 {
        data[index] = 0xA0 + index as u8;
        index += 1;
    }
    data
};

/// A load from an offset in [`DATA`] into registers of these kinds, and what they hold then.
#[derive(Debug)]
pub struct Load {
    pub opcode: &'static str,
    pub kinds: &'static str,
    pub offset: usize,
    pub expected: &'static [u64],
}

/// A store of values in registers of these kinds to an offset in [`DATA`], and the bytes that change.
#[derive(Debug)]
pub struct Store {
    pub opcode: &'static str,
    pub kinds: &'static str,
    pub offset: usize,
    pub values: &'static [u64],
    pub expected: &'static [u8],
}

/// An atomic on a word: it returns what was there `before`.
#[derive(Debug)]
pub struct Atomic {
    pub opcode: &'static str,
    pub before: u32,
    pub operand: u32,
    pub after: u32,
}

const fn load(opcode: &'static str, kinds: &'static str, offset: usize, expected: &'static [u64]) -> Load {
    Load { opcode, kinds, offset, expected }
}

const fn store(
    opcode: &'static str,
    kinds: &'static str,
    offset: usize,
    values: &'static [u64],
    expected: &'static [u8],
) -> Store {
    Store { opcode, kinds, offset, values, expected }
}

const fn atomic(opcode: &'static str, before: u32, operand: u32, after: u32) -> Atomic {
    Atomic { opcode, before, operand, after }
}

const WORD_4: &[u64] = &[0xA7A6_A5A4];
const WORDS_8: &[u64] = &[0xABAA_A9A8, 0xAFAE_ADAC];
const WORDS_16: &[u64] = &[0xB3B2_B1B0, 0xB7B6_B5B4, 0xBBBA_B9B8, 0xBFBE_BDBC];
const LONG_24: &[u64] = &[0xBFBE_BDBC_BBBA_B9B8];
const LONG_16: &[u64] = &[0xB7B6_B5B4_B3B2_B1B0, 0xBFBE_BDBC_BBBA_B9B8];

pub const LOADS: &[Load] = &[
    load("ld.global.u8", "h", 3, &[0xA3]),
    load("ld.global.u8", "r", 31, &[0xBF]),
    load("ld.global.u16", "h", 6, &[0xA7A6]),
    load("ld.global.u32", "r", 4, WORD_4),
    load("ld.global.u64", "d", 24, LONG_24),
    load("ld.global.nc.u64", "d", 24, LONG_24),
    load("ld.global.v2.u32", "rr", 8, WORDS_8),
    load("ld.global.v4.u32", "rrrr", 16, WORDS_16),
    load("ld.param.u32", "r", 4, WORD_4),
    load("ld.param.f32", "r", 4, WORD_4),
    load("ld.param.u64", "d", 24, LONG_24),
    load("ld.shared.u8", "h", 3, &[0xA3]),
    load("ld.shared.u8", "r", 31, &[0xBF]),
    load("ld.shared.u16", "h", 6, &[0xA7A6]),
    load("ld.shared.u32", "r", 4, WORD_4),
    load("ld.shared.s32", "r", 4, WORD_4),
    load("ld.shared.f32", "r", 4, WORD_4),
    load("ld.shared.u64", "d", 24, LONG_24),
    load("ld.shared.v2.u32", "rr", 8, WORDS_8),
    load("ld.shared.v2.f32", "rr", 8, WORDS_8),
    load("ld.shared.v2.u64", "dd", 16, LONG_16),
    load("ld.shared.v4.u32", "rrrr", 16, WORDS_16),
    load("ld.shared.v4.f32", "rrrr", 16, WORDS_16),
    load("ld.u16", "h", 6, &[0xA7A6]),
    load("ld.u32", "r", 4, WORD_4),
];

const BYTE: &[u8] = &[0x34];
const HALF: &[u8] = &[0x34, 0x12];
const WORD: &[u8] = &[0x78, 0x56, 0x34, 0x92];
const LONG: &[u8] = &[0xEF, 0xCD, 0xAB, 0x89, 0x67, 0x45, 0x23, 0x81];
const PAIR: &[u8] = &[0x78, 0x56, 0x34, 0x92, 1, 0, 0x80, 0x7F];
const FOUR: &[u8] = &[0x78, 0x56, 0x34, 0x92, 1, 0, 0x80, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 2, 0, 0, 0];
/// With a signalling NaN and a subnormal.
const WORDS: &[u64] = &[0x9234_5678, 0x7F80_0001, 0xFFFF_FFFF, 2];

pub const STORES: &[Store] = &[
    store("st.global.u8", "h", 5, &[0x1234], BYTE),
    store("st.global.u8", "r", 31, &[0x9234_1234], BYTE),
    store("st.global.u16", "h", 6, &[0x1234], HALF),
    store("st.global.u32", "r", 12, &[0x9234_5678], WORD),
    store("st.global.f32", "r", 12, &[0x9234_5678], WORD),
    store("st.global.u64", "d", 24, &[0x8123_4567_89AB_CDEF], LONG),
    store("st.global.v4.u32", "rrrr", 16, WORDS, FOUR),
    store("st.shared.u8", "h", 5, &[0x1234], BYTE),
    store("st.shared.u8", "r", 31, &[0x9234_1234], BYTE),
    store("st.shared.u16", "h", 6, &[0x1234], HALF),
    store("st.shared.u32", "r", 12, &[0x9234_5678], WORD),
    store("st.shared.f32", "r", 12, &[0x9234_5678], WORD),
    store("st.shared.u64", "d", 24, &[0x8123_4567_89AB_CDEF], LONG),
    store("st.shared.v2.u32", "rr", 8, &[0x9234_5678, 0x7F80_0001], PAIR),
    store("st.shared.v2.f32", "rr", 8, &[0x9234_5678, 0x7F80_0001], PAIR),
    store("st.shared.v4.u32", "rrrr", 16, WORDS, FOUR),
    store("st.shared.v4.f32", "rrrr", 16, WORDS, FOUR),
    store("st.u16", "h", 6, &[0x1234], HALF),
    store("st.u32", "r", 12, &[0x9234_5678], WORD),
    store("st.f32", "r", 12, &[0x9234_5678], WORD),
    store("st.u64", "d", 24, &[0x8123_4567_89AB_CDEF], LONG),
];

pub const ATOMICS: &[Atomic] = &[
    atomic("atom.global.max.u32", 5, u32::MAX, u32::MAX),
    atomic("atom.global.max.u32", 0x8000_0000, 1, 0x8000_0000),
    atomic("atom.global.max.u32", 6, 9, 9),
    atomic("atom.max.u32", 5, u32::MAX, u32::MAX),
    atomic("atom.max.u32", 0x8000_0000, 1, 0x8000_0000),
    atomic("atom.max.u32", 6, 9, 9),
    atomic("atom.shared.add.u32", u32::MAX, 1, 0),
    atomic("atom.shared.add.u32", 6, 3, 9),
    atomic("atom.shared.add.u32", 0x7FFF_FFFF, 1, 0x8000_0000),
];
