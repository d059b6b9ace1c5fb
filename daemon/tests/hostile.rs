//! Clients that break the protocol, each in every way: refused, counted under the right name, and harmless to those beside them.

mod rig;

use std::io::{Read, Write};
use std::time::Duration;

use cache_core::chain::Link;
use cache_core::hash::BlockHash;
use cache_core::key::GroupId;
use cache_core::units::{Generation, SlotIndex};
use kvtier_daemon::config::Config;
use kvtier_sdk::wire::*;
use rig::honest::Honest;
use rig::raw::{Raw, frame, header, hello};
use rig::*;
use serde_json::Value;

fn counted(stats: &Value, list: &str, name: &str) -> u64 {
    let list = if list == "rejected" { &stats["clients"]["rejected"] } else { &stats[list] };
    list[name].as_u64().unwrap()
}

/// A connection before its introduction, or after it.
fn connect(daemon: &Daemon, is_introduced: bool) -> Raw {
    if is_introduced { Raw::open(&daemon.socket).0 } else { Raw::silent(&daemon.socket) }
}

#[test]
fn headers_that_are_none_end_their_connection() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |_| {});
    let honest = Honest::beside(&daemon.socket);
    let mut expected = (0, 0);
    for is_introduced in [false, true] {
        let limit = if is_introduced { BODY_BYTES_MAX } else { BODY_BYTES_BEFORE_HELLO };
        let mut bad = vec![
            header(b"kvt2", 1, 0, 0, 0, 1, 0),
            header(&[0; 4], 0, 0, 0, 0, 0, 0),
            header(&[0xff; 4], 0xffff, 0xffff, u32::MAX, u32::MAX, u64::MAX, u32::MAX),
            header(b"kvt1", 1, 0, 0, 0, 1, 1),
            header(b"kvt1", 1, 0, 0, 7, 1, 0),
            b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        ];
        bad.extend((1..16).map(|bit| header(b"kvt1", 1, 1 << bit, 0, 0, 1, 0)));
        let long = [limit + 1, 1 << 30, u32::MAX].map(|bytes| header(b"kvt1", 1, 0, bytes, 0, 1, 0));
        for (bytes, is_long) in bad.iter().map(|bytes| (bytes, false)).chain(long.iter().map(|bytes| (bytes, true))) {
            let mut raw = connect(&daemon, is_introduced);
            raw.send(bytes).unwrap();
            let told = raw.answer().expect("it is told why");
            assert_eq!((told.header.kind, told.header.request_id), (0, 0));
            assert_eq!(told.status(), Some(if is_long { Status::TooLarge } else { Status::BadFrame }), "{bytes:02x?}");
            assert!(raw.is_over());
            expected.0 += u64::from(!is_long);
            expected.1 += u64::from(is_long);
        }
    }
    let stats = daemon.settles("ends", |stats| counted(stats, "rejected", "protocol") == expected.0 + expected.1);
    assert_eq!(counted(&stats, "protocol_errors", "bad_frame"), expected.0);
    assert_eq!(counted(&stats, "protocol_errors", "too_large"), expected.1);
    honest.end();
    daemon.end();
}

/// One request of each kind that a client could have sent.
fn requests(parts: KeyParts) -> Vec<Vec<u8>> {
    let hashes = [BlockHash([9; 32])];
    let batch = Batch::new(&hashes).unwrap();
    let run = Run::new(0, None, &hashes).unwrap();
    let (accept, lineage) = (AcceptId::Exact, cache_core::form::Lineage::of(parts.form));
    let leases = [LeaseId(7.into())];
    let reservations = [ReservationId(7.into())];
    let open = OpenNamespace { tenant: tenant("x"), manifest: manifest(), group: GroupId(0), shape: SHAPE };
    let report = Report {
        class: parts.class,
        slot: SlotIndex(0),
        generation: Generation(2),
        reason: cache_core::miss::MissReason::LeaseLost,
    };
    let requests = [
        hello(),
        Request::OpenNamespace(Box::new(open)),
        Request::MapExtent(MapExtent { class: parts.class, extent: 0 }),
        Request::Lookup(Lookup { parts, accept, hashes: batch }),
        Request::Acquire(Acquire { parts, accept, run }),
        Request::Release(Release { leases: Batch::new(&leases).unwrap() }),
        Request::Reserve(Reserve { parts, lineage, run }),
        Request::Commit(Commit { reservations: Batch::new(&reservations).unwrap() }),
        Request::Abort(Abort { reservations: Batch::new(&reservations).unwrap() }),
        Request::Await(Await { parts, hash: hashes[0] }),
        Request::Prefetch(Acquire { parts, accept, run }),
        Request::Pin(Pin { parts, accept, ttl_ms: 1, run }),
        Request::Unpin(Lookup { parts, accept, hashes: batch }),
        Request::DeleteNamespace(DeleteNamespace { namespace: parts.namespace }),
        Request::DeleteTenant(DeleteTenant { tenant: tenant("x") }),
        Request::Stats(Empty),
        Request::Explain(Explain::Block { parts, hash: hashes[0] }),
        Request::Drain(Empty),
        Request::Report(report),
        Request::Tag(Tag { request: Text::new("x").unwrap() }),
        Request::Forgo(Forgo { parts, run }),
        Request::Stage(Stage { least_bytes: u64::MAX }),
    ];
    let encode = |request: &Request<'_>| {
        let mut out = Vec::new();
        request.encode_frame(5, 0, &mut out).unwrap();
        out
    };
    let encoded: Vec<_> = requests.iter().map(encode).collect();
    assert_eq!(encoded.len(), Kind::ALL.len());
    encoded
}

#[test]
fn bodies_that_are_none_are_refused_and_the_connection_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |_| {});
    let honest = Honest::beside(&daemon.socket);
    let (mut raw, ..) = Raw::open(&daemon.socket);
    let parts = raw.open_namespace(&manifest(), tenant("a"));
    // The first number that no kind has, too.
    let first_free = Kind::ALL.iter().map(|kind| kind.number()).max().unwrap() + 1;
    let mut bad: Vec<Vec<u8>> = [0, first_free, 999, u16::MAX].map(|kind| frame(kind, 5, &[])).to_vec();
    for request in requests(parts) {
        let (kind, body) = (u16::from_le_bytes([request[4], request[5]]), &request[FrameHeader::BYTES..]);
        bad.push(frame(kind, 5, &[body, &[0]].concat()));
        if let Some((_, shorter)) = body.split_last() {
            bad.push(frame(kind, 5, &body[..shorter.len()]));
            bad.push(frame(kind, 5, &[]));
        }
        // A reply where a request is due.
        bad.push([header(b"kvt1", kind, 1, body.len() as u32, 0, 5, 0), body.to_vec()].concat());
        // As long as may be, and nothing in it.
        bad.push(frame(kind, 5, &vec![0; BODY_BYTES_MAX as usize]));
        bad.push(frame(kind, 5, &vec![0xff; BODY_BYTES_MAX as usize]));
    }
    // Introduced once more.
    bad.push(requests(parts)[0].clone());
    for bytes in &bad {
        raw.send(bytes).unwrap();
        let answer = raw.answer().expect("the connection goes on");
        assert_eq!((answer.status(), answer.header.request_id), (Some(Status::BadFrame), 5), "{:02x?}", &bytes[..6]);
    }
    let stats = daemon.stats();
    assert_eq!(counted(&stats, "protocol_errors", "bad_frame"), bad.len() as u64);
    // One number for several requests: each is answered under it.
    for _ in 0..3 {
        raw.send(&frame(Kind::Stats.number(), 5, &[])).unwrap();
    }
    for _ in 0..3 {
        let answer = raw.answer().unwrap();
        assert!(matches!(answer.reply(), Reply::Stats(_)) && answer.header.request_id == 5);
    }
    honest.end();
    daemon.end();
}

#[test]
fn before_hello_nothing_is_listened_to() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |_| {});
    let honest = Honest::beside(&daemon.socket);
    let (mut raw, ..) = Raw::open(&daemon.socket);
    let parts = raw.open_namespace(&manifest(), tenant("honest"));
    for request in &requests(parts)[1..] {
        let mut raw = Raw::silent(&daemon.socket);
        raw.send(request).unwrap();
        assert_eq!(raw.answer().unwrap().status(), Some(Status::BadFrame));
        assert!(raw.is_over());
    }
    let early = Kind::ALL.len() as u64 - 1;
    // Versions, and an introduction that is none.
    let versions = Hello { version_min: 2, version_max: 9, reserved: Zero::BYTES, client: Text::new("").unwrap() };
    let mut raw = Raw::silent(&daemon.socket);
    assert_eq!(raw.call(&Request::Hello(versions)).unwrap().status(), Some(Status::BadVersion));
    assert!(raw.is_over());
    let mut raw = Raw::silent(&daemon.socket);
    raw.send(&frame(1, 1, &[0; 3])).unwrap();
    assert_eq!(raw.answer().unwrap().status(), Some(Status::BadFrame));
    assert!(raw.is_over());
    let stats = daemon.settles("ends", |stats| counted(stats, "rejected", "protocol") == early + 2);
    let errors = ["no_hello", "bad_version", "bad_frame"].map(|name| counted(&stats, "protocol_errors", name));
    assert_eq!(errors, [early, 1, 1]);
    assert_eq!(stats["state"], "ready", "a drain was not listened to");
    honest.end();
    daemon.end();
}

/// Sends a byte now and then, until the daemon hangs up.
fn drip(mut raw: Raw, bytes: Vec<u8>) {
    for byte in bytes {
        if raw.send(&[byte]).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the daemon waits for ever");
}

#[test]
fn slow_senders_get_no_more_time_than_silent_ones() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |config| config.hello_timeout_ms = 400);
    let honest = Honest::beside(&daemon.socket);
    let silent: Vec<Raw> = (0..8).map(|_| Raw::silent(&daemon.socket)).collect();
    let long = frame(1, 1, &[0; 60_000]);
    let slow: Vec<_> = (0..16)
        .map(|number| {
            let (raw, bytes) = (connect(&daemon, number % 2 == 1), long.clone());
            std::thread::spawn(move || drip(raw, bytes))
        })
        .collect();
    // Half a header, and then nothing.
    let mut half: Vec<Raw> = [false, true].map(|is_introduced| connect(&daemon, is_introduced)).into();
    half.iter_mut().for_each(|raw| raw.send(&long[..10]).unwrap());
    slow.into_iter().for_each(|slow| slow.join().unwrap());
    for mut raw in silent.into_iter().chain(half) {
        assert!(raw.is_over());
    }
    daemon.settles("ends", |stats| counted(stats, "rejected", "slow") == 26 && stats["clients"]["count"] == 1);
    honest.end();
    daemon.end();
}

#[test]
fn receivers_that_do_not_read_are_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |_| {});
    let honest = Honest::beside(&daemon.socket);
    // Half of them read nothing, half a byte now and then.
    let receivers: Vec<_> = (0..8)
        .map(|number| {
            let (mut raw, ..) = Raw::open(&daemon.socket);
            std::thread::spawn(move || {
                raw.stream.set_nonblocking(true).unwrap();
                let request = frame(Kind::Stats.number(), 5, &[]);
                while raw.send(&request).is_ok() {}
                raw.stream.set_nonblocking(false).unwrap();
                until("hanging up", || {
                    if number % 2 == 0 {
                        let _ = raw.stream.read(&mut [0]);
                    }
                    // A peer that has hung up cannot be written to.
                    raw.stream.set_nonblocking(true).unwrap();
                    let written = raw.stream.write(&[0]);
                    raw.stream.set_nonblocking(false).unwrap();
                    written.is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
                });
            })
        })
        .collect();
    receivers.into_iter().for_each(|receiver| receiver.join().unwrap());
    daemon.settles("ends", |stats| counted(stats, "rejected", "not_reading") == 8 && stats["clients"]["count"] == 1);
    honest.end();
    daemon.end();
}

#[test]
fn leases_and_reservations_of_others_are_nobodys() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |_| {});
    let honest = Honest::beside(&daemon.socket);
    let client = daemon.client();
    let namespace = client.name(&manifest(), tenant("a"));
    let links = links(namespace, 4);
    put_all(&client, namespace, &links[..2]);
    let hashes: Vec<BlockHash> = links.iter().map(|link| link.hash).collect();
    let [(mut owner, ..), (mut thief, ..)] = [Raw::open(&daemon.socket), Raw::open(&daemon.socket)];
    let parts = owner.open_namespace(&manifest(), tenant("a"));
    let (hits, _) = owner.acquire(parts, &hashes[..2]);
    let leases: Vec<LeaseId> = hits.iter().map(|hit| hit.lease).collect();
    let numbers = |numbers: &[u64]| numbers.iter().map(|number| LeaseId((*number).into())).collect::<Vec<_>>();
    let forged = [leases.clone(), numbers(&[0, 1, 2, 3, u64::MAX])].concat();
    assert_eq!(thief.release(&forged), (0, 7));
    assert_eq!(daemon.stats()["leases"]["count"].as_u64().map(|count| count >= 2), Some(true));
    // Twice in one call, and then once more.
    assert_eq!(owner.release(&[leases[0], leases[0]]), (1, 1));
    assert_eq!(owner.release(&leases), (1, 1));
    assert_eq!(counted(&daemon.stats(), "protocol_errors", "unknown_lease"), 9);

    let run = Run::new(2, Some(hashes[1]), &hashes[2..]).unwrap();
    let lineage = cache_core::form::Lineage::of(parts.form);
    let answer = owner.call(&Request::Reserve(Reserve { parts, lineage, run })).unwrap();
    let Reply::Reserve(reserved) = answer.reply() else { panic!("{answer:?}") };
    let own: Vec<ReservationId> = reserved.answers.iter().map(|answer| answer.reservation).collect();
    let all = [own.clone(), [0, 1, u64::MAX].map(|number| ReservationId(u64::into(number))).to_vec()].concat();
    let answer = thief.call(&Request::Commit(Commit { reservations: Batch::new(&all).unwrap() })).unwrap();
    let Reply::Commit(committed) = answer.reply() else { panic!("{answer:?}") };
    assert_eq!(committed.answers.to_vec(), [CommitCode::Unknown; 5]);
    let answer = thief.call(&Request::Abort(Abort { reservations: Batch::new(&all).unwrap() })).unwrap();
    let Reply::Abort(aborted) = answer.reply() else { panic!("{answer:?}") };
    assert_eq!((aborted.aborted, aborted.unknown), (0, 5));
    let twice = [own[0], own[0]];
    let answer = owner.call(&Request::Abort(Abort { reservations: Batch::new(&twice).unwrap() })).unwrap();
    let Reply::Abort(aborted) = answer.reply() else { panic!("{answer:?}") };
    assert_eq!((aborted.aborted, aborted.unknown), (1, 1));
    assert_eq!(counted(&daemon.stats(), "protocol_errors", "unknown_reservation"), 11);
    assert_eq!(daemon.stats()["reservations"], 1);

    // Classes, extents and slots that there are not, or that were not opened here.
    let class = parts.class;
    let mut refused = 0;
    for (class, extent) in [(class, 0), (ClassId(7), 0), (ClassId(u32::MAX), u32::MAX)] {
        let answer = thief.call(&Request::MapExtent(MapExtent { class, extent })).unwrap();
        assert!(answer.status() == Some(Status::UnknownNamespace) && answer.descriptor.is_none());
        refused += 1;
    }
    let answer = owner.call(&Request::MapExtent(MapExtent { class, extent: u32::MAX })).unwrap();
    assert_eq!(answer.status(), Some(Status::UnknownNamespace));
    for (slot, generation) in [(0, 0), (0, 2), (u32::MAX, u64::MAX), (1 << 20, 2)] {
        let (slot, generation) = (SlotIndex(slot), Generation(generation));
        let reason = cache_core::miss::MissReason::FailedCheck;
        let report = Request::Report(Report { class, slot, generation, reason });
        assert!(matches!(owner.call(&report).unwrap().reply(), Reply::Report(_)));
        assert_eq!(thief.call(&report).unwrap().status(), Some(Status::UnknownNamespace));
        refused += 1;
    }
    let answer = thief.call(&Request::Await(Await { parts, hash: hashes[0] })).unwrap();
    assert_eq!(answer.status(), Some(Status::UnknownNamespace));
    let stats = daemon.stats();
    assert_eq!(counted(&stats, "protocol_errors", "unknown_namespace"), refused + 2);
    assert_eq!(stats["integrity_failures"]["host"], 0);
    assert_eq!(check_run(&client, namespace, &links[..2]), (2, None));
    honest.end();
    daemon.end();
}

/// Chains that contradict themselves, whole and sealed: parents that are their own children, one block at many depths, the same one twice in a run.
#[test]
fn chains_that_contradict_themselves_harm_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |config: &mut Config| with_disk(folder.path(), config);
    let daemon = start(folder.path(), settings);
    let honest = Honest::beside(&daemon.socket);
    let client = daemon.client();
    let namespace = client.name(&manifest(), tenant("confused"));
    let names: Vec<BlockHash> = (1..=12).map(|number| BlockHash([number; 32])).collect();
    let mut random = cache_core::contract::Random::new(11);
    let mut held = Vec::new();
    for turn in 0..1500 {
        let mut one = || names[random.below(names.len() as u64) as usize];
        let (first, parent) = (one(), one());
        let run: Vec<BlockHash> = (0..1 + turn % 4).map(|_| one()).chain([first]).collect();
        let depth = [0, 1, 2, 7, u32::MAX - 8][random.below(5) as usize];
        let link = |at: usize| Link {
            hash: run[at],
            parent: if at == 0 { (depth > 0).then_some(parent) } else { Some(run[at - 1]) },
            depth: depth + at as u32,
        };
        let links: Vec<Link> = (0..run.len()).map(link).collect();
        match random.below(8) {
            0 => held.clear(),
            1 => client.delete_namespace(namespace).unwrap(),
            2..=4 => {
                let (lent, _) = client.acquire(&wanted(namespace, &links), cache_core::form::Accept::Exact).unwrap();
                for lent in &lent {
                    let bytes = read(lent, SHAPE);
                    let whose = |bytes: Vec<u8>| BlockHash(bytes[48..80].try_into().unwrap());
                    assert!(bytes.map(whose).is_none_or(|hash| names.contains(&hash)));
                }
                held.push(lent);
                held.drain(..held.len().saturating_sub(4));
            }
            _ => {
                put(&client, namespace, &links);
            }
        }
    }
    drop(held);
    honest.goes_on();
    drop(client);
    daemon.settles("rest", |stats| stats["clients"]["count"] == 1);
    honest.end();
    daemon.end();
    let daemon = start(folder.path(), settings);
    daemon.settles("recovery", |stats| stats["state"] == "ready");
    assert_eq!(daemon.stats()["integrity_failures"]["disk"], 0);
    daemon.end();
}
