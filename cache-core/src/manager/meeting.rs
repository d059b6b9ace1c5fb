//! Load or compute: where the two meet.
//!
//! A block of a prefix that is far away can be loaded, or computed from its tokens. Rows are computed in order from the front, and a row's
//! attention needs all blocks before it; a block that is loaded needs nothing. So the front is computed while the back is loaded, **from its end
//! forwards**, until the two meet: what is computed never waits for a load before the meeting, and at the meeting everything behind it is there.
//! Only computing, or only loading, are the ends of this.
//!
//! The meeting point is worked out anew whenever something has ended, from the rates as they are by then; a wrong guess costs what was done until
//! it was noticed. A load that is overdue is expected to stay so for as long again, so what is stuck is soon computed.
//!
//! | what is known | what is done |
//! |---|---|
//! | no rate of computing, or none of loading | everything is loaded: what was stored is supposed to be worth it |
//! | meeting would gain less than a twentieth over loading everything | everything is loaded: computing takes the machine, loading hardly does |
//! | else | the earliest of all meeting points |
//!
//! Loads are taken to come one after the other over each path, and paths to be independent of each other and of computing.

use crate::manager::rates::{ComputeRate, LoadRate};
use crate::units::Now;

/// What meeting must gain, in parts of loading everything, before anything is computed.
const GAIN_MIN: f64 = 0.05;
/// The shortest wait before asking again, in nanoseconds.
const WAIT_MIN: f64 = 50_000.0;

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lies {
    /// In memory that attention reads: there is nothing to do.
    Near,
    /// Somewhere from where it can be loaded.
    Far {
        /// Index of the path in [`Rates::paths`].
        path: usize,
        /// Bytes to be moved.
        bytes: u64,
    },
}

/// What is known of the machine.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    /// Of computing.
    pub compute: ComputeRate,
    /// Of loading, by path: a disk, a link.
    pub paths: Vec<LoadRate>,
}

/// The blocks of one prefix that is there.
#[derive(Clone, Copy, Debug)]
pub struct Prefix<'a> {
    /// Position of the first block's first token.
    pub first_token: u32,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// The blocks, in chain order.
    pub blocks: &'a [Lies],
}

/// A meeting point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Blocks before this one are computed, unless they are near; it and those after it are loaded.
    pub meet: u32,
    /// How long that takes until the last of them is there, as far as is known.
    pub nanoseconds: Option<f64>,
}

/// Chooses the meeting point of a prefix of which nothing has begun.
pub fn plan(prefix: &Prefix<'_>, rates: &Rates) -> Plan {
    let waits: Vec<f64> = rates.paths.iter().map(LoadRate::queue_nanoseconds).collect();
    choose(prefix, rates, waits)
}

/// `waits`: by path, how long it takes until the first of these loads has its turn.
fn choose(prefix: &Prefix<'_>, rates: &Rates, waits: Vec<f64>) -> Plan {
    let Some((computing, loading)) = times(prefix, rates, &waits) else {
        return Plan { meet: 0, nanoseconds: None };
    };
    let taken = |meet: usize| computing[meet].max(loading[meet]);
    let best = (0..computing.len()).min_by(|a, b| taken(*a).total_cmp(&taken(*b))).unwrap_or(0);
    let meet = if taken(best) > taken(0) * (1.0 - GAIN_MIN) { 0 } else { best };
    Plan { meet: meet as u32, nanoseconds: Some(taken(meet)) }
}

/// For each meeting point, what computing before it and loading from it on take. `None` where a rate is missing.
fn times(prefix: &Prefix<'_>, rates: &Rates, waits: &[f64]) -> Option<(Vec<f64>, Vec<f64>)> {
    let mut computing = Vec::with_capacity(prefix.blocks.len() + 1);
    let mut sum = 0.0;
    for (block, lies) in prefix.blocks.iter().enumerate() {
        computing.push(sum);
        if *lies != Lies::Near {
            let start = prefix.first_token + block as u32 * prefix.block_tokens;
            sum += rates.compute.nanoseconds(start, prefix.block_tokens)?;
        }
    }
    computing.push(sum);
    let mut loading = vec![0.0; prefix.blocks.len() + 1];
    let mut paths: Vec<Option<f64>> = vec![None; waits.len()];
    for (block, lies) in prefix.blocks.iter().enumerate().rev() {
        loading[block] = loading[block + 1];
        if let Lies::Far { path, bytes } = *lies {
            let takes = rates.paths.get(path)?.nanoseconds(bytes)?;
            let until = paths[path].unwrap_or(waits[path]) + takes;
            paths[path] = Some(until);
            loading[block] = until.max(loading[block]);
        }
    }
    Some((computing, loading))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It lies far away, and nothing has begun.
    Waiting,
    /// Being loaded.
    Loading,
    /// In memory: it was near, it was loaded, or it was computed.
    There,
    /// Its load has failed: it can only be computed.
    Lost,
}

/// What whoever computes is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Compute these blocks, which stand together; none of them is there.
    Compute {
        /// The first.
        first: u32,
        /// How many; at least one.
        blocks: u32,
    },
    /// Wait until a load ends, or until this moment: then ask again.
    Wait {
        /// When everything that is to be loaded is expected to be there; `None` if nothing is known of that.
        until: Option<Now>,
    },
    /// All blocks are there.
    Met,
}

/// A prefix on its way into memory: which blocks to load next, and which to compute.
///
/// The caller begins the loads that [`Meeting::next_load`] names, tells of their ends, computes what [`Meeting::next`] names, and tells of that.
#[derive(Clone, Debug)]
pub struct Meeting {
    first_token: u32,
    block_tokens: u32,
    blocks: Vec<Lies>,
    states: Vec<State>,
    /// By path: since when the load whose turn it is has had it.
    turns: Vec<Now>,
    computed: u32,
}

impl Meeting {
    /// A prefix of which nothing has begun.
    pub fn new(prefix: &Prefix<'_>) -> Meeting {
        let state = |lies: &Lies| if *lies == Lies::Near { State::There } else { State::Waiting };
        let path = |lies: &Lies| if let Lies::Far { path, .. } = lies { path + 1 } else { 0 };
        Meeting {
            first_token: prefix.first_token,
            block_tokens: prefix.block_tokens,
            blocks: prefix.blocks.to_vec(),
            states: prefix.blocks.iter().map(state).collect(),
            turns: vec![Now(0); prefix.blocks.iter().map(path).max().unwrap_or(0)],
            computed: 0,
        }
    }

    /// The next block to load, from the back; `None` while none is worth it. A block named here is being loaded from now on.
    ///
    /// While a path is idle and more than the next block is to be computed, the last block is loaded all the same: that is how a path that was
    /// slow once is seen to be quick again. Nobody waits for it if it is not.
    pub fn next_load(&mut self, rates: &Rates, now: Now) -> Option<u32> {
        let last = self.states.iter().rposition(|state| *state == State::Waiting)?;
        let Lies::Far { path, .. } = self.blocks[last] else {
            return None;
        };
        let is_idle = !self.is_busy(path);
        let is_probe = is_idle && self.front().is_some_and(|front| front < last);
        if !is_probe && (last as u32) < self.plan(rates, now).meet {
            return None;
        }
        if is_idle {
            self.turns[path] = now;
        }
        self.states[last] = State::Loading;
        Some(last as u32)
    }

    /// The load of a block has brought it.
    pub fn loaded(&mut self, block: u32, now: Now) {
        self.load_ended(block, State::There, now);
    }

    /// The load of a block has failed.
    pub fn failed(&mut self, block: u32, now: Now) {
        self.load_ended(block, State::Lost, now);
    }

    fn load_ended(&mut self, block: u32, state: State, now: Now) {
        if self.states[block as usize] == State::Loading {
            self.states[block as usize] = state;
        }
        if let Lies::Far { path, .. } = self.blocks[block as usize] {
            self.turns[path] = now;
        }
    }

    /// A block was computed.
    pub fn computed(&mut self, block: u32) {
        self.computed += u32::from(self.states[block as usize] != State::There);
        self.states[block as usize] = State::There;
    }

    /// What to do next, computing at most `most` blocks (at least one) before asking again.
    pub fn next(&self, rates: &Rates, most: u32, now: Now) -> Next {
        let Some(front) = self.front() else {
            return Next::Met;
        };
        let Plan { meet, nanoseconds } = self.plan(rates, now);
        // Everything before a lost block is there once it is the front.
        if self.states[front] != State::Lost && meet <= front as u32 {
            let until = nanoseconds.map(|left| Now(now.0.saturating_add(left.max(WAIT_MIN) as u64)));
            return Next::Wait { until };
        }
        let end = (meet as usize).max(front + 1);
        let is_missing = |state: &&State| **state != State::There;
        let run = self.states[front..end].iter().take(most.max(1) as usize).take_while(is_missing);
        Next::Compute { first: front as u32, blocks: run.count() as u32 }
    }

    /// Blocks that were computed although they could have been loaded.
    pub fn blocks_computed(&self) -> u32 {
        self.computed
    }

    /// The first block that is not there.
    fn front(&self) -> Option<usize> {
        self.states.iter().position(|state| *state != State::There)
    }

    fn is_busy(&self, path: usize) -> bool {
        let over = |lies: &Lies| matches!(lies, Lies::Far { path: other, .. } if *other == path);
        self.blocks.iter().zip(&self.states).any(|(lies, state)| over(lies) && *state == State::Loading)
    }

    /// The meeting point of what is left.
    fn plan(&self, rates: &Rates, now: Now) -> Plan {
        // One that is lost is computed whatever the meeting point is.
        let lies = |(lies, state): (&Lies, &State)| match state {
            State::There | State::Lost => Lies::Near,
            State::Waiting | State::Loading => *lies,
        };
        let blocks: Vec<Lies> = self.blocks.iter().zip(&self.states).map(lies).collect();
        let wait = |path: usize| {
            let rate = rates.paths.get(path);
            if !self.is_busy(path) {
                return rate.map_or(0.0, LoadRate::queue_nanoseconds);
            }
            // The load whose turn it is has had it for so long: that much less is left of it.
            let elapsed = now.since(self.turns[path]) as f64;
            let first = self.blocks.iter().zip(&self.states).rev().find_map(|(lies, state)| match (lies, state) {
                (Lies::Far { path: other, bytes }, State::Loading) if *other == path => Some(*bytes),
                _ => None,
            });
            let takes = first.and_then(|bytes| rate?.nanoseconds(bytes)).unwrap_or(0.0);
            if elapsed < takes { -elapsed } else { elapsed - 2.0 * takes }
        };
        let waits = (0..self.turns.len()).map(wait).collect();
        let prefix = Prefix { first_token: self.first_token, block_tokens: self.block_tokens, blocks: &blocks };
        choose(&prefix, rates, waits)
    }
}
