//! What stands in a block: the same bytes whoever wrote them, and never another's under a reader.

use std::sync::atomic::{AtomicBool, Ordering};

use cache_core::chain::{Chain, Link};
use cache_core::form::Accept;
use cache_core::miss::MissReason;
use gpu_tier::device::Stream;
use kvtier_engine::run::engine::{Engine, EngineOptions};
use kvtier_sdk::cache::{BlockPlace, KvCache};
use kvtier_tests::{STRICT, TOKEN_BYTES, ask, fixture, options, plain, turn};

/// Slot images, header included, of the blocks of `tokens`.
fn images(engine: &Engine, tokens: &[u32]) -> Vec<Vec<u8>> {
    let namespace = engine.namespace(None);
    let chain = Chain::over(namespace, 64, tokens);
    let cache = engine.cache();
    let sequence = cache.open(namespace);
    let acquired = cache.acquire(sequence, chain.links(), Accept::Exact).unwrap();
    assert_eq!(acquired.miss, None);
    let places = cache.places(sequence).unwrap();
    let images = places.iter().map(|place| match place {
        BlockPlace::Device(range, _) => {
            let mut image = Vec::new();
            cache.device().inspect(Stream::Compute, *range, &mut |bytes| image.extend_from_slice(bytes)).unwrap();
            image
        }
        other => panic!("{other:?} in a roomy device"),
    });
    let images = images.collect();
    cache.close(sequence);
    images
}

#[test]
fn decode_and_prefill_write_the_same_bytes() {
    let _turn = turn();
    let fixture = fixture();
    let mut decoded = fixture.engine(options());
    let mut tokens = fixture.prompt(200, 70);
    tokens.extend(ask(&mut decoded, &tokens, 190).tokens);
    tokens.truncate(256);
    let mut prefilled = fixture.engine(options());
    ask(&mut prefilled, &[tokens.as_slice(), &[1]].concat(), 1);
    let (a, b) = (images(&decoded, &tokens), images(&prefilled, &tokens));
    assert_eq!(a.len(), 4);
    for (index, (a, b)) in a.iter().zip(&b).enumerate() {
        assert!(a == b, "block {index} differs");
    }
}

/// Another thread takes host slots away under a running decode, as an eviction by force, a TTL or a hang-up would, and overwrites them
/// at once: each loss is a `lease_lost` miss and a block computed again; the logits do not change. An engine that did not look at the
/// generations after use would have attended over NaN.
fn slots_vanish_under_the_reader(link: kvtier_engine::run::Link) {
    let fixture = fixture();
    let prompt = fixture.prompt(900, 420);
    let expected = ask(&mut fixture.engine(plain()), &prompt, 48).logits_digest;
    let mut engine = fixture.engine(EngineOptions {
        device_bytes: 300 * TOKEN_BYTES,
        host_bytes: 256 << 20,
        link,
        chunk: 64,
        ..options()
    });
    let namespace = engine.namespace(None);
    let links: Vec<Link> = Chain::over(namespace, 64, &prompt).links().to_vec();
    let cache = std::sync::Arc::clone(engine.cache());
    let done = AtomicBool::new(false);
    let (answer, revoked) = std::thread::scope(|scope| {
        let thief = scope.spawn(|| {
            // Attention reads the host arena (or has it copied) only within a step: a theft right after such a read hits its middle.
            let read = || {
                let traffic = cache.device().traffic();
                traffic.attended_host_bytes + traffic.copied_in_bytes
            };
            let (mut revoked, mut before) = (0, read());
            for round in 0.. {
                while read() == before && !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                if done.load(Ordering::Relaxed) || revoked == 12 {
                    break;
                }
                revoked += u32::from(cache.overwrite_host(namespace, links[round % links.len()]));
                before = read();
            }
            revoked
        });
        // The thief must end even if the engine panics, or the scope would wait for it.
        let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ask(&mut engine, &prompt, 48)));
        done.store(true, Ordering::Relaxed);
        let revoked = thief.join().expect("the thief ends");
        (answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), revoked)
    });
    assert_eq!(answer.logits_digest, expected);
    assert!(revoked > 0, "nothing was in the host arena to be taken");
    let lost = answer.misses[MissReason::LeaseLost as usize];
    assert!(lost > 0, "{revoked} slots were taken and nobody noticed");
    assert!(answer.recomputed_tokens >= 64 && answer.recomputed_tokens % 64 == 0, "{}", answer.recomputed_tokens);
}

#[test]
fn slots_that_vanish_in_place_are_recomputed() {
    let _turn = turn();
    slots_vanish_under_the_reader(options().link);
}

#[test]
fn slots_that_vanish_under_the_link_are_recomputed() {
    let _turn = turn();
    slots_vanish_under_the_reader(STRICT);
}
