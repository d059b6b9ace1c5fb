//! A Redis server over its Unix socket: RESP as far as `SET`, `GET`, `EXISTS` and `PING` need it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cache_core::buffer::Buffer;
use cache_core::chain::Link;

use crate::bench::blocks::Blocks;
use crate::bench::turns::{Plan, System, Worker};
use crate::bench::{BATCH, Op};

/// What an answer may take.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Redis {
    workers: Vec<RedisClient>,
}

struct Connection {
    reader: BufReader<UnixStream>,
    out: Vec<u8>,
}

struct RedisClient {
    connection: Connection,
    blocks: Arc<Blocks>,
    resident: Arc<Vec<Link>>,
    batch: Arc<Vec<String>>,
    /// Names the keys that this client puts: each step puts them anew.
    client: usize,
    next: usize,
    read: Vec<usize>,
}

fn failed(error: io::Error) -> String {
    format!("redis: {error}")
}

fn wrong(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("answers {line:?}"))
}

impl Connection {
    fn open(socket: &Path) -> io::Result<Connection> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Connection { reader: BufReader::with_capacity(64 << 10, stream), out: Vec::new() })
    }

    /// Adds a command to what is sent next.
    fn add(&mut self, words: &[&[u8]]) {
        self.out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            self.out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            self.out.extend_from_slice(word);
            self.out.extend_from_slice(b"\r\n");
        }
    }

    fn send(&mut self) -> io::Result<()> {
        self.reader.get_ref().write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// A line of an answer, without its end.
    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        if line.starts_with('-') || !line.ends_with("\r\n") {
            return Err(wrong(&line));
        }
        line.truncate(line.len() - 2);
        Ok(line)
    }

    fn expect(&mut self, expected: &str) -> io::Result<()> {
        let line = self.line()?;
        if line == expected { Ok(()) } else { Err(wrong(&line)) }
    }

    /// Sends head and value apart, so that the value is not copied once more here.
    fn set(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), value.len());
        let mut stream = self.reader.get_ref();
        stream.write_all(head.as_bytes())?;
        stream.write_all(value)?;
        stream.write_all(b"\r\n")?;
        self.expect("+OK")
    }

    fn get(&mut self, key: &str, value: &mut [u8]) -> io::Result<()> {
        self.add(&[b"GET", key.as_bytes()]);
        self.send()?;
        self.expect(&format!("${}", value.len()))?;
        self.reader.read_exact(value)?;
        self.expect("")
    }

    /// Asks for each of these keys, all in one write.
    fn exist(&mut self, keys: &[String]) -> io::Result<()> {
        keys.iter().for_each(|key| self.add(&[b"EXISTS", key.as_bytes()]));
        self.send()?;
        keys.iter().try_for_each(|_| self.expect(":1"))
    }
}

impl Redis {
    /// Connects all clients and puts the blocks that stay.
    pub(super) fn connect(socket: &Path, blocks: &Blocks, plan: &Plan) -> Result<Redis, String> {
        let blocks = Arc::new(blocks.clone());
        let resident: Arc<Vec<Link>> = Arc::new((0..plan.resident as u64).map(|number| blocks.link(number)).collect());
        let batch: Arc<Vec<String>> = Arc::new(blocks.chain(BATCH).iter().map(|link| link.hash.to_string()).collect());
        let worker = |client| {
            Ok(RedisClient {
                connection: Connection::open(socket).map_err(failed)?,
                blocks: Arc::clone(&blocks),
                resident: Arc::clone(&resident),
                batch: Arc::clone(&batch),
                client,
                next: client * plan.resident / plan.clients,
                read: Vec::new(),
            })
        };
        let mut workers = (0..plan.clients).map(worker).collect::<Result<Vec<_>, String>>()?;
        let first = &mut workers[0];
        let mut image = Buffer::zeroed(blocks.image_bytes());
        first.connection.add(&[b"FLUSHALL"]);
        first.connection.send().and_then(|()| first.connection.expect("+OK")).map_err(failed)?;
        for (number, link) in (0..).zip(&*resident) {
            blocks.fill(link, number, image.as_mut_slice());
            first.connection.set(&link.hash.to_string(), image.as_slice()).map_err(failed)?;
        }
        for key in &*batch {
            first.connection.set(key, b"block").map_err(failed)?;
        }
        Ok(Redis { workers })
    }
}

impl System for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn can(&self, op: Op) -> bool {
        !matches!(op, Op::Release | Op::ReleaseBatch)
    }

    fn begin_round(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn workers(&mut self) -> Vec<&mut dyn Worker> {
        self.workers.iter_mut().map(|worker| worker as &mut dyn Worker).collect()
    }
}

impl RedisClient {
    fn next(&mut self) -> usize {
        self.next = (self.next + 1) % self.resident.len();
        self.next
    }

    fn put_key(&self, index: usize) -> String {
        format!("put {} {index}", self.client)
    }
}

impl Worker for RedisClient {
    fn prepare(&mut self, op: Op, count: usize, own: &mut [u8]) -> Result<(), String> {
        if op == Op::Put {
            let bytes = self.blocks.image_bytes();
            for index in 0..count {
                let number = u64::MAX / 2 + (self.client * count + index) as u64;
                let image = &mut own[index * bytes..][..bytes];
                self.blocks.fill(&self.blocks.link(number), number, image);
            }
        }
        Ok(())
    }

    fn perform(&mut self, op: Op, index: usize, own: &mut [u8]) -> Result<(), String> {
        let bytes = self.blocks.image_bytes();
        let done = match op {
            Op::Put => {
                let key = self.put_key(index);
                let image = &own[index * bytes..][..bytes];
                self.connection.set(&key, image)
            }
            Op::Get => {
                let number = self.next();
                self.read.push(number);
                let key = self.resident[number].hash.to_string();
                let image = &mut own[index * bytes..][..bytes];
                self.connection.get(&key, image)
            }
            Op::Acquire => {
                let number = self.next();
                self.connection.exist(&[self.resident[number].hash.to_string()])
            }
            Op::AcquireBatch => self.connection.exist(&self.batch),
            Op::Release | Op::ReleaseBatch => unreachable!("it has no leases"),
        };
        done.map_err(failed)
    }

    fn check(&mut self, _op: Op, _count: usize, own: &mut [u8]) -> Result<(), String> {
        let bytes = self.blocks.image_bytes();
        for (index, number) in std::mem::take(&mut self.read).into_iter().enumerate() {
            let image = &own[index * bytes..][..bytes];
            self.blocks.compare(&self.resident[number], number as u64, image)?;
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.blocks.image_bytes() as u64
    }
}
