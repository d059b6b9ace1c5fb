//! The log's state, its lock and its medium together: sinks, waiting, and operations that somebody waits for.
//!
//! Lock order: `superblocks` (who writes them), then `log`; `encoder`, then `log`. `log` is never held while the medium is called, while bytes are verified, or
//! while anybody waits for anything but `changed`.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use cache_core::buffer::Buffer;

use crate::config::DiskConfig;
use crate::copies::CopyState;
use crate::io::{Done, FileId, IoError, Kind, Medium, Memory, Operation, Sink};
use crate::log::{Flight, Log};
use crate::read::ReadJob;
use crate::stage::Encoder;
use crate::testing::Testing;

/// What all handles of a tier share.
pub(crate) struct Inner {
    pub medium: Arc<dyn Medium>,
    pub config: DiskConfig,
    pub testing: Testing,
    log: Mutex<Log>,
    /// Anything in the log has changed that somebody may wait for.
    pub changed: Condvar,
    /// The keeper has something to do.
    pub due: Condvar,
    /// A write can be encoded.
    pub stage_due: Condvar,
    /// Held while a write is encoded.
    pub encoder: Mutex<Encoder>,
    /// Held while superblocks are written, so that their sequence has one order.
    pub superblocks: Mutex<[CopyState; 2]>,
    /// Held while the log's slow work is done, so that a manual tier does one piece at a time.
    pub keeping: Mutex<()>,
    started: Instant,
}

/// One piece of I/O that somebody waits for.
pub(crate) struct Request {
    pub kind: Kind,
    pub file: FileId,
    pub offset: u64,
    pub buffer: Buffer,
}

impl Request {
    pub(crate) fn read(file: FileId, offset: u64, bytes: u64) -> Request {
        Request { kind: Kind::Read, file, offset, buffer: Buffer::zeroed(bytes as usize) }
    }

    pub(crate) fn write(file: FileId, offset: u64, buffer: Buffer) -> Request {
        Request { kind: Kind::Write, file, offset, buffer }
    }

    pub(crate) fn sync(file: FileId) -> Request {
        Request { kind: Kind::Sync, file, offset: 0, buffer: Buffer::zeroed(0) }
    }
}

impl Inner {
    pub(crate) fn new(medium: Arc<dyn Medium>, config: DiskConfig, testing: Testing, log: Log) -> Arc<Inner> {
        let encoder = Encoder::new(config.stage, Arc::clone(&config.codec));
        let inner = Arc::new(Inner {
            medium,
            config,
            testing,
            log: Mutex::new(log),
            changed: Condvar::new(),
            due: Condvar::new(),
            stage_due: Condvar::new(),
            encoder: Mutex::new(encoder),
            superblocks: Mutex::default(),
            keeping: Mutex::new(()),
            started: Instant::now(),
        });
        inner.medium.connect(Arc::new(LogSink(Arc::downgrade(&inner))));
        inner
    }

    /// The log. A panic elsewhere leaves it whole: it is changed by functions that do not panic half-way.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds since the tier was opened.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Starts what the log wants started.
    pub(crate) fn pump(&self) {
        loop {
            let batch = self.lock().traffic.take();
            if batch.is_empty() {
                return;
            }
            self.medium.submit(batch);
        }
    }

    /// Changes the log, starts what that asks for, and tells who waits.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Log) -> T) -> T {
        let (result, due) = {
            let mut log = self.lock();
            (change(&mut log), Due::of(&log))
        };
        self.tell(due);
        self.pump();
        result
    }

    fn tell(&self, due: Due) {
        self.changed.notify_all();
        if due.keeper {
            self.due.notify_all();
        }
        if due.stage {
            self.stage_due.notify_all();
        }
    }

    /// Waits until `ready` finds something or the time is over.
    pub(crate) fn wait_until<T>(&self, millis: u64, mut ready: impl FnMut(&mut Log) -> Option<T>) -> Option<T> {
        let until = Instant::now().checked_add(Duration::from_millis(millis));
        loop {
            let mut log = self.lock();
            if let Some(found) = ready(&mut log) {
                return Some(found);
            }
            let left = until.map_or(Duration::from_secs(1), |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return None;
            }
            if self.testing.is_manual {
                drop(log);
                if self.step() {
                    continue;
                }
                log = self.lock();
                if let Some(found) = ready(&mut log) {
                    return Some(found);
                }
            }
            let slice = if self.testing.is_manual { left.min(Duration::from_millis(1)) } else { left };
            drop(self.changed.wait_timeout(log, slice).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Performs some I/O and waits for it; the results come in the order of the requests. Waits at most twice the deadline, for a medium
    /// that does not keep its own.
    pub(crate) fn perform(&self, requests: Vec<Request>, what: &str) -> Vec<Result<Buffer, IoError>> {
        let kinds: Vec<Kind> = requests.iter().map(|request| request.kind).collect();
        let tickets: Vec<u64> = self.change(|log| {
            let launch = |request: Request| {
                let Request { kind, file, offset, buffer } = request;
                let ticket = log.number();
                log.tickets.insert(ticket, None);
                let range = 0..buffer.as_slice().len() as u64;
                let memory = Memory::Owned(buffer);
                log.launch(Flight::Ticket(ticket), |id| Operation { id, kind, file, offset, memory, range });
                ticket
            };
            requests.into_iter().map(launch).collect()
        });
        let millis = self.config.deadline_millis.saturating_mul(2).max(1);
        let until = Instant::now() + Duration::from_millis(millis.min(1 << 40));
        let mut log = self.lock();
        while !tickets.iter().all(|ticket| log.tickets.get(ticket).is_some_and(Option::is_some)) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            log = self.changed.wait_timeout(log, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let now = self.now();
        let mut results = Vec::with_capacity(tickets.len());
        for (ticket, kind) in tickets.into_iter().zip(kinds) {
            let result = match log.tickets.remove(&ticket).flatten() {
                None => Err(IoError::TimedOut { millis }),
                Some(Done { result: Err(error), .. }) => Err(error),
                Some(Done { memory: Some(Memory::Owned(buffer)), .. }) => Ok(buffer),
                Some(_) => Ok(Buffer::zeroed(0)),
            };
            log.note(kind, what, &result.as_ref().map(drop).map_err(|error| *error), now);
            match (kind, &result) {
                (Kind::Write, Ok(buffer)) => log.counters.written_bytes += buffer.as_slice().len() as u64,
                (Kind::Sync, Ok(_)) => log.counters.syncs += 1,
                _ => {}
            }
            results.push(result);
        }
        results
    }

    /// Performs one piece of I/O.
    pub(crate) fn perform_one(&self, request: Request, what: &str) -> Result<Buffer, IoError> {
        self.perform(vec![request], what).pop().expect("one request has one result")
    }

    /// Lists the files and notes what they take.
    pub(crate) fn list_files(&self) -> std::io::Result<Vec<(FileId, crate::io::FileInfo)>> {
        let files = self.medium.files()?;
        let allocated = files.iter().map(|(_, info)| info.allocated_bytes).sum();
        self.lock().allocated_bytes = allocated;
        Ok(files)
    }

    fn ended(&self, ended: Vec<Done>) {
        let mut to_verify: Vec<(u64, ReadJob)> = Vec::new();
        {
            let now = self.now();
            let mut log = self.lock();
            for done in ended {
                let Some((flight, kind)) = log.flights.remove(&done.id) else { continue };
                log.traffic.ended(kind);
                match flight {
                    Flight::WriteHeader(number) => log.end_write_part(number, false, done, now),
                    Flight::WriteBody(number) => log.end_write_part(number, true, done, now),
                    Flight::WriteStaged(number) => log.end_staged_write(number, done, now),
                    Flight::ReadHeader(number) | Flight::ReadBody(number) => {
                        let is_body = matches!(flight, Flight::ReadBody(_));
                        let read = log.end_read_part(number, is_body, done, now);
                        to_verify.extend(read.map(|job| (number, job)));
                    }
                    // Nobody waits any more when the ticket is gone.
                    Flight::Ticket(ticket) => {
                        if let Some(place) = log.tickets.get_mut(&ticket) {
                            *place = Some(done);
                        }
                    }
                }
            }
        }
        // The next operations start while these bytes are verified.
        self.pump();
        for (number, mut job) in to_verify {
            let verified = job.verify(&self.testing, &*self.config.codec);
            self.lock().go_on_reading(number, job, verified);
            // Whoever waits takes it, and the medium what follows from it, while the next one is verified.
            self.changed.notify_all();
            self.pump();
        }
        let due = Due::of(&self.lock());
        self.tell(due);
    }
}

/// Whose thread has something to do.
struct Due {
    keeper: bool,
    stage: bool,
}

impl Due {
    fn of(log: &Log) -> Due {
        Due { keeper: log.is_due, stage: log.can_stage() }
    }
}

/// The medium's way to the log; a log that is gone is told nothing.
struct LogSink(Weak<Inner>);

impl Sink for LogSink {
    fn done(&self, ended: Vec<Done>) {
        if let Some(inner) = self.0.upgrade() {
            inner.ended(ended);
        }
    }
}
