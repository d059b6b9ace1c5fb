//! The loop over instructions.

use super::block::{Block, Stop};
use super::random::mix;
use super::warp::Warp;
use super::{Approximation, Machine};
use crate::fault::{FaultKind, Wrong};
use crate::instruction::{BarrierKind, Carry, Instruction, LANES, Op, Plane, lanes};
use crate::number::Format;

/// Where lanes go after an instruction.
enum Next {
    /// To the next one.
    On,
    /// All to one place.
    Jump(u32),
    /// Their places have been set, or some wait or have exited: choose again.
    Split,
}

impl Machine<'_> {
    /// Runs lanes that stand at one place until they part, wait, meet others or `quantum` instructions are over. Returns what is
    /// left of the quantum.
    pub(super) fn run_lanes(
        &mut self,
        block: &mut Block,
        number: usize,
        mut pc: u32,
        mask: u32,
        together: bool,
        mut quantum: u64,
    ) -> Result<u64, Stop> {
        let others = block.warps[number].runnable() & !mask;
        let ahead = lanes(others).map(|lane| block.warps[number].pc[lane]).filter(|other| *other > pc).min();
        let meeting = if together { ahead.unwrap_or(u32::MAX) } else { u32::MAX };
        let code = self.code;
        loop {
            let instruction = &code[pc as usize];
            let stop = |wrong| Stop { wrong, warp: number, pc };
            let next = self.step(block, number, instruction, pc, mask).map_err(stop)?;
            quantum -= 1;
            match next {
                Next::On => pc += 1,
                Next::Jump(target) => pc = target,
                Next::Split => return Ok(quantum),
            }
            if pc >= meeting || quantum == 0 {
                block.warps[number].set_pc(mask, pc);
                return Ok(quantum);
            }
        }
    }

    fn step(
        &mut self,
        block: &mut Block,
        number: usize,
        instruction: &Instruction,
        pc: u32,
        mask: u32,
    ) -> Result<Next, Wrong> {
        let warp = &mut block.warps[number];
        let mut active = mask;
        if instruction.guard.index != 0 {
            active &= warp.holds(instruction.guard);
        }
        check_defined(warp, instruction, mask, active)?;
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            Wrong::new(FaultKind::Endless, mask.trailing_zeros(), format!("{} of warps", self.launch.instruction_limit))
        })?;
        self.counts.warp_instructions[instruction.kind as usize] += 1;
        self.counts.thread_instructions[instruction.kind as usize] += u64::from(active.count_ones());
        if let Op::Branch(target) = instruction.op {
            return Ok(branch(warp, mask, active, pc, target));
        }
        if active == 0 {
            return Ok(Next::On);
        }
        match &instruction.op {
            Op::Exit => {
                warp.alive &= !active;
                warp.set_pc(mask & !active, pc + 1);
                return Ok(Next::Split);
            }
            Op::BranchIndexed { index, targets } => {
                for lane in lanes(active) {
                    let index = warp.registers[*index as usize][lane] as usize;
                    let target = targets.get(index).ok_or_else(|| {
                        Wrong::new(FaultKind::OutOfBounds, lane as u32, format!("branch {index} of {}", targets.len()))
                    })?;
                    warp.pc[lane] = *target;
                }
                warp.set_pc(mask & !active, pc + 1);
                return Ok(Next::Split);
            }
            Op::Barrier(barrier) => {
                warp.set_pc(active, pc);
                warp.set_pc(mask & !active, pc + 1);
                self.arrive(block, number, barrier, pc, active)?;
                if barrier.kind == BarrierKind::Arrive {
                    block.warps[number].set_pc(active, pc + 1);
                }
                return Ok(Next::Split);
            }
            Op::Collective { members, what } => {
                // Lanes that came here before wait for this.
                let waiting = warp.waiting;
                let here = if waiting == 0 { active } else { active | warp.standing_at(waiting, pc) };
                let done = self.collective(block, number, *members, what, here)?;
                if done == mask {
                    return Ok(Next::On);
                }
                let warp = &mut block.warps[number];
                warp.set_pc(mask & !active | done, pc + 1);
                warp.set_pc(here & !done, pc);
                warp.waiting = warp.waiting & !done | here & !done;
                return Ok(Next::Split);
            }
            Op::Load(access) => self.load(block, number, access, active)?,
            Op::Store(access) => self.store(block, number, access, active)?,
            Op::Atomic(atomic) => self.atomic(block, number, atomic, active)?,
            Op::AsyncCopy(copy) => self.start_copy(block, number, copy, active)?,
            Op::Commit => super::copy::commit(warp, active),
            Op::Wait(groups) => self.wait_copies(block, number, *groups, active)?,
            Op::Trap(reason) => return Err(Wrong::new(FaultKind::Trap, active.trailing_zeros(), reason.clone())),
            op => {
                compute(warp, op, active, mask);
                if let Some((format, packed)) = instruction.approximate
                    && let Approximation::Perturbed { seed, ulps } = self.launch.approximation
                {
                    let (Op::Map1(_, target, _) | Op::Map2(_, target, _)) = op else {
                        unreachable!("approximate functions have one or two operands");
                    };
                    perturb(&mut warp.registers[*target as usize], active, format, packed, seed, ulps);
                }
            }
        }
        Ok(Next::On)
    }
}

fn check_defined(warp: &Warp, instruction: &Instruction, mask: u32, active: u32) -> Result<(), Wrong> {
    let unset = |missing: u32, what: &str| {
        Err(Wrong::new(FaultKind::UninitialisedRegister, missing.trailing_zeros(), what.to_owned()))
    };
    for index in &instruction.reads {
        let missing = active & !warp.defined[*index as usize];
        if missing != 0 {
            return unset(missing, "an operand was never written");
        }
    }
    for index in &instruction.conditions {
        let reads = if *index == instruction.guard.index { mask } else { active };
        let missing = reads & !warp.predicates_defined[*index as usize];
        if missing != 0 {
            return unset(missing, "a predicate was never written");
        }
    }
    Ok(())
}

fn branch(warp: &mut Warp, mask: u32, taken: u32, pc: u32, target: u32) -> Next {
    if taken == 0 {
        return Next::On;
    }
    if taken == mask {
        return Next::Jump(target);
    }
    warp.set_pc(taken, target);
    warp.set_pc(mask & !taken, pc + 1);
    Next::Split
}

/// Runs `map` on a copy of the target, which may be a source too.
fn apply<const N: usize>(
    warp: &mut Warp,
    map: &crate::instruction::Map<N>,
    target: u32,
    sources: &[u32; N],
    mask: u32,
) {
    let mut result = warp.registers[target as usize];
    map(&mut result, sources.map(|source| &warp.registers[source as usize]), mask);
    warp.registers[target as usize] = result;
    warp.defined[target as usize] |= mask;
}

/// Everything that only reads and writes registers.
fn compute(warp: &mut Warp, op: &Op, active: u32, mask: u32) {
    match op {
        Op::Map1(map, target, sources) => apply(warp, map, *target, sources, active),
        Op::Map2(map, target, sources) => apply(warp, map, *target, sources, active),
        Op::Map3(map, target, sources) => apply(warp, map, *target, sources, active),
        Op::Map4(map, target, sources) => apply(warp, map, *target, sources, active),
        Op::Move(target, source) => {
            let (from, known) = (warp.registers[*source as usize], warp.defined[*source as usize]);
            copy(warp, *target, &from, known, active);
        }
        Op::Select { target, sources, condition } => {
            let first = warp.holds(*condition);
            for (source, chosen) in [(sources[0], active & first), (sources[1], active & !first)] {
                let (from, known) = (warp.registers[source as usize], warp.defined[source as usize]);
                copy(warp, *target, &from, known, chosen);
            }
        }
        Op::Pack { target, parts, bits } => {
            let (mut result, mut unset): (Plane, [u32; 4]) = ([0; LANES], [0; 4]);
            for (index, part) in parts.iter().enumerate() {
                let source = &warp.registers[*part as usize];
                for lane in 0..LANES {
                    result[lane] |= (source[lane] & crate::decode::mask(*bits)) << (index as u32 * bits);
                }
                unset[index] = active & !warp.defined[*part as usize];
            }
            let before = warp.unset_parts.get(target).copied();
            copy(warp, *target, &result, !unset.iter().fold(0, |all, part| all | part), active);
            if before.is_some() || unset != [0; 4] {
                let before = before.unwrap_or([!0; 4]);
                let parts = std::array::from_fn(|index| before[index] & !active | unset[index]);
                warp.unset_parts.insert(*target, parts);
            }
        }
        Op::Unpack { parts, source, bits } => {
            let (from, whole) = (warp.registers[*source as usize], warp.defined[*source as usize]);
            let unset = warp.unset_parts.get(source).copied().unwrap_or([!0; 4]);
            for (index, part) in parts.iter().enumerate() {
                if let Some(target) = part {
                    let part = from.map(|value| value >> (index as u32 * bits) & crate::decode::mask(*bits));
                    copy(warp, *target, &part, whole | !unset[index], active);
                }
            }
        }
        Op::Compare { test, sources, join, with, target, inverse } => {
            let holds = test(&warp.registers[sources[0] as usize], &warp.registers[sources[1] as usize]);
            let with = warp.holds(*with);
            // The second target gets the opposite of the comparison, joined with the same predicate.
            for (target, value) in [(target, holds), (inverse, !holds)] {
                if let Some(target) = target {
                    warp.set_predicate(*target, join.of(value, with), active);
                }
            }
        }
        Op::Set { test, sources, join, with, target, truth } => {
            let holds = test(&warp.registers[sources[0] as usize], &warp.registers[sources[1] as usize]);
            let holds = join.of(holds, warp.holds(*with));
            let result = std::array::from_fn(|lane| if holds >> lane & 1 == 1 { *truth } else { 0 });
            copy(warp, *target, &result, !0, active);
        }
        Op::Predicate { join, target, sources } => {
            let value = join.of(warp.holds(sources[0]), warp.holds(sources[1]));
            warp.set_predicate(*target, value, active);
        }
        Op::Carry(carry) => add_with_carry(warp, carry, active),
        // Who is together now, of those that take part.
        Op::ActiveMask(target) => copy(warp, *target, &[(active & mask).into(); LANES], !0, active),
        _ => {}
    }
}

fn copy(warp: &mut Warp, target: u32, from: &Plane, known: u32, mask: u32) {
    let place = &mut warp.registers[target as usize];
    if mask == !0 {
        *place = *from;
    } else {
        for lane in lanes(mask) {
            place[lane] = from[lane];
        }
    }
    let defined = &mut warp.defined[target as usize];
    *defined = *defined & !mask | known & mask;
    if known & mask != mask && !warp.unset_parts.is_empty() {
        warp.unset_parts.remove(&target);
    }
}

fn add_with_carry(warp: &mut Warp, carry: &Carry, mask: u32) {
    for lane in lanes(mask) {
        let sources = carry.sources.map(|source| warp.registers[source as usize][lane]);
        let carry_in = carry.reads && warp.carry >> lane & 1 == 1;
        let (result, carry_out) = (carry.apply)(sources, carry_in);
        warp.registers[carry.target as usize][lane] = result;
        if carry.writes {
            warp.carry = warp.carry & !(1 << lane) | u32::from(carry_out) << lane;
        }
    }
    warp.defined[carry.target as usize] |= mask;
}

/// Moves finite results by up to `ulps`, never through zero.
fn perturb(plane: &mut Plane, mask: u32, format: Format, packed: bool, seed: u64, ulps: u32) {
    let move_one = |bits: u64| {
        let magnitude = bits & !format.sign();
        if magnitude == 0 || magnitude >= format.infinity() {
            return bits;
        }
        let by = (mix(seed ^ mix(bits)) % (2 * u64::from(ulps) + 1)) as i64 - i64::from(ulps);
        let moved = (magnitude as i64 + by).clamp(1, format.infinity() as i64 - 1);
        bits & format.sign() | moved as u64
    };
    let low = crate::decode::mask(format.bits());
    for lane in lanes(mask) {
        let value = plane[lane];
        plane[lane] = if packed {
            move_one(value & low) | move_one(value >> format.bits() & low) << format.bits()
        } else {
            move_one(value & low)
        };
    }
}
