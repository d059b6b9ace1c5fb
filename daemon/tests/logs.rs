//! What the log does not say, at its most verbose: salts, tenants, namespaces, hashes of blocks. Token ids a daemon never sees.

mod rig;

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cache_core::form::Lineage;
use cache_core::hash::BlockHash;
use cache_core::miss::MissReason;
use cache_core::units::{Generation, SlotIndex};
use kvtier_daemon::command::{ServeArgs, run};
use kvtier_sdk::client::Place;
use kvtier_sdk::wire::{
    AcceptId, Acquire, Await, Batch, ClassId, Commit, CommitCode, DeleteNamespace, DeleteTenant, FrameHeader, KeyParts,
    Kind, LeaseId, Lookup, Pin, Report, Request, ReservationId, Run,
};
use rig::raw::{Raw, frame, header};
use rig::*;

/// No setting: those begin with KVTIER_.
const FOLDER: &str = "LOGGING_DAEMON_FOLDER";
const SALT: &str = "a salt that nobody else has";
/// Logged by the daemon's process beside the daemon, so that it is known how verbose the log is.
const FINEST: &str = "as fine as it gets";

/// Not a test of its own: the daemon's process, as `kvtier serve` would be.
#[test]
fn the_other_process() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let folder = Path::new(&folder);
    let at = |name: &str| folder.join(name).to_str().expect("UTF-8").to_owned();
    let socket = folder.join("kvtier.sock");
    std::thread::spawn(move || {
        until("the socket appears", || socket.exists());
        tracing::trace!("{FINEST}");
    });
    let args = ServeArgs {
        config: Some(folder.join("kvtier.toml")),
        socket: Some(at("kvtier.sock")),
        host_mem: Some("32MiB".to_owned()),
        disk: Some(at("store")),
        disk_size: Some("64MiB".to_owned()),
        http: Some(std::fs::read_to_string(folder.join("http")).unwrap()),
        print_config: false,
        check_config: false,
    };
    run(&args, &mut std::io::stdout()).unwrap();
}

fn start_logging(folder: &Path, log: &str) -> Child {
    std::fs::write(folder.join("kvtier.toml"), "log_level = \"trace\"\nverify = \"always\"\n").unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_other_process", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .stderr(File::create(folder.join(log)).unwrap())
        .spawn()
        .unwrap();
    let end = Instant::now() + PATIENCE;
    while !folder.join("kvtier.sock").exists() {
        assert!(child.try_wait().unwrap().is_none() && Instant::now() < end, "the daemon does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

/// How 32 bytes would show in a log: as hexadecimal digits, short or in full, or as a list of numbers.
fn traces(bytes: &[u8; 32]) -> [String; 3] {
    let hex = cache_core::hex::Hex(&bytes[..4]).to_string();
    let list: Vec<String> = bytes[..6].iter().map(u8::to_string).collect();
    [hex.clone(), hex.to_uppercase(), list.join(", ")]
}

/// Whatever a client may ask about blocks, rightly and wrongly.
fn ask_everything(raw: &mut Raw, parts: KeyParts, hashes: &[BlockHash]) {
    let (accept, batch) = (AcceptId::Exact, Batch::new(hashes).unwrap());
    let run = Run::new(0, None, hashes).unwrap();
    raw.tag("request");
    let (hits, _) = raw.acquire(parts, hashes);
    assert!(!hits.is_empty());
    let report =
        Report { class: parts.class, slot: SlotIndex(0), generation: Generation(2), reason: MissReason::FailedCheck };
    let reservations = [ReservationId(77.into())];
    let requests = [
        Request::Lookup(Lookup { parts, accept, hashes: batch }),
        Request::Prefetch(Acquire { parts, accept, run }),
        Request::Pin(Pin { parts, accept, ttl_ms: 1, run }),
        Request::Unpin(Lookup { parts, accept, hashes: batch }),
        Request::Await(Await { parts, hash: hashes[0] }),
        Request::Commit(Commit { reservations: Batch::new(&reservations).unwrap() }),
        Request::Report(report),
        // Of a class that there is not.
        Request::Prefetch(Acquire { parts: KeyParts { class: ClassId(99), ..parts }, accept, run }),
    ];
    for request in &requests {
        assert!(raw.call(request).is_some(), "it is answered");
        // The same with a body that is too long, and one that is too short.
        let mut out = Vec::new();
        request.encode_frame(5, 0, &mut out).unwrap();
        let (kind, body) = (u16::from_le_bytes([out[4], out[5]]), &out[FrameHeader::BYTES..]);
        for body in [[body, &[0]].concat(), body[..body.len() - 1].to_vec()] {
            raw.send(&frame(kind, 5, &body)).unwrap();
            assert!(raw.answer().unwrap().status().is_some(), "it is refused");
        }
    }
    raw.explain(parts, hashes[0]);
    assert_eq!(raw.release(&[LeaseId(77.into())]), (0, 1));
}

/// Frames that end their connection, with what must not be logged in them.
fn break_the_protocol(socket: &Path, hashes: &[BlockHash]) {
    let secrets = [SALT.as_bytes(), hashes[0].bytes()].concat();
    let bad = [
        [&header(b"kvt2", 1, 0, secrets.len() as u32, 0, 1, 0)[..], &secrets].concat(),
        [format!("GET /{SALT} HTTP/1.1\r\n\r\n").as_bytes(), &secrets].concat(),
        frame(Kind::Lookup.number(), 1, &secrets),
    ];
    for bytes in &bad {
        let mut raw = Raw::silent(socket);
        raw.send(bytes).unwrap();
        assert!(raw.is_over());
    }
}

#[test]
fn the_log_names_no_salt_tenant_namespace_or_block_at_any_level() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, http) = (folder.path().join("kvtier.sock"), free_address());
    std::fs::write(folder.path().join("http"), http.to_string()).unwrap();
    let mut child = start_logging(folder.path(), "first.log");
    let client = client_at(&socket, SHAPE);
    let namespace = client.name(&manifest(), tenant(SALT));
    let links = links(namespace, 6);
    let hashes: Vec<BlockHash> = links.iter().map(|link| link.hash).collect();
    put_all(&client, namespace, &links[..4]);
    assert_eq!(check_run(&client, namespace, &links).0, 4, "hits and a miss");
    let spoilt = {
        let places = client.reserve(&wanted(namespace, &links[4..5]), Lineage::of(SHAPE.form_map())).unwrap();
        let Place::Reserved { reservation, offset } = places.answers[0] else { panic!("{:?}", places.answers) };
        let mut image = image(namespace, &links[4]);
        image[SHAPE.header_bytes() as usize] ^= 1;
        places.staging.write(offset, &image);
        client.commit(places.connection, &[reservation]).unwrap()
    };
    assert_eq!(spoilt, [CommitCode::FailedCheck]);
    let (mut raw, ..) = Raw::open(&socket);
    let parts = raw.open_namespace(&manifest(), tenant(SALT));
    assert_eq!(parts.namespace, namespace);
    ask_everything(&mut raw, parts, &hashes);
    break_the_protocol(&socket, &hashes);
    for path in ["/stats", "/explain?request=request"] {
        assert!(get(http, path).is_object(), "{path}");
    }
    // Over a restart: from the disk, then deleted in both ways.
    drop(raw);
    client.drain().unwrap();
    assert!(child.wait().unwrap().success());
    drop(client);
    let mut child = start_logging(folder.path(), "second.log");
    let client = client_at(&socket, SHAPE);
    client.name(&manifest(), tenant(SALT));
    until("the index is read", || get(http, "/stats")["state"] == "ready");
    assert_eq!(check_run(&client, namespace, &links).0, 4, "from the disk");
    let (mut raw, ..) = Raw::open(&socket);
    raw.open_namespace(&manifest(), tenant(SALT));
    for request in [
        Request::DeleteNamespace(DeleteNamespace { namespace }),
        Request::DeleteTenant(DeleteTenant { tenant: tenant(SALT) }),
    ] {
        assert_eq!(raw.call(&request).unwrap().status(), None);
    }
    client.drain().unwrap();
    assert!(child.wait().unwrap().success());

    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let digests = [*tenant(SALT).bytes(), *namespace.bytes()];
    let secrets: Vec<[u8; 32]> = digests.into_iter().chain(hashes.iter().map(|hash| *hash.bytes())).collect();
    // The ways in which this code base writes such bytes would be found.
    assert!(traces(namespace.bytes()).iter().any(|trace| format!("{namespace}").contains(trace)));
    assert!(traces(namespace.bytes()).iter().any(|trace| format!("{namespace:?}").contains(trace)));
    assert!(traces(namespace.bytes()).iter().any(|trace| format!("{:?}", namespace.bytes()).contains(trace)));
    for log in [read("first.log"), read("second.log")] {
        for line in ["serving", "connected", "hostile test", FINEST] {
            assert!(log.contains(line), "the log is one, and at its finest: `{line}` is not in\n{log}");
        }
        assert!(!log.contains(SALT), "{log}");
        for trace in secrets.iter().flat_map(traces) {
            assert!(!log.contains(&trace), "{trace} in\n{log}");
        }
    }
    assert!(read("first.log").contains("protocol"), "who broke the protocol is named");
}
