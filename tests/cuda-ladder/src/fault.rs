//! What a launch can be found guilty of.

use std::fmt;

/// Kinds of wrong doing. Each has a text that [`Fault`] prints with the place.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// The launch itself: dimensions, parameters, shared memory.
    Launch,
    /// An access outside of every live allocation, or of the shared, local, constant or parameter space.
    OutOfBounds,
    /// A write into memory that is only readable.
    ReadOnly,
    /// An address that is no multiple of the access's size.
    Misaligned,
    /// Two threads touch a byte of shared memory, one of them writes, and nothing orders them.
    SharedRace,
    /// Two threads touch a byte of global memory, one of them writes, and nothing orders them.
    GlobalRace,
    /// Shared memory is read before anybody wrote it.
    UninitialisedShared,
    /// A register is read before the thread wrote it.
    UninitialisedRegister,
    /// Shared memory is touched while a `cp.async` to it has not been waited for.
    PendingCopy,
    /// Threads of a block wait at different barriers, or some have exited.
    BarrierDivergence,
    /// Lanes of a warp wait for lanes that do not come.
    WarpDivergence,
    /// `trap`, or an assertion of the kernel.
    Trap,
    /// More instructions than the launch allows.
    Endless,
}

impl FaultKind {
    /// A few words, as they stand in the printed fault.
    pub fn words(&self) -> &'static str {
        match self {
            FaultKind::Launch => "launch refused",
            FaultKind::OutOfBounds => "access out of bounds",
            FaultKind::ReadOnly => "write to read-only memory",
            FaultKind::Misaligned => "misaligned access",
            FaultKind::SharedRace => "shared-memory race",
            FaultKind::GlobalRace => "global-memory race",
            FaultKind::UninitialisedShared => "uninitialised shared memory",
            FaultKind::UninitialisedRegister => "uninitialised register",
            FaultKind::PendingCopy => "cp.async not waited for",
            FaultKind::BarrierDivergence => "barrier divergence",
            FaultKind::WarpDivergence => "warp divergence",
            FaultKind::Trap => "trap",
            FaultKind::Endless => "too many instructions",
        }
    }

    /// What the driver reports: 1 for a refused launch, 716 for alignment, 700 for other addresses, else 719.
    pub fn driver_code(&self) -> u32 {
        match self {
            FaultKind::Launch => 1,
            FaultKind::Misaligned => 716,
            FaultKind::OutOfBounds | FaultKind::ReadOnly => 700,
            _ => 719,
        }
    }
}

/// A fault with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub kind: FaultKind,
    /// Addresses, the other thread, and so on.
    pub detail: String,
    /// The kernel.
    pub entry: String,
    /// Line of the PTX text; 0 for a refused launch.
    pub line: u32,
    /// File number and line of the source, where the PTX has line information.
    pub source: Option<(u32, u32)>,
    /// Block of the grid.
    pub block: [u32; 3],
    /// Thread of the block.
    pub thread: [u32; 3],
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { kind, detail, entry, line, block, thread, .. } = self;
        if *kind == FaultKind::Launch {
            return write!(formatter, "{entry}: {}: {detail}", kind.words());
        }
        write!(formatter, "{entry} PTX line {line}")?;
        if let Some((file, line)) = self.source {
            write!(formatter, " (file {file} line {line})")?;
        }
        write!(formatter, " block {block:?} thread {thread:?}: {}: {detail}", kind.words())
    }
}

impl std::error::Error for Fault {}

/// A fault of a lane, before its place is known.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) kind: FaultKind,
    pub(crate) lane: u32,
    pub(crate) detail: String,
}

impl Wrong {
    pub(crate) fn new(kind: FaultKind, lane: u32, detail: impl Into<String>) -> Wrong {
        Wrong { kind, lane, detail: detail.into() }
    }
}
