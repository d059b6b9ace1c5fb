//! The order of blocks, and what orders accesses inside of one.

use super::Schedule;
use super::random::Random;

/// Block numbers in the order in which they run.
pub(super) fn blocks(count: u64, schedule: Schedule) -> Box<dyn Iterator<Item = u64>> {
    match schedule {
        Schedule::Forward => Box::new(0..count),
        Schedule::Reverse => Box::new((0..count).rev()),
        Schedule::Random(seed) => {
            let mut random = Random::new(seed ^ 0xB10C);
            let mut numbers: Vec<u64> = (0..count).collect();
            for last in (1..numbers.len()).rev() {
                numbers.swap(last, random.below(last as u64 + 1) as usize);
            }
            Box::new(numbers.into_iter())
        }
    }
}

/// The place of a number in a box of these sides, x first.
pub(super) fn position(number: u64, sides: [u32; 3]) -> [u32; 3] {
    let [x, y] = [u64::from(sides[0]), u64::from(sides[1])];
    [(number % x) as u32, (number / x % y) as u32, (number / x / y) as u32]
}

/// Who has seen whose accesses. Time is a number that grows with every barrier; an access is stamped with the time at which it
/// was made, and comes before another thread's when that thread has since met it in a barrier.
#[derive(Debug, Default)]
pub(super) struct Order {
    pub(super) now: u32,
    /// `warps[a][b]`: accesses of warp b up to this time come before what warp a does now.
    warps: Vec<Vec<u32>>,
    lanes: Vec<LaneOrder>,
}

/// The same between the lanes of a warp.
#[derive(Clone, Debug, Default)]
struct LaneOrder {
    /// All lanes have met after this time.
    all: u32,
    /// Pairs of lanes that have met without the others: row times 32 plus column; empty while there are none.
    pairs: Vec<u32>,
}

impl Order {
    pub(super) fn reset(&mut self, warps: usize) {
        self.now = 1;
        self.warps = vec![vec![0; warps]; warps];
        self.lanes = vec![LaneOrder::default(); warps];
    }

    /// Warps meet in a barrier of the block.
    pub(super) fn meet_warps(&mut self, warps: u32) {
        let time = self.now;
        self.now += 1;
        let members: Vec<usize> = crate::instruction::lanes(warps).collect();
        let mut merged = vec![0; self.warps.len()];
        for member in &members {
            for (to, from) in merged.iter_mut().zip(&self.warps[*member]) {
                *to = (*to).max(*from);
            }
        }
        members.iter().for_each(|member| merged[*member] = time);
        for member in members {
            self.warps[member].clone_from(&merged);
            self.lanes[member].all = time;
        }
    }

    /// Lanes of a warp meet; `whole` when none is missing.
    pub(super) fn meet_lanes(&mut self, warp: usize, lanes: u32, whole: bool) {
        let time = self.now;
        self.now += 1;
        let order = &mut self.lanes[warp];
        if whole {
            order.all = time;
            return;
        }
        order.pairs.resize(32 * 32, 0);
        for a in crate::instruction::lanes(lanes) {
            for b in crate::instruction::lanes(lanes) {
                order.pairs[32 * a + b] = time;
            }
        }
    }

    /// Whether an access of thread `earlier` at `time` comes before what thread `later` does now.
    pub(super) fn is_before(&self, earlier: u16, time: u32, later: u16) -> bool {
        let (from, to) = (usize::from(earlier / 32), usize::from(later / 32));
        if earlier == later {
            return true;
        }
        if from != to {
            return self.warps[to][from] >= time;
        }
        let order = &self.lanes[to];
        let pair = order.pairs.get(32 * usize::from(later % 32) + usize::from(earlier % 32));
        order.all >= time || pair.is_some_and(|met| *met >= time)
    }

    /// Whether all accesses of a warp's lanes at `time` come before what thread `later` does now.
    pub(super) fn is_warp_before(&self, warp: usize, time: u32, later: u16) -> bool {
        let to = usize::from(later / 32);
        if warp == to { self.lanes[to].all >= time } else { self.warps[to][warp] >= time }
    }
}
