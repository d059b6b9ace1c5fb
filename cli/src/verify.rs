//! `kvtier verify`: every record of a store read and checked, while nobody has it open.

use kvtier_sdk::embedded::{DiskTier, VerifyReport};
use kvtier_sdk::hex::Hex;
use serde_json::{Value, json};

use crate::args::VerifyArgs;
use crate::disk;
use crate::failure::Failure;
use crate::output;

/// Damages that a person is shown.
const SHOWN_MAX: usize = 20;

/// Runs the command. Exit codes: 0 all is sound, 2 nothing could be checked, 3 something is damaged.
pub fn run(args: &VerifyArgs) -> Result<(), Failure> {
    let shown = args.directory.display();
    let report = DiskTier::verify_offline(&args.directory, disk::io()?).map_err(|error| {
        let failure = Failure::from_error(&error, 2);
        Failure { message: format!("verify {shown}: {}", failure.message), ..failure }
    })?;
    if args.json {
        output::print_line(&object(&report).to_string())?;
    } else {
        print(&report)?;
    }
    match report.damage.len() {
        0 => Ok(()),
        count => Err(Failure {
            code: 3,
            message: format!(
                "verify {shown}: {count} damaged; they are never served, `kvtier run --disk` goes on without them"
            ),
        }),
    }
}

fn object(report: &VerifyReport) -> Value {
    let damage: Vec<Value> = report
        .damage
        .iter()
        .map(|damage| json!({ "segment": damage.segment, "offset": damage.offset, "what": damage.what }))
        .collect();
    json!({
        "ok": report.damage.is_empty(),
        "version": report.version,
        "store_id": Hex(&report.store_id).to_string(),
        "superblocks": report.superblocks,
        "has_snapshot": report.has_snapshot,
        "segments": report.segments,
        "footers": report.footers,
        "records": report.records,
        "deleted_records": report.deleted_records,
        "record_bytes": report.record_bytes,
        "read_bytes": report.read_bytes,
        "allocated_bytes": report.allocated_bytes,
        "damage": damage,
    })
}

fn print(report: &VerifyReport) -> Result<(), Failure> {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64);
    let end = if report.has_snapshot { "in order, with an index snapshot" } else { "not in order, or still to come" };
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    output::print_table(&[
        row("format version", report.version.to_string()),
        row("store", Hex(&report.store_id).to_string()),
        row("superblocks", format!("{} of 2 sound", report.superblocks)),
        row("last end", end.to_owned()),
        row("segments", format!("{}, {} with a footer", report.segments, report.footers)),
        row("whole records", format!("{}, {}", report.records, mib(report.record_bytes))),
        row("of deleted namespaces", report.deleted_records.to_string()),
        row("read", mib(report.read_bytes)),
        row("allocated", mib(report.allocated_bytes)),
        row("damaged", report.damage.len().to_string()),
    ])?;
    for damage in report.damage.iter().take(SHOWN_MAX) {
        let place = damage.segment.map_or_else(|| "outside the segments".to_owned(), |at| format!("segment {at}"));
        output::print_line(&format!("  {place}, byte {}: {}", damage.offset, damage.what))?;
    }
    match report.damage.len().saturating_sub(SHOWN_MAX) {
        0 => Ok(()),
        more => output::print_line(&format!("  and {more} more (--json lists them all)")),
    }
}
