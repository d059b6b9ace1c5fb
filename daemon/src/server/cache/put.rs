//! Blocks on their way in: reserved, committed, given up, waited for.

use super::*;

impl Cache {
    /// Reserves a slot for one block, whose image the client will write to staging memory from `offset` on.
    pub(crate) fn reserve(
        &self,
        holdings: &mut Holdings,
        owner: Owner,
        sealed: Sealed,
        class: ClassId,
        offset: u64,
    ) -> Reserved {
        let key = sealed.key;
        let mut state = self.state();
        let view = state.class(class).shard.view(&key);
        let is_resident = view.is_some_and(|(_, view)| view.copies[0] == CopyState::Resident);
        if is_resident || self.disk.as_ref().is_some_and(|disk| disk.find(&key).is_ok()) {
            return Reserved::Present;
        }
        let slot_bytes = state.class(class).shape.slot_bytes();
        let left = state.left(&key.namespace, self.disk.as_ref(), slot_bytes);
        if state.affordable(class, left.map(|left| left.stores), 1) == 0 {
            state.class_mut(class).shard.refused_by_quota(&key);
            return Reserved::Quota;
        }
        state.recent = class;
        state.grow(class, 1);
        let ticket = Ticket(state.number());
        let answers = self.drive(&mut state, class, Event::Room { ticket, owner, keys: &[Some(key)], held: 0 });
        match answers.first() {
            Some(Action::Granted { .. }) => {
                state.quotas.reserve(key.namespace, slot_bytes);
                let reservation = holdings.number();
                holdings.reservations.insert(reservation, Reservation { class, sealed, offset });
                Reserved::Granted { reservation }
            }
            Some(Action::PendingElsewhere { .. }) => Reserved::PendingElsewhere,
            _ => Reserved::Full,
        }
    }

    /// Copies a reserved block out of staging memory, verifies the copy and makes it visible. Returns where it was in staging memory as well.
    pub(crate) fn commit(
        &self,
        holdings: &mut Holdings,
        owner: Owner,
        staging: &Staging,
        reservation: u64,
    ) -> (Committed, Option<u64>) {
        // Until the shard hears of the end it is the connection's, which gives it up if this thread panics.
        let Some(Reservation { class, sealed, offset }) = holdings.reservations.get(&reservation).copied() else {
            return (Committed::Unknown, None);
        };
        let host = self.state().class(class).host.clone();
        self.planted.strike(Point::Commit);
        let filled = host
            .reserve(sealed.key)
            .and_then(|slot| host.commit_from(slot, staging, offset, &sealed).map_err(|(_, error)| error));
        let opened_for = Some(sealed.key);
        let mut state = self.state();
        holdings.reservations.remove(&reservation);
        let answer = match filled {
            Ok(()) => {
                let Sealed { key, link, .. } = sealed;
                let event = Event::Commit { owner, opened_for, key, link, held: false };
                let answers = self.drive(&mut state, class, event);
                state.settle(class, &key);
                let Some(Action::Committed { entry, inserted }) = answers.into_iter().next() else {
                    unreachable!("a commit is answered at once");
                };
                // Its writer reads it no longer; a write to the disk goes on reading it.
                match state.writes.values_mut().find(|write| write.waits_for(class, &key)) {
                    Some(write) => write.reader = Some(entry),
                    None => drop(self.drive(&mut state, class, Event::Release { entries: &[entry] })),
                }
                if inserted {
                    Committed::Inserted { class, namespace: key.namespace }
                } else {
                    Committed::Present { class }
                }
            }
            Err(error) => {
                self.drive(&mut state, class, Event::Abandon { owner, keys: &[opened_for], held: 0 });
                state.settle(class, &sealed.key);
                match error {
                    StoreError::Present | StoreError::PendingElsewhere => Committed::Present { class },
                    StoreError::Check(_) => Committed::FailedCheck,
                    _ => Committed::Full,
                }
            }
        };
        drop(state);
        self.ended.notify_all();
        (answer, Some(offset))
    }

    /// Gives a reservation up; returns where it was in staging memory, `None` when there was none.
    pub(crate) fn abort(&self, holdings: &mut Holdings, owner: Owner, reservation: u64) -> Option<u64> {
        let Reservation { class, sealed, offset } = holdings.reservations.remove(&reservation)?;
        let mut state = self.state();
        self.drive(&mut state, class, Event::Abandon { owner, keys: &[Some(sealed.key)], held: 0 });
        state.settle(class, &sealed.key);
        drop(state);
        self.ended.notify_all();
        Some(offset)
    }

    /// Waits until a block that somebody writes is there, or is given up. `Err`: why it is not there.
    pub(crate) fn await_block(&self, class: ClassId, key: &CopyKey, patience: Patience<'_>) -> Option<MissReason> {
        let mut state = self.state();
        loop {
            let shard = &state.class(class).shard;
            match shard.view(key) {
                Some((_, view)) if view.copies[0] == CopyState::Resident => return None,
                _ if shard.opened_by(key).is_none() => break,
                _ => match patience.next() {
                    Some(part) => state = self.wait(state, part),
                    None => return Some(MissReason::Deadline),
                },
            }
        }
        let gone = state.class(class).shard.ghost(key).map(|ghost| ghost.reason);
        drop(state);
        let below = self.below(std::slice::from_ref(key)).pop();
        match below {
            Some(Ok(())) => None,
            below => Some(gone.or(below.and_then(Below::err)).unwrap_or(MissReason::NeverStored)),
        }
    }
}
