//! `kvtier bench forms`: what each stored form saves, and what it costs beside a plain copy and beside exact attention.

use kvtier_engine::machine::Simd;
use kvtier_engine::machine::attention::{AttentionBench, measure_attention};
use kvtier_engine::machine::forms::{Figures, FormFigures, Sample, measure};
use kvtier_engine::run::Form;
use serde_json::{Value, json};

use crate::args::BenchFormsArgs;
use crate::failure::Failure;
use crate::output;

/// `raw16` is the control: it is a copy, section by section.
const FORMS: [Form; 4] = [Form::Raw16, Form::Sx12, Form::I8h, Form::Kc4vt4];
/// Bytes of `raw16` in the buffers, the large one first.
const BUFFERS: [u64; 2] = [64 << 20, 1 << 20];
/// Shape of the default model.
const HEAD_DIM: u32 = 64;
const KV_HEADS: u32 = 3;
const GROUP: u32 = 3;
const LAYERS: u32 = 30;
const BLOCK_TOKENS: u32 = 64;
/// Exact window of closed attention, in positions.
const WINDOW: u32 = 64;
/// Slices of the sample: 4 MiB.
const SLICES: usize = 256;

/// What is known of one form.
struct Row {
    figures: FormFigures,
    /// Speed of attention over the form as it lies, of exact attention's; `None` where attention does not read it so.
    attention: Option<f64>,
}

/// Runs the command.
pub fn run(args: &BenchFormsArgs) -> Result<(), Failure> {
    if !args.ctx.is_multiple_of(BLOCK_TOKENS) {
        return Err(Failure::input(format!("--ctx is {}; give a multiple of {BLOCK_TOKENS}", args.ctx)));
    }
    let codec = Simd::detect();
    let sample = Sample::synthetic(HEAD_DIM, BLOCK_TOKENS, SLICES);
    let figures = measure(&codec, &sample, &FORMS, &BUFFERS, args.rounds as usize);
    let figures =
        figures.map_err(|(form, reason)| Failure { code: 3, message: format!("{}: {reason}", form.name()) })?;
    let bench = AttentionBench {
        layers: LAYERS,
        group: GROUP,
        kv_heads: KV_HEADS,
        tokens: args.ctx,
        window: WINDOW,
        threads: 1,
        isa: codec.isa(),
    };
    let mut rows = Vec::new();
    for figures in figures {
        let attended = matches!(figures.form, Form::I8h | Form::Kc4vt4);
        let measured = attended.then(|| measure_attention(bench, &sample, figures.form, args.rounds as usize));
        let measured = measured.transpose().map_err(|error| Failure::from_error(&error, 3))?;
        rows.push(Row { figures, attention: measured.map(|measured| measured.closed_versus_exact) });
    }
    if args.json {
        return rows.iter().try_for_each(|row| output::print_line(&object(row, args, codec.isa().name()).to_string()));
    }
    print(&rows, args, codec.isa().name())
}

fn object(row: &Row, args: &BenchFormsArgs, isa: &str) -> Value {
    let mut object = speeds(&row.figures.figures);
    object["form"] = json!(row.figures.form.name());
    object["attention_vs_exact"] = json!(row.attention);
    object["attention_ctx"] = json!(args.ctx);
    if !row.figures.lz4.is_empty() {
        object["lz4"] = speeds(&row.figures.lz4);
    }
    object["data"] = json!("synthetic");
    object["isa"] = json!(isa);
    object["threads"] = json!(1);
    object["rounds"] = json!(args.rounds);
    object
}

/// Figures of the large buffer, and of the small one beside them.
fn speeds(figures: &[Figures]) -> Value {
    let [large, small] = figures else { unreachable!("one entry per buffer") };
    let pair = |range: (f64, f64)| json!([range.0, range.1]);
    json!({
        "ratio": large.ratio,
        "encode_vs_memcpy": large.encode.versus_copy,
        "encode_vs_memcpy_range": pair(large.encode.versus_copy_range),
        "encode_vs_memcpy_1mib": small.encode.versus_copy,
        "decode_vs_memcpy": large.decode.versus_copy,
        "decode_vs_memcpy_range": pair(large.decode.versus_copy_range),
        "decode_vs_memcpy_1mib": small.decode.versus_copy,
        "gb_s": large.decode.bytes_per_second / 1e9,
        "encode_gb_s": large.encode.bytes_per_second / 1e9,
        "memcpy_gb_s": large.copy_bytes_per_second / 1e9,
        "gb_s_1mib": small.decode.bytes_per_second / 1e9,
        "encode_gb_s_1mib": small.encode.bytes_per_second / 1e9,
        "memcpy_gb_s_1mib": small.copy_bytes_per_second / 1e9,
    })
}

fn print(rows: &[Row], args: &BenchFormsArgs, isa: &str) -> Result<(), Failure> {
    output::print_line(&format!(
        "Made-up keys and values, one thread, {isa}; medians of {} rounds. GB/s of raw16, beside a copy of the same buffer;\n\
         attention of one token over {} positions, beside exact attention.\n",
        args.rounds, args.ctx
    ))?;
    let titles =
        ["", "ratio", "encode 64 MiB", "", "decode 64 MiB", "", "encode 1 MiB", "", "decode 1 MiB", "", "attention"];
    let mut table = vec![titles.map(str::to_owned).to_vec()];
    for row in rows {
        table.push(cells(&row.figures.form.name(), &row.figures.figures, row.attention));
        if !row.figures.lz4.is_empty() {
            table.push(cells("lz4", &row.figures.lz4, None));
        }
    }
    output::print_table(&table)
}

fn cells(name: &str, figures: &[Figures], attention: Option<f64>) -> Vec<String> {
    let mut cells = vec![name.to_owned(), format!("{:.2}", figures[0].ratio)];
    for speed in figures.iter().flat_map(|figures| [figures.encode, figures.decode]) {
        cells.push(format!("{:.1} GB/s", speed.bytes_per_second / 1e9));
        cells.push(format!("{:.2}x", speed.versus_copy));
    }
    cells.push(attention.map_or("-".to_owned(), |ratio| format!("{ratio:.2}x")));
    cells
}
