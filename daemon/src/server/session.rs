//! One connection: reads its requests one after the other, performs them, answers in order. Whatever ends it, what it held is given back.
//!
//! | file | part |
//! |---|---|
//! | `session` | frames in and out, in time; which call does what |
//! | `opened` | what was opened: the connection itself, namespaces, extents |
//! | `blocks` | blocks leased and handed over |

mod blocks;
mod opened;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cache_core::chain::Link;
use cache_core::form::{Accept, FormMapId};
use cache_core::hash::Namespace;
use cache_core::key::CopyKey;
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
    ReleaseReply, Reply, Request, ReservationId, ReserveCode, ReserveReply, Reserved, Run, StageReply, Status,
    TierCode, UnpinReply, VERSION, WireError, Zero,
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
        let staging_bytes = self.staging_bytes();
        self.staging = None;
        self.server.left(self.id, staging_bytes);
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
                    self.end_leases();
                    let is_over = self.answer(&header, body, &mut out);
                    // At once: the next request may ask for it.
                    let staging_bytes = self.staging_bytes();
                    let (leases, reservations) = (self.holdings.leases(), self.holdings.reservations());
                    self.server.report_holdings(self.id, leases, reservations, staging_bytes);
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
        self.end_leases();
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

    /// Ends leases whose time is over, however much their holder has to say.
    fn end_leases(&mut self) {
        let expired = self.server.cache.expire(&mut self.holdings, self.server.lease_ttl());
        if expired > 0 {
            self.server.counters.reclaimed(Reclaim::Expired, expired);
        }
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
            staging_bytes: self.staging_bytes(),
        }
    }

    fn staging_bytes(&self) -> u64 {
        self.staging.as_ref().map_or(0, |staging| staging.memory().bytes())
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
                let miss = self.await_block(class, &wanted.parts.key(wanted.hash), until);
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
            Request::Forgo(forgo) => {
                self.known(forgo.parts.class.0)?;
                self.server.counters.missed(MissReason::NotWorthIt, forgo.run.hashes().len() as u64);
                for link in forgo.run.links() {
                    self.server.correct(&self.tag, link.depth, MissReason::NotWorthIt);
                }
                Reply::Forgo(Empty)
            }
            Request::Stage(stage) => Reply::Stage(self.stage(stage.least_bytes)?),
            other => unreachable!("{:?} was performed before", other.kind()),
        };
        Ok(reply.encode_frame(id, out)?)
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
