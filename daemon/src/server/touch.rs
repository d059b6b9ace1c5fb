//! Memory is committed ahead of the blocks that will lie in it. The kernel commits a page when it is first written, which costs more than all else that a
//! store does: a thread of low priority does it before, a piece at a time, so that a store does not wait for it.

use std::time::{Duration, Instant};

use crate::server::cache::Cache;

/// How often the thread looks whether there is something to do, and whether the daemon ends.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes that are committed at once, whole pages: under a millisecond, in which nobody else in the process can map memory.
const PIECE_BYTES: u64 = 256 << 10;
/// Looks for which a call that failed is not tried again: memory may be short.
const REST: u32 = 250;
/// Lower than that of those who serve, but not the lowest: others may wait for a lock that this thread has.
const NICE: i32 = 10;

/// Touches until `is_over`, half of the time at most, so that on a machine of few processors others go on.
pub(crate) fn touch(cache: &Cache, ahead_bytes: u64, is_over: &dyn Fn() -> bool) {
    // Where the system refuses it, the pauses must do.
    let _ = rustix::process::setpriority_process(None, NICE);
    let mut rest = 0u32;
    while !is_over() {
        let began = Instant::now();
        let host = if rest == 0 { cache.touch_target(ahead_bytes) } else { None };
        rest = rest.saturating_sub(1);
        let pause = match host.map(|host| host.touch_ahead(PIECE_BYTES)) {
            Some(Ok(1..)) => began.elapsed().min(LOOK),
            None | Some(Ok(0)) => LOOK,
            Some(Err(error)) => {
                tracing::warn!(%error, "memory could not be committed ahead of its use");
                rest = REST;
                LOOK
            }
        };
        std::thread::sleep(pause);
    }
}

#[cfg(test)]
mod tests {
    use cache_core::form::Form;
    use cache_core::payload::BlockShape;

    use super::*;
    use crate::server::attic::Attic;
    use crate::server::class::Pool;
    use crate::testing::Planted;

    const ONE: BlockShape = BlockShape { layers: 2, kv_heads: 1, head_dim: 16, block_tokens: 16, form: Form::Raw16 };
    const OTHER: BlockShape = BlockShape { layers: 4, ..ONE };

    #[test]
    fn of_several_shapes_none_is_touched_for_before_its_blocks_come() {
        let (attic, _) = Attic::adopt(None, [0; 16], Vec::new(), 0);
        let cache = Cache::new(Pool::new(64 << 20, 1 << 20), attic, None, Planted::default());
        let ahead_bytes = 1 << 20;
        assert!(cache.touch_target(ahead_bytes).is_none(), "there is no shape");
        cache.class_of(ONE).unwrap();
        let mut touched = 0;
        while let Some(host) = cache.touch_target(ahead_bytes) {
            touched += host.touch_ahead(PIECE_BYTES).unwrap();
        }
        assert!(touched >= ahead_bytes, "the first one, at once");
        cache.class_of(OTHER).unwrap();
        assert!(cache.touch_target(ahead_bytes).is_none(), "what it was granted would be missing for the other");
    }
}
