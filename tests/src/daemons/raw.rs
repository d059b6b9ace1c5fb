//! The protocol by hand: whole calls, halves of frames, and what the client has no function for.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use cache_core::chain::Link;
use cache_core::form::{Lineage, Provenance};
use cache_core::hash::{BlockHash, TenantId};
use cache_core::key::GroupId;
use kvtier_sdk::socket::Descriptors;
use kvtier_sdk::wire::{
    BODY_BYTES_MAX, ClassId, Hello, KeyParts, OpenNamespace, Refusal, Reply, Request, ReservationId, Reserve,
    ReserveCode, Run, Text, VERSION, Zero, read_frame,
};

use crate::daemons::blocks::{SHAPE, manifest, namespace, namespace_of};

/// A connection.
pub struct Raw {
    stream: UnixStream,
    body: Vec<u8>,
    next: u64,
    descriptor: Option<OwnedFd>,
}

/// The introduction.
pub fn hello() -> Request<'static> {
    let client = Text::new("raw").expect("a short name");
    Request::Hello(Hello { version_min: VERSION, version_max: VERSION, reserved: Zero::BYTES, client })
}

/// The frame of a request with the given deadline in milliseconds.
pub fn frame(request: &Request<'_>, id: u64, deadline_ms: u32) -> Vec<u8> {
    let mut out = Vec::new();
    request.encode_frame(id, deadline_ms, &mut out).expect("it fits a frame");
    out
}

impl Raw {
    /// Connects, and says nothing yet.
    pub fn connect(socket: &Path) -> Raw {
        let stream = UnixStream::connect(socket).expect("the daemon accepts");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time limit");
        Raw { stream, body: Vec::new(), next: 0, descriptor: None }
    }

    /// Connects and introduces itself.
    pub fn introduced(socket: &Path) -> Raw {
        let mut raw = Raw::connect(socket);
        raw.call(&hello(), |reply| assert!(matches!(reply, Reply::Hello(_))));
        raw
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the daemon takes them");
    }

    /// Sends a request and does not wait for its answer.
    pub fn ask(&mut self, request: &Request<'_>, deadline_ms: u32) {
        self.next += 1;
        let frame = frame(request, self.next, deadline_ms);
        self.send(&frame);
    }

    /// The answer to the oldest question that has none yet: `Err` for a refusal.
    pub fn hear<T>(&mut self, take: impl FnOnce(Result<Reply<'_>, Refusal<'_>>) -> T) -> T {
        let mut reader = Descriptors::new(&self.stream);
        let header = read_frame(&mut reader, BODY_BYTES_MAX, &mut self.body).expect("a frame").expect("an answer");
        self.descriptor = reader.descriptor().or(self.descriptor.take());
        take(Reply::parse(&header, &self.body).expect("a sound answer"))
    }

    /// One call that is not refused.
    pub fn call<T>(&mut self, request: &Request<'_>, take: impl FnOnce(Reply<'_>) -> T) -> T {
        self.ask(request, 10_000);
        self.hear(|answer| take(answer.unwrap_or_else(|refusal| panic!("refused: {}", refusal.sentence()))))
    }

    /// False when the connection has ended.
    pub fn is_answered(&mut self, request: &Request<'_>) -> bool {
        self.next += 1;
        let frame = frame(request, self.next, 10_000);
        self.stream.write_all(&frame).is_ok()
            && matches!(read_frame(&mut &self.stream, BODY_BYTES_MAX, &mut self.body), Ok(Some(_)))
    }

    /// The last descriptor that came.
    pub fn descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptor.take()
    }

    /// Opens the namespace of [`manifest`].
    pub fn open(&mut self) -> KeyParts {
        self.open_as(TenantId::of_salt(None))
    }

    /// Opens that of a tenant.
    pub fn open_as(&mut self, tenant: TenantId) -> KeyParts {
        let open = OpenNamespace { tenant, manifest: manifest(), group: GroupId(0), shape: SHAPE };
        let class = self.call(&Request::OpenNamespace(Box::new(open)), |reply| match reply {
            Reply::OpenNamespace(opened) => opened.class,
            other => panic!("{other:?}"),
        });
        KeyParts { namespace: namespace_of(tenant), ..parts(class) }
    }

    /// Reserves blocks; returns what was granted.
    pub fn reserve(&mut self, parts: KeyParts, links: &[Link]) -> Vec<(ReservationId, u64)> {
        let hashes = hashes(links);
        let lineage = Lineage::of(SHAPE.form_map());
        self.call(&Request::Reserve(Reserve { parts, lineage, run: run(links, &hashes) }), |reply| match reply {
            Reply::Reserve(reserved) => reserved
                .answers
                .iter()
                .filter(|answer| answer.answer == ReserveCode::Reserved)
                .map(|answer| (answer.reservation, answer.staging_offset.get()))
                .collect(),
            other => panic!("{other:?}"),
        })
    }
}

/// What the keys of [`manifest`] have in common in this class.
pub fn parts(class: ClassId) -> KeyParts {
    let provenance = Provenance::EXACT;
    KeyParts { namespace: namespace(), provenance, class, group: GroupId(0), form: SHAPE.form_map() }
}

/// The hashes of blocks.
pub fn hashes(links: &[Link]) -> Vec<BlockHash> {
    links.iter().map(|link| link.hash).collect()
}

/// Blocks as a run.
pub fn run<'a>(links: &[Link], hashes: &'a [BlockHash]) -> Run<'a> {
    let first = links.first().expect("at least one block");
    Run::new(first.depth, first.parent, hashes).expect("few blocks")
}
