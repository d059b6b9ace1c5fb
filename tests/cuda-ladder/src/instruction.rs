//! Decoded instructions: registers by index, arithmetic as functions over all lanes of a warp.

use std::fmt;

use crate::counts::Kind;
use crate::number::Format;

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;

/// One register of a warp: a value for each lane, zero-extended to 64 bits.
pub(crate) type Plane = [u64; LANES];

/// Arithmetic on the lanes in a mask, target first.
pub(crate) type Map<const N: usize> = Box<dyn Fn(&mut Plane, [&Plane; N], u32) + Send + Sync>;

/// Compares all lanes; the result has a bit for each.
pub(crate) type Test = Box<dyn Fn(&Plane, &Plane) -> u32 + Send + Sync>;

/// Lifts arithmetic on one lane to the lanes in a mask.
pub(crate) fn lift<const N: usize>(scalar: impl Fn([u64; N]) -> u64 + Send + Sync + 'static) -> Map<N> {
    Box::new(move |target, sources, mask| {
        if mask == !0 {
            for lane in 0..LANES {
                target[lane] = scalar(sources.map(|source| source[lane]));
            }
        } else {
            for lane in lanes(mask) {
                target[lane] = scalar(sources.map(|source| source[lane]));
            }
        }
    })
}

/// The lanes of a mask in order.
pub(crate) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let lane = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            lane
        })
    })
}

/// What a register holds when a thread starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Preset {
    /// Nothing: reading it is a fault.
    Unset,
    /// An immediate operand.
    Constant(u64),
    Special(Special),
}

/// Special registers that are constant during a thread's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Thread(u8),
    Threads(u8),
    Block(u8),
    Blocks(u8),
    Lane,
    Warp,
    Warps,
    LanesEqual,
    LanesLess,
    LanesLessEqual,
    LanesGreater,
    LanesGreaterEqual,
    DynamicShared,
    TotalShared,
}

/// A predicate as an operand. Predicate 0 is always true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) index: u32,
    pub(crate) negated: bool,
}

impl Condition {
    pub(crate) const ALWAYS: Condition = Condition { index: 0, negated: false };
}

/// State spaces. Generic addresses carry their space in the top byte ([`Space::window`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Constant,
    Parameter,
}

/// Window of a module's own `.global` variables.
pub(crate) const VARIABLES: u64 = 5 << 56;
/// The bits of a window's number.
pub(crate) const WINDOW: u64 = 0xFF << 56;

impl Space {
    /// Added to an offset in the space, gives its generic address.
    pub(crate) fn window(self) -> u64 {
        match self {
            Space::Generic | Space::Global => 0,
            Space::Shared => 1 << 56,
            Space::Local => 2 << 56,
            Space::Constant => 3 << 56,
            Space::Parameter => 4 << 56,
        }
    }
}

/// An address: register plus offset, in a space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) space: Space,
    pub(crate) base: u32,
    pub(crate) offset: i64,
    /// The register has 32 bits, and so has the sum.
    pub(crate) narrow: bool,
}

/// A load or store of one or more elements.
pub(crate) struct Access {
    pub(crate) place: Place,
    /// Bytes of an element: 1, 2, 4 or 8.
    pub(crate) element: usize,
    /// Loads extend the sign to the register's width.
    pub(crate) signed: bool,
    /// Bits of the target registers.
    pub(crate) width: u32,
    /// A register per element; `None` drops it.
    pub(crate) registers: Box<[Option<u32>]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomicKind {
    Add,
    AddFloat(Format, bool),
    Minimum,
    Maximum,
    And,
    Or,
    Xor,
    Exchange,
    CompareExchange,
    Increment,
    Decrement,
}

pub(crate) struct Atomic {
    pub(crate) kind: AtomicKind,
    pub(crate) place: Place,
    pub(crate) bytes: usize,
    pub(crate) signed: bool,
    pub(crate) target: Option<u32>,
    pub(crate) value: u32,
    /// `cas`: the value to write.
    pub(crate) swap: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShuffleKind {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteKind {
    All,
    Any,
    Uniform,
    Ballot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReduceKind {
    Add,
    Minimum,
    Maximum,
    And,
    Or,
    Xor,
}

/// What lanes of a warp do together. `members` is a register.
pub(crate) enum Collective {
    Shuffle { kind: ShuffleKind, target: Option<u32>, inside: Option<u32>, value: u32, lane: u32, clamp: u32 },
    Vote { kind: VoteKind, target: u32, condition: Condition },
    MatchAny { target: u32, value: u32 },
    MatchAll { target: Option<u32>, equal: Option<u32>, value: u32 },
    Reduce { kind: ReduceKind, signed: bool, target: u32, value: u32 },
    Elect { target: Option<u32>, elected: u32 },
    Barrier,
    LoadMatrix { targets: Box<[u32]>, transposed: bool, place: Place },
    StoreMatrix { sources: Box<[u32]>, transposed: bool, place: Place },
    MoveMatrix { target: u32, source: u32 },
    Multiply(Box<Multiply>),
}

/// Element types of `mma.sync` operands A and B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    Float(Format),
    Signed8,
    Unsigned8,
}

/// `mma.sync.aligned.m16n8kK.row.col`.
pub(crate) struct Multiply {
    pub(crate) k: usize,
    pub(crate) a: Element,
    pub(crate) b: Element,
    /// The accumulator: f32, f16 (packed) or s32.
    pub(crate) accumulator: Accumulator,
    pub(crate) targets: Box<[u32]>,
    pub(crate) a_registers: Box<[u32]>,
    pub(crate) b_registers: Box<[u32]>,
    pub(crate) c_registers: Box<[u32]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accumulator {
    Float32,
    Float16,
    Signed32 { saturate: bool },
}

/// Barriers of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarrierKind {
    Sync,
    /// Does not wait.
    Arrive,
    /// Counts, or joins, a predicate over the block.
    Reduce(VoteKind),
}

pub(crate) struct Barrier {
    pub(crate) kind: BarrierKind,
    /// Register of the barrier's number.
    pub(crate) id: u32,
    /// Register of how many threads take part; `None`: all.
    pub(crate) threads: Option<u32>,
    pub(crate) condition: Condition,
    /// Register (`popc`) or predicate (`and`, `or`) of the result.
    pub(crate) target: u32,
}

pub(crate) struct AsyncCopy {
    pub(crate) target: Place,
    pub(crate) source: Place,
    pub(crate) bytes: usize,
    /// Bytes really read; the rest is zero.
    pub(crate) source_bytes: Option<u32>,
    /// Reads nothing when it holds.
    pub(crate) ignored: Option<Condition>,
}

/// What an instruction does.
pub(crate) enum Op {
    Nothing,
    Map1(Map<1>, u32, [u32; 1]),
    Map2(Map<2>, u32, [u32; 2]),
    Map3(Map<3>, u32, [u32; 3]),
    Map4(Map<4>, u32, [u32; 4]),
    /// Copies also what is unset.
    Move(u32, u32),
    Pack {
        target: u32,
        parts: Box<[u32]>,
        bits: u32,
    },
    Unpack {
        parts: Box<[Option<u32>]>,
        source: u32,
        bits: u32,
    },
    Compare {
        test: Test,
        sources: [u32; 2],
        join: Join,
        with: Condition,
        target: Option<u32>,
        inverse: Option<u32>,
    },
    /// `set`: all bits or 1.0 where it holds.
    Set {
        test: Test,
        sources: [u32; 2],
        join: Join,
        with: Condition,
        target: u32,
        truth: u64,
    },
    Select {
        target: u32,
        sources: [u32; 2],
        condition: Condition,
    },
    Predicate {
        join: Join,
        target: u32,
        sources: [Condition; 2],
    },
    /// `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc`, `madc`: three addends after the first product, with the carry bit.
    Carry(Box<Carry>),
    Load(Box<Access>),
    Store(Box<Access>),
    Atomic(Box<Atomic>),
    AsyncCopy(Box<AsyncCopy>),
    Commit,
    /// Waits until at most this many groups are open; `None`: for everything.
    Wait(Option<u32>),
    Collective {
        members: u32,
        what: Collective,
    },
    ActiveMask(u32),
    Barrier(Box<Barrier>),
    Fence,
    Branch(u32),
    BranchIndexed {
        index: u32,
        targets: Box<[u32]>,
    },
    Exit,
    Trap(String),
}

/// How a comparison or predicate is joined with another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Join {
    First,
    And,
    Or,
    Xor,
}

impl Join {
    pub(crate) fn of(self, a: u32, b: u32) -> u32 {
        match self {
            Join::First => a,
            Join::And => a & b,
            Join::Or => a | b,
            Join::Xor => a ^ b,
        }
    }
}

/// Arithmetic with the carry bit.
pub(crate) struct Carry {
    /// Result and carry out of the operands and the carry in.
    pub(crate) apply: Box<dyn Fn([u64; 3], bool) -> (u64, bool) + Send + Sync>,
    pub(crate) target: u32,
    pub(crate) sources: [u32; 3],
    pub(crate) reads: bool,
    pub(crate) writes: bool,
}

/// An instruction with everything that its execution and its faults need.
pub(crate) struct Instruction {
    pub(crate) op: Op,
    pub(crate) guard: Condition,
    pub(crate) kind: Kind,
    pub(crate) line: u32,
    /// File number and line of the source.
    pub(crate) source: Option<(u32, u32)>,
    /// Registers and predicates that must have been written.
    pub(crate) reads: Box<[u32]>,
    pub(crate) conditions: Box<[u32]>,
    /// The result of an approximate function, to be perturbed: format and packing.
    pub(crate) approximate: Option<(Format, bool)>,
}

impl fmt::Debug for Instruction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} at line {}", self.kind, self.line)
    }
}
