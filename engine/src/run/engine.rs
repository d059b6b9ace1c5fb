//! The engine: a model over a device and a cache, answering requests side by side.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cache_core::form::Form;
use cache_core::hash::{Namespace, TenantId, WeightsId};
use cache_core::manifest::Manifest;
use cache_core::payload::BlockShape;
use cache_core::slots::SlotTable;
use gpu_tier::attention::{Attention, Element, Geometry};
use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::Workers;
use gpu_tier::cpu::{CpuConfig, CpuDevice, Link};
use gpu_tier::device::{Device, MemoryUse, Traffic};
use kvtier_sdk::cache::{CacheError, CacheStats, KvCache};
use kvtier_sdk::embedded::{Admission, DiskSettings, Embedded, EmbeddedConfig, IoChoice};

use crate::error::EngineError;
use crate::model::weights::Compute;
use crate::model::{Model, Path};
use crate::run::area::{AreaInput, AreaPlan, blocks_per_group};
use crate::run::request::Request;
use crate::run::step::Stepper;

/// What the engine is opened with.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Device budget in bytes: blocks, open windows, tables and scratch.
    pub device_bytes: u64,
    /// Host arena in bytes.
    pub host_bytes: u64,
    /// Where blocks outlive memory and the process.
    pub disk: Option<DiskOptions>,
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
    /// Stored form of KV.
    pub form: Form,
    /// False: nothing is looked up or published.
    pub use_cache: bool,
    /// Positions a sequence may have at most; the model's context unless a caller knows better.
    pub context_tokens: u32,
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
}

/// A model over a device and a cache.
pub struct Engine {
    pub(super) stepper: Stepper,
    pub(super) cache: Arc<Embedded>,
    pub(super) device: Arc<CpuDevice>,
    manifest: Manifest,
    pub(super) options: EngineOptions,
    metadata_bytes: u64,
    stop: Arc<AtomicBool>,
}

impl Engine {
    /// Opens device, host arena and cache for `model`, whose files have the identity `weights`.
    ///
    /// Errors: [`EngineError::Request`] for options that make no sense, [`EngineError::Budget`] for budgets under the minimum.
    pub fn open(model: Arc<Model>, weights: WeightsId, options: EngineOptions) -> Result<Engine, EngineError> {
        check_options(&options)?;
        let config = &model.config;
        let geometry = Geometry {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            block_tokens: options.block_tokens,
            element: if options.form == Form::Raw32 { Element::F32 } else { Element::Bf16 },
            scale: (1.0 / f64::from(config.head_dim).sqrt()) as f32,
        };
        let shape = BlockShape {
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            block_tokens: options.block_tokens,
            form: options.form,
        };
        let plan = AreaPlan::divide(&AreaInput {
            geometry,
            slot_bytes: shape.slot_bytes(),
            device_bytes: options.device_bytes,
            chunk: options.chunk,
            context: options.context_tokens,
        })?;
        let metadata_bytes = SlotTable::bytes_for(plan.block_slots);
        let workers = Arc::new(Workers::new(options.threads));
        let device = CpuDevice::open(CpuConfig {
            budget_bytes: options.device_bytes - metadata_bytes,
            link: options.link,
            workers: Arc::clone(&workers),
            isa: options.isa,
        });
        let device = Arc::new(device.map_err(|error| unavailable("--device-mem", options.device_bytes, &error))?);
        let area = device.allocate(plan.area_bytes)?;
        let cache = Embedded::open(EmbeddedConfig {
            device: Arc::clone(&device) as Arc<dyn Attention>,
            shape,
            device_slots: plan.block_slots,
            host_bytes: if options.use_cache { options.host_bytes } else { 0 },
            disk: options.disk.as_ref().filter(|_| options.use_cache).map(|disk| DiskSettings {
                directory: disk.directory.clone(),
                budget_bytes: disk.budget_bytes,
                admission: disk.admission,
                write_limit_bytes_s: None,
                io: disk.io,
                live_blocks: options.context_tokens.div_ceil(options.block_tokens).saturating_mul(2),
                pieces_min: 2 * blocks_per_group(&geometry),
            }),
        });
        let cache = Arc::new(cache.map_err(|error| name_host_budget(error, options.host_bytes))?);
        let activations = match model.path {
            Path::Fast => "int16",
            Path::Reference => "f32",
        };
        // Instruction sets are not named: their kernels give the same bits.
        let numerics = format!("kvtier-engine-1 cpu {} {activations} span64", model.path.name());
        let manifest = config.manifest(weights, options.form.name(), options.block_tokens, numerics);
        let compute = Compute { isa: options.isa, workers };
        let on_device = Arc::clone(&device) as Arc<dyn Attention>;
        let stepper =
            Stepper::new(model, compute, on_device, Arc::clone(&cache) as Arc<dyn KvCache>, geometry, plan, area);
        let stop = Arc::default();
        Ok(Engine { stepper, cache, device, manifest, options, metadata_bytes, stop })
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

    /// Counters of the cache.
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// The embedded cache, for whole-system tests and explanations.
    pub fn cache(&self) -> &Arc<Embedded> {
        &self.cache
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
        self.manifest.namespace(TenantId::of_salt(salt))
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

/// Slots were sized from the device budget beforehand, so a budget that is too small is the host's.
fn name_host_budget(error: CacheError, host_bytes: u64) -> EngineError {
    match error {
        CacheError::Budget { what: "a disk tier", budget_bytes, minimum_bytes } => {
            EngineError::Budget { what: "--disk-size", given_bytes: budget_bytes, minimum_bytes }
        }
        CacheError::Budget { budget_bytes, minimum_bytes, .. } => {
            EngineError::Budget { what: "--host-mem", given_bytes: budget_bytes, minimum_bytes }
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
    if !Isa::available().contains(&options.isa) {
        return problem("this processor lacks the chosen instruction set; choose one that it has");
    }
    Ok(())
}
