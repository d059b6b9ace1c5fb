//! Barriers of a block.

use super::Machine;
use super::block::{Block, Stop};
use super::warp::Warp;
use crate::fault::{FaultKind, Wrong};
use crate::instruction::{Barrier, BarrierKind, Op, VoteKind, lanes};

/// Barriers that a block has.
const COUNT: usize = 16;

/// One barrier: who has arrived since it was last released.
#[derive(Clone, Debug, Default)]
struct State {
    /// Lanes of each warp, those that only arrived included.
    arrived: Vec<u32>,
    count: u32,
    /// Where the first one waits or arrived.
    pc: u32,
    /// Threads that it waits for; `None`: all of the block.
    threads: Option<u32>,
    /// Threads whose predicate held.
    held: u32,
}

#[derive(Debug, Default)]
pub(super) struct Barriers(Vec<State>);

impl Barriers {
    pub(super) fn new(warps: usize) -> Barriers {
        Barriers(vec![State { arrived: vec![0; warps], ..State::default() }; COUNT])
    }

    /// A barrier that somebody arrived at without completing it.
    pub(super) fn unfinished(&self) -> Option<(usize, u32)> {
        let index = self.0.iter().position(|state| state.count > 0)?;
        Some((index, self.0[index].pc))
    }

    /// What keeps a block whose threads all wait at barriers.
    pub(super) fn stuck(&self, warps: &[Warp]) -> Stop {
        let (id, pc) = self.unfinished().unwrap_or((0, 0));
        let state = &self.0[id];
        let number = state.arrived.iter().position(|mask| *mask != 0).unwrap_or(0);
        let lane = state.arrived[number].trailing_zeros().min(31);
        let missing = warps.iter().enumerate().find_map(|(number, warp)| {
            let mask = warp.exists & !state.arrived[number];
            (mask != 0).then(|| (32 * number + mask.trailing_zeros() as usize, warp.alive & mask == 0))
        });
        let detail = match missing {
            Some((thread, true)) => format!("threads wait at barrier {id}, thread {thread} has exited"),
            Some((thread, false)) => format!("threads wait at barrier {id}, thread {thread} waits elsewhere"),
            None => format!("barrier {id} waits for more threads than there are"),
        };
        Stop { wrong: Wrong::new(FaultKind::BarrierDivergence, lane, detail), warp: number, pc }
    }
}

impl Machine<'_> {
    /// Lanes arrive at a barrier. Those of `sync` and `red` wait from now on.
    pub(super) fn arrive(
        &mut self,
        block: &mut Block,
        number: usize,
        barrier: &Barrier,
        pc: u32,
        mask: u32,
    ) -> Result<(), Wrong> {
        let warp = &mut block.warps[number];
        let lane = mask.trailing_zeros();
        let divergence = |detail: String| Err(Wrong::new(FaultKind::BarrierDivergence, lane, detail));
        let id = warp.registers[barrier.id as usize][lane as usize] as usize;
        let threads = barrier.threads.map(|threads| warp.registers[threads as usize][lane as usize] as u32);
        let Some(state) = block.barriers.0.get_mut(id) else {
            return divergence(format!("there is no barrier {id}"));
        };
        if threads.is_some_and(|threads| threads == 0 || threads % 32 != 0) {
            return divergence(format!("a barrier for {threads:?} threads, not a multiple of 32"));
        }
        if state.count == 0 {
            (state.pc, state.threads, state.held) = (pc, threads, 0);
        }
        if state.threads != threads {
            return divergence(format!("barrier {id} for {:?} and for {threads:?} threads", state.threads));
        }
        if threads.is_none() && state.pc != pc {
            let other = self.code[state.pc as usize].line;
            return divergence(format!("others wait at barrier {id} of PTX line {other}"));
        }
        state.arrived[number] |= mask;
        state.count += mask.count_ones();
        if barrier.kind != BarrierKind::Arrive {
            warp.at_barrier |= mask;
        }
        if matches!(barrier.kind, BarrierKind::Reduce(_)) {
            state.held += (warp.holds(barrier.condition) & mask).count_ones();
        }
        Ok(())
    }

    /// Lets go whoever waits at a complete barrier. Returns whether there was one.
    pub(super) fn release_barriers(&mut self, block: &mut Block) -> bool {
        let everybody: u32 = block.warps.iter().map(|warp| warp.exists.count_ones()).sum();
        let mut released = false;
        for id in 0..COUNT {
            let state = &mut block.barriers.0[id];
            if state.count == 0 || state.count < state.threads.unwrap_or(everybody) {
                continue;
            }
            released = true;
            self.counts.barriers += 1;
            let (held, count) = (state.held, state.count);
            let mut members = 0;
            for (number, warp) in block.warps.iter_mut().enumerate() {
                let arrived = std::mem::take(&mut state.arrived[number]);
                members |= u32::from(arrived != 0) << number;
                // Lanes that only arrived have gone on already.
                for lane in lanes(arrived & warp.at_barrier) {
                    let pc = warp.pc[lane];
                    if let Op::Barrier(barrier) = &self.code[pc as usize].op
                        && let BarrierKind::Reduce(kind) = barrier.kind
                    {
                        store(warp, barrier, kind, lane, held, count);
                    }
                    warp.pc[lane] = pc + 1;
                }
                warp.at_barrier &= !arrived;
            }
            state.count = 0;
            block.order.meet_warps(members);
        }
        released
    }
}

fn store(warp: &mut Warp, barrier: &Barrier, kind: VoteKind, lane: usize, held: u32, count: u32) {
    let bit = 1 << lane;
    match kind {
        VoteKind::All => warp.set_predicate(barrier.target, if held == count { bit } else { 0 }, bit),
        VoteKind::Any => warp.set_predicate(barrier.target, if held > 0 { bit } else { 0 }, bit),
        VoteKind::Uniform | VoteKind::Ballot => {
            warp.registers[barrier.target as usize][lane] = held.into();
            warp.defined[barrier.target as usize] |= bit;
        }
    }
}
