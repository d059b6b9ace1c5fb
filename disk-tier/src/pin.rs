//! Pins: records that reclaim must not drop.

use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::Arc;

use cache_core::key::CopyKey;

use crate::index::Fingerprint;
use crate::inner::Inner;
use crate::log::HeaderCell;

/// While a pin of a key lives, reclaim never drops its record: it writes it again, or takes another segment. Keeps the record's verified
/// header after the first section read, until it moves.
pub struct Pin {
    key: CopyKey,
    fingerprint: Fingerprint,
    header: HeaderCell,
    inner: Arc<Inner>,
}

impl Pin {
    /// Pins a key that the index knows.
    pub(crate) fn new(inner: &Arc<Inner>, key: &CopyKey) -> Option<Pin> {
        let mut log = inner.lock();
        let fingerprint = log.fingerprint(key);
        if log.lookup(&fingerprint).is_err() {
            log.counters.misses += 1;
            return None;
        }
        log.index.touch(&fingerprint);
        *log.pins.entry(fingerprint).or_insert(0) += 1;
        drop(log);
        Some(Pin { key: *key, fingerprint, header: HeaderCell::default(), inner: Arc::clone(inner) })
    }

    /// Whose record it is.
    pub fn key(&self) -> &CopyKey {
        &self.key
    }

    pub(crate) fn header(&self) -> HeaderCell {
        Arc::clone(&self.header)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.inner.change(|log| {
            if let Entry::Occupied(mut count) = log.pins.entry(self.fingerprint) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        });
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({:?})", self.key.hash)
    }
}
