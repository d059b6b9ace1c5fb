//! Load or compute, on virtual time: what meeting in the middle takes, against a clairvoyant who knows how long everything will take.
//!
//! One seed alone: `KVTIER_SEED=n cargo test -p cache-core --test load_or_compute`.

mod random;

use cache_core::manager::{Lies, Meeting, Next, Plan, Prefix, Rates, plan};
use cache_core::units::Now;
use random::Random;

const BLOCK_TOKENS: u32 = 64;
const BLOCK_BYTES: u64 = 1 << 21;

/// How long everything takes on one machine; what is measured scatters about it.
#[derive(Clone, Copy, Debug)]
struct Machine {
    /// Nanoseconds a token, and more for each position before it.
    base: f64,
    growth: f64,
    /// Nanoseconds a block.
    load: f64,
    /// Relative scatter of both.
    scatter: f64,
    /// Loads under way at once, which the path takes one after the other.
    depth: usize,
    /// Blocks computed in one step.
    chunk: u32,
}

impl Machine {
    /// Computing a block takes `ratio` times as long as loading one, in the middle of `blocks` blocks.
    fn new(random: &mut Random, ratio: f64, blocks: u32) -> Machine {
        let base = random.between(1e4, 1e6);
        let growth = random.part() * 4.0 / 16_384.0;
        let middle = f64::from(blocks * BLOCK_TOKENS) / 2.0;
        let computing = base * (1.0 + growth * middle) * f64::from(BLOCK_TOKENS);
        let (depth, chunk) = (1 + random.below(4), 1 + random.below(4) as u32);
        Machine { base, growth, load: computing / ratio, scatter: 0.1, depth, chunk }
    }

    fn compute(&self, random: &mut Random, block: u32) -> f64 {
        let middle = f64::from(block * BLOCK_TOKENS) + f64::from(BLOCK_TOKENS) / 2.0;
        self.base * (1.0 + self.growth * middle) * f64::from(BLOCK_TOKENS) * random.about_one(self.scatter)
    }
}

/// What each block of one prefix really takes.
struct Truth {
    computing: Vec<f64>,
    loading: Vec<f64>,
}

impl Truth {
    fn new(machine: &Machine, random: &mut Random, blocks: u32) -> Truth {
        Truth {
            computing: (0..blocks).map(|block| machine.compute(random, block)).collect(),
            loading: (0..blocks).map(|_| machine.load * random.about_one(machine.scatter)).collect(),
        }
    }

    /// The best of all meeting points.
    fn clairvoyant(&self) -> f64 {
        let taken = |meet: usize| {
            let computing: f64 = self.computing[..meet].iter().sum();
            let loading: f64 = self.loading[meet..].iter().sum();
            computing.max(loading)
        };
        (0..=self.computing.len()).map(taken).min_by(f64::total_cmp).unwrap()
    }
}

/// Brings one prefix into memory, as an engine would; returns the nanoseconds that this took.
fn bring(machine: &Machine, truth: &Truth, rates: &mut Rates) -> f64 {
    let lies = vec![Lies::Far { path: 0, bytes: BLOCK_BYTES }; truth.computing.len()];
    let mut meeting = Meeting::new(&Prefix { first_token: 0, block_tokens: BLOCK_TOKENS, blocks: &lies });
    let mut now = 0.0;
    // What the path works on, in order, with the end of the first; and what is being computed, with its end.
    let mut queue: Vec<u32> = Vec::new();
    let mut load_ends = f64::INFINITY;
    let mut step: Option<(u32, u32, f64)> = None;
    loop {
        while queue.len() < machine.depth
            && let Some(block) = meeting.next_load(rates, Now(now as u64))
        {
            if queue.is_empty() {
                load_ends = now + truth.loading[block as usize];
            }
            queue.push(block);
        }
        let mut wakes = f64::INFINITY;
        if step.is_none() {
            match meeting.next(rates, machine.chunk, Now(now as u64)) {
                Next::Met => return now,
                Next::Wait { until } => wakes = until.map_or(wakes, |until| until.0 as f64),
                Next::Compute { first, blocks } => {
                    let takes: f64 = truth.computing[first as usize..(first + blocks) as usize].iter().sum();
                    step = Some((first, blocks, now + takes));
                }
            }
        }
        let step_ends = step.map_or(f64::INFINITY, |(.., ends)| ends);
        let next = load_ends.min(step_ends).min(wakes);
        assert!(next.is_finite(), "nothing will ever happen: {meeting:?}");
        now = next;
        if load_ends <= now {
            let block = queue.remove(0);
            rates.paths[0].report(BLOCK_BYTES, truth.loading[block as usize] as u64, 0);
            meeting.loaded(block, Now(now as u64));
            load_ends = queue.first().map_or(f64::INFINITY, |next| now + truth.loading[*next as usize]);
        }
        if let Some((first, blocks, _)) = step.filter(|(.., ends)| *ends <= now) {
            let takes: f64 = truth.computing[first as usize..(first + blocks) as usize].iter().sum();
            rates.compute.report(first * BLOCK_TOKENS, blocks * BLOCK_TOKENS, takes as u64);
            (first..first + blocks).for_each(|block| meeting.computed(block));
            step = None;
        }
    }
}

/// What comes after a prefix is computed in any case.
fn continue_after(machine: &Machine, random: &mut Random, rates: &mut Rates, blocks: u32) {
    for block in blocks..blocks + 1 + random.below(3) as u32 {
        let takes = machine.compute(random, block);
        rates.compute.report(block * BLOCK_TOKENS, BLOCK_TOKENS, takes as u64);
    }
}

fn new_rates() -> Rates {
    Rates { paths: vec![Default::default()], ..Rates::default() }
}

fn seeds(count: u64) -> Vec<u64> {
    let one = std::env::var("KVTIER_SEED").ok();
    one.map_or((0..count).collect(), |seed| vec![seed.parse().expect("KVTIER_SEED is a number")])
}

/// Mean and 99th percentile.
fn summary(regrets: &mut [f64]) -> (f64, f64) {
    regrets.sort_by(f64::total_cmp);
    assert!(regrets[0] > -1e-6, "somebody was better than the best: {}", regrets[0]);
    let mean = regrets.iter().sum::<f64>() / regrets.len() as f64;
    (mean, regrets[(regrets.len() * 99 / 100).min(regrets.len() - 1)])
}

/// Prompts on machines between a tenth and ten times break-even. The first prompt of a machine meets no measurements at all and does not count.
fn regrets(count: u64, learn: bool) -> Vec<f64> {
    let mut regrets = Vec::new();
    for seed in seeds(count) {
        let mut random = Random(seed);
        let (ratio, blocks) = (random.between(0.1, 10.0), random.between(1.0, 300.0) as u32);
        let machine = Machine::new(&mut random, ratio, blocks);
        let mut rates = new_rates();
        for prompt in 0..4 {
            let blocks = if prompt == 0 { 8 } else { (f64::from(blocks) * random.between(0.5, 1.0)).ceil() as u32 };
            let truth = Truth::new(&machine, &mut random, blocks);
            let mut forgotten = new_rates();
            let taken = bring(&machine, &truth, if learn { &mut rates } else { &mut forgotten });
            continue_after(&machine, &mut random, &mut rates, blocks);
            if prompt > 0 {
                regrets.push(taken / truth.clairvoyant() - 1.0);
            }
        }
    }
    regrets
}

#[test]
fn regret_against_the_clairvoyant_is_small() {
    let mut regrets = regrets(2_000, true);
    let (mean, high) = summary(&mut regrets);
    println!("{} prefixes: regret {:.2} % mean, {:.2} % at the 99th percentile", regrets.len(), mean * 1e2, high * 1e2);
    assert!(mean <= 0.05 && high <= 0.20, "mean {mean}, 99th percentile {high}");
}

/// The rig itself: without learning, everything is loaded, which is a multiple of the bar.
#[test]
fn a_plan_that_never_learns_is_caught() {
    let (mean, high) = summary(&mut regrets(300, false));
    assert!(mean > 0.5 && high > 2.0, "mean {mean}, 99th percentile {high}");
}

/// After one prefix of eight blocks with estimates that are off by ten times, however often confirmed, the next prefix is brought well.
#[test]
fn a_wrong_first_estimate_corrects_itself_within_eight_blocks() {
    let mut after = Vec::new();
    for seed in seeds(1_000) {
        let mut random = Random(seed);
        let ratio = random.between(0.1, 10.0);
        let machine = Machine::new(&mut random, ratio, 64);
        let off = if random.chance(50) { 10.0 } else { 0.1 };
        let wrong_load = random.chance(50);
        let mut rates = new_rates();
        for turn in 0..1 + random.below(200) as u32 {
            let (load, compute) = if wrong_load { (off, 1.0) } else { (1.0, off) };
            let block = turn % 8;
            let takes = machine.compute(&mut random, block) * compute;
            rates.compute.report(block * BLOCK_TOKENS, BLOCK_TOKENS, takes as u64);
            rates.paths[0].report(BLOCK_BYTES, (machine.load * load * random.about_one(0.1)) as u64, 0);
        }
        bring(&machine, &Truth::new(&machine, &mut random, 8), &mut rates);
        continue_after(&machine, &mut random, &mut rates, 8);
        let truth = Truth::new(&machine, &mut random, 64);
        let taken = bring(&machine, &truth, &mut rates);
        after.push(taken / truth.clairvoyant() - 1.0);
    }
    let (mean, high) = summary(&mut after);
    println!("after eight blocks: regret {:.2} % mean, {:.2} % at the 99th percentile", mean * 1e2, high * 1e2);
    assert!(mean <= 0.05 && high <= 0.20, "mean {mean}, 99th percentile {high}");
}

#[test]
fn quick_loads_and_unknown_rates_load_everything() {
    let blocks = vec![Lies::Far { path: 0, bytes: BLOCK_BYTES }; 500];
    let prefix = Prefix { first_token: 0, block_tokens: BLOCK_TOKENS, blocks: &blocks };
    assert_eq!(plan(&prefix, &new_rates()), Plan { meet: 0, nanoseconds: None });
    let mut rates = new_rates();
    rates.compute.report(0, 64, 100_000_000);
    assert_eq!(plan(&prefix, &rates).meet, 0, "nothing is known of loading");
    rates.paths[0].report(BLOCK_BYTES, 1_000_000, 0);
    assert_eq!(plan(&prefix, &rates).meet, 0, "loading is a hundred times quicker");
    rates.paths[0] = Default::default();
    rates.paths[0].report(BLOCK_BYTES, 100_000_000, 0);
    let meet = plan(&prefix, &rates).meet;
    assert_eq!(meet, 250, "break-even: they meet in the middle");
}

#[test]
fn blocks_in_memory_cost_nothing_on_either_side() {
    let far = Lies::Far { path: 0, bytes: BLOCK_BYTES };
    let mut rates = new_rates();
    rates.compute.report(0, 64, 1_000_000);
    rates.paths[0].report(BLOCK_BYTES, 1_000_000, 0);
    let blocks = [Lies::Near, Lies::Near, far, Lies::Near, far, Lies::Near];
    let plan = plan(&Prefix { first_token: 0, block_tokens: BLOCK_TOKENS, blocks: &blocks }, &rates);
    assert_eq!((plan.meet, plan.nanoseconds), (3, Some(1e6)));
}

/// A path that hangs: the load that was begun is not waited for, whatever was measured before.
#[test]
fn what_is_stuck_is_computed() {
    let mut rates = new_rates();
    rates.compute.report(0, 64, 50_000_000);
    rates.paths[0].report(BLOCK_BYTES, 1_000_000, 0);
    let blocks = [Lies::Far { path: 0, bytes: BLOCK_BYTES }; 4];
    let mut meeting = Meeting::new(&Prefix { first_token: 0, block_tokens: BLOCK_TOKENS, blocks: &blocks });
    let begun: Vec<u32> = std::iter::from_fn(|| meeting.next_load(&rates, Now(0))).collect();
    assert_eq!(begun, [3, 2, 1, 0], "from the back");
    let mut now = Now(0);
    let mut turns = 0;
    while let Next::Wait { until } = meeting.next(&rates, 8, now) {
        now = until.expect("both rates are known");
        turns += 1;
        assert!(turns < 100, "{now:?}");
    }
    assert!(now.0 < 400_000_000, "after {now:?}");
    let mut computed = Vec::new();
    while let Next::Compute { first, blocks } = meeting.next(&rates, 1, now) {
        (first..first + blocks).for_each(|block| meeting.computed(block));
        computed.push(first);
        now = Now(now.0 + 50_000_000);
    }
    assert_eq!((computed, meeting.next(&rates, 1, now)), (vec![0, 1, 2, 3], Next::Met));
    assert_eq!(meeting.blocks_computed(), 4);
}

#[test]
fn a_block_whose_load_fails_is_computed_once_everything_before_it_is_there() {
    let mut rates = new_rates();
    rates.compute.report(0, 64, 50_000_000);
    rates.paths[0].report(BLOCK_BYTES, 1_000_000, 0);
    let blocks = [Lies::Far { path: 0, bytes: BLOCK_BYTES }; 4];
    let mut meeting = Meeting::new(&Prefix { first_token: 0, block_tokens: BLOCK_TOKENS, blocks: &blocks });
    while meeting.next_load(&rates, Now(0)).is_some() {}
    meeting.loaded(3, Now(1_000_000));
    meeting.failed(2, Now(2_000_000));
    assert!(matches!(meeting.next(&rates, 8, Now(2_000_000)), Next::Wait { .. }));
    meeting.loaded(1, Now(3_000_000));
    meeting.loaded(0, Now(4_000_000));
    assert_eq!(meeting.next(&rates, 8, Now(4_000_000)), Next::Compute { first: 2, blocks: 1 });
    meeting.computed(2);
    assert_eq!(meeting.next(&rates, 8, Now(4_000_000)), Next::Met);
}
