//! The wire protocol: bytes that never change, and what is refused. What comes back of what was sent is in `roundtrip`, what is said of memory and blocks in
//! `shapes`.

use std::collections::BTreeSet;
use std::io::{self, Read};

use cache_core::chain::Link;
use cache_core::form::{Accept, Form, FormMapId, Provenance};
use cache_core::hash::{BlockHash, Namespace, TenantId};
use cache_core::key::GroupId;
use cache_core::miss::MissReason;
use cache_core::units::Tier;
use kvtier_sdk::wire::*;
use samples::sample;
use sha2::{Digest, Sha256};

mod roundtrip;
#[path = "../common/wire_samples.rs"]
mod samples;
mod shapes;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header(frame: &[u8]) -> (FrameHeader, &[u8]) {
    let (frame, rest) = Frame::parse(frame, BODY_BYTES_MAX).unwrap().unwrap();
    assert!(rest.is_empty());
    (frame.header, frame.body)
}

/// `golden/wire_frames.py` made them with Python's `struct` alone, from `docs/protocol.md`.
#[test]
fn every_frame_has_the_bytes_that_the_documentation_says() {
    let golden: Vec<&str> = include_str!("../golden/wire_frames.txt").lines().collect();
    let parts = sample();
    let frames = parts.frames();
    assert_eq!(frames.len(), golden.len());
    for (frame, line) in frames.iter().zip(golden) {
        let (name, bytes) = line.split_once(' ').unwrap();
        assert_eq!(hex(frame), bytes, "{name}");
    }
}

#[test]
fn numbers_that_stand_for_something_never_change() {
    let kinds: Vec<_> = Kind::ALL.iter().map(|kind| (kind.number(), kind.name())).collect();
    let expected = [
        "hello",
        "open_namespace",
        "map_extent",
        "lookup",
        "acquire",
        "release",
        "reserve",
        "commit",
        "abort",
        "await",
        "prefetch",
        "pin",
        "unpin",
        "delete_namespace",
        "delete_tenant",
        "stats",
        "explain",
        "drain",
        "report",
        "tag",
        "forgo",
        "stage",
    ];
    assert_eq!(kinds, (1..).zip(expected).collect::<Vec<_>>());
    assert_eq!(Kind::of_number(5), Ok(Kind::Acquire));
    assert_eq!([0, 23].map(Kind::of_number), [0, 23].map(|found| Err(WireError::Kind { found })));

    let statuses = [
        Status::BadFrame,
        Status::BadVersion,
        Status::Denied,
        Status::UnknownNamespace,
        Status::UnknownLease,
        Status::UnknownReservation,
        Status::Full,
        Status::Quota,
        Status::Check,
        Status::Deadline,
        Status::Draining,
        Status::Recovering,
        Status::TooLarge,
        Status::Internal,
    ];
    assert_eq!(statuses.map(Status::number), std::array::from_fn(|index| index as u32 + 1));
    assert_eq!([1, 14].map(Status::of_number), [Ok(Status::BadFrame), Ok(Status::Internal)]);
    assert_eq!([0, 15].map(Status::of_number), [0, 15].map(|found| Err(WireError::Status { found })));

    let misses = [
        MissReason::NeverStored,
        MissReason::Evicted,
        MissReason::Namespace,
        MissReason::FailedCheck,
        MissReason::Provenance,
        MissReason::LeaseLost,
        MissReason::Deadline,
        MissReason::NotWorthIt,
        MissReason::Quota,
        MissReason::Recovering,
        MissReason::TierOffline,
    ];
    assert_eq!(misses.map(miss_number), std::array::from_fn(|index| index as u32 + 1));
    assert_eq!(misses.map(|reason| miss_of_number(miss_number(reason))), misses.map(Some));
    assert_eq!([0, 12].map(miss_of_number), [None, None]);

    let tiers = [Tier::Device, Tier::Host, Tier::Disk, Tier::Remote];
    assert_eq!(tiers.map(|tier| TierCode::from(tier) as u8), [1, 2, 3, 4]);
    assert_eq!(tiers.map(|tier| Tier::from(TierCode::from(tier))), tiers);
    let answers = [ReserveCode::Reserved, ReserveCode::Present, ReserveCode::PendingElsewhere, ReserveCode::Full];
    assert_eq!(answers.map(|answer| answer as u8), [1, 2, 3, 4]);
    let answers =
        [CommitCode::Inserted, CommitCode::Present, CommitCode::FailedCheck, CommitCode::Unknown, CommitCode::Full];
    assert_eq!(answers.map(|answer| answer as u8), [1, 2, 3, 4, 5]);
    assert_eq!(AcceptId::of(Accept::Exact), Some(AcceptId::Exact));
    assert_eq!(AcceptId::of(Accept::AtLeast(Form::I8h)), Some(AcceptId::AtLeast(FormMapId(4))));
}

#[test]
fn a_manifest_stands_there_as_its_namespace_hashes_it() {
    let field = |bytes: &[u8]| [&(bytes.len() as u64).to_le_bytes(), bytes].concat();
    let (manifest, tenant) = (sample().manifest, TenantId::of_salt(Some("salt")));
    let mut bytes = field(b"kvtier.namespace.v1");
    manifest.encode(&mut bytes);
    bytes.extend(field(tenant.bytes()));
    assert_eq!(Namespace(Sha256::digest(bytes).into()), manifest.namespace(tenant));
}

#[test]
fn headers_that_are_none_are_refused_by_what_is_wrong() {
    let frame = &sample().frames()[3];
    let spoilt = |position: usize, byte: u8| {
        let mut bytes: [u8; FrameHeader::BYTES] = frame[..FrameHeader::BYTES].try_into().unwrap();
        bytes[position] = byte;
        FrameHeader::parse(&bytes, BODY_BYTES_MAX).unwrap_err()
    };
    assert_eq!(spoilt(3, b'2'), WireError::Magic { found: *b"kvt2" });
    assert_eq!(spoilt(6, 2), WireError::Flags { found: 2 });
    assert_eq!(spoilt(7, 1), WireError::Flags { found: 256 });
    assert_eq!(spoilt(13, 1), WireError::NotZero { field: "status", found: 256 });
    assert_eq!(spoilt(6, 1), WireError::NotZero { field: "deadline_ms", found: 250 });
    assert_eq!(spoilt(28, 9), WireError::NotZero { field: "reserved", found: 9 });
    assert!(matches!(spoilt(11, 255), WireError::BodyLength { limit_bytes: BODY_BYTES_MAX, .. }));
}

#[test]
fn a_body_may_be_as_long_as_the_limit_and_not_a_byte_longer() {
    for (limit, bytes, is_taken) in [
        (BODY_BYTES_BEFORE_HELLO, 64 << 10, true),
        (BODY_BYTES_BEFORE_HELLO, (64 << 10) + 1, false),
        (BODY_BYTES_MAX, 1 << 20, true),
        (BODY_BYTES_MAX, (1 << 20) + 1, false),
        (BODY_BYTES_MAX, u32::MAX, false),
    ] {
        let header =
            FrameHeader { kind: 1, is_reply: false, body_bytes: bytes, status: 0, request_id: 1, deadline_ms: 0 };
        let parsed = FrameHeader::parse(&header.encode(), limit);
        let refused = WireError::BodyLength { found_bytes: u64::from(bytes), limit_bytes: limit };
        assert_eq!(parsed, if is_taken { Ok(header) } else { Err(refused) });
    }
    let json = "x".repeat((1 << 20) + 1);
    let mut out = vec![1, 2, 3];
    Reply::Stats(Json(&json[1..])).encode_frame(1, &mut out).unwrap();
    assert_eq!(out.len(), 3 + FrameHeader::BYTES + (1 << 20));
    out.truncate(3);
    let refused = WireError::BodyLength { found_bytes: (1 << 20) + 1, limit_bytes: BODY_BYTES_MAX };
    assert_eq!(Reply::Stats(Json(&json)).encode_frame(1, &mut out), Err(refused));
    assert_eq!(out, [1, 2, 3]);
}

#[test]
fn a_request_is_no_reply_and_a_reply_no_request() {
    let (parts, frames) = (sample(), sample().frames());
    let (request, body) = header(&frames[0]);
    assert_eq!(Reply::parse(&request, body), Err(WireError::Direction { is_reply: false }));
    let (reply, body) = header(&frames[parts.requests().len()]);
    assert_eq!(Request::parse(&reply, body), Err(WireError::Direction { is_reply: true }));
    let unknown = FrameHeader { kind: 999, ..request };
    assert_eq!(Request::parse(&unknown, &[]), Err(WireError::Kind { found: 999 }));
    let unknown = FrameHeader { status: 999, ..reply };
    assert_eq!(Reply::parse(&unknown, &[]), Err(WireError::Status { found: 999 }));
}

#[test]
fn a_refusal_tells_status_and_a_sentence_cut_between_characters() {
    let sentence = format!("{}ä and more", "x".repeat(511));
    for (given, expected) in [("take it: there is no room", "take it: there is no room"), (&sentence, &sentence[..511])]
    {
        let mut out = Vec::new();
        Refusal::new(Status::Full, given).encode_frame(7, 42, &mut out);
        let (header, body) = header(&out);
        assert_eq!((header.kind, header.request_id, header.status), (7, 42, 7));
        let refusal = Reply::parse(&header, body).unwrap().unwrap_err();
        assert_eq!((refusal.status(), refusal.sentence()), (Status::Full, expected));
        let long = Reply::parse(&header, &[b'x'; 513]);
        assert_eq!(long, Err(WireError::TooMany { field: "refusal", found: 513, most: 512 }));
        assert_eq!(Reply::parse(&header, &[0xff]), Err(WireError::Text { field: "refusal" }));
    }
}

/// A stream that gives a byte at a time, with interruptions.
struct Dribble<'a>(&'a [u8], bool);

impl Read for Dribble<'_> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let bytes = self.0.len().min(target.len()).min(1);
        self.0.read(&mut target[..bytes])
    }
}

#[test]
fn frames_come_whole_out_of_a_stream_that_dribbles() {
    let frames = sample().frames();
    let bytes = frames.concat();
    let mut stream = Dribble(&bytes, false);
    let mut body = Vec::new();
    for frame in &frames {
        let header = read_frame(&mut stream, BODY_BYTES_MAX, &mut body).unwrap().unwrap();
        assert_eq!([&header.encode(), body.as_slice()].concat(), *frame);
    }
    assert!(read_frame(&mut stream, BODY_BYTES_MAX, &mut body).unwrap().is_none());

    for end in 1..frames[0].len() {
        let ended = read_frame(&mut &frames[0][..end], BODY_BYTES_MAX, &mut body);
        assert!(matches!(ended, Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof), "{end}");
        assert_eq!(Frame::parse(&frames[0][..end], BODY_BYTES_MAX), Ok(None));
    }
    let other = read_frame(&mut &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], BODY_BYTES_MAX, &mut body);
    assert!(matches!(other, Err(ReadError::Wire(WireError::Magic { found })) if found == *b"GET "));
}

#[test]
fn a_stated_length_above_the_limit_allocates_nothing() {
    let header =
        FrameHeader { kind: 1, is_reply: false, body_bytes: u32::MAX, status: 0, request_id: 1, deadline_ms: 0 };
    let mut body = Vec::new();
    let read = read_frame(&mut &header.encode()[..], BODY_BYTES_BEFORE_HELLO, &mut body);
    assert!(matches!(read, Err(ReadError::Wire(WireError::BodyLength { .. }))));
    assert_eq!(body.capacity(), 0);
}

#[test]
fn batches_end_at_their_limit() {
    let hashes = vec![BlockHash([9; 32]); BATCH_MAX + 1];
    let too_many = WireError::TooMany { field: "batch", found: 1025, most: 1024 };
    assert_eq!(Batch::new(&hashes), Err(too_many));
    assert_eq!(Run::new(0, None, &hashes), Err(too_many));
    let mut body = 1025u32.to_le_bytes().to_vec();
    body.extend([0; 8 * 1025]);
    let refused = WireError::TooMany { field: "Release.leases", found: 1025, most: 1024 };
    assert_eq!(Release::decode(&body), Err(refused));
    body[..4].copy_from_slice(&1024u32.to_le_bytes());
    assert_eq!(Release::decode(&body), Err(WireError::Trailing { bytes: 8 }));
    assert_eq!(Release::decode(&body[..body.len() - 8]).unwrap().leases.len(), 1024);
    assert_eq!(Release::decode(&body[..body.len() - 9]), Err(WireError::Truncated { field: "Release.leases" }));
}

#[test]
fn keys_are_read_where_they_lie() {
    let (parts, frames) = (sample(), sample().frames());
    for frame in &frames[3..5] {
        let (header, body) = header(frame);
        let hashes = match Request::parse(&header, body).unwrap() {
            Request::Lookup(lookup) => lookup.hashes.items(),
            Request::Acquire(acquire) => acquire.run.hashes(),
            other => panic!("{other:?}"),
        };
        assert_eq!(hashes, parts.hashes);
        assert!(frame.as_ptr_range().contains(&hashes.as_ptr().cast()));
    }
}

#[test]
fn a_run_knows_the_place_of_each_block() {
    let hashes = [4, 5, 6].map(|byte| BlockHash([byte; 32]));
    let parent = BlockHash([3; 32]);
    let links: Vec<Link> = Run::new(9, Some(parent), &hashes).unwrap().links().collect();
    let expected: Vec<Link> = (0..3)
        .map(|index| Link {
            hash: hashes[index],
            parent: Some(if index == 0 { parent } else { hashes[index - 1] }),
            depth: 9 + index as u32,
        })
        .collect();
    assert_eq!(links, expected);
    assert_eq!(Run::new(0, None, &hashes).unwrap().links().next().unwrap().parent, None);
    for (depth, parent) in [(0, Some(parent)), (1, None), (u32::MAX - 2, Some(parent))] {
        assert!(matches!(Run::new(depth, parent, &hashes), Err(WireError::Contradiction { .. })), "{depth}");
    }
    let body = [&[0; 4][..], &[1; 32], &[0; 4]].concat();
    assert!(matches!(Run::decode(&body), Err(WireError::Contradiction { .. })), "block 0 with a parent");
}

#[test]
fn names_have_no_control_characters_and_an_end() {
    assert!(Text::<64>::new(&"x".repeat(64)).is_ok());
    assert_eq!(Text::<64>::new(&"x".repeat(65)), Err(WireError::TooMany { field: "text", found: 65, most: 64 }));
    assert_eq!(Text::<64>::new("a\nb"), Err(WireError::Text { field: "text" }));
    let hello = |name: &[u8]| {
        let body = [&[1, 0, 1, 0, 0, 0, 0, 0], &(name.len() as u32).to_le_bytes()[..], name].concat();
        Hello::decode(&body).map(|hello| hello.version())
    };
    assert_eq!(hello(b"engine"), Ok(Some(1)));
    assert_eq!(hello(b"\x1b[2J"), Err(WireError::Text { field: "Hello.client" }));
    assert_eq!(hello(b"\xff"), Err(WireError::Text { field: "Hello.client" }));
}

#[test]
fn the_version_is_one_that_both_sides_speak() {
    let version = |version_min, version_max| {
        Hello { version_min, version_max, reserved: Zero::BYTES, client: Text::new("").unwrap() }.version()
    };
    assert_eq!([version(1, 1), version(0, 9)], [Some(1), Some(1)]);
    assert_eq!([version(2, 9), version(0, 0), version(9, 0)], [None, None, None]);
}

#[test]
fn reserved_bytes_are_zero_and_codes_are_known() {
    let parts = sample();
    let spoilt = |reply: Reply<'_>, position: usize, byte: u8| {
        let mut frame = Vec::new();
        reply.encode_frame(1, &mut frame).unwrap();
        let (header, _) = header(&frame);
        let mut body = frame[FrameHeader::BYTES..].to_vec();
        body[position] = byte;
        Reply::parse(&header, &body).map(|_| ()).unwrap_err()
    };
    let replies = parts.replies();
    let value = |field| WireError::Value { field };
    assert_eq!(spoilt(replies[0].clone(), 3, 1), value("HelloReply.reserved"));
    assert_eq!(spoilt(replies[3].clone(), 0, 12), value("LookupReply.miss"));
    assert_eq!(spoilt(replies[3].clone(), 8, 0), value("LookupReply.tiers"));
    assert_eq!(spoilt(replies[3].clone(), 11, 5), value("LookupReply.tiers"));
    assert_eq!(spoilt(replies[4].clone(), 8 + 44, 5), value("AcquireReply.hits"));
    assert_eq!(spoilt(replies[4].clone(), 8 + 47, 1), value("AcquireReply.hits"));
    assert_eq!(spoilt(replies[6].clone(), 4 + 16, 5), value("ReserveReply.answers"));
    assert_eq!(spoilt(replies[6].clone(), 4 + 23, 1), value("ReserveReply.answers"));
    assert_eq!(spoilt(replies[7].clone(), 4, 0), value("CommitReply.answers"));
}

#[test]
fn errors_read_after_failed_to() {
    let errors = [
        WireError::Magic { found: *b"GET " },
        WireError::Direction { is_reply: true },
        WireError::Truncated { field: "Run.parent" },
        WireError::BodyLength { found_bytes: 9, limit_bytes: 8 },
    ];
    let expected = [
        "read a frame: it begins with [47, 45, 54, 20], not with `kvt1`",
        "read a frame: a request is due here",
        "read `Run.parent`: the body ends inside it",
        "take a body of 9 bytes: 8 are the most",
    ];
    assert_eq!(errors.map(|error| error.to_string()), expected);
}

#[test]
fn the_samples_are_of_every_kind() {
    let parts = sample();
    let requests: BTreeSet<Kind> = parts.requests().iter().map(Request::kind).collect();
    let replies: BTreeSet<Kind> = parts.replies().iter().map(Reply::kind).collect();
    assert!(requests.iter().eq(Kind::ALL) && replies.iter().eq(Kind::ALL));
    let key = KeyParts {
        namespace: Namespace([1; 32]),
        provenance: Provenance(2),
        class: ClassId(3),
        group: GroupId(4),
        form: FormMapId(5),
    }
    .key(BlockHash([6; 32]));
    assert_eq!((key.namespace, key.hash, key.group), (Namespace([1; 32]), BlockHash([6; 32]), GroupId(4)));
    assert_eq!((key.form, key.provenance), (FormMapId(5), Provenance(2)));
}
