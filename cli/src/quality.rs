//! `kvtier quality`: what stored forms of keys and values do to the model's answers.

mod html;

use std::path::Path;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use kvtier_engine::EngineError;
use kvtier_engine::quality::divergence::{self, Divergence};
use kvtier_engine::quality::greedy::{self, Greedy};
use kvtier_engine::quality::hit::{self, AfterHit};
use kvtier_engine::quality::retrieval::{self, Grid, Retrieval};
use kvtier_engine::quality::stats::{Interval, Summary};
use kvtier_engine::quality::{FLOOR, Open};
use kvtier_engine::run::Form;
use kvtier_engine::run::engine::{DiskOptions, Engine, EngineOptions};
use kvtier_engine::tokenizer::SpecialTokens;
use kvtier_sdk::embedded::{Admission, ByteStage, IoChoice};
use serde_json::{Value, json};

use crate::args::QualityArgs;
use crate::disk::{self, Below};
use crate::failure::Failure;
use crate::load::{self, Loaded};
use crate::output;
use crate::signals::Signals;

/// Tokens of a prompt that is continued, and of its continuation.
const PROMPT: (usize, u32) = (512, 64);
/// Prompts that are continued, and pieces whose first half is taken from the cache, at most.
const PROMPTS: usize = 8;
const HIT_PIECES: usize = 4;
/// The same with `--full`.
const PROMPTS_FULL: usize = 32;
const HIT_PIECES_FULL: usize = 16;
/// What a store may take that prefixes are taken from.
const STORE_BYTES: u64 = 1 << 30;
/// What `--retrieval` asks, and what `--full` does.
const GRIDS: [Grid; 2] = [Grid { tokens: 2048, depths: 11, seeds: 2 }, Grid { tokens: 8192, depths: 5, seeds: 1 }];
const GRIDS_FULL: [Grid; 2] =
    [Grid { tokens: 2048, depths: 11, seeds: 4 }, Grid { tokens: 8192, depths: 11, seeds: 2 }];

/// Everything that was measured of one form.
struct Report {
    divergence: Divergence,
    after_hit: Option<AfterHit>,
    greedy: Option<Greedy>,
    /// One for each task and length; empty when none were asked for.
    retrieval: Vec<Retrieval>,
}

/// Runs the command.
pub fn run(args: &QualityArgs) -> Result<(), Failure> {
    let forms = forms(args)?;
    if let Some(path) = &args.html {
        check_target(path)?;
    }
    let document = load::read_document(&args.file)?;
    let loaded = load::load(&args.engine)?;
    let tokens = loaded.tokenizer.encode(&document, SpecialTokens::Plain).map_err(Failure::input)?;
    let pieces = pieces(&tokens, args, loaded.model.config.context_tokens)?;
    let options = load::open(&loaded, &args.engine, Below::default(), false)?.options().clone();
    let io = disk::io()?;
    let open =
        |form: Form, store: Option<&Path>| open(&loaded, &options, args, form, store.map(|folder| stored(folder, io)));
    let reports = measure(&open, &forms, &pieces, &loaded, args)?;
    reports.iter().try_for_each(check_finite)?;
    if let Some(path) = &args.html {
        let page = html::page(&reports, args);
        std::fs::write(path, page).map_err(|error| Failure::input(format!("write {}: {error}", path.display())))?;
    }
    if args.json {
        return reports.iter().try_for_each(|report| output::print_line(&object(report).to_string()));
    }
    print(&reports)
}

/// The forms that are asked for, each once. Errors: exit code 2 for a name that is none.
fn forms(args: &QualityArgs) -> Result<Vec<Form>, Failure> {
    if args.engine.form.is_some() {
        return Err(Failure::input("--form chooses the form of one engine; --forms names those that are measured"));
    }
    let mut forms = Vec::new();
    for name in &args.forms {
        let form = name.parse::<Form>().map_err(|error| Failure::input(format!("--forms: {error}")))?;
        if !forms.contains(&form) {
            forms.push(form);
        }
    }
    Ok(forms)
}

/// Refuses a page that could not be written once everything is measured.
fn check_target(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() || !folder.is_dir() {
        return Err(Failure::input(format!("write {}: name a file in a folder that exists", path.display())));
    }
    Ok(())
}

/// The first pieces of the text. Errors: exit code 2 when the text or the model's context is shorter.
fn pieces<'a>(tokens: &'a [u32], args: &QualityArgs, context: u32) -> Result<Vec<&'a [u32]>, Failure> {
    let (length, wanted) = (args.tokens, args.chunks);
    if length > context {
        return Err(Failure::input(format!(
            "--tokens is {length}, but the model's context holds {context}; give less"
        )));
    }
    let pieces: Vec<&[u32]> = tokens.chunks_exact(length as usize).take(wanted as usize).collect();
    if pieces.len() < wanted as usize {
        let needed = u64::from(length) * u64::from(wanted);
        return Err(Failure::input(format!(
            "{} has {} tokens, but {wanted} x {length} = {needed} are needed; give a longer text, or less --chunks or --tokens",
            args.file.display(),
            tokens.len()
        )));
    }
    Ok(pieces)
}

fn open(
    loaded: &Loaded,
    options: &EngineOptions,
    args: &QualityArgs,
    form: Form,
    disk: Option<DiskOptions>,
) -> Result<Engine, EngineError> {
    // A budget that nobody chose holds a whole context of bf16, and f32 takes twice as much.
    let doubled = form == FLOOR && args.engine.device_mem.is_none();
    let device_bytes = if doubled { 2 * options.device_bytes } else { options.device_bytes };
    let options = EngineOptions { form, use_cache: disk.is_some(), disk, device_bytes, ..options.clone() };
    Engine::open(Arc::clone(&loaded.model), loaded.weights, options)
}

/// A store that takes every block.
fn stored(folder: &Path, io: IoChoice) -> DiskOptions {
    let (admission, stage) = (Admission::Always, ByteStage::Auto);
    DiskOptions { directory: folder.to_owned(), budget_bytes: STORE_BYTES, admission, io, stage }
}

fn measure(
    open: &Open<'_>,
    forms: &[Form],
    pieces: &[&[u32]],
    loaded: &Loaded,
    args: &QualityArgs,
) -> Result<Vec<Report>, Failure> {
    let compared = with_bar("comparing", |watch| divergence::measure(open, forms, pieces, watch))?;
    let hit_pieces = &pieces[..pieces.len().min(if args.full { HIT_PIECES_FULL } else { HIT_PIECES })];
    let scratch = scratch()?;
    let after_hit = with_bar("after a hit", |watch| {
        let of = |form: &Form| hit::measure(open, *form, &scratch.path().join(form.name()), hit_pieces, watch);
        forms.iter().map(of).collect::<Result<Vec<_>, _>>()
    })?;
    scratch.close()?;
    let context = loaded.model.config.context_tokens;
    let prompts = prompts(pieces, context, if args.full { PROMPTS_FULL } else { PROMPTS });
    let greedy = with_bar("continuing", |watch| greedy::measure(open, forms, &prompts, PROMPT.1, watch))?;
    let grids = if args.full { GRIDS_FULL } else { GRIDS };
    let asked = grids.iter().filter(|grid| (args.full || args.retrieval) && grid.tokens <= context as usize);
    let mut retrieved: Vec<Retrieval> = Vec::new();
    for grid in asked {
        retrieved
            .extend(with_bar("retrieving", |watch| retrieval::measure(open, forms, *grid, &loaded.tokenizer, watch))?);
    }
    let reports = compared.into_iter().zip(after_hit).zip(greedy).map(|((divergence, after_hit), greedy)| Report {
        after_hit,
        greedy: (greedy.prompts > 0).then_some(greedy),
        retrieval: retrieved.iter().filter(|row| row.form == divergence.form).cloned().collect(),
        divergence,
    });
    Ok(reports.collect())
}

/// A folder for stores, removed at every orderly end, by a signal too.
fn scratch() -> Result<tempfile::TempDir, Failure> {
    let base = load::cache_folder().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&base)?;
    let scratch = tempfile::Builder::new().prefix("quality-").tempdir_in(base)?;
    let path = scratch.path().to_owned();
    Signals::install()?.at_end(move || drop(std::fs::remove_dir_all(path)));
    Ok(scratch)
}

/// Prompts from the pieces; none when a piece or the context is too short.
fn prompts<'a>(pieces: &[&'a [u32]], context: u32, most: usize) -> Vec<&'a [u32]> {
    let (length, more) = PROMPT;
    let fits = length + more as usize <= context as usize;
    pieces.iter().flat_map(|piece| piece.chunks_exact(length)).take(if fits { most } else { 0 }).collect()
}

/// Shows on stderr how many tokens are done.
fn with_bar<T>(
    message: &'static str,
    work: impl FnOnce(&mut dyn FnMut(usize, usize)) -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    let style = ProgressStyle::with_template("  {msg} {wide_bar} {pos}/{len} tokens").expect("a constant template");
    let bar = ProgressBar::no_length().with_style(style).with_message(message);
    let result = work(&mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    result
}

/// JSON has no word for NaN and infinities, and a mean over them says nothing.
fn check_finite(report: &Report) -> Result<(), Failure> {
    let Divergence { form, floor_kl, parts, .. } = &report.divergence;
    let sums = parts.iter().map(|part| part.summary.kl_mean + part.summary.ppl_ratio);
    let after_hit = report.after_hit.iter().map(|row| row.hit.kl_mean + row.without.kl_mean);
    let retrieval = report.retrieval.iter().map(|row| row.difference.mean);
    if sums.chain(after_hit).chain(retrieval).chain([*floor_kl]).all(f64::is_finite) {
        return Ok(());
    }
    Err(Failure {
        code: 3,
        message: format!(
            "compare {} with raw16: a logit is no number; the model's numbers overflow, --path reference may help",
            form.name()
        ),
    })
}

fn object(report: &Report) -> Value {
    let Divergence { form, bits_per_value, summary, floor_kl, parts, first_difference } = &report.divergence;
    let mut object = summary_object(summary);
    object["form"] = json!(form.name());
    object["bits_per_value"] = json!(bits_per_value);
    object["floor_kl"] = json!(floor_kl);
    object["first_difference"] = json!(first_difference);
    let by_position = parts.iter().map(|part| {
        let mut row = summary_object(&part.summary);
        row["from"] = json!(part.from);
        row["to"] = json!(part.to);
        row
    });
    object["by_position"] = by_position.collect();
    object["right_after_hit"] = json!(report.after_hit.map(|row| json!({
        "found_tokens": row.found_tokens,
        "hit": summary_object(&row.hit),
        "without": summary_object(&row.without),
    })));
    object["greedy"] = json!(report.greedy.map(|row| json!({
        "prompts": row.prompts, "identical": row.identical, "tokens": row.tokens, "agreeing": row.agreeing,
    })));
    object["retrieval"] = report.retrieval.iter().map(retrieval_object).collect();
    object
}

fn summary_object(summary: &Summary) -> Value {
    json!({
        "kl_mean": summary.kl_mean,
        "kl_mean_se": summary.kl_mean_error,
        "kl_median": summary.kl_median,
        "kl_p99": summary.kl_p99,
        "kl_max": summary.kl_max,
        "top1": summary.top1,
        "ppl_ratio": summary.ppl_ratio,
        "ppl_ratio_se": summary.ppl_ratio_error,
        "positions": summary.positions,
    })
}

fn retrieval_object(row: &Retrieval) -> Value {
    let Interval { mean, low, high } = row.difference;
    let depths = row.depths.iter().map(|depth| {
        json!({
            "depth": depth.depth, "logprob_exact": depth.exact, "logprob": depth.form, "difference_se": depth.error,
            "right_exact": depth.exact_right, "right": depth.form_right,
        })
    });
    json!({
        "task": row.task.name(), "tokens": row.grid.tokens, "questions": row.questions, "usable": row.is_usable(),
        "right_exact": row.exact_right, "right": row.form_right,
        "difference": { "mean": mean, "low": low, "high": high },
        "by_depth": depths.collect::<Vec<Value>>(),
    })
}

/// Tables for a person. The page of `--html` shows the same ones.
fn print(reports: &[Report]) -> Result<(), Failure> {
    for (index, table) in tables(reports).iter().enumerate() {
        if index > 0 {
            output::print_line("")?;
        }
        output::print_line(table.title)?;
        output::print_table(&table.rows)?;
    }
    Ok(())
}

/// A table with its heads in the first row.
struct Table {
    title: &'static str,
    rows: Vec<Vec<String>>,
}

/// What was measured; tables without rows are left out.
fn tables(reports: &[Report]) -> Vec<Table> {
    let kl = |value: f64| if value == 0.0 { "0".to_owned() } else { format!("{value:.2e}") };
    let percent = |value: f64| format!("{:.2} %", 100.0 * value);
    let plus_minus = |error: Option<String>| error.map_or(String::new(), |error| format!(" +- {error}"));
    let mut tables = Vec::new();
    let mut add = |title, head: &[&str], rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            let head = head.iter().map(|cell| (*cell).to_owned()).collect();
            tables.push(Table { title, rows: [vec![head], rows].concat() });
        }
    };
    let compared = reports.iter().map(|report| {
        let Divergence { form, bits_per_value, summary, floor_kl, .. } = &report.divergence;
        vec![
            form.name().to_owned(),
            format!("{bits_per_value:.2}"),
            format!("{}{}", kl(summary.kl_mean), plus_minus(summary.kl_mean_error.map(kl))),
            kl(summary.kl_median),
            kl(summary.kl_p99),
            kl(summary.kl_max),
            percent(summary.top1),
            format!(
                "{:+.2}{} %",
                100.0 * (summary.ppl_ratio - 1.0),
                plus_minus(summary.ppl_ratio_error.map(|error| format!("{:.2}", 100.0 * error)))
            ),
            kl(*floor_kl),
            summary.positions.to_string(),
        ]
    });
    add(
        "KL(exact || form) in nats over the second half",
        &["form", "bits/value", "mean", "median", "99 %", "max", "top-1", "perplexity", "floor", "positions"],
        compared.collect(),
    );
    let after_hit = reports.iter().filter_map(|report| {
        let row = report.after_hit?;
        let cells = [
            format!("{:.0}", row.found_tokens),
            kl(row.hit.kl_mean),
            kl(row.without.kl_mean),
            percent(row.hit.top1),
            percent(row.without.top1),
            row.hit.positions.to_string(),
        ];
        Some([vec![report.divergence.form.name().to_owned()], cells.to_vec()].concat())
    });
    add(
        "Right after a hit",
        &["form", "found tokens", "KL", "without hit", "top-1", "without hit", "positions"],
        after_hit.collect(),
    );
    let greedy = reports.iter().filter_map(|report| {
        let row = report.greedy?;
        let cells = [
            format!("{} of {}", row.identical, row.prompts),
            percent(row.agreeing as f64 / row.tokens as f64),
            row.tokens.to_string(),
        ];
        Some([vec![report.divergence.form.name().to_owned()], cells.to_vec()].concat())
    });
    add("Greedy continuations", &["form", "identical", "tokens before a difference", "tokens"], greedy.collect());
    let retrieval = reports.iter().flat_map(|report| &report.retrieval).map(|row| {
        let Interval { mean, low, high } = row.difference;
        let form = if row.is_usable() { row.form.name() } else { "not usable".to_owned() };
        vec![
            row.task.name().to_owned(),
            row.grid.tokens.to_string(),
            form,
            percent(row.exact_right),
            percent(row.form_right),
            format!("{mean:+.3} ({low:+.3} to {high:+.3})"),
            row.questions.to_string(),
        ]
    });
    add(
        "Retrieval: log-probability of the answer, form - exact, in nats, with 95 % interval",
        &["task", "tokens", "form", "right, exact", "right", "difference", "questions"],
        retrieval.collect(),
    );
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_do_not_overlap_and_fit_the_context() {
        let tokens: Vec<u32> = (0..4096).collect();
        let pieces: Vec<&[u32]> = tokens.chunks_exact(2048).collect();
        let firsts =
            |most, context| prompts(&pieces, context, most).iter().map(|prompt| prompt[0]).collect::<Vec<u32>>();
        assert_eq!(firsts(8, 8192), [0, 512, 1024, 1536, 2048, 2560, 3072, 3584]);
        assert_eq!(firsts(3, 576), [0, 512, 1024]);
        assert!(firsts(8, 575).is_empty());
    }
}
