//! Atomics: lane after lane.

use super::Machine;
use super::access::{Target, addresses, check_aligned, same_target};
use super::block::Block;
use super::race::GlobalTouch;
use super::shared::Touch;
use crate::decode::{mask as ones, signed};
use crate::fault::{FaultKind, Wrong};
use crate::instruction::{Atomic, AtomicKind, lanes};
use crate::number::float::Float;

impl Machine<'_> {
    pub(super) fn atomic(
        &mut self,
        block: &mut Block,
        number: usize,
        atomic: &Atomic,
        active: u32,
    ) -> Result<(), Wrong> {
        let all = addresses(&block.warps[number], &atomic.place);
        check_aligned(&all, active, atomic.bytes)?;
        let mut rest = active;
        while rest != 0 {
            let (target, mask, at) = same_target(atomic.place.space, &all, rest);
            rest &= !mask;
            if target == Target::Global {
                self.counts.global_atomics += u64::from(mask.count_ones());
                self.touch_global(block, &at, mask, atomic.bytes, GlobalTouch::Atomic)?;
            }
            for lane in lanes(mask) {
                let warp = &block.warps[number];
                let operand = warp.registers[atomic.value as usize][lane];
                let swap = warp.registers[atomic.swap as usize][lane];
                let thread = warp.thread(lane);
                let place: &mut [u8] = match target {
                    Target::Global => self.global_mut(at[lane], atomic.bytes, lane)?,
                    Target::Variables if at[lane] as usize + atomic.bytes <= self.globals.len() => {
                        &mut self.globals[at[lane] as usize..][..atomic.bytes]
                    }
                    Target::Shared => {
                        let start =
                            block.shared.touch(&block.order, Touch::Atomic, at[lane], atomic.bytes, thread, &[])?;
                        &mut block.shared.data[start..start + atomic.bytes]
                    }
                    _ => {
                        let detail = format!("atomic at {target:?} {:#x}", at[lane]);
                        return Err(Wrong::new(FaultKind::OutOfBounds, lane as u32, detail));
                    }
                };
                let mut old = [0; 8];
                old[..atomic.bytes].copy_from_slice(place);
                let old = u64::from_le_bytes(old);
                let new = combine(atomic, old, operand, swap);
                place.copy_from_slice(&new.to_le_bytes()[..atomic.bytes]);
                if let Some(target) = atomic.target {
                    let warp = &mut block.warps[number];
                    warp.registers[target as usize][lane] = old;
                    warp.defined[target as usize] |= 1 << lane;
                }
            }
        }
        Ok(())
    }
}

/// What an atomic leaves in memory.
fn combine(atomic: &Atomic, old: u64, operand: u64, swap: u64) -> u64 {
    let bits = 8 * atomic.bytes as u32;
    let operand = operand & ones(bits);
    let is_less = |a: u64, b: u64| if atomic.signed { signed(a, bits) < signed(b, bits) } else { a < b };
    let new = match atomic.kind {
        AtomicKind::Add => old.wrapping_add(operand),
        AtomicKind::AddFloat(format, packed) => {
            let float = Float { packed, ..Float::plain(format) };
            float.lanes([old, operand], |[a, b]| float.output(float.add(float.input(a), float.input(b))))
        }
        AtomicKind::Minimum => {
            if is_less(operand, old) {
                operand
            } else {
                old
            }
        }
        AtomicKind::Maximum => {
            if is_less(old, operand) {
                operand
            } else {
                old
            }
        }
        AtomicKind::And => old & operand,
        AtomicKind::Or => old | operand,
        AtomicKind::Xor => old ^ operand,
        AtomicKind::Exchange => operand,
        AtomicKind::CompareExchange => {
            if old == operand {
                swap
            } else {
                old
            }
        }
        AtomicKind::Increment => {
            if old >= operand {
                0
            } else {
                old + 1
            }
        }
        AtomicKind::Decrement => {
            if old == 0 || old > operand {
                operand
            } else {
                old - 1
            }
        }
    };
    new & ones(bits)
}
