//! Opcodes against the PTX ISA manual, with awkward operands; and a check that the cases are sharp: an interpreter that executes any
//! opcode as another one with the same operands fails them.

#[path = "opcodes/mod.rs"]
#[expect(dead_code, reason = "the list of all opcodes is for tests of kernels")]
mod cases;

use cases::memory::{ATOMICS, Atomic, DATA, LOADS, Load, STORES, Store};
use cases::{ELSEWHERE, Row, rows};
use cuda_ladder::{Arena, Launch, Module};

/// A kernel in which each lane carries out the opcode on its own case.
fn kernel(row: &Row) -> String {
    let name = |kind: char, index: usize| format!("%{kind}{index}");
    let mut text = String::from(
        ".version 9.0\n.target sm_100\n.address_size 64\n.visible .entry one(.param .u64 data) {\n\
         .reg .b16 %h<8>; .reg .b32 %r<12>; .reg .b64 %d<12>; .reg .pred %p<8>;\n\
         ld.param.u64 %d10, [data]; mov.s32 %r10, %tid.x; mad.wide.u32 %d10, %r10, 40, %d10;\n",
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
    for row in rows() {
        let module = Module::parse(&kernel(row)).unwrap_or_else(|error| panic!("{}: {error}", row.opcode));
        for ((inputs, expected), found) in row.cases.iter().zip(results(row, &module)) {
            if found != *expected {
                failures.push(format!("{}{} {inputs:x?}: {found:#x}, expected {expected:#x}", row.opcode, row.suffix));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// One spelling for opcodes that do the same for registers of the same widths.
fn canonical(opcode: &str) -> String {
    let name = opcode.split('.').next().unwrap();
    let typed = |from: &[&str], to: &str| {
        from.iter().fold(opcode.to_owned(), |opcode, class| {
            ["16", "32", "64"]
                .iter()
                .fold(opcode, |opcode, bits| opcode.replace(&format!(".{class}{bits}"), &format!(".{to}{bits}")))
        })
    };
    match name {
        "mov" | "selp" | "ld" | "st" => typed(&["f", "u", "s"], "b").replace(".nc.", "."),
        "cvta" => "mov.b64".to_owned(),
        "shr" => typed(&["b"], "u"),
        "setp" if opcode.contains(".eq.") || opcode.contains(".ne.") => typed(&["b", "u"], "s"),
        "add" | "sub" | "mul" if opcode.ends_with(".rn.f32") => opcode.replace(".rn", ""),
        "add" | "sub" if !opcode.contains(".sat") => typed(&["u"], "s"),
        _ => opcode.to_owned(),
    }
}

/// More opcodes that do the same.
const SAME: [[&str; 2]; 3] =
    [["cvt.s32.s8", "cvt.s8.s32"], ["neg.f16x2", "neg.bf16x2"], ["div.rn.f32", "div.full.f32"]];

fn does_the_same(row: &str, other: &str) -> bool {
    canonical(row) == canonical(other) || SAME.iter().any(|pair| pair.contains(&row) && pair.contains(&other))
}

#[test]
fn planted_wrong_semantics_are_caught() {
    let rows = rows();
    let (mut variants, mut unnoticed) = (0, Vec::new());
    for row in &rows {
        let right: Vec<u64> = row.cases.iter().map(|case| case.1).collect();
        let text = kernel(row);
        for other in rows.iter().filter(|other| other.kinds == row.kinds && other.suffix == row.suffix) {
            if does_the_same(row.opcode, other.opcode) {
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

/// What a space's operand looks like; generic addresses lead to both memories.
fn operands(opcode: &str, offset: usize) -> Vec<String> {
    let has = |space: &str| opcode.split('.').any(|word| word == space);
    let places: &[&str] = match () {
        () if has("global") => &["%d1"],
        () if has("shared") => &["%r9"],
        () if has("param") => &["bytes"],
        () => &["%d1", "%d2"],
    };
    places.iter().map(|place| format!("[{place}+{offset}]")).collect()
}

/// Runs one thread over 128 bytes: [`DATA`], 32 bytes for shared memory at the end, values (8 bytes each). `%d1` is their address,
/// `%r9` and `%d2` that of shared memory, a copy of [`DATA`], as is the parameter `bytes`. `None`: it fails, or is no PTX.
fn run(body: &str, values: &[u64], variant: &dyn Fn(&str) -> Option<String>) -> Option<Vec<u8>> {
    let text = format!(
        ".version 9.0\n.target sm_100\n.address_size 64\n\
         .visible .entry one(.param .u64 data, .param .align 16 .b8 bytes[32]) {{\n\
         .reg .b16 %h<8>; .reg .b32 %r<12>; .reg .b64 %d<12>; .shared .align 16 .b8 room[32];\n\
         ld.param.b64 %d1, [data]; mov.b32 %r9, room; mov.b64 %d3, room; cvta.shared.u64 %d2, %d3;\n\
         ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%d1]; st.shared.v4.b32 [room], {{%r1, %r2, %r3, %r4}};\n\
         ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%d1+16]; st.shared.v4.b32 [room+16], {{%r1, %r2, %r3, %r4}};\n{body}\n\
         ld.shared.v4.b32 {{%r1, %r2, %r3, %r4}}, [room]; st.global.v4.b32 [%d1+32], {{%r1, %r2, %r3, %r4}};\n\
         ld.shared.v4.b32 {{%r1, %r2, %r3, %r4}}, [room+16]; st.global.v4.b32 [%d1+48], {{%r1, %r2, %r3, %r4}};\n\
         ret;\n}}\n"
    );
    let module = Module::parse_variant(&text, variant).ok()?;
    let entry = module.entry("one").unwrap();
    let mut data = [0; 128];
    data[..32].copy_from_slice(&DATA);
    data[64..].chunks_exact_mut(8).zip(values).for_each(|(to, value)| to.copy_from_slice(&value.to_le_bytes()));
    let mut memory = Arena::new();
    let address = memory.upload(&data);
    let params = entry.pack(&[&address.to_le_bytes(), &DATA]).unwrap();
    module.run(entry, &Launch::new([1, 1, 1], [1, 1, 1], &params), &mut memory).ok()?;
    Some(memory.download(address, 128))
}

/// The registers that an access moves, one or in braces.
fn registers(kinds: &str) -> (Vec<String>, String) {
    let names: Vec<String> = kinds.chars().enumerate().map(|(index, kind)| format!("%{kind}{}", index + 4)).collect();
    let list = if names.len() == 1 { names[0].clone() } else { format!("{{{}}}", names.join(", ")) };
    (names, list)
}

fn width(register: &str) -> &'static str {
    match register.as_bytes()[1] {
        b'h' => "b16",
        b'r' => "b32",
        _ => "b64",
    }
}

/// What a load leaves in its registers, from each address that it can have.
fn loaded(load: &Load, variant: &dyn Fn(&str) -> Option<String>) -> Vec<Option<Vec<u64>>> {
    let (names, list) = registers(load.kinds);
    let run = |operand: String| {
        let mut body = format!("{} {list}, {operand};", load.opcode);
        for (index, name) in names.iter().enumerate() {
            body += &format!(" st.global.{} [%d1+{}], {name};", width(name), 64 + 8 * index);
        }
        let data = run(&body, &[], variant)?;
        Some(data[64..].chunks_exact(8).take(names.len()).map(|x| u64::from_le_bytes(x.try_into().unwrap())).collect())
    };
    operands(load.opcode, load.offset).into_iter().map(run).collect()
}

/// The 32 bytes that a store leaves, at each address that it can have.
fn stored(store: &Store, variant: &dyn Fn(&str) -> Option<String>) -> Vec<Option<Vec<u8>>> {
    let (names, list) = registers(store.kinds);
    let run = |operand: String| {
        let mut body = String::new();
        for (index, name) in names.iter().enumerate() {
            body += &format!("ld.global.{} {name}, [%d1+{}]; ", width(name), 64 + 8 * index);
        }
        body += &format!("{} {operand}, {list};", store.opcode);
        let data = run(&body, store.values, variant)?;
        Some(if operand.contains("%d1") { data[..32].to_vec() } else { data[32..64].to_vec() })
    };
    operands(store.opcode, store.offset).into_iter().map(run).collect()
}

/// The word that an atomic leaves, and the one that it returns, at each address that it can have.
fn exchanged(atomic: &Atomic, variant: &dyn Fn(&str) -> Option<String>) -> Vec<Option<[u32; 2]>> {
    let run = |operand: String| {
        let body = format!(
            "ld.global.b32 %r4, [%d1+64]; ld.global.b32 %r5, [%d1+72]; st.b32 {operand}, %r4;\n\
             {} %r6, {operand}, %r5; ld.b32 %r7, {operand}; st.global.b32 [%d1+64], %r7; st.global.b32 [%d1+72], %r6;",
            atomic.opcode
        );
        // Plain accesses take generic addresses, also of shared memory.
        let body =
            body.replace("st.b32 [%r9", "st.shared.b32 [%r9").replace("ld.b32 %r7, [%r9", "ld.shared.b32 %r7, [%r9");
        let data = run(&body, &[u64::from(atomic.before), u64::from(atomic.operand)], variant)?;
        Some([64, 72].map(|at| u32::from_le_bytes(data[at..at + 4].try_into().unwrap())))
    };
    operands(atomic.opcode, 8).into_iter().map(run).collect()
}

fn as_it_is(_: &str) -> Option<String> {
    None
}

fn filled(store: &Store) -> Vec<u8> {
    let mut bytes = DATA.to_vec();
    bytes[store.offset..store.offset + store.expected.len()].copy_from_slice(store.expected);
    bytes
}

#[test]
fn accesses_move_the_bytes_that_the_manual_says() {
    for load in LOADS {
        let found = loaded(load, &as_it_is);
        assert!(found.iter().all(|found| found.as_deref() == Some(load.expected)), "{load:?}: {found:x?}");
    }
    for store in STORES {
        let found = stored(store, &as_it_is);
        assert!(found.iter().all(|found| found.as_ref() == Some(&filled(store))), "{store:?}: {found:x?}");
    }
    for atomic in ATOMICS {
        let found = exchanged(atomic, &as_it_is);
        assert!(found.iter().all(|found| *found == Some([atomic.after, atomic.before])), "{atomic:?}: {found:x?}");
    }
}

/// An access executed as another one: also noticed where it is no PTX any more, or fails.
#[test]
fn planted_wrong_accesses_are_caught() {
    // A generic access reaches global memory as well as a global one does.
    let same = |row: &str, other: &str| {
        canonical(row) == canonical(other) || canonical(row).replace(".global", "") == canonical(other)
    };
    let mut variants = 0;
    for load in LOADS {
        for other in LOADS.iter().filter(|other| !same(load.opcode, other.opcode)) {
            let wrong = |opcode: &str| (opcode == load.opcode).then(|| other.opcode.to_owned());
            variants += 1;
            let right = |found: &Option<Vec<u64>>| found.as_deref() == Some(load.expected);
            assert!(!loaded(load, &wrong).iter().all(right), "{load:?} executed as {}", other.opcode);
        }
    }
    for store in STORES {
        for other in STORES.iter().filter(|other| !same(store.opcode, other.opcode)) {
            let wrong = |opcode: &str| (opcode == store.opcode).then(|| other.opcode.to_owned());
            variants += 1;
            let right = |found: &Option<Vec<u8>>| found.as_ref() == Some(&filled(store));
            assert!(!stored(store, &wrong).iter().all(right), "{store:?} executed as {}", other.opcode);
        }
    }
    for opcode in ATOMICS.iter().map(|atomic| atomic.opcode) {
        for name in ["add.u32", "min.u32", "max.u32", "min.s32", "max.s32", "exch.b32", "and.b32", "or.b32", "xor.b32"]
        {
            for space in ["", "global.", "shared."] {
                let other = format!("atom.{space}{name}");
                if same(opcode, &other) {
                    continue;
                }
                let wrong = |found: &str| (found == opcode).then(|| other.clone());
                variants += 1;
                let noticed = ATOMICS.iter().filter(|atomic| atomic.opcode == opcode).any(|atomic| {
                    exchanged(atomic, &wrong).iter().any(|found| *found != Some([atomic.after, atomic.before]))
                });
                assert!(noticed, "{opcode} executed as {other}");
            }
        }
    }
    println!("{variants} wrong interpreters");
    assert!(variants > 1000);
}

/// The part of a test file before its first test, and a test's own text.
fn text_of(test: &str) -> String {
    let files = [include_str!("warp.rs"), include_str!("matrix.rs")];
    for file in files {
        let mut parts = file.split("#[test]\n");
        let before = parts.next().unwrap();
        if let Some(part) = parts.find(|part| part.starts_with(&format!("fn {test}("))) {
            return format!("{before}{part}");
        }
    }
    panic!("there is no test {test}")
}

#[test]
fn cases_that_are_no_rows_are_where_they_are_said_to_be() {
    for (opcode, test) in ELSEWHERE {
        let text = text_of(test);
        let stands = |(at, _): (usize, &str)| {
            let before = text[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric());
            let behind = text[at + opcode.len()..].chars().next();
            before && behind.is_some_and(|c| [' ', ';', '"'].contains(&c))
        };
        assert!(text.match_indices(opcode).any(stands), "{test} has no {opcode}");
    }
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
