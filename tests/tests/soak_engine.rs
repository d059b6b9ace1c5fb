//! The long form of two checks, run by `cargo xtask soak engine`: **canonical numerics** over 30 prompts of 40 to 4,000 tokens, and the
//! reference path's log-probabilities of 1,500 and 4,000 tokens. The short forms are `numerics.rs` and `fidelity.rs`.
//!
//! Each part answers prompts with 64 tokens each and compares the digest of all logits, bit for bit, with a run without any cache.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use cache_core::chain::Chain;
use cache_core::form::Accept;
use gpu_tier::cpu::isa::Isa;
use gpu_tier::device::Stream;
use kvtier_engine::EngineError;
use kvtier_engine::model::{Model, Path};
use kvtier_engine::run::engine::{Engine, EngineOptions};
use kvtier_engine::run::{Form, Link};
use kvtier_sdk::cache::{BlockPlace, KvCache};
use kvtier_tests::golden::{load, worst_difference};
use kvtier_tests::{STRICT, TOKEN_BYTES, ask, ask_together, fixture, options, plain, turn};

/// 13 prompts up to 300 tokens, 8 up to 700, 7 up to 3,000 and two of 4,000.
const LENGTHS: [usize; 30] = [
    40, 52, 63, 64, 65, 77, 96, 128, 129, 160, 201, 257, 300, 333, 384, 400, 449, 512, 577, 640, 700, 769, 896, 1025,
    1280, 1601, 2048, 2900, 4000, 4000,
];
const TOKENS: u32 = 64;
/// The prompts that chunks of 1 and 7 rows get: all up to 700 tokens and one of 4,000.
const SMALL_CHUNKS: [std::ops::Range<usize>; 2] = [0..21, 29..30];

type Digest = [u8; 32];

/// Prints how long a part took, and all parts so far.
struct Part {
    name: String,
    begun: Instant,
}

impl Part {
    fn begin(name: impl Into<String>) -> Part {
        started();
        Part { name: name.into(), begun: Instant::now() }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let (own, all) = (self.begun.elapsed().as_secs(), started().elapsed().as_secs());
        let state = if std::thread::panicking() { "FAILED" } else { "ok" };
        println!("  {}: {state}, {own} s; the soak so far: {} min {} s", self.name, all / 60, all % 60);
    }
}

fn started() -> Instant {
    static STARTED: OnceLock<Instant> = OnceLock::new();
    *STARTED.get_or_init(Instant::now)
}

/// Cut from the demo's document, each at another place.
fn prompts() -> Vec<Vec<u32>> {
    let room = |length: usize| fixture().tokens.len() - length;
    LENGTHS.iter().enumerate().map(|(index, length)| fixture().prompt(index * 977 % room(*length), *length)).collect()
}

/// Digests without any cache, in chunks of 512, with two threads and the best instruction set.
fn expected() -> &'static [Digest] {
    static EXPECTED: OnceLock<Vec<Digest>> = OnceLock::new();
    EXPECTED.get_or_init(|| {
        let _part = Part::begin("no cache, chunks of 512, 2 threads: what the rest is compared with");
        let mut engine = fixture().engine(plain());
        prompts().iter().map(|prompt| ask(&mut engine, prompt, TOKENS).logits_digest).collect()
    })
}

/// Answers the prompts `which` with one engine and compares.
fn compare(name: &str, options: EngineOptions, which: impl Iterator<Item = usize>) {
    let expected = expected();
    let _part = Part::begin(name);
    let mut engine = fixture().engine(options);
    let prompts = prompts();
    for index in which {
        let answer = ask(&mut engine, &prompts[index], TOKENS);
        assert_eq!(answer.logits_digest, expected[index], "{name}: {} tokens", prompts[index].len());
    }
}

fn all() -> impl Iterator<Item = usize> {
    0..LENGTHS.len()
}

#[test]
#[ignore = "minutes: cargo xtask soak engine"]
fn chunk_size_leaves_no_trace() {
    let _turn = turn();
    compare("chunks of 64, cold", EngineOptions { chunk: 64, ..options() }, all());
    compare("chunks of 512, cold", EngineOptions { chunk: 512, ..options() }, all());
    for chunk in [1, 7] {
        let which = SMALL_CHUNKS.into_iter().flatten();
        compare(&format!("chunks of {chunk}, 22 prompts"), EngineOptions { chunk, ..options() }, which);
    }
}

#[test]
#[ignore = "minutes: cargo xtask soak engine"]
fn threads_leave_no_trace() {
    let _turn = turn();
    compare("1 thread", EngineOptions { threads: 1, ..options() }, all());
}

/// The scalar twin is compared in `numerics.rs`.
#[test]
#[ignore = "minutes: cargo xtask soak engine"]
fn instruction_sets_give_the_same_bits() {
    let _turn = turn();
    println!("  instruction sets here: {:?}", Isa::available());
    for isa in Isa::available().into_iter().filter(|isa| ![Isa::Scalar, Isa::detect()].contains(isa)) {
        compare(isa.name(), EngineOptions { isa, ..options() }, all());
    }
}

/// Each prompt beside one of another length: the shortest with the longest, and so on inwards.
#[test]
#[ignore = "minutes: cargo xtask soak engine"]
fn company_leaves_no_trace() {
    let _turn = turn();
    let (expected, prompts) = (expected(), prompts());
    let _part = Part::begin("beside another");
    let mut engine = fixture().engine(options());
    for short in 0..LENGTHS.len() / 2 {
        let long = LENGTHS.len() - 1 - short;
        let answers = ask_together(&mut engine, &[&prompts[short], &prompts[long]], TOKENS);
        let digests = [answers[0].logits_digest, answers[1].logits_digest];
        let lengths = (LENGTHS[short], LENGTHS[long]);
        assert_eq!(digests, [expected[short], expected[long]], "{lengths:?}");
    }
}

/// Every full block but the one of the last token is a hit the second time.
#[test]
#[ignore = "minutes: cargo xtask soak engine"]
fn warm_from_device_equals_cold() {
    let _turn = turn();
    let (expected, prompts) = (expected(), prompts());
    let _part = Part::begin("warm from device");
    let mut engine = fixture().engine(options());
    for (prompt, expected) in prompts.iter().zip(expected) {
        let cold = ask(&mut engine, prompt, TOKENS);
        assert_eq!(cold.cached_tokens.device + cold.cached_tokens.host, 0, "the prompts share no block");
        let warm = ask(&mut engine, prompt, TOKENS);
        assert_eq!([cold.logits_digest, warm.logits_digest], [*expected; 2], "{} tokens", prompt.len());
        assert_eq!(warm.cached_tokens.device, cacheable(prompt));
    }
}

fn cacheable(prompt: &[u32]) -> u32 {
    (prompt.len() as u32 - 1) / 64 * 64
}

/// A device that holds the longest prompt and little more: what is asked in between sends each prompt's blocks to the host.
fn warm_from_host(link: Link) {
    let (expected, prompts) = (expected(), prompts());
    let _part = Part::begin(format!("warm from host, {link:?}"));
    let device_bytes = 4_400 * TOKEN_BYTES + (16 << 20);
    let mut engine = fixture().engine(EngineOptions { device_bytes, host_bytes: 1 << 30, link, ..options() });
    for prompt in &prompts {
        ask(&mut engine, prompt, TOKENS);
    }
    ask(&mut engine, &fixture().prompt(100, 4_300), 1);
    let (mut from_host, mut from_device, mut loaded) = (0, 0, 0);
    for (prompt, expected) in prompts.iter().zip(expected) {
        let warm = ask(&mut engine, prompt, TOKENS);
        assert_eq!(warm.logits_digest, *expected, "{} tokens", prompt.len());
        assert_eq!(warm.cached_tokens.device + warm.cached_tokens.host, cacheable(prompt), "{} tokens", prompt.len());
        from_host += warm.cached_tokens.host;
        from_device += warm.cached_tokens.device;
        loaded += warm.loaded.host;
    }
    let memory = engine.memory();
    println!(
        "  {from_host} tokens from the host, {from_device} from the device, {:.1} MB loaded; device peak {:.1} of {:.1} MB",
        loaded as f64 / 1e6,
        memory.peak_bytes as f64 / 1e6,
        memory.budget_bytes as f64 / 1e6
    );
    assert!(from_host > 20 * from_device, "{from_host} tokens from the host, {from_device} from the device");
    assert!(memory.peak_bytes <= memory.budget_bytes);
    assert_eq!(loaded > 0, link == STRICT, "{loaded} bytes");
}

#[test]
#[ignore = "minutes: cargo xtask soak engine"]
fn warm_from_host_in_place_equals_cold() {
    let _turn = turn();
    warm_from_host(Link::InPlace);
}

#[test]
#[ignore = "minutes: cargo xtask soak engine"]
fn warm_from_host_over_the_link_equals_cold() {
    let _turn = turn();
    warm_from_host(STRICT);
}

/// An engine with an eighth of the sequence's KV as its device budget, or with the least that it accepts if that is more.
fn eighth(prompt: &[u32], options: EngineOptions) -> (Engine, u64, bool) {
    let kv_bytes = (prompt.len() as u64 + u64::from(TOKENS)) * TOKEN_BYTES;
    let open = |device_bytes| {
        Engine::open(Arc::clone(&fixture().model), fixture().weights, EngineOptions { device_bytes, ..options.clone() })
    };
    match open(kv_bytes / 8) {
        Ok(engine) => (engine, kv_bytes / 8, true),
        Err(EngineError::Budget { minimum_bytes, .. }) => {
            (open(minimum_bytes).expect("the stated minimum"), minimum_bytes, false)
        }
        Err(other) => panic!("{other}"),
    }
}

/// An eighth of the KV on the device. In strict mode attention cannot read the rest: the host arena's mapping is PROT_NONE.
fn an_eighth_is_enough(block_tokens: u32, link: Link) {
    let (expected, prompts) = (expected(), prompts());
    let _part = Part::begin(format!("an eighth on the device, blocks of {block_tokens}, {link:?}"));
    let (mut at_an_eighth, mut loaded, mut in_place) = (0, 0, 0);
    for (prompt, expected) in prompts.iter().zip(expected) {
        let (mut engine, device_bytes, is_eighth) = eighth(prompt, EngineOptions { block_tokens, link, ..options() });
        if link == STRICT {
            engine.cache().protect_host_reader().expect("the mapping can be closed");
        }
        let answer = ask(&mut engine, prompt, TOKENS);
        assert_eq!(answer.logits_digest, *expected, "{} tokens", prompt.len());
        let memory = engine.memory();
        assert!(memory.peak_bytes <= device_bytes, "{} of {device_bytes}", memory.peak_bytes);
        at_an_eighth += u32::from(is_eighth);
        loaded += answer.loaded.host;
        in_place += engine.traffic().attended_host_bytes;
    }
    println!(
        "  {at_an_eighth} prompts at an eighth, the rest at the least budget; {:.1} GB loaded, {:.1} GB read in place",
        loaded as f64 / 1e9,
        in_place as f64 / 1e9
    );
    assert!(at_an_eighth >= 5, "{at_an_eighth} prompts");
    assert_eq!((loaded > 0, in_place > 0), (link == STRICT, link != STRICT));
}

#[test]
#[ignore = "minutes: cargo xtask soak engine"]
fn an_eighth_on_the_device_is_enough_in_place() {
    let _turn = turn();
    [16, 64].into_iter().for_each(|block_tokens| an_eighth_is_enough(block_tokens, Link::InPlace));
}

#[test]
#[ignore = "minutes: cargo xtask soak engine"]
fn an_eighth_on_the_device_is_enough_over_the_link() {
    let _turn = turn();
    [16, 64].into_iter().for_each(|block_tokens| an_eighth_is_enough(block_tokens, STRICT));
}

/// The rig must catch its planted bug: one mantissa bit of 64 cached elements turned over, where a warm answer reads them.
#[test]
#[ignore = "belongs to the soak's digests: cargo xtask soak engine"]
fn a_flipped_bit_in_the_cache_would_be_seen() {
    let _turn = turn();
    let prompt = fixture().prompt(977, 201);
    let mut engine = fixture().engine(options());
    let cold = ask(&mut engine, &prompt, 4).logits_digest;
    assert_eq!(ask(&mut engine, &prompt, 4).logits_digest, cold);
    let namespace = engine.namespace(None);
    let cache = Arc::clone(engine.cache());
    let sequence = cache.open(namespace);
    cache.acquire(sequence, Chain::over(namespace, 64, &prompt).links(), Accept::Exact).expect("a look-up");
    let BlockPlace::Device(block, _) = cache.places(sequence).expect("places").swap_remove(1) else {
        panic!("the device is roomy")
    };
    let elements = block.slice(cache.shape().code_section(7).offset, 128);
    let mut bytes = Vec::new();
    cache.device().inspect(Stream::Compute, elements, &mut |found| bytes.extend_from_slice(found)).expect("a look");
    bytes.iter_mut().step_by(2).for_each(|low| *low ^= 0x40);
    cache.device().upload(Stream::Compute, &bytes, elements).expect("an upload");
    cache.close(sequence);
    assert_ne!(ask(&mut engine, &prompt, 4).logits_digest, cold);
}

/// The golden prompts past 512 tokens.
#[test]
#[ignore = "minutes: cargo xtask soak engine"]
fn the_reference_path_agrees_with_transformers() {
    let _turn = turn();
    let model = Arc::new(Model::load(&fixture().file, Path::Reference).expect("a supported model"));
    let options = EngineOptions { form: Form::Raw32, ..plain() };
    let mut engine = Engine::open(model, fixture().weights, options).expect("an engine");
    let prompts = load("logprobs_long.json");
    assert_eq!(prompts.iter().map(|golden| golden.tokens.len()).collect::<Vec<_>>(), [1500, 4000]);
    for golden in prompts {
        let _part = Part::begin(format!("reference log-probabilities, {}", golden.name));
        let worst = worst_difference(&mut engine, &golden);
        println!("  {}: {} tokens, largest difference {worst:.5}", golden.name, golden.tokens.len());
        assert!(worst <= 0.01, "{}: {worst}", golden.name);
    }
}
