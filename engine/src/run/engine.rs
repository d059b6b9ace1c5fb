//! The engine: a model over a device and a cache, answering requests side by side.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use cache_core::form::Form;
use cache_core::hash::{Namespace, TenantId, WeightsId};
use cache_core::manifest::Manifest;
use cache_core::payload::BlockShape;
use cache_core::slots::SlotTable;
use gpu_tier::attention::{Attention, Element, Geometry, SPAN_TOKENS};
use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::Workers;
use gpu_tier::cpu::{CpuConfig, CpuDevice, Link};
use gpu_tier::device::{MemoryUse, Traffic};
use kvtier_sdk::cache::{CacheError, CacheStats, KvCache};
use kvtier_sdk::client::ClientSettings;
use kvtier_sdk::embedded::{
    Admission, ByteStage, DaemonSettings, DiskSettings, DiskStatus, DiskStore, Embedded, EmbeddedConfig, IoChoice,
    StoreSettings, Writes,
};

use crate::error::EngineError;
use crate::model::weights::Compute;
use crate::model::{Model, Path};
use crate::run::area::{AreaInput, AreaPlan, sections_per_group};
use crate::run::closing::Closing;
use crate::run::device::DeviceKind;
use crate::run::load::{LoadPolicy, Loading};
use crate::run::policy::Policy;
use crate::run::request::Request;
use crate::run::step::Stepper;
use crate::run::tables::{Caches, ClosedCache};

/// What the engine is opened with.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Which device.
    pub device: DeviceKind,
    /// Device budget in bytes: blocks, open windows, tables and scratch.
    pub device_bytes: u64,
    /// Host arena in bytes.
    pub host_bytes: u64,
    /// Where blocks outlive memory and the process.
    pub disk: Option<DiskOptions>,
    /// A daemon that lends blocks and takes what is published, in the place of host arena and disk.
    pub daemon: Option<DaemonOptions>,
    /// In place, or strict over a modelled link.
    pub link: Link,
    /// Tokens of a block: a power of two, 16 to 256.
    pub block_tokens: u32,
    /// Rows of a step at most.
    pub chunk: u32,
    /// Compute threads.
    pub threads: usize,
    /// Instruction set.
    pub isa: Isa,
    /// `raw16`: everything stays lossless. A lossy form or map: blocks are closed into it. `raw32`: measurement, nothing is published.
    pub form: Form,
    /// False: nothing is looked up or published.
    pub use_cache: bool,
    /// What becomes of blocks that are there but far away.
    pub load: LoadPolicy,
    /// Positions a sequence may have at most; the model's context unless a caller knows better.
    pub context_tokens: u32,
}

/// The daemon of an engine.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// Its socket.
    pub socket: PathBuf,
    /// How long one call may take, in milliseconds.
    pub deadline_millis: u64,
}

/// The disk tier of an engine.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// The store's directory; made when it is not there.
    pub directory: PathBuf,
    /// Hard limit in bytes of everything in it.
    pub budget_bytes: u64,
    /// Which blocks are written.
    pub admission: Admission,
    /// Which way to the disk.
    pub io: IoChoice,
    /// How records are encoded on their way there.
    pub stage: ByteStage,
}

/// A model over a device and a cache.
pub struct Engine {
    pub(super) stepper: Stepper,
    /// Lossless blocks.
    pub(super) cache: Arc<Embedded>,
    /// Closed blocks, where blocks are closed.
    closed: Option<Arc<Embedded>>,
    pub(super) device: Arc<dyn Attention>,
    manifest: Manifest,
    pub(super) options: EngineOptions,
    metadata_bytes: u64,
    pub(super) loading: Loading,
    stop: Arc<AtomicBool>,
}

impl Engine {
    /// Opens device, host arena and cache for `model`, whose files have the identity `weights`.
    ///
    /// Errors: [`EngineError::Request`] for options that make no sense, [`EngineError::Budget`] for budgets under the minimum.
    pub fn open(model: Arc<Model>, weights: WeightsId, options: EngineOptions) -> Result<Engine, EngineError> {
        Engine::open_over(model, weights, options, &|device| device)
    }

    /// As [`Engine::open`], with all work on the device going through what `wrap` makes of it: something that watches, or that spoils.
    pub fn open_over(
        model: Arc<Model>,
        weights: WeightsId,
        options: EngineOptions,
        wrap: &dyn Fn(Arc<CpuDevice>) -> Arc<dyn Attention>,
    ) -> Result<Engine, EngineError> {
        check_options(&options)?;
        let config = &model.config;
        let policy = Policy::of(options.form, config.layers);
        let policy = policy.map_err(|error| EngineError::Request(format!("--form {}: {error}", options.form)))?;
        let options = EngineOptions { form: policy.closed().unwrap_or(policy.lossless()), ..options };
        let geometry = Geometry {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            block_tokens: options.block_tokens,
            element: if options.form == Form::Raw32 { Element::F32 } else { Element::Bf16 },
            scale: (1.0 / f64::from(config.head_dim).sqrt()) as f32,
        };
        let closing = policy.closed().and_then(|form| Closing::into_form(form, options.block_tokens));
        let shape = BlockShape {
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            block_tokens: options.block_tokens,
            form: policy.lossless(),
        };
        let closed_shape = closing.map(|closing| shape.with_form(closing.form()));
        let plan = AreaPlan::divide(&AreaInput {
            geometry,
            shape,
            closed: closed_shape,
            device_bytes: options.device_bytes,
            chunk: options.chunk,
            context: options.context_tokens,
        })?;
        let metadata_bytes =
            SlotTable::bytes_for(plan.block_slots) + closing.map_or(0, |_| SlotTable::bytes_for(plan.closed_slots));
        let workers = Arc::new(Workers::new(options.threads));
        let cpu = CpuConfig {
            budget_bytes: options.device_bytes - metadata_bytes,
            link: options.link,
            workers: Arc::clone(&workers),
            isa: options.isa,
        };
        let device = options.device.open(cpu, wrap)?;
        let area = device.allocate(plan.area_bytes)?;
        let openings = Openings { options: &options, device: &device, plan: &plan, geometry: &geometry };
        let (cache, closed) = openings.caches(shape, closed_shape)?;
        let activations = match model.path {
            Path::Fast => "int16",
            Path::Int8 => "int8",
            Path::Reference => "f32",
        };
        // Instruction sets are not named: their kernels give the same bits.
        let (kind, products) = (device.info().kind, device.products().numerics());
        let numerics = format!("kvtier-engine-1 {kind} {} {activations} span64{products}", model.path.name());
        let manifest = config.manifest(weights, &shape.form.name(), options.block_tokens, numerics);
        let compute = Compute { isa: options.isa, workers };
        let closed_cache = closed.as_ref().zip(closing);
        let caches = Caches {
            lossless: Arc::clone(&cache) as Arc<dyn KvCache>,
            closed: closed_cache.map(|(cache, closing)| ClosedCache { cache: Arc::clone(cache) as _, closing }),
            block_tokens: options.block_tokens,
            publishes: options.use_cache,
        };
        let stepper = Stepper::new(model, compute, Arc::clone(&device), caches, geometry, plan, area);
        let (stop, loading) = (Arc::default(), Loading::new(options.load));
        Ok(Engine { stepper, cache, closed, device, manifest, options, metadata_bytes, loading, stop })
    }

    /// Refuses a request that cannot be served as it is. Errors: [`EngineError::Request`].
    pub fn check(&self, request: &Request) -> Result<(), EngineError> {
        if request.max_tokens == 0 {
            return Err(EngineError::Request("no tokens are asked for; --max-tokens must be at least 1".to_owned()));
        }
        self.check_prompt(&request.prompt, request.max_tokens)
    }

    /// Once the flag is set, requests end before their next step with [`EngineError::Stopped`].
    pub fn stop_when(&mut self, flag: Arc<AtomicBool>) {
        self.stop = flag;
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Counters of the cache of lossless blocks.
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// Counters of the cache of closed blocks, where blocks are closed.
    pub fn closed_stats(&self) -> Option<CacheStats> {
        self.closed.as_ref().map(|closed| closed.stats())
    }

    /// The embedded cache of lossless blocks, for whole-system tests and explanations.
    pub fn cache(&self) -> &Arc<Embedded> {
        &self.cache
    }

    /// The embedded cache of closed blocks, where blocks are closed.
    pub fn closed_cache(&self) -> Option<&Arc<Embedded>> {
        self.closed.as_ref()
    }

    /// What became of the disk tier; the cache of closed blocks opens it where there is one.
    pub fn disk_status(&self) -> DiskStatus {
        self.closed.as_ref().unwrap_or(&self.cache).disk_status()
    }

    /// An orderly end of the disk tier: what waits to be written is written and the index saved, within the limit. True when everything was.
    pub fn close_disk(&self, limit: Duration) -> bool {
        self.disk_closer().close(limit)
    }

    /// [`Engine::close_disk`] for whoever may outlive the engine.
    pub fn disk_closer(&self) -> DiskCloser {
        DiskCloser { lossless: Arc::downgrade(&self.cache), closed: self.closed.as_ref().map(Arc::downgrade) }
    }

    /// Device memory with the index of its slots.
    pub fn memory(&self) -> MemoryUse {
        let memory = self.device.memory();
        MemoryUse {
            budget_bytes: memory.budget_bytes + self.metadata_bytes,
            used_bytes: memory.used_bytes + self.metadata_bytes,
            peak_bytes: memory.peak_bytes + self.metadata_bytes,
        }
    }

    /// Bytes moved and read by the device.
    pub fn traffic(&self) -> Traffic {
        self.device.traffic()
    }

    /// How the device budget is divided.
    pub fn plan(&self) -> &AreaPlan {
        &self.stepper.plan
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.stepper.model
    }

    /// The options it was opened with.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// The namespace of a tenant.
    pub fn namespace(&self, salt: Option<&str>) -> Namespace {
        let tenant = TenantId::of_salt(salt);
        if let Some(closed) = &self.closed {
            closed.namespace(&self.manifest, tenant);
        }
        self.cache.namespace(&self.manifest, tenant)
    }

    /// Refuses token ids that the model or the context cannot take.
    pub(super) fn check_prompt(&self, prompt: &[u32], more: u32) -> Result<(), EngineError> {
        let context = self.options.context_tokens;
        let vocabulary = self.stepper.model.config.vocabulary;
        if prompt.is_empty() {
            return Err(EngineError::Request("the prompt is empty; give at least one token".to_owned()));
        }
        if prompt.len() as u64 + u64::from(more) > u64::from(context) {
            return Err(EngineError::Request(format!(
                "the prompt has {} tokens and {more} more are asked for, but the context holds {context}; \
                 shorten the document or --max-tokens",
                prompt.len()
            )));
        }
        match prompt.iter().find(|token| **token >= vocabulary) {
            Some(token) => {
                Err(EngineError::Request(format!("token {token} is outside the vocabulary of {vocabulary}")))
            }
            None => Ok(()),
        }
    }
}

/// Closes an engine's store, as long as the engine is there.
#[derive(Clone, Debug)]
pub struct DiskCloser {
    lossless: Weak<Embedded>,
    closed: Option<Weak<Embedded>>,
}

impl DiskCloser {
    /// Writes what waits to be written and saves the index, within the limit; true when everything was written.
    pub fn close(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let Some(lossless) = self.lossless.upgrade() else {
            return true;
        };
        let Some(closed) = self.closed.as_ref().and_then(Weak::upgrade) else {
            return lossless.close_disk(limit);
        };
        // The cache of closed blocks opened the store.
        let drained = lossless.drain_disk(limit / 2);
        closed.close_disk(until.saturating_duration_since(Instant::now())) && drained
    }
}

/// What the caches are opened from.
struct Openings<'a> {
    options: &'a EngineOptions,
    device: &'a Arc<dyn Attention>,
    plan: &'a AreaPlan,
    geometry: &'a Geometry,
}

impl Openings<'_> {
    /// The caches of lossless and of closed blocks, over one store on the disk.
    fn caches(
        &self,
        shape: BlockShape,
        closed_shape: Option<BlockShape>,
    ) -> Result<(Arc<Embedded>, Option<Arc<Embedded>>), EngineError> {
        let disk = self.options.disk.as_ref().filter(|_| self.options.use_cache);
        let own = disk.map(|disk| {
            DiskStore::Own(StoreSettings {
                directory: disk.directory.clone(),
                budget_bytes: disk.budget_bytes,
                admission: disk.admission,
                write_limit_bytes_s: None,
                io: disk.io,
                stage: disk.stage,
            })
        });
        let Some(closed_shape) = closed_shape else {
            let cache = self.cache(shape, self.plan.block_slots, Share { parts: 1, of: 1 }, own, Writes::All)?;
            return Ok((cache, None));
        };
        let closed = self.cache(closed_shape, self.plan.closed_slots, CLOSED_SHARE, own, Writes::All)?;
        let shared = closed.share_store().map(DiskStore::Shared);
        let lossless = self.cache(shape, self.plan.block_slots, LOSSLESS_SHARE, shared, Writes::Untainted)?;
        Ok((lossless, Some(closed)))
    }

    fn cache(
        &self,
        shape: BlockShape,
        device_slots: u32,
        share: Share,
        store: Option<DiskStore>,
        writes: Writes,
    ) -> Result<Arc<Embedded>, EngineError> {
        let options = self.options;
        let live_blocks = options.context_tokens.div_ceil(options.block_tokens).saturating_mul(2);
        if let Some(daemon) = options.daemon.as_ref().filter(|_| options.use_cache) {
            let client = ClientSettings {
                socket: daemon.socket.clone(),
                name: format!("kvtier {}", shape.form),
                deadline: Duration::from_millis(daemon.deadline_millis),
            };
            let settings = DaemonSettings { client, live_blocks, writes };
            return Ok(Arc::new(Embedded::over_daemon(Arc::clone(self.device), shape, device_slots, settings)?));
        }
        let disk = store.map(|store| DiskSettings {
            store,
            live_blocks,
            pieces_min: 2 * sections_per_group(&shape, self.geometry),
            writes,
        });
        let host_bytes = if options.use_cache { options.host_bytes * share.parts / share.of } else { 0 };
        let config = EmbeddedConfig { device: Arc::clone(self.device), shape, device_slots, host_bytes, disk };
        let cache = Embedded::open(config).map_err(|error| name_host_budget(error, options.host_bytes, share))?;
        Ok(Arc::new(cache))
    }
}

/// A share of the host budget.
#[derive(Clone, Copy)]
struct Share {
    parts: u64,
    of: u64,
}

/// Where blocks are closed, a quarter of the host budget is for lossless ones: block 0, windows, and exact requests.
const LOSSLESS_SHARE: Share = Share { parts: 1, of: 4 };
const CLOSED_SHARE: Share = Share { parts: 3, of: 4 };

/// Slots were sized from the device budget beforehand, so a budget that is too small is the host's.
fn name_host_budget(error: CacheError, host_bytes: u64, share: Share) -> EngineError {
    match error {
        CacheError::Budget { what: "a disk tier", budget_bytes, minimum_bytes } => {
            EngineError::Budget { what: "--disk-size", given_bytes: budget_bytes, minimum_bytes }
        }
        CacheError::Budget { minimum_bytes, .. } => {
            let minimum_bytes = (minimum_bytes * share.of).div_ceil(share.parts);
            EngineError::Budget { what: "--host-mem", given_bytes: host_bytes, minimum_bytes }
        }
        CacheError::Host(_) => unavailable("--host-mem", host_bytes, &error),
        other => EngineError::Cache(other),
    }
}

/// Memory that this machine does not give.
fn unavailable(option: &str, bytes: u64, error: &dyn std::error::Error) -> EngineError {
    EngineError::Request(format!("{error}; {option} is {bytes} bytes, give less"))
}

fn check_options(options: &EngineOptions) -> Result<(), EngineError> {
    let problem = |text: &str| Err(EngineError::Request(text.to_owned()));
    if !options.block_tokens.is_power_of_two() || !(16..=256).contains(&options.block_tokens) {
        return problem("--block-tokens must be 16, 32, 64, 128 or 256");
    }
    if options.threads == 0 {
        return problem("--threads must be at least 1");
    }
    if options.chunk == 0 {
        return problem("--chunk must be at least 1");
    }
    let is_lossy = !options.form.is_lossless() && options.form != Form::Raw32;
    if is_lossy && !options.block_tokens.is_multiple_of(SPAN_TOKENS) {
        return problem(
            "--form needs --block-tokens 64, 128 or 256: attention reads closed blocks 64 tokens at a time",
        );
    }
    if !Isa::available().contains(&options.isa) {
        return problem("this processor lacks the chosen instruction set; choose one that it has");
    }
    Ok(())
}
