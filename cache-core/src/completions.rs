//! Operations under way and finished ones that nobody has polled yet: a bounded count, in order.

use std::collections::VecDeque;

use crate::store::{Completion, OpId, StoreError};

/// The completions of one store. Plain state; the store guards it with a lock of its own.
#[derive(Debug)]
pub struct Completions {
    finished: VecDeque<Completion>,
    under_way: usize,
    limit: usize,
    next: u64,
}

impl Completions {
    /// Bytes of a queue with this limit, allocated when it is made.
    pub fn bytes_for(limit: usize) -> u64 {
        (limit * size_of::<Completion>()) as u64
    }

    /// At most `limit` operations are under way or not polled yet; more are refused.
    pub fn new(limit: usize) -> Completions {
        Completions { finished: VecDeque::with_capacity(limit), under_way: 0, limit, next: 0 }
    }

    /// Names a new operation. Errors: [`StoreError::Busy`].
    pub fn begin(&mut self) -> Result<OpId, StoreError> {
        if self.under_way + self.finished.len() >= self.limit {
            return Err(StoreError::Busy { operations: self.limit as u64 });
        }
        self.under_way += 1;
        self.next += 1;
        Ok(OpId(self.next))
    }

    /// Ends an operation that [`Completions::begin`] has named.
    pub fn finish(&mut self, completion: Completion) {
        self.under_way = self.under_way.checked_sub(1).expect("an operation ends once");
        self.finished.push_back(completion);
    }

    /// Moves the finished operations to `out`.
    pub fn drain(&mut self, out: &mut Vec<Completion>) {
        out.extend(self.finished.drain(..));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Buffer;
    use crate::hash::{BlockHash, Namespace};
    use crate::key::CopyKey;
    use crate::store::Outcome;

    #[test]
    fn the_limit_counts_what_was_not_polled() {
        let mut completions = Completions::new(2);
        let first = completions.begin().unwrap();
        let second = completions.begin().unwrap();
        assert_ne!(first, second);
        assert_eq!(completions.begin(), Err(StoreError::Busy { operations: 2 }));
        let key = CopyKey::exact(Namespace([0; 32]), BlockHash([0; 32]));
        completions.finish(Completion { op: first, key, buffer: Buffer::zeroed(0), outcome: Outcome::Done });
        assert!(completions.begin().is_err(), "finished, but not polled");
        let mut out = Vec::new();
        completions.drain(&mut out);
        assert_eq!(out.len(), 1);
        assert!(completions.begin().is_ok());
    }
}
