//! What lanes of a warp do together.

mod matrix;

use super::Machine;
use super::block::Block;
use super::warp::Warp;
use crate::decode::signed;
use crate::fault::{FaultKind, Wrong};
use crate::instruction::{Collective, LANES, Plane, ReduceKind, ShuffleKind, VoteKind, lanes};

impl Machine<'_> {
    /// Lanes in `here` stand at a collective. Carries it out for those whose members are all here (or have exited) and returns
    /// their mask.
    pub(super) fn collective(
        &mut self,
        block: &mut Block,
        number: usize,
        members: u32,
        what: &Collective,
        here: u32,
    ) -> Result<u32, Wrong> {
        let warp = &block.warps[number];
        let named = warp.registers[members as usize];
        let (mut rest, mut done) = (here, 0);
        while rest != 0 {
            let lane = rest.trailing_zeros();
            // Lanes that the block does not have are as good as exited.
            let wanted = named[lane as usize] as u32;
            let group = lanes(rest).filter(|lane| named[*lane] as u32 == wanted).fold(0, |mask, lane| mask | 1 << lane);
            rest &= !group;
            let stranger = group & !wanted;
            if stranger != 0 {
                let detail = format!("the lane is not in the mask {wanted:#010x} that it names");
                return Err(Wrong::new(FaultKind::WarpDivergence, stranger.trailing_zeros(), detail));
            }
            if wanted & block.warps[number].alive & !group == 0 {
                self.carry_out(block, number, what, group)?;
                done |= group;
            }
        }
        Ok(done)
    }

    fn carry_out(&mut self, block: &mut Block, number: usize, what: &Collective, group: u32) -> Result<(), Wrong> {
        let warp = &mut block.warps[number];
        match what {
            Collective::Shuffle { kind, target, inside, value, lane, clamp } => {
                let sources = [value, lane, clamp].map(|register| warp.registers[*register as usize]);
                shuffle(warp, *kind, *target, *inside, sources, group);
            }
            Collective::Vote { kind, target, condition } => {
                let holds = warp.holds(*condition) & group;
                match kind {
                    VoteKind::Ballot => set(warp, *target, &[holds.into(); LANES], group),
                    VoteKind::All => warp.set_predicate(*target, all_or_none(holds == group), group),
                    VoteKind::Any => warp.set_predicate(*target, all_or_none(holds != 0), group),
                    VoteKind::Uniform => {
                        warp.set_predicate(*target, all_or_none(holds == 0 || holds == group), group);
                    }
                }
            }
            Collective::MatchAny { target, value } => {
                let values = warp.registers[*value as usize];
                let result = std::array::from_fn(|lane| equal_to(&values, values[lane], group).into());
                set(warp, *target, &result, group);
            }
            Collective::MatchAll { target, equal, value } => {
                let values = warp.registers[*value as usize];
                let same = equal_to(&values, values[group.trailing_zeros() as usize], group) == group;
                if let Some(target) = target {
                    set(warp, *target, &[if same { group.into() } else { 0 }; LANES], group);
                }
                if let Some(equal) = equal {
                    warp.set_predicate(*equal, all_or_none(same), group);
                }
            }
            Collective::Reduce { kind, signed, target, value } => {
                let result = reduce(*kind, *signed, &warp.registers[*value as usize], group);
                set(warp, *target, &[result; LANES], group);
            }
            Collective::Elect { target, elected } => {
                let leader = group.trailing_zeros();
                warp.set_predicate(*elected, 1 << leader, group);
                if let Some(target) = target {
                    set(warp, *target, &[leader.into(); LANES], group);
                }
            }
            Collective::Barrier => {
                let whole = group == warp.alive;
                block.order.meet_lanes(number, group, whole);
            }
            Collective::LoadMatrix { targets, transposed, place } => {
                self.load_matrix(block, number, targets, *transposed, place, group)?;
            }
            Collective::StoreMatrix { sources, transposed, place } => {
                self.store_matrix(block, number, sources, *transposed, place, group)?;
            }
            Collective::MoveMatrix { target, source } => matrix::transpose(warp, *target, *source, group)?,
            Collective::Multiply(multiply) => {
                matrix::multiply(warp, multiply, group)?;
                self.counts.matrix_multiply_adds += 16 * 8 * multiply.k as u64;
            }
        }
        Ok(())
    }
}

fn all_or_none(holds: bool) -> u32 {
    if holds { !0 } else { 0 }
}

fn set(warp: &mut Warp, target: u32, values: &Plane, mask: u32) {
    let plane = &mut warp.registers[target as usize];
    lanes(mask).for_each(|lane| plane[lane] = values[lane]);
    warp.defined[target as usize] |= mask;
}

fn equal_to(values: &Plane, value: u64, group: u32) -> u32 {
    lanes(group).filter(|lane| values[*lane] == value).fold(0, |mask, lane| mask | 1 << lane)
}

/// The source lane and whether it lies inside of the segment (PTX ISA, `shfl.sync`).
fn source_lane(kind: ShuffleKind, lane: usize, by: u64, clamp: u64) -> (usize, bool) {
    let by = (by & 0x1F) as i64;
    let (bound, segments) = ((clamp & 0x1F) as i64, (clamp >> 8 & 0x1F) as i64);
    let own = lane as i64;
    let most = (own & segments) | (bound & !segments);
    let least = own & segments;
    let (from, inside) = match kind {
        // `up` has its bound below.
        ShuffleKind::Up => (own - by, own - by >= most),
        ShuffleKind::Down => (own + by, own + by <= most),
        ShuffleKind::Butterfly => (own ^ by, own ^ by <= most),
        ShuffleKind::Index => {
            let from = least | (by & !segments);
            (from, from <= most)
        }
    };
    if inside { (from as usize, true) } else { (lane, false) }
}

fn shuffle(
    warp: &mut Warp,
    kind: ShuffleKind,
    target: Option<u32>,
    inside: Option<u32>,
    sources: [Plane; 3],
    group: u32,
) {
    let [values, by, clamp] = sources;
    let (mut within, mut known, mut result) = (0, 0, [0; LANES]);
    for lane in lanes(group) {
        let (from, is_inside) = source_lane(kind, lane, by[lane], clamp[lane]);
        within |= u32::from(is_inside) << lane;
        // What a lane that takes no part would give is undefined: whoever uses it reads an unset register.
        if group >> (from & 31) & 1 == 1 {
            known |= 1 << lane;
            result[lane] = values[from & 31];
        }
    }
    if let Some(target) = target {
        set(warp, target, &result, group);
        let defined = &mut warp.defined[target as usize];
        *defined = *defined & !group | known;
    }
    if let Some(inside) = inside {
        warp.set_predicate(inside, within, group);
    }
}

fn reduce(kind: ReduceKind, is_signed: bool, values: &Plane, group: u32) -> u64 {
    let parts = lanes(group).map(|lane| values[lane] & 0xFFFF_FFFF);
    let order = |value: &u64| if is_signed { signed(*value, 32) } else { *value as i64 };
    let result = match kind {
        ReduceKind::Add => parts.fold(0u64, u64::wrapping_add),
        ReduceKind::Minimum => parts.min_by_key(order).unwrap_or(0),
        ReduceKind::Maximum => parts.max_by_key(order).unwrap_or(0),
        ReduceKind::And => parts.fold(u64::MAX, |a, b| a & b),
        ReduceKind::Or => parts.fold(0, |a, b| a | b),
        ReduceKind::Xor => parts.fold(0, |a, b| a ^ b),
    };
    result & 0xFFFF_FFFF
}
