//! The ring's thread: what is in flight, and what becomes of it.
//!
//! | state of a slot | its memory |
//! |---|---|
//! | free | none |
//! | in flight | the kernel's, from the push of its entry until its completion is reaped; nothing here makes a reference to it |
//! | told | as in flight: the sink has heard of a timeout, the kernel has not given the memory back |
//!
//! A slot is emptied only by [`RingThread::finish`], when its completion has been seen. If the thread comes to an end with slots in flight (a
//! broken ring, a panic), they and the registered regions are leaked: the kernel may still write there.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use rustix::io::Errno;

use super::ends::{ended, lock};
use super::files::{Files, Open};
use super::pread::{TRIES_MAX, io_error};
use super::uring::{Registered, Shared, Waiting};
use super::{ALIGN_BYTES, Done, IoError, Kind, Operation, check};

/// User data of the wake-up and of cancels; a flight's is its slot and its generation.
const WAKE: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;
/// Sleep when the kernel is short of memory for requests.
const NAP: Duration = Duration::from_millis(1);

struct Flight {
    op: Operation,
    open: Arc<Open>,
    /// First byte of the operation's range in its memory; null for a sync.
    address: *mut u8,
    due: Option<Instant>,
    /// Bytes of the range from which the entry in flight goes on.
    start_bytes: u64,
    done_bytes: u64,
    tries: u32,
    continued: bool,
    told: bool,
}

// SAFETY: the pointer is to memory that `op` owns or holds the lease of, and `op` is `Send`; only the ring's thread uses it.
unsafe impl Send for Flight {}

#[derive(Default)]
struct Slot {
    flight: Option<Flight>,
    generation: u32,
}

pub(super) struct RingThread {
    // The order is the order of dropping: the ring goes before the memory that it knows.
    ring: Option<IoUring>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    registered: Option<Registered>,
    files: Arc<Files>,
    shared: Arc<Shared>,
    deadline_millis: u64,
    /// The ring polls the eventfd.
    armed: bool,
    /// Why the ring can no longer be entered.
    broken: Option<IoError>,
}

impl RingThread {
    pub(super) fn new(
        ring: IoUring,
        registered: Registered,
        files: Arc<Files>,
        shared: Arc<Shared>,
        depth: usize,
        deadline_millis: u64,
    ) -> RingThread {
        let slots = (0..depth).map(|_| Slot::default()).collect();
        RingThread {
            ring: Some(ring),
            slots,
            free: (0..depth).rev().collect(),
            registered: Some(registered),
            files,
            shared,
            deadline_millis,
            armed: false,
            broken: None,
        }
    }

    /// Until the medium is closed and the kernel has given everything back.
    pub(super) fn run(mut self) {
        while self.broken.is_none() {
            let mut ends = Vec::new();
            self.reap(&mut ends);
            let (waiting, closing) = self.take(&mut ends);
            for waiting in waiting {
                self.start(waiting, &mut ends);
            }
            self.expire(&mut ends);
            if ends.is_empty() {
                if closing && self.in_flight() == 0 {
                    return;
                }
                self.sleep();
            } else {
                // First the drive's next work, then the news.
                self.enter(0, None);
                self.shared.ends.tell(ends);
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn ring(&mut self) -> &mut IoUring {
        self.ring.as_mut().expect("the ring is taken only by drop")
    }

    /// Takes what can start now; ends what was refused, is overdue in the queue, or came before a close.
    fn take(&mut self, ends: &mut Vec<Done>) -> (Vec<Waiting>, bool) {
        let now = Instant::now();
        let mut inbox = lock(&self.shared.inbox);
        ends.append(&mut inbox.refused);
        let closing = inbox.closing;
        if closing {
            ends.extend(inbox.queue.drain(..).map(|waiting| ended(waiting.op, Err(IoError::Closed))));
        }
        let count = self.free.len().min(inbox.queue.len());
        let starting: Vec<Waiting> = inbox.queue.drain(..count).collect();
        // Deadlines rise along the queue. Nothing has the memory of what waits here: it is dropped, outside the lock.
        let late = inbox.queue.iter().take_while(|waiting| waiting.due.is_some_and(|due| due <= now)).count();
        let late: Vec<Waiting> = inbox.queue.drain(..late).collect();
        drop(inbox);
        ends.extend(late.into_iter().map(|waiting| self.late(waiting.op.id)));
        (starting, closing)
    }

    fn late(&self, id: u64) -> Done {
        Done { id, memory: None, result: Err(IoError::TimedOut { millis: self.deadline_millis }) }
    }

    /// Puts an operation into a slot and its entry into the submission queue, or ends it.
    fn start(&mut self, waiting: Waiting, ends: &mut Vec<Done>) {
        let Waiting { op, due } = waiting;
        let open = match check::operation(&op).and_then(|()| self.files.get(op.file).map_err(|error| io_error(&error)))
        {
            Ok(open) => open,
            Err(error) => return ends.push(ended(op, Err(error))),
        };
        if let Err(error) = check::write_end(&op, open.bytes.load(Ordering::Acquire)) {
            return ends.push(ended(op, Err(error)));
        }
        let slot = self.free.pop().expect("no more is taken than there are free slots");
        let flight = Flight {
            op,
            open,
            address: std::ptr::null_mut(),
            due,
            start_bytes: 0,
            done_bytes: 0,
            tries: 1,
            continued: false,
            told: false,
        };
        let flight = self.slots[slot].flight.insert(flight);
        if flight.op.kind != Kind::Sync {
            let range = flight.op.range.clone();
            flight.address = flight.op.memory.address(&range).expect("the range was checked to lie in the memory");
        }
        if !self.push_flight(slot) {
            self.end(slot, Err(check::errno(Errno::AGAIN)), ends);
        }
    }

    /// Pushes the entry for the rest of a slot's operation. False when the submission queue has no room.
    fn push_flight(&mut self, slot: usize) -> bool {
        let Slot { flight: Some(flight), generation } = &self.slots[slot] else { return false };
        let fd = Fd(flight.open.fd.as_raw_fd());
        let offset = flight.op.offset + flight.start_bytes;
        let bytes = (flight.op.range.end - flight.op.range.start).saturating_sub(flight.start_bytes);
        // Ranges are at most 1 GiB (`check::operation`).
        let count = bytes as u32;
        let address = flight.address.wrapping_add(flight.start_bytes as usize);
        let first = address as usize;
        let known = self.registered.iter().flat_map(|registered| registered.ranges.iter());
        let index = known
            .into_iter()
            .position(|range| range.start <= first && first + bytes as usize <= range.end)
            .map(|index| index as u16);
        let entry = match (flight.op.kind, index) {
            (Kind::Sync, _) => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            (Kind::Read, Some(index)) => opcode::ReadFixed::new(fd, address, count, index).offset(offset).build(),
            (Kind::Read, None) => opcode::Read::new(fd, address, count).offset(offset).build(),
            (Kind::Write, Some(index)) => opcode::WriteFixed::new(fd, address, count, index).offset(offset).build(),
            (Kind::Write, None) => opcode::Write::new(fd, address, count).offset(offset).build(),
        };
        let entry = entry.user_data(slot as u64 | u64::from(*generation) << 32);
        self.push(&entry)
    }

    fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: an entry of a flight names memory and a descriptor that its slot holds until `finish` has seen the completion (or that are
        // leaked); the other entries name the eventfd, which `shared` holds, or nothing.
        let push = |ring: &mut IoUring| unsafe { ring.submission().push(entry) }.is_ok();
        if push(self.ring()) {
            return true;
        }
        self.enter(0, None);
        push(self.ring())
    }

    /// Ends overdue flights to the sink. They stay in their slots; a cancel may bring them back sooner.
    fn expire(&mut self, ends: &mut Vec<Done>) {
        let now = Instant::now();
        for slot in 0..self.slots.len() {
            let Slot { flight: Some(flight), generation } = &mut self.slots[slot] else { continue };
            if flight.told || flight.due.is_none_or(|due| due > now) {
                continue;
            }
            flight.told = true;
            let id = flight.op.id;
            let cancel = opcode::AsyncCancel::new(slot as u64 | u64::from(*generation) << 32).build().user_data(CANCEL);
            // Without room there is no cancel, and the flight takes as long as it takes.
            self.push(&cancel);
            ends.push(self.late(id));
        }
    }

    /// Handles every completion that is there.
    fn reap(&mut self, ends: &mut Vec<Done>) {
        let completions: Vec<(u64, i32)> =
            self.ring().completion().map(|entry| (entry.user_data(), entry.result())).collect();
        for (user_data, result) in completions {
            match user_data {
                CANCEL => {}
                WAKE => {
                    self.armed = false;
                    // Sets the counter back to 0. It is non-blocking: when it is 0 already, that is what we want.
                    let _ = rustix::io::read(&self.shared.wake, &mut [0u8; 8]);
                }
                _ => self.finish(user_data, result, ends),
            }
        }
    }

    /// A flight has come back: ends it, or sends the rest of it once more.
    fn finish(&mut self, user_data: u64, result: i32, ends: &mut Vec<Done>) {
        let (index, generation) = ((user_data & u64::from(u32::MAX)) as usize, (user_data >> 32) as u32);
        let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.generation == generation) else { return };
        let Some(flight) = &mut slot.flight else { return };
        let asked_bytes = flight.op.range.end.saturating_sub(flight.op.range.start);
        let mut outcome = match u64::try_from(result) {
            _ if flight.told => Some(Ok(())),
            Err(_) if matches!(-result, libc::EAGAIN | libc::EINTR) && flight.tries < TRIES_MAX => {
                flight.tries += 1;
                None
            }
            Err(_) => Some(Err(IoError::Errno(-result))),
            Ok(_) if flight.op.kind == Kind::Sync => Some(Ok(())),
            Ok(moved_bytes) => {
                flight.done_bytes = flight.done_bytes.max(flight.start_bytes + moved_bytes);
                if flight.done_bytes == asked_bytes {
                    Some(Ok(()))
                } else if moved_bytes > 0 && !flight.continued {
                    flight.continued = true;
                    flight.start_bytes = flight.done_bytes / ALIGN_BYTES * ALIGN_BYTES;
                    None
                } else {
                    Some(Err(IoError::Short { done_bytes: flight.done_bytes, asked_bytes }))
                }
            }
        };
        if outcome.is_none() && !self.push_flight(index) {
            outcome = Some(Err(check::errno(Errno::AGAIN)));
        }
        if let Some(outcome) = outcome {
            self.end(index, outcome, ends);
        }
    }

    /// Empties a slot that the kernel does not have, and tells of it unless that was done before.
    fn end(&mut self, index: usize, result: Result<(), IoError>, ends: &mut Vec<Done>) {
        let slot = &mut self.slots[index];
        slot.generation = slot.generation.wrapping_add(1) & (u32::MAX >> 1);
        self.free.push(index);
        if let Some(flight) = slot.flight.take().filter(|flight| !flight.told) {
            ends.push(ended(flight.op, result));
        }
    }

    /// Sleeps in the ring until something has come back, something is to be done, or a deadline is over.
    fn sleep(&mut self) {
        if !self.armed {
            let poll =
                opcode::PollAdd::new(Fd(self.shared.wake.as_raw_fd()), libc::POLLIN as u32).build().user_data(WAKE);
            self.armed = self.push(&poll);
        }
        let mut inbox = lock(&self.shared.inbox);
        let can_start = !inbox.queue.is_empty() && !self.free.is_empty();
        let can_stop = inbox.closing && (self.free.len() == self.slots.len() || !inbox.queue.is_empty());
        if can_start || can_stop || !inbox.refused.is_empty() {
            return;
        }
        inbox.sleeping = true;
        let queued = inbox.queue.front().and_then(|waiting| waiting.due);
        drop(inbox);
        let flights = self.slots.iter().filter_map(|slot| slot.flight.as_ref());
        let due = flights.filter(|flight| !flight.told).filter_map(|flight| flight.due).chain(queued).min();
        // Without a poll on the eventfd (no room in the queue) a wake-up would be missed: look again soon.
        let limit = due.map(|due| due.saturating_duration_since(Instant::now()));
        self.enter(1, if self.armed { limit } else { Some(limit.unwrap_or(NAP).min(NAP)) });
        lock(&self.shared.inbox).sleeping = false;
    }

    /// Submits what was pushed and waits for `want` completions, at most for `limit`.
    fn enter(&mut self, want: usize, limit: Option<Duration>) {
        if want == 0 && self.ring().submission().is_empty() {
            return;
        }
        let timespec = limit.map(|limit| Timespec::new().sec(limit.as_secs()).nsec(limit.subsec_nanos()));
        let submitter = self.ring.as_ref().expect("the ring is taken only by drop").submitter();
        let entered = match &timespec {
            Some(timespec) => submitter.submit_with_args(want, &SubmitArgs::new().timespec(timespec)),
            None => submitter.submit_and_wait(want),
        };
        match entered.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO)) {
            Ok(_) | Err(libc::ETIME | libc::EINTR) => {}
            // Short of memory for requests, or completions first: both pass, and deadlines are looked at meanwhile.
            Err(libc::EAGAIN | libc::EBUSY) => std::thread::sleep(NAP),
            Err(errno) => self.broken = Some(IoError::Errno(errno)),
        }
    }
}

impl Drop for RingThread {
    fn drop(&mut self) {
        let error = self.broken.unwrap_or(IoError::Errno(libc::EIO));
        let mut ends = Vec::new();
        // In flight only when the ring broke or this thread panicked.
        let lost: Vec<Flight> = self.slots.iter_mut().filter_map(|slot| slot.flight.take()).collect();
        ends.extend(lost.iter().filter(|flight| !flight.told).map(|flight| Done {
            id: flight.op.id,
            memory: None,
            result: Err(error),
        }));
        // The ring first, so that nothing new reaches memory that its owners get back below.
        drop(self.ring.take());
        if !lost.is_empty() {
            std::mem::forget((lost, self.registered.take()));
        }
        if let Some(registered) = self.registered.take() {
            drop(registered.regions);
        }
        let mut inbox = lock(&self.shared.inbox);
        inbox.closing = true;
        ends.append(&mut inbox.refused);
        ends.extend(inbox.queue.drain(..).map(|waiting| ended(waiting.op, Err(IoError::Closed))));
        drop(inbox);
        self.shared.ends.tell(ends);
        lock(&self.shared.inbox).stopped = true;
        self.shared.stopped.notify_all();
    }
}

/// The longest operation fits the kernel's counts.
const _: () = assert!(check::OPERATION_BYTES_MAX <= u32::MAX as u64);
