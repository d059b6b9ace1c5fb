//! Bugs planted between the shard and the model, each of which the model must catch.

use cache_core::manager::Action;
use cache_core::units::Tier;

use super::Model;

/// A deliberately broken decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    None,
    /// A live block is dropped instead of demoted.
    DropInsteadOfDemote,
    /// The upper copy goes before the lower write is committed.
    DropBeforeCommit,
    /// A slot is granted although no copy was dropped for it.
    GrantWithoutDrop,
    /// The victim's parent goes first.
    ParentFirst,
    /// A released sequence is never told to the shard.
    ForgottenRelease,
    /// A leased host copy is evicted as if nobody held it.
    LeasedEvicted,
    /// A live block's device copy goes while its record is being written.
    DropBeforeStored,
    /// A live block's record is not pinned.
    ForgottenPin,
    /// A record stays pinned when nobody reads it.
    ForgottenUnpin,
    /// A block is written behind twice.
    StoredTwice,
    /// A published block is never written.
    NeverStored,
    /// What the disk has is not looked at.
    BelowIgnored,
    /// A live host copy without a record is dropped as if it had one.
    UnbackedDropped,
    /// A block is loaded over the copy that is there.
    LoadedOver,
    /// A block that is on its way into device memory is copied there once more.
    PromotedTwice,
}

impl Model {
    pub fn plant(&mut self, actions: &mut Vec<Action>) {
        let rewrite = |action: &mut Action, model: &Model| match (model.bug, &*action) {
            (Bug::DropInsteadOfDemote, Action::Demote { entry, key }) if model.readers(key) > 0 => {
                *action = Action::Drop { entry: *entry, key: *key, tier: Tier::Device };
            }
            (Bug::ParentFirst, Action::Drop { entry, key, tier: Tier::Device }) => {
                if let Some(parent) = model.parents.get(key).filter(|parent| model.device.contains_key(parent)) {
                    *action = Action::Drop { entry: *entry, key: *parent, tier: Tier::Device };
                }
            }
            (Bug::UnbackedDropped, Action::Drop { entry, key, tier: Tier::Host }) if model.pins.contains(key) => {
                let unbacked = model.host.keys().find(|key| model.readers(key) > 0 && !model.pins.contains(key));
                if let Some(other) = unbacked.filter(|other| model.readable(other) == Some(Tier::Host)) {
                    *action = Action::Drop { entry: *entry, key: *other, tier: Tier::Host };
                }
            }
            (Bug::LoadedOver, Action::Promote { entry, key }) => {
                *action = Action::Load { entry: *entry, key: *key };
            }
            _ => {}
        };
        for action in actions.iter_mut() {
            rewrite(action, self);
        }
        self.plant_more_or_fewer(actions);
    }

    fn plant_more_or_fewer(&mut self, actions: &mut Vec<Action>) {
        let mut extra: Vec<Action> = Vec::new();
        for action in actions.iter() {
            match (self.bug, action) {
                (Bug::DropBeforeCommit, Action::Demote { entry, key })
                | (Bug::DropBeforeStored, Action::Store { entry, key, spill: true }) => {
                    extra.push(Action::Drop { entry: *entry, key: *key, tier: Tier::Device });
                }
                (Bug::StoredTwice, Action::Store { spill: false, .. })
                | (Bug::PromotedTwice, Action::Promote { .. }) => extra.push(action.clone()),
                _ => {}
            }
        }
        let granted = actions.iter().any(|action| matches!(action, Action::Granted { .. }));
        actions.retain(|action| match (self.bug, action) {
            (Bug::GrantWithoutDrop, Action::Drop { .. }) => !granted,
            (Bug::ForgottenPin, Action::Pin { .. }) | (Bug::ForgottenUnpin, Action::Unpin { .. }) => false,
            (Bug::NeverStored, Action::Store { spill, .. }) => *spill,
            _ => true,
        });
        actions.extend(extra);
    }
}
