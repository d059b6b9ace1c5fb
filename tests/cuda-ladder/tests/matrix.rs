//! `mma.m16n8k16` with f32 sums, and `ldmatrix.x4`, against the figures of the PTX ISA manual ("Matrix Fragments for mma.m16n8k16 with
//! floating point type", "Warp-level matrix load instruction"); and that an interpreter which mixes registers, types or the
//! transposition up fails these tests.

use cuda_ladder::{Arena, Launch, Module};

const LANES: usize = 32;

/// Loads 10 registers a lane (a0..a3, b0, b1, c0..c3), multiplies, stores d0..d3 in place of c.
const MULTIPLY: &str = "ld.global.v2.u32 {%r2, %r3}, [%d2]; ld.global.v2.u32 {%r4, %r5}, [%d2+8];\n\
    ld.global.v2.u32 {%r6, %r7}, [%d2+16]; ld.global.v2.u32 {%r8, %r9}, [%d2+24]; ld.global.v2.u32 {%r10, %r11}, [%d2+32];\n\
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r12, %r13, %r14, %r15}, {%r2, %r3, %r4, %r5}, {%r6, %r7}, {%r8, %r9, %r10, %r11};\n\
    st.global.v2.u32 [%d2+24], {%r12, %r13}; st.global.v2.u32 [%d2+32], {%r14, %r15};";

/// Copies 4 matrices of 8 rows of 16 bytes to shared memory, loads them, stores 4 registers a lane behind the 10 of each.
const LOAD: &str = "mov.u32 %r2, room; shl.b32 %r3, %r1, 4; add.s32 %r2, %r2, %r3;\n\
    mad.wide.u32 %d3, %r1, 16, %d1; ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%d3];\n\
    st.shared.v4.u32 [%r2], {%r4, %r5, %r6, %r7}; bar.warp.sync -1;\n\
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r8, %r9, %r10, %r11}, [%r2];\n\
    bar.warp.sync -1; st.global.v4.u32 [%d3], {%r8, %r9, %r10, %r11};";

/// Runs `body` by one warp over `data`, `%d2` at a lane's 40 bytes of it; opcodes are read as `variant` says.
fn run(body: &str, data: &[u32], variant: &dyn Fn(&str) -> Option<String>) -> Vec<u32> {
    let text = format!(
        ".version 9.0\n.target sm_100\n.address_size 64\n.visible .entry one(.param .u64 data) {{\n\
         .reg .b32 %r<20>; .reg .b64 %d<4>; .shared .align 16 .b8 room[512];\n\
         ld.param.u64 %d1, [data]; mov.u32 %r1, %tid.x; mad.wide.u32 %d2, %r1, 40, %d1;\n{body}\nret;\n}}\n"
    );
    let module = Module::parse_variant(&text, variant).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let entry = module.entry("one").unwrap();
    let mut memory = Arena::new();
    let bytes: Vec<u8> = data.iter().flat_map(|word| word.to_le_bytes()).collect();
    let address = memory.upload(&bytes);
    let params = entry.pack(&[&address.to_le_bytes()]).unwrap();
    module.run(entry, &Launch::new([1, 1, 1], [LANES as u32, 1, 1], &params), &mut memory).unwrap();
    let bytes = memory.download(address, bytes.len());
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

fn as_it_is(_: &str) -> Option<String> {
    None
}

/// A 16-bit format, as a number and as bits.
#[derive(Clone, Copy)]
struct Format {
    name: &'static str,
    exponent_bits: u32,
    mantissa_bits: u32,
}

const FORMATS: [Format; 2] = [
    Format { name: "bf16", exponent_bits: 8, mantissa_bits: 7 },
    Format { name: "f16", exponent_bits: 5, mantissa_bits: 10 },
];

impl Format {
    fn number(self, bits: u16) -> f64 {
        let bias = (1 << (self.exponent_bits - 1)) - 1;
        let exponent = i32::from(bits >> self.mantissa_bits) & ((1 << self.exponent_bits) - 1);
        let mantissa = f64::from(bits & ((1 << self.mantissa_bits) - 1)) / f64::from(1u32 << self.mantissa_bits);
        let size = match exponent {
            0 => mantissa * 2f64.powi(1 - bias),
            top if top == (1 << self.exponent_bits) - 1 => {
                if mantissa == 0.0 {
                    f64::INFINITY
                } else {
                    f64::NAN
                }
            }
            normal => (1.0 + mantissa) * 2f64.powi(normal - bias),
        };
        if bits >> 15 == 1 { -size } else { size }
    }

    /// Bits of a small integer.
    fn bits(self, integer: i32) -> u16 {
        (0..=u16::MAX).find(|bits| self.number(*bits) == f64::from(integer) && (integer != 0 || *bits == 0)).unwrap()
    }

    fn opcode(self) -> impl Fn(&str) -> Option<String> {
        move |opcode| Some(opcode.replace("bf16.bf16", &format!("{0}.{0}", self.name))).filter(|new| new != opcode)
    }
}

/// Matrices by row and column: A 16 x 16, B 16 x 8 (bits), C 16 x 8.
struct Matrices {
    a: [[u16; 16]; 16],
    b: [[u16; 8]; 16],
    c: [[f32; 8]; 16],
}

/// Row and column of element i of the fragments of a, b and c that a lane holds.
fn place_a(lane: usize, i: usize) -> (usize, usize) {
    let row = if [0, 1, 4, 5].contains(&i) { lane / 4 } else { lane / 4 + 8 };
    (row, lane % 4 * 2 + (i & 1) + if i < 4 { 0 } else { 8 })
}
fn place_b(lane: usize, i: usize) -> (usize, usize) {
    (lane % 4 * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, lane / 4)
}
fn place_c(lane: usize, i: usize) -> (usize, usize) {
    (if i < 2 { lane / 4 } else { lane / 4 + 8 }, lane % 4 * 2 + (i & 1))
}

impl Matrices {
    /// Small integers that differ along every index.
    fn asymmetric(format: Format) -> Matrices {
        let number = |row: usize, column: usize| format.bits(((row * 5 + column * 3 + row * column) % 23) as i32 - 11);
        Matrices {
            a: std::array::from_fn(|row| std::array::from_fn(|column| number(row, column))),
            b: std::array::from_fn(|row| std::array::from_fn(|column| number(2 * row + 1, column + 4))),
            c: std::array::from_fn(|row| std::array::from_fn(|column| (100 * row + column) as f32 + 0.5)),
        }
    }

    fn fragments(&self) -> Vec<u32> {
        let mut data = Vec::new();
        for lane in 0..LANES {
            let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
            let a = |i| {
                let (row, column) = place_a(lane, i);
                self.a[row][column]
            };
            let b = |i| {
                let (row, column) = place_b(lane, i);
                self.b[row][column]
            };
            data.extend((0..4).map(|register| pair(a(2 * register), a(2 * register + 1))));
            data.extend((0..2).map(|register| pair(b(2 * register), b(2 * register + 1))));
            data.extend((0..4).map(|i| {
                let (row, column) = place_c(lane, i);
                self.c[row][column].to_bits()
            }));
        }
        data
    }

    /// D, by the definition; exact as long as the numbers are.
    fn product(&self, format: Format) -> [[f32; 8]; 16] {
        std::array::from_fn(|row| {
            std::array::from_fn(|column| {
                let dot =
                    (0..16).map(|k| format.number(self.a[row][k]) * format.number(self.b[k][column])).sum::<f64>();
                (dot + f64::from(self.c[row][column])) as f32
            })
        })
    }

    /// D as the interpreter has it.
    fn run(&self, body: &str, variant: &dyn Fn(&str) -> Option<String>) -> [[f32; 8]; 16] {
        let out = run(body, &self.fragments(), variant);
        let mut d = [[0.0; 8]; 16];
        for lane in 0..LANES {
            for i in 0..4 {
                let (row, column) = place_c(lane, i);
                d[row][column] = f32::from_bits(out[10 * lane + 6 + i]);
            }
        }
        d
    }
}

#[test]
fn products_are_those_of_the_figures() {
    for format in FORMATS {
        let all = Matrices::asymmetric(format);
        assert_eq!(all.run(MULTIPLY, &format.opcode()), all.product(format), "{}", format.name);
    }
}

#[test]
fn awkward_numbers_multiply_as_f32_keeps_them() {
    for format in FORMATS {
        let one = format.bits(1);
        let infinite = ((1 << format.exponent_bits) - 1) << format.mantissa_bits;
        let mut all = Matrices { a: [[0; 16]; 16], b: [[0; 8]; 16], c: [[0.0; 8]; 16] };
        all.b = std::array::from_fn(|_| [one; 8]);
        // Row 0: the least subnormal. 1: the largest, twice (no f16 any more). 2: cancelled to what C has. 3: infinite. 4: infinite less
        // infinite. 5: a NaN. 6: infinite times zero, by B.
        (all.a[0][3], all.a[1][0], all.a[1][9]) = (1, infinite - 1, infinite - 1);
        (all.a[2][0], all.a[2][15], all.c[2]) = (infinite - 1, (infinite - 1) | 0x8000, [3.0; 8]);
        (all.a[3][1], all.a[4][1], all.a[4][14], all.a[5][2]) = (infinite, infinite, infinite | 0x8000, infinite | 1);
        (all.a[6][12], all.b[12][5]) = (infinite, 0);
        // Row 7: 16 products, or 15, each of which f32 would lose, were they added one by one.
        all.a[7] = [one; 16];
        all.c[7] = [16_777_216.0; 8];
        let d = all.run(MULTIPLY, &format.opcode());
        let largest = format.number(infinite - 1);
        assert_eq!(d[0], [format.number(1) as f32; 8]);
        assert_eq!(d[1], [(2.0 * largest) as f32; 8]);
        assert_eq!(d[2], [3.0; 8]);
        assert_eq!(d[3], [f32::INFINITY; 8]);
        for (row, column) in [(4, 0), (5, 7), (6, 5)] {
            assert_eq!(d[row][column].to_bits(), 0x7fff_ffff, "{row}, {column}");
        }
        assert_eq!(d[6][4], f32::INFINITY);
        assert_eq!(d[7], [16_777_232.0; 8]);
    }
}

#[test]
fn planted_wrong_fragments_and_types_are_seen() {
    let swaps = [
        ("{%r2, %r3, %r4, %r5}", "{%r2, %r4, %r3, %r5}"),
        ("{%r2, %r3, %r4, %r5}", "{%r3, %r2, %r5, %r4}"),
        ("{%r6, %r7}, {%r8", "{%r7, %r6}, {%r8"),
        ("{%r12, %r13, %r14, %r15}, {%r2", "{%r12, %r14, %r13, %r15}, {%r2"),
        ("{%r12, %r13, %r14, %r15}, {%r2", "{%r13, %r12, %r15, %r14}, {%r2"),
        ("{%r8, %r9, %r10, %r11};", "{%r9, %r8, %r11, %r10};"),
        ("{%r8, %r9, %r10, %r11};", "{%r8, %r10, %r9, %r11};"),
    ];
    for (index, format) in FORMATS.into_iter().enumerate() {
        let all = Matrices::asymmetric(format);
        let right = all.product(format);
        for (from, to) in swaps {
            assert!(MULTIPLY.contains(from), "{from}");
            assert_ne!(all.run(&MULTIPLY.replace(from, to), &format.opcode()), right, "{from} read as {to}");
        }
        assert_ne!(all.run(MULTIPLY, &FORMATS[1 - index].opcode()), right, "{} read as the other", format.name);
    }
}

#[test]
fn four_matrices_are_loaded_plain_and_transposed() {
    // Element `column` of row `row` of matrix `matrix`.
    let element = |matrix: usize, row: usize, column: usize| (64 * matrix + 8 * row + column) as u32;
    let pair = |low: u32, high: u32| low | high << 16;
    let rows = (0..LANES).flat_map(|row| (0..4).map(move |i| (row / 8, row % 8, 2 * i)));
    let data: Vec<u32> =
        rows.map(|(m, row, column)| pair(element(m, row, column), element(m, row, column + 1))).collect();
    let data: Vec<u32> = data.into_iter().chain([0; 10 * LANES - 4 * LANES]).collect();
    let expected = |transposed: bool| -> Vec<u32> {
        let of = |lane: usize, matrix: usize| {
            let (outer, inner) = (lane / 4, lane % 4 * 2);
            if transposed {
                pair(element(matrix, inner, outer), element(matrix, inner + 1, outer))
            } else {
                pair(element(matrix, outer, inner), element(matrix, outer, inner + 1))
            }
        };
        (0..LANES).flat_map(|lane| (0..4).map(move |matrix| of(lane, matrix))).collect()
    };
    let found = |body: &str, variant: &dyn Fn(&str) -> Option<String>| run(body, &data, variant)[..4 * LANES].to_vec();
    let transposed = |opcode: &str| {
        (opcode == "ldmatrix.sync.aligned.m8n8.x4.shared.b16")
            .then(|| "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16".to_owned())
    };
    assert_eq!(found(LOAD, &as_it_is), expected(false));
    assert_eq!(found(LOAD, &transposed), expected(true));
    // Planted: one taken for the other, matrices mixed up.
    assert_ne!(found(LOAD, &transposed), expected(false));
    for variant in [&as_it_is as &dyn Fn(&str) -> Option<String>, &transposed] {
        let mixed = LOAD.replace("{%r8, %r9, %r10, %r11}, [%r2]", "{%r8, %r10, %r9, %r11}, [%r2]");
        assert!(![expected(false), expected(true)].contains(&found(&mixed, variant)));
    }
}
