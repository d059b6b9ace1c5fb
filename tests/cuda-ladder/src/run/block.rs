//! A block: its warps take turns until all have exited.

use super::barrier::Barriers;
use super::order::Order;
use super::shared::Shared;
use super::warp::Warp;
use super::{Launch, Machine, Schedule};
use crate::fault::{Fault, FaultKind, Wrong};
use crate::instruction::{Op, lanes};
use crate::module::Entry;

/// Instructions of a warp before another one takes its turn under a random schedule.
const QUANTUM: u64 = 64;

pub(super) struct Block {
    pub(super) position: [u32; 3],
    /// Its number in the grid.
    pub(super) number: u32,
    pub(super) warps: Vec<Warp>,
    pub(super) shared: Shared,
    /// Local memory, thread after thread.
    pub(super) locals: Vec<u8>,
    pub(super) order: Order,
    pub(super) barriers: Barriers,
}

impl Block {
    pub(super) fn new(entry: &Entry, launch: &Launch<'_>) -> Block {
        let warps = launch.threads().div_ceil(32) as usize;
        Block {
            position: [0; 3],
            number: 0,
            warps: (0..warps).map(|number| Warp::new(entry, launch, number)).collect(),
            shared: Shared::default(),
            locals: vec![0; entry.local_bytes as usize * 32 * warps],
            order: Order::default(),
            barriers: Barriers::default(),
        }
    }

    /// Sets everything to the start of the block at `position`.
    pub(super) fn start(&mut self, entry: &Entry, launch: &Launch<'_>, position: [u32; 3]) {
        self.position = position;
        let [x, y, z] = position;
        self.number = x.wrapping_add(launch.grid[0].wrapping_mul(y.wrapping_add(launch.grid[1].wrapping_mul(z))));
        for warp in &mut self.warps {
            warp.start(entry, launch, position);
        }
        self.shared.reset((entry.dynamic_shared + launch.shared_bytes) as usize);
        self.locals.fill(0xFF);
        self.order.reset(self.warps.len());
        self.barriers = Barriers::new(self.warps.len());
    }
}

/// A fault and the instruction at which it was seen.
pub(super) struct Stop {
    pub(super) wrong: Wrong,
    pub(super) warp: usize,
    pub(super) pc: u32,
}

impl Machine<'_> {
    /// Runs a block to its end.
    pub(super) fn run_block(&mut self, block: &mut Block) -> Result<(), Fault> {
        self.counts.blocks += 1;
        self.take_turns(block).map_err(|stop| self.fault(block, stop))
    }

    fn fault(&self, block: &Block, stop: Stop) -> Fault {
        let instruction = &self.code[stop.pc as usize];
        let number = 32 * stop.warp as u64 + u64::from(stop.wrong.lane);
        Fault {
            kind: stop.wrong.kind,
            detail: stop.wrong.detail,
            entry: self.entry.name.clone(),
            line: instruction.line,
            source: instruction.source,
            block: block.position,
            thread: super::order::position(number, self.launch.block),
        }
    }

    fn take_turns(&mut self, block: &mut Block) -> Result<(), Stop> {
        let count = block.warps.len();
        loop {
            let mut moved = false;
            for turn in 0..count {
                let warp = match self.launch.schedule {
                    Schedule::Forward => turn,
                    Schedule::Reverse => count - 1 - turn,
                    Schedule::Random(_) => {
                        self.random.as_mut().map_or(turn, |random| random.below(count as u64) as usize)
                    }
                };
                moved |= self.run_warp(block, warp)?;
            }
            if block.warps.iter().all(|warp| warp.alive == 0) {
                return self.check_end(block);
            }
            if self.release_barriers(block) {
                continue;
            }
            // Under a random schedule a warp may simply not have had its turn.
            let can_move = block.warps.iter().any(|warp| warp.runnable() != 0);
            if !moved && !can_move {
                return Err(deadlock(block));
            }
        }
    }

    /// Lanes that exit while others still wait leave nothing behind; a barrier that somebody arrived at and nobody completed does.
    fn check_end(&self, block: &Block) -> Result<(), Stop> {
        let Some((id, pc)) = block.barriers.unfinished() else {
            return Ok(());
        };
        let wrong = Wrong::new(FaultKind::BarrierDivergence, 0, format!("barrier {id} was never completed"));
        Err(Stop { wrong, warp: 0, pc })
    }

    /// Runs a warp until all of its lanes wait or have exited, or its time is over. Returns whether anything ran.
    fn run_warp(&mut self, block: &mut Block, number: usize) -> Result<bool, Stop> {
        let mut moved = false;
        let mut quantum = match &mut self.random {
            Some(random) => 1 + random.below(QUANTUM),
            None => u64::MAX,
        };
        while quantum > 0 {
            let Some((pc, lanes, together)) = self.pick(block, number) else {
                if !self.retry_collectives(block, number)? {
                    break;
                }
                moved = true;
                continue;
            };
            moved = true;
            quantum = self.run_lanes(block, number, pc, lanes, together, quantum)?;
        }
        Ok(moved)
    }

    /// Chooses lanes at one place. Those that are furthest behind go first, so that lanes meet again where the code does; a random
    /// schedule now and then takes others, or some of them only. The last value: whether to stop where others wait.
    fn pick(&mut self, block: &Block, number: usize) -> Option<(u32, u32, bool)> {
        let warp = &block.warps[number];
        let runnable = warp.runnable();
        if runnable == 0 {
            return None;
        }
        if let Some(random) = &mut self.random
            && random.below(8) == 0
        {
            let nth = random.below(u64::from(runnable.count_ones())) as usize;
            let lane = lanes(runnable).nth(nth).expect("that many lanes can run");
            let pc = warp.pc[lane];
            let standing = warp.standing_at(runnable, pc);
            let some = standing & (random.next() as u32 | 1 << lane);
            return Some((pc, some, false));
        }
        let pc = warp.least_pc(runnable)?;
        let standing = warp.standing_at(runnable, pc);
        // Lanes that already wait here for a collective take part in it.
        Some((pc, standing, true))
    }

    /// Collectives whose missing lanes have exited meanwhile.
    fn retry_collectives(&mut self, block: &mut Block, number: usize) -> Result<bool, Stop> {
        let mut rest = block.warps[number].waiting;
        let mut fired = false;
        while let Some(pc) = block.warps[number].least_pc(rest) {
            let standing = block.warps[number].standing_at(rest, pc);
            rest &= !standing;
            let Op::Collective { members, what } = &self.code[pc as usize].op else {
                unreachable!("lanes wait at collectives only");
            };
            let done = self.collective(block, number, *members, what, standing);
            let done = done.map_err(|wrong| Stop { wrong, warp: number, pc })?;
            let warp = &mut block.warps[number];
            warp.waiting &= !done;
            warp.set_pc(done, pc + 1);
            fired |= done != 0;
        }
        Ok(fired)
    }
}

/// Nobody can go on.
fn deadlock(block: &Block) -> Stop {
    for (number, warp) in block.warps.iter().enumerate() {
        if warp.waiting != 0 {
            let lane = warp.waiting.trailing_zeros();
            let elsewhere = warp.alive & !warp.waiting;
            let detail = format!(
                "lanes {:#010x} wait for lanes that do not come (alive {:#010x}, at barriers {elsewhere:#010x})",
                warp.waiting, warp.alive
            );
            let wrong = Wrong::new(FaultKind::WarpDivergence, lane, detail);
            return Stop { wrong, warp: number, pc: warp.pc[lane as usize] };
        }
    }
    block.barriers.stuck(&block.warps)
}
