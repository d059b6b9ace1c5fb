//! A warp: registers of 32 lanes and where each lane stands.

use std::collections::{BTreeMap, VecDeque};

use super::Launch;
use crate::instruction::{Condition, LANES, Plane, Preset, Special, lanes};
use crate::module::Entry;

/// A copy that a lane has started and not waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct StartedCopy {
    pub(super) target: u32,
    pub(super) source: u64,
    pub(super) bytes: usize,
    /// Bytes that are really copied; the others become zero.
    pub(super) real: usize,
}

/// Copies of a lane: those not yet committed, and committed groups from old to new.
#[derive(Clone, Debug, Default)]
pub(super) struct Copies {
    pub(super) open: Vec<StartedCopy>,
    pub(super) groups: VecDeque<Vec<StartedCopy>>,
}

pub(super) struct Warp {
    pub(super) number: usize,
    pub(super) registers: Vec<Plane>,
    /// Lanes that have written each register.
    pub(super) defined: Vec<u32>,
    /// Packed registers of which some lanes have some parts only: by part, the lanes that have it not. Compilers pack what nobody reads.
    pub(super) unset_parts: BTreeMap<u32, [u32; 4]>,
    pub(super) predicates: Vec<u32>,
    pub(super) predicates_defined: Vec<u32>,
    pub(super) pc: [u32; LANES],
    /// Lanes that there are.
    pub(super) exists: u32,
    /// Lanes that have not exited.
    pub(super) alive: u32,
    /// Lanes that wait for a barrier of the block.
    pub(super) at_barrier: u32,
    /// Lanes that wait for other lanes.
    pub(super) waiting: u32,
    pub(super) carry: u32,
    /// Empty until a lane starts a copy.
    pub(super) copies: Vec<Copies>,
}

impl Warp {
    /// Takes `entry`'s registers; [`Warp::start`] fills them.
    pub(super) fn new(entry: &Entry, launch: &Launch<'_>, number: usize) -> Warp {
        let here = (launch.threads() - 32 * number as u64).min(32) as u32;
        Warp {
            number,
            registers: vec![[0; LANES]; entry.registers.len()],
            defined: vec![0; entry.registers.len()],
            unset_parts: BTreeMap::new(),
            predicates: vec![0; entry.predicates as usize],
            predicates_defined: vec![0; entry.predicates as usize],
            pc: [0; LANES],
            exists: if here == 32 { !0 } else { (1 << here) - 1 },
            alive: 0,
            at_barrier: 0,
            waiting: 0,
            carry: 0,
            copies: Vec::new(),
        }
    }

    /// Sets all lanes to the start of a block.
    pub(super) fn start(&mut self, entry: &Entry, launch: &Launch<'_>, block: [u32; 3]) {
        for (index, preset) in entry.registers.iter().enumerate() {
            self.defined[index] = if *preset == Preset::Unset { 0 } else { !0 };
            match preset {
                Preset::Unset => {}
                Preset::Constant(value) => self.registers[index] = [*value; LANES],
                Preset::Special(special) => {
                    self.registers[index] =
                        std::array::from_fn(|lane| self.special(*special, entry, launch, block, lane));
                }
            }
        }
        self.unset_parts.clear();
        self.predicates_defined.fill(0);
        (self.predicates[0], self.predicates_defined[0]) = (!0, !0);
        self.pc = [0; LANES];
        (self.alive, self.at_barrier, self.waiting, self.carry) = (self.exists, 0, 0, 0);
        self.copies.clear();
    }

    fn special(&self, special: Special, entry: &Entry, launch: &Launch<'_>, block: [u32; 3], lane: usize) -> u64 {
        let thread = super::order::position((32 * self.number + lane) as u64, launch.block);
        let bit = 1u64 << lane;
        match special {
            Special::Thread(axis) => thread[usize::from(axis)].into(),
            Special::Threads(axis) => launch.block[usize::from(axis)].into(),
            Special::Block(axis) => block[usize::from(axis)].into(),
            Special::Blocks(axis) => launch.grid[usize::from(axis)].into(),
            Special::Lane => lane as u64,
            Special::Warp => self.number as u64,
            Special::Warps => launch.threads().div_ceil(32),
            Special::LanesEqual => bit,
            Special::LanesLess => bit - 1,
            Special::LanesLessEqual => 2 * bit - 1,
            Special::LanesGreater => !(2 * bit - 1) & 0xFFFF_FFFF,
            Special::LanesGreaterEqual => !(bit - 1) & 0xFFFF_FFFF,
            Special::DynamicShared => launch.shared_bytes.into(),
            Special::TotalShared => (entry.dynamic_shared + launch.shared_bytes).into(),
        }
    }

    /// Lanes that can go on by themselves.
    pub(super) fn runnable(&self) -> u32 {
        self.alive & !self.at_barrier & !self.waiting
    }

    /// Lanes of `among` that stand at `pc`.
    pub(super) fn standing_at(&self, among: u32, pc: u32) -> u32 {
        lanes(among).filter(|lane| self.pc[*lane] == pc).fold(0, |mask, lane| mask | 1 << lane)
    }

    /// The least place of these lanes.
    pub(super) fn least_pc(&self, among: u32) -> Option<u32> {
        lanes(among).map(|lane| self.pc[lane]).min()
    }

    pub(super) fn set_pc(&mut self, mask: u32, pc: u32) {
        lanes(mask).for_each(|lane| self.pc[lane] = pc);
    }

    pub(super) fn holds(&self, condition: Condition) -> u32 {
        let value = self.predicates[condition.index as usize];
        if condition.negated { !value } else { value }
    }

    pub(super) fn set_predicate(&mut self, index: u32, value: u32, mask: u32) {
        let place = &mut self.predicates[index as usize];
        *place = *place & !mask | value & mask;
        self.predicates_defined[index as usize] |= mask;
    }

    pub(super) fn thread(&self, lane: usize) -> u16 {
        (32 * self.number + lane) as u16
    }
}
