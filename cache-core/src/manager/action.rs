//! What a shard wants done, and its answers.

use crate::key::CopyKey;
use crate::manager::entry::EntryId;
use crate::manager::event::Ticket;
use crate::miss::MissReason;
use crate::units::Tier;

/// Actions and answers, to be performed in order: a drop stands before the copy that needs its slot.
pub type Actions = Vec<Action>;

/// The figures behind a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Slots asked for.
    pub wanted_slots: u32,
    /// Device slots in all.
    pub device_slots: u32,
    /// Device slots that are open or hold a block that a live sequence reads.
    pub device_live_slots: u32,
    /// Host slots in all.
    pub host_slots: u32,
    /// Host slots that hold a block that a live sequence reads.
    pub host_live_slots: u32,
    /// Index entries for live blocks that have no slot, and so are on the disk only. 0 without a disk.
    pub below_entries: u32,
    /// How many of them are taken.
    pub below_live: u32,
}

/// One thing to do, or one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Free the slot of a copy. In the host tier this is answered by [`crate::manager::Event::Dropped`]; in the device tier, where no
    /// lease can stand in the way, it is final.
    Drop {
        /// Whose copy; only host drops may use it (the entry of a device drop may be gone).
        entry: EntryId,
        /// Its key.
        key: CopyKey,
        /// In which tier.
        tier: Tier,
    },
    /// Remove a copy that must not be read again, whatever leases or pins stand. Final. On the disk: take the record out of the index.
    Discard {
        /// Its key.
        key: CopyKey,
        /// In which tier.
        tier: Tier,
    },
    /// Copy device -> host and commit there; answered by [`crate::manager::Event::Demoted`]. The device copy stays readable until the
    /// shard drops it.
    Demote {
        /// Whose copy.
        entry: EntryId,
        /// Its key.
        key: CopyKey,
    },
    /// Copy host -> device and commit there; answered by [`crate::manager::Event::Onboarded`]. In a shard without host slots: disk -> device.
    Promote {
        /// Whose copy.
        entry: EntryId,
        /// Its key.
        key: CopyKey,
    },
    /// Copy the device copy's image out and write it to the disk; answered by [`crate::manager::Event::Stored`], at any later time. The
    /// image is copied out when the action is performed (for a block that was just committed: as soon as its slot is), so that the
    /// shard may let the device copy go meanwhile.
    Store {
        /// Whose copy; it may be gone by the time the write ends.
        entry: EntryId,
        /// Its key.
        key: CopyKey,
        /// True when it is a live block's way out of memory: a request for room waits for it, so neither admission nor a rate limit may
        /// refuse it. False: write-behind.
        spill: bool,
    },
    /// Copy disk -> host and commit there; answered by [`crate::manager::Event::Loaded`].
    Load {
        /// Whose copy.
        entry: EntryId,
        /// Its key.
        key: CopyKey,
    },
    /// Keep the disk's reclaim off this record, until [`Action::Unpin`]. If the record is not there any more:
    /// [`crate::manager::Event::Lost`] for [`Tier::Disk`] with `Evicted` (an `Unpin` follows all the same). A key is never pinned twice.
    Pin {
        /// Whose copy.
        entry: EntryId,
        /// Its key.
        key: CopyKey,
    },
    /// The end of a [`Action::Pin`].
    Unpin {
        /// The key.
        key: CopyKey,
    },
    /// Answer to [`crate::manager::Event::Acquire`].
    Acquired {
        /// The run of hits: entry and the nearest tier that has it.
        hits: Vec<(EntryId, Tier)>,
        /// Why the next link is not there; `None` when all were.
        miss: Option<MissReason>,
    },
    /// The device slots are there: so many can be reserved now.
    Granted {
        /// The request.
        ticket: Ticket,
        /// How many.
        slots: u32,
    },
    /// Another owner has the first of the blocks open. Nothing is held.
    PendingElsewhere {
        /// The request.
        ticket: Ticket,
    },
    /// There is no room, now that every copy that may go has gone. Nothing is held.
    Refused {
        /// The request.
        ticket: Ticket,
        /// The figures.
        shortage: Shortage,
    },
    /// Answer to [`crate::manager::Event::Commit`].
    Committed {
        /// The entry, live for its owner.
        entry: EntryId,
        /// False when nothing was committed (an equal copy was there first): the owner's own slot is to be freed.
        inserted: bool,
    },
    /// All copies that a [`crate::manager::Event::Promote`] started or joined have ended.
    Promoted {
        /// The request.
        ticket: Ticket,
        /// Copies that arrived in device memory.
        arrived: u32,
        /// Copies that arrived in the host arena, from the disk.
        loaded: u32,
        /// Copies that failed, each one this request's own miss. A block for which the host arena had no slot is none: it stays on disk.
        missed: u32,
    },
}
