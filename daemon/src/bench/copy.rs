//! The same bytes copied inside one process: from a client's own memory to places that were not written just before, and back.

use cache_core::buffer::Buffer;

use crate::bench::Op;
use crate::bench::blocks::Blocks;
use crate::bench::turns::{Plan, System, Worker};

pub(super) struct Copy {
    workers: Vec<Copier>,
}

struct Copier {
    /// This client's part of the common memory: who copies goes round in it.
    common: Vec<Buffer>,
    next: usize,
    bytes: usize,
}

impl Copy {
    pub(super) fn new(blocks: &Blocks, plan: &Plan) -> Copy {
        let bytes = blocks.image_bytes();
        let touched = |bytes: usize| {
            let mut buffer = Buffer::zeroed(bytes);
            buffer.as_mut_slice().fill(1);
            buffer
        };
        let common = plan.resident.max(plan.put_in_turn()).div_ceil(plan.clients);
        let worker = |_| Copier { common: (0..common).map(|_| touched(bytes)).collect(), next: 0, bytes };
        Copy { workers: (0..plan.clients).map(worker).collect() }
    }
}

impl System for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn can(&self, op: Op) -> bool {
        matches!(op, Op::Put | Op::Get)
    }

    fn begin_round(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn workers(&mut self) -> Vec<&mut dyn Worker> {
        self.workers.iter_mut().map(|worker| worker as &mut dyn Worker).collect()
    }
}

impl Worker for Copier {
    fn prepare(&mut self, op: Op, count: usize, own: &mut [u8]) -> Result<(), String> {
        if op == Op::Put {
            // As a client that has just filled its blocks.
            self.next = (self.next + 1) % self.common.len();
            let value = self.next as u8;
            own[..count * self.bytes].fill(value);
        }
        Ok(())
    }

    fn perform(&mut self, op: Op, index: usize, own: &mut [u8]) -> Result<(), String> {
        let own = &mut own[index * self.bytes..][..self.bytes];
        self.next = (self.next + 1) % self.common.len();
        let common = self.common[self.next].as_mut_slice();
        match op {
            Op::Put => common.copy_from_slice(own),
            _ => own.copy_from_slice(common),
        }
        Ok(())
    }

    fn check(&mut self, _op: Op, _count: usize, own: &mut [u8]) -> Result<(), String> {
        std::hint::black_box(own);
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.bytes as u64
    }
}
