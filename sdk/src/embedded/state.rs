//! What the mutex guards: the manager and the block tables of the sequences.

use std::collections::{HashMap, HashSet};

use cache_core::chain::Link;
use cache_core::form::{FormMapId, Provenance};
use cache_core::hash::{BlockHash, Namespace};
use cache_core::key::CopyKey;
use cache_core::manager::{Budgets, CacheManager, EntryId, Owner, Shard, Ticket};
use cache_core::store::Slot;

use crate::cache::{CacheError, SequenceId};
use crate::embedded::disk::Books;
use crate::embedded::parent::Leases;

/// One block of a sequence.
#[derive(Debug)]
pub(crate) enum Block {
    /// Being filled, in a device slot of its own.
    Open {
        slot: Slot,
        /// The key it was opened for, if its tokens were known.
        opened_for: Option<CopyKey>,
        /// The lost entry that it replaces.
        held: Option<EntryId>,
    },
    /// A cache entry that this sequence keeps live.
    Held { entry: EntryId, key: CopyKey },
    /// Full, never published (raw32): the sequence's own.
    Private { slot: Slot },
    /// Not held here. The hash is that of the block, if its tokens were known.
    Absent { hash: Option<BlockHash> },
}

/// A running sequence.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) namespace: Namespace,
    pub(crate) blocks: Vec<Block>,
    /// From which block on blocks are computed after what, ascending; exact before the first.
    taints: Vec<(u32, Provenance)>,
}

impl Sequence {
    pub(crate) fn new(namespace: Namespace) -> Sequence {
        Sequence { namespace, blocks: Vec::new(), taints: Vec::new() }
    }

    pub(crate) fn taint(&mut self, from: u32, provenance: Provenance) {
        self.taints.retain(|(earlier, _)| *earlier < from);
        self.taints.push((from, provenance));
    }

    /// The copy of a block that this sequence would make itself.
    pub(crate) fn key(&self, form: FormMapId, link: &Link) -> CopyKey {
        let taint = self.taints.iter().rev().find(|(from, _)| *from <= link.depth);
        let provenance = taint.map_or(Provenance::EXACT, |(_, provenance)| *provenance);
        CopyKey { form, provenance, ..CopyKey::exact(self.namespace, link.hash) }
    }
    pub(crate) fn block(&self, index: u32) -> Result<&Block, CacheError> {
        self.blocks
            .get(index as usize)
            .ok_or_else(|| CacheError::Unknown { what: format!("block {index} of a sequence") })
    }

    /// The hash of a block, as far as its tokens were known.
    pub(crate) fn hash_of(&self, block: u32) -> Result<Option<BlockHash>, CacheError> {
        Ok(match self.block(block)? {
            Block::Held { key, .. } | Block::Open { opened_for: Some(key), .. } => Some(key.hash),
            Block::Absent { hash } => *hash,
            Block::Open { opened_for: None, .. } | Block::Private { .. } => None,
        })
    }

    /// What the parent of `block` must be, `Some(None)` for block 0; `None` where the block before has no known key.
    pub(crate) fn hash_before(&self, block: u32) -> Option<Option<BlockHash>> {
        match block.checked_sub(1) {
            None => Some(None),
            Some(before) => self.hash_of(before).ok()?.map(Some),
        }
    }

    /// Turns an open block into an entry that this sequence reads; gives its slot back. Panics when it is not open.
    pub(crate) fn hold(&mut self, index: u32, entry: EntryId, key: CopyKey) -> Slot {
        match std::mem::replace(&mut self.blocks[index as usize], Block::Held { entry, key }) {
            Block::Open { slot, .. } => slot,
            other => panic!("{other:?} was to be open"),
        }
    }

    /// Closes an open block without publishing it. Panics when it is not open.
    pub(crate) fn make_private(&mut self, index: u32) {
        match self.blocks.remove(index as usize) {
            Block::Open { slot, .. } => self.blocks.insert(index as usize, Block::Private { slot }),
            other => panic!("{other:?} was to be open"),
        }
    }

    /// Its cache entries, in chain order.
    pub(crate) fn entries(&self) -> Vec<EntryId> {
        self.blocks
            .iter()
            .filter_map(|block| if let Block::Held { entry, .. } = block { Some(*entry) } else { None })
            .collect()
    }
}

/// Manager and sequences.
#[derive(Debug)]
pub(crate) struct State {
    manager: CacheManager,
    pub(crate) sequences: HashMap<SequenceId, Sequence>,
    pub(crate) disk: Books,
    pub(crate) leases: Leases,
    /// Loads that nobody waits for.
    pub(crate) unawaited: HashSet<Ticket>,
    next: u64,
}

impl State {
    pub(crate) fn new(budgets: Budgets) -> State {
        State {
            manager: CacheManager::new(1, budgets),
            sequences: HashMap::new(),
            disk: Books::default(),
            leases: Leases::default(),
            unawaited: HashSet::new(),
            next: 0,
        }
    }

    /// The one shard: embedded, all namespaces share the budgets.
    pub(crate) fn shard(&self) -> &Shard {
        &self.manager.shards()[0]
    }

    pub(crate) fn shard_mut(&mut self, namespace: Namespace) -> &mut Shard {
        self.manager.shard_of(namespace)
    }

    pub(crate) fn open(&mut self, namespace: Namespace) -> SequenceId {
        let id = SequenceId(self.number());
        self.sequences.insert(id, Sequence::new(namespace));
        id
    }

    pub(crate) fn ticket(&mut self) -> Ticket {
        Ticket(self.number())
    }

    pub(crate) fn sequence(&self, id: SequenceId) -> Result<&Sequence, CacheError> {
        self.sequences.get(&id).ok_or_else(|| unknown(id))
    }

    pub(crate) fn sequence_mut(&mut self, id: SequenceId) -> Result<&mut Sequence, CacheError> {
        self.sequences.get_mut(&id).ok_or_else(|| unknown(id))
    }

    pub(crate) fn audit(&self) -> Result<(), String> {
        self.shard().audit()?;
        let mut readers: HashMap<EntryId, u32> = HashMap::new();
        let mut open = 0;
        for block in self.sequences.values().flat_map(|sequence| &sequence.blocks) {
            match block {
                Block::Held { entry, .. } | Block::Open { held: Some(entry), .. } => {
                    *readers.entry(*entry).or_default() += 1
                }
                Block::Open { .. } | Block::Private { .. } | Block::Absent { .. } => {}
            }
            open += u32::from(matches!(block, Block::Open { .. } | Block::Private { .. }));
        }
        if self.shard().open_slots() != open {
            return Err(format!("{open} blocks are open, the shard counts {}", self.shard().open_slots()));
        }
        let counted = self.shard().live_entries();
        if counted != readers {
            return Err(format!("sequences read {readers:?}, the shard counts {counted:?}"));
        }
        Ok(())
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// Whoever holds a sequence's open blocks, in the shard's words.
pub(crate) fn owner(sequence: SequenceId) -> Owner {
    Owner(sequence.0)
}

pub(crate) fn unknown(sequence: SequenceId) -> CacheError {
    CacheError::Unknown { what: format!("sequence {}", sequence.0) }
}
