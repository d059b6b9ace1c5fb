//! Calls that wait for the daemon or move blocks: let in here, made by the worker, polled when they are done.
//!
//! What is passed is copied before a function returns, but for the memory of slabs and places, which is used until the call has ended.

use std::ffi::c_char;
use std::sync::Arc;

use kvtier_sdk::plugin::SharedPlugin;

use crate::client::{client, give, kvtier_client};
use crate::codes::kvtier_code;
use crate::guard::{Failure, guard};
use crate::input::{self, Run, kvtier_run};
use crate::places::{kvtier_places, lock, places};
use crate::result::Done;
use crate::slabs::kvtier_slabs;
use crate::worker::Work;

/// Lets a call in and writes its number.
///
/// # Safety
/// `client` is null or was not closed; `op` may be written.
unsafe fn submit(client: *const kvtier_client, op: *mut u64, work: Work) -> Result<(), Failure> {
    // SAFETY: the caller's promise. A place for the number is there before the call is let in.
    unsafe {
        give(op, 0)?;
        let number = self::client(client)?.submit(work)?;
        give(op, number)
    }
}

/// Lets a call in that is for a request of the engine's.
///
/// # Safety
/// As for [`submit`].
unsafe fn for_request(
    client: *const kvtier_client,
    op: *mut u64,
    request: Option<String>,
    work: impl FnOnce(&SharedPlugin) -> Result<Done, Failure> + Send + 'static,
) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    unsafe {
        let worker = Arc::clone(&self::client(client)?.worker);
        let tagged = move |plugin: &SharedPlugin| {
            worker.tag(plugin, request.as_deref())?;
            work(plugin)
        };
        submit(client, op, Box::new(tagged))
    }
}

/// Asks where the longest run of blocks is. Touches nothing.
///
/// # Safety
/// `client` was not closed; `run` has the size that it says, and its hashes; `op` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_submit_lookup(
    client: *const kvtier_client,
    run: *const kvtier_run,
    op: *mut u64,
) -> kvtier_code {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe {
            let Run { hashes, before, request } = input::run(run)?;
            for_request(client, op, request, move |plugin| Ok(Done::Found(plugin.lookup(&hashes, before)?)))
        }
    })
}

/// Has the daemon bring the longest run of blocks into its memory, without waiting for it: the result's count is of those that are there or on their
/// way.
///
/// # Safety
/// `client` was not closed; `run` has the size that it says, and its hashes; `op` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_submit_prefetch(
    client: *const kvtier_client,
    run: *const kvtier_run,
    op: *mut u64,
) -> kvtier_code {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe {
            let Run { hashes, before, request } = input::run(run)?;
            for_request(client, op, request, move |plugin| Ok(Done::Count(plugin.prefetch(&hashes, before)?)))
        }
    })
}

/// Leases the longest run of blocks, to be read in place. Waits for what has to come from the disk, as far as the deadline allows.
///
/// # Safety
/// `client` was not closed; `run` has the size that it says, and its hashes; `op` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_submit_acquire(
    client: *const kvtier_client,
    run: *const kvtier_run,
    op: *mut u64,
) -> kvtier_code {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe {
            let Run { hashes, before, request } = input::run(run)?;
            for_request(client, op, request, move |plugin| Ok(Done::Leases(plugin.acquire(&hashes, before)?)))
        }
    })
}

/// Reserves places for blocks, at most 1,024, to be written in place. Those that the daemon has no memory for at once are `KVTIER_FULL`.
///
/// # Safety
/// `client` was not closed; `run` has the size that it says, and its hashes; `op` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_submit_reserve(
    client: *const kvtier_client,
    run: *const kvtier_run,
    op: *mut u64,
) -> kvtier_code {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe {
            let Run { hashes, before, request } = input::run(run)?;
            let worker = Arc::clone(&self::client(client)?.worker);
            let reserve = move |plugin: &SharedPlugin| Ok(Done::Places(plugin.reserve(&hashes, before)?, worker));
            for_request(client, op, request, reserve)
        }
    })
}

/// Hands all places over that are reserved, each of them filled. From now on nothing is written there. The places are freed as
/// ever, at any time.
///
/// # Safety
/// `client` was not closed, and the places are its own and were not freed; `op` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_submit_commit(
    client: *const kvtier_client,
    places: *const kvtier_places,
    op: *mut u64,
) -> kvtier_code {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe {
            let shared = self::places(places)?.shared();
            submit(client, op, Box::new(move |_| Ok(Done::Outcomes(lock(&shared).commit()?))))
        }
    })
}

/// Copies the longest run of blocks into slabs. `blocks`: for each stored block the numbers of the engine's blocks that it fills,
/// one after the other, or `KVTIER_SKIP`. Of a block
/// beyond the run parts may have been written: it counts as failed.
///
/// # Safety
/// `client` was not closed; `run` has the size that it says, and its hashes; the slabs were not freed; `blocks` has `block_count`
/// entries; `op` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_submit_load(
    client: *const kvtier_client,
    run: *const kvtier_run,
    slabs: *const kvtier_slabs,
    blocks: *const u32,
    block_count: usize,
    op: *mut u64,
) -> kvtier_code {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe {
            let Run { hashes, before, request } = input::run(run)?;
            let (slabs, blocks) = (slabs_of(slabs)?, blocks_of(blocks, block_count)?);
            let load = move |plugin: &SharedPlugin| Ok(Done::Found(plugin.load(&hashes, before, &slabs, &blocks)?));
            for_request(client, op, request, load)
        }
    })
}

/// Copies blocks from slabs to the daemon; `blocks` as for a load, without `KVTIER_SKIP`. Done when the daemon has verified its copies.
///
/// # Safety
/// As for `kvtier_submit_load`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_submit_store(
    client: *const kvtier_client,
    run: *const kvtier_run,
    slabs: *const kvtier_slabs,
    blocks: *const u32,
    block_count: usize,
    op: *mut u64,
) -> kvtier_code {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe {
            let Run { hashes, before, request } = input::run(run)?;
            let (slabs, blocks) = (slabs_of(slabs)?, blocks_of(blocks, block_count)?);
            let store =
                move |plugin: &SharedPlugin| Ok(Done::Outcomes(plugin.store(&hashes, before, &slabs, &blocks)?));
            for_request(client, op, request, store)
        }
    })
}

/// Asks for the daemon's statistics.
///
/// # Safety
/// `client` was not closed; `op` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_submit_stats(client: *const kvtier_client, op: *mut u64) -> kvtier_code {
    // SAFETY: the caller's promise.
    guard(|| unsafe { submit(client, op, Box::new(|plugin| Ok(Done::Text(plugin.stats()?)))) })
}

/// Asks why the blocks of a request, named in the runs of its calls, were there or not.
///
/// # Safety
/// `client` was not closed; `request` is a C string; `op` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_submit_explain(
    client: *const kvtier_client,
    request: *const c_char,
    op: *mut u64,
) -> kvtier_code {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe {
            let name = input::request(request)?;
            let name = name.ok_or_else(|| Failure::usage("failed to use what was given: the request is null"))?;
            submit(client, op, Box::new(move |plugin| Ok(Done::Text(plugin.explain(&name)?))))
        }
    })
}

/// Gets ready to store: the daemon makes room for blocks of this shape, and the memory through which they go is committed. The first stores do it
/// otherwise, and take longer.
///
/// # Safety
/// `client` was not closed; `op` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_submit_prepare(client: *const kvtier_client, op: *mut u64) -> kvtier_code {
    let prepare = |plugin: &SharedPlugin| {
        plugin.prepare()?;
        Ok(Done::Nothing)
    };
    // SAFETY: the caller's promise.
    guard(|| unsafe { submit(client, op, Box::new(prepare)) })
}

/// # Safety
/// `slabs` is null or was not freed.
unsafe fn slabs_of(slabs: *const kvtier_slabs) -> Result<Arc<kvtier_sdk::plugin::Slabs>, Failure> {
    // SAFETY: the caller's promise.
    let slabs = unsafe { slabs.as_ref() };
    slabs
        .map(|slabs| Arc::clone(&slabs.0))
        .ok_or_else(|| Failure::usage("failed to use what was given: the slabs are null"))
}

/// # Safety
/// `blocks` has so many entries.
unsafe fn blocks_of(blocks: *const u32, count: usize) -> Result<Vec<u32>, Failure> {
    if (blocks.is_null() && count > 0) || count > 1 << 24 {
        return Err(Failure::usage("failed to use what was given: blocks are null, or more than 2^24"));
    }
    // SAFETY: the caller's promise; nothing is looked at behind null.
    Ok((0..count).map(|at| unsafe { blocks.add(at).read_unaligned() }).collect())
}
