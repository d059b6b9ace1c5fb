//! Who goes when slots run out.
//!
//! **Device**, in this order:
//! 1. idle copies, leaf first, least recently used first. With a host copy: dropped. With only the disk's: demoted while a host slot is free,
//!    else dropped. With none: demoted if the host has or can make room, else dropped. One that is the last copy in a slot while the block has
//!    children is never dropped, only demoted: a parent's entry would be kept without a slot.
//! 2. for open blocks only, and not where the first place is lent to other processes, live copies, deepest first. With a host copy: dropped. Else demoted if the host has or can make room; else, with
//!    a record on the disk: dropped; else spilled. The last two take one of the entries below, and wait for none: when they are all taken the
//!    copy stays. When the disk takes no more, the deepest live copy that is also elsewhere goes instead, whatever stands on it.
//!
//! **Host**: idle copies, leaf first; else live ones beside a device copy; else, for a live block that must leave device memory, live
//! ones with a record on the disk, deepest first. Of two blocks that are on the disk the deeper one goes there: such a copy makes room for a
//! block on the disk only if it is the deeper one.
//!
//! The last copy of a live block is never dropped. The host tier may be full although the shard counts a free slot there (slots that rest,
//! or that leases outlive): a demotion that ends so is tried again only after another host copy was dropped for it, and the request is
//! refused when none may go.

use crate::manager::action::{Action, Actions};
use crate::manager::entry::{CopyState, Entry, EntryId};
use crate::manager::event::Ticket;
use crate::manager::room::{Freed, Room};
use crate::manager::shard::{DEVICE, HOST, Shard};
use crate::units::Tier;

impl Shard {
    /// Frees one device slot for `room`, or starts the copy that will.
    pub(crate) fn free_one(&mut self, room: &mut Room, actions: &mut Actions) -> Freed {
        for _ in 0..self.candidates.idle(DEVICE).len() {
            let Some(id) = self.candidates.idle(DEVICE).head() else {
                break;
            };
            let entry = &self.slab[id];
            let (host, may_go) = (entry.copies[HOST], entry.children == 0);
            if entry.children_in[DEVICE] > 0 {
                self.candidates.rotate(&mut self.slab, DEVICE);
            } else if host == CopyState::Resident {
                self.evict_device(id, actions);
                return Freed::Now;
            } else if host == CopyState::None && self.host_room_for_idle(id, room, actions) {
                self.demote(id, room.ticket(), actions);
                return Freed::Later;
            } else if host == CopyState::None && may_go {
                self.evict_device(id, actions);
                return Freed::Now;
            } else {
                self.candidates.rotate(&mut self.slab, DEVICE);
            }
        }
        if room.is_for_open_blocks() && !self.lends { self.free_live(room, actions) } else { Freed::No }
    }

    fn free_live(&mut self, room: &mut Room, actions: &mut Actions) -> Freed {
        let Some(id) = self.candidates.deepest_live() else {
            return Freed::No;
        };
        let entry = &self.slab[id];
        if entry.children_in[DEVICE] > 0 {
            // A child is on its way into device memory: soon it will be the deepest.
            return Freed::No;
        }
        let (host, on_disk) = (entry.copies[HOST], entry.on_disk());
        match host {
            CopyState::Resident => {
                self.evict_device(id, actions);
                Freed::Now
            }
            CopyState::None if self.host_room_for_live(id, room, actions) => {
                self.demote(id, room.ticket(), actions);
                Freed::Later
            }
            CopyState::Arriving => Freed::No,
            CopyState::None | CopyState::Leaving if !self.has_room_below() => Freed::No,
            CopyState::None | CopyState::Leaving if on_disk => {
                self.evict_device(id, actions);
                Freed::Now
            }
            CopyState::None | CopyState::Leaving if room.may_spill() => {
                self.spill(id, room.ticket(), actions);
                Freed::Later
            }
            CopyState::None | CopyState::Leaving => self.free_covered(actions),
        }
    }

    /// The disk takes no more: of the live device copies above the deepest, the deepest that is also elsewhere goes, so that what is in device
    /// memory only can stay there. O(live device copies).
    fn free_covered(&mut self, actions: &mut Actions) -> Freed {
        let may_sink = self.has_room_below();
        let covered = |id: &EntryId| {
            let entry = &self.slab[*id];
            entry.copies[HOST] == CopyState::Resident
                || (may_sink && entry.on_disk() && entry.copies[HOST] == CopyState::None)
        };
        let Some(id) = self.candidates.live_deepest_first(&self.slab).find(covered) else {
            return Freed::No;
        };
        self.evict_device(id, actions);
        Freed::Now
    }

    /// Lets the least recently used idle leaf go with all its copies, so that its entry is free; blocks in the host are the colder ones.
    /// O(idle copies), but needed only while lost blocks keep entries.
    pub(crate) fn free_entry(&mut self, ticket: Ticket, actions: &mut Actions) -> Freed {
        for side in [HOST, DEVICE] {
            for _ in 0..self.candidates.idle(side).len() {
                let Some(id) = self.candidates.idle(side).head() else {
                    break;
                };
                let Entry { children, copies: [device, host, _], .. } = self.slab[id];
                // In the second pass, a host copy is one that a lease keeps, or one that is being dropped.
                if children > 0 || (side == DEVICE && host != CopyState::None) {
                    self.candidates.rotate(&mut self.slab, side);
                    continue;
                }
                if device == CopyState::Resident {
                    self.evict_device(id, actions);
                }
                if host == CopyState::None {
                    return Freed::Now;
                }
                self.slab[id].awaited_by = Some(ticket);
                self.drop_host(id, actions);
                return Freed::Later;
            }
        }
        Freed::No
    }

    /// A block that is on the disk may take a free host slot, but nobody's.
    fn host_room_for_idle(&mut self, id: EntryId, room: &mut Room, actions: &mut Actions) -> bool {
        let entry = &self.slab[id];
        let spare = entry.on_disk() && entry.children == 0;
        self.has_host_slot(room) || (!spare && self.drop_for(room, None, actions))
    }

    fn host_room_for_live(&mut self, id: EntryId, room: &mut Room, actions: &mut Actions) -> bool {
        self.has_host_slot(room) || self.drop_for(room, Some(id), actions)
    }

    /// True when a host slot is free, or will be once the actions so far are performed. After a demotion of this request that found the
    /// host tier full, a free slot in the shard's count is no proof: a host copy has to go.
    fn has_host_slot(&self, room: &Room) -> bool {
        self.used[HOST] < self.budgets.host_slots && room.host_full() == 0
    }

    fn drop_for(&mut self, room: &mut Room, live: Option<EntryId>, actions: &mut Actions) -> bool {
        let dropped = self.drop_idle_host(actions)
            || self.drop_redundant(actions)
            || live.is_some_and(|live| self.drop_backed(live, actions));
        if dropped {
            room.host_dropped();
        }
        dropped
    }

    /// Drops an idle host copy, leaf first. False when none may go.
    pub(crate) fn drop_idle_host(&mut self, actions: &mut Actions) -> bool {
        for _ in 0..self.candidates.idle(HOST).len() {
            let Some(id) = self.candidates.idle(HOST).head() else {
                break;
            };
            let entry = &self.slab[id];
            let last_copy = entry.copies[DEVICE] == CopyState::None;
            if entry.children_in[HOST] > 0 || (last_copy && entry.children > 0) {
                self.candidates.rotate(&mut self.slab, HOST);
            } else {
                self.drop_host(id, actions);
                return true;
            }
        }
        false
    }

    /// A live block that is in both tiers can spare its host copy: the device copy is then its last one in a slot.
    fn drop_redundant(&mut self, actions: &mut Actions) -> bool {
        let id = self.candidates.redundant();
        id.inspect(|id| self.drop_host(*id, actions)).is_some()
    }

    /// Leaves the deepest live host copy that has a record to the disk, so that the live block `other` can have its slot.
    fn drop_backed(&mut self, other: EntryId, actions: &mut Actions) -> bool {
        let Some(id) = self.candidates.deepest_backed().filter(|_| self.has_room_below()) else {
            return false;
        };
        let other = &self.slab[other];
        let goes = !other.on_disk() || self.slab[id].depth > other.depth;
        if goes {
            self.drop_host(id, actions);
        }
        goes
    }

    fn drop_host(&mut self, id: EntryId, actions: &mut Actions) {
        self.set_copy(id, HOST, CopyState::Leaving);
        actions.push(Action::Drop { entry: id, key: self.slab[id].key, tier: Tier::Host });
    }

    /// Entries whose eviction met a lease become candidates again.
    pub(crate) fn unpark(&mut self) {
        for id in std::mem::take(&mut self.parked) {
            if self.slab.get(id).is_some_and(|entry| entry.parked) {
                self.slab[id].parked = false;
                self.candidates.refresh(&mut self.slab, id);
            }
        }
    }
}
