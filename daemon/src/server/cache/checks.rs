//! Blocks in memory looked at again.

use super::*;

impl Cache {
    /// Checks the block in a slot, if it still has this generation; true when it was found to be wrong, and is gone.
    pub(crate) fn verify(&self, class: ClassId, slot: SlotIndex, generation: Generation) -> bool {
        let host = self.state().class(class).host.clone();
        match host.holder(slot).filter(|(_, held)| *held == generation) {
            Some((key, _)) => self.check(class, &host, &key) == Some(false),
            None => false,
        }
    }

    /// Checks the block in one slot of a class: `None` past its last slot, `Some(None)` for an empty one, else whether it is sound. An unsound one
    /// is gone.
    pub(crate) fn check_slot(&self, class: ClassId, slot: u32) -> Option<Option<bool>> {
        let host = self.state().classes.get(class as usize)?.host.clone();
        if slot >= host.layout().slots() {
            return None;
        }
        Some(host.holder(SlotIndex(slot)).and_then(|(key, _)| self.check(class, &host, &key)))
    }

    fn check(&self, class: ClassId, host: &HostTier, key: &CopyKey) -> Option<bool> {
        let is_sound = host.verify(key)?;
        if !is_sound {
            let mut state = self.state();
            if let Some((entry, _)) = state.class(class).shard.view(key) {
                self.drive(
                    &mut state,
                    class,
                    Event::Lost { entry, tier: Tier::Device, reason: MissReason::FailedCheck },
                );
            }
        }
        Some(is_sound)
    }

    /// Number of classes, and the slot size of one of them; `None` when it is not there.
    pub(crate) fn scrubbed_class(&self, class: ClassId) -> Option<(u32, u64)> {
        let state = self.state();
        let slot_bytes = state.classes.get(class as usize)?.shape.slot_bytes();
        Some((state.classes.len() as u32, slot_bytes))
    }
}
