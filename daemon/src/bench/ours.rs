//! A daemon, through its socket and its shared memory.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cache_core::buffer::Buffer;
use cache_core::chain::Link;
use cache_core::form::{Accept, Provenance};
use kvtier_sdk::client::{Client, ClientSettings, Lent, Place, Wanted};
use kvtier_sdk::wire::{CommitCode, ReservationId};

use crate::bench::blocks::{Blocks, tenant};
use crate::bench::turns::{Plan, System, Worker};
use crate::bench::{BATCH, Op};

/// What one call may take: a busy machine with dozens of clients is no failure.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a daemon has to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// `host_mem`, bytes.
    pub host_mem_bytes: u64,
    /// `client_staging`, bytes.
    pub client_staging_bytes: u64,
    /// `clients_max`.
    pub clients_max: usize,
}

/// What the daemon has to be given for this block size and so many clients. Errors: a block size that there is not.
pub fn needs(block_bytes: u64, clients: usize) -> Result<Needs, String> {
    let plan = Plan::new(block_bytes, clients);
    let slot_bytes = Blocks::shape_of(block_bytes)?.slot_bytes();
    let client_staging_bytes = plan.step as u64 * slot_bytes;
    let slots = (plan.resident + plan.put_in_turn() + 4) as u64;
    let small = (BATCH as u64 + 8) * Blocks::small_shape().slot_bytes();
    // A client has two connections.
    let connections = 2 * clients + 4;
    let blocks_bytes = slots * slot_bytes + small + connections as u64 * client_staging_bytes;
    // A class's tables are made for all that is left when it comes.
    let host_mem_bytes = (64 << 20) + blocks_bytes + blocks_bytes / 16;
    Ok(Needs { host_mem_bytes, client_staging_bytes, clients_max: connections })
}

pub(super) struct Ours {
    workers: Vec<OurClient>,
    resident: Arc<Vec<Link>>,
    /// Of the small blocks.
    batch: Client,
    chain: Arc<Vec<Link>>,
}

/// One client: two connections, since a client has blocks of one shape.
struct OurClient {
    blocks: Arc<Blocks>,
    client: Client,
    small: Arc<Blocks>,
    small_client: Client,
    resident: Arc<Vec<Link>>,
    chain: Arc<Vec<Link>>,
    /// Number of the next block that any client puts.
    fresh: Arc<AtomicU64>,
    /// The next resident block to be read.
    next: usize,
    /// Of this step: connection and reservation of each block.
    reserved: Vec<(u64, ReservationId)>,
    answers: Vec<CommitCode>,
    /// Numbers of the resident blocks that were read in this step.
    read: Vec<usize>,
    lent: Vec<Lent>,
}

fn open(socket: &Path, blocks: &Blocks) -> Result<Client, String> {
    let settings = ClientSettings { socket: socket.to_owned(), name: "bench".to_owned(), deadline: DEADLINE };
    let client = Client::open(settings, blocks.shape);
    if !client.is_connected() {
        return Err(format!("no daemon answers at {}", socket.display()));
    }
    client.name(&blocks.manifest, tenant());
    Ok(client)
}

fn failed(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn wanted<'a>(blocks: &Blocks, links: &'a [Link]) -> Wanted<'a> {
    Wanted { namespace: blocks.namespace, provenance: Provenance::EXACT, links }
}

/// Reserves one block and writes its image to staging memory.
fn hand(
    client: &Client,
    blocks: &Blocks,
    link: Link,
    number: u64,
    image: &mut [u8],
) -> Result<(u64, ReservationId), String> {
    let places = client.reserve(&wanted(blocks, &[link]), blocks.lineage()).map_err(failed)?;
    let Some(Place::Reserved { reservation, offset }) = places.answers.first() else {
        return Err(format!("block {number} is not reserved: {:?}", places.answers));
    };
    blocks.fill(&link, number, image);
    places.staging.write(*offset, image);
    Ok((places.connection, *reservation))
}

fn put(client: &Client, blocks: &Blocks, link: Link, number: u64, image: &mut [u8]) -> Result<(), String> {
    let (connection, reservation) = hand(client, blocks, link, number, image)?;
    match client.commit(connection, &[reservation]).map_err(failed)?[..] {
        [CommitCode::Inserted] => Ok(()),
        ref answers => Err(format!("block {number} is not taken: {answers:?}")),
    }
}

/// Leases all of these; an error when one is missing.
fn acquire(client: &Client, blocks: &Blocks, links: &[Link]) -> Result<Vec<Lent>, String> {
    let (lent, miss) = client.acquire(&wanted(blocks, links), Accept::Exact).map_err(failed)?;
    if lent.len() == links.len() {
        Ok(lent)
    } else {
        Err(format!("{} of {} blocks are there, then: {miss:?}", lent.len(), links.len()))
    }
}

impl Ours {
    /// Connects all clients and puts the blocks that stay. Errors: what the daemon refuses.
    pub(super) fn connect(socket: &Path, blocks: &Blocks, plan: &Plan) -> Result<Ours, String> {
        let (blocks, small) = (Arc::new(blocks.clone()), Arc::new(Blocks::small()));
        let resident: Arc<Vec<Link>> = Arc::new((0..plan.resident as u64).map(|number| blocks.link(number)).collect());
        let chain = Arc::new(small.chain(BATCH));
        let fresh = Arc::new(AtomicU64::new(plan.resident as u64));
        let batch = open(socket, &small)?;
        let mut image = Buffer::zeroed(small.image_bytes());
        for link in &*chain {
            put(&batch, &small, *link, u64::from(link.depth), image.as_mut_slice())?;
        }
        let worker = |index| {
            Ok(OurClient {
                blocks: Arc::clone(&blocks),
                client: open(socket, &blocks)?,
                small: Arc::clone(&small),
                small_client: open(socket, &small)?,
                resident: Arc::clone(&resident),
                chain: Arc::clone(&chain),
                fresh: Arc::clone(&fresh),
                next: index * resident.len() / plan.clients,
                reserved: Vec::new(),
                answers: Vec::new(),
                read: Vec::new(),
                lent: Vec::new(),
            })
        };
        let workers = (0..plan.clients).map(worker).collect::<Result<Vec<_>, String>>()?;
        let first = &workers[0];
        let mut image = Buffer::zeroed(blocks.image_bytes());
        for (number, link) in (0..).zip(&*resident) {
            put(&first.client, &blocks, *link, number, image.as_mut_slice())?;
        }
        Ok(Ours { workers, resident, batch, chain })
    }
}

impl System for Ours {
    fn name(&self) -> &'static str {
        "kvtier"
    }

    fn can(&self, _op: Op) -> bool {
        true
    }

    /// Reads everything that stays once, so that what was put in the last round goes first.
    fn begin_round(&mut self) -> Result<(), String> {
        let worker = &self.workers[0];
        for link in &*self.resident {
            acquire(&worker.client, &worker.blocks, std::slice::from_ref(link))?;
        }
        drop(acquire(&self.batch, &worker.small, &self.chain)?);
        worker.client.give_back().and_then(|()| self.batch.give_back()).map_err(failed)
    }

    fn workers(&mut self) -> Vec<&mut dyn Worker> {
        self.workers.iter_mut().map(|worker| worker as &mut dyn Worker).collect()
    }
}

impl OurClient {
    fn next(&mut self) -> usize {
        self.next = (self.next + 1) % self.resident.len();
        self.next
    }

    fn image<'a>(&self, own: &'a mut [u8], index: usize) -> &'a mut [u8] {
        let bytes = self.blocks.image_bytes();
        &mut own[index * bytes..][..bytes]
    }

    /// Leases one resident block and keeps the lease.
    fn find(&mut self) -> Result<(), String> {
        let number = self.next();
        let found = acquire(&self.client, &self.blocks, &self.resident[number..=number])?;
        self.lent.extend(found);
        Ok(())
    }

    fn find_batch(&mut self) -> Result<(), String> {
        let found = acquire(&self.small_client, &self.small, &self.chain)?;
        self.lent.extend(found);
        Ok(())
    }
}

impl Worker for OurClient {
    fn prepare(&mut self, op: Op, count: usize, own: &mut [u8]) -> Result<(), String> {
        match op {
            Op::Put => {
                for index in 0..count {
                    let number = self.fresh.fetch_add(1, Ordering::Relaxed);
                    let image = self.image(own, index);
                    let link = self.blocks.link(number);
                    self.reserved.push(hand(&self.client, &self.blocks, link, number, image)?);
                }
            }
            Op::Release => (0..count).try_for_each(|_| self.find())?,
            Op::ReleaseBatch => self.find_batch()?,
            Op::Get | Op::Acquire | Op::AcquireBatch => {}
        }
        Ok(())
    }

    fn perform(&mut self, op: Op, index: usize, own: &mut [u8]) -> Result<(), String> {
        match op {
            Op::Put => {
                let (connection, reservation) = self.reserved[index];
                let answers = self.client.commit(connection, &[reservation]).map_err(failed)?;
                self.answers.extend(answers);
                Ok(())
            }
            Op::Get => {
                let number = self.next();
                let found = acquire(&self.client, &self.blocks, &self.resident[number..=number])?;
                self.read.push(number);
                if found[0].read(0, self.image(own, index)) { Ok(()) } else { Err("a lease was lost".to_owned()) }
            }
            Op::Acquire => self.find(),
            Op::AcquireBatch => self.find_batch(),
            Op::Release => {
                self.lent.pop();
                self.client.give_back().map_err(failed)
            }
            Op::ReleaseBatch => {
                self.lent.clear();
                self.small_client.give_back().map_err(failed)
            }
        }
    }

    fn check(&mut self, op: Op, _count: usize, own: &mut [u8]) -> Result<(), String> {
        if let Some(other) = self.answers.iter().find(|answer| **answer != CommitCode::Inserted) {
            return Err(format!("a block is not taken: {other:?}"));
        }
        if let Some(gone) = self.lent.iter().find(|lent| !lent.is_current()) {
            return Err(format!("a lease was lost: {gone:?}"));
        }
        for (index, number) in std::mem::take(&mut self.read).into_iter().enumerate() {
            self.blocks.compare(&self.resident[number], number as u64, self.image(own, index))?;
        }
        self.reserved.clear();
        self.answers.clear();
        self.lent.clear();
        let client = if matches!(op, Op::AcquireBatch | Op::ReleaseBatch) { &self.small_client } else { &self.client };
        client.give_back().map_err(failed)
    }

    fn bytes(&self) -> u64 {
        self.blocks.image_bytes() as u64
    }
}
