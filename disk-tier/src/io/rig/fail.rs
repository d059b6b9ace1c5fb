//! A medium whose n-th operation goes wrong.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use super::super::ends::{Ends, ended, lock};
use super::super::{ALIGN_BYTES, Done, FileId, FileInfo, IoError, Kind, Medium, Memory, Operation, Sink};
use super::courier::Courier;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This errno: EIO, ENOSPC, EAGAIN, ETIMEDOUT, ...
    Errno(i32),
    /// The first half, in whole pages, is moved, and the end says so. A sync or a call fails with EIO.
    Short,
    /// It is not performed and never ends in the kernel: told as timed out after so many milliseconds, its memory kept until
    /// [`FailNth::release`] (which performs it after all) or the close. A call fails with ETIMEDOUT.
    Never {
        /// Told as this deadline.
        deadline_millis: u64,
    },
    /// It is performed so much later.
    Slow {
        /// By how much.
        millis: u64,
    },
    /// A write or sync ends well without having been performed; a drive that lies. Reads and calls pass.
    Lost,
    /// A read ends well with one bit of its bytes flipped, counted from the start of its range (modulo its length); other operations pass.
    Flip {
        /// Which.
        bit: u64,
    },
}

/// What an operation that ends in [`Fault::Errno`] has done before. A call that fails has done nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Nothing,
    /// Its first half, in whole pages.
    Half,
    /// All of it.
    Whole,
}

/// What counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything below.
    Any,
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Syncs.
    Sync,
    /// `create`.
    Create,
    /// `remove`.
    Remove,
    /// `files`.
    List,
}

/// How often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// The n-th only.
    Once,
    /// So many from the n-th on.
    Times(u64),
    /// Every one from the n-th on, until [`FailNth::heal`].
    Forever,
}

/// Which operations go wrong, and how.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The first that fails, counted from 1 among those in `scope`.
    pub n: u64,
    /// How.
    pub fault: Fault,
    /// Which operations count.
    pub scope: Scope,
    /// How many fail.
    pub repeat: Repeat,
    /// What a failing one has done.
    pub effect: Effect,
}

impl Plan {
    /// The n-th operation of any kind fails once and does nothing.
    pub fn nth(n: u64, fault: Fault) -> Plan {
        Plan { n, fault, scope: Scope::Any, repeat: Repeat::Once, effect: Effect::Nothing }
    }

    /// Counts these only.
    pub fn on(self, scope: Scope) -> Plan {
        Plan { scope, ..self }
    }

    /// Fails more than one.
    pub fn repeat(self, repeat: Repeat) -> Plan {
        Plan { repeat, ..self }
    }

    /// What a failing one has done.
    pub fn effect(self, effect: Effect) -> Plan {
        Plan { effect, ..self }
    }

    fn strikes(&self, seen: u64) -> bool {
        match self.repeat {
            Repeat::Once => seen == self.n,
            Repeat::Times(times) => seen >= self.n && seen - self.n < times,
            Repeat::Forever => seen >= self.n,
        }
    }
}

/// How the end of an operation that the inner medium performs is told.
enum Rewrite {
    Result(Result<(), IoError>),
    Flip(usize),
    /// Its end has been told before.
    Silent,
}

/// An operation that never ended.
struct Held {
    op: Operation,
    /// Its file was removed since: it reaches one without a name.
    is_nameless: bool,
}

#[derive(Default)]
struct Count {
    plan: Option<Plan>,
    seen: u64,
    fired: u64,
}

/// Stands between the inner medium and the log.
struct Desk {
    count: Mutex<Count>,
    rewrites: Mutex<HashMap<u64, Rewrite>>,
    held: Mutex<Vec<Held>>,
    ends: Ends,
}

/// Over any medium: counts operations and makes the n-th go wrong. Loop over n until [`FailNth::fired`] is 0.
pub struct FailNth {
    inner: Arc<dyn Medium>,
    desk: Arc<Desk>,
    courier: Courier,
}

impl FailNth {
    /// Over `inner`, which must not be connected yet.
    pub fn new(inner: Arc<dyn Medium>, plan: Plan) -> Arc<FailNth> {
        let desk =
            Desk { count: Mutex::default(), rewrites: Mutex::default(), held: Mutex::default(), ends: Ends::new() };
        let desk = Arc::new(desk);
        inner.connect(Arc::clone(&desk) as Arc<dyn Sink>);
        let rig = Arc::new(FailNth { inner, desk, courier: Courier::new() });
        rig.arm(plan);
        rig
    }

    /// Starts counting anew, under another plan.
    pub fn arm(&self, plan: Plan) {
        *lock(&self.desk.count) = Count { plan: Some(plan), seen: 0, fired: 0 };
    }

    /// Nothing more goes wrong; counts stay.
    pub fn heal(&self) {
        lock(&self.desk.count).plan = None;
    }

    /// Operations in the plan's scope so far.
    pub fn seen(&self) -> u64 {
        lock(&self.desk.count).seen
    }

    /// How many went wrong.
    pub fn fired(&self) -> u64 {
        lock(&self.desk.count).fired
    }

    /// Operations that never ended.
    pub fn held(&self) -> usize {
        lock(&self.desk.held).len()
    }

    /// Performs the operations that never ended: writes land late, wherever the log is by now, but for those whose file was removed since.
    /// Returns how many never ended; their ends are not told again.
    pub fn release(&self) -> usize {
        let held = std::mem::take(&mut *lock(&self.desk.held));
        let count = held.len();
        let late: Vec<Operation> = held.into_iter().filter(|held| !held.is_nameless).map(|held| held.op).collect();
        lock(&self.desk.rewrites).extend(late.iter().map(|op| (op.id, Rewrite::Silent)));
        self.inner.submit(late);
        count
    }

    fn remove_now(&self, file: FileId) -> io::Result<()> {
        self.inner.remove(file)?;
        for held in lock(&self.desk.held).iter_mut().filter(|held| held.op.file == file) {
            held.is_nameless = true;
        }
        Ok(())
    }

    /// The fault for the next operation of this kind, if it is its turn.
    fn strike(&self, scope: Scope) -> Option<Plan> {
        let mut count = lock(&self.desk.count);
        let plan = count.plan.filter(|plan| plan.scope == Scope::Any || plan.scope == scope)?;
        count.seen += 1;
        let fires = plan.strikes(count.seen);
        count.fired += u64::from(fires);
        fires.then_some(plan)
    }

    fn call<T>(&self, scope: Scope, call: impl FnOnce(&dyn Medium) -> io::Result<T>) -> io::Result<T> {
        match self.strike(scope).map(|plan| plan.fault) {
            Some(Fault::Errno(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Short) => return Err(Errno::IO.into()),
            Some(Fault::Never { .. }) => return Err(Errno::TIMEDOUT.into()),
            Some(Fault::Slow { millis }) => std::thread::sleep(std::time::Duration::from_millis(millis)),
            Some(Fault::Lost | Fault::Flip { .. }) | None => {}
        }
        call(&*self.inner)
    }

    /// Lets an operation go wrong. Returns it where the inner medium has to perform it, or a part of it.
    fn spoil(&self, mut op: Operation, plan: Plan) -> Option<Operation> {
        let asked_bytes = op.range.end.saturating_sub(op.range.start);
        let half_bytes = asked_bytes / 2 / ALIGN_BYTES * ALIGN_BYTES;
        let moves = op.kind != Kind::Sync;
        let (moved_bytes, result) = match plan.fault {
            Fault::Errno(errno) => {
                let moved_bytes = match plan.effect {
                    Effect::Nothing => 0,
                    Effect::Half => half_bytes,
                    Effect::Whole => asked_bytes,
                };
                (moved_bytes, Err(IoError::Errno(errno)))
            }
            Fault::Short if moves => (half_bytes, Err(IoError::Short { done_bytes: half_bytes, asked_bytes })),
            Fault::Short => (0, Err(IoError::Errno(Errno::IO.raw_os_error()))),
            Fault::Lost if op.kind != Kind::Read => (0, Ok(())),
            Fault::Lost => return Some(op),
            Fault::Flip { bit } => {
                if op.kind == Kind::Read && asked_bytes > 0 {
                    let at = op.range.start * 8 + bit % (asked_bytes * 8);
                    lock(&self.desk.rewrites).insert(op.id, Rewrite::Flip(at as usize));
                }
                return Some(op);
            }
            Fault::Slow { millis } => {
                let inner = Arc::clone(&self.inner);
                self.courier.after(millis, move || inner.submit(vec![op]));
                return None;
            }
            Fault::Never { deadline_millis } => {
                let done = Done { id: op.id, memory: None, result: Err(IoError::TimedOut { millis: deadline_millis }) };
                lock(&self.desk.held).push(Held { op, is_nameless: false });
                self.tell_after(deadline_millis, done);
                return None;
            }
        };
        if moved_bytes > 0 || (!moves && plan.effect == Effect::Whole && matches!(plan.fault, Fault::Errno(_))) {
            op.range.end = op.range.start + moved_bytes;
            lock(&self.desk.rewrites).insert(op.id, Rewrite::Result(result));
            return Some(op);
        }
        self.tell_after(0, ended(op, result));
        None
    }

    fn tell_after(&self, millis: u64, done: Done) {
        let desk = Arc::clone(&self.desk);
        self.courier.after(millis, move || desk.ends.tell(vec![done]));
    }
}

impl Medium for FailNth {
    fn files(&self) -> io::Result<Vec<(FileId, FileInfo)>> {
        self.call(Scope::List, |inner| inner.files())
    }

    fn create(&self, file: FileId, bytes: u64) -> io::Result<()> {
        let created = self.call(Scope::Create, |inner| inner.create(file, bytes));
        if created.is_err() {
            // As a medium does: after an error the file is not there.
            self.remove_now(file)?;
        }
        created
    }

    fn remove(&self, file: FileId) -> io::Result<()> {
        self.call(Scope::Remove, |_| self.remove_now(file))
    }

    fn connect(&self, sink: Arc<dyn Sink>) {
        self.desk.ends.connect(sink);
    }

    fn submit(&self, batch: Vec<Operation>) {
        let scope = |op: &Operation| match op.kind {
            Kind::Read => Scope::Read,
            Kind::Write => Scope::Write,
            Kind::Sync => Scope::Sync,
        };
        let pass = |op: Operation| match self.strike(scope(&op)) {
            Some(plan) => self.spoil(op, plan),
            None => Some(op),
        };
        let passed: Vec<Operation> = batch.into_iter().filter_map(pass).collect();
        if !passed.is_empty() {
            self.inner.submit(passed);
        }
    }

    fn depth(&self) -> usize {
        self.inner.depth()
    }

    fn describe(&self) -> String {
        format!("{}, failing on purpose", self.inner.describe())
    }

    fn close(&self, millis: u64) {
        self.courier.stop();
        self.inner.close(millis);
        self.courier.stop();
        lock(&self.desk.held).clear();
        self.desk.ends.close();
    }
}

impl Sink for Desk {
    fn done(&self, ended: Vec<Done>) {
        let mut rewrites = lock(&self.rewrites);
        let rewrite = |mut done: Done| match rewrites.remove(&done.id) {
            None => Some(done),
            Some(Rewrite::Silent) => None,
            Some(Rewrite::Result(result)) => Some(Done { result, ..done }),
            Some(Rewrite::Flip(bit)) => {
                if let Some(byte) =
                    done.memory.as_mut().map(Memory::as_mut_slice).and_then(|bytes| bytes.get_mut(bit / 8))
                {
                    *byte ^= 1 << (bit % 8);
                }
                Some(done)
            }
        };
        let told = ended.into_iter().filter_map(rewrite).collect();
        drop(rewrites);
        self.ends.tell(told);
    }
}
