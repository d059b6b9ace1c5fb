//! A client: opened, asked for its descriptor, polled, closed.

use std::ffi::c_int;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use kvtier_sdk::client::ClientSettings;
use kvtier_sdk::plugin::{Plugin, PluginError, SharedPlugin};
use kvtier_sdk::socket;

use crate::codes::kvtier_code;
use crate::guard::{Failure, guard};
use crate::input::{self, kvtier_identity, kvtier_options};
use crate::result::kvtier_result;
use crate::worker::{SharedWorker, Work, Worker};

/// Calls under way when nothing else is asked for, and the most that can be.
const QUEUE_DEFAULT: u32 = 64;
const QUEUE_MAX: u32 = 65_536;
const DEADLINE_DEFAULT_MS: u32 = 2_000;

/// A client of one daemon, for the blocks of one namespace. Its functions may be called from any thread, several at once, but for
/// `kvtier_close`.
pub struct kvtier_client {
    pub(crate) plugin: SharedPlugin,
    pub(crate) worker: SharedWorker,
    thread: Option<JoinHandle<()>>,
    process: u32,
}

impl kvtier_client {
    fn open(options: &kvtier_options, identity: &kvtier_identity) -> Result<kvtier_client, Failure> {
        let queue_max = if options.queue_max == 0 { QUEUE_DEFAULT } else { options.queue_max };
        if queue_max > QUEUE_MAX {
            return Err(Failure::usage(format!("failed to use what was given: queue_max is above {QUEUE_MAX}")));
        }
        let deadline_ms = if options.deadline_ms == 0 { DEADLINE_DEFAULT_MS } else { options.deadline_ms };
        // SAFETY: texts are null or C strings, as the caller of `kvtier_open` promises.
        let (path, name, identity) = unsafe {
            let path = input::text(options.socket, "socket")?;
            (path, input::text(options.name, "name")?, input::identity(identity)?)
        };
        let settings = ClientSettings {
            socket: path.map_or_else(socket::path_here, Into::into),
            name: name.unwrap_or_else(|| "c".to_owned()),
            deadline: Duration::from_millis(deadline_ms.into()),
        };
        let plugin = SharedPlugin::new(Plugin::open(settings, &identity)?);
        let worker = Arc::new(Worker::new(queue_max as usize)?);
        let (for_thread, plugin_there) = (Arc::clone(&worker), SharedPlugin::clone(&plugin));
        let thread = std::thread::Builder::new().name("kvtier-c-0".into()).spawn(move || for_thread.run(&plugin_there));
        let thread = thread.map_err(|error| {
            Failure::new(kvtier_code::KVTIER_IO, format!("failed to start the client's thread: {error}"))
        })?;
        Ok(kvtier_client { plugin, worker, thread: Some(thread), process: std::process::id() })
    }

    /// Lets a call in.
    pub(crate) fn submit(&self, work: Work) -> Result<u64, Failure> {
        if self.is_forked() {
            return Err(PluginError::Forked.into());
        }
        self.worker.submit(work)
    }

    fn is_forked(&self) -> bool {
        self.process != std::process::id()
    }
}

/// The client behind a handle.
///
/// # Safety
/// `client` is null or a client that was not closed.
pub(crate) unsafe fn client<'a>(client: *const kvtier_client) -> Result<&'a kvtier_client, Failure> {
    // SAFETY: the caller's promise.
    unsafe { client.as_ref() }.ok_or_else(|| Failure::usage("failed to use what was given: the client is null"))
}

/// Writes a result where the caller wants it. Errors: for null.
///
/// # Safety
/// `out` is null or may be written.
pub(crate) unsafe fn give<T>(out: *mut T, value: T) -> Result<(), Failure> {
    if out.is_null() {
        return Err(Failure::usage("failed to use what was given: there is no place for the result"));
    }
    // SAFETY: the caller's promise.
    unsafe { out.write(value) };
    Ok(())
}

/// Opens a client. Without a daemon it is opened as well: every call ends with `KVTIER_NOT_CONNECTED` until there is one.
///
/// # Safety
/// `options` and `identity` have the sizes that they say, their texts are null or C strings, and `out` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_open(
    options: *const kvtier_options,
    identity: *const kvtier_identity,
    out: *mut *mut kvtier_client,
) -> kvtier_code {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe {
            give(out, std::ptr::null_mut())?;
            let client = kvtier_client::open(&input::read(options)?, &input::read(identity)?)?;
            give(out, Box::into_raw(Box::new(client)))
        }
    })
}

/// Closes a client: waits for the call that is being made, for its deadline at most, and drops those that wait, and results that
/// were not polled. Afterwards
/// nothing touches the engine's memory. Leases and places stay good, and are freed as ever. In a process that was forked it only
/// forgets the client. Null is nothing.
///
/// # Safety
/// `client` is null or a client that was not closed; nobody uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_close(client: *mut kvtier_client) {
    if client.is_null() {
        return;
    }
    // SAFETY: the caller's promise: `kvtier_open` made the box.
    let mut client = unsafe { Box::from_raw(client) };
    guard(|| {
        if client.is_forked() {
            // Its thread is the parent's, and its locks may have been held when the process was copied.
            std::mem::forget(client);
            return Ok(());
        }
        client.worker.end();
        if let Some(thread) = client.thread.take() {
            // Panics end in the thread.
            let _ = thread.join();
        }
        drop(client);
        Ok(())
    });
}

/// True while there is a connection.
///
/// # Safety
/// `client` is null or a client that was not closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_is_connected(client: *const kvtier_client) -> bool {
    let mut is_connected = false;
    guard(|| {
        // SAFETY: the caller's promise.
        is_connected = unsafe { self::client(client)? }.plugin.is_connected();
        Ok(())
    });
    is_connected
}

/// Writes the digest of everything that makes blocks compatible: 32 bytes.
///
/// # Safety
/// `client` is a client that was not closed, and 32 bytes may be written to `out`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_namespace(client: *const kvtier_client, out: *mut u8) -> kvtier_code {
    guard(|| {
        // SAFETY: the caller's promise; an array of bytes needs no alignment.
        unsafe { give(out.cast::<[u8; 32]>(), self::client(client)?.plugin.namespace().0) }
    })
}

/// A descriptor that is readable exactly while there are results to poll; for poll, select and epoll, and nothing else. It ends
/// with the client. -1 for null.
///
/// # Safety
/// `client` is null or a client that was not closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_eventfd(client: *const kvtier_client) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { client.as_ref() }.map_or(-1, |client| client.worker.event().as_raw_fd())
}

/// Takes results that are there, the oldest first, at most `most`, and never waits. Each is the caller's, who frees it.
///
/// # Safety
/// `client` is a client that was not closed; `most` pointers may be written to `out`, and `count` may be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_poll(
    client: *const kvtier_client,
    out: *mut *mut kvtier_result,
    most: usize,
    count: *mut usize,
) -> kvtier_code {
    guard(|| {
        // SAFETY: the caller's promise.
        let client = unsafe {
            give(count, 0)?;
            self::client(client)?
        };
        if client.is_forked() {
            return Err(PluginError::Forked.into());
        }
        if out.is_null() && most > 0 {
            return Err(Failure::usage("failed to use what was given: there is no place for results"));
        }
        let results = client.worker.poll(most);
        let polled = results.len();
        for (at, result) in results.into_iter().enumerate() {
            // SAFETY: the caller's promise: at most `most` of them.
            unsafe { out.add(at).write(Box::into_raw(Box::new(result))) };
        }
        // SAFETY: the caller's promise.
        unsafe { give(count, polled) }
    })
}
