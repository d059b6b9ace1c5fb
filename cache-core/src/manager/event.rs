//! What a driver tells a shard.

use crate::chain::Link;
use crate::form::Accept;
use crate::key::CopyKey;
use crate::manager::entry::EntryId;
use crate::miss::MissReason;
use crate::units::Tier;

/// Names one request for room or for promotion; chosen by the driver, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Whoever holds open blocks: a sequence, by the driver's own number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(pub u64);

/// What a driver found on the disk for a key, in the disk tier's own index: a record, or why there is none.
pub type Below = Result<(), MissReason>;

/// How a copy between tiers ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyEnd {
    /// The target copy is committed.
    Done,
    /// The target tier had no slot after all (resting or leased ones). Disk: the queue was full, the disk is, or the write was refused.
    Full,
    /// The bytes that arrived did not verify: the source copy is damaged.
    Damaged,
    /// The source was not there any more, or its lease was lost.
    SourceLost,
    /// The medium failed; the source is as good as before.
    Failed,
}

/// What happened, or what is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Makes the longest run of `keys` that is there live. Answer: [`crate::manager::Action::Acquired`].
    Acquire {
        /// The copies that the reader would make itself, of blocks of one chain, in order.
        keys: &'a [CopyKey],
        /// Their places in the chain.
        links: &'a [Link],
        /// What the disk has, per key, looked up just now. What is not named is not there: none without a disk.
        below: &'a [Below],
        /// What will do.
        accept: Accept,
    },
    /// One reader of each of these entries (in chain order) is gone.
    Release {
        /// Entries, each held live by the caller.
        entries: &'a [EntryId],
    },
    /// Asks for device slots for open blocks, all or nothing. Answer, perhaps after completions: [`crate::manager::Action::Granted`],
    /// [`crate::manager::Action::PendingElsewhere`] or [`crate::manager::Action::Refused`].
    Room {
        /// Name of this request.
        ticket: Ticket,
        /// Who will hold the open blocks.
        owner: Owner,
        /// One per slot: the key it will get, if its tokens are known.
        keys: &'a [Option<CopyKey>],
        /// How many of the keys have an entry already, held live by the caller (a lost block that is computed again).
        held: u32,
    },
    /// Open blocks were dropped uncommitted; the driver has freed their slots.
    Abandon {
        /// Who held them.
        owner: Owner,
        /// The keys they were to get, as given in [`Event::Room`].
        keys: &'a [Option<CopyKey>],
        /// How many of them have an entry that the owner holds live.
        held: u32,
    },
    /// An open block is full and sealed. Answer: [`crate::manager::Action::Committed`].
    Commit {
        /// Who held it open.
        owner: Owner,
        /// The key it was opened for, as given in [`Event::Room`].
        opened_for: Option<CopyKey>,
        /// The copy's name.
        key: CopyKey,
        /// Its place in the chain; `link.hash == key.hash`.
        link: Link,
        /// True when the owner holds the entry live already (it was lost and has been computed again). `key` is then the key it was
        /// opened for; under another one nothing is committed, and the answer names the entry that the owner holds, as it was.
        held: bool,
    },
    /// Asks to bring these live entries (in chain order) into host and then device memory, as far as there is room that no live block
    /// needs. Answer, after completions: [`crate::manager::Action::Promoted`].
    Promote {
        /// Name of this request.
        ticket: Ticket,
        /// Entries that the caller holds live.
        entries: &'a [EntryId],
    },
    /// As [`Event::Promote`], but no nearer than the host arena: for a device that attends there.
    Load {
        /// Name of this request.
        ticket: Ticket,
        /// Entries that the caller holds live.
        entries: &'a [EntryId],
    },
    /// A [`crate::manager::Action::Demote`] has ended.
    Demoted {
        /// Whose copy.
        entry: EntryId,
        /// How.
        end: CopyEnd,
    },
    /// A [`crate::manager::Action::Promote`] has ended.
    Onboarded {
        /// Whose copy.
        entry: EntryId,
        /// How.
        end: CopyEnd,
    },
    /// A [`crate::manager::Action::Store`] has ended. `Done`: the record is visible, and the driver itself holds it pinned while it
    /// feeds this in, so that it is still there when the shard asks for the pin.
    Stored {
        /// Its key: the entry may be gone.
        key: CopyKey,
        /// As in the action: two writes of one block may be under way.
        spill: bool,
        /// How. `Damaged` and `SourceLost` speak of the device copy, `Full` and `Failed` of the disk.
        end: CopyEnd,
    },
    /// A [`crate::manager::Action::Load`] has ended.
    Loaded {
        /// Whose copy.
        entry: EntryId,
        /// How. `Damaged` and `SourceLost` speak of the disk's record, `Full` of the host arena; `Failed`: the record may be good (the
        /// disk is offline, or late).
        end: CopyEnd,
    },
    /// A [`crate::manager::Action::Drop`] of a host copy was performed, or refused because of a lease.
    Dropped {
        /// Whose copy.
        entry: EntryId,
        /// True when a lease stood in the way: the copy is still there.
        refused: bool,
    },
    /// A copy turned out to be gone or wrong. Answer: [`crate::manager::Action::Discard`] for the copy; on the disk only if it failed its
    /// check, since the disk decides itself what else to keep. One that is being promoted or loaded is discarded as soon as it has arrived.
    Lost {
        /// Whose copy.
        entry: EntryId,
        /// In which tier.
        tier: Tier,
        /// Why: `FailedCheck` or `LeaseLost`; on the disk also `Evicted` (it could not be pinned), `TierOffline`, `Deadline`.
        reason: MissReason,
    },
}
