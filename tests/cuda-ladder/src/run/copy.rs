//! `cp.async`: copies are carried out when they are waited for, so that a missing wait shows.

use super::Machine;
use super::access::{addresses, check_aligned, count_global, count_shared, outside};
use super::block::Block;
use super::race::GlobalTouch;
use super::shared::Touch;
use super::warp::{Copies, StartedCopy, Warp};
use crate::fault::{FaultKind, Wrong};
use crate::instruction::{AsyncCopy, LANES, Space, lanes};

impl Machine<'_> {
    /// Notes the copies of the lanes. Their targets may not be touched until they are waited for.
    pub(super) fn start_copy(
        &mut self,
        block: &mut Block,
        number: usize,
        copy: &AsyncCopy,
        active: u32,
    ) -> Result<(), Wrong> {
        let warp = &block.warps[number];
        let (to, from) = (addresses(warp, &copy.target), addresses(warp, &copy.source));
        check_aligned(&to, active, copy.bytes)?;
        check_aligned(&from, active, copy.bytes)?;
        let ignored = copy.ignored.map_or(0, |condition| warp.holds(condition));
        let mut real = [copy.bytes; LANES];
        for lane in lanes(active) {
            if let Some(register) = copy.source_bytes {
                real[lane] = warp.registers[register as usize][lane] as u32 as usize;
                if real[lane] > copy.bytes {
                    let detail = format!("cp.async of {} bytes out of {}", copy.bytes, real[lane]);
                    return Err(Wrong::new(FaultKind::OutOfBounds, lane as u32, detail));
                }
            }
            if ignored >> lane & 1 == 1 {
                real[lane] = 0;
            }
        }
        let reading = lanes(active).filter(|lane| real[*lane] > 0).fold(0, |mask, lane| mask | 1 << lane);
        if reading != 0 {
            count_global(&mut self.counts, &from, reading, copy.bytes, false);
            self.touch_global(block, &from, reading, copy.bytes, GlobalTouch::Read)?;
        }
        count_shared(&mut self.counts, &to, active, copy.bytes);
        for lane in lanes(active) {
            let thread = block.warps[number].thread(lane);
            block.shared.touch(&block.order, Touch::Start, to[lane], copy.bytes, thread, &[])?;
            if real[lane] > 0 && self.memory.bytes(from[lane], real[lane]).is_none() {
                return Err(outside(from[lane], real[lane], lane, "cp.async"));
            }
            let warp = &mut block.warps[number];
            if warp.copies.is_empty() {
                warp.copies = vec![Copies::default(); LANES];
            }
            let started =
                StartedCopy { target: to[lane] as u32, source: from[lane], bytes: copy.bytes, real: real[lane] };
            warp.copies[lane].open.push(started);
        }
        debug_assert_eq!(copy.target.space, Space::Shared);
        Ok(())
    }

    /// Carries out the copies of all but the last `groups` groups, or of everything.
    pub(super) fn wait_copies(
        &mut self,
        block: &mut Block,
        number: usize,
        groups: Option<u32>,
        active: u32,
    ) -> Result<(), Wrong> {
        if block.warps[number].copies.is_empty() {
            return Ok(());
        }
        for lane in lanes(active) {
            let warp = &mut block.warps[number];
            let thread = warp.thread(lane);
            let copies = &mut warp.copies[lane];
            let done = copies.groups.len().saturating_sub(groups.unwrap_or(0) as usize);
            let mut finished: Vec<StartedCopy> = copies.groups.drain(..done).flatten().collect();
            if groups.is_none() {
                finished.append(&mut copies.open);
            }
            for copy in finished {
                let mut data = [0; 16];
                if copy.real > 0 {
                    let source = self.memory.bytes(copy.source, copy.real);
                    data[..copy.real]
                        .copy_from_slice(source.ok_or_else(|| outside(copy.source, copy.real, lane, "cp.async"))?);
                }
                block.shared.finish(&block.order, copy.target as usize, &data[..copy.bytes], thread);
            }
        }
        Ok(())
    }
}

/// Closes the group of each lane, also an empty one.
pub(super) fn commit(warp: &mut Warp, active: u32) {
    if warp.copies.is_empty() {
        warp.copies = vec![Copies::default(); LANES];
    }
    for lane in lanes(active) {
        let copies = &mut warp.copies[lane];
        let group = std::mem::take(&mut copies.open);
        copies.groups.push_back(group);
    }
}
