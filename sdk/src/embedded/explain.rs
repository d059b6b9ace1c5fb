//! Why a block is or is not here, in one line per tier.

use cache_core::key::CopyKey;
use cache_core::manager::{CopyState, Shard};
use cache_core::miss::MissReason;
use cache_core::units::Now;

fn state(copy: CopyState) -> &'static str {
    match copy {
        CopyState::None => "no copy",
        CopyState::Arriving => "a copy is being written",
        CopyState::Resident => "a verified copy",
        CopyState::Leaving => "a copy is leaving",
    }
}

fn ago(now: Now, then: Now) -> String {
    format!("{:.3} s ago", now.since(then) as f64 / 1e9)
}

/// One line per tier, and one on what became of the block if none has it. `disk`: what the disk tier says, if there is one.
pub(crate) fn explain(shard: &Shard, disk: Option<Result<u64, MissReason>>, key: &CopyKey, now: Now) -> String {
    let view = shard.view(key).map(|(_, view)| view);
    let [device, host, _] = view.map_or([CopyState::None; 3], |view| view.copies);
    let readers = view.map_or(0, |view| view.live);
    let mut text = format!("device: {}, read by {readers} sequences\nhost: {}\n", state(device), state(host));
    match disk {
        None => {}
        Some(Ok(bytes)) => text.push_str(&format!("disk: a record of {bytes} bytes\n")),
        Some(Err(MissReason::NeverStored)) => text.push_str("disk: no record\n"),
        Some(Err(reason)) => text.push_str(&format!("disk: no record ({})\n", reason.name())),
    }
    if device != CopyState::None || host != CopyState::None || matches!(disk, Some(Ok(_))) {
        return text;
    }
    if shard.opened_by(key).is_some() {
        text.push_str("a sequence is computing it now\n");
    }
    match (shard.ghost(key), shard.forgotten_until()) {
        (Some(ghost), _) => {
            text.push_str(&format!(
                "gone from {} {}: {}\n",
                ghost.tier.name(),
                ago(now, ghost.when),
                ghost.reason.name()
            ));
        }
        (None, None) => text.push_str("never stored\n"),
        (None, Some(then)) => text.push_str(&format!("never stored, or forgotten before {}\n", ago(now, then))),
    }
    text
}
