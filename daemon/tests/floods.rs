//! Floods of connections and of descriptors, over a daemon in a process of its own, whose descriptors and memory are counted from outside.

mod rig;

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use kvtier_daemon::config::Config;
use kvtier_sdk::wire::{Kind, Reply, Request};
use rig::honest::Honest;
use rig::process::{Process, serve_if_asked};
use rig::raw::{Raw, frame, header};
use rig::*;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// Descriptors that one message may carry.
const PER_MESSAGE: usize = 253;
/// Of the daemon under test.
const CLIENTS_MAX: u32 = 600;

#[test]
fn the_other_process() {
    serve_if_asked(|config: &mut Config| {
        config.clients_max = CLIENTS_MAX;
        config.hello_timeout_ms = 30_000;
    });
}

/// Sends bytes that carry as many descriptors as go into one message.
fn send_descriptors(raw: &Raw, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PER_MESSAGE))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    let sent = sendmsg(raw.stream.as_fd(), &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    assert_eq!(sent, bytes.len());
}

#[test]
fn descriptors_sent_to_the_daemon_are_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Process::start(folder.path());
    let honest = Honest::beside(&daemon.socket);
    let null = std::fs::File::open("/dev/null").unwrap();
    let descriptors = [null.as_fd(); PER_MESSAGE];
    let (mut raw, ..) = Raw::open(&daemon.socket);
    let silent = Raw::silent(&daemon.socket);
    until("the second connection", || daemon.stats()["clients"]["count"] == 3);
    let before = daemon.descriptors();
    for round in 0..200 {
        // With a whole request, with a part of one, and before any introduction.
        let request = frame(Kind::Stats.number(), 5, &[]);
        send_descriptors(&raw, &request[..20], &descriptors);
        send_descriptors(&raw, &request[20..], &descriptors);
        assert!(matches!(raw.answer().unwrap().reply(), Reply::Stats(_)), "it is answered all the same");
        if round < 20 {
            send_descriptors(&silent, &header(b"kvt1", 1, 0, 100, 0, 1, 0)[round..=round], &descriptors);
        }
        // Connections of the statistics endpoint come and go.
        assert!(daemon.descriptors() <= before + 8, "{} of {before}", daemon.descriptors());
    }
    drop((raw, silent));
    until("the connections to end", || daemon.stats()["clients"]["count"] == 1);
    until("descriptors to be back", || daemon.descriptors() < before);
    honest.end();
    daemon.end();
}

#[test]
fn connections_beyond_the_limit_are_refused_and_those_within_it_served() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Process::start(folder.path());
    let honest = Honest::beside(&daemon.socket);
    let most = CLIENTS_MAX as usize;
    let before = daemon.descriptors();
    for _ in 0..2 {
        let rejected = daemon.stats()["clients"]["rejected"]["limit"].as_u64().unwrap();
        let flood: Vec<Raw> = (0..most + 200).map(|_| Raw::silent(&daemon.socket)).collect();
        until("the flood", || daemon.stats()["clients"]["rejected"]["limit"].as_u64() == Some(rejected + 201));
        assert_eq!(daemon.stats()["clients"]["count"], most);
        honest.goes_on();
        drop(flood);
        until("the flood to end", || daemon.stats()["clients"]["count"] == 1);
        let (mut raw, ..) = Raw::open(&daemon.socket);
        assert!(matches!(raw.call(&Request::Stats(kvtier_sdk::wire::Empty)).unwrap().reply(), Reply::Stats(_)));
    }
    until("descriptors to be back", || daemon.descriptors() <= before + 8);
    honest.end();
    daemon.end();
}

#[test]
fn a_daemon_without_descriptors_goes_on_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Process::start(folder.path());
    let honest = Honest::beside(&daemon.socket);
    let limit = Rlimit { current: Some(daemon.descriptors() as u64 + 40), maximum: Some(4096) };
    prlimit(Pid::from_raw(daemon.pid()), Resource::Nofile, limit).unwrap();
    let flood: Vec<Raw> = (0..200).map_while(|_| Raw::try_silent(&daemon.socket).ok()).collect();
    // Nothing more can be accepted, statistics neither.
    until("the last descriptor", || daemon.descriptors() as u64 >= limit.current.unwrap() - 1);
    honest.goes_on();
    drop(flood);
    let (mut raw, ..) = Raw::open(&daemon.socket);
    assert!(matches!(raw.call(&Request::Stats(kvtier_sdk::wire::Empty)).unwrap().reply(), Reply::Stats(_)));
    drop(raw);
    honest.end();
    daemon.end();
}

/// The worst that somebody can do who has not said who he is: the longest body that is waited for, all of it but the last byte sent.
#[test]
fn a_connection_without_an_introduction_takes_little_memory() {
    const CONNECTIONS: usize = 400;
    let folder = tempfile::tempdir().unwrap();
    let daemon = Process::start(folder.path());
    let connect = |bytes: &[u8]| {
        let mut raw = Raw::silent(&daemon.socket);
        raw.send(bytes).unwrap();
        raw
    };
    let long = frame(1, 1, &vec![7; kvtier_sdk::wire::BODY_BYTES_BEFORE_HELLO as usize]);
    for bytes in [&[][..], &long[..long.len() - 1]] {
        // What the first ones cost once: the allocator's arenas, a thread's first stack.
        let first: Vec<Raw> = (0..50).map(|_| connect(bytes)).collect();
        until("the first", || daemon.stats()["clients"]["count"] == 50);
        let before = daemon.resident_bytes();
        let more: Vec<Raw> = (0..CONNECTIONS).map(|_| connect(bytes)).collect();
        until("all of them", || daemon.stats()["clients"]["count"] == 50 + CONNECTIONS);
        // The threads read until nothing changes any more.
        let mut last = 0;
        until("memory to settle", || {
            std::thread::sleep(Duration::from_millis(300));
            std::mem::replace(&mut last, daemon.resident_bytes()) == last
        });
        let each = last.saturating_sub(before) / CONNECTIONS as u64;
        println!("{} bytes sent: {} KiB of memory a connection", bytes.len(), each >> 10);
        assert!(each <= 256 << 10, "{each} bytes each");
        drop((first, more));
        until("the end of them", || daemon.stats()["clients"]["count"] == 0);
    }
    daemon.end();
}
