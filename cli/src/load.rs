//! From command-line arguments to a loaded model and an open engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use kvtier_engine::gguf::GgufFile;
use kvtier_engine::model::identity::DigestCache;
use kvtier_engine::model::{self, Model, ModelConfig};
use kvtier_engine::models::{DEFAULT_MODEL, FetchProgress, ModelStore};
use kvtier_engine::run::device::DeviceKind;
use kvtier_engine::run::engine::{Engine, EngineOptions};
use kvtier_engine::run::{Form, Isa, Link, WeightsId};
use kvtier_engine::template::{ChatTemplate, TemplateError};
use kvtier_engine::tokenizer::Tokenizer;

use crate::args::{EngineArgs, PathArg};
use crate::disk::Below;
use crate::failure::Failure;

/// A model with everything its text needs.
pub struct Loaded {
    /// Packed weights.
    pub model: Arc<Model>,
    /// Identity of the file.
    pub weights: WeightsId,
    /// Tokenizer of the file.
    pub tokenizer: Tokenizer,
    /// Chat template of the file; base models have none.
    template: Result<ChatTemplate, TemplateError>,
}

impl Loaded {
    /// The chat template. Errors: exit code 2 when the file has none that can be used.
    pub fn template(&self) -> Result<&ChatTemplate, Failure> {
        self.template
            .as_ref()
            .map_err(|error| Failure::input(format!("{error}; use an instruct model, or `kvtier score` for this one")))
    }
}

/// Finds (and on first use fetches) the model file that `argument` means.
pub fn model_path(argument: Option<&str>) -> Result<PathBuf, Failure> {
    let store = ModelStore::from_env().map_err(Failure::input)?;
    let bar = ProgressBar::no_length().with_style(bytes_style());
    let path = store.resolve(argument.unwrap_or(DEFAULT_MODEL), |progress| show_fetch(&bar, progress));
    bar.finish_and_clear();
    path.map_err(|error| Failure::from_error(&error, 2))
}

/// Shows a download.
pub fn show_fetch(bar: &ProgressBar, progress: FetchProgress) {
    let (what, done, total) = match progress {
        FetchProgress::Downloading { done, total } => ("downloading the model", done, total),
        FetchProgress::Unpacking { done, total } => ("unpacking the model", done, total),
        _ => return,
    };
    bar.set_message(what);
    bar.set_length(total);
    bar.set_position(done);
}

/// Style of a bar that counts bytes.
pub fn bytes_style() -> ProgressStyle {
    ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes}").expect("a constant template")
}

/// Loads a model; its identity is computed meanwhile.
pub fn load(args: &EngineArgs) -> Result<Loaded, Failure> {
    let path = model_path(args.model.as_deref())?;
    let file = Arc::new(GgufFile::open(&path).map_err(Failure::input)?);
    // Shape first: a wrong architecture is named before anything is hashed or packed.
    ModelConfig::from_gguf(&file)?;
    let tokenizer = Tokenizer::from_gguf(&file).map_err(Failure::input)?;
    let template = ChatTemplate::from_gguf(&file, &tokenizer);
    let (model, weights) = std::thread::scope(|scope| {
        let identity =
            scope.spawn(|| DigestCache::new(cache_folder().map(|folder| folder.join("digests"))).identify(&[&file]));
        let model = Model::load(&file, engine_path(args.path));
        (model, identity.join().expect("hashing a file does not panic"))
    });
    let weights = weights.map_err(|error| Failure::input(format!("read {}: {error}", path.display())))?;
    Ok(Loaded { model: Arc::new(model?), weights, tokenizer, template })
}

/// kvtier's folder for what may be lost.
pub fn cache_folder() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")))?;
    Some(base.join("kvtier"))
}

fn engine_path(path: PathArg) -> model::Path {
    match path {
        PathArg::Fast => model::Path::Fast,
        PathArg::Int8 => model::Path::Int8,
        PathArg::Reference => model::Path::Reference,
    }
}

/// Opens an engine. `use_cache` false keeps everything on the device, which by default holds a whole context.
pub fn open(loaded: &Loaded, args: &EngineArgs, below: Below, use_cache: bool) -> Result<Engine, Failure> {
    let Below { disk, daemon } = below;
    let options = EngineOptions { disk, daemon, ..options(&loaded.model.config, args, use_cache)? };
    Ok(Engine::open(Arc::clone(&loaded.model), loaded.weights, options)?)
}

fn options(config: &ModelConfig, args: &EngineArgs, use_cache: bool) -> Result<EngineOptions, Failure> {
    let form = match (args.form, args.path) {
        (Some(form), _) => form,
        (None, PathArg::Fast | PathArg::Int8) => Form::Raw16,
        (None, PathArg::Reference) => Form::Raw32,
    };
    let threads = match args.threads {
        Some(0) => return Err(Failure::input("--threads is 0; give at least 1")),
        Some(threads) if threads > 1024 => {
            return Err(Failure::input(format!("--threads is {threads}; give at most 1024")));
        }
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let ram = ram_bytes()?;
    let token_bytes = 2 * u64::from(config.layers) * config.kv_width() as u64 * form.element_bytes();
    let context = u64::from(config.context_tokens) * token_bytes;
    let whole = if use_cache { context + context / 16 + (64 << 20) } else { whole_context(context) };
    let device_bytes = args.device_mem.map_or(whole.min(ram / 2), |size| size.0);
    Ok(EngineOptions {
        device: device()?,
        device_bytes,
        host_bytes: args.host_mem.map_or(ram / 4, |size| size.0),
        disk: None,
        daemon: None,
        link: match args.link {
            None => Link::InPlace,
            Some(0.0) => Link::Strict { bytes_per_second: None },
            Some(rate) => Link::Strict { bytes_per_second: Some(rate * 1e9) },
        },
        block_tokens: args.block_tokens,
        chunk: args.chunk,
        threads,
        isa: isa()?,
        form,
        use_cache,
        load: args.load.into(),
        context_tokens: config.context_tokens,
    })
}

/// A budget that holds `context` bytes of keys and values whatever `--chunk` is: attention scratch takes at most a quarter of it, and
/// a sixteenth is more than the headers of blocks of 16 tokens need.
fn whole_context(context: u64) -> u64 {
    (context + context / 16) / 3 * 4 + (64 << 20)
}

/// The device that `KVTIER_DEVICE` names; `cpu` without it.
fn device() -> Result<DeviceKind, Failure> {
    match std::env::var("KVTIER_DEVICE").ok().filter(|name| !name.is_empty()) {
        None => Ok(DeviceKind::Cpu),
        Some(name) => name.parse().map_err(|error| Failure::input(format!("KVTIER_DEVICE: {error}"))),
    }
}

/// The best instruction set, or the one that `KVTIER_ISA` names.
fn isa() -> Result<Isa, Failure> {
    let Some(wanted) = std::env::var("KVTIER_ISA").ok().filter(|name| !name.is_empty()) else {
        return Ok(Isa::detect());
    };
    let available = Isa::available();
    available.iter().copied().find(|isa| isa.name() == wanted).ok_or_else(|| {
        let names: Vec<&str> = available.iter().map(|isa| isa.name()).collect();
        Failure::input(format!("KVTIER_ISA is `{wanted}`; this processor has {}", names.join(", ")))
    })
}

fn ram_bytes() -> Result<u64, Failure> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| Failure::input("/proc/meminfo names no MemTotal; give --device-mem and --host-mem"))
}

/// Reads a document. Errors: exit code 2, with the path.
pub fn read_document(path: &Path) -> Result<Vec<u8>, Failure> {
    if path.is_dir() {
        return Err(Failure::input(format!("read {}: it is a directory; name a text file", path.display())));
    }
    std::fs::read(path)
        .map_err(|error| Failure::input(format!("read {}: {error}; name a readable text file", path.display())))
}
