//! Opcodes against the PTX ISA manual, with awkward operands; and a check that the cases are sharp: an interpreter that executes any
//! opcode as another one with the same operands fails them.

#[path = "opcodes/bits.rs"]
mod bits;
#[path = "opcodes/compare.rs"]
mod compare;
#[path = "opcodes/convert.rs"]
mod convert;
#[path = "opcodes/float.rs"]
mod float;
#[path = "opcodes/half.rs"]
mod half;
#[path = "opcodes/integer.rs"]
mod integer;

use cuda_ladder::{Arena, Launch, Module};

/// An opcode, what follows its operands, the kinds of its operands (target first), and cases: inputs and result.
///
/// Kinds: `h`, `r`, `d` are registers of 16, 32 and 64 bits, `p` is a predicate.
struct Row {
    opcode: &'static str,
    suffix: &'static str,
    kinds: &'static str,
    cases: &'static [(&'static [u64], u64)],
}

const fn row(opcode: &'static str, kinds: &'static str, cases: &'static [(&'static [u64], u64)]) -> Row {
    Row { opcode, suffix: "", kinds, cases }
}

fn all() -> Vec<&'static Row> {
    [bits::ROWS, compare::ROWS, convert::ROWS, float::ROWS, half::ROWS, integer::ROWS].into_iter().flatten().collect()
}

/// A kernel in which each lane carries out the opcode on its own case.
fn kernel(row: &Row) -> String {
    let name = |kind: char, index: usize| format!("%{kind}{index}");
    let mut text = String::from(
        ".version 9.0\n.target sm_100\n.address_size 64\n.visible .entry one(.param .u64 data) {\n\
         .reg .b16 %h<8>; .reg .b32 %r<12>; .reg .b64 %d<12>; .reg .pred %p<8>;\n\
         ld.param.u64 %d10, [data]; mov.u32 %r10, %tid.x; mov.u32 %r9, 0;\n\
         mov.b64 %d11, {%r10, %r9}; mad.lo.u64 %d10, %d11, 40, %d10;\n",
    );
    let mut operands = Vec::new();
    for (index, kind) in row.kinds.chars().enumerate() {
        let register = name(kind, index);
        let at = 8 * index;
        if index > 0 {
            text += &match kind {
                'p' => format!("ld.global.u32 %r11, [%d10+{at}]; setp.ne.u32 {register}, %r11, 0;\n"),
                'h' => format!("ld.global.u16 {register}, [%d10+{at}];\n"),
                'r' => format!("ld.global.u32 {register}, [%d10+{at}];\n"),
                _ => format!("ld.global.u64 {register}, [%d10+{at}];\n"),
            };
        }
        operands.push(register);
    }
    let target = &operands[0];
    text += &format!("{} {}{};\n", row.opcode, operands.join(", "), row.suffix);
    text += &match row.kinds.as_bytes()[0] {
        b'p' => format!("selp.u32 %r11, 1, 0, {target}; st.global.u32 [%d10], %r11;\n"),
        b'h' => format!("st.global.u16 [%d10], {target};\n"),
        b'r' => format!("st.global.u32 [%d10], {target};\n"),
        _ => format!("st.global.u64 [%d10], {target};\n"),
    };
    text + "ret;\n}\n"
}

/// Carries out all cases of a row; what they give.
fn results(row: &Row, module: &Module) -> Vec<u64> {
    let mut data = Vec::new();
    for (inputs, _) in row.cases {
        assert_eq!(inputs.len() + 1, row.kinds.len(), "{}", row.opcode);
        let mut words = [0u64; 5];
        words[1..=inputs.len()].copy_from_slice(inputs);
        data.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
    let mut memory = Arena::new();
    let address = memory.upload(&data);
    let entry = module.entry("one").unwrap();
    let params = entry.pack(&[&address.to_le_bytes()]).unwrap();
    let launch = Launch::new([1, 1, 1], [row.cases.len() as u32, 1, 1], &params);
    module.run(entry, &launch, &mut memory).unwrap();
    let data = memory.download(address, data.len());
    data.chunks_exact(40).map(|words| u64::from_le_bytes(words[..8].try_into().unwrap())).collect()
}

#[test]
fn opcodes_do_what_the_manual_says() {
    let mut failures = Vec::new();
    for row in all() {
        let module = Module::parse(&kernel(row)).unwrap_or_else(|error| panic!("{}: {error}", row.opcode));
        for ((inputs, expected), found) in row.cases.iter().zip(results(row, &module)) {
            if found != *expected {
                failures.push(format!("{}{} {inputs:x?}: {found:#x}, expected {expected:#x}", row.opcode, row.suffix));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Opcodes that do the same for registers of these widths.
const SAME: [[&str; 2]; 3] =
    [["cvt.s32.s8", "cvt.s8.s32"], ["neg.f16x2", "neg.bf16x2"], ["div.rn.f32", "div.full.f32"]];

#[test]
fn planted_wrong_semantics_are_caught() {
    let rows = all();
    let (mut variants, mut unnoticed) = (0, Vec::new());
    for row in &rows {
        let right: Vec<u64> = row.cases.iter().map(|case| case.1).collect();
        let text = kernel(row);
        for other in rows.iter().filter(|other| other.kinds == row.kinds && other.suffix == row.suffix) {
            let same = SAME.iter().any(|pair| pair.contains(&row.opcode) && pair.contains(&other.opcode));
            if other.opcode == row.opcode || same {
                continue;
            }
            let wrong = |opcode: &str| (opcode == row.opcode).then(|| other.opcode.to_owned());
            let module = Module::parse_variant(&text, &wrong).unwrap();
            variants += 1;
            if results(row, &module) == right {
                unnoticed.push(format!("{} executed as {}", row.opcode, other.opcode));
            }
        }
    }
    println!("{variants} wrong interpreters");
    assert!(variants > 1000);
    assert!(unnoticed.is_empty(), "{} unnoticed:\n{}", unnoticed.len(), unnoticed.join("\n"));
}

#[test]
fn unknown_opcodes_and_modifiers_are_errors_with_their_line() {
    let module = |line: &str| {
        let text = format!(
            ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry one() {{\n.reg .b32 %r<4>; .reg .b64 %d<4>;\n{line}\nret;\n}}"
        );
        Module::parse(&text)
    };
    assert!(module("mov.u32 %r1, 1;").is_ok());
    for line in [
        "wgmma.fence.sync.aligned;",
        "add.s33 %r1, %r2, %r3;",
        "add.f32.weird %r1, %r2, %r3;",
        "mov.u32 %r1, %clock;",
        "mov.u32 %r9, 1;",
        "bra nowhere;",
        "call missing;",
        "add.s32 %r1, %r2;",
        "ld.global.u32 %r1, [%d1], %d2;",
        "cp.async.bulk.shared.global [%r1], [%d1], 16, [%r2];",
        "ex2.f32 %r1, %r2;",
        "fma.rz.f64 %d1, %d1, %d1, %d1;",
        "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32 {%r1}, {%r1}, {%r1}, {%r1};",
    ] {
        let error = module(line).map(|_| ()).expect_err(line);
        assert_eq!(error.line, 6, "{line}: {error}");
    }
}
