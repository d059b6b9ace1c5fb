//! Collectives, barriers, matrices, memory and control flow against the PTX ISA manual, each by a small kernel of PTX.

use cuda_ladder::{Arena, Counts, Fault, FaultKind, Launch, Module, Schedule};

/// A kernel whose body gets `%d1`, the address of `data`, and `%r1`, the thread; its registers are `%r<40>`, `%d<10>`, `%p<8>`, `%h<8>`.
fn module(body: &str) -> Module {
    let text = format!(
        ".version 9.0\n.target sm_100\n.address_size 64\n.visible .entry one(.param .u64 data) {{\n\
         .reg .b32 %r<40>; .reg .b64 %d<10>; .reg .pred %p<8>; .reg .b16 %h<8>;\n\
         .shared .align 16 .b8 room[2048];\n\
         ld.param.u64 %d1, [data]; mov.u32 %r1, %tid.x;\n{body}\nret;\n}}\n"
    );
    Module::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn run_on(body: &str, threads: u32, data: &[u32], schedule: Schedule) -> Result<(Vec<u32>, Counts), Fault> {
    let module = module(body);
    let entry = module.entry("one").unwrap();
    let mut memory = Arena::new();
    let bytes: Vec<u8> = data.iter().flat_map(|word| word.to_le_bytes()).collect();
    let address = memory.upload(&bytes);
    let params = entry.pack(&[&address.to_le_bytes()]).unwrap();
    let launch = Launch { schedule, ..Launch::new([1, 1, 1], [threads, 1, 1], &params) };
    let counts = module.run(entry, &launch, &mut memory)?;
    let bytes = memory.download(address, bytes.len());
    Ok((bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect(), counts))
}

/// Runs `body`, which leaves a value of each of `threads` threads in `%r2`, under all schedules; they must agree.
fn each_thread(body: &str, threads: u32) -> Result<Vec<u32>, Fault> {
    let body = format!("{body}\nmad.wide.u32 %d9, %r1, 4, %d1; st.global.u32 [%d9], %r2;");
    let data = vec![0; threads as usize];
    let (first, _) = run_on(&body, threads, &data, Schedule::Forward)?;
    for schedule in [Schedule::Reverse, Schedule::Random(1), Schedule::Random(2)] {
        assert_eq!(run_on(&body, threads, &data, schedule)?.0, first, "{schedule:?}");
    }
    Ok(first)
}

fn lanes(value: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..32).map(value).collect()
}

#[test]
fn shuffles_stay_inside_their_segments() {
    let shuffle = |line: &str| each_thread(&format!("mul.lo.s32 %r3, %r1, 10; {line}"), 32).unwrap();
    // A lane whose source is outside gets its own value.
    let up = shuffle("shfl.sync.up.b32 %r2, %r3, 2, 0, 0xffffffff;");
    assert_eq!(up, lanes(|lane| if lane < 2 { 10 * lane } else { 10 * (lane - 2) }));
    let down = shuffle("shfl.sync.down.b32 %r2, %r3, 3, 31, 0xffffffff;");
    assert_eq!(down, lanes(|lane| if lane > 28 { 10 * lane } else { 10 * (lane + 3) }));
    let butterfly = shuffle("shfl.sync.bfly.b32 %r2, %r3, 5, 31, 0xffffffff;");
    assert_eq!(butterfly, lanes(|lane| 10 * (lane ^ 5)));
    let index = shuffle("shfl.sync.idx.b32 %r2, %r3, 7, 31, 0xffffffff;");
    assert_eq!(index, lanes(|_| 70));
    // Segments of 8 lanes: the mask of `c` is 0x18, as for a width of 8.
    let index = shuffle("shfl.sync.idx.b32 %r2, %r3, 1, 0x181f, 0xffffffff;");
    assert_eq!(index, lanes(|lane| 10 * (lane / 8 * 8 + 1)));
    let down = shuffle("shfl.sync.down.b32 %r2, %r3, 2, 0x1807, 0xffffffff;");
    assert_eq!(down, lanes(|lane| if lane % 8 > 5 { 10 * lane } else { 10 * (lane + 2) }));
    // The predicate says whether the source was inside.
    let inside = shuffle("shfl.sync.up.b32 %r4|%p1, %r3, 4, 0, 0xffffffff; selp.u32 %r2, 1, 0, %p1;");
    assert_eq!(inside, lanes(|lane| u32::from(lane >= 4)));
}

#[test]
fn votes_matches_and_reductions() {
    let odd = "and.b32 %r3, %r1, 1; setp.eq.u32 %p1, %r3, 1;";
    let with = |line: &str| each_thread(&format!("{odd} {line}"), 32).unwrap();
    assert_eq!(with("vote.sync.ballot.b32 %r2, %p1, 0xffffffff;"), lanes(|_| 0xAAAA_AAAA));
    assert_eq!(with("vote.sync.ballot.b32 %r2, !%p1, 0xffffffff;"), lanes(|_| 0x5555_5555));
    let votes = "vote.sync.all.pred %p2, %p1, -1; vote.sync.any.pred %p3, %p1, -1; vote.sync.uni.pred %p4, %p1, -1;\n\
        selp.u32 %r4, 1, 0, %p2; selp.u32 %r5, 2, 0, %p3; selp.u32 %r6, 4, 0, %p4; or.b32 %r2, %r4, %r5; or.b32 %r2, %r2, %r6;";
    assert_eq!(with(votes), lanes(|_| 2));
    assert_eq!(
        with("match.any.sync.b32 %r2, %r3, 0xffffffff;"),
        lanes(|lane| if lane % 2 == 1 { 0xAAAA_AAAA } else { 0x5555_5555 })
    );
    let all = "match.all.sync.b32 %r2|%p2, %r3, 0xffffffff;";
    assert_eq!(with(all), lanes(|_| 0));
    assert_eq!(with("mov.u32 %r4, 9; match.all.sync.b32 %r2|%p2, %r4, 0xffffffff;"), lanes(|_| u32::MAX));
    let value = "sub.s32 %r3, %r1, 5;";
    let reduce = |line: &str| each_thread(&format!("{value} {line}"), 32).unwrap();
    assert_eq!(reduce("redux.sync.add.s32 %r2, %r3, 0xffffffff;"), lanes(|_| 496 - 160));
    assert_eq!(reduce("redux.sync.min.s32 %r2, %r3, 0xffffffff;"), lanes(|_| -5i32 as u32));
    assert_eq!(reduce("redux.sync.min.u32 %r2, %r3, 0xffffffff;"), lanes(|_| 0));
    assert_eq!(reduce("redux.sync.max.s32 %r2, %r3, 0xffffffff;"), lanes(|_| 26));
    assert_eq!(reduce("redux.sync.or.b32 %r2, %r1, 0xffffffff;"), lanes(|_| 31));
    assert_eq!(reduce("redux.sync.and.b32 %r2, %r1, 0xffffffff;"), lanes(|_| 0));
    assert_eq!(reduce("redux.sync.xor.b32 %r2, %r1, 0xffffffff;"), lanes(|_| 0));
    let elected = each_thread("elect.sync %r2|%p1, 0xffffffff; @%p1 add.s32 %r2, %r2, 100;", 32).unwrap();
    assert_eq!(elected, lanes(|lane| if lane == 0 { 100 } else { 0 }));
}

#[test]
fn collectives_wait_for_lanes_that_come_another_way() {
    // Lanes below 8 take a longer way; half of the warp votes by itself.
    let body = "setp.lt.u32 %p1, %r1, 8; mov.u32 %r3, 1; @!%p1 bra join;\n\
        add.s32 %r3, %r3, 1; add.s32 %r3, %r3, 1;\njoin:\n\
        shfl.sync.bfly.b32 %r2, %r3, 8, 31, 0xffffffff;";
    assert_eq!(each_thread(body, 32).unwrap(), lanes(|lane| if (8..16).contains(&lane) { 3 } else { 1 }));
    let halves = "setp.lt.u32 %p1, %r1, 16; mov.u32 %r4, 0xffff; mov.u32 %r5, 0xffff0000; selp.b32 %r6, %r4, %r5, %p1;\n\
        setp.eq.u32 %p2, %r1, %r1; vote.sync.ballot.b32 %r2, %p2, %r6;";
    assert_eq!(each_thread(halves, 32).unwrap(), lanes(|lane| if lane < 16 { 0xFFFF } else { 0xFFFF_0000 }));
    let exited = "setp.ge.u32 %p1, %r1, 24; mov.u32 %r2, 77; @%p1 exit; redux.sync.add.u32 %r2, %r1, 0xffffffff;";
    assert_eq!(each_thread(exited, 32).unwrap(), lanes(|lane| if lane < 24 { 276 } else { 0 }));
}

#[test]
fn planted_wrong_masks_and_missing_lanes_are_caught() {
    let kind = |body: &str| each_thread(body, 32).unwrap_err();
    let missing = kind(
        "setp.lt.u32 %p1, %r1, 8; mov.u32 %r2, 0; @%p1 bra out; vote.sync.ballot.b32 %r2, %p1, 0xffffffff; bra end;\n\
        out: bar.sync 0; bar.sync 0;\nend:",
    );
    assert_eq!(missing.kind, FaultKind::WarpDivergence, "{missing}");
    let stranger = kind("setp.lt.u32 %p1, %r1, 8; vote.sync.ballot.b32 %r2, %p1, 0xff;");
    assert_eq!((stranger.kind.clone(), stranger.thread), (FaultKind::WarpDivergence, [8, 0, 0]), "{stranger}");
    // The source lane of lanes 0 to 15 has exited.
    let gone =
        kind("setp.ge.u32 %p1, %r1, 16; mov.u32 %r2, 0; @%p1 exit; shfl.sync.bfly.b32 %r2, %r1, 16, 31, 0xffffffff;");
    assert_eq!(gone.kind, FaultKind::UninitialisedRegister, "{gone}");
}

#[test]
fn barriers_order_count_and_diverge() {
    // Each thread reads what the one of the next warp wrote.
    let body = "shl.b32 %r3, %r1, 2; mov.u32 %r4, room; add.s32 %r5, %r4, %r3; st.shared.u32 [%r5], %r1; BARRIER\n\
        add.s32 %r6, %r1, 32; and.b32 %r6, %r6, 127; shl.b32 %r6, %r6, 2; add.s32 %r6, %r4, %r6; ld.shared.u32 %r2, [%r6];";
    let expected: Vec<u32> = (0..128).map(|thread| (thread + 32) % 128).collect();
    for barrier in
        ["bar.sync 0;", "barrier.sync 3;", "bar.sync 1, 128;", "mov.u32 %r9, 2; barrier.sync.aligned %r9, 128;"]
    {
        assert_eq!(each_thread(&body.replace("BARRIER", barrier), 128).unwrap(), expected, "{barrier}");
    }
    for not_enough in
        ["", "bar.warp.sync 0xffffffff;", "membar.gl;", "mov.u32 %r9, %r1; shfl.sync.idx.b32 %r9, %r9, 0, 31, -1;"]
    {
        let fault = each_thread(&body.replace("BARRIER", not_enough), 128).unwrap_err();
        assert!([FaultKind::SharedRace, FaultKind::UninitialisedShared].contains(&fault.kind), "{not_enough}: {fault}");
    }
    // Half of the block meets in a barrier of its own; the rest is not ordered by it.
    let fault =
        each_thread(&body.replace("BARRIER", "setp.lt.u32 %p1, %r1, 64; @%p1 bar.sync 1, 64;"), 128).unwrap_err();
    assert!([FaultKind::SharedRace, FaultKind::UninitialisedShared].contains(&fault.kind), "{fault}");
    let count = "setp.lt.u32 %p1, %r1, 5; bar.red.popc.u32 %r2, 0, %p1;";
    assert_eq!(each_thread(count, 64).unwrap(), [5; 64]);
    let both = "setp.lt.u32 %p1, %r1, 5; bar.red.and.pred %p2, 0, %p1; bar.red.or.pred %p3, 0, %p1; selp.u32 %r3, 1, 0, %p2;\n\
        selp.u32 %r4, 2, 0, %p3; or.b32 %r2, %r3, %r4;";
    assert_eq!(each_thread(both, 64).unwrap(), [2; 64]);
    let apart =
        "mov.u32 %r2, 0; setp.lt.u32 %p1, %r1, 32; @%p1 bra other; bar.sync 0; bra end;\nother: bar.sync 0;\nend:";
    let fault = each_thread(apart, 64).unwrap_err();
    assert_eq!(fault.kind, FaultKind::BarrierDivergence, "{fault}");
    let exited = "mov.u32 %r2, 0; setp.eq.u32 %p1, %r1, 40; @%p1 exit; bar.sync 0;";
    let fault = each_thread(exited, 64).unwrap_err();
    assert_eq!(fault.kind, FaultKind::BarrierDivergence, "{fault}");
    assert!(fault.detail.contains("thread 40 has exited"), "{fault}");
}

#[test]
fn lanes_of_a_warp_are_ordered_by_its_barrier_alone() {
    let body = "shl.b32 %r3, %r1, 2; mov.u32 %r4, room; add.s32 %r5, %r4, %r3; st.shared.u32 [%r5], %r1; BARRIER\n\
        xor.b32 %r6, %r1, 1; shl.b32 %r6, %r6, 2; add.s32 %r6, %r4, %r6; ld.shared.u32 %r2, [%r6];";
    let swapped = lanes(|lane| lane ^ 1);
    assert_eq!(each_thread(&body.replace("BARRIER", "bar.warp.sync 0xffffffff;"), 32).unwrap(), swapped);
    // Pairs alone: the mask of a lane is its pair's.
    let pairs = "and.b32 %r7, %r1, 30; mov.u32 %r8, 3; shl.b32 %r8, %r8, %r7; bar.warp.sync %r8;";
    assert_eq!(each_thread(&body.replace("BARRIER", pairs), 32).unwrap(), swapped);
    let fault = each_thread(&body.replace("BARRIER", ""), 32).unwrap_err();
    assert!([FaultKind::SharedRace, FaultKind::UninitialisedShared].contains(&fault.kind), "{fault}");
}

#[test]
fn matrices_are_loaded_stored_and_transposed() {
    // Row r of an 8 x 8 matrix holds 8 r + c; lanes 0 to 7 name its rows.
    let fill = "and.b32 %r3, %r1, 7; shl.b32 %r4, %r3, 4; mov.u32 %r5, room; add.s32 %r6, %r5, %r4;\n\
        shl.b32 %r7, %r1, 1; shl.b32 %r8, %r1, 1; add.s32 %r8, %r8, 1; shl.b32 %r9, %r8, 16; or.b32 %r9, %r9, %r7;\n\
        shl.b32 %r10, %r1, 2; add.s32 %r10, %r10, %r5; st.shared.u32 [%r10], %r9; bar.warp.sync 0xffffffff;";
    let load = |line: &str| each_thread(&format!("{fill} {line}"), 32).unwrap();
    let plain = load("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r6];");
    // Lane l holds columns 2 (l % 4) and the next of row l / 4.
    assert_eq!(plain, lanes(|lane| (2 * lane) | ((2 * lane + 1) << 16)));
    let at = |row: u32, column: u32| 8 * row + column;
    let transposed = lanes(|lane| at(lane % 4 * 2, lane / 4) | at(lane % 4 * 2 + 1, lane / 4) << 16);
    assert_eq!(load("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r2}, [%r6];"), transposed);
    assert_eq!(
        load(
            "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r11}, [%r6]; movmatrix.sync.aligned.m8n8.trans.b16 %r2, %r11;"
        ),
        transposed
    );
    let stored = "ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r11}, [%r6]; add.s32 %r12, %r6, 512;\n\
        stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%r12], {%r11}; bar.warp.sync 0xffffffff; ld.shared.u32 %r2, [%r10+512];";
    assert_eq!(load(stored), plain);
    let fault = each_thread(
        &format!("{fill} add.s32 %r6, %r6, 8; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r2}}, [%r6];"),
        32,
    );
    assert_eq!(fault.unwrap_err().kind, FaultKind::Misaligned);
}

#[test]
fn integer_matrices_multiply() {
    // A is all 2, B is all -3: each of 32 products is -6.
    let body = "mov.u32 %r10, 0x02020202; mov.u32 %r11, 0xfdfdfdfd; mov.u32 %r12, 5;\n\
        mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r2, %r3, %r4, %r5}, {%r10, %r10, %r10, %r10}, {%r11, %r11}, {%r12, %r12, %r12, %r12};";
    assert_eq!(each_thread(body, 32).unwrap(), [(-192i32 + 5) as u32; 32]);
    let unsigned = body.replace("s8.s8", "u8.u8");
    assert_eq!(each_thread(&unsigned, 32).unwrap(), [32 * 2 * 253 + 5; 32]);
    // f16 with an f16 accumulator: 16 times 1 x 1 plus 1.
    let half = "mov.u32 %r10, 0x3c003c00;\n\
        mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r2, %r3}, {%r10, %r10, %r10, %r10}, {%r10, %r10}, {%r10, %r10};";
    assert_eq!(each_thread(half, 32).unwrap(), [0x4C40_4C40; 32]);
    let partial = format!("setp.lt.u32 %p1, %r1, 31; mov.u32 %r2, 0; @!%p1 exit; {half}");
    assert_eq!(each_thread(&partial, 32).unwrap_err().kind, FaultKind::WarpDivergence);
}

#[test]
fn loads_and_stores_of_all_widths() {
    let data = [0x8081_8283, 0x7071_7273, 0xFFFF_0001, 5];
    let load = |line: &str| {
        let body = format!("{line} st.global.u32 [%d1+12], %r2;");
        run_on(&body, 1, &data, Schedule::Forward).map(|(out, _)| out[3])
    };
    assert_eq!(load("ld.global.u8 %r2, [%d1];").unwrap(), 0x83);
    assert_eq!(load("ld.global.s8 %r2, [%d1];").unwrap(), 0xFFFF_FF83);
    assert_eq!(load("ld.global.nc.u16 %r2, [%d1+2];").unwrap(), 0x8081);
    assert_eq!(load("ld.global.s16 %r2, [%d1+2];").unwrap(), 0xFFFF_8081);
    assert_eq!(load("ld.global.v2.u32 {%r3, %r2}, [%d1];").unwrap(), 0x7071_7273);
    assert_eq!(load("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%r3, %r4, %r2, _}, [%d1];").unwrap(), 0xFFFF_0001);
    assert_eq!(load("ld.global.b64 %d2, [%d1]; mov.b64 {%r3, %r2}, %d2;").unwrap(), 0x7071_7273);
    assert_eq!(load("ld.u32 %r2, [%d1+4];").unwrap(), 0x7071_7273);
    assert_eq!(
        load("ld.global.u32 %r3, [%d1]; mov.b32 {%h1, %h2}, %r3; mov.b32 %r2, {%h2, %h1};").unwrap(),
        0x8283_8081
    );
    // A part that nobody has written may be packed, and the other one taken out again.
    assert_eq!(load("mov.u32 %r4, 9; mov.b64 %d2, {%r5, %r4}; mov.b64 {%r6, %r2}, %d2;").unwrap(), 9);
    for (line, kind) in [
        ("mov.u32 %r4, 9; mov.b64 %d2, {%r5, %r4}; mov.b64 {%r2, %r6}, %d2;", FaultKind::UninitialisedRegister),
        ("mov.u32 %r4, 9; mov.b64 %d2, {%r5, %r4}; cvt.u32.u64 %r2, %d2;", FaultKind::UninitialisedRegister),
        ("mov.b64 {%r2, %r6}, %d2;", FaultKind::UninitialisedRegister),
        ("ld.global.u32 %r2, [%d1+2];", FaultKind::Misaligned),
        ("ld.global.v2.u32 {%r2, %r3}, [%d1+4];", FaultKind::Misaligned),
        ("ld.global.u32 %r2, [%d1+16];", FaultKind::OutOfBounds),
        ("ld.global.u32 %r2, [%d1-4];", FaultKind::OutOfBounds),
        ("ld.shared.u32 %r2, [room+2048];", FaultKind::OutOfBounds),
        ("ld.shared.u32 %r2, [room];", FaultKind::UninitialisedShared),
        ("add.s32 %r2, %r3, 1;", FaultKind::UninitialisedRegister),
        ("mov.u32 %r2, %r3; add.s32 %r2, %r2, 1;", FaultKind::UninitialisedRegister),
        ("selp.u32 %r2, 1, 0, %p1;", FaultKind::UninitialisedRegister),
        ("trap;", FaultKind::Trap),
    ] {
        let fault = load(line).expect_err(line);
        assert_eq!(fault.kind, kind, "{line}: {fault}");
    }
    // Generic addresses lead to shared memory and back.
    let generic = "mov.u64 %d2, room; cvta.shared.u64 %d3, %d2; mov.u32 %r3, 42; st.u32 [%d3+8], %r3;\n\
        cvta.to.shared.u64 %d4, %d3; ld.shared.u32 %r2, [%d4+8];";
    assert_eq!(load(generic).unwrap(), 42);
    let spaces = "mov.u64 %d2, room; cvta.shared.u64 %d3, %d2; isspacep.shared %p1, %d3; isspacep.global %p2, %d1;\n\
        and.pred %p1, %p1, %p2; isspacep.shared %p2, %d1; selp.u32 %r3, 1, 0, %p1; selp.u32 %r4, 2, 0, %p2; or.b32 %r2, %r3, %r4;";
    assert_eq!(load(spaces).unwrap(), 1);
}

#[test]
fn atomics() {
    let atomic = |line: &str, start: u32| {
        run_on(line, 32, &[start, 0], Schedule::Random(3)).map(|(out, _)| (out[0], out[1])).unwrap()
    };
    assert_eq!(atomic("red.global.add.u32 [%d1], %r1;", 7).0, 503);
    assert_eq!(atomic("sub.s32 %r3, %r1, 5; red.global.min.s32 [%d1], %r3;", 3).0, -5i32 as u32);
    assert_eq!(atomic("sub.s32 %r3, %r1, 5; red.global.max.u32 [%d1], %r3;", 3).0, u32::MAX);
    assert_eq!(atomic("red.global.or.b32 [%d1], %r1;", 64).0, 95);
    assert_eq!(atomic("red.global.and.b32 [%d1], 12;", 10).0, 8);
    assert_eq!(atomic("atom.global.inc.u32 %r2, [%d1], 4;", 0).0, 32 % 5);
    assert_eq!(atomic("atom.global.dec.u32 %r2, [%d1], 4;", 2).0, 0);
    assert_eq!(atomic("atom.global.cas.b32 %r2, [%d1], 9, 11;", 9).0, 11);
    assert_eq!(atomic("red.global.add.f32 [%d1], 0f3F800000;", 0).0, 32f32.to_bits());
    assert_eq!(atomic("red.global.add.noftz.f16x2 [%d1], %r1;", 0).0, 496);
    // Each thread draws one ticket.
    let tickets =
        "atom.global.add.u32 %r2, [%d1], 1; mov.u32 %r3, 1; shl.b32 %r3, %r3, %r2; red.global.or.b32 [%d1+4], %r3;";
    assert_eq!(atomic(tickets, 0), (32, u32::MAX));
    // The largest without a sign, whoever comes last; 31 times the factor is 0xfffffffc.
    for opcode in ["atom.global.max.u32", "atom.max.u32"] {
        let line = format!("mul.lo.u32 %r3, %r1, 0x08421084; {opcode} %r2, [%d1], %r3;");
        assert_eq!(atomic(&line, 5).0, 0xFFFF_FFFC, "{opcode}");
    }
    let own = "setp.ne.u32 %p1, %r1, 0; mov.u32 %r3, 0; @!%p1 st.shared.u32 [room], %r3; @!%p1 st.shared.u32 [room+4], %r3; bar.sync 0;\n\
        atom.shared.add.u32 %r3, [room], 1; mov.u32 %r4, 1; shl.b32 %r4, %r4, %r3; red.shared.or.b32 [room+4], %r4; bar.sync 0;\n\
        ld.shared.u32 %r2, [room+4];";
    assert_eq!(each_thread(own, 32).unwrap(), [u32::MAX; 32]);
    // A plain store beside atomics on shared memory is a race.
    let start = "setp.ne.u32 %p1, %r1, 0; mov.u32 %r3, 0; @!%p1 st.shared.u32 [room], %r3; bar.sync 0;";
    let sum = format!("{start} red.shared.add.u32 [room], %r1; bar.sync 0; ld.shared.u32 %r2, [room];");
    assert_eq!(each_thread(&sum, 64).unwrap(), [2016; 64]);
    let racing = format!("{start} red.shared.add.u32 [room], %r1; ld.shared.u32 %r2, [room];");
    assert_eq!(each_thread(&racing, 64).unwrap_err().kind, FaultKind::SharedRace);
}

#[test]
fn branches_tables_and_carries() {
    let table = "list: .branchtargets a, b, c, a;\nand.b32 %r3, %r1, 3; brx.idx %r3, list;\n\
        a: mov.u32 %r2, 1; bra end;\nb: mov.u32 %r2, 2; bra.uni end;\nc: mov.u32 %r2, 3;\nend:";
    assert_eq!(each_thread(table, 32).unwrap(), lanes(|lane| [1, 2, 3, 1][lane as usize % 4]));
    let sum = "mov.u32 %r2, 0; mov.u32 %r3, 0;\nloop: add.s32 %r2, %r2, %r3; add.s32 %r3, %r3, 1; setp.le.u32 %p1, %r3, %r1; @%p1 bra loop;";
    assert_eq!(each_thread(sum, 32).unwrap(), lanes(|lane| lane * (lane + 1) / 2));
    // 64-bit arithmetic by halves: 2^32 - 1 + thread, minus 2.
    let carry = "add.cc.u32 %r3, -1, %r1; addc.u32 %r4, 0, 0; sub.cc.u32 %r5, %r3, 2; subc.u32 %r2, %r4, 0;";
    assert_eq!(each_thread(carry, 32).unwrap(), lanes(|lane| ((0xFFFF_FFFDu64 + u64::from(lane)) >> 32) as u32));
    let product = "mov.u32 %r9, -1; mad.lo.cc.u32 %r3, %r1, %r9, %r9; madc.hi.u32 %r2, %r1, %r9, 0;";
    let expected = lanes(|lane| ((u64::from(lane) * 0xFFFF_FFFF + 0xFFFF_FFFF) >> 32) as u32);
    assert_eq!(each_thread(product, 32).unwrap(), expected);
    let endless = module("here: bra here;");
    let entry = endless.entry("one").unwrap();
    let params = [0; 8];
    let launch = Launch { instruction_limit: 1000, ..Launch::new([1, 1, 1], [1, 1, 1], &params) };
    assert_eq!(endless.run(entry, &launch, &mut Arena::new()).unwrap_err().kind, FaultKind::Endless);
}

#[test]
fn copies_are_carried_out_group_by_group() {
    // Two groups of 4 bytes; only the first is waited for.
    let body = |groups: &str| {
        format!(
            "mov.u32 %r4, room; cp.async.ca.shared.global [%r4], [%d1], 4; cp.async.commit_group;\n\
             cp.async.ca.shared.global [%r4+4], [%d1+4], 4; cp.async.commit_group; {groups} ld.shared.u32 %r3, [%r4];\n\
             ld.shared.u32 %r5, [%r4+4]; st.global.u32 [%d1+8], %r3; st.global.u32 [%d1+12], %r5;"
        )
    };
    let run = |groups: &str| run_on(&body(groups), 1, &[7, 8, 0, 0], Schedule::Forward).map(|(out, _)| out);
    assert_eq!(run("cp.async.wait_group 0;").unwrap(), [7, 8, 7, 8]);
    assert_eq!(run("cp.async.wait_all;").unwrap(), [7, 8, 7, 8]);
    assert_eq!(run("cp.async.wait_group 1;").unwrap_err().kind, FaultKind::PendingCopy);
    // A short source is filled up with zeros.
    let short = "mov.u32 %r4, room; mov.u32 %r5, 2; cp.async.ca.shared.global [%r4], [%d1], 4, %r5; cp.async.wait_all;\n\
        ld.shared.u32 %r3, [%r4]; st.global.u32 [%d1+8], %r3;";
    assert_eq!(run_on(short, 1, &[0x1234_5678, 0, 0], Schedule::Forward).unwrap().0[2], 0x5678);
    let outside = "mov.u32 %r4, room; cp.async.ca.shared.global [%r4], [%d1+8], 8; cp.async.wait_all;";
    assert_eq!(run_on(outside, 1, &[0; 3], Schedule::Forward).unwrap_err().kind, FaultKind::OutOfBounds);
}

#[test]
fn wide_copies_move_16_bytes() {
    // Words 1 to 4 of memory to words 4 to 7 of shared memory; those around them stay.
    let copy = |line: &str, wait: &str| {
        let mut body = String::from("mov.u32 %r4, room; mov.u32 %r5, 99; add.s32 %r6, %r4, 16;");
        (0..9).for_each(|word| body += &format!(" st.shared.u32 [%r4+{}], %r5;", 4 * word));
        body += &format!("{line} cp.async.commit_group; {wait}");
        for word in 0..9 {
            body += &format!(" ld.shared.u32 %r3, [%r4+{}]; st.global.u32 [%d1+{}], %r3;", 4 * word, 32 + 4 * word);
        }
        let data: Vec<u32> = (0..17).map(|index| 0xF000_0000 + index).collect();
        run_on(&body, 1, &data, Schedule::Forward).map(|(out, _)| out[8..].to_vec())
    };
    let plain = "cp.async.cg.shared.global [%r6], [%d1+16], 16;";
    let whole = [99, 99, 99, 99, 0xF000_0004, 0xF000_0005, 0xF000_0006, 0xF000_0007, 99];
    assert_eq!(copy(plain, "cp.async.wait_group 0;").unwrap(), whole);
    assert_eq!(copy(plain, "").unwrap_err().kind, FaultKind::PendingCopy);
    // What is not read is filled up with zeros, all of it when nothing is.
    for (bytes, expected) in [(6, [0xF000_0004, 5, 0, 0]), (0, [0; 4]), (16, [whole[4], whole[5], whole[6], whole[7]])]
    {
        let short = format!("mov.u32 %r7, {bytes}; cp.async.cg.shared.global [%r6], [%d1+16], 16, %r7;");
        assert_eq!(copy(&short, "cp.async.wait_group 0;").unwrap()[4..8], expected, "{bytes}");
    }
    for (line, kind) in [
        ("cp.async.cg.shared.global [%r6], [%d1+8], 16;", FaultKind::Misaligned),
        ("cp.async.cg.shared.global [%r6+8], [%d1], 16;", FaultKind::Misaligned),
        ("cp.async.cg.shared.global [%r6], [%d1+64], 16;", FaultKind::OutOfBounds),
        ("cp.async.cg.shared.global [%r6+2032], [%d1], 16;", FaultKind::OutOfBounds),
    ] {
        assert_eq!(copy(line, "cp.async.wait_group 0;").unwrap_err().kind, kind, "{line}");
    }
}

#[test]
fn a_thread_that_returns_does_nothing_more() {
    let body = "mov.u32 %r2, 7; setp.ge.u32 %p1, %r1, 16; @%p1 ret;";
    assert_eq!(each_thread(body, 32).unwrap(), lanes(|lane| if lane < 16 { 7 } else { 0 }));
    assert_eq!(each_thread("mov.u32 %r2, 7; ret;", 32).unwrap(), [0; 32]);
}

#[test]
fn traffic_and_conflicts_are_counted() {
    let count = |body: &str, words: usize| run_on(body, 32, &vec![0; words], Schedule::Forward).unwrap().1;
    let wide = count("mad.wide.u32 %d2, %r1, 16, %d1; ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%d2];", 128);
    assert_eq!((wide.global_sectors, wide.global_sectors_least, wide.global_coalesced16_bytes), (16, 16, 512));
    // Every other vector: half of what is touched is for nothing... of 32-byte sectors.
    let sparse = count("mad.wide.u32 %d2, %r1, 32, %d1; ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%d2];", 256);
    assert_eq!((sparse.global_sectors, sparse.global_sectors_least, sparse.global_coalesced16_bytes), (32, 16, 0));
    let same = count("ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%d1];", 4);
    assert_eq!((same.global_sectors, same.global_sectors_least, same.global_load_bytes[4]), (1, 1, 512));
    let conflicts = |shift: u32, width: &str| {
        let body = format!(
            "shl.b32 %r3, %r1, {shift}; mov.u32 %r4, room; add.s32 %r4, %r4, %r3; mov.u32 %r5, 0; mov.u64 %d2, 0; {width}"
        );
        count(&body, 1).shared_conflicts
    };
    assert_eq!(conflicts(2, "st.shared.u32 [%r4], %r5;"), 0);
    assert_eq!(conflicts(3, "st.shared.u32 [%r4], %r5;"), 1);
    assert_eq!(conflicts(6, "st.shared.u32 [%r4], %r5;"), 15);
    assert_eq!(conflicts(3, "st.shared.u64 [%r4], %d2;"), 0);
    assert_eq!(conflicts(4, "st.shared.v4.u32 [%r4], {%r5, %r5, %r5, %r5};"), 0);
}
