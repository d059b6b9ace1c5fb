//! Queries of the statistics endpoint.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bolero::check;
use cache_core::contract::SHAPE;
use kvtier_daemon::config::{Config, Machine};
use kvtier_daemon::serve;
use kvtier_sdk::client::{Client, ClientSettings};

use crate::bytes;

/// A daemon and a connection to its statistics endpoint that is opened again when it is closed.
struct Endpoint {
    address: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
}

impl Endpoint {
    /// Sends bytes and reads one answer; `None` when the endpoint hangs up.
    fn ask(&mut self, request: &[u8]) -> Option<u16> {
        let connection = self.connection.get_or_insert_with(|| {
            let stream = TcpStream::connect(self.address).expect("the endpoint accepts");
            stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
            BufReader::new(stream)
        });
        let answer = connection.get_mut().write_all(request).ok().and_then(|()| read_answer(connection));
        if answer.is_none() {
            self.connection = None;
        }
        answer
    }
}

fn read_answer(reader: &mut BufReader<TcpStream>) -> Option<u16> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let status = line.split(' ').nth(1)?.parse().expect("a status");
    let (mut bytes, mut is_last) = (0, false);
    loop {
        line.clear();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let header = line.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(length) = header.strip_prefix("content-length: ") {
            bytes = length.parse().expect("a length");
        }
        is_last |= header == "connection: close";
    }
    let mut body = vec![0; bytes];
    reader.read_exact(&mut body).ok()?;
    (!is_last).then_some(status)
}

/// Queries of `/explain` and everything before and behind them, against a real daemon, which answers properly afterwards.
#[test]
fn queries_of_explain() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = Config::defaults(&Machine::here().expect("a machine"));
    config.socket = folder.path().join("kvtier.sock");
    let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    (config.http, config.host_mem_bytes, config.client_staging_bytes) = (Some(address), 16 << 20, 64 << 10);
    let socket = config.socket.clone();
    let daemon = std::thread::spawn(move || serve(config));
    let until = Instant::now() + Duration::from_secs(60);
    while !socket.exists() {
        assert!(Instant::now() < until && !daemon.is_finished(), "the daemon does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    let endpoint = std::sync::Mutex::new(Endpoint { address, connection: None });
    let sound = b"GET /explain?request=x HTTP/1.1\r\nhost: localhost\r\n\r\n";
    check!().with_iterations(2_000).with_generator((bytes(60), 0..=3u8)).for_each(|(odd, way)| {
        let escaped = |keeps: fn(u8) -> bool| -> Vec<u8> {
            let escape = |byte: &u8| if keeps(*byte) { vec![*byte] } else { format!("%{byte:02x}").into_bytes() };
            odd.iter().flat_map(escape).collect()
        };
        let query = match way {
            0 => [b"request=", &escaped(|_| false)[..]].concat(),
            1 => [b"request=", &escaped(|byte| byte.is_ascii_graphic() && byte != b'#')[..]].concat(),
            2 => escaped(|byte| byte.is_ascii_graphic() && byte != b'#'),
            _ => odd.clone(),
        };
        let request = [b"GET /explain?", &query[..], b" HTTP/1.1\r\nhost: localhost\r\n\r\n"].concat();
        let mut endpoint = endpoint.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match endpoint.ask(&request) {
            Some(status) => {
                assert!([400, 404].contains(&status), "{status} to {:?}", String::from_utf8_lossy(&request))
            }
            // What is no HTTP ends the connection, and nothing else.
            None => assert_eq!(endpoint.ask(sound), Some(404)),
        }
        if *way == 3 {
            // Bytes that stand behind a request's end are the next one.
            endpoint.connection = None;
        }
    });
    assert_eq!(Endpoint { address, connection: None }.ask(sound), Some(404));
    let settings = ClientSettings { socket, name: "fuzz".to_owned(), deadline: Duration::from_secs(30) };
    Client::open(settings, SHAPE).drain().expect("the daemon serves");
    daemon.join().expect("no panic").expect("an orderly end");
}
