//! `kvtier model`: which model files there are.

use indicatif::ProgressBar;
use kvtier_engine::models::{DEFAULT_MODEL, ModelStore};
use serde_json::json;

use crate::args::ModelCommand;
use crate::failure::Failure;
use crate::load;
use crate::output;

/// Runs the command.
pub fn run(command: &ModelCommand) -> Result<(), Failure> {
    let store = ModelStore::from_env().map_err(Failure::input)?;
    let name = |name: &Option<String>| name.clone().unwrap_or_else(|| DEFAULT_MODEL.to_owned());
    let failed = |error| Failure::from_error(&error, 2);
    match command {
        ModelCommand::List { json: as_json } => list(&store, *as_json),
        ModelCommand::Fetch { name: given } => {
            let bar = ProgressBar::no_length().with_style(load::bytes_style());
            let path = store.fetch(&name(given), |progress| load::show_fetch(&bar, progress));
            bar.finish_and_clear();
            output::print_line(&path.map_err(failed)?.display().to_string())
        }
        ModelCommand::Verify { name: given } => {
            let path = store.verify(&name(given)).map_err(failed)?;
            output::print_line(&format!("{}: size and SHA-256 are right", path.display()))
        }
        ModelCommand::Path { name: given } => {
            output::print_line(&store.path(&name(given)).map_err(failed)?.display().to_string())
        }
    }
}

fn list(store: &ModelStore, as_json: bool) -> Result<(), Failure> {
    for (model, present) in store.list() {
        let line = if as_json {
            json!({ "name": model.name, "bytes": model.bytes, "present": present, "default": model.name == DEFAULT_MODEL }).to_string()
        } else {
            let here = if present { "here" } else { "not fetched" };
            format!("{}  {:.1} MB  {here}", model.name, model.bytes as f64 / 1e6)
        };
        output::print_line(&line)?;
    }
    Ok(())
}
