//! Loads and stores of a warp.

use super::Machine;
use super::block::Block;
use super::race::GlobalTouch;
use super::shared::Touch;
use super::warp::Warp;
use crate::counts::Counts;
use crate::fault::{FaultKind, Wrong};
use crate::instruction::{Access, LANES, Place, Plane, Space, VARIABLES, WINDOW, lanes};

/// The most bytes of a lane's access.
const MOST: usize = 32;
/// Lanes whose addresses lie this close together are looked up at once.
const NEAR: u64 = 4096;

/// Data of all lanes.
type Data = [[u8; MOST]; LANES];

/// Where an address really leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Global,
    Variables,
    Shared,
    Local,
    Constant,
    Parameter,
}

/// Addresses of the lanes in `mask`.
pub(super) fn addresses(warp: &Warp, place: &Place) -> Plane {
    let mut found = warp.registers[place.base as usize];
    if place.offset != 0 {
        let kept = if place.narrow { u64::from(u32::MAX) } else { u64::MAX };
        found.iter_mut().for_each(|address| *address = address.wrapping_add_signed(place.offset) & kept);
    }
    found
}

/// The target of an address and the address in it. Only generic addresses of other spaces have windows.
pub(super) fn resolve(space: Space, address: u64) -> (Target, u64) {
    let window = address & WINDOW;
    let target = match space {
        Space::Shared => return (Target::Shared, address),
        Space::Local => return (Target::Local, address),
        Space::Constant => return (Target::Constant, address),
        Space::Parameter => return (Target::Parameter, address),
        Space::Global if window != VARIABLES => return (Target::Global, address),
        _ if window == VARIABLES => Target::Variables,
        _ if window == Space::Shared.window() => Target::Shared,
        _ if window == Space::Local.window() => Target::Local,
        _ if window == Space::Constant.window() => Target::Constant,
        _ if window == Space::Parameter.window() => Target::Parameter,
        _ => return (Target::Global, address),
    };
    (target, address & !WINDOW)
}

/// Lanes of `mask` that lead to the same target as its first one, their addresses in it.
pub(super) fn same_target(space: Space, all: &Plane, mask: u32) -> (Target, u32, Plane) {
    let first = mask.trailing_zeros() as usize;
    let (target, _) = resolve(space, all[first]);
    let (mut found, mut inside) = (0, [0; LANES]);
    for lane in lanes(mask) {
        let (own, address) = resolve(space, all[lane]);
        if own == target {
            found |= 1 << lane;
            inside[lane] = address;
        }
    }
    (target, found, inside)
}

pub(super) fn check_aligned(all: &Plane, mask: u32, bytes: usize) -> Result<(), Wrong> {
    for lane in lanes(mask) {
        if !all[lane].is_multiple_of(bytes as u64) {
            let detail = format!("{bytes} bytes at {:#x}", all[lane]);
            return Err(Wrong::new(FaultKind::Misaligned, lane as u32, detail));
        }
    }
    Ok(())
}

impl Machine<'_> {
    pub(super) fn load(&mut self, block: &mut Block, number: usize, access: &Access, active: u32) -> Result<(), Wrong> {
        let bytes = access.element * access.registers.len();
        let all = addresses(&block.warps[number], &access.place);
        check_aligned(&all, active, bytes)?;
        let mut data: Data = [[0; MOST]; LANES];
        let mut rest = active;
        while rest != 0 {
            let (target, mask, inside) = same_target(access.place.space, &all, rest);
            self.read(block, number, target, &inside, mask, bytes, &mut data)?;
            rest &= !mask;
        }
        let warp = &mut block.warps[number];
        let width = crate::decode::mask(access.width);
        for (index, register) in access.registers.iter().enumerate() {
            let Some(register) = register else {
                continue;
            };
            let at = index * access.element;
            let plane = &mut warp.registers[*register as usize];
            for lane in lanes(active) {
                let mut value = element(&data[lane], at, access.element);
                if access.signed {
                    value = crate::decode::signed(value, 8 * access.element as u32) as u64 & width;
                }
                plane[lane] = value;
            }
            warp.defined[*register as usize] |= active;
        }
        Ok(())
    }

    pub(super) fn store(
        &mut self,
        block: &mut Block,
        number: usize,
        access: &Access,
        active: u32,
    ) -> Result<(), Wrong> {
        let bytes = access.element * access.registers.len();
        let warp = &block.warps[number];
        let all = addresses(warp, &access.place);
        check_aligned(&all, active, bytes)?;
        let mut data: Data = [[0; MOST]; LANES];
        for (index, register) in access.registers.iter().enumerate() {
            let register = register.expect("a store names all of its registers");
            let plane = &warp.registers[register as usize];
            for lane in lanes(active) {
                let value = plane[lane].to_le_bytes();
                data[lane][index * access.element..][..access.element].copy_from_slice(&value[..access.element]);
            }
        }
        let mut rest = active;
        while rest != 0 {
            let (target, mask, inside) = same_target(access.place.space, &all, rest);
            self.write(block, number, target, &inside, mask, bytes, &data)?;
            rest &= !mask;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "an access is all of these")]
    fn read(
        &mut self,
        block: &mut Block,
        number: usize,
        target: Target,
        at: &Plane,
        mask: u32,
        bytes: usize,
        data: &mut Data,
    ) -> Result<(), Wrong> {
        match target {
            Target::Global => {
                count_global(&mut self.counts, at, mask, bytes, false);
                self.touch_global(block, at, mask, bytes, GlobalTouch::Read)?;
                return self.read_global(at, mask, bytes, data);
            }
            Target::Shared => {
                count_shared(&mut self.counts, at, mask, bytes);
                for lane in lanes(mask) {
                    let thread = block.warps[number].thread(lane);
                    let start = block.shared.touch(&block.order, Touch::Read, at[lane], bytes, thread, &[])?;
                    data[lane][..bytes].copy_from_slice(&block.shared.data[start..start + bytes]);
                }
                return Ok(());
            }
            _ => {}
        }
        if target == Target::Local {
            self.counts.local_bytes += bytes as u64 * u64::from(mask.count_ones());
        }
        for lane in lanes(mask) {
            let room: &[u8] = match target {
                Target::Local => local(block, self.entry.local_bytes, number, lane),
                Target::Constant => self.constants,
                Target::Parameter => self.launch.params,
                _ => self.globals,
            };
            let start = inside(at[lane], bytes, room.len(), lane, target)?;
            data[lane][..bytes].copy_from_slice(&room[start..start + bytes]);
        }
        Ok(())
    }

    pub(super) fn read_global(&mut self, at: &Plane, mask: u32, bytes: usize, data: &mut Data) -> Result<(), Wrong> {
        let (low, high) = bounds(at, mask);
        if high - low <= NEAR
            && let Some(all) = self.memory.bytes(low, (high - low) as usize + bytes)
        {
            for lane in lanes(mask) {
                let start = (at[lane] - low) as usize;
                data[lane][..bytes].copy_from_slice(&all[start..start + bytes]);
            }
            return Ok(());
        }
        for lane in lanes(mask) {
            let found = self.memory.bytes(at[lane], bytes).ok_or_else(|| outside(at[lane], bytes, lane, "read"))?;
            data[lane][..bytes].copy_from_slice(found);
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "an access is all of these")]
    fn write(
        &mut self,
        block: &mut Block,
        number: usize,
        target: Target,
        at: &Plane,
        mask: u32,
        bytes: usize,
        data: &Data,
    ) -> Result<(), Wrong> {
        match target {
            Target::Global => {
                count_global(&mut self.counts, at, mask, bytes, true);
                self.touch_global(block, at, mask, bytes, GlobalTouch::Write)?;
                for lane in lanes(mask) {
                    self.global_mut(at[lane], bytes, lane)?.copy_from_slice(&data[lane][..bytes]);
                }
                return Ok(());
            }
            Target::Shared => {
                count_shared(&mut self.counts, at, mask, bytes);
                for lane in lanes(mask) {
                    let thread = block.warps[number].thread(lane);
                    let new = &data[lane][..bytes];
                    let start = block.shared.touch(&block.order, Touch::Write, at[lane], bytes, thread, new)?;
                    block.shared.data[start..start + bytes].copy_from_slice(new);
                }
                return Ok(());
            }
            _ => {}
        }
        if target == Target::Local {
            self.counts.local_bytes += bytes as u64 * u64::from(mask.count_ones());
        }
        for lane in lanes(mask) {
            let room: &mut [u8] = match target {
                Target::Local => local_mut(block, self.entry.local_bytes, number, lane),
                Target::Variables => self.globals,
                _ => {
                    let detail = format!("{bytes} bytes at {target:?} {:#x}", at[lane]);
                    return Err(Wrong::new(FaultKind::ReadOnly, lane as u32, detail));
                }
            };
            let start = inside(at[lane], bytes, room.len(), lane, target)?;
            room[start..start + bytes].copy_from_slice(&data[lane][..bytes]);
        }
        Ok(())
    }

    /// Bytes of global memory to write.
    pub(super) fn global_mut(&mut self, address: u64, bytes: usize, lane: usize) -> Result<&mut [u8], Wrong> {
        if self.memory.bytes_mut(address, bytes).is_none() {
            if self.memory.bytes(address, bytes).is_some() {
                let detail = format!("{bytes} bytes at {address:#x}");
                return Err(Wrong::new(FaultKind::ReadOnly, lane as u32, detail));
            }
            return Err(outside(address, bytes, lane, "write"));
        }
        Ok(self.memory.bytes_mut(address, bytes).expect("it was there a line above"))
    }

    pub(super) fn touch_global(
        &mut self,
        block: &Block,
        at: &Plane,
        mask: u32,
        bytes: usize,
        touch: GlobalTouch,
    ) -> Result<(), Wrong> {
        let Some(marks) = &mut self.marks else {
            return Ok(());
        };
        for lane in lanes(mask) {
            if let Some((address, other)) = marks.touch(touch, at[lane], bytes, block.number) {
                let detail = format!("{touch:?} of {address:#x} with block {other}");
                return Err(Wrong::new(FaultKind::GlobalRace, lane as u32, detail));
            }
        }
        Ok(())
    }
}

pub(super) fn outside(address: u64, bytes: usize, lane: usize, what: &str) -> Wrong {
    Wrong::new(FaultKind::OutOfBounds, lane as u32, format!("{what} of {bytes} bytes at global address {address:#x}"))
}

fn inside(address: u64, bytes: usize, room: usize, lane: usize, target: Target) -> Result<usize, Wrong> {
    if address.checked_add(bytes as u64).is_some_and(|end| end <= room as u64) {
        return Ok(address as usize);
    }
    let detail = format!("{bytes} bytes at {target:?} {address:#x}, of {room}");
    Err(Wrong::new(FaultKind::OutOfBounds, lane as u32, detail))
}

fn local(block: &Block, bytes: u32, number: usize, lane: usize) -> &[u8] {
    let bytes = bytes as usize;
    &block.locals[(32 * number + lane) * bytes..][..bytes]
}

fn local_mut(block: &mut Block, bytes: u32, number: usize, lane: usize) -> &mut [u8] {
    let bytes = bytes as usize;
    &mut block.locals[(32 * number + lane) * bytes..][..bytes]
}

fn element(data: &[u8; MOST], at: usize, bytes: usize) -> u64 {
    match bytes {
        1 => data[at].into(),
        2 => u16::from_le_bytes([data[at], data[at + 1]]).into(),
        4 => u32::from_le_bytes(data[at..at + 4].try_into().expect("four bytes")).into(),
        _ => u64::from_le_bytes(data[at..at + 8].try_into().expect("eight bytes")),
    }
}

/// Least and greatest address.
fn bounds(at: &Plane, mask: u32) -> (u64, u64) {
    lanes(mask).fold((u64::MAX, 0), |(low, high), lane| (low.min(at[lane]), high.max(at[lane])))
}

/// Sectors of a request, and whether it touches any in vain.
pub(super) fn count_global(counts: &mut Counts, at: &Plane, mask: u32, bytes: usize, stores: bool) {
    let total = bytes as u64 * u64::from(mask.count_ones());
    let width = bytes.trailing_zeros() as usize;
    let by_width = if stores { &mut counts.global_store_bytes } else { &mut counts.global_load_bytes };
    by_width[width.min(5)] += total;
    counts.global_requests += 1;
    // Sectors touched, and distinct bytes: lanes that read the same bytes share them. Both are cheap in sorted order, which
    // addresses mostly have.
    let mut sorted: [u64; LANES] = [u64::MAX; LANES];
    let mut count = 0;
    for lane in lanes(mask) {
        sorted[count] = at[lane];
        count += 1;
    }
    let sorted = &mut sorted[..count];
    if !sorted.is_sorted() {
        sorted.sort_unstable();
    }
    let (mut sectors, mut distinct, mut next_sector, mut next_byte) = (0, 0, 0u64, 0u64);
    for address in sorted.iter() {
        let end = address + bytes as u64;
        let first = (address / 32).max(next_sector);
        let last = end.div_ceil(32);
        sectors += last.saturating_sub(first);
        next_sector = next_sector.max(last);
        distinct += end.saturating_sub((*address).max(next_byte));
        next_byte = next_byte.max(end);
    }
    counts.global_sectors += sectors;
    counts.global_sectors_least += distinct.div_ceil(32);
    if bytes >= 16 && distinct == 32 * sectors {
        counts.global_coalesced16_bytes += total;
    }
}

/// Passes over the 32 banks of 4 bytes. Accesses of 8 and 16 bytes go by half and quarter warps.
pub(super) fn count_shared(counts: &mut Counts, at: &Plane, mask: u32, bytes: usize) {
    counts.shared_requests += 1;
    counts.shared_bytes += bytes as u64 * u64::from(mask.count_ones());
    let together = LANES / (bytes / 4).clamp(1, 4);
    for start in (0..LANES).step_by(together) {
        let mut words: [u64; LANES] = [0; LANES];
        let mut count = 0;
        let part = mask & (crate::decode::mask(together as u32) << start) as u32;
        for lane in lanes(part) {
            words[count] = at[lane] / 4;
            count += 1;
        }
        // Words of wider accesses follow each other: their first words meet exactly when all do.
        let words = &mut words[..count];
        words.sort_unstable();
        let mut used = [0u8; 32];
        let mut previous = None;
        for word in words.iter() {
            if previous != Some(*word) {
                used[(word % 32) as usize] += 1;
                previous = Some(*word);
            }
        }
        let most = used.into_iter().max().unwrap_or(0);
        counts.shared_conflicts += u64::from(most.saturating_sub(1));
    }
}
