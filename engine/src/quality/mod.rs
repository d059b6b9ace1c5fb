//! How much of the model's answer a stored form of KV keeps. `docs/quality.md` has the formulas.
//!
//! There is no second forward pass: engines over the same model, one with exact `raw16` KV and one with each form, go through the same
//! tokens with the kernels and block tables that answer requests, and their logits are compared row by row.

pub mod compare;
pub mod divergence;
pub mod gate;
pub mod greedy;
pub mod hit;
mod lockstep;
pub mod retrieval;
pub mod stats;
pub mod tasks;

use std::path::Path;

use crate::error::EngineError;
use crate::run::Form;
use crate::run::engine::Engine;

/// The form that others are measured against.
pub const EXACT: Form = Form::Raw16;
/// The same KV in f32: what it differs by is the noise below which no difference means anything.
pub const FLOOR: Form = Form::Raw32;

/// Opens an engine that keeps KV in a form: without a cache, or with one over a store in the folder.
pub type Open<'a> = dyn Fn(Form, Option<&Path>) -> Result<Engine, EngineError> + 'a;
