//! Clients in step: all of them get ready, then all of them work, each timing its own operations.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use cache_core::buffer::Buffer;

use crate::bench::{BATCH, Op};

/// Bytes that one turn moves, about.
const TURN_BYTES: u64 = 512 << 20;
/// Bytes of the blocks that are read, at least: more than a processor's caches hold.
const RESIDENT_BYTES: u64 = 512 << 20;
/// Bytes that a client has ready to be put, at most.
const READY_BYTES: u64 = 32 << 20;

/// How much each client does in a turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) clients: usize,
    /// Blocks that are put or read in one step.
    pub(super) step: usize,
    /// Steps of a turn that moves bytes.
    pub(super) steps: usize,
    /// Blocks that stay, and are read.
    pub(super) resident: usize,
    /// Blocks found one at a time, by each client.
    pub(super) found: usize,
    /// Batches, by each client.
    pub(super) batches: usize,
}

impl Plan {
    pub(super) fn new(block_bytes: u64, clients: usize) -> Plan {
        let step = (READY_BYTES / block_bytes / clients as u64).clamp(1, 4) as usize;
        let blocks = (TURN_BYTES / block_bytes / clients as u64).clamp(step as u64, 64) as usize;
        Plan {
            clients,
            step,
            steps: blocks.div_ceil(step),
            resident: (RESIDENT_BYTES / block_bytes).clamp(1, BATCH as u64) as usize,
            found: (2000 / clients).clamp(50, 500),
            batches: (200 / clients).clamp(5, 50),
        }
    }

    /// Blocks that all clients put in one turn.
    pub(super) fn put_in_turn(&self) -> usize {
        self.clients * self.steps * self.step
    }

    /// Steps and operations of a step.
    fn steps_of(&self, op: Op) -> (usize, usize) {
        match op {
            Op::Put | Op::Get => (self.steps, self.step),
            Op::Acquire | Op::Release => (1, self.found),
            Op::AcquireBatch | Op::ReleaseBatch => (self.batches, 1),
        }
    }
}

/// One side of the comparison: as many workers as there are clients.
pub(super) trait System {
    fn name(&self) -> &'static str;
    fn can(&self, op: Op) -> bool;
    /// Sees to it that what is read is there.
    fn begin_round(&mut self) -> Result<(), String>;
    fn workers(&mut self) -> Vec<&mut dyn Worker>;
}

/// One client. Only `perform` is timed. `own` is the client's own memory, for the images of a step; systems take turns with it.
pub(super) trait Worker: Send {
    /// Gets ready for `count` operations.
    fn prepare(&mut self, op: Op, count: usize, own: &mut [u8]) -> Result<(), String>;
    /// Makes one of them.
    fn perform(&mut self, op: Op, index: usize, own: &mut [u8]) -> Result<(), String>;
    /// Compares what they brought, and puts away what they left.
    fn check(&mut self, op: Op, count: usize, own: &mut [u8]) -> Result<(), String>;
    /// Bytes of one operation that moves any.
    fn bytes(&self) -> u64;
}

/// Durations and rates of some turns.
#[derive(Debug, Default)]
pub(super) struct Samples {
    durations: Vec<Duration>,
    /// Bytes a second, one a turn.
    rates: Vec<f64>,
}

impl Samples {
    pub(super) fn add(&mut self, other: Samples) {
        self.durations.extend(other.durations);
        self.rates.extend(other.rates);
    }

    pub(super) fn len(&self) -> usize {
        self.durations.len()
    }

    /// In microseconds.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.durations.clone();
        sorted.sort();
        let last = sorted.len().saturating_sub(1);
        sorted.get((share * last as f64).round() as usize).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }

    /// Median and each, in GB/s.
    pub(super) fn rates(&self) -> (f64, Vec<f64>) {
        let each: Vec<f64> = self.rates.iter().map(|rate| rate / 1e9).collect();
        let mut sorted = each.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len().saturating_sub(1);
        let median = f64::midpoint(sorted[middle / 2], sorted[middle.div_ceil(2)]);
        (median, each)
    }
}

/// One worker's part of a turn: when each step's work began and ended, and how long each operation took.
#[derive(Default)]
struct Part {
    steps: Vec<(Instant, Instant)>,
    durations: Vec<Duration>,
}

/// Lets every client of a system make an operation as often as the plan says; `own`: each client's memory. `None` when the system has no such operation.
pub(super) fn take_turn(
    system: &mut dyn System,
    op: Op,
    plan: &Plan,
    own: &mut [Buffer],
) -> Result<Option<Samples>, String> {
    if !system.can(op) {
        return Ok(None);
    }
    let (steps, count) = plan.steps_of(op);
    let barrier = Barrier::new(plan.clients);
    let workers = system.workers();
    let bytes = workers.first().map_or(0, |worker| worker.bytes());
    let parts: Vec<Result<Part, String>> = std::thread::scope(|scope| {
        let barrier = &barrier;
        let pairs = workers.into_iter().zip(own);
        let threads: Vec<_> = pairs
            .map(|(worker, own)| scope.spawn(move || part(worker, own.as_mut_slice(), op, (steps, count), barrier)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a worker says what is wrong")).collect()
    });
    let parts = parts.into_iter().collect::<Result<Vec<Part>, String>>()?;
    let spans = (0..steps).map(|step| {
        let first = parts.iter().map(|part| part.steps[step].0).min().expect("one worker at least");
        let last = parts.iter().map(|part| part.steps[step].1).max().expect("one worker at least");
        last - first
    });
    let whole: Duration = spans.sum();
    let moved = bytes * (steps * count * plan.clients) as u64;
    let rates = if op.moves_bytes() { vec![moved as f64 / whole.as_secs_f64()] } else { Vec::new() };
    Ok(Some(Samples { durations: parts.into_iter().flat_map(|part| part.durations).collect(), rates }))
}

/// One that fails goes on to the barriers, so that nobody waits for it in vain.
fn part(
    worker: &mut dyn Worker,
    own: &mut [u8],
    op: Op,
    (steps, count): (usize, usize),
    barrier: &Barrier,
) -> Result<Part, String> {
    let mut part = Part::default();
    let mut done = Ok(());
    for _ in 0..steps {
        done = done.and_then(|()| worker.prepare(op, count, own));
        barrier.wait();
        let begun = Instant::now();
        let mut last = begun;
        for index in 0..count {
            done = done.and_then(|()| worker.perform(op, index, own));
            let now = Instant::now();
            part.durations.push(now - last);
            last = now;
        }
        part.steps.push((begun, last));
        barrier.wait();
        done = done.and_then(|()| worker.check(op, count, own));
    }
    done.map(|()| part)
}
