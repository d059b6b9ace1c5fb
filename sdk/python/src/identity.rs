//! `Manifest`, `Opaque` and `Lossy`: what makes blocks compatible.

use cache_core::manifest::HeadSlice;
use kvtier_sdk::plugin::{self, Identity, RopeStated, Strides};
use pyo3::prelude::*;

use crate::error::usage;

/// Everything that two blocks must share to stand for each other, but for their layout and the tenant. Blocks that differ in any
/// of it never meet.
#[pyclass(frozen, module = "kvtier")]
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Manifest {
    /// Its layout is that of nothing yet.
    identity: Identity,
}

#[pymethods]
impl Manifest {
    #[new]
    #[pyo3(
        signature = (*, weights, architecture, dtype, block_tokens, layers, kv_heads, head_dim, tensor_parallel = (0, 1), pipeline = (0, 1),
            rope_dimensions = 0, rope_base = 0.0, rope_scaling = "", adapter = "", numerics = ""),
        text_signature = "(*, weights, architecture, dtype, block_tokens, layers, kv_heads, head_dim, tensor_parallel=(0, 1), pipeline=(0, 1), \
            rope_dimensions=0, rope_base=0.0, rope_scaling='', adapter='', numerics='')"
    )]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments, one a field")]
    fn new(
        py: Python<'_>,
        weights: &[u8],
        architecture: String,
        dtype: String,
        block_tokens: u32,
        layers: u32,
        kv_heads: u32,
        head_dim: u32,
        tensor_parallel: (u32, u32),
        pipeline: (u32, u32),
        rope_dimensions: u32,
        rope_base: f32,
        rope_scaling: &str,
        adapter: &str,
        numerics: &str,
    ) -> PyResult<Manifest> {
        let weights = weights.try_into();
        let weights = weights.map_err(|_| usage(py, "weights are 32 bytes: a digest of the model's files"))?;
        let identity = Identity {
            weights,
            architecture,
            dtype,
            block_tokens,
            layers,
            kv_heads,
            head_dim,
            ranks: HeadSlice { tensor_parallel, pipeline },
            rope: RopeStated { dimensions: rope_dimensions, base: rope_base, scaling: rope_scaling.to_owned() },
            adapter: adapter.to_owned(),
            numerics: numerics.to_owned(),
            layer_bytes: 1,
            layout: String::new(),
            lossy: None,
            salt: None,
        };
        // What makes no sense is told here already.
        identity.manifest().map_err(|error| crate::error::raise(py, &error))?;
        Ok(Manifest { identity })
    }

    #[getter]
    fn layers(&self) -> u32 {
        self.identity.layers
    }

    #[getter]
    fn block_tokens(&self) -> u32 {
        self.identity.block_tokens
    }

    #[getter]
    fn dtype(&self) -> &str {
        &self.identity.dtype
    }

    fn __eq__(&self, other: &Manifest) -> bool {
        self == other
    }

    fn __repr__(&self) -> String {
        let Identity { architecture, dtype, block_tokens, layers, kv_heads, head_dim, .. } = &self.identity;
        format!(
            "Manifest(architecture={architecture:?}, dtype={dtype:?}, block_tokens={block_tokens}, layers={layers}, \
             kv_heads={kv_heads}, head_dim={head_dim}, ...)"
        )
    }
}

impl Manifest {
    /// The identity of blocks in this layout, of this tenant.
    pub(crate) fn identity(&self, form: &Stored<'_>, salt: Option<String>) -> Identity {
        let (layer_bytes, layout, lossy) = match form {
            Stored::Opaque(opaque) => (opaque.get().layer_bytes, &opaque.get().layout, None),
            Stored::Lossy(lossy) => (lossy.get().layer_bytes, &lossy.get().layout, Some(lossy.get().stated)),
        };
        Identity { layer_bytes, layout: layout.clone(), lossy, salt, ..self.identity.clone() }
    }
}

/// How blocks are stored.
#[derive(FromPyObject)]
pub(crate) enum Stored<'py> {
    Opaque(Bound<'py, Opaque>),
    Lossy(Bound<'py, Lossy>),
}

/// The form of blocks that only the engine can read: so many bytes a layer, in a layout that words describe.
#[pyclass(frozen, module = "kvtier", get_all)]
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Opaque {
    layer_bytes: u32,
    layout: String,
}

#[pymethods]
impl Opaque {
    #[new]
    #[pyo3(signature = (*, layer_bytes, layout))]
    fn new(layer_bytes: u32, layout: String) -> Opaque {
        Opaque { layer_bytes, layout }
    }

    fn __eq__(&self, other: &Opaque) -> bool {
        self == other
    }

    fn __repr__(&self) -> String {
        format!("Opaque(layer_bytes={}, layout={:?})", self.layer_bytes, self.layout)
    }
}

/// A lossy form of blocks whose elements the engine says where they are: (first, heads, tokens, channels) of keys and of values, in elements.
#[pyclass(frozen, module = "kvtier")]
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lossy {
    stated: plugin::Lossy,
    #[pyo3(get)]
    layer_bytes: u32,
    #[pyo3(get)]
    layout: String,
}

type Four = (u32, u32, u32, u32);

#[pymethods]
impl Lossy {
    #[new]
    #[pyo3(signature = (form, *, layer_bytes, layout, block_tokens, keys, values))]
    fn new(
        py: Python<'_>,
        form: &str,
        layer_bytes: u32,
        layout: String,
        block_tokens: u32,
        keys: Four,
        values: Four,
    ) -> PyResult<Lossy> {
        let form = form.parse().map_err(|error: cache_core::form::FormError| usage(py, &error.to_string()))?;
        let strides = |(first, heads, tokens, channels)| Strides { first, heads, tokens, channels };
        let stated = plugin::Lossy { form, tokens: block_tokens, keys: strides(keys), values: strides(values) };
        Ok(Lossy { stated, layer_bytes, layout })
    }

    /// The form's name.
    #[getter]
    fn form(&self) -> String {
        self.stated.form.name()
    }

    fn __eq__(&self, other: &Lossy) -> bool {
        self == other
    }

    fn __repr__(&self) -> String {
        format!("Lossy({:?}, layer_bytes={}, layout={:?}, ...)", self.form(), self.layer_bytes, self.layout)
    }
}
