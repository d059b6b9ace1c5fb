//! `kvtier bench cuda`: what each kernel takes on a card, beside what a copy of as many bytes would. Without a card, what was counted of the
//! compiled kernels.

use kvtier_engine::machine::cuda::{CudaBench, Figures, measure};
use kvtier_engine::machine::{cuda_counts, cuda_devices};
use serde_json::{Map, Value, json};

use crate::args::BenchCudaArgs;
use crate::failure::Failure;
use crate::output;

/// Runs the command.
pub fn run(args: &BenchCudaArgs) -> Result<(), Failure> {
    if !args.ctx.is_multiple_of(64) {
        return Err(Failure::input(format!("--ctx is {}; give a multiple of 64", args.ctx)));
    }
    if let Err(error) = cuda_devices() {
        let reason = kvtier_daemon::command::sentence(&error);
        output::note(&format!(
            "kvtier: nothing is timed, failed to {reason}; what follows was counted of the compiled kernels\n"
        ));
        return print_counts(args.json);
    }
    let bench = CudaBench { ordinal: args.ordinal, tokens: args.ctx, rounds: args.rounds };
    // No such device or no room on it: what was asked for is not there.
    let report = measure(bench).map_err(|error| Failure::from_error(&error, 2))?;
    let gb_s = |bytes: u64, seconds: f64| bytes as f64 / seconds / 1e9;
    if args.json {
        return report.figures.iter().try_for_each(|figures| {
            let mut object = object(figures);
            object["device"] = json!(report.device);
            object["ctx"] = json!(args.ctx);
            object["rounds"] = json!(args.rounds);
            object["copy_gb_s"] = json!(report.copy_bytes_per_second / 1e9);
            object["matrix_tflop_s"] = json!(report.matrix_operations_per_second / 1e12);
            object["gb_s"] = json!(gb_s(figures.bytes, figures.seconds));
            output::print_line(&object.to_string())
        });
    }
    output::print_line(&format!(
        "{}: one layer of {} positions, 8 KV heads of 128 channels, 32 query heads; medians of {} rounds.\n\
         A copy inside device memory moves {:.1} GB/s, read and written; matrix units do {:.1} TFLOP/s. The floor is the longer of the two.\n",
        report.device,
        args.ctx,
        args.rounds,
        report.copy_bytes_per_second / 1e9,
        report.matrix_operations_per_second / 1e12
    ))?;
    let mut table = vec![["", "MB", "operations / byte", "time", "GB/s", "of the floor"].map(str::to_owned).to_vec()];
    for figures in &report.figures {
        table.push(vec![
            figures.work.clone(),
            format!("{:.1}", figures.bytes as f64 / 1e6),
            if figures.operations == 0 {
                "-".to_owned()
            } else {
                format!("{:.1}", figures.operations as f64 / figures.bytes as f64)
            },
            format!("{:.3} ms", figures.seconds * 1e3),
            format!("{:.1}", gb_s(figures.bytes, figures.seconds)),
            format!("{:.2}x", figures.seconds / figures.floor_seconds),
        ]);
    }
    output::print_table(&table)
}

fn object(figures: &Figures) -> Value {
    json!({
        "work": figures.work,
        "bytes": figures.bytes,
        "operations": figures.operations,
        "seconds": figures.seconds,
        "seconds_range": [figures.seconds_range.0, figures.seconds_range.1],
        "floor_seconds": figures.floor_seconds,
        "time_vs_floor": figures.seconds / figures.floor_seconds,
    })
}

/// The table of counts, whatever was asked for: it is of one layer and of its own sizes.
fn print_counts(as_json: bool) -> Result<(), Failure> {
    let columns: Vec<&str> = cuda_counts::columns().collect();
    if as_json {
        let keys: Vec<String> = columns.iter().copied().map(key).collect();
        return cuda_counts::rows().try_for_each(|row| {
            let mut object: Map<String, Value> = keys.iter().cloned().zip(row.map(cell)).collect();
            object.insert("counted".to_owned(), json!(true));
            output::print_line(&Value::Object(object).to_string())
        });
    }
    output::print_line(
        "Counts of the compiled kernels, made by executing their PTX on a CPU, not times: one layer with 2 KV heads, blocks of 64 tokens. `bytes` is\n\
         what the work has to read and write; % is the mix of instructions. A warp's request of 16 bytes a thread is 16 sectors at best.\n",
    )?;
    let text = |row: &mut dyn Iterator<Item = &str>| row.map(str::to_owned).collect::<Vec<_>>();
    let header = [text(&mut columns.into_iter())];
    let table: Vec<Vec<String>> = header.into_iter().chain(cuda_counts::rows().map(|mut row| text(&mut row))).collect();
    output::print_table(&table)
}

/// A column's name as a field's: `sectors / request` is `sectors_per_request`.
fn key(column: &str) -> String {
    column.replace('/', "per").replace('%', "percent").replace([' ', '-'], "_")
}

/// A number where the cell is one.
fn cell(text: &str) -> Value {
    text.parse::<u64>()
        .map(Value::from)
        .or_else(|_| text.parse::<f64>().map(Value::from))
        .unwrap_or_else(|_| Value::from(text))
}
