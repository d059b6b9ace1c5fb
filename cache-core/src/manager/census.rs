//! How much each namespace has in the first place of a lending shard: what a quota looks at for every block that comes.

use crate::hash::Namespace;
use crate::hasher::{self, DigestMap};
use crate::key::CopyKey;
use crate::manager::entry::{EntryId, map_bytes_per_key};
use crate::manager::shard::{DEVICE, Shard};
use crate::miss::MissReason;
use crate::units::Tier;

/// Blocks of one namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// With a copy in the first place, arriving ones included.
    pub resident: u32,
    /// Those of them that the disk is not known to have.
    pub unwritten: u32,
}

impl Census {
    /// Bytes for one namespace. There are never more of them than slots.
    pub const BYTES_PER_SLOT: u64 = map_bytes_per_key(size_of::<(Namespace, Census)>());
}

pub(crate) type CensusByNamespace = DigestMap<Namespace, Census>;

impl Shard {
    /// What a namespace has. Nothing, in a shard that does not lend.
    pub fn census(&self, namespace: &Namespace) -> Census {
        self.census.as_ref().and_then(|census| census.get(namespace)).copied().unwrap_or_default()
    }

    /// Remembers that a block was offered and refused by a quota: that is why it is not there.
    pub fn refused_by_quota(&mut self, key: &CopyKey) {
        if self.slab.find(key).is_none() {
            self.ghosts.record(key, Tier::Device, MissReason::Quota, self.now);
        }
    }

    /// How an entry counts: as resident, as unwritten.
    pub(crate) fn counts(&self, id: EntryId) -> [bool; 2] {
        let entry = &self.slab[id];
        let is_resident = entry.copies[DEVICE].stays();
        [is_resident, is_resident && !entry.on_disk()]
    }

    /// Takes a change of an entry in that counted as `before`.
    pub(crate) fn recount(&mut self, id: EntryId, before: [bool; 2]) {
        let after = self.counts(id);
        let namespace = self.slab[id].key.namespace;
        let Some(all) = self.census.as_mut().filter(|_| before != after) else {
            return;
        };
        let census = all.entry(namespace).or_default();
        census.resident = census.resident + u32::from(after[0]) - u32::from(before[0]);
        census.unwritten = census.unwritten + u32::from(after[1]) - u32::from(before[1]);
        if *census == Census::default() {
            all.remove(&namespace);
        }
    }

    pub(crate) fn audit_census(&self) -> Result<(), String> {
        let Some(counted) = &self.census else {
            return Ok(());
        };
        let mut found: CensusByNamespace = hasher::map(0);
        for id in self.slab.ids() {
            let [is_resident, is_unwritten] = self.counts(id);
            if is_resident {
                let census = found.entry(self.slab[id].key.namespace).or_default();
                census.resident += 1;
                census.unwritten += u32::from(is_unwritten);
            }
        }
        if *counted == found { Ok(()) } else { Err(format!("census: counted {counted:?}, found {found:?}")) }
    }
}
