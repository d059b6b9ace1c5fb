//! `kvtier bench cuda`: what each kernel takes on a card, beside what a copy of as many bytes would.

use kvtier_engine::machine::cuda::{CudaBench, Figures, measure};
use serde_json::{Value, json};

use crate::args::BenchCudaArgs;
use crate::failure::Failure;
use crate::output;

/// Runs the command.
pub fn run(args: &BenchCudaArgs) -> Result<(), Failure> {
    if !args.ctx.is_multiple_of(64) {
        return Err(Failure::input(format!("--ctx is {}; give a multiple of 64", args.ctx)));
    }
    let bench = CudaBench { ordinal: args.ordinal, tokens: args.ctx, rounds: args.rounds };
    // No driver, no such device or no room on it: what was asked for is not there.
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
