//! Operations on their way to the medium: never more under way than it takes, and neither reads nor writes shut the other out.

use std::collections::VecDeque;

use crate::io::{Kind, Operation};

/// Queues in front of the medium.
pub(crate) struct Traffic {
    reads: VecDeque<Operation>,
    writes: VecDeque<Operation>,
    reads_flying: usize,
    writes_flying: usize,
    depth: usize,
}

impl Traffic {
    pub(crate) fn new(depth: usize) -> Traffic {
        Traffic {
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            reads_flying: 0,
            writes_flying: 0,
            depth: depth.max(1),
        }
    }

    pub(crate) fn push(&mut self, operation: Operation) {
        match operation.kind {
            Kind::Read => self.reads.push_back(operation),
            Kind::Write | Kind::Sync => self.writes.push_back(operation),
        }
    }

    /// Operations that may start now. Reads go first; each sort leaves a quarter of the depth to the other.
    pub(crate) fn take(&mut self) -> Vec<Operation> {
        let share = (self.depth - self.depth.div_ceil(4)).max(1);
        let mut batch = Vec::new();
        loop {
            let room = self.reads_flying + self.writes_flying < self.depth;
            // At depth 1 the sorts take turns: a write goes when no read was just there.
            let read_turn = self.reads_flying < share && (self.depth > 1 || self.writes.is_empty() || batch.is_empty());
            if room
                && read_turn
                && let Some(operation) = self.reads.pop_front()
            {
                self.reads_flying += 1;
                batch.push(operation);
            } else if room
                && self.writes_flying < share
                && let Some(operation) = self.writes.pop_front()
            {
                self.writes_flying += 1;
                batch.push(operation);
            } else {
                return batch;
            }
        }
    }

    /// Notes the end of an operation.
    pub(crate) fn ended(&mut self, kind: Kind) {
        let flying = if kind == Kind::Read { &mut self.reads_flying } else { &mut self.writes_flying };
        *flying = flying.saturating_sub(1);
    }

    /// Takes an operation back that has not started.
    pub(crate) fn recall(&mut self, id: u64) -> Option<Operation> {
        let queue =
            if self.reads.iter().any(|operation| operation.id == id) { &mut self.reads } else { &mut self.writes };
        let at = queue.iter().position(|operation| operation.id == id)?;
        queue.remove(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{FileId, Memory};
    use cache_core::buffer::Buffer;

    fn operation(id: u64, kind: Kind) -> Operation {
        let memory = Memory::Owned(Buffer::zeroed(0));
        Operation { id, kind, file: FileId(3), offset: 0, memory, range: 0..0 }
    }

    #[test]
    fn neither_sort_shuts_the_other_out() {
        let mut traffic = Traffic::new(8);
        for id in 0..20 {
            traffic.push(operation(id, Kind::Read));
            traffic.push(operation(100 + id, Kind::Write));
        }
        let first = traffic.take();
        assert_eq!(first.len(), 8);
        assert_eq!(first.iter().filter(|operation| operation.kind == Kind::Read).count(), 6);
        assert!(traffic.take().is_empty());
        traffic.ended(Kind::Write);
        assert_eq!(traffic.take()[0].kind, Kind::Write);
        assert_eq!(traffic.recall(19).map(|operation| operation.id), Some(19));
        assert!(traffic.recall(0).is_none(), "it is under way");
    }

    #[test]
    fn depth_one_is_never_exceeded() {
        let mut traffic = Traffic::new(1);
        traffic.push(operation(1, Kind::Write));
        traffic.push(operation(2, Kind::Read));
        for _ in 0..2 {
            let batch = traffic.take();
            assert_eq!(batch.len(), 1);
            assert!(traffic.take().is_empty());
            traffic.ended(batch[0].kind);
        }
    }
}
