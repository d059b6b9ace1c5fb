//! Blocks that clients want kept for a while, and what is due when time passes.

use super::*;

pub(super) struct Kept {
    pub(super) class: ClassId,
    pub(super) entry: EntryId,
    pub(super) until: Instant,
}

impl Cache {
    /// Keeps the longest run that is there until `until`; returns its length. A block that is kept already is kept until the later time.
    pub(crate) fn pin(&self, asked: &Asked<'_>, until: Instant) -> u32 {
        let keys = asked.keys();
        let below = self.below(&keys);
        let class = asked.class();
        let mut state = self.state();
        let (hits, _) = self.make_live(&mut state, asked, &keys, &below);
        let mut twice = Vec::new();
        for (entry, _) in &hits {
            let key = state.class(class).shard.entry(*entry).expect("it was made live just now").key;
            match state.kept.get_mut(&key) {
                Some(kept) => {
                    kept.until = kept.until.max(until);
                    twice.push(*entry);
                }
                None => drop(state.kept.insert(key, Kept { class, entry: *entry, until })),
            }
        }
        self.drive(&mut state, class, Event::Release { entries: &twice });
        hits.len() as u32
    }

    /// Ends pins; returns how many there were.
    pub(crate) fn unpin(&self, class: ClassId, keys: &[CopyKey]) -> u32 {
        let mut state = self.state();
        let ended: Vec<EntryId> = keys.iter().filter_map(|key| Some(state.kept.remove(key)?.entry)).collect();
        self.drive(&mut state, class, Event::Release { entries: &ended });
        ended.len() as u32
    }

    /// Ends pins whose time is over, frees slots that have rested, and starts writes that had to wait for the disk's index.
    pub(crate) fn keep_time(&self) {
        let (now, moment) = (Instant::now(), self.now());
        let mut state = self.state();
        state.classes.iter().for_each(|class| class.host.advance(moment));
        let over: Vec<Kept> = state.kept.extract_if(|_, kept| kept.until <= now).map(|(_, kept)| kept).collect();
        for Kept { class, entry, .. } in over {
            self.drive(&mut state, class, Event::Release { entries: &[entry] });
        }
        self.resume_writes(&mut state);
    }

    /// Starts writes that had to wait for the disk's index, once that is read.
    pub(super) fn resume_writes(&self, state: &mut State) {
        let is_read = |disk: &&DiskTier| !matches!(disk.state(), DiskState::Recovering { .. });
        if let Some(disk) = self.disk.as_ref().filter(|_| !state.deferred.is_empty()).filter(is_read) {
            driver::resume(disk, state, self.now());
        }
    }
}
