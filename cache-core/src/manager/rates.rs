//! What computing and loading take, as measured. Figures in, estimates out: the clock is the caller's.
//!
//! Computing token n of a sequence costs `a + b n` nanoseconds: its own rows, and attention over what is before it. Loading takes `bytes / rate`
//! after a wait for what others asked for first. Two things change on a machine, and differently fast: how the cost grows with the
//! position (with the model, hardly ever), and how fast everything goes (with whatever else runs, at any time). So the first is fitted over
//! a long memory and the second over a short one; and when reports in a row are off to the same side, three by half or one by three and a half times,
//! the whole memory is scaled to them. So a wrong estimate is right again after three reports at most, however long it had been confirmed; and so
//! is one that a single odd report has spoiled, after the next.

/// Weight that the memory of the level keeps with each report: about the last six count.
const LEVEL_KEEPS: f64 = 0.85;
/// Weight that the memory of the slope keeps with each report: about the last hundred count.
const SLOPE_KEEPS: f64 = 0.99;
/// Positions that are less than this many tokens apart say little about a slope.
const SPREAD_TOKENS: f64 = 64.0;
/// Reports within this factor say that the estimate is good.
const OFF: f64 = 1.5;
/// Others, to the same side, that are off by this factor together mean that the machine has changed.
const CHANGED: f64 = OFF * OFF * OFF;

/// Notices that reports have left the estimates for good.
#[derive(Clone, Debug, Default)]
struct Drift {
    run: u32,
    is_slower: bool,
    product: f64,
}

impl Drift {
    /// Takes what was measured over what was expected; the factor that the past is off by, once that is certain.
    fn see(&mut self, ratio: f64) -> Option<f64> {
        let is_slower = ratio > 1.0;
        if (1.0 / OFF..=OFF).contains(&ratio) {
            self.run = 0;
            return None;
        }
        if self.run == 0 || is_slower != self.is_slower {
            *self = Drift { run: 0, is_slower, product: 1.0 };
        }
        self.run += 1;
        self.product *= ratio;
        if (1.0 / CHANGED..CHANGED).contains(&self.product) {
            return None;
        }
        let factor = self.product.powf(1.0 / f64::from(self.run));
        self.run = 0;
        Some(factor)
    }
}

/// Sums over reports, each weighed by its tokens and by its age. `cost`: nanoseconds a token; `place`: mean position of the tokens.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    tokens: f64,
    place: f64,
    place_squared: f64,
    cost: f64,
    cost_place: f64,
}

impl Sums {
    fn add(&mut self, keeps: f64, tokens: f64, place: f64, cost: f64) {
        let add = |sum: &mut f64, more: f64| *sum = *sum * keeps + tokens * more;
        add(&mut self.tokens, 1.0);
        add(&mut self.place, place);
        add(&mut self.place_squared, place * place);
        add(&mut self.cost, cost);
        add(&mut self.cost_place, cost * place);
    }

    fn scale_cost(&mut self, factor: f64) {
        self.cost *= factor;
        self.cost_place *= factor;
    }
}

/// What computing tokens costs, fitted from an engine's reports.
#[derive(Clone, Debug, Default)]
pub struct ComputeRate {
    level: Sums,
    slope: Sums,
    drift: Drift,
}

fn mean_place(start: u32, tokens: u32) -> f64 {
    f64::from(start) + (f64::from(tokens) - 1.0) / 2.0
}

impl ComputeRate {
    /// Takes in that computing `tokens` tokens from position `start` on took `nanoseconds`. Reports of nothing are ignored.
    pub fn report(&mut self, start: u32, tokens: u32, nanoseconds: u64) {
        if tokens == 0 || nanoseconds == 0 {
            return;
        }
        if let Some(expected) = self.nanoseconds(start, tokens)
            && let Some(factor) = self.drift.see(nanoseconds as f64 / expected)
        {
            self.level.scale_cost(factor);
            self.slope.scale_cost(factor);
        }
        let (weight, place) = (f64::from(tokens), mean_place(start, tokens));
        let cost = nanoseconds as f64 / weight;
        self.level.add(LEVEL_KEEPS, weight, place, cost);
        self.slope.add(SLOPE_KEEPS, weight, place, cost);
    }

    /// What computing `tokens` tokens from position `start` on takes; `None` before the first report.
    pub fn nanoseconds(&self, start: u32, tokens: u32) -> Option<f64> {
        if self.level.tokens == 0.0 {
            return None;
        }
        let growth = self.growth();
        let level = self.level.cost / (self.level.tokens + growth * self.level.place);
        Some(level * f64::from(tokens) * (1.0 + growth * mean_place(start, tokens)))
    }

    /// `b / a`: how the cost grows with the position, in parts of the first token's cost. Both parts are costs, so neither is negative.
    fn growth(&self) -> f64 {
        let Sums { tokens, place, place_squared, cost, cost_place } = self.slope;
        let (mean_place, mean_cost) = (place / tokens, cost / tokens);
        let spread = (place_squared / tokens - mean_place * mean_place).max(0.0);
        let common = cost_place / tokens - mean_place * mean_cost;
        let slope = (common / (spread + SPREAD_TOKENS * SPREAD_TOKENS)).max(0.0);
        // The least share of the cost that is left to the rows themselves: a token at position 0 is not free.
        let base = (mean_cost - slope * mean_place).max(mean_cost / 100.0);
        (mean_cost - base) / mean_place.max(1.0) / base
    }
}

/// What loading over one path takes.
#[derive(Clone, Debug, Default)]
pub struct LoadRate {
    bytes: f64,
    nanoseconds: f64,
    queue: f64,
    drift: Drift,
}

impl LoadRate {
    /// Takes in that loading `bytes` took `nanoseconds` from the moment that it was their turn, after a wait of `queue_nanoseconds` for what others
    /// had asked for before. Reports of nothing are ignored.
    pub fn report(&mut self, bytes: u64, nanoseconds: u64, queue_nanoseconds: u64) {
        if bytes == 0 || nanoseconds == 0 {
            return;
        }
        self.queue = if self.bytes == 0.0 { 0.0 } else { self.queue * 0.5 } + queue_nanoseconds as f64 * 0.5;
        if let Some(expected) = self.nanoseconds(bytes)
            && let Some(factor) = self.drift.see(nanoseconds as f64 / expected)
        {
            self.nanoseconds *= factor;
        }
        self.bytes = self.bytes * LEVEL_KEEPS + bytes as f64;
        self.nanoseconds = self.nanoseconds * LEVEL_KEEPS + nanoseconds as f64;
    }

    /// What loading `bytes` takes once it is their turn; `None` before the first report.
    pub fn nanoseconds(&self, bytes: u64) -> Option<f64> {
        (self.bytes > 0.0).then(|| bytes as f64 * self.nanoseconds / self.bytes)
    }

    /// How long it takes until it is one's turn.
    pub fn queue_nanoseconds(&self) -> f64 {
        self.queue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64, part: f64) -> bool {
        (found / expected - 1.0).abs() <= part
    }

    fn cost(start: u32, tokens: u32) -> f64 {
        f64::from(tokens) * (100_000.0 + 50.0 * mean_place(start, tokens))
    }

    #[test]
    fn nothing_is_known_before_the_first_report() {
        let (mut compute, mut load) = (ComputeRate::default(), LoadRate::default());
        compute.report(0, 0, 5);
        load.report(0, 5, 5);
        assert_eq!((compute.nanoseconds(0, 64), load.nanoseconds(4096)), (None, None));
    }

    #[test]
    fn the_fit_finds_both_parts_of_the_cost() {
        let mut compute = ComputeRate::default();
        for chunk in 0..40 {
            compute.report(chunk * 256, 256, cost(chunk * 256, 256) as u64);
        }
        for (start, tokens) in [(0, 64), (5_000, 64), (20_000, 512)] {
            let found = compute.nanoseconds(start, tokens).unwrap();
            assert!(near(found, cost(start, tokens), 0.02), "{start}: {found} of {}", cost(start, tokens));
        }
    }

    #[test]
    fn reports_from_one_place_do_not_invent_a_slope() {
        let mut compute = ComputeRate::default();
        for turn in 0..40u32 {
            let noise = if turn % 2 == 0 { 1.05 } else { 0.95 };
            compute.report(30_000 + turn, 64, (cost(30_000, 64) * noise) as u64);
        }
        assert!(near(compute.nanoseconds(30_100, 64).unwrap(), cost(30_000, 64), 0.1));
    }

    #[test]
    fn a_machine_that_changes_is_noticed_after_three_reports() {
        for factor in [10.0, 0.1] {
            let (mut compute, mut load) = (ComputeRate::default(), LoadRate::default());
            for chunk in 0..100 {
                compute.report(chunk * 64, 64, cost(chunk * 64, 64) as u64);
                load.report(1 << 20, 1_000_000, 0);
            }
            for chunk in 0..3 {
                compute.report(chunk * 64, 64, (cost(chunk * 64, 64) * factor) as u64);
                load.report(1 << 20, (1e6 * factor) as u64, 0);
            }
            assert!(near(compute.nanoseconds(1_000, 64).unwrap(), cost(1_000, 64) * factor, 0.15), "{factor}");
            assert!(near(load.nanoseconds(1 << 20).unwrap(), 1e6 * factor, 0.05), "{factor}");
        }
    }

    #[test]
    fn slow_reports_are_no_change_before_they_agree() {
        let mut load = LoadRate::default();
        (0..100).for_each(|_| load.report(1 << 20, 1_000_000, 0));
        load.report(1 << 20, 2_500_000, 0);
        load.report(1 << 20, 1_000_000, 0);
        load.report(1 << 20, 2_500_000, 0);
        assert!(load.nanoseconds(1 << 20).unwrap() < 1.6e6);
    }

    #[test]
    fn one_odd_report_spoils_nothing_but_the_next_estimate() {
        let mut load = LoadRate::default();
        (0..100).for_each(|_| load.report(1 << 20, 1_000_000, 0));
        load.report(1 << 20, 50_000_000, 0);
        load.report(1 << 20, 1_000_000, 0);
        assert!(near(load.nanoseconds(1 << 20).unwrap(), 1e6, 0.05));
    }

    #[test]
    fn a_queue_is_remembered_and_forgotten() {
        let mut load = LoadRate::default();
        (0..8).for_each(|_| load.report(1 << 20, 1_000_000, 4_000_000));
        assert!(near(load.queue_nanoseconds(), 4e6, 0.01));
        (0..8).for_each(|_| load.report(1 << 20, 1_000_000, 0));
        assert!(load.queue_nanoseconds() < 1e5);
    }
}
