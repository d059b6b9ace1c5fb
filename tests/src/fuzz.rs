//! Every parser that reads what others wrote, against anything: a value or an error, never a panic. The wire protocol's own are fuzzed in `sdk`
//! (`wire_fuzz`), model files in `engine` (`gguf_damage`).

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

use bolero::{ValueGenerator, check, produce};
use cache_core::chain::Link;
use cache_core::contract::SHAPE;
use cache_core::form::{FormMapId, Lineage};
use cache_core::hash::{BlockHash, Namespace};
use cache_core::header::{SlotHeader, encoded_bytes, seal_image, verify_image};
use cache_core::key::CopyKey;
use cache_core::sum::header_sum;
use disk_tier::testing::formats;
use kvtier_daemon::config::{Config, KEYS, Machine, Sources};
use kvtier_daemon::serve;
use kvtier_sdk::client::{Client, ClientSettings};

/// How long a body runs.
#[derive(Clone, Copy, Debug)]
pub enum Effort {
    /// So many inputs.
    Inputs(usize),
    /// So long.
    Time(Duration),
}

impl Effort {
    /// Of a soak: `KVTIER_FUZZ_SECONDS` for each body, 600 if it is not said.
    pub fn soak() -> Effort {
        let seconds =
            std::env::var("KVTIER_FUZZ_SECONDS").map_or(600, |text| text.parse().expect("a number of seconds"));
        Effort::Time(Duration::from_secs(seconds))
    }
}

/// Runs a body over inputs of a generator.
macro_rules! fuzz {
    ($effort:expr, $generator:expr, $body:expr) => {{
        let (inputs, time) = match $effort {
            Effort::Inputs(inputs) => (inputs, Duration::from_secs(3600)),
            Effort::Time(time) => (usize::MAX, time),
        };
        check!().with_iterations(inputs).with_test_time(time).with_generator($generator).for_each($body);
    }};
}

fn bytes(most: usize) -> impl ValueGenerator<Output = Vec<u8>> {
    produce::<Vec<u8>>().with().len(0..=most)
}

fn edits() -> impl ValueGenerator<Output = Vec<(u16, u8)>> {
    produce::<Vec<(u16, u8)>>().with().len(0..=8usize)
}

fn edit(sample: &[u8], edits: &[(u16, u8)], cut: Option<u16>) -> Vec<u8> {
    let mut bytes = sample.to_vec();
    for (position, byte) in edits {
        let position = usize::from(*position) % bytes.len();
        bytes[position] = *byte;
    }
    if let Some(cut) = cut {
        bytes.truncate(usize::from(cut) % (bytes.len() + 1));
    }
    bytes
}

/// Settings that are read are settings that can be printed, and read again as the same.
fn check_settings(sources: &Sources, again: &std::path::Path) {
    let Ok(config) = Config::load(sources) else {
        return;
    };
    let printed = config.print();
    fs::write(again, &printed).expect("a folder that can be written");
    let sources = Sources { file: Some(again.to_owned()), environment: Vec::new(), ..sources.clone() };
    let read = Config::load(&sources).unwrap_or_else(|error| panic!("{error}\n{printed}"));
    // All but where the values come from.
    let values = |config: &Config| format!("{config:?}").split(", origins:").next().map(str::to_owned);
    assert_eq!(values(&config), values(&read), "{printed}");
}

/// Values as people mean them, next to others.
const VALUES: [&str; 16] = [
    "\"off\"",
    "\"auto\"",
    "\"always\"",
    "\"8GiB\"",
    "\"0.5MiB\"",
    "\"-1KiB\"",
    "0",
    "1",
    "-1",
    "1e300",
    "9223372036854775807",
    "[1000, 1001]",
    "{ a = 1 }",
    "true",
    "\"/run/x.sock\"",
    "\"127.0.0.1:0\"",
];

/// A file of settings: arbitrary text, and settings with sensible, odd and arbitrary values.
pub fn settings_file(effort: Effort) {
    let machine = Machine::here().expect("a machine");
    let folder = tempfile::tempdir().expect("a folder");
    let (file, again) = (folder.path().join("fuzz.toml"), folder.path().join("again.toml"));
    let line = (produce::<u8>(), produce::<u8>(), bytes(12));
    let lines = produce::<Vec<(u8, u8, Vec<u8>)>>().with().values(line).len(0..=6usize);
    fuzz!(effort, (lines, bytes(40), produce::<bool>()), |(lines, tail, has_tail)| {
        let mut text = String::new();
        for (key, value, odd) in lines {
            let key = KEYS[usize::from(*key) % KEYS.len()].name;
            let odd = String::from_utf8_lossy(odd);
            let value =
                VALUES.get(usize::from(*value) % 24).map_or_else(|| format!("\"{odd}\""), |value| (*value).to_owned());
            text.push_str(&format!("{key} = {value}\n"));
        }
        if *has_tail {
            text.push_str(&String::from_utf8_lossy(tail));
        }
        fs::write(&file, &text).expect("a folder that can be written");
        let sources =
            Sources { machine: machine.clone(), file: Some(file.clone()), environment: Vec::new(), flags: Vec::new() };
        check_settings(&sources, &again);
    });
}

/// Variables of the environment, no UTF-8 among them.
pub fn settings_variables(effort: Effort) {
    let machine = Machine::here().expect("a machine");
    let folder = tempfile::tempdir().expect("a folder");
    let (empty, again) = (folder.path().join("empty.toml"), folder.path().join("again.toml"));
    fs::write(&empty, "").expect("a folder that can be written");
    let variable = (produce::<u8>(), produce::<u8>(), bytes(16));
    let variables = produce::<Vec<(u8, u8, Vec<u8>)>>().with().values(variable).len(0..=4usize);
    fuzz!(effort, variables, |variables| {
        let variables = variables.iter().map(|(key, value, odd)| {
            let name = KEYS.get(usize::from(*key) % (KEYS.len() + 1)).map_or_else(
                || OsString::from_vec([b"KVTIER_", &odd[..]].concat()),
                |key| OsString::from(key.variable()),
            );
            let plain = VALUES.get(usize::from(*value) % 32).map(|value| value.trim_matches('"').into());
            (name, plain.unwrap_or_else(|| OsString::from_vec(odd.clone())))
        });
        let environment = variables.filter(|(name, _)| name != "KVTIER_CONFIG").collect();
        let sources = Sources { machine: machine.clone(), file: Some(empty.clone()), environment, flags: Vec::new() };
        check_settings(&sources, &again);
    });
}

/// Slot images as clients hand them over: headers that lie under a right sum, and arbitrary bytes.
pub fn slot_images(effort: Effort) {
    let key = CopyKey::exact(Namespace([1; 32]), BlockHash([2; 32]));
    let mut sample = vec![5; SHAPE.slot_bytes() as usize];
    let link = Link { hash: key.hash, parent: None, depth: 0 };
    seal_image(&SHAPE, key, Lineage::of(FormMapId::RAW16), link, &mut sample);
    let header_bytes = encoded_bytes(SHAPE.section_count()) as usize;
    let generator = (edits(), produce::<Option<u16>>(), produce::<bool>(), bytes(300), produce::<u16>());
    fuzz!(effort, generator, |(edits, cut, is_sealed, odd, count)| {
        let mut image = edit(&sample, &edits.iter().map(|(at, byte)| (at % 400, *byte)).collect::<Vec<_>>(), None);
        if *is_sealed {
            let sum = header_sum(&image[..header_bytes - 8]);
            image[header_bytes - 8..header_bytes].copy_from_slice(&sum.to_le_bytes());
        }
        let is_same = image == sample;
        let verified = verify_image(&SHAPE, &key, &image);
        assert!(!is_same || verified.is_ok());
        if let Ok(header) = verified {
            assert!(header.key == key && header.sections.len() == SHAPE.section_count() as usize);
            let payload = SHAPE.header_bytes() as usize;
            assert!(image[payload..] == sample[payload..], "other values under the same sums");
        }
        for bytes in [&odd[..], &edit(&sample, edits, *cut)] {
            for count in [SHAPE.section_count(), u32::from(*count)] {
                if let Ok(header) = SlotHeader::decode(bytes, count) {
                    let _ = (header.expect_key(&key), header.expect_shape(&SHAPE), header.expect_layout());
                    assert_eq!(header.layout().count(), header.sections.len());
                }
            }
        }
    });
}

/// What stands on disk, spoilt anywhere, under sums that are right again or not.
pub fn disk_formats(effort: Effort) {
    let formats = formats();
    formats.iter().for_each(|format| assert!((format.parse)(&format.sample), "{}", format.name));
    let generator = (produce::<u8>(), edits(), produce::<Option<u16>>(), produce::<bool>(), bytes(200));
    fuzz!(effort, generator, |(which, edits, cut, is_sealed, odd)| {
        let format = &formats[usize::from(*which) % formats.len()];
        let mut bytes = edit(&format.sample, edits, *cut);
        if *is_sealed {
            (format.seal)(&mut bytes);
        }
        (format.parse)(&bytes);
        (format.parse)(odd);
    });
}

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
pub fn explain_query(effort: Effort) {
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
    fuzz!(effort, (bytes(60), 0..=3u8), |(odd, way)| {
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
