//! A connection without a client: frames as bytes, whole or not.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use cache_core::form::{Form, Provenance};
use cache_core::hash::{BlockHash, TenantId};
use cache_core::key::GroupId;
use cache_core::manifest::Manifest;
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use kvtier_sdk::socket::Descriptors;
use kvtier_sdk::wire::{
    AcceptId, Acquire, BODY_BYTES_MAX, Batch, Explain, FrameHeader, Hello, HelloReply, Hit, KeyParts, LeaseId, Lookup,
    OpenNamespace, Refusal, Release, Reply, Request, Run, Status, Tag, Text, VERSION, Zero,
};

use super::PATIENCE;

pub struct Raw {
    pub stream: UnixStream,
    next: u64,
    /// Of every request, in milliseconds; 0 for the daemon's.
    pub deadline_ms: u32,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub header: FrameHeader,
    pub body: Vec<u8>,
    pub descriptor: Option<OwnedFd>,
}

impl Answer {
    pub fn status(&self) -> Option<Status> {
        match Reply::parse(&self.header, &self.body).expect("the daemon answers in the protocol") {
            Ok(_) => None,
            Err(refusal) => Some(Refusal::status(&refusal)),
        }
    }

    pub fn reply(&self) -> Reply<'_> {
        match Reply::parse(&self.header, &self.body).expect("the daemon answers in the protocol") {
            Ok(reply) => reply,
            Err(refusal) => panic!("refused: {:?}: {}", refusal.status(), refusal.sentence()),
        }
    }
}

pub fn hello() -> Request<'static> {
    Request::Hello(Hello {
        version_min: VERSION,
        version_max: VERSION,
        reserved: Zero::BYTES,
        client: Text::new("raw").unwrap(),
    })
}

/// A header as anybody might send it.
pub fn header(magic: &[u8; 4], kind: u16, flags: u16, body_bytes: u32, status: u32, id: u64, reserved: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FrameHeader::BYTES);
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&flags.to_le_bytes());
    bytes.extend_from_slice(&body_bytes.to_le_bytes());
    bytes.extend_from_slice(&status.to_le_bytes());
    bytes.extend_from_slice(&id.to_le_bytes());
    bytes.extend_from_slice(&0u32.to_le_bytes());
    bytes.extend_from_slice(&reserved.to_le_bytes());
    bytes
}

/// A request of this kind with any body.
pub fn frame(kind: u16, id: u64, body: &[u8]) -> Vec<u8> {
    [header(b"kvt1", kind, 0, body.len() as u32, 0, id, 0), body.to_vec()].concat()
}

impl Raw {
    /// A connection that has not said anything.
    pub fn silent(socket: &Path) -> Raw {
        Raw::try_silent(socket).unwrap()
    }

    pub fn try_silent(socket: &Path) -> io::Result<Raw> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Raw { stream, next: 0, deadline_ms: 0 })
    }

    /// One that has introduced itself.
    pub fn open(socket: &Path) -> (Raw, HelloReply, OwnedFd) {
        let mut raw = Raw::silent(socket);
        let answer = raw.call(&hello()).expect("the daemon answers");
        let Reply::Hello(reply) = answer.reply() else { panic!("{answer:?}") };
        let descriptor = answer.descriptor.expect("staging memory comes along");
        (raw, reply, descriptor)
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub fn request(&mut self, request: &Request<'_>) -> io::Result<u64> {
        self.next += 1;
        let mut out = Vec::new();
        request.encode_frame(self.next, self.deadline_ms, &mut out).unwrap();
        self.send(&out)?;
        Ok(self.next)
    }

    /// The next answer; `None` when the daemon has hung up.
    pub fn answer(&mut self) -> Option<Answer> {
        let mut reader = Descriptors::new(&self.stream);
        let mut bytes = [0; FrameHeader::BYTES];
        if let Err(error) = reader.read_exact(&mut bytes) {
            let hung_up = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
            assert!(hung_up.contains(&error.kind()), "the daemon neither answers nor hangs up: {error}");
            return None;
        }
        let header = FrameHeader::parse(&bytes, BODY_BYTES_MAX).expect("the daemon answers in frames");
        let mut body = vec![0; header.body_bytes as usize];
        reader.read_exact(&mut body).expect("a whole answer");
        Some(Answer { header, body, descriptor: reader.descriptor() })
    }

    pub fn call(&mut self, request: &Request<'_>) -> Option<Answer> {
        let id = self.request(request).ok()?;
        let answer = self.answer()?;
        assert_eq!(answer.header.request_id, id);
        Some(answer)
    }

    /// True when the daemon has hung up; waits for it.
    pub fn is_over(&mut self) -> bool {
        while let Some(answer) = self.answer() {
            assert!(answer.status().is_some(), "it was answered: {answer:?}");
        }
        true
    }
}

/// The shape that a manifest says of its first group.
pub fn shape_of(manifest: &Manifest) -> BlockShape {
    let group = &manifest.groups[0];
    BlockShape {
        layers: group.layers.len() as u32,
        kv_heads: group.kv_heads,
        head_dim: group.head_dim,
        block_tokens: manifest.block_tokens,
        form: Form::Raw16,
    }
}

impl Raw {
    /// Opens a namespace; returns what the keys of its exact `raw16` blocks have in common.
    pub fn open_namespace(&mut self, manifest: &Manifest, tenant: TenantId) -> KeyParts {
        let shape = shape_of(manifest);
        let open = OpenNamespace { tenant, manifest: manifest.clone(), group: GroupId(0), shape };
        let answer = self.call(&Request::OpenNamespace(Box::new(open))).expect("the daemon answers");
        let Reply::OpenNamespace(opened) = answer.reply() else { panic!("{answer:?}") };
        KeyParts {
            namespace: opened.namespace,
            provenance: Provenance::EXACT,
            class: opened.class,
            group: GroupId(0),
            form: shape.form_map(),
        }
    }

    /// Looks each block up by itself, all requests sent before the answers are read; returns how many are there and each reason of a miss.
    pub fn lookup_each(&mut self, parts: KeyParts, hashes: &[BlockHash]) -> (usize, BTreeSet<MissReason>) {
        let (mut found, mut reasons) = (0, BTreeSet::new());
        for hashes in hashes.chunks(256) {
            let mut out = Vec::new();
            for hash in hashes {
                self.next += 1;
                let hashes = Batch::new(std::slice::from_ref(hash)).unwrap();
                let request = Request::Lookup(Lookup { parts, accept: AcceptId::Exact, hashes });
                request.encode_frame(self.next, 0, &mut out).unwrap();
            }
            self.send(&out).unwrap();
            for _ in hashes {
                let answer = self.answer().expect("each lookup is answered");
                let Reply::Lookup(reply) = answer.reply() else { panic!("{answer:?}") };
                found += reply.tiers.len();
                reasons.extend(reply.miss);
            }
        }
        (found, reasons)
    }

    /// Acquires a run from block 0 on under the name of a request; leases are given back at once. Returns hits and the reason of the miss.
    pub fn acquire_as(&mut self, tag: &str, parts: KeyParts, hashes: &[BlockHash]) -> (usize, Option<MissReason>) {
        self.tag(tag);
        let (hits, miss) = self.acquire(parts, hashes);
        let leases: Vec<_> = hits.iter().map(|hit| hit.lease).collect();
        self.release(&leases);
        (hits.len(), miss)
    }

    /// Acquires a run from block 0 on.
    pub fn acquire(&mut self, parts: KeyParts, hashes: &[BlockHash]) -> (Vec<Hit>, Option<MissReason>) {
        let run = Run::new(0, None, hashes).unwrap();
        let answer = self.call(&Request::Acquire(Acquire { parts, accept: AcceptId::Exact, run })).unwrap();
        let Reply::Acquire(reply) = answer.reply() else { panic!("{answer:?}") };
        (reply.hits.to_vec(), reply.miss)
    }

    pub fn tag(&mut self, tag: &str) {
        let request = Request::Tag(Tag { request: Text::new(tag).unwrap() });
        assert!(matches!(self.call(&request).unwrap().reply(), Reply::Tag(_)));
    }

    /// Leases that ended, and unknown ones.
    pub fn release(&mut self, leases: &[LeaseId]) -> (u32, u32) {
        let answer = self.call(&Request::Release(Release { leases: Batch::new(leases).unwrap() })).unwrap();
        let Reply::Release(reply) = answer.reply() else { panic!("{answer:?}") };
        (reply.released, reply.unknown)
    }

    /// Why a block is there or not.
    pub fn explain(&mut self, parts: KeyParts, hash: BlockHash) -> serde_json::Value {
        let answer = self.call(&Request::Explain(Explain::Block { parts, hash })).unwrap();
        let Reply::Explain(text) = answer.reply() else { panic!("{answer:?}") };
        serde_json::from_str(text.0).unwrap()
    }
}
