//! The weights, packed for the kernels of one path.

use std::sync::Arc;

use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::Workers;

use crate::error::EngineError;
use crate::gguf::{GgufFile, TensorInfo, TensorType, dequant};
use crate::matrix::{self, Activations, EmbeddingTable, Matrix, ReferenceMatrix, Width};
use crate::model::config::ModelConfig;

/// Which arithmetic the matrices use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// 16-bit integer activations over the quantised weights: what is shipped.
    Fast,
    /// 8-bit integer activations over the quantised weights: for comparison with engines that use them. It costs more than a good stored form
    /// of KV does.
    Int8,
    /// f32 activations over dequantised weights: the yardstick.
    Reference,
}

impl Path {
    /// Name on the command line and in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Path::Fast => "fast",
            Path::Int8 => "int8",
            Path::Reference => "reference",
        }
    }

    /// How finely this path quantises activations; `None` where it does not.
    pub fn width(self) -> Option<Width> {
        match self {
            Path::Fast => Some(Width::Int16),
            Path::Int8 => Some(Width::Int8),
            Path::Reference => None,
        }
    }
}

/// The bytes of one tensor in the mapped file.
pub struct TensorBytes {
    file: Arc<GgufFile>,
    tensor: TensorInfo,
}

impl AsRef<[u8]> for TensorBytes {
    fn as_ref(&self) -> &[u8] {
        self.file.tensor_bytes(&self.tensor)
    }
}

/// One weight matrix of either path.
pub enum Linear {
    /// Packed for the integer kernels.
    Fast(Matrix),
    /// As stored, dequantised when used.
    Reference(ReferenceMatrix<TensorBytes>),
}

impl Linear {
    fn load(file: &Arc<GgufFile>, name: &str, rows: usize, cols: usize, path: Path) -> Result<Linear, EngineError> {
        let tensor = file.tensor(name)?;
        expect_shape(tensor, rows, cols)?;
        let bytes = file.tensor_bytes(tensor);
        let failed = |error| EngineError::Model(format!("tensor `{name}`: {error}"));
        Ok(match path {
            Path::Fast | Path::Int8 => Linear::Fast(Matrix::from_rows(tensor.kind, rows, cols, bytes).map_err(failed)?),
            Path::Reference => {
                let bytes = TensorBytes { file: Arc::clone(file), tensor: tensor.clone() };
                Linear::Reference(ReferenceMatrix::new(tensor.kind, rows, cols, bytes).map_err(failed)?)
            }
        })
    }

    /// Resident bytes; weights that are read where the file is mapped count nothing.
    pub fn bytes(&self) -> usize {
        match self {
            Linear::Fast(matrix) => matrix.bytes(),
            Linear::Reference(_) => 0,
        }
    }
}

/// What a matrix multiplication runs on.
pub struct Compute {
    /// Instruction set.
    pub isa: Isa,
    /// Threads.
    pub workers: Arc<Workers>,
}

impl Compute {
    /// `out = x W^T` for each matrix over the same rows of `x` (`[m, cols]`), `out` is `[m, rows]`. All of one path.
    pub fn project(
        &self,
        x: &[f32],
        rows: usize,
        activations: &mut Activations,
        targets: &mut [(&Linear, &mut [f32])],
    ) {
        let cols = x.len() / rows;
        if targets.iter().all(|(linear, _)| matches!(linear, Linear::Fast(_))) {
            activations.set(self.isa, &self.workers, x, rows, cols);
            let mut fast: Vec<(&Matrix, &mut [f32])> = Vec::with_capacity(targets.len());
            for (linear, out) in targets {
                if let Linear::Fast(matrix) = linear {
                    fast.push((matrix, out));
                }
            }
            matrix::multiply_many(self.isa, &self.workers, activations, &mut fast);
            return;
        }
        for (linear, out) in targets {
            match linear {
                Linear::Reference(matrix) => matrix.multiply(&self.workers, x, rows, out),
                Linear::Fast(_) => unreachable!("a model has one path"),
            }
        }
    }
}

/// One transformer layer.
pub struct Layer {
    /// RMS norm before attention.
    pub attention_norm: Vec<f32>,
    /// Query projection.
    pub query: Linear,
    /// Key projection.
    pub key: Linear,
    /// Value projection.
    pub value: Linear,
    /// Output projection.
    pub output: Linear,
    /// RMS norm before the feed-forward network.
    pub feed_forward_norm: Vec<f32>,
    /// Gate projection.
    pub gate: Linear,
    /// Up projection.
    pub up: Linear,
    /// Down projection.
    pub down: Linear,
}

/// A loaded model.
pub struct Model {
    /// Its shape.
    pub config: ModelConfig,
    /// The path it was packed for.
    pub path: Path,
    /// Token embeddings.
    pub embeddings: EmbeddingTable<TensorBytes>,
    /// Layers, first one first.
    pub layers: Vec<Layer>,
    /// RMS norm before the head.
    pub output_norm: Vec<f32>,
    /// Projection to the vocabulary.
    pub head: Linear,
}

impl Model {
    /// Packs the weights of `file` for `path`. Errors name the tensor.
    pub fn load(file: &Arc<GgufFile>, path: Path) -> Result<Model, EngineError> {
        let config = ModelConfig::from_gguf(file)?;
        refuse_unknown(file, config.layers)?;
        let layers =
            (0..config.layers).map(|index| Layer::load(file, &config, index, path)).collect::<Result<_, _>>()?;
        let (width, vocabulary) = (config.width as usize, config.vocabulary as usize);
        let table = file.tensor("token_embd.weight")?;
        expect_shape(table, vocabulary, width)?;
        let bytes = TensorBytes { file: Arc::clone(file), tensor: table.clone() };
        let embeddings = EmbeddingTable::new(table.kind, vocabulary, width, bytes)
            .map_err(|error| EngineError::Model(format!("tensor `token_embd.weight`: {error}")))?;
        let tied = file.find_tensor("output.weight").is_none();
        let head_name = if tied { "token_embd.weight" } else { "output.weight" };
        Ok(Model {
            path,
            embeddings,
            layers,
            output_norm: load_norm(file, "output_norm.weight", width)?,
            head: Linear::load(file, head_name, vocabulary, width, path)?,
            config,
        })
    }

    /// True when a matrix of the fast path multiplies f32 rows: one that is stored as floats.
    pub fn needs_f32(&self) -> bool {
        let floats = |linear: &Linear| matches!(linear, Linear::Fast(matrix) if matrix.needs_f32());
        floats(&self.head) || self.layers.iter().any(|layer| layer.linears().into_iter().any(floats))
    }

    /// Resident bytes of all weights.
    pub fn bytes(&self) -> usize {
        let layer = |layer: &Layer| {
            layer.linears().iter().map(|linear| linear.bytes()).sum::<usize>()
                + 4 * (layer.attention_norm.len() + layer.feed_forward_norm.len())
        };
        self.layers.iter().map(layer).sum::<usize>() + self.head.bytes() + 4 * self.output_norm.len()
    }
}

impl Layer {
    fn linears(&self) -> [&Linear; 7] {
        [&self.query, &self.key, &self.value, &self.output, &self.gate, &self.up, &self.down]
    }

    fn load(file: &Arc<GgufFile>, config: &ModelConfig, index: u32, path: Path) -> Result<Layer, EngineError> {
        let (width, ffn) = (config.width as usize, config.feed_forward as usize);
        let (queries, keys) = (config.query_width(), config.kv_width());
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let linear = |part: &str, rows, cols| Linear::load(file, &name(part), rows, cols, path);
        Ok(Layer {
            attention_norm: load_norm(file, &name("attn_norm"), width)?,
            query: linear("attn_q", queries, width)?,
            key: linear("attn_k", keys, width)?,
            value: linear("attn_v", keys, width)?,
            output: linear("attn_output", width, queries)?,
            feed_forward_norm: load_norm(file, &name("ffn_norm"), width)?,
            gate: linear("ffn_gate", ffn, width)?,
            up: linear("ffn_up", ffn, width)?,
            down: linear("ffn_down", width, ffn)?,
        })
    }
}

/// Refuses a tensor that this forward pass would leave out: a bias or an extra norm, ignored, would give wrong logits.
fn refuse_unknown(file: &GgufFile, layers: u32) -> Result<(), EngineError> {
    const GLOBAL: [&str; 4] = ["token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"];
    const LAYER: [&str; 9] =
        ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"];
    let of_layer = |name: &str| {
        let (index, part) = name.strip_prefix("blk.")?.split_once('.')?;
        let known = index.parse::<u32>().is_ok_and(|index| index < layers);
        Some(known && part.strip_suffix(".weight").is_some_and(|part| LAYER.contains(&part)))
    };
    let known = |name: &str| GLOBAL.contains(&name) || of_layer(name).unwrap_or(false);
    match file.tensors().iter().find(|tensor| !known(&tensor.name)) {
        Some(tensor) => Err(EngineError::Model(format!(
            "tensor `{}` is not part of a plain `llama` model; use one without biases, extra norms or experts",
            tensor.name
        ))),
        None => Ok(()),
    }
}

fn load_norm(file: &GgufFile, name: &str, width: usize) -> Result<Vec<f32>, EngineError> {
    let tensor = file.tensor(name)?;
    expect_shape(tensor, 1, width)?;
    let mut weights = vec![0.0; width];
    if !matches!(tensor.kind, TensorType::F32 | TensorType::F16 | TensorType::Bf16) {
        return Err(EngineError::Model(format!("tensor `{name}`: a norm stored as {}", tensor.kind)));
    }
    dequant::dequantize_row(tensor.kind, file.tensor_bytes(tensor), &mut weights);
    Ok(weights)
}

fn expect_shape(tensor: &TensorInfo, rows: usize, cols: usize) -> Result<(), EngineError> {
    if (tensor.rows(), tensor.row_elements()) == (rows, cols) {
        return Ok(());
    }
    let (found_rows, found_cols) = (tensor.rows(), tensor.row_elements());
    Err(EngineError::Model(format!(
        "tensor `{}` is [{found_rows}, {found_cols}], expected [{rows}, {cols}]",
        tensor.name
    )))
}
