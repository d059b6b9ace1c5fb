//! One connection: reads its requests one after the other, performs them, answers in order. Whatever ends it, what it held is given back.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cache_core::chain::Link;
use cache_core::form::{Accept, FormMapId};
use cache_core::hash::Namespace;
use cache_core::manager::Owner;
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use cache_core::store::Sealed;
use cache_core::units::{Generation, SlotIndex};
use kvtier_sdk::socket::{Peer, send_with};
use kvtier_sdk::wire::{
    AbortReply, AcceptId, AcquireReply, AwaitReply, BODY_BYTES_BEFORE_HELLO, BODY_BYTES_MAX, Batch, CommitCode,
    CommitReply, DeleteTenantReply, Empty, Explain, Frame, FrameHeader, Hello, HelloReply, Hit, Json, KeyParts, Kind,
    LeaseId, LookupReply, MapExtentReply, OpenNamespace, OpenNamespaceReply, PinReply, PrefetchReply, Refusal,
    ReleaseReply, Reply, Request, ReservationId, ReserveCode, ReserveReply, Reserved, Run, Status, TierCode,
    UnpinReply, VERSION, WireError, Zero,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::config::Verify;
use crate::server::cache::{self, Asked, Committed, Holdings, Patience};
use crate::server::class::ClassId;
use crate::server::incoming::{Incoming, Look, is_timeout};
use crate::server::paced::write_within;
use crate::server::staging::StagingArea;
use crate::server::{Server, sentence};
use crate::stats::{Amount, Client, Operation, ProtocolError, Reclaim, Rejection, StoreRefusal};
use crate::testing::Point;

/// Bytes of answers that are gathered before they are sent, about: the longest answer may come on top.
const OUT_BYTES: usize = 128 << 10;
/// How long a receiver may leave its answers unread.
const UNREAD_MAX: Duration = Duration::from_secs(5);
/// Reservations of one connection.
const RESERVATIONS_MAX: usize = 1024;

/// Namespaces that one connection may have open.
const OPENED_MAX: usize = 4096;

/// Why a request is not done.
struct Refused {
    status: Status,
    sentence: String,
}

fn refused<T>(status: Status, sentence: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { status, sentence: sentence.into() })
}

impl From<WireError> for Refused {
    fn from(error: WireError) -> Refused {
        Refused { status: Status::BadFrame, sentence: error.to_string() }
    }
}

/// A connection and what it holds.
pub(crate) struct Session {
    server: Arc<Server>,
    stream: UnixStream,
    id: u64,
    peer: Peer,
    name: String,
    staging: Option<StagingArea>,
    /// What was opened, with the shape of its blocks.
    opened: HashMap<(Namespace, ClassId), BlockShape>,
    holdings: Holdings,
    /// The client's own request that the calls belong to.
    tag: String,
    /// Sent with the next reply.
    descriptor: Option<OwnedFd>,
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.server.planted.is_due(Point::HangUp) {
            return;
        }
        let leases = self.holdings.leases() as u64;
        self.server.cache.hang_up(&mut self.holdings, Owner(self.id));
        self.server.counters.reclaimed(Reclaim::HangUp, leases);
        self.server.left(self.id, self.staging.take().map_or(0, |staging| staging.memory().bytes()));
    }
}

impl Session {
    pub(crate) fn new(server: Arc<Server>, stream: UnixStream, id: u64, peer: Peer) -> Session {
        Session {
            server,
            stream,
            id,
            peer,
            name: String::new(),
            staging: None,
            opened: HashMap::new(),
            holdings: Holdings::default(),
            tag: String::new(),
            descriptor: None,
        }
    }

    fn owner(&self) -> Owner {
        Owner(self.id)
    }

    /// Serves until the client hangs up, breaks the protocol or is too slow, or the daemon ends.
    pub(crate) fn serve(mut self) {
        if let Err(rejection) = self.exchange() {
            self.server.counters.rejected(rejection);
            tracing::info!(
                session = self.id,
                pid = self.peer.pid,
                reason = rejection.name(),
                "connection ended by the daemon"
            );
        }
    }

    fn exchange(&mut self) -> Result<(), Rejection> {
        let failed = |_: io::Error| Rejection::Slow;
        let hello_until = Instant::now() + self.server.hello_timeout();
        self.stream.set_write_timeout(Some(UNREAD_MAX)).map_err(failed)?;
        let mut incoming = self.stream.try_clone().and_then(Incoming::new).map_err(failed)?;
        let mut out = Vec::new();
        let mut silent_since = Instant::now();
        loop {
            let limit = self.body_limit();
            let is_over = match incoming.next(limit) {
                Ok(Frame { header, body }) => {
                    silent_since = Instant::now();
                    let is_over = self.answer(&header, body, &mut out);
                    // At once: the next request may ask for it.
                    self.server.report_holdings(self.id, self.holdings.leases(), self.holdings.reservations());
                    is_over
                }
                Err(Look::Over) => return Ok(()),
                Err(Look::Wire(error)) => {
                    let is_long = matches!(error, WireError::BodyLength { .. });
                    let kind = if is_long { ProtocolError::TooLarge } else { ProtocolError::BadFrame };
                    self.server.counters.protocol_error(kind);
                    let status = if is_long { Status::TooLarge } else { Status::BadFrame };
                    Refusal::new(status, &error.to_string()).encode_frame(0, 0, &mut out);
                    // The stream has lost its place; whether the client still hears why makes no difference.
                    let _ = write_within(&self.stream, &out, UNREAD_MAX);
                    return Err(Rejection::Protocol);
                }
                Err(Look::Partial(age)) if age >= self.server.hello_timeout() => return Err(Rejection::Slow),
                Err(Look::Nothing | Look::Partial(_)) if self.server.is_ending() => return Ok(()),
                Err(Look::Nothing | Look::Partial(_)) => {
                    self.keep_time(hello_until, silent_since)?;
                    continue;
                }
            };
            // Who sends several requests at once gets the answers at once.
            let waits = self.descriptor.is_some() || out.len() >= OUT_BYTES || !incoming.has_more(self.body_limit());
            if is_over || waits {
                self.write(&out)?;
                out.clear();
            }
            if is_over {
                return Err(Rejection::Protocol);
            }
            if self.server.is_ending() && self.holdings.leases() == 0 && self.holdings.reservations() == 0 {
                // Whoever never pauses would otherwise keep the daemon until its time is over.
                return Ok(());
            }
        }
    }

    fn body_limit(&self) -> u32 {
        if self.staging.is_some() { BODY_BYTES_MAX } else { BODY_BYTES_BEFORE_HELLO }
    }

    /// What is due while no frame comes.
    fn keep_time(&mut self, hello_until: Instant, silent_since: Instant) -> Result<(), Rejection> {
        let expired = self.server.cache.expire(&mut self.holdings, self.server.lease_ttl());
        self.server.counters.reclaimed(Reclaim::Expired, expired);
        let is_idle = self.holdings.leases() == 0 && self.holdings.reservations() == 0;
        let idle_max = self.server.idle_timeout().filter(|_| is_idle);
        if self.staging.is_none() && Instant::now() >= hello_until {
            return Err(Rejection::Slow);
        }
        if idle_max.is_some_and(|most| silent_since.elapsed() >= most) {
            return Err(Rejection::Idle);
        }
        Ok(())
    }

    fn write(&mut self, out: &[u8]) -> Result<(), Rejection> {
        let written = match self.descriptor.take() {
            Some(descriptor) => send_with(&self.stream, out, descriptor.as_fd()),
            None => write_within(&self.stream, out, UNREAD_MAX),
        };
        match written {
            Err(error) if is_timeout(&error) => Err(Rejection::NotReading),
            // A client that is gone is noticed by the next read.
            _ => Ok(()),
        }
    }

    fn describe(&self) -> Client {
        Client {
            name: self.name.clone(),
            pid: u32::try_from(self.peer.pid).unwrap_or(0),
            leases: self.holdings.leases() as u64,
            reservations: self.holdings.reservations() as u64,
            staging_bytes: self.staging.as_ref().map_or(0, |staging| staging.memory().bytes()),
        }
    }

    /// Performs one request; true when the connection is to end.
    fn answer(&mut self, header: &FrameHeader, body: &[u8], out: &mut Vec<u8>) -> bool {
        let id = header.request_id;
        let start = out.len();
        // Whoever has not introduced himself is not listened to, whatever he says.
        let is_early = self.staging.is_none() && header.kind != Kind::Hello.number();
        let done = match Request::parse(header, body) {
            _ if is_early => refused(Status::BadFrame, "take that: the first request of a connection is Hello"),
            Ok(request) => {
                self.server.planted.strike(Point::Session);
                self.perform(header, request, out)
            }
            Err(error) => Err(error.into()),
        };
        let Err(Refused { status, sentence }) = done else {
            return false;
        };
        let error = match status {
            Status::BadFrame if is_early => Some(ProtocolError::NoHello),
            Status::BadFrame => Some(ProtocolError::BadFrame),
            Status::BadVersion => Some(ProtocolError::BadVersion),
            Status::TooLarge => Some(ProtocolError::TooLarge),
            Status::UnknownNamespace => Some(ProtocolError::UnknownNamespace),
            _ => None,
        };
        error.into_iter().for_each(|error| self.server.counters.protocol_error(error));
        out.truncate(start);
        Refusal::new(status, &sentence).encode_frame(header.kind, id, out);
        // Before the introduction nobody gets a second try.
        self.staging.is_none()
    }

    fn perform(&mut self, header: &FrameHeader, request: Request<'_>, out: &mut Vec<u8>) -> Result<(), Refused> {
        let started = Instant::now();
        let until = started + self.server.deadline(header.deadline_ms);
        let id = header.request_id;
        if let Request::Hello(hello) = request {
            let reply = self.hello(&hello)?;
            return Ok(Reply::Hello(reply).encode_frame(id, out)?);
        }
        let takes = matches!(request, Request::Acquire(_) | Request::Prefetch(_) | Request::Pin(_));
        if takes && self.server.is_ending() {
            return refused(Status::Draining, "the daemon is about to end");
        }
        let operation = match request {
            Request::Lookup(lookup) => {
                let links: Vec<Link> =
                    lookup.hashes.iter().map(|hash| Link { hash: *hash, parent: None, depth: 0 }).collect();
                let asked = self.asked(lookup.parts, lookup.accept, &links)?;
                let (tiers, miss) = self.server.cache.lookup(&asked);
                let tiers: Vec<TierCode> = tiers.into_iter().map(TierCode::from).collect();
                let reply =
                    LookupReply { miss: self.server.reason(&lookup.parts.namespace, miss), tiers: Batch::new(&tiers)? };
                Reply::Lookup(reply).encode_frame(id, out)?;
                Operation::Lookup
            }
            Request::Acquire(acquire) => {
                let links: Vec<Link> = acquire.run.links().collect();
                let asked = self.asked(acquire.parts, acquire.accept, &links)?;
                self.acquire(&asked, until, id, out)?;
                Operation::Acquire
            }
            Request::Release(release) => {
                let leases: Vec<u64> = release.leases.iter().map(|lease| lease.0.get()).collect();
                let released = self.server.cache.release(&mut self.holdings, &leases);
                let unknown = leases.len() as u32 - released;
                (0..unknown).for_each(|_| self.server.counters.protocol_error(ProtocolError::UnknownLease));
                Reply::Release(ReleaseReply { released, unknown }).encode_frame(id, out)?;
                Operation::Release
            }
            Request::Reserve(reserve) => {
                self.reserve(&reserve.parts, reserve.lineage, &reserve.run, id, out)?;
                Operation::Reserve
            }
            Request::Commit(commit) => {
                let answers: Vec<CommitCode> =
                    commit.reservations.iter().map(|reservation| self.commit(*reservation)).collect();
                Reply::Commit(CommitReply { answers: Batch::new(&answers)? }).encode_frame(id, out)?;
                Operation::Commit
            }
            Request::Await(wanted) => {
                let class = self.class(&wanted.parts)?;
                let miss = {
                    let is_over = is_over(&self.server, &self.stream);
                    let patience = Patience { until, is_over: &is_over };
                    self.server.cache.await_block(class, &wanted.parts.key(wanted.hash), patience)
                };
                Reply::Await(AwaitReply { miss }).encode_frame(id, out)?;
                Operation::Await
            }
            Request::Prefetch(wanted) => {
                let links: Vec<Link> = wanted.run.links().collect();
                let asked = self.asked(wanted.parts, wanted.accept, &links)?;
                self.bring_back(&asked, until);
                let accepted = self.server.cache.prefetch(&asked);
                Reply::Prefetch(PrefetchReply { accepted }).encode_frame(id, out)?;
                Operation::Prefetch
            }
            other => return self.perform_rarely(other, id, out),
        };
        self.server.counters.took(operation, started.elapsed());
        Ok(())
    }

    /// Requests whose duration is not counted.
    fn perform_rarely(&mut self, request: Request<'_>, id: u64, out: &mut Vec<u8>) -> Result<(), Refused> {
        let reply = match request {
            Request::OpenNamespace(open) => Reply::OpenNamespace(self.open(*open)?),
            Request::MapExtent(map) => Reply::MapExtent(self.map(map.class.0, map.extent)?),
            Request::Abort(abort) => {
                let mut aborted = 0;
                for reservation in abort.reservations.iter() {
                    let offset = self.server.cache.abort(&mut self.holdings, Owner(self.id), reservation.0.get());
                    aborted += u32::from(offset.is_some());
                    offset.into_iter().for_each(|offset| self.give_back(offset));
                }
                let unknown = abort.reservations.len() as u32 - aborted;
                (0..unknown).for_each(|_| self.server.counters.protocol_error(ProtocolError::UnknownReservation));
                Reply::Abort(AbortReply { aborted, unknown })
            }
            Request::Pin(pin) => {
                let links: Vec<Link> = pin.run.links().collect();
                let asked = self.asked(pin.parts, pin.accept, &links)?;
                let until = Instant::now() + Duration::from_millis(pin.ttl_ms.min(u64::from(u32::MAX)));
                self.bring_back(&asked, Instant::now() + self.server.deadline(0));
                Reply::Pin(PinReply { pinned: self.server.cache.pin(&asked, until) })
            }
            Request::Unpin(unpin) => {
                let class = self.class(&unpin.parts)?;
                let keys: Vec<_> = unpin.hashes.iter().map(|hash| unpin.parts.key(*hash)).collect();
                Reply::Unpin(UnpinReply { unpinned: self.server.cache.unpin(class, &keys) })
            }
            Request::DeleteNamespace(delete) => {
                self.server.delete_namespace(delete.namespace).or_else(|error| refused(Status::Internal, error))?;
                Reply::DeleteNamespace(Empty)
            }
            Request::DeleteTenant(delete) => {
                let deleted =
                    self.server.delete_tenant(delete.tenant).or_else(|error| refused(Status::Internal, error))?;
                Reply::DeleteTenant(DeleteTenantReply { namespaces: deleted })
            }
            Request::Stats(Empty) => {
                let text = self.server.stats_json();
                return Ok(Reply::Stats(Json(&text)).encode_frame(id, out)?);
            }
            Request::Explain(what) => {
                let text = match what {
                    Explain::Request(name) => self.server.explain_json(name.as_str()),
                    Explain::Block { parts, hash } => {
                        let class = self.class(&parts)?;
                        Some(self.server.explain_block_json(class, &parts.key(hash)))
                    }
                };
                let Some(text) = text else {
                    return refused(Status::UnknownNamespace, "no request of that name is remembered");
                };
                return Ok(Reply::Explain(Json(&text)).encode_frame(id, out)?);
            }
            Request::Drain(Empty) => {
                self.server.drain();
                Reply::Drain(Empty)
            }
            Request::Report(report) => {
                let class = self.known(report.class.0)?;
                self.server.counters.lease_lost();
                if let Some(link) = self.server.cache.leased(&self.holdings, class, report.slot, report.generation) {
                    self.server.correct(&self.tag, link.depth, report.reason);
                }
                if self.server.cache.verify(class, SlotIndex(report.slot.0), report.generation) {
                    self.server.counters.integrity_failure();
                }
                Reply::Report(Empty)
            }
            Request::Tag(tag) => {
                self.tag = tag.request.as_str().to_owned();
                Reply::Tag(Empty)
            }
            other => unreachable!("{:?} was performed before", other.kind()),
        };
        Ok(reply.encode_frame(id, out)?)
    }

    fn hello(&mut self, hello: &Hello<'_>) -> Result<HelloReply, Refused> {
        if self.staging.is_some() {
            return refused(Status::BadFrame, "a connection introduces itself once");
        }
        if hello.version().is_none() {
            let (min, max) = (hello.version_min, hello.version_max);
            return refused(
                Status::BadVersion,
                format!("this daemon speaks version {VERSION}, the client {min} to {max}"),
            );
        }
        if self.server.is_ending() {
            return refused(Status::Draining, "the daemon is about to end");
        }
        let bytes = self.server.take_staging().or_else(|missing| refused(Status::Full, missing))?;
        let staging = StagingArea::new(bytes);
        let descriptor = match &staging {
            Ok(area) => area.memory().duplicate().map_err(|error| sentence(&error)),
            Err(error) => Err(sentence(error)),
        };
        match (staging, descriptor) {
            (Ok(staging), Ok(descriptor)) => {
                self.descriptor = Some(descriptor);
                self.staging = Some(staging);
            }
            (_, descriptor) => {
                self.server.give_staging_back(bytes);
                return refused(Status::Full, descriptor.err().unwrap_or_default());
            }
        }
        self.name = hello.client.as_str().to_owned();
        self.server.introduced(self.id, self.describe());
        tracing::info!(session = self.id, pid = self.peer.pid, client = self.name, "connected");
        Ok(HelloReply {
            version: VERSION,
            reserved: Zero::BYTES,
            default_deadline_ms: self.server.default_deadline_ms(),
            daemon_id: self.server.id,
            session: self.id,
            staging_bytes: bytes,
            reservations_max: RESERVATIONS_MAX as u32,
            lease_ttl_ms: u32::try_from(self.server.lease_ttl().as_millis()).unwrap_or(u32::MAX),
        })
    }

    fn open(&mut self, open: OpenNamespace) -> Result<OpenNamespaceReply, Refused> {
        if self.opened.len() >= OPENED_MAX {
            return refused(Status::Full, format!("a connection opens at most {OPENED_MAX} namespaces"));
        }
        let slot_bytes = open.shape.slot_bytes();
        let staging_bytes = self.staging.as_ref().map_or(0, |staging| staging.memory().bytes());
        if slot_bytes > staging_bytes {
            let text =
                format!("a block has {slot_bytes} bytes and the staging memory {staging_bytes}: raise client_staging");
            return refused(Status::TooLarge, text);
        }
        let class = self.server.cache.class_of(open.shape).or_else(|error| refused(Status::Full, sentence(&error)))?;
        let namespace = self.server.knows(open.manifest, open.tenant);
        self.opened.insert((namespace, class), open.shape);
        let extents = self.server.cache.state().class(class).host.layout().extents();
        Ok(OpenNamespaceReply { namespace, class: kvtier_sdk::wire::ClassId(class), extents, slot_bytes })
    }

    fn map(&mut self, class: ClassId, extent: u32) -> Result<MapExtentReply, Refused> {
        let class = self.known(class)?;
        let state = self.server.cache.state();
        let host = &state.class(class).host;
        let Some(memory) = host.extents().get(extent as usize) else {
            return refused(Status::UnknownNamespace, format!("the class has {} extents", host.layout().extents()));
        };
        let descriptor = memory.duplicate().or_else(|error| refused(Status::Internal, sentence(&error)))?;
        let words_bytes = host.layout().generation_bytes(extent);
        let reply = MapExtentReply {
            bytes: memory.bytes(),
            words_offset: 0,
            words_bytes,
            slots_offset: words_bytes,
            first_slot: SlotIndex(host.layout().first_slot(extent)),
            slots: memory.slots(),
        };
        drop(state);
        self.descriptor = Some(descriptor);
        Ok(reply)
    }

    /// A class that was opened on this connection.
    fn known(&self, class: ClassId) -> Result<ClassId, Refused> {
        match self.opened.keys().any(|(_, opened)| *opened == class) {
            true => Ok(class),
            false => refused(Status::UnknownNamespace, format!("class {class} was not opened on this connection")),
        }
    }

    fn class(&self, parts: &KeyParts) -> Result<ClassId, Refused> {
        self.shape(parts).map(|_| parts.class.0)
    }

    /// The shape of the blocks of a namespace and class that were opened on this connection.
    fn shape(&self, parts: &KeyParts) -> Result<BlockShape, Refused> {
        let Some(shape) = self.opened.get(&(parts.namespace, parts.class.0)) else {
            return refused(Status::UnknownNamespace, "namespace and class were not opened on this connection");
        };
        match parts.form == shape.form_map() {
            true => Ok(*shape),
            false => refused(Status::BadFrame, "the form is not that of the class"),
        }
    }

    fn asked<'a>(&self, parts: KeyParts, accept: AcceptId, links: &'a [Link]) -> Result<Asked<'a>, Refused> {
        let shape = self.shape(&parts)?;
        let accept = match accept {
            AcceptId::Exact => Accept::Exact,
            AcceptId::AtLeast(form) if form == FormMapId::of(shape.form) => Accept::AtLeast(shape.form),
            AcceptId::AtLeast(_) => return refused(Status::BadFrame, "a class has copies of its own form only"),
        };
        Ok(Asked { parts, accept, links, shape })
    }

    fn acquire(&mut self, asked: &Asked<'_>, until: Instant, id: u64, out: &mut Vec<u8>) -> Result<(), Refused> {
        self.bring_back(asked, until);
        let is_over = is_over(&self.server, &self.stream);
        let patience = Patience { until, is_over: &is_over };
        let (mut leased, mut miss) = self.server.cache.acquire(&mut self.holdings, asked, patience);
        if self.server.config().verify == Verify::Always {
            let is_wrong = |leased: &cache::Leased| {
                self.server.cache.verify(asked.parts.class.0, SlotIndex(leased.slot), Generation(leased.generation))
            };
            if let Some(wrong) = leased.iter().position(is_wrong) {
                let rest: Vec<u64> = leased.split_off(wrong).iter().map(|leased| leased.lease).collect();
                self.server.cache.release(&mut self.holdings, &rest);
                self.server.counters.integrity_failure();
                miss = Some(MissReason::FailedCheck);
            }
        }
        if !leased.is_empty() {
            self.server.found(&asked.parts.namespace);
        }
        let miss = self.server.reason(&asked.parts.namespace, miss);
        let hits: Vec<Hit> = leased.iter().map(hit).collect();
        self.count_found(asked, &leased, miss);
        if !self.tag.is_empty() {
            self.server.note(&self.tag, asked, &leased, miss);
        }
        Ok(Reply::Acquire(AcquireReply { miss, hits: Batch::new(&hits)? }).encode_frame(id, out)?)
    }

    /// Brings back what the daemon before this one has left of a run.
    fn bring_back(&self, asked: &Asked<'_>, until: Instant) {
        let is_over = is_over(&self.server, &self.stream);
        self.server.bring_back(asked, Patience { until, is_over: &is_over });
    }

    fn count_found(&self, asked: &Asked<'_>, leased: &[cache::Leased], miss: Option<MissReason>) {
        let shape = asked.shape;
        let counters = &self.server.counters;
        let amount = |blocks: u64| Amount {
            blocks,
            tokens: blocks * u64::from(shape.block_tokens),
            bytes: blocks * shape.slot_bytes(),
        };
        counters.requested(amount(asked.links.len() as u64));
        for tier in [cache_core::units::Tier::Host, cache_core::units::Tier::Disk] {
            counters.hit(tier, amount(leased.iter().filter(|leased| leased.tier == tier).count() as u64));
        }
        if let Some(reason) = miss {
            counters.missed(reason, (asked.links.len() - leased.len()) as u64);
        }
    }

    fn reserve(
        &mut self,
        parts: &KeyParts,
        lineage: cache_core::form::Lineage,
        run: &Run<'_>,
        id: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), Refused> {
        let (shape, class) = (self.shape(parts)?, parts.class.0);
        if self.server.is_ending() {
            self.server.counters.refused(StoreRefusal::Draining, run.hashes().len() as u64);
            return refused(Status::Draining, "the daemon is about to end");
        }
        self.server.lists(&parts.namespace).or_else(|sentence| refused(Status::Full, sentence))?;
        let slot_bytes = shape.slot_bytes();
        let mut answers = Vec::with_capacity(run.hashes().len());
        for link in run.links() {
            let sealed = Sealed { key: parts.key(link.hash), lineage, link };
            answers.push(self.reserve_one(sealed, class, slot_bytes));
        }
        Ok(Reply::Reserve(ReserveReply { answers: Batch::new(&answers)? }).encode_frame(id, out)?)
    }

    fn reserve_one(&mut self, sealed: Sealed, class: ClassId, slot_bytes: u64) -> Reserved {
        let nothing = |answer| Reserved {
            reservation: ReservationId(0.into()),
            staging_offset: 0.into(),
            answer,
            reserved: Zero::BYTES,
        };
        let counters = &self.server.counters;
        let staging = self.staging.as_mut().filter(|_| self.holdings.reservations() < RESERVATIONS_MAX);
        let Some(offset) = staging.and_then(|staging| staging.take(slot_bytes)) else {
            counters.refused(StoreRefusal::Full, 1);
            return nothing(ReserveCode::Full);
        };
        let owner = self.owner();
        let answer = match self.server.cache.reserve(&mut self.holdings, owner, sealed, class, offset) {
            cache::Reserved::Granted { reservation } => {
                return Reserved {
                    reservation: ReservationId(reservation.into()),
                    staging_offset: offset.into(),
                    ..nothing(ReserveCode::Reserved)
                };
            }
            cache::Reserved::Present => {
                counters.present(self.server.amount(class, 1));
                ReserveCode::Present
            }
            cache::Reserved::PendingElsewhere => {
                counters.refused(StoreRefusal::Pending, 1);
                ReserveCode::PendingElsewhere
            }
            cache::Reserved::Full => {
                counters.refused(StoreRefusal::Full, 1);
                ReserveCode::Full
            }
            cache::Reserved::Quota => {
                counters.refused(StoreRefusal::Quota, 1);
                ReserveCode::Full
            }
        };
        self.give_back(offset);
        nothing(answer)
    }

    fn commit(&mut self, reservation: ReservationId) -> CommitCode {
        let owner = self.owner();
        let staging = self.staging.as_ref().expect("a connection that was introduced has staging memory").memory();
        let (committed, offset) = self.server.cache.commit(&mut self.holdings, owner, staging, reservation.0.get());
        let counters = &self.server.counters;
        let code = match committed {
            Committed::Inserted { class, namespace } => {
                self.server.inserted(class, &namespace);
                CommitCode::Inserted
            }
            Committed::Present { class } => {
                counters.present(self.server.amount(class, 1));
                CommitCode::Present
            }
            Committed::FailedCheck => {
                counters.refused(StoreRefusal::FailedCheck, 1);
                CommitCode::FailedCheck
            }
            Committed::Full => {
                counters.refused(StoreRefusal::Full, 1);
                CommitCode::Full
            }
            Committed::Unknown => {
                counters.protocol_error(ProtocolError::UnknownReservation);
                CommitCode::Unknown
            }
        };
        offset.into_iter().for_each(|offset| self.give_back(offset));
        code
    }

    fn give_back(&mut self, offset: u64) {
        if let Some(staging) = &mut self.staging {
            staging.give_back(offset);
        }
    }
}

/// Says whether a wait is for nobody any more: the client has hung up, or the daemon ends.
fn is_over<'a>(server: &'a Server, stream: &'a UnixStream) -> impl Fn() -> bool + use<'a> {
    move || {
        let mut look = [PollFd::new(stream, PollFlags::empty())];
        let found = poll(&mut look, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        let has_hung_up = found.is_ok() && look[0].revents().intersects(PollFlags::HUP | PollFlags::ERR);
        has_hung_up || server.is_ending()
    }
}

fn hit(leased: &cache::Leased) -> Hit {
    Hit {
        lease: LeaseId(leased.lease.into()),
        offset: leased.offset.into(),
        generation: leased.generation.into(),
        provenance: leased.key.provenance.0.into(),
        slot: leased.slot.into(),
        extent: leased.extent.into(),
        form: leased.key.form.0.into(),
        tier: leased.tier.into(),
        reserved: Zero::BYTES,
    }
}
