//! The daemon measured from outside, beside a plain copy and beside Redis: what `kvtier bench daemon` prints.
//!
//! | file | part |
//! |---|---|
//! | `blocks` | what is stored: blocks whose bytes are known, so that each answer can be compared |
//! | `turns` | clients in step, each operation timed by who makes it |
//! | `ours` | a daemon through its socket and its shared memory |
//! | `copy` | the same bytes copied inside one process |
//! | `redis` | a Redis server over its Unix socket |
//!
//! In each round every system takes its turn at every operation, so that whatever else the machine does falls on all of them. What a client does before
//! and after an operation (filling its blocks, comparing what came) is not in its time. All memory has been touched before the first round.

mod blocks;
mod copy;
mod ours;
mod redis;
mod turns;

use std::path::PathBuf;

use cache_core::buffer::Buffer;

pub use ours::{Needs, needs};

use crate::bench::blocks::Blocks;
use crate::bench::turns::{Plan, Samples, System, take_turn};

/// Keys of one batch.
pub const BATCH: usize = kvtier_sdk::wire::BATCH_MAX;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A daemon that serves with what [`needs`] says of block size and clients.
    pub socket: PathBuf,
    /// A Redis server's Unix socket; `None` to do without.
    pub redis: Option<PathBuf>,
    /// Payload of a block, a multiple of 128 KiB.
    pub block_bytes: u64,
    /// Clients at once, each with a connection of its own.
    pub clients: usize,
    /// Rounds; figures are medians over them.
    pub rounds: usize,
}

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Blocks that are ready to be handed over, until others can find them.
    Put,
    /// Blocks found and their bytes copied to the client's own memory.
    Get,
    /// One resident block found and, where there are such things, leased.
    Acquire,
    /// The same for [`BATCH`] blocks in one call.
    AcquireBatch,
    /// One lease given back.
    Release,
    /// [`BATCH`] leases given back in one call.
    ReleaseBatch,
}

impl Op {
    /// Every operation, in the order in which a round makes them.
    pub const ALL: [Op; 6] = [Op::Put, Op::Get, Op::Acquire, Op::Release, Op::AcquireBatch, Op::ReleaseBatch];

    /// Name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Op::Put => "put",
            Op::Get => "get",
            Op::Acquire => "acquire",
            Op::AcquireBatch => "acquire_batch",
            Op::Release => "release",
            Op::ReleaseBatch => "release_batch",
        }
    }

    fn moves_bytes(self) -> bool {
        matches!(self, Op::Put | Op::Get)
    }
}

/// What was measured of one system and operation.
#[derive(Clone, Debug)]
pub struct Figure {
    /// `copy`, `kvtier` or `redis`.
    pub system: &'static str,
    /// The operation.
    pub op: Op,
    /// Bytes of a block's payload.
    pub block_bytes: u64,
    /// Clients at once.
    pub clients: usize,
    /// Bytes of all clients over the time from the first one's start to the last one's end, in GB/s: the median of the rounds, and each of them. `None`
    /// where no bytes are moved.
    pub gb_s: Option<(f64, Vec<f64>)>,
    /// Half of all operations took no longer than this, in microseconds.
    pub p50_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// Operations that were timed.
    pub samples: usize,
}

/// Measures one block size at one number of clients. `progress` is told of rounds done and all. Errors: what a system did wrong, a block with other bytes
/// than were put among them.
pub fn measure(settings: &Settings, progress: &mut dyn FnMut(usize, usize)) -> Result<Vec<Figure>, String> {
    let blocks = Blocks::new(settings.block_bytes)?;
    let plan = Plan::new(settings.block_bytes, settings.clients);
    let mut systems: Vec<Box<dyn System>> = vec![
        Box::new(copy::Copy::new(&blocks, &plan)),
        Box::new(ours::Ours::connect(&settings.socket, &blocks, &plan)?),
    ];
    if let Some(socket) = &settings.redis {
        systems.push(Box::new(redis::Redis::connect(socket, &blocks, &plan)?));
    }
    let mut own: Vec<Buffer> = (0..plan.clients).map(|_| Buffer::zeroed(blocks.image_bytes() * plan.step)).collect();
    let mut measured: Vec<(usize, Op, Samples)> = Vec::new();
    // The first round touches everything, and is not counted.
    for round in 0..=settings.rounds {
        for system in &mut systems {
            system.begin_round()?;
        }
        for op in Op::ALL {
            for (index, system) in systems.iter_mut().enumerate() {
                let Some(samples) = take_turn(&mut **system, op, &plan, &mut own)? else {
                    continue;
                };
                match measured.iter_mut().find(|(of, made, _)| (*of, *made) == (index, op)) {
                    _ if round == 0 => {}
                    Some((_, _, known)) => known.add(samples),
                    None => measured.push((index, op, samples)),
                }
            }
        }
        progress(round + 1, settings.rounds + 1);
    }
    Ok(measured
        .into_iter()
        .map(|(index, op, samples)| Figure {
            system: systems[index].name(),
            op,
            block_bytes: settings.block_bytes,
            clients: settings.clients,
            gb_s: op.moves_bytes().then(|| samples.rates()),
            p50_us: samples.quantile(0.5),
            p99_us: samples.quantile(0.99),
            samples: samples.len(),
        })
        .collect())
}
