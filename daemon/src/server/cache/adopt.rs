//! Blocks brought back from the attic.

use super::*;
use crate::server::attic::Found;

/// Whoever holds blocks open that are being brought back; connections are numbered from 1.
const ATTIC: Owner = Owner(0);

/// Where a block is, as far as the attic is concerned.
pub(crate) enum Aside {
    /// In the arena or on the disk, or in neither place and not in the attic: nothing to bring back.
    Elsewhere {
        /// True when it is there.
        is_there: bool,
    },
    /// In the attic alone, or nearer there than on the disk.
    Found(Found),
}

impl State {
    /// Closes a part of the attic, since its memory is wanted; false when there is none to close.
    pub(super) fn make_room(&mut self) -> bool {
        let bytes = self.attic.make_room();
        self.pool.give_attic_back(bytes);
        bytes > 0
    }

    /// The tiers of the longest run that is there, the attic among them, and why the next block is not. Changes nothing.
    pub(super) fn peek(
        &self,
        class: ClassId,
        keys: &[CopyKey],
        below: &[Below],
        accept: Accept,
    ) -> (Vec<Tier>, Option<MissReason>) {
        let shard = &self.class(class).shard;
        let mut tiers = Vec::with_capacity(keys.len());
        loop {
            let at = tiers.len();
            let (found, miss) = shard.peek(&keys[at..], below.get(at..).unwrap_or_default(), accept);
            tiers.extend(found.into_iter().map(named));
            match keys.get(tiers.len()) {
                Some(key) if self.attic.has(key) => tiers.push(Tier::Host),
                _ => return (tiers, miss),
            }
        }
    }
}

impl Cache {
    /// True while there is something to bring back.
    pub(crate) fn has_attic(&self) -> bool {
        !self.state().attic.is_empty()
    }

    /// Closes the attic.
    pub(crate) fn close_attic(&self) {
        let mut state = self.state();
        let bytes = state.attic.close_all();
        state.pool.give_attic_back(bytes);
    }

    /// Looks for a block in the attic.
    pub(crate) fn look_aside(&self, class: ClassId, key: &CopyKey) -> Aside {
        let state = self.state();
        let Class { shard, shape, .. } = state.class(class);
        if shard.view(key).is_some_and(|(_, view)| view.copies[0] == CopyState::Resident) {
            return Aside::Elsewhere { is_there: true };
        }
        match state.attic.find(key).filter(|found| found.shape() == shape) {
            Some(found) => Aside::Found(found),
            None => {
                drop(state);
                Aside::Elsewhere { is_there: self.disk.as_ref().is_some_and(|disk| disk.find(key).is_ok()) }
            }
        }
    }

    /// Copies a block out of the attic into a slot of the class, verifies the copy and makes it visible. False when it is not there afterwards.
    pub(crate) fn bring_back(&self, class: ClassId, found: Found, patience: Patience<'_>) -> bool {
        let sealed = found.sealed;
        let opened_for = Some(sealed.key);
        let mut state = self.state();
        let left = state.left(&sealed.key.namespace, self.disk.as_ref(), 0);
        if state.affordable(class, left.map(|left| left.loads), 1) == 0 {
            return false;
        }
        state.grow(class, 1);
        let ticket = Ticket(state.number());
        let room = Event::Room { ticket, owner: ATTIC, keys: &[opened_for], held: 0 };
        match self.drive(&mut state, class, room).first() {
            Some(Action::Granted { .. }) => {}
            Some(Action::PendingElsewhere { .. }) => {
                drop(state);
                return self.await_block(class, &sealed.key, patience).is_none();
            }
            _ => return false,
        }
        let slot_bytes = found.shape().slot_bytes();
        state.quotas.reserve(sealed.key.namespace, slot_bytes);
        let host = state.class(class).host.clone();
        drop(state);
        let filled = host.reserve(sealed.key).and_then(|mut slot| {
            found.copy(|offset, bytes| host.write(&mut slot, offset, bytes))?;
            slot.commit(&sealed).map_err(|(_, error)| error)
        });
        // Its memory may be given back below.
        drop(found);
        let mut state = self.state();
        // What was deleted meanwhile does not come back.
        let is_wanted = state.attic.has(&sealed.key);
        let has_come = filled.is_ok() && is_wanted;
        if has_come {
            let Sealed { key, link, .. } = sealed;
            let commit = Event::Commit { owner: ATTIC, opened_for, key, link, held: false };
            let Some(Action::Committed { entry, .. }) = self.drive(&mut state, class, commit).into_iter().next() else {
                unreachable!("a commit is answered at once");
            };
            match state.writes.values_mut().find(|write| write.waits_for(class, &key)) {
                Some(write) => write.reader = Some(entry),
                None => drop(self.drive(&mut state, class, Event::Release { entries: &[entry] })),
            }
        } else {
            if filled.is_ok() {
                host.revoke(&sealed.key);
            }
            self.drive(&mut state, class, Event::Abandon { owner: ATTIC, keys: &[opened_for], held: 0 });
        }
        state.settle(class, &sealed.key);
        let is_damaged = matches!(filled, Err(StoreError::Check(_)));
        state.moved.damaged += u64::from(is_damaged);
        state.moved.copied_bytes += if has_come { slot_bytes } else { 0 };
        if has_come || is_damaged {
            let bytes = state.attic.forget(&sealed.key);
            state.pool.give_attic_back(bytes);
        }
        drop(state);
        self.ended.notify_all();
        has_come
    }
}
