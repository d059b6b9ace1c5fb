//! Who waits, for what, until when: each is answered when what it waits for has ended, or at its deadline, and at no other moment.

use cache_core::key::CopyKey;
use cache_core::manager::{CopyState, EntryId, Ticket};
use cache_core::units::Tier;

use super::disk::Work;
use super::world::{Happening, World};
use super::{Bug, Checked, must};

/// What is waited for.
#[derive(Clone, Debug)]
pub enum What {
    /// A daemon's client wants these hits; some come from the disk, by operations that its request has begun or found.
    Loads { ticket: Ticket, hits: Vec<(EntryId, Tier)>, reads: Vec<u64> },
    /// A daemon's client wants a block that another writes.
    Block { key: CopyKey },
    /// A sequence wants device slots.
    Room { ticket: Ticket },
    /// A sequence wants its blocks nearer.
    Promotion { ticket: Ticket },
}

/// One wait.
#[derive(Clone, Debug)]
pub struct Wait {
    pub who: u64,
    pub room: usize,
    pub until: u64,
    pub what: What,
    /// Requests that shards answer by themselves: the answer has come.
    pub has_ended: bool,
}

impl World {
    /// Begins a wait of at most so many nanoseconds; its number.
    pub fn wait(&mut self, who: u64, room: usize, limit: u64, what: What) -> u64 {
        let number = self.number();
        let until = self.now + limit;
        self.waits.insert(number, Wait { who, room, until, what, has_ended: false });
        self.happens(limit + u64::from(self.bug == Bug::DeadlineLate), Happening::WaitEnds(number));
        number
    }

    /// What the driver knows of a wait: whether what it waits for has ended.
    fn has_ended(&self, wait: &Wait) -> bool {
        match &wait.what {
            _ if self.bug == Bug::ForgottenWake => false,
            What::Loads { ticket, .. } => self.awaited.get(ticket).copied().unwrap_or(true),
            What::Block { key } => {
                let shard = self.shard(wait.room);
                let resident = |copies: [CopyState; 3]| copies[0] == CopyState::Resident;
                shard.view(key).is_some_and(|(_, view)| resident(view.copies)) || shard.opened_by(key).is_none()
            }
            What::Room { .. } | What::Promotion { .. } => wait.has_ended,
        }
    }

    /// Answers everyone whose time has come, until nobody's has: an answer may be what another waits for.
    pub fn wake(&mut self) -> Checked {
        loop {
            let late = u64::from(self.bug == Bug::DeadlineLate);
            let is_due = |wait: &Wait| self.has_ended(wait) || wait.until + late <= self.now;
            let Some(number) = self.waits.iter().find(|(_, wait)| is_due(wait)).map(|(number, _)| *number) else {
                return Ok(());
            };
            let wait = self.waits.remove(&number).expect("it was just found");
            let has_ended = self.has_ended(&wait);
            must!(has_ended != self.is_under_way(&wait), "{wait:?}: ended {has_ended}, which is not so");
            self.answer(wait, has_ended)?;
        }
    }

    fn answer(&mut self, wait: Wait, has_ended: bool) -> Checked {
        let Wait { who, room, what, .. } = wait;
        match what {
            What::Loads { ticket, hits, .. } => {
                self.awaited.remove(&ticket);
                self.count(if has_ended { "waits for loads" } else { "waits for loads that were too late" });
                self.loads_ended(who, room, &hits, !has_ended)
            }
            What::Block { key } => {
                self.count(if has_ended { "awaits" } else { "awaits that were too late" });
                self.block_ended(who, room, &key, !has_ended)
            }
            What::Room { ticket } => self.room_ended(who, ticket, has_ended),
            What::Promotion { ticket } => self.promotion_ended(who, ticket, has_ended),
        }
    }

    /// The same from what is really under way, whatever the shard says.
    fn is_under_way(&self, wait: &Wait) -> bool {
        match &wait.what {
            What::Loads { reads, .. } => reads.iter().any(|number| self.disk.operations.contains_key(number)),
            What::Block { key } => {
                let room = &self.rooms[wait.room];
                let written = |client: &super::daemon::Client| client.reserves(key);
                room.device.find(key).is_none() && self.clients.values().any(written)
            }
            // These wait for others' copies as well: what is told of them is checked by `nothing_is_forgotten`.
            What::Room { .. } | What::Promotion { .. } => !wait.has_ended,
        }
    }

    /// The operations that read one of these records into a slot of this room.
    pub fn reads_of(&self, room: usize, keys: &[CopyKey]) -> Vec<u64> {
        let reads =
            |work: &Work| matches!(work, Work::Read { room: into, key, .. } if *into == room && keys.contains(key));
        let operations = self.disk.operations.iter();
        operations.filter(|(_, operation)| reads(&operation.work)).map(|(number, _)| *number).collect()
    }

    /// Nobody waits for what has ended.
    pub fn nothing_is_forgotten(&self) -> Checked {
        for wait in self.waits.values() {
            let busy = match wait.what {
                What::Loads { .. } | What::Block { .. } => self.is_under_way(wait),
                What::Room { .. } | What::Promotion { .. } => self.copies_in(wait.room),
            };
            must!(busy, "{wait:?} heard nothing, and nothing that it waits for is under way");
        }
        Ok(())
    }

    fn copies_in(&self, room: usize) -> bool {
        let operates = |work: &Work| match work {
            Work::Read { room: other, .. } | Work::Write { room: other, .. } => *other == room,
            Work::Stage { .. } => false,
        };
        self.copies.values().any(|copy| copy.room == room)
            || self.disk.operations.values().any(|operation| operates(&operation.work))
    }

    /// The clock is about to go on to `when`: what was due before that has happened.
    pub fn nothing_is_late(&self, when: u64) -> Checked {
        for wait in self.waits.values() {
            must!(wait.until >= when, "{wait:?} is late");
        }
        for (key, kept) in &self.kept {
            must!(kept.until >= when, "the end of the pin of {key:?} at {} is late", kept.until);
        }
        for (id, client) in &self.clients {
            let over = client.oldest_lease_ends();
            must!(over.is_none_or(|over| over >= when), "the end of client {id}'s leases at {over:?} is late");
        }
        Ok(())
    }
}
