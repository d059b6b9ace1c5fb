//! Launches: a grid of blocks, one after the other, each on the lanes of its warps.

mod access;
mod atomic;
mod barrier;
mod block;
mod collective;
mod copy;
mod order;
mod race;
mod random;
mod shared;
mod step;
mod warp;

use crate::counts::Counts;
use crate::fault::{Fault, FaultKind};
use crate::instruction::Instruction;
use crate::memory::Memory;
use crate::module::{Entry, Module};
use block::Block;
use race::GlobalMarks;
use random::Random;

/// In which order threads run. A correct kernel gives the same result under every one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Blocks and warps in order, lanes together wherever they can be.
    Forward,
    /// Blocks and warps from the last to the first.
    Reverse,
    /// Blocks, warps and lanes in an order drawn from a seed; warps change in the middle of their work and fall apart.
    Random(u64),
}

/// What `.approx` functions give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approximation {
    /// The exact value, rounded.
    Exact,
    /// The exact value, moved by up to `ulps` units in the last place, by a hash of the seed and the value.
    Perturbed {
        /// Chooses among the possible perturbations.
        seed: u64,
        /// The most that a result is moved.
        ulps: u32,
    },
}

/// How a kernel is launched.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory.
    pub shared_bytes: u32,
    /// The parameters as [`Entry::pack`] lays them out.
    pub params: &'a [u8],
    /// Order of threads.
    pub schedule: Schedule,
    /// Results of `.approx`.
    pub approximation: Approximation,
    /// Also looks for bytes of global memory that one block writes and another one touches. Off by default: kernels may order
    /// blocks by atomics, which this does not see.
    pub global_races: bool,
    /// Instructions of warps after which the launch is given up.
    pub instruction_limit: u64,
}

impl<'a> Launch<'a> {
    /// A launch without dynamic shared memory, in order, exact.
    pub fn new(grid: [u32; 3], block: [u32; 3], params: &'a [u8]) -> Launch<'a> {
        Launch {
            grid,
            block,
            shared_bytes: 0,
            params,
            schedule: Schedule::Forward,
            approximation: Approximation::Exact,
            global_races: false,
            instruction_limit: 1 << 36,
        }
    }

    /// Threads of a block.
    pub fn threads(&self) -> u64 {
        self.block.iter().map(|side| u64::from(*side)).product()
    }
}

/// The most threads of a block and the most shared memory, static and dynamic, of any card that is imitated.
const MAX_THREADS: u64 = 1024;
const MAX_SHARED: u32 = 227 << 10;

impl Module {
    /// Runs a kernel over `memory`. Errors: the first thing that a thread did wrong, or a launch that no card accepts.
    pub fn run(&self, entry: &Entry, launch: &Launch<'_>, memory: &mut dyn Memory) -> Result<Counts, Fault> {
        check(entry, launch)?;
        let mut globals = self.globals.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut machine = Machine {
            entry,
            code: &entry.code,
            launch,
            memory,
            constants: &self.constants,
            globals: &mut globals,
            marks: launch.global_races.then(GlobalMarks::default),
            counts: Counts::default(),
            left: launch.instruction_limit,
            random: match launch.schedule {
                Schedule::Random(seed) => Some(Random::new(seed)),
                _ => None,
            },
        };
        let count: u64 = launch.grid.iter().map(|side| u64::from(*side)).product();
        let mut block = Block::new(entry, launch);
        for index in order::blocks(count, launch.schedule) {
            block.start(entry, launch, order::position(index, launch.grid));
            machine.run_block(&mut block)?;
        }
        Ok(machine.counts)
    }
}

fn check(entry: &Entry, launch: &Launch<'_>) -> Result<(), Fault> {
    let threads = launch.threads();
    let shared = entry.dynamic_shared.saturating_add(launch.shared_bytes);
    let wrong = if !(1..=MAX_THREADS).contains(&threads) || launch.block[2] > 64 {
        Some(format!("a block of {:?} threads", launch.block))
    } else if launch.grid.contains(&0)
        || launch.grid[0] > i32::MAX as u32
        || launch.grid[1..].iter().any(|side| *side > 65535)
    {
        Some(format!("a grid of {:?} blocks", launch.grid))
    } else if entry.max_threads.is_some_and(|most| threads > u64::from(most)) {
        Some(format!("{threads} threads, the kernel allows {}", entry.max_threads.unwrap_or(0)))
    } else if shared > MAX_SHARED {
        Some(format!("{shared} bytes of shared memory"))
    } else if launch.params.len() != entry.parameter_bytes as usize {
        Some(format!("{} bytes of parameters, the kernel has {}", launch.params.len(), entry.parameter_bytes))
    } else {
        None
    };
    wrong.map_or(Ok(()), |detail| {
        let (kind, entry) = (FaultKind::Launch, entry.name.clone());
        Err(Fault { kind, detail, entry, line: 0, source: None, block: [0; 3], thread: [0; 3] })
    })
}

/// A launch while it runs.
struct Machine<'a> {
    entry: &'a Entry,
    code: &'a [Instruction],
    launch: &'a Launch<'a>,
    memory: &'a mut dyn Memory,
    constants: &'a [u8],
    globals: &'a mut Vec<u8>,
    marks: Option<GlobalMarks>,
    counts: Counts,
    left: u64,
    random: Option<Random>,
}
